"""What must stay cheap with millions of ended records: each of these questions is answered from an index.

The statements are those that the journal sends, caught on their way; the databases are asked how they would run them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest

from journals.places import Place, query
from journals.test_mutants import OtherBench
from nodoubt.journals import rows, sql
from nodoubt.journals.sql import SqlJournal
from nodoubt.ports import START, Identity, Refused
from nodoubt.protocol.records import Mode
from nodoubt.script import Do, Script
from nodoubt.testing.bench import Bench
from nodoubt.testing.processes import wait_for
from nodoubt.testing.samples import CUT, LONG_AGO, NOW, abort, attempt_at, decision, staging
from nodoubt.xid import first_attempt_of, new_attempt

RECORDS = 3000


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def style() -> str:
    return "sync"


def sent(script: Script[Any], bench: Bench) -> list[str]:
    """The messages of a script, which runs all the same."""
    messages: list[str] = []

    def caught() -> Script[None]:
        send: Callable[[Any], Any] = script.send
        result: Any = None
        try:
            while True:
                effect = send(result)
                assert isinstance(effect, Do)
                messages.append(effect.args[0])
                result = yield effect
        except StopIteration:
            return

    bench.run(caught())
    return messages


def settle(bench: Bench) -> None:
    """Until MariaDB has purged them its indexes hold what the rows were, and so do its statistics."""
    query(bench, "SET GLOBAL innodb_max_purge_lag_wait = 0")


def fill(bench: Bench) -> None:
    """Thousands of ended commits and of decided names, among them one that is open and one that is live."""
    table = bench.journal.dialect.table
    bench.insert([decision(attempt=attempt_at(NOW - RECORDS + n)) for n in range(RECORDS)])
    query(bench, f"UPDATE {table('decisions')} SET ended_at = {NOW}")
    names = [staging(f"name {n}", attempt_at(NOW - RECORDS + n)) for n in range(RECORDS // 10)]
    bench.run(bench.journal._write(bench.main, *(row for one in names for row in bench.journal.staging_rows(one))))
    query(bench, f"UPDATE {table('names')} SET undecided = NULL")
    bench.insert([decision()])
    bench.stage(staging("live"))
    if bench.journal.dialect.kind == "mariadb":
        settle(bench)
    for name in ("decisions", "names", "events"):
        analyze = {"postgres": "ANALYZE", "mariadb": "ANALYZE TABLE", "sqlite": "ANALYZE"}[bench.journal.dialect.kind]
        query(bench, f"{analyze} {table(name)}")


def plan(place: Place, bench: Bench, sql: str) -> str:
    """How the database would run it, in its own words. PostgreSQL reads a small table whole if it is let."""
    if place.kind == "postgres":
        query(bench, "SET enable_seqscan = off")
    explain = "EXPLAIN QUERY PLAN " if place.kind == "sqlite" else "EXPLAIN "
    reply = query(bench, explain + sql)
    return "\n".join(" ".join(map(str, row)) for row in reply.rows)


def test_what_recovery_and_clean_up_ask_is_answered_from_an_index(place: Place, bench: Bench) -> None:
    fill(bench)
    journal, session = bench.journal, bench.main
    asked = [
        *sent(journal.open_commits(session, "", 100), bench),
        *sent(journal.look(session, [new_attempt()]), bench),
        *sent(journal.find(session, "name 7"), bench),
        *sent(journal.find(session, new_attempt()), bench),
        *sent(journal.staged(session, [new_attempt()]), bench),
        *sent(journal.undecided(session, "", 100), bench),
        *sent(journal.list_staged(session, "", 10), bench),
        *sent(journal.events(session, new_attempt()), bench),
        *sent(journal._highest_floor(session, first_attempt_of(0), first_attempt_of(NOW)), bench),
        *sent(journal._retirable(session, first_attempt_of(CUT), CUT, 100), bench),
    ]
    for statement in asked:
        how = plan(place, bench, statement)
        assert not [line for line in how.splitlines() if READS_ALL[place.kind].search(line)], f"{statement}\n{how}"


def looked_through(bench: Bench) -> list[str]:
    """The messages of one look for what cannot be read."""
    statements, spot = list[str](), START
    while spot is not None:
        statements += sent(bench.journal.unreadable(bench.main, spot), bench)
        _, spot = bench.unreadable(spot)
    return statements


def test_the_look_for_what_cannot_be_read_reads_what_is_not_over_once(place: Place, bench: Bench) -> None:
    bench.insert([decision(attempt=attempt_at(NOW + n)) for n in range(3)])
    for n in range(3):
        bench.stage(staging(f"live {n}", attempt_at(NOW + n + 10)))
    statements, table = looked_through(bench), place.dialect().table
    assert len([one for one in statements if "undecided IS NOT NULL" in one]) == 1
    assert len([one for one in statements if place.dialect().is_open in one]) == 1
    names = [one for one in statements if table("names") in one]
    assert len(names) == 2, "the others are those below the floor"
    assert len([one for one in statements if table("confirmations") in one]) == 1, "nobody was asked"
    assert len([one for one in statements if "item = " in one]) == sql.OLD_SETS + 1


def test_a_resource_is_forgotten_without_a_look_at_all_decisions_while_that_locks(place: Place, bench: Bench) -> None:
    """The look for one that is unsure has no index: it is a plain read, before."""
    fill(bench)
    bench.register("orders", Identity("r9", "c" * 16, "", 1))
    unsure, delete, _ = sent(bench.journal.unregister(bench.main, "r9"), bench)
    condition = rows.unsure(place.dialect())
    assert condition in unsure and unsure.startswith("SELECT ")
    assert "DELETE" in delete and condition not in delete


class AsksByKeys(SqlJournal):
    """The mutant: finds the names by their keys, many in one statement."""

    @functools.cached_property
    def _sets(self) -> Any:
        names = self._by_key(self._undecided, "names", "undecided", "undecided IS NOT NULL")
        return tuple(names if one == self._undecided_and_asked else one for one in super()._sets)


@pytest.mark.parametrize("mutant", [False, True])
def test_the_look_for_what_cannot_be_read_walks_no_table(
    place: Place, other_bench: OtherBench, mutant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much is going on. With hundreds of keys in a statement MariaDB would."""
    bench = other_bench((AsksByKeys if mutant else SqlJournal)(place.dialect()))
    fill(bench)
    monkeypatch.setattr(sql, "LOOK_MAX", 500 if mutant else sql.LOOK_MAX)
    bench.insert([decision(attempt=attempt_at(NOW + n)) for n in range(600)])
    names = [staging(f"more {n}", attempt_at(NOW + n)) for n in range(RECORDS)]
    bench.run(bench.journal._write(bench.main, *(row for one in names for row in bench.journal.staging_rows(one))))
    table, ended = place.dialect().table, f"attempt < '{names[-600].attempt}'"
    call = "attempt, 0, 'k', 's', '', '{}', 'begun', '', '', 0, 0, '', '', 0, 0, 0, attempt"
    columns = rows.columns((*rows.CALL, "unfinished"))
    query(bench, f"INSERT INTO {table('calls')} ({columns}) SELECT {call} FROM {table('names')} WHERE calls = 0")
    query(bench, f"UPDATE {table('calls')} SET unfinished = NULL WHERE {ended}")
    query(bench, f"UPDATE {table('names')} SET undecided = NULL WHERE {ended}")
    if place.kind == "mariadb":
        settle(bench)
        query(bench, f"ANALYZE TABLE {table('names')}, {table('calls')}")
    walked = list[str]()
    for statement in looked_through(bench):
        how = plan(place, bench, statement)
        walked += [how for line in how.splitlines() if READS_ALL[place.kind].search(line)]
    assert bool(walked) is (place.kind == "mariadb" and mutant), "\n\n".join(walked)


