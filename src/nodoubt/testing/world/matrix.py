"""The fault matrix of the contract: at each point of the protocol each fault, and what must come of it.

`EXPECTED` mirrors the table of PROTOCOL.md. Each cell runs as a world of its own, at once and staged, on two servers
of each flavour, with the journal on the first of them and on a server of its own; what came of it is read from the
servers, and must be what the cell allows.

`python -m nodoubt.testing.world.matrix docs/fault-matrix.md` writes the page; a test holds that it is current.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from ...engine import attempt as attempts
from ...engine.attempt import BEGIN_TRIES_MAX, Attempt
from ...errors import ClosedTransaction, NoDoubtError, UsageError
from ...ports import Notice
from ...script import Script
from .acts import UNDONE, Act, Finish, Parts, Pay, Recover, Stage, script_of
from .checker import LEDGER, Violated
from .faults import (
    CrashAt,
    Fault,
    FullDisk,
    Kill,
    KillAt,
    LateReply,
    LateRequest,
    LoseReply,
    LoseRequest,
    OnNotice,
    Stop,
    Twice,
    When,
)
from .process import Process
from .running import Ran, come_to_rest, live, no_broken_invariant_goes_unseen
from .schedule import scripted
from .world import Layout, Silenced, World

WAYS = ("once", "staged")
FLAVOURS = ("postgres", "mariadb", "sqlite")
JOURNALS = ("a", "j")
BESIDE = "c"  # where the handle is used again, and the transaction has never been
LATE = "late"  # the process that finishes what stays
LATE_S = 4.0  # later than anybody waits for an answer
STAGED_AT_S, COMMIT_AT_S, AGAIN_AT_S = 0.5, 2.0, 9.0


class Came(StrEnum):
    """What came of a transaction."""

    ABORTED = "A"
    COMMITTED = "C"
    STAYS = "stays"  # staged, and as it was: then committed by whoever asks for it


@dataclass(frozen=True, slots=True)
class Point:
    """A point of the protocol, and the notice by which it is known. `nth`: which of them."""

    name: str
    what: str
    notice: tuple[str, str]


POINTS = (
    Point("P1", "begin", ("P1", "begun")),
    Point("P2", "work", ("P2", "work")),
    Point("P3", "PREPARE sent", ("P3", "prepare")),
    Point("P4", "all prepared, undecided", ("P4", "all prepared")),
    Point("P5", "deciding", ("P5", "deciding")),
    Point("P6", "decided COMMIT", ("P6", "committed")),
    Point("P7", "between two branch commits", ("P7", "branch committed")),
    Point("P8", "COMMIT sent", ("P8", "commit")),
    Point("P9", "before the record ends", ("P9", "every branch proved")),
    Point("P10", "ended", ("P10", "ended")),
)
SENT = ("P3", "P5", "P8")  # points at which a message is on its way
FAULTS = (
    "kill coordinator", "kill participant", "lost request", "lost reply", "delayed reply", "disk full", "timeout",
    "called twice", "two recoverers",
)  # fmt: skip
# As in PROTOCOL.md. A: aborted everywhere. C: committed everywhere. =: whichever decision was stored. R: refused, or
# the same answer and no new effect. S: stalls with an alarm, decision unchanged. –: cannot happen.
EXPECTED = {
    "P1": ("A", "A", "A", "A", "A", "A", "A", "R", "A"),
    "P2": ("A", "A", "A", "A", "A", "A", "A", "R", "A"),
    "P3": ("A", "A", "A", "A", "A", "A", "A", "R", "A"),
    "P4": ("A (staged: stays)", "A or C after restart", "–", "–", "–", "A", "=", "R", "="),
    "P5": (
        "=", "= after restart", "re-read, =", "re-read, =", "=", "re-read, =; S if unreadable", "=", "R",
        "= one winner",
    ),
    "P6": ("C", "C after restart", "–", "–", "–", "C", "C", "R", "C"),
    "P7": ("C", "C", "C", "C", "C", "C", "C", "R", "C"),
    "P8": ("C", "C", "C", "C by I7", "C", "C", "C", "R", "C"),
    "P9": ("C", "C", "–", "–", "C", "C, record kept", "C", "R", "C"),
    "P10": ("R", "R", "R", "R", "R", "R", "R", "R", "R"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """One of the matrix, for one way and one flavour."""

    point: str
    fault: str
    way: str
    flavour: str

    @property
    def expected(self) -> str:
        return EXPECTED[self.point][FAULTS.index(self.fault)]

    def __str__(self) -> str:
        return f"{self.point} {self.fault} {self.way} {self.flavour}"


def cells() -> Iterator[Cell]:
    """All that can happen."""
    for point in POINTS:
        for fault in FAULTS:
            for way in WAYS:
                for flavour in FLAVOURS:
                    cell = Cell(point.name, fault, way, flavour)
                    if cell.expected != "–":
                        yield cell


def allowed(cell: Cell) -> frozenset[Came]:
    """What the contract's letters say for a transaction that began well, and is committed if nothing goes wrong."""
    expected = cell.expected
    if expected.startswith("A (staged: stays)"):
        return frozenset({Came.STAYS if cell.way == "staged" else Came.ABORTED})
    if expected.startswith("A or C") or "=" in expected:
        return frozenset(Came)
    if expected.startswith("A"):
        return frozenset({Came.ABORTED})
    # A point that was passed well: whatever is refused or said twice after it, the transaction goes on as it was.
    return frozenset({Came.COMMITTED})


