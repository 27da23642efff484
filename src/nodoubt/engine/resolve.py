"""Resolving by hand: a named operator says how a transaction ends, and why. It is kept in its trail.

What that may do hangs on what stands, and the register is never written twice nor passed by:

| the register says | the operator may |
| --- | --- |
| nothing yet, staged | decide, through the register, like everybody; a COMMIT needs all that any COMMIT needs (I2) |
| COMMIT | agree: branches that are still prepared are committed; one that is gone, and quarantined for it, is taken
over by the operator, in whose name the record may then end (I6, I17) |
| ABORT | agree: branches that are prepared again are rolled back |
| the contrary | nothing: `OutcomeConflict` |
| nothing, and it is too old to ever say anything | end the branches that are quarantined for that, either way |

Guarantees: a quarantined entry is cleared only after its branch has been dealt with, in the operator's name (I17).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import OutcomeConflict, ResourceUnavailable, UnknownTransaction, UsageError
from ..ports import Prepared, Session, readable
from ..protocol.records import BranchRef, Decision, Event, Quarantined, Standing, Verdict
from ..script import Script
from ..xid import Xid, is_attempt
from . import ends, questions, register, start, verbs
from .branches import End, carry_out
from .context import Context, Participant, asked
from .phases import Course
from .questions import State
from .verbs import Result

WORDS_LENGTH_MAX = 1000


@dataclass(frozen=True, slots=True)
class _Case:
    """What is to be resolved, and who says how."""

    attempt: str
    name: str
    wanted: Verdict
    by: str
    because: str
    held: tuple[Quarantined, ...]


def resolve(ctx: Context, name: str, wanted: Verdict, *, by: str, because: str) -> Script[Result]:
    """End a transaction by name or attempt, as an operator says. Idempotent.

    Raises `OutcomeConflict`, `NotReady`, `StillBeginning`, `Heuristic` as the verbs do, `UnknownTransaction`,
    `ResourceUnavailable` (try again), `UsageError` (there is nothing that an operator may decide).
    """
    for option, words in (("by", by), ("because", because)):
        if not words.strip() or len(words) > WORDS_LENGTH_MAX:
            raise UsageError(f"{option}= is a text of 1 to {WORDS_LENGTH_MAX} characters: it is kept in the trail")
    staging = yield from questions.find(ctx, name)
    if staging is None and not is_attempt(name):
        raise UnknownTransaction(name)
    attempt = name if staging is None else staging.attempt
    standing = yield from register.confirm_one(ctx, attempt)
    entries = yield from questions.ask(ctx, ctx.journal.quarantined)
    held = tuple(readable(entry) for entry in entries if entry.attempt == attempt)
    case = _Case(attempt, name, wanted, by.strip(), because.strip(), held)
    if standing is not None:
        return (yield from _agree(ctx, case, standing))
    if staging is not None:
        yield from _tell(ctx, case)
        why = f"resolved by {case.by}: {case.because}"
        found = yield from verbs.finish_named(ctx, staging.name, wanted, attempt=attempt, why=why)
        if isinstance(found, Course):
            return (yield from verbs.complete_named(ctx, found, wanted))
        return found
    return (yield from _too_old(ctx, case))


def _tell(ctx: Context, case: _Case) -> Script[None]:
    event = Event(case.attempt, ctx.clock.now(), "resolved", f"as {case.wanted.value} by {case.by}: {case.because}")

    def body(session: Session) -> Script[None]:
        return ctx.journal.record(session, [event])

    yield from questions.ask(ctx, body, changes=True)


def _agree(ctx: Context, case: _Case, standing: Standing) -> Script[Result]:
    """Carry out what stands, with the operator's word for the branches that can prove nothing any more."""
    decision = standing.decision
    if decision.verdict is not case.wanted:
        raise OutcomeConflict(case.name, stands="committed" if decision.verdict is Verdict.COMMIT else "aborted")
    _require_bound(case, decision)
    yield from _tell(ctx, case)
    for entry in case.held:
        yield from _finish(ctx, case, entry)
    complete = True
    if decision.verdict is Verdict.COMMIT and not standing.ended:
        yield from _require_proofs(ctx, decision, {entry.branch for entry in case.held})
        with ctx.lock:
            ctx.ended.append((decision.attempt, decision.branches))
        yield from ends.flush(ctx)
    yield from _clear(ctx, case)
    state = State.COMMITTED if decision.verdict is Verdict.COMMIT else State.ABORTED
    return Result(decision.name, decision.attempt, state, complete)


