"""A branch's life in the file: one phase or two, receipts, riders, locks, hazards, identity."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodoubt.drivers.sqlite_connection import Connection
from nodoubt.errors import ResourceRefused, SchemaMismatch, UsageError
from nodoubt.journals import rows
from nodoubt.journals.dialects import SqliteDialect
from nodoubt.kept import Kept
from nodoubt.ports import (
    BelowFloor,
    Conflict,
    Failure,
    Identity,
    Prepared,
    Refused,
    StatementFailed,
    Unclear,
    UnknownXid,
)
from nodoubt.protocol.records import Epoch, Verdict
from nodoubt.resources.sqlite import Hazard, UnreadableRecord
from nodoubt.resources.sqlite import check as check_
from nodoubt.resources.sqlite.failures import FAILURES, failure, refusal
from nodoubt.xid import Xid
from sqlite.world import CLUSTER, World, shell

# What the journal would send: a decision's row in a table of ours in the same file.
JOURNAL = "create table nodoubt_decisions(attempt text primary key, verdict text not null)"
RIDER = "INSERT INTO main.nodoubt_decisions VALUES ('{0}', 'commit')"
SUNK = "INSERT INTO main.nodoubt_decisions VALUES ('{0}', NULL)"


@pytest.fixture
def session(world: World) -> Any:
    session = world.session()
    world.run(session, f"create table t(id integer primary key, a unique); insert into t values (1, 'x'); {JOURNAL}")
    return session


def receipts(world: World, session: Any) -> list[tuple[Any, ...]]:
    return world.rows(session, "select attempt, branch, verdict, epoch, alone, confirms from nodoubt_receipts")


# ---- one phase


@pytest.mark.parametrize("alone", [True, False])
def test_a_branch_alone_commits_in_one_phase_with_its_receipt(world: World, session: Any, alone: bool) -> None:
    work = world.begin(session, alone=alone)
    assert not world.drive(world.resource.wrote(session, work))
    world.do(session, work, "insert into t values (2, 'y')")
    assert work.wrote and world.drive(world.resource.wrote(session, work))
    world.drive(world.resource.commit_alone(session, work))
    assert session.usable
    assert world.rows(session, "select count(*) from t") == [(2,)]
    assert receipts(world, session) == [(work.xid.attempt, 0, "commit", 7, 1, 0)]
    assert world.rows(session, "select count(*) from nodoubt_prepared") == [(0,)]


def test_riders_take_the_receipts_place(world: World, session: Any) -> None:
    work = world.begin(session)
    world.do(session, work, "insert into t values (2, 'y')")
    world.drive(world.resource.commit_alone(session, work, riders=(RIDER.format(work.xid.attempt),)))
    assert world.rows(session, "select * from nodoubt_decisions") == [(work.xid.attempt, "commit")]
    assert receipts(world, session) == []


@pytest.mark.parametrize(("rider", "expected"), [(RIDER, Conflict), (SUNK, BelowFloor)])
@pytest.mark.parametrize("verb", ["commit_alone", "prepare", "commit_prepared"])
def test_a_rider_that_fails_takes_all_of_it_down(
    world: World, session: Any, rider: str, expected: type[Refused], verb: str
) -> None:
    work = world.begin(session)
    world.do(session, work, "insert into t values (2, 'y')")
    world.run(other := world.session(lock_wait_s=5), "select 1")
    text = rider.format(work.xid.attempt)
    standing = RIDER.format(work.xid.attempt)
    if verb == "commit_prepared":
        world.drive(world.resource.prepare(session, work))
        world.run(other, standing)
        with pytest.raises(expected):
            world.drive(world.resource.commit_prepared(session, Prepared(work.xid), riders=(text,)))
        assert world.listed(session) == [work.xid], "it is still prepared"
    else:
        with pytest.raises(expected):
            world.drive(getattr(world.resource, verb)(session, work, riders=(standing, text)))
        assert world.listed(session) == []
        assert world.rows(session, "select count(*) from nodoubt_decisions") == [(0,)]
    assert world.rows(session, "select count(*) from t") == [(1,)]
    assert receipts(world, session) == []
    assert session.usable


@pytest.mark.parametrize("verb", ["prepare", "commit_prepared"])
def test_riders_are_there_with_the_very_commit_that_they_ride_on(world: World, session: Any, verb: str) -> None:
    work = world.begin(session)
    world.do(session, work, "insert into t values (2, 'y')")
    rider = RIDER.format(work.xid.attempt)
    world.drive(world.resource.prepare(session, work, riders=[rider] * (verb == "prepare")))
    assert len(world.rows(session, "select * from nodoubt_decisions")) == (verb == "prepare")
    world.drive(world.resource.commit_prepared(session, Prepared(work.xid), riders=[rider] * (verb != "prepare")))
    assert len(world.rows(session, "select * from nodoubt_decisions")) == 1
    assert receipts(world, session) == [(work.xid.attempt, 0, "commit", 7, 0, 0)]


KEPT = Kept("test", 4, lambda *values: f"INSERT INTO main.nodoubt_kept VALUES ({', '.join(values)})")
LITE = SqliteDialect()
QUICK = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(
    text=st.text(st.characters(codec="utf-8")),
    number=st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
    seconds=st.floats(allow_nan=False, allow_infinity=False),
)
def test_a_rider_that_is_kept_stores_what_its_text_would(
    world: World, text: str, number: int | None, seconds: float
) -> None:
    """Its values are bound, so that it is compiled once."""
    rider = KEPT(LITE.attempt("0" * 32), LITE.text(text), rows.number(number), LITE.seconds(seconds))
    session = world.session() if not world.sessions[1:] else world.sessions[1]
    world.run(session, "create table if not exists nodoubt_kept(a, b, c, d); delete from nodoubt_kept")
    work = world.begin(session)
    world.drive(world.resource.commit_alone(session, work, riders=[rider, str(rider)]))
    bound, said = world.rows(session, "select typeof(a), a, typeof(b), b, typeof(c), c, typeof(d), d from nodoubt_kept")
    assert bound == said == ("text", "0" * 32, *typed(text.replace("\0", "\ufffd")), *typed(number), *typed(seconds))


def typed(value: str | float | None) -> tuple[str, object]:
    return {str: "text", int: "integer", float: "real"}.get(type(value), "null"), value


def test_a_rider_that_is_kept_is_compiled_once(world: World, session: Any) -> None:
    kept = Kept("test", 1, lambda attempt: f"INSERT INTO main.nodoubt_decisions VALUES ({attempt}, 'commit')")
    compiled = []
    for number in range(3):
        work = world.begin(session)
        riders = [kept(LITE.attempt(f"{number:032x}"))]
        world.drive(world.resource.commit_alone(session, work, riders=riders))
        compiled.append(session.connection._database.cache_stats()["misses"])
    assert compiled[1] == compiled[2]


def test_a_deferred_reference_that_stays_broken_fails_the_one_phase_commit_whole(world: World, session: Any) -> None:
    world.run(session, "create table c(a references t deferrable initially deferred)")
    work = world.begin(session)
    world.do(session, work, "insert into c values (99)")
    with pytest.raises(Refused, match="FOREIGN KEY"):
        world.drive(world.resource.commit_alone(session, work))
    assert session.usable
    assert receipts(world, session) == []


def test_a_branch_that_wrote_nothing_ends_as_a_reader(world: World, session: Any) -> None:
    work = world.begin(session)
    assert world.do(session, work, "select a from t").rows == ((("x"),),)
    world.do(session, work, "update t set a = 'y' where id = 99")
    assert not work.wrote and not world.drive(world.resource.wrote(session, work))
    world.drive(world.resource.end_reader(session, work))
    assert session.usable
    assert receipts(world, session) == []


@pytest.mark.parametrize(
    "statement",
    [
        "insert into t values (2, 'y')",
        "insert or ignore into n values (null, 'x')",
        "delete from t",
        "with new(a) as (values ('z')) insert into t(a) select a from new returning id",
    ],
)
def test_every_way_to_write_counts_as_writing(world: World, session: Any, statement: str) -> None:
    """An ignored insert into an AUTOINCREMENT table changes no row, and uses up a number."""
    world.run(session, "create table n(id integer primary key autoincrement, a unique); insert into n values (1, 'x')")
    work = world.begin(session)
    world.do(session, work, statement)
    assert world.drive(world.resource.wrote(session, work))
    world.drive(world.resource.rollback(session, work))


def test_rollback_leaves_a_clean_session(world: World, session: Any) -> None:
    work = world.begin(session)
    assert session.usable, "a branch at work is somebody's"
    world.do(session, work, "insert into t values (2, 'y')")
    world.drive(world.resource.rollback(session, work))
    world.drive(world.resource.rollback(session, work))
    assert session.usable
    assert world.rows(session, "select count(*) from t") == [(1,)]
    world.ask(session, "execute", "insert into t values (3, 'z')", None)
    assert world.rows(session, "select count(*) from nodoubt_prepared") == [(0,)]


def test_a_session_does_one_branch_at_a_time(world: World, session: Any) -> None:
    work = world.begin(session)
    with pytest.raises(Refused, match="another branch"):
        world.begin(session)
    with pytest.raises(Refused, match="no longer in the transaction"):
        world.do(session, world.work(), "select 1")
    world.do(session, work, "select 1")
    world.drive(world.resource.rollback(session, work))
    world.run(session, "begin")
    with pytest.raises(Refused, match="inside another transaction"):
        world.begin(session)


def test_a_branch_whose_transaction_was_replaced_behind_its_back_ends_nothing(world: World, session: Any) -> None:
    """The savepoint is the proof: another BEGIN has none. Taken out, a stranger's work is committed."""
    work = world.begin(session)
    world.do(session, work, "insert into t values (2, 'y')")

    def replace(connection: Connection) -> None:
        connection.unwatch()
        connection.query("rollback")
        connection.query("begin immediate")
        connection.query("insert into t values (3, 'stranger')")

    for ending in (world.resource.commit_alone, world.resource.prepare, world.resource.end_reader):
        world.ask(session, "call", replace)
        with pytest.raises(Refused):
            world.drive(ending(session, work))
        assert world.rows(session, "select id from t") == [(1,)]
        work = world.begin(session)
        world.do(session, work, "insert into t values (2, 'y')")


