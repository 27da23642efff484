"""Random schedules against a reference: staged work, foreign writers, kills, recovery by whoever comes.

The reference is another file, in which a plain connection runs the statements of each branch at the moment it commits.
If at any time the two files differ in a row, a rowid, a type or a byte, something was lost, invented or let through.

    make sqlite-schedules SCHEDULES=5000 SEED=7
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from nodoubt.errors import NoDoubtError
from nodoubt.ports import Prepared
from nodoubt.resources.sqlite import Hazard
from nodoubt.xid import Xid, parse_gid
from sqlite.world import CLUSTER, Nursery, World, contents, shell

SCHEDULES = int(os.environ.get("NODOUBT_SQLITE_SCHEDULES", "400"))
SEED = int(os.environ.get("NODOUBT_SQLITE_SEED", "1"))
GROUPS = 10
STEPS = 12
POINTS = 45  # about as many statements as a prepare has; beyond the last one, nobody is killed

SCHEMA = """
    create table keyed(id integer primary key, a unique, b);
    create table bare(a, b);
    create table log(x);
    create table spelled(k text collate nocase, n, v, primary key (k, n)) without rowid;
    create table counted(id integer primary key autoincrement, a unique);
    create table parent(id integer primary key, a);
    create table child(p references parent on delete cascade on update cascade deferrable initially deferred, a);
    create table derived(a, twice as (a * 2) stored, once as (a), b);
    create unique index some_of_it on derived(twice) where b is not null;
    create table wide(a primary key, b unique, c, unique (b, c)) without rowid;
    create trigger logged after insert on bare begin
        insert into log values (new.a);
        update bare set b = 1 where b = 0;
    end;
    insert into parent values (1, 'p'), (2, 'q'), (3, 'r');
    insert into keyed values (1, 'a', 1), (2, 'b', 2), (3, null, 3), (4, 'd', null);
    insert into bare values (1, 1), (1, 1), (null, 2);
    insert into child values (1, 1), (2, 1), (null, 1);
