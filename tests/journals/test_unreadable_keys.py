"""Rows that are not even to be found where they belong: pages go past them, and end; nothing else is held up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from journals.places import Place, query
from journals.test_mutants import OtherBench
from nodoubt.journals import rows, sql
from nodoubt.journals.sql import SqlJournal
from nodoubt.ports import Conflict, Identity, Session
from nodoubt.protocol.records import Unreadable
from nodoubt.script import Script
from nodoubt.testing.bench import Bench
from nodoubt.testing.journals.unreadable import paged, unreadable
from nodoubt.testing.samples import CUT, LONG_AGO, NOW, abort, attempt_at, call, decision, staging

KINDS = [("sqlite", "sync"), ("postgres", "sync"), ("mariadb", "sync")]
WORDS = {
    "before all": "!" * 32,
    "after all": "~" * 32,
    "among them": attempt_at(LONG_AGO + 1)[:12] + "z" * 20,
    "bytes": "",
}


def literal(place: Place, word: str) -> str:
    """Bytes that are no text, where a key can be such."""
    if word:
        return f"'{word}'"
    octets = {"sqlite": f"CAST(x'{'ff' * 32}' AS TEXT)", "mariadb": f"x'{'ff' * 32}'"}
    return octets.get(place.kind, f"'{'ÿ' * 32}'")


def change(place: Place, bench: Bench, table: str, column: str, attempt: str, value: str) -> None:
    # SQLite counts the characters of what is no text in a way of its own.
    before, after = {
        "sqlite": ("PRAGMA ignore_check_constraints = ON", "PRAGMA ignore_check_constraints = OFF")
    }.get(place.kind, ("SELECT 1", "SELECT 1"))  # fmt: skip
    name = place.dialect().table(table)
    for statement in (before, f"UPDATE {name} SET {column} = {value} WHERE attempt = '{attempt}'", after):
        query(bench, statement)


@pytest.mark.parametrize(("kind", "style"), KINDS)
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_pages_of_decisions_go_past_an_attempt_that_is_none(place: Place, bench: Bench, word: str, size: int) -> None:
    commits = [decision(attempt=attempt_at(NOW + n)) for n in range(7)]
    bench.insert(commits)
    change(place, bench, "decisions", "attempt", commits[3].attempt, literal(place, WORDS[word]))
    met = paged(bench.open_commits, size)
    assert {one.attempt for one in met if not isinstance(one, Unreadable)} == {
        one.attempt for number, one in enumerate(commits) if number != 3
    }
    assert len(met) == 7 and len([one for one in met if isinstance(one, Unreadable)]) == 1
    (told,) = unreadable(bench)
    assert told.table == "decisions" and told.printable.isprintable() and told.which


@pytest.mark.parametrize(("kind", "style"), KINDS)
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_pages_of_names_go_past_one_that_is_listed_for_another(
    place: Place, bench: Bench, word: str, size: int
) -> None:
    names = [staging(f"n{n}", attempt_at(NOW + n), deadline=NOW - 1) for n in range(7)]
    for one in names:
        bench.stage(one)
    bad, value = names[3].attempt, literal(place, WORDS[word])
    change(place, bench, "names", "undecided", bad, value)
    for page in (bench.undecided, lambda after, most: bench.overdue(NOW, after, most)):
        met = paged(page, size)
        assert len(met) == 7 and len([one for one in met if isinstance(one, Unreadable)]) == 1
        assert [one for one in met if not isinstance(one, Unreadable)] == [*names[:3], *names[4:]]
    assert [one.table for one in unreadable(bench)] == ["names"]
    change(place, bench, "names", "attempt", bad, value)
    listed = paged(lambda after, most: [one for one, _ in bench.list_staged(after, most)], size)
    assert len(listed) == 7 and len([one for one in listed if isinstance(one, Unreadable)]) == 1


class GoesOnBehindTheKey(SqlJournal):
    """The mutant: takes a key for one row's."""

    def _undecided(self, session: Session, which: str) -> Script[list[Any]]:
        if " = " in which:
            return []
        return (yield from super()._undecided(session, which))


@pytest.mark.parametrize(("kind", "style"), KINDS)
def test_a_name_that_is_listed_for_another_is_told_where_a_page_ends_between_the_two(
    place: Place, bench: Bench, other_bench: OtherBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "LOOK_MAX", 1)
    names = [staging(name, attempt_at(NOW + n)) for n, name in enumerate("amz")]
    for one in names:
        bench.stage(one)
    change(place, bench, "names", "undecided", names[2].attempt, f"'{names[1].attempt}'")
    assert [one.name for one in unreadable(bench)] == ["z"]
    assert unreadable(other_bench(GoesOnBehindTheKey(place.dialect()))) == []


