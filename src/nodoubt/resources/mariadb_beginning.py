"""What is said to MariaDB where a branch begins, with rows of the journal before it, and what an error then means.

Guarantees: such rows are committed before the branch begins, and in no transaction but one of their own; an error is a
refusal only where they surely were not committed.

Must not: send anything.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..ports import Refused, StatementFailed, Unclear
from ..xid import XaXid
from .mariadb_failures import refusal

# READ COMMITTED, as the journal's own transactions are: it locks no gaps. For this one transaction, and an error (1568)
# if the session is in another, which START TRANSACTION would commit.
BEGIN_ROWS = ("SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE", "START TRANSACTION")
COMMIT_ROWS = "COMMIT AND NO CHAIN NO RELEASE"  # whatever a session of the user's has for its completion_type
ROW_REFUSED = frozenset({"1062", "1048"})  # only rows meet them, and neither their COMMIT nor an XA START after it


def message(handle: XaXid, before: Sequence[str]) -> list[str]:
    """The statements, the first error of which ends them."""
    rows = (*BEGIN_ROWS, *before, COMMIT_ROWS) if before else ()
    return [*rows, f"XA START {handle.sql}"]


def failure(error: StatementFailed, name: str, before: Sequence[str]) -> Refused | Unclear:
    """What an error of that message is."""
    if not before:
        return refusal(error, "XA START was refused")
    if error.code in ROW_REFUSED:
        return refusal(error, f"the rows before the branch on {name} were refused")
    return Unclear(f"{name} failed as it began, and the rows before the branch may stand: {error}")