"""

TABLES: dict[str, tuple[str, ...]] = {
    "keyed": ("id", "a", "b"),
    "bare": ("a", "b"),
    "spelled": ("k", "n", "v"),
    "counted": ("id", "a"),
    "parent": ("id", "a"),
    "child": ("p", "a"),
    "derived": ("a", "b"),
    "wide": ("a", "b", "c"),
}
INTEGERS = {("keyed", "id"), ("counted", "id"), ("parent", "id"), ("child", "p")}
KEYS = {("spelled", "k"), ("spelled", "n"), ("wide", "a")}


class Dice(random.Random):
    """Draws statements. Small domains, so that keys collide."""

    def value(self, table: str, column: str) -> str:
        if (table, column) in INTEGERS:
            return str(self.choice((1, 2, 3, 4, 5, 6)))
        if (table, column) == ("spelled", "k"):
            return self.choice(("'a'", "'A'", "'b'", "'B'", "'ab'"))
        plain = ("0", "1", "2", "2.5", "'a'", "'A'", "'x''y'", "x'00ff'", "1.0", "'1'", "9223372036854775807")
        odd = ("null", "cast(x'ff41' as text)", "'ü'", "''", "x''")
        return self.choice(plain if (table, column) in KEYS else plain + odd)

    def statement(self) -> str:
        table = self.choice(list(TABLES))
        columns = TABLES[table]
        kind = self.choice(("insert", "insert", "update", "update", "delete", "copy", "upsert"))
        values = ", ".join(self.value(table, column) for column in columns)
        column = self.choice(columns)
        where = f"{self.choice(columns)} {self.choice(('=', '>', 'is', '<'))} {self.value(table, self.choice(columns))}"
        conflict = self.choice(("", "", " or replace", " or ignore"))
        if kind == "insert":
            return f"insert{conflict} into {table} ({', '.join(columns)}) values ({values})"
        if kind == "update":
            return f"update{conflict} {table} set {column} = {self.value(table, column)} where {where}"
        if kind == "delete":
            return f"delete from {table}" + ("" if self.random() < 0.1 else f" where {where}")
        if kind == "copy":
            source = self.choice([name for name, has in TABLES.items() if "a" in has])
            return f"insert into bare select quote(a), count(*) from {source} group by 1 order by 1"
        return (
            "insert into keyed values "
            f"({self.value('keyed', 'id')}, {self.value('keyed', 'a')}, 1) on conflict do update set b = b + 1"
        )

    def statements(self) -> list[str]:
        return [self.statement() for _ in range(self.randint(1, 4))]


class Schedule:
    """One file, its reference, and what is known to be prepared."""

    def __init__(self, world: World, reference: apsw.Connection, nursery: Nursery, dice: Dice) -> None:
        self.world, self.reference, self.nursery, self.dice = world, reference, nursery, dice
        self.session = world.sessions[0]
        self.pending: dict[Xid, list[str]] = {}
        self.counts = {"committed": 0, "killed": 0, "locked out": 0}

    # -- what can happen next
    def stage(self) -> None:
        statements, xid = self.dice.statements(), self.world.work().xid
        if self.dice.random() < 0.4:
            self.child("prepare", xid, statements)
        else:
            self.here(xid, statements, self.world.resource.prepare)
        if xid in self.listed():
            self.pending[xid] = statements

    def one_phase(self) -> None:
        statements, xid = self.dice.statements(), self.world.work().xid
        if self.dice.random() < 0.4:
            self.child("alone", xid, statements)
        else:
            self.here(xid, statements, self.world.resource.commit_alone)
        if self.world.drive(self.world.resource.receipt(self.session, xid)):
            self.committed(statements)

    def resolve(self) -> None:
        if self.pending:
            self.resolve_one(self.dice.choice(list(self.pending)), patient=False)

    def resolve_one(self, xid: Xid, *, patient: bool) -> None:
        commit = self.dice.random() < 0.7
        if not patient and self.dice.random() < 0.4:
            self.child("commit" if commit else "rollback", xid, [])
        elif commit:
            self.world.commit(self.session, Prepared(xid))
        else:
            self.world.rollback(self.session, Prepared(xid))
        if xid not in self.listed():
            statements = self.pending.pop(xid)
            done = self.world.drive(self.world.resource.receipt(self.session, xid))
            assert done is commit
            if done:
                self.committed(statements)

    def foreign(self) -> None:
        statements = self.dice.statements()
        found = shell(self.world.path, "pragma foreign_keys = on; begin immediate;" + ";".join([*statements, "commit"]))
        if found.returncode == 0:
            self.committed(statements)
            return
        assert "nodoubt: this table is locked" in found.stderr or "constraint" in found.stderr.lower(), found.stderr
        self.counts["locked out"] += "nodoubt" in found.stderr

    def checkpoint(self) -> None:
        shell(self.world.path, "pragma wal_checkpoint(truncate)")

    # -- how
    def here(self, xid: Xid, statements: list[str], ending: Any) -> None:
        work = self.world.work()
        work.xid = xid
        self.world.drive(self.world.resource.begin(self.session, work))
        try:
            self.world.do(self.session, work, *statements)
            self.world.drive(ending(self.session, work))
        except Hazard:
            raise
        except (NoDoubtError, apsw.ConstraintError):
            self.world.drive(self.world.resource.rollback(self.session, work))
        assert self.session.usable

    def child(self, do: str, xid: Xid, statements: list[str]) -> None:
        point = self.dice.randrange(POINTS)
        answer = self.nursery.run(
            {"path": str(self.world.path), "attempt": xid.attempt, "do": do, "statements": statements, "kill_at": point}
        )
        assert "failed" not in answer and "Hazard" not in answer.get("error", ""), answer
        self.counts["killed"] += "killed" in answer

    # -- what must be so
    def listed(self) -> set[Xid]:
        rows = self.world.rows(self.session, "select xid from nodoubt_prepared")
        return {xid for (gid,) in rows if (xid := parse_gid(gid)) is not None and xid.cluster == CLUSTER}

    def committed(self, statements: list[str]) -> None:
        self.counts["committed"] += 1
        self.reference.execute(";".join(["begin immediate", *statements, "commit"])).fetchall()

    def check(self) -> None:
        assert contents(lambda sql: self.world.rows(self.session, sql)) == contents(self.reference.execute)
        assert self.world.rows(self.session, "pragma integrity_check") == [("ok",)]
        assert self.world.rows(self.session, "pragma foreign_key_check") == []
        locks = self.world.rows(self.session, "select distinct xid from nodoubt_locks")
        assert {parse_gid(gid) for (gid,) in locks} <= set(self.pending)
        assert self.listed() == set(self.pending)

    def play(self) -> None:
        steps = [self.stage] * 4 + [self.resolve] * 4 + [self.one_phase] * 2 + [self.foreign] * 3 + [self.checkpoint]
        for _ in range(STEPS):
            self.dice.choice(steps)()
            self.check()
        for xid in list(self.pending):
            self.resolve_one(xid, patient=True)
            self.check()
        assert self.pending == {}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: these schedules kill processes, not machines, and a flush takes long."""
    if not os.path.isdir("/dev/shm"):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="nodoubt-") as name:
        yield Path(name)


@contextlib.contextmanager
def schedule(folder: Path, nursery: Nursery, seed: int) -> Iterator[Schedule]:
    path = folder / f"file{seed}.db"
    if seed % 3 == 0:  # a rollback journal instead of a WAL
        with contextlib.closing(apsw.Connection(str(path))) as creator:
            creator.execute("create table first(a)").fetchall()
    world = World(path, "sync" if seed % 2 else "async")
    reference = apsw.Connection(str(folder / f"reference{seed}.db"))
    try:
        session = world.session(lock_wait_s=10)
        world.drive(world.resource.setup(session, "a" * 32, CLUSTER))
        world.run(session, SCHEMA)
        assert world.rows(session, "pragma journal_mode") == [("wal" if seed % 3 else "delete",)]
        world.run(session, "drop table if exists first")
        for pragma in ("foreign_keys = on", "recursive_triggers = off", "synchronous = off"):
            reference.execute(f"pragma {pragma}").fetchall()
        reference.execute(SCHEMA).fetchall()
        yield Schedule(world, reference, nursery, Dice(seed))
    finally:
        reference.close()
        world.close()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("group", range(GROUPS))
def test_no_random_schedule_loses_or_invents_anything(folder: Path, nursery: Nursery, group: int) -> None:
    totals: dict[str, int] = {}
    for number in range(group, SCHEDULES, GROUPS):
        seed = SEED * 1_000_000 + number
        with schedule(folder, nursery, seed) as one:
            try:
                one.play()
            except BaseException:
                print(f"schedule {seed}: NODOUBT_SQLITE_SCHEDULES={SCHEDULES} NODOUBT_SQLITE_SEED={SEED} [{group}]")
                raise
        for what, count in one.counts.items():
            totals[what] = totals.get(what, 0) + count
    print(totals)
    if SCHEDULES >= 10 * GROUPS:
        assert min(totals.values()) > 0, "the schedules did not try everything"
