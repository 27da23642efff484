"""PostgreSQL, asyncio: libpq itself, through `psycopg.pq`, as an async `ports.Session`.

psycopg's own async cursor costs four times the CPU of what libpq does for it. So this speaks libpq's asynchronous
interface (`PQsendQuery`, pipeline mode), and takes from psycopg what it does best: to connect, and to turn values into
parameters and rows back into values. A round trip is one future, resolved when the socket has brought the whole answer.

Guarantees: as `drivers.psycopg`, its placeholders included. In `execute_after`, an error in a statement of ours keeps
the user's from being run.

Must not: decide what an answer means.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ..errors import MissingExtra, ResourceUnavailable, UsageError
from ..ports import Bound, Params, Reply, SessionLost, StatementFailed
from ..url import Url
from .postgres_failure import CHECK_CLIENT, CHECK_CLIENT_FROM_VERSION, PostgresFailed, ends_session
from .psycopg import BasicSession

try:
    import psycopg
    from psycopg import pq
    from psycopg._queries import PostgresQuery
    from psycopg.adapt import Transformer
    from psycopg.errors import error_from_result
except ImportError:
    raise MissingExtra("PostgreSQL", "postgres") from None

TIMEOUT_S = 10.0
STATEMENTS_MAX = 200  # prepared statements kept in a session; what comes after is parsed each time
SEEN_MAX = 1000
PREPARE_FROM_USE = 3  # a statement that has been seen so often in a session is worth preparing
ROWS_AT_ONCE = 1000

_Diag = pq.DiagnosticField
_Status = pq.ExecStatus
_Transaction = pq.TransactionStatus
_ROWS = (_Status.TUPLES_OK, _Status.SINGLE_TUPLE)  # a tuple is searched by identity; an Enum's hash is its name's
_FINE = (_Status.COMMAND_OK, _Status.EMPTY_QUERY, *_ROWS)
_COPY = (_Status.COPY_IN, _Status.COPY_OUT, _Status.COPY_BOTH)


class LibpqSession(BasicSession):
    """One connection. Used by one task at a time, but for `kill`."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        super().__init__(connection)
        self._pg = connection.pgconn
        self._values = Transformer(connection)
        self._statements = _Statements()
        self._wire = _Wire(self._pg, self._ended)

    @property
    def in_transaction(self) -> bool:
        """Whether the server's last word was that a transaction is open, sound or failed."""
        return bool(self._pg.transaction_status != _Transaction.IDLE)

    async def run(self, sql: str) -> tuple[Reply, ...]:
        """Our own literal statements in one message (a simple query): a reply for each, in order."""
        text = sql.encode()
        results = await self._exchange(lambda: self._pg.send_query(text), pipeline=False)
        return self._replies(results)

    async def execute(self, statement: str, params: Params) -> Reply:
        """The user's statement, `%s` or `%(name)s`; of several, without parameters, the last one's reply."""
        if params is None and _is_several(statement):
            text = statement.encode()
            results = await self._exchange(lambda: self._pg.send_query(text), pipeline=False)
            return self._users_reply(results)
        return (await self.execute_after((), statement, params))[-1]

    async def execute_after(self, before: Sequence[str], statement: str, params: Params) -> tuple[Reply, ...]:
        """Statements of ours, and then the user's, in one round trip; the replies of all of them.

        Raises `StatementFailed` where one of ours failed: the user's was not run.
        """
        if before and params is None and _is_several(statement):
            return *(await self.run("; ".join(before))), await self.execute(statement, params)
        if isinstance(params, Bound):
            if params.many:
                return await self._execute_many(before, statement, params.values)
            return await self._execute_one(before, statement, params.values, in_full=True)
        return await self._execute_one(before, statement, params, in_full=False)

    async def _execute_one(
        self, before: Sequence[str], statement: str, values: Any, *, in_full: bool
    ) -> tuple[Reply, ...]:
        query = self._query(statement, values)
        plan = self._statements.plan(query.query, query.types)
        several = bool(before) or plan.make

        def send() -> None:
            if several:
                self._pg.enter_pipeline_mode()
                for one in before:
                    self._pg.send_query_params(one.encode(), None)
            if plan.make:
                self._pg.send_prepare(plan.name, query.query, query.types)
            if plan.name:
                self._pg.send_query_prepared(plan.name, query.params, query.formats)
            else:
                self._pg.send_query_params(query.query, query.params, query.types, query.formats)
            if several:
                self._pg.pipeline_sync()

        results = await self._exchange(send, pipeline=several)
        replies = self._replies(results[: len(before)])
        reply = self._users_reply(results[len(before) :], plan, in_full=in_full)
        self._statements.done(plan)
        return *replies, reply

    async def _execute_many(self, before: Sequence[str], statement: str, rows: Sequence[Any]) -> tuple[Reply, ...]:
        """For each row of parameters; so many of them in one round trip."""
        count, replies = 0, tuple[Reply, ...]()
        for start in range(0, max(len(rows), 1), ROWS_AT_ONCE):
            queries = [self._query(statement, row) for row in rows[start : start + ROWS_AT_ONCE]]

            def send(queries: list[PostgresQuery] = queries, before: Sequence[str] = before) -> None:
                self._pg.enter_pipeline_mode()
                for one in before:
                    self._pg.send_query_params(one.encode(), None)
                for query in queries:
                    self._pg.send_query_params(query.query, query.params, query.types, query.formats)
                self._pg.pipeline_sync()

            results = await self._exchange(send, pipeline=True)
            replies += self._replies(results[: len(before)])
            for result in results[len(before) :]:
                count += max(self._users_reply([result]).count, 0)
            before = ()
        return *replies, Reply(count=count)

    def _query(self, statement: str, values: Any) -> PostgresQuery:
        query = PostgresQuery(self._values)
        query.convert(statement, values)
        return query

    async def _exchange(self, send: Callable[[], None], *, pipeline: bool) -> list[Any]:
        """Send, and wait for the whole answer."""
        self.warnings.clear()
        try:
            results = await self._wire.exchange(send, pipeline=pipeline)
        except psycopg.Error as error:
            self.usable = False
            lost = SessionLost(str(error))
            lost.answered = self._wire.answered
            raise lost from error
        except BaseException:
            self.usable = False  # cancelled in the middle of a call: nobody knows what is still to be read
            raise
        if results and results[-1].status in _COPY:
            self.kill()
            raise UsageError("COPY cannot be run as a statement here: it takes the whole session")
        return results

    def _replies(self, results: Sequence[Any]) -> tuple[Reply, ...]:
        """Those of our own statements."""
        for result in results:
            if result.status not in _FINE:
                self._raise_ours(result)
        return tuple(map(self._reply, results))

    def _raise_ours(self, result: Any) -> NoReturn:
        code, primary = _field(result, _Diag.SQLSTATE), _field(result, _Diag.MESSAGE_PRIMARY)
        if not code or ends_session(code, _field(result, _Diag.SEVERITY_NONLOCALIZED)):
            self.usable = False
            raise SessionLost(primary or self._pg.get_error_message())
        detail = _field(result, _Diag.MESSAGE_DETAIL)
        raise PostgresFailed(code, primary + (f" ({detail})" if detail else ""), _field(result, _Diag.SCHEMA_NAME))

    def _users_reply(self, results: Sequence[Any], plan: _Plan | None = None, *, in_full: bool = False) -> Reply:
        """The last one's. Raises the driver's own error."""
        for result in results:
            if result.status in _FINE:
                continue
            if plan is not None and plan.name:
                self._statements.forget()  # a plan that an ALTER TABLE has outdated fails; the next attempt makes one
            error = error_from_result(result, encoding=self._pg._encoding)
            if self.lost(error):
                self.usable = False
            raise error
        return self._reply(results[-1], in_full=in_full)

    def _reply(self, result: Any, *, in_full: bool = False) -> Reply:
        tag = (result.command_status or b"").decode()
        count = -1 if result.command_tuples is None else result.command_tuples
        if result.status not in _ROWS:
            return Reply(tag, count)
        self._values.set_pgresult(result)
        fields = range(result.nfields)
        columns = tuple([result.fname(at).decode() for at in fields])
        rows = tuple(self._values.load_rows(0, result.ntuples, tuple))
        return Reply(tag, count, columns, rows, tuple([result.ftype(at) for at in fields]) if in_full else ())

    async def close(self) -> None:
        """End the connection in good order. Never raises."""
        self.usable = False
        self._wire.end()
        with contextlib.suppress(Exception):
            await self.connection.close()
        self._socket.close()

    def _ended(self) -> None:
        """The socket has."""
        self.usable = False
        self._pg.finish()


