"""The commit machine: every pair of phase and event is decided, and no walk through it breaks an invariant."""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Iterator

import pytest

from nodoubt.errors import InvariantViolated
from nodoubt.protocol.commands import (
    Answer,
    Command,
    Commit,
    CommitAlone,
    CommitPoint,
    Ended,
    EndReader,
    Fence,
    Prepare,
    Ready,
    Rollback,
    Settle,
    Undo,
)
from nodoubt.protocol.commit import TABLE, CommitMachine, IllegalEvent, Phase, Plan, Rule, Share, Standing
from nodoubt.protocol.events import (
    EVENTS,
    AbortAsked,
    CommitAsked,
    Decided,
    Declined,
    Event,
    Finished,
    Listed,
    NotListed,
    StageAsked,
    Undecided,
    Unfinished,
    Vote,
    Voted,
)
from nodoubt.protocol.records import BranchRef, Decision, Mode, Staging, Verdict

ATTEMPT = "0" * 32


def plan(
    writers: int,
    readers: int = 0,
    *,
    point: bool = False,
    staged: bool = False,
    early: bool = False,
    inside: bool = False,
    rides: bool = False,
    calls: bool = False,
) -> Plan:
    """Branches 0.. are writers (the last is the point, if there is one), then readers."""
    refs = tuple(BranchRef(n, f"r{n}", f"id{n}") for n in range(writers))
    last = writers - 1 if point and writers else None
    mode = Mode.STAGED if staged else Mode.ONCE
    return Plan(
        tuple(Share(n, n < writers) for n in range(writers + readers)),
        Decision(ATTEMPT, Verdict.COMMIT, mode, "n", refs, point=None if staged else last),
        staging=Staging("n", ATTEMPT, refs, last, 0.0) if staged else None,
        listed_early=early,
        row_inside=inside,
        covered=rides and not inside,  # PostgreSQL does both, SQLite the latter only
        rides=rides,
        calls=calls,
    )


BOTH = (False, True)
PLANS = [
    plan(w, r, point=p, staged=s, early=e and p and s, inside=i and p and s, rides=x and p and s, calls=c)
    for w, r, p, s, e, i, x, c in itertools.product((0, 1, 2, 3), (0, 1), BOTH, BOTH, BOTH, BOTH, BOTH, BOTH)
    if w + r <= 3 and not (e and i) and (s or not (e or i or x)) and (p or not (e or i or x)) and not (e and w != 1)
]


def answers(command: Command) -> list[Event]:
    """Everything the world can answer to a command."""
    match command:
        case Prepare(b):
            return [Voted(b, Vote.YES), Voted(b, Vote.NO), Voted(b, Vote.UNKNOWN)]
        case EndReader(b):
            return [Voted(b, Vote.READ_ONLY), Voted(b, Vote.NO)]
        case CommitAlone():
            return [Decided(Verdict.COMMIT), Declined("no"), Undecided("?")]
        case CommitPoint():
            return [Decided(Verdict.COMMIT), Declined("no"), Undecided("?")]
        case Settle() | Fence():
            return [Decided(Verdict.COMMIT), Decided(Verdict.ABORT), Undecided("?")]
        case Commit(b) | Rollback(b):
            return [Finished(b), Unfinished(b)]
        case Undo(b):
            return [Finished(b)]


