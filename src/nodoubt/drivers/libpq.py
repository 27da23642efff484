"""PostgreSQL: what is said to libpq, through `psycopg.pq`, and what its answers are. Who waits: the two drivers.

psycopg's own cursors cost several times the CPU of what libpq does for them. So this speaks libpq's asynchronous
interface (`PQsendQuery`, pipeline mode), and takes from psycopg what it does best: to connect, and to turn values into
parameters and rows back into values. A conversation is a generator: it yields what is to be sent, in one message, and
is sent the results; `psycopg` runs it in threads, `psycopg_async` on asyncio.

Guarantees: autocommit, so that nothing is begun behind anybody's back; `run` is one simple-query message and gives a
reply, with its command tag, for each statement in it; every ending that leaves the connection in an unknown state
clears `usable`. In `run_each` and `execute_after`, an error in a statement keeps those behind it from being run.

Must not: wait; decide what an answer means. It tells a server's error (`StatementFailed`) from an ending without an
answer (`SessionLost`), and that is all.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import weakref
from collections.abc import Callable, Generator, Sequence
from typing import Any, NoReturn, TypeVar

from ..errors import MissingExtra, UsageError
from ..ports import Bound, Params, Reply, SessionLost
from ..url import Url
from .postgres_failure import PostgresFailed, ends_session

try:
    import psycopg
    from psycopg import pq
    from psycopg._queries import PostgresQuery
    from psycopg.adapt import Loader, Transformer
    from psycopg.errors import error_from_result
except ImportError:
    raise MissingExtra("PostgreSQL", "postgres") from None

R = TypeVar("R")
Talk = Generator["Message", list[Any], R]
TIMEOUT_S = 10.0
STATEMENTS_MAX = 200  # prepared in a session while it lives; what comes after is parsed each time
PARAMETERS_MAX = 65535  # of one statement: the protocol counts them in 16 bits
SEEN_MAX = 1000
PREPARE_FROM_USE = 3  # a statement that has been seen so often in a session is worth preparing
ROWS_AT_ONCE = 1000

_Diag = pq.DiagnosticField
_Status = pq.ExecStatus
# Plain numbers, as libpq gives them: to compare one with a member of an Enum costs several times as much.
_SYNC = int(_Status.PIPELINE_SYNC)
_ROWS = frozenset(map(int, (_Status.TUPLES_OK, _Status.SINGLE_TUPLE)))
_FINE = _ROWS | set(map(int, (_Status.COMMAND_OK, _Status.EMPTY_QUERY)))
_COPY = frozenset(map(int, (_Status.COPY_IN, _Status.COPY_OUT, _Status.COPY_BOTH)))
_LAST = _COPY | {_SYNC}  # of an answer
_IDLE = int(pq.TransactionStatus.IDLE)
_OUTDATED = ("0A", "26", "42", "XX")  # what a plan answers whose tables or types have changed, or that is gone


class Message:
    """What `send` sends, and the results of it, as they come in."""

    __slots__ = ("_pg", "_pipeline", "results", "send")

    def __init__(self, pg: Any, send: Callable[[], None], *, pipeline: bool = False) -> None:
        self._pg, self.send, self._pipeline = pg, send, pipeline
        self.results: list[Any] = []

    def take(self) -> bool:
        """Take what has come; whether it is whole. Raises `psycopg.Error` where the connection is lost."""
        pg, results = self._pg, self.results
        while not pg.is_busy():
            result = pg.get_result()
            if result is None:
                if self._pipeline:
                    continue  # the end of one command among several
                return True
            if result.status not in _LAST:
                results.append(result)
                continue
            if result.status == _SYNC:
                pg.exit_pipeline_mode()
            else:
                results.append(result)
            return True
        return False


def _noting(session: weakref.ref[LibpqSession]) -> Callable[[psycopg.errors.Diagnostic], None]:
    """What notes a connection's warnings. Not bound to the session, so that this is collected before its connection."""

    def notice(said: psycopg.errors.Diagnostic) -> None:
        told = session()
        if told is not None and said.severity_nonlocalized == "WARNING":
            told.warnings.append(f"{said.source_function}: {said.message_primary}")

    return notice


