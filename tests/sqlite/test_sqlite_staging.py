"""What can be staged comes back exactly; what cannot is refused by name, while the user is at work."""

from __future__ import annotations

import dataclasses
from typing import Any

import apsw
import pytest

from nodoubt.errors import BranchDoomed, NoDoubtError, UsageError
from nodoubt.ports import Refused
from sqlite.world import World, contents

# name: what there is, what the branch does, what else is compared
Case = tuple[str, list[str]]
CASES: dict[str, Case] = {
    "null keys": (
        "create table t(a primary key, b); insert into t values (null, 1), (null, 2), ('x', 3)",
        ["update t set b = b * 10", "insert into t values (null, 4)", "delete from t where b = 10"],
    ),
    "implicit rowids": (
        "create table t(a); insert into t values (1), (1), (2)",
        ["insert into t values (1)", "delete from t where rowid = 1", "update t set a = 5 where rowid = 3"],
    ),
    "a rowid that moves": (
        "create table t(id integer primary key, a); insert into t values (1, 'x'), (2, 'y'), (9, 'z')",
        ["update t set id = id + 100", "update t set id = 1 where id = 102"],
    ),
    "unique values that swap": (
        "create table t(id integer primary key, a unique); insert into t values (1, 'x'), (2, 'y'), (3, null)",
        ["update t set a = '-' where id = 1", "update t set a = 'x' where id = 2", "update t set a = 'y' where id = 1"],
    ),
    "replace": (
        "create table t(id integer primary key, a unique, b unique); insert into t values (1,1,1),(2,2,2),(3,3,3)",
        ["insert or replace into t values (4, 1, 2)", "update or replace t set a = 3 where id = 4"],
    ),
    "a conflict clause in the table": (
        "create table t(a unique on conflict replace, b not null on conflict ignore); insert into t values (1,1),(2,2)",
        ["insert into t values (1, 9)", "insert into t values (5, null)"],
    ),
    "autoincrement": (
        "create table t(id integer primary key autoincrement, a unique); insert into t(a) values ('x')",
        ["insert into t(a) values ('y')", "insert into t values (50, 'z')", "delete from t where id = 50"],
    ),
    "an id raised beyond its counter": (
        "create table t(id integer primary key autoincrement, a unique); insert into t(a) values ('x'), ('y')",
        ["update t set id = 50 where id = 2", "delete from t where id = 1"],
    ),
    "a counter that was reset": (
        (
            "create table t(id integer primary key autoincrement, a unique); insert into t values (9, 'x');"
            "delete from sqlite_sequence"
        ),
        ["update t set id = 5"],
    ),
    "a word that only looks like a counter": (
        "create table t(a default 'autoincrement', b)",
        ["insert into t(b) values (1)"],
    ),
    "a number used up by an ignored insert": (
        "create table t(id integer primary key autoincrement, a unique); insert into t(a) values ('x')",
        ["insert or ignore into t values (77, 'x')", "insert into t(a) values ('y')", "delete from t where a = 'y'"],
    ),
    "without rowid": (
        "create table t(a, b, c, primary key (c, a)) without rowid; insert into t values (1,2,3),(1,2,4)",
        ["update t set c = 9 where c = 3", "insert into t values ('1', null, 9)", "delete from t where c = 4"],
    ),
    "keys that are equal without case": (
        "create table t(a text primary key collate nocase, b) without rowid; insert into t values ('a', 1), ('b', 2)",
        [
            "update t set a = 'A' where a = 'a'",
            "update t set b = 7 where a = 'B'",
            "insert or replace into t values ('AA', 3)",
        ],
    ),
    "keys that are equal up to spaces": (
        "create table t(a text primary key collate rtrim, b) without rowid; insert into t values ('a  ', 1)",
        ["update t set a = 'a' where b = 1"],
    ),
    "generated columns": (
        "create table t(a, v as (a + 1), s as (a * 2) stored unique, z); insert into t(a, z) values (1, 2)",
        ["update t set a = 5", "insert into t(a, z) values (8, 9)"],
    ),
    "a stored column without rowid": (
        "create table t(s as (a * 2) stored, a, z, primary key (z)) without rowid; insert into t(a, z) values (1, 2)",
        ["update t set a = 5", "insert into t(a, z) values (8, 9)", "update t set z = 3 where a = 8"],
    ),
    "text that is not UTF-8": (
        "create table t(a, b text); insert into t values (1, cast(x'ff41' as text))",
        [
            "update t set a = 2",
            "insert into t values (3, cast(x'c328' as text))",
            "insert into t values (4, 'ü' || char(0))",
        ],
    ),
    "values of every type": (
        "create table t(a, b integer, c real, d text, e blob, f numeric)",
        [
            "insert into t values (null, '12', 3, 4, x'', '5.0')",
            "insert into t values (1e300, 'x', 'y', x'00ff', 'text', 9223372036854775807)",
            "insert into t values (9e999, -9e999, -0.0, 1.5, 0, -9223372036854775808), (1.0, 1, 1, '1', '', 1e15)",
            "update t set a = 1 where a = 1.0",
        ],
    ),
    "strict": (
        "create table t(a any, b int, c text) strict; insert into t values (1, 2, 'x')",
        ["update t set a = '1'", "insert into t values (1.0, 3, 'y')"],
    ),
    "cascades": (
        (
            "create table p(id integer primary key);"
            "create table t(a references p on delete cascade on update cascade);"
            "insert into p values (1), (2); insert into t values (1), (1), (2)"
        ),
        ["delete from p where id = 1", "update p set id = 20 where id = 2"],
    ),
    "a parent that changes under its children": (
        (
            "create table p(id integer primary key, a); create table t(a references p on delete cascade);"
            "insert into p values (1, 'x'); insert into t values (1), (1)"
        ),
        ["update p set a = 'y'"],
    ),
    "a row that has never met its check": (
        (
            "create table t(a check (a > 0), b); pragma ignore_check_constraints = on;"
            "insert into t values (-1, 1); pragma ignore_check_constraints = off"
        ),
        ["update t set b = 2"],
    ),
    "deferred references, kept in the end": (
        "create table p(id integer primary key); create table t(a references p deferrable initially deferred)",
        ["insert into t values (5)", "insert into p values (5)"],
    ),
    "triggers that write elsewhere": (
        (
            "create table log(x); create table t(a);"
            "create trigger g after insert on t begin insert into log values (new.a); update t set a = a + 1; end"
        ),
        ["insert into t values (1)", "insert into t values (2)"],
    ),
    "triggers that spell their table otherwise": (
        (
            "create table log(x); create table t(a);"
            "create trigger g after insert on T begin insert into log values (new.a); update t set a = a + 1; end"
        ),
        ["insert into t values (1)", "insert into t values (2)"],
    ),
    "a view with a trigger": (
        (
            "create table t(a); create view w as select a from t;"
            "create trigger i instead of insert on w begin insert into t values (new.a * 2); end"
        ),
        ["insert into w values (21)"],
    ),
    "checks and defaults": (
        "create table t(a check (a > 0), b default (random()))",
        ["insert into t(a) values (1)", "insert into t(a) values (2)"],
    ),
    "a whole table emptied": (
        "create table t(a); insert into t values (1), (2), (3)",
        ["delete from t"],
    ),
    "one table copied into another like it": (
        (
            "create table s(a); create table t(a); insert into s values (1), (2);"
            "create table s2(a primary key) without rowid; create table t2(a primary key) without rowid;"
            "insert into s2 values (1)"
        ),
        ["insert into t select * from s", "insert into t2 select * from s2"],
    ),
    "names that need quotes": (
        (
            'create table "it\'s a ""t""" ("select" primary key, "a b" as (1), "c\'d");'
            'insert into "it\'s a ""t""" values (1, 2)'
        ),
        ['update "it\'s a ""t""" set "c\'d" = 3', 'insert into "it\'s a ""t""" values (8, 9)'],
    ),
    "columns called rowid and oid": (
        "create table t(rowid, oid); insert into t values (7, 8)",
        ["update t set rowid = 1", "insert into t values (1, 2)"],
    ),
    "an added column": (
        (
            "create table t(a primary key) without rowid; insert into t values (1), (2);"
            "create table r(a); insert into r values (1);"
            "alter table t add column b default 5; alter table r add column c"
        ),
        ["update t set b = 6 where a = 1", "delete from t where a = 2", "update r set c = 1"],
    ),
    "several rows changed where they stand": (
        (
            "create table t(id integer primary key, a unique, b, c); create index i on t(b);"
            "insert into t values (1, 'x', 1, 0.0), (2, 'y', 2, 1), (3, null, 3, x''), (4, 'z', 4, 4)"
        ),
        [
            "update t set b = b + 1 where id < 3",
            "update t set c = case id when 1 then -0.0 when 2 then 1.0 else '' end",
            "update t set a = 'x' || id where id <> 2",
            "delete from t where id = 4",
            "insert into t values (4, 'w', 4, 4), (5, 'z', 5, 5)",
        ],
    ),
    "a key of another type": (
        "create table t(k primary key, a) without rowid; insert into t values (1, 1), (2, 2)",
        ["update t set k = 1.0 where k = 1", "update t set a = 3"],
    ),
    "unique values of which only a part counts": (
        (
            "create table t(id integer primary key, a, b); create unique index i on t(a) where b;"
            "create table s(id integer primary key, a, b); create unique index j on s(a + b);"
            "create table r(id integer primary key, a, g as (a % 10) stored unique);"
            "insert into t values (1, 1, 0), (2, 1, 1); insert into s values (1, 1, 2), (2, 2, 2);"
            "insert into r(id, a) values (1, 1), (2, 2)"
        ),
        [
            "update t set b = 1 - b where id = 2",
            "update t set b = 1 - b where id = 1",
            "update s set a = 9 where id = 1",
            "update s set a = 1 where id = 2",
            "update s set a = 2 where id = 1",
            "update r set a = 9 where id = 1",
            "update r set a = 1 where id = 2",
            "update r set a = 2 where id = 1",
        ],
    ),
    "nothing in the end": (
        "create table t(a); insert into t values (1)",
        ["insert into t values (2)", "delete from t where a = 2"],
    ),
    "a partial and an expression index": (
        (
            "create table t(a, b); create unique index i on t(a) where b; create unique index j on t(a + b);"
            "insert into t values (1, 1)"
        ),
        ["insert into t values (1, 0)", "update t set b = 5 where b = 1"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_was_staged_is_what_a_plain_transaction_leaves(world: World, case: str) -> None:
    """The rows a branch saw at prepare, its rows after commit, and those of a plain transaction are the same."""
    given, statements = CASES[case]
    session, other = world.session(), world.session()
    world.run(session, given)
    before = contents(lambda sql: world.rows(other, sql))
    integrity = world.rows(session, "pragma integrity_check")

    work = world.begin(session)
    world.do(session, work, *statements)
    seen = contents(lambda sql: world.do(session, work, sql).rows)
    world.drive(world.resource.prepare(session, work))
    assert contents(lambda sql: world.rows(other, sql)) == before, "a prepared branch shows nothing yet"
    assert world.listed(other) == [work.xid]

    prepared = world.drive(world.resource.prepared(other, work.xid.cluster))[0]
    world.commit(other, prepared)
    assert contents(lambda sql: world.rows(session, sql)) == seen
    assert world.listed(session) == []
    assert world.rows(session, "pragma integrity_check") == integrity
    assert world.rows(session, "pragma foreign_key_check") == []


@pytest.mark.parametrize("case", CASES)
def test_what_was_staged_and_rolled_back_leaves_nothing(world: World, case: str) -> None:
    given, statements = CASES[case]
    session = world.session()
    world.run(session, given)
    before = contents(lambda sql: world.rows(session, sql))
    prepared = world.stage(session, *statements)
    world.rollback(session, prepared)
    assert contents(lambda sql: world.rows(session, sql)) == before
    assert world.listed(session) == []
    assert world.rows(session, "select count(*) from nodoubt_locks") == [(0,)]


# name: what there is, the statement, words of the error
REFUSED: dict[str, tuple[str, str, str]] = {
    "create": ("select 1", "create table u(a)", "schema"),
    "create as": ("select 1", "create table u as select 1", "schema"),
    "drop": ("create table t(a)", "drop table t", "schema"),
    "alter": ("create table t(a)", "alter table t add column b", "schema"),
    "rename": ("create table t(a)", "alter table t rename to u", "schema"),
    "index": ("create table t(a)", "create index i on t(a)", "schema"),
    "view": ("select 1", "create view v as select 1", "schema"),
    "trigger": ("create table t(a)", "create trigger g after insert on t begin select 1; end", "schema"),
    "virtual table": ("select 1", "create virtual table f using fts5(a)", "schema"),
    "analyze": ("create table t(a)", "analyze", "schema"),
    "reindex": ("create table t(a); create index i on t(a)", "reindex", "schema"),
    "attach": ("select 1", "attach ':memory:' as other", "ATTACH"),
    "detach": ("select 1", "detach main", "DETACH"),
    "pragma": ("select 1", "pragma synchronous = off", "PRAGMA synchronous"),
    "defer foreign keys": ("select 1", "pragma defer_foreign_keys = on", "PRAGMA defer_foreign_keys"),
    "optimize": ("select 1", "pragma optimize", "PRAGMA optimize"),
    "user_version": ("select 1", "pragma user_version = 3", "PRAGMA user_version"),
    "begin": ("select 1", "begin", "coordinator"),
    "commit": ("select 1", "commit", "coordinator"),
    "end": ("select 1", "end", "coordinator"),
    "rollback": ("select 1", "rollback", "coordinator"),
    "commit behind another": ("create table t(a)", "insert into t values (1); commit", "coordinator"),
    "savepoint": ("select 1", "savepoint a", "savepoints"),
    "release of ours": ("select 1", "release nodoubt_branch", "savepoints"),
    "rollback to ours": ("select 1", "rollback to nodoubt_branch", "savepoints"),
    "temporary table": ("select 1", "create temp table u(a)", "temporary"),
    "temporary trigger": (
        "create table t(a)",
        "create temp trigger g after insert on t begin select 1; end",
        "temporary",
    ),
    "vacuum": ("select 1", "vacuum", ""),
    "full text": ("create virtual table f using fts5(a)", "insert into f values ('x')", "virtual table"),
    "its storage": ("create virtual table f using fts5(a)", "delete from f_data", ""),
    "r-tree": ("create virtual table r using rtree(id, a, b)", "insert into r values (1, 2, 3)", "virtual table"),
    "full text by trigger": (
        (
            "create virtual table f using fts5(a); create table t(a);"
            "create trigger g after insert on t begin insert into f values (new.a); end"
        ),
        "insert into t values ('x')",
        "virtual table",
    ),
    "all rowid names taken": ("create table t(rowid, oid, _rowid_)", "insert into t values (1, 2, 3)", "_rowid_"),
    "a virtual column without rowid": (
        "create table t(a primary key, g as (a + 1)) without rowid",
        "insert into t(a) values (1)",
        "STORED",
    ),
    "sqlite_sequence": (
        "create table t(a integer primary key autoincrement); insert into t values (5)",
        "update sqlite_sequence set seq = 1",
        "sqlite_sequence",
    ),
    "our receipts": ("select 1", "delete from nodoubt_receipts", "nodoubt alone"),
    "our locks": ("select 1", "insert into nodoubt_locks values ('t', 'x', 'X')", "nodoubt alone"),
    "our receipts by trigger": (
        "create table t(a); create trigger g after insert on t begin delete from nodoubt_receipts; end",
        "insert into t values (1)",
        "by trigger g",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_staged_is_refused_while_at_work(world: World, case: str) -> None:
    given, statement, words = REFUSED[case]
    session = world.session()
    world.run(session, given)
    work = world.begin(session)
    with pytest.raises((NoDoubtError, apsw.Error)) as caught:
        world.do(session, work, statement)
    if words:
        assert isinstance(caught.value, UsageError)
    assert words in str(caught.value)
    assert work.doomed is caught.value
    with pytest.raises(BranchDoomed):
        world.do(session, work, "select 1")
    with pytest.raises(Refused):
        world.drive(world.resource.prepare(session, work))
    world.drive(world.resource.rollback(session, work))
    assert session.usable
    assert world.listed(session) == []


def test_reading_is_allowed_where_writing_is_not(world: World) -> None:
    session = world.session()
    world.run(session, "create virtual table f using fts5(a); insert into f values ('x'); create table t(a)")
    work = world.begin(session)
    assert world.do(session, work, "select a from f where f match 'x'").scalar() == "x"
    assert world.do(session, work, "select count(*) from nodoubt_receipts").scalar() == 0
    assert world.do(session, work, "select value from json_each('[5]')").scalar() == 5
    assert world.do(session, work, "pragma table_info(t)").rows
    world.do(session, work, "insert into t values (1)")
    world.drive(world.resource.prepare(session, work))
    assert world.rows(session, "select tbl from nodoubt_locks") == [("t",)]


def test_a_key_that_is_not_utf8_is_refused(world: World) -> None:
    """Taken out of `on_change`: the row is lost without a word."""
    session = world.session()
    world.run(session, "create table t(a text primary key) without rowid")
    work = world.begin(session)
    with pytest.raises(Refused, match="key of a row in t"):
        world.do(session, work, "insert into t values (cast(x'ff' as text))")
    assert work.doomed is not None


def test_application_functions_are_missing_by_name(world: World) -> None:
    """Nobody can register one on our connections, so what needs one fails while at work, and not at commit."""
    session = world.session()
    creator = apsw.Connection(str(world.path))
    creator.create_scalar_function("mine", lambda *values: values[0], 1, deterministic=True)
    creator.execute("create table t(a); create index i on t(mine(a))").fetchall()
    creator.execute("create table g(a, b as (mine(a)) stored)").fetchall()
    creator.close()
    for table in "tg":
        work = world.begin(session)
        with pytest.raises(apsw.SQLError, match="mine"):
            world.do(session, work, f"insert into {table}(a) values (1)")
        world.drive(world.resource.rollback(session, work))


def test_a_deferred_reference_that_stays_broken_is_refused_at_prepare(world: World) -> None:
    """Taken out of `prepare`: the promise could never be kept, or worse, would be."""
    session = world.session()
    world.run(session, "create table p(id integer primary key)")
    world.run(session, "create table t(a references p deferrable initially deferred)")
    work = world.begin(session)
    world.do(session, work, "insert into t values (5)")
    with pytest.raises(Refused, match="FOREIGN KEY"):
        world.drive(world.resource.prepare(session, work))
    assert session.usable
    assert world.rows(session, "select count(*) from t") == [(0,)]


def test_an_immediate_reference_fails_at_once(world: World) -> None:
    session = world.session()
    world.run(session, "create table p(id integer primary key); create table t(a references p)")
    work = world.begin(session)
    with pytest.raises(apsw.ConstraintError):
        world.do(session, work, "insert into t values (5)")


@pytest.mark.parametrize("how", ["or rollback", "raise"])
def test_a_branch_that_sqlite_rolled_back_cannot_go_on(world: World, how: str) -> None:
    """SQLite ends the transaction itself; what came next would run, and commit, alone."""
    session = world.session()
    world.run(
        session,
        "create table t(a unique); insert into t values (1); create table r(a);"
        "create trigger g before insert on r begin select raise(rollback, 'no'); end",
    )
    work = world.begin(session)
    world.do(session, work, "insert into t values (2)")
    statement = "insert or rollback into t values (1)" if how == "or rollback" else "insert into r values (1)"
    with pytest.raises(apsw.ConstraintError):
        world.do(session, work, statement)
    work.doomed = None  # even if whoever calls forgets
    with pytest.raises(Refused, match="rolled it back"):
        world.do(session, work, "insert into t values (3)")
    work.doomed = None
    for ending in (world.resource.prepare, world.resource.commit_alone, world.resource.end_reader):
        with pytest.raises(Refused):
            world.drive(ending(session, work))
    assert world.rows(session, "select a from t") == [(1,)]


def test_a_statement_compiled_before_the_branch_began_is_seen_all_the_same(world: World) -> None:
    """`delete from t` compiled without the hook empties the table without telling it."""
    session = world.session()
    world.run(session, "create table t(a); insert into t values (1)")
    for _ in range(3):
        world.ask(session, "execute", "delete from t", None)
    world.run(session, "insert into t values (1), (2)")
    prepared = world.stage(session, "delete from t")
    assert world.rows(session, "select count(*) from t") == [(2,)]
    world.commit(session, prepared)
    assert world.rows(session, "select count(*) from t") == [(0,)]


def test_a_change_that_was_counted_but_not_seen_stops_the_prepare(world: World) -> None:
    """Taken out of `refuse_unseen`: rows written past the hook are lost at commit."""
    session = world.session()
    world.run(session, "create table t(a)")
    work = world.begin(session)
    world.do(session, work, "insert into t values (1)")

    def blind(connection: Any) -> None:
        branch = connection.kept.branch
        connection.watch(branch.on_access, None)
        connection.query("insert into t values (2)")

    world.ask(session, "call", blind)
    with pytest.raises(Refused, match="counted 2 changed rows and showed 1"):
        world.drive(world.resource.prepare(session, work))


def test_a_replay_that_differs_stops_the_prepare(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken out of `rehearse`: what is committed is not what the user saw."""
    from nodoubt.resources.sqlite import redo

    session = world.session()
    world.run(session, "create table t(a)")
    work = world.begin(session)
    world.do(session, work, "insert into t values (1), (2)")
    monkeypatch.setattr(redo, "_insert", lambda *_: None)
    with pytest.raises(Refused, match="does not give the same rows in t"):
        world.drive(world.resource.prepare(session, work))
    assert session.usable
    assert world.listed(session) == []


def test_a_replay_that_counts_differently_stops_the_prepare(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from nodoubt.resources.sqlite import redo

    session = world.session()
    world.run(session, "create table t(id integer primary key autoincrement, a); insert into t(a) values (1)")
    work = world.begin(session)
    world.do(session, work, "update t set id = 9")
    monkeypatch.setattr(redo, "_count", lambda *_: None)
    with pytest.raises(Refused, match="does not give the same rows in sqlite_sequence"):
        world.drive(world.resource.prepare(session, work))


# ---- what is changed where it stands


def test_a_row_is_changed_where_it_stands_and_costs_no_index_that_has_nothing_to_do_with_it(world: World) -> None:
    session, done = world.session(), list[str]()
    world.run(session, "create table t(id integer primary key, a unique, b); insert into t values (1, 'x', 1)")
    prepared = world.stage(session, "update t set b = 2")

    def trace(cursor: Any, sql: str, _: Any) -> bool:
        done.append(sql.split(maxsplit=1)[0])
        return True

    world.ask(session, "call", lambda connection: setattr(connection._database, "exec_trace", trace))
    world.commit(session, prepared)
    assert "UPDATE" in done
    assert done.count("DELETE") == 2, "of the record and of its locks"


Patch = pytest.MonkeyPatch


def changes_unique_values_where_they_stand(patch: Patch) -> None:
    from nodoubt.resources.sqlite import tables

    read = tables._table

    def table(*args: Any, **more: Any) -> Any:
        found = read(*args, **more)
        return dataclasses.replace(found, loose=frozenset(found.columns) - set(found.key))

    patch.setattr(tables, "_table", table)


def compares_values_without_their_types(patch: Patch) -> None:
    from nodoubt.resources.sqlite import redo

    def changed(columns: Any, old: Any, new: Any) -> Any:
        return {column: to for column, was, to in zip(columns, old, new, strict=True) if was != to}

    patch.setattr(redo, "_changed", changed)


@pytest.mark.parametrize(
    ("mutate", "case"),
    [
        (changes_unique_values_where_they_stand, "unique values that swap"),
        (changes_unique_values_where_they_stand, "unique values of which only a part counts"),
        (compares_values_without_their_types, "several rows changed where they stand"),
        (compares_values_without_their_types, "a key of another type"),
    ],
)
def test_a_replay_without_that_rule_is_caught(world: World, mutate: Any, case: str, monkeypatch: Patch) -> None:
    """By the rehearsal: nothing was promised."""
    mutate(monkeypatch)
    with pytest.raises(Refused, match="replay"):
        test_what_was_staged_is_what_a_plain_transaction_leaves(world, case)