class Walk:
    """One world: the machine, the commands in flight, and what was said and done so far."""

    def __init__(self, machine: CommitMachine) -> None:
        self.machine = machine
        self.open: list[Command] = []
        self.writing: list[object] = []
        self.answers: list[Answer] = []
        self.yes: set[int] = set()
        # Branches that are prepared, or may be: to whoever resumes, all of them.
        self.held = set(machine.branches) if machine.phase is Phase.STAGED else set[int]()
        self.sent: set[tuple[type[Command], int]] = set()  # and to which branch; a fence is to none
        self.decided: Verdict | None = None
        self.asked = False  # whether COMMIT may have been written by us
        self.fenced: object = None  # what came of asking for ABORT
        self.ended = False

    def take(self, event: Event) -> None:
        if isinstance(event, Voted) and event.vote in (Vote.YES, Vote.READ_ONLY):
            self.yes.add(event.branch)
        if isinstance(event, Voted) and event.vote in (Vote.YES, Vote.UNKNOWN):
            self.held.add(event.branch)
        if isinstance(event, Decided):
            assert self.decided in (None, event.verdict), "the register answered two ways"
            self.decided = event.verdict
        if isinstance(event, Declined):
            self.asked = False
        before = self.machine.phase
        ready = self.machine.step(event)
        assert self.machine.phase in TABLE[before, type(event)].leads_to
        self.check(ready)

    def check(self, ready: Ready) -> None:
        plan, point = self.machine.plan, self.machine.point
        asks_commit = any(isinstance(r, Decision) for r in ready.records) or any(
            isinstance(c, CommitPoint | CommitAlone) for c in ready.commands
        )
        if asks_commit and self.machine.phase is not Phase.STAGED:
            resumed = plan.staging is not None
            for share in plan.shares:
                local = share.number == point or len(plan.writers) == 1
                assert share.number in self.yes or (share.wrote and local and not resumed) or resumed, "I2"
        self.asked = self.asked or asks_commit
        for command in ready.commands:
            self.send(command)
        for record in ready.records:
            if isinstance(record, Ended):
                assert not self.machine.unfinished, "I6"
                assert not any(isinstance(c, Commit) for c in self.open), "I6"
                self.ended = True
            else:
                covered = isinstance(record, Staging) and plan.covered and point is not None
                assert ready.must_sync is not covered
                self.writing.append(record)
        if ready.answer is not None:
            self.answers.append(ready.answer)
            told = [a for a in self.answers if a is not Answer.STAGED]
            assert len(told) <= 1, f"two answers: {self.answers}"
            if ready.answer is Answer.COMMITTED and (plan.writers or plan.calls):
                assert self.decided is Verdict.COMMIT, "I5"
            if ready.answer is Answer.ABORTED:
                assert self.decided is Verdict.ABORT or (self.decided is None and not self.asked), "I5"
        self.open += ready.commands

    def send(self, command: Command) -> None:
        if isinstance(command, CommitAlone | Settle):
            assert not self.machine.plan.calls, "I19: an end that the register does not know"
        if isinstance(command, Commit):
            assert self.decided is Verdict.COMMIT, "I4: COMMIT before the decision"
        if isinstance(command, Rollback):
            assert self.decided is not Verdict.COMMIT, "a rollback against the decision"
        if isinstance(command, Commit | Rollback):
            assert command.branch in self.held, "phase two of a branch that is not prepared"
        if not isinstance(command, Fence):
            asked = (type(command), command.branch)
            assert asked not in self.sent, "asked twice"
            self.sent.add(asked)

    def choices(self) -> Iterator[tuple[object, Event]]:
        for record in self.writing:
            if isinstance(record, Staging):
                yield from ((record, event) for event in (Listed(), NotListed("no")))
            else:
                decided = (Decided(Verdict.COMMIT), Decided(Verdict.ABORT), Declined("no"), Undecided("?"))
                yield from ((record, event) for event in decided)
        for command in self.open:
            for event in answers(command):
                yield command, event

    def fork(self, source: object, event: Event) -> Walk | None:
        if isinstance(event, Decided):
            if self.decided not in (None, event.verdict):
                return None  # the register is write-once
            alone = self.machine.plan.staging is None or self.machine.phase is Phase.ABORTING
            if event.verdict is Verdict.COMMIT and alone and not self.asked:
                return None  # nobody but us writes COMMIT, and we have not
        other = copy.copy(self)
        other.machine = copy.copy(self.machine)
        other.machine.branches = dict(self.machine.branches)
        other.machine.pending = set(self.machine.pending)
        other.machine.unfinished = dict(self.machine.unfinished)
        other.open = [c for c in self.open if c is not source]
        other.writing = [r for r in self.writing if r is not source]
        other.answers, other.yes = list(self.answers), set(self.yes)
        other.held, other.sent = set(self.held), set(self.sent)
        if isinstance(source, Fence):
            other.fenced = event
        if isinstance(source, CommitPoint) and event == Decided(Verdict.COMMIT):
            other.held.discard(source.branch)  # its own commit has carried the decision
        other.take(event)
        return other

    def state(self) -> tuple[object, ...]:
        """What the rest of a walk hangs on: two ways that lead to the same are one."""
        machine = self.machine
        return (
            machine.phase, machine.stands, machine.fencing, tuple(machine.branches.values()),
            frozenset(machine.pending), frozenset(machine.unfinished), self.decided, self.asked, self.ended,
            frozenset((type(c), getattr(c, "branch", None)) for c in self.open), tuple(map(type, self.writing)),
            tuple(self.answers), frozenset(self.yes), type(self.fenced), frozenset(self.held), frozenset(self.sent),
        )  # fmt: skip


