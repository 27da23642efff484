"""A session with a server in memory that never waits: what would wait for a lock is refused at once.

For tests of one thing after another. A world in which many wait, die and lose their answers: `nodoubt.testing.world`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...ports import Reply, SessionLost
from .server import Locked, LockTimeout, MemoryServer


class MemorySession:
    """A `ports.Session`, blocking. `send` is its verb for our own statements, `apply` for the journal's."""

    def __init__(self, server: MemoryServer) -> None:
        self.server = server
        self.connection = server.connect()
        self.connection_id = self.connection.number
        self.server_started = server.started
        self.usable = True

    def send(self, *statements: tuple[Any, ...]) -> tuple[Reply, ...]:
        """Our own statements in one message; a reply for each. The first error ends it."""
        return self._answer("send", statements)  # type: ignore[no-any-return]

    def apply(self, verb: str, *args: Any) -> Any:
        """One transaction of the journal that lives in this database."""
        return self._answer("apply", (verb, *args))

    def run(self, sql: str) -> tuple[Reply, ...]:
        """Only so that a pool can ask whether it lives."""
        return self._answer("run", (sql,))  # type: ignore[no-any-return]

    def execute(self, statement: str, params: Sequence[Any] | Mapping[str, Any] | None) -> Reply:
        """The user's statement."""
        return self._answer("execute", (statement, params))  # type: ignore[no-any-return]

    def _answer(self, verb: str, args: tuple[Any, ...]) -> Any:
        if self.connection.number not in self.server.connections:
            self.usable = False
            raise SessionLost(f"the session with {self.server.name} has ended")
        handling = self.server.handle(self.connection, verb, args)
        try:
            wait = next(handling)
            while True:
                wait = handling.throw(LockTimeout()) if isinstance(wait, Locked) else next(handling)
        except StopIteration as stop:
            return stop.value

    def lost(self, error: BaseException) -> bool:
        return isinstance(error, SessionLost)

    def close(self) -> None:
        self.kill()

    def kill(self) -> None:
        self.usable = False
        self.server.disconnect(self.connection)

    def timed_out(self, seconds: float) -> Exception:
        return SessionLost(f"no answer within {seconds:g} s")