# ---- how a cell is brought about ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scene:
    """The acts and faults of a cell. `who`: the process that is at work at its point."""

    who: str
    acts: tuple[Act, ...]
    faults: tuple[Fault, ...]


def scene(cell: Cell, journal: str) -> Scene:
    """Who does what, and what goes wrong."""
    point = next(point for point in POINTS if point.name == cell.point)
    staged = cell.way == "staged"
    deciding = int(point.name[1:]) >= 5
    who = "q" if staged and deciding else "p"
    parts = (("a", "account", -5), ("b", "account", 5))
    timeout_s = 1.0 if cell.fault in ("timeout", "delayed reply") and point.name in ("P1", "P2") else None
    acts: list[Act] = [Pay(process="p", at_s=STAGED_AT_S, parts=parts, timeout_s=timeout_s)]
    if staged:
        acts = [Stage(process="p", at_s=STAGED_AT_S, name="order", parts=parts, timeout_s=timeout_s)]
    if staged and not _stays_by_itself(cell):
        acts.append(Finish(process="q", at_s=COMMIT_AT_S, name="order", commit=True, tries=1))
    acts.append(Recover(process=who, at_s=0.0, every_s=0.5, until_s=6.0))
    if cell.fault in ("kill coordinator", "kill participant", "two recoverers", "timeout"):
        acts.append(Recover(process="r1", at_s=0.0, every_s=1.5))
    if cell.fault == "called twice" or (staged and point.name == "P10"):
        acts += _again(staged=staged, parts=parts, staging=not deciding)
    if cell.fault == "two recoverers":
        acts.append(Recover(process="r2", at_s=0.0, every_s=1.5))
    wrong = _what_goes_wrong(cell, who, journal)
    notice = ("P4", "staged") if staged and point.name == "P4" else point.notice
    if point.name == "P1" and cell.fault in ("lost request", "lost reply", "delayed reply", "timeout"):
        return Scene(who, tuple(acts), tuple(_at_every_begin(wrong[0], staged=staged)))
    faults = [OnNotice(process=who, point=notice[0], what=notice[1], fault=fault) for fault in wrong]
    return Scene(who, tuple(acts), tuple(faults))


def _stays_by_itself(cell: Cell) -> bool:
    """Whether nobody is to commit it: recovery must let it be."""
    return cell.point == "P4" and cell.expected.endswith("(staged: stays)")


