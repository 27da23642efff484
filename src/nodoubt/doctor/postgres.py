"""A PostgreSQL server's facts: three messages, however many transactions are prepared.

Guarantees: every message is a READ ONLY transaction that is rolled back, with time-outs of its own for statements and
locks (a pooler may hand each to another server process); where the server itself answers, the session is read-only for
good (`default_transaction_read_only`). Nothing is asked that gives out a transaction id. What a role may not see comes
as a gap, not as an error: the catalogs answer everybody, with fewer columns.

Which locks a prepared transaction holds: it has a place among the locks like a session's, with no process, under the
virtual id of the session that prepared it or, after a restart, one made of its own number (PostgreSQL 12 to 18:
MarkAsPreparingGuts in twophase.c). Its lock on its own transaction id tells which. Rows that it has locked are on the
rows themselves, and on no list: whoever wants one waits for its transaction id.

Must not: decide what a fact means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..ports import Clock, Reply, Session
from ..resources.postgres_settings import SETTINGS, shortcomings
from ..schema import SEARCH_PATH, meddlers, meddlers_sql
from ..script import Script, do
from . import facts as f
from .origins import of_gid
from .ours import READ
from .seen import Seen

STATEMENT_TIMEOUT_MS = 5000
LOCK_TIMEOUT_MS = 1000
WAITSTART_FROM_VERSION = 140000
NAMES = (
    *SETTINGS,
    "autovacuum_freeze_max_age",
    "default_transaction_read_only",
    "wal_level",
)
_TABLE_KINDS = frozenset("rpmtSvf")  # all but indexes: what people know by name
_STATS_RIGHT = "GRANT pg_monitor TO {user}"

# Ids and names of all databases are listed in all of them, each in the encoding of its own: the server must not try to
# convert them, and fail. Of the schemas where operators are looked up, anybody's may hold one that fits an `oid = 0`
# better than the server's own: it would run with the rights of whoever looks, and READ ONLY keeps it from little.
_BEGIN = (
    f"BEGIN READ ONLY; SET LOCAL statement_timeout = {STATEMENT_TIMEOUT_MS}; "
    f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}; SET LOCAL client_encoding = SQL_ASCII; "
    "SET LOCAL search_path = pg_catalog, pg_temp"
)

# Which modes of a table's lock conflict: the manual, "Explicit Locking".
_MODES = (
    "AccessShareLock", "RowShareLock", "RowExclusiveLock", "ShareUpdateExclusiveLock", "ShareLock",
    "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock",
)  # fmt: skip
_CONFLICTS = {
    "AccessShareLock": "00000001",
    "RowShareLock": "00000011",
    "RowExclusiveLock": "00001111",
    "ShareUpdateExclusiveLock": "00011111",
    "ShareLock": "00110111",
    "ShareRowExclusiveLock": "00111111",
    "ExclusiveLock": "01111111",
    "AccessExclusiveLock": "11111111",
}

_TAG = (
    "locktype",
    "database",
    "relation",
    "page",
    "tuple",
    "virtualxid",
    "transactionid",
    "classid",
    "objid",
    "objsubid",
)


def conflict(held: str, wanted: str) -> bool:
    """Whether one transaction's lock in mode `held` keeps another waiting for `wanted`."""
    return held in _CONFLICTS and wanted in _MODES and _CONFLICTS[held][_MODES.index(wanted)] == "1"


# ---- the questions --------------------------------------------------------------------------------


def _read_only_for_good(connection_id: int) -> str:
    """Behind a pooler the session is somebody else's next: there nothing is set that would stay."""
    settings = {
        "default_transaction_read_only": "on",
        "statement_timeout": STATEMENT_TIMEOUT_MS,
        "lock_timeout": LOCK_TIMEOUT_MS,
        "search_path": "pg_catalog, pg_temp",  # for the questions about our own tables, too
    }
    calls = ", ".join(f"pg_catalog.set_config('{name}', '{value}', false)" for name, value in settings.items())
    where = f"WHERE pg_catalog.pg_backend_pid() = {int(connection_id)}"
    return f"SELECT pg_catalog.current_schema()::text; SELECT {calls} {where}"


_WHO = """SELECT pg_catalog.pg_backend_pid() AS pid,
 extract(epoch FROM pg_catalog.clock_timestamp())::float8 AS clock,
 pg_catalog.current_database()::text AS database, current_user::text AS who,
 pg_catalog.pg_is_in_recovery() AS standby,
 pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE') AS stats,
 pg_catalog.pg_has_role('pg_read_all_settings', 'USAGE') AS places"""

