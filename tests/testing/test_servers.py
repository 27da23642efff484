"""The test servers do what other tests rely on: crash for real, keep what was flushed, leave nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest

from nodoubt.testing import machine, servers
from nodoubt.testing.processes import Guard, descendants, kill_tree, wait_for
from nodoubt.testing.servers import MariaDBServer, PostgresServer, Server, ServerError, ServerNotInstalled
from nodoubt.url import parse_url


def connect(url: str) -> Any:
    """A driver's own connection: these tests test the ground that ours will stand on."""
    at = parse_url(url)
    if at.kind == "postgres":
        return psycopg.connect(at.secret(), connect_timeout=10)
    return pymysql.connect(
        host=at.host, port=at.port or 0, user=at.user, password=at.password, database=at.database, connect_timeout=10
    )


def autocommit(connection: Any) -> None:
    """Without this MariaDB answers XA COMMIT with 1400 XAER_OUTSIDE, and PostgreSQL refuses COMMIT PREPARED."""
    if isinstance(connection, psycopg.Connection):
        connection.autocommit = True
    else:
        connection.autocommit(True)


def query(url: str, *statements: str) -> list[tuple[Any, ...]]:
    """Run the statements, commit, and return the last one's rows."""
    with closing(connect(url)) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        rows = list(cursor.fetchall()) if cursor.description else []
        connection.commit()
        return rows