# ---- one resource only


@pytest.mark.parametrize(
    "statements",
    [
        ("create table u(a)", "insert into u values (1)"),
        ("alter table t add column b default 5",),
        ("create virtual table f using fts5(a)", "insert into f values ('x')"),
        ("drop table t",),
        ("pragma user_version = 3",),
        ("create index i on t(a)", "analyze", "reindex t"),
        ("alter table t rename to u", "create table t(a)"),
    ],
)
def test_a_database_alone_may_change_its_schema_in_a_transaction(
    world: World, session: Any, statements: tuple[str, ...]
) -> None:
    before = world.rows(session, "select sql from sqlite_schema order by 1")
    for end in ("rollback", "commit"):
        work = world.begin(session, alone=True)
        world.do(session, work, *statements)
        assert world.drive(world.resource.wrote(session, work))
        if end == "rollback":
            world.drive(world.resource.rollback(session, work))
            assert world.rows(session, "select sql from sqlite_schema order by 1") == before
        else:
            world.drive(world.resource.commit_alone(session, work))
            assert world.listed(session) == []
            assert len(receipts(world, session)) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "commit",
        "rollback",
        "savepoint a",
        "attach ':memory:' as m",
        "pragma journal_mode = delete",
        "pragma foreign_keys = off",
        "create temp table u(a)",
        "delete from nodoubt_receipts",
        "drop table nodoubt_locks",
        "alter table nodoubt_locks add column x",
        "create index i on nodoubt_receipts(at)",
        "create trigger g before insert on nodoubt_receipts begin select raise(ignore); end",
        "create table nodoubt_mine(a)",
    ],
)
def test_a_database_alone_is_refused_what_escapes_the_transaction(world: World, session: Any, statement: str) -> None:
    work = world.begin(session, alone=True)
    with pytest.raises(UsageError):
        world.do(session, work, statement)
    world.drive(world.resource.rollback(session, work))


