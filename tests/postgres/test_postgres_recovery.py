"""Receipts, fences, crashes: what is found out after an answer did not come."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nodoubt.ports import Conflict, Prepared, Refused, Unclear
from nodoubt.protocol.records import Epoch, Verdict
from nodoubt.resources import postgres_sql as module
from nodoubt.resources.postgres import PostgresResource
from nodoubt.script import Script, do
from nodoubt.testing.proxy import TcpProxy
from nodoubt.testing.servers import PostgresServer
from nodoubt.xid import Xid, new_attempt

WRITE = "INSERT INTO t VALUES (1, 1)"
COLUMNS = "nodoubt.receipts (attempt, branch, verdict, epoch, alone)"


def committed(world: Any, statement: str = WRITE) -> Xid:
    """The xid of a branch that committed in one phase."""
    session = world.session()
    work = world.begun(session, None, statement)
    world.drive(world.resource.commit_alone(session, work))
    xid: Xid = work.xid
    return xid


def row(xid: Xid, verdict: str = "commit") -> str:
    return f"INSERT INTO {COLUMNS} VALUES ('{xid.attempt}', {xid.branch}, '{verdict}', 0, false)"


# ---- receipts ---------------------------------------------------------------------------------------


def test_a_receipt_is_there_only_after_the_commit_and_looking_confirms_it(world: Any) -> None:
    session, prepared = world.session(), world.prepared(WRITE)
    assert world.drive(world.resource.receipt(session, prepared.xid)) is False
    world.drive(world.resource.commit_prepared(session, prepared))
    assert world.drive(world.resource.receipt(session, prepared.xid)) is True
    assert world.drive(world.resource.receipt(session, prepared.xid)) is True
    ((_, _, verdict, _, _, confirms),) = world.receipts()
    assert (verdict, confirms) == ("commit", 2)


def test_the_receipt_of_another_branch_proves_nothing(world: Any) -> None:
    xid = committed(world)
    other = Xid(xid.cluster, xid.attempt, xid.branch + 1)
    assert world.drive(world.resource.receipt(world.session(), other)) is False


def test_a_fence_is_no_receipt(world: Any) -> None:
    xid = world.work().xid
    world.drive(world.resource.fence(world.session(), xid))
    assert world.drive(world.resource.receipt(world.session(), xid)) is False


def test_a_receipt_under_somebody_elses_lock_is_unclear_not_absent(world: Any) -> None:
    xid = committed(world)
    holder = world.session()
    world.run(holder, "BEGIN; UPDATE nodoubt.receipts SET confirms = confirms")
    assert isinstance(world.error(world.resource.receipt(world.session(), xid)), Unclear)
    world.run(holder, "ROLLBACK")
    assert world.drive(world.resource.receipt(world.session(), xid)) is True


def test_a_lost_session_leaves_the_receipt_unclear(world: Any, proxy: TcpProxy) -> None:
    xid = committed(world)
    session = world.session(proxy.url_for(world.url))
    proxy.cut_reply(after=b"UPDATE nodoubt.receipts")
    assert isinstance(world.error(world.resource.receipt(session, xid)), Unclear)


# ---- the fence --------------------------------------------------------------------------------------


def test_a_fence_where_nothing_stands_means_abort_for_good(world: Any) -> None:
    session, work = world.session(), None
    work = world.begun(session, None, WRITE)
    assert world.drive(world.resource.fence(world.session(), work.xid)) is Verdict.ABORT
    assert isinstance(world.error(world.resource.commit_alone(session, work)), Conflict)
    assert world.look("SELECT * FROM t") == []
    assert world.drive(world.resource.fence(world.session(), work.xid)) is Verdict.ABORT
    ((attempt, branch, verdict, _, alone, confirms),) = world.receipts()
    assert (attempt, branch, verdict, alone, confirms) == (work.xid.attempt, 0, "abort", True, 1)


def test_a_fence_where_the_receipt_stands_means_commit_and_confirms_it(world: Any) -> None:
    xid = committed(world)
    assert world.drive(world.resource.fence(world.session(), xid)) is Verdict.COMMIT
    assert world.receipts()[0][-1] == 1


def test_a_fence_in_the_way_of_a_branch_that_has_not_ended_is_unclear(world: Any) -> None:
    """It waits for the branch's own row, and not for ever. Fails without the lock_timeout (the test then hangs)."""
    prepared = world.prepared(WRITE)
    session = world.session()
    assert isinstance(world.error(world.resource.fence(session, prepared.xid)), Unclear)
    assert session.usable
    world.drive(world.resource.rollback_prepared(session, prepared))
    assert world.drive(world.resource.fence(session, prepared.xid)) is Verdict.ABORT


