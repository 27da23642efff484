"""What SQLite's error codes mean to us: one table, and the ways to begin and end a transaction by it.

Guarantees: `commit` returns only if the transaction is over by the connection's own word; it raises `Refused` only
if nothing can have been written, and `Unclear` for everything else.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import NoDoubtError, SchemaMismatch
from ...kept import parts
from ...ports import BelowFloor, Conflict, Failure, Refused, SessionLost, StatementFailed, Unclear
from ...schema import MIGRATED
from .face import Connection

# SQLite's extended result codes. What is not here is REFUSED: an answer, and not what was asked for.
FAILURES: dict[str, Failure] = {
    "5": Failure.TRANSIENT,  # SQLITE_BUSY: another connection writes
    "261": Failure.TRANSIENT,  # SQLITE_BUSY_RECOVERY: another connection recovers the WAL
    "517": Failure.TRANSIENT,  # SQLITE_BUSY_SNAPSHOT
    "773": Failure.TRANSIENT,  # SQLITE_BUSY_TIMEOUT
    "6": Failure.TRANSIENT,  # SQLITE_LOCKED
    "13": Failure.FULL,  # SQLITE_FULL
    "1299": Failure.NO_FLOOR,  # SQLITE_CONSTRAINT_NOTNULL: a decision row below the floor
    "1555": Failure.DUPLICATE,  # SQLITE_CONSTRAINT_PRIMARYKEY
    "2067": Failure.DUPLICATE,  # SQLITE_CONSTRAINT_UNIQUE
    "2579": Failure.DUPLICATE,  # SQLITE_CONSTRAINT_ROWID
}

# A COMMIT that ends so has written nothing: a lock was not free (rollback journal), or a deferred constraint failed.
# Not SQLITE_FULL: in a WAL the frame that commits can be written by then, and a crash would bring it to life.
_COMMIT_SURELY_FAILED = frozenset({5, 19})

_AS_TEXT = "CAST(x'"


def failure(error: StatementFailed) -> Failure:
    """What this error means."""
    return FAILURES.get(error.code, Failure.REFUSED)


def refusal(error: StatementFailed, what: str) -> NoDoubtError:
    """The error to raise after a statement of ours failed and its transaction was rolled back."""
    if "no such table: main.nodoubt_" in error.message:
        return SchemaMismatch(f"{what}: {error.message}. {MIGRATED}, or create them with setup()")
    match failure(error):
        case Failure.DUPLICATE:
            return Conflict(f"{what}: a row with this key stands already ({error.message})")
        case Failure.NO_FLOOR:
            return BelowFloor(f"{what}: below the floor ({error.message})")
        case Failure.TRANSIENT:
            return Refused(f"{what}: {error.message}; nothing was done, try again", retry=True)
        case Failure.FULL:
            return Refused(f"{what}: {error.message}; nothing was done. Make room, then try again", retry=True)
        case _:
            return Refused(f"{what}: {error}; nothing was done")


def lock(connection: Connection, what: str, advice: str = "") -> None:
    """BEGIN IMMEDIATE: the file's only write lock, waited for no longer than the connection allows.

    `advice`: what helps where it is refused again and again.
    """
    if connection.in_transaction:
        raise Refused(f"{what}: the session is inside another transaction")
    try:
        connection.query("BEGIN IMMEDIATE")
    except StatementFailed as error:
        if failure(error) is not Failure.TRANSIENT:
            raise refusal(error, what) from error
        raise Refused(
            f"{what}: {connection.path} is locked for writing by {connection.writers()}, for longer than the "
            f"{connection.lock_wait_s:g} s that we wait; nothing was done, try again{advice}",
            retry=True,
        ) from error


def undo(connection: Connection) -> None:
    """ROLLBACK, if there is anything to roll back. An error in it makes the session unusable, and is not raised."""
    try:
        if connection.in_transaction:
            connection.query("ROLLBACK")
    except (StatementFailed, SessionLost):
        connection.broken = True


def commit(connection: Connection, what: str) -> None:
    """COMMIT, and the proof of it."""
    try:
        connection.query("COMMIT")
    except StatementFailed as error:
        surely_failed = int(error.code) & 0xFF in _COMMIT_SURELY_FAILED and connection.in_transaction
        undo(connection)
        if surely_failed and not connection.broken:
            raise refusal(error, what) from error
        connection.broken = True
        raise Unclear(f"{what}: the COMMIT failed halfway ({error}); only a fresh connection can tell") from error
    except SessionLost as error:
        raise Unclear(f"{what}: the COMMIT was not answered ({error}); only a fresh connection can tell") from error
    if connection.in_transaction:
        connection.broken = True
        raise Unclear(f"{what}: the COMMIT was answered, and the transaction is open all the same")


def ride(connection: Connection, riders: Sequence[str], what: str) -> None:
    """Rows of the journal's, in the transaction that is open here."""
    for rider in riders:
        try:
            said = parts(rider)
            if said is None:
                connection.run(rider)
            else:
                connection.query(said[0], [_value(literal) for literal in said[1]])
        except StatementFailed as error:
            raise refusal(error, what) from error


def _value(literal: str) -> str | float | None:
    """What a literal of ours stands for: bound as that, its statement need not be compiled again. See `journals`."""
    if literal[0] == "'":
        return literal[1:-1]  # there is no quote inside
    if literal == "NULL":
        return None
    if literal.startswith(_AS_TEXT):
        return bytes.fromhex(literal[len(_AS_TEXT) : -len("' AS TEXT)")]).decode()
    return float(literal) if "e" in literal else int(literal)
