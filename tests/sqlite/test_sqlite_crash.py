"""What is left after a real `kill -9`, a failed flush, or a full disk, at each point of prepare and of phase two."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from typing import Any

import pytest

from nodoubt.ports import Prepared, Refused
from nodoubt.xid import Xid
from sqlite.world import CHILD, CLUSTER, ENVIRONMENT, Nursery, World

ATTEMPT = "a" * 32
XID = Xid(CLUSTER, ATTEMPT, 0)
GIVEN = (
    "create table t(id integer primary key autoincrement, a unique); insert into t values (1, 'x'), (2, 'y');"
    "create table w(k text primary key, v) without rowid; insert into w values ('a', 1);"
    "create table nodoubt_decisions(attempt text primary key, verdict text not null)"
)
WORK = [
    "update t set a = 'swap' where id = 1",
    "insert into t(a) values ('z')",
    "delete from w",
    "insert into w values ('b', 2)",
]
RIDER = f"INSERT INTO main.nodoubt_decisions VALUES ('{ATTEMPT}', 'commit')"
BEFORE = ([(1, "x"), (2, "y")], [("a", 1)])
AFTER = ([(1, "swap"), (2, "y"), (3, "z")], [("b", 2)])
POINTS_MAX = 200

pytestmark = pytest.mark.parametrize("style", ["sync"], indirect=True)  # the children are sync; see the other tests


@pytest.fixture
def session(world: World) -> Any:
    session = world.session(lock_wait_s=5)
    world.run(session, GIVEN)
    return session


def job(world: World, do: str, **more: Any) -> dict[str, Any]:
    return {"path": str(world.path), "attempt": ATTEMPT, "do": do, "statements": WORK, **more}


State = tuple[Any, list[Xid], int, int]


def state(world: World, session: Any) -> State:
    """Rows, what is prepared, receipts, riders."""
    rows = (world.rows(session, "select id, a from t order by 1"), world.rows(session, "select * from w"))
    counts = [world.rows(session, f"select count(*) from nodoubt_{name}")[0][0] for name in ("receipts", "decisions")]
    assert world.rows(session, "pragma integrity_check") == [("ok",)]
    return rows, world.listed(session), counts[0], counts[1]


NOTHING: State = (BEFORE, [], 0, 0)


def reset(world: World, session: Any) -> None:
    world.run(
        session,
        "delete from nodoubt_prepared; delete from nodoubt_locks; delete from nodoubt_receipts;"
        "delete from nodoubt_decisions; delete from t; delete from w;"
        "insert into t values (1, 'x'), (2, 'y'); insert into w values ('a', 1);"
        "update sqlite_sequence set seq = 2",
    )
    for (name,) in world.rows(session, "select name from sqlite_schema where name glob 'nodoubt_guard*'"):
        world.run(session, f"drop trigger {name}")


def test_a_prepare_killed_at_any_statement_leaves_nothing_or_a_branch_that_commits(
    world: World, session: Any, nursery: Nursery
) -> None:
    """The promise is the COMMIT: nothing before it, all of it after."""
    promised = (BEFORE, [XID], 0, 1)
    seen = []
    answer: dict[str, Any] = {}
    for point in range(POINTS_MAX):
        answer = nursery.run(job(world, "prepare", kill_at=point, riders=[RIDER]))
        found = state(world, session)
        assert found in (NOTHING, promised), f"killed before statement {point}: {found}"
        seen.append(found == promised)
        if found == promised:
            world.commit(session, Prepared(XID))
            assert state(world, session) == (AFTER, [], 1, 1)
        reset(world, session)
        if "killed" not in answer:
            break
    point = len(seen) - 1
    assert seen == [False] * (point - 1) + [True, True], "only a child that came past the COMMIT has promised"
    assert answer["spared"] == point - 1, "the last point was behind the last statement"
    assert point > 20, "there were statements to be killed at"


@pytest.mark.parametrize("verb", ["commit", "rollback"])
def test_a_phase_two_killed_at_any_statement_leaves_the_branch_prepared_or_ended(
    world: World, session: Any, nursery: Nursery, verb: str
) -> None:
    promised, ended = (BEFORE, [XID], 0, 0), (AFTER, [], 1, 1) if verb == "commit" else NOTHING
    riders = [RIDER] if verb == "commit" else []
    found = promised
    for point in range(POINTS_MAX):
        assert "error" not in nursery.run(job(world, "prepare"))
        answer = nursery.run(job(world, verb, kill_at=point, riders=riders))
        found = state(world, session)
        assert found in (promised, ended), f"killed before statement {point}: {found}"
        if "killed" not in answer:
            break
        if found == promised:
            again = nursery.run(job(world, verb, riders=riders))
            assert "error" not in again, "anybody can do it again"
            assert state(world, session) == ended
        else:
            assert "UnknownXid" in nursery.run(job(world, verb))["error"]
            assert world.drive(world.resource.receipt(session, XID)) is (verb == "commit")
        reset(world, session)
    assert found == ended and point > 4


def test_a_one_phase_commit_killed_at_any_statement_is_told_by_its_receipt(
    world: World, session: Any, nursery: Nursery
) -> None:
    found = NOTHING
    for point in range(POINTS_MAX):
        answer = nursery.run(job(world, "alone", kill_at=point))
        found = state(world, session)
        assert found in (NOTHING, (AFTER, [], 1, 0))
        settled = world.drive(world.resource.fence(session, XID))
        assert settled == ("commit" if found != NOTHING else "abort")
        reset(world, session)
        if "killed" not in answer:
            break
    assert found != NOTHING and point >= 4


# ---- with strace between the process and the kernel


def traced(world: World, do: str, *options: str, **more: Any) -> tuple[dict[str, Any] | None, str]:
    """Run a child under strace. Its answer (None if it was killed), and what strace wrote."""
    log = world.path.with_name("strace.log")
    strace = ["strace", "-f", "--seccomp-bpf", "-y", "-o", str(log), *options]
    command = [*strace, *CHILD, json.dumps(job(world, do, **more))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT)
    assert done.returncode in (0, -signal.SIGKILL, 128 + signal.SIGKILL), done.stderr
    return (json.loads(done.stdout) if done.returncode == 0 else None), log.read_text()


FLUSHES = "trace=fsync,fdatasync"


def flushes(log: str) -> int:
    """Flushes of the database's files, before the connection was closed (closing it checkpoints)."""
    return len(re.findall(r"f(?:data)?sync\(\d+<[^>]*file\.db[^>]*>\) = 0", log))