class _AnyText(Loader):
    """Text that may be of any encoding, or of none."""

    def load(self, data: Any) -> str:
        return bytes(data).decode("utf-8", "backslashreplace")


class LibpqSession:
    """One connection, without what waits. Used by one thread or task at a time, but for `kill`."""

    server_started = 0  # a prepared branch is not bound to its session here, so nobody asks

    def __init__(self, connection: Any, *, prepares: bool) -> None:
        """`prepares`: nobody else deallocates what it has prepared."""
        self.connection = connection
        self.connection_id: int = connection.info.backend_pid
        self.usable = True
        self.forced = False  # a resource's note: commands outside a transaction wait for the standbys too
        self.stained = False  # a resource's note: the user has left settings, locks or temporary tables in the session
        self.kept: frozenset[str] | None = frozenset() if prepares else None  # see `kept`: those of ours it has
        self.warnings: list[str] = []  # of the last call: "routine: message", in which only the routine is untranslated
        self._pg = connection.pgconn
        self._values = Transformer(connection)
        self._statements = _Statements(prepares=prepares)
        # A descriptor of our own: `kill` comes from another thread, by when the connection's number may
        # have been closed and given to a stranger's file.
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        self._process = os.getpid()
        weakref.finalize(self, self._socket.close)
        self._notice = _noting(weakref.ref(self))
        connection.add_notice_handler(self._notice)

    def __del__(self) -> None:
        # Whoever killed it could not finish it: it may have been at work. A fork's copy is not ours to end.
        if not getattr(self, "usable", True) and os.getpid() == self._process:
            self._pg.finish()

    def read_any_text(self) -> None:
        """Read what others have stored in whatever encoding; what is no UTF-8 is written out."""
        for name in ("text", "name", "varchar"):
            self.connection.adapters.register_loader(name, _AnyText)
        self._values = Transformer(self.connection)

    @property
    def in_transaction(self) -> bool:
        """Whether the server's last word was that a transaction is open, sound or failed."""
        return bool(self._pg.transaction_status != _IDLE)

    def lost(self, error: BaseException) -> bool:
        """Whether the connection is gone with this error: the server ended it, or the socket did."""
        if isinstance(error, psycopg.Error) and ends_session(error.sqlstate, error.diag.severity_nonlocalized):
            return True
        return bool(self.connection.closed)

    def kill(self) -> None:
        """Shut the socket down, from any thread: a call that waits for an answer fails at once."""
        self.usable = False
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def timed_out(self, seconds: float) -> Exception:
        """The error of a call that `kill` cut short."""
        return SessionLost(f"no answer within {seconds:g} s")

    # ---- conversations

    def _run(self, sql: str) -> Talk[tuple[Reply, ...]]:
        text = self._bytes(sql)
        return self._replies((yield Message(self._pg, lambda: self._pg.send_query(text))))

    def _run_each(self, statements: Sequence[str]) -> Talk[tuple[Reply, ...]]:
        texts = [self._bytes(one) for one in statements]

        def send() -> None:
            self._pg.enter_pipeline_mode()
            for text in texts:
                self._pg.send_query_params(text, None)
            # One for all: behind a statement that has failed, the server runs none before it.
            self._pg.pipeline_sync()

        return self._replies((yield Message(self._pg, send, pipeline=True)))

    def _execute(self, statement: str, params: Params) -> Talk[Reply]:
        if params is None and _is_several(statement):
            text = self._bytes(statement)
            return self._users_reply((yield Message(self._pg, lambda: self._pg.send_query(text))))
        return (yield from self._execute_after((), statement, params))[-1]

    def _execute_after(self, before: Sequence[str], statement: str, params: Params) -> Talk[tuple[Reply, ...]]:
        if before and params is None and _is_several(statement):
            ours = yield from self._run("; ".join(before))
            return *ours, (yield from self._execute(statement, params))
        if isinstance(params, Bound):
            if params.many:
                return (yield from self._execute_many(before, statement, params.values))
            return (yield from self._execute_one(before, statement, params.values, in_full=True))
        return (yield from self._execute_one(before, statement, params, in_full=False))

    def _execute_one(
        self, before: Sequence[str], statement: str, values: Any, *, in_full: bool
    ) -> Talk[tuple[Reply, ...]]:
        query = self._query(statement, values)
        plan = self._statements.plan(query.query, query.types)
        several = bool(before) or plan.make

        def send() -> None:
            if several:
                self._pg.enter_pipeline_mode()
                for one in before:
                    self._pg.send_query_params(self._bytes(one), None)
            if plan.make:
                self._pg.send_prepare(plan.name, query.query, query.types)
            if plan.name:
                self._pg.send_query_prepared(plan.name, query.params, query.formats)
            else:
                self._pg.send_query_params(query.query, query.params, query.types, query.formats)
            if several:
                self._pg.pipeline_sync()

        results = yield Message(self._pg, send, pipeline=several)
        replies = self._replies(results[: len(before)])
        if plan.make and results[len(before)].status in _FINE:
            self._statements.made(plan)
        return *replies, self._users_reply(results[len(before) :], plan, in_full=in_full)

    def _execute_many(self, before: Sequence[str], statement: str, rows: Sequence[Any]) -> Talk[tuple[Reply, ...]]:
        """For each row of parameters; so many of them in one round trip."""
        count, replies = 0, tuple[Reply, ...]()
        for start in range(0, max(len(rows), 1), ROWS_AT_ONCE):
            queries = [self._query(statement, row) for row in rows[start : start + ROWS_AT_ONCE]]

            def send(queries: list[PostgresQuery] = queries, before: Sequence[str] = before) -> None:
                self._pg.enter_pipeline_mode()
                for one in before:
                    self._pg.send_query_params(self._bytes(one), None)
                for query in queries:
                    self._pg.send_query_params(query.query, query.params, query.types, query.formats)
                self._pg.pipeline_sync()

            results = yield Message(self._pg, send, pipeline=True)
            replies += self._replies(results[: len(before)])
            for result in results[len(before) :]:
                count += max(self._users_reply([result]).count, 0)
            before = ()
        return *replies, Reply(count=count)

    @property
    def _encoding(self) -> str:
        """What this session writes text in, which a URL, an engine or a SET may have chosen."""
        encoding: str = self._pg._encoding
        return "utf-8" if encoding == "ascii" else encoding  # of SQL_ASCII, the server looks at no byte

    def _bytes(self, text: str) -> bytes:
        # ASCII is itself in each of them, and to ask libpq for the encoding costs more than the rest.
        return text.encode() if text.isascii() else text.encode(self._encoding)

    def _query(self, statement: str, values: Any) -> PostgresQuery:
        query = PostgresQuery(self._values)
        query.convert(statement, values)
        if query.params and len(query.params) > PARAMETERS_MAX:
            raise UsageError(
                f"PostgreSQL takes at most {PARAMETERS_MAX} parameters in a statement, and this has "
                f"{len(query.params)}: send it in parts, or a list as one parameter (= ANY(%s))"
            )
        return query

    # ---- answers

    def _gone(self, error: psycopg.Error, message: Message, *, before: bool) -> SessionLost:
        """Of an exchange that has failed. `before`: an earlier message of the same conversation was answered."""
        self.usable = False
        why = str(error)
        words = [_field(result, _Diag.MESSAGE_PRIMARY) for result in message.results if result.status not in _FINE]
        lost = SessionLost(": ".join([*(last for last in words if last not in why), why]))
        # A server that shuts down in good order has said so before it could read what we sent: that is no answer to it.
        lost.answered = before or (bool(message.results) and not _is_farewell(message.results[0]))
        return lost

    def _replies(self, results: Sequence[Any], *, in_full: bool = False) -> tuple[Reply, ...]:
        """Those of our own statements."""
        replies: list[Reply] = []
        for result in results:
            status = result.status
            if status not in _FINE:
                self._raise_ours(result, len(replies))
            tag, count = (result.command_status or b"").decode(), result.command_tuples
            if count is None:
                count = -1
            replies.append(Reply(tag, count) if status not in _ROWS else self._with_rows(result, tag, count, in_full))
        return tuple(replies)

    def _refuse_copy(self, result: Any) -> None:
        if result.status in _COPY:
            self.kill()
            raise UsageError("COPY cannot be run as a statement here: it takes the whole session")

    def _raise_ours(self, result: Any, after: int) -> NoReturn:
        self._refuse_copy(result)
        code, primary = _field(result, _Diag.SQLSTATE), _field(result, _Diag.MESSAGE_PRIMARY)
        if not code or ends_session(code, _field(result, _Diag.SEVERITY_NONLOCALIZED)):
            self.usable = False
            raise SessionLost(primary or self._pg.get_error_message())
        detail = _field(result, _Diag.MESSAGE_DETAIL)
        message = primary + (f" ({detail})" if detail else "")
        raise PostgresFailed(code, message, _field(result, _Diag.SCHEMA_NAME), after)

    def _users_reply(self, results: Sequence[Any], plan: _Plan | None = None, *, in_full: bool = False) -> Reply:
        """The last one's. Raises the driver's own error."""
        for result in results:
            if result.status in _FINE:
                continue
            self._refuse_copy(result)
            error = error_from_result(result, encoding=self._pg._encoding)
            if plan is not None and plan.name and not plan.make and (error.sqlstate or "").startswith(_OUTDATED):
                self._statements.forget()  # what an ALTER TABLE has done to this one; the next attempt makes another
            if self.lost(error):
                self.usable = False
            raise error
        return self._replies(results[-1:], in_full=in_full)[0]

    def _with_rows(self, result: Any, tag: str, count: int, in_full: bool) -> Reply:
        self._values.set_pgresult(result)
        fields = range(result.nfields)
        encoding = self._encoding
        columns = tuple([result.fname(at).decode(encoding) for at in fields])
        rows = tuple(self._values.load_rows(0, result.ntuples, tuple))
        return Reply(tag, count, columns, rows, tuple([result.ftype(at) for at in fields]) if in_full else ())


