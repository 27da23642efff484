"""Which settings of a PostgreSQL server let a promise be kept.

Guarantees: every refusal and warning names the setting and the line to change.

Must not: ask the server, or change anything.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..ports import Shortcoming

SERVER_VERSION_MIN = 120000
CONF = "postgresql.conf"

SETTINGS = (
    "server_version_num", "fsync", "full_page_writes", "max_prepared_transactions", "synchronous_standby_names",
    "synchronous_commit", "transaction_read_only",
)  # fmt: skip


# Of a connection, not of the server: a database in SQL_ASCII leaves it to each to say what its bytes mean.
UNREADABLE = Shortcoming(
    what="client_encoding is SQL_ASCII, so texts are only bytes",
    advice="put ?client_encoding=utf8 into its URL",
    refused=True,
)


def shortcomings(setting: Mapping[str, str], *, standby: bool, pooled: bool, proxied: bool) -> list[Shortcoming]:
    """What stands in the way, refusals first. `pooled`: two messages were answered by two server processes; `proxied`:
    the process that answers is not the one that was connected to.
    """
    return [*_refusals(setting, standby=standby, pooled=pooled), *_warnings(setting, proxied=proxied)]


def _refusals(setting: Mapping[str, str], *, standby: bool, pooled: bool) -> list[Shortcoming]:
    found = []

    def refuse(holds: bool, what: str, advice: str, line: str = "", where: str = "") -> None:
        if holds:
            found.append(Shortcoming(what=what, advice=advice, refused=True, line=line, where=where))

    refuse(int(setting["server_version_num"]) < SERVER_VERSION_MIN, "it runs PostgreSQL below 12", "upgrade it")
    refuse(
        setting["fsync"] == "off",
        "fsync is off, so a crash loses what was acknowledged",
        f"set fsync = on in {CONF} and reload",
        "fsync = on",
        CONF,
    )
    refuse(standby, "it is a standby, where nothing can be written", "connect to the primary")
    refuse(
        setting["transaction_read_only"] == "on" and not standby,
        "transactions are read-only here",
        "set default_transaction_read_only = off for this role and database",
        "default_transaction_read_only = off",
        CONF,
    )
    refuse(
        setting["max_prepared_transactions"] == "0",
        "prepared transactions are disabled",
        f"set max_prepared_transactions = 100 in {CONF} and restart the server",
        "max_prepared_transactions = 100",
        CONF,
    )
    refuse(
        pooled,
        "two statements were answered by two server processes, so a pooler shares sessions by transaction",
        "connect to the server itself, or to a pooler that pools by session",
    )
    return found


def _warnings(setting: Mapping[str, str], *, proxied: bool) -> list[Shortcoming]:
    found = []
    if proxied:
        found.append(
            Shortcoming(
                what="a connection pooler stands between us and the server",
                advice="it must pool by session, not by transaction; better connect to the server itself",
            )
        )
    if setting["full_page_writes"] == "off":
        found.append(
            Shortcoming(
                what="full_page_writes is off",
                advice="unless the file system never tears a page, a crash can lose what was promised: set it to on",
                line="full_page_writes = on",
                where=CONF,
            )
        )
    if setting["synchronous_standby_names"] and setting["synchronous_commit"] in ("off", "local", "remote_write"):
        found.append(
            Shortcoming(
                what=f"synchronous_standby_names is set, but synchronous_commit is {setting['synchronous_commit']}",
                advice="our own transactions wait for the standby, yours do not; set synchronous_commit = on",
                line="synchronous_commit = on",
                where=CONF,
            )
        )
    return found
