"""Recovery: one sweep over every resource, by any process at any time, without a lock (I13).

What a sweep does is read from `protocol.recovery`'s table; here is how it looks and how it acts.

Guarantees: acts only on confirmed decisions; asks the register for ABORT and carries out *what it answers*; ends a
commit record only when every branch has proved itself (I6); what it may not resolve it quarantines, loudly (I17).
A resource that is down, or whose lineage is broken, keeps no other from being swept, and a row of the journal that
cannot be read keeps no other from being carried out: what hangs on it is left as it is, and told. Its listings do not
grow in number with what is prepared: what must be looked for again is looked for all together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import JournalRestored, LineageBroken, NoDoubtError, SchemaMismatch, UnreadableRecord
from ..ports import BelowFloor, Prepared, Session
from ..protocol.records import BranchRef, Decision, Mode, Staging, Standing, Unreadable, Verdict
from ..protocol.recovery import Action, Age, Known, Seen, what_is_known, what_to_do
from ..script import Script, every
from ..xid import Xid
from . import ends, register, start
from .apart import Apart, ownerless, split, tell
from .branches import End, alarm_if_committed, carry_out, has_receipt, may_have_committed, quarantine
from .context import Context, Participant, asked, chunks, log
from .reaper import ReapReport

PAGE_MAX = 500
AT_ONCE_MAX = 16
SEEN_MAX = 10_000  # branches of which it is remembered since when they are seen, while not every database answers


@dataclass(slots=True)
class SweepReport:
    """What a sweep saw and did. `trouble`: resources it could not sweep, with the reason.

    `unreadable`: rows of the journal that cannot be read. Nothing that hangs on one was done; a human must look.
    `presumed`: whether what has no decision was taken to have none. Not while one of those rows may be anybody's.
    """

    prepared: int = 0
    committed: int = 0
    rolled_back: int = 0
    left: int = 0
    ended: int = 0
    quarantined: int = 0
    presumed: bool = True
    reaped: int = 0  # staged transactions past their deadline, or refused, that were aborted
    steps: Any = None  # what became of steps: a `steps.undoing.Undoing`
    trouble: dict[str, str] = field(default_factory=dict)
    unreadable: list[Unreadable] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Nothing was left undone that this sweep could have finished, and nothing needs a human."""
        return not self.trouble and not self.quarantined and not self.unreadable


@dataclass(slots=True)
class _Found:
    """One listed branch, and who listed it; XA RECOVER lists the whole server, so that may be more than one."""

    participant: Participant
    prepared: Prepared
    listers: tuple[str, ...] = ()  # their resource ids
    age_s: float = 0.0  # as of the listing: what is seen to be missing was missing then

    def at(self, ctx: Context, resource_id: str) -> _Found | None:
        """The same branch as the resource it belongs to sees it: there is its receipt."""
        owner = ctx.by_id(resource_id) if resource_id in self.listers else None
        return None if owner is None else _Found(owner, self.prepared, self.listers)


@dataclass(frozen=True, slots=True)
class _Missing:
    """A branch of an open commit that has not proved itself."""

    decision: Decision
    xid: Xid
    participant: Participant


@dataclass(slots=True)
class _Sweep:
    """One sweep under way, and what it has to look for again."""

    ctx: Context
    report: SweepReport
    grace_s: float
    reached: set[str] = field(default_factory=set)  # resources that were listed
    mine: set[str] = field(default_factory=set)  # attempts that are this process's own business
    proved: set[Xid] = field(default_factory=set)  # branches whose commit has been acknowledged to this very sweep
    again: list[tuple[Known, _Found]] = field(default_factory=list)  # the record may be newer than the listing
    unknown: list[tuple[Decision, _Found]] = field(default_factory=list)  # their server knows no such branch
    apart: Apart = field(default_factory=dict)  # rows that cannot be read


