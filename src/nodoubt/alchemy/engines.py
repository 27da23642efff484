"""A user's own engine as a resource: its pool lends connections for work, and others are made as it makes them.

- *For work* a connection is checked out of the engine's pool, whose size is the user's choice. It goes back as it came
  (same autocommit, same settings, no transaction), or is invalidated and never seen again (I18).
- *For admission, phase two, recovery and the journal* connections are made by a fresh copy of that pool, that is by the
  same creator, with the same events, TLS and login, and taken out of it at once. Callers who hold all of the engine's
  connections, and wait for a prepared branch's locks, cannot starve the one that would release them.

Guarantees: never a statement of the pool's on a session that is bound to a prepared branch: it is closed as it is.

Must not: close the engine, or use a connection that another process has opened.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from sqlalchemy import Engine, PoolProxiedConnection, SingletonThreadPool, StaticPool
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util.concurrency import greenlet_spawn

from ..engine.context import log
from ..engine.pool import PARENTS, POOLS
from ..errors import ClosedTransaction, NoDoubtError, PoolExhausted, ResourceUnavailable, UsageError, text_of
from ..ports import Session
from ..script import Do
from ..url import KINDS, Url

TAKE_S = 5.0
BACK_S = 2.0
STALE_MAX = 1000  # connections that a restarted server has left dead in a pool
_DRIVERS: dict[str, dict[bool, tuple[str, ...]]] = {
    "postgres": {False: ("psycopg",), True: ("asyncpg", "psycopg")},
    "mariadb": {False: ("pymysql",), True: ("asyncmy", "aiomysql")},
}
_NAMES = {"postgresql": _DRIVERS["postgres"], "mysql": _DRIVERS["mariadb"], "mariadb": _DRIVERS["mariadb"]}
_NOTE = "nodoubt"  # where a connection's own `info` keeps our session over it


def url_of(given: object, *, asynchronous: bool) -> Url:
    """Where the engine's database is. Raises `UsageError` for one that cannot take part: what to give instead."""
    wanted, coordinator = ("an AsyncEngine", "AsyncCoordinator") if asynchronous else ("an Engine", "Coordinator")
    if not isinstance(given, (Engine, AsyncEngine)):
        raise UsageError(f"a resource is a URL or a SQLAlchemy engine, not {type(given).__name__}")
    if isinstance(given, AsyncEngine) is not asynchronous:
        maker = "create_async_engine" if asynchronous else "create_engine"
        raise UsageError(f"{coordinator} takes {wanted} (made by {maker}), not {type(given).__name__}")
    engine = _inner(given)
    dialect, place = engine.dialect, engine.url
    if dialect.name == "sqlite":
        raise UsageError(
            "an engine over Python's sqlite3 brings a second SQLite library into the process, and two of them on one "
            f"file lose commits: give the URL sqlite:///{place.database or 'PATH'} in its place; tx[…].connection and "
            "tx[…].session() are SQLAlchemy on it"
        )
    kind = KINDS.get(dialect.name, "")
    drivers = _DRIVERS.get(kind, {}).get(asynchronous, ())
    if dialect.driver not in drivers:
        known = ", ".join(f"{name}+{one}" for name, by in _NAMES.items() for one in by[asynchronous])
        raise UsageError(
            f"an engine over {dialect.name}+{dialect.driver} cannot take part in {coordinator}: use one of {known}"
        )
    if isinstance(engine.pool, (StaticPool, SingletonThreadPool)):
        raise UsageError(
            f"{type(engine.pool).__name__} gives one connection to several users, and a transaction needs one of its "
            "own: use QueuePool (the default) or NullPool"
        )
    lasting = [
        name
        for name, characteristic in getattr(dialect, "connection_characteristics", {}).items()
        if characteristic.transactional and name in engine.get_execution_options()
    ]
    if lasting:
        raise UsageError(
            f"{', '.join(lasting)} as an execution option is set on each Connection that SQLAlchemy makes, and a "
            "branch's is not one of them: give it to create_engine() if it is the isolation_level, else execute SET "
            "TRANSACTION as the branch's first statement"
        )
    if kind == "mariadb" and not place.database:
        raise UsageError("the engine's URL names no database, and our tables must be in one: put /DATABASE into it")
    return Url(
        kind,
        dialect.name,
        host=place.host or "",
        port=place.port,
        user=place.username or "",
        password=str(place.password or ""),
        database=place.database or "",
    )


def _inner(engine: Engine | AsyncEngine) -> Engine:
    return engine.sync_engine if isinstance(engine, AsyncEngine) else engine


