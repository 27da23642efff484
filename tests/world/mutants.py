"""The product with one check taken out, each a small patch; which rule that breaks, and where to look for it.

What breaks on one server's own ground (proofs, tags and locks of the real ones) has its mutants in tests/postgres,
tests/mariadb, tests/sqlite and tests/journals; phases that are not shielded, in tests/traps/test_cancellation.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from nodoubt.engine import branches, ends, lingering, phases, recent, register, settle, start, sweep, verbs
from nodoubt.engine.attempt import Attempt, Branch
from nodoubt.engine.branches import End, Ending
from nodoubt.engine.context import Context, Participant, asked, using
from nodoubt.engine.phases import Course
from nodoubt.errors import NoDoubtError
from nodoubt.journals.memory import MemoryStore
from nodoubt.ports import Conflict, Prepared, Reply, SavepointStep, Session, StatementFailed, Unclear, Work, readable
from nodoubt.protocol import recovery
from nodoubt.protocol.commands import Ended, Fence, Ready
from nodoubt.protocol.commit import TABLE, CommitMachine, Phase, Rule
from nodoubt.protocol.events import Decided, Event, Undecided
from nodoubt.protocol.records import Decision, Staging, Standing, Unreadable, Verdict
from nodoubt.protocol.recovery import Action, Age, Known, Row, Seen
from nodoubt.resources import mariadb_finishing
from nodoubt.resources.mariadb_failures import refusal
from nodoubt.resources.memory import MemoryMariaDBResource, MemoryPostgresResource, MemorySqliteResource
from nodoubt.resources.memory.server import only
from nodoubt.script import Do, Script, do, every
from nodoubt.testing.world import Focus, Schedule, Variant
from nodoubt.testing.world.shell import Pool
from nodoubt.testing.world.world import RESOURCES
from nodoubt.xid import Xid, parse_gid

from .kept import KEPT

Patch = pytest.MonkeyPatch
SOUND = Variant()


@dataclass(frozen=True)
class Mutant:
    """`breaks`: the rules it may be caught by; the first that the checker happens to see.

    `rules`: those that the checker holds to, where others would always see it first.
    """

    name: str
    apply: Callable[[Patch], Variant]
    breaks: Sequence[str]
    focus: Focus = field(default_factory=Focus)
    schedules_max: int = 400
    schedule: Schedule | None = None  # instead of all that can be drawn
    rules: Collection[str] | None = None

    def __str__(self) -> str:
        return self.name


def nothing(*_: object, **__: object) -> None: ...


def handle_of(_: object, work: Work) -> Any:
    return work.handle


def with_resource(kind: str, resource: Callable[[str], Any]) -> Variant:
    resources: Mapping[str, Callable[[str], Any]] = {**RESOURCES, kind: resource}
    return Variant(resources)


# ---- the register


def no_compare_and_set(patch: Patch) -> Variant:
    """What one has wanted stands, for him, whatever stood before."""

    def decide(ctx: Context, decision: Decision) -> Script[Decision]:
        error = yield Do(ctx.register_batch, "submit", (decision,))
        if error is None or isinstance(error, Conflict):
            return decision
        raise Unclear(str(error)) from error

    patch.setattr(register, "decide", decide)
    return SOUND


def no_fence(patch: Patch) -> Variant:
    """Recovery presumes the abort, and does not ask the register for it."""

    def presumed(ctx: Context, decision: Decision) -> Script[Decision]:
        yield from ()
        return decision

    patch.setattr(sweep, "register", SimpleNamespace(decide=presumed, confirm=register.confirm))
    return SOUND


def acts_on_a_plain_look(patch: Patch) -> Variant:
    """A decision that can be seen is believed, flushed or not."""

    def look(ctx: Context, attempts: Sequence[str]) -> Script[dict[str, Standing | Unreadable]]:
        return using(ctx.journal_pool, lambda session: ctx.journal.look(session, attempts))

    patch.setattr(register, "_confirm_once", look)
    return SOUND


def confirms_by_a_conflicting_insert(patch: Patch) -> Variant:
    """The row is confirmed by an INSERT that it refuses, which flushes nothing."""

    def confirm(ctx: Context, attempts: Sequence[str]) -> Script[dict[str, Standing | Unreadable]]:
        def body(session: Session) -> Script[dict[str, Standing | Unreadable]]:
            found = yield from ctx.journal.look(session, attempts)
            for standing in found.values():
                try:
                    yield from ctx.journal.insert(session, [readable(standing).decision])
                except Conflict:
                    continue
            return found

        return using(ctx.journal_pool, body)

    patch.setattr(register, "_confirm_once", confirm)
    return SOUND


def a_bare_commit_row_after_a_lost_reply(patch: Patch) -> Variant:
    """The commit point's reply was lost, so its coordinator writes the COMMIT by itself."""

    def again(machine: CommitMachine, event: Undecided) -> Ready:
        return machine._decide()

    patch.setitem(TABLE, (Phase.POINTING, Undecided), Rule(again, frozenset(Phase)))
    return SOUND