@pytest.fixture(scope="module", params=[PostgresServer, MariaDBServer], ids=["postgres", "mariadb"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    kind: type[Server] = request.param
    with kind() as running:
        yield running


def alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and ") Z" not in state.read_text()


def test_each_url_is_a_database_of_its_own(server: Server) -> None:
    one, other = server.url(), server.url()
    query(one, "CREATE TABLE t (x int)")
    query(other, "CREATE TABLE t (x int)")
    query(one, "INSERT INTO t VALUES (1)")
    assert query(one, "SELECT count(*) FROM t") == [(1,)]
    assert query(other, "SELECT count(*) FROM t") == [(0,)]


def test_a_named_database_is_made_once(server: Server) -> None:
    query(server.url("orders"), "CREATE TABLE t (x int)")
    assert query(server.url("orders"), "SELECT count(*) FROM t") == [(0,)]


def test_those_that_have_no_name_of_their_own_go_all_at_once(server: Server) -> None:
    """Whoever is still connected; what was made under a name stays."""
    fresh, named = [server.url(), server.url()], server.url("kept")
    query(named, "CREATE TABLE t (x int)")
    with closing(connect(fresh[0])):
        server.drop_fresh()
    for url in fresh:
        with pytest.raises((psycopg.OperationalError, pymysql.OperationalError)):
            connect(url)
    assert query(named, "SELECT count(*) FROM t") == [(0,)]
    server.drop(named.rpartition("/")[2])
    server.drop_fresh()


def test_a_database_name_that_would_need_quoting_is_refused(server: Server) -> None:
    with pytest.raises(ServerError, match="letters, digits and underscores"):
        server.url('x"; DROP DATABASE postgres; --')


def test_committed_data_survive_a_kill_and_open_work_does_not(server: Server) -> None:
    url, port = server.url(), server.port
    query(url, "CREATE TABLE t (x int)", "INSERT INTO t VALUES (1)")
    with closing(connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO t VALUES (2)")
        server.kill()
        assert not server.running
        with pytest.raises((psycopg.OperationalError, pymysql.OperationalError)):
            connection.commit()
    with pytest.raises((psycopg.OperationalError, pymysql.OperationalError)):
        connect(url)
    server.restart()
    assert server.port == port
    assert query(url, "SELECT x FROM t") == [(1,)]


def test_a_prepared_branch_survives_a_kill(server: Server) -> None:
    url = server.url()
    query(url, "CREATE TABLE t (x int)")
    connection = connect(url)
    with closing(connection), connection.cursor() as cursor:
        autocommit(connection)
        if isinstance(server, PostgresServer):
            work = ["BEGIN", "INSERT INTO t VALUES (7)", "PREPARE TRANSACTION 'b1'"]
            listed, finish = "SELECT gid FROM pg_prepared_xacts", "COMMIT PREPARED 'b1'"
        else:
            work = ["XA START 'b1'", "INSERT INTO t VALUES (7)", "XA END 'b1'", "XA PREPARE 'b1'"]
            listed, finish = "XA RECOVER", "XA COMMIT 'b1'"
        for statement in work:
            cursor.execute(statement)
        server.kill()
    server.restart()
    assert query(url, listed)[0][-1] in ("b1", b"b1")
    assert query(url, "SELECT x FROM t") == []
    with closing(connect(url)) as connection, connection.cursor() as cursor:
        autocommit(connection)
        cursor.execute(finish)
    assert query(url, "SELECT x FROM t") == [(7,)]


def test_what_is_left_prepared_is_rolled_back_whoever_left_it_and_whatever_holds_it() -> None:
    # MariaDB: a live session holds its branch, and XA ROLLBACK by another is refused. Fails without the restart.
    with PostgresServer() as one, MariaDBServer() as other:
        with closing(connect(one.url())) as left, left.cursor() as cursor:
            autocommit(left)
            for statement in ("BEGIN", "CREATE TABLE t (x int)", "PREPARE TRANSACTION 'it''s'"):
                cursor.execute(statement)
            assert [one.roll_back_prepared(), one.roll_back_prepared()] == [1, 0]
        url = other.url()
        query(url, "CREATE TABLE t (x int) ENGINE=InnoDB")
        with closing(connect(url)) as left, left.cursor() as cursor:
            autocommit(left)
            xid = "X'ff00c3',X'09',7"
            for statement in (f"XA START {xid}", "INSERT INTO t VALUES (7)", f"XA END {xid}", f"XA PREPARE {xid}"):
                cursor.execute(statement)
            assert [other.roll_back_prepared(), other.roll_back_prepared()] == [1, 0]


def test_a_database_is_made_even_while_the_server_recovers_from_a_backends_crash(postgres: PostgresServer) -> None:
    for _ in range(3):
        with closing(connect(postgres.url())) as connection:
            os.kill(connection.info.backend_pid, signal.SIGKILL)
            assert query(postgres.url(), "SELECT 1") == [(1,)]


def test_kill_leaves_no_process_of_the_server(server: Server) -> None:
    everyone = [server.pid, *descendants(server.pid)]
    if isinstance(server, PostgresServer):
        assert len(everyone) > 3  # the postmaster alone is not the server
    server.kill()
    assert [pid for pid in everyone if alive(pid)] == []
    server.restart()


def test_a_killed_server_gets_no_chance_to_end_its_sessions_in_good_order(postgres: PostgresServer) -> None:
    # A postmaster that sees a backend die says so in the log, and so do backends that see the postmaster die:
    # it would be a shutdown of sorts, not a crash. Fails when kill_tree does not stop the tree first.
    with closing(connect(postgres.url())):
        before = len(postgres.log(10_000))
        postgres.kill()
        assert postgres.log(10_000)[before:].strip() == ""
    postgres.restart()


def test_restart_without_a_kill_is_an_orderly_shutdown(server: Server) -> None:
    url = server.url()
    query(url, "CREATE TABLE t (x int)", "INSERT INTO t VALUES (1)")
    before = server.pid
    server.restart()
    assert server.pid != before
    assert query(url, "SELECT x FROM t") == [(1,)]


def test_a_frozen_server_does_not_answer_and_a_thawed_one_goes_on(server: Server) -> None:
    ask_for_tls = struct.pack("!ii", 8, 80877103) if isinstance(server, PostgresServer) else b""  # MariaDB greets
    server.freeze()
    assert server.running
    for pid in (server.pid, *descendants(server.pid)):
        assert ") T" in Path(f"/proc/{pid}/stat").read_text()
    with socket.create_connection((server.host, server.port)) as client:
        client.sendall(ask_for_tls)
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(1)
        server.thaw()
        client.settimeout(30)
        assert len(client.recv(1)) == 1


def test_a_frozen_server_can_be_killed_and_restarted(server: Server) -> None:
    url = server.url()
    server.freeze()
    server.kill()
    server.restart()
    assert query(url, "SELECT 1") == [(1,)]


def test_settings_given_override_the_defaults_and_can_change_at_a_restart() -> None:
    with PostgresServer({"max_prepared_transactions": 3, "application_name": "it's"}) as server:
        url = server.url()
        assert query(url, "SHOW max_prepared_transactions") == [("3",)]
        assert query(url, "SHOW fsync") == [("on",)]
        server.settings["max_prepared_transactions"] = 0
        server.restart()
        assert query(url, "SHOW max_prepared_transactions") == [("0",)]
    with MariaDBServer({"innodb-lock-wait-timeout": 7}) as other:
        shown = query(other.url(), "SELECT @@innodb_lock_wait_timeout, @@innodb_flush_log_at_trx_commit, @@log_bin")
        assert shown == [(7, 1, 0)]


def test_a_server_that_cannot_start_says_why_in_its_error() -> None:
    server = PostgresServer({"max_prepared_transactions": "many"})
    with pytest.raises(ServerError, match="max_prepared_transactions"):
        server.start()
    assert not server.running


def test_a_port_that_is_taken_is_left_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    # Fails when _launch_on_free_port does not try again.
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        ports = iter([squatter.getsockname()[1], machine.free_port()])
        monkeypatch.setattr(servers, "free_port", lambda: next(ports))
        with PostgresServer() as server:
            assert server.port != squatter.getsockname()[1]


def test_a_servers_files_lie_where_it_is_told() -> None:
    with tempfile.TemporaryDirectory(prefix="nodoubt-", dir="/var/tmp") as place:
        Path(place).chmod(0o755)  # the server's account passes through it
        with PostgresServer(under=place) as server:
            assert server.directory.parent == Path(place)
            assert query(server.url(), "SELECT 1") == [(1,)]
        assert list(Path(place).iterdir()) == []


def test_files_go_to_memory_only_if_there_is_plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(machine, "MEMORY_FREE_MIN_BYTES", 0)
    assert machine.place(in_memory=True) == Path("/dev/shm")
    monkeypatch.setattr(machine, "MEMORY_FREE_MIN_BYTES", 1 << 60)
    assert machine.place(in_memory=True) == Path(tempfile.gettempdir())
    monkeypatch.setattr(machine, "MEMORY_FREE_MIN_BYTES", 0)
    assert machine.place(in_memory=False) == Path(tempfile.gettempdir())
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    assert machine.place(in_memory=True) == Path(tempfile.gettempdir())


def test_a_directory_in_which_somebody_still_writes_is_removed_once_that_has_ended(tmp_path: Path) -> None:
    """An interrupted initdb leaves the server that it has started, which goes on for a moment."""
    directory = tmp_path / "data"
    directory.mkdir()
    held = (
        "import os, sys, time\nuntil = time.monotonic() + 1\nprint(flush=True)\n"
        "while time.monotonic() < until:\n    os.makedirs(sys.argv[1] + '/base/1', exist_ok=True)"
    )
    with subprocess.Popen([sys.executable, "-c", held, str(directory)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline()
        guard = Guard(directory)
        guard.close()
    assert not directory.exists()


@pytest.mark.parametrize("kind", [PostgresServer, MariaDBServer])
def test_a_server_s_files_may_lie_where_there_are_spaces(kind: type[Server], tmp_path: Path) -> None:
    program = (
        "import sys\nfrom nodoubt.testing.servers import MariaDBServer, PostgresServer\n"
        f"with {kind.__name__}() as server:\n    print(server.url(), server.directory)"
    )
    with tempfile.TemporaryDirectory(prefix="nodoubt and ", dir="/var/tmp") as place:
        Path(place).chmod(0o755)
        environment = {**os.environ, "TMPDIR": place, "PYTHONPATH": str(Path(servers.__file__).parents[2])}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert place in done.stdout
        assert list(Path(place).iterdir()) == []


def test_stop_removes_the_directory_and_is_quiet_when_repeated() -> None:
    server = MariaDBServer().start()
    directory, pid = server.directory, server.pid
    server.stop()
    server.stop()
    assert not directory.exists()
    assert not alive(pid)


@pytest.mark.parametrize("kind", ["PostgresServer", "MariaDBServer"])
def test_a_server_ends_with_the_process_that_started_it_even_by_sigkill(kind: str) -> None:
    program = (
        f"from nodoubt.testing.servers import {kind}\nimport sys\ns = {kind}().start()\n"
        "print(s.pid, s.directory, flush=True)\nsys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(servers.__file__).parents[2])},
    )
    with owner:
        assert owner.stdout is not None
        pid, directory = owner.stdout.readline().split()
        assert alive(int(pid))
        owner.send_signal(signal.SIGKILL)
    wait_for(lambda: not alive(int(pid)), "the server to end")
    wait_for(lambda: not Path(directory).exists(), "its directory to be removed")


@pytest.mark.parametrize(
    ("find", "program"), [(machine.postgres_program, "initdb_missing"), (machine.mariadb_program, "mariadbd_missing")]
)
def test_a_missing_program_is_an_error_that_says_what_to_install(find: Callable[[str], str], program: str) -> None:
    with pytest.raises(ServerNotInstalled, match=r"apt-get install postgresql-15 mariadb-server"):
        find(program)


def test_processes_that_fork_while_they_are_killed_are_killed_too() -> None:
    # Fails when kill_tree lists the children before it has stopped their parent.
    with _forking() as process:
        kill_tree(process.pid)
        process.wait()
        marker = f"sleep 20.0{process.pid}"
        left = [p for p in Path("/proc").glob("[0-9]*/cmdline") if marker.replace(" ", "\0") in _read(p)]
        assert left == []


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


@contextmanager
def _forking() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["/bin/sh", "-c", "while :; do sleep 20.0$$ & done 2>/dev/null"])
    try:
        wait_for(lambda: len(descendants(process.pid)) > 5, "it to fork")
        yield process
    finally:
        if process.poll() is None:
            kill_tree(process.pid)
            process.wait()


def test_a_crash_takes_from_postgres_what_it_had_not_written() -> None:
    # A commit that did not wait for the log, with a log writer that comes too late.
    with PostgresServer({"wal_writer_delay": "10s"}) as server:
        url = server.url()
        query(url, "CREATE TABLE t (x int)", "INSERT INTO t VALUES (1)")
        query(url, "SET synchronous_commit = off", "INSERT INTO t VALUES (2)")
        server.kill()
        server.restart()
        assert query(url, "SELECT x FROM t") == [(1,)]


def test_a_crash_takes_from_mariadb_what_it_had_not_written() -> None:
    # A commit that does not wait for the log, which is written later. Fails in /dev/shm, where InnoDB maps its log.
    with MariaDBServer({"innodb-flush-log-at-timeout": 2700}) as server:
        url = server.url()
        query(url, "CREATE TABLE t (x int) ENGINE=InnoDB", "INSERT INTO t VALUES (1)", "COMMIT")
        for number in range(2, 12):  # a thread of InnoDB's may write the log meanwhile: not every time
            query(url, "SET GLOBAL innodb_flush_log_at_trx_commit = 0", f"INSERT INTO t VALUES ({number})")
            server.kill()
            server.restart()
            there = [x for (x,) in query(url, "SELECT x FROM t ORDER BY x")]
            assert there in ([*range(1, number)], [*range(1, number + 1)])
            if number not in there:
                return
        pytest.fail("ten crashes took nothing")


def test_a_mariadb_in_memory_is_refused_because_its_crash_would_take_nothing() -> None:
    with pytest.raises(ServerError, match="put it on a disk"):
        MariaDBServer(under="/dev/shm").start()


@pytest.mark.parametrize("kind", [PostgresServer, MariaDBServer])
def test_a_server_runs_in_the_environment_it_is_given_also_after_a_restart(kind: type[Server]) -> None:
    with kind(variables={"NODOUBT_SAYS": "hello"}) as server:
        for _ in range(2):
            assert b"NODOUBT_SAYS=hello" in Path(f"/proc/{server.pid}/environ").read_bytes().split(b"\0")
            server.kill()
            server.restart()
