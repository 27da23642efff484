"""PREPARE for SQLite, which has none: a branch's life in one file.

- *work*: an ordinary BEGIN IMMEDIATE transaction, watched (`capture`).
- *prepare*: see that nobody has fenced the branch; read the after-images of all touched rows, roll the work back,
  rehearse it from the images, and commit instead a record of it, together with locks on its tables. That commit is the
  promise: one flush, and the file is free again.
- *commit*: in one local transaction, check that what was locked is untouched, write the images, delete record and
  locks, insert the receipt. One flush. *Roll back*: delete record and locks.

Any process can do the second half. Each function here runs in one `call`, in the session's thread; whatever it
raises, its transaction has been rolled back, or the session is unusable.

Guarantees: a crash at any point leaves either nothing, or the branch prepared, or the branch committed with its
receipt. A record whose tables were changed from outside is never applied: `Hazard`, and it stays prepared.

Must not: decide. Nothing here ends a prepared branch by itself, whatever its age.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import text_of
from ...ports import Failure, Refused, Reply, SavepointStep, StatementFailed, UnknownXid, Work
from ...xid import Xid
from .capture import SAVEPOINT, Branch, Locks
from .face import Connection, kept
from .failures import commit, failure, lock, refusal, ride, undo
from .receipts import refuse_fenced, write_receipt
from .record import Record, TableRedo, decode, digest, encode, exact, order
from .redo import Images, apply, columns_of, image, rehearse, sequences, standing
from .tables import LOCKED, Schema, guard, load

PREPARED_MAX = 10_000  # branches listed at once
OFTEN = ". If it comes often: shorten the transactions that hold the file, or raise prepare_s, half of which is waited"


class Hazard(Refused):
    """A prepared branch's tables were changed behind its locks. It stays prepared until a human has looked."""


# ---- work -----------------------------------------------------------------------------------------


def begin(connection: Connection, work: Work) -> None:
    """Begin a branch. Where it can only end in one phase its rows need no watching."""
    gid, alone = work.xid.gid, work.alone and not work.staged
    here = kept(connection)
    if here.branch is not None:
        raise Refused(f"the session is at work on another branch, {here.branch.gid}")
    lock(connection, "begin", OFTEN)
    try:
        locks = _locks(connection)
        branch = Branch(gid, None if alone else load(connection), locks, connection.total_changes())
        # The savepoint is the proof that the transaction is still this one: no statement of the user's can name it.
        connection.query(f"SAVEPOINT {SAVEPOINT}")
        connection.watch(branch.on_access, None if alone else branch.on_change)
        here.branch = branch
        connection.at_work = True
    except BaseException as error:
        rollback(connection)
        if isinstance(error, StatementFailed):
            raise refusal(error, "begin") from error
        raise


def _locks(connection: Connection) -> Locks:
    rows = connection.query("SELECT tbl, xid, mode FROM main.nodoubt_locks ORDER BY mode")  # S, then X, which stays
    return {table: (gid, mode) for table, gid, mode in rows}


def execute(connection: Connection, work: Work, statement: str, params: Any) -> tuple[Reply, bool]:
    """The user's statement, and whether the branch has surely written by now."""
    branch = _begun(connection, work)
    try:
        reply = connection.execute(statement, params)
    except Exception as error:
        if LOCKED in text_of(error):  # a cascade or a trigger came upon a guard
            raise Refused(f"{LOCKED}; nothing was done", retry=True) from error
        raise
    _still_at_work(connection, branch)
    if branch.broken is not None:
        raise branch.broken
    return reply, branch.wrote(connection.total_changes())


def savepoint(connection: Connection, work: Work, step: SavepointStep, name: str) -> None:
    """A savepoint of the user's, inside ours. What `capture` has noted of undone work stays noted: a row too many."""
    branch = _begun(connection, work)
    branch.steps = True
    try:
        connection.query("; ".join(step.statements(name)))
    finally:
        branch.steps = False
    _still_at_work(connection, branch)


def _begun(connection: Connection, work: Work) -> Branch:
    """The branch, which its first call begins. While `work.opening` stands, nothing has begun."""
    if work.opening:
        begin(connection, work)
        work.opening = ()
    return _at_work(connection, work.xid.gid)


def _at_work(connection: Connection, gid: str) -> Branch:
    branch = kept(connection).branch
    if branch is None or branch.gid != gid:
        raise _gone(gid)
    _still_at_work(connection, branch)
    return branch


def _still_at_work(connection: Connection, branch: Branch) -> None:
    if not connection.in_transaction:
        raise _gone(branch.gid)


def _gone(gid: str) -> Refused:
    return Refused(f"the session is no longer in the transaction of {gid}: SQLite has rolled it back")


