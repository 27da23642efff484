"""Two-phase commit by hand in threads: psycopg and PyMySQL; and plain local commits over them and over SQLite."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import apsw
import psycopg
import pymysql
from pymysql.constants import CLIENT

from nodoubt.url import Url, parse_url

from ..task import ADD, Task
from . import Contender, ThreadConnections

BUSY_MS = 60_000


class Branch(ABC):
    """One database's connections."""

    def __init__(self, url: Url, connections: int, number: int) -> None:
        self.url, self.connections, self.number = url, connections, number
        self.free = ThreadConnections()

    def open(self) -> None:
        for _ in range(self.connections):
            self.free.put(self.connect())

    @abstractmethod
    def connect(self) -> Any: ...

    @abstractmethod
    def local(self, connection: Any, rows: range) -> None: ...

    def prepare(self, connection: Any, xid: str, rows: range) -> None:
        raise NotImplementedError(f"{self.url.kind} has no two-phase commit of its own")

    def commit(self, connection: Any, xid: str) -> None:
        raise NotImplementedError(f"{self.url.kind} has no two-phase commit of its own")


class PsycopgBranch(Branch):
    """One message each."""

    def connect(self) -> Any:
        return psycopg.connect(self.url.secret(), autocommit=True)

    def prepare(self, connection: Any, xid: str, rows: range) -> None:
        connection.execute("BEGIN")
        for row in rows:
            connection.execute(f"{ADD}%s", (row,))
        connection.execute(f"PREPARE TRANSACTION '{xid}'")

    def commit(self, connection: Any, xid: str) -> None:
        connection.execute(f"COMMIT PREPARED '{xid}'")

    def local(self, connection: Any, rows: range) -> None:
        connection.execute("BEGIN")
        for row in rows:
            connection.execute(f"{ADD}%s", (row,))
        connection.execute("COMMIT")


class PyMySQLBranch(Branch):
    """XA, one message each, committed by the session that prepared."""

    def connect(self) -> Any:
        return pymysql.connect(
            host=self.url.host, port=self.url.port or 3306, user=self.url.user, password=self.url.password,
            database=self.url.database, autocommit=True, client_flag=CLIENT.MULTI_STATEMENTS,
        )  # fmt: skip

    def prepare(self, connection: Any, xid: str, rows: range) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"XA START '{xid}'")
            for row in rows:
                cursor.execute(f"{ADD}%s", (row,))
            cursor.execute(f"XA END '{xid}'")
            cursor.execute(f"XA PREPARE '{xid}'")

    def commit(self, connection: Any, xid: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"XA COMMIT '{xid}'")

    def local(self, connection: Any, rows: range) -> None:
        with connection.cursor() as cursor:
            cursor.execute("BEGIN")
            for row in rows:
                cursor.execute(f"{ADD}%s", (row,))
            cursor.execute("COMMIT")


class SqliteBranch(Branch):
    """Over apsw, in WAL mode with full durability, as nodoubt has it."""

    def connect(self) -> Any:
        connection = apsw.Connection(self.url.database)
        connection.set_busy_timeout(BUSY_MS)
        connection.execute("pragma journal_mode = wal; pragma synchronous = full")
        return connection

    def local(self, connection: Any, rows: range) -> None:
        connection.execute("BEGIN IMMEDIATE")
        for row in rows:
            connection.execute(f"{ADD}?", (row,))
        connection.execute("COMMIT")


class InTurn(Contender):
    """Each phase branch after branch, in the client's own thread: the plainest loop."""

    kinds: ClassVar[dict[str, type[Branch]]] = {
        "postgres": PsycopgBranch,
        "mariadb": PyMySQLBranch,
        "sqlite": SqliteBranch,
    }

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        urls = [parse_url(url) for url in task.urls]
        self.branches = [self.kinds[url.kind](url, task.connections, number) for number, url in enumerate(urls)]

    def open(self) -> None:
        for branch in self.branches:
            branch.open()

    def transact(self, client: int) -> None:
        held = [(branch, branch.free.get()) for branch in self.branches]
        self.end(held, self.name(), self.rows(client))
        for branch, connection in held:
            branch.free.put(connection)

    def end(self, held: list[tuple[Branch, Any]], xid: str, rows: range) -> None:
        for branch, connection in held:
            branch.prepare(connection, f"{xid}-{branch.number}", rows)
        for branch, connection in held:
            branch.commit(connection, f"{xid}-{branch.number}")


class InParallel(InTurn):
    """Each phase on all branches at the same time: the first one here, the others in threads."""

    def open(self) -> None:
        super().open()
        self.threads = ThreadPoolExecutor(self.task.clients * len(self.branches))

    def end(self, held: list[tuple[Branch, Any]], xid: str, rows: range) -> None:
        (first, connection), *others = held
        futures = [
            self.threads.submit(branch.prepare, other, f"{xid}-{branch.number}", rows) for branch, other in others
        ]
        first.prepare(connection, f"{xid}-0", rows)
        for future in futures:
            future.result()
        futures = [self.threads.submit(branch.commit, other, f"{xid}-{branch.number}") for branch, other in others]
        first.commit(connection, f"{xid}-0")
        for future in futures:
            future.result()

    def close(self) -> None:
        self.threads.shutdown()


class Local(InTurn):
    """Each database commits by itself, one after the other."""

    def end(self, held: list[tuple[Branch, Any]], xid: str, rows: range) -> None:
        for branch, connection in held:
            branch.local(connection, rows)


class RowsAlone(InTurn):
    """SQLite: the rows that nodoubt's contract asks for, and nothing that looks after them.

    Every file but the first writes down what it is about to do, and commits that; the first commits its work with the
    decision; the others then do the work, with a receipt. One file alone commits its work with a receipt.
    """

    _TABLES = """
        create table if not exists promises (xid text primary key, record blob not null) without rowid;
        create table if not exists proofs (xid text primary key, verdict text not null, at real not null) without rowid;
    """
    _PROOF = "INSERT INTO proofs VALUES (?, 'commit', unixepoch('subsec'))"
    _RECORD = b"the row as it was, and as it will be: some hundred bytes".ljust(120)

    def open(self) -> None:
        super().open()
        for branch in self.branches:
            connection = branch.free.get()
            connection.execute(self._TABLES)
            branch.free.put(connection)

    def end(self, held: list[tuple[Branch, Any]], xid: str, rows: range) -> None:
        (_, first), *others = held
        for _, connection in others:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO promises VALUES (?, ?)", (xid, self._RECORD))
            connection.execute("COMMIT")
        self._work(first, xid, rows)
        for _, connection in others:
            self._work(connection, xid, rows, first="DELETE FROM promises WHERE xid = ?")

    def _work(self, connection: Any, xid: str, rows: range, first: str = "") -> None:
        connection.execute("BEGIN IMMEDIATE")
        if first:
            connection.execute(first, (xid,))
        for row in rows:
            connection.execute(f"{ADD}?", (row,))
        connection.execute(self._PROOF, (xid,))
        connection.execute("COMMIT")
