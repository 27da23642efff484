"""Kill the user's own transaction at every point of the protocol, recover, and ask the user whether all is well.

    def place_order(db, order): ...            # at the top level of a module
    def check(db, crash): assert ...           # after recovery; `crash.state` is how it ended

    crash_points(place_order, args=["order-42"], resources={"shop": "sqlite", "stock": "postgres"},
                 tables={"shop": "create table …", "stock": "create table …"}, check=check)

The work runs once to its end, which tells the points; then once for each of them, on fresh databases, in a process
that is killed there (SIGKILL). An `async def` is given an `AsyncCoordinator`, a `def` a `Coordinator`.

Guarantees: a point has ended well only if it was reached, recovery left nothing undone within two sweeps, the outcome
is what the dead process had been promised (I5), and the check passed. What failed is told with how to repeat it alone.

Must not: use anything of the engine that a user could not.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import shlex
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from ..coordinator import AsyncCoordinator, Coordinator
from ..engine.context import Settings
from ..engine.questions import State
from ..errors import NoDoubtError, UnknownTransaction, UsageError
from ..points import STEP_BEFORE, Point
from .databases import Places, require_places, run_sql, throw_away
from .nursery import Address, Life, Nursery, Task

POINT_VARIABLE = "NODOUBT_POINT"
RUN_S = 60.0  # for one child
RECOVERY_S = 30.0
SWEEPS = 2  # in a row must leave nothing undone (I8)
PAUSE_S = 0.02

Work: TypeAlias = "Callable[..., object] | Callable[..., Awaitable[object]]"


@dataclass(frozen=True, slots=True)
class Crash:
    """What a check is told. `states`: how each of the work's transactions has ended, in the order of their beginning.

    A transaction that is staged, and undecided, is `State.PREPARED`.
    """

    point: Point | None  # None: the work ran to its end
    states: tuple[State, ...]

    @property
    def state(self) -> State:
        """How the work's only transaction has ended; one that had not even begun is aborted."""
        if len(self.states) > 1:
            raise UsageError(f"the work had begun {len(self.states)} transactions: look at crash.states")
        return self.states[0] if self.states else State.ABORTED