def test_the_schema_stays_while_a_branch_is_prepared(world: World, session: Any) -> None:
    """Guards do not see DDL. Taken out of `_define`: the table is dropped under the prepared branch."""
    other = world.session()
    prepared = world.stage(session, "insert into t values (2, 'y')")
    for statement in ("drop table t", "alter table t add column b", "create table u(a)"):
        work = world.begin(other, alone=True)
        with pytest.raises(Refused, match=prepared.xid.attempt) as caught:
            world.do(other, work, statement)
        assert caught.value.retry
        world.drive(world.resource.rollback(other, work))
    world.commit(other, prepared)
    work = world.begin(other, alone=True)
    world.do(other, work, "drop table t")
    world.drive(world.resource.commit_alone(other, work))
    assert world.rows(other, "select count(*) from sqlite_schema where name glob 'nodoubt_guard*'") == [(0,)]


def test_a_branch_begun_alone_cannot_prepare(world: World, session: Any) -> None:
    work = world.begin(session, alone=True)
    world.do(session, work, "insert into t values (2, 'y')")
    with pytest.raises(Refused, match="one phase"):
        world.drive(world.resource.prepare(session, work))
    assert world.rows(session, "select count(*) from t") == [(1,)]


def test_a_staged_branch_of_one_resource_prepares(world: World, session: Any) -> None:
    work = world.begin(session, alone=True, staged=True)
    world.do(session, work, "insert into t values (2, 'y')")
    world.drive(world.resource.prepare(session, work))
    assert world.listed(session) == [work.xid]


# ---- locks


def test_a_table_is_locked_even_if_no_row_of_it_was_written(world: World, session: Any) -> None:
    """`delete from empty` says that there is to be nothing: a row that comes before the commit makes it untrue."""
    world.run(session, "create table empty(a)")
    world.stage(session, "delete from empty")
    assert world.rows(session, "select tbl, mode from nodoubt_locks") == [("empty", "X")]
    assert shell(world.path, "insert into empty values (1)").returncode != 0


def test_a_plain_shell_cannot_write_a_locked_table(world: World, session: Any) -> None:
    world.run(session, "create table free(a); create table child(a references T on delete cascade)")
    prepared = world.stage(session, "insert into t values (2, 'y')")
    for sql in (
        "insert into t values (9, 'z')",
        "update t set a = 'q'",
        "delete from t",
        "insert or ignore into t values (9, 'z')",
        "insert or replace into t values (1, 'z')",
        "update or ignore t set a = 'q'",
        "insert into t values (1, 'z') on conflict do update set a = 'up'",
        "pragma foreign_keys = on; insert into child values (1)",
        "begin; insert into t values (9, 'z'); commit",
        "pragma recursive_triggers = on; replace into t values (1, 'z')",
    ):
        found = shell(world.path, sql)
        assert found.returncode != 0 and "nodoubt: this table is locked by a prepared transaction" in found.stderr, sql
    assert shell(world.path, "insert into free values (1); select a from t;").stdout == "x\n"
    world.commit(session, prepared)
    assert shell(world.path, "insert into t values (9, 'z')").returncode == 0
    assert world.rows(session, "select id from t") == [(1,), (2,), (9,)]


