"""Where a journal can be: each kind of database, in each style; and what its server is doing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import nodoubt.drivers.asyncmy
import nodoubt.drivers.psycopg
import nodoubt.drivers.psycopg_async
import nodoubt.drivers.pymysql
import nodoubt.drivers.sqlite
from nodoubt.journals.dialects import MariaDBDialect, PostgresDialect, SqliteDialect
from nodoubt.journals.memory import AsyncMemorySession, MemoryJournal, MemorySession, MemoryStore
from nodoubt.journals.sql import SqlJournal
from nodoubt.ports import Reply
from nodoubt.script import do
from nodoubt.testing.bench import Bench, LoopBench, ThreadBench
from nodoubt.url import parse_url

CLUSTER = "00000000000000c1"
TABLES = ("decisions", "names", "epochs", "resources", "quarantine", "events", "confirmations", "calls")
EMPTY = (
    "UPDATE {journal} SET counter = 0 WHERE item = 'epoch'; UPDATE {journal} SET value = '{floor}' WHERE item = 'floor'"
)


@dataclass
class Place:
    """Where a journal can be: its kind, its style, and how to have a session there."""

    kind: str
    style: str
    url: str = ""
    store: MemoryStore = field(default_factory=MemoryStore)

    def journal(self) -> Any:
        """The journal for this place."""
        if self.kind == "memory":
            return MemoryJournal()
        return SqlJournal(self.dialect())

    def dialect(self) -> Any:
        match self.kind:
            case "postgres":
                return PostgresDialect()
            case "mariadb":
                return MariaDBDialect(parse_url(self.url).database)
            case _:
                return SqliteDialect()

    def connect(self) -> Any:
        """A session, or, in the async style, the promise of one."""
        url = parse_url(self.url) if self.url else None
        match self.kind, self.style:
            case "memory", "sync":
                return MemorySession(self.store)
            case "memory", _:
                return _ready(AsyncMemorySession(self.store))
            case "postgres", "sync":
                return nodoubt.drivers.psycopg.connect(url)  # type: ignore[arg-type]
            case "postgres", _:
                return nodoubt.drivers.psycopg_async.connect(url)  # type: ignore[arg-type]
            case "mariadb", "sync":
                return nodoubt.drivers.pymysql.connect(url)  # type: ignore[arg-type]
            case "mariadb", _:
                return nodoubt.drivers.asyncmy.connect(url)  # type: ignore[arg-type]
            case _, "sync":
                return nodoubt.drivers.sqlite.connect(url)  # type: ignore[arg-type]
            case _:
                return nodoubt.drivers.sqlite.aconnect(url)  # type: ignore[arg-type]

    def bench(self, journal: Any = None) -> Bench:
        kind = ThreadBench if self.style == "sync" else LoopBench
        return kind(journal or self.journal(), self.connect)


MakePlace = Callable[[str, str], Place]


async def _ready(session: Any) -> Any:
    return session


def query(bench: Bench, sql: str, session: Any = None) -> Reply:
    """SQL of a test's own; the last statement's reply."""
    replies: tuple[Reply, ...] = bench.run(do(session or bench.main, "run", sql))
    return replies[-1]


def waits_for_a_lock(place: Place, bench: Bench, session: Any) -> bool:
    """Whether the server says that this session, or on MariaDB any, waits for a lock."""
    if place.kind == "postgres":
        sql = f"SELECT count(*) FROM pg_stat_activity WHERE pid = {session.connection_id} AND wait_event_type = 'Lock'"
        return bool(query(bench, sql).scalar())
    # Not information_schema.innodb_trx: it shows a copy that is not renewed while somebody keeps asking.
    return int(query(bench, "SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'").rows[0][1]) > 0