_SETTINGS = f"""SELECT name::text AS name, setting::text AS value, reset_val::text AS fallback,
 sourcefile::text AS file, sourceline::int4 AS line
 FROM pg_catalog.pg_settings WHERE name IN ({", ".join(f"'{name}'" for name in NAMES)})"""

_PREPARED = f"""SELECT transaction::text AS number, gid,
 pg_catalog.encode(pg_catalog.textsend(gid), 'hex') AS raw, owner::text AS owner, database::text AS database,
 extract(epoch FROM pg_catalog.clock_timestamp() - prepared)::float8 AS age_s,
 pg_catalog.age(transaction)::int4 AS xids, (count(*) OVER ())::int4 AS every
 FROM pg_catalog.pg_prepared_xacts ORDER BY prepared, gid LIMIT {f.PREPARED_MAX}"""

_COLUMNS = ", ".join(f"l.{column}::text AS {column}" for column in _TAG)
_NAMED = """LEFT JOIN pg_catalog.pg_database d ON d.oid = l.database
 LEFT JOIN pg_catalog.pg_class c ON c.oid = l.relation AND (l.database = 0 OR d.datname = pg_catalog.current_database())
 LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"""
_NAME = """d.datname::text AS datname, n.nspname::text AS schema, c.relname::text AS name, c.relkind::text AS kind,
 l.mode"""

_LOCKS = f"""WITH held AS MATERIALIZED (SELECT * FROM pg_catalog.pg_locks WHERE pid IS NULL AND granted),
 prepared AS (SELECT transaction FROM pg_catalog.pg_prepared_xacts ORDER BY prepared, gid LIMIT {f.PREPARED_MAX})
 SELECT own.transactionid::text AS number, {_COLUMNS}, {_NAME},
 pg_catalog.pg_stat_get_dead_tuples(c.oid)::int8 AS dead
 FROM held own JOIN prepared p ON p.transaction = own.transactionid AND own.locktype = 'transactionid'
 JOIN held l ON l.virtualtransaction = own.virtualtransaction {_NAMED}
 ORDER BY own.transactionid::text, n.nspname = 'nodoubt', c.relkind = 'i', n.nspname, c.relname
 LIMIT {f.LOCKS_MAX + 1}"""


def _waiting(version: int) -> str:
    since = "l.waitstart" if version >= WAITSTART_FROM_VERSION else "a.query_start"
    return f"""SELECT l.pid, {_COLUMNS}, {_NAME},
 pg_catalog.array_to_string(pg_catalog.pg_blocking_pids(l.pid), ' ') AS behind,
 extract(epoch FROM pg_catalog.clock_timestamp() - {since})::float8 AS since_s,
 a.usename::text AS who, a.application_name AS application, a.datname::text AS at,
 pg_catalog.left(a.query, {f.STATEMENT_MAX}) AS statement
 FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid {_NAMED}
 WHERE NOT l.granted AND l.pid IS NOT NULL ORDER BY l.pid LIMIT {f.WAITING_MAX + 1}"""


_OLDEST = """SELECT datname::text AS name, pg_catalog.age(datfrozenxid)::int4 AS age FROM pg_catalog.pg_database
 ORDER BY 2 DESC LIMIT 1"""
_SESSIONS = """SELECT 'session ' || pid AS name, pg_catalog.age(backend_xmin)::int4 AS age
 FROM pg_catalog.pg_stat_activity
 WHERE backend_xmin IS NOT NULL AND pid <> pg_catalog.pg_backend_pid() ORDER BY 2 DESC LIMIT 1"""
_SLOTS = f"""SELECT slot_name::text AS name, slot_type AS type, active,
 greatest(pg_catalog.age(xmin), pg_catalog.age(catalog_xmin))::int4 AS age
 FROM pg_catalog.pg_replication_slots ORDER BY slot_name LIMIT {f.REPLICAS_MAX + 1}"""
_STANDBYS = f"""SELECT application_name AS name, state, sync_state AS sync FROM pg_catalog.pg_stat_replication
 ORDER BY pid LIMIT {f.REPLICAS_MAX + 1}"""
_OURS = f"""SELECT c.relname::text AS name, pg_catalog.has_schema_privilege(n.oid, 'USAGE')
 AND pg_catalog.has_table_privilege(c.oid, 'SELECT') AS readable
 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = 'nodoubt' AND c.relkind IN ('r', 'p')
 AND c.relname IN ({", ".join(f"'{table}'" for table in READ)})"""


