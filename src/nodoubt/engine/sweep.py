"""Recovery: one sweep over every resource, by any process at any time, without a lock (I13).

What a sweep does is read from `protocol.recovery`'s table; here is how it looks and how it acts.

Guarantees: acts only on confirmed decisions; asks the register for ABORT and carries out *what it answers*; ends a
commit record only when every branch has proved itself (I6); what it may not resolve it quarantines, loudly (I17).
A resource that is down, or whose lineage is broken, keeps no other from being swept.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import JournalRestored, LineageBroken, NoDoubtError, SchemaMismatch
from ..ports import BelowFloor, Prepared, Session
from ..protocol.records import BranchRef, Decision, Mode, Quarantined, Staging, Standing, Verdict
from ..protocol.recovery import Action, Age, Known, Seen, what_is_known, what_to_do
from ..script import Script, every
from ..xid import Xid
from . import ends, register, start
from .branches import End, carry_out
from .context import Context, Participant, asked, chunks, log
from .reaper import ReapReport

PAGE_MAX = 500
AT_ONCE_MAX = 16


@dataclass(slots=True)
class SweepReport:
    """What a sweep saw and did. `trouble`: resources it could not sweep, with the reason."""

    prepared: int = 0
    committed: int = 0
    rolled_back: int = 0
    left: int = 0
    ended: int = 0
    quarantined: int = 0
    reaped: int = 0  # staged transactions past their deadline, or refused, that were aborted
    steps: Any = None  # what became of steps: a `steps.undoing.Undoing`
    trouble: dict[str, str] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Nothing was left undone that this sweep could have finished."""
        return not self.trouble and not self.quarantined


@dataclass(slots=True)
class _Found:
    """One listed branch, and who listed it; XA RECOVER lists the whole server, so that may be more than one."""

    participant: Participant
    prepared: Prepared
    listers: tuple[str, ...] = ()  # their resource ids

    def at(self, ctx: Context, resource_id: str) -> _Found | None:
        """The same branch as the resource it belongs to sees it: there is its receipt."""
        owner = ctx.by_id(resource_id) if resource_id in self.listers else None
        return None if owner is None else _Found(owner, self.prepared, self.listers)


def sweep(
    ctx: Context, *, grace_s: float, courteous: bool = False, reaped: ReapReport | None = None
) -> Script[SweepReport]:
    """One sweep. `courteous`: leave alone what this very process is at work on. `reaped`: what the reaper saw just now.

    Who gave the reaper no answer is not asked again: each look at a frozen server takes as long as it may.
    """
    report = SweepReport()
    if reaped is not None:
        report.trouble = {name: reaped.trouble[name] for name in reaped.silent}
    to_ask = [p for p in ctx.participants.values() if p.name not in report.trouble]
    listings = yield from every([_list(ctx, p) for p in to_ask])
    by_xid: dict[Xid, _Found] = {}
    reached: set[str] = set()
    for participant, outcome in zip(to_ask, listings, strict=True):
        if isinstance(outcome.error, LineageBroken):
            participant.barred = str(outcome.error)
        if isinstance(outcome.error, SchemaMismatch):
            log.error("nothing can be recovered on %s: %s", participant.name, outcome.error)
        if outcome.error is not None:
            report.trouble[participant.name] = str(outcome.error)
            continue
        reached.add(participant.resource_id)
        for prepared in outcome.get():
            one = by_xid.setdefault(prepared.xid, _Found(participant, prepared))
            one.listers += (participant.resource_id,)
    report.prepared = len(by_xid)
    if any(isinstance(outcome.error, JournalRestored) for outcome in listings):
        return report  # a journal that has forgotten decisions must decide nothing, on any resource (I15)
    found: dict[str, list[_Found]] = {}
    for one in by_xid.values():
        found.setdefault(one.prepared.xid.attempt, []).append(one)
    _forget_gone(ctx, by_xid, complete=not report.trouble)
    mine = {attempt for attempt, _ in ctx.ended} | (ctx.live if courteous else set())
    for part in chunks(sorted(set(found) - mine), PAGE_MAX):
        yield from _settle_listed(ctx, report, {attempt: found[attempt] for attempt in part}, reached, grace_s)
    yield from _settle_unlisted(ctx, report, set(found) | mine, reached, grace_s)
    yield from _prove_open(ctx, report, reached, mine)
    return report


