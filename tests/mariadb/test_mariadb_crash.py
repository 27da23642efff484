"""What is left after kill -9 of the server, or of the client."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pymysql
import pytest

import nodoubt
from kit import QUICK, Database
from nodoubt import Coordinator
from nodoubt.ports import Prepared, Refused, Unclear, UnknownXid
from nodoubt.protocol.records import Verdict
from nodoubt.resources import mariadb_finishing
from nodoubt.resources.mariadb import MariaDBResource
from nodoubt.resources.mariadb_finishing import STARTED_TOLERANCE_S
from nodoubt.script import Script
from nodoubt.testing.servers import MariaDBServer
from nodoubt.url import parse_url
from nodoubt.xid import XaXid
from traps.scenes import MOVED, balances, context, recovered, resource_of

COM_RESET_CONNECTION = 0x1F
CRASHES_MAX = 5


@pytest.fixture
def world(own_server: MariaDBServer, new_world: Callable[..., Any]) -> Any:
    return new_world(own_server.url()).setup()


def crash(server: MariaDBServer) -> None:
    server.kill()
    server.restart()


def test_a_prepared_branch_survives_the_server_and_work_not_prepared_does_not(
    world: Any, own_server: MariaDBServer
) -> None:
    holder, active, idle = world.session(), world.session(), world.session()
    kept = [
        world.prepared("INSERT INTO t VALUES (1, 1)"),
        world.prepared("INSERT INTO t VALUES (2, 2)", session=holder),
    ]
    world.begun(active, "INSERT INTO t VALUES (3, 3)")
    ended = world.begun(idle, "INSERT INTO t VALUES (4, 4)")
    world.run(idle, f"XA END {ended.handle.sql}")
    crash(own_server)
    assert {one.xid for one in world.listed()} == {one.xid for one in kept}
    for prepared in kept:
        world.finish("commit", prepared)
    assert world.values() == [(1, 1), (2, 2)]
    assert {row[:3] for row in world.receipts()} == {(one.xid.attempt, 0, "commit") for one in kept}


def test_what_was_acknowledged_is_there_after_a_crash(world: Any, own_server: MariaDBServer) -> None:
    """One-phase commits, XA COMMITs, fences and confirmations."""
    alone = []
    session = world.session()
    for number in range(4):
        work = world.begun(session, f"INSERT INTO t VALUES ({number}, 1)")
        world.drive(world.resource.commit_alone(session, work))
        alone.append(work.xid)
        prepared = world.prepared(f"INSERT INTO t VALUES ({number + 10}, 1)", session=session)
        world.finish("commit", prepared, session)
        alone.append(prepared.xid)
    fenced = world.work().xid
    world.drive(world.resource.fence(session, fenced))
    crash(own_server)
    assert len(world.values()) == 8
    fresh = world.session()
    assert all(world.drive(world.resource.receipt(fresh, xid)) for xid in alone)
    assert world.drive(world.resource.fence(fresh, fenced)) is Verdict.ABORT


def test_an_acknowledged_rollback_may_be_forgotten_in_a_crash_and_the_next_sweep_rolls_back_again(
    world: Any, own_server: MariaDBServer
) -> None:
    """XA ROLLBACK is not durable, so sweeps never stop (I11). Its log is written by whatever is flushed next."""
    forgotten = 0
    for _ in range(CRASHES_MAX):
        branches = [world.prepared(f"INSERT INTO t VALUES ({number}, 1)") for number in range(6)]
        session = world.session()
        for prepared in branches:
            world.finish("rollback", prepared, session)
        crash(own_server)
        back = world.listed()
        assert {one.xid for one in back} <= {one.xid for one in branches}
        for prepared in back:
            world.finish("rollback", prepared)
        assert world.listed() == []
        assert world.values() == []
        assert world.receipts() == []
        forgotten += len(back)
        if forgotten:
            break
    # Never forgotten in so many crashes: then a release has made it durable, and FACTS is to be corrected.
    assert forgotten


def test_no_session_of_the_run_before_is_looked_for(world: Any, own_server: MariaDBServer) -> None:
    prepared = world.prepared("INSERT INTO t VALUES (1, 1)")
    world.until(lambda: _uptime(world) > STARTED_TOLERANCE_S, "the first run to last longer than the tolerance")
    crash(own_server)
    strangers = [world.session()]
    while strangers[-1].connection_id < prepared.handle.connection:
        strangers.append(world.session())
    innocent = next((one for one in strangers if one.connection_id == prepared.handle.connection), None)
    assert innocent is not None
    assert world.drive(world.resource.free(world.session(), prepared)) is False
    assert world.run(innocent, "SELECT 1")[0].scalar() == 1
    world.finish("commit", prepared)


def _uptime(world: Any) -> int:
    return int(world.look("SHOW GLOBAL STATUS LIKE 'Uptime'")[0][1])


def test_a_client_killed_with_a_prepared_branch_leaves_it_to_others(world: Any) -> None:
    """kill -9: the kernel closes its socket, the server lets go of the branch."""
    program = (
        "import sys, time\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from nodoubt.drivers.pymysql import connect\n"
        "from nodoubt.ports import Work\n"
        "from nodoubt.resources.mariadb import MariaDBResource\n"
        "from nodoubt.script import Watch, drive\n"
        "from nodoubt.url import parse_url\n"
        "from nodoubt.xid import Xid\n"
        "url, cluster, attempt = sys.argv[1:]\n"
        "session, resource = connect(parse_url(url)), MariaDBResource('maria', parse_url(url).database)\n"
        "work, threads = Work(Xid(cluster, attempt, 0), 1), ThreadPoolExecutor(1)\n"
        "go = lambda script: drive(script, executor=threads, watch=Watch())\n"
        "go(resource.begin(session, work))\n"
        "go(resource.execute(session, work, 'INSERT INTO t VALUES (1, 1)', None))\n"
        "go(resource.prepare(session, work))\n"
        "print('prepared', flush=True)\n"
        "time.sleep(60)\n"
    )
    xid = world.work().xid
    arguments = [sys.executable, "-c", program, world.url, world.cluster, xid.attempt]
    environment = {**os.environ, "PYTHONPATH": str(Path(nodoubt.__file__).parents[1])}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "prepared\n"
        (prepared,) = world.listed()
        assert prepared.xid == xid
        client.kill()
    world.finish("commit", prepared)
    assert world.values() == [(1, 1)]


def a_branch_that_nobody_can_end(world: Any) -> Prepared:
    """Its XA COMMIT answers OK and does nothing: as when it meets the end of the session that has prepared it."""
    session = world.session()
    prepared = world.prepared("INSERT INTO t VALUES (1, 1)", session=session)
    world.finish("rollback", prepared, session)
    url, xid = parse_url(world.url), world.work().xid
    handle = XaXid(xid, 1, 1)
    raw: Any = pymysql.connect(
        host=url.host, port=url.port or 3306, user=url.user, password=url.password, database=url.database,
        ssl_disabled=True, autocommit=True,
    )  # fmt: skip
    receipt = world.resource._receipt_row(xid, Verdict.COMMIT, alone=False, epoch=1)
    with raw.cursor() as cursor:
        sql = handle.sql
        for statement in (
            f"XA START {sql}",
            "INSERT INTO t VALUES (7, 7)",
            receipt,
            f"XA END {sql}",
            f"XA PREPARE {sql}",
        ):
            cursor.execute(statement)
    raw._execute_command(COM_RESET_CONNECTION, b"")
    raw._read_ok_packet()
    world.raw = raw  # it stays connected
    return Prepared(xid, None, handle)


def test_the_reset_trap_is_real(world: Any, own_server: MariaDBServer) -> None:
    """The fact behind "never reset": XA COMMIT elsewhere answers OK, commits nothing, and the branch comes back."""
    prepared = a_branch_that_nobody_can_end(world)
    world.run(world.session(), f"XA COMMIT {prepared.handle.sql}")
    assert world.values() == []
    assert prepared.xid not in {one.xid for one in world.listed()}
    world.raw.close()
    crash(own_server)
    (again,) = [one for one in world.listed() if one.xid == prepared.xid]
    world.finish("commit", again)
    assert world.values() == [(7, 7)]


def test_an_ok_to_an_xa_commit_that_has_committed_nothing_is_no_success(
    world: Any, own_server: MariaDBServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the record stays open, until the branch comes back: by itself it would be half a transaction for good."""
    prepared = a_branch_that_nobody_can_end(world)
    with pytest.raises(UnknownXid, match="nothing was committed"):
        world.drive(world.resource.commit_prepared(world.session(), prepared))
    assert world.values() == []
    world.raw.close()
    crash(own_server)
    (again,) = [one for one in world.listed() if one.xid == prepared.xid]
    world.finish("commit", again)
    assert world.values() == [(7, 7)]
    world.look("DELETE FROM t")

    # The mutant: OK is OK.
    monkeypatch.setattr(mariadb_finishing, "require_done", lambda *_: None)
    prepared = a_branch_that_nobody_can_end(world)
    world.drive(world.resource.commit_prepared(world.session(), prepared))
    assert world.values() == [], "it said that it is committed"
    world.raw.close()
    crash(own_server)
    (again,) = [one for one in world.listed() if one.xid == prepared.xid]
    world.finish("commit", again)