# ---- the script -----------------------------------------------------------------------------------


def listed(session: Session) -> Script[frozenset[str]]:
    """The ids alone, once more."""
    (reply,) = yield from _ask(session, _PREPARED)
    return frozenset(row["gid"] for row in reply)


def look(session: Session, clock: Clock) -> Script[Seen]:
    """What the server tells. Raises what a session raises."""
    first, *_ = yield from do(session, "run", _read_only_for_good(session.connection_id))
    before = clock.now()
    who, settings = yield from _ask(session, _WHO, _SETTINGS)
    after = clock.now()
    one, seen = who[0], Seen()
    values = {row["name"]: row for row in settings}
    version = int(values["server_version_num"]["value"])
    again, *rest, meddling = yield from _ask(
        session, "SELECT pg_catalog.pg_backend_pid()", _PREPARED, _LOCKS, _waiting(version), _OLDEST, _SESSIONS, _SLOTS,
        _STANDBYS, _OURS, meddlers_sql("postgres"),
    )  # fmt: skip
    seen.server = f.Server(
        version=f"PostgreSQL {version // 10000}.{version % 10000}",
        user=one["who"],
        database=one["database"],
        standby=one["standby"],
        skew_s=one["clock"] - (before + after) / 2,
        skew_within_s=(after - before) / 2,
    )
    seen.settings = {name: f.Setting(row["value"], _place(row)) for name, row in values.items()}
    # What this session would be, had we not just made it read-only.
    fallback = values["default_transaction_read_only"]["fallback"]
    known = {name: row["value"] for name, row in values.items()} | {"transaction_read_only": fallback}
    seen.flaws = list(
        shortcomings(
            known,
            standby=one["standby"],
            pooled=again.scalar() != one["pid"],
            proxied=one["pid"] != session.connection_id,
        )
    )
    ours_first = [(SEARCH_PATH, "", one["who"], False)] if first.scalar() == "nodoubt" else []
    seen.flaws += meddlers("postgres", [*meddling.rows, *ours_first])
    _fill(seen, one, rest)
    return seen


def _ask(session: Session, *statements: str) -> Script[Sequence[Reply]]:
    """The replies to the statements, asked in one message."""
    replies = yield from do(session, "run", "; ".join((_BEGIN, *statements, "ROLLBACK")))
    return replies[_BEGIN.count(";") + 1 : -1]  # type: ignore[no-any-return]


def _place(row: Mapping[str, Any]) -> str:
    return f"{row['file']}, line {row['line']}" if row["file"] else ""


def _fill(seen: Seen, who: Mapping[str, Any], replies: Sequence[Reply]) -> None:
    prepared, locks, waiting, oldest, sessions, slots, standbys, ours = replies
    held = _Held()
    for row in list(locks)[: f.LOCKS_MAX]:
        held.add(row)
    if len(locks) > f.LOCKS_MAX:
        seen.cut.append(f"locks: the first {f.LOCKS_MAX}")
    seen.prepared = [_prepared(row, held) for row in prepared]
    seen.prepared_count = prepared[0]["every"] if len(prepared) else 0
    if seen.prepared_count > len(seen.prepared):
        seen.cut.append(f"prepared transactions: the oldest {len(seen.prepared)} of {seen.prepared_count}")
    numbers = {row["number"]: row["gid"] for row in prepared}
    seen.waiting = [_waits(row, held, numbers) for row in list(waiting)[: f.WAITING_MAX]]
    if len(waiting) > f.WAITING_MAX:
        seen.cut.append(f"waiting sessions: {f.WAITING_MAX}")
    _fill_vacuum(seen, oldest, sessions, slots)
    seen.replicas = [*map(_standby, standbys), *map(_slot, slots)][: f.REPLICAS_MAX]
    seen.ours = {row["name"]: row["readable"] for row in ours}
    _fill_gaps(seen, who)


def _fill_vacuum(seen: Seen, oldest: Reply, sessions: Reply, slots: Reply) -> None:
    others = {row["name"]: row["age"] for row in sessions}
    others |= {f"replication slot {row['name']}": row["age"] for row in slots if row["age"] is not None}
    seen.vacuum = f.Vacuum(
        freeze_max_age=int(seen.settings["autovacuum_freeze_max_age"].value),
        oldest_database=oldest[0]["name"],
        oldest_database_age=oldest[0]["age"],
        others=others,
    )