def shape_decides(patch: Patch) -> Variant:
    """Recovery finds an attempt prepared wherever it looks, and takes that for a vote."""
    abort = sweep._abort

    def wanted(ctx: Context, attempt: str, staging: Any, found: Sequence[Any], why: str) -> Decision:
        decision: Decision = abort(ctx, attempt, staging, found, why)
        return msgspec.structs.replace(decision, verdict=Verdict.COMMIT) if found else decision

    patch.setattr(sweep, "_abort", wanted)
    return SOUND


def a_failed_begin_is_not_fenced(patch: Patch) -> Variant:
    """What failed is taken for aborted, although its rows and prepares may still be on their way."""

    def fence(ctx: Context, course: Course, command: Fence) -> Script[Event]:
        yield from ()
        return Decided(Verdict.ABORT, command.why)

    patch.setattr(phases, "_fence", fence)
    return SOUND


def a_begin_that_others_saw_frees_its_name(patch: Patch) -> Variant:
    """Its last prepare has lost its answer: its caller is told that it is aborted, and others have seen it staged."""
    sound = CommitMachine._fence_own_begin

    def fence(machine: CommitMachine, *, may_be_staged: bool) -> Ready:
        return sound(machine, may_be_staged=False)

    patch.setattr(CommitMachine, "_fence_own_begin", fence)
    return SOUND


def every_abort_frees_its_name(patch: Patch) -> Variant:
    """What was staged is rolled back, and somebody else can have its name while a late verb still means it."""
    sound = phases._fence

    def fence(ctx: Context, course: Course, command: Fence) -> Script[Event]:
        return sound(ctx, course, Fence(command.why, frees_name=True))

    patch.setattr(phases, "_fence", fence)
    return SOUND


def a_lost_reply_is_settled_by_a_look(patch: Patch) -> Variant:
    """No receipt is there, so the one-phase commit did not happen; it is still on its way."""

    def look(ctx: Context, branch: Branch) -> Script[Event]:
        def body(session: Session) -> Script[bool]:
            return branch.participant.resource.receipt(session, branch.work.xid)

        try:
            there = yield from using(branch.participant.reserve, body)
        except NoDoubtError as error:
            return Undecided(str(error))
        return Decided(Verdict.COMMIT if there else Verdict.ABORT)

    patch.setattr(phases, "_settle", look)
    return SOUND


def a_doubt_is_settled_by_a_look(patch: Patch) -> Variant:
    """The verb `settle` asks for receipts, and fences none."""

    def look(ctx: Context, participant: Participant, attempt: str, numbers: int) -> Script[Any]:
        for number in range(numbers):
            xid = Xid(ctx.cluster, attempt, number)

            def body(session: Session, xid: Xid = xid) -> Script[bool]:
                return participant.resource.receipt(session, xid)

            if (yield from asked(ctx, participant.reserve, body)):
                return settle._Fenced(Verdict.COMMIT)
        return settle._Fenced(Verdict.ABORT)

    patch.setattr(settle, "_fence", look)
    return SOUND


def a_name_passes_on_while_it_lives(patch: Patch) -> Variant:
    """Whoever stages a name has it."""
    stage = MemoryStore._stage

    def take(store: MemoryStore, staging: Staging, old: Staging | None) -> None:
        store.state.names.pop(staging.name, None)
        stage(store, staging, old)

    patch.setattr(MemoryStore, "_stage", take)
    patch.setattr(MemoryStore, "_stage_unforced", take)
    return SOUND