def test_a_branch_cannot_write_what_another_has_locked(world: World, session: Any) -> None:
    other = world.session()
    prepared = world.stage(session, "insert into t values (2, 'y')")
    for alone in (True, False):
        work = world.begin(other, alone=alone)
        with pytest.raises(Refused, match=prepared.xid.attempt) as caught:
            world.do(other, work, "update t set a = 'z' where 0")
        assert caught.value.retry
        world.drive(world.resource.rollback(other, work))


def test_what_was_read_is_locked_against_change_but_not_against_reading(world: World, session: Any) -> None:
    """Otherwise a decision that was made by what was read outlives what was read."""
    world.run(session, "create table prices(p); insert into prices values (5); create table u(a)")
    first = world.stage(session, "insert into t select null, p from prices")
    assert world.rows(session, "select tbl, mode from nodoubt_locks order by 1") == [("prices", "S"), ("t", "X")]
    assert shell(world.path, "update prices set p = 6").returncode != 0
    second = world.stage(session, "insert into u select p from prices")
    work = world.begin(session)
    with pytest.raises(Refused) as caught:
        world.do(session, work, "update prices set p = 6")
    assert caught.value.retry
    world.drive(world.resource.rollback(session, work))
    world.commit(session, first)
    assert shell(world.path, "update prices set p = 6").returncode != 0, "the second still relies on it"
    world.commit(session, second)
    assert shell(world.path, "update prices set p = 6").returncode == 0


@pytest.mark.parametrize(
    "reading",
    [
        "select count(*) from prices",
        "select 1 where exists (select 1 from prices)",
        "select * from seen",
        "with p as (select p from prices) select max(p) from p",
        "insert into t select 9, 'z' where 5 in prices",
        "insert into fed values (1)",
    ],
)
def test_every_way_to_read_is_seen(world: World, session: Any, reading: str) -> None:
    world.run(
        session,
        "create table prices(p); insert into prices values (5); create view seen as select p from prices;"
        "create table fed(a); create trigger g after insert on fed begin insert into t select null, p from prices; end",
    )
    world.stage(session, "insert into t values (2, 'y')", reading)
    assert ("prices", "S") in world.rows(session, "select tbl, mode from nodoubt_locks")


def test_a_branch_that_read_what_another_is_about_to_change_cannot_prepare(world: World, session: Any) -> None:
    world.run(session, "create table u(a)")
    prepared = world.stage(session, "update t set a = 'new'")
    work = world.begin(session)
    world.do(session, work, "insert into u select a from t")
    with pytest.raises(Refused, match=f"relies on, is locked by the prepared branch {prepared.xid.gid}") as caught:
        world.drive(world.resource.prepare(session, work))
    assert caught.value.retry and session.usable
    reader = world.begin(session)
    assert world.do(session, reader, "select a from t").scalar() == "x"
    world.drive(world.resource.end_reader(session, reader))


def test_tables_tied_by_a_foreign_key_are_locked_with_each_other(world: World, session: Any) -> None:
    """Foreign keys are not checked again at commit: a parent must not go, a child must not come, meanwhile."""
    world.run(session, "create table parent(id integer primary key); insert into parent values (1), (2)")
    world.run(session, "create table child(a references PARENT)")
    prepared = world.stage(session, "insert into child values (1)")
    assert world.rows(session, "select tbl, mode from nodoubt_locks order by 1") == [("child", "X"), ("parent", "S")]
    assert shell(world.path, "delete from parent where id = 1").returncode != 0
    world.commit(session, prepared)
    prepared = world.stage(session, "delete from parent where id = 2")
    assert shell(world.path, "insert into child values (2)").returncode != 0
    world.commit(session, prepared)
    assert world.rows(session, "pragma foreign_key_check") == []


def test_a_cascade_into_a_locked_table_is_refused(world: World, session: Any) -> None:
    world.run(session, "create table p(id integer primary key); insert into p values (1)")
    world.run(session, "create table c(a references p on delete cascade, b); insert into c values (1, 1)")
    world.run(session, "create table far(x); create trigger g after insert on far begin update c set b = 2; end")
    world.stage(session, "update c set b = 3")
    for alone, statement in ((True, "delete from p"), (False, "delete from p"), (False, "insert into far values (1)")):
        work = world.begin(session, alone=alone)
        with pytest.raises(Refused) as caught:
            world.do(session, work, statement)
        assert caught.value.retry
        world.drive(world.resource.rollback(session, work))


def test_guards_follow_a_renamed_table(world: World, session: Any) -> None:
    world.commit(session, world.stage(session, "insert into t values (2, 'y')"))
    world.run(session, "alter table t rename to u; create table t(id integer primary key, a unique)")
    first = world.stage(session, "insert into u values (3, 'z')")
    second = world.stage(session, "insert into t values (3, 'z')")
    assert shell(world.path, "delete from u").returncode != 0
    assert shell(world.path, "insert into t values (9, 'q')").returncode != 0
    world.commit(session, first)
    assert shell(world.path, "delete from u").returncode == 0
    assert shell(world.path, "insert into t values (9, 'q')").returncode != 0
    world.commit(session, second)


def test_tables_that_are_never_staged_get_no_guards(world: World, session: Any) -> None:
    world.run(session, "create table never(a)")
    world.stage(session, "insert into t values (2, 'y')")
    guarded = "select distinct tbl_name from sqlite_schema where type = 'trigger'"
    assert world.rows(session, guarded) == [("t",)]