def wrote(connection: Connection, gid: str) -> bool:
    """False only if the branch surely wrote nothing."""
    return _at_work(connection, gid).wrote(connection.total_changes())


def rollback(connection: Connection) -> None:
    """Undo what was not prepared, and stop watching."""
    _forget(connection)
    connection.unwatch()
    undo(connection)


def _forget(connection: Connection) -> None:
    """From here on an open transaction is nobody's, and makes the session unusable."""
    kept(connection).branch = None
    connection.at_work = False


def end_reader(connection: Connection, gid: str) -> None:
    """Commit a branch that wrote nothing: there is nothing to flush."""
    try:
        _leave(connection, gid)
        commit(connection, "end of a reading branch")
    except StatementFailed as error:
        rollback(connection)
        raise refusal(error, "end of a reading branch") from error
    except BaseException:
        rollback(connection)
        raise


def _leave(connection: Connection, gid: str) -> Branch:
    """Stop watching and release the savepoint, which exists only if the transaction is the one that was begun."""
    branch = _at_work(connection, gid)
    connection.unwatch()
    connection.query(f"RELEASE {SAVEPOINT}")
    _forget(connection)
    return branch


def commit_alone(
    connection: Connection, xid: Xid, epoch: int, riders: Sequence[str], closing: Sequence[str] = ()
) -> None:
    """One phase: the work, what it ends with, and its proof (riders, or else the receipt), in one commit."""
    what = "one-phase commit"
    try:
        branch = _leave(connection, xid.gid)
        if branch.broken is not None:
            raise branch.broken
        ride(connection, closing, what)
        if riders:
            ride(connection, riders, what)
        else:
            write_receipt(connection, xid, epoch, alone=True)
        commit(connection, what)
    except StatementFailed as error:
        rollback(connection)
        raise refusal(error, what) from error
    except BaseException:
        rollback(connection)
        raise


# ---- prepare --------------------------------------------------------------------------------------


def prepare(connection: Connection, xid: Xid, epoch: int, riders: Sequence[str]) -> None:
    """Replace the open work by a record of it, and commit that, with the riders."""
    what = "prepare"
    try:
        branch = _at_work(connection, xid.gid)
        if branch.schema is None:
            raise Refused("a branch of a coordinator with one resource ends in one phase; it cannot prepare")
        branch.refuse_unseen(connection.total_changes())
        if connection.unresolved_references():
            raise Refused("FOREIGN KEY constraint failed (a deferred one, checked at prepare); nothing was done")
        connection.unwatch()
        refuse_fenced(connection, xid)
        exclusive, shared = branch.locked()
        _refuse_locked(branch, exclusive, shared)
        record = _captured(connection, branch, branch.schema)
        guard(connection, [branch.schema.tables[name] for name in exclusive | shared])
        _promise(connection, record, exclusive, shared, epoch)
        ride(connection, riders, what)
        _forget(connection)
        commit(connection, what)
    except StatementFailed as error:
        rollback(connection)
        raise refusal(error, what) from error
    except BaseException:
        rollback(connection)
        raise


def _refuse_locked(branch: Branch, exclusive: set[str], shared: set[str]) -> None:
    """What the branch has read may be locked by another: then it has seen rows that are about to be replaced."""
    for name in sorted(branch.locks.keys() & (exclusive | shared)):
        if name in exclusive or branch.locks[name][1] == "X":
            raise Refused(
                f"table {name}, which this transaction relies on, is locked by the prepared branch "
                f"{branch.locks[name][0]}; nothing was done, try again when that has been committed or rolled back",
                retry=True,
            )


def _captured(connection: Connection, branch: Branch, schema: Schema) -> Record:
    """Read the after-images, take the work back, read the same rows as they were before; then rehearse."""
    touched = [
        (schema.tables[name], columns_of(schema.tables[name]), tuple(sorted(found, key=order)))
        for name, found in branch.keys().items()
    ]

    def images() -> Images:
        return {table.name: image(connection, table.name, table.key, columns, keys) for table, columns, keys in touched}

    rows, numbers = images(), sequences(connection, schema)
    connection.query(f"ROLLBACK TO {SAVEPOINT}")
    old_rows, old_numbers = images(), sequences(connection, schema)
    after: dict[str, bytes] = {}
    tables: list[TableRedo] = []
    for table, columns, keys in touched:
        before, after[table.name] = exact(old_rows[table.name]), exact(rows[table.name])
        if before != after[table.name]:
            tables.append(
                TableRedo(table.name, table.shape, digest(before), table.key, columns, keys, rows[table.name])
            )
    counted = {table.name for table in tables if schema.tables[table.name].counted}
    counted |= {name for name in numbers.keys() | old_numbers.keys() if numbers.get(name) != old_numbers.get(name)}
    record = Record(branch.gid, tuple(tables), tuple([(name, numbers.get(name)) for name in sorted(counted)]))
    rehearse(connection, record, schema, old_rows, after, numbers)
    connection.query(f"ROLLBACK TO {SAVEPOINT}; RELEASE {SAVEPOINT}")
    return record