class _Plan:
    """How a statement is sent. `name`: as a prepared one; `make`: which is to be made first."""

    __slots__ = ("key", "make", "name")

    def __init__(self, key: tuple[bytes, Any], name: bytes, *, make: bool) -> None:
        self.key, self.name, self.make = key, name, make


class _Statements:
    """Which statements a session has prepared, and how often it has seen the others."""

    def __init__(self) -> None:
        self._names: dict[tuple[bytes, Any], bytes] = {}
        self._seen: dict[tuple[bytes, Any], int] = {}
        self._generation = 0

    def plan(self, text: bytes, types: Any) -> _Plan:
        key = (text, types)
        name = self._names.get(key)
        if name is not None:
            return _Plan(key, name, make=False)
        uses = self._seen.get(key, 0) + 1
        if uses < PREPARE_FROM_USE or len(self._names) >= STATEMENTS_MAX:
            if len(self._seen) < SEEN_MAX or key in self._seen:
                self._seen[key] = uses
            else:
                self._seen.clear()
            return _Plan(key, b"", make=False)
        return _Plan(key, f"nd{self._generation}_{len(self._names)}".encode(), make=True)

    def done(self, plan: _Plan) -> None:
        """It was made."""
        if plan.make:
            self._names[plan.key] = plan.name
            self._seen.pop(plan.key, None)

    def forget(self) -> None:
        """Use none of them any more. What the server still holds of them goes with the session."""
        self._generation += 1
        self._names.clear()