def test_two_fences_at_a_time_agree(world: Any) -> None:
    xid = world.work().xid
    calls = [world.start(world.resource.fence(session, xid)) for session in (world.session(), world.session())]
    assert [call.result(20) for call in calls] == [Verdict.ABORT, Verdict.ABORT]
    assert len(world.receipts()) == 1


def test_a_row_that_was_removed_meanwhile_makes_the_fence_start_over(world: Any) -> None:
    xid = world.work().xid
    world.look(row(xid))

    class Raced(PostgresResource):
        def _confirm(self, session: Any, xid: Xid) -> Script[Verdict | None]:
            world.look("DELETE FROM nodoubt.receipts")
            return (yield from super()._confirm(session, xid))

    assert world.drive(Raced("pg").fence(world.session(), xid)) is Verdict.ABORT


def test_a_fence_does_not_try_for_ever(world: Any) -> None:
    xid = world.work().xid
    world.look(row(xid))

    class Raced(PostgresResource):
        def _confirm(self, session: Any, xid: Xid) -> Script[Verdict | None]:
            return None
            yield

    assert isinstance(world.error(Raced("pg").fence(world.session(), xid)), Unclear)


def test_a_fence_that_is_not_allowed_is_unclear_not_refused(fresh: Any) -> None:
    """`Refused` would read as "surely not committed"."""
    fresh.look("DO $$ BEGIN CREATE ROLE plain LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    session = fresh.session(fresh.url.replace("postgres@", "plain@"))
    xid = fresh.work().xid
    for script in (fresh.resource.fence(session, xid), fresh.resource.receipt(session, xid)):
        assert isinstance(fresh.error(script), Unclear)


def test_a_fence_without_an_answer_is_unclear(world: Any, proxy: TcpProxy) -> None:
    session = world.session(proxy.url_for(world.url))
    proxy.cut_reply(after=b"INSERT INTO nodoubt.receipts")
    assert isinstance(world.error(world.resource.fence(session, world.work().xid)), Unclear)


# ---- forgetting -------------------------------------------------------------------------------------


def test_receipts_are_forgotten_by_xid_or_by_age_and_then_only_one_phase_ones(world: Any) -> None:
    session = world.session()
    two_phase, other = world.prepared("INSERT INTO t VALUES (1, 1)"), world.prepared("INSERT INTO t VALUES (2, 2)")
    for prepared in (two_phase, other):
        world.drive(world.resource.commit_prepared(session, prepared))
    committed(world, "INSERT INTO t VALUES (3, 3)")
    fenced = world.work().xid
    world.drive(world.resource.fence(session, fenced))
    assert world.drive(world.resource.forget(session, [])) == 0
    assert world.drive(world.resource.forget(session, [], older_than=1.0)) == 0
    assert len(world.receipts()) == 4
    assert world.drive(world.resource.forget(session, [two_phase.xid, world.work().xid])) == 1
    ((now,),) = world.look("SELECT extract(epoch FROM now() + interval '1 s')::float8")
    assert world.drive(world.resource.forget(session, [], older_than=now)) == 2
    assert [attempt for attempt, *_ in world.receipts()] == [other.xid.attempt], "its end record decides, not its age"
    assert world.drive(world.resource.forget(session, [], older_than=now, below=other.xid.attempt)) == 0
    assert world.drive(world.resource.forget(session, [], below=new_attempt())) == 1, "or the journal's floor"
    assert world.receipts() == []


def test_forgetting_by_age_takes_so_many_at_a_time(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FORGET_ROWS_MAX", 2)
    for number in range(5):
        committed(world, f"INSERT INTO t VALUES ({number}, 0)")
    session = world.session()
    taken = [world.drive(world.resource.forget(session, [], older_than=9e9)) for _ in range(4)]
    assert taken == [2, 2, 1, 0]


# ---- crashes ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crashing() -> Iterator[PostgresServer]:
    """A server whose log is flushed only by who waits for it, so that a crash loses all that nobody waited for."""
    with PostgresServer({"wal_writer_delay": "10s", "checkpoint_timeout": "1h"}) as server:
        yield server


@pytest.fixture
def crash(crashing: PostgresServer, new_world: Callable[[str], Any]) -> Any:
    world = new_world(crashing.url()).setup()
    world.look("CHECKPOINT")

    def now() -> None:
        crashing.kill()
        crashing.restart()

    world.crash = now
    return world


def unforced(world: Any, statement: str) -> Any:
    """Commit it without a flush; the session is still open."""
    session = world.session()
    world.run(session, f"BEGIN; SET LOCAL synchronous_commit = off; {statement}; COMMIT")
    return session


def test_a_prepared_branch_survives_the_crash_of_the_server_and_can_be_committed(crash: Any) -> None:
    prepared = crash.prepared(WRITE)
    crash.crash()
    session = crash.session()
    (listed,) = crash.drive(crash.resource.prepared(session, prepared.xid.cluster))
    assert listed.xid == prepared.xid
    assert crash.drive(crash.resource.receipt(session, prepared.xid)) is False
    crash.drive(crash.resource.commit_prepared(session, listed))
    assert crash.look("SELECT * FROM t") == [(1, 1)]
    assert crash.drive(crash.resource.receipt(session, prepared.xid)) is True


def test_what_was_acknowledged_survives_the_crash_of_the_server(crash: Any) -> None:
    alone = committed(crash)
    two_phase = crash.prepared("INSERT INTO t VALUES (2, 2)")
    crash.drive(crash.resource.commit_prepared(crash.session(), two_phase))
    fenced = crash.work().xid
    crash.drive(crash.resource.fence(crash.session(), fenced))
    crash.drive(crash.resource.witness(crash.session(), Epoch(17, "m17")))
    crash.crash()
    session = crash.session()
    assert crash.look("SELECT id FROM t ORDER BY 1") == [(1,), (2,)]
    assert crash.drive(crash.resource.receipt(session, alone)) is True
    assert crash.drive(crash.resource.receipt(session, two_phase.xid)) is True
    assert crash.drive(crash.resource.fence(session, fenced)) is Verdict.ABORT
    assert crash.drive(crash.resource.identity(session)).epoch == 17
    assert crash.drive(crash.resource.identity(session)).mark == "m17"


def test_a_branch_that_was_not_prepared_does_not_survive(crash: Any) -> None:
    session = crash.session()
    work = crash.begun(session, None, WRITE)
    crash.crash()
    assert isinstance(crash.error(crash.resource.prepare(session, work)), Unclear)
    assert crash.gids() == []
    assert crash.look("SELECT * FROM t") == []
    assert crash.drive(crash.resource.fence(crash.session(), work.xid)) is Verdict.ABORT


def test_a_row_that_can_be_seen_may_not_be_flushed(crash: Any) -> None:
    """The mutant confirms by a plain SELECT: it believes, the server crashes, and the receipt has never been."""

    class Mutant(PostgresResource):
        def receipt(self, session: Any, xid: Xid) -> Script[bool]:
            sql = f"SELECT count(*) FROM nodoubt.receipts WHERE attempt = '{xid.attempt}' AND branch = {xid.branch}"
            (reply,) = yield from do(session, "run", sql)
            return bool(reply.scalar() == 1)

    xid = crash.work().xid
    unforced(crash, row(xid))
    assert crash.drive(Mutant("pg").receipt(crash.session(), xid)) is True
    crash.crash()
    assert crash.drive(crash.resource.receipt(crash.session(), xid)) is False


def test_an_insert_that_conflicts_flushes_nothing(crash: Any) -> None:
    xid = crash.work().xid
    unforced(crash, row(xid))
    session = crash.session()
    insert = f"BEGIN; SET LOCAL synchronous_commit = on; {row(xid, 'abort')}; COMMIT"
    assert crash.error(do(session, "run", insert)).code == "23505"
    crash.run(session, "ROLLBACK")
    crash.crash()
    assert crash.receipts() == []


@pytest.mark.parametrize("verb", ["receipt", "fence"])
def test_a_confirmed_row_is_flushed(crash: Any, verb: str) -> None:
    """By an UPDATE of that very row, in another session than the one that wrote it."""
    xid = crash.work().xid
    unforced(crash, row(xid))
    crash.drive(getattr(crash.resource, verb)(crash.session(), xid))
    crash.crash()
    assert crash.drive(crash.resource.receipt(crash.session(), xid)) is True


def test_commit_prepared_flushes_under_synchronous_commit_off_and_all_that_was_logged_before(crash: Any) -> None:
    prepared = crash.prepared(WRITE)
    session = unforced(crash, "INSERT INTO t VALUES (2, 2)")
    crash.run(session, "SET synchronous_commit = off")
    crash.run(session, f"COMMIT PREPARED '{prepared.xid.gid}'")
    crash.crash()
    assert crash.look("SELECT id FROM t ORDER BY 1") == [(1,), (2,)]


def test_unforced_rows_are_lost_in_a_crash(crash: Any) -> None:
    """What makes the tests around this one mean something."""
    unforced(crash, WRITE)
    assert crash.look("SELECT id FROM t") == [(1,)]
    crash.crash()
    assert crash.look("SELECT id FROM t") == []


@pytest.mark.parametrize("end", ["prepare", "commit_prepared"])
def test_rows_that_ride_before_are_flushed_by_the_command_after_them(crash: Any, end: str) -> None:
    session, work = crash.session(), crash.work()
    riding = ("INSERT INTO t VALUES (2, 2)",)
    if end == "prepare":
        crash.drive(crash.resource.begin(session, work, before=riding))
        crash.drive(crash.resource.execute(session, work, WRITE, None))
        crash.drive(crash.resource.prepare(session, work))
    else:
        prepared = crash.prepared(WRITE)
        crash.drive(crash.resource.commit_prepared(session, prepared, before=riding))
    crash.crash()
    assert (2,) in crash.look("SELECT id FROM t")


def test_one_backends_crash_loses_an_unforced_row_and_a_commit_on_a_new_connection_succeeds(crash: Any) -> None:
    """Why rows ride within one server session only, and are forced behind a pooler."""
    prepared = crash.prepared(WRITE)
    unforced(crash, "INSERT INTO t VALUES (2, 2)")
    victim, bystander = crash.session(), crash.session()
    os.kill(victim.connection_id, signal.SIGKILL)

    def back() -> bool:
        try:
            return len(crash.gids()) == 1
        except Exception:
            return False

    crash.until(lambda: crash.fails(do(victim, "run", "SELECT 1")), "the victim's end")
    crash.until(lambda: crash.fails(do(bystander, "run", "SELECT 1")), "the restart, which ends everybody's session")
    crash.until(back, "the server to recover")
    crash.drive(crash.resource.commit_prepared(crash.session(), prepared))
    assert crash.look("SELECT id FROM t") == [(1,)]


def test_a_base_backup_brings_back_a_branch_that_was_committed_and_says_it_is_the_same_server(
    new_world: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Only the witnessed epoch tells (I15)."""
    with PostgresServer() as server:
        world = new_world(server.url()).setup()
        prepared = world.prepared(WRITE)
        before = world.drive(world.resource.server(world.session()))
        backup = Path("/tmp") / f"nodoubt-backup-{os.getpid()}-{tmp_path_factory.getbasetemp().name}-{world.style}"
        program = Path(f"/proc/{server.pid}/exe").resolve().parent / "pg_basebackup"
        try:
            subprocess.run(
                [program, "-h", server.host, "-p", str(server.port), "-U", server.user, "-D", backup, "-c", "fast"],
                check=True, capture_output=True, timeout=60,
            )  # fmt: skip
            world.drive(world.resource.commit_prepared(world.session(), prepared))
            world.drive(world.resource.witness(world.session(), Epoch(2, "m2")))
            assert world.look("SELECT * FROM t") == [(1, 1)]
            server.kill()
            owner = server.data.stat()
            shutil.rmtree(server.data)
            shutil.copytree(backup, server.data)
            for path in (server.data, *server.data.rglob("*")):
                os.chown(path, owner.st_uid, owner.st_gid)
            server.data.chmod(0o700)
            server.restart()
        finally:
            shutil.rmtree(backup, ignore_errors=True)
        session = world.session()
        (listed,) = world.drive(world.resource.prepared(session, prepared.xid.cluster))
        assert listed.xid == prepared.xid
        assert world.look("SELECT * FROM t") == []
        assert world.drive(world.resource.server(session)) == before
        assert world.drive(world.resource.identity(session)).epoch == 0


def test_a_refusal_is_never_an_unknown(world: Any) -> None:
    """The two words must not be kin: who catches one must not catch the other."""
    assert not issubclass(Refused, Unclear)
    assert not issubclass(Unclear, Refused)
    assert Prepared(world.work().xid).age_s is None