def _list(ctx: Context, participant: Participant) -> Script[tuple[Prepared, ...]]:
    yield from start.admit(ctx, participant)
    yield from start.lineage_holds(ctx, participant)

    def body(session: Session) -> Script[tuple[Prepared, ...]]:
        return participant.resource.prepared(session, ctx.cluster)

    return (yield from asked(ctx, participant.reserve, body))


def _forget_gone(ctx: Context, listed: Collection[Xid], *, complete: bool) -> None:
    """Remember since when each branch has been seen, for servers that tell no time."""
    now = ctx.clock.elapsed()
    if complete:
        ctx.first_seen = {xid: at for xid, at in ctx.first_seen.items() if xid in listed}
    for xid in listed:
        ctx.first_seen.setdefault(xid, now)


# ---- branches that are listed ---------------------------------------------------------------------


def _settle_listed(
    ctx: Context, report: SweepReport, found: dict[str, list[_Found]], reached: set[str], grace_s: float
) -> Script[None]:
    attempts = sorted(found)
    try:
        # Confirmed, not just read: a row can be visible before it is flushed.
        standings = yield from register.confirm(ctx, attempts)

        def staged_rows(session: Session) -> Script[dict[str, Staging]]:
            return ctx.journal.staged(session, attempts)

        stagings = yield from asked(ctx, ctx.journal_pool, staged_rows)
        floor = yield from asked(ctx, ctx.journal_pool, ctx.journal.floor)
    except NoDoubtError as error:
        report.trouble["journal"] = str(error)
        return

    def one(attempt: str) -> Script[None]:
        standing, staging = standings.get(attempt), stagings.get(attempt)
        last_listed = _last_listed(staging, found[attempt], reached)
        now = ctx.clock.now()
        known = what_is_known(attempt, standing, staging, floor=floor, now=now, last_listed=last_listed)
        return _settle(ctx, report, attempt, known, standing, staging, found, grace_s)

    for part in chunks(attempts, AT_ONCE_MAX):
        for attempt, outcome in zip(part, (yield from every([one(attempt) for attempt in part])), strict=True):
            if outcome.error is not None:
                report.trouble[f"attempt {attempt}"] = str(outcome.error)


def _last_listed(staging: Staging | None, found: Sequence[_Found], reached: set[str]) -> bool | None:
    """Whether the branch that prepares last is listed; None where its server was not asked, or there is none."""
    last = None if staging is None else next((ref for ref in staging.branches if ref.number == staging.last), None)
    if last is None or last.resource_id not in reached:
        return None
    return any(one.prepared.xid.branch == last.number for one in found)


def _settle_unlisted(
    ctx: Context, report: SweepReport, others: set[str], reached: set[str], grace_s: float
) -> Script[None]:
    """Names without a decision and without a branch that is listed: their begin died before its last prepare.

    Left alone they would look alive for ever, and hold retention's floor down.
    """
    after, seen = "", set[str]()
    while True:

        def page(session: Session, after: str = after) -> Script[list[Staging]]:
            return ctx.journal.undecided(session, after, PAGE_MAX)

        try:
            stagings = yield from asked(ctx, ctx.journal_pool, page)
            for staging in stagings:
                if staging.attempt in others:
                    continue
                seen.add(staging.attempt)
                # Since this sweeper first saw it: its own clock may be wrong, and the listing is older than the name.
                first = ctx.names_seen.setdefault(staging.attempt, ctx.clock.elapsed())
                age = Age.OLD if ctx.clock.elapsed() - first >= grace_s else Age.YOUNG
                last_listed = _last_listed(staging, (), reached)
                undecided = what_is_known(
                    staging.attempt, None, staging, floor="", now=ctx.clock.now(), last_listed=last_listed
                )
                row = what_to_do(undecided, Seen.ABSENT, age)
                if row.action is Action.FENCE and not (yield from _listed_by_now(ctx, staging)):
                    yield from register.decide(ctx, _abort(ctx, staging.attempt, staging, (), row.why))
        except NoDoubtError as error:
            report.trouble["journal"] = str(error)
            return
        if len(stagings) < PAGE_MAX:
            ctx.names_seen = {attempt: at for attempt, at in ctx.names_seen.items() if attempt in seen}
            return
        after = stagings[-1].attempt


