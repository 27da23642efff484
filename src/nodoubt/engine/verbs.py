"""The verbs: begin, commit, stage, finish by name, ask.

Guarantees: the verbs are idempotent (I12): repeating one returns the first outcome, the contrary one raises
`OutcomeConflict`. A commit by name requires the last branch to be *listed* as prepared: listed is flushed, a row
alone need not be. The process that has just prepared it knows without a look (`recent`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import msgspec

from ..errors import (
    ClosedTransaction,
    DuplicateTransaction,
    Heuristic,
    JournalUnavailable,
    NoDoubtError,
    OutcomeConflict,
    ResourceUnavailable,
    StillBeginning,
    TransactionAborted,
    UnknownTransaction,
    UnreadableRecord,
    UsageError,
    text_of,
)
from ..ports import Conflict, Prepared, Refused, Session, Unclear, Work
from ..protocol.commands import Answer
from ..protocol.commit import CommitMachine, Phase, Plan, Share
from ..protocol.events import AbortAsked, CommitAsked, StageAsked
from ..protocol.records import BranchRef, Decision, Mode, Staging, Verdict
from ..script import Pause, Script, every
from ..xid import Xid, check_name, check_who
from . import cautions, lingering, questions, readiness, recent, register, start
from .apart import require_owned
from .attempt import Attempt, Branch, open_branch, undo_all
from .context import Context, FailedBegin, bounded, check_seconds, told
from .phases import Course, raise_for, to_answer, to_end
from .questions import State

Wait = Literal["applied", "decided"]


class Result(msgspec.Struct, frozen=True):
    """How a verb ended. `complete`: every branch has proved itself; otherwise recovery will finish them.

    `undoing`: steps of an aborted transaction that are not undone yet; recovery goes on with them, too.
    """

    name: str
    attempt: str
    state: State
    complete: bool
    undoing: int = 0


# ---- begin ----------------------------------------------------------------------------------------


def begin_now(ctx: Context, name: str | None, timeout_s: float | None) -> Attempt:
    """An attempt for work that commits as its block ends. Nothing is written yet."""
    label = "" if name is None else check_name(name)
    return Attempt(ctx.ids.attempt(), label, Mode.ONCE, _until(ctx, timeout_s), timeout_s)


def _until(ctx: Context, timeout_s: float | None) -> float | None:
    if timeout_s is None:
        return None
    return ctx.clock.elapsed() + check_seconds("a timeout", timeout_s)


def begin_staged(
    ctx: Context,
    name: str,
    *,
    timeout_s: float | None,
    deadline_s: float | None,
    metadata: dict[str, str] | None,
    reuse: bool,
    confirmations: Collection[str] = (),
) -> Script[Attempt]:
    """An attempt under a name that nobody else lives under. Raises `InvalidName`, `DuplicateTransaction`."""
    check_name(name)
    lasts_s = ctx.settings.deadline_s if deadline_s is None else check_seconds("the time to a deadline", deadline_s)
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise UsageError(f"metadata is text under text; {key!r} is not")
    attempt = Attempt(ctx.ids.attempt(), name, Mode.STAGED, _until(ctx, timeout_s), timeout_s)
    attempt.deadline = ctx.clock.now() + lasts_s
    attempt.metadata = dict(metadata or {})
    attempt.confirmations = check_who(confirmations)
    try:
        yield from _list_early(ctx, attempt, reuse=reuse)
    except BaseException as error:
        if not attempt.listed or isinstance(error, DuplicateTransaction):
            ctx.remember_failed_begin(name, attempt.id, harmless=True)
        else:
            # Cancelled, too: one bounded write more, or the name would look alive until its begin were overdue.
            yield from fence_failed_begin(ctx, attempt, "its begin failed")
        raise
    return attempt


def _list_early(ctx: Context, attempt: Attempt, *, reuse: bool) -> Script[None]:
    """See that the name is free. Where X is all there is, the row goes before the work, which says that as well.

    Unforced (`Traits.unforced_rows`) it is flushed by X's prepare.
    """
    only = next(iter(ctx.participants.values())) if ctx.single else None
    early = only is not None and only.holds_journal and only.resource.traits.rows_at_begin
    if reuse or not early or attempt.name in ctx.failed_begins:
        attempt.replace = yield from _require_free(ctx, attempt.name, reuse)
    if only is None or not early:
        return
    yield from start.admit(ctx, only)
    if attempt.timeout_s is None:
        # Until then a sweep takes the begin for alive; so the work must not take longer.
        attempt.timeout_s = ctx.settings.begin_s
        attempt.until = ctx.clock.elapsed() + attempt.timeout_s
    attempt.early = _staging(ctx, attempt, (BranchRef(0, only.name, only.resource_id),), 0, working=True)
    try:
        yield from open_branch(ctx, attempt, only.name)
    except Conflict:
        raise DuplicateTransaction(attempt.name, state="live, or ended and still reserved") from None


def _require_free(ctx: Context, name: str, reuse: bool) -> Script[Staging | None]:
    """The row of an ended attempt to replace, if there is one and it may be. Advice: the row's key has the last word.

    It may be if the caller says `reuse`, or if it is a begin of this very process that failed: that one never was.
    """
    found, stands, _ = yield from questions.known(ctx, name)
    if found is None:
        return None
    failed = ctx.failed_begins.get(name)
    own = failed is not None and failed.attempt == found.attempt
    if stands is None or not (reuse or (own and stands.decision.verdict is Verdict.ABORT)):
        raise DuplicateTransaction(name, state="live" if stands is None else "ended, and its name still reserved")
    return found


def _staging(
    ctx: Context, attempt: Attempt, refs: tuple[BranchRef, ...], last: int | None, *, working: bool = False
) -> Staging:
    now = ctx.clock.now()
    begin_by = now + (attempt.timeout_s or 0.0)
    return Staging(
        attempt.name,
        attempt.id,
        refs,
        last,
        attempt.deadline,
        ctx.owner,
        attempt.metadata,
        now,
        begin_by if working else 0.0,
        attempt.confirmations,
        attempt.calls,
    )


# ---- end of the block -----------------------------------------------------------------------------


def finish_work(ctx: Context, attempt: Attempt) -> Script[Course]:
    """The block has ended well: commit, or stage, as far as the answer. Runs shielded; `complete` does the rest.

    Raises what `raise_for` raises; what was prepared is then taken back behind.
    """
    if attempt.inherited:
        attempt.forsake()
        raise ClosedTransaction("this transaction belongs to the parent process, which alone may end it")
    attempt.close()
    staged, since = attempt.mode is Mode.STAGED, ctx.clock.elapsed()
    try:
        _require_sound(ctx, attempt)
        ctx.live.add(attempt.id)
        shares = yield from _who_wrote(ctx, attempt)
    except BaseException as error:
        yield from abandon(ctx, attempt)
        if isinstance(error, TransactionAborted):
            raise
        raise TransactionAborted(
            f"{attempt.name or attempt.id!r} was rolled back everywhere: {text_of(error)}",
            name=attempt.name,
            attempt=attempt.id,
        ) from error
    branches = {branch.number: branch for branch in attempt.branches.values()}
    course = Course(attempt, CommitMachine(_plan(ctx, attempt, branches, shares)), branches)
    yield from to_answer(ctx, course, StageAsked() if staged else CommitAsked())
    if course.answer is Answer.STAGED:
        ctx.failed_begins.pop(attempt.name, None)
        recent.remember(ctx, attempt, course.machine.plan.staging, since)
    elif staged and course.answer is not Answer.COMMITTED:
        ctx.remember_failed_begin(attempt.name, attempt.id, harmless=course.answer is Answer.ABORTED)
    return course


def _require_sound(ctx: Context, attempt: Attempt) -> None:
    if ctx.closing:
        raise ClosedTransaction("the coordinator was closed before the block had ended")
    for branch in attempt.branches.values():
        if branch.work.doomed is not None:
            raise branch.work.doomed
        if branch.busy:
            raise UsageError(f"the block ended while a statement on {branch.participant.name} was still running")
    if attempt.doomed is not None:
        raise attempt.doomed
    if attempt.calling:
        raise UsageError("the block ended while a step was still running: await it first")
    if attempt.until is not None and ctx.clock.elapsed() > attempt.until:
        raise TransactionAborted(
            f"the timeout of {attempt.timeout_s:g} s had passed before the work was done; nothing happened",
            name=attempt.name,
            attempt=attempt.id,
        )


def _who_wrote(ctx: Context, attempt: Attempt) -> Script[list[Share]]:
    """Which branches are writers. Asked only where it makes a difference and is not known already."""

    def one(branch: Branch) -> Script[bool]:
        assert branch.session is not None
        script = branch.participant.resource.wrote(branch.session, branch.work)
        return bounded(script, ctx.settings.prepare_s, ctx.clock)

    branches = attempt.branches.values()
    asked = [branch for branch in branches if not branch.work.wrote]
    outcomes = yield from every([one(branch) for branch in asked])
    readers = {branch.number for branch, outcome in zip(asked, outcomes, strict=True) if not outcome.get()}
    return [Share(branch.number, branch.number not in readers) for branch in branches]


def _plan(ctx: Context, attempt: Attempt, branches: dict[int, Branch], shares: list[Share]) -> Plan:
    writers = [branches[share.number] for share in shares if share.wrote]
    refs = tuple([branch.ref for branch in writers])
    point = next((b for b in writers if b.participant.holds_journal), None)
    number = None if point is None else point.number
    staged = attempt.mode is Mode.STAGED
    traits = None if point is None else point.participant.resource.traits
    return Plan(
        tuple(shares),
        Decision(
            attempt.id,
            Verdict.COMMIT,
            attempt.mode,
            attempt.name,
            refs,
            point=None if staged else number,
            owner=ctx.owner,
            decided_at=ctx.clock.now(),
        ),
        staging=(attempt.early or _staging(ctx, attempt, refs, number)) if staged else None,
        listed_early=attempt.early is not None,
        row_inside=traits is not None and traits.riders_on_prepare,
        # X's transaction has been open since before the row, on the same server. If that server crashes in between it
        # takes the row along, and X's transaction too: then PREPARE, whichever session it comes from, has nothing to
        # prepare, and cannot answer with its tag. If it does, the log it has flushed holds the row.
        covered=traits is not None and traits.unforced_rows,
        calls=attempt.calls > 0,
    )


_TOLD: dict[Answer | None, State] = {Answer.COMMITTED: State.COMMITTED, Answer.STAGED: State.PREPARED}


def complete(ctx: Context, course: Course) -> Script[Result]:
    """Do what is left after the answer, then report it."""
    yield from to_end(ctx, course)
    raise_for(course)
    return result_of(course)


def result_of(course: Course) -> Result:
    """What the caller is told now; `complete` only if phase two is over."""
    state = _TOLD.get(course.answer, State.ABORTED)
    return Result(course.attempt.name, course.attempt.id, state, course.complete)


def abandon(ctx: Context, attempt: Attempt) -> Script[None]:
    """The block has failed: take the work back. A name that was listed early is fenced, so it cannot come alive."""
    if attempt.inherited:
        attempt.forsake()
        return
    attempt.close()
    if attempt.calls:
        yield from _abandon_with_calls(ctx, attempt)
        return
    yield from undo_all(ctx, attempt)
    if attempt.mode is Mode.STAGED:
        if attempt.early is not None:
            yield from fence_failed_begin(ctx, attempt, "its work failed")
        else:
            ctx.remember_failed_begin(attempt.name, attempt.id, harmless=True)
    ctx.live.discard(attempt.id)


def _abandon_with_calls(ctx: Context, attempt: Attempt) -> Script[None]:
    """Where steps were called an abort is not presumed: whoever undoes them goes by the register (I19)."""
    branches = {branch.number: branch for branch in attempt.branches.values()}
    plan = _plan(ctx, attempt, branches, [Share(number, True) for number in branches])
    course = Course(attempt, CommitMachine(plan), branches)
    yield from to_answer(ctx, course, AbortAsked("its work failed"))
    yield from to_end(ctx, course)
    if attempt.mode is Mode.STAGED:
        stands = course.machine.stands is Verdict.ABORT
        ctx.remember_failed_begin(attempt.name, attempt.id, harmless=stands)


def fence_failed_begin(ctx: Context, attempt: Attempt, why: str) -> Script[None]:
    """Make sure that this attempt's row, should it stand, says ABORT. If the journal is away, a rollback will.

    Not all of its branches have prepared: nobody has seen it staged, or can come later and mean it. Its name is free.
    """
    ctx.remember_failed_begin(attempt.name, attempt.id, harmless=False)
    refs = attempt.early.branches if attempt.early is not None else ()
    try:
        stands = yield from register.decide(ctx, _abort(ctx, attempt.id, attempt.name, refs, why, frees_name=True))
    except NoDoubtError as error:
        attempt.cause = attempt.cause or error
        return
    ctx.remember_failed_begin(attempt.name, attempt.id, harmless=stands.verdict is Verdict.ABORT)


def _abort(
    ctx: Context, attempt: str, name: str, refs: tuple[BranchRef, ...], why: str, *, frees_name: bool
) -> Decision:
    return Decision(
        attempt,
        Verdict.ABORT,
        Mode.STAGED,
        name,
        refs,
        owner=ctx.owner,
        reason=why,
        decided_at=ctx.clock.now(),
        frees_name=frees_name,
    )


# ---- finish by name -------------------------------------------------------------------------------


def finish_named(
    ctx: Context, name: str, wanted: Verdict, *, attempt: str | None, why: str = "it was asked to roll back"
) -> Script[Course | Result]:
    """Decide a staged transaction, as far as the answer; a `Result` if it was decided before.

    In the process that has staged it a moment ago the name means what was staged then, whoever has it by now.

    Raises `UnknownTransaction`, `StillBeginning`, `NotReady`, `OutcomeConflict`, `InDoubt`, `JournalUnavailable`.
    """
    check_name(name)
    if wanted is Verdict.ABORT and attempt is None and name in ctx.failed_begins:
        return (yield from _roll_back_failed_begin(ctx, name, ctx.failed_begins[name]))
    # Steps may have been called for it since; a COMMIT then is refused, and asks; a rollback has to undo them.
    fresh = recent.take(ctx, name, attempt) if wanted is Verdict.COMMIT else None
    staging, seen, listed = (fresh, None, False) if fresh else (yield from questions.known(ctx, attempt or name))
    if staging is None or (attempt is not None and staging.name != name):
        # The name may have been given to another attempt since; what was decided for this one still stands.
        told = None if attempt is None else (yield from _decided_before(ctx, name, attempt, wanted))
        if told is None:
            raise UnknownTransaction(attempt or name)
        return told
    _let_go_of_failed_begin(ctx, name, staging.attempt, wanted)
    if seen is not None:
        told = yield from _decided_before(ctx, name, staging.attempt, wanted)
        if told is not None:
            return told
    gated = bool(staging.calls or staging.confirmations)
    if gated and wanted is Verdict.COMMIT:
        yield from readiness.require(ctx, staging)
    cautions.one_branch(ctx, staging)
    if wanted is Verdict.ABORT:
        yield from require_owned(ctx)  # a COMMIT among them may be this one's
    branches = yield from _branches_of(ctx, staging)
    proved = _prepared_here(ctx, branches, fresh=fresh is not None)
    if listed and staging.last is not None and branches[staging.last].participant.holds_journal:
        proved.add(staging.last)
    if wanted is Verdict.COMMIT and not (yield from _all_listed(ctx, staging, branches, proved)):
        told = yield from _decided_before(ctx, name, staging.attempt, wanted)
        if told is None:
            raise StillBeginning(name)
        return told
    course = _resumed(ctx, staging, branches, gated=gated)
    ctx.live.add(staging.attempt)
    event = CommitAsked() if wanted is Verdict.COMMIT else AbortAsked(why)
    answer = yield from to_answer(ctx, course, event)
    if answer is not Answer.STAGED:
        return course
    ctx.live.discard(staging.attempt)
    if (yield from _is_gated_now(ctx, staging)) and not gated:
        return (yield from finish_named(ctx, name, wanted, attempt=attempt, why=why))
    raise _stays_undecided(name, course) from course.attempt.cause


def _stays_undecided(name: str, course: Course) -> NoDoubtError:
    if isinstance(course.attempt.cause, register.NoFloor):
        return UnreadableRecord(f"{name!r} stays prepared, undecided: {course.attempt.cause}")
    return JournalUnavailable(
        f"the journal cannot be reached: {name!r} stays prepared, undecided; try again ({course.machine.why})"
    )


def _resumed(ctx: Context, staging: Staging, branches: dict[int, Branch], *, gated: bool) -> Course:
    last = None if staging.last is None else branches[staging.last]
    traits = None if last is None else last.participant.resource.traits
    plan = Plan(
        tuple(Share(ref.number, True) for ref in staging.branches),
        Decision(
            staging.attempt,
            Verdict.COMMIT,
            Mode.STAGED,
            staging.name,
            staging.branches,
            owner=ctx.owner,
            decided_at=ctx.clock.now(),
            gated=gated,
        ),
        staging=staging,
        rides=traits is not None and (traits.unforced_rows or traits.riders_on_prepare),
    )
    attempt = Attempt(staging.attempt, staging.name, Mode.STAGED, calls=staging.calls)
    return Course(attempt, CommitMachine(plan, phase=Phase.STAGED), branches)


def _is_gated_now(ctx: Context, staging: Staging) -> Script[bool]:
    """Whether its COMMIT was refused because it has conditions, all of which hold now; raises `NotReady` if not all do.

    The COMMIT carries its conditions with it, and they may have failed since they were looked at. Raises
    `UnknownTransaction` if the name is not there any more.
    """
    fresh = yield from questions.find(ctx, staging.attempt)
    if fresh is None:
        raise UnknownTransaction(staging.name)
    if not (fresh.calls or fresh.confirmations):
        return False
    yield from readiness.require(ctx, fresh)
    return True


def complete_named(ctx: Context, course: Course, wanted: Verdict) -> Script[Result]:
    """Do what is left after the answer; the contrary outcome is an `OutcomeConflict`."""
    yield from to_end(ctx, course)
    return named_result(course, wanted)


def named_result(course: Course, wanted: Verdict) -> Result:
    """The outcome as `commit_distributed` or `rollback_distributed` tells it."""
    if course.answer is Answer.IN_DOUBT:
        raise_for(course)
    committed = course.answer is Answer.COMMITTED
    _require_outcome(course.attempt.name, Verdict.COMMIT if committed else Verdict.ABORT, wanted)
    done = course.complete if committed else course.machine.phase is Phase.ABORTED and not course.machine.unfinished
    return Result(course.attempt.name, course.attempt.id, State.COMMITTED if committed else State.ABORTED, done)


def _require_outcome(name: str, stands: Verdict, wanted: Verdict) -> None:
    if stands is not wanted:
        raise OutcomeConflict(name, stands="committed" if stands is Verdict.COMMIT else "aborted")


def _let_go_of_failed_begin(ctx: Context, name: str, attempt: str, wanted: Verdict) -> None:
    """Who commits by a name means the attempt that has it; to roll that name back later means the same one."""
    failed = ctx.failed_begins.get(name)
    if wanted is Verdict.COMMIT and failed is not None and failed.attempt != attempt:
        ctx.failed_begins.pop(name, None)


def _roll_back_failed_begin(ctx: Context, name: str, failed: FailedBegin) -> Script[Result]:
    """Quiet, so that an `except` block can always call it; about this process's own attempt and nobody else's."""
    if not failed.harmless:
        # Its row or its last prepare may have got lost on the way: only the register can say that it is over.
        why = "its begin failed"
        try:
            yield from require_owned(ctx)  # a COMMIT among them may be this one's, by another process
            # Whoever is in doubt may have staged it, and others may have seen that: its name stays reserved.
            stands = yield from register.decide(ctx, _abort(ctx, failed.attempt, name, (), why, frees_name=False))
        except UnreadableRecord:
            raise
        except NoDoubtError as error:
            raise JournalUnavailable(f"the journal does not say whether {name!r} is aborted: {error}") from error
        _require_outcome(name, stands.verdict, Verdict.ABORT)
        ctx.remember_failed_begin(name, failed.attempt, harmless=True)
    return Result(name, failed.attempt, State.ABORTED, True)


def _decided_before(ctx: Context, name: str, attempt: str, wanted: Verdict) -> Script[Result | None]:
    """The outcome that stands. Only a confirmed decision may be told: a row can be seen before it is flushed.

    None: there is none, or it was seen and its server has forgotten it in a crash, so start over.
    """
    try:
        standing = yield from register.confirm_one(ctx, attempt)
    except Unclear as error:
        raise JournalUnavailable(f"the journal does not say what was decided for {name!r}: {error}") from error
    if standing is None or standing.decision.name != name:
        return None
    _require_outcome(name, standing.decision.verdict, wanted)
    committed = standing.decision.verdict is Verdict.COMMIT
    state = State.COMMITTED if committed else State.ABORTED
    return Result(name, attempt, state, standing.ended or not committed)


def _branches_of(ctx: Context, staging: Staging) -> Script[dict[int, Branch]]:
    branches: dict[int, Branch] = {}
    for ref in staging.branches:
        participant = ctx.by_id(ref.resource_id)
        if participant is None and ref.resource in ctx.participants:
            participant = ctx.participants[ref.resource]
        if participant is not None:
            yield from start.admit(ctx, participant)  # whose lineage is in question decides nothing
            participant = ctx.by_id(ref.resource_id)
        if participant is None:
            raise UsageError(
                f"{staging.name!r} has a branch on {ref.resource!r}, which this coordinator does not know: name it "
                "among the resources; nothing was changed"
            )
        xid = Xid(ctx.cluster, staging.attempt, ref.number)
        branches[ref.number] = Branch(
            ref.number, participant, Work(xid, ctx.epoch.number, staged=True), prepared=Prepared(xid)
        )
    return branches


def _prepared_here(ctx: Context, branches: dict[int, Branch], *, fresh: bool) -> set[int]:
    """Those that this process has prepared a moment ago. One that its session holds must be held here still."""
    return {
        number
        for number, branch in branches.items()
        if (fresh and not branch.participant.resource.traits.holds_session) or lingering.stays(ctx, branch.work.xid)
    }


def _all_listed(ctx: Context, staging: Staging, branches: dict[int, Branch], proved: Collection[int]) -> Script[bool]:
    """Whether every branch is prepared; False if not, because somebody has decided since the record was read.

    `proved`: the numbers of those that surely are; they are not asked for.

    X must be: listed is flushed, its row alone need not be. The others were, before the row was written: one that is
    not any more was ended by a stranger, or lost with its database, and a commit would break atomicity.
    """
    asked = [one for one in branches.values() if one.number not in proved]
    outcomes = yield from every([_is_listed(ctx, branch) for branch in asked])
    missing = [branch for branch, outcome in zip(asked, outcomes, strict=True) if not outcome.get()]
    if not missing:
        return True
    if (yield from questions.look(ctx, [staging.attempt])):
        return False
    if any(branch.number == staging.last for branch in missing):
        raise StillBeginning(staging.name)
    where = ", ".join(branch.participant.name for branch in missing)
    raise Heuristic(
        f"{staging.name!r} was prepared on {where}, and is not any more: somebody ended it there, or the database was "
        "set back. Nothing was decided; look into it, then roll back what is left with rollback_distributed",
        attempt=staging.attempt,
        branches=tuple(branch.participant.name for branch in missing),
    )


def _is_listed(ctx: Context, branch: Branch) -> Script[bool]:
    participant = branch.participant

    def body(session: Session) -> Script[tuple[Prepared, ...]]:
        return participant.resource.prepared(session, ctx.cluster, branch.work.xid)

    try:
        listed = yield from told(ctx, participant.reserve, body)
    except (Refused, Unclear) as error:
        why = f"{participant.name} cannot be asked whether its branch is prepared; nothing was changed: {error}"
        raise ResourceUnavailable(why) from error
    branch.prepared = next(iter(listed), branch.prepared)
    return bool(listed)


def wait_for_live(ctx: Context, within_s: float) -> Script[None]:
    """Let the commits that are under way come to their end, at a close."""
    until = ctx.clock.elapsed() + within_s
    while ctx.live and ctx.clock.elapsed() < until:
        yield Pause(0.01)
