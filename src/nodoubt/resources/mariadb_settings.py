"""Which settings of a MariaDB or MySQL server let a promise be kept.

Guarantees: every refusal and warning names the setting and what to set it to.

Must not: ask the server, or change anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..ports import Shortcoming, StatementFailed
from ..schema import meddlers_sql

MARIADB_VERSION_MIN = (10, 5)  # before it, a prepared branch is rolled back when its session ends
MYSQL_VERSION_MIN = (8, 0, 29)  # before it, a prepared branch can't be finished while its session lives
CNF = "the section [mysqld] of my.cnf"
TABLES_NAMED_MAX = 5

SETTINGS = (
    "binlog_storage_engine",
    "debug_no_sync",
    "innodb_doublewrite",
    "innodb_flush_log_at_trx_commit",
    "innodb_flush_method",
    "innodb_read_only",
    "log_bin",
    "read_only",
    "server_uid",
    "server_uuid",
    "super_read_only",
    "sync_binlog",
    "version",
    "wsrep_on",
)


def shortcomings(settings: Mapping[str, str]) -> list[Shortcoming]:
    """What stands in the way, refusals first."""
    return [*_refusals(settings), *_warnings(settings)]


def _refusals(settings: Mapping[str, str]) -> list[Shortcoming]:
    found = []
    version = settings.get("version", "")
    numbers = tuple(int(part) for part in re.findall(r"\d+", version.removeprefix("5.5.5-"))[:3])
    least = MARIADB_VERSION_MIN if "mariadb" in version.lower() else MYSQL_VERSION_MIN
    if numbers < least:
        mariadb, mysql = (".".join(map(str, least)) for least in (MARIADB_VERSION_MIN, MYSQL_VERSION_MIN))
        found.append(
            Shortcoming(
                what=f"the server is {version}",
                advice=f"two-phase commit needs MariaDB {mariadb} or MySQL {mysql}: before, a prepared branch was "
                "lost, or stuck, with its session",
                refused=True,
            )
        )
    for name, fine, why in (
        ("innodb_flush_log_at_trx_commit", "1", "a commit acknowledged could be lost in a crash: set it to 1"),
        ("innodb_flush_method", None, "nothing is ever flushed: leave it at its default"),
        ("debug_no_sync", "OFF", "nothing is ever flushed: set it to OFF"),
        ("wsrep_on", "OFF", "Galera does not support XA: use a server that is not in a cluster"),
        ("innodb_read_only", "OFF", "nothing can be written here"),
        ("read_only", "OFF", "this is a replica, or being made one: name the primary, or set it to OFF"),
        ("super_read_only", "OFF", "this is a replica, or being made one: name the primary, or set it to OFF"),
    ):
        value = settings.get(name)
        if value is not None and (value.lower() == "nosync" if fine is None else value != fine):
            line = "" if fine is None or name == "wsrep_on" else f"{name} = {fine}"
            found.append(Shortcoming(what=f"{name} is {value}", advice=why, refused=True, line=line, where=CNF))
    return found


def _warnings(settings: Mapping[str, str]) -> list[Shortcoming]:
    """What may lose a promise under conditions that the server itself can't see."""
    found = []

    def warn(what: str, advice: str, line: str = "") -> None:
        found.append(Shortcoming(what=what, advice=advice, line=line, where=CNF if line else ""))

    if "mariadb" not in settings.get("version", "").lower():
        warn("this is MySQL", "nodoubt's tests run on MariaDB")
    if settings.get("log_bin") == "ON" and settings.get("sync_binlog") != "1":
        warn(
            f"sync_binlog is {settings.get('sync_binlog')}",
            "after a crash the binary log, and replicas with it, may lack transactions that were committed: set it "
            "to 1",
            "sync_binlog = 1",
        )
    if settings.get("binlog_storage_engine"):
        warn(
            f"binlog_storage_engine is {settings['binlog_storage_engine']}",
            "a failover to a replica loses branches that are prepared: leave it empty",
            "binlog_storage_engine =",
        )
    if settings.get("innodb_doublewrite", "ON").upper() == "OFF":
        warn(
            "innodb_doublewrite is OFF",
            "a crash can tear pages, and with them what was promised: set it to ON",
            "innodb_doublewrite = ON",
        )
    return found


def tables_sql(database: str) -> tuple[str, str]:
    """Asks for `plain_tables`, and for who meddles with ours. `database`: a literal."""
    return plain_tables_sql(database), meddlers_sql("mariadb", database)


def plain_tables_sql(database: str) -> str:
    """Asks for the tables that can't be rolled back. `database`: a literal."""
    return (
        f"SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = {database} AND "
        "TABLE_TYPE = 'BASE TABLE' AND ENGINE NOT IN (SELECT ENGINE FROM information_schema.ENGINES WHERE "
        "TRANSACTIONS = 'YES') ORDER BY TABLE_NAME"
    )


def plain_tables(tables: Sequence[str]) -> list[Shortcoming]:
    """What is to be said of them."""
    if not tables:
        return []
    more = f" and {len(tables) - TABLES_NAMED_MAX} more" if len(tables) > TABLES_NAMED_MAX else ""
    return [
        Shortcoming(
            what=f"writes to {', '.join(tables[:TABLES_NAMED_MAX])}{more} can't be rolled back, so they are refused in "
            "transactions",
            advice="ALTER TABLE … ENGINE=InnoDB",
        )
    ]


def no_listing(error: StatementFailed) -> Shortcoming:
    """MySQL asks for a right that MariaDB does not know."""
    return Shortcoming(
        what=f"the server refuses XA RECOVER ({error}), without which a branch in doubt can't be found",
        advice="GRANT XA_RECOVER_ADMIN to this account",
        refused=True,
        line="GRANT XA_RECOVER_ADMIN ON *.* TO CURRENT_USER()",
    )
