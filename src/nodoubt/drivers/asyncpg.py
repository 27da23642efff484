"""PostgreSQL, asyncio, over asyncpg: for `postgresql+asyncpg://`, and for users' own engines.

asyncpg answers a simple query of several statements with the last command tag alone: no rows, no other tag.
The contract needs them all, so a `_Tap` stands between the transport and asyncpg's protocol (`Transport.set_protocol`
is public), passes every byte on untouched, and keeps a copy while `run` waits. The replies are read
from that copy. If it does not end exactly in ReadyForQuery, or its last tag is not the one asyncpg reports, the
answer counts as lost: a reply that was misread is worse than none.

Guarantees: as `drivers.psycopg`. Rows of `run` hold bool, int, float, bytes and str (any other type as the server's
text); rows of `execute` hold what asyncpg makes of them.

Must not: decide what an answer means.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from ..errors import MissingExtra, ResourceUnavailable, UsageError
from ..ports import Bound, Params, Reply, SessionLost, StatementFailed
from ..url import Url
from .postgres_failure import (
    CHECK_CLIENT,
    CHECK_CLIENT_FROM_VERSION,
    PostgresFailed,
    ends_session,
    introduction,
    require_alive,
    restore,
)

try:
    import asyncpg
except ImportError:
    raise MissingExtra("postgresql+asyncpg://", "asyncpg") from None

TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 2.0

# Options of libpq that asyncpg does not know: it would pass them to the server, which refuses the connection.
_LIBPQ_ONLY = {
    "connect_timeout", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout",
    "gssencmode", "sslcompression", "sslcertmode", "sslsni", "channel_binding", "load_balance_hosts", "client_encoding",
}  # fmt: skip

# How `run` reads a text value, by the oid of its type. What is not here stays text.
_READ: dict[int, Callable[[str], Any]] = {
    16: lambda text: text == "t",  # bool
    17: lambda text: bytes.fromhex(text[2:]),  # bytea, with bytea_output at its default (hex)
    20: int,  # int8
    21: int,  # int2
    23: int,  # int4
    26: int,  # oid
    700: float,
    701: float,
}


class AsyncpgSession:
    """One connection. Used by one task at a time, but for `kill`."""

    server_started = 0  # a prepared branch is not bound to its session here, so nobody asks

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.connection_id: int = connection.get_server_pid()
        self.usable = True
        self.forced = False  # a resource's note: commands outside a transaction wait for the standbys too
        self.stained = False  # a resource's note: the user has left settings, locks or temporary tables in the session
        self.kept: frozenset[str] | None = None  # see `kept`: which statements of ours it has prepared
        self.warnings: list[str] = []  # of the last call: "routine: message", in which only the routine is untranslated
        self._loop = asyncio.get_running_loop()
        self._tap = _Tap(connection._transport.get_protocol())
        self._tap.stand_between(connection._transport)

    async def run(self, sql: str) -> tuple[Reply, ...]:
        """Our own literal statements in one message (a simple query): a reply for each, in order."""
        self.warnings.clear()
        copy = self._tap.copy = bytearray()
        try:
            tag = await self.connection.execute(sql)
        except Exception as error:
            code = getattr(error, "sqlstate", None)
            if not isinstance(error, asyncpg.PostgresError) or code is None or self.lost(error):
                self.usable = False
                raise SessionLost(str(error)) from error
            raise PostgresFailed(code, _message(error), getattr(error, "schema_name", None) or "") from error
        except BaseException:
            self.usable = False  # cancelled in the middle of a call: nobody knows what is still to be read
            raise
        finally:
            self._tap.copy = None
        try:
            replies = _replies(bytes(copy), self.warnings)
        except (ValueError, IndexError, struct.error) as error:
            self.usable = False
            raise SessionLost(f"the server's answer cannot be read: {error}") from error
        if (replies[-1].tag if replies else "") != tag:
            self.usable = False
            raise SessionLost(f"the server's answer was misread: {tag!r} is not the last tag of {replies!r}")
        return replies

    async def execute(self, statement: str, params: Params) -> Reply:
        """The user's statement, one, with `$1` and a sequence of parameters."""
        if isinstance(params, Mapping):
            raise UsageError("asyncpg numbers its parameters: write $1, $2 … and pass a sequence, not a mapping")
        self.warnings.clear()
        try:
            if isinstance(params, Bound):
                return await self._in_full(statement, params)
            # `fetch` is this call without the tag; `execute` is this call without the rows.
            records, status, _ = await self.connection._execute(
                statement, tuple(params or ()), 0, None, return_status=True
            )
        except Exception as error:
            if self.lost(error):
                self.usable = False
            raise
        except BaseException:
            self.usable = False
            raise
        columns = tuple(records[0].keys()) if records else self._columns(statement)
        return _reply(records, status, columns, ())

    async def _in_full(self, statement: str, params: Bound) -> Reply:
        """As `execute`, from one level deeper, where the statement's own description is at hand."""
        connection = self.connection
        if params.many:
            await connection.executemany(statement, params.values)
            return Reply()

        def once(state: Any, timeout: float | None) -> Any:
            values = tuple(params.values or ())
            return connection._protocol.bind_execute(
                state=state, args=values, portal_name="", limit=0, return_extra=True, timeout=timeout
            )

        with connection._stmt_exclusive_section:
            (records, status, _), state = await connection._do_execute(statement, once, None)
        columns = state._get_attributes()
        return _reply(
            records, status, tuple(column.name for column in columns), tuple(column.type.oid for column in columns)
        )

    def _columns(self, statement: str) -> tuple[str, ...]:
        """The columns of a result without rows, as far as the statement is still known to asyncpg."""
        known = self.connection._stmt_cache.get((statement, asyncpg.Record, False))
        return tuple(attribute[0] for attribute in known._get_attributes()) if known else ()

    def lost(self, error: BaseException) -> bool:
        """Whether the connection is gone with this error: the server ended it, or the socket did."""
        if isinstance(error, OSError) or ends_session(
            getattr(error, "sqlstate", None), getattr(error, "severity_en", None)
        ):
            return True
        return bool(self.connection.is_closed())

    async def close(self) -> None:
        """End the connection in good order; a cancelled call is cancelled at the server first. Never raises."""
        self.usable = False
        with contextlib.suppress(Exception):
            await self.connection.close(timeout=CLOSE_TIMEOUT_S)

    def kill(self) -> None:
        """Drop the socket, from any thread: a call that waits for an answer fails at once."""
        self.usable = False
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the socket with it
            if _running_loop() is self._loop:
                self.connection.terminate()
            else:
                self._loop.call_soon_threadsafe(self.connection.terminate)

    def timed_out(self, seconds: float) -> Exception:
        """The error of a call that `kill` cut short."""
        return SessionLost(f"no answer within {seconds:g} s")


