"""A floor that is no attempt's id permits nothing: neither a decision nor a name nor a step; and it is told."""

from __future__ import annotations

from typing import Any

import pytest

from journals.places import Place, query
from journals.test_mutants import FAILED, OtherBench
from nodoubt.errors import UnreadableRecord
from nodoubt.journals.dialects import MariaDBDialect, SqliteDialect
from nodoubt.journals.sql import SqlJournal
from nodoubt.ports import BelowFloor, Session, StatementFailed
from nodoubt.protocol.records import Decision, Unreadable
from nodoubt.script import Script
from nodoubt.testing.bench import Bench
from nodoubt.testing.journals.unreadable import unreadable
from nodoubt.testing.samples import CUT, LONG_AGO, NOW, abort, attempt_at, call, decision, staging

KINDS = [("sqlite", "sync"), ("postgres", "sync"), ("mariadb", "sync")]
FLOORS = {
    "empty": "", "short": "0" * 31, "long": "0" * 33, "no digits": "!" * 32, "high": "~" * 32, "capitals": "A" * 32,
}  # fmt: skip
OCTETS = {
    "no text": "ff" * 32, "a NUL behind": "30" * 32 + "00", "a NUL and more behind": "30" * 32 + "0041",
    "a NUL for the last": "30" * 31 + "00", "a NUL for the first": "00" + "30" * 31,
}  # fmt: skip


def floor_is(place: Place, bench: Bench, literal: str) -> None:
    query(bench, f"UPDATE {place.dialect().table('journal')} SET value = {literal} WHERE item = 'floor'")


def of_octets(place: Place, octets: str) -> str:
    """A literal, where any bytes can be stored."""
    literal = f"x'{OCTETS[octets]}'"
    return f"CAST({literal} AS TEXT)" if place.kind == "sqlite" else literal


def rides(place: Place, bench: Bench, one: Any) -> None:
    """The decision, in a transaction of somebody else's."""
    session = bench.session()
    with pytest.raises(StatementFailed):
        query(bench, ";\n".join(("BEGIN", *bench.journal.decision_rows(one), "COMMIT")), session)
    query(bench, "ROLLBACK", session)


def nothing_passes(place: Place, bench: Bench, literal: str) -> None:
    named = staging("named")
    bench.stage(named)
    floor_is(place, bench, literal)
    for one in (decision(), abort(named.attempt)):
        with pytest.raises(UnreadableRecord, match=r"journal: 'floor'.*cannot be read.*nothing is decided"):
            bench.insert([one])
        rides(place, bench, one)
        assert bench.look([one.attempt]) == {}
    with pytest.raises(UnreadableRecord):
        bench.stage(staging("late"))
    assert bench.find("late") is None
    with pytest.raises(UnreadableRecord):
        bench.intend(call(named.attempt))
    assert bench.calls([named.attempt]) == []


@pytest.mark.parametrize(("kind", "style"), KINDS)
@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_that_is_no_attempt_permits_nothing(place: Place, bench: Bench, floor: str) -> None:
    nothing_passes(place, bench, place.dialect().text(FLOORS[floor]))
    floor_is(place, bench, f"'{attempt_at(LONG_AGO)}'")
    bench.insert([decision()])
    with pytest.raises(BelowFloor):
        bench.insert([decision(attempt=attempt_at(LONG_AGO - 1))])


@pytest.mark.parametrize(("kind", "style"), [("sqlite", "sync"), ("mariadb", "sync")])
@pytest.mark.parametrize("octets", OCTETS)
def test_a_floor_of_bytes_that_are_none_permits_nothing(place: Place, bench: Bench, octets: str) -> None:
    nothing_passes(place, bench, of_octets(place, octets))


@pytest.mark.parametrize(("kind", "style"), KINDS)
def test_where_there_is_no_floor_nothing_passes_either(place: Place, bench: Bench) -> None:
    table = place.dialect().table("journal")
    query(bench, f"DELETE FROM {table} WHERE item = 'floor'")
    try:
        with pytest.raises(UnreadableRecord):
            bench.insert([decision()])
        assert [one.name for one in bench.ownerless()] == ["floor"]
    finally:
        query(bench, f"INSERT INTO {table} (item, value) VALUES ('floor', '{'0' * 32}')")


def told(place: Place, bench: Bench, literal: str) -> None:
    assert bench.ownerless() == unreadable(bench) == []
    bench.insert([bad := decision()])
    floor_is(place, bench, literal)
    for found in (bench.ownerless(), unreadable(bench)):
        assert [(one.table, one.name) for one in found] == [("journal", "floor")]
        assert "cannot be read" in found[0].why
    table = place.dialect().table("decisions")
    query(bench, f"UPDATE {table} SET branches = '[' WHERE attempt = '{bad.attempt}'")
    assert {one.table for one in unreadable(bench)} == {"journal", "decisions"}, "it keeps no other from being told"
    with pytest.raises(UnreadableRecord):
        bench.floor()
    with pytest.raises(UnreadableRecord):
        bench.retire(CUT, 10)


@pytest.mark.parametrize(("kind", "style"), KINDS)
@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_that_cannot_be_read_is_told(place: Place, bench: Bench, floor: str) -> None:
    told(place, bench, place.dialect().text(FLOORS[floor]))


@pytest.mark.parametrize(("kind", "style"), [("sqlite", "sync"), ("mariadb", "sync")])
@pytest.mark.parametrize("octets", OCTETS)
def test_a_floor_of_bytes_that_are_none_is_told(place: Place, bench: Bench, octets: str) -> None:
    told(place, bench, of_octets(place, octets))


