"""Each rule taken out of the journal must be caught by the claim that is named after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from journals.places import Place
from nodoubt.journals import rows, trail
from nodoubt.journals.memory import MemoryJournal
from nodoubt.journals.sql import SqlJournal
from nodoubt.ports import Refused, Reply, Session, readable
from nodoubt.protocol.records import Decision, Epoch, Event, Staging, Standing, Unreadable, Verdict
from nodoubt.schema import Part, read, shipped
from nodoubt.script import Do, Pause, Script
from nodoubt.testing.bench import Bench
from nodoubt.testing.journals import JournalSuite
from nodoubt.testing.samples import abort, decision

SUITE = JournalSuite()
# What a claim fails with: an assertion, the lack of a refusal, or a refusal where none was due.
FAILED = (AssertionError, pytest.fail.Exception, Refused)
Claim = Callable[[Bench], None]
OtherBench = Callable[[Any], Bench]


class IgnoresConflicts(SqlJournal):
    """Takes the absence of an error for success."""

    def _decision_rows(self, decision: Decision) -> tuple[str, ...]:
        row, *more = super()._decision_rows(decision)
        if self.dialect.kind == "mariadb":
            return row.replace("INSERT INTO", "INSERT IGNORE INTO", 1), *more
        return f"{row} ON CONFLICT DO NOTHING", *more


class Overwrites(SqlJournal):
    """The last one decides."""

    def _decision_rows(self, decision: Decision) -> tuple[str, ...]:
        table = self.dialect.table("decisions")
        forget = f"DELETE FROM {table} WHERE attempt = {self.dialect.attempt(decision.attempt)}"
        return (forget, *super()._decision_rows(decision))


class NeverRollsBack(SqlJournal):
    """Leaves what failed to whoever uses the session next."""

    def _rollback(self, session: Session) -> Script[None]:
        yield from ()


class OneByOne(SqlJournal):
    """Several decisions in several transactions."""

    def insert(self, session: Session, decisions: Sequence[Decision]) -> Script[None]:
        for one in decisions:
            yield from super().insert(session, [one])


class DecidesBelowTheFloor(SqlJournal):
    """Forgets that it has forgotten."""

    def _decision_rows(self, decision: Decision) -> tuple[str, ...]:
        row, *more = super()._decision_rows(decision)
        checked = rows.above_floor(self.dialect, decision.attempt)
        assert checked in row
        return row.replace(checked, f"'{decision.attempt}'"), *more


class StagesAnything(SqlJournal):
    """A name for an attempt that may be fenced, or below the floor."""

    def staging_rows(self, staging: Staging, *, replace: Staging | None = None) -> tuple[str, ...]:
        checked = rows.above_floor(self.dialect, staging.attempt, undecided=True)
        statements = super().staging_rows(staging, replace=replace)
        assert any(checked in one for one in statements)
        return tuple(one.replace(checked, f"'{staging.attempt}'") for one in statements)


class ReplacesTheUndecided(SqlJournal):
    """Makes room for a second live attempt."""

    def staging_rows(self, staging: Staging, *, replace: Staging | None = None) -> tuple[str, ...]:
        return tuple(one.split(" AND EXISTS")[0] for one in super().staging_rows(staging, replace=replace))


class ReplacesByAttemptAlone(SqlJournal):
    """Removes a name that nobody asked it to."""

    def staging_rows(self, staging: Staging, *, replace: Staging | None = None) -> tuple[str, ...]:
        name = f"name = {self.dialect.key(staging.name)} AND "
        return tuple(one.replace(name, "") for one in super().staging_rows(staging, replace=replace))


class ReplacesInTwoSteps(SqlJournal):
    """Removes the old name before it is sure of the new one."""

    def stage(
        self, session: Session, staging: Staging, *, replace: Staging | None = None, forced: bool = True
    ) -> Script[None]:
        for row in self.staging_rows(staging, replace=replace):
            yield from self._write(session, row)


class ForgetsThatItWasStaged(SqlJournal):
    """Makes room, and with the row goes its line."""

    def staging_rows(self, staging: Staging, *, replace: Staging | None = None) -> tuple[str, ...]:
        statements = super().staging_rows(staging, replace=replace)
        return statements if replace is None else statements[:-1]


class TellsTwice(SqlJournal):
    """Tells from its row what an earlier release has stored."""

    def events(self, session: Session, attempt: str) -> Script[list[Event]]:
        told = yield from super().events(session, attempt)
        staged = yield from self.staged(session, [attempt])
        return [*map(trail.of_staging, map(readable, staged.values())), *told]


class TellsWhatWent(SqlJournal):
    """Tells again, of a row that has gone, what an earlier release has stored of it."""

    def events(self, session: Session, attempt: str) -> Script[list[Event]]:
        which = f"attempt = {self.dialect.key(attempt)}"
        reply = yield from self._read(
            session,
            f"SELECT {rows.select(self.dialect, rows.EVENT)} FROM {self.dialect.table('events')} WHERE {which} "
            "ORDER BY id",
        )
        once = yield from super().events(session, attempt)
        stored = list(map(rows.event, reply.rows))
        return [*stored, *(one for one in once if one not in stored)]


class FreesEveryName(SqlJournal):
    """Whoever is aborted gives its name back, to whom a late verb does not mean."""

    def _decision_rows(self, decision: Decision) -> tuple[str, ...]:
        return super()._decision_rows(msgspec.structs.replace(decision, frees_name=decision.verdict is Verdict.ABORT))


class KeepsEveryName(SqlJournal):
    """Whoever was never staged holds its name for a week."""

    def _decision_rows(self, decision: Decision) -> tuple[str, ...]:
        return super()._decision_rows(decision.kept)


class FreesTheNameFirst(SqlJournal):
    """Gives the name back before it is sure of the ABORT."""

    def insert(self, session: Session, decisions: Sequence[Decision]) -> Script[None]:
        names = self.dialect.table("names")
        for one in decisions:
            if one.frees_name:
                which = f"attempt = {self.dialect.attempt(one.attempt)}"
                yield from self._write(session, f"DELETE FROM {names} WHERE {which}")
        yield from super().insert(session, decisions)


class DeletesFirst(SqlJournal):
    """Raises the floor when everything is gone already."""

    def retire(self, session: Session, older_than: float, limit: int, after: str = "") -> Script[tuple[str, ...]]:
        old = yield from self._retirable(session, "f" * 32, older_than, limit)
        if old:
            yield from self._delete(session, old, [])
        yield from self._raise_floor(session, older_than)
        return tuple(old)


class NeverRaisesTheFloor(SqlJournal):
    """Deletes, and lets what it deleted be decided again."""

    def retire(self, session: Session, older_than: float, limit: int, after: str = "") -> Script[tuple[str, ...]]:
        old = yield from self._retirable(session, "f" * 32, older_than, limit)
        if old:
            yield from self._delete(session, old, [])
        return tuple(old)


class FloorAboveAll(SqlJournal):
    """Looks neither at open commits nor at live names, nor at the newest record."""

    def _highest_floor(self, session: Session, floor: str, cutoff: str) -> Script[str]:
        yield from ()
        return cutoff

    def _floor_statements(self, floor: str, wanted: str) -> tuple[str, ...]:
        *lock, rise = super()._floor_statements(floor, wanted)
        return *lock, rise.split(" AND NOT EXISTS")[0]


class ForgetsWhatIsYoung(SqlJournal):
    """Whatever lies below the floor and has ended may go."""

    def _retirable(
        self, session: Session, floor: str, older_than: float, limit: int, after: str = ""
    ) -> Script[list[str]]:
        return super()._retirable(session, floor, 1e11, limit, after)


class ForgetsTheQuarantined(SqlJournal):
    """Deletes what an operator may still ask for."""

    def _read(self, session: Session, sql: str) -> Script[Reply]:
        return super()._read(session, sql.replace(rows.not_cleared(self.dialect, "q."), "q.cleared_by = 'nobody'"))


class TrustsTheClock(SqlJournal):
    """Raises the floor to wherever a clock says."""

    def _highest_floor(self, session: Session, floor: str, cutoff: str) -> Script[str]:
        yield from super()._highest_floor(session, floor, cutoff)
        return cutoff


class LeavesNames(SqlJournal):
    """A record goes, and its name stays."""

    def _delete(self, session: Session, retired: Sequence[str], strays: Sequence[str]) -> Script[None]:
        table = self.dialect.table("decisions")
        yield from self._write(session, f"DELETE FROM {table} WHERE attempt IN ({self.dialect.attempts(retired)})")


class NewIdAtEachSetup(SqlJournal):
    """A setup that does not keep what stands."""

    def setup(self, session: Session, cluster: str) -> Script[None]:
        yield from super().setup(session, cluster)
        table, key = self.dialect.table("journal"), self.dialect.key
        yield from self._write(session, f"UPDATE {table} SET value = {key(cluster)} WHERE item = {key('cluster')}")


class EpochFromASnapshot(SqlJournal):
    """Reads the epoch, and then writes what it has made of it."""

    def raise_epoch(self, session: Session, mark: str) -> Script[Epoch]:
        one_more = (yield from self.epoch(session)).number + 1
        table, key = self.dialect.table("journal"), self.dialect.key
        yield Pause(0.2)  # so that the others read it too, however busy the machine is
        yield from self._write(session, f"UPDATE {table} SET counter = {one_more} WHERE item = {key('epoch')}")
        return Epoch(one_more, mark)


class ForgetsEveryEpoch(SqlJournal):
    """Keeps the newest mark, whoever may still show an older one."""

    def _forget_epochs(self, session: Session) -> Script[None]:
        number = (yield from self.epoch(session)).number
        yield from self._write(session, f"DELETE FROM {self.dialect.table('epochs')} WHERE number < {number}")


class DropsAnything(SqlJournal):
    """Forgets a resource that open records list."""

    def unregister(self, session: Session, resource_id: str) -> Script[None]:
        table, key = self.dialect.table("resources"), self.dialect.key
        yield from self._write(session, f"DELETE FROM {table} WHERE resource_id = {key(resource_id)}")


class Listed(SqlJournal):
    """COMMIT records that have ended are listed as open."""

    def open_commits(self, session: Session, after: str, limit: int) -> Script[list[Standing | Unreadable]]:
        table = self.dialect.table("decisions")
        reply = yield from self._read(
            session,
            f"SELECT {rows.standing_columns(self.dialect)} FROM {table} WHERE verdict = 'commit' "
            f"AND attempt > {self.dialect.key(after)} ORDER BY attempt LIMIT {limit}",
        )
        return [rows.standing(row) for row in reply.rows]


class QuietAgain(SqlJournal):
    """What was cleared once stays quiet."""

    def quarantine(self, session: Session, entry: Any) -> Script[None]:
        cleared = yield from self._read(
            session,
            f"SELECT count(*) FROM {self.dialect.table('quarantine')} WHERE cleared_by <> '' "
            f"AND attempt = {self.dialect.key(entry.attempt)}",
        )
        if not int(cleared.scalar()):
            yield from super().quarantine(session, entry)


CAUGHT: Sequence[tuple[type[SqlJournal], Claim]] = (
    (IgnoresConflicts, SUITE.test_the_first_decision_stands_whatever_the_second_one_says),
    (IgnoresConflicts, SUITE.test_of_many_who_decide_at_once_exactly_one_does),
    (Overwrites, SUITE.test_the_first_decision_stands_whatever_the_second_one_says),
    (NeverRollsBack, SUITE.test_a_refused_write_leaves_nothing_open_in_its_session),
    (OneByOne, SUITE.test_several_decisions_are_written_together_or_not_at_all),
    (DecidesBelowTheFloor, SUITE.test_below_the_floor_nothing_is_decided_neither_commit_nor_abort),
    (StagesAnything, SUITE.test_below_the_floor_nothing_is_staged),
    (StagesAnything, SUITE.test_an_attempt_that_was_fenced_is_not_staged),
    (ReplacesTheUndecided, SUITE.test_only_an_attempt_that_is_decided_makes_room_for_another),
    (ReplacesByAttemptAlone, SUITE.test_replacing_one_name_never_removes_another),
    (ReplacesInTwoSteps, SUITE.test_what_is_replaced_comes_back_if_the_new_name_is_refused),
    (FreesEveryName, SUITE.test_a_begin_that_never_answered_gives_its_name_back_and_comes_alive_no_more),
    (KeepsEveryName, SUITE.test_a_begin_that_never_answered_gives_its_name_back_and_comes_alive_no_more),
    (FreesTheNameFirst, SUITE.test_a_name_is_given_back_with_the_abort_that_stands_and_with_no_other),
    (ForgetsThatItWasStaged, SUITE.test_a_line_whose_row_makes_room_for_another_is_kept),
    (TellsTwice, SUITE.test_a_line_that_was_stored_is_not_told_again_from_its_row),
    (TellsWhatWent, SUITE.test_a_line_that_was_stored_is_not_told_again_when_its_row_makes_room),
    (DeletesFirst, SUITE.test_wherever_a_clean_up_dies_what_is_gone_lies_below_the_floor),
    (NeverRaisesTheFloor, SUITE.test_wherever_a_clean_up_dies_what_is_gone_lies_below_the_floor),
    (FloorAboveAll, SUITE.test_a_commit_that_has_not_ended_is_never_forgotten_and_holds_the_floor),
    (FloorAboveAll, SUITE.test_a_live_name_holds_the_floor_until_it_is_decided),
    (ForgetsWhatIsYoung, SUITE.test_the_clean_up_forgets_what_ended_before_the_cut_and_only_that),
    (ForgetsTheQuarantined, SUITE.test_a_record_whose_branch_is_quarantined_is_kept_until_it_is_cleared),
    (TrustsTheClock, SUITE.test_a_clock_far_ahead_does_not_lock_out_the_transactions_to_come),
    (LeavesNames, SUITE.test_with_a_record_go_its_name_and_its_trail),
    (NewIdAtEachSetup, SUITE.test_the_first_cluster_id_stays_and_so_does_everything_else),
    (EpochFromASnapshot, SUITE.test_the_epoch_rises_by_one_and_tells_each_caller_a_number_of_its_own),
    (ForgetsEveryEpoch, SUITE.test_marks_are_kept_as_long_as_a_registered_resource_may_show_them),
    (DropsAnything, SUITE.test_a_resource_with_open_records_is_not_dropped),
    (Listed, SUITE.test_open_commits_are_those_that_have_not_ended_page_by_page),
    (QuietAgain, SUITE.test_what_comes_back_after_it_was_cleared_is_loud_again),
)


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "mariadb"])
@pytest.mark.parametrize("style", ["sync"])
@pytest.mark.parametrize(("mutant", "claim"), CAUGHT)
def test_a_journal_without_the_rule_is_caught(
    mutant: type[SqlJournal], claim: Claim, place: Place, other_bench: OtherBench
) -> None:
    with pytest.raises(FAILED):
        claim(other_bench(mutant(place.dialect())))


@pytest.mark.parametrize(("kind", "style"), [("mariadb", "sync")])
@pytest.mark.parametrize("column", ["VARCHAR(200)", "VARCHAR(200) COLLATE utf8mb4_general_ci"])
def test_names_in_a_text_column_are_caught(bare: Bench, column: str) -> None:
    name = "name VARBINARY(800) NOT NULL PRIMARY KEY"
    first, *later = [one.sql for one in shipped(Part.JOURNAL, "mariadb").migrations]
    assert name in first
    altered = first.replace(name, f"name {column} NOT NULL PRIMARY KEY")
    collated = read(Part.JOURNAL, "mariadb", [altered, *later])
    bare.journal.tables.schema = collated
    bare.setup("c" * 16)
    with pytest.raises(FAILED):
        SUITE.test_names_that_differ_in_one_byte_are_different_names(bare)


# ---- the journal in memory, where a flush can be seen ---------------------------------------------


class LooksOnly(MemoryJournal):
    """Acts on a plain read."""

    def confirm(self, session: Session, attempts: Sequence[str]) -> Script[dict[str, Standing | Unreadable]]:
        return self.look(session, attempts)


class UnforcedInsert(MemoryJournal):
    """Answers before the log is flushed."""

    def insert(self, session: Session, decisions: Sequence[Decision]) -> Script[None]:
        yield Do(Visible(session), "apply", ("insert", tuple(decisions)))


class Visible:
    def __init__(self, session: Any) -> None:
        self.session = session

    def apply(self, verb: str, *args: Any) -> Any:
        return self.session.store.visible(verb, *args)


def a_confirmed_decision_outlives_a_power_cut_that_its_unflushed_writer_does_not(bench: Bench, place: Place) -> None:
    lost, kept = decision(), abort()
    place.store.visible("insert", (lost,))
    assert set(bench.look([lost.attempt])) == {lost.attempt}
    place.store.power_cut()
    assert bench.look([lost.attempt]) == {}
    place.store.visible("insert", (kept,))
    assert set(bench.confirm([kept.attempt])) == {kept.attempt}
    place.store.power_cut()
    assert set(bench.look([kept.attempt])) == {kept.attempt}


def a_decision_that_was_answered_outlives_a_power_cut(bench: Bench, place: Place) -> None:
    one = decision()
    bench.insert([one])
    place.store.power_cut()
    assert set(bench.look([one.attempt])) == {one.attempt}


@pytest.mark.parametrize(("kind", "style"), [("memory", "sync")])
@pytest.mark.parametrize(
    ("claim", "mutant"),
    [
        (a_confirmed_decision_outlives_a_power_cut_that_its_unflushed_writer_does_not, LooksOnly),
        (a_decision_that_was_answered_outlives_a_power_cut, UnforcedInsert),
    ],
)
def test_in_memory_a_power_cut_takes_what_was_not_flushed(
    claim: Callable[[Bench, Place], None],
    mutant: type[MemoryJournal],
    place: Place,
    bench: Bench,
    other_bench: OtherBench,
) -> None:
    claim(bench, place)
    with pytest.raises(AssertionError):
        claim(other_bench(mutant()), place)
