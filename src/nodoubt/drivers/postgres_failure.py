"""What a PostgreSQL server says about a statement that failed, beyond its code.

Must not: import a driver. Both PostgreSQL drivers use it.
"""

from __future__ import annotations

from ..ports import StatementFailed


class PostgresFailed(StatementFailed):
    """`schema`: of the table the error is about, "" where it is about none.

    A duplicate key in a table of ours means that somebody has decided; in a table of the user's (a deferred
    constraint, found at COMMIT) it means nothing of the kind, and the code is the same.
    """

    def __init__(self, code: str, message: str, schema: str) -> None:
        super().__init__(code, message)
        self.schema = schema


def ends_session(code: str | None, severity: str | None) -> bool:
    """Whether an error says that the connection is gone: FATAL, or a code that a pooler gives for its own connection."""
    return severity in ("FATAL", "PANIC") or (code or "").startswith(("08", "57P0"))