def _fill_gaps(seen: Seen, who: Mapping[str, Any]) -> None:
    grant = _STATS_RIGHT.format(user=_quoted(who["who"]))
    if who["standby"]:
        seen.gaps.append(
            f.Gap("prepared transactions: a standby lists none before it is promoted", "examine the primary, too")
        )
    if not who["stats"]:
        seen.gaps.append(
            f.Gap(
                "other roles' sessions: what they run, what they keep VACUUM from, which standby is synchronous",
                f"{grant};",
            )
        )
    elif not who["places"]:
        seen.gaps.append(f.Gap("which file and line a setting is from", f"{grant};"))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


# ---- rows -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Held:
    """The locks of prepared transactions: by their numbers, and by what is locked."""

    of: dict[str, list[tuple[f.Lock, str]]] = field(default_factory=dict)  # with the relation's kind
    at: dict[tuple[Any, ...], list[tuple[str, str]]] = field(default_factory=dict)  # number and mode
    dead: dict[str, int] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any]) -> None:
        number = row["number"]
        self.at.setdefault(_tag(row), []).append((number, row["mode"]))
        if row["locktype"] in ("transactionid", "virtualxid"):
            return  # every transaction has these: they are how others wait for its rows
        self.of.setdefault(number, []).append((f.Lock(_what(row), row["mode"]), row["kind"] or "r"))
        self.dead[number] = self.dead.get(number, 0) + (row["dead"] or 0)

    def locks(self, number: str) -> list[f.Lock]:
        return [lock for lock, kind in self.of.get(number, []) if kind in _TABLE_KINDS]

    def blocking(self, row: Mapping[str, Any]) -> list[str]:
        """The numbers of those that this waiting session waits for."""
        held = self.at.get(_tag(row), ())
        return sorted({number for number, mode in held if conflict(mode, row["mode"])})


def _tag(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[column] for column in _TAG)


def _what(row: Mapping[str, Any]) -> str:
    """What is locked, by the best name that can be had from here."""
    if row["locktype"] == "transactionid":
        return f"a row of transaction {row['transactionid']}"
    if row["name"]:
        return f"{row['schema']}.{row['name']}"
    if row["relation"]:
        return f"relation {row['relation']} of database {row['datname'] or row['database']}"
    if row["locktype"] == "advisory":
        return f"advisory lock {row['classid']}/{row['objid']} of database {row['datname'] or row['database']}"
    return str(row["locktype"])


def _prepared(row: Mapping[str, Any], held: _Held) -> f.Prepared:
    locks = held.locks(row["number"])
    raw = bytes.fromhex(row["raw"])
    return f.Prepared(
        id=row["gid"],
        raw=None if raw == row["gid"].encode() else raw,
        origin=of_gid(row["gid"]),
        database=row["database"],
        owner=row["owner"],
        age_s=max(row["age_s"], 0.0),
        locks=tuple(locks[: f.LOCKS_EACH_MAX]),
        locks_left_out=max(len(locks) - f.LOCKS_EACH_MAX, 0),
        xids_held=row["xids"],
        dead_rows=held.dead.get(row["number"]),
    )


def _waits(row: Mapping[str, Any], held: _Held, gids: Mapping[str, str]) -> f.Waiting:
    pids = dict.fromkeys((row["behind"] or "").split())
    behind = [f.Blocker(session=int(pid)) for pid in pids if pid != "0"]
    if "0" in pids:  # how the server names a prepared transaction
        behind[:0] = [f.Blocker(prepared=gids[number]) for number in held.blocking(row) if number in gids]
    hidden = row["statement"] == "<insufficient privilege>"
    return f.Waiting(
        session=row["pid"],
        behind=tuple(behind),
        waits_for=f"{_what(row)} ({row['mode']})",
        since_s=row["since_s"],
        user=row["who"],
        application=row["application"] or None,
        database=row["at"],
        statement=None if hidden or not row["statement"] else " ".join(row["statement"].split()),
    )


def _standby(row: Mapping[str, Any]) -> f.Replica:
    synchronous = None if row["sync"] is None else row["sync"] in ("sync", "quorum")
    return f.Replica(name=row["name"] or "?", kind="standby", state=row["state"] or "", synchronous=synchronous)


def _slot(row: Mapping[str, Any]) -> f.Replica:
    return f.Replica(
        name=row["name"], kind=f"{row['type']} slot", state="in use" if row["active"] else "nobody reads from it"
    )
