"""A SQLite file in memory. What it imitates: one writer at a time, a prepare that is a durable record with a lock on
its table in the file, journal rows that ride inside a prepare or phase two, calls that are each one transaction.

All the user's rows are in one table, so a prepared branch that wrote refuses every other writer until it ends.

The scripts mirror `resources.sqlite`, call by call; each call raises what `two_phase` and `receipts` raise. Only to
begin is a call of its own here, with one more moment to crash at: there it goes with the first statement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from ...errors import BranchDoomed, UsageError, text_of
from ...ports import (
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
    UnknownXid,
    Work,
)
from ...protocol.records import Epoch, Verdict
from ...script import Script, do
from ...xid import Xid, parse_gid
from ..sqlite.failures import refusal
from .server import (
    LOCK_WAIT_S,
    Blocked,
    Change,
    Connection,
    Key,
    KeyRow,
    MemoryServer,
    MemoryTables,
    Promise,
    Receipt,
    Transaction,
    only,
    without,
)

FILE = ("file",)


class MemorySqlite(MemoryServer):
    """The file. A crash is the machine's: every process that has it open loses its connection."""

    kind = "sqlite"
    duplicate, no_floor, lock_timeout, disk_full, no_savepoint = "1555", "1299", "5", "13", "1"

    def _statement(self, connection: Connection, name: str, args: Sequence[Any]) -> Any:
        if name == "apply" and connection.transaction is None:
            assert self.guest is not None
            if not self.guest.reads(args[0]):
                self._writing(connection)
        return super()._statement(connection, name, args)

    def _writing(self, connection: Connection) -> None:
        """BEGIN IMMEDIATE of a call that commits before it returns."""
        if connection.transaction is not None:
            raise Refused("the session is inside another transaction")
        if self.holder(FILE, but=connection):
            raise Blocked(FILE, LOCK_WAIT_S)

    def holder(self, key: Key, but: Connection | None = None) -> bool:
        """There is one lock: the file's."""
        others = (other for other in self.connections.values() if other is not but)
        return any(other.transaction is not None for other in others)

    def _promised(self, gid: str) -> Promise:
        if gid not in self.tables.prepared:
            raise UnknownXid(f"no prepared branch {gid} in {self.name}")
        return self.tables.prepared[gid]

    def epochs_of_promises(self) -> list[int]:
        return [promise.epoch for promise in self.tables.prepared.values()]

    # ---- a branch

    def _begin(self, connection: Connection, gid: str) -> None:
        self._writing(connection)
        connection.transaction = Transaction(gid=gid)

    def _execute(self, connection: Connection, statement: str, params: Sequence[Any]) -> Reply:
        if statement == "add" and any(promise.changes for promise in self.tables.prepared.values()):
            raise Refused(f"the table is locked by a prepared branch of {self.name}; nothing was done", retry=True)
        return super()._execute(connection, statement, params)

    def lock(self, connection: Connection, key: Key, within_s: float = LOCK_WAIT_S) -> None:
        """No row needs a lock where there is one writer."""

    def _at_work(self, connection: Connection, gid: str) -> Transaction:
        transaction = connection.transaction
        if transaction is None or transaction.gid != gid:
            raise Refused(f"the session is no longer in the transaction of {gid}")
        return transaction

    def _wrote(self, connection: Connection, gid: str) -> bool:
        return bool(self._at_work(connection, gid).changes)

    def _rollback(self, connection: Connection) -> None:
        connection.transaction = None

    def _end_reader(self, connection: Connection, gid: str) -> None:
        self._at_work(connection, gid)
        connection.transaction = None

    def _commit_alone(
        self, connection: Connection, xid: Xid, epoch: int, riders: Sequence[str], keys: Sequence[str]
    ) -> None:
        transaction = self._at_work(connection, xid.gid)
        connection.transaction = None  # whatever is raised, the transaction has been rolled back
        self.refuse_if_full()
        proof = self._proof(xid, epoch, riders, alone=True)
        self.store(connection, [*transaction.changes, *_key_rows(keys), *proof])

    def _proof(self, xid: Xid, epoch: int, riders: Sequence[str], *, alone: bool) -> list[Change]:
        if riders and alone:
            return [Change("guest", "", tuple(riders))]
        receipt = Receipt(Verdict.COMMIT, epoch, alone, self.now())
        changes = [Change("receipts", (xid.attempt, xid.branch), receipt)]
        return [*changes, Change("guest", "", tuple(riders))] if riders else changes

    def _prepare(
        self, connection: Connection, xid: Xid, epoch: int, riders: Sequence[str], keys: Sequence[str]
    ) -> None:
        transaction = self._at_work(connection, xid.gid)
        connection.transaction = None
        self.refuse_if_full()
        if (xid.attempt, xid.branch) in self.tables.receipts:
            raise Conflict(f"{xid.gid} has been settled meanwhile: it can only be rolled back")
        if any(promise.changes for promise in self.tables.prepared.values()):
            raise Refused("a table that this transaction relies on is locked by a prepared branch", retry=True)
        promise = Promise(tuple(transaction.changes), (), epoch, self.now())
        rows = [Change("guest", "", tuple(riders))] if riders else []
        self.store(connection, [*rows, *_key_rows(keys)], prepared={**self.tables.prepared, xid.gid: promise})

    def _commit_prepared(self, connection: Connection, xid: Xid, riders: Sequence[str]) -> None:
        self._writing(connection)
        promise = self._promised(xid.gid)
        self.refuse_if_full()
        proof = self._proof(xid, promise.epoch, riders, alone=False)
        self.store(connection, [*promise.changes, *proof], prepared=without(self.tables.prepared, xid.gid))

    def _rollback_prepared(self, connection: Connection, xid: Xid) -> None:
        self._writing(connection)
        self._promised(xid.gid)
        keys = {place: row for place, row in self.tables.keys.items() if row.gid != xid.gid}
        prepared = without(self.tables.prepared, xid.gid)
        self.write(replace(self.tables, prepared=prepared, keys=keys), connection, forced=True)

    def _list(self, connection: Connection) -> list[tuple[str, float]]:
        return [(gid, self.now() - promise.at) for gid, promise in self.tables.prepared.items()]

    # ---- our own short transactions: each takes the file for itself

    def _witness(self, connection: Connection, epoch: Epoch) -> Reply:
        self._writing(connection)
        return super()._witness(connection, epoch)

    def _adopt(self, connection: Connection, identity: Identity) -> Reply:
        """Here a prepared branch shows the epoch it has witnessed, so it is set back, too."""
        self._writing(connection)
        older = {
            gid: replace(promise, epoch=min(promise.epoch, identity.epoch))
            for gid, promise in self.tables.prepared.items()
        }
        self.write(replace(self.tables, prepared=older), connection, forced=True)
        return super()._adopt(connection, identity)

    def _confirm(self, connection: Connection, attempt: str, branch: int) -> Reply:
        self._writing(connection)
        return super()._confirm(connection, attempt, branch)

    def _fence(self, connection: Connection, attempt: str, branch: int) -> Reply:
        """What stands after it: our marker, or what stood there before."""
        self._writing(connection)
        if Xid(self._cluster, attempt, branch).gid in self.tables.prepared:
            raise Unclear("it is prepared: its decision settles it, not a fence")
        if (attempt, branch) not in self.tables.receipts:
            super()._fence(connection, attempt, branch)
        return super()._confirm(connection, attempt, branch)

    def _apply(self, connection: Connection, verb: str, *args: Any) -> Any:
        if self.full and self.guest is not None and not self.guest.reads(verb):
            # In a write-ahead log the frame that commits can be written by then.
            raise Unclear(f"the COMMIT failed halfway: the disk of {self.name} is full")
        return super()._apply(connection, verb, *args)

    @property
    def _cluster(self) -> str:
        assert self.tables.identity is not None
        return self.tables.identity.cluster

    def _key_confirm(self, connection: Connection, scope: str, key: str) -> Reply:
        self._writing(connection)
        return super()._key_confirm(connection, scope, key)

    def _forget(self, connection: Connection, xids: Sequence[Xid], older_than: float | None, below: str) -> Reply:
        self._writing(connection)
        return super()._forget(connection, xids, older_than, below)