def sweep(
    ctx: Context, *, grace_s: float, courteous: bool = False, reaped: ReapReport | None = None
) -> Script[SweepReport]:
    """One sweep. `courteous`: leave alone what this very process is at work on. `reaped`: what the reaper saw just now.

    Who gave the reaper no answer is not asked again: each look at a frozen server takes as long as it may.
    """
    report = SweepReport()
    if reaped is not None:
        report.trouble = {name: reaped.trouble[name] for name in reaped.silent}
    run = _Sweep(ctx, report, grace_s)
    yield from _sweep(run, courteous=courteous)
    told = {one.key: one for one in reaped.unreadable} if reaped is not None else {}
    tell(ctx, [one for key, one in run.apart.items() if key not in told])
    report.unreadable = list((told | run.apart).values())
    return report


def _sweep(run: _Sweep, *, courteous: bool) -> Script[None]:
    ctx, report = run.ctx, run.report
    began = ctx.clock.elapsed()
    to_ask = [p for p in ctx.participants.values() if p.name not in report.trouble]
    listings = yield from every([_list(ctx, p) for p in to_ask])
    by_xid: dict[Xid, _Found] = {}
    for participant, outcome in zip(to_ask, listings, strict=True):
        if isinstance(outcome.error, LineageBroken):
            participant.barred = str(outcome.error)
        if isinstance(outcome.error, SchemaMismatch):
            log.error("nothing can be recovered on %s: %s", participant.name, outcome.error)
        if outcome.error is not None:
            report.trouble[participant.name] = str(outcome.error)
            continue
        run.reached.add(participant.resource_id)
        for prepared in outcome.get():
            one = by_xid.setdefault(prepared.xid, _Found(participant, prepared))
            one.listers += (participant.resource_id,)
    report.prepared = len(by_xid)
    if any(isinstance(outcome.error, JournalRestored) for outcome in listings):
        return  # a journal that has forgotten decisions must decide nothing, on any resource (I15)
    _tell_ages(ctx, by_xid, began, complete=not report.trouble)
    try:
        stray = yield from ownerless(ctx)
    except NoDoubtError as error:
        report.trouble["journal"] = str(error)
        return
    split(stray, run.apart)
    report.presumed = not stray
    found: dict[str, list[_Found]] = {}
    for one in by_xid.values():
        found.setdefault(one.prepared.xid.attempt, []).append(one)
    run.mine = {attempt for attempt, _ in ctx.ended} | (ctx.live if courteous else set())
    for part in chunks(sorted(set(found) - run.mine), PAGE_MAX):
        yield from _settle_listed(run, {attempt: found[attempt] for attempt in part})
    yield from _look_again(run)
    yield from _settle_unlisted(run, set(found) | run.mine)
    yield from _prove_open(run)


def _list(ctx: Context, participant: Participant) -> Script[tuple[Prepared, ...]]:
    yield from start.admit(ctx, participant)
    yield from start.lineage_holds(ctx, participant)

    def body(session: Session) -> Script[tuple[Prepared, ...]]:
        return participant.resource.prepared(session, ctx.cluster)

    return (yield from asked(ctx, participant.reserve, body))


def _list_anew(run: _Sweep, participants: Iterable[Participant]) -> Script[dict[str, dict[Xid, Prepared]]]:
    """What is prepared now, by resource id; who can't be asked is not in it, and told of."""
    which = list({p.resource_id: p for p in participants}.values())
    listed: dict[str, dict[Xid, Prepared]] = {}
    for participant, outcome in zip(which, (yield from every([_list(run.ctx, p) for p in which])), strict=True):
        if outcome.error is None:
            listed[participant.resource_id] = {one.xid: one for one in outcome.get()}
        else:
            run.report.trouble[participant.name] = str(outcome.error)
    return listed


def _tell_ages(ctx: Context, listed: dict[Xid, _Found], began: float, *, complete: bool) -> None:
    """How old each branch was when the listing began; and since when it has been seen, for servers that tell no time.

    Not how old it is when its turn comes. A sweep that stalls knows no more than what it saw, and what it saw missing
    beside an old branch may be there by then.
    """
    now = ctx.clock.elapsed()
    if complete or len(ctx.first_seen) > SEEN_MAX:  # of what is away, the grace then begins again as it is back
        ctx.first_seen = {xid: at for xid, at in ctx.first_seen.items() if xid in listed}
    for xid, one in listed.items():
        seen_s = began - ctx.first_seen.setdefault(xid, now)
        told_s = 0.0 if one.prepared.age_s is None else one.prepared.age_s - (now - began)
        one.age_s = max(seen_s, told_s, 0.0)


