"""PostgreSQL in memory. What it imitates: command tags (`ROLLBACK` without an error for the PREPARE or COMMIT of a
failed or absent transaction), rows that are committed unforced and flushed by the next forced command of the log,
prepared branches that belong to no session, and a receipt's row lock that outlives them in a prepared branch.

The scripts mirror `resources.postgres`, message by message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...errors import BranchDoomed, SchemaMismatch, invariant, text_of
from ...ports import (
    BelowFloor,
    Conflict,
    Identity,
    Prepared,
    Refused,
    Reply,
    SavepointStep,
    Session,
    SessionLost,
    StatementFailed,
    Traits,
    Unclear,
    Work,
)
from ...protocol.records import Epoch, Verdict
from ...script import Script, do
from ...xid import Xid, parse_gid
from ..postgres_answers import PROOF_TEXT, refusal
from .server import (
    Change,
    Connection,
    MemoryServer,
    MemoryTables,
    Message,
    Promise,
    Receipt,
    Transaction,
    closing,
    only,
    receipt_lock,
    without,
)

FENCE_TRIES_MAX = 3
_ENDING = frozenset({"commit", "prepare", "rollback"})  # what a failed transaction still takes


class MemoryPostgres(MemoryServer):
    """The server."""

    kind = "postgres"
    unforced_rows = True
    duplicate, no_floor, lock_timeout, disk_full, no_savepoint = "23505", "23502", "55P03", "53100", "3B001"

    def _statement(self, connection: Connection, name: str, args: Sequence[Any]) -> Any:
        transaction = connection.transaction
        mends = name == "savepoint" and args[0] is SavepointStep.BACK
        if transaction is not None and transaction.failed and name not in _ENDING and not mends:
            raise StatementFailed("25P02", "current transaction is aborted, commands ignored until end of transaction")
        return super()._statement(connection, name, args)

    def failed(self, connection: Connection) -> None:
        if connection.transaction is not None:
            connection.transaction.failed = True

    def _open(self, connection: Connection) -> Transaction:
        if connection.transaction is None:
            raise StatementFailed("25P01", "there is no transaction in progress")
        return connection.transaction

    # ---- a transaction

    def _begin(self, connection: Connection) -> Reply:
        """The row, if there is one, is a warning."""
        if connection.transaction is not None:
            return Reply("BEGIN", rows=(("there is already a transaction in progress",),))
        connection.transaction = Transaction()
        return Reply("BEGIN")

    def _mark(self, connection: Connection, mark: str) -> Reply:
        self._open(connection).mark = mark
        return Reply("SET")

    def _proof(self, connection: Connection, mark: str) -> Reply:
        if connection.transaction is None or connection.transaction.mark != mark:
            raise StatementFailed("22P02", PROOF_TEXT)
        return Reply("SELECT 1")

    def _wrote(self, connection: Connection) -> Reply:
        return Reply("SELECT 1", rows=((bool(self._open(connection).changes),),))

    def _receipt(self, connection: Connection, attempt: str, branch: int, epoch: int, alone: bool) -> Reply:
        key = (attempt, branch)
        self.refuse_if_full()
        self.lock(connection, receipt_lock(key))
        if key in self.tables.receipts:
            raise StatementFailed(self.duplicate, f"a receipt of {key} stands already")
        receipt = Receipt(Verdict.COMMIT, epoch, alone, self.now())
        self._open(connection).changes.append(Change("receipts", key, receipt))
        return Reply("INSERT 0 1", 1)

    def _ride(self, connection: Connection, riders: Sequence[str]) -> Reply:
        """The journal's rows: checked now, and again as they are committed, at the end of the same message."""
        self.refuse_if_full()
        self._ridden(riders)
        self._open(connection).changes.append(Change("guest", "", tuple(riders)))
        return Reply("INSERT 0 1", 1)

    def _commit(self, connection: Connection, forced: bool = True) -> Reply:
        transaction, connection.transaction = connection.transaction, None
        if transaction is None:
            return Reply("COMMIT")
        if transaction.failed:
            return Reply("ROLLBACK")
        if transaction.changes:
            self.store(connection, transaction.changes, forced=forced)
        return Reply("COMMIT")

    def _rollback(self, connection: Connection) -> Reply:
        connection.transaction = None
        return Reply("ROLLBACK")

    # ---- two phases

    def _prepare(self, connection: Connection, gid: str) -> Reply:
        transaction, connection.transaction = connection.transaction, None
        if transaction is None or transaction.failed:
            return Reply("ROLLBACK")
        if gid in self.tables.prepared:
            raise StatementFailed("42710", f"transaction identifier {gid} is already in use")
        self.refuse_if_full()
        promise = Promise(tuple(transaction.changes), tuple(sorted(transaction.locks)), 0, self.now())
        prepared = {**self.tables.prepared, gid: promise}
        self.write(replace(self.tables, prepared=prepared), connection, forced=True)
        return Reply("PREPARE TRANSACTION")

    def _promised(self, connection: Connection, gid: str) -> Promise:
        if connection.transaction is not None:
            raise StatementFailed("25001", "cannot run inside a transaction block")
        if gid not in self.tables.prepared:
            raise StatementFailed("42704", f"prepared transaction with identifier {gid} does not exist")
        return self.tables.prepared[gid]

    def _commit_prepared(self, connection: Connection, gid: str) -> Reply:
        promise = self._promised(connection, gid)
        self.store(connection, promise.changes, prepared=without(self.tables.prepared, gid))
        return Reply("COMMIT PREPARED")

    def _rollback_prepared(self, connection: Connection, gid: str) -> Reply:
        self._promised(connection, gid)
        self.write(replace(self.tables, prepared=without(self.tables.prepared, gid)), connection, forced=True)
        return Reply("ROLLBACK PREPARED")

    def _confirm(self, connection: Connection, attempt: str, branch: int) -> Reply:
        """An UPDATE sees no row that is not committed, and waits for none."""
        if (attempt, branch) not in self.tables.receipts:
            return Reply("UPDATE 0", 0)
        return super()._confirm(connection, attempt, branch)

    def _list(self, connection: Connection) -> Reply:
        rows = [(gid, self.now() - promise.at) for gid, promise in self.tables.prepared.items()]
        return Reply("SELECT", rows=tuple(rows))


