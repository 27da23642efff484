"""The two-phase-commit machine, for both ways: at once, and staged now, decided later.

One machine follows one attempt in one process: `step(event) -> Ready`. `TABLE` has a rule for every pair of
phase and event that can occur, with the phases it may lead to; every other pair is illegal and stops the
process's work on the attempt (the register keeps it safe). ARCHITECTURE.md's diagram is drawn from `TABLE`.

Guarantees: COMMIT is asked for only after every branch of the attempt has voted YES or READ_ONLY (I2);
no `Commit` command before `Decided(COMMIT)` (I4); after a decision that nobody could read the answer is
IN_DOUBT (I5); an `Ended` record only when every branch has finished (I6). Where steps were called outside
(`Plan.calls`) there is no end, neither way, that the register is not asked for: who undoes them goes by it alone (I19).

Must not: do anything. No clock, no randomness, no I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

import msgspec

from ..errors import invariant
from .commands import (
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
from .events import (
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
from .records import Decision, Staging, Verdict


class Phase(StrEnum):
    """Where an attempt stands, as far as this process knows."""

    WORKING = "working"
    VOTING = "voting"  # readers end, writers prepare, but for the commit point
    LISTING = "listing"  # staged: the directory row is being written
    LAST = "last"  # staged: X is preparing
    STAGED = "staged"
    DECIDING = "deciding"  # the register is asked for COMMIT, by a row of its own
    POINTING = "pointing"  # by the local commit of the branch in the journal's database
    ALONE = "alone"  # the only writer commits in one phase
    SETTLING = "settling"  # that commit's reply was lost: its receipt is being fenced
    FENCING = "fencing"  # the register is asked for ABORT, and obeyed
    COMMITTING = "committing"
    ABORTING = "aborting"
    COMMITTED = "committed"
    ABORTED = "aborted"
    DOUBT = "in doubt"


class Standing(StrEnum):
    """One branch, as far as this process knows."""

    WORKING = "working"
    ASKED = "asked"
    PREPARED = "prepared"
    GONE = "gone"  # read only, or ended
    UNKNOWN = "unknown"


AFTER_VOTE = {
    Vote.YES: Standing.PREPARED,
    Vote.READ_ONLY: Standing.GONE,
    Vote.NO: Standing.GONE,  # a resource that refuses has rolled back
    Vote.UNKNOWN: Standing.UNKNOWN,
}


class Share(msgspec.Struct, frozen=True):
    """One branch of the plan."""

    number: int
    wrote: bool


class Plan(msgspec.Struct, frozen=True):
    """What is known when the work is done. `decision` and `staging` are the rows to write, should it come to that."""

    shares: tuple[Share, ...]
    decision: Decision  # verdict COMMIT; its `point` is the branch in the journal's database, if that wrote
    staging: Staging | None = None
    listed_early: bool = False  # the directory row was committed before the work, in X's own session
    row_inside: bool = False  # X's prepare takes the directory row inside (SQLite)
    covered: bool = False  # X's prepare makes the directory row durable, which is committed before it (PostgreSQL)
    rides: bool = False  # the decision rides on X's phase two (PostgreSQL, SQLite)
    calls: bool = False  # steps were called outside: the register must say how this ended

    @property
    def writers(self) -> tuple[int, ...]:
        return tuple([share.number for share in self.shares if share.wrote])


class IllegalEvent(Exception):
    """An event that cannot occur in this phase: a bug in the engine."""


class CommitMachine:
    """One attempt. `phase` and `pending` are for reading; only `step` changes them."""

    def __init__(self, plan: Plan, *, phase: Phase = Phase.WORKING) -> None:
        self.plan = plan
        self.phase = phase
        self.writers = plan.writers
        self.point = plan.decision.point if plan.staging is None else plan.staging.last
        resumed = phase is Phase.STAGED
        self.branches = {share.number: Standing.PREPARED if resumed else Standing.WORKING for share in plan.shares}
        self.pending: set[int] = set()  # branches whose answer is awaited
        self.unfinished: dict[int, str] = {}
        self.why = ""
        self.stands: Verdict | None = None  # what the register has answered
        self.fencing = False  # it is being asked for ABORT while the branches are taken back already
        if phase not in (Phase.WORKING, Phase.STAGED):
            raise IllegalEvent(f"a machine starts working or staged, not {phase}")

    def step(self, event: Event) -> Ready:
        """Take one reported event; return what is to be written, then done, and what may be told."""
        rule = TABLE.get((self.phase, type(event)))
        if rule is None:
            raise IllegalEvent(f"{type(event).__name__} while {self.phase}")
        before = self.phase
        ready: Ready = rule.act(self, event)
        invariant(self.phase in rule.leads_to, "I3", "{} led to {} by {}", before, self.phase, event)
        return ready

    # ---- voting

    def _ask_votes(self, _: CommitAsked | StageAsked) -> Ready:
        alone = len(self.writers) == 1 and self.plan.staging is None and not self.plan.calls
        commands: list[Command] = []
        for share in self.plan.shares:
            if share.wrote and (alone or share.number == self.point):
                continue
            commands.append(Prepare(share.number) if share.wrote else EndReader(share.number))
            self.branches[share.number] = Standing.ASKED
            self.pending.add(share.number)
        self.phase = Phase.VOTING
        return Ready(commands=tuple(commands)) if commands else self._all_voted()

    def _count_vote(self, event: Voted) -> Ready:
        self._note_vote(event)
        if event.vote in (Vote.NO, Vote.UNKNOWN):
            self.why = event.why or f"branch {event.branch} voted {event.vote}"
            return self._abort()
        return self._all_voted() if not self.pending else Ready()

    def _note_vote(self, event: Voted) -> None:
        invariant(event.branch in self.pending, "I2", "branch {} was not asked", event.branch)
        self.pending.discard(event.branch)
        self.branches[event.branch] = AFTER_VOTE[event.vote]

    def _all_voted(self) -> Ready:
        writers, point = self.writers, self.point
        if self.plan.staging is not None:
            if self.plan.listed_early or self.plan.row_inside:
                return self._prepare_last()
            self.phase = Phase.LISTING
            # Covered, the row may wait for the flush of X's prepare: until that has answered nobody is told that the
            # work is staged, and nobody may decide COMMIT before X is listed as prepared, which is flushed.
            return Ready(records=(self.plan.staging,), must_sync=not self.plan.covered or point is None)
        if not writers and not self.plan.calls:
            self.phase = Phase.COMMITTED
            return Ready(answer=Answer.COMMITTED)
        if len(writers) == 1 and not self.plan.calls:
            self.phase = Phase.ALONE
            return Ready(commands=(CommitAlone(writers[0]),))
        self._require_votes()
        if point is not None:
            self.phase = Phase.POINTING
            return Ready(commands=(CommitPoint(point, self.plan.decision),))
        return self._decide()

    def _decide(self) -> Ready:
        # The decision to commit is this record and nothing else: when it stands, the transaction is committed.
        self.phase = Phase.DECIDING
        return Ready(records=(self.plan.decision,), must_sync=True)

    def _require_votes(self) -> None:
        for number in self.writers:
            if number != self.point or self.plan.staging is not None:
                ready = self.branches[number] is Standing.PREPARED
                invariant(ready, "I2", "branch {} did not prove itself prepared", number)

    # ---- staging

    def _prepare_last(self, _: Listed | None = None) -> Ready:
        if self.point is None:
            return self._staged()
        self.phase = Phase.LAST
        self.branches[self.point] = Standing.ASKED
        self.pending.add(self.point)
        row = self.plan.staging if self.plan.row_inside else None
        return Ready(commands=(Prepare(self.point, row),))

    def _last_voted(self, event: Voted) -> Ready:
        self._note_vote(event)
        if event.vote is Vote.YES:
            return self._staged()
        self.why = event.why or f"branch {event.branch} voted {event.vote}"
        return self._fence_own_begin(may_be_staged=event.vote is Vote.UNKNOWN)

    def _staged(self) -> Ready:
        self._require_votes()
        self.phase = Phase.STAGED
        return Ready(answer=Answer.STAGED)

    def _not_listed(self, event: NotListed) -> Ready:
        self.why = event.why
        return self._fence_own_begin(may_be_staged=self.point is None)

    def _fence_own_begin(self, *, may_be_staged: bool) -> Ready:
        # The row may yet appear, or a prepare that was lost may yet arrive: this attempt must never come alive.
        # If it did, and was listed with every branch prepared, others have seen that, and a late commit of theirs must
        # not find the next of its name.
        self.phase = Phase.FENCING
        return Ready(commands=(Fence(self.why, frees_name=not may_be_staged),))

    def _finish_staged(self, _: CommitAsked) -> Ready:
        self._require_votes()
        if self.point is not None and self.plan.rides:
            self.phase = Phase.POINTING
            return Ready(commands=(CommitPoint(self.point, self.plan.decision),))
        return self._decide()

    def _abort_staged(self, event: AbortAsked) -> Ready:
        self.why = event.why
        self.phase = Phase.FENCING
        return Ready(commands=(Fence(event.why),))

    # ---- deciding

    def _decided(self, event: Decided) -> Ready:
        self.stands = event.verdict
        if event.verdict is Verdict.ABORT:
            self.why = event.why or self.why or "it was decided to abort"
            return self._abort()
        return self._carry_out()

    def _pointed(self, event: Decided) -> Ready:
        # A verdict learned through the point: if COMMIT, its own branch has committed with it.
        if event.verdict is Verdict.COMMIT and self.point is not None:
            self.branches[self.point] = Standing.GONE
        return self._decided(event)

    def _fenced(self, event: Decided) -> Ready:
        # COMMIT stands although we asked for ABORT: at once, that can only be the point's own local commit.
        if self.plan.staging is None:
            return self._pointed(event)
        return self._decided(event)

    def _decision_lost(self, event: Undecided) -> Ready:
        self.why = event.why
        if self.phase is Phase.POINTING:
            if self.plan.staging is not None:
                # X is prepared, so its work cannot be gone: the register may be asked again.
                return self._decide()
            # Only the point's local commit may write COMMIT; after a lost reply even we may only ask for ABORT.
            self.phase = Phase.FENCING
            return Ready(commands=(Fence(event.why),))
        if self.phase is Phase.ALONE:
            self.phase = Phase.SETTLING
            return Ready(commands=(Settle(self.writers[0]),))
        self.phase = Phase.DOUBT
        return Ready(answer=Answer.IN_DOUBT)

    def _declined(self, event: Declined) -> Ready:
        self.why = event.why
        if self.plan.staging is not None:
            return self._decide()  # X stays prepared; only the riding failed
        if self.point is not None:
            self.branches[self.point] = Standing.GONE
        return self._abort()

    def _not_decided(self, event: Declined) -> Ready:
        """The row was surely not written. At once, only we could write COMMIT, and now never will."""
        self.why = event.why
        if self.plan.staging is None:
            return self._abort()
        self.phase = Phase.STAGED
        return Ready(answer=Answer.STAGED)

    def _alone_declined(self, event: Declined) -> Ready:
        self.why = event.why
        self.branches[self.writers[0]] = Standing.GONE
        return self._abort()

    def _alone_decided(self, event: Decided) -> Ready:
        self.branches[self.writers[0]] = Standing.GONE
        if event.verdict is Verdict.ABORT:
            self.why = event.why or self.why
            return self._abort()
        self.phase = Phase.COMMITTED
        return Ready(answer=Answer.COMMITTED)

    # ---- carrying out

    def _carry_out(self) -> Ready:
        # A staged begin whose last PREPARE got no answer can find itself committed by another process: X too, then.
        held = (Standing.PREPARED, Standing.UNKNOWN)
        commands = tuple(Commit(number) for number, at in self.branches.items() if at in held)
        self.pending = {command.branch for command in commands}
        self.phase = Phase.COMMITTING
        if not commands:
            ready = self._committed()
            return Ready(records=ready.records, answer=Answer.COMMITTED)
        return Ready(commands=commands, answer=Answer.COMMITTED)

    def _abort(self, event: AbortAsked | None = None) -> Ready:
        if event is not None:
            self.why = event.why
        self.phase = Phase.ABORTING
        commands: list[Command] = []
        for number in self.branches:
            commands += self._take_back(number)
        if self.plan.calls and self.stands is None:
            # Nobody but us could have written COMMIT, so no branch waits for this. The compensations do.
            self.fencing = True
            commands.append(Fence(self.why, frees_name=self.plan.staging is not None))
        self._end_abort()
        return Ready(commands=tuple(commands), answer=Answer.ABORTED)

    def _end_abort(self) -> None:
        if not self.pending and not self.fencing:
            self.phase = Phase.ABORTED

    def _abort_stands(self, event: Decided | Undecided) -> Ready:
        """The answer to a fence that the branches did not wait for. None: recovery asks again, and undoes the steps."""
        self.fencing = False
        if isinstance(event, Decided):
            invariant(event.verdict is Verdict.ABORT, "I3", "COMMIT stands, and we had never asked for it")
            self.stands = event.verdict
        self._end_abort()
        return Ready()

    def _take_back(self, number: int) -> list[Command]:
        match self.branches[number]:
            case Standing.WORKING:
                self.pending.add(number)
                return [Undo(number)]
            case Standing.PREPARED | Standing.UNKNOWN:
                self.pending.add(number)
                return [Rollback(number)]
            case Standing.ASKED | Standing.GONE:
                # A rollback that overtakes its own prepare leaves an orphan: wait for the vote.
                return []

    def _late_vote(self, event: Voted) -> Ready:
        self._note_vote(event)
        commands = self._take_back(event.branch)
        self._end_abort()
        return Ready(commands=tuple(commands))

    def _progress(self, event: Finished | Unfinished) -> Ready:
        self.pending.discard(event.branch)
        if isinstance(event, Unfinished):
            self.unfinished[event.branch] = event.why
        else:
            self.branches[event.branch] = Standing.GONE
        if self.phase is Phase.ABORTING:
            self._end_abort()
            return Ready()
        return Ready() if self.pending else self._committed()

    def _committed(self) -> Ready:
        self.phase = Phase.COMMITTED
        return Ready(records=() if self.unfinished else (Ended(),))


class Rule(msgspec.Struct, frozen=True):
    """What an event does in a phase, and where it may lead."""

    act: Callable[[CommitMachine, Any], Ready]
    leads_to: frozenset[Phase]


def _rule(act: Callable[[CommitMachine, Any], Ready], *leads_to: Phase) -> Rule:
    return Rule(act, frozenset(leads_to))


_P, _M = Phase, CommitMachine
_VOTED = (
    _P.VOTING, _P.LISTING, _P.LAST, _P.STAGED, _P.DECIDING, _P.POINTING, _P.ALONE, _P.COMMITTED,
)  # fmt: skip
_ABORT = (_P.ABORTING, _P.ABORTED)
_COMMIT = (_P.COMMITTING, _P.COMMITTED)

TABLE: dict[tuple[Phase, type[Event]], Rule] = {
    (_P.WORKING, CommitAsked): _rule(_M._ask_votes, *_VOTED),
    (_P.WORKING, StageAsked): _rule(_M._ask_votes, *_VOTED),
    (_P.WORKING, AbortAsked): _rule(_M._abort, *_ABORT),
    (_P.VOTING, Voted): _rule(_M._count_vote, *_VOTED, *_ABORT),
    (_P.LISTING, Listed): _rule(_M._prepare_last, _P.LAST, _P.STAGED),
    (_P.LISTING, NotListed): _rule(_M._not_listed, _P.FENCING),
    (_P.LAST, Voted): _rule(_M._last_voted, _P.STAGED, _P.FENCING),
    (_P.STAGED, CommitAsked): _rule(_M._finish_staged, _P.DECIDING, _P.POINTING),
    (_P.STAGED, AbortAsked): _rule(_M._abort_staged, _P.FENCING),
    (_P.DECIDING, Decided): _rule(_M._decided, *_COMMIT, *_ABORT),
    (_P.DECIDING, Declined): _rule(_M._not_decided, _P.STAGED, *_ABORT),
    (_P.DECIDING, Undecided): _rule(_M._decision_lost, _P.DOUBT),
    (_P.POINTING, Decided): _rule(_M._pointed, *_COMMIT, *_ABORT),
    (_P.POINTING, Declined): _rule(_M._declined, _P.DECIDING, *_ABORT),
    (_P.POINTING, Undecided): _rule(_M._decision_lost, _P.FENCING, _P.DECIDING),
    (_P.ALONE, Decided): _rule(_M._alone_decided, _P.COMMITTED),
    (_P.ALONE, Declined): _rule(_M._alone_declined, *_ABORT),
    (_P.ALONE, Undecided): _rule(_M._decision_lost, _P.SETTLING),
    (_P.SETTLING, Decided): _rule(_M._alone_decided, _P.COMMITTED, *_ABORT),
    (_P.SETTLING, Undecided): _rule(_M._decision_lost, _P.DOUBT),
    (_P.FENCING, Decided): _rule(_M._fenced, *_COMMIT, *_ABORT),
    (_P.FENCING, Undecided): _rule(_M._decision_lost, _P.DOUBT),
    (_P.COMMITTING, Finished): _rule(_M._progress, *_COMMIT),
    (_P.COMMITTING, Unfinished): _rule(_M._progress, *_COMMIT),
    (_P.ABORTING, Voted): _rule(_M._late_vote, *_ABORT),
    (_P.ABORTING, Finished): _rule(_M._progress, *_ABORT),
    (_P.ABORTING, Unfinished): _rule(_M._progress, *_ABORT),
    (_P.ABORTING, Decided): _rule(_M._abort_stands, *_ABORT),
    (_P.ABORTING, Undecided): _rule(_M._abort_stands, *_ABORT),
}