class Ending(StrEnum):
    """What came of one point."""

    WELL = "ended well"
    CHECK = "check failed"
    MISSED = "not reached"
    DOUBT = "not resolved"
    BROKEN = "promise broken"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One point, and what came of it."""

    crash: Crash
    ending: Ending
    why: str = ""
    error: BaseException | None = None

    @property
    def name(self) -> str:
        return "no kill" if self.crash.point is None else str(self.crash.point)


@dataclass(frozen=True, slots=True)
class Exploration:
    """Every point of one function. The first outcome is of the run without a kill."""

    work: str
    outcomes: tuple[Outcome, ...]

    @property
    def failed(self) -> tuple[Outcome, ...]:
        return tuple(one for one in self.outcomes if one.ending is not Ending.WELL)


class CrashPointFailed(AssertionError):
    """The work does not survive every crash; the message says at which points, and how to repeat each alone."""

    def __init__(self, exploration: Exploration, repeat: Callable[[Outcome], str]) -> None:
        failed = exploration.failed
        lines = [f"{exploration.work} ended badly at {len(failed)} of {len(exploration.outcomes)} points"]
        for one in failed:
            meaning = "the run without a kill" if one.crash.point is None else one.crash.point.meaning
            states = ", ".join(one.crash.states) or "nothing begun"
            lines += ["", f"  {one.name} ({meaning}; {states}): {one.ending}"]
            lines += [f"      {line}" for line in one.why.splitlines()]
            lines.append(f"      again, this one alone: {repeat(one)}")
        super().__init__("\n".join(lines))
        self.exploration = exploration


def crash_points(
    work: Work,
    *,
    resources: Mapping[str, str],
    check: Callable[[Any, Crash], object],
    journal: str | None = None,
    tables: Mapping[str, str] | None = None,
    before: Callable[[Any], object] | None = None,
    args: Sequence[Any] = (),
    points: Iterable[str | Point] | None = None,
    settings: Settings | None = None,
) -> Exploration:
    """Run `work(db, *args)` once for each point, and kill it there. Raises `CrashPointFailed`.

    `resources`: by name the kind of a throw-away database (`sqlite`, `postgres`, `mariadb`), fresh for each run, or
    a URL, taken as it is: then the work must bear to be repeated, under other names. `journal`: as for a coordinator,
    or a kind. `tables`: SQL that is run on each database first. `before(db)`: what the work finds. `check(db, crash)`:
    raises if what it sees after recovery is not right. `points`: these alone.
    """
    alone = os.environ.get(POINT_VARIABLE, "").strip()
    exploration = explore(
        work,
        resources=resources,
        check=check,
        journal=journal,
        tables=tables,
        before=before,
        args=args,
        points=[alone] if alone else points,
        settings=settings,
    )
    if exploration.failed:
        first = next((one.error for one in exploration.failed if one.error is not None), None)
        raise CrashPointFailed(exploration, _repeat) from first
    return exploration


def _repeat(outcome: Outcome) -> str:
    if outcome.crash.point is None:
        return "points=[]"
    test, _, _ = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")
    if test:
        return f"{POINT_VARIABLE}={shlex.quote(outcome.name)} pytest {shlex.quote(test)}"
    return f"points=[{outcome.name!r}]"


def explore(
    work: Work | Address,
    *,
    resources: Mapping[str, str],
    check: Callable[[Any, Crash], object] | None = None,
    journal: str | None = None,
    tables: Mapping[str, str] | None = None,
    before: Callable[[Any], object] | None = None,
    args: Sequence[Any] = (),
    points: Iterable[str | Point] | None = None,
    settings: Settings | None = None,
) -> Exploration:
    """As `crash_points`, but what failed is returned. Raises `UsageError`; `NurseryFailed` if a run never ends."""
    address = work if isinstance(work, Address) else Address.of(work)
    wanted = None if points is None else [one if isinstance(one, Point) else Point.parse(one) for one in points]
    require_places(resources, journal)
    on_a_loop = inspect.iscoroutinefunction(address.load()[1])
    unknown = set(tables or ()) - set(resources)
    if unknown:
        raise UsageError(f"tables= names {', '.join(sorted(unknown))}, which is not among the resources")
    _require_no_loop()
    with tempfile.TemporaryDirectory(prefix="nodoubt-") as folder, Nursery(address, Path(folder) / "log") as nursery:
        explorer = _Explorer(
            nursery, address, on_a_loop, resources, journal, tables or {}, before, check, _carried(args), settings
        )
        return Exploration(address.function, tuple(explorer.explore(wanted)))


def _carried(args: Sequence[Any]) -> tuple[Any, ...]:
    """The arguments, if they arrive in another process as they are."""
    try:
        arrived = msgspec.json.decode(msgspec.json.encode(list(args)))
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise UsageError(f"args= must be values that JSON can carry to another process: {error}") from None
    if arrived != list(args):
        raise UsageError(
            f"args= must be values that JSON can carry to another process; {args!r} arrives as {arrived!r}"
        )
    return tuple(args)


def _require_no_loop() -> None:
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        raise UsageError("the points are explored from an ordinary function, not from one that runs on asyncio")


@dataclass(frozen=True, slots=True)
class _Explorer:
    """One function on its way through all points."""

    nursery: Nursery
    address: Address
    on_a_loop: bool
    resources: Mapping[str, str]
    journal: str | None
    tables: Mapping[str, str]
    before: Callable[[Any], object] | None
    check: Callable[[Any, Crash], object] | None
    args: tuple[Any, ...]
    settings: Settings | None

    def explore(self, wanted: list[Point] | None) -> list[Outcome]:
        whole, outcome = self._run(None, ())
        reached = list(dict.fromkeys(point for point, _ in whole.reached))
        if not reached and wanted is None:
            raise UsageError(
                f"{self.address.function} passes no point of the protocol, so there is nowhere to kill it: it begins "
                "no transaction on the coordinator that it is given"
            )
        missing = [str(point) for point in wanted or () if point not in reached]
        if missing:
            there = ", ".join(map(str, reached))
            raise UsageError(f"{self.address.function} does not reach {', '.join(missing)}; it reaches {there}")
        points = reached if wanted is None else wanted
        return [outcome, *(self._run(point, self._others(point, whole))[1] for point in points)]

    def _others(self, point: Point, whole: Life) -> tuple[str, ...]:
        """The resources to hold so that this branch is caught alone: those that are at the same step at that time.

        Not where there are several transactions: who waits could belong to another, and keep this one from coming so
        far. Nor those that came first: this one waits for them (a staged transaction's last branch does).
        """
        before = STEP_BEFORE.get(point.what)
        if before is None or self.on_a_loop or len({attempt for _, attempt in whole.reached}) > 1:
            return ()
        steps = [(one.what, one.on) for one, _ in whole.reached]
        later = steps[steps.index((before, point.on)) :]
        return tuple(on for what, on in later if what == point.what and on != point.on)

    def _run(self, point: Point | None, hold: tuple[str, ...]) -> tuple[Life, Outcome]:
        with throw_away(self.resources, self.journal) as at:
            self._furnish(at)
            task = Task(
                at.resources,
                at.journal,
                self.settings or Settings(),
                self.args,
                "" if point is None else str(point),
                hold,
            )
            life = self.nursery.run(task, RUN_S)
            if point is None and not life.ended_well:
                raise UsageError(f"{self.address.function} fails without any kill:\n{life.failed or life.exit_code}")
            return life, self._judged(at, point, life)

    def _furnish(self, at: Places) -> None:
        for name, statements in self.tables.items():
            try:
                run_sql(at.resources[name], statements)
            except UsageError as error:
                raise UsageError(f"the tables of {name} cannot be made: {error}") from error
        with self._coordinator(at) as db:
            db.setup()
            if self.before is None:
                return
            try:
                self._call(self.before, at, db)
            except Exception as error:
                raise UsageError(f"before fails: {type(error).__name__}: {error}") from error

    def _coordinator(self, at: Places) -> Coordinator:
        return Coordinator(at.resources, journal=at.journal, settings=self.settings, recovery=False)

    def _call(self, function: Callable[..., object], at: Places, db: Coordinator, *args: object) -> None:
        """With this coordinator, or one of the function's own style. To open one costs as much as most checks do."""

        async def alive() -> None:
            async with AsyncCoordinator(
                at.resources, journal=at.journal, settings=self.settings, recovery=False
            ) as adb:
                called: Any = function(adb, *args)
                await called

        if inspect.iscoroutinefunction(function):
            asyncio.run(alive())
        else:
            function(db, *args)

    def _judged(self, at: Places, point: Point | None, life: Life) -> Outcome:
        states: tuple[State, ...] = ()
        try:
            with self._coordinator(at) as db:
                why = _recovered(db)
                attempts = dict.fromkeys(attempt for _, attempt in life.reached)
                states = tuple(
                    State.COMMITTED if _only_read(life, attempt) else _state(db, attempt) for attempt in attempts
                )
                broken = _broken(life, dict(zip(attempts, states, strict=True)))
                crash = Crash(point, states)
                if why:
                    return Outcome(crash, Ending.DOUBT, why)
                if broken:
                    return Outcome(crash, Ending.BROKEN, broken)
                if point is not None and not life.killed:
                    return Outcome(crash, Ending.MISSED, self._why_missed(life))
                return self._checked(at, db, crash)
        except NoDoubtError as error:
            return Outcome(Crash(point, states), Ending.DOUBT, f"{type(error).__name__}: {error}", error)

    def _why_missed(self, life: Life) -> str:
        if life.failed:
            return f"the work failed before it came there:\n{life.failed}"
        return "the work came to its end without it: it must do the same each time"

    def _checked(self, at: Places, db: Coordinator, crash: Crash) -> Outcome:
        try:
            if self.check is not None:
                self._call(self.check, at, db, crash)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # what test frameworks fail with need not be an Exception
            return Outcome(crash, Ending.CHECK, f"{type(error).__name__}: {error}", error)
        return Outcome(crash, Ending.WELL)


def _recovered(db: Coordinator) -> str:
    """Sweep until nothing is left undone; why not, if that does not come."""
    until = time.monotonic() + RECOVERY_S
    quiet = 0
    while quiet < SWEEPS:
        report = db.recover(grace=0)
        quiet = quiet + 1 if report.clean else 0
        entries = db.quarantined()
        if entries:
            return f"a human must look: {entries[0].why}"
        if not report.clean:
            if time.monotonic() > until:
                return f"recovery could not finish within {RECOVERY_S:g} s: {report.trouble}"
            time.sleep(PAUSE_S)  # a server needs a moment to notice that a killed client is gone
    return ""


def _state(db: Coordinator, attempt: str) -> State:
    """How it ended, for good; what is staged stays so."""
    try:
        record = db.status(attempt)
    except UnknownTransaction:
        return db.settle(attempt).state
    return record.state


def _only_read(life: Life, attempt: str) -> bool:
    """Whether it was answered without a decision: there was nothing to decide, and no trace of it to ask for."""
    whats = [point.what for point, one in life.reached if one == attempt]
    return "committed" in whats and "deciding" not in whats


def _broken(life: Life, states: Mapping[str, State]) -> str:
    """What the dead process had been promised, and is not so."""
    for point, attempt in life.reached:
        promised = {"committed": State.COMMITTED, "aborted": State.ABORTED}.get(point.what)
        if promised is not None and states[attempt] is not promised:
            return f"{attempt} was answered as {promised} at {point}, and is {states[attempt]}"
        if point.what == "staged" and states[attempt] is State.ABORTED and not _rolled_back(life, attempt):
            return f"{attempt} was answered as staged, and is {states[attempt]}"
    return ""


def _rolled_back(life: Life, attempt: str) -> bool:
    """Whether the work itself may have asked for that: it had come further than to stage it."""
    return any(point.what in ("aborted", "deciding") for point, one in life.reached if one == attempt)