class LentAsyncpgSession(AsyncpgSession):
    """A connection on loan from a pool of the user's."""

    def __init__(self, connection: Any, isolation: str) -> None:
        super().__init__(connection)
        self._isolation = isolation
        self._durability = ""  # as the user has it
        self._tap.stand_aside(connection._transport)

    async def take(self) -> None:
        """Take it over."""
        self._tap.stand_between(self.connection._transport)
        if not self._durability:
            self._durability = str((await self.run(introduction(self._isolation)))[0].scalar())
            await _watch_client(self)

    def doubt(self) -> None:
        """Others may have reset it since: what it was told is said again when it is taken."""
        self._durability, self.forced = "", False

    async def keep(self) -> None:
        """Take it over for good."""
        await self.take()

    async def give_back(self) -> None:
        """As it was."""
        undo = restore(self._durability) if self.forced else None
        if undo is not None:
            await self.run(undo)
            self.forced = False
        self._tap.stand_aside(self.connection._transport)


def lend(connection: Any, isolation: str) -> LentAsyncpgSession:
    """A session over a connection of the user's pool. `isolation`: the level of the engine's own transactions."""
    return LentAsyncpgSession(connection, isolation)


async def connect(url: Url, *, connect_timeout_s: float = TIMEOUT_S) -> AsyncpgSession:
    """Open a session. Raises `ResourceUnavailable`, without the password, and within about the time given."""
    if ("channel_binding", "require") in url.options:
        raise UsageError(f"asyncpg has no channel binding, which {url} requires: use the sync coordinator")
    options = {name: value for name, value in url.options if name not in _LIBPQ_ONLY}
    options.setdefault("application_name", options.pop("fallback_application_name", "nodoubt"))
    place = {"host": options.pop("host", url.host), "port": options.pop("port", url.port)}  # as libpq: the option wins
    query = tuple(options.items())
    dsn = Url(url.kind, "postgresql", "", None, url.user, url.password, url.database, query).secret()
    try:
        connection = await asyncpg.connect(dsn, **cast(Any, place), timeout=connect_timeout_s)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        raise ResourceUnavailable(f"cannot connect to {url}: {error or 'no answer in time'}") from error
    session = AsyncpgSession(connection)
    session.kept = frozenset()
    try:
        async with asyncio.timeout(connect_timeout_s):
            await _watch_client(session)
    except BaseException as error:
        session.kill()
        if not isinstance(error, TimeoutError):
            raise
    require_alive(session, url)
    return session