def _key_rows(rows: Sequence[str]) -> list[Change]:
    keys = [msgspec.json.decode(row, type=KeyRow) for row in rows]
    return [Change("keys", row.place, row) for row in keys]


class MemorySqliteResource:
    """The scripts. See `ports.Resource`, and `resources.sqlite`."""

    tables = MemoryTables()
    traits = Traits(kind="sqlite", riders_on_prepare=True)

    def __init__(self, name: str) -> None:
        self.name = name

    # ---- registration

    def check(self, session: Session) -> Script[tuple[str, ...]]:
        yield from ()
        return ()

    def setup(self, session: Session, resource_id: str, cluster: str) -> Script[None]:
        yield from self._call(session, "setup", resource_id, cluster)

    def identity(self, session: Session) -> Script[Identity | None]:
        reply = yield from self._call(session, "identity")
        return None if not reply.rows else reply.scalar()

    def server(self, session: Session) -> Script[str]:
        return str((yield from self._call(session, "server")).scalar())

    def witness(self, session: Session, epoch: Epoch) -> Script[None]:
        yield from self._call(session, "witness", epoch)

    def adopt(self, session: Session, identity: Identity) -> Script[None]:
        yield from self._call(session, "adopt", identity)

    def leave(self, session: Session) -> Script[None]:
        yield from self._call(session, "leave")

    # ---- one branch's work

    def begin(self, session: Session, work: Work, *, before: Sequence[str] = ()) -> Script[None]:
        self._refuse_unforced(before)
        yield from self._call(session, "begin", work.xid.gid)

    def execute(self, session: Session, work: Work, statement: str, params: Any) -> Script[Reply]:
        if work.doomed is not None:
            raise BranchDoomed(f"an earlier statement on {self.name} failed ({text_of(work.doomed)})") from work.doomed
        try:
            reply: Reply = yield from do(session, "execute", statement, params)
        except BaseException as error:
            work.doomed = error
            raise
        work.wrote = work.wrote or statement == "add"
        return reply

    def savepoint(self, session: Session, work: Work, step: SavepointStep, name: str) -> Script[None]:
        try:
            yield from do(session, "send", ("savepoint", step, name))
        except StatementFailed as error:
            raise refusal(error, f"savepoint {name} on {self.name}") from error

    def wrote(self, session: Session, work: Work) -> Script[bool]:
        if work.wrote:
            return True
        try:
            return bool((yield from do(session, "send", ("wrote", work.xid.gid)))[0])
        except SessionLost as error:
            raise Refused(f"{self.name} was lost before its work could end: {error}", retry=True) from error

    def end_reader(self, session: Session, work: Work) -> Script[None]:
        yield from self._call(session, "end_reader", work.xid.gid)

    def rollback(self, session: Session, work: Work) -> Script[None]:
        try:
            yield from do(session, "send", ("rollback",))
        except Exception:
            session.kill()

    def commit_alone(self, session: Session, work: Work, *, riders: Sequence[str] = ()) -> Script[None]:
        self._refuse_doomed(work)
        yield from self._call(session, "commit_alone", work.xid, work.epoch, tuple(riders), work.closing)

    # ---- two phases

    def prepare(self, session: Session, work: Work, *, riders: Sequence[str] = ()) -> Script[None]:
        self._refuse_doomed(work)
        yield from self._call(session, "prepare", work.xid, work.epoch, tuple(riders), work.closing)

    def detach(self, session: Session) -> Script[None]:
        yield from ()

    def commit_prepared(
        self, session: Session, prepared: Prepared, *, before: Sequence[str] = (), riders: Sequence[str] = ()
    ) -> Script[None]:
        self._refuse_unforced(before)
        yield from self._call(session, "commit_prepared", prepared.xid, tuple(riders))

    def rollback_prepared(self, session: Session, prepared: Prepared) -> Script[None]:
        yield from self._call(session, "rollback_prepared", prepared.xid)

    # ---- recovery

    def prepared(self, session: Session, cluster: str, xid: Xid | None = None) -> Script[tuple[Prepared, ...]]:
        rows = yield from self._call(session, "list")
        found = ((parse_gid(gid), age_s) for gid, age_s in rows)
        return only(xid, (Prepared(one, age_s) for one, age_s in found if one is not None and one.cluster == cluster))

    def free(self, session: Session, prepared: Prepared) -> Script[bool]:
        yield from ()
        return False

    def receipt(self, session: Session, xid: Xid) -> Script[bool]:
        reply = yield from self._settled(session, "confirm", xid.attempt, xid.branch)
        return bool(reply.rows) and Verdict(reply.scalar()) is Verdict.COMMIT

    def fence(self, session: Session, xid: Xid) -> Script[Verdict]:
        reply = yield from self._settled(session, "fence", xid.attempt, xid.branch)
        return Verdict(reply.scalar())

    def forget(
        self, session: Session, xids: Sequence[Xid], *, older_than: float | None = None, below: str = ""
    ) -> Script[int]:
        answer = yield from self._call(session, "forget", tuple(xids), older_than, below)
        return answer.count  # type: ignore[no-any-return]

    # ---- how it is asked

    def _call(self, session: Session, verb: str, *args: Any) -> Script[Any]:
        try:
            (answer,) = yield from do(session, "send", (verb, *args))
        except SessionLost as error:
            raise Unclear(f"{self.name} gave no answer: {error}") from error
        except StatementFailed as error:
            raise refusal(error, self.name) from error
        return answer

    def _settled(self, session: Session, verb: str, *args: Any) -> Script[Any]:
        try:
            return (yield from self._call(session, verb, *args))
        except Refused as error:
            raise Unclear(f"{self.name} cannot tell now: {error}") from error

    def _refuse_doomed(self, work: Work) -> None:
        if work.doomed is not None:
            raise Refused(
                f"a statement on {self.name} failed ({text_of(work.doomed)}), so the branch can only be rolled back"
            )

    def _refuse_unforced(self, before: Sequence[str]) -> None:
        if before:
            raise UsageError(f"{self.name}: rows cannot ride unforced on SQLite; let them ride on the commit itself")