# ---- phase two


def test_an_unknown_xid_is_said_to_be_unknown(world: World, session: Any) -> None:
    absent = Prepared(Xid(CLUSTER, "f" * 32, 0))
    with pytest.raises(UnknownXid):
        world.commit(session, absent)
    with pytest.raises(UnknownXid):
        world.rollback(session, absent)
    prepared = world.stage(session, "insert into t values (2, 'y')")
    world.commit(session, prepared)
    with pytest.raises(UnknownXid):
        world.commit(session, prepared)
    assert world.rows(session, "select count(*) from t") == [(2,)]
    assert session.usable


def test_only_branches_of_our_own_cluster_are_listed(world: World, session: Any) -> None:
    prepared = world.stage(session, "insert into t values (2, 'y')")
    world.run(session, "insert into nodoubt_prepared values ('a stranger', 0, 0, x'00')")
    assert world.listed(session) == [prepared.xid]
    assert world.drive(world.resource.prepared(session, "f" * 16)) == ()
    (found,) = world.drive(world.resource.prepared(session, CLUSTER))
    assert 0 <= found.age_s < 60


def test_several_branches_are_prepared_side_by_side(world: World, session: Any) -> None:
    world.run(session, "create table u(a)")
    first = world.stage(session, "insert into t values (2, 'y')")
    second = world.stage(session, "insert into u values (1)")
    assert world.listed(session) == [first.xid, second.xid]
    world.rollback(session, first)
    world.commit(session, second)
    assert world.rows(session, "select count(*) from t") == [(1,)]
    assert world.rows(session, "select a from u") == [(1,)]


def test_the_same_xid_cannot_be_prepared_twice(world: World, session: Any) -> None:
    world.run(session, "create table u(a)")
    prepared = world.stage(session, "insert into t values (2, 'y')")
    work = world.begin(session)
    world.drive(world.resource.rollback(session, work))
    work.xid = prepared.xid
    world.drive(world.resource.begin(session, work))
    world.do(session, work, "insert into u values (1)")
    with pytest.raises(Conflict):
        world.drive(world.resource.prepare(session, work))
    assert world.listed(session) == [prepared.xid]


def test_a_prepare_of_no_net_change_is_a_branch_like_any_other(world: World, session: Any) -> None:
    prepared = world.stage(session, "select * from t")
    world.commit(session, prepared)
    assert receipts(world, session) == [(prepared.xid.attempt, 0, "commit", 7, 0, 0)]


def test_nothing_holds_a_prepared_branch(world: World, session: Any) -> None:
    prepared = world.stage(session, "insert into t values (2, 'y')")
    world.drive(world.resource.detach(session))
    assert world.drive(world.resource.free(session, prepared)) is False
    world.ask(session, "close")
    world.commit(world.session(), prepared)


def test_rows_cannot_ride_unforced(world: World, session: Any) -> None:
    with pytest.raises(UsageError):
        world.drive(world.resource.begin(session, world.work(), before=("select 1",)))
    with pytest.raises(UsageError):
        world.drive(world.resource.commit_prepared(session, Prepared(world.work().xid), before=("select 1",)))


# ---- hazards: what a foreign act does between prepare and commit

HAZARDS = {
    "a column added": "alter table t add column b default 1",
    "a table dropped": "drop table t",
    "a table dropped and made again": "drop table t; create table t(id integer primary key, a unique)",
    "an index added": "create index i on t(a)",
    "a unique index added": "create unique index i on t(a, id)",
    "a touched row changed with triggers off": ".dbconfig enable_trigger off\nupdate t set a = 'q' where id = 1",
    "a touched row deleted with triggers off": ".dbconfig enable_trigger off\ndelete from t where id = 1",
    "an inserted key taken with triggers off": ".dbconfig enable_trigger off\ninsert into t values (2, 'taken')",
    "a unique value taken with triggers off": ".dbconfig enable_trigger off\ninsert into t values (9, 'y')",
    "the guards dropped and a row changed": "drop trigger nodoubt_guard_update_t; update t set a = 'q' where id = 1",
}


@pytest.mark.parametrize("case", HAZARDS)
def test_a_hazard_keeps_the_branch_prepared_and_names_the_table(world: World, session: Any, case: str) -> None:
    """Taken out of `_refuse_changed`: work is committed over rows that it was never made for."""
    prepared = world.stage(session, "update t set a = 'new' where id = 1", "insert into t values (2, 'y')")
    done = shell(world.path, HAZARDS[case])
    assert done.returncode == 0, done.stderr
    shown = shell(world.path, "select * from t").stdout
    for _ in range(2):
        with pytest.raises(Hazard, match=r"t was changed while nd1|rows was changed while") as caught:
            world.commit(session, prepared)
        assert "stays prepared" in str(caught.value)
        assert not caught.value.retry
    assert session.usable
    assert world.listed(session) == [prepared.xid]
    assert receipts(world, session) == []
    assert shell(world.path, "select * from t").stdout == shown
    world.rollback(session, prepared)
    assert world.listed(session) == []
    assert shell(world.path, "select * from t").stdout == shown


