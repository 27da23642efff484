"""What a lock, a fresh snapshot and one message are for: two or three real sessions, stopped at the worst moment.

A transaction is stopped by sending its statements without the COMMIT. A schedule is a function of the journal, and
is run with the journal, where the rule holds, and with each mutant, where it must be seen broken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from journals.places import Place, query, waits_for_a_lock
from nodoubt.journals.dialects import Dialect, MariaDBDialect, PostgresDialect
from nodoubt.journals.sql import SqlJournal
from nodoubt.ports import BelowFloor, Conflict, StatementFailed
from nodoubt.protocol.records import Standing, Verdict
from nodoubt.script import Script
from nodoubt.testing.bench import ANSWER_WITHIN_S, Bench
from nodoubt.testing.processes import wait_for
from nodoubt.testing.samples import CUT, LONG_AGO, NOW, abort, attempt_at, decision, staging
from nodoubt.xid import first_attempt_of

OtherBench = Callable[[Any], Bench]


class Broken(AssertionError):
    """The rule that the schedule is about does not hold."""


@pytest.fixture(params=["postgres", "mariadb"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def change(dialect: Dialect, **changes: Any) -> Dialect:
    """The dialect with something taken out."""
    for name, value in changes.items():
        setattr(dialect, name, value)
    return dialect


class Stage:
    """Sessions that can be stopped in the middle of a transaction."""

    def __init__(self, place: Place, bench: Bench) -> None:
        self.place, self.bench = place, bench
        self.journal: SqlJournal = bench.journal

    def half(self, *statements: str) -> Any:
        """A session in which these have run, and COMMIT has not."""
        session = self.bench.session()
        self.send(session, self.journal.dialect.begin_forced, *statements)
        return session

    def send(self, session: Any, *statements: str) -> None:
        query(self.bench, ";\n".join(statements), session)

    def begin(self, script: Callable[[Any], Script[Any]]) -> tuple[Future[Any], Any]:
        """Run the script on a session of its own, until it waits for a lock or has ended."""
        session = self.bench.session()
        future = self.bench.start(script(session))

        def settled() -> bool:
            return future.done() or waits_for_a_lock(self.place, self.bench, session)

        wait_for(settled, "the script to wait for a lock, or to end")
        return future, session


# ---- a COMMIT races with the clean-up -------------------------------------------------------------


def a_clean_up_waits_for_a_commit_in_flight_and_stays_below_it(stage: Stage) -> None:
    late, journal = attempt_at(LONG_AGO), stage.journal
    stage.bench.insert([abort(attempt_at(LONG_AGO + 10))])
    half = stage.half(*journal.decision_rows(decision(attempt=late)))
    clean_up, _ = stage.begin(lambda session: journal.retire(session, CUT, 100))
    stage.send(half, "COMMIT")
    clean_up.result(ANSWER_WITHIN_S)
    assert set(stage.bench.confirm([late])) == {late}
    if stage.bench.floor() > late:
        raise Broken("a COMMIT that has not ended lies below the floor")


def a_clean_up_waits_for_a_name_in_flight_and_stays_below_it(stage: Stage) -> None:
    late, journal = attempt_at(LONG_AGO), stage.journal
    stage.bench.insert([abort(attempt_at(LONG_AGO + 10))])
    half = stage.half(*journal.staging_rows(staging("late", late)))
    clean_up, _ = stage.begin(lambda session: journal.retire(session, CUT, 100))
    stage.send(half, "COMMIT")
    clean_up.result(ANSWER_WITHIN_S)
    if stage.bench.floor() > late:
        raise Broken("a live name lies below the floor: it can never be committed")


def a_commit_waits_for_the_floor_that_is_rising_and_is_then_refused(stage: Stage) -> None:
    late, journal = attempt_at(LONG_AGO), stage.journal
    half = stage.half(*journal._floor_statements(stage.bench.floor(), first_attempt_of(CUT)))
    commit, _ = stage.begin(lambda session: journal.insert(session, [decision(attempt=late)]))
    stage.send(half, "COMMIT")
    try:
        commit.result(ANSWER_WITHIN_S)
    except BelowFloor:
        assert stage.bench.look([late]) == {}
    else:
        raise Broken("a COMMIT was written below the floor")


class OneStatement(SqlJournal):
    """Raises the floor without having locked it first, so in a snapshot from before its wait."""

    def _floor_statements(self, floor: str, wanted: str) -> tuple[str, ...]:
        return super()._floor_statements(floor, wanted)[-1:]


class Unguarded(SqlJournal):
    """Trusts what it read before it had the lock."""

    def _floor_statements(self, floor: str, wanted: str) -> tuple[str, ...]:
        *lock, rise = super()._floor_statements(floor, wanted)
        return *lock, rise.split(" AND NOT EXISTS")[0]


def unlocked(dialect: Dialect) -> SqlJournal:
    """A COMMIT that reads the floor without holding it."""
    return SqlJournal(change(dialect, share_lock="", hold_floor=lambda: ()))


Schedule = Callable[[Stage], None]
RACES: Sequence[Schedule] = (
    a_clean_up_waits_for_a_commit_in_flight_and_stays_below_it,
    a_clean_up_waits_for_a_name_in_flight_and_stays_below_it,
    a_commit_waits_for_the_floor_that_is_rising_and_is_then_refused,
)


@pytest.mark.parametrize("schedule", RACES)
@pytest.mark.parametrize("style", ["sync", "async"])
def test_a_commit_that_races_with_the_clean_up(schedule: Schedule, place: Place, bench: Bench) -> None:
    schedule(Stage(place, bench))


# On MariaDB a subselect of an INSERT locks what it reads anyway, so two of the mutants show only on PostgreSQL.
MUTANTS = [
    *(("postgres", unlocked, schedule) for schedule in RACES),
    *(("postgres", OneStatement, schedule) for schedule in RACES[:2]),
    *((kind, Unguarded, schedule) for kind in ("postgres", "mariadb") for schedule in RACES[:2]),
]


@pytest.mark.parametrize("style", ["sync"])
@pytest.mark.parametrize(("kind", "mutant", "schedule"), MUTANTS)
def test_without_the_lock_or_its_fresh_look_the_race_is_lost(
    mutant: Callable[[Dialect], SqlJournal], schedule: Schedule, place: Place, other_bench: OtherBench
) -> None:
    with pytest.raises(Broken):
        schedule(Stage(place, other_bench(mutant(place.dialect()))))


# ---- a decision that rides in somebody else's transaction ------------------------------------------


@pytest.mark.parametrize("style", ["sync"])
def test_a_rider_in_an_old_snapshot_meets_the_floor_of_now(place: Place, bench: Bench) -> None:
    stage, table = Stage(place, bench), bench.journal.dialect.table("journal")

    def ride(journal: SqlJournal) -> None:
        query(bench, f"UPDATE {table} SET value = '{'0' * 32}' WHERE item = 'floor'")
        rider = bench.session()
        query(bench, f"{OLD_SNAPSHOT[place.kind]}; SELECT value FROM {table}", rider)
        stage.send(stage.half(*journal._floor_statements("0" * 32, first_attempt_of(NOW))), "COMMIT")
        try:
            query(bench, "; ".join(journal.decision_rows(decision(attempt=attempt_at(LONG_AGO)))), rider)
        finally:
            query(bench, "ROLLBACK", rider)

    with pytest.raises(StatementFailed) as refused:
        ride(bench.journal)
    assert refused.value.code == {"postgres": "40001", "mariadb": "1048"}[place.kind]
    if place.kind == "postgres":
        ride(
            SqlJournal(change(place.dialect(), share_lock=""))
        )  # the mutant: the snapshot still shows the old floor, and the row is written


OLD_SNAPSHOT = {
    "postgres": "BEGIN ISOLATION LEVEL REPEATABLE READ",
    "mariadb": "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; START TRANSACTION WITH CONSISTENT SNAPSHOT",
}


@pytest.mark.parametrize("style", ["sync"])
def test_a_fence_waits_for_the_commit_in_flight_and_learns_its_end(place: Place, bench: Bench) -> None:
    stage = Stage(place, bench)
    for end in ("COMMIT", "ROLLBACK"):
        one = decision()
        half = stage.half(*bench.journal.decision_rows(one))
        fence, _ = stage.begin(lambda session, one=one: bench.journal.insert(session, [abort(one.attempt)]))  # type: ignore[misc]
        assert not fence.done()
        stage.send(half, end)
        if end == "COMMIT":
            with pytest.raises(Conflict):
                fence.result(ANSWER_WITHIN_S)
        else:
            fence.result(ANSWER_WITHIN_S)
        stands = bench.confirm([one.attempt])[one.attempt].decision.verdict
        assert stands is (Verdict.COMMIT if end == "COMMIT" else Verdict.ABORT)


@pytest.mark.parametrize("style", ["sync"])
def test_a_fence_written_while_its_name_is_being_staged_stands(place: Place, bench: Bench) -> None:
    stage, row = Stage(place, bench), staging("order")
    half = stage.half(*bench.journal.staging_rows(row))
    bench.insert([abort(row.attempt)])
    stage.send(half, "COMMIT")
    ((listed, standing),) = bench.list_staged("", 10)
    assert listed == row and standing is not None and standing.decision.verdict is Verdict.ABORT


# ---- what is returned is what was confirmed -------------------------------------------------------


class UpdateFirst(SqlJournal):
    """Confirms, and then returns whatever it sees."""

    def _write(self, session: Any, *statements: str, forced: bool = True) -> Script[Any]:
        if len(statements) == 2 and "SET confirms = " in statements[1]:
            _, selected = yield from super()._write(session, statements[1], statements[0])
            return selected, type(selected)(count=len(selected))
        return (yield from super()._write(session, *statements, forced=forced))


def confirmed_while_another_row_comes(stage: Stage) -> tuple[dict[str, Standing], dict[str, int]]:
    first, second = sorted((attempt_at(NOW), attempt_at(NOW + 1)))
    table = stage.journal.dialect.table("decisions")
    stage.bench.insert([decision(attempt=first)])
    half = stage.half(f"SELECT 1 FROM {table} WHERE attempt = '{first}' FOR UPDATE")
    confirm, _ = stage.begin(lambda session: stage.journal.confirm(session, [first, second]))
    assert not confirm.done()
    stage.bench.insert([decision(attempt=second)])
    stage.send(half, "COMMIT")
    reply = query(stage.bench, f"SELECT attempt, confirms FROM {table}")
    found = confirm.result(ANSWER_WITHIN_S)
    reply = query(stage.bench, f"SELECT attempt, confirms FROM {table}")
    return found, {str(a if isinstance(a, str) else a.decode()): int(confirms) for a, confirms in reply.rows}


@pytest.mark.parametrize("style", ["sync"])
def test_a_row_that_comes_while_others_are_confirmed_is_not_returned_unconfirmed(
    place: Place, bench: Bench, other_bench: OtherBench
) -> None:
    found, confirms = confirmed_while_another_row_comes(Stage(place, bench))
    assert len(found) in (1, 2)
    assert all(confirms[attempt] == 1 for attempt in found)
    if place.kind == "postgres":  # InnoDB's UPDATE sees what is committed while it waits
        found, confirms = confirmed_while_another_row_comes(Stage(place, other_bench(UpdateFirst(place.dialect()))))
        assert [confirms[attempt] for attempt in sorted(found)] == [1, 0], "the mutant is not caught"


# ---- MariaDB locks what is not there, unless told otherwise ---------------------------------------


@pytest.mark.parametrize("kind", ["mariadb"])
@pytest.mark.parametrize("style", ["sync"])
def test_asking_for_an_attempt_without_a_decision_stops_nobody_from_deciding(
    place: Place, bench: Bench, other_bench: OtherBench
) -> None:
    def decides(bench: Bench, at: float) -> bool:
        stage = Stage(place, bench)
        table = bench.journal.dialect.table("decisions")
        bench.insert([decision(attempt=attempt_at(at))])
        half = stage.half(f"SELECT attempt FROM {table} WHERE attempt = '{attempt_at(at + 9)}' FOR UPDATE")
        insert, _ = stage.begin(lambda session: bench.journal.insert(session, [decision(attempt=attempt_at(at + 5))]))
        at_once = insert.done()
        stage.send(half, "ROLLBACK")
        insert.result(ANSWER_WITHIN_S)
        return at_once

    assert decides(bench, NOW)
    repeatable = SqlJournal(change(place.dialect(), begin_forced="START TRANSACTION"))
    assert not decides(other_bench(repeatable), NOW + 10), "the mutant is not caught"


def test_the_dialects_name_the_lock_and_the_isolation_that_these_races_rely_on() -> None:
    for dialect in (PostgresDialect(), MariaDBDialect("journal")):
        assert "READ COMMITTED" in dialect.begin_forced
        assert dialect.share_lock and dialect.row_lock