# A plan's line that reads every record, name or call: (id, kind, table, "ALL") on MariaDB.
READS_ALL = {
    "sqlite": re.compile(r"SCAN (n|d|\w*names|\w*decisions|\w*calls)\b(?!.* INDEX)"),
    "postgres": re.compile(r"Seq Scan on (names|decisions|calls)"),
    "mariadb": re.compile(r"\S+ \w+( \w+)? (n|d|nodoubt_names|nodoubt_decisions|nodoubt_calls) ALL "),
}


def test_the_open_commits_come_from_the_index_that_holds_nothing_else(place: Place, bench: Bench) -> None:
    fill(bench)
    for script, index in (
        (bench.journal.open_commits(bench.main, "", 100), "decisions_open"),
        (bench.journal.undecided(bench.main, "", 100), "names_undecided"),
    ):
        (sql,) = sent(script, bench)
        how = plan(place, bench, sql)
        assert (f"range nodoubt_{index} nodoubt_{index}" if place.kind == "mariadb" else index) in how


def test_a_plain_commit_is_taken_out_of_the_index_of_the_undecided_as_it_ends_and_is_not_told_before(
    bench: Bench,
) -> None:
    one, table = staging("order", attempt_at(LONG_AGO)), bench.journal.dialect.table("names")
    bench.stage(one)
    bench.insert([decision(attempt=one.attempt, mode=Mode.STAGED)])
    marked = f"SELECT count(*) FROM {table} WHERE undecided IS NOT NULL"
    assert int(query(bench, marked).scalar()) == 1 and bench.undecided("", 10) == []
    bench.end([one.attempt])
    assert int(query(bench, marked).scalar()) == 0


class Noting(SqlJournal):
    """Remembers what it has written."""

    def __init__(self, dialect: Any) -> None:
        super().__init__(dialect)
        self.written: list[str] = []

    def _write(self, session: Any, *sent: str, forced: bool = True) -> Script[Any]:
        self.written.extend(sent)
        return super()._write(session, *sent, forced=forced)


