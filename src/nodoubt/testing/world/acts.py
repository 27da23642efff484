"""What processes do in a world, as plain records: they open, pay, stage, finish by name, settle, sweep, clean up.

Every payment moves a number from one server to another and writes, on each of them, one row of its own
(`checker.LEDGER`), so that what has become of it can be read in the data itself. Whoever is told an outcome passes it
on to the checker.

Must not: know what goes wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...engine import attempt as attempts
from ...engine import ends
from ...engine.attempt import Attempt
from ...engine.context import plainly
from ...engine.questions import State
from ...engine.verbs import Result
from ...errors import (
    Heuristic,
    InDoubt,
    JournalUnavailable,
    KeyInFlight,
    KeyReused,
    NoDoubtError,
    OutcomeConflict,
    StillBeginning,
    UnknownTransaction,
    UsageError,
)
from ...ports import SavepointStep
from ...script import Pause, Script
from . import calls, keys
from .calls import Ask, Mend, Undo, Use
from .checker import LEDGER, Told
from .driver import Cancelled
from .keys import Once

if TYPE_CHECKING:
    from .process import Process, Work

UNDONE = 1_000_000  # an amount that nobody may ever find
SETTLES_MAX = 5
LATEST_S = 14.0  # nothing is begun after that: a process may have opened late

Parts = tuple[tuple[str, str, int], ...]  # server, account, amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Pay:
    """A transaction at once. `reads`: servers it only reads from. `fails`: its last statement is an error.

    `cured`: that statement, and a write before it, are behind a savepoint, to which the work goes back.
    """

    process: str
    at_s: float
    parts: Parts
    reads: tuple[str, ...] = ()
    fails: bool = False
    swallowed: bool = False  # and its block goes on as if nothing had been
    cured: bool = False
    timeout_s: float | None = None
    decided: bool = False  # wait="decided"
    settles: bool = False  # a caller who is told "in doubt" asks how it ended
    uses: tuple[Use, ...] = ()  # of steps outside


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Work that is prepared under a name, and left."""

    process: str
    at_s: float
    name: str
    parts: Parts
    fails: bool = False
    deadline_s: float | None = None
    timeout_s: float | None = None
    reuse: bool = False
    undo: bool = False  # in an `except` block, roll back what failed
    settles: bool = False
    uses: tuple[Use, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """A staged name is committed, or rolled back, by whatever process. `first`: the first attempt of that name."""

    process: str
    at_s: float
    name: str
    commit: bool
    first: bool = False
    tries: int = 3
    decided: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """Whatever was begun last, by whomever, is settled by its id, although it may be at work."""

    process: str
    at_s: float
    tries: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Recover:
    """Recovery in the background, from now on."""

    process: str
    at_s: float
    every_s: float = 1.0
    until_s: float = LATEST_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """One sweep, with a grace of its own; 0: nothing is spared."""

    process: str
    at_s: float
    grace_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanUp:
    """Forget what is older than the retention, and begin a new epoch."""

    process: str
    at_s: float


Act = Pay | Stage | Finish | Settle | Recover | Sweep | CleanUp | Ask | Undo | Mend | Once


def script_of(process: Process, act: Act) -> Script[None]:
    """The act, to be run at its time in its process, once that has opened."""
    match act:
        case Pay():
            return _told(process, act)
        case Stage():
            return _told(process, act)
        case Finish():
            return _finish(process, act)
        case Settle(tries=tries):
            last = next(reversed(process.world.attempts), "")
            return _settle(process, last, tries)
        case Recover():
            return _recover(process, act)
        case Sweep():
            return _quietly(process, _sweep(process, act))
        case CleanUp():
            return _quietly(process, _clean_up(process))
        case Ask():
            return calls.ask(process, act)
        case Undo():
            return calls.undo(process, act)
        case Mend():
            return _quietly(process, calls.mend(process, act))
        case Once():
            return keys.again(process, act, lambda: _told_once(process, act))


def _pay(process: Process, act: Pay, mine: list[str]) -> Script[Result]:
    work = work_of(
        act.parts, mine, reads=act.reads, fails=act.fails, swallowed=act.swallowed, cured=act.cured, uses=act.uses
    )
    return process.db.transaction(process, work, timeout=act.timeout_s, wait="decided" if act.decided else "applied")


def _stage(process: Process, act: Stage, mine: list[str]) -> Script[Result]:
    work = work_of(act.parts, mine, fails=act.fails, uses=act.uses)
    return process.db.begin_distributed(
        process, work, name=act.name, timeout=act.timeout_s, deadline=act.deadline_s, reuse=act.reuse
    )


def work_of(
    parts: Parts,
    mine: list[str],
    *,
    reads: Sequence[str] = (),
    fails: bool = False,
    swallowed: bool = False,
    cured: bool = False,
    uses: Sequence[Use] = (),
) -> Work:
    """The work of a payment. It notes down which attempt it was for."""

    def work(process: Process, attempt: Attempt) -> Script[None]:
        ctx, checker = process.ctx, process.world.checker
        mine.append(attempt.id)
        process.world.attempts[attempt.id] = attempt
        for use in uses:
            if use.first:
                yield from calls.within(process, attempt, use)
        for server in reads:
            yield from attempts.execute(ctx, attempt, server, "read", ("total",))
        for server, account, amount in parts:
            checker.wrote(attempt.id, server, amount)
            yield from attempts.execute(ctx, attempt, server, "add", (account, amount))
            yield from attempts.execute(ctx, attempt, server, "add", (LEDGER + attempt.id, 1))
        for use in uses:
            if not use.first:
                yield from calls.within(process, attempt, use)
        if fails and cured:
            yield from _fail_and_go_back(process, attempt, parts[-1][0])
        elif fails:
            checker.doomed(attempt.id)
            try:
                yield from attempts.execute(ctx, attempt, parts[-1][0], "fail", ())
            except Exception:
                if not swallowed:
                    raise

    return work


def _fail_and_go_back(process: Process, attempt: Attempt, server: str) -> Script[None]:
    ctx = process.ctx
    yield from attempts.savepoint(ctx, attempt, server, SavepointStep.SET, "s")
    yield from attempts.execute(ctx, attempt, server, "add", ("account/0", UNDONE))
    try:
        yield from attempts.execute(ctx, attempt, server, "fail", ())
    except Exception:  # of the statement, or of the network: then there is no way back, which is said here
        yield from attempts.savepoint(ctx, attempt, server, SavepointStep.BACK, "s")


def _told(process: Process, act: Pay | Stage) -> Script[None]:
    """Run the block, and tell the checker what its caller was told."""
    mine: list[str] = []
    block = _pay(process, act, mine) if isinstance(act, Pay) else _stage(process, act, mine)
    try:
        result = yield from block
    except InDoubt as error:
        process.told(f"in doubt: {error.attempt}")
        if act.settles:
            yield from _settle(process, error.attempt, SETTLES_MAX)
    except Cancelled:
        process.told("cancelled")
        raise
    except Exception as error:
        # Whatever else a block raises says that nothing happened, or is the work's own error, after a rollback.
        process.told(f"{type(error).__name__}: {error}")
        for attempt in mine:
            process.tells(attempt, Told.ABORTED)
        if isinstance(act, Stage) and act.undo:
            yield from _finish(process, Finish(process=process.name, at_s=0, name=act.name, commit=False, tries=1))
    else:
        _tell(process, result)


def _tell(process: Process, result: Result) -> None:
    world = process.world
    process.told(f"{result.state.value} {result.attempt}")
    if result.state is State.PREPARED:
        world.checker.tell_staged(result.name, result.attempt)
        world.staged.setdefault(result.name, []).append(result.attempt)
    else:
        process.tells(result.attempt, Told(result.state.value))


def _told_once(process: Process, act: Once) -> Script[bool]:
    """One call for a key: whether it need not be tried again."""
    mine: list[str] = []
    try:
        result = yield from keys.script_of(process, act, work_of(act.parts, mine, fails=act.fails))
    except InDoubt as error:
        process.told(f"in doubt: {error.attempt}")
        return False
    except (KeyInFlight, KeyReused, Cancelled):
        raise
    except Exception as error:
        process.told(f"{type(error).__name__}: {error}")
        for attempt in mine:
            process.tells(attempt, Told.ABORTED)
        return act.fails
    if result is not None:
        _tell(process, result)
    return True


def _finish(process: Process, act: Finish) -> Script[None]:
    world = process.world
    attempt = next(iter(world.staged.get(act.name, ())), None) if act.first else None
    verb = process.db.commit_distributed if act.commit else process.db.rollback_distributed
    asked = Told.COMMITTED if act.commit else Told.ABORTED
    for _ in range(act.tries):
        listed = world.checker.listed(act.name)
        if act.commit:
            world.checker.asks_commit(act.name)
        try:
            result = yield from verb(act.name, attempt=attempt, wait="decided" if act.decided else "applied")
        except (StillBeginning, JournalUnavailable) as error:
            process.told(f"{type(error).__name__}: {error}")
        except OutcomeConflict as error:
            process.told(str(error))
            process.tells_finished(act.name, asked=asked, stands=Told(error.stands), conflict=True)
            if attempt is not None:
                process.tells(attempt, Told(error.stands))
            return
        except UnknownTransaction as error:
            process.told(str(error))
            world.checker.tell_unknown(act.name, asked_for=attempt, listed_before=listed)
            return
        except Heuristic as error:
            process.told(str(error))
            world.checker.tell_heuristic(error.attempt)
            return
        except NoDoubtError as error:
            process.told(f"{type(error).__name__}: {error}")
        else:
            process.told(f"{result.state.value} {result.attempt}")
            process.tells_finished(act.name, asked=asked, stands=Told(result.state.value), conflict=False)
            process.tells(result.attempt, Told(result.state.value))
            return
        yield Pause(1.0)


def _settle(process: Process, attempt: str, tries: int) -> Script[None]:
    for _ in range(tries if attempt else 0):
        try:
            result = yield from process.db.settle(attempt)
        except UsageError as error:  # it is staged, and for a verb with its name
            process.told(f"UsageError: {error}")
            return
        except NoDoubtError as error:
            process.told(f"{type(error).__name__}: {error}")
        else:
            process.told(f"settled: {result.state.value} {attempt}")
            process.tells(attempt, Told(result.state.value))
            return
        yield Pause(1.0)


def _recover(process: Process, act: Recover) -> Script[None]:
    while process.world.kernel.now < act.until_s:
        yield Pause(act.every_s)
        yield from _quietly(process, process.db.turn())


def _sweep(process: Process, act: Sweep) -> Script[None]:
    report = yield from process.db.recover(grace=act.grace_s)
    process.told(str(report))


def _clean_up(process: Process) -> Script[None]:
    yield from plainly(ends.retire(process.ctx))
    yield from process.db.renew()


def _quietly(process: Process, script: Script[None]) -> Script[None]:
    """What fails here is tried again by somebody, some day."""
    try:
        yield from script
    except NoDoubtError as error:
        process.told(f"{type(error).__name__}: {error}")


def opening(process: Process, acts: Sequence[Act], at_s: float) -> Script[None]:
    """Open, again and again until it works, and then do each act at its time."""
    yield Pause(max(at_s - process.world.kernel.now, 0.0))
    while True:
        try:
            yield from process.db.open()
            break
        except NoDoubtError as error:
            process.told(f"{type(error).__name__}: {error}")
        yield Pause(1.0)
    process.messages = 0
    for act in acts:
        process.act(_later(process, act))


def _later(process: Process, act: Act) -> Script[None]:
    world = process.world
    yield Pause(max(act.at_s - world.kernel.now, 0.0))
    if world.kernel.now < LATEST_S:
        yield from script_of(process, act)
