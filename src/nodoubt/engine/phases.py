"""Drives the commit machine: writes its records, runs its commands at the same time, reports what was answered.

Guarantees: records before commands; every command is answered by exactly one event; "no answer" is reported as such;
nothing raised by a database changes what the machine is told. Runs shielded from the caller (see `shell`).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..errors import (
    DuplicateTransaction,
    InDoubt,
    JournalUnavailable,
    NoDoubtError,
    TransactionAborted,
    UnreadableRecord,
)
from ..ports import BelowFloor, Conflict, Prepared, Refused, Session, SessionLost, readable
from ..protocol.commands import (
    Answer,
    Command,
    Commit,
    CommitAlone,
    CommitPoint,
    Ended,
    EndReader,
    Fence,
    Prepare,
    Record,
    Rollback,
    Settle,
    Undo,
)
from ..protocol.commit import CommitMachine, Phase
from ..protocol.events import (
    Decided,
    Declined,
    Event,
    Finished,
    Listed,
    NotListed,
    Undecided,
    Unfinished,
    Vote,
    Voted,
)
from ..protocol.records import Decision, Mode, Staging, Standing, Unreadable, Verdict
from ..script import Pause, Script, every
from . import ends, lingering, register
from .attempt import Attempt, Branch, undo
from .branches import End, carry_out
from .context import ENDED_MAX, Context, asked, backoff, bounded, log, using


class Course(msgspec.Struct):
    """One attempt under way: the machine, its branches by number, and what is still to be done after the answer."""

    attempt: Attempt
    machine: CommitMachine
    branches: dict[int, Branch]
    commands: list[Command] = msgspec.field(default_factory=list)
    answer: Answer | None = None

    @property
    def complete(self) -> bool:
        """Phase two is over and every branch has proved itself."""
        return self.machine.phase is Phase.COMMITTED and not self.machine.unfinished


def to_answer(ctx: Context, course: Course, event: Event) -> Script[Answer]:
    """Go on until the caller may honestly be told something; what is left to do stays in `course.commands`."""
    try:
        yield from _advance(ctx, course, [event])
        while course.answer is None:
            yield from _turn(ctx, course)
        return course.answer
    except BaseException:
        _drop(ctx, course)
        raise


def to_end(ctx: Context, course: Course) -> Script[None]:
    """Do what is left: phase two, or taking back."""
    try:
        while course.commands:
            yield from _turn(ctx, course)
    finally:
        _drop(ctx, course)
    if len(ctx.ended) >= ENDED_MAX:
        yield from ends.flush_or_keep(ctx)  # without recovery in the background nobody else would


def _turn(ctx: Context, course: Course) -> Script[None]:
    commands, course.commands = course.commands, []
    if len(commands) == 1:
        events = [(yield from _answered(ctx, course, commands[0]))]
    else:
        outcomes = yield from every([_answered(ctx, course, command) for command in commands])
        events = [outcome.get() for outcome in outcomes]
    yield from _advance(ctx, course, events)


def _drop(ctx: Context, course: Course) -> None:
    """Whatever is still held was never accounted for: end it, and leave its branches to recovery."""
    ctx.live.discard(course.attempt.id)
    for branch in course.branches.values():
        branch.let_go(kill=True)


def _advance(ctx: Context, course: Course, events: Sequence[Event]) -> Script[None]:
    """Report the events; write the records they lead to, whose answers are events in turn."""
    queue = list(events)
    for event in queue:
        ready = course.machine.step(event)
        course.attempt.aborted = course.machine.stands is Verdict.ABORT
        course.commands += ready.commands
        course.answer = course.answer or ready.answer
        if ready.answer is not None:
            _notice_answer(ctx, course, ready.answer)
        for record in ready.records:
            answered = yield from _write(ctx, course, record, forced=ready.must_sync)
            if answered is not None:
                queue.append(answered)


def _notice_answer(ctx: Context, course: Course, answer: Answer) -> None:
    match answer:
        case Answer.COMMITTED:
            ctx.notice("P6", course.attempt.id, "committed")
        case Answer.ABORTED:
            ctx.notice("P6", course.attempt.id, "aborted", why=course.machine.why)
        case Answer.STAGED:
            ctx.notice("P4", course.attempt.id, "staged")
        case Answer.IN_DOUBT:
            ctx.notice("P5", course.attempt.id, "in doubt", why=course.machine.why)


def _write(ctx: Context, course: Course, record: Record, *, forced: bool) -> Script[Event | None]:
    match record:
        case Decision():
            if record.mode is Mode.ONCE:
                ctx.notice("P4", course.attempt.id, "all prepared")
            ctx.notice("P5", course.attempt.id, "deciding")
            return (yield from _decide(ctx, course, record))
        case Staging():
            return (yield from _list(ctx, course, record, forced=forced))
        case Ended():
            ctx.notice("P9", course.attempt.id, "every branch proved")
            with ctx.lock:
                ctx.ended.append((course.attempt.id, course.machine.plan.decision.branches))
            return None


def _decide(ctx: Context, course: Course, wanted: Decision) -> Script[Event]:
    try:
        stands = yield from register.decide(ctx, wanted)
    except (register.NotDecided, BelowFloor) as error:
        course.attempt.cause = error
        return Declined(str(error))
    except NoDoubtError as error:
        course.attempt.cause = error
        return Undecided(str(error))
    return Decided(stands.verdict, stands.reason)


def _list(ctx: Context, course: Course, staging: Staging, *, forced: bool) -> Script[Event]:
    def body(session: Session) -> Script[None]:
        return ctx.journal.stage(session, staging, replace=course.attempt.replace, forced=forced)

    try:
        yield from bounded(using(ctx.journal_pool, body), ctx.settings.decide_s, ctx.clock)
    except NoDoubtError as error:
        course.attempt.cause = error
        if isinstance(error, Conflict) and (yield from _taken(ctx, course.attempt)):
            course.attempt.cause = DuplicateTransaction(course.attempt.name, state="live, or ended and still reserved")
        return NotListed(str(error))
    return Listed()


def _taken(ctx: Context, attempt: Attempt) -> Script[bool]:
    """Whether the row was refused because somebody else lives under the name, or because this attempt was fenced."""

    def body(session: Session) -> Script[Staging | Unreadable | None]:
        return ctx.journal.find(session, attempt.name)

    try:
        found = yield from asked(ctx, ctx.journal_pool, body)
    except NoDoubtError:
        return False
    return found is not None and found.attempt != attempt.id


def _answered(ctx: Context, course: Course, command: Command) -> Script[Event]:
    match command:
        case Prepare(number, row):
            return _prepare(ctx, course, course.branches[number], row)
        case CommitPoint(number, row):
            return _commit_point(ctx, course, course.branches[number], row)
        case Commit(number):
            return _second_phase(ctx, course, course.branches[number], Verdict.COMMIT)
        case Rollback(number):
            return _second_phase(ctx, course, course.branches[number], Verdict.ABORT)
        case CommitAlone(number):
            return _commit_here(ctx, course, course.branches[number], ())
        case EndReader(number):
            return _end_reader(ctx, course, course.branches[number])
        case Settle(number):
            return _settle(ctx, course.branches[number])
        case Fence():
            return _fence(ctx, course, command)
        case Undo(number):
            return _undo(ctx, course.branches[number])


def _undo(ctx: Context, branch: Branch) -> Script[Event]:
    yield from bounded(undo(branch), ctx.settings.prepare_s, ctx.clock)
    return Finished(branch.number)


def _prepare(ctx: Context, course: Course, branch: Branch, row: Staging | None) -> Script[Event]:
    attempt, resource, session = course.attempt, branch.participant.resource, branch.session
    assert session is not None
    riders = () if row is None else ctx.journal.staging_rows(row, replace=attempt.replace)
    ctx.notice("P3", attempt.id, "prepare", branch.number, resource=branch.participant.name)
    try:
        yield from bounded(resource.prepare(session, branch.work, riders=riders), ctx.settings.prepare_s, ctx.clock)
        if attempt.mode is Mode.STAGED and not lingering.stay(ctx, branch):
            yield from bounded(resource.detach(session), ctx.settings.prepare_s, ctx.clock)
            branch.let_go()
    except Refused as error:
        attempt.cause = attempt.cause or error
        yield from bounded(undo(branch), ctx.settings.prepare_s, ctx.clock)
        return Voted(branch.number, Vote.NO, f"{branch.participant.name} refused to prepare: {error}")
    except Exception as error:
        attempt.cause = attempt.cause or error
        if not isinstance(error, (NoDoubtError, SessionLost)):
            log.exception("prepare of branch %d of %s", branch.number, attempt.id)
        branch.let_go(kill=True)
        return Voted(branch.number, Vote.UNKNOWN, f"{branch.participant.name} gave no answer to prepare: {error}")
    branch.prepared = Prepared(branch.work.xid, handle=branch.work.handle)
    ctx.notice("P3", attempt.id, "prepared", branch.number, resource=branch.participant.name)
    return Voted(branch.number, Vote.YES)


def _end_reader(ctx: Context, course: Course, branch: Branch) -> Script[Event]:
    resource, session = branch.participant.resource, branch.session
    assert session is not None
    try:
        yield from bounded(resource.end_reader(session, branch.work), ctx.settings.prepare_s, ctx.clock)
    except Exception as error:
        # A reader that did not end cleanly has nothing to lose; but what it read may not stand.
        course.attempt.cause = course.attempt.cause or error
        branch.let_go(kill=True)
        return Voted(branch.number, Vote.NO, f"the reads on {branch.participant.name} do not stand: {error}")
    branch.let_go()
    return Voted(branch.number, Vote.READ_ONLY)


def _commit_here(ctx: Context, course: Course, branch: Branch, riders: Sequence[str]) -> Script[Event]:
    """The one-phase commit of the branch on its own session: alone, or with the decision riding in it."""
    resource, session = branch.participant.resource, branch.session
    assert session is not None
    ctx.notice("P5", course.attempt.id, "deciding", branch.number, resource=branch.participant.name)
    try:
        yield from bounded(
            resource.commit_alone(session, branch.work, riders=riders), ctx.settings.prepare_s, ctx.clock
        )
    except Refused as error:
        course.attempt.cause = error
        yield from bounded(undo(branch), ctx.settings.prepare_s, ctx.clock)
        if isinstance(error, BelowFloor):
            course.attempt.cause = (yield from _no_floor(ctx)) or error
        return Declined(f"{branch.participant.name} refused to commit: {course.attempt.cause}")
    except Exception as error:
        course.attempt.cause = error
        branch.let_go(kill=True)
        return Undecided(f"{branch.participant.name} gave no answer to commit: {error}")
    branch.let_go()
    return Decided(Verdict.COMMIT)


def _no_floor(ctx: Context) -> Script[NoDoubtError | None]:
    """Whether the floor that has refused a decision cannot even be read: a human must know."""
    try:
        yield from asked(ctx, ctx.journal_pool, ctx.journal.floor)
    except UnreadableRecord as error:
        return error
    except NoDoubtError:
        return None
    return None


def _commit_point(ctx: Context, course: Course, branch: Branch, row: Decision) -> Script[Event]:
    rows = ctx.journal.decision_rows(row)
    if course.attempt.mode is Mode.ONCE:
        ctx.notice("P4", course.attempt.id, "all prepared")
        return (yield from _commit_here(ctx, course, branch, rows))
    # Staged, X is prepared: its phase two carries the decision, in the same server session.
    resource, prepared = branch.participant.resource, branch.prepared
    assert prepared is not None
    inside = resource.traits.riders_on_prepare

    def body(session: Session) -> Script[None]:
        before, riders = ((), rows) if inside else (rows, ())
        return resource.commit_prepared(session, prepared, before=before, riders=riders)

    ctx.notice("P5", course.attempt.id, "deciding", branch.number, resource=branch.participant.name)
    try:
        yield from bounded(using(branch.participant.reserve, body), ctx.settings.prepare_s, ctx.clock)
    except Conflict as error:
        return Declined(str(error))
    except Exception as error:
        # Also where X is unknown: the rows before it may stand, and the register has the last word.
        course.attempt.cause = error
        return Undecided(f"{branch.participant.name} gave no answer to commit: {error}")
    return Decided(Verdict.COMMIT)


def _settle(ctx: Context, branch: Branch) -> Script[Event]:
    """The reply to a one-phase commit was lost: fence its receipt, and learn from whether the fence stands."""
    until = ctx.clock.elapsed() + ctx.settings.decide_s

    def body(session: Session) -> Script[Verdict]:
        return branch.participant.resource.fence(session, branch.work.xid)

    for pause_s in backoff():
        left_s = until - ctx.clock.elapsed()
        try:
            verdict = yield from bounded(using(branch.participant.reserve, body), max(left_s, 0.001), ctx.clock)
        except NoDoubtError as error:
            if left_s <= pause_s:
                return Undecided(f"{branch.participant.name} does not tell whether it committed: {error}")
        else:
            if verdict is Verdict.ABORT and ends.may_be_forgotten(ctx, branch.work.xid.attempt):
                return Undecided("it is so old that its receipt may have been removed")
            return Decided(verdict, "its reply was lost, and its receipt's place is fenced")
        yield Pause(pause_s)
    raise AssertionError("backoff does not end")


def _fence(ctx: Context, course: Course, fence: Fence) -> Script[Event]:
    attempt, why = course.attempt, fence.why
    plan = course.machine.plan.decision
    wanted = Decision(
        attempt.id,
        Verdict.ABORT,
        plan.mode,
        plan.name,
        plan.branches,
        owner=ctx.owner,
        reason=why,
        decided_at=ctx.clock.now(),
        frees_name=fence.frees_name,
    )
    try:
        stands = yield from register.decide(ctx, wanted)
    except NoDoubtError as error:
        attempt.cause = attempt.cause or error
        return Undecided(f"{why}; and then: {error}")
    return Decided(stands.verdict, stands.reason)


def _second_phase(ctx: Context, course: Course, branch: Branch, verdict: Verdict) -> Script[Event]:
    attempt = course.attempt
    if branch.session is None:
        lingering.rejoin(ctx, branch)
    prepared = branch.prepared or Prepared(branch.work.xid, handle=branch.work.handle)
    if verdict is Verdict.COMMIT:
        ctx.notice("P8", attempt.id, "commit", branch.number, resource=branch.participant.name)
    ending = yield from carry_out(ctx, branch.participant, prepared, verdict, session=branch.session)
    branch.let_go(kill=ending.end is not End.PROVED)
    if ending.end is End.ABSENT and (yield from _has_ended(ctx, attempt.id)):
        return Finished(branch.number)
    if ending.end is not End.PROVED:
        log.warning("branch %d of %s is left to recovery: %s", branch.number, attempt.id, ending.why)
        return Unfinished(branch.number, ending.why)
    if verdict is Verdict.COMMIT:
        ctx.notice("P7", attempt.id, "branch committed", branch.number, resource=branch.participant.name)
    return Finished(branch.number)


def _has_ended(ctx: Context, attempt: str) -> Script[bool]:
    """Whether another has ended the commit: each of its branches has proved itself (I6), or an operator has vouched for
    it, and its receipt may be gone.

    Read after the receipt was looked for. Confirmed, in one try: recovery has more time than the caller.
    """

    def body(session: Session) -> Script[dict[str, Standing | Unreadable]]:
        return ctx.journal.confirm(session, [attempt])

    try:
        standing = readable((yield from asked(ctx, ctx.journal_pool, body)).get(attempt))
    except (NoDoubtError, SessionLost) as error:
        log.warning("the journal does not say whether %s has ended: %s", attempt, error)
        return False
    return standing is not None and standing.decision.verdict is Verdict.COMMIT and standing.ended


def raise_for(course: Course) -> None:
    """Turn an answer that is not the wished one into its error."""
    attempt, machine = course.attempt, course.machine
    match course.answer:
        case Answer.ABORTED:
            if isinstance(attempt.cause, DuplicateTransaction):
                raise attempt.cause
            if isinstance(attempt.cause, register.NotDecided) and not isinstance(attempt.cause, register.NoFloor):
                raise JournalUnavailable(
                    f"the journal cannot be reached, so {attempt.name or attempt.id!r} was rolled back: {machine.why}"
                ) from attempt.cause
            raise TransactionAborted(
                f"{attempt.name or attempt.id!r} was rolled back everywhere: {machine.why}",
                name=attempt.name,
                attempt=attempt.id,
            ) from attempt.cause
        case Answer.IN_DOUBT:
            raise InDoubt(machine.why, name=attempt.name or None, attempt=attempt.id) from attempt.cause
        case _:
            return
