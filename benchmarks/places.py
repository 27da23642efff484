"""The servers and databases that are measured: started here, on a disk, with the durability they come with.

Each branch has a server of its own, as it would have in life; SQLite has a file of its own. What differs from a
server's defaults is only how many connections and prepared transactions it takes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import apsw
import psycopg
import pymysql

from nodoubt.testing.processes import descendants
from nodoubt.testing.proxy import TcpProxy
from nodoubt.testing.servers import MariaDBServer, PostgresServer, Server, Setting
from nodoubt.url import parse_url

from .task import ACCOUNTS

DISK = "/var/tmp"  # noqa: S108 - used through mkdtemp only
SETTINGS: dict[str, dict[str, Setting]] = {
    "postgres": {
        "max_connections": 500,
        "max_prepared_transactions": 500,
        "shared_buffers": "128MB",
        "autovacuum": True,
    },
    "mariadb": {"max-connections": 500, "innodb-buffer-pool-size": "128M", "innodb-log-file-size": "96M"},
}
KINDS: dict[str, type[Server]] = {"postgres": PostgresServer, "mariadb": MariaDBServer}


class Places:
    """Starts a server when a branch first wants one; ends all of them at its own end."""

    def __init__(self, under: str = DISK, *, more: Mapping[str, Mapping[str, Setting]] | None = None) -> None:
        """`more`: settings beyond `SETTINGS`, by kind."""
        self._under = under
        self._more = more or {}
        self._stack = contextlib.ExitStack()
        self.servers: dict[tuple[str, int], Server] = {}
        self._urls: dict[tuple[str, int, str], str] = {}

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="nodoubt-bench-", dir=self._under))
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._stack.close()

    def server(self, kind: str, number: int) -> Server:
        if (kind, number) not in self.servers:
            settings = {**SETTINGS[kind], **self._more.get(kind, {})}
            self.servers[kind, number] = self._stack.enter_context(KINDS[kind](settings, under=self._under))
        return self.servers[kind, number]

    def url(self, kind: str, number: int, of: str = "") -> str:
        """The database of the branch with that number: the same for everybody, or for those who need their own."""
        if (kind, number, of) not in self._urls:
            self._urls[kind, number, of] = self.fresh(kind, number)
        return self._urls[kind, number, of]

    def fresh(self, kind: str, number: int) -> str:
        """A database that nobody else has, with the accounts."""
        if kind == "sqlite":
            folder = tempfile.mkdtemp(dir=self.folder)
            url = f"sqlite:///{folder}/{number}.db"
        else:
            url = self.server(kind, number).url()
        furnish(url)
        return url

    def cpu_s(self) -> float:
        """The CPU time that all servers' processes have used so far; of children that are gone, too."""
        pids = [pid for server in self.servers.values() for pid in (server.pid, *descendants(server.pid))]
        return sum(_cpu_s(pid) for pid in pids)

    def urls(self, kinds: tuple[str, ...]) -> tuple[str, ...]:
        """A branch each."""
        return tuple(self.url(kind, number) for number, kind in enumerate(kinds))


def _cpu_s(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    user, system, children_user, children_system = text[text.rindex(")") + 2 :].split()[11:15]
    return sum(map(int, (user, system, children_user, children_system))) / os.sysconf("SC_CLK_TCK")


def furnish(url: str) -> None:
    """The table that every contender works on."""
    statement(url, "CREATE TABLE accounts (id int PRIMARY KEY, balance int NOT NULL)")
    rows = ",".join(f"({row},0)" for row in range(ACCOUNTS))
    statement(url, f"INSERT INTO accounts VALUES {rows}")


def statement(url: str, sql: str) -> list[tuple[Any, ...]]:
    """Run one statement on a connection of its own, committed; its rows."""
    at = parse_url(url)
    if at.kind == "postgres":
        with psycopg.connect(at.secret(), autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []
    if at.kind == "mariadb":
        other = pymysql.connect(
            host=at.host, port=at.port or 3306, user=at.user, password=at.password, database=at.database,
            autocommit=True,
        )  # fmt: skip
        with contextlib.closing(other), other.cursor() as cursor_:
            cursor_.execute(sql)
            return list(cursor_.fetchall())
    with contextlib.closing(apsw.Connection(at.database)) as file:
        file.execute("pragma journal_mode = wal")
        return list(file.execute(sql))


@contextlib.contextmanager
def proxied(urls: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], list[TcpProxy]]]:
    """The URLs, each through a proxy that counts; SQLite has none."""
    with contextlib.ExitStack() as stack:
        proxies = {url: stack.enter_context(TcpProxy.to(url)) for url in urls if parse_url(url).kind != "sqlite"}
        yield tuple(proxies[url].url_for(url) if url in proxies else url for url in urls), list(proxies.values())
