"""What is said to MariaDB where a branch is finished in a session that has not prepared it, and what an OK is worth.

When the session that prepared a branch ends, the server lets go of it in two steps: first anybody may name it, then the
engine may end it. Between the two, XA COMMIT and XA ROLLBACK answer OK and do nothing, and the branch is listed no more
until the server restarts (measured: once in some hundred commits that met the end of that session).

Guarantees: such a branch is not touched while that session is listed; an OK to XA COMMIT counts only with the branch's
receipt, which the very next statement must see.

Must not: send anything.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..ports import Reply, Session, StatementFailed, UnknownXid
from ..protocol.records import Verdict
from ..xid import XaXid
from . import mariadb_text as text

STARTED_TOLERANCE_S = 2  # the server's start is computed from two clocks of whole seconds, see mysql_wire.started
_HELD = "1242"  # the guard's: a subquery with two rows


def same_run(handle: XaXid, session: Session) -> bool:
    """Whether the server has not been restarted since it was prepared: then its session's id means something."""
    return abs(handle.server_started - session.server_started) <= STARTED_TOLERANCE_S


def is_own(handle: XaXid, session: Session) -> bool:
    """Whether it is this session that has prepared the branch."""
    return session.connection_id == handle.connection and same_run(handle, session)


def message(verb: str, handle: XaXid, session: Session, receipts: str) -> list[str]:
    """The statements, the first error of which ends them. `receipts`: their table."""
    end = f"XA {verb} {handle.sql}"
    if is_own(handle, session):
        return [end]
    gone = f"SELECT 1 FROM information_schema.PROCESSLIST WHERE ID = {int(handle.connection)}"
    guard = [f"SELECT (SELECT 1 UNION ALL {gone})"] if same_run(handle, session) else []
    seen = [f"SELECT verdict FROM {receipts} {text.where(handle.xid.attempt, handle.xid.branch)}"]
    return [*guard, end, *(seen if verb == "COMMIT" else [])]


def require_done(verb: str, handle: XaXid, session: Session, replies: Sequence[Reply]) -> None:
    """Raise `UnknownXid` where XA COMMIT has answered OK, and has committed nothing."""
    if verb == "COMMIT" and not is_own(handle, session) and not _shows_commit(replies[-1]):
        raise UnknownXid(
            f"the server answered OK to the XA COMMIT of {handle.xid.gid}, and its receipt is not there: nothing was "
            "committed. It lists the branch again when it has been restarted"
        )


def _shows_commit(seen: Reply) -> bool:
    return bool(seen.rows) and seen.scalar() == Verdict.COMMIT.value


def is_of_look(error: StatementFailed) -> bool:
    """Whether it may be the look at the receipt that failed, for want of a right or of a table: XA COMMIT was done."""
    return error.code in ("1142", "1146")


def is_held(error: StatementFailed) -> bool:
    """Whether the session that prepared it is still listed, so that nothing was done."""
    return error.code == _HELD
