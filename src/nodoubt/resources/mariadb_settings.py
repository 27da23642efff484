"""Which settings of a MariaDB or MySQL server let a promise be kept.

Guarantees: every refusal and warning names the setting and what to set it to.

Must not: ask the server, or change anything.
"""

from __future__ import annotations

import re

from ..errors import ResourceRefused

MARIADB_VERSION_MIN = (10, 5)  # before it, a prepared branch is rolled back when its session ends
MYSQL_VERSION_MIN = (8, 0, 29)  # before it, a prepared branch can't be finished while its session lives

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


def require(settings: dict[str, str]) -> None:
    """Raise `ResourceRefused`, with the setting to change, where a promise could not be kept."""
    version = settings.get("version", "")
    numbers = tuple(int(part) for part in re.findall(r"\d+", version.removeprefix("5.5.5-"))[:3])
    least = MARIADB_VERSION_MIN if "mariadb" in version.lower() else MYSQL_VERSION_MIN
    if numbers < least:
        mariadb, mysql = (".".join(map(str, least)) for least in (MARIADB_VERSION_MIN, MYSQL_VERSION_MIN))
        raise ResourceRefused(
            f"the server is {version}; two-phase commit needs MariaDB {mariadb} or MySQL {mysql}: before, a prepared "
            "branch was lost, or stuck, with its session"
        )
    for name, fine, why in (
        ("innodb_flush_log_at_trx_commit", ("1",), "a commit acknowledged could be lost in a crash: set it to 1"),
        ("innodb_flush_method", None, "nothing is ever flushed: leave it at its default"),
        ("debug_no_sync", ("OFF",), "nothing is ever flushed: set it to OFF"),
        ("wsrep_on", ("OFF",), "Galera does not support XA: use a server that is not in a cluster"),
        ("innodb_read_only", ("OFF",), "nothing can be written here"),
        ("read_only", ("OFF",), "this is a replica, or being made one: name the primary, or set it to OFF"),
        ("super_read_only", ("OFF",), "this is a replica, or being made one: name the primary, or set it to OFF"),
    ):
        value = settings.get(name)
        bad = value is not None and (value.lower() == "nosync" if fine is None else value not in fine)
        if bad:
            raise ResourceRefused(f"{name} is {value}: {why}")


def warnings_of(settings: dict[str, str]) -> list[str]:
    """What may lose a promise under conditions that the server itself can't see."""
    warnings = []
    if "mariadb" not in settings.get("version", "").lower():
        warnings.append("this is MySQL: nodoubt's tests run on MariaDB")
    if settings.get("log_bin") == "ON" and settings.get("sync_binlog") != "1":
        warnings.append(
            f"sync_binlog is {settings.get('sync_binlog')}: after a crash the binary log, and replicas with it, may "
            "lack transactions that were committed: set it to 1"
        )
    if settings.get("binlog_storage_engine"):
        warnings.append(
            f"binlog_storage_engine is {settings['binlog_storage_engine']}: a failover to a replica loses branches "
            "that are prepared: leave it empty"
        )
    if settings.get("innodb_doublewrite", "ON").upper() == "OFF":
        warnings.append(
            "innodb_doublewrite is OFF: a crash can tear pages, and with them what was promised: set it to ON"
        )
    return warnings
