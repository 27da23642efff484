"""What both PostgreSQL drivers share: how a statement can fail, and how the server learns that we are gone.

Must not: import a driver.
"""

from __future__ import annotations

from ..ports import StatementFailed

# A server that is waiting (for a lock, mostly) does not notice that its client has gone: it would hold all locks of a
# killed session's transaction until it is served, and could still commit then. From version 14 on it can look.
CHECK_CLIENT_FROM_VERSION = 14
CHECK_CLIENT = "SET client_connection_check_interval = '1s'"


class PostgresFailed(StatementFailed):
    """`schema`: of the table the error is about, "" where it is about none.

    A duplicate key in a table of ours means that somebody has decided; in a table of the user's (a deferred
    constraint, found at COMMIT) it means nothing of the kind, and the code is the same.
    """

    def __init__(self, code: str, message: str, schema: str) -> None:
        super().__init__(code, message)
        self.schema = schema


def ends_session(code: str | None, severity: str | None) -> bool:
    """Whether an error says that the connection is gone: FATAL, or what a pooler says of its own connection."""
    return severity in ("FATAL", "PANIC") or (code or "").startswith(("08", "57P0"))