def _again(*, staged: bool, parts: Parts, staging: bool) -> list[Act]:
    """The same verbs once more, from another process, at the same time and later."""
    if not staged:
        return []
    twin = Stage(process="s", at_s=STAGED_AT_S + 0.003, name="order", parts=parts)
    return [
        *([twin] if staging else []),
        Finish(process="s", at_s=COMMIT_AT_S + 0.003, name="order", commit=True, tries=3),
        Finish(process="s", at_s=AGAIN_AT_S, name="order", commit=True, tries=1),
    ]


def _at_every_begin(fault: Fault, *, staged: bool) -> Iterator[Fault]:
    """At each try of the first begin: one that got no answer is repeated, for nothing has begun.

    Before anything could be noticed, so by the number of the message; staged, the name is looked for before it.
    """
    assert isinstance(fault, LoseRequest | LoseReply | LateReply | LateRequest)
    first = 2 if staged else 1
    for message in range(first, first + BEGIN_TRIES_MAX):
        yield replace(fault, message=message)


def _what_goes_wrong(cell: Cell, who: str, journal: str) -> list[Fault]:
    """Counted from the notice."""
    # What is written next: the decision in the journal, or else something of the branch that is spoken of.
    place = journal if cell.point in ("P4", "P5", "P9") else "b"
    match cell.fault:
        case "kill coordinator" | "two recoverers":
            if cell.point in SENT:
                return [Kill(process=who, message=1, when=When.SENT)]
            return [Kill(process=who, message=1), KillAt(process=who)]
        case "kill participant":
            return [CrashAt(machine="b", down_s=1.0)]
        case "lost request":
            return [LoseRequest(process=who, message=1)]
        case "lost reply":
            return [LoseReply(process=who, message=1)]
        case "delayed reply":
            return [LateReply(process=who, message=1, by_s=LATE_S)]
        case "disk full":
            # Longer than anybody tries to decide; so staged, what nobody asks for again is aborted at its deadline.
            return [FullDisk(machine=name, at_s=0.0, for_s=8.0) for name in sorted({place, "b"})]
        case "timeout":
            if cell.point in ("P4", "P6"):
                return [Stop(process=who, at_s=0.0, for_s=2 * LATE_S)]
            return [LateRequest(process=who, message=1, by_s=LATE_S)]
        case _:
            return [Twice(process=who, message=1)]


# ---- what came of it ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a cell, journal by journal; `violated`: a rule that did not hold, or an outcome not allowed."""

    came: tuple[Came, ...]
    violated: str = ""


@functools.cache
def result(cell: Cell) -> Result:
    """Run it."""
    came = []
    for journal in JOURNALS:
        ran = _run(cell, journal)
        if ran.violated is not None:
            return Result((), f"journal on {journal}: {ran.violated}")
        came.append(_came(ran.world))
    wrong = sorted(set(came) - allowed(cell))
    return Result(tuple(came), f"{', '.join(wrong)} is not what {cell.expected!r} allows" if wrong else "")


def _run(cell: Cell, journal: str) -> Ran:
    its = scene(cell, journal)
    twice = cell.fault == "called twice"
    servers = ("a", "b", BESIDE) if twice else ("a", "b")
    layout = Layout(tuple((name, cell.flavour) for name in servers), journal, cell.flavour)
    schedule = scripted(layout, dict.fromkeys(sorted({act.process for act in its.acts}), 0.0), *its.acts, *its.faults)
    world = World(str(cell), layout)
    intruder = _Intruder(cell, its) if twice else None
    if intruder is not None:
        world.watchers.append(intruder.notice)
    ran = Ran(schedule, world)
    with Silenced(world), no_broken_invariant_goes_unseen(world):
        try:
            live(world, schedule)
            _require_happened(world, its)
            if intruder is not None and intruder.left:
                raise Violated("fault matrix", f"nobody has used the handle again on {', '.join(intruder.left)}")
            if cell.way == "staged" and _stays_by_itself(cell):
                _commit_what_stays(world)
            come_to_rest(world)
        except Violated as violated:
            ran.violated = violated
        finally:
            for process in world.processes.values():
                process.drop()
    return ran