def test_a_conflict_clause_of_the_table_does_not_hide_a_hazard(world: World, session: Any) -> None:
    """Without OR ABORT, the row of a stranger would be replaced, or ours ignored, without a word."""
    for policy in ("replace", "ignore"):
        world.run(session, f"create table {policy}d(id integer primary key, a unique on conflict {policy})")
        prepared = world.stage(session, f"insert into {policy}d values (1, 'ours')")
        shell(world.path, f".dbconfig enable_trigger off\ninsert into {policy}d values (9, 'ours')")
        with pytest.raises(Hazard):
            world.commit(session, prepared)
        assert world.rows(session, f"select id from {policy}d") == [(9,)]


def test_a_vacuum_that_renumbers_rows_is_a_hazard(world: World, session: Any) -> None:
    world.run(session, "create table v(a); insert into v values (1), (2), (3); delete from v where a = 1")
    prepared = world.stage(session, "update v set a = 30 where a = 3")
    shell(world.path, "vacuum")
    assert world.rows(session, "select rowid from v") == [(1,), (2,)], "the rows have other numbers now"
    with pytest.raises(Hazard, match="v was changed"):
        world.commit(session, prepared)


def test_a_hazard_that_is_undone_is_gone(world: World, session: Any) -> None:
    prepared = world.stage(session, "update t set a = 'new' where id = 1")
    shell(world.path, "create index i on t(a)")
    with pytest.raises(Hazard):
        world.commit(session, prepared)
    shell(world.path, "drop index i")
    world.commit(session, prepared)
    assert world.rows(session, "select a from t") == [("new",)]


def test_a_vacuum_where_rows_keep_their_numbers_does_no_harm(world: World, session: Any) -> None:
    world.run(session, "delete from t; insert into t values (5, 'five')")
    prepared = world.stage(session, "insert into t values (6, 'six')")
    assert shell(world.path, "vacuum").returncode == 0
    world.commit(session, prepared)
    assert world.rows(session, "select id from t") == [(5,), (6,)]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("record = substr(record, 1, 50)", "checksum"),
        ("record = x''", "cut short"),
        ("record = cast(x'6e64726402' || substr(record, 6) as blob)", "version 2"),
        ("record = 'text'", "cut short"),
    ],
)
def test_an_unreadable_record_stays_prepared_and_can_be_rolled_back(
    world: World, session: Any, damage: str, words: str
) -> None:
    prepared = world.stage(session, "insert into t values (2, 'y')")
    world.run(session, f"update nodoubt_prepared set {damage}")
    with pytest.raises(UnreadableRecord, match=words):
        world.commit(session, prepared)
    assert world.listed(session) == [prepared.xid]
    assert shell(world.path, "delete from t").returncode != 0
    world.rollback(session, prepared)
    assert shell(world.path, "delete from t").returncode == 0


# ---- receipts


def test_a_receipt_is_seen_only_after_the_commit_and_each_look_confirms_it(world: World, session: Any) -> None:
    prepared = world.stage(session, "insert into t values (2, 'y')")
    assert world.drive(world.resource.receipt(session, prepared.xid)) is False
    world.commit(session, prepared)
    for count in (1, 2):
        assert world.drive(world.resource.receipt(session, prepared.xid)) is True
        assert receipts(world, session) == [(prepared.xid.attempt, 0, "commit", 7, 0, count)]
    assert world.drive(world.resource.receipt(session, Xid(CLUSTER, prepared.xid.attempt, 1))) is False


def test_a_fence_that_comes_first_stops_the_commit(world: World, session: Any) -> None:
    work = world.begin(session)
    world.do(session, work, "insert into t values (2, 'y')")
    other = world.session(lock_wait_s=0.05)
    with pytest.raises(Unclear, match="cannot tell now"):
        world.drive(world.resource.fence(other, work.xid))
    with pytest.raises(Unclear):
        world.drive(world.resource.receipt(other, work.xid))
    world.drive(world.resource.rollback(session, work))
    assert world.drive(world.resource.fence(other, work.xid)) is Verdict.ABORT
    assert world.drive(world.resource.fence(other, work.xid)) is Verdict.ABORT
    assert world.drive(world.resource.receipt(other, work.xid)) is False
    world.drive(world.resource.begin(session, work))
    world.do(session, work, "insert into t values (2, 'y')")
    with pytest.raises(Conflict):
        world.drive(world.resource.commit_alone(session, work))
    assert world.rows(session, "select count(*) from t") == [(1,)]


def test_a_fence_that_comes_before_the_work_stops_the_prepare(world: World, session: Any) -> None:
    """It would else stop phase two, for ever, of a branch whose attempt is decided COMMIT."""
    work = world.work()
    world.drive(world.resource.fence(session, work.xid))
    world.drive(world.resource.begin(session, work))
    world.do(session, work, "insert into t values (2, 'y')")
    with pytest.raises(Conflict, match="settled meanwhile"):
        world.drive(world.resource.prepare(session, work))
    assert world.drive(world.resource.prepared(session, CLUSTER)) == ()
    assert world.rows(session, "select count(*) from t") == [(1,)]


def test_a_fence_that_comes_second_confirms_the_commit(world: World, session: Any) -> None:
    work = world.begin(session)
    world.do(session, work, "insert into t values (2, 'y')")
    world.drive(world.resource.commit_alone(session, work))
    assert world.drive(world.resource.fence(session, work.xid)) is Verdict.COMMIT
    assert receipts(world, session) == [(work.xid.attempt, 0, "commit", 7, 1, 1)]


