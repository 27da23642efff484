"""What PostgreSQL's answers mean to a branch: one table from error codes, one rule for each doubt.

Must not: send a statement.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import invariant
from ..ports import BelowFloor, Conflict, Failure, Refused, Reply, Session, StatementFailed, Unclear, UnknownXid
from ..schema import MIGRATED

PROOF_TEXT = "nodoubt: this is not the transaction that was begun"

FAILURES: dict[str, Failure] = {
    "42704": Failure.UNKNOWN_XID,  # COMMIT PREPARED: no such gid
    "55000": Failure.HELD,  # COMMIT PREPARED: somebody else is at it. At PREPARE: prepared transactions are disabled
    "42710": Failure.DUPLICATE,  # PREPARE: the gid exists
    "23505": Failure.DUPLICATE,
    "40001": Failure.TRANSIENT,
    "40P01": Failure.TRANSIENT,
    "55P03": Failure.TRANSIENT,
    "57014": Failure.TRANSIENT,
    "53100": Failure.FULL,
    "53200": Failure.FULL,  # PREPARE: all of max_prepared_transactions are taken
    "23502": Failure.NO_FLOOR,  # a rider of an attempt below the floor writes NULL
    "22P02": Failure.NO_FLOOR,  # the proof
    "0A000": Failure.REFUSED,
    "42501": Failure.REFUSED,
    "25001": Failure.REFUSED,
    "25006": Failure.REFUSED,
    "25P02": Failure.REFUSED,
}
PREPARE_ADVICE = {
    "55000": "set max_prepared_transactions above 0 in postgresql.conf and restart the server",
    "53200": "all of max_prepared_transactions are taken: finish what was left behind, or raise it and restart",
    "0A000": "what it names cannot be part of a prepared transaction: leave it out, or do it outside of one",
}


def refusal(
    error: StatementFailed, doing: str, advice: dict[str, str] | None = None, *, retry: bool = False
) -> Refused:
    """What a failed statement of ours means. `retry`: what an unlisted code leaves possible."""
    ours = getattr(error, "schema", "") == "nodoubt"
    why = f"{doing}: {error}"
    if error.code == "42P01" and "nodoubt." in error.message:
        why = f"{why}. {MIGRATED}"
    if advice and error.code in advice:
        return Refused(f"{why}; {advice[error.code]}", retry=error.code == "53200")
    match FAILURES.get(error.code):
        case Failure.UNKNOWN_XID:
            return UnknownXid(why)
        case Failure.DUPLICATE if ours:
            return Conflict(why)
        case Failure.NO_FLOOR if ours and error.code == "23502":
            return BelowFloor(why)
        case Failure.NO_FLOOR if PROOF_TEXT in error.message:
            return Refused(
                f"{doing}: the transaction that was begun is not open any more. Something in it committed or rolled "
                "back on its own, so nobody knows what stands of it; nothing more was done"
            )
        case Failure.HELD | Failure.TRANSIENT | Failure.FULL:
            return Refused(why, retry=True)
        case None:
            return Refused(why, retry=retry)
        case _:
            return Refused(why)


def require_rows(session: Session, replies: Sequence[Reply]) -> None:
    """A row of the protocol that was written zero times would be a decision that nobody took (I4)."""
    if "INSERT 0 0" in [reply.tag for reply in replies]:
        session.usable = False  # a rule did that, and what is prepared here follows it after it has been dropped, too
        invariant(condition=False, number="I4", message="a row of the protocol wrote nothing")


def require_durable(session: Session, doing: str) -> None:
    """Committed here, but the wait for a synchronous standby was cancelled: a failover may forget it."""
    for warning in warnings(session):
        if warning.startswith("SyncRepWaitForLSN:"):
            raise Unclear(f"{doing}: not known to be on the standby: {warning}")


def warnings(session: Session) -> Sequence[str]:
    return getattr(session, "warnings", ())