@pytest.mark.parametrize("kind", ["mariadb"])
def test_an_end_of_hundreds_walks_no_table_and_would_if_it_were_left_to_mariadb(place: Place, bench: Bench) -> None:
    """And a walk locks all that it passes."""
    fill(bench)
    noting = Noting(bench.journal.dialect)
    bench.run(noting.end(bench.main, [new_attempt() for _ in range(400)]))
    goes_by = re.compile(r"range (nodoubt_(names_undecided|calls_unfinished)|PRIMARY)")
    hinted = [sql for sql in noting.written if "FORCE INDEX" in sql]
    assert len(hinted) == 4 and all(goes_by.search(plan(place, bench, sql)) for sql in hinted)
    left_alone = [re.sub(r" FORCE INDEX \(\w+\)", "", sql) for sql in hinted]
    assert not all(goes_by.search(plan(place, bench, sql)) for sql in left_alone)


@pytest.mark.parametrize("kind", ["mariadb"])
def test_many_of_few_decisions_are_confirmed_and_ended_without_a_walk_over_them(place: Place, bench: Bench) -> None:
    """What a walk locks out of turn makes a deadlock with whoever confirms others: measured, with ten at once."""
    many = [decision() for _ in range(40)]
    bench.insert(many)
    noting, some = Noting(bench.journal.dialect), [one.attempt for one in many[:30]]
    bench.run(noting.confirm(bench.main, some))
    bench.run(noting.end(bench.main, some))
    changing = [sql for sql in noting.written if sql.startswith(f"UPDATE {place.dialect().table('decisions')} ")]
    assert len(changing) == 2
    settle(bench)
    query(bench, f"ANALYZE TABLE {place.dialect().table('decisions')}")
    assert [plan(place, bench, sql).split()[3] for sql in changing] == ["range", "range"]  # left alone: "index"


@pytest.mark.parametrize("kind", ["postgres"])
def test_commits_leave_no_list_of_themselves_on_the_floors_row(bench: Bench) -> None:
    """A row that many share is marked with a multixact of them all, and each commit would make another."""
    journal, shared = bench.journal, bench.journal.dialect.table("journal")
    first, second = bench.session(), bench.session()
    for session in (first, second):
        rows = (*journal.decision_rows(decision()), *journal.staging_rows(staging(new_attempt())))
        query(bench, ";\n".join((journal.dialect.begin_forced, *rows)), session)
    for session in (first, second):
        query(bench, "COMMIT", session)
    assert str(query(bench, f"SELECT xmax FROM {shared} WHERE item = 'floor'").scalar()) == "0"


def test_a_commit_that_hangs_delays_the_clean_up_for_a_moment_and_nobody_else_for_longer(
    place: Place, bench: Bench
) -> None:
    if place.kind == "sqlite":
        return  # one writer at a time: whoever hangs delays everybody, by what SQLite is
    bench.insert([abort(attempt_at(LONG_AGO))])
    hanging, session = bench.session(), bench.session()
    rows = bench.journal.decision_rows(decision(attempt=attempt_at(LONG_AGO + 1)))
    query(bench, ";\n".join((bench.journal.dialect.begin_forced, *rows)), hanging)
    floor = bench.floor()
    clean_up = bench.start(bench.journal.retire(bench.session(), CUT, 100))
    waiting = {
        "postgres": "SELECT count(*) FROM pg_locks WHERE NOT granted",
        "mariadb": "SELECT variable_value FROM information_schema.global_status "
        "WHERE variable_name = 'Innodb_row_lock_current_waits'",
    }[place.kind]
    wait_for(lambda: int(query(bench, waiting).scalar()) > 0, "the clean-up to wait")
    bench.run(bench.journal.insert(session, [one := decision()]))  # waits behind the clean-up, and is then served
    assert set(bench.confirm([one.attempt])) == {one.attempt}
    with pytest.raises(Refused) as refused:
        clean_up.result(30)
    assert refused.value.retry
    assert bench.floor() == floor
    query(bench, "ROLLBACK", hanging)
    assert len(bench.retire(CUT, 100)) == 1


def test_the_deleting_statement_itself_spares_a_commit_that_has_not_ended(bench: Bench) -> None:
    open_one, ended = decision(), abort()
    bench.insert([open_one, ended])
    bench.run(bench.journal._delete(bench.main, [open_one.attempt, ended.attempt], []))
    assert set(bench.look([open_one.attempt, ended.attempt])) == {open_one.attempt}

    class Unsparing(SqlJournal):
        def _write(self, session: Any, *statements: str, forced: bool = True) -> Script[Any]:
            said = " AND (verdict = 'abort' OR ended_at IS NOT NULL)"
            return super()._write(session, *(one.replace(said, "") for one in statements), forced=forced)

    bench.run(Unsparing(bench.journal.dialect)._delete(bench.main, [open_one.attempt], []))
    assert bench.look([open_one.attempt]) == {}
