"""What both PostgreSQL drivers share: how a statement can fail, how the server learns that we are gone, loans.

Must not: import a driver.
"""

from __future__ import annotations

from typing import Any

from ..errors import ResourceUnavailable
from ..ports import StatementFailed
from ..url import Url

# A server that is waiting (for a lock, mostly) does not notice that its client has gone: it would hold all locks of a
# killed session's transaction until it is served, and could still commit then. From version 14 on it can look.
CHECK_CLIENT_FROM_VERSION = 14
CHECK_CLIENT = "SET client_connection_check_interval = '1s'"


def introduction(isolation: str) -> str:
    """The first message on a connection of the user's making.

    Drivers keep an engine's isolation level to themselves and send it with their own BEGIN, which is not ours.
    """
    level = f"; SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL {isolation}" if isolation else ""
    return "SELECT pg_catalog.current_setting('synchronous_commit')" + level


def restore(synchronous_commit: str) -> str | None:
    """What sets the session's durability back after branches, where they have changed it (`resources.postgres`)."""
    if synchronous_commit in ("on", "remote_apply"):
        return None
    return f"SET synchronous_commit = '{synchronous_commit}'"


def require_alive(session: Any, url: Url) -> None:
    """At the end of a connect: a server can take a connection and stop answering. Raises `ResourceUnavailable`."""
    if not session.usable:
        session.kill()
        raise ResourceUnavailable(f"cannot connect to {url}: it took the connection, and then did not answer")


class PostgresFailed(StatementFailed):
    """`schema`: of the table the error is about, "" where it is about none. `after`: so many statements were done.

    A duplicate key in a table of ours means that somebody has decided; in a table of the user's (a deferred
    constraint, found at COMMIT) it means nothing of the kind, and the code is the same.
    """

    def __init__(self, code: str, message: str, schema: str, after: int = 0) -> None:
        super().__init__(code, message)
        self.schema = schema
        self.after = after


def ends_session(code: str | None, severity: str | None) -> bool:
    """Whether an error says that the connection is gone: FATAL, or what a pooler says of its own connection."""
    return severity in ("FATAL", "PANIC") or (code or "").startswith(("08", "57P0"))