def test_prepare_and_commit_cost_one_flush_each(world: World, session: Any) -> None:
    """The session of the test stays open, so no checkpoint flushes as the children close theirs."""
    world.commit(session, world.stage(session, "delete from t where 0"))  # the header of a new WAL is flushed once
    answer, log = traced(world, "prepare", "-e", FLUSHES)
    assert answer is not None and "error" not in answer
    assert flushes(log) == 1
    answer, log = traced(world, "commit", "-e", FLUSHES)
    assert answer is not None and "error" not in answer
    assert flushes(log) == 1
    assert state(world, session) == (AFTER, [], 2, 0)


def test_to_change_a_row_costs_seven_pages_whatever_indexes_there_are(world: World, session: Any) -> None:
    """By prepare the record, its lock, and the row's page, which is taken back; by commit these and the receipt."""
    world.run(session, "create table many(a primary key, b, c); create index other on many(a, b)")
    world.run(session, "insert into many values (1, 1, 1)")
    world.commit(session, world.stage(session, "update many set c = 2"))  # with its guards, which come once
    before = written(world)
    prepared = world.stage(session, "update many set c = 3")
    assert written(world) - before == 3
    world.commit(session, prepared)
    assert written(world) - before == 7


def written(world: World) -> int:
    """Pages in the WAL."""
    header, frame = 32, 24 + 4096
    return (world.path.with_name(f"{world.path.name}-wal").stat().st_size - header) // frame


def test_a_one_phase_commit_costs_one_flush_and_a_reader_none(world: World, session: Any) -> None:
    world.run(session, "insert into w values ('warm', 0); delete from w where k = 'warm'")
    answer, log = traced(world, "alone", "-e", FLUSHES)
    assert answer is not None and "error" not in answer and flushes(log) == 1
    answer, log = traced(world, "alone", "-e", FLUSHES, statements=[], attempt="0" * 31 + "2")
    assert flushes(log) == 1, "its receipt"


@pytest.mark.parametrize("do", ["prepare", "commit", "alone"])
def test_a_flush_that_fails_is_no_answer_and_ends_the_session(world: World, session: Any, do: str) -> None:
    """A failed fsync may have written; the kernel forgets it, and trying again would succeed and mean nothing."""
    world.run(session, "insert into w values ('warm', 0); delete from w where k = 'warm'")
    if do == "commit":
        traced(world, "prepare", "-e", FLUSHES)
    answer, _ = traced(world, do, "-e", FLUSHES, "-e", "inject=fsync,fdatasync:error=EIO")
    assert answer is not None
    assert answer["error"].startswith("Unclear: ")
    assert not answer["usable"]
    # Nobody has crashed, so the WAL's index does not show what was not flushed. The next writer goes over it.
    done = {"prepare": NOTHING, "commit": (BEFORE, [XID], 0, 0), "alone": NOTHING}[do]
    assert state(world, session) == done
    if do == "commit":
        world.commit(session, Prepared(XID))
        assert state(world, session) == (AFTER, [], 1, 0)


