"""A statement that is executed again is not compiled again, and is watched all the same: what it may, reads, changes.

At the end, drivers that remember what a text wants, and forget one of the reasons why that can change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import apsw
import pytest

from nodoubt.drivers import sqlite_connection as driver
from nodoubt.drivers.sqlite_connection import Connection
from nodoubt.errors import UsageError
from nodoubt.ports import Bound, Prepared, Refused
from sqlite.world import World

UPDATE = "update t set a = ? where id = ?"
READ = "select sum(p) from prices"


def knowing(world: World) -> Any:
    """A connection on which both texts are known and compiled."""
    session = world.session()
    world.run(
        session,
        "create table t(id integer primary key, a unique); insert into t values (1, 'x');"
        "create table prices(p); insert into prices values (5)",
    )
    for _ in range(4):  # compiled, kept, and known again
        once(world, session, UPDATE, ("x", 1))
        once(world, session, READ)
    return session


@pytest.fixture
def session(world: World) -> Any:
    return knowing(world)


def once(world: World, session: Any, statement: str, params: Any = (), **settings: Any) -> Any:
    """In a branch of its own, which is rolled back."""
    work = world.begin(session, **settings)
    try:
        return world.do(session, work, statement, params=params)
    finally:
        world.drive(world.resource.rollback(session, work))


def compiled(session: Any) -> int:
    """How often this connection had to compile a text so far."""
    misses: int = session.connection._database.cache_stats()["misses"]
    return misses


def locks(world: World, session: Any) -> list[tuple[Any, ...]]:
    return world.rows(session, "select tbl, mode from nodoubt_locks order by tbl")


def test_it_is_compiled_once(world: World, session: Any) -> None:
    before = compiled(session)
    for number in range(3):
        assert once(world, session, UPDATE, (number, 1)).count == 1
        assert once(world, session, UPDATE, (number, 2)).count == 0
        many = Bound([(n, 1) for n in range(4)], many=True)
        assert once(world, session, UPDATE, many).count == 4
    assert compiled(session) == before


def test_the_reply_is_the_same_each_time(world: World, session: Any) -> None:
    insert = "with w as (select 1) insert into t select ?, ? from w"
    returning = "insert into t values (?, ?) returning a as b, id"
    for _ in range(3):
        replies = [once(world, session, text, (7, "z")) for text in (insert, returning)]
        assert [(r.tag, r.count, r.columns, list(r.rows)) for r in replies] == [
            ("WITH", 1, (), []),
            ("INSERT", 1, ("b", "id"), [("z", 7)]),
        ]
        full = once(world, session, returning, Bound((8, "y")))
        assert (full.last_id, list(full.rows)) == (8, [("y", 8)])


def test_what_another_branch_has_locked_since_is_refused(world: World, session: Any) -> None:
    other = world.session()
    world.rollback(other, world.stage(other, "insert into t values (2, 'y')"))  # its guards are there from now on
    for alone in (True, False):
        for _ in range(2):
            once(world, session, UPDATE, ("q", 1), alone=alone)
        prepared = world.stage(other, "insert into t values (2, 'y')")
        with pytest.raises(Refused, match=prepared.xid.attempt):
            once(world, session, UPDATE, ("q", 1), alone=alone)
        world.rollback(other, prepared)


def test_what_it_reads_and_writes_is_seen_each_time(world: World, session: Any) -> None:
    for _ in range(5):
        work = world.begin(session)
        world.do(session, work, UPDATE, params=("v", 9))  # there is no such row
        world.do(session, work, "insert into t select 3, max(p) from prices")
        world.drive(world.resource.prepare(session, work))
        assert locks(world, session) == [("prices", "S"), ("t", "X")]
        (xid,) = world.listed(session)
        world.rollback(session, Prepared(xid))


def test_a_whole_table_emptied_is_told_row_by_row_though_it_was_not_before(world: World, session: Any) -> None:
    """Alone nobody watches the rows, and SQLite drops the table's pages without a word."""
    for _ in range(4):
        once(world, session, "delete from t", alone=True)
    for _ in range(4):
        work = world.begin(session)
        assert world.do(session, work, "delete from t").count == 1
        world.drive(world.resource.prepare(session, work))
        (xid,) = world.listed(session)
        world.rollback(session, Prepared(xid))
        once(world, session, "delete from t", alone=True)