class RowsInTheBranch(MemoryMariaDBResource):
    def begin(self, session: Session, work: Work, *, before: Sequence[str] = ()) -> Script[None]:
        yield from super().begin(session, work)
        if before:
            try:
                yield from do(session, "send", ("ride", tuple(before)))
            except StatementFailed as error:
                session.kill()
                raise refusal(error, "its rows") from error


def a_name_is_part_of_its_branch(_: Patch) -> Variant:
    """One MariaDB: the row is committed with the work, not before it."""
    return with_resource("mariadb", RowsInTheBranch)


class RowsAtWill(MemoryMariaDBResource):
    def begin(self, session: Session, work: Work, *, before: Sequence[str] = ()) -> Script[None]:
        if before:
            try:
                yield from do(session, "send", ("begin",), ("ride", tuple(before)), ("commit",))
            except StatementFailed:
                yield from do(session, "send", ("rollback",))
        yield from super().begin(session, work)


def a_branch_begins_though_its_row_was_refused(_: Patch) -> Variant:
    """One MariaDB: the message is not ended by its first error."""
    return with_resource("mariadb", RowsAtWill)


def epochs_are_not_compared(patch: Patch) -> Variant:
    """A journal or a database that was restored goes on as if it had not been."""
    patch.setattr(start, "set_back", nothing)
    return SOUND


def what_was_aborted_is_left(patch: Patch) -> Variant:
    """An abort is over when it was decided: what prepares after it stays."""
    for known, seen, age in recovery._ACTIONS:
        if known is Known.ABORT:
            patch.setitem(recovery._ACTIONS, (known, seen, age), Row(known, frozenset({seen}), age, Action.LEAVE, ""))
    return SOUND


def accuses_what_another_has_ended(patch: Patch) -> Variant:
    """Neither prepared nor a receipt: somebody has broken it; the record is not read again for its end."""
    for seen in (Seen.ABSENT, Seen.ABSENT_STILL):
        for age in Age:
            open_row = recovery._ACTIONS[Known.COMMIT, seen, age]
            patch.setitem(recovery._ACTIONS, (Known.COMMIT_ENDED, seen, age), open_row)
    return SOUND


def heuristics_are_silent(patch: Patch) -> Variant:
    """What somebody else has ended against its decision is said in a log, and stored nowhere."""

    def say(*_: object) -> Script[None]:
        yield from ()

    patch.setattr(branches, "quarantine", say)
    patch.setattr(sweep, "quarantine", say)
    return SOUND


def receipts_go_before_the_end(patch: Patch) -> Variant:
    """They are deleted, and then the end is written."""
    flush_some = ends._flush_some

    def some(ctx: Context) -> Script[None]:
        yield from every([ends._forget(ctx, participant, ctx.ended) for participant in ctx.participants.values()])
        yield from flush_some(ctx)

    patch.setattr(ends, "_flush_some", some)
    return SOUND


def an_end_that_is_seen_will_do(patch: Patch) -> Variant:
    """Somebody has written it already, so there is nothing to write: and nothing is flushed."""
    end = MemoryStore._end

    def only_what_is_open(store: MemoryStore, attempts: Sequence[str]) -> None:
        end(store, [one for one in attempts if one in store.state.decisions and store.state.decisions[one].is_open])

    patch.setattr(MemoryStore, "_end", only_what_is_open)
    return SOUND


def retention_without_a_floor(patch: Patch) -> Variant:
    """What is old is deleted, and can be decided again."""

    def retirable(store: MemoryStore, older_than: float, limit: int, after: str) -> list[str]:
        rows = sorted(store.state.decisions.items())
        return [attempt for attempt, row in rows if not row.is_open and row.decision.decided_at < older_than][:limit]

    patch.setattr(MemoryStore, "_raise_floor", nothing)
    patch.setattr(MemoryStore, "_retirable", retirable)
    return SOUND


# ---- phases


def decision_after_commit(patch: Patch) -> Variant:
    """The branches are committed, and then it is decided that they shall be."""
    decide = phases._decide

    def late(ctx: Context, course: Course, wanted: Decision) -> Script[Event]:
        for branch in course.branches.values():
            if branch.prepared is not None:
                yield from branches.carry_out(ctx, branch.participant, branch.prepared, Verdict.COMMIT)
        return (yield from decide(ctx, course, wanted))

    patch.setattr(phases, "_decide", late)
    return SOUND


