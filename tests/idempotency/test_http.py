"""The `Idempotency-Key` header over WSGI (a real server, a real client) and ASGI (an application called as servers do).

One body for both: `ask` sends a request, and tells status, headers and body.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.validate import validator

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from kit import QUICK, Database, make_database
from nodoubt import AsyncCoordinator, Coordinator, KeyInFlight, KeyReused, NoDoubtError, UsageError
from nodoubt.contrib import asgi, wsgi
from nodoubt.idempotency import requests

pytestmark = pytest.mark.anyio
Told = tuple[int, dict[str, str], bytes]
Ask = Callable[..., Awaitable[Told]]
KEY = {"Idempotency-Key": '"8e03978e-40d5-43dd-bc93-6894a57f9324"'}
ADD = "update accounts set balance = balance + 1 where id = 0"


def reply(body: bytes) -> tuple[int, dict[str, str], bytes]:
    """What the application answers; the body says which status it wants."""
    status = int(json.loads(body)["want"])
    return status, {"content-type": "text/plain", "x-n": "é"}, f"echo {body.decode()}".encode()


def wsgi_app(environ: dict[str, Any], start: Any) -> list[bytes]:
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)) or b'{"want": 200}'
    if wsgi.ONCE in environ:
        environ[wsgi.ONCE].execute(ADD)
        if b"nested" in body:  # the same request, while this one is at work
            inner = http.client.HTTPConnection(environ["SERVER_NAME"], int(environ["SERVER_PORT"]), timeout=20)
            inner.request("POST", "/orders", body, KEY)
            body = b'{"want": 200, "inner": %d}' % inner.getresponse().status
            inner.close()
    status, headers, text = reply(body)
    start(f"{status} X", list(headers.items()))
    return [text[:3], text[3:]]


async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message.get("more_body", False)
    body = body or b'{"want": 200}'
    once = scope.get("state", {}).get("once")
    if once is not None:
        await once.execute(ADD)
        if b"nested" in body:
            body = b'{"want": 200, "inner": %d}' % (await call(scope["app"], "POST", "/orders", body, KEY))[0]
    status, headers, text = reply(body)
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": text[:3], "more_body": True})
    await send({"type": "http.response.body", "body": text[3:]})


async def call(app: Any, method: str, target: str, body: bytes, headers: Any, **more: Any) -> Told:
    """As an ASGI server does, the body in two pieces."""
    path, _, query = target.partition("?")
    pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": pairs,
        "app": app,
        **more,
    }
    pieces = [{"type": "http.request", "body": body[5:]}, {"type": "http.request", "body": body[:5], "more_body": True}]
    sent: list[Any] = []

    async def receive() -> Any:
        return pieces.pop() if pieces else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    told = {name.decode(): value.decode("latin-1") for name, value in sent[0]["headers"]}
    return sent[0]["status"], told, b"".join(one.get("body", b"") for one in sent[1:])


@pytest.fixture
def only(request: Any, tmp_path: Path) -> Database:
    return make_database("sqlite", "a", request, tmp_path)


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serving(app: Any) -> Iterator[int]:
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIServer

    class Threads(ThreadingMixIn, WSGIServer):
        daemon_threads = True

    with make_server("127.0.0.1", 0, app, Threads, _Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@contextlib.asynccontextmanager
async def asking(face: str, only: Database, **options: Any) -> AsyncIterator[Ask]:
    options.setdefault("who", lambda _: "me")
    if face == "asgi":
        async with AsyncCoordinator(only.url, settings=QUICK, recovery=False) as db:
            await db.setup()
            app = asgi.IdempotencyKeys(asgi_app, db, **options)

            async def ask(body: bytes = b"", method: str = "POST", target: str = "/orders", **headers: str) -> Told:
                return await call(app, method, target, body, _sent(headers))

            yield ask
        return
    with Coordinator(only.url, settings=QUICK, recovery=False) as other:
        other.setup()
        with serving(validator(wsgi.IdempotencyKeys(wsgi_app, other, **options))) as port:

            async def ask_server(
                body: bytes = b"", method: str = "POST", target: str = "/orders", **headers: str
            ) -> Told:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
                connection.request(method, target, body, _sent(headers))
                response = connection.getresponse()
                text = response.read()
                connection.close()
                return response.status, {name.lower(): value for name, value in response.getheaders()}, text

            yield ask_server


def _sent(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()} if headers else KEY


@pytest.fixture(params=["asgi", "wsgi"])
def face(request: Any) -> str:
    return str(request.param)


async def test_a_repeated_request_gets_the_first_answer_and_has_no_effect(face: str, only: Database) -> None:
    async with asking(face, only) as ask:
        for number, want in enumerate((201, 404), start=1):
            body = b'{"want": %d}' % want
            key = {"Idempotency_Key": f'"key-{number}"'}
            first = await ask(body, **key)
            again = await ask(body, **key)
            assert first[0] == want and first[2] == b"echo " + body and first[1]["x-n"] == "é"
            assert again[0] == want and again[2] == first[2] and again[1]["x-n"] == "é"
            assert "idempotent-replayed" not in first[1] and again[1]["idempotent-replayed"] == "true"
            assert only.balance() == 100 + number
        bare = await ask(b'{"want": 201}', Idempotency_Key="key-1")
        assert bare[1]["idempotent-replayed"] == "true", "the same key, without its quotes"


async def test_another_request_under_the_same_key_is_422(face: str, only: Database) -> None:
    async with asking(face, only) as ask:
        assert (await ask(b'{"want": 200}'))[0] == 200
        for body, target, method in (
            (b'{"want": 201}', "/orders", "POST"),
            (b'{"want": 200}', "/refunds", "POST"),
            (b'{"want": 200}', "/orders?n=2", "POST"),
            (b'{"want": 200}', "/orders", "PATCH"),
        ):
            status, headers, text = await ask(body, method, target)
            assert status == 422 and headers["content-type"] == "application/problem+json"
            assert "another request" in json.loads(text)["detail"]
    assert only.balance() == 101


async def test_while_the_first_is_at_work_a_second_is_409(face: str, only: Database) -> None:
    async with asking(face, only) as ask:
        status, _, text = await ask(b'{"want": 200, "nested": 1}')
        assert status == 200 and b'"inner": 409' in text
    assert only.balance() == 101


async def test_a_missing_or_malformed_key_is_400(face: str, only: Database) -> None:
    async with asking(face, only) as ask:
        status, headers, text = await ask(b"{}", Other="x")
        assert status == 400 and headers["content-type"] == "application/problem+json"
        assert "needs an Idempotency-Key header" in json.loads(text)["detail"]
        for bad in ('""', '"unfinished', "two words", '"a", "b"', "x" * 256):
            assert (await ask(b'{"want": 200}', Idempotency_Key=bad))[0] == 400, bad
    assert only.balance() == 100


async def test_what_needs_no_key_passes_untouched(face: str, only: Database) -> None:
    async with asking(face, only, required=False) as ask:
        assert (await ask(b'{"want": 200}', Other="x"))[0] == 200
        assert (await ask(b"", "GET"))[0] == 200
    assert only.balance() == 100, "there was no transaction to work in"


async def test_a_failure_of_the_server_is_rolled_back_and_tried_again(face: str, only: Database) -> None:
    async with asking(face, only) as ask:
        for _ in range(2):
            status, headers, text = await ask(b'{"want": 503}')
            assert status == 503 and text == b'echo {"want": 503}' and "idempotent-replayed" not in headers
    assert only.balance() == 100


async def test_which_answers_are_kept_with_their_work_can_be_said(face: str, only: Database) -> None:
    """A framework makes an answer of its exceptions, which then look like any other: here all of those roll back."""
    async with asking(face, only, kept=lambda status: status < 400) as ask:
        for _ in range(2):
            status, headers, text = await ask(b'{"want": 409}')
            assert status == 409 and text == b'echo {"want": 409}' and "idempotent-replayed" not in headers
        assert only.balance() == 100, "it was rolled back"
        assert (await ask(b'{"want": 200}'))[0] == 200, "and the key is free"
    assert only.balance() == 101


async def test_what_runs_in_the_background_of_an_answer_is_over_before_the_commit(only: Database) -> None:
    """It belongs to the request: what fails there rolls back, and the answer does not go out."""
    seen: list[int] = []

    async def pay(request: Request) -> Response:
        await request.state.once.execute(ADD)
        return JSONResponse({}, background=BackgroundTask(lambda: seen.append(only.balance())))

    async def fail(request: Request) -> Response:
        await request.state.once.execute(ADD)
        return JSONResponse({}, background=BackgroundTask(lambda: 1 // 0))

    async def refuse(request: Request) -> Response:
        await request.state.once.execute(ADD)
        raise HTTPException(409)

    async with AsyncCoordinator(only.url, settings=QUICK, recovery=False) as db:
        await db.setup()
        routes = [Route(f"/{one.__name__}", one, methods=["POST"]) for one in (pay, fail, refuse)]
        app = asgi.IdempotencyKeys(Starlette(routes=routes), db, who=lambda _: "me")
        assert (await call(app, "POST", "/pay", b"{}", {"Idempotency-Key": "pay"}))[0] == 200
        assert (seen, only.balance()) == ([100], 101)
        with pytest.raises(ZeroDivisionError):
            await call(app, "POST", "/fail", b"{}", {"Idempotency-Key": "fail"})
        assert only.balance() == 101
        for _ in range(2):
            assert (await call(app, "POST", "/refuse", b"{}", {"Idempotency-Key": "refuse"}))[0] == 409
        assert only.balance() == 102, "it is an answer, and below 500"


async def test_one_callers_key_never_brings_anothers_answer(face: str, only: Database) -> None:
    callers = iter(["ann", "bob", "ann"])
    async with asking(face, only, who=lambda _: next(callers)) as ask:
        told = [(await ask(b'{"want": 200}'))[1].get("idempotent-replayed") for _ in range(3)]
    assert told == [None, None, "true"] and only.balance() == 102


async def test_a_request_that_is_too_large_is_refused_before_any_work(face: str, only: Database) -> None:
    async with asking(face, only, body_bytes_max=10) as ask:
        assert (await ask(b'{"want": 200}'))[0] == 413
    assert only.balance() == 100


def test_quotes_inside_a_key_are_read_as_structured_fields_have_them() -> None:
    assert requests.key_in([r'"a\"b\\c d"']) == r'a"b\c d'
    assert isinstance(requests.key_in(["a", "b"]), requests.Answer)
    with pytest.raises(UsageError, match="whose keys"):
        requests.require_who(None)


# ---- halves ---------------------------------------------------------------------------------------


async def test_half_an_answer_is_no_answer(only: Database) -> None:
    """A streaming application ends early when it hears that the client has left: the key is for that very client."""
    async with AsyncCoordinator({"a": only.url}, recovery=False) as db:
        await db.setup()
        whole = False

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            if whole:
                await send({"type": "http.response.body", "body": b" and half"})

        wrapped = asgi.IdempotencyKeys(app, db, who=lambda _: "me")
        with pytest.raises(NoDoubtError, match="not answered whole"):
            await call(wrapped, "POST", "/orders", b"{}", KEY)
        whole = True
        assert (await call(wrapped, "POST", "/orders", b"{}", KEY))[2] == b"half and half"


async def test_a_file_is_answered_whole_where_the_server_would_send_it_by_itself(
    only: Database, tmp_path: Path
) -> None:
    """What a server offers for answers is for those that go to it: one that is held back is kept, with its body."""
    text = tmp_path / "text"
    text.write_bytes(b"in a file")
    offered: list[Any] = []

    async def receipt(request: Request) -> Response:
        offered.append(request.scope["extensions"])
        return FileResponse(text)

    async with AsyncCoordinator({"a": only.url}, recovery=False) as db:
        await db.setup()
        routes = [Route("/receipt", receipt, methods=["POST"])]
        app = asgi.IdempotencyKeys(Starlette(routes=routes), db, who=lambda _: "me")
        version = {"version": "3.0", "spec_version": "2.4"}
        extensions: Any = {"http.response.pathsend": {}, "http.response.zerocopysend": {}, "tls": {}}
        for _ in range(2):
            assert (await call(app, "POST", "/receipt", b"", KEY, asgi=version, extensions=extensions))[
                2
            ] == b"in a file"
            assert offered == [{"tls": {}}] and len(extensions) == 3
        text.unlink()
        key = {"Idempotency-Key": "none"}
        with pytest.raises(RuntimeError, match="does not exist"):
            await call(app, "POST", "/receipt", b"", key, asgi=version, extensions=None)


def test_half_a_request_is_refused_before_anything_is_done_with_it(only: Database) -> None:
    with Coordinator({"a": only.url}, recovery=False) as db:
        db.setup()
        ran, statuses = list[bytes](), list[str]()

        def app(environ: Any, start: Any) -> list[bytes]:
            ran.append(environ["wsgi.input"].read())
            start("200 OK", [])
            return [b"done"]

        wrapped = wsgi.IdempotencyKeys(app, db, who=lambda _: "me")
        for body in (b'{"a":', b'{"a": 1}'):
            list(wrapped(environ_of(body, CONTENT_LENGTH="8"), lambda status, _: statuses.append(status)))
        assert statuses == ["400 Bad Request", "200 OK"] and ran == [b'{"a": 1}']


def environ_of(body: bytes = b"", **more: Any) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "POST", "PATH_INFO": "/", "HTTP_IDEMPOTENCY_KEY": '"k"', "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body), **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("length", "told"),
    [("9" * 5000, "413"), ("0013", "200"), ("-5", "400"), ("²", "400"), ("1_0", "400"), ("1e1", "400")],
    ids=["huge", "zeros", "negative", "superscript", "underscore", "exponent"],
)
def test_a_length_that_is_no_number_or_too_long_a_one_is_an_answer(length: str, told: str, only: Database) -> None:
    with Coordinator(only.url, settings=QUICK, recovery=False) as db:
        db.setup()
        app = wsgi.IdempotencyKeys(wsgi_app, db, who=lambda _: "me")
        statuses: list[str] = []
        list(app(environ_of(b'{"want": 200}', CONTENT_LENGTH=length), lambda status, _: statuses.append(status[:3])))
        assert statuses == [told]


@pytest.mark.parametrize("error", [KeyReused("inner"), KeyInFlight("inner")], ids=lambda error: type(error).__name__)
async def test_what_becomes_of_another_key_of_the_applications_is_the_applications_error(
    face: str, only: Database, error: Exception
) -> None:
    """It may use keys of its own; the client's is neither reused nor in flight."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await scope["state"]["once"].execute(ADD)
        raise error

    def plain(environ: Any, start: Any) -> list[bytes]:
        environ[wsgi.ONCE].execute(ADD)
        raise error

    if face == "asgi":
        async with AsyncCoordinator(only.url, settings=QUICK, recovery=False) as db:
            await db.setup()
            with pytest.raises(type(error), match="inner"):
                await call(asgi.IdempotencyKeys(app, db, who=lambda _: "me"), "POST", "/orders", b"{}", KEY)
    else:
        with Coordinator(only.url, settings=QUICK, recovery=False) as other:
            other.setup()
            with pytest.raises(type(error), match="inner"):
                wsgi.IdempotencyKeys(plain, other, who=lambda _: "me")(environ_of(), lambda *_: None)
    assert only.balance() == 100


def test_a_misspelt_argument_takes_no_key(only: Database) -> None:
    with Coordinator({"a": only.url}, recovery=False) as db:
        db.setup()
        with pytest.raises(UsageError, match="wait is"):
            db.once("k", 1, wait="appled")  # type: ignore[arg-type]
        with db.once("k", 1) as once:
            once.value = 1
        assert once.value == 1
