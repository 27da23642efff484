"""PostgreSQL, blocking: libpq as a `ports.Session` for threads. What is said, and the guarantees: `drivers.libpq`.

A round trip waits in `poll`, where other threads run.
"""

from __future__ import annotations

import contextlib
import math
import select
from collections.abc import Sequence
from typing import Any

from ..errors import MissingExtra, ResourceUnavailable
from ..ports import Params, Reply, SessionLost, StatementFailed
from ..url import Url
from .libpq import TIMEOUT_S, LibpqSession, Message, R, Talk, options
from .postgres_failure import CHECK_CLIENT, CHECK_CLIENT_FROM_VERSION, introduction, require_alive, restore

try:
    import psycopg
except ImportError:
    raise MissingExtra("PostgreSQL", "postgres") from None


class PsycopgSession(LibpqSession):
    """One connection. Used by one thread at a time, but for `kill`."""

    def __init__(self, connection: psycopg.Connection[Any], *, prepares: bool = True) -> None:
        super().__init__(connection, prepares=prepares)
        self._poll = select.poll()
        self._poll.register(self._pg.socket, select.POLLIN)
        self.answer_ms: int | None = None  # how long one answer may take, before anybody watches over the calls

    def run(self, sql: str) -> tuple[Reply, ...]:
        """Our own literal statements in one message (a simple query): a reply for each, in order."""
        return self._converse(self._run(sql))

    def run_each(self, statements: Sequence[str]) -> tuple[Reply, ...]:
        """The same in one round trip, each a message of its own: also what may not stand beside others in one.

        Raises `StatementFailed`, with the number of those before it in `after`: what is behind it was not run.
        """
        return self._converse(self._run_each(statements))

    def execute(self, statement: str, params: Params) -> Reply:
        """The user's statement, `%s` or `%(name)s`; of several, without parameters, the last one's reply."""
        return self._converse(self._execute(statement, params))

    def execute_after(self, before: Sequence[str], statement: str, params: Params) -> tuple[Reply, ...]:
        """Statements of ours, and then the user's, in one round trip; the replies of all of them.

        Raises `StatementFailed` where one of ours failed: the user's was not run.
        """
        return self._converse(self._execute_after(before, statement, params))

    def _converse(self, talk: Talk[R]) -> R:
        results: list[Any] | None = None
        self.warnings.clear()
        while True:
            try:
                message = talk.send(results)  # type: ignore[arg-type] # None only begins
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            try:
                self._exchange(message)
            except psycopg.Error as error:
                self._pg.finish()
                raise self._gone(error, message, before=results is not None) from error
            except BaseException:
                self.usable = False  # interrupted in the middle of a call: nobody knows what is still to be read
                raise
            results = message.results

    def _exchange(self, message: Message) -> None:
        """Send, and wait for the whole answer."""
        message.send()
        more = self._pg.flush()
        while not message.take():
            if more:
                self._poll.modify(self._pg.socket, select.POLLIN | select.POLLOUT)
            if not self._poll.poll(self.answer_ms):
                raise psycopg.OperationalError("no answer in time")
            self._pg.consume_input()
            if more:
                more = self._pg.flush()
                self._poll.modify(self._pg.socket, select.POLLIN)

    def close(self) -> None:
        """End the connection in good order. Never raises."""
        self.usable = False
        with contextlib.suppress(Exception):
            self.connection.close()
        self._socket.close()


class LentPsycopgSession(PsycopgSession):
    """A connection on loan from a pool of the user's."""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]], isolation: str) -> None:
        super().__init__(connection, prepares=False)  # psycopg sends a DEALLOCATE ALL now and then
        connection.remove_notice_handler(self._notice)
        self._isolation = isolation
        self._durability = ""  # as the user has it
        self._autocommit = False

    def take(self) -> None:
        """Take it over: for now, nobody but us begins a transaction."""
        self._autocommit = self.connection.autocommit
        self.connection.autocommit = True
        self.connection.add_notice_handler(self._notice)
        if not self._durability:
            self._durability = str(self.run(introduction(self._isolation))[0].scalar())
            _watch_client(self)

    def doubt(self) -> None:
        """Others may have reset it since: what it was told is said again when it is taken."""
        self._durability, self.forced = "", False

    def keep(self) -> None:
        """Take it over for good."""
        self.take()

    def give_back(self) -> None:
        """As it was."""
        undo = restore(self._durability) if self.forced else None
        if undo is not None:
            self.run(undo)
            self.forced = False
        self.connection.remove_notice_handler(self._notice)
        self.connection.autocommit = self._autocommit


def lend(connection: Any, isolation: str) -> LentPsycopgSession:
    """A session over a connection of the user's pool. `isolation`: the level of the engine's own transactions."""
    return LentPsycopgSession(connection, isolation)


def connect(url: Url, *, connect_timeout_s: float = TIMEOUT_S) -> PsycopgSession:
    """Open a session. Raises `ResourceUnavailable`, without the password, and within about the time given."""
    try:
        connection = psycopg.connect(**options(url, connect_timeout_s))
    except psycopg.Error as error:
        raise ResourceUnavailable(f"cannot connect to {url}: {error}") from error
    session = PsycopgSession(connection)
    session.answer_ms = math.ceil(connect_timeout_s * 1000)
    try:
        _watch_client(session)
    except BaseException:
        session.kill()
        raise
    require_alive(session, url)
    session.answer_ms = None
    return session


def _watch_client(session: PsycopgSession) -> None:
    if session.connection.info.server_version >= CHECK_CLIENT_FROM_VERSION * 10_000:
        with contextlib.suppress(StatementFailed, SessionLost):  # not every system it runs on can do that
            session.run(CHECK_CLIENT)
