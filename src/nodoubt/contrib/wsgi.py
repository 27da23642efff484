"""WSGI middleware for the `Idempotency-Key` header: Flask, Django, or an application of your own.

    app.wsgi_app = IdempotencyKeys(app.wsgi_app, db, who=lambda environ: environ["REMOTE_USER"])

The request's work goes into the transaction that keeps the key: `environ["nodoubt.once"].tx`. What becomes of the
response is as in `nodoubt.contrib.asgi`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from http import HTTPStatus
from typing import Any

from ..coordinator import Coordinator
from ..errors import KeyInFlight, KeyReused, NoDoubtError
from ..idempotency import requests
from ..idempotency.requests import Answer, NotKept, Rules

ONCE = "nodoubt.once"
DIGITS_MAX = 20  # of a length: there is none of more, and Python makes no number of thousands
Environ = dict[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]


class IdempotencyKeys:
    """Wraps an application. `who(environ)`: whose request it is. The other arguments: as `contrib.asgi`."""

    def __init__(
        self,
        app: App,
        db: Coordinator,
        *,
        who: Callable[[Environ], str],
        on: str | None = None,
        keep: float | None = None,
        methods: frozenset[str] = requests.METHODS,
        required: bool = True,
        body_bytes_max: int = requests.BODY_BYTES_MAX,
        kept: Callable[[int], bool] = requests.no_failure,
    ) -> None:
        self._app, self._db, self._who, self._on, self._keep = app, db, who, on, keep
        self._rules = Rules(methods=frozenset(methods), required=required, body_bytes_max=body_bytes_max, kept=kept)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in self._rules.methods:
            return self._app(environ, start_response)
        given = environ.get("HTTP_IDEMPOTENCY_KEY")
        if given is None and not self._rules.required:
            return self._app(environ, start_response)
        # Servers join headers that are sent twice by a comma, which no bare key has.
        key = requests.key_in([] if given is None else [given])
        if not isinstance(key, str):
            return _respond(requests.missing() if key is None else key, start_response)
        body = _body(environ, self._rules.body_bytes_max)
        answer = self._answer(environ, key, body) if isinstance(body, bytes) else body
        return _respond(answer, start_response)

    def _answer(self, environ: Environ, key: str, body: bytes) -> Answer:
        path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        payload = requests.payload(environ["REQUEST_METHOD"], path, environ.get("QUERY_STRING", ""), body)
        who = requests.require_who(self._who(environ))
        try:
            with ExitStack() as stack:
                block = self._db.once(key, payload, scope=who, on=self._on, keep=self._keep, returns=Answer)
                try:
                    once = stack.enter_context(block)
                except (KeyInFlight, KeyReused) as error:  # this key's; what the application raises is its own
                    return requests.refusal(error)
                if once.replayed:
                    return requests.replayed(once.value)
                once.value = self._run({**environ, ONCE: once, "wsgi.input": io.BytesIO(body)})
                if not self._rules.kept(once.value.status):
                    raise NotKept(once.value)
            answer: Answer = once.value
            return answer
        except NotKept as left:
            return left.answer

    def _run(self, environ: Environ) -> Answer:
        """The application's answer; what it sends is held back."""
        started: list[tuple[str, list[tuple[str, str]]]] = []
        pieces: list[bytes] = []

        def start(status: str, headers: list[tuple[str, str]], _: Any = None) -> Callable[[bytes], None]:
            started.append((status, list(headers)))
            return pieces.append

        found = self._app(environ, start)
        try:
            pieces.extend(found)
        finally:
            close = getattr(found, "close", None)
            if close is not None:
                close()
        if not started:
            raise NoDoubtError("the application has not answered; its work was rolled back, and the key is free")
        status, headers = started[-1]  # an application may change its mind, since nothing was sent
        return Answer(int(status.split()[0]), tuple(headers), b"".join(pieces))


def _body(environ: Environ, most: int) -> bytes | Answer:
    length = environ.get("CONTENT_LENGTH") or ""
    if not length and environ.get("wsgi.input_terminated"):
        body: bytes = environ["wsgi.input"].read(most + 1)
    elif not length and environ.get("HTTP_TRANSFER_ENCODING"):
        return requests.problem(HTTPStatus.LENGTH_REQUIRED, "a request with an Idempotency-Key tells its length")
    elif (length and not length.isascii()) or not (length or "0").isdigit():
        return requests.problem(HTTPStatus.BAD_REQUEST, "the Content-Length is not a number")
    elif len(length) > DIGITS_MAX or int(length or 0) > most:
        return requests.too_large(most)
    else:
        body = environ["wsgi.input"].read(int(length or 0))
        if len(body) < int(length or 0):
            return requests.problem(HTTPStatus.BAD_REQUEST, "the body is shorter than the Content-Length")
    return requests.too_large(most) if len(body) > most else body


def _respond(answer: Answer, start_response: StartResponse) -> list[bytes]:
    try:
        phrase = HTTPStatus(answer.status).phrase
    except ValueError:
        phrase = "Unknown"
    start_response(f"{answer.status} {phrase}", list(answer.headers))
    return [answer.body]
