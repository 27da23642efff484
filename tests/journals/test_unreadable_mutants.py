"""Each rule about rows that cannot be read, taken out of the journal, is caught by the claim that is named after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from journals.damage import SqlDamage
from journals.places import Place
from journals.test_mutants import FAILED, OtherBench
from nodoubt.errors import UnreadableRecord
from nodoubt.journals import rows
from nodoubt.journals.dialects import SqliteDialect
from nodoubt.journals.sql import SqlJournal
from nodoubt.ports import START, Session, Spot, readable
from nodoubt.protocol.records import Standing, Unreadable
from nodoubt.script import Script
from nodoubt.testing.bench import Bench
from nodoubt.testing.journals import Damage, UnreadableSuite
from nodoubt.testing.samples import decision

SUITE = UnreadableSuite()
Claim = Callable[[Bench, Damage], None]


class LeftOut(SqlJournal):
    """What cannot be read is not there."""

    def confirm(self, session: Session, attempts: Sequence[str]) -> Script[dict[str, Standing | Unreadable]]:
        found = yield from super().confirm(session, attempts)
        return {attempt: one for attempt, one in found.items() if not isinstance(one, Unreadable)}

    def open_commits(self, session: Session, after: str, limit: int) -> Script[list[Standing | Unreadable]]:
        found = yield from super().open_commits(session, after, limit)
        return [one for one in found if not isinstance(one, Unreadable)]

    def undecided(self, session: Session, after: str, limit: int) -> Script[list[Any]]:
        found = yield from super().undecided(session, after, limit)
        return [one for one in found if not isinstance(one, Unreadable)]

    def calls(self, session: Session, attempts: Sequence[str]) -> Script[list[Any]]:
        found = yield from super().calls(session, attempts)
        return [one for one in found if not isinstance(one, Unreadable)]

    def quarantined(self, session: Session, limit: int | None = None) -> Script[list[Any]]:
        found = yield from super().quarantined(session, limit)
        return [one for one in found if not isinstance(one, Unreadable)]


class OneStopsAll(SqlJournal):
    """A page is read as a whole or not at all."""

    def confirm(self, session: Session, attempts: Sequence[str]) -> Script[dict[str, Standing | Unreadable]]:
        found = yield from super().confirm(session, attempts)
        return {attempt: readable(one) for attempt, one in found.items()}

    def open_commits(self, session: Session, after: str, limit: int) -> Script[list[Standing | Unreadable]]:
        found = yield from super().open_commits(session, after, limit)
        return [readable(one) for one in found]

    def aborted(
        self, session: Session, older_than: float, limit: int, after: str = ""
    ) -> Script[list[Standing | Unreadable]]:
        found = yield from super().aborted(session, older_than, limit, after)
        return [readable(one) for one in found]


class Guessed(SqlJournal):
    """What cannot be read is taken for what it begins with: a COMMIT that has no branches, and so has ended."""

    def confirm(self, session: Session, attempts: Sequence[str]) -> Script[dict[str, Any]]:
        found = yield from super().confirm(session, attempts)
        guess = {attempt: Standing(decision(attempt=attempt, branches=()), ended=True) for attempt in found}
        return {attempt: guess[attempt] if isinstance(one, Unreadable) else one for attempt, one in found.items()}


class ConfirmsAll(SqlJournal):
    """Confirms what its table's CHECK refuses, and with it all the others."""

    def _write(self, session: Session, *statements: str, forced: bool = True) -> Script[Any]:
        every = [one.replace(" AND verdict IN ('commit', 'abort')", "") for one in statements]
        return super()._write(session, *every, forced=forced)


class ForgetsUnread(SqlJournal):
    """Deletes by a few columns, whatever the others say."""

    def _retirable(
        self, session: Session, floor: str, older_than: float, limit: int, after: str = ""
    ) -> Script[list[str]]:
        decisions, attempt = self.dialect.table("decisions"), self.dialect.reading("attempt", "attempt")
        reply = yield from self._read(
            session,
            f"SELECT {attempt} FROM {decisions} WHERE attempt < {self.dialect.attempt(floor)} "
            f"AND (verdict = 'abort' OR ended_at IS NOT NULL) ORDER BY attempt LIMIT {limit}",
        )
        return [rows.raw(value) for (value,) in reply.rows]


class ForgetsTheRest(SqlJournal):
    """Looks at the decision alone, and not at what goes with it."""

    def unreadable_of(self, session: Session, attempts: Sequence[str]) -> Script[list[Unreadable]]:
        yield from ()
        return []


class GivesUp(SqlJournal):
    """Forgets nothing behind a page of which nothing may be forgotten."""

    def _forgettable(self, session: Session, ceiling: str, which: str, limit: int, after: str = "") -> Script[Any]:
        which = f"attempt < {self.dialect.attempt(ceiling)} AND {which}"
        page = yield from self._standings(session, f"{which} ORDER BY attempt LIMIT {limit}")
        return [one for one in page if not isinstance(one, Unreadable)], [
            one for one in page if isinstance(one, Unreadable)
        ]