def _listed_by_now(ctx: Context, staging: Staging) -> Script[bool]:
    """Whether a branch of it is prepared after all: the sweep's listing may be older than its last prepare."""
    if staging.deadline <= ctx.clock.now():
        return False
    for ref in staging.branches:
        participant = ctx.by_id(ref.resource_id)
        if participant is not None:
            listed = yield from _list(ctx, participant)
            if any(one.xid.attempt == staging.attempt for one in listed):
                return True
    return False


def _settle(
    ctx: Context,
    report: SweepReport,
    attempt: str,
    known: Known,
    standing: Standing | None,
    staging: Staging | None,
    found: dict[str, list[_Found]],
    grace_s: float,
) -> Script[None]:
    branches = found[attempt]
    # The oldest branch speaks for the attempt: a decision is about all of them.
    age = Age.OLD if max(_age_s(ctx, one.prepared) for one in branches) >= grace_s else Age.YOUNG
    row = what_to_do(known, Seen.PREPARED, age)
    decision = None if standing is None else standing.decision
    if row.action is Action.LOOK_AGAIN:
        branches = yield from _still_listed(ctx, branches)
        row = what_to_do(known, Seen.PREPARED_STILL, age)
    if row.action is Action.FENCE:
        try:
            decision = yield from register.decide(ctx, _abort(ctx, attempt, staging, branches, row.why))
        except BelowFloor:
            row = what_to_do(Known.BELOW_FLOOR, Seen.PREPARED_STILL, age)
    if row.action is Action.LEAVE:
        report.left += len(branches)
        return
    for one in branches:
        if row.action is Action.QUARANTINE:
            xid = one.prepared.xid
            yield from _quarantine(ctx, report, attempt, xid.branch, one.participant.name, f"{known.value}: {row.why}")
        elif decision is not None:
            yield from _carry_out(ctx, report, one, decision)


def _age_s(ctx: Context, prepared: Prepared) -> float:
    seen = ctx.clock.elapsed() - ctx.first_seen.get(prepared.xid, ctx.clock.elapsed())
    return seen if prepared.age_s is None else max(prepared.age_s, seen)


def _still_listed(ctx: Context, branches: Sequence[_Found]) -> Script[list[_Found]]:
    still: list[_Found] = []
    for one in branches:
        listed = yield from _list(ctx, one.participant)
        still += [one for again in listed if again.xid == one.prepared.xid]
    return still


def _abort(ctx: Context, attempt: str, staging: Staging | None, branches: Sequence[_Found], why: str) -> Decision:
    refs = tuple(
        BranchRef(one.prepared.xid.branch, one.participant.name, one.participant.resource_id) for one in branches
    )
    return Decision(
        attempt,
        Verdict.ABORT,
        Mode.ONCE if staging is None else Mode.STAGED,
        "" if staging is None else staging.name,
        refs if staging is None else staging.branches,
        owner=ctx.owner,
        reason=f"recovery: {why}",
        decided_at=ctx.clock.now(),
    )


def _carry_out(ctx: Context, report: SweepReport, one: _Found, decision: Decision) -> Script[None]:
    xid, participant = one.prepared.xid, one.participant
    if decision.verdict is Verdict.COMMIT:
        ref = next((ref for ref in decision.branches if ref.number == xid.branch), None)
        if ref is None:
            why = "its attempt was committed without it"
            yield from _quarantine(ctx, report, xid.attempt, xid.branch, participant.name, why)
            return
        owned = one.at(ctx, ref.resource_id)
        if owned is None:
            return  # it belongs to another database of that server, which is for its own coordinators to commit
        participant = owned.participant
    ending = yield from carry_out(ctx, participant, one.prepared, decision.verdict)
    if ending.end is End.OPEN:
        report.trouble[f"{participant.name} {xid.gid}"] = ending.why
    elif decision.verdict is Verdict.COMMIT:
        report.committed += 1
    else:
        report.rolled_back += 1


# ---- commit records that are open -----------------------------------------------------------------