@dataclass(slots=True)
class _Loan:
    """A connection that has been checked out of the engine's pool."""

    fairy: PoolProxiedConnection
    session: Any
    fresh: bool  # just made: it has not been idle in the pool
    by_coroutine: bool  # so SQLAlchemy closes it: its dialect knows no `terminate`

    def home(self) -> None:
        """Give it back as it came."""
        self.session.give_back()
        self.fairy.close()

    def drop(self) -> None:
        """Have it closed; its place in the pool is free for a new one. Never raises."""
        self.session.kill()
        try:
            if not self.fairy.is_valid:
                return
            if self.by_coroutine:
                _without_waiting(self.fairy.invalidate)
            else:
                self.fairy.invalidate()
        except Exception:
            log.exception("a connection could not be closed in good order")

    def kill(self) -> None:
        self.session.kill()

    def timed_out(self, seconds: float) -> Exception:
        return self.session.timed_out(seconds)  # type: ignore[no-any-return]


def _without_waiting(call: Callable[[], None]) -> None:
    """In a greenlet, as SQLAlchemy wants it, but at once: there is nothing to wait for, the session has been killed."""
    steps = greenlet_spawn(call)
    try:
        steps.send(None)
    except StopIteration:
        return
    steps.close()


class _Lender:
    """What both pools share: how a session is made of a connection, and which have gone stale."""

    def __init__(self, name: str, engine: Engine | AsyncEngine) -> None:
        self.name = name
        self._engine = _inner(engine)
        self._lent: dict[int, _Loan] = {}
        self._stale_before = 0.0
        self._closed = False
        POOLS.add(self)

    def forget(self) -> None:
        """In the child of a fork: the parent's connections are left alone, and the engine starts anew."""
        PARENTS.extend([*self._lent.values(), self._engine.pool])
        self._lent = {}
        self._engine.dispose(close=False)

    def drop_idle(self) -> None:
        """What was connected before now is not trusted any more; the user's other work finds out by itself."""
        self._stale_before = time.monotonic()

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedTransaction(f"the coordinator is closed: no sessions of {self.name}")

    def _check_out(self) -> _Loan:
        """A connection of the pool's, and the session over it that is kept with it."""
        dialect = self._engine.dialect
        by_coroutine = dialect.is_async and not dialect.has_terminate
        for _ in range(STALE_MAX):
            fairy = self._connected()
            known = fairy.info.get(_NOTE)
            try:
                if known is None:
                    known = fairy.info[_NOTE] = (_introduced(self._engine, fairy), time.monotonic())
                    return _Loan(fairy, known[0], fresh=True, by_coroutine=by_coroutine)
                if known[1] >= self._stale_before:
                    self._heard(fairy, known[0])
                    return _Loan(fairy, known[0], fresh=False, by_coroutine=by_coroutine)
            except BaseException as error:
                fairy.invalidate()
                if known is None or not isinstance(error, Exception):
                    raise
            else:
                fairy.invalidate()
        raise ResourceUnavailable(f"{self.name}: {STALE_MAX} connections of its pool were dead; nothing was done")

    def _heard(self, fairy: PoolProxiedConnection, session: Any) -> None:
        """The user's own listeners have had the connection: a DISCARD ALL takes its isolation level away."""
        heard = self._engine.pool.dispatch
        if heard.checkout:
            self._engine.dialect.do_commit(fairy)  # what a listener has left open is its own
        if (heard.checkout or heard.checkin or heard.reset) and hasattr(session, "doubt"):
            session.doubt()

    def _connected(self) -> PoolProxiedConnection:
        try:
            return self._engine.pool.connect()
        except PoolTimeout as error:
            raise PoolExhausted(
                f"the engine of {self.name} had no connection to give: {error.args[0]}. Raise its pool_size or shorten "
                "transactions; nothing was done"
            ) from error

    def _unreachable(self, error: Exception) -> NoDoubtError:
        if isinstance(error, NoDoubtError):
            return error
        return ResourceUnavailable(f"{self.name} cannot be reached: {text_of(error)}; nothing was done")

    def _not_taken(self, loan: _Loan, error: BaseException) -> None:
        """The connection does not answer. One that lay in the pool may be dead with its server: then try another."""
        loan.drop()
        if not isinstance(error, Exception):
            raise error
        if loan.fresh or isinstance(error, NoDoubtError):
            raise self._unreachable(error) from error
        self.drop_idle()  # its server has gone, and taken all of them along

    def kill(self) -> None:
        """Nothing to cut off: waiting is bounded by the engine's pool, connecting by its driver."""

    def timed_out(self, seconds: float) -> Exception:
        return PoolExhausted(f"no connection to {self.name} within {seconds:.3g} s")