def _each(run: _Sweep, scripts: Sequence[tuple[str, Script[None]]]) -> Script[None]:
    """One script per attempt, some at a time; one that fails is told of, and keeps no other from its turn."""

    def lane(part: Sequence[tuple[str, Script[None]]]) -> Script[None]:
        for attempt, script in part:
            try:
                yield from script
            except Exception as error:
                run.report.trouble[f"attempt {attempt}"] = str(error)

    count = min(len(scripts), AT_ONCE_MAX)
    for outcome in (yield from every([lane(scripts[number::count]) for number in range(count)])):
        outcome.get()


# ---- branches that are listed ---------------------------------------------------------------------


def _settle_listed(run: _Sweep, found: dict[str, list[_Found]]) -> Script[None]:
    ctx, attempts = run.ctx, sorted(found)
    try:
        # Confirmed, not just read: a row can be visible before it is flushed.
        standings = yield from register.confirm(ctx, attempts)

        def staged_rows(session: Session) -> Script[dict[str, Staging | Unreadable]]:
            return ctx.journal.staged(session, attempts)

        stagings = yield from asked(ctx, ctx.journal_pool, staged_rows)
        floor = yield from _floor(ctx)
    except NoDoubtError as error:
        run.report.trouble["journal"] = str(error)
        return

    def one(attempt: str) -> Script[None]:
        standing, staging = standings.get(attempt), stagings.get(attempt)
        if isinstance(standing, Unreadable) or (standing is None and isinstance(staging, Unreadable)):
            run.report.left += len(found[attempt])  # not "nothing": what it says is not known, and may be COMMIT
            return
        if isinstance(staging, Unreadable):
            staging = None  # what is decided names its branches itself
        last_listed = _last_listed(staging, found[attempt], run.reached)
        now = ctx.clock.now()
        known = what_is_known(attempt, standing, staging, floor=floor, now=now, last_listed=last_listed)
        yield from _settle(run, attempt, known, standing, staging, found[attempt])

    split([*standings.values(), *stagings.values()], run.apart)
    yield from _each(run, [(attempt, one(attempt)) for attempt in attempts])


def _floor(ctx: Context) -> Script[str]:
    """Nothing where it cannot be read, as `ownerless` tells: what is decided does not hang on it."""
    try:
        return (yield from asked(ctx, ctx.journal_pool, ctx.journal.floor))
    except UnreadableRecord:
        return ""


def _last_listed(staging: Staging | None, found: Sequence[_Found], reached: set[str]) -> bool | None:
    """Whether the branch that prepares last is listed; None where its server was not asked, or there is none."""
    last = None if staging is None else next((ref for ref in staging.branches if ref.number == staging.last), None)
    if last is None or last.resource_id not in reached:
        return None
    return any(one.prepared.xid.branch == last.number for one in found)


def _settle(
    run: _Sweep,
    attempt: str,
    known: Known,
    standing: Standing | None,
    staging: Staging | None,
    branches: Sequence[_Found],
) -> Script[None]:
    # The oldest branch speaks for the attempt: a decision is about all of them.
    age = Age.OLD if max(one.age_s for one in branches) >= run.grace_s else Age.YOUNG
    row = what_to_do(known, Seen.PREPARED, age)
    decision = None if standing is None else standing.decision
    if row.action is Action.FENCE and not run.report.presumed:
        run.report.left += len(branches)
        return
    if row.action is Action.FENCE:
        try:
            decision = yield from register.decide(run.ctx, _abort(run.ctx, attempt, staging, branches, row.why))
        except BelowFloor:
            # Decided, ended and forgotten since: so the listing may be older than the end, too.
            known = Known.BELOW_FLOOR
            row = what_to_do(known, Seen.PREPARED, age)
    match row.action:
        case Action.LEAVE:
            run.report.left += len(branches)
        case Action.LOOK_AGAIN:
            run.again += [(known, one) for one in branches]
        case Action.QUARANTINE:
            for one in branches:
                yield from _quarantine(run, one.prepared.xid, one.participant.name, f"{known.value}: {row.why}")
        case _ if decision is not None:
            for one in branches:
                yield from _carry_out(run, one, decision)
            yield from _alarm_if_committed(run, decision, {one.prepared.xid.branch for one in branches})


