"""What the tests of whole transactions share: databases of each kind, seen as a stranger sees them, and one face.

`Face` puts `Coordinator` and `AsyncCoordinator` behind the same coroutines, so that one test body runs on both.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import psycopg
import pymysql

from nodoubt import AsyncCoordinator, Coordinator, Observer, Settings
from nodoubt.url import Url, parse_url

QUICK = Settings(connect_s=5, acquire_s=5, prepare_s=5, decide_s=5, apply_s=5, grace_s=5, sweep_s=0.2, deadline_s=3600)


@dataclass(frozen=True)
class Database:
    """One database with a table `accounts(id, balance)`."""

    name: str
    url: str

    @property
    def kind(self) -> str:
        return parse_url(self.url).kind

    def query(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        """As a stranger: a fresh connection that sees only what is committed. `?` for parameters."""
        url = parse_url(self.url)
        if url.kind == "postgres":
            with psycopg.connect(url.secret(), autocommit=True) as connection:
                cursor = connection.execute(sql.replace("?", "%s"), params)
                return cursor.fetchall() if cursor.description else []
        if url.kind == "mariadb":
            with contextlib.closing(_mariadb(url)) as other, other.cursor() as cursor_:
                cursor_.execute(sql.replace("?", "%s"), params or None)
                return list(cursor_.fetchall())
        with contextlib.closing(apsw.Connection(url.database)) as file:
            file.set_busy_timeout(5000)
            return list(file.execute(sql, params))

    def create(self, accounts: int = 2, balance: int = 100) -> None:
        self.query("create table accounts (id int primary key, balance int not null)")
        for number in range(accounts):
            self.query("insert into accounts values (?, ?)", number, balance)

    def balance(self, number: int = 0) -> int:
        return int(self.query("select balance from accounts where id = ?", number)[0][0])

    def total(self) -> int:
        return int(self.query("select coalesce(sum(balance), 0) from accounts")[0][0])

    def prepared(self) -> list[str]:
        """Every prepared transaction of the database; on MariaDB, which tells no database, of our cluster."""
        if self.kind == "postgres":
            return [r[0] for r in self.query("select gid from pg_prepared_xacts where database = current_database()")]
        if self.kind == "mariadb":
            cluster = str(self.query("select cluster from nodoubt_identity")[0][0])
            return [str(row[3]) for row in self.query("xa recover") if cluster in str(row[3])]
        if not self.query("select 1 from sqlite_schema where name = 'nodoubt_prepared'"):
            return []
        return [str(row[0]) for row in self.query("select xid from nodoubt_prepared")]

    def locked(self) -> bool:
        """Whether something still keeps a stranger from writing every row."""
        try:
            if self.kind == "postgres":
                self.query("begin; set local lock_timeout = '200ms'; update accounts set balance = balance; commit")
            elif self.kind == "mariadb":
                self.query("set statement innodb_lock_wait_timeout=1 for update accounts set balance = balance")
            else:
                self.query("update accounts set balance = balance")
        except (psycopg.Error, pymysql.Error, apsw.Error):
            return True
        return False


def _mariadb(url: Url) -> pymysql.Connection[Any]:
    return pymysql.connect(
        host=url.host,
        port=url.port or 3306,
        user=url.user,
        password=url.password,
        database=url.database,
        autocommit=True,
        ssl_disabled=True,  # an SSL context that nobody needs costs 50 ms each time
    )


Maker = Callable[[str], Database]


def make_database(kind: str, name: str, request: Any, tmp_path: Path) -> Database:
    """A fresh database of that kind, with its accounts."""
    if kind == "sqlite":
        database = Database(name, f"sqlite:///{tmp_path}/{name}.db")
    else:
        database = Database(name, request.getfixturevalue(kind).url())
    database.create()
    return database


def placed(sql: str, kind: str) -> str:
    """`?` as the drivers of that kind want their placeholders."""
    return sql if kind == "sqlite" else sql.replace("?", "%s")


class Face:
    """Both coordinators behind the same coroutines."""

    def __init__(self, mode: str, databases: Sequence[Database], **options: Any) -> None:
        self.mode, self.databases = mode, {d.name: d for d in databases}
        options.setdefault("settings", QUICK)
        options.setdefault("recovery", False)
        urls = {d.name: d.url for d in databases}
        self.db: Any = (Coordinator if mode == "sync" else AsyncCoordinator)(urls, **options)

    async def _call(self, verb: str, *args: Any, **options: Any) -> Any:
        answer = getattr(self.db, verb)(*args, **options)
        return answer if self.mode == "sync" else await answer

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        async def call(*args: Any, **options: Any) -> Any:
            return await self._call(verb, *args, **options)

        return call

    @contextlib.asynccontextmanager
    async def transaction(self, *args: Any, **options: Any) -> AsyncIterator[FaceTransaction]:
        async with self._block(self.db.transaction(*args, **options)) as tx:
            yield tx

    @contextlib.asynccontextmanager
    async def staged(self, *args: Any, **options: Any) -> AsyncIterator[FaceTransaction]:
        async with self._block(self.db.begin_distributed(*args, **options)) as tx:
            yield tx

    @contextlib.asynccontextmanager
    async def _block(self, block: Any) -> AsyncIterator[FaceTransaction]:
        if self.mode == "sync":
            with block as handle:
                yield FaceTransaction(self, handle)
        else:
            async with block as handle:
                yield FaceTransaction(self, handle)


class FaceTransaction:
    """A transaction's handle, sync or async."""

    def __init__(self, face: Face, handle: Any) -> None:
        self.face, self.handle = face, handle

    async def execute(self, name: str, sql: str, *params: object) -> Any:
        database = self.face.databases[name]
        statement = placed(sql, database.kind)
        answer = self.handle[name].execute(statement, params or None)
        return answer if self.face.mode == "sync" else await answer

    async def call(self, step: Any, *args: Any, **options: Any) -> Any:
        answer = self.handle.call(step, *args, **options)
        return answer if self.face.mode == "sync" else await answer

    async def move(self, source: str, target: str, amount: int, account: int = 0) -> None:
        await self.execute(source, "update accounts set balance = balance - ? where id = ?", amount, account)
        await self.execute(target, "update accounts set balance = balance + ? where id = ?", amount, account)


@contextlib.asynccontextmanager
async def opened(mode: str, databases: Sequence[Database], **options: Any) -> AsyncIterator[Face]:
    """A coordinator with its tables set up."""
    face = Face(mode, databases, **options)
    await face.open()
    try:
        await face.setup()
        yield face
    finally:
        await face.close()


def stop_walwriter(url: str) -> None:
    """What flushes unasked on PostgreSQL; it is there a moment after the server is."""
    which = "select pid from pg_stat_activity where backend_type = 'walwriter'"
    with psycopg.connect(url, autocommit=True) as connection:
        until(lambda: connection.execute(which).fetchone() is not None)
        (pid,) = connection.execute(which).fetchone() or ()
    os.kill(int(pid), signal.SIGSTOP)


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for something outside this process; fails when it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


class Watching:
    """An observer that calls back at each notice."""

    def __init__(self, call: Callable[[Any], None]) -> None:
        self.notice = call


__all__ = ["QUICK", "Database", "Face", "Observer", "Watching", "make_database", "opened", "placed", "until"]