def _require_happened(world: World, its: Scene) -> None:
    """A fault that never came about would prove nothing."""
    for fault in its.faults:
        if isinstance(fault, OnNotice) and not world.reached(fault):
            raise Violated("fault matrix", f"{its.who} never came to {fault.point} {fault.what}")
    if not world.faults.came:
        raise Violated("fault matrix", "nothing went wrong")


def _commit_what_stays(world: World) -> None:
    """Recovery has passed, again and again, and has let it be; somebody commits it."""
    if not _stays(world):
        raise Violated("fault matrix", "it did not stay")
    late = world.start(LATE)
    late.run_alone(_committed(late), 30.0)


def _stays(world: World) -> bool:
    journal = world.journal_view(world.machines[world.journal_at].server.tables)
    standing = journal.names.get("order")
    return standing is not None and standing.attempt not in journal.decisions


def _committed(process: Process) -> Script[None]:
    yield from process.db.open()
    yield from script_of(process, Finish(process=LATE, at_s=0, name="order", commit=True))


class _Intruder:
    """Uses the handle of a transaction once more, as somebody comes to the point.

    While its block is open, at P1 and P2, it is at work: the branch takes one statement at a time. After that the
    handle is dead: a write is refused, on a branch that the transaction has, and on a server that it has never been to.
    """

    def __init__(self, cell: Cell, its: Scene) -> None:
        self._open = cell.point in ("P1", "P2")
        self._points = [(fault.process, fault.point, fault.what) for fault in its.faults if isinstance(fault, OnNotice)]
        self._came = False
        self.left = ["a"] if self._open else ["a", BESIDE]  # where it has not been refused yet

    def notice(self, process: Process, notice: Notice) -> None:
        attempt = process.world.attempts.get(notice.attempt)
        if self._came or attempt is None or (process.name, notice.point, notice.what) not in self._points:
            return
        self._came = True
        owner = process.world.processes["p"]
        for server in self.left:
            owner.act(self._again(owner, attempt, server))

    def _again(self, process: Process, attempt: Attempt, server: str) -> Script[None]:
        expected = UsageError if self._open else ClosedTransaction
        try:
            yield from attempts.execute(process.ctx, attempt, server, "add", ("account", UNDONE))
        except NoDoubtError as error:
            process.told(f"used again: {type(error).__name__}: {error}")
            if isinstance(error, expected):
                self.left.remove(server)
                return
            raise Violated("fault matrix", f"used again, it is not refused as it must be, but: {error}") from error
        raise Violated("fault matrix", "used again, the handle has written")


def _came(world: World) -> Came:
    """Read from the servers: the transaction that was meant, not those that were refused."""
    paid = [
        attempt
        for attempt in world.checker.deeds
        if any(LEDGER + attempt in machine.server.tables.rows for machine in world.machines.values())
    ]
    if len(paid) > 1:
        raise AssertionError(f"more than one has an effect: {paid}")
    if LATE in world.processes and paid:
        return Came.STAYS
    return Came.COMMITTED if paid else Came.ABORTED


# ---- the page -----------------------------------------------------------------------------------------------------

_KILLED = "tests/crash/test_coordinator_killed.py::test_kill_9_of_the_coordinator_ends_one_way"
_SERVER = "tests/crash/test_server_killed.py::test_kill_9_of_a_server_ends_one_way_and_the_caller_was_told_the_truth"
_LOST = "tests/traps/test_lost_replies.py::test_what_the_caller_is_told_is_what_comes_of_it"
_RACES = "tests/traps/test_races.py::test_two_recoverers_or_one_and_a_late_coordinator_carry_out_one_decision"
_AT_ONCE = "tests/traps/test_races.py::test_a_commit_a_rollback_and_two_recoverers_who_start_at_once_agree"
_STALLED = "tests/traps/test_stalled_writers.py::test_a_writer_that_stalls_past_every_grace_is_told_that_it_was_aborted"
_BY_NAME = (
    "tests/traps/test_stalled_writers.py::test_a_commit_by_name_that_stalls_before_its_decision_loses_to_a_rollback"
)
_AFTER = "tests/traps/test_stalled_writers.py::test_a_commit_that_stalls_after_its_decision_is_carried_out_by_others"
_FULL = "tests/traps/test_full_disks.py::test_a_file_that_cannot_grow_decides_nothing"
_FROZEN = "tests/traps/test_frozen_servers.py::test_a_participant_that_freezes_before_it_prepares_aborts_within_bounds"
_TWICE = "tests/integration/test_transactions.py::test_staged_work_is_invisible_until_another_coordinator_commits_it"