def explore(first: Walk) -> tuple[int, set[tuple[Phase, type[Event]]]]:
    """Every order of every answer. Returns the number of states and the pairs that occurred."""
    todo, seen = [first], {first.state()}
    used: set[tuple[Phase, type[Event]]] = set()
    while todo:
        walk = todo.pop()
        phase = walk.machine.phase
        moved = False
        for source, event in walk.choices():
            following = walk.fork(source, event)
            if following is not None:
                moved = True
                used.add((phase, type(event)))
                if following.state() not in seen:
                    seen.add(following.state())
                    todo.append(following)
        if not moved:
            assert phase in (Phase.COMMITTED, Phase.ABORTED, Phase.STAGED, Phase.DOUBT), f"stuck in {phase}"
            assert walk.answers, "the caller was never told anything"
            if phase in (Phase.COMMITTED, Phase.ABORTED):
                second = Commit if phase is Phase.COMMITTED else Rollback
                assert {branch for kind, branch in walk.sent if kind is second} == walk.held, "I8: left prepared"
            if phase is Phase.ABORTED:
                assert {branch for _, branch in walk.sent} == set(walk.machine.branches), "a branch was left at work"
            if walk.machine.plan.calls and phase in (Phase.COMMITTED, Phase.ABORTED):
                silent = isinstance(walk.fenced, Undecided)
                assert walk.decided is not None or silent, "I19: steps were called, and the register was not asked"
    return len(seen), used


def starts() -> Iterator[tuple[CommitMachine, Event]]:
    for one in PLANS:
        first = CommitAsked() if one.staging is None else StageAsked()
        yield CommitMachine(one), first
        yield CommitMachine(one), AbortAsked("given up")
        if one.staging is not None:
            yield CommitMachine(one, phase=Phase.STAGED), CommitAsked()
            yield CommitMachine(one, phase=Phase.STAGED), AbortAsked("given up")


def test_no_order_of_answers_breaks_an_invariant_and_every_rule_is_used() -> None:
    total, used = 0, set()
    for machine, event in starts():
        phase = machine.phase
        walk = Walk(machine)
        walk.take(event)
        used.add((phase, type(event)))
        states, more = explore(walk)
        total += states
        used |= more
    sys.stdout.write(f"commit machine: {total} states over {len(PLANS)} plans\n")
    assert set(TABLE) - used == set(), "rules that nothing reaches"


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("kind", EVENTS)
def test_every_pair_of_phase_and_event_is_decided(phase: Phase, kind: type[Event]) -> None:
    samples: dict[type[Event], Event] = {
        CommitAsked: CommitAsked(),
        StageAsked: StageAsked(),
        Listed: Listed(),
        AbortAsked: AbortAsked("why"),
        Voted: Voted(0, Vote.YES),
        NotListed: NotListed("why"),
        Decided: Decided(Verdict.COMMIT),
        Declined: Declined("why"),
        Undecided: Undecided("why"),
        Finished: Finished(0),
        Unfinished: Unfinished(0),
    }
    event = samples[kind]
    machine = CommitMachine(plan(2, point=True, staged=phase in (Phase.LISTING, Phase.LAST, Phase.STAGED)))
    machine.phase = phase
    if (phase, kind) == (Phase.ABORTING, Decided):
        event = Decided(Verdict.ABORT)  # the fence of an attempt that nobody could have committed
    machine.pending = {0}
    if phase is not Phase.WORKING:
        machine.branches = dict.fromkeys(machine.branches, Standing.PREPARED)
    if (phase, kind) in TABLE:
        machine.step(event)
        assert machine.phase in TABLE[phase, kind].leads_to
    else:
        with pytest.raises(IllegalEvent):
            machine.step(event)
        assert machine.phase is phase