class _Wire:
    """The socket: sends, flushes, and collects results until the answer is whole."""

    def __init__(self, pg: Any, ended: Callable[[], None]) -> None:
        self._pg, self._ended = pg, ended
        self._loop = asyncio.get_running_loop()
        self._socket = pg.socket
        self._waiting: asyncio.Future[list[Any]] | None = None
        self._results: list[Any] = []
        self._pipeline = False
        self._watching = False
        self._writing = False
        self._over = False

    async def exchange(self, send: Callable[[], None], *, pipeline: bool) -> list[Any]:
        """Raises `psycopg.Error` when the connection is lost, or has been."""
        if self._over:
            raise psycopg.OperationalError("the connection has ended")
        if not self._watching:
            self._watching = True
            self._loop.add_reader(self._socket, self._readable)
        self._results, self._pipeline = [], pipeline
        self._waiting = waiting = self._loop.create_future()
        try:
            send()
            self._flush()
            return await waiting  # type: ignore[no-any-return]
        finally:
            self._waiting = None

    @property
    def answered(self) -> bool:
        """Whether anything has come of the last exchange."""
        return bool(self._results)

    def end(self) -> None:
        """Look at the socket no more."""
        self._over = True
        if self._loop.is_closed():
            return
        if self._watching:
            self._watching = False
            self._loop.remove_reader(self._socket)
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._socket)

    def _flush(self) -> None:
        more = self._pg.flush()
        if more and not self._writing:
            self._writing = True
            self._loop.add_writer(self._socket, self._writable)
        elif self._writing and not more:
            self._writing = False
            self._loop.remove_writer(self._socket)

    def _writable(self) -> None:
        try:
            self._flush()
        except psycopg.Error as error:
            self._fail(error)

    def _readable(self) -> None:
        try:
            self._pg.consume_input()
            if self._writing:
                self._flush()  # libpq: what came in may have made room for what is to go out
            self._collect()
        except psycopg.Error as error:
            self._fail(error)

    def _collect(self) -> None:
        waiting = self._waiting
        if waiting is None:
            return  # nobody asked: a notification, or a server's last words, which the next read follows
        while not self._pg.is_busy():
            result = self._pg.get_result()
            if result is None:
                if self._pipeline:
                    continue  # the end of one command among several
                break
            if result.status == _Status.PIPELINE_SYNC:
                self._pg.exit_pipeline_mode()
                break
            self._results.append(result)
            if result.status in _COPY:
                break
        else:
            return
        self._waiting = None
        if not waiting.done():
            waiting.set_result(self._results)

    def _fail(self, error: Exception) -> None:
        self.end()
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_exception(error)
        self._ended()


def _is_several(statement: str) -> bool:
    """Whether it may be more than one statement: those go without parameters, and by themselves."""
    return ";" in statement.rstrip("; \n\t")


def _field(result: Any, field: Any) -> str:
    value = result.error_field(field)
    return "" if value is None else value.decode("utf-8", "replace")


async def connect(url: Url, *, connect_timeout_s: float = TIMEOUT_S) -> LibpqSession:
    """Open a session. Raises `ResourceUnavailable`, without the password."""
    try:
        connection = await psycopg.AsyncConnection.connect(
            url.secret(),
            autocommit=True,
            connect_timeout=max(2, math.ceil(connect_timeout_s)),  # whole seconds, and libpq takes 1 for 2
            fallback_application_name="nodoubt",
        )
    except psycopg.Error as error:
        raise ResourceUnavailable(f"cannot connect to {url}: {error}") from error
    session = LibpqSession(connection)
    session.kept = frozenset()
    if connection.info.server_version >= CHECK_CLIENT_FROM_VERSION * 10_000:
        with contextlib.suppress(StatementFailed, SessionLost):  # not every system it runs on can do that
            await session.run(CHECK_CLIENT)
    return session
