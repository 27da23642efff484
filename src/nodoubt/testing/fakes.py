"""A fake coordinator for unit tests: the real verbs and the real engine, over databases in memory.

    with FakeCoordinator(["shop", "stock"]) as db:
        db.reply("select stock", [{"stock": 3}])
        place_order(db, 42)
        assert Statement("shop", "insert into orders values (?)", (42,)) in db.committed

What goes wrong can be chosen: `db.ends("in doubt")`, `db.fail_at("P3.prepare@stock")`, `db.reply(…, error=…)`; from
there on it fails, until `db.heal()`.

Guarantees: every verb is `Coordinator`'s own, so that a test sees the outcomes and errors that a program will see.

Must not: be taken for a test of the SQL: no statement is run. Throw-away databases are for that.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from .. import wiring
from ..coordinator import AsyncCoordinator, Coordinator
from ..engine.context import Context, Participant, Settings
from ..engine.pool import AsyncPool, ThreadPool
from ..engine.shell import AsyncShell, ThreadShell
from ..errors import UsageError
from ..journals.memory import AsyncMemorySession, MemoryJournal, MemorySession
from ..life import Life
from ..points import Point
from ..ports import Observer, Reply
from ..url import parse_url
from ..xid import new_attempt, new_cluster
from .memory import FakeDatabase, FakeResource, FakeStore, Scripted, Statement, World, fault_at

Ends = Literal["aborted", "in doubt", "unfinished"]
# Nobody answers later, so that there is nothing to wait for.
QUICK = Settings(prepare_s=1, decide_s=0.05, apply_s=0.05, answer_s=1, acquire_s=5, grace_s=60)
_POOL_SIZE = 100
_ENDS: Mapping[str, tuple[str, ...]] = {
    "aborted": ("P3.prepare",),
    "in doubt": ("P5.deciding",),
    "unfinished": ("P8.commit",),
}


class _Fake:
    """What a fake has beside the verbs."""

    _world: World

    @property
    def executed(self) -> tuple[Statement, ...]:
        """Every statement, in the order in which they came."""
        return tuple(self._world.executed)

    @property
    def committed(self) -> tuple[Statement, ...]:
        """The statements that write and whose branches have committed; each branch's own in their order."""
        return tuple(self._world.committed)

    def reply(
        self,
        containing: str,
        rows: Sequence[Mapping[str, Any]] = (),
        *,
        on: str = "",
        count: int | None = None,
        error: Exception | None = None,
    ) -> None:
        """Answer statements that contain this text, on this resource or on any. The newest answer that fits is given.

        `count`: of the rows affected or returned (default: as many as there are rows). `error`: raised by `execute`;
        it dooms the branch, as a driver's would. What fits nothing is answered with no rows and a count of 1.
        """
        columns = tuple(rows[0]) if rows else ()
        if any(tuple(row) != columns for row in rows):
            raise UsageError("the rows of one answer have the same columns, in the same order")
        values = tuple(tuple(row.values()) for row in rows)
        answer = Reply(count=len(rows) if count is None else count, columns=columns, rows=values)
        self._world.scripted.append(Scripted(containing, on, error or answer))

    def fail_at(self, point: str | Point, *, done: bool = False) -> None:
        """From this point on, fail: `P2.work` (the connection is lost), `P3.prepare` (refused), `P5.deciding` (the
        journal, or the one database that wrote, gives no answer), `P8.commit` (no answer).

        `done`: what is asked there is done the first time, and only the answer is lost. Raises `UsageError`.
        """
        point = point if isinstance(point, Point) else Point.parse(point)
        self._world.faults.append(fault_at(point, done=done))

    def ends(self, outcome: Ends) -> None:
        """How transactions over several databases end from now on: `TransactionAborted` is raised, or `InDoubt`, or
        the result is committed and not `complete`.
        """
        if outcome not in _ENDS:
            raise UsageError(f"a fake's transaction ends {' or '.join(map(repr, _ENDS))}, not {outcome!r}")
        for point in _ENDS[outcome]:
            self.fail_at(point)

    def heal(self) -> None:
        """Nothing fails any more; what is left to do `recover()` finishes."""
        self._world.faults.clear()


class FakeCoordinator(_Fake, Coordinator):
    """A `Coordinator` over databases in memory. `resources`: their names, or what a real one would take."""

    def __init__(
        self,
        resources: str | Iterable[str] = wiring.ONLY,
        *,
        settings: Settings = QUICK,
        observer: Observer | None = None,
    ) -> None:
        self._world = World()
        self._shell = ThreadShell()
        ctx = _context(_names(resources), self._world, settings, observer, self._shell)
        Life.__init__(self, ctx, self._shell, recovery=False, read_only=False)


class AsyncFakeCoordinator(_Fake, AsyncCoordinator):
    """An `AsyncCoordinator` over databases in memory. `resources`: their names, or what a real one would take."""

    def __init__(
        self,
        resources: str | Iterable[str] = wiring.ONLY,
        *,
        settings: Settings = QUICK,
        observer: Observer | None = None,
    ) -> None:
        self._world = World()
        self._shell = AsyncShell()
        ctx = _context(_names(resources), self._world, settings, observer, self._shell)
        Life.__init__(self, ctx, self._shell, recovery=False, read_only=False)


def _names(resources: str | Iterable[str]) -> tuple[str, ...]:
    names = (wiring.ONLY if "://" in resources else resources,) if isinstance(resources, str) else tuple(resources)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise UsageError('a fake takes the names of its resources: ["shop", "stock"]')
    return names


def _context(
    names: tuple[str, ...],
    world: World,
    settings: Settings,
    observer: Observer | None,
    shell: ThreadShell | AsyncShell,
) -> Context:
    cluster = new_cluster()
    store = FakeStore(world)
    store.apply("setup", cluster)
    ctx = Context(
        participants={name: _participant(name, world, cluster, settings, shell) for name in names},
        journal=MemoryJournal(),
        journal_pool=_pool("the journal", store, settings, shell),
        register_batch=None,
        settings=settings,
        clock=wiring.SystemClock(),
        ids=wiring.RandomIds(),
        observer=observer,
        owner="a fake coordinator",
    )
    ctx.register_batch = wiring.register_batch(ctx, shell)
    return ctx


def _participant(
    name: str, world: World, cluster: str, settings: Settings, shell: ThreadShell | AsyncShell
) -> Participant:
    database = FakeDatabase(name, world)
    database.apply("setup", new_attempt(), cluster)
    pools = (_pool(name, database, settings, shell), _pool(name, database, settings, shell))
    return Participant(name, FakeResource(name), *pools, home=_home(isinstance(shell, AsyncShell)))


def _pool(name: str, store: Any, settings: Settings, shell: ThreadShell | AsyncShell) -> Any:
    if isinstance(shell, ThreadShell):
        return ThreadPool(
            name, lambda: MemorySession(store), size=_POOL_SIZE, acquire_s=settings.acquire_s, call=shell.call
        )

    async def connect() -> AsyncMemorySession:
        return AsyncMemorySession(store)

    return AsyncPool(name, connect, size=_POOL_SIZE, acquire_s=settings.acquire_s)


def _home(asynchronous: bool) -> Any:
    """For the query verbs and SQLAlchemy's statements, which are compiled for SQLite."""

    @functools.cache
    def made() -> Any:
        from ..alchemy.home import home_of_url

        home = home_of_url(parse_url("sqlite:///fake.db"), asynchronous=asynchronous)
        home.ready = True  # there is no server that it could ask
        return home

    return made