# By way, point and fault.
REAL: dict[tuple[str, str, str], str] = {
    **{(way, f"P{number}", "kill coordinator"): _KILLED for way in WAYS for number in range(3, 10)},
    **{(way, f"P{number}", "kill participant"): _SERVER for way in WAYS for number in range(3, 10)},
    **{
        (way, point, fault): _LOST
        for way in WAYS
        for point in ("P3", "P5", "P8")
        for fault in ("lost request", "lost reply")
    },
    ("once", "P3", "delayed reply"): _LOST,
    ("once", "P5", "delayed reply"): _LOST,
    ("once", "P3", "timeout"): _FROZEN,
    ("staged", "P3", "timeout"): _LOST,
    ("once", "P4", "timeout"): _STALLED,
    ("once", "P5", "timeout"): _STALLED,
    ("staged", "P5", "timeout"): _BY_NAME,
    ("once", "P6", "timeout"): _AFTER,
    ("once", "P8", "timeout"): _LOST,
    ("staged", "P5", "two recoverers"): _AT_ONCE,
    ("staged", "P6", "two recoverers"): _RACES,
    ("staged", "P7", "two recoverers"): _RACES,
    ("once", "P5", "disk full"): _FULL,
    ("staged", "P10", "called twice"): _TWICE,
}


def page() -> str:
    """The matrix with what came of each cell, as Markdown."""
    lines = [
        "# The fault matrix",
        "",
        "Written by `python -m nodoubt.testing.world.matrix docs/fault-matrix.md`; a test holds that it is current.",
        "",
        "What must come of a transaction when something goes wrong at a point of it, and what did: in the simulator,",
        "for each flavour of database, with the journal on the first of two databases and on one of its own.",
        "",
        "A: aborted everywhere. C: committed everywhere. =: whichever decision was stored. R: refused, or the same",
        "answer and no new effect. S: stalls with an alarm, decision unchanged. –: cannot happen. In square brackets,",
        "where the letter leaves it open or speaks of something else: what came of the transaction.",
        "",
        "Each cell is a test: `tests/world/test_fault_matrix.py::test_cell[P5 lost reply staged mariadb]`. A number in",
        "brackets is the test of the same cell on real servers, listed below; where there is none, the simulator",
        "is all.",
    ]
    notes: list[str] = []
    for way, title in zip(WAYS, ("At once", "Staged, and committed by another process"), strict=True):
        lines += ["", f"## {title}", "", f"| point | {' | '.join(FAULTS)} |", "| --- " * (len(FAULTS) + 1) + "|"]
        for point in POINTS:
            row = [_shown(point.name, fault, way, notes) for fault in FAULTS]
            lines.append(f"| {point.name} {point.what} | {' | '.join(row)} |")
    lines += ["", "## On real servers", "", *(f"{number}. `{note}`" for number, note in enumerate(notes, 1)), ""]
    return "\n".join(lines)


def _shown(point: str, fault: str, way: str, notes: list[str]) -> str:
    ran = [result(cell) for cell in (Cell(point, fault, way, flavour) for flavour in FLAVOURS) if cell.expected != "–"]
    if not ran:
        return "–"
    expected = EXPECTED[point][FAULTS.index(fault)]
    violated = next((one.violated for one in ran if one.violated), "")
    came = sorted({one for each in ran for one in each.came})
    shown = f"**broken**: {violated}" if violated else expected
    if not violated and came != [expected]:
        shown += f" [{', '.join(came)}]"
    real = REAL.get((way, point, fault))
    if real is not None:
        if real not in notes:
            notes.append(real)
        shown += f" ({notes.index(real) + 1})"
    return shown


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