def _look_again(run: _Sweep) -> Script[None]:
    """One more listing for all whose record said that they should be gone, and whose server said that they are."""
    if not run.again and not run.unknown:
        return
    listed = yield from _list_anew(run, [one.participant for _, one in (*run.again, *run.unknown)])
    for known, one in run.again:
        if one.prepared.xid in listed.get(one.participant.resource_id, ()):
            row = what_to_do(known, Seen.PREPARED_STILL, Age.OLD)
            if row.action is Action.QUARANTINE:
                yield from _quarantine(run, one.prepared.xid, one.participant.name, f"{known.value}: {row.why}")

    def finish(decision: Decision, one: _Found) -> Script[None]:
        xid, there = one.prepared.xid, listed.get(one.participant.resource_id)
        if there is None:
            return  # which has been told
        if xid in there:
            yield from _carry_out(run, _Found(one.participant, there[xid], one.listers), decision, look=True)
        elif decision.verdict is Verdict.ABORT and (yield from alarm_if_committed(run.ctx, one.participant, xid)):
            run.report.quarantined += 1
        # A commit's record is open, or another has ended it: `_prove_open` looks for the receipt.

    yield from _each(run, [(one.prepared.xid.attempt, finish(decision, one)) for decision, one in run.unknown])


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


def _carry_out(run: _Sweep, one: _Found, decision: Decision, *, look: bool = False) -> Script[None]:
    ctx, report = run.ctx, run.report
    xid, participant = one.prepared.xid, one.participant
    if decision.verdict is Verdict.COMMIT:
        ref = next((ref for ref in decision.branches if ref.number == xid.branch), None)
        if ref is None:
            yield from _quarantine(run, xid, participant.name, "its attempt was committed without it")
            return
        owned = one.at(ctx, ref.resource_id)
        if owned is None:
            return  # it belongs to another database of that server, which is for its own coordinators to commit
        participant = owned.participant
    ending = yield from carry_out(ctx, participant, one.prepared, decision.verdict, look=look)
    match ending.end:
        case End.OPEN:
            report.trouble[f"{participant.name} {xid.gid}"] = ending.why
        case End.UNKNOWN:
            run.unknown.append((decision, _Found(participant, one.prepared, one.listers)))
        case End.BROKEN:
            report.quarantined += 1
        case End.PROVED if decision.verdict is Verdict.COMMIT:
            report.committed += 1
            run.proved.add(xid)
        case End.PROVED:
            report.rolled_back += 1


def _alarm_if_committed(run: _Sweep, decision: Decision, listed: Collection[int]) -> Script[None]:
    """Where an ABORT stands: its branches that are not listed were rolled back, unless somebody else committed them."""
    if decision.verdict is Verdict.COMMIT:
        return
    for participant, xid in may_have_committed(run.ctx, decision):
        if participant.resource_id not in run.reached or xid.branch in listed:
            continue
        if (yield from alarm_if_committed(run.ctx, participant, xid)):
            run.report.quarantined += 1


# ---- names without a branch that is listed --------------------------------------------------------


def _settle_unlisted(run: _Sweep, others: set[str]) -> Script[None]:
    """Names without a decision and without a branch that is listed: their begin died before its last prepare.

    Left alone they would look alive for ever, and hold retention's floor down.
    """
    ctx, after, seen = run.ctx, "", set[str]()
    while True:

        def page(session: Session, after: str = after) -> Script[list[Staging | Unreadable]]:
            return ctx.journal.undecided(session, after, PAGE_MAX)

        try:
            stagings = yield from asked(ctx, ctx.journal_pool, page)
        except NoDoubtError as error:
            run.report.trouble["journal"] = str(error)
            return
        theirs = [staging for staging in split(stagings, run.apart) if staging.attempt not in others]
        seen.update(staging.attempt for staging in theirs)
        yield from _fence_dead_begins(run, theirs)
        if len(stagings) < PAGE_MAX:
            ctx.names_seen = {attempt: at for attempt, at in ctx.names_seen.items() if attempt in seen}
            return
        after = stagings[-1].attempt