def forgets_early(patch: Patch) -> Variant:
    """The record ends although a branch has not proved itself."""

    def committed(machine: CommitMachine) -> Ready:
        machine.phase = Phase.COMMITTED
        return Ready(records=(Ended(),))

    patch.setattr(CommitMachine, "_committed", committed)
    return SOUND


def unknown_is_done(patch: Patch) -> Variant:
    """A branch that its server does not know has been ended, so all is well."""

    def look(*_: object) -> Script[Ending]:
        yield from ()
        return Ending(End.PROVED)

    patch.setattr(branches, "_look", look)
    return SOUND


def a_row_across_two_sessions(patch: Patch) -> Variant:
    """The unforced decision is written in one session, and to be flushed by the COMMIT PREPARED of another."""
    point = phases._commit_point

    def across(ctx: Context, course: Course, branch: Any, row: Decision) -> Script[Event]:
        resource, prepared = branch.participant.resource, branch.prepared
        if prepared is None or resource.traits.kind != "postgres":
            return (yield from point(ctx, course, branch, row))
        rows = ctx.journal.decision_rows(row)
        ctx.notice("P5", course.attempt.id, "deciding", branch.number)
        try:
            yield from using(ctx.journal_pool, lambda session: resource._commit_unforced(session, rows))
        except Exception as error:
            return Undecided(str(error))
        ending = yield from branches.carry_out(ctx, branch.participant, prepared, Verdict.COMMIT)
        return Decided(Verdict.COMMIT) if ending.end is End.PROVED else Undecided(ending.why)

    patch.setattr(phases, "_commit_point", across)
    return SOUND


def commits_before_the_last_is_listed(patch: Patch) -> Variant:
    """Staged: the row says that all are prepared but one, and that one is taken to be."""

    def all_listed(*_: object, **__: object) -> Script[bool]:
        yield from ()
        return True

    patch.setattr(verbs, "_all_listed", all_listed)
    return SOUND


def the_contrary_is_answered_in_peace(patch: Patch) -> Variant:
    """Who rolls back what is committed is told that it is committed, as if that was what he had asked for."""
    patch.setattr(verbs, "_require_outcome", nothing)
    return SOUND


# ---- resources


def a_savepoint_is_only_forgotten(patch: Patch) -> Variant:
    """To go back to it lifts the doom, and is not sent: InnoDB and SQLite keep what was written after it."""
    for resource in (MemoryMariaDBResource, MemorySqliteResource):
        send = resource.savepoint

        def savepoint(self: Any, session: Session, work: Work, step: SavepointStep, name: str, send: Any = send) -> Any:
            return () if step is SavepointStep.BACK else send(self, session, work, step, name)

        patch.setattr(resource, "savepoint", savepoint)
    return SOUND


class UncheckedPrepare(MemoryPostgresResource):
    """PREPARE as psycopg's tpc_prepare() sends it: alone, and whatever is answered without an error is a yes."""

    def prepare(self, session: Session, work: Work, *, riders: Sequence[str] = ()) -> Script[None]:
        with contextlib.suppress(StatementFailed):
            yield from do(session, "send", self._receipt_row(work, alone=False))
        yield from do(session, "send", ("prepare", work.xid.gid))


class _Greedy(MemoryPostgresResource):
    def prepared(self, session: Session, cluster: str, xid: Xid | None = None) -> Script[tuple[Prepared, ...]]:
        reply = yield from self._own(session, ("list",))
        parsed = ((parse_gid(gid), age_s) for gid, age_s in reply.rows)
        return only(xid, (Prepared(one, age_s) for one, age_s in parsed if one is not None))


def strangers_are_swept(patch: Patch) -> Variant:
    """Whatever looks like ours is ours."""
    return with_resource("postgres", _Greedy)


def prepare_tag_unchecked(patch: Patch) -> Variant:
    """With the doom of a failed statement taken out too, which would keep such a branch from being prepared."""
    patch.setattr(verbs, "_require_sound", nothing)
    return with_resource("postgres", UncheckedPrepare)