@pytest.mark.parametrize("do", ["prepare", "commit", "alone"])
def test_a_disk_that_fills_up_inside_the_commit_is_no_answer(world: World, session: Any, do: str) -> None:
    """The frame that commits may be written by then. Called a refusal, it could come to life after a crash."""
    world.run(session, "insert into w values ('warm', 0); delete from w where k = 'warm'")
    if do == "commit":
        traced(world, "prepare", "-e", FLUSHES)
    for when in (1, 3):
        fault = f"inject=pwrite64:error=ENOSPC:when={when}+"
        answer, _ = traced(world, do, "-e", "trace=pwrite64", "-e", fault)
        assert answer is not None
        assert answer["error"].startswith("Unclear: ")
        assert not answer["usable"]
        assert state(world, session) == ((BEFORE, [XID], 0, 0) if do == "commit" else NOTHING)


@pytest.mark.parametrize("do", ["prepare", "commit", "alone"])
def test_a_kill_at_any_write_inside_the_commit_leaves_one_of_two_states(world: World, session: Any, do: str) -> None:
    """Inside SQLite's COMMIT, between the frames and the flush."""
    before = {"prepare": NOTHING, "commit": (BEFORE, [XID], 0, 0), "alone": NOTHING}[do]
    after = {"prepare": (BEFORE, [XID], 0, 0), "commit": (AFTER, [], 1, 0), "alone": (AFTER, [], 1, 0)}[do]
    for call, when in (("pwrite64", 2), ("pwrite64", 5), ("pwrite64", 9), ("fsync,fdatasync", 1)):
        reset(world, session)
        if do == "commit":
            world.run(session, "select 1")
            traced(world, "prepare", "-e", FLUSHES)
        answer, _ = traced(world, do, "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={when}")
        found = state(world, session)
        assert found in (before, after), f"killed at {call} {when}: {found}"
        if answer is not None:
            assert found == after
        world.ask(session, "run", "begin immediate; rollback")  # and no lock is left


# ---- no room


def fill(session: Any, world: World) -> None:
    """From here on the file cannot grow by a page: SQLITE_FULL, as on a full disk."""
    world.run(session, "pragma max_page_count = 1")


def test_a_prepare_without_room_is_refused_and_leaves_a_clean_session(world: World, session: Any) -> None:
    world.commit(session, world.stage(session, "insert into t values (10, 'guards are there now')"))
    work = world.begin(session)
    world.do(session, work, "update t set a = hex(zeroblob(500)) where id = 1", "update w set v = 3")
    world.ask(session, "call", lambda connection: connection.unwatch())
    world.ask(session, "call", lambda connection: connection.query("pragma max_page_count = 1"))
    big = "INSERT INTO main.nodoubt_decisions VALUES (zeroblob(100000), 'commit')"
    with pytest.raises(Refused, match="full") as caught:
        world.drive(world.resource.prepare(session, work, riders=(big,)))
    assert caught.value.retry
    assert session.usable
    assert world.listed(session) == []
    world.run(session, "pragma max_page_count = 100000")
    world.commit(session, world.stage(session, "update w set v = 3"))


def test_work_without_room_dooms_the_branch(world: World, session: Any) -> None:
    """SQLite rolls the whole transaction back by itself; what came next would be committed alone."""
    import apsw

    fill(session, world)
    work = world.begin(session)
    with pytest.raises(apsw.FullError):
        world.do(session, work, "insert into w values ('big', zeroblob(1000000))")
    with pytest.raises(Refused):
        world.drive(world.resource.prepare(session, work))
    world.drive(world.resource.rollback(session, work))
    assert session.usable


def test_a_commit_without_room_keeps_the_branch_prepared_and_may_be_tried_again(world: World, session: Any) -> None:
    world.run(session, "create index more on w(v)")  # its record gives back what a row takes, and that is not enough
    prepared = world.stage(session, "insert into w values ('big', zeroblob(1000000))")
    fill(session, world)
    for _ in range(2):
        with pytest.raises(Refused, match="full") as caught:
            world.commit(session, prepared)
        assert caught.value.retry
        assert world.listed(session) == [prepared.xid]
        assert session.usable
    world.run(session, "pragma max_page_count = 100000")
    world.commit(session, prepared)
    assert world.rows(session, "select length(v) from w where k = 'big'") == [(1000000,)]


def test_a_rollback_without_room_works(world: World, session: Any) -> None:
    prepared = world.stage(session, "insert into w values ('big', zeroblob(1000000))")
    fill(session, world)
    world.rollback(session, prepared)
    assert state(world, session) == NOTHING
