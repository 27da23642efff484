"""The reaper: staged transactions past their deadline, or refused, are aborted through the register and rolled back.

Any number of reapers may run at once; each takes a place of its own in the list to begin at, so that they seldom meet.
That saves work and decides nothing: which of two that meet has aborted a transaction is the register's word, and
whoever it was counts it.

Guarantees: what is reaped was decided ABORT, by this process, once; names are taken page by page, so memory does not
grow with their number; a database that is down keeps no name from being aborted, and its branches wait for the sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import NoDoubtError
from ..ports import Prepared, Session
from ..protocol.records import BranchRef, Decision, Mode, Staging, Unreadable, Verdict
from ..protocol.recovery import STALE
from ..script import Script, every
from ..xid import Xid, is_attempt
from . import register, start
from .apart import Apart, ownerless, split, tell
from .branches import End, alarm_if_committed, carry_out
from .context import Context, Participant, asked, chunks, log

PAGE_MAX = 256
AT_ONCE_MAX = 8
REFUSED = "somebody who was asked refused it"


@dataclass(slots=True)
class ReapReport:
    """What a reaper did. `reaped`: whose ABORT it has written. `trouble`: what it could not do, with the reason.

    `silent`: the resources that gave no answer when it began. `unreadable`: overdue, it may be; nobody can say.
    """

    reaped: int = 0
    rolled_back: int = 0  # branches
    trouble: dict[str, str] = field(default_factory=dict)
    silent: frozenset[str] = frozenset()
    unreadable: list[Unreadable] = field(default_factory=list)


def reap(ctx: Context) -> Script[ReapReport]:
    """Abort whatever is overdue, once through the list. By a journal that was restored nothing is decided (I15)."""
    report, apart = ReapReport(), Apart()
    try:
        first = yield from _page(ctx, "", 1)
        if not first:
            return report  # without a look at the databases, of which one may be frozen
        lineage = yield from start.lineage(ctx)
        report.trouble, report.silent = lineage.trouble, lineage.silent
        if lineage.restored:
            return report
        stray = yield from ownerless(ctx)
        if stray:
            report.unreadable += stray
            tell(ctx, stray)
            return report
        middle = _somewhere_after(ctx, first[0].attempt)
        yield from _reap_between(ctx, report, apart, middle, None)
        yield from _reap_between(ctx, report, apart, "", middle)
    except NoDoubtError as error:
        report.trouble["journal"] = str(error)
    report.unreadable += apart.values()
    tell(ctx, report.unreadable)
    return report


def _somewhere_after(ctx: Context, first: str) -> str:
    """A place between the oldest that is overdue and now, by chance. Attempts rise with time."""
    begin, end = int(first, 16) if is_attempt(first) else 0, int(ctx.ids.attempt(), 16)
    return f"{begin + int(max(end - begin, 0) * ctx.chance()):032x}"


def _page(ctx: Context, after: str, limit: int) -> Script[list[Staging | Unreadable]]:
    now = ctx.clock.now()

    def body(session: Session) -> Script[list[Staging | Unreadable]]:
        return ctx.journal.overdue(session, now, after, limit)

    return asked(ctx, ctx.journal_pool, body)


def _reap_between(ctx: Context, report: ReapReport, apart: Apart, after: str, until: str | None) -> Script[None]:
    while True:
        stagings = yield from _page(ctx, after, PAGE_MAX)
        in_time = [one for one in split(stagings, apart) if until is None or one.attempt <= until]
        mine = [one for one in in_time if one.attempt not in ctx.live]
        yield from _reap_page(ctx, report, mine)
        if len(stagings) < PAGE_MAX or (until is not None and stagings[-1].attempt > until):
            return
        after = stagings[-1].attempt


def _reap_page(ctx: Context, report: ReapReport, stagings: Sequence[Staging]) -> Script[None]:
    wanted = [_abort(ctx, staging) for staging in stagings]
    stand = yield from register.decide_all(ctx, wanted)
    ours = [staging for staging, want, got in zip(stagings, wanted, stand, strict=True) if _is_ours(want, got)]
    report.reaped += len(ours)
    for staging in ours:
        log.info("reaped %r (attempt %s): %s", staging.name, staging.attempt, _why(ctx, staging))
    prepared = yield from _handles(ctx, report)
    for part in chunks(ours, AT_ONCE_MAX):
        scripts = [_roll_back(ctx, report, one.attempt, ref, prepared) for one in part for ref in one.branches]
        for outcome in (yield from every(scripts)):
            outcome.get()
    if ours:
        log.warning("reaped %d staged transactions past their deadline or refused", len(ours))


def _is_ours(wanted: Decision, stands: Decision) -> bool:
    """Whether it was we who wrote it, even if our answer was lost and somebody had to look."""
    written = (stands.verdict, stands.owner, stands.decided_at)
    return written == (wanted.verdict, wanted.owner, wanted.decided_at)


def _abort(ctx: Context, staging: Staging) -> Decision:
    why = _why(ctx, staging)
    return Decision(
        staging.attempt,
        Verdict.ABORT,
        Mode.STAGED,
        staging.name,
        staging.branches,
        None,
        ctx.owner,
        why,
        ctx.clock.now(),
    )


def _why(ctx: Context, staging: Staging) -> str:
    return f"recovery: {STALE if staging.deadline <= ctx.clock.now() else REFUSED}"


def _handles(ctx: Context, report: ReapReport) -> Script[dict[Xid, Prepared]]:
    """Where a branch needs more than its xid to be named (MariaDB), one listing for the whole page."""
    found: dict[Xid, Prepared] = {}
    for participant in ctx.participants.values():
        if not participant.resource.traits.holds_session or participant.barred:
            continue

        def body(session: Session, participant: Participant = participant) -> Script[tuple[Prepared, ...]]:
            return participant.resource.prepared(session, ctx.cluster)

        try:
            listed = yield from asked(ctx, participant.reserve, body)
        except NoDoubtError as error:
            report.trouble[participant.name] = str(error)
            continue
        found.update((one.xid, one) for one in listed)
    return found


def _roll_back(
    ctx: Context, report: ReapReport, attempt: str, ref: BranchRef, prepared: dict[Xid, Prepared]
) -> Script[None]:
    """What cannot be reached, or is another coordinator's, is left to the sweep."""
    participant = ctx.by_id(ref.resource_id)
    if participant is None or participant.barred or participant.name in report.trouble:
        return
    xid = Xid(ctx.cluster, attempt, ref.number)
    if participant.resource.traits.holds_session and xid not in prepared:
        # Not yet prepared: a sweep will find it (I11). Or not any more, of which no sweep would hear: if somebody has
        # committed it, nobody but us knows of the abort and of this branch at the same time (I17).
        try:
            yield from alarm_if_committed(ctx, participant, xid)
        except NoDoubtError as error:
            report.trouble[participant.name] = str(error)
        return
    ending = yield from carry_out(ctx, participant, prepared.get(xid, Prepared(xid)), Verdict.ABORT)
    if ending.end is End.PROVED:
        report.rolled_back += 1
    else:
        report.trouble[participant.name] = ending.why