class _Plan:
    """How a statement is sent. `name`: as a prepared one; `make`: which is to be made first."""

    __slots__ = ("key", "make", "name")

    def __init__(self, key: tuple[bytes, Any], name: bytes, *, make: bool) -> None:
        self.key, self.name, self.make = key, name, make


class _Statements:
    """Which statements a session has prepared, and how often it has seen the others."""

    def __init__(self, *, prepares: bool) -> None:
        self._room = STATEMENTS_MAX if prepares else 0
        self._names: dict[tuple[bytes, Any], bytes] = {}
        self._seen: dict[tuple[bytes, Any], int] = {}
        self._named = 0  # so many names were given: none is given twice, whatever became of the first

    def plan(self, text: bytes, types: Any) -> _Plan:
        key = (text, types)
        name = self._names.get(key)
        if name is not None:
            return _Plan(key, name, make=False)
        uses = self._seen.get(key, 0) + 1
        if uses < PREPARE_FROM_USE or not self._room:
            if len(self._seen) < SEEN_MAX or key in self._seen:
                self._seen[key] = uses
            else:
                self._seen.clear()
            return _Plan(key, b"", make=False)
        self._named += 1
        return _Plan(key, b"nd%d" % self._named, make=True)

    def made(self, plan: _Plan) -> None:
        """The server holds it, until the session ends."""
        self._room -= 1
        self._names[plan.key] = plan.name
        self._seen.pop(plan.key, None)

    def forget(self) -> None:
        """Use none of them any more. They go with the session, and take up its room until then."""
        self._names.clear()


def _is_several(statement: str) -> bool:
    """Whether it may be more than one statement: those go without parameters, and by themselves."""
    return ";" in statement.rstrip("; \n\t")


def _is_farewell(result: Any) -> bool:
    """Whether the server ends the session with this."""
    return result.status not in _FINE and ends_session(
        _field(result, _Diag.SQLSTATE), _field(result, _Diag.SEVERITY_NONLOCALIZED)
    )


def _field(result: Any, field: Any) -> str:
    value = result.error_field(field)
    return "" if value is None else value.decode("utf-8", "replace")


def options(url: Url, connect_timeout_s: float) -> dict[str, Any]:
    """What psycopg connects with."""
    return {
        "conninfo": url.secret(),
        "autocommit": True,
        "connect_timeout": max(2, math.ceil(connect_timeout_s)),  # whole seconds, and libpq takes 1 for 2
        "fallback_application_name": "nodoubt",
    }
