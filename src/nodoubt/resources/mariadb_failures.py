"""What the errors of a MariaDB or MySQL server mean: the one table, and the exception that says so.

Guarantees: nothing here calls a thing done or undone; that is proved by other means (`MariaDBResource._promise`), and
the table only says why.

Must not: know a session.
"""

from __future__ import annotations

from ..ports import BelowFloor, Conflict, Failure, Refused, StatementFailed, UnknownXid
from ..schema import MIGRATED

FAILURES: dict[str, Failure] = {
    "1397": Failure.UNKNOWN_XID,  # XAER_NOTA: gone, or held by a session that still lives
    "1440": Failure.DUPLICATE,  # XAER_DUPID
    "1062": Failure.DUPLICATE,  # duplicate key; InnoDB leaves the transaction committable
    "1205": Failure.TRANSIENT,  # lock wait timeout; the transaction goes on with half of its work
    "1213": Failure.TRANSIENT,  # deadlock; the branch becomes rollback-only
    "1613": Failure.TRANSIENT,  # XA_RBTIMEOUT
    "1614": Failure.TRANSIENT,  # XA_RBDEADLOCK: what XA END may say after a 1213
    "1020": Failure.TRANSIENT,  # the row changed since the snapshot (innodb_snapshot_isolation)
    "1317": Failure.TRANSIENT,  # KILL QUERY
    "1969": Failure.TRANSIENT,  # max_statement_time
    "1021": Failure.FULL,  # disk
    "1114": Failure.FULL,  # table or tablespace
    "1206": Failure.FULL,  # lock table
    "1048": Failure.NO_FLOOR,  # NULL for NOT NULL: how the journal's rows say "below the floor"
    "1399": Failure.REFUSED,  # XAER_RMFAIL: not in a state to do this; after a 1213 that state is ROLLBACK ONLY
    "1400": Failure.REFUSED,  # XAER_OUTSIDE: in a transaction of another kind
    "1398": Failure.REFUSED,  # XAER_INVAL
    "1402": Failure.REFUSED,  # XA_RBROLLBACK: the server rolled it back
    "1178": Failure.REFUSED,  # an engine without savepoints: see PROBE
    "1242": Failure.REFUSED,  # a non-transactional table was written: see PROBE
    "1290": Failure.REFUSED,  # read_only
    "1836": Failure.REFUSED,  # innodb_read_only
    "1142": Failure.REFUSED,  # no privilege on the table
    "1146": Failure.REFUSED,  # no such table
    "1305": Failure.REFUSED,  # no such savepoint: it went when all of the work was undone
}
PROBED = {
    "1242": "it wrote to a non-transactional table (MyISAM, MEMORY …), whose rows stay as they were written",
    "1178": "it read or wrote an Aria table, which can't be rolled back; rows written there stay as they were written",
}


def refusal(error: StatementFailed, what: str) -> Refused:
    """The error as what it means: one table, `FAILURES`, tells."""
    failure = FAILURES.get(error.code, Failure.REFUSED)
    why = f"{what}: {error}"
    if error.code in PROBED:
        why = f"{what}: {PROBED[error.code]}: ALTER TABLE … ENGINE=InnoDB ({error})"
    if error.code == "1146" and "nodoubt_" in error.message:
        why = f"{why}. {MIGRATED}"
    match failure:
        case Failure.UNKNOWN_XID:
            return UnknownXid(why)
        case Failure.DUPLICATE:
            return Conflict(why)
        case Failure.NO_FLOOR:
            return BelowFloor(why)
        case _:
            return Refused(why, retry=failure in (Failure.TRANSIENT, Failure.FULL))
