"""Each rule about steps and confirmations, taken out of the journal, is caught by the claim that is named after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from journals.places import Place
from journals.test_mutants import FAILED, OtherBench
from journals.test_races import Broken, Stage
from nodoubt.journals import rows
from nodoubt.journals.sql import SqlJournal
from nodoubt.ports import BelowFloor, Conflict, Failure, Refused, Reply, Session, StatementFailed, readable
from nodoubt.protocol.records import Call, Confirmation, Decision, Mode, Readiness, Staging
from nodoubt.script import Script
from nodoubt.testing.bench import ANSWER_WITHIN_S, Bench
from nodoubt.testing.journals import JournalSuite
from nodoubt.testing.samples import NOW, abort, call, decision, staging

SUITE = JournalSuite()
Claim = Callable[[Bench], None]


class NoFence(SqlJournal):
    """Begins a step of an attempt that is decided."""

    def _intent_rows(self, call: Call) -> tuple[str, ...]:
        checked = rows.above_floor(self.dialect, call.attempt, undecided=True)
        statements = super()._intent_rows(call)
        assert any(checked in one for one in statements)
        return tuple(one.replace(checked, self.dialect.attempt(call.attempt)) for one in statements)


class LastWriterWins(SqlJournal):
    """Changes a call whatever has become of it."""

    def advance(self, session: Session, before: Call, after: Call) -> Script[bool]:
        found = yield from self.calls(session, [before.attempt])
        now = next((readable(one) for one in found if one.number == before.number), before)
        return (yield from super().advance(session, now, after))


class NobodyIsAsked(SqlJournal):
    """Commits what was staged without a look at who must confirm, or at the steps."""

    def _decision_rows(self, decision: Decision) -> tuple[str, ...]:
        statements = super()._decision_rows(decision)
        for condition in (rows.ready, rows.plain):
            text = f" AND {condition(self.dialect, self.dialect.attempt(decision.attempt))}"
            statements = tuple(one.replace(text, "") for one in statements)
        return statements


class NoRowIsPlain(SqlJournal):
    """Takes a name whose row is gone for one that nobody has to confirm."""

    def _decision_rows(self, decision: Decision) -> tuple[str, ...]:
        return tuple(one.replace("), false)", "), true)") for one in super()._decision_rows(decision))


class TheLastAnswerStands(SqlJournal):
    """Lets everybody change their mind, even after the decision."""

    def _answer_rows(self, said: Confirmation) -> tuple[str, ...]:
        return tuple(one.split(" AND answer = 'asked'")[0] for one in super()._answer_rows(said))


class ForgetsWhatIsNotUndone(SqlJournal):
    """Deletes the ABORT that a compensation waits for."""

    def _retirable(
        self, session: Session, floor: str, older_than: float, limit: int, after: str = ""
    ) -> Script[list[str]]:
        reply = yield from self._read(
            session,
            f"SELECT attempt FROM {self.dialect.table('decisions')} WHERE attempt < {self.dialect.attempt(floor)}",
        )
        return [rows.text(attempt) for (attempt,) in reply.rows]


class FloorAboveSteps(SqlJournal):
    """Raises the floor above an attempt whose steps nobody can then undo."""

    def _undecided_calls_between(self, floor: str, ceiling: str) -> str:
        return f"{super()._undecided_calls_between(floor, ceiling)} AND 1 = 0"


class NeverEnds(SqlJournal):
    """Leaves the steps of a COMMIT that has ended to every sweep to come."""

    def end(self, session: Session, attempts: Sequence[str]) -> Script[None]:
        table, which = self.dialect.table("decisions"), f"attempt IN ({self.dialect.attempts(attempts)})"
        yield from self._write(session, f"UPDATE {table} SET ended_at = {self.dialect.now} WHERE {which}")


class HoldsForShorter(SqlJournal):
    """Sets whatever it is told."""

    def hold(self, session: Session, attempts: Sequence[str], until: float) -> Script[None]:
        if attempts:
            table, which = self.dialect.table("calls"), f"attempt IN ({self.dialect.attempts(attempts)})"
            yield from self._write(
                session, f"UPDATE {table} SET held_until = {self.dialect.seconds(until)} WHERE {which}"
            )


CAUGHT: Sequence[tuple[type[SqlJournal], Claim]] = (
    (NoFence, SUITE.test_once_an_attempt_is_decided_no_step_of_it_is_begun),
    (LastWriterWins, SUITE.test_a_call_changes_only_if_nobody_has_changed_it_since),
    (NobodyIsAsked, SUITE.test_what_was_staged_is_not_committed_while_a_step_is_not_answered),
    (NobodyIsAsked, SUITE.test_what_was_staged_is_not_committed_until_all_who_were_asked_have_confirmed),
    (NobodyIsAsked, SUITE.test_what_somebody_has_refused_is_never_committed),
    (NobodyIsAsked, SUITE.test_whoever_has_not_seen_that_there_are_conditions_does_not_commit),
    (NoRowIsPlain, SUITE.test_a_name_that_is_not_there_is_not_committed),
    (TheLastAnswerStands, SUITE.test_the_first_answer_of_each_stands),
    (TheLastAnswerStands, SUITE.test_after_the_decision_no_answer_is_written_any_more),
    (ForgetsWhatIsNotUndone, SUITE.test_an_abort_whose_steps_are_not_undone_is_kept_and_holds_up_no_other),
    (FloorAboveSteps, SUITE.test_an_undecided_attempt_with_steps_holds_the_floor),
    (NeverEnds, SUITE.test_where_a_commit_has_ended_its_steps_stand_and_nothing_is_left_to_do),
    (HoldsForShorter, SUITE.test_whoever_is_alive_holds_its_calls_for_longer_and_never_for_shorter),
)


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "mariadb"])
@pytest.mark.parametrize("style", ["sync"])
@pytest.mark.parametrize(("mutant", "claim"), CAUGHT)
def test_a_journal_without_the_rule_is_caught(
    mutant: type[SqlJournal], claim: Claim, place: Place, other_bench: OtherBench
) -> None:
    with pytest.raises(FAILED):
        claim(other_bench(mutant(place.dialect())))


# ---- the lock of the name's row: two sessions, one of them stopped before its COMMIT --------------


def commit(staged: Staging, *, gated: bool = True) -> Decision:
    return decision(attempt=staged.attempt, mode=Mode.STAGED, name=staged.name, gated=gated)


def a_commit_waits_for_an_intent_in_flight_and_is_then_refused(stage: Stage, *, gated: bool = True) -> None:
    staged, journal = staging("order"), stage.journal
    stage.bench.stage(staged)
    half = stage.half(*journal._intent_rows(call(staged.attempt)))
    deciding, _ = stage.begin(lambda session: journal.insert(session, [commit(staged, gated=gated)]))
    stage.send(half, "COMMIT")
    refused = not_done(deciding)
    if not refused:
        raise Broken("committed while a step was being begun")


def a_plain_commit_waits_for_an_intent_in_flight_and_is_then_refused(stage: Stage) -> None:
    a_commit_waits_for_an_intent_in_flight_and_is_then_refused(stage, gated=False)


def an_intent_waits_for_a_plain_commit_in_flight_and_is_then_refused(stage: Stage) -> None:
    an_intent_waits_for_a_commit_in_flight_and_is_then_refused(stage, gated=False)


def an_intent_waits_for_a_commit_in_flight_and_is_then_refused(stage: Stage, *, gated: bool = True) -> None:
    staged, journal = staging("order"), stage.journal
    stage.bench.stage(staged)
    half = stage.half(*journal.decision_rows(commit(staged, gated=gated)))
    calling, _ = stage.begin(lambda session: journal.intend(session, call(staged.attempt)))
    stage.send(half, "COMMIT")
    if not not_done(calling):
        raise Broken("a step was begun in what was committed")


def a_commit_waits_for_a_refusal_in_flight_and_is_then_refused(stage: Stage) -> None:
    staged, journal = staging("order", confirmations=("billing",)), stage.journal
    stage.bench.stage(staged)
    stage.bench.answer(staged.attempt, "nobody", Readiness.CONFIRMED, why="", at=NOW)
    half = stage.half(*journal._answer_rows(Confirmation(staged.attempt, "billing", Readiness.REFUSED, "no", NOW)))
    deciding, _ = stage.begin(lambda session: journal.insert(session, [commit(staged)]))
    stage.send(half, "COMMIT")
    if not not_done(deciding):
        raise Broken("committed against a refusal")


def a_refusal_waits_for_a_commit_in_flight_and_is_then_not_written(stage: Stage) -> None:
    staged, journal = staging("order", confirmations=("billing",)), stage.journal
    stage.bench.stage(staged)
    stage.bench.answer(staged.attempt, "billing", Readiness.CONFIRMED, why="", at=NOW)
    half = stage.half(*journal.decision_rows(commit(staged)))
    refusing, _ = stage.begin(
        lambda session: journal.answer(session, staged.attempt, "billing", Readiness.REFUSED, why="late", at=NOW)
    )
    stage.send(half, "COMMIT")
    if refusing.result(ANSWER_WITHIN_S).answer is not Readiness.CONFIRMED:
        raise Broken("refused what was committed")


def a_late_decision_and_the_end_of_the_first_do_not_wait_in_a_circle(stage: Stage) -> None:
    staged, journal = staging("order"), stage.journal
    stage.bench.stage(staged)
    stage.bench.insert([commit(staged, gated=False)])
    names, attempt = journal.dialect.table("names"), journal.dialect.attempt(staged.attempt)
    half = stage.half(f"SELECT 1 FROM {names} WHERE attempt = {attempt}{journal.dialect.row_lock}")
    ending, _ = stage.begin(lambda session: journal.end(session, [staged.attempt]))
    with pytest.raises(StatementFailed) as late:
        stage.send(half, *journal._decision_rows(abort(staged.attempt)))
    stage.send(half, "ROLLBACK")
    try:
        ending.result(ANSWER_WITHIN_S)
    except Refused as error:
        raise Broken("the end was in the circle") from error
    if journal.dialect.failure(late.value.code) is not Failure.DUPLICATE:
        raise Broken("the late decision was in the circle")


def not_done(future: object) -> bool:
    try:
        future.result(ANSWER_WITHIN_S)  # type: ignore[attr-defined]
    except (BelowFloor, Conflict):
        return True
    return False


class NoLock(SqlJournal):
    """Whoever calls a step does not lock the name's row."""

    def _count_call(self, attempt: str) -> str:
        return "SELECT 1"