@pytest.mark.parametrize(("kind", "style"), KINDS)
@pytest.mark.parametrize("word", WORDS)
def test_pages_of_steps_go_past_one_that_is_found_for_none(place: Place, bench: Bench, word: str) -> None:
    attempts = [attempt_at(NOW + n) for n in range(5)]
    for attempt in attempts:
        bench.intend(call(attempt))
    change(place, bench, "calls", "unfinished", attempts[2], literal(place, WORDS[word]))
    for size in (1, 2, 5):
        met = paged(bench.unfinished_calls, size)
        assert [one for one in met if isinstance(one, str)] == [*attempts[:2], *attempts[3:]]
        assert len(met) == 5
    assert [one.table for one in unreadable(bench)] == ["calls"]


@pytest.mark.parametrize(("kind", "style"), KINDS)
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("verdict", [decision, abort])
def test_a_record_of_no_attempt_neither_goes_nor_keeps_any_other(
    place: Place, bench: Bench, word: str, verdict: Callable[..., Any]
) -> None:
    old = [attempt_at(LONG_AGO + n) for n in range(4)]
    bench.insert([verdict(attempt=old[0]), *map(abort, old[1:])])
    change(place, bench, "decisions", "attempt", old[0], literal(place, WORDS[word]))
    gone = bench.retire(CUT, 10)
    if (word, verdict) == ("among them", decision):
        assert gone == (), "an open COMMIT holds down what comes after it; where that is, is not known"
        assert [one.table for one in unreadable(bench)] == ["decisions"]
    else:
        assert list(gone) == old[1:]
    found = query(bench, f"SELECT count(*) FROM {place.dialect().table('decisions')}")
    assert int(found.scalar()) == 4 - len(gone)


@pytest.mark.parametrize(("kind", "style"), KINDS)
@pytest.mark.parametrize("mutant", [False, True])
def test_an_abort_whose_end_is_no_time_holds_down_neither_the_floor_nor_a_resource(
    place: Place, bench: Bench, mutant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its end, no branch of it is to be committed. The mutant takes any such end for an open COMMIT's."""
    if mutant:
        monkeypatch.setattr(rows, "unsure", lambda _: "(verdict NOT IN ('commit', 'abort') OR ended_at < 0)")
    bad, *others = [abort(attempt=attempt_at(LONG_AGO + n)) for n in range(4)]
    bench.insert([bad, *others, decision()])
    bench.register("orders", Identity("r9", "c" * 16, "", 1))
    change(place, bench, "decisions", "ended_at", bad.attempt, "-1")
    gone = bench.retire(CUT, 10)
    assert list(gone) == ([] if mutant else [one.attempt for one in others])
    assert (bench.floor() > bad.attempt) is not mutant
    assert set(bench.look([bad.attempt])) == {bad.attempt}, "what cannot be read is kept"
    if mutant:
        with pytest.raises(Conflict):
            bench.unregister("r9")
    else:
        bench.unregister("r9")


@pytest.mark.parametrize(("kind", "style"), [("sqlite", "sync")])
@pytest.mark.parametrize(
    ("table", "column"), [("decisions", "attempt"), ("names", "undecided"), ("calls", "unfinished")]
)
@pytest.mark.parametrize("behind", ["00", "0041"])
def test_an_attempt_with_a_nul_behind_it_may_be_anybodys(
    place: Place, bench: Bench, table: str, column: str, behind: str
) -> None:
    """Where functions of texts end at it, and comparisons do not."""
    bench.stage(staging("n1", bad := attempt_at(NOW)))
    bench.intend(call(bad))
    if table == "decisions":
        bench.insert([decision(attempt=bad)])
    name = place.dialect().table(table)
    query(bench, f"UPDATE {name} SET {column} = CAST(x'{bad.encode().hex()}{behind}' AS TEXT)")
    assert [one.table for one in bench.ownerless()] == [table]
    assert table in {one.table for one in unreadable(bench)}


class BeginsBehindTheEmptyKey(SqlJournal):
    """The mutant: takes the first page for one after the key with which a look begins."""

    def _after(self, key: str, after: str | None) -> str:
        return super()._after(key, after or "")


@pytest.mark.parametrize(("kind", "style"), KINDS)
@pytest.mark.parametrize("most", [1, 2, sql.LOOK_MAX])
def test_a_row_whose_key_was_emptied_is_told(
    place: Place, bench: Bench, other_bench: OtherBench, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "LOOK_MAX", most)
    attempts = [attempt_at(NOW + n) for n in range(5)]
    for n, attempt in enumerate(attempts):
        bench.stage(staging(f"n{n}", attempt))
        bench.intend(call(attempt))
    table, nothing = place.dialect().table, place.dialect().nothing
    for n in (1, 3):
        query(bench, f"UPDATE {table('names')} SET undecided = {nothing} WHERE attempt = '{attempts[n]}'")
    query(bench, f"UPDATE {table('calls')} SET unfinished = {nothing} WHERE attempt = '{attempts[2]}'")
    query(bench, f"UPDATE {table('names')} SET metadata = '[' WHERE attempt = '{attempts[4]}'")
    told = unreadable(bench)
    assert {(one.table, one.name) for one in told} == {("names", "n1"), ("names", "n3"), ("names", "n4"), ("calls", "")}
    mutant = other_bench(BeginsBehindTheEmptyKey(place.dialect()))
    assert [(one.table, one.name) for one in unreadable(mutant)] == [("names", "n4")]