def _prove_open(ctx: Context, report: SweepReport, reached: set[str], mine: set[str]) -> Script[None]:
    """Each branch of each open commit must prove itself, or be committed; then, and only then, the record ends."""
    after = ""
    while True:

        def page(session: Session, after: str = after) -> Script[list[Standing]]:
            return ctx.journal.open_commits(session, after, PAGE_MAX)

        try:
            standings = yield from asked(ctx, ctx.journal_pool, page)
        except NoDoubtError as error:
            report.trouble["journal"] = str(error)
            return
        theirs = [s for s in standings if s.decision.attempt not in mine]
        for part in chunks(theirs, AT_ONCE_MAX):
            outcomes = yield from every([_prove(ctx, report, s.decision, reached) for s in part])
            proved = [s.decision for s, o in zip(part, outcomes, strict=True) if o.error is None and o.get()]
            for standing, outcome in zip(part, outcomes, strict=True):
                if outcome.error is not None:
                    report.trouble[f"attempt {standing.decision.attempt}"] = str(outcome.error)
            yield from _end(ctx, report, proved)
        if len(standings) < PAGE_MAX:
            return
        after = standings[-1].decision.attempt


def _prove(ctx: Context, report: SweepReport, decision: Decision, reached: set[str]) -> Script[bool]:
    """Whether every branch of a commit has proved itself; carries out what has not been."""
    done = True
    for ref in decision.branches:
        if ref.number == decision.point:
            continue  # the row is in its own local commit
        participant = ctx.by_id(ref.resource_id)
        if participant is None or ref.resource_id not in reached:
            done = False
            continue
        done &= yield from _prove_branch(ctx, report, decision, ref, participant)
    return done


def _prove_branch(
    ctx: Context, report: SweepReport, decision: Decision, ref: BranchRef, participant: Participant
) -> Script[bool]:
    xid = Xid(ctx.cluster, decision.attempt, ref.number)

    def receipt(session: Session) -> Script[bool]:
        return participant.resource.receipt(session, xid)

    def listed(session: Session) -> Script[tuple[Prepared, ...]]:
        return participant.resource.prepared(session, ctx.cluster)

    for seen in (Seen.ABSENT, Seen.ABSENT_STILL):
        if (yield from asked(ctx, participant.reserve, receipt)):
            return True
        for prepared in (yield from asked(ctx, participant.reserve, listed)):
            if prepared.xid == xid:
                yield from _confirmed_commit(ctx, report, participant, prepared)
                return False  # the next sweep looks for its receipt
        if (yield from asked(ctx, participant.reserve, receipt)):
            return True  # it was committed between the two looks
        standing = (yield from register.confirm(ctx, [decision.attempt])).get(decision.attempt)
        known = Known.COMMIT
        if standing is None or standing.ended:
            known = Known.COMMIT_ENDED  # another recoverer has ended it, or retention has
        row = what_to_do(known, seen, Age.OLD)
        if row.action is Action.DONE:
            return True
        if row.action is Action.QUARANTINE:
            yield from _quarantine(ctx, report, decision.attempt, ref.number, participant.name, f"heuristic: {row.why}")
    return False


def _confirmed_commit(ctx: Context, report: SweepReport, participant: Participant, prepared: Prepared) -> Script[None]:
    standing = (yield from register.confirm(ctx, [prepared.xid.attempt])).get(prepared.xid.attempt)
    if standing is not None and not standing.ended:
        yield from _carry_out(ctx, report, _Found(participant, prepared, (participant.resource_id,)), standing.decision)


def _end(ctx: Context, report: SweepReport, proved: Sequence[Decision]) -> Script[None]:
    if not proved:
        return
    with ctx.lock:
        for decision in proved:
            xids = tuple(Xid(ctx.cluster, decision.attempt, ref.number) for ref in decision.branches)
            ctx.ended.append((decision.attempt, xids))
    yield from ends.flush(ctx)
    report.ended += len(proved)


def _quarantine(ctx: Context, report: SweepReport, attempt: str, branch: int, resource: str, why: str) -> Script[None]:
    report.quarantined += 1
    log.error("QUARANTINED: branch %d of %s on %s: %s. A human must look.", branch, attempt, resource, why)

    def body(session: Session) -> Script[None]:
        entry = Quarantined(attempt, branch, resource, why, ctx.clock.now())
        return ctx.journal.quarantine(session, entry)

    yield from asked(ctx, ctx.journal_pool, body)


__all__ = ["SweepReport", "sweep"]