def test_a_prepared_branch_is_not_fenced(world: World, session: Any) -> None:
    prepared = world.stage(session, "insert into t values (2, 'y')")
    with pytest.raises(Unclear, match="is prepared"):
        world.drive(world.resource.fence(session, prepared.xid))
    world.commit(session, prepared)


def test_receipts_are_forgotten_by_name_and_by_age_but_never_a_two_phase_one_by_age(world: World, session: Any) -> None:
    """A receipt of a prepared branch proves its commit to a record that has not ended yet."""
    prepared = world.stage(session, "insert into t values (2, 'y')")
    world.commit(session, prepared)
    alone = world.begin(session)
    world.do(session, alone, "insert into t values (3, 'z')")
    world.drive(world.resource.commit_alone(session, alone))
    world.drive(world.resource.fence(session, fenced := world.work().xid))
    forget = world.resource.forget
    assert world.drive(forget(session, [], older_than=0.0)) == 0
    assert world.drive(forget(session, [], older_than=2.0**40)) == 2
    assert [row[0] for row in receipts(world, session)] == [prepared.xid.attempt]
    assert world.drive(forget(session, [], older_than=2.0**40, below=prepared.xid.attempt)) == 0
    assert [row[0] for row in receipts(world, session)] == [prepared.xid.attempt]
    assert world.drive(forget(session, [prepared.xid, fenced])) == 1
    assert receipts(world, session) == []


def test_receipts_of_two_phases_are_forgotten_below_the_journals_floor_and_no_others(
    world: World, session: Any
) -> None:
    prepared = world.stage(session, "insert into t values (2, 'y')")
    world.commit(session, prepared)
    alone = world.begin(session)
    world.do(session, alone, "insert into t values (3, 'z')")
    world.drive(world.resource.commit_alone(session, alone))
    assert world.drive(world.resource.forget(session, [], below="f" * 32)) == 1
    assert [row[0] for row in receipts(world, session)] == [alone.xid.attempt]


# ---- registration


def test_setup_is_idempotent_and_keeps_the_identity_that_stands(world: World, session: Any) -> None:
    for resource_id, cluster in (("b" * 32, CLUSTER), ("c" * 32, "f" * 16)):
        world.drive(world.resource.setup(session, resource_id, cluster))
    inode = f"inode:{world.path.stat().st_ino}"
    assert world.drive(world.resource.identity(session)) == Identity("a" * 32, CLUSTER, inode, 0)
    assert world.drive(world.resource.server(session)) == inode


def test_two_setups_at_a_time_leave_one_identity(world: World) -> None:
    path = world.path.with_name("new.db")
    sessions = [world.session(lock_wait_s=10, path=path) for _ in range(4)]
    setups = [world.start(world.resource.setup(s, f"{n}" * 32, CLUSTER)) for n, s in enumerate(sessions)]
    for setup in setups:
        setup.result(20)
    assert len({world.drive(world.resource.identity(s)).resource_id for s in sessions}) == 1


def test_a_file_without_setup_has_no_identity_and_takes_no_branch(world: World) -> None:
    session = world.session(path=world.path.with_name("new.db"))
    assert world.drive(world.resource.identity(session)) is None
    assert world.listed(session) == []
    with pytest.raises(SchemaMismatch, match="setup"):
        world.begin(session)
    with pytest.raises(SchemaMismatch):
        world.drive(world.resource.receipt(session, world.work().xid))
    assert session.usable


def test_tables_that_only_a_newer_release_may_work_on_are_refused(world: World, session: Any) -> None:
    world.run(
        session,
        "insert into nodoubt_migrations (part, number, works_from, steps, steps_done) "
        "values ('participant', 2, 2, 1, 1)",
    )
    with pytest.raises(SchemaMismatch, match="version 2"):
        world.drive(world.resource.identity(session))
    with pytest.raises(SchemaMismatch, match="version 2"):
        world.drive(world.resource.setup(session, "b" * 32, CLUSTER))


def test_the_epoch_is_the_highest_that_anything_here_has_seen(world: World, session: Any) -> None:
    def epoch() -> int:
        return int(world.drive(world.resource.identity(session)).epoch)

    for number in (4, 5, 3):
        world.drive(world.resource.witness(session, Epoch(number, f"m{number}")))
    assert epoch() == 5
    assert world.drive(world.resource.identity(session)).mark == "m5"
    prepared = world.stage(session, "insert into t values (2, 'y')")
    assert epoch() == 7
    world.commit(session, prepared)
    assert epoch() == 7
    adopted = Identity("d" * 32, "e" * 16, "inode:1", 9, "m9")
    world.drive(world.resource.adopt(session, adopted))
    assert world.drive(world.resource.identity(session)) == adopted


def test_a_copy_of_the_file_is_another_server(world: World, session: Any) -> None:
    copy = world.path.with_name("copy.db")
    world.run(session, f"vacuum into '{copy}'")
    other = world.session(path=copy)
    stored = world.drive(world.resource.identity(other))
    assert stored.server == world.drive(world.resource.server(session))
    assert stored.server != world.drive(world.resource.server(other))