def _fence_dead_begins(run: _Sweep, stagings: Sequence[Staging]) -> Script[None]:
    ctx, dead = run.ctx, list[tuple[Staging, str]]()
    for staging in stagings:
        # Since this sweeper first saw it: its own clock may be wrong, and the listing is older than the name.
        first = ctx.names_seen.setdefault(staging.attempt, ctx.clock.elapsed())
        age = Age.OLD if ctx.clock.elapsed() - first >= run.grace_s else Age.YOUNG
        last_listed, now = _last_listed(staging, (), run.reached), ctx.clock.now()
        undecided = what_is_known(staging.attempt, None, staging, floor="", now=now, last_listed=last_listed)
        row = what_to_do(undecided, Seen.ABSENT, age)
        if row.action is Action.FENCE and run.report.presumed:
            dead.append((staging, row.why))
    prepared = yield from _prepared_by_now(run, [staging for staging, _ in dead])

    def fence(staging: Staging, why: str) -> Script[None]:
        decision = yield from register.decide(ctx, _abort(ctx, staging.attempt, staging, (), why))
        yield from _alarm_if_committed(run, decision, ())

    scripts = [(one.attempt, fence(one, why)) for one, why in dead if one.attempt not in prepared]
    yield from _each(run, scripts)


def _prepared_by_now(run: _Sweep, stagings: Sequence[Staging]) -> Script[set[str]]:
    """Those of which a branch may be prepared after all: the sweep's listing may be older than their last prepare.

    Past its deadline it makes no difference.
    """
    early = [staging for staging in stagings if staging.deadline > run.ctx.clock.now()]
    refs = {ref.resource_id for staging in early for ref in staging.branches}
    here = [p for p in run.ctx.participants.values() if p.resource_id in refs]
    listed = yield from _list_anew(run, here)

    def may_be(staging: Staging, ref: BranchRef) -> bool:
        xid = Xid(run.ctx.cluster, staging.attempt, ref.number)
        return run.ctx.by_id(ref.resource_id) in here and xid in listed.get(ref.resource_id, {xid})

    return {staging.attempt for staging in early if any(may_be(staging, ref) for ref in staging.branches)}


# ---- commit records that are open -----------------------------------------------------------------


def _prove_open(run: _Sweep) -> Script[None]:
    """Each branch of each open commit must prove itself, or be committed; then, and only then, the record ends."""
    ctx, after = run.ctx, ""
    while True:

        def page(session: Session, after: str = after) -> Script[list[Standing | Unreadable]]:
            return ctx.journal.open_commits(session, after, PAGE_MAX)

        try:
            standings = yield from asked(ctx, ctx.journal_pool, page)
            decisions = [s.decision for s in split(standings, run.apart) if s.attempt not in run.mine]
            yield from _end(run, (yield from _proved(run, decisions)))
        except NoDoubtError as error:
            run.report.trouble["journal"] = str(error)
            return
        if len(standings) < PAGE_MAX:
            return
        after = standings[-1].attempt


def _proved(run: _Sweep, decisions: Sequence[Decision]) -> Script[list[Decision]]:
    """Those whose every branch has proved itself. What is still prepared is committed, and proved by the next sweep.

    Neither receipt, nor listed, nor receipt, and its record still open: twice in this order, it is a heuristic (I7).
    Between the first two looks it may have been committed; before the record is read again another recoverer may have
    ended it, receipts and all.
    """
    unproved = set[str]()
    missing = _not_yet_proved(run, decisions, unproved)
    for seen in (Seen.ABSENT, Seen.ABSENT_STILL):
        missing = yield from _without_receipt(run, missing, unproved)
        if not missing:
            break
        listed = yield from _list_anew(run, [one.participant for one in missing])
        unlisted = []
        for one in missing:
            if one.xid in listed.get(one.participant.resource_id, {one.xid}):  # or it could not be asked
                unproved.add(one.xid.attempt)
            else:
                unlisted.append(one)
        yield from _commit_listed(run, missing, listed)
        without = yield from _without_receipt(run, unlisted, unproved)
        missing = yield from _look_at_records(run, without, seen, unproved)
    return [decision for decision in decisions if decision.attempt not in unproved]