def _require_bound(case: _Case, decision: Decision) -> None:
    """A branch that the COMMIT does not list is bound by nothing; nobody can say here what it belongs to."""
    bound = {ref.number for ref in decision.branches}
    stray = [entry for entry in case.held if entry.branch not in bound]
    if stray and decision.verdict is Verdict.COMMIT:
        where = ", ".join(f"branch {entry.branch} on {entry.resource}" for entry in stray)
        raise UsageError(
            f"{case.name!r} was committed without {where}: no decision binds it. Look at the database itself, end the "
            "branch there, then clear it"
        )


def _finish(ctx: Context, case: _Case, entry: Quarantined) -> Script[None]:
    """End the branch if it is prepared; if it is not, the operator has taken it over."""
    participant = yield from _participant(ctx, entry)
    prepared = yield from _listed(ctx, participant, Xid(ctx.cluster, case.attempt, entry.branch))
    if prepared is None:
        return
    ending = yield from carry_out(ctx, participant, prepared, case.wanted)
    if ending.end is not End.PROVED:
        raise ResourceUnavailable(
            f"branch {entry.branch} on {participant.name} is not ended as you say; try again: {ending.why}"
        )


def _participant(ctx: Context, entry: Quarantined) -> Script[Participant]:
    participant = ctx.participant(entry.resource)
    yield from start.admit(ctx, participant)
    return participant


def _listed(ctx: Context, participant: Participant, xid: Xid) -> Script[Prepared | None]:
    def body(session: Session) -> Script[tuple[Prepared, ...]]:
        return participant.resource.prepared(session, ctx.cluster)

    listed = yield from asked(ctx, participant.reserve, body)
    return next((one for one in listed if one.xid == xid), None)


def _require_proofs(ctx: Context, decision: Decision, taken_over: set[int]) -> Script[None]:
    """Every other branch must have proved itself, as for every end of a record (I6)."""
    for ref in decision.branches:
        if ref.number == decision.point or ref.number in taken_over:
            continue
        if not (yield from _has_proof(ctx, decision, ref)):
            raise ResourceUnavailable(
                f"branch {ref.number} on {ref.resource} has not proved itself yet: run nodoubt recover, then resolve it"
            )


def _has_proof(ctx: Context, decision: Decision, ref: BranchRef) -> Script[bool]:
    participant = ctx.by_id(ref.resource_id)
    if participant is None:
        return False

    def body(session: Session) -> Script[bool]:
        return participant.resource.receipt(session, Xid(ctx.cluster, decision.attempt, ref.number))

    return (yield from asked(ctx, participant.reserve, body))


def _too_old(ctx: Context, case: _Case) -> Script[Result]:
    """The journal has forgotten it and can never say anything any more: no decision can come to stand against this."""
    floor = yield from questions.ask(ctx, ctx.journal.floor)
    if case.attempt >= floor:
        raise UsageError(
            f"{case.attempt} is undecided and not staged: nodoubt settle {case.attempt} ends it, and says how. Nothing "
            "was changed"
        )
    if not case.held:
        raise UnknownTransaction(case.attempt)
    yield from _tell(ctx, case)
    for entry in case.held:
        yield from _finish(ctx, case, entry)
    yield from _clear(ctx, case)
    state = State.COMMITTED if case.wanted is Verdict.COMMIT else State.ABORTED
    return Result("", case.attempt, state, True)


def _clear(ctx: Context, case: _Case) -> Script[None]:
    for entry in case.held:

        def body(session: Session, entry: Quarantined = entry) -> Script[None]:
            return ctx.journal.clear(session, entry.attempt, entry.branch, case.by)

        yield from questions.ask(ctx, body, changes=True)