class _PreparedInAnotherRun(MariaDBResource):
    """What it prepares is said to be of an earlier run of the server, so that nobody asks for the session that has."""

    def begin(self, session: Any, work: Any, **options: Any) -> Script[None]:
        session.server_started -= 3600
        return super().begin(session, work, **options)


def test_a_branch_whose_xa_commit_did_nothing_stays_open_and_is_committed_after_the_restart(
    own_server: MariaDBServer, tmp_path: Path
) -> None:
    """From end to end: nobody takes it for done, and nobody for lost."""
    files = [Database("a", f"sqlite:///{tmp_path}/a.db"), Database("b", own_server.url())]
    urls = {database.name: database.url for database in files}
    for database in files:
        database.create()
    settings = replace(QUICK, linger_s=600.0, apply_s=1)
    with Coordinator(urls, settings=settings, recovery=False) as begins:
        begins.setup()
        with begins.begin_distributed("order") as tx, resource_of(begins, "b", _PreparedInAnotherRun):
            tx["a"].execute("update accounts set balance = balance - 30 where id = 0")
            tx["b"].execute("update accounts set balance = balance + 30 where id = 0")
        (kept,) = context(begins).lingering.values()
        kept.session._connection._execute_command(COM_RESET_CONNECTION, b"")
        kept.session._connection._read_ok_packet()

        with Coordinator(urls, settings=settings, recovery=False) as db:

            def is_open() -> bool:
                return not db.commit_distributed("order").complete and not db.quarantined()

            assert is_open() and balances(files) == [70, 100]
            assert not files[1].prepared(), "this is the trap: the server lists it no more"
            for _ in range(2):
                report = db.recover(grace=0)
                assert not report.clean and not report.committed and not report.ended and not report.quarantined
            assert is_open() and files[1].locked()

            crash(own_server)
            assert len(files[1].prepared()) == 1
            assert recovered(db, files) and balances(files) == MOVED
            assert db.commit_distributed("order").complete