def _not_yet_proved(run: _Sweep, decisions: Sequence[Decision], unproved: set[str]) -> list[_Missing]:
    missing = []
    for decision in decisions:
        for ref in decision.branches:
            xid = Xid(run.ctx.cluster, decision.attempt, ref.number)
            if ref.number == decision.point or xid in run.proved:
                continue  # the row is in its own local commit; or this sweep has just committed it
            participant = run.ctx.by_id(ref.resource_id)
            if participant is None or ref.resource_id not in run.reached:
                unproved.add(decision.attempt)
            else:
                missing.append(_Missing(decision, xid, participant))
    return missing


def _without_receipt(run: _Sweep, missing: Sequence[_Missing], unproved: set[str]) -> Script[list[_Missing]]:
    without: list[_Missing] = []

    def look(one: _Missing) -> Script[None]:
        try:
            if not (yield from has_receipt(run.ctx, one.participant, one.xid)):
                without.append(one)
        except Exception:
            unproved.add(one.xid.attempt)
            raise

    yield from _each(run, [(one.xid.attempt, look(one)) for one in missing])
    return without


def _commit_listed(run: _Sweep, missing: Sequence[_Missing], listed: dict[str, dict[Xid, Prepared]]) -> Script[None]:
    there = [one for one in missing if one.xid in listed.get(one.participant.resource_id, ())]
    if not there:
        return
    standings = yield from _confirmed(run, there)

    def commit(one: _Missing) -> Script[None]:
        standing, resource_id = standings.get(one.xid.attempt), one.participant.resource_id
        if standing is not None and not standing.ended:
            found = _Found(one.participant, listed[resource_id][one.xid], (resource_id,))
            yield from _carry_out(run, found, standing.decision, look=True)

    yield from _each(run, [(one.xid.attempt, commit(one)) for one in there])


def _look_at_records(
    run: _Sweep, missing: Sequence[_Missing], seen: Seen, unproved: set[str]
) -> Script[list[_Missing]]:
    """What the records say of branches that are neither prepared nor have a receipt. Returns what to look for again."""
    if not missing:
        return []
    standings = yield from _confirmed(run, missing)
    again = []
    for one in missing:
        standing = standings.get(one.xid.attempt)
        if standing is None or standing.decision.verdict is Verdict.ABORT:
            # Seen before it was flushed, and its server has forgotten it in a crash; perhaps it was aborted since, or
            # can't be read any more. It proves nothing, and accuses nobody.
            unproved.add(one.xid.attempt)
            continue
        row = what_to_do(Known.COMMIT_ENDED if standing.ended else Known.COMMIT, seen, Age.OLD)
        if row.action is Action.LOOK_AGAIN:
            again.append(one)
        elif row.action is Action.QUARANTINE:
            unproved.add(one.xid.attempt)
            yield from _quarantine(run, one.xid, one.participant.name, f"heuristic: {row.why}")
    return again


def _confirmed(run: _Sweep, missing: Sequence[_Missing]) -> Script[dict[str, Standing]]:
    found = yield from register.confirm(run.ctx, [one.xid.attempt for one in missing])
    return {one.attempt: one for one in split(found.values(), run.apart)}


def _end(run: _Sweep, proved: Sequence[Decision]) -> Script[None]:
    if not proved:
        return
    ctx = run.ctx
    with ctx.lock:
        ctx.ended += [(decision.attempt, decision.branches) for decision in proved]
    yield from ends.flush(ctx)
    run.report.ended += len(proved)


def _quarantine(run: _Sweep, xid: Xid, resource: str, why: str) -> Script[None]:
    run.report.quarantined += 1
    yield from quarantine(run.ctx, xid, resource, why)


__all__ = ["SweepReport", "sweep"]