class NotaIsDone(MemoryMariaDBResource):
    """XAER_NOTA: somebody must have finished it."""

    def _finish(self, session: Session, prepared: Prepared, verb: str) -> Script[None]:
        handle = prepared.handle
        try:
            if handle is None:
                handle = yield from self._find(session, prepared.xid)
            yield from do(session, "send", (verb, handle))
        except StatementFailed as error:
            if error.code != "1397":
                raise Unclear(str(error)) from error


def what_was_prepared_here_is_always_trusted(patch: Patch) -> Variant:
    """What this process has prepared is prepared, however long ago that was."""
    patch.setattr(recent, "TRUSTED_S", float("inf"))
    return SOUND


def what_lingers_is_idle(patch: Patch) -> Variant:
    """A session that is kept waits in its pool, as any other that nobody needs."""

    def stay(ctx: Context, branch: Branch) -> bool:
        assert branch.session is not None
        branch.session.usable = True
        branch.let_go()
        return True

    patch.setattr(lingering, "stay", stay)
    return SOUND


def ok_is_proof(patch: Patch) -> Variant:
    """An XA COMMIT that is answered OK has committed; nobody looks for the receipt."""
    patch.setattr(mariadb_finishing, "require_done", nothing)
    return SOUND


def xaer_nota_is_done(patch: Patch) -> Variant:
    return with_resource("mariadb", NotaIsDone)


class SeenReceipt(MemoryMariaDBResource):
    """A receipt that can be seen is there."""

    def _confirm(self, session: Session, xid: Xid) -> Script[Verdict | None]:
        reply: Reply
        (reply,) = yield from do(session, "send", ("receipt_there", xid.attempt, xid.branch))
        return None if not reply.rows else Verdict(reply.scalar())


def unconfirmed_receipt(patch: Patch) -> Variant:
    return with_resource("mariadb", SeenReceipt)


def an_error_does_not_doom(patch: Patch) -> Variant:
    """InnoDB keeps what went well before it."""
    patch.setattr(verbs, "_require_sound", nothing)
    patch.setattr(MemoryMariaDBResource, "_committable", handle_of)
    patch.setattr(MemorySqliteResource, "_refuse_doomed", nothing)
    return SOUND


# ---- the process


def nonce_dropped(patch: Patch) -> Variant:
    """An attempt is known by its moment alone.

    To the checker, too, two that share a moment are one, so that it may see rules broken where nothing was harmed: here
    it holds to I1 alone, in a schedule where both write to the same servers and the first leaves nothing.
    """

    def begun(attempt: str, *rest: Any, **more: Any) -> Attempt:
        return Attempt(f"{attempt[:12]}{'0' * 20}", *rest, **more)

    patch.setattr(verbs, "Attempt", begun)
    return SOUND


def dirty_session_returned(patch: Patch) -> Variant:
    """Nobody ends a session of which nobody knows what state it is in, and its pool takes it back."""

    def let_go(branch: Branch, *, kill: bool = False) -> None:
        session, branch.session = branch.session, None
        if session is not None:
            branch.participant.pool.release(session)

    release = Pool.release

    def take_back(pool: Pool, link: Any) -> None:
        link.usable = not link.broken and not link.ended
        release(pool, link)

    patch.setattr(Branch, "let_go", let_go)
    patch.setattr(Pool, "release", take_back)
    return SOUND


