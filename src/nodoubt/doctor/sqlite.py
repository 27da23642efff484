"""A SQLite file's facts: one look, over a connection that changes nothing (`drivers.sqlite_onlooker`).

There is no server to ask: of settings there are those of the file alone. PRAGMA synchronous belongs to each connection,
so what other programs set can't be seen; nodoubt's own connections set what it needs.

Guarantees: a prepared branch's record is not read but for its first bytes, however large it is.

Must not: decide what a fact means.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

from ..ports import Session
from ..resources.sqlite.check import FileState, network, shortcomings
from ..resources.sqlite.record import HEAD, MAGIC, VERSION
from ..resources.sqlite.tables import GUARD, OPERATIONS
from ..schema import meddlers, meddlers_sql
from ..script import Script, do
from . import facts as f
from .origins import of_gid
from .seen import Seen

_TABLES = "SELECT name FROM main.sqlite_schema WHERE type = 'table' AND name GLOB 'nodoubt_*'"
_PREPARED = f"""SELECT xid, unixepoch('subsec') - at, substr(record, 1, {HEAD}),
 (SELECT count(*) FROM main.nodoubt_prepared) FROM main.nodoubt_prepared ORDER BY at, xid LIMIT {f.PREPARED_MAX}"""
_LOCKS = f"SELECT xid, tbl, mode FROM main.nodoubt_locks ORDER BY xid, tbl LIMIT {f.LOCKS_MAX + 1}"
_GUARDS = "SELECT name FROM main.sqlite_schema WHERE type = 'trigger' AND name GLOB ?"
_MODES = {"X": "written: nobody else can write it", "S": "relied on: nobody else can write it"}


class Onlooking(Protocol):
    """What is needed of `drivers.sqlite_onlooker.Onlooker`."""

    path: str
    journal_mode: str

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]: ...
    @property
    def library(self) -> tuple[int, ...]: ...
    def lockers(self) -> tuple[str, ...] | None: ...


def listed(session: Session) -> Script[frozenset[str]]:
    """The ids alone, once more."""
    return do(session, "call", lambda connection: frozenset(row[0] for row in connection.query(_PREPARED)))


def look(session: Session) -> Script[Seen]:
    """What the file tells. Raises what a session raises."""
    return do(session, "call", _look)


def _look(connection: Onlooking) -> Seen:
    seen = Seen()
    library = ".".join(map(str, connection.library))
    lockers = connection.lockers()
    tables = [name for (name,) in connection.query(_TABLES)]
    locks: list[tuple[str, str, str]] = connection.query(_LOCKS) if "nodoubt_locks" in tables else []
    seen.server = f.Server(version=f"SQLite {library}", database=connection.path)
    seen.settings = {
        "journal_mode": f.Setting(connection.journal_mode, "the file"),
        "page_size": f.Setting(str(connection.query("PRAGMA main.page_size")[0][0]), "the file"),
    }
    encoding = connection.query("PRAGMA main.encoding")[0][0]
    state = FileState(connection.path, connection.library, connection.journal_mode, encoding, network(connection.path))
    seen.flaws = [*shortcomings(state), *meddlers("sqlite", connection.query(meddlers_sql("sqlite")))]
    if "nodoubt_prepared" in tables:
        _fill_prepared(seen, connection.query(_PREPARED), locks)
    seen.file = f.File(
        journal_mode=connection.journal_mode,
        library=library,
        wal_bytes=_size(connection.path + "-wal"),
        writers=" and ".join(lockers or ()),
        unguarded=_unguarded(connection, {table for _, table, _ in locks}),
    )
    if lockers is None:
        seen.gaps.append(f.Gap("who has the file locked", "look on a system with /proc/locks"))
    seen.gaps.append(
        f.Gap(
            "with which library and PRAGMA synchronous other programs write the file: SQLite keeps neither in it",
            f"every program needs SQLite 3.51.3 or newer for WAL; this look used {library}",
        )
    )
    seen.ours = dict.fromkeys((name.removeprefix("nodoubt_") for name in tables), True)
    return seen


def _fill_prepared(seen: Seen, rows: Sequence[tuple[Any, ...]], locks: Sequence[tuple[str, str, str]]) -> None:
    held: dict[str, list[f.Lock]] = {}
    for xid, table, mode in locks[: f.LOCKS_MAX]:
        held.setdefault(xid, []).append(f.Lock(table, _MODES.get(mode, mode)))
    if len(locks) > f.LOCKS_MAX:
        seen.cut.append(f"locks: the first {f.LOCKS_MAX}")
    for gid, age_s, head, count in rows:
        mine = held.get(gid, [])
        seen.prepared_count = count
        seen.prepared.append(
            f.Prepared(
                id=gid,
                origin=of_gid(gid),
                age_s=max(float(age_s), 0.0),
                locks=tuple(mine[: f.LOCKS_EACH_MAX]),
                locks_left_out=max(len(mine) - f.LOCKS_EACH_MAX, 0),
                unreadable=_unreadable(head),
            )
        )
    if seen.prepared_count > len(seen.prepared):
        seen.cut.append(f"prepared branches: the oldest {len(seen.prepared)} of {seen.prepared_count}")


def _unreadable(head: object) -> str:
    if not isinstance(head, bytes) or len(head) < HEAD or not head.startswith(MAGIC):
        return "its record does not begin like one"
    version = head[len(MAGIC)]
    return "" if version == VERSION else f"its record is of version {version}, this release reads version {VERSION}"


def _unguarded(connection: Onlooking, tables: set[str]) -> tuple[str, ...]:
    """Tables that are locked and have lost a guard: whoever writes them now is not kept out."""
    there = {name for (name,) in connection.query(_GUARDS, (GUARD + "*",))} if tables else set()
    wanted = {table: {f"{GUARD}{operation.lower()}_{table}" for operation in OPERATIONS} for table in sorted(tables)}
    return tuple(table for table, guards in wanted.items() if not guards <= there)


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None