def _promise(connection: Connection, record: Record, exclusive: set[str], shared: set[str], epoch: int) -> None:
    connection.query(
        "INSERT INTO main.nodoubt_prepared (xid, epoch, at, record) VALUES (?, ?, unixepoch('subsec'), ?)",
        (record.gid, epoch, encode(record)),
    )
    modes = [(name, record.gid, "X") for name in exclusive] + [(name, record.gid, "S") for name in shared]
    connection.many("INSERT INTO main.nodoubt_locks (tbl, xid, mode) VALUES (?, ?, ?)", modes)


# ---- phase two ------------------------------------------------------------------------------------


def commit_prepared(connection: Connection, xid: Xid, riders: Sequence[str]) -> None:
    """Carry a prepared branch out, with its receipt and the riders."""
    what = f"commit of the prepared branch {xid.gid}"
    lock(connection, what)
    try:
        stored, epoch = _released(connection, xid.gid)
        record, schema = decode(stored, xid.gid), load(connection)
        rows = _unchanged(connection, record, schema)
        try:
            apply(connection, record, schema, rows)
        except StatementFailed as error:
            if failure(error) is Failure.FULL:
                raise
            raise Hazard(_hazard(record.gid, "rows", f"they cannot be written any more ({error})")) from error
        write_receipt(connection, xid, epoch, alone=False)
        ride(connection, riders, what)
        commit(connection, what)
    except StatementFailed as error:
        undo(connection)
        raise refusal(error, what) from error
    except BaseException:
        undo(connection)
        raise


def rollback_prepared(connection: Connection, xid: Xid) -> None:
    """Drop a prepared branch. Its record need not be readable for that."""
    what = f"rollback of the prepared branch {xid.gid}"
    lock(connection, what)
    try:
        _released(connection, xid.gid)
        connection.query("DELETE FROM main.nodoubt_keys WHERE xid = ?", (xid.gid,))  # free again
        commit(connection, what)
    except StatementFailed as error:
        undo(connection)
        raise refusal(error, what) from error
    except BaseException:
        undo(connection)
        raise


def _released(connection: Connection, gid: str) -> tuple[Any, int]:
    """Its record and epoch, which are gone with this transaction, and so are its locks."""
    # Not by RETURNING, for whose rows SQLite opens a table of its own.
    rows = connection.query("SELECT record, epoch FROM main.nodoubt_prepared WHERE xid = ?", (gid,))
    if not rows:
        raise UnknownXid(f"no prepared branch {gid} in {connection.path}")
    connection.query("DELETE FROM main.nodoubt_prepared WHERE xid = ?", (gid,))
    connection.query("DELETE FROM main.nodoubt_locks WHERE xid = ?", (gid,))
    return rows[0][0], rows[0][1]


def _unchanged(connection: Connection, record: Record, schema: Schema) -> Images:
    """The rows that the branch has touched, as they were then; or `Hazard`.

    The guards can be passed by: by DDL, by VACUUM (which may renumber rows), with triggers switched off.
    """
    rows: Images = {}
    for table in record.tables:
        known = schema.tables.get(table.name)
        if known is None or known.shape != table.shape:
            raise Hazard(_hazard(record.gid, table.name, "its definition, or an index of it, is another now"))
        rows[table.name] = standing(connection, table)
        if digest(exact(rows[table.name])) != table.before:
            raise Hazard(_hazard(record.gid, table.name, "rows that this branch has locked are not what they were"))
    return rows


def _hazard(gid: str, table: str, why: str) -> str:
    return (
        f"{table} was changed while {gid} was prepared: {why}. The branch stays prepared and its tables stay locked. "
        "Undo that change, and the next sweep finishes the branch; or roll the branch back, and repair by hand what it "
        "should have done"
    )


def prepared(connection: Connection, gid: str = "") -> list[tuple[str, float]]:
    """All records' xids and ages in seconds, whether or not they can be read; or that one's."""
    if not connection.query("SELECT 1 FROM main.sqlite_schema WHERE name = 'nodoubt_prepared'"):
        return []
    return [
        (gid, max(age, 0.0))
        for gid, age in connection.query(
            "SELECT xid, unixepoch('subsec') - at FROM main.nodoubt_prepared WHERE ?1 IN ('', xid) ORDER BY at, xid "
            "LIMIT ?2",
            (gid, PREPARED_MAX),
        )
    ]