SESSIONS = {
    "": "SET NAMES utf8mb4",
    "swe7": "SET NAMES swe7",
    "binary": "SET NAMES binary",
    "regex": "SET default_regex_flags = 'EXTENDED,DOTALL,MULTILINE'",
    **{
        mode: f"SET sql_mode = '{mode}'"
        for mode in (
            "ANSI_QUOTES", "NO_BACKSLASH_ESCAPES", "ORACLE", "ANSI", "PAD_CHAR_TO_FULL_LENGTH", "EMPTY_STRING_IS_NULL",
            "PIPES_AS_CONCAT", "HIGH_NOT_PRECEDENCE",
        )
    },
}  # fmt: skip


def in_any_session(place: Place, bench: Bench, setting: str) -> None:
    session = bench.session()
    query(bench, setting, session)
    journal = bench.journal
    assert bench.run(journal.ownerless(session)) == []
    for one in (decision(), abort()):
        query(bench, ";\n".join(("START TRANSACTION", *journal.decision_rows(one), "COMMIT")), session)
        assert set(bench.look([one.attempt])) == {one.attempt}
    bad = decision()
    bench.insert([bad])
    for attempt in ("A" * 32, "!" * 32, "[" * 32, "[^0-9a-f]".ljust(32, "0")):
        table = place.dialect().table("decisions")
        query(bench, f"UPDATE {table} SET attempt = '{attempt}' WHERE attempt = '{bad.attempt}'")
        assert [one.attempt for one in bench.run(journal.ownerless(session))] == [attempt]
        query(bench, f"UPDATE {table} SET attempt = '{bad.attempt}' WHERE attempt = '{attempt}'")
        floor_is(place, bench, f"'{attempt}'")
        one = decision(attempt=attempt_at(NOW + 1e9))
        with pytest.raises(StatementFailed, match="attempt"):
            query(bench, ";\n".join(("START TRANSACTION", *journal.decision_rows(one), "COMMIT")), session)
        query(bench, "ROLLBACK", session)
        assert bench.look([one.attempt]) == {}
        floor_is(place, bench, f"'{'0' * 32}'")


@pytest.mark.parametrize(("kind", "style"), [("mariadb", "sync")])
@pytest.mark.parametrize("setting", SESSIONS)
def test_whether_it_is_an_attempt_does_not_hang_on_the_users_session(place: Place, bench: Bench, setting: str) -> None:
    in_any_session(place, bench, SESSIONS[setting])


# ---- mutants --------------------------------------------------------------------------------------


class AnyFloor(SqlJournal):
    """Takes whatever is not above the attempt for a floor."""

    def _write(self, session: Session, *statements: str, forced: bool = True) -> Script[Any]:
        return super()._write(session, *map(self._bare, statements), forced=forced)

    def decision_rows(self, decision: Decision) -> tuple[str, ...]:
        return tuple(map(self._bare, super().decision_rows(decision)))

    def _bare(self, statement: str) -> str:
        return statement.replace(f" AND NOT {self.dialect.no_attempt('value')}", "")


class FloorIsNobodys(SqlJournal):
    """Does not tell of it where it tells what may be anybody's."""

    def ownerless(self, session: Session) -> Script[list[Unreadable]]:
        found = yield from super().ownerless(session)
        return [one for one in found if one.table != "journal"]


@pytest.mark.parametrize(("kind", "style"), KINDS)
def test_a_floor_that_were_only_compared_would_permit_all(place: Place, other_bench: OtherBench) -> None:
    bench = other_bench(AnyFloor(place.dialect()))
    for literal in ("''", f"'{'!' * 32}'"):
        with pytest.raises(FAILED):
            nothing_passes(place, bench, literal)
        floor_is(place, bench, f"'{'0' * 32}'")
        query(bench, f"DELETE FROM {place.dialect().table('names')}")


@pytest.mark.parametrize(("kind", "style"), KINDS)
def test_one_that_does_not_tell_of_it_is_caught(place: Place, other_bench: OtherBench) -> None:
    with pytest.raises(FAILED):
        told(place, other_bench(FloorIsNobodys(place.dialect())), "''")


class EndsAtTheNul(SqliteDialect):
    """Counts as SQLite's functions of texts do."""

    def no_attempt(self, column: str) -> str:
        return super().no_attempt(column).replace(f"length(CAST({column} AS BLOB))", "32")


@pytest.mark.parametrize(("kind", "style"), [("sqlite", "sync")])
@pytest.mark.parametrize("octets", ["a NUL behind", "a NUL and more behind"])
def test_one_that_counts_up_to_a_nul_is_caught(place: Place, other_bench: OtherBench, octets: str) -> None:
    with pytest.raises(FAILED):
        nothing_passes(place, other_bench(SqlJournal(EndsAtTheNul())), of_octets(place, octets))


class InTheSessionsWords(MariaDBDialect):
    """Writes the pattern as a text, which is what the session takes it for."""

    def no_attempt(self, column: str) -> str:
        told = super().no_attempt(column)
        return f"{told[: told.index('REGEXP')]}REGEXP '[^0-9a-f]')"


@pytest.mark.parametrize(("kind", "style"), [("mariadb", "sync")])
def test_a_pattern_that_the_session_may_turn_is_caught(place: Place, other_bench: OtherBench) -> None:
    sound = place.dialect()
    bench = other_bench(SqlJournal(InTheSessionsWords(sound.database)))
    with pytest.raises((*FAILED, StatementFailed)):
        in_any_session(place, bench, SESSIONS["swe7"])