def test_a_vote_nobody_asked_for_stops_the_machine() -> None:
    machine = CommitMachine(plan(2))
    machine.step(CommitAsked())
    with pytest.raises(InvariantViolated, match="I2"):
        machine.step(Voted(7, Vote.YES))


def test_a_rollback_never_overtakes_its_own_prepare() -> None:
    machine = CommitMachine(plan(3))
    machine.step(CommitAsked())
    ready = machine.step(Voted(0, Vote.NO))
    assert ready.answer is Answer.ABORTED and ready.commands == ()
    assert machine.step(Voted(1, Vote.YES)).commands == (Rollback(1),)


def test_after_a_lost_reply_at_the_commit_point_only_abort_is_asked_for() -> None:
    machine = CommitMachine(plan(2, point=True))
    machine.step(CommitAsked())
    assert machine.step(Voted(0, Vote.YES)).commands[0].branch == 1  # type: ignore[union-attr]
    ready = machine.step(Undecided("lost"))
    assert ready.commands == (Fence("lost"),) and not ready.records


@pytest.mark.parametrize(
    ("of", "before", "event"),
    [
        (plan(2), (CommitAsked(), Voted(0, Vote.YES)), Voted(1, Vote.YES)),
        (plan(3, point=True), (CommitAsked(), Voted(0, Vote.YES)), Voted(1, Vote.YES)),
        (plan(2, point=True, staged=True), (StageAsked(), Voted(0, Vote.YES), Listed()), Voted(1, Vote.YES)),
        (plan(1, staged=True), (), CommitAsked()),
        (plan(1, point=True, staged=True), (), CommitAsked()),
        (plan(1, point=True, staged=True, rides=True), (), CommitAsked()),
    ],
    ids=["at once", "with a point", "staging", "staged", "staged, X", "staged, X that carries the decision"],
)
def test_whatever_led_there_commit_is_not_asked_for_while_a_branch_is_not_prepared(
    of: Plan, before: tuple[Event, ...], event: Event
) -> None:
    machine = CommitMachine(of, phase=Phase.WORKING if before else Phase.STAGED)
    for one in before:
        machine.step(one)
    assert machine.branches[0] is Standing.PREPARED
    machine.branches[0] = Standing.UNKNOWN
    with pytest.raises(InvariantViolated, match="I2"):
        machine.step(event)


def test_a_commit_that_stands_although_we_never_asked_for_one_stops_the_machine() -> None:
    machine = CommitMachine(plan(2, calls=True))
    assert any(isinstance(command, Fence) for command in machine.step(AbortAsked("given up")).commands)
    with pytest.raises(InvariantViolated, match="I3"):
        machine.step(Decided(Verdict.COMMIT))


def test_an_event_that_leads_elsewhere_than_the_table_says_stops_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = TABLE[Phase.DECIDING, Undecided]
    monkeypatch.setitem(TABLE, (Phase.DECIDING, Undecided), Rule(rule.act, frozenset({Phase.COMMITTED})))
    machine = CommitMachine(plan(2))
    for event in (CommitAsked(), Voted(0, Vote.YES), Voted(1, Vote.YES)):
        machine.step(event)
    with pytest.raises(InvariantViolated, match="I3"):
        machine.step(Undecided("?"))