# ---- check


def test_a_file_as_we_open_it_passes_with_warnings_for_what_cannot_be_staged(world: World, session: Any) -> None:
    assert world.drive(world.resource.check(session)) == ()
    world.run(session, "create virtual table f using fts5(a); create table bad(rowid, oid, _rowid_)")
    warnings = world.drive(world.resource.check(session))
    assert any("f is a virtual table" in warning for warning in warnings)
    assert any("bad has columns" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("pragma", "words"),
    [
        ("synchronous = normal", "synchronous = 1"),
        ("synchronous = off", "synchronous = 0"),
        ("locking_mode = exclusive", "locking_mode"),
        ("journal_mode = delete", "it must be EXTRA"),
        ("journal_mode = memory", "journal_mode = memory"),
    ],
)
def test_a_setting_that_would_not_survive_a_crash_is_refused_by_name(
    world: World, session: Any, pragma: str, words: str
) -> None:
    for other in world.sessions[:-1]:
        world.ask(other, "close")
    world.run(session, f"pragma {pragma}")
    with pytest.raises(ResourceRefused, match=words):
        world.drive(world.resource.check(session))


def test_wal_on_a_library_that_can_corrupt_it_is_refused(
    world: World, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "library", (3, 51, 2))
    with pytest.raises(ResourceRefused, match=r"WAL, and SQLite 3\.51\.2"):
        world.drive(world.resource.check(session))
    monkeypatch.setattr(Connection, "library", (3, 51, 3))
    assert world.drive(world.resource.check(session)) == ()


def test_a_read_only_file_is_refused(world: World, session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "readonly", True)
    with pytest.raises(ResourceRefused, match="read-only"):
        world.drive(world.resource.check(session))


def test_text_in_utf16_is_refused(world: World) -> None:
    path = world.path.with_name("wide.db")
    with contextlib.closing(apsw.Connection(str(path))) as creator:
        creator.execute("pragma encoding = 'UTF-16le'; create table t(a)").fetchall()
    with pytest.raises(ResourceRefused, match="UTF-16le"):
        world.drive(world.resource.check(world.session(path=path)))


def test_a_network_file_system_is_warned_of(world: World, session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_.filesystem(str(world.path)) != ""
    monkeypatch.setattr(check_, "filesystem", lambda _: "nfs4")
    (warning,) = world.drive(world.resource.check(session))
    assert "network file system (nfs4)" in warning


def test_a_file_that_is_gone_is_refused(world: World, session: Any) -> None:
    Path(world.path).unlink()
    with pytest.raises(ResourceRefused):
        world.drive(world.resource.check(session))


# ---- the table of failures


@pytest.mark.parametrize(("code", "meaning"), sorted(FAILURES.items()))
def test_every_code_of_the_table_has_its_error(code: str, meaning: Failure) -> None:
    error = StatementFailed(code, "message")
    assert failure(error) is meaning
    expected: dict[Failure, tuple[type[Exception], bool]] = {
        Failure.DUPLICATE: (Conflict, False),
        Failure.NO_FLOOR: (BelowFloor, False),
        Failure.TRANSIENT: (Refused, True),
        Failure.FULL: (Refused, True),
    }
    kind, retry = expected[meaning]
    found = refusal(error, "what")
    assert type(found) is kind and isinstance(found, Refused) and found.retry is retry


def test_a_code_that_is_not_in_the_table_is_a_plain_refusal() -> None:
    assert failure(StatementFailed("275", "CHECK constraint failed")) is Failure.REFUSED
    assert isinstance(refusal(StatementFailed("1", "no such table: main.nodoubt_locks"), "x"), SchemaMismatch)


def test_a_child_of_whatever_name_keeps_its_rows_as_phase_two_rewrites_their_parent(world: World) -> None:
    session = world.session()
    world.run(session, "create table kin(id integer primary key, a); insert into kin values (1, 'x'), (2, 'y')")
    world.run(session, "create table nodoubt_mine(id integer primary key, k references kin(id) on delete cascade)")
    world.run(session, "insert into nodoubt_mine values (1, 1)")
    world.commit(session, world.stage(session, "update kin set a = 'z' where id = 1"))
    assert world.rows(session, "select a from kin order by id") == [("z",), ("y",)]
    assert world.rows(session, "select * from nodoubt_mine") == [(1, 1)]


NO_TEXT = b"""
create view v as select 'caf\xe9';
create trigger tr after insert on other begin select 'caf\xe9'; end;
"""


@pytest.mark.parametrize("when", ["before it began", "when it was prepared"])
def test_what_a_stranger_has_defined_in_no_text_is_in_nobodys_way(world: World, when: str) -> None:
    """SQLite takes any bytes. To learn of tables it resolves each view, and tells the authorizer of its columns."""

    def comes() -> None:
        done = subprocess.run(["sqlite3", "-bail", str(world.path)], input=NO_TEXT, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr

    session = world.session()
    world.run(session, "create table mine(a); create table other(a)")
    if when == "before it began":
        comes()
    prepared = world.stage(session, "insert into mine values (1)")
    if when == "when it was prepared":
        comes()
    world.commit(session, prepared)
    assert world.rows(session, "select a from mine") == [(1,)]