class UnsureIsOver(SqlJournal):
    """A verdict that is neither of the two holds nothing down, and keeps no resource."""

    def _read(self, session: Session, sql: str) -> Script[Any]:
        return super()._read(session, sql.replace("verdict NOT IN ('commit', 'abort')", "verdict = 'neither'"))


class TellsNobody(SqlJournal):
    """Sets them apart, and says nothing."""

    def unreadable(self, session: Session, after: Spot = START, *, old: bool = False) -> Script[Any]:
        yield from ()
        return [], None


class TakesThemForNobodys(SqlJournal):
    """Knows no row that may be anybody's."""

    def ownerless(self, session: Session) -> Script[list[Unreadable]]:
        yield from ()
        return []


class GoesByTheAttemptAlone(SqlJournal):
    """Looks at one of the two columns."""

    def _parted(self, table: str, key: str) -> str:
        return f"{table}{key} IS NOT NULL AND {self.dialect.no_attempt(f'{table}attempt')}"


CAUGHT: Sequence[tuple[type[SqlJournal], Claim]] = (
    (LeftOut, SUITE.test_a_decision_that_cannot_be_read_stands_as_that_beside_the_others),
    (LeftOut, SUITE.test_the_open_commits_are_all_met_page_by_page_past_one_that_cannot_be_read),
    (LeftOut, SUITE.test_the_undecided_names_are_all_met_past_one_that_cannot_be_read),
    (LeftOut, SUITE.test_a_step_that_cannot_be_read_is_told_and_so_are_the_others),
    (LeftOut, SUITE.test_what_is_quarantined_is_listed_though_one_entry_cannot_be_read),
    (OneStopsAll, SUITE.test_a_decision_that_cannot_be_read_stands_as_that_beside_the_others),
    (OneStopsAll, SUITE.test_the_open_commits_are_all_met_page_by_page_past_one_that_cannot_be_read),
    (OneStopsAll, SUITE.test_a_record_that_cannot_be_read_is_not_forgotten_and_keeps_no_other),
    (Guessed, SUITE.test_a_decision_that_cannot_be_read_stands_as_that_beside_the_others),
    (ForgetsUnread, SUITE.test_a_record_that_cannot_be_read_is_not_forgotten_and_keeps_no_other),
    (ForgetsTheRest, SUITE.test_a_record_that_cannot_be_read_is_not_forgotten_and_keeps_no_other),
    (GivesUp, SUITE.test_a_record_that_cannot_be_read_is_not_forgotten_and_keeps_no_other),
    (UnsureIsOver, SUITE.test_an_open_commit_that_cannot_be_read_keeps_the_floor_where_it_is),
    (UnsureIsOver, SUITE.test_a_resource_that_a_decision_of_no_known_verdict_may_list_is_not_forgotten),
    (TellsNobody, SUITE.test_what_cannot_be_read_is_told_until_it_is_mended),
    (TakesThemForNobodys, SUITE.test_what_may_be_anybodys_is_told_as_that_until_it_is_mended),
    (GoesByTheAttemptAlone, SUITE.test_what_may_be_anybodys_is_told_as_that_until_it_is_mended),
)


def caught(mutant: SqlJournal, claim: Claim, place: Place, other_bench: OtherBench) -> None:
    bench = other_bench(mutant)
    with pytest.raises((*FAILED, UnreadableRecord)):
        claim(bench, SqlDamage(place, bench))


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "mariadb"])
@pytest.mark.parametrize("style", ["sync"])
@pytest.mark.parametrize(("mutant", "claim"), CAUGHT)
def test_a_journal_without_the_rule_is_caught(
    mutant: type[SqlJournal], claim: Claim, place: Place, other_bench: OtherBench
) -> None:
    caught(mutant(place.dialect()), claim, place, other_bench)


@pytest.mark.parametrize(("kind", "style"), [("postgres", "sync"), ("mariadb", "sync")])
def test_a_check_that_refuses_one_row_would_keep_all_from_being_confirmed(
    place: Place, other_bench: OtherBench
) -> None:
    claim = SUITE.test_a_decision_that_cannot_be_read_stands_as_that_beside_the_others
    caught(ConfirmsAll(place.dialect()), claim, place, other_bench)


class ReadsAsTexts(SqliteDialect):
    """Lets the driver read texts, whose bytes may be none."""

    def reading(self, column: str, name: str) -> str:
        return column


@pytest.mark.parametrize(("kind", "style"), [("sqlite", "sync")])
@pytest.mark.parametrize(
    "claim",
    [
        SUITE.test_the_open_commits_are_all_met_page_by_page_past_one_that_cannot_be_read,
        SUITE.test_a_step_that_cannot_be_read_is_told_and_so_are_the_others,
    ],
)
def test_bytes_that_are_no_text_would_stop_a_whole_page(claim: Claim, place: Place, other_bench: OtherBench) -> None:
    caught(SqlJournal(ReadsAsTexts()), claim, place, other_bench)