@pytest.mark.parametrize("phase", sorted(set(Phase) - {Phase.WORKING, Phase.STAGED}))
def test_no_machine_starts_in_the_middle(phase: Phase) -> None:
    with pytest.raises(IllegalEvent):
        CommitMachine(plan(2, staged=True), phase=phase)


@pytest.mark.parametrize(
    ("point", "events", "frees"),
    [
        (True, (StageAsked(), Voted(0, Vote.YES), Listed(), Voted(1, Vote.NO)), True),
        (True, (StageAsked(), Voted(0, Vote.YES), Listed(), Voted(1, Vote.UNKNOWN)), False),
        (True, (StageAsked(), Voted(0, Vote.YES), NotListed("no")), True),
        (False, (StageAsked(), Voted(0, Vote.YES), Voted(1, Vote.YES), NotListed("no")), False),
    ],
    ids=["X refused", "X gave no answer", "the row before X", "the row after all"],
)
def test_a_begin_that_failed_frees_its_name_only_if_nobody_can_have_seen_it_staged(
    point: bool, events: tuple[Event, ...], frees: bool
) -> None:
    machine = CommitMachine(plan(2, point=point, staged=True))
    ready = [machine.step(event) for event in events][-1]
    assert ready.commands == (Fence(machine.why, frees_name=frees),) and machine.why


class CountsUnknownAsYes(CommitMachine):
    """Mutant: takes "no answer" for a vote."""

    def step(self, event: Event) -> Ready:
        if isinstance(event, Voted) and event.vote is Vote.UNKNOWN:
            event = Voted(event.branch, Vote.YES)
        return super().step(event)


class EndsEarly(CommitMachine):
    """Mutant: forgets a commit record although a branch has not finished."""

    def step(self, event: Event) -> Ready:
        ready = super().step(event)
        if isinstance(event, Unfinished) and self.phase is Phase.COMMITTED:
            return Ready(records=(Ended(),))
        return ready


class CommitsBeforeDeciding(CommitMachine):
    """Mutant: sends the commits along with the decision."""

    def step(self, event: Event) -> Ready:
        ready = super().step(event)
        if any(isinstance(r, Decision) for r in ready.records):
            return Ready(ready.records, ready.must_sync, tuple(Commit(n) for n in self.plan.writers))
        return ready


class TakesTheShortCut(CommitMachine):
    """Mutant: one writer commits in one phase, whatever was called outside."""

    def _all_voted(self) -> Ready:
        if len(self.plan.writers) == 1:
            self.phase = Phase.ALONE
            return Ready(commands=(CommitAlone(self.plan.writers[0]),))
        return super()._all_voted()


class AbortsInSilence(CommitMachine):
    """Mutant: presumes the abort, as a transaction without steps may."""

    def _abort(self, event: AbortAsked | None = None) -> Ready:
        self.stands = Verdict.ABORT
        return super()._abort(event)


@pytest.mark.parametrize("mutant", [TakesTheShortCut, AbortsInSilence])
def test_a_transaction_with_steps_that_the_register_does_not_end_is_caught(mutant: type[CommitMachine]) -> None:
    for event in (CommitAsked(), AbortAsked("given up")):
        walk = Walk(CommitMachine(plan(1, calls=True)))
        walk.take(event)
        explore(walk)
    with pytest.raises((AssertionError, IllegalEvent)):
        for event in (CommitAsked(), AbortAsked("given up")):
            walk = Walk(mutant(plan(1, calls=True)))
            walk.take(event)
            explore(walk)


@pytest.mark.parametrize("mutant", [CountsUnknownAsYes, EndsEarly, CommitsBeforeDeciding])
def test_the_explorer_catches_each_mutant(mutant: type[CommitMachine]) -> None:
    with pytest.raises((AssertionError, IllegalEvent)):
        walk = Walk(mutant(plan(2)))
        walk.take(CommitAsked())
        explore(walk)
