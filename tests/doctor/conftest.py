"""Servers that hold what others have left prepared, and sessions that wait behind it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pymysql
import pytest
from click.testing import CliRunner

from kit import until
from nodoubt import wiring
from nodoubt.cli.root import root
from nodoubt.doctor import examine
from nodoubt.doctor.facts import Facts
from nodoubt.doctor.origins import Kind, XaId
from nodoubt.testing.servers import MariaDBServer, PostgresServer
from nodoubt.url import parse_url
from nodoubt.xid import XaXid, Xid, new_attempt, new_cluster

PATIENCE_S = 20.0


# ---- what others call their transactions ----------------------------------------------------------


def as_text(xa: XaId) -> str:
    """As psycopg and pgjdbc write an XA id on PostgreSQL."""
    gtrid, bqual = (base64.b64encode(part).decode() for part in (xa.gtrid, xa.bqual))
    return f"{xa.format_id}_{gtrid}_{bqual}"


def narayana(number: int) -> XaId:
    return XaId(131077, number.to_bytes(28, "big") + b"node-7", (number + 1).to_bytes(36, "big"))


def atomikos(number: int) -> XaId:
    return XaId(int.from_bytes(b"ATOM", "big"), b"10.0.0.1.tm%09d" % number, b"billing%d" % number)


def bitronix(number: int) -> XaId:
    uid = b"shop-1" + number.to_bytes(12, "big")
    return XaId(int.from_bytes(b"Btnx", "big"), uid, uid)


GIDS: dict[Kind, Callable[[int], str]] = {
    Kind.SQLALCHEMY: lambda n: f"_sa_{n:032x}",
    Kind.CITUS: lambda n: f"citus_0_4711_{n}_0",
    Kind.PGDOG: lambda n: f"__pgdog_2pc_a1b2c3d4_{n}_1",
    Kind.XA_TEXT: lambda n: as_text(XaId(42, b"global-%d" % n, b"branch")),
    Kind.NAME: lambda n: f"order-{n}",
}
XAS: dict[Kind, Callable[[int], XaId]] = {
    Kind.SQLALCHEMY: lambda n: XaId(1, b"_sa_%032x" % n, b""),
    Kind.NARAYANA: narayana,
    Kind.ATOMIKOS: atomikos,
    Kind.BITRONIX: bitronix,
    Kind.NAME: lambda n: XaId(1, b"order-%d" % n, b""),
}
EACH = 4  # of five kinds: twenty


# ---- sessions -------------------------------------------------------------------------------------


@dataclass
class Sessions:
    """Connections of one server, some of them waiting in threads of their own."""

    connect: Callable[[], Any]
    end: Callable[[int], Any]
    open: list[Any] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def new(self) -> Any:
        self.open.append(self.connect())
        return self.open[-1]

    def waiting(self, connection: Any, statement: str) -> None:
        """Run it in the background: it will not come back before it is ended."""

        def run() -> None:
            with contextlib.suppress(psycopg.Error, pymysql.Error, OSError):
                connection.cursor().execute(statement)

        self.threads.append(threading.Thread(target=run, daemon=True))
        self.threads[-1].start()

    def close(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self.end(number)
        for thread in self.threads:
            thread.join(PATIENCE_S)
        for connection in self.open:
            with contextlib.suppress(Exception):
                connection.close()


@dataclass
class Ward:
    """One fresh database with a table t (id, v), what was prepared in it, and an account that may not write."""

    url: str
    look_url: str
    sessions: Sessions
    query: Callable[[str], list[tuple[Any, ...]]]
    prepare: Callable[[str | XaId, int], None]
    listed: Callable[[], list[Any]]
    ours: Any = None
    numbers: list[int] = field(default_factory=list)

    def rows(self) -> list[tuple[Any, ...]]:
        return self.query("select id, v from t order by id")

    def block(self) -> None:
        """A chain of three: the first waits for what has changed row 1, the others for the one before."""
        for number, (own, wanted) in enumerate(((101, 1), (102, 101), (103, 102)), 1):
            session = self.sessions.new()
            self.numbers.append(session.info.backend_pid if hasattr(session, "info") else session.thread_id())
            session.cursor().execute("begin")
            session.cursor().execute(f"update t set v = 0 where id = {own}")
            self.sessions.waiting(session, f"update t set v = 0 where id = {wanted}")
            until(lambda number=number: self.waiting() == number, PATIENCE_S)  # type: ignore[misc]
        if not self.url.startswith("postgresql"):
            # Who waits for whom is cached by the server: for 100 ms it would still tell of the test before.
            self.query("select sleep(0.15)")

    def waiting(self) -> int:
        """How many sessions wait for a lock."""
        if self.url.startswith("postgresql"):
            return len(self.query("select distinct pid from pg_locks where not granted"))
        # Not by information_schema.INNODB_TRX: asked more often than every 100 ms, it answers the same for ever.
        return str(self.query("show engine innodb status")[0][2]).count("TRX HAS BEEN WAITING")


def fill(ward: Ward, kinds: dict[Kind, Any]) -> dict[str, Kind]:
    """Twenty foreign ones, each with a row of its own; the kinds by id."""
    made: dict[str, Kind] = {}
    for place, (kind, name) in enumerate(kinds.items()):
        for number in range(EACH):
            one = name(number)
            ward.prepare(one, 1 + place * EACH + number)
            made[one.text if isinstance(one, XaId) else one] = kind
    return made


@pytest.fixture
def pg(postgres: PostgresServer) -> Iterator[Ward]:
    """PostgreSQL."""
    url = postgres.url()
    parsed = parse_url(url)
    role = f"look_{parsed.database}"
    with psycopg.connect(url, autocommit=True) as connection:

        def query(sql: str) -> list[tuple[Any, ...]]:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

        query(
            "create table t (id int primary key, v int); insert into t select g, g from generate_series(1, 200) g; "
            f"create role {role} login; grant select on t to {role}; alter role {role} set log_statement = 'all'"
        )
        sessions = Sessions(
            lambda: psycopg.connect(url, autocommit=True),
            lambda pid: query(f"select pg_terminate_backend({pid})"),
        )

        def prepare(gid: str | XaId, row: int) -> None:
            with psycopg.connect(url, autocommit=True) as one:
                one.execute("begin")
                one.execute(f"update t set v = -1 where id = {row}".encode())
                one.execute(b"prepare transaction " + psycopg.sql.Literal(gid).as_bytes(one))

        ward = Ward(
            url,
            url.replace(f"{postgres.user}@", f"{role}@"),
            sessions,
            query,
            prepare,
            lambda: query("select gid, prepared, owner, database, transaction::text from pg_prepared_xacts order by 1"),
        )
        yield ward
        sessions.close(ward.numbers)
        for gid, *_ in query("select gid from pg_prepared_xacts where database = current_database()"):
            connection.execute(b"rollback prepared " + psycopg.sql.Literal(gid).as_bytes(connection))
        query(f"drop owned by {role}; drop role {role}")


def ended(query: Callable[[str], list[tuple[Any, ...]]]) -> bool:
    """Roll back what is left. A session that was just closed may not have let go of its branch yet."""
    for format_id, gtrid, _, data in query("xa recover"):
        raw = data.encode() if isinstance(data, str) else data
        with contextlib.suppress(pymysql.Error):
            query(f"xa rollback {XaId(format_id, raw[:gtrid], raw[gtrid:]).sql}")
    return not query("xa recover")


@pytest.fixture
def maria(mariadb: MariaDBServer) -> Iterator[Ward]:
    """MariaDB."""
    url = mariadb.url()
    parsed = parse_url(url)
    user = f"look_{parsed.database[-12:]}"

    def connect() -> Any:
        return pymysql.connect(
            host=parsed.host, port=parsed.port or 0, user=parsed.user, password=parsed.password,
            database=parsed.database, autocommit=True, ssl_disabled=True,
        )  # fmt: skip

    connection = connect()

    def query(sql: str) -> list[tuple[Any, ...]]:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall())

    query("create table t (id int primary key, v int)")
    query("insert into t select seq, seq from seq_1_to_200")
    query(f"create user '{user}'@'%' identified by 'hunter22'")
    query(f"grant select on `{parsed.database}`.* to '{user}'@'%'")
    sessions = Sessions(connect, lambda number: query(f"kill {number}"))

    def prepare(xa: str | XaId, row: int) -> None:
        assert isinstance(xa, XaId)
        with connect() as one, one.cursor() as cursor:
            number = one.thread_id()
            cursor.execute(f"xa start {xa.sql}")
            cursor.execute(f"update t set v = -1 where id = {row}")
            cursor.execute(f"xa end {xa.sql}")
            cursor.execute(f"xa prepare {xa.sql}")
        until(lambda: not query(f"select 1 from information_schema.processlist where id = {number}"))

    ward = Ward(
        url,
        f"mariadb://{user}:hunter22@{parsed.host}:{parsed.port}/{parsed.database}",
        sessions,
        query,
        prepare,
        lambda: sorted(query("xa recover")),
    )
    yield ward
    with contextlib.suppress(pymysql.Error):
        sessions.close(ward.numbers)
    until(lambda: ended(query), PATIENCE_S)
    query(f"drop user '{user}'@'%'")
    connection.close()


@pytest.fixture(params=["postgres", "mariadb"])
def ward(request: pytest.FixtureRequest) -> Ward:
    """Each of the two in turn."""
    found: Ward = request.getfixturevalue("pg" if request.param == "postgres" else "maria")
    return found


def ours(ward: Ward, cluster: str = "") -> str | XaId:
    """An id of ours, as its database knows it."""
    xid = Xid(cluster or new_cluster(), new_attempt(), 0)
    if ward.url.startswith("postgresql"):
        return xid.gid
    handle = XaXid(xid, 1, 1)
    return XaId(0x6E6462, xid.gtrid.encode(), handle.bqual.encode())


class Standby(PostgresServer):
    """A server that follows nobody, and can be read."""

    def _ready(self) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return lines[:1] == [str(self.pid)] and lines[-1].strip() in ("ready", "standby")

    def of(self, primary: PostgresServer) -> None:
        """Become its standby, as it is now; what it does from now on does not arrive."""
        self.kill()
        primary.kill()
        owner = self.data.stat()
        shutil.rmtree(self.data)
        shutil.copytree(primary.data, self.data)
        (self.data / "standby.signal").touch()
        for path in (self.data, *self.data.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid)
        self.restart()
        primary.restart()


# ---- the doctor -----------------------------------------------------------------------------------


def looked(*urls: str) -> tuple[Facts, ...]:
    """The facts."""
    with wiring.patients({f"db{n}": parse_url(url) for n, url in enumerate(urls)}) as (patients, shell):
        return shell.run(examine(patients, wiring.SystemClock()))


def doctor(*arguments: str, code: int | None = None) -> Any:
    """The command's document."""
    result = CliRunner().invoke(root, ["doctor", *arguments, "--json"], prog_name="nodoubt")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert code is None or result.exit_code == code, result.output
    return json.loads(result.stdout)