MUTANTS = [
    Mutant("the shape of its branches decides", shape_decides, ["I1", "I2", "I5"]),
    Mutant("a failed begin is not fenced", a_failed_begin_is_not_fenced, ["I1", "I5"], Focus(staged=1.0), 1000),
    Mutant("every abort frees its name", every_abort_frees_its_name, ["I10"], Focus(staged=1.0)),
    Mutant(
        "a begin that others saw frees its name", a_begin_that_others_saw_frees_its_name, ["I10"],
        Focus(staged=1.0, weights={"lose reply": 10, "late reply": 5, "cut": 5}), 1000,
    ),
    Mutant(
        "a lost reply is settled by a look", a_lost_reply_is_settled_by_a_look, ["I5"],
        Focus(staged=0.0, weights={"late request": 10, "lose reply": 5, "cut": 5}), 2000,
    ),
    Mutant(
        "a doubt is settled by a look", a_doubt_is_settled_by_a_look, ["I5", "I12"],
        Focus(staged=0.0, settles=1.0), 2000,
    ),
    Mutant("a name passes on while it lives", a_name_passes_on_while_it_lives, ["I1", "I5", "I10"], Focus(staged=1.0)),
    Mutant(
        "a name is part of its branch", a_name_is_part_of_its_branch, ["I5"],
        Focus(servers=("mariadb",), journal="a", staged=1.0),
    ),
    Mutant(
        "a branch begins though its row was refused", a_branch_begins_though_its_row_was_refused, ["I5"],
        Focus(servers=("mariadb",), journal="a", staged=1.0),
    ),
    Mutant(
        "epochs are not compared", epochs_are_not_compared, ["I15"],
        schedule=KEPT["the journal is set back between a decision and its phase two"],
    ),
    Mutant("what was aborted is left", what_was_aborted_is_left, ["I8"], Focus(fails=0.5)),
    Mutant("receipts go before the end", receipts_go_before_the_end, ["I6"]),
    Mutant(
        "an end that is seen will do", an_end_that_is_seen_will_do, ["I6", "I17"],
        Focus(servers=("mariadb", "mariadb"), weights={"crash": 10, "slow disk": 10, "kill": 5, "lose reply": 5}), 2000,
    ),
    Mutant("strangers are swept", strangers_are_swept, ["I9"]),
    Mutant(
        "no compare-and-set", no_compare_and_set, ["I1"],
        schedule=KEPT["the commit point answers too late"], rules={"I1"},
    ),
    # Whatever splits a transaction breaks I1 before it breaks a sum; so here nobody looks at anything but sums.
    Mutant("no compare-and-set, by the sums alone", no_compare_and_set, ["I23"], rules={"I23"}),
    Mutant(
        "a savepoint is only forgotten", a_savepoint_is_only_forgotten, ["I23"],
        Focus(servers=("mariadb", "sqlite"), fails=1.0),
    ),
    Mutant("the contrary is answered in peace", the_contrary_is_answered_in_peace, ["I12"], Focus(staged=1.0)),
    Mutant("heuristics are silent", heuristics_are_silent, ["I17"], Focus(strangers=1.0)),
    Mutant(
        "accuses what another has ended", accuses_what_another_has_ended, ["I17"],
        Focus(staged=0.0, weights={"kill": 10, "stop": 10, "late reply": 10}), 2000,
    ),
    Mutant(
        "no fence", no_fence, ["I1"],
        schedule=KEPT["a caller stands still while recovery aborts its branches"], rules={"I1"},
    ),
    Mutant(
        "acts on a decision that is visible and not flushed", acts_on_a_plain_look, ["I1", "I3", "I4", "I5"],
        Focus(servers=("mariadb", "mariadb"), weights={"crash": 10, "slow disk": 10, "kill": 5, "lose reply": 5}), 2000,
    ),
    Mutant(
        "confirms by a conflicting INSERT", confirms_by_a_conflicting_insert, ["I1", "I3", "I4", "I5"],
        Focus(servers=("mariadb", "mariadb"), weights={"crash": 10, "slow disk": 10, "kill": 5, "lose reply": 5}), 2000,
    ),
    Mutant("a bare COMMIT row after a lost reply", a_bare_commit_row_after_a_lost_reply, ["I1", "I2", "I4", "I5"]),
    # Whatever it forgets lies above the floor, in any schedule; to be told aborted, and be committed, is harm.
    Mutant(
        "retention without a floor", retention_without_a_floor, ["I5"],
        schedule=KEPT["a decision comes when its attempt's abort has been cleaned up"], rules={"I5"},
    ),
    Mutant("decision after commit", decision_after_commit, ["I1", "I4"]),
    Mutant(
        "forgets early", forgets_early, ["I6"], Focus(weights={"freeze": 10, "cut": 10, "crash": 5}), 1000
    ),
    Mutant(
        "unknown is done", unknown_is_done, ["I7"],
        Focus(servers=("mariadb", "mariadb"), weights={"lose request": 10, "late request": 5, "cut": 5}), 1000,
    ),
    Mutant(
        "a row rides across two sessions", a_row_across_two_sessions, ["I1", "I4"],
        Focus(servers=("postgres", "postgres"), journal="a", staged=1.0, weights={"crash": 10}), 2000,
    ),
    Mutant(
        "staged commit before the last is listed", commits_before_the_last_is_listed, ["I1", "I2", "I5"],
        Focus(staged=1.0), 1000,
    ),
    Mutant("PREPARE tag unchecked", prepare_tag_unchecked, ["I1", "I2", "I8", "I16"], Focus(fails=0.8)),
    Mutant(
        "XAER_NOTA is done", xaer_nota_is_done, ["I7"],
        Focus(servers=("mariadb", "mariadb"), weights={"lose request": 10, "late request": 5, "cut": 5}), 1000,
    ),
    # Who takes the OK for proof is seen to do so whether it was true or not; so then nobody looks but at what is lost.
    Mutant("OK to XA COMMIT is proof", ok_is_proof, ["I7"], Focus(servers=("mariadb", "mariadb"), slow_ends=1.0)),
    Mutant(
        "OK to XA COMMIT is proof, by what is lost alone", ok_is_proof, ["I6"],
        Focus(servers=("mariadb", "mariadb"), slow_ends=1.0), rules={"I1", "I3", "I5", "I6"},
    ),
    Mutant(
        "OK to XA COMMIT is proof, in few words", ok_is_proof, ["I6"], rules={"I1", "I3", "I5", "I6"},
        schedule=KEPT["an XA COMMIT meets the end of the session that prepared"],
    ),
    Mutant(
        "what lingers is always trusted", what_was_prepared_here_is_always_trusted, ["I2"],
        Focus(servers=("mariadb", "mariadb"), staged=1.0, strangers=1.0, lingers=1.0), 2000,
    ),
    Mutant(
        "what lingers is always trusted, in few words", what_was_prepared_here_is_always_trusted, ["I2"],
        schedule=KEPT["a stranger has rolled back a branch that lingers"],
    ),
    Mutant(
        "what was staged here is always trusted", what_was_prepared_here_is_always_trusted, ["I2"],
        Focus(servers=("postgres", "postgres"), staged=1.0, strangers=1.0), 2000,
    ),
    Mutant(
        "what was staged here is always trusted, in few words", what_was_prepared_here_is_always_trusted, ["I2"],
        schedule=KEPT["a stranger has rolled back a branch that was staged long ago"],
    ),
    Mutant(
        "what lingers is idle", what_lingers_is_idle, ["I18"],
        Focus(servers=("mariadb", "mariadb"), staged=1.0, lingers=1.0),
    ),
    Mutant(
        "unconfirmed receipt", unconfirmed_receipt, ["I6"],
        Focus(servers=("mariadb", "mariadb"), weights={"crash": 10, "slow disk": 10, "kill": 5, "lose reply": 5}), 2000,
    ),
    Mutant("an error does not doom its branch", an_error_does_not_doom, ["I16"], Focus(fails=0.8)),
    Mutant(
        "nonce dropped", nonce_dropped, ["I1"],
        schedule=KEPT["two lives of a name in one millisecond, and a late rollback"], rules={"I1"},
    ),
    Mutant("dirty session returned to its pool", dirty_session_returned, ["I18"]),
]  # fmt: skip

