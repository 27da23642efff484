"""The proxy loses exactly what it is told to lose, and the server has done exactly what the test believes."""

from __future__ import annotations

import os
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import psycopg
import pymysql
import pytest
from pymysql.constants import CLIENT

from nodoubt.errors import UsageError
from nodoubt.testing.processes import wait_for
from nodoubt.testing.proxy import BUFFER_BYTES_MAX, TcpProxy, _mariadb_reply_ended
from nodoubt.testing.servers import MariaDBServer, PostgresServer
from nodoubt.url import parse_url

TIMEOUT_S = 20.0


class EchoServer:
    """Answers each line with itself, and remembers what it was sent and how its connections ended."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.lines: list[bytes] = []
        self.ends: list[str] = []
        self.open = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.open += 1
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            try:
                for line in lines:
                    self.lines.append(line.strip())
                    connection.sendall(line)
                self.ends.append("end")
            except OSError:
                self.ends.append("reset")
        self.open -= 1


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    server = EchoServer()
    yield server
    server.listener.close()


@pytest.fixture
def proxy(echo: EchoServer) -> Iterator[TcpProxy]:
    with TcpProxy("127.0.0.1", echo.port) as running:
        yield running


@pytest.fixture
def client(proxy: TcpProxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), TIMEOUT_S) as connection:
        yield connection


def ask(client: socket.socket, line: bytes) -> bytes:
    client.sendall(line + b"\n")
    return receive(client, len(line) + 1).strip()


def receive(client: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size and (piece := client.recv(size - len(got))):
        got += piece
    return got


def test_without_faults_everything_passes_and_is_counted(proxy: TcpProxy, client: socket.socket) -> None:
    assert ask(client, b"one") == b"one"
    assert ask(client, b"two") == b"two"
    assert (proxy.round_trips, proxy.bytes_to_server, proxy.bytes_to_client) == (2, 8, 8)
    proxy.reset_counts()
    client.sendall(b"three\n")
    client.sendall(b"four\n")
    assert receive(client, 11) == b"three\nfour\n"
    assert 1 <= proxy.round_trips <= 2
    assert proxy.bytes_to_client == 11


def test_more_than_all_buffers_hold_passes_both_ways_at_once(proxy: TcpProxy, client: socket.socket) -> None:
    # Fails, by standing still, if the proxy blocks in sending to one side while the other wants to be read.
    line = b"x" * (8 * BUFFER_BYTES_MAX)
    sender = threading.Thread(target=client.sendall, args=(line + b"\n",))
    sender.start()
    assert receive(client, len(line) + 1) == line + b"\n"
    sender.join(TIMEOUT_S)


def test_an_orderly_end_reaches_the_server_as_one(echo: EchoServer, proxy: TcpProxy, client: socket.socket) -> None:
    ask(client, b"hello")
    client.close()
    wait_for(lambda: echo.ends == ["end"], "the server to see the end")
    wait_for(lambda: proxy.connections == 0, "the link to be closed")


def test_a_servers_last_words_arrive_before_its_end() -> None:
    # Fails if a link always ends with a reset.
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        TcpProxy("127.0.0.1", listener.getsockname()[1]) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), TIMEOUT_S) as client,
    ):
        server, _ = listener.accept()
        server.sendall(b"FATAL: going down")
        server.close()
        wait_for(lambda: proxy.connections == 0, "the link to be closed")
        assert receive(client, 100) == b"FATAL: going down"


def test_a_server_that_resets_its_side_resets_the_client() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        TcpProxy("127.0.0.1", listener.getsockname()[1]) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), TIMEOUT_S) as client,
    ):
        server, _ = listener.accept()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_client_that_outruns_its_server_is_slowed_down() -> None:
    # Fails if the proxy reads on while its buffer is full.
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        TcpProxy("127.0.0.1", listener.getsockname()[1]) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), TIMEOUT_S) as client,
        listener.accept()[0],
    ):
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            for _ in range(100):
                client.sendall(b"x" * BUFFER_BYTES_MAX)


def test_a_cut_reply_means_done_but_not_told(echo: EchoServer, proxy: TcpProxy, client: socket.socket) -> None:
    fault = proxy.cut_reply(after=b"Commit")
    assert ask(client, b"begin") == b"begin"
    client.sendall(b"please COMMIT now\n")
    with pytest.raises(ConnectionResetError):
        client.recv(100)
    fault.wait_hit(TIMEOUT_S)
    assert echo.lines == [b"begin", b"please COMMIT now"]
    wait_for(lambda: echo.ends == ["reset"], "the server's side to be reset")


def test_a_cut_request_never_reaches_the_server(echo: EchoServer, proxy: TcpProxy, client: socket.socket) -> None:
    fault = proxy.cut_request(b"commit")
    client.sendall(b"COMMIT\n")
    with pytest.raises(ConnectionResetError):
        client.recv(100)
    fault.wait_hit(TIMEOUT_S)
    wait_for(lambda: echo.ends == ["reset"], "the server's side to be reset")
    assert echo.lines == []


@pytest.mark.parametrize("fault", ["cut_request", "cut_reply"])
def test_isolated_by_a_fault_nobody_gets_through_until_healed(
    fault: str, echo: EchoServer, proxy: TcpProxy, client: socket.socket
) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), TIMEOUT_S) as other:
        ask(other, b"before")
        getattr(proxy, fault)(b"secret", isolate=True)
        with pytest.raises(ConnectionResetError):
            ask(client, b"a secret")
        # From the moment of the reset on: on no old connection, and on no new one.
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            ask(other, b"old")
    with (
        pytest.raises((ConnectionResetError, BrokenPipeError)),
        socket.create_connection(("127.0.0.1", proxy.port), TIMEOUT_S) as late,
    ):
        ask(late, b"new")
    assert b"old" not in echo.lines and b"new" not in echo.lines
    proxy.heal()
    with socket.create_connection(("127.0.0.1", proxy.port), TIMEOUT_S) as again:
        assert ask(again, b"healed") == b"healed"


def test_a_fault_strikes_once_unless_told_otherwise(proxy: TcpProxy) -> None:
    fault = proxy.cut_request(b"commit")
    often = proxy.cut_request(b"prepare", times=2)
    for line, cut in [
        (b"commit", True),
        (b"commit", False),
        (b"prepare", True),
        (b"prepare", True),
        (b"prepare", False),
    ]:
        with socket.create_connection(("127.0.0.1", proxy.port), TIMEOUT_S) as client:
            if cut:
                with pytest.raises(ConnectionResetError):
                    ask(client, line)
            else:
                assert ask(client, line) == line
    assert (fault.hits, often.hits) == (1, 2)


def test_a_pattern_split_over_two_packets_is_found(echo: EchoServer, proxy: TcpProxy, client: socket.socket) -> None:
    fault = proxy.cut_request(b"commit prepared")
    client.sendall(b"COMMIT PRE")
    wait_for(lambda: proxy.bytes_to_server == 10, "the first part to pass")
    client.sendall(b"PARED\n")
    with pytest.raises(ConnectionResetError):
        client.recv(100)
    fault.wait_hit(TIMEOUT_S)
    assert echo.lines == []


def test_a_request_that_passed_before_the_fault_was_armed_is_not_struck(proxy: TcpProxy, client: socket.socket) -> None:
    # Fails if the window of past bytes is longer than the pattern could need.
    proxy.cut_request(b"a pattern that is much longer than the other")
    assert ask(client, b"commit") == b"commit"
    fault = proxy.cut_request(b"commit")
    assert ask(client, b"rollback") == b"rollback"
    assert fault.hits == 0


def test_a_stalled_request_moves_on_when_released(echo: EchoServer, proxy: TcpProxy, client: socket.socket) -> None:
    fault = proxy.stall(b"prepare")
    client.sendall(b"PREPARE\n")
    fault.wait_hit(TIMEOUT_S)
    client.settimeout(0.05)
    with pytest.raises(TimeoutError):
        client.recv(1)
    assert echo.lines == []
    fault.release()
    client.settimeout(TIMEOUT_S)
    assert receive(client, 8) == b"PREPARE\n"


def test_a_stalled_request_arrives_late_even_if_its_client_has_gone(
    echo: EchoServer, proxy: TcpProxy, client: socket.socket
) -> None:
    fault = proxy.stall(b"prepare")
    client.sendall(b"PREPARE\n")
    fault.wait_hit(TIMEOUT_S)
    client.close()
    assert (echo.lines, echo.ends) == ([], [])
    fault.release()
    wait_for(lambda: echo.lines == [b"PREPARE"], "the late request to arrive")
    wait_for(lambda: echo.ends != [], "the news of the client's end to arrive")


def test_a_delayed_reply_comes_when_released(echo: EchoServer, proxy: TcpProxy, client: socket.socket) -> None:
    fault = proxy.delay_reply(b"commit")
    client.sendall(b"COMMIT\n")
    fault.wait_hit(TIMEOUT_S)
    assert echo.lines == [b"COMMIT"]
    client.settimeout(0.05)
    with pytest.raises(TimeoutError):
        client.recv(1)
    fault.release()
    client.settimeout(TIMEOUT_S)
    assert receive(client, 7) == b"COMMIT\n"


def test_a_delayed_reply_comes_by_itself_after_its_time(proxy: TcpProxy, client: socket.socket) -> None:
    fault = proxy.delay_reply(b"commit", 0.05)
    assert ask(client, b"commit") == b"commit"
    assert fault.hits == 1
    assert ask(client, b"commit") == b"commit"


@pytest.mark.parametrize("strike", ["delay_reply", "stall"])
def test_what_is_released_before_it_is_held_is_not_held(strike: str, proxy: TcpProxy, client: socket.socket) -> None:
    """As where it is released between the request, which it struck, and the reply, which it is to hold."""
    fault = getattr(proxy, strike)(b"commit", times=None)
    fault.release()
    assert ask(client, b"commit") == b"commit"
    assert ask(client, b"commit") == b"commit"
    assert fault.hits == 2


def test_half_open_leaves_the_server_connected_to_nobody(
    echo: EchoServer, proxy: TcpProxy, client: socket.socket
) -> None:
    ask(client, b"hello")
    proxy.half_open()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert (echo.open, echo.ends) == (1, [])
    proxy.heal()
    wait_for(lambda: echo.ends == ["reset"], "the half-open side to be closed")


def test_half_open_can_strike_at_a_request(echo: EchoServer, proxy: TcpProxy, client: socket.socket) -> None:
    fault = proxy.half_open(after=b"prepare")
    assert fault is not None
    client.sendall(b"prepare\n")
    fault.wait_hit(TIMEOUT_S)
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert (echo.lines, echo.ends) == ([b"prepare"], [])


def test_sever_resets_every_connection_and_new_ones_work(proxy: TcpProxy, client: socket.socket) -> None:
    ask(client, b"hello")
    proxy.sever()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with socket.create_connection(("127.0.0.1", proxy.port), TIMEOUT_S) as other:
        assert ask(other, b"again") == b"again"


def test_heal_disarms_faults_and_releases_what_they_hold(proxy: TcpProxy, client: socket.socket) -> None:
    fault = proxy.stall(b"prepare", times=None)
    client.sendall(b"prepare\n")
    fault.wait_hit(TIMEOUT_S)
    proxy.heal()
    assert receive(client, 8) == b"prepare\n"
    assert ask(client, b"prepare") == b"prepare"


def test_a_server_that_is_down_resets_its_clients(echo: EchoServer, proxy: TcpProxy) -> None:
    echo.listener.shutdown(socket.SHUT_RDWR)
    echo.listener.close()
    # The reset may come while the client still connects.
    with (
        pytest.raises(ConnectionResetError),
        socket.create_connection(("127.0.0.1", proxy.port), TIMEOUT_S) as client,
    ):
        client.recv(1)


def test_stop_ends_all_threads_even_with_a_link_stalled(echo: EchoServer) -> None:
    with TcpProxy("127.0.0.1", echo.port) as proxy:
        fault = proxy.stall(b"prepare")
        client = socket.create_connection(("127.0.0.1", proxy.port), TIMEOUT_S)
        client.sendall(b"prepare\n")
        fault.wait_hit(TIMEOUT_S)
    client.close()
    assert [t for t in threading.enumerate() if t.name == f"proxy-{proxy.port}" and t.is_alive()] == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port), TIMEOUT_S)


def test_waiting_for_a_hit_that_does_not_come_is_an_error_that_names_the_fault(proxy: TcpProxy) -> None:
    with pytest.raises(TimeoutError, match="cut reply at b'commit'"):
        proxy.cut_reply(b"COMMIT").wait_hit(0.01)


def test_an_empty_pattern_and_a_url_of_another_server_are_refused(proxy: TcpProxy) -> None:
    with pytest.raises(UsageError):
        proxy.cut_reply(b"")
    with pytest.raises(UsageError, match="where this proxy leads"):
        proxy.url_for("postgresql://me:secret@127.0.0.1:1/x")


# ---- with real servers ----------------------------------------------------------------------------


def test_postgres_has_committed_what_the_client_never_heard_of(postgres: PostgresServer) -> None:
    url = postgres.url()
    with TcpProxy.to(url) as proxy, psycopg.connect(url, autocommit=True) as direct:
        direct.execute("CREATE TABLE t (x int)")
        with psycopg.connect(proxy.url_for(url), autocommit=True) as client:
            client.execute("BEGIN")
            client.execute("INSERT INTO t VALUES (1)")
            client.execute("PREPARE TRANSACTION 'proxy-1'")
            fault = proxy.cut_reply(after=b"COMMIT PREPARED")
            with pytest.raises(psycopg.OperationalError):
                client.execute("COMMIT PREPARED 'proxy-1'")
        fault.wait_hit(TIMEOUT_S)
        assert direct.execute("SELECT x FROM t").fetchall() == [(1,)]
        assert direct.execute("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()").fetchall() == []


def test_postgres_has_done_all_of_a_message_whose_reply_is_lost(postgres: PostgresServer) -> None:
    # The first result fills the server's buffer and comes early. Fails if the cut does not wait for the last one.
    url = postgres.url()
    with TcpProxy.to(url) as proxy, psycopg.connect(url, autocommit=True) as direct:
        direct.execute("CREATE TABLE t (x int)")
        fault = proxy.cut_reply(after=b"insert")
        with psycopg.connect(proxy.url_for(url), autocommit=True) as client, pytest.raises(psycopg.OperationalError):
            client.execute("SELECT repeat('x', 100000); SELECT pg_sleep(0.1); INSERT INTO t VALUES (1)")
        fault.wait_hit(TIMEOUT_S)
        assert direct.execute("SELECT x FROM t").fetchall() == [(1,)]


def test_postgres_runs_a_prepare_that_arrives_after_its_client_has_given_up(postgres: PostgresServer) -> None:
    url = postgres.url()
    with TcpProxy.to(url) as proxy, psycopg.connect(url, autocommit=True) as direct:
        client = psycopg.connect(proxy.url_for(url), autocommit=True)
        client.execute("BEGIN")
        client.execute("CREATE TABLE t (x int)")
        fault = proxy.stall(b"prepare transaction")
        running = threading.Thread(target=_ignore_lost, args=(lambda: client.execute("PREPARE TRANSACTION 'late'"),))
        running.start()
        fault.wait_hit(TIMEOUT_S)
        with socket.socket(fileno=os.dup(client.fileno())) as twin:
            twin.shutdown(socket.SHUT_RDWR)
        running.join(TIMEOUT_S)

        def listed() -> list[Any]:
            return direct.execute("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()").fetchall()

        assert listed() == []
        fault.release()
        wait_for(lambda: listed() == [("late",)], "the late prepare")
        direct.execute("ROLLBACK PREPARED 'late'")


def _ignore_lost(work: Callable[[], object]) -> None:
    with pytest.raises(psycopg.OperationalError):
        work()


def test_postgres_round_trips_are_those_of_the_statements(postgres: PostgresServer) -> None:
    url = postgres.url()
    with TcpProxy.to(url) as proxy, psycopg.connect(proxy.url_for(url), autocommit=True) as client:
        proxy.reset_counts()
        for _ in range(5):
            client.execute("SELECT 1")
        assert proxy.round_trips == 5


def mariadb_connect(url: str) -> Any:
    at = parse_url(url)
    return pymysql.connect(
        host=at.host, port=at.port or 0, user=at.user, password=at.password, database=at.database, autocommit=True,
        client_flag=CLIENT.MULTI_STATEMENTS,
    )  # fmt: skip


def branch(xid: str) -> str:
    return f"XA START '{xid}'; INSERT INTO t VALUES (1); SELECT 1, '' FROM t; XA END '{xid}'; XA PREPARE '{xid}'"


def test_mariadb_has_prepared_all_of_a_packet_whose_reply_is_lost(mariadb: MariaDBServer) -> None:
    # Five results, of which the server may send each when it is ready. Fails if the cut comes at the first of them.
    url, xid = mariadb.url(), f"proxy-{secrets.token_hex(8)}"
    with TcpProxy.to(url) as proxy, closing(mariadb_connect(url)) as direct, direct.cursor() as cursor:
        cursor.execute("CREATE TABLE t (x int) ENGINE=InnoDB")
        client = mariadb_connect(proxy.url_for(url))
        fault = proxy.cut_reply(after=b"xa start")
        with client.cursor() as lost, pytest.raises(pymysql.OperationalError):
            lost.execute(branch(xid))
            while lost.nextset():
                pass
        fault.wait_hit(TIMEOUT_S)
        cursor.execute("XA RECOVER")
        assert xid.encode() in [bytes(row[-1]) for row in cursor.fetchall()]
        wait_for(lambda: _xa_done(cursor, f"XA ROLLBACK '{xid}'"), "the session that prepared it to end")


def test_mariadb_holds_the_branch_of_a_half_open_session_until_that_ends(mariadb: MariaDBServer) -> None:
    url, xid = mariadb.url(), f"proxy-{secrets.token_hex(8)}"
    with TcpProxy.to(url) as proxy, closing(mariadb_connect(url)) as direct, direct.cursor() as cursor:
        cursor.execute("CREATE TABLE t (x int) ENGINE=InnoDB")
        client = mariadb_connect(proxy.url_for(url))
        fault = proxy.half_open(after=b"xa prepare")
        assert fault is not None
        with client.cursor() as lost, pytest.raises(pymysql.OperationalError):
            lost.execute(branch(xid))
            while lost.nextset():
                pass
        fault.wait_hit(TIMEOUT_S)
        with pytest.raises(pymysql.OperationalError, match="1397"):
            cursor.execute(f"XA COMMIT '{xid}'")
        proxy.heal()
        wait_for(lambda: _xa_done(cursor, f"XA COMMIT '{xid}'"), "the session that prepared it to end")
        cursor.execute("SELECT x FROM t")
        assert cursor.fetchall() == ((1,),)


def _xa_done(cursor: Any, statement: str) -> bool:
    try:
        cursor.execute(statement)
    except pymysql.OperationalError as error:
        if error.args[0] != 1397:
            raise
        return False
    return True


def packet(content: bytes, number: int = 1) -> bytes:
    return len(content).to_bytes(3, "little") + bytes([number]) + content


OK = packet(b"\x00\x01\xfc\x00\x10\x02\x00\x00\x00")  # one row; an id of three bytes; autocommit
OK_MORE = packet(b"\x00\x00\x00\x0a\x00\x00\x00")
EOF, EOF_MORE = packet(b"\xfe\x00\x00\x02\x00"), packet(b"\xfe\x00\x00\x0a\x00")
ROWS = packet(b"\x01") + packet(b"\x03def\x04name") + EOF + packet(b"\x00") + packet(b"\xfe" + b"r" * 20)


@pytest.mark.parametrize(
    ("reply", "ended"),
    [
        (OK, True),
        (OK_MORE, False),
        (OK_MORE + OK, True),
        (OK[:-1], False),
        (packet(b"\xff\x75\x05#XAE04text"), True),
        (OK_MORE + packet(b"\xff\x75\x05#XAE04text"), True),
        (ROWS, False),
        (ROWS + EOF, True),
        (ROWS + EOF_MORE, False),
        (ROWS + EOF_MORE + OK, True),
        (b"", False),
    ],
)
def test_a_mariadb_reply_is_whole_when_its_last_result_is(reply: bytes, ended: bool) -> None:
    assert _mariadb_reply_ended(reply) is ended
