"""What others have done to our tables that comes between a statement of ours and its row: rules, triggers, row level
security, a key that was lost, a table that no crash spares.

A row of the protocol is proved by the tag of a COMMIT or PREPARE, not by being read again: one that a rule or a BEFORE
trigger has swallowed or altered is a decision, or a receipt, that was believed and is not there. None of ours is of any
use there, and nodoubt makes none (SQLite's guards are on users' tables).

What is write-once is so by its primary key alone: a plain INSERT conflicts, or it is the first. Without the key, as a
restore leaves it that died before the constraints, or a copy by CREATE TABLE AS, an ABORT goes in beside a COMMIT.

Must not: ask the server, or judge what stands on anybody else's table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..ports import Shortcoming
from .files import Part, shipped

MEDDLERS_MAX = 20
PREFIX = "nodoubt_"

# Of whose rows there must not be two.
WRITTEN_ONCE = (
    "decisions", "names", "confirmations", "calls", "journal", "epochs", "resources", "receipts", "keys", "identity",
    "prepared", "locks",
)  # fmt: skip

LOST, UNLOGGED, SEARCH_PATH = "no primary key", "unlogged", "search_path"


def _names(prefix: str) -> str:
    return ", ".join(f"'{prefix}{table}'" for table in WRITTEN_ONCE)


# Operators and their operands are of one type, exactly: what is not, anybody may have one for that fits better.
# What is disabled does nothing; internal triggers are those of foreign keys; nobody here truncates. 66: BEFORE or
# INSTEAD OF, 28: INSERT, DELETE, UPDATE. `row_security_active`: for whoever asks.
_POSTGRES = f"""WITH ours AS (SELECT c.oid, c.relname::text AS tbl, c.relrowsecurity AS secured,
 c.relpersistence AS kept FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = 'nodoubt' AND c.relkind IN ('r', 'p'))
 SELECT 'rule' AS what, o.tbl, r.rulename::text AS name, true AS alters
 FROM pg_catalog.pg_rewrite r JOIN ours o ON o.oid = r.ev_class WHERE r.ev_enabled <> 'D'
 UNION ALL SELECT 'trigger', o.tbl, t.tgname::text, t.tgtype::int4 & 66 <> 0
 FROM pg_catalog.pg_trigger t JOIN ours o ON o.oid = t.tgrelid
 WHERE NOT t.tgisinternal AND t.tgenabled <> 'D' AND t.tgtype::int4 & 28 <> 0
 UNION ALL SELECT 'row level security', o.tbl, '', pg_catalog.row_security_active(o.oid) FROM ours o WHERE o.secured
 UNION ALL SELECT '{LOST}', o.tbl, '', true FROM ours o WHERE o.tbl IN ({_names("")}) AND NOT EXISTS
 (SELECT 1 FROM pg_catalog.pg_index i WHERE i.indrelid = o.oid AND i.indisprimary AND i.indisvalid)
 UNION ALL SELECT '{UNLOGGED}', o.tbl, '', true FROM ours o WHERE o.kept = 'u'
 UNION ALL SELECT '{SEARCH_PATH}', '', current_user::text, false WHERE pg_catalog.current_schema() = 'nodoubt'
 ORDER BY 4 DESC, 1, 2, 3 LIMIT {MEDDLERS_MAX}"""
# By name: in a database of MariaDB's, a table of the user's may have a name that begins as ours do.
_MARIADB = f"""SELECT 'trigger' AS what, EVENT_OBJECT_TABLE AS tbl, TRIGGER_NAME AS name,
 ACTION_TIMING = 'BEFORE' AS alters
 FROM information_schema.TRIGGERS WHERE EVENT_OBJECT_SCHEMA = {{database}}
 AND EVENT_OBJECT_TABLE IN ({{tables}}){{keyless}} ORDER BY 4 DESC, 2, 3 LIMIT {MEDDLERS_MAX}"""
# One by one, each by its name: to look at all of them the server would open every table of the database. To an account
# that may not read the table it shows the key neither, if there is one.
_MARIADB_KEYLESS = f""" UNION ALL SELECT '{LOST}', '{PREFIX}{{table}}', '', 1 FROM information_schema.COLUMNS
 WHERE TABLE_SCHEMA = {{database}} AND TABLE_NAME = '{PREFIX}{{table}}' AND FIND_IN_SET('select', PRIVILEGES)
 HAVING COUNT(*) > 0 AND MAX(COLUMN_KEY = 'PRI') = 0"""
# When one fires stands in its text alone; on a file of SQLite's nobody has a use for any.
_SQLITE = f"""SELECT 'trigger', tbl_name, name, 1 FROM main.sqlite_schema
 WHERE type = 'trigger' AND lower(tbl_name) GLOB '{PREFIX}*'
 UNION ALL SELECT '{LOST}', m.name, '', 1 FROM main.sqlite_schema m WHERE m.type = 'table'
 AND lower(m.name) IN ({_names(PREFIX)}) AND NOT EXISTS (SELECT 1 FROM pragma_table_info(m.name, 'main') WHERE pk > 0)
 ORDER BY 2, 3 LIMIT {MEDDLERS_MAX}"""


def meddlers_sql(kind: str, database: str = "") -> str:
    """Asks for them. `database`: a literal, for MariaDB, which shows triggers only to whoever may make them."""
    if kind == "mariadb":
        made = [table for part in Part for one in shipped(part, kind).migrations for table in one.tables]
        keyed = [table for table in made if table in WRITTEN_ONCE]
        return _MARIADB.format(
            database=database,
            tables=", ".join(f"'{PREFIX}{table}'" for table in (*made, "migrations")),
            keyless="".join(_MARIADB_KEYLESS.format(database=database, table=table) for table in keyed),
        )
    return {"postgres": _POSTGRES, "sqlite": _SQLITE}[kind]


def meddlers(kind: str, found: Iterable[Sequence[Any]]) -> list[Shortcoming]:
    """What is to be said of them. What can swallow or alter a row is refused; what only comes after it is a warning."""
    return [_of(kind, *map(_text, row[:3]), alters=bool(row[3])) for row in found]


def _of(kind: str, what: str, table: str, name: str, *, alters: bool) -> Shortcoming:
    at = f"nodoubt.{table}" if kind == "postgres" else table
    quoted = _quoted(name, "`" if kind == "mariadb" else '"')
    if what == "row level security":
        return Shortcoming(
            what=f"row level security is enabled on {at}",
            advice="it hides decisions and receipts that stand from whoever must obey them"
            + ("" if alters else "; this role passes by it, others do not")
            + ": disable it, a role's rights are granted by what nodoubt schema sql --role app prints",
            refused=alters,
            line=f"ALTER TABLE {at} DISABLE ROW LEVEL SECURITY;",
        )
    if what == LOST:
        return Shortcoming(
            what=f"{at} has no primary key",
            advice="of two who decide, or prove, the same thing both would be believed. Stop what works on it. If it "
            "was restored, restore it as a whole; else look for rows that are there twice, and give it the key back "
            "that nodoubt schema sql prints",
            refused=True,
        )
    if what == SEARCH_PATH:
        return Shortcoming(
            what="the schema nodoubt is the first in search_path, where names without a schema are looked up",
            advice='a CREATE TABLE of yours goes in there, and an INSERT INTO events or jobs reaches ours: by "$user" '
            "it is so for a role that is called nodoubt. Call it otherwise, or give it another path",
            line=f"ALTER ROLE {quoted} SET search_path = public;",
        )
    if what == UNLOGGED:
        return Shortcoming(
            what=f"{at} is unlogged",
            advice="after a crash it is empty, whatever was promised: make it a table that is kept",
            refused=True,
            line=f"ALTER TABLE {at} SET LOGGED;",
        )
    why = "can swallow or alter a row by which a decision, or a branch's commit, is proved, and nobody would notice"
    if not alters:
        why = "runs inside each of our transactions: its errors fail them, and what it changes nobody confirms"
    on = f" ON {at}" if kind == "postgres" else ""
    return Shortcoming(
        what=f"{what} {name!r} on {at}",
        advice=f"it {why}: drop it, and keep whatever makes such things for every table away from ours",
        refused=alters,
        line=f"DROP {what.upper()} {quoted}{on};",
    )


def _quoted(name: str, mark: str) -> str:
    return mark + name.replace(mark, mark * 2) + mark


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