class LooksWithoutALock(SqlJournal):
    """A plain COMMIT reads the name's row, and locks it not."""

    def _decision_rows(self, decision: Decision) -> tuple[str, ...]:
        (insert,) = super()._decision_rows(decision)
        assert self.dialect.row_lock in insert
        return (insert.replace(self.dialect.row_lock, ""),)


class LocksLast(SqlJournal):
    """The decision looks whether all are ready, and only then locks the name's row."""

    def _decision_rows(self, decision: Decision) -> tuple[str, ...]:
        update, insert, *more = super()._decision_rows(decision)
        assert update.startswith("UPDATE")
        return insert, update, *more


class EndsDecisionsFirst(SqlJournal):
    """Locks what it ends, and then the names of it."""

    def _write(self, session: Session, *statements: str, forced: bool = True) -> Script[Sequence[Reply]]:
        if any("undecided = NULL" in one for one in statements[1:]):
            statements = *statements[2:], *statements[:2]
        return (yield from super()._write(session, *statements, forced=forced))


SCHEDULES = (
    a_late_decision_and_the_end_of_the_first_do_not_wait_in_a_circle,
    a_plain_commit_waits_for_an_intent_in_flight_and_is_then_refused,
    an_intent_waits_for_a_plain_commit_in_flight_and_is_then_refused,
    a_commit_waits_for_an_intent_in_flight_and_is_then_refused,
    an_intent_waits_for_a_commit_in_flight_and_is_then_refused,
    a_commit_waits_for_a_refusal_in_flight_and_is_then_refused,
    a_refusal_waits_for_a_commit_in_flight_and_is_then_not_written,
)
LOST = (
    (LooksWithoutALock, a_plain_commit_waits_for_an_intent_in_flight_and_is_then_refused),
    (LooksWithoutALock, an_intent_waits_for_a_plain_commit_in_flight_and_is_then_refused),
    (NoLock, a_commit_waits_for_an_intent_in_flight_and_is_then_refused),
    (NoLock, an_intent_waits_for_a_commit_in_flight_and_is_then_refused),
    (LocksLast, a_commit_waits_for_an_intent_in_flight_and_is_then_refused),
)


@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
@pytest.mark.parametrize("style", ["sync"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_step_or_an_answer_and_the_decision_do_not_pass_each_other(
    schedule: Callable[[Stage], None], place: Place, bench: Bench
) -> None:
    schedule(Stage(place, bench))


# InnoDB locks what the subqueries of an INSERT read, so there the other schedules hold twice.
@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
@pytest.mark.parametrize("style", ["sync"])
def test_in_another_order_the_end_waits_in_a_circle(place: Place, other_bench: OtherBench) -> None:
    with pytest.raises(Broken):
        a_late_decision_and_the_end_of_the_first_do_not_wait_in_a_circle(
            Stage(place, other_bench(EndsDecisionsFirst(place.dialect())))
        )


@pytest.mark.parametrize("kind", ["postgres"])
@pytest.mark.parametrize("style", ["sync"])
@pytest.mark.parametrize(("mutant", "schedule"), LOST)
def test_without_the_lock_they_do(
    mutant: type[SqlJournal], schedule: Callable[[Stage], None], place: Place, other_bench: OtherBench
) -> None:
    with pytest.raises(Broken):
        schedule(Stage(place, other_bench(mutant(place.dialect()))))