def test_what_a_new_trigger_does_is_asked_for(world: World, session: Any) -> None:
    """The text has not changed, but what it does has."""
    world.run(world.session(), "create trigger meddles after update on t begin delete from nodoubt_receipts; end")
    with pytest.raises(UsageError, match="nodoubt_receipts is written by nodoubt alone .by trigger meddles."):
        once(world, session, UPDATE, ("q", 1))
    world.run(world.session(), "drop trigger meddles")
    assert once(world, session, UPDATE, ("q", 1)).count == 1


def test_a_change_that_was_met_in_a_statement_that_failed_is_not_forgotten(world: World, session: Any) -> None:
    """SQLite has compiled it anew for that one, and will not ask again."""
    world.run(
        world.session(),
        "insert into t values (2, 'y');"
        "create trigger looks after update on t when 5 in (select p from prices) begin select 1; end",
    )
    with pytest.raises(apsw.ConstraintError):
        once(world, session, UPDATE, ("y", 1))
    work = world.begin(session)
    world.do(session, work, UPDATE, params=("q", 1))
    world.drive(world.resource.prepare(session, work))
    assert locks(world, session) == [("prices", "S"), ("t", "X")]


def test_a_trigger_of_since_is_heard_by_those_who_come_later(world: World, session: Any) -> None:
    """SQLite asks once after a change of the schema; what it asked for then holds from then on."""
    world.run(
        world.session(), "create trigger looks after update on t when 5 in (select p from prices) begin select 1; end"
    )
    for _ in range(4):  # compiled, kept, and known again
        once(world, session, UPDATE, ("q", 1))
    work = world.begin(session)
    world.do(session, work, UPDATE, params=("q", 1))
    world.drive(world.resource.prepare(session, work))
    assert locks(world, session) == [("prices", "S"), ("t", "X")]


def test_a_text_of_several_statements_is_asked_for_whole(world: World, session: Any) -> None:
    for _ in range(5):
        work = world.begin(session)
        several = "insert into t values (4, 4); update t set a = (select max(p) from prices) where id = 9"
        world.do(session, work, several)
        world.drive(world.resource.prepare(session, work))
        assert locks(world, session) == [("prices", "S"), ("t", "X")]
        (xid,) = world.listed(session)
        world.rollback(session, Prepared(xid))


def test_what_a_virtual_table_compiles_in_it_is_not_taken_for_all_that_it_wants(world: World, session: Any) -> None:
    """A full text index, kept up by a trigger: what it prepares of its own is undone with the branch, and anew."""
    world.run(
        world.session(),
        "create virtual table words using fts5(a);"
        "create trigger index_it after update on t begin insert into words values (new.a); end",
    )
    unseen: list[int] = []
    for number in range(12):
        work = world.begin(session, alone=True)
        world.do(session, work, UPDATE, params=(f"v{number}", 1))
        if not world.drive(world.resource.wrote(session, work)):
            unseen.append(number)
        if number % 3:
            world.drive(world.resource.rollback(session, work))
        else:
            world.drive(world.resource.commit_alone(session, work))
    assert unseen == []


def test_what_returns_rows_has_the_columns_of_now(world: World, session: Any) -> None:
    for text in ("select * from t", "insert into t(a) values ('n') returning *"):
        for _ in range(4):
            assert once(world, session, text).columns == ("id", "a")
        world.run(world.session(), "alter table t add column b")
        assert once(world, session, text).columns == ("id", "a", "b")
        world.run(world.session(), "alter table t drop column b")
        assert once(world, session, text).columns == ("id", "a")


def test_what_it_wanted_once_and_wants_no_more_refuses_nothing(world: World, session: Any) -> None:
    other = world.session()
    world.rollback(other, world.stage(other, "insert into prices values (6)"))  # its guards are there from now on
    world.run(other, "create trigger notes after update on t begin insert into prices values (1); end")
    for _ in range(4):
        once(world, session, UPDATE, ("q", 1))
    prepared = world.stage(other, "insert into prices values (6)")
    with pytest.raises(Refused, match=prepared.xid.attempt):
        once(world, session, UPDATE, ("q", 1))
    world.run(other, "drop trigger notes")
    assert once(world, session, UPDATE, ("q", 1)).count == 1
    world.rollback(other, prepared)