class EnginePool(_Lender):
    """An engine's pool, for threads. See `ports.Pool`."""

    def __init__(self, name: str, engine: Engine, *, call: Callable[[Do], Any]) -> None:
        super().__init__(name, engine)
        self._call = call

    def acquire(self) -> Session:
        """A session to work on. Raises `PoolExhausted` or `ResourceUnavailable`."""
        self._require_open()
        while True:
            try:
                loan = self._check_out()
            except Exception as error:
                raise self._unreachable(error) from error
            try:
                self._call(Do(loan.session, "take", (), TAKE_S))
            except BaseException as error:
                self._not_taken(loan, error)
                continue
            self._lent[id(loan.session)] = loan
            return loan.session  # type: ignore[no-any-return]

    def release(self, session: Session) -> None:
        """Take it back as it came, or have it closed. Waits no longer than `BACK_S`."""
        loan = self._lent.pop(id(session), None)
        if loan is None:
            PARENTS.append(session)
            return
        if not session.usable:
            loan.drop()
            return
        try:
            self._call(Do(loan, "home", (), BACK_S))
        except BaseException as error:
            loan.drop()
            if not isinstance(error, Exception):
                raise

    def close(self) -> None:
        """The engine is the user's, and stays as it is."""
        self._closed = True


class AsyncEnginePool(_Lender):
    """The same for one event loop. What goes back does so in tasks of its own, since it has to be awaited."""

    def __init__(self, name: str, engine: AsyncEngine) -> None:
        super().__init__(name, engine)
        self._returning: set[asyncio.Task[None]] = set()

    async def acquire(self) -> Any:
        self._require_open()
        while True:
            try:
                loan = await greenlet_spawn(self._check_out)
            except Exception as error:
                raise self._unreachable(error) from error
            try:
                async with asyncio.timeout(TAKE_S):
                    await loan.session.take()
            except BaseException as error:
                self._not_taken(loan, error)
                continue
            self._lent[id(loan.session)] = loan
            return loan.session

    def release(self, session: Any) -> None:
        loan = self._lent.pop(id(session), None)
        if loan is None:
            PARENTS.append(session)
        elif session.usable:
            task = asyncio.get_running_loop().create_task(self._home(loan))
            self._returning.add(task)
            task.add_done_callback(self._returning.discard)
        else:
            loan.drop()

    async def _home(self, loan: _Loan) -> None:
        try:
            async with asyncio.timeout(BACK_S):
                await loan.session.give_back()
                await greenlet_spawn(loan.fairy.close)
        except BaseException as error:
            loan.drop()
            if not isinstance(error, Exception):
                raise

    async def close(self) -> None:
        """The engine is the user's, and stays as it is."""
        self._closed = True
        if self._returning:
            await asyncio.wait(list(self._returning), timeout=2 * BACK_S)


def connecting(engine: Engine) -> Callable[[], Session]:
    """What makes one more connection as the engine does, which no pool knows of."""

    def connect() -> Session:
        session = _apart(engine)
        try:
            session.keep()
        except BaseException:
            session.kill()
            raise
        return session  # type: ignore[no-any-return]

    return connect


def connecting_async(engine: AsyncEngine) -> Callable[[], Awaitable[Any]]:
    """The same for asyncio."""

    async def connect() -> Any:
        session = await greenlet_spawn(_apart, engine.sync_engine)
        try:
            await session.keep()
        except BaseException:
            session.kill()
            raise
        return session

    return connect


def _apart(engine: Engine) -> Any:
    fairy = engine.pool.recreate().connect()
    try:
        session = _introduced(engine, fairy)
        fairy.detach()
    except BaseException:
        fairy.invalidate()
        raise
    return session


def _introduced(engine: Engine, fairy: PoolProxiedConnection) -> Any:
    """A session over a connection that is new to us."""
    dialect: Any = engine.dialect
    dialect.do_commit(fairy)  # what a listener to the connect left open is its own
    isolation = ""
    if dialect.name == "postgresql":
        isolation = dialect.get_isolation_level(fairy.dbapi_connection)
        dialect.do_rollback(fairy)
    psycopg_async = dialect.is_async and dialect.driver == "psycopg"
    driver = import_module(f"nodoubt.drivers.{'psycopg_async' if psycopg_async else dialect.driver}")
    return driver.lend(fairy.driver_connection, isolation)
