"""A MariaDB or MySQL server's facts: four messages, however many branches are prepared.

Guarantees: the session is read-only, waits for no lock longer than a second, and no statement of it runs for long. What
an account may not see is a gap: the questions that take a right of their own are a message of their own.

What can't be told here, whoever asks: XA RECOVER tells neither owner, nor database, nor age of a branch, and InnoDB's
lists do not tell xids. But InnoDB's status says which of its transactions are prepared, since when they run, and which
session has them. Are there as many of those as branches, then each branch is one of them, and has run no less long than
the youngest; is there one of each, then it is that one. (After a restart they all begin anew.) A branch of ours carries
the id of the connection that prepared it. Locks are listed only where somebody waits for them. Who waits for whom the
server caches for 100 ms: where somebody else asks more often, the answer is old, and a branch may go unnamed.

On MySQL the questions about locks go to `performance_schema`; that way of asking has not been tried on a server: the
tests run on MariaDB.

XA RECOVER takes no LIMIT: the server sends all, some 150 bytes each, and the first are kept. InnoDB's status is cut by
the server at a megabyte.

Must not: decide what a fact means; keep more of the status than numbers (it shows rows).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ..ports import Clock, Reply, Session, StatementFailed
from ..resources.mariadb_finishing import STARTED_TOLERANCE_S
from ..resources.mariadb_settings import (
    SETTINGS,
    no_listing,
    plain_tables,
    plain_tables_sql,
    shortcomings,
)
from ..schema import meddlers, meddlers_sql
from ..script import Script, do
from . import facts as f
from .origins import Origin, XaId, of_xa
from .ours import READ
from .seen import Seen

STATEMENT_TIMEOUT_S = 5
LOCK_TIMEOUT_S = 1
NAMES = (
    *SETTINGS,
    "binlog_format",
    "innodb_rollback_on_timeout",
    "rpl_semi_sync_master_enabled",
    "rpl_semi_sync_source_enabled",
    "wait_timeout",
)
NO_SUCH_RIGHT = frozenset({"1044", "1142", "1227", "1370", "1401", "1410"})

# MariaDB passes over comments that are for MySQL 5.7 alone, and MySQL over those for MariaDB.
_READ_ONLY = f"""SET SESSION lock_wait_timeout = {LOCK_TIMEOUT_S}, innodb_lock_wait_timeout = {LOCK_TIMEOUT_S}
 /*M!100101 , max_statement_time = {STATEMENT_TIMEOUT_S} */ /*!50704 , max_execution_time = {STATEMENT_TIMEOUT_S}000 */;
 SET SESSION TRANSACTION READ ONLY"""

_WHO = """SELECT VERSION() AS version, CURRENT_USER() AS who, DATABASE() AS at, UNIX_TIMESTAMP(NOW(6)) + 0e0 AS clock"""
_SETTINGS = f"SHOW GLOBAL VARIABLES WHERE Variable_name IN ({', '.join(repr(name) for name in NAMES)})"
_HISTORY = "SHOW GLOBAL STATUS LIKE 'Innodb_history_list_length'"

_OURS = f"""SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = {{database}}
 AND TABLE_NAME IN ({", ".join(f"'nodoubt_{table}'" for table in READ)})"""
# Whoever has a right by a role is told of a gap, too: these tables do not tell it. No quote is a double one: under
# ANSI_QUOTES, a sql_mode, what stands in those is a name.
_MAY = """SELECT EXISTS (SELECT 1 FROM information_schema.USER_PRIVILEGES
 WHERE PRIVILEGE_TYPE = '{right}' AND GRANTEE = {grantee}) OR EXISTS (SELECT 1 FROM information_schema.SCHEMA_PRIVILEGES
 WHERE PRIVILEGE_TYPE = '{right}' AND {database} LIKE TABLE_SCHEMA AND GRANTEE = {grantee})""".replace(
    "{grantee}", "CONCAT('''', REPLACE(CURRENT_USER(), '@', '''@'''), '''')"
)
_STATUS = "SHOW ENGINE INNODB STATUS"
_BLOCK = re.compile(r"^---", re.MULTILINE)
_TRANSACTION = re.compile(r"TRANSACTION (\d+), ACTIVE \(PREPARED\) (\d+) sec")
_THREAD = re.compile(r"(?:MariaDB|MySQL) thread id (\d+)")
_LOCKED = re.compile(r"(\d+) row lock\(s\)(?:, undo log entries (\d+))?")
_TRUNCATED = "... truncated..."

_WAITS = """SELECT r.trx_mysql_thread_id AS session, b.trx_id AS blocker, b.trx_mysql_thread_id AS blocking,
 TIMESTAMPDIFF(SECOND, r.trx_wait_started, NOW()) AS since_s,
 {what} AS what, l.{mode} AS mode, l.{type} AS type, p.USER AS who, p.DB AS at,
 LEFT(r.trx_query, {cut}) AS statement FROM {waits} w
 JOIN information_schema.INNODB_TRX r ON r.trx_id = w.{requesting} JOIN information_schema.INNODB_TRX b
 ON b.trx_id = w.{blocking} LEFT JOIN {locks} l ON l.{lock} = w.{requested}
 LEFT JOIN information_schema.PROCESSLIST p ON p.ID = r.trx_mysql_thread_id ORDER BY 1, 2 LIMIT {most}"""
_WAITS_MARIADB = {
    "waits": "information_schema.INNODB_LOCK_WAITS", "locks": "information_schema.INNODB_LOCKS",
    "requesting": "requesting_trx_id", "blocking": "blocking_trx_id", "requested": "requested_lock_id",
    "lock": "lock_id", "what": "REPLACE(l.lock_table, '`', CONVERT(x'' USING utf8mb4))",
    "mode": "lock_mode", "type": "lock_type",
}  # fmt: skip
_WAITS_MYSQL = {
    "waits": "performance_schema.data_lock_waits", "locks": "performance_schema.data_locks",
    "requesting": "REQUESTING_ENGINE_TRANSACTION_ID", "blocking": "BLOCKING_ENGINE_TRANSACTION_ID",
    "requested": "REQUESTING_ENGINE_LOCK_ID", "lock": "ENGINE_LOCK_ID",
    "what": "CONCAT(l.OBJECT_SCHEMA, '.', l.OBJECT_NAME)", "mode": "LOCK_MODE", "type": "LOCK_TYPE",
}  # fmt: skip
_HISTORY_MYSQL = "SELECT 'h', COUNT FROM information_schema.INNODB_METRICS WHERE NAME = 'trx_rseg_history_len'"

_METADATA = f"""SELECT ID AS session, USER AS who, DB AS at, TIME AS since_s, LEFT(INFO, {f.STATEMENT_MAX}) AS statement
 FROM information_schema.PROCESSLIST WHERE STATE LIKE 'Waiting for % metadata lock' ORDER BY ID
 LIMIT {f.WAITING_MAX + 1}"""
_DUMPS = f"""SELECT USER AS who, HOST AS host, STATE AS state FROM information_schema.PROCESSLIST
 WHERE COMMAND LIKE 'Binlog Dump%' ORDER BY ID LIMIT {f.REPLICAS_MAX + 1}"""


@dataclass(frozen=True, slots=True)
class Inner:
    """A prepared transaction as InnoDB knows it. `session`: 0, nobody has it."""

    number: int
    age_s: float
    session: int
    rows_locked: int
    rows_changed: int


@dataclass(slots=True)
class _Held:
    """What InnoDB tells; None: it may not be asked."""

    server_started: int
    prepared: list[Inner] | None = None
    waits: list[dict[str, Any]] = field(default_factory=list)

    def of(self, one: Origin, branches: int) -> Inner | None:
        """The one transaction that surely is this branch."""
        found = self.prepared or []
        if branches == len(found) == 1:
            return found[0]
        if not one.held_by or abs(one.server_started - self.server_started) > STARTED_TOLERANCE_S:
            return None  # the id of a connection means nothing after a restart
        return next((inner for inner in found if inner.session == one.held_by), None)


def listed(session: Session) -> Script[frozenset[str]]:
    """The ids alone, once more."""
    (reply,) = yield from do(session, "run", "XA RECOVER")
    return frozenset(_xa(row).text for row in reply.rows)


def look(session: Session, clock: Clock, database: str) -> Script[Seen]:
    """What the server tells. Raises what a session raises."""
    seen = Seen()
    name = f"CONVERT(X'{database.encode().hex()}' USING utf8mb4)"
    yield from do(session, "run", _READ_ONLY)
    before = clock.now()
    plain_sql = f"{plain_tables_sql(name)} LIMIT {f.TABLES_MAX}"
    rights = [_MAY.format(database=name, right=right) for right in ("SELECT", "TRIGGER")]
    ours_sql = (_OURS.format(database=name), meddlers_sql("mariadb", name), *rights)
    who, settings, history, plain, ours, meddling, select, trigger = yield from do(
        session, "run", "; ".join((_WHO, _SETTINGS, _HISTORY, plain_sql, *ours_sql))
    )
    after = clock.now()
    one = who[0]
    mysql = "mariadb" not in str(one["version"]).lower()
    values = {str(row[0]).lower(): str(row[1]) for row in settings.rows}
    seen.server = f.Server(
        version=f"{'MySQL' if mysql else 'MariaDB'} {one['version']}",
        user=_text(one["who"]),
        database=_text(one["at"]),
        skew_s=float(one["clock"]) - (before + after) / 2,
        skew_within_s=(after - before) / 2,
    )
    seen.settings = {name: f.Setting(value) for name, value in values.items()}
    seen.flaws = [*shortcomings(values), *plain_tables([_text(row[0]) for row in plain.rows])]
    seen.flaws += meddlers("mariadb", meddling.rows)
    seen.history_length = _length(history)
    seen.ours = dict.fromkeys((_text(row[0]).lower().removeprefix("nodoubt_") for row in ours.rows), True)
    if "journal" not in seen.ours and not select.scalar():
        seen.gaps.append(
            f.Gap(
                "tables of nodoubt's, if there are any: the server shows an account only those that it may use",
                "examine it with an account that may SELECT in the whole database, or that has the role look",
            )
        )
    if seen.ours and not trigger.scalar():
        seen.gaps.append(
            f.Gap(
                "triggers on our own tables, which could swallow or alter their rows: they are shown only to who may "
                "make them",
                "examine it once with the account that owns the tables",
            )
        )
    branches = yield from _branches(session, seen)
    held = yield from _held(session, seen, mysql=mysql)
    seen.prepared = [_prepared(branch, seen.prepared_count, held) for branch in branches]
    _name_waiting(seen, held)
    if branches:
        seen.gaps.append(
            f.Gap(
                "owner and database of a branch, when it was prepared, locks that nobody waits for: XA RECOVER tells "
                "the id alone, and no right changes that",
                "ask the transaction manager that the id names",
            )
        )
    return seen


def _branches(session: Session, seen: Seen) -> Script[list[XaId]]:
    try:
        (listing,) = yield from do(session, "run", "XA RECOVER")
    except StatementFailed as error:
        seen.flaws.append(no_listing(error))
        seen.listed = False
        return []
    seen.prepared_count = len(listing)
    if seen.prepared_count > f.PREPARED_MAX:
        seen.cut.append(f"prepared branches: {f.PREPARED_MAX} of {seen.prepared_count}")
    return [_xa(row) for row in listing.rows[: f.PREPARED_MAX]]


def _xa(row: Sequence[Any]) -> XaId:
    format_id, gtrid, _, data = row
    raw = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else bytes(data)
    return XaId(int(format_id), raw[: int(gtrid)], raw[int(gtrid) :])


def _held(session: Session, seen: Seen, *, mysql: bool) -> Script[_Held]:
    """What InnoDB and the list of sessions tell; both want the PROCESS right."""
    waits = _WAITS.format(**(_WAITS_MYSQL if mysql else _WAITS_MARIADB), cut=f.STATEMENT_MAX, most=f.WAITING_MAX + 1)
    questions = [_STATUS, _METADATA, _DUMPS, waits, *([_HISTORY_MYSQL] if mysql else [])]
    try:
        status, metadata, dumps, waiting, *more = yield from do(session, "run", "; ".join(questions))
    except StatementFailed as error:
        if error.code not in NO_SUCH_RIGHT:
            raise
        user = seen.server.user if seen.server is not None else ""
        seen.gaps.append(
            f.Gap(
                "who waits for a branch, how long branches have run, other accounts' sessions, replicas",
                f"GRANT PROCESS ON *.* TO {_account(user)};",
            )
        )
        return _Held(session.server_started)
    if more:
        seen.history_length = _length(more[0])
    text = _text(status.rows[0][-1]) if status.rows else ""
    if _TRUNCATED in text:
        seen.cut.append("InnoDB's status, by the server: not all of its transactions are known")
    seen.replicas = [_replica(row) for row in list(dumps)[: f.REPLICAS_MAX]]
    if seen.prepared_count:  # without a branch that could be what they wait for they are none of our business
        seen.waiting = [_metadata_wait(row) for row in list(metadata)[: f.WAITING_MAX]]
    if len(waiting) > f.WAITING_MAX or len(metadata) > f.WAITING_MAX:
        seen.cut.append(f"waiting sessions: {f.WAITING_MAX}")
    return _Held(session.server_started, prepared_of(text), list(waiting)[: f.WAITING_MAX])


def prepared_of(status: str) -> list[Inner]:
    """The prepared transactions in the text of SHOW ENGINE INNODB STATUS."""
    found = []
    for block in _BLOCK.split(status):
        head, thread, locked = _TRANSACTION.match(block), _THREAD.search(block), _LOCKED.search(block)
        if head is not None:
            rows = (locked[1], locked[2] or "0") if locked else ("0", "0")
            found.append(Inner(int(head[1]), float(head[2]), int(thread[1]) if thread else 0, *map(int, rows)))
    return found


def _prepared(xa: XaId, branches: int, held: _Held) -> f.Prepared:
    one = f.Prepared(id=xa.text, origin=of_xa(xa), xa=xa, since="begin")
    inner = held.of(one.origin, branches)
    if inner is not None:
        lock = f.Lock(f"{inner.rows_locked} rows, {inner.rows_changed} changes", "")
        return msgspec.structs.replace(one, age_s=inner.age_s, locks=(lock,), session=inner.session or None)
    if held.prepared is not None and len(held.prepared) == branches:
        return msgspec.structs.replace(one, age_s=min(inner.age_s for inner in held.prepared), at_least=True)
    return one


# ---- who waits ------------------------------------------------------------------------------------


def _name_waiting(seen: Seen, held: _Held) -> None:
    """Put names to those that are waited for, as far as they can be told."""
    behind: dict[int, dict[f.Blocker, None]] = {}
    rows: dict[int, dict[str, Any]] = {}
    for row in held.waits:
        number = int(row["session"])
        rows.setdefault(number, row)
        behind.setdefault(number, {})[_blocker(row, seen, held)] = None
    seen.waiting[:0] = [_row_wait(rows[number], tuple(names)) for number, names in behind.items()]


def _blocker(row: Mapping[str, Any], seen: Seen, held: _Held) -> f.Blocker:
    number, session = int(row["blocker"]), int(row["blocking"])
    if number not in {inner.number for inner in held.prepared or ()}:
        return f.Blocker(session) if session else f.Blocker(name=f"InnoDB's transaction {number}, which no session has")
    for one in seen.prepared:
        inner = held.of(one.origin, seen.prepared_count)
        if inner is not None and inner.number == number:
            return f.Blocker(prepared=one.id)
    return f.Blocker(name=f"a prepared branch, InnoDB's transaction {number} (which, the server does not tell)")


def _row_wait(row: Mapping[str, Any], behind: tuple[f.Blocker, ...]) -> f.Waiting:
    return f.Waiting(
        session=int(row["session"]),
        behind=behind,
        waits_for=f"{_text(row['what'])} ({_text(row['mode'])} {_text(row['type'])})",
        **_session(row),
    )


def _metadata_wait(row: Mapping[str, Any]) -> f.Waiting:
    behind = f.Blocker(name="somebody who uses the table (who, the server does not tell)")
    return f.Waiting(session=int(row["session"]), behind=(behind,), waits_for="a table's definition", **_session(row))


def _session(row: Mapping[str, Any]) -> dict[str, Any]:
    statement = " ".join(_text(row["statement"]).split())
    return {
        "since_s": None if row["since_s"] is None else float(row["since_s"]),
        "user": _text(row["who"]) or None,
        "database": _text(row["at"]) or None,
        "statement": statement or None,
    }


def _replica(row: Mapping[str, Any]) -> f.Replica:
    return f.Replica(name=f"{_text(row['who'])}@{_text(row['host'])}", kind="replica", state=_text(row["state"]))


def _length(reply: Reply) -> int | None:
    return int(reply.rows[0][1]) if reply.rows else None


def _account(user: str) -> str:
    name, _, host = user.rpartition("@")
    return "@".join("'" + part.replace("'", "''") + "'" for part in (name, host))


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