def test_large_parameters_are_not_held_by_what_is_kept_compiled(world: World, session: Any) -> None:
    before = compiled(session)
    for number in range(4):
        once(world, session, UPDATE, (str(number) * (driver._KEPT_LENGTH_MAX + 1), 1))
    assert compiled(session) == before + 4
    once(world, session, UPDATE, ("small", 1))
    assert compiled(session) == before + 4


def test_a_pragma_answers_anew_each_time(world: World, session: Any) -> None:
    for columns in (1, 2, 3):
        assert len(once(world, session, "pragma table_info(prices)")) == columns
        world.run(session, f"alter table prices add column c{columns}")


def test_no_more_texts_are_remembered_than_are_kept_compiled(world: World, session: Any) -> None:
    for number in range(driver._KNOWN_MAX * 2):
        once(world, session, f"update t set a = {number} where id = 1")
    assert len(session.connection._known) == driver._KNOWN_MAX
    long = f"update t set a = 1 where id = 1 -- {'x' * driver._KNOWN_LENGTH_MAX}"
    once(world, session, long)
    assert long not in session.connection._known


# ---- mutants


REMEMBER, WATCH = Connection._remember, Connection.watch
Patch = pytest.MonkeyPatch


def asks_for_nothing(patch: Patch) -> None:
    def remember(self: Connection, statement: str, reply: Any, *, single: bool) -> None:
        self._heard.clear()
        REMEMBER(self, statement, reply, single=single)

    patch.setattr(Connection, "_remember", remember)


def keeps_what_was_compiled_unwatched(patch: Patch) -> None:
    def watch(self: Connection, on_access: Any, on_change: Any) -> None:
        WATCH(self, on_access, on_change)
        self._flags = 0

    patch.setattr(Connection, "watch", watch)


class Kept(dict[str, Any]):
    """What is known, kept whatever happens."""

    connection: Connection

    def pop(self, *_: Any) -> None: ...


class Replaced(dict[str, Any]):
    """What is known, replaced by what was heard last."""

    connection: Connection

    def pop(self, statement: str, *_: Any) -> None:
        self[statement] = driver._Known(tuple(self.connection._heard), "UPDATE")


def knows_by(patch: Patch, kind: Any) -> None:
    def watch(self: Connection, on_access: Any, on_change: Any) -> None:
        known = kind(self._known)
        known.connection, self._known = self, known
        WATCH(self, on_access, on_change)

    patch.setattr(Connection, "watch", watch)


def forgets_nothing(patch: Patch) -> None:
    knows_by(patch, Kept)


def believes_what_it_heard_last(patch: Patch) -> None:
    knows_by(patch, Replaced)


def remembers_one_of_several(patch: Patch) -> None:
    def remember(self: Connection, statement: str, reply: Any, *, single: bool) -> None:
        if not single:
            self._heard = self._heard[:1]
        REMEMBER(self, statement, reply, single=True)

    patch.setattr(Connection, "_remember", remember)


@pytest.mark.parametrize(
    ("mutate", "claim"),
    [
        (asks_for_nothing, test_what_another_branch_has_locked_since_is_refused),
        (asks_for_nothing, test_what_it_reads_and_writes_is_seen_each_time),
        (keeps_what_was_compiled_unwatched, test_a_whole_table_emptied_is_told_row_by_row_though_it_was_not_before),
        (
            forgets_nothing,
            test_a_change_that_was_met_in_a_statement_that_failed_is_not_forgotten,
        ),
        (forgets_nothing, test_a_trigger_of_since_is_heard_by_those_who_come_later),
        (
            believes_what_it_heard_last,
            test_what_a_virtual_table_compiles_in_it_is_not_taken_for_all_that_it_wants,
        ),
        (remembers_one_of_several, test_a_text_of_several_statements_is_asked_for_whole),
    ],
)
def test_a_driver_without_that_rule_is_caught(
    world: World, mutate: Callable[[Patch], None], claim: Callable[[World, Any], None], monkeypatch: Patch
) -> None:
    mutate(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception, Refused)):
        claim(world, knowing(world))
