"""ASGI middleware for the `Idempotency-Key` header: Starlette, FastAPI, Litestar, Quart, or an application of your own.

    app.add_middleware(IdempotencyKeys, db=db, who=lambda scope: scope["user"].identity)

The request's work goes into the transaction that keeps the key: `scope["state"]["once"].tx`, in Starlette
`request.state.once.tx`. The response is held back until that has committed; below 500 it is kept and sent again to each
repetition, from 500 on the work is rolled back and a repetition runs it anew. The status counts, not how the answer was
made: a framework turns an exception into one (`HTTPException(409)`) before it could come here. `kept=` draws the line
elsewhere. What a framework runs in the background of an answer is over before the commit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AsyncExitStack
from typing import Any

from ..coordinator import AsyncCoordinator
from ..errors import KeyInFlight, KeyReused, NoDoubtError
from ..idempotency import requests
from ..idempotency.once import AsyncOnce
from ..idempotency.requests import Answer, NotKept, Rules

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class IdempotencyKeys:
    """Wraps an application.

    `who(scope)`: whose request it is (an account, a tenant; "" if there is only one), since a key is its caller's own.
    `on`, `keep`: as in `AsyncCoordinator.once`. `methods`: those that need a key (POST, PATCH); others pass.
    `required`: False lets a request without the header pass, with no `once` in its state. `kept(status)`: whether such
    an answer is kept, and its work committed (default: below 500); else it goes out, and the work is rolled back.
    """

    def __init__(
        self,
        app: App,
        db: AsyncCoordinator,
        *,
        who: Callable[[Scope], str],
        on: str | None = None,
        keep: float | None = None,
        methods: frozenset[str] = requests.METHODS,
        required: bool = True,
        body_bytes_max: int = requests.BODY_BYTES_MAX,
        kept: Callable[[int], bool] = requests.no_failure,
    ) -> None:
        self._app, self._db, self._who, self._on, self._keep = app, db, who, on, keep
        self._rules = Rules(methods=frozenset(methods), required=required, body_bytes_max=body_bytes_max, kept=kept)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in self._rules.methods:
            await self._app(scope, receive, send)
            return
        name = requests.HEADER.encode()
        key = requests.key_in([value.decode("latin-1") for header, value in scope["headers"] if header.lower() == name])
        if key is None and not self._rules.required:
            await self._app(scope, receive, send)
            return
        if not isinstance(key, str):
            await _send(requests.missing() if key is None else key, send)
            return
        body = await _body(receive, self._rules.body_bytes_max)
        if body is None:
            return
        if len(body) > self._rules.body_bytes_max:
            await _send(requests.too_large(self._rules.body_bytes_max), send)
            return
        await _send(await self._answer(scope, receive, key, body), send)

    async def _answer(self, scope: Scope, receive: Receive, key: str, body: bytes) -> Answer:
        query = scope.get("query_string", b"").decode("latin-1")
        payload = requests.payload(scope["method"], scope["path"], query, body)
        who = requests.require_who(self._who(scope))
        try:
            async with AsyncExitStack() as stack:
                block = self._db.once(key, payload, scope=who, on=self._on, keep=self._keep, returns=Answer)
                try:
                    once = await stack.enter_async_context(block)
                except (KeyInFlight, KeyReused) as error:  # this key's; what the application raises is its own
                    return requests.refusal(error)
                if once.replayed:
                    return requests.replayed(once.value)
                once.value = await self._run({**scope, **_held(scope, once)}, receive, body)
                if not self._rules.kept(once.value.status):
                    raise NotKept(once.value)
            answer: Answer = once.value
            return answer
        except NotKept as left:
            return left.answer

    async def _run(self, scope: Scope, receive: Receive, body: bytes) -> Answer:
        """The application's answer. It reads the body from here, and what it sends is held back."""
        status, headers, pieces, more = 0, list[tuple[str, str]](), list[bytes](), True
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def read() -> Message:
            return whole.pop() if whole else await receive()

        async def hold(message: Message) -> None:
            nonlocal status, more
            if message["type"] == "http.response.start":
                status = message["status"]
                pairs = message.get("headers", ())
                headers.extend((name.decode("latin-1"), value.decode("latin-1")) for name, value in pairs)
            elif message["type"] == "http.response.body":
                pieces.append(bytes(message.get("body", b"")))
                more = message.get("more_body", False)

        await self._app(scope, read, hold)
        if not status or more:  # a streaming application ends its answer early when it hears that the client has left
            raise NoDoubtError("the application has not answered whole; its work was rolled back, and the key is free")
        return Answer(status, tuple(headers), b"".join(pieces))


def _held(scope: Scope, once: AsyncOnce) -> Scope:
    """What the application is told otherwise than the server has said: of what that can do with an answer, nothing."""
    offered = scope.get("extensions") or {}
    extensions = {name: what for name, what in offered.items() if not name.startswith("http.response.")}
    return {"state": {**scope.get("state", {}), "once": once}, "extensions": extensions}


async def _body(receive: Receive, most: int) -> bytes | None:
    """As much as tells that it is too much; None if the client has left."""
    body, more = b"", True
    while more and len(body) <= most:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def _send(answer: Answer, send: Send) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