# Seeds with which they are noticed, tried first; when the drawing changes, others are, a little later.
NOTICED_WITH = {
    "the shape of its branches decides": 71, "a failed begin is not fenced": 454,
    "a lost reply is settled by a look": 224, "a doubt is settled by a look": 29, "a name passes on while it lives": 22,
    "what was aborted is left": 2,
    "acts on a decision that is visible and not flushed": 12, "confirms by a conflicting INSERT": 12,
    "a bare COMMIT row after a lost reply": 59, "decision after commit": 13, "forgets early": 36,
    "unknown is done": 17, "a row rides across two sessions": 2, "staged commit before the last is listed": 353,
    "PREPARE tag unchecked": 2, "XAER_NOTA is done": 136, "unconfirmed receipt": 15, "an end that is seen will do": 281,
    "an error does not doom its branch": 5, "dirty session returned to its pool": 83,
    "what lingers is idle": 0, "what lingers is always trusted": 124, "what was staged here is always trusted": 124,
    "OK to XA COMMIT is proof": 17, "OK to XA COMMIT is proof, by what is lost alone": 32,
    "no compare-and-set, by the sums alone": 136, "a savepoint is only forgotten": 9,
    "the contrary is answered in peace": 1, "heuristics are silent": 10, "accuses what another has ended": 282,
}  # fmt: skip