class MemoryPostgresResource:
    """The scripts. See `ports.Resource`, and `resources.postgres` for why each message is what it is."""

    tables = MemoryTables()
    traits = Traits(kind="postgres", rows_at_begin=True, unforced_rows=True)

    def __init__(self, name: str) -> None:
        self.name = name

    # ---- registration

    def check(self, session: Session) -> Script[tuple[str, ...]]:
        yield from ()
        return ()

    def setup(self, session: Session, resource_id: str, cluster: str) -> Script[None]:
        yield from self._own(session, ("setup", resource_id, cluster))

    def identity(self, session: Session) -> Script[Identity | None]:
        reply = yield from self._own(session, ("identity",))
        return None if not reply.rows else reply.scalar()

    def server(self, session: Session) -> Script[str]:
        return str((yield from self._own(session, ("server",))).scalar())

    def witness(self, session: Session, epoch: Epoch) -> Script[None]:
        reply = yield from self._own(session, ("witness", epoch))
        if reply.tag != "UPDATE 1":
            raise SchemaMismatch(f"{self.name} has no identity of ours")

    def adopt(self, session: Session, identity: Identity) -> Script[None]:
        yield from self._own(session, ("adopt", identity))

    def leave(self, session: Session) -> Script[None]:
        yield from self._own(session, ("leave",))

    # ---- one branch's work

    def begin(self, session: Session, work: Work, *, before: Sequence[str] = ()) -> Script[None]:
        rows: Message = (("begin",), ("ride", tuple(before)), ("commit", False)) if before else ()
        doing = f"begin on {self.name}"
        try:
            replies = yield from do(session, "send", *rows, ("begin",), ("mark", _mark(work)))
        except SessionLost as error:
            raise Unclear(f"{doing}: {error}") from error
        except StatementFailed as error:
            yield from self._undo(session)
            refused = self._refusal(error, doing)
            if before and not isinstance(refused, Conflict | BelowFloor):
                raise Unclear(str(refused)) from error
            raise refused from error
        tags = [reply.tag for reply in replies]
        expected = ["COMMIT", "BEGIN", "SET"] if before else ["BEGIN", "SET"]
        if tags[-len(expected) :] != expected or any(reply.rows for reply in replies):
            session.kill()
            raise Unclear(f"{doing}: the session was not clean: {tags}")

    def execute(self, session: Session, work: Work, statement: str, params: Any) -> Script[Reply]:
        if work.doomed is not None:
            raise BranchDoomed(f"an earlier statement on {self.name} failed: {text_of(work.doomed)}") from work.doomed
        try:
            reply: Reply = yield from do(session, "execute", statement, params)
        except BaseException as error:
            work.doomed = error
            raise
        work.wrote = work.wrote or reply.tag == "UPDATE 1"
        return reply

    def savepoint(self, session: Session, work: Work, step: SavepointStep, name: str) -> Script[None]:
        doing = f"savepoint {name} on {self.name}"
        try:
            (reply,) = yield from do(session, "send", ("savepoint", step, name))
        except StatementFailed as error:
            raise self._refusal(error, doing) from error
        if not self._accepts(reply.tag, step.statements(name)[-1].split()[0]):
            session.kill()
            raise Unclear(f"{doing}: the server answered {reply.tag!r}")

    def wrote(self, session: Session, work: Work) -> Script[bool]:
        if work.wrote:
            return True
        try:
            (reply,) = yield from do(session, "send", ("wrote",))
        except (SessionLost, StatementFailed) as error:
            yield from self._undo(session)
            raise Refused(f"{self.name} failed before its work could end: {error}", retry=True) from error
        return reply.scalar() is not False

    def end_reader(self, session: Session, work: Work) -> Script[None]:
        yield from self._end(session, work, (("proof", _mark(work)), ("commit",)), "COMMIT", "end of the reads")

    def rollback(self, session: Session, work: Work) -> Script[None]:
        yield from self._undo(session)

    def commit_alone(self, session: Session, work: Work, *, riders: Sequence[str] = ()) -> Script[None]:
        row = ("ride", tuple(riders)) if riders else self._receipt_row(work, alone=True)
        yield from self._end(
            session, work, (("proof", _mark(work)), *closing(work), row, ("commit",)), "COMMIT", "commit"
        )

    # ---- two phases

    def prepare(self, session: Session, work: Work, *, riders: Sequence[str] = ()) -> Script[None]:
        invariant(not riders, "I4", "PostgreSQL takes rows before a branch begins, not inside its prepare")
        receipt = self._receipt_row(work, alone=False)
        message = (("proof", _mark(work)), *closing(work), receipt, ("prepare", work.xid.gid))
        yield from self._end(session, work, message, "PREPARE TRANSACTION", "prepare")

    def detach(self, session: Session) -> Script[None]:
        yield from ()

    def commit_prepared(
        self, session: Session, prepared: Prepared, *, before: Sequence[str] = (), riders: Sequence[str] = ()
    ) -> Script[None]:
        invariant(not riders, "I4", "PostgreSQL's COMMIT PREPARED carries no rows")
        if before:
            yield from self._commit_unforced(session, before)
        yield from self._phase_two(session, "commit_prepared", "COMMIT PREPARED", prepared.xid)

    def rollback_prepared(self, session: Session, prepared: Prepared) -> Script[None]:
        yield from self._phase_two(session, "rollback_prepared", "ROLLBACK PREPARED", prepared.xid)

    # ---- recovery

    def prepared(self, session: Session, cluster: str, xid: Xid | None = None) -> Script[tuple[Prepared, ...]]:
        reply = yield from self._own(session, ("list",))
        parsed = ((parse_gid(gid), age_s) for gid, age_s in reply.rows)
        return only(xid, (Prepared(one, age_s) for one, age_s in parsed if one is not None and one.cluster == cluster))

    def free(self, session: Session, prepared: Prepared) -> Script[bool]:
        yield from ()
        return False

    def receipt(self, session: Session, xid: Xid) -> Script[bool]:
        return (yield from self._confirm(session, xid)) is Verdict.COMMIT

    def fence(self, session: Session, xid: Xid) -> Script[Verdict]:
        for _ in range(FENCE_TRIES_MAX):
            try:
                yield from self._own(session, ("fence", xid.attempt, xid.branch))
                return Verdict.ABORT
            except Conflict:
                verdict = yield from self._confirm(session, xid)
                if verdict is not None:
                    return verdict
            except Refused as error:
                raise Unclear(str(error)) from error
        raise Unclear(f"the row in the place of the receipt of {xid.gid} comes and goes")

    def forget(
        self, session: Session, xids: Sequence[Xid], *, older_than: float | None = None, below: str = ""
    ) -> Script[int]:
        return (yield from self._own(session, ("forget", tuple(xids), older_than, below))).count

    # ---- the parts

    def _receipt_row(self, work: Work, *, alone: bool) -> tuple[Any, ...]:
        return "receipt", work.xid.attempt, work.xid.branch, work.epoch, alone

    def _accepts(self, tag: str, wanted: str) -> bool:
        """The server's own word, or nothing (I2)."""
        return tag == wanted

    def _end(self, session: Session, work: Work, message: Message, wanted: str, doing: str) -> Script[None]:
        doing = f"{doing} on {self.name}"
        if work.doomed is not None:
            yield from self._undo(session)
            raise Refused(f"{doing}: an earlier statement failed, so it was rolled back: {text_of(work.doomed)}")
        try:
            replies = yield from do(session, "send", *message)
        except SessionLost as error:
            raise Unclear(f"{doing}: {error}") from error
        except StatementFailed as error:
            yield from self._undo(session)
            raise self._refusal(error, doing) from error
        if not self._accepts(replies[-1].tag, wanted):
            yield from self._undo(session)
            if replies[-1].tag == "ROLLBACK":
                raise Refused(f"{doing}: the server answered ROLLBACK")
            raise Unclear(f"{doing}: the server answered {replies[-1].tag!r}, not {wanted}")

    def _phase_two(self, session: Session, verb: str, wanted: str, xid: Xid) -> Script[None]:
        doing = f"{wanted} {xid.gid} on {self.name}"
        try:
            (reply,) = yield from do(session, "send", (verb, xid.gid))
        except SessionLost as error:
            raise Unclear(f"{doing}: {error}") from error
        except StatementFailed as error:
            yield from self._undo(session)
            raise self._refusal(error, doing, retry=True) from error
        if not self._accepts(reply.tag, wanted):
            raise Unclear(f"{doing}: the server answered {reply.tag!r}")

    def _commit_unforced(self, session: Session, rows: Sequence[str]) -> Script[None]:
        doing = f"rows before the commit on {self.name}"
        try:
            replies = yield from do(session, "send", ("begin",), ("ride", tuple(rows)), ("commit", False))
        except SessionLost as error:
            raise Unclear(f"{doing}: {error}") from error
        except StatementFailed as error:
            yield from self._undo(session)
            raise self._refusal(error, doing) from error
        if not self._accepts(replies[-1].tag, "COMMIT"):
            yield from self._undo(session)
            raise Unclear(f"{doing}: the server answered {replies[-1].tag!r}")

    def _confirm(self, session: Session, xid: Xid) -> Script[Verdict | None]:
        try:
            reply = yield from self._own(session, ("confirm", xid.attempt, xid.branch))
        except Refused as error:
            raise Unclear(f"the receipt of {xid.gid} on {self.name} cannot be confirmed: {error}") from error
        return None if not reply.rows else Verdict(reply.scalar())

    def _own(self, session: Session, statement: tuple[Any, ...]) -> Script[Reply]:
        """A transaction of our own that is one statement here, or a plain question."""
        doing = f"{statement[0]} on {self.name}"
        try:
            (reply,) = yield from do(session, "send", statement)
        except SessionLost as error:
            raise Unclear(f"{doing}: {error}") from error
        except StatementFailed as error:
            yield from self._undo(session)
            raise self._refusal(error, doing) from error
        return reply  # type: ignore[no-any-return]

    def _undo(self, session: Session) -> Script[None]:
        if not session.usable:
            session.kill()
            return
        try:
            (reply,) = yield from do(session, "send", ("rollback",))
        except (SessionLost, StatementFailed):
            session.kill()
            return
        if reply.tag != "ROLLBACK":
            session.kill()

    def _refusal(self, error: StatementFailed, doing: str, *, retry: bool = False) -> Refused:
        vars(error)["schema"] = "nodoubt"  # whose table the error is about: ours are the only ones that refuse here
        return refusal(error, doing, retry=retry)


def _mark(work: Work) -> str:
    return f"{work.xid.attempt}.{work.xid.branch}"