async def _watch_client(session: AsyncpgSession) -> None:
    if session.connection.get_server_version().major >= CHECK_CLIENT_FROM_VERSION:
        with contextlib.suppress(StatementFailed, SessionLost):  # not every system it runs on can do that
            await session.run(CHECK_CLIENT)


class _Tap:
    """A protocol in front of asyncpg's: passes everything on, and copies what arrives while `copy` is set."""

    def __init__(self, inner: Any) -> None:
        self.copy: bytearray | None = None
        self._inner = inner
        self.connection_lost = inner.connection_lost
        self.eof_received = inner.eof_received
        self.pause_writing = inner.pause_writing
        self.resume_writing = inner.resume_writing

    def stand_between(self, transport: Any) -> None:
        transport.set_protocol(self)

    def stand_aside(self, transport: Any) -> None:
        transport.set_protocol(self._inner)

    def data_received(self, data: bytes) -> None:
        if self.copy is not None:
            self.copy += data  # before it is passed on: passing it on wakes the one who reads the copy
        self._inner.data_received(data)


def _reply(records: Any, status: bytes | None, columns: tuple[str, ...], types: tuple[int, ...]) -> Reply:
    tag = status.decode() if status else ""
    return Reply(tag, _count(tag), columns, tuple(tuple(record.values()) for record in records), types)


def _replies(answer: bytes, warnings: list[str]) -> tuple[Reply, ...]:
    """Read the messages that answer one simple query. Raises `ValueError` unless they are complete."""
    replies: list[Reply] = []
    columns: tuple[str, ...] = ()
    types: tuple[int, ...] = ()
    rows: list[tuple[Any, ...]] = []
    ready = False
    for kind, body in _messages(answer):
        if kind == b"T":
            columns, types = _row_description(body)
        elif kind == b"D":
            rows.append(_row(body, types))
        elif kind == b"C":
            tag = body[:-1].decode()
            replies.append(Reply(tag, _count(tag), columns, tuple(rows)))
            columns, types, rows = (), (), []
        elif kind == b"N":
            fields = {field[:1]: field[1:].decode() for field in body.split(b"\0") if field}
            if fields.get(b"V") == "WARNING":
                warnings.append(f"{fields.get(b'R')}: {fields.get(b'M')}")
        elif kind not in (b"A", b"S", b"I", b"Z"):
            raise ValueError(f"message {kind!r} is not expected here")
        ready = kind == b"Z"
    if not ready:
        raise ValueError("it does not end where the server is ready for the next query")
    return tuple(replies)


def _messages(answer: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(answer):
        (length,) = struct.unpack_from("!i", answer, at + 1)
        end = at + 1 + length
        if end < at + 5 or end > len(answer):
            raise ValueError("a message is cut short")
        yield answer[at : at + 1], answer[at + 5 : end]
        at = end


def _row_description(body: bytes) -> tuple[tuple[str, ...], tuple[int, ...]]:
    names, types = [], []
    at = 2
    for _ in range(struct.unpack_from("!h", body)[0]):
        end = body.index(b"\0", at)
        names.append(body[at:end].decode())
        types.append(struct.unpack_from("!I", body, end + 7)[0])
        at = end + 19
    return tuple(names), tuple(types)


def _row(body: bytes, types: tuple[int, ...]) -> tuple[Any, ...]:
    values: list[Any] = []
    at = 2
    for oid in types:
        (length,) = struct.unpack_from("!i", body, at)
        at += 4
        if length < 0:
            values.append(None)
            continue
        values.append(_READ.get(oid, str)(body[at : at + length].decode()))
        at += length
    return tuple(values)


def _count(tag: str) -> int:
    last = tag.rpartition(" ")[2]
    return int(last) if last.isdigit() else -1


def _message(error: Exception) -> str:
    detail = getattr(error, "detail", None)
    return (getattr(error, "message", None) or str(error)) + (f" ({detail})" if detail else "")


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