def test_a_branch_is_not_touched_while_the_session_that_prepared_it_is_there(world: Any) -> None:
    """Nor in the moment when that ends: an XA COMMIT that meets it would be the trap."""
    session = world.session()
    prepared = world.prepared("INSERT INTO t VALUES (1, 1)", session=session)
    for verb in (world.resource.commit_prepared, world.resource.rollback_prepared):
        with pytest.raises(UnknownXid, match="has not ended"):
            world.drive(verb(world.session(), prepared))
    world.finish("commit", prepared, session)
    assert world.values() == [(1, 1)]


def test_a_server_that_goes_read_only_promises_nothing_and_forgets_nothing(world: Any) -> None:
    """1290. Even XA ROLLBACK and XA COMMIT are refused then; accounts with SUPER would pass, so that this has none."""
    world.look(f"CREATE OR REPLACE USER meek@'%' IDENTIFIED BY 'x'; GRANT ALL ON {world.database}.* TO meek@'%'")
    url = world.url.replace("nodoubt:nodoubt@", "meek:x@")
    session, other = world.session(url), world.session(url)
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)")
    prepared = world.prepared("INSERT INTO t VALUES (2, 2)", session=other)
    world.drive(world.resource.detach(other))
    world.until_gone(other)
    world.look("SET GLOBAL read_only = 1")
    try:
        with pytest.raises(Unclear, match="1290"):  # it could not even be rolled back; the session is ended, which does
            world.drive(world.resource.prepare(session, work))
        assert not session.usable
        for verb in (world.resource.commit_prepared, world.resource.rollback_prepared):
            with pytest.raises(Refused, match="1290"):
                world.drive(verb(world.session(url), prepared))
        world.until_gone(session)
    finally:
        world.look("SET GLOBAL read_only = 0")
    assert world.listed() == [prepared]
    world.finish("commit", prepared)
    assert world.values() == [(2, 2)]


def test_a_crash_in_phase_two_leaves_the_branch_prepared_or_committed(world: Any, own_server: MariaDBServer) -> None:
    prepared = world.prepared("INSERT INTO t VALUES (1, 1)")
    session = world.session()
    call = world.start(world.resource.commit_prepared(session, prepared))
    own_server.kill()
    call.exception(30)
    own_server.restart()
    try:
        world.finish("commit", prepared)
    except UnknownXid:
        assert world.drive(world.resource.receipt(world.session(), prepared.xid)) is True
    assert world.values() == [(1, 1)]
