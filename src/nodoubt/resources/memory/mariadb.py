"""MariaDB in memory. What it imitates: a commit that everybody sees before it is flushed, a prepared branch that its
session holds until it ends (XAER_NOTA for everybody else, the same code as for a branch that is gone), an end of that
session in which XA COMMIT and XA ROLLBACK are answered OK and do nothing, an XA ROLLBACK that a crash undoes, an error
that leaves the transaction alive with half of its work, connection ids.

XA PREPARE is flushed before XA RECOVER lists it: the server marks an xid as prepared when the engine has answered.

The scripts mirror `resources.mariadb`, message by message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...errors import BranchDoomed, SchemaMismatch, invariant, text_of
from ...ports import (
    Failure,
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
from ...script import Pause, Script, do
from ...xid import XaXid, Xid
from .. import mariadb_beginning as beginning
from .. import mariadb_finishing as finishing
from ..mariadb_failures import FAILURES, refusal
from .server import (
    Change,
    Connection,
    Guest,
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

KILL_POLLS_MAX = 10
KILL_POLL_FIRST_S = 0.001
_BOUND = frozenset({"xa_commit", "xa_rollback", "ping"})  # what a session that has prepared still takes


@dataclass(frozen=True, slots=True)
class Ending:
    """How long the end of a session that has prepared a branch takes, from where anybody may name the branch.

    It is in the list of processes for `listed_s`, and the engine lets go of the branch `engine_s` later. What ends the
    branch before that is answered OK and does nothing, and the branch is listed no more until the server restarts.
    """

    listed_s: float = 0.0
    engine_s: float = 0.0


class MemoryMariaDB(MemoryServer):
    """The server. `ending`: how its sessions end now."""

    kind = "mariadb"
    visible_first = True
    duplicate, no_floor, lock_timeout, disk_full, no_savepoint = "1062", "1048", "1205", "1114", "1305"

    def __init__(self, name: str, *, now: Callable[[], float], guest: Guest | None = None) -> None:
        super().__init__(name, now=now, guest=guest)
        self.ending = Ending()
        self._listed_until: dict[int, float] = {}  # sessions that are ending

    def crash(self, keep: int = 0) -> None:
        super().crash(keep)
        self._listed_until.clear()

    def disconnect(self, connection: Connection) -> None:
        super().disconnect(connection)
        if connection.bound in self.tables.prepared and self.ending != Ending():
            listed_until = self.now() + self.ending.listed_s
            self._listed_until[connection.number] = listed_until
            self.remember(connection.bound, bound_until=listed_until + self.ending.engine_s)
            connection.bound = ""

    def mislaid(self) -> list[str]:
        """The branches that only a restart brings back."""
        return [gid for gid, promise in self.tables.prepared.items() if promise.mislaid]

    def _statement(self, connection: Connection, name: str, args: Sequence[Any]) -> Any:
        if connection.bound and name not in _BOUND:
            raise StatementFailed("1399", "XAER_RMFAIL: the command cannot be executed in the PREPARED state")
        return super()._statement(connection, name, args)

    def _in(self, connection: Connection, handle: XaXid, *, idle: bool) -> Transaction:
        transaction = connection.transaction
        if transaction is None or transaction.handle != handle:
            raise StatementFailed("1397", "XAER_NOTA: Unknown XID")
        if transaction.idle is not idle:
            raise StatementFailed("1399", "XAER_RMFAIL: not in this state")
        return transaction

    # ---- a transaction that is no branch

    def _begin(self, connection: Connection) -> Reply:
        """With what comes before it in the message: an error where a transaction is open."""
        if connection.transaction is not None:
            raise StatementFailed("1568", "Transaction characteristics can't be changed")
        connection.transaction = Transaction()
        return Reply()

    def _commit(self, connection: Connection) -> Reply:
        """Whatever has failed in it: what went well is committed."""
        if connection.transaction is not None:
            self.store(connection, connection.transaction.changes)
            connection.transaction = None
        return Reply()

    def _rollback(self, connection: Connection) -> Reply:
        if connection.transaction is not None and connection.transaction.handle is not None:
            raise StatementFailed("1399", "XAER_RMFAIL: the session is in an XA transaction")
        connection.transaction = None
        return Reply()

    # ---- a branch

    def _xa_start(self, connection: Connection, handle: XaXid) -> Reply:
        if connection.transaction is not None:
            raise StatementFailed("1399", "XAER_RMFAIL: the session is in another transaction")
        connection.transaction = Transaction(handle=handle)
        return Reply()

    def _xa_end(self, connection: Connection, handle: XaXid) -> Reply:
        self._in(connection, handle, idle=False).idle = True
        return Reply()

    def _receipt(self, connection: Connection, attempt: str, branch: int, epoch: int, alone: bool) -> Reply:
        key = (attempt, branch)
        self.refuse_if_full()
        self.lock(connection, receipt_lock(key))
        if key in self.tables.receipts:
            raise StatementFailed(self.duplicate, f"a receipt of {key} stands already")
        assert connection.transaction is not None
        connection.transaction.changes.append(
            Change("receipts", key, Receipt(Verdict.COMMIT, epoch, alone, self.now()))
        )
        return Reply(count=1)

    def _ride(self, connection: Connection, riders: Sequence[str]) -> Reply:
        """The journal's rows: checked now, and again as they are committed, at the end of the same message."""
        self.refuse_if_full()
        self._ridden(riders)
        assert connection.transaction is not None
        connection.transaction.changes.append(Change("guest", "", tuple(riders)))
        return Reply(count=1)

    def _wrote(self, connection: Connection) -> Reply:
        assert connection.transaction is not None
        return Reply(rows=((len(connection.transaction.changes),),))

    def _xa_prepare(self, connection: Connection, handle: XaXid) -> Reply:
        transaction = self._in(connection, handle, idle=True)
        if handle.xid.gid in self.tables.prepared:
            raise StatementFailed("1440", "XAER_DUPID: The XID already exists")
        self.refuse_if_full()
        changes, locks = tuple(transaction.changes), tuple(sorted(transaction.locks))
        promise = Promise(changes, locks, 0, self.now(), handle, connection.number)
        self.write(
            replace(self.tables, prepared={**self.tables.prepared, handle.xid.gid: promise}), connection, forced=True
        )
        self.log.flush(self.log.end)  # before anybody can list it
        connection.transaction, connection.bound = None, handle.xid.gid
        return Reply()

    def _xa_commit(self, connection: Connection, handle: XaXid, one_phase: bool = False) -> Reply:
        if one_phase:
            transaction = self._in(connection, handle, idle=True)
            if transaction.changes:
                self.store(connection, transaction.changes)
            connection.transaction = None
            return Reply()
        promise = self._promised(connection, handle)
        if self._mislays(promise):
            return Reply()
        self.store(connection, promise.changes, prepared=without(self.tables.prepared, handle.xid.gid))
        connection.bound = ""
        return Reply()

    def _xa_rollback(self, connection: Connection, handle: XaXid) -> Reply:
        """Acknowledged before it is flushed: a crash brings a prepared branch back."""
        transaction = connection.transaction
        if transaction is not None and transaction.handle == handle:
            if not transaction.idle:
                raise StatementFailed("1399", "XAER_RMFAIL: not in this state")
            connection.transaction = None
            return Reply()
        if self._mislays(self._promised(connection, handle)):
            return Reply()
        self.write(
            replace(self.tables, prepared=without(self.tables.prepared, handle.xid.gid)), connection, forced=False
        )
        connection.bound = ""
        return Reply()

    def _promised(self, connection: Connection, handle: XaXid) -> Promise:
        promise = self.tables.prepared.get(handle.xid.gid)
        held = promise is not None and promise.holder not in (None, connection.number)
        if promise is None or promise.handle != handle or held or promise.mislaid:
            raise StatementFailed("1397", "XAER_NOTA: Unknown XID")
        return promise

    def _mislays(self, promise: Promise) -> bool:
        """OK, and nothing: by its name the branch has been ended, and its engine cannot end it yet."""
        if self.now() >= promise.bound_until:
            return False
        self.remember(promise.handle.xid.gid, mislaid=True)
        return True

    def _xa_recover(self, connection: Connection) -> Reply:
        return Reply(rows=tuple((one.handle,) for one in self.tables.prepared.values() if not one.mislaid))

    def _is_process(self, number: int) -> bool:
        return number in self.connections or self.now() < self._listed_until.get(number, 0.0)

    def _process(self, connection: Connection, number: int) -> Reply:
        return Reply(rows=((number,),) if self._is_process(number) else ())

    def _no_process(self, connection: Connection, number: int) -> Reply:
        """An error if that session is there: `mariadb_finishing`'s guard."""
        if self._is_process(number):
            raise StatementFailed("1242", "Subquery returns more than 1 row")
        return Reply(rows=((1,),))

    def _kill(self, connection: Connection, number: int) -> Reply:
        if not self._is_process(number):
            raise StatementFailed("1094", f"Unknown thread id: {number}")
        if number in self.connections:
            self.disconnect(self.connections[number])
        return Reply()


class MemoryMariaDBResource:
    """The scripts. See `ports.Resource`, and `resources.mariadb` for why each message is what it is."""

    tables = MemoryTables()
    traits = Traits(kind="mariadb", rows_at_begin=True, holds_session=True)

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
        handle = XaXid(work.xid, session.connection_id, session.server_started)
        rows: Message = (("begin",), ("ride", tuple(before)), ("commit",)) if before else ()
        try:
            yield from do(session, "send", *rows, ("xa_start", handle))
        except StatementFailed as error:
            session.kill()
            raise beginning.failure(error, self.name, before) from error
        work.handle = handle

    def execute(self, session: Session, work: Work, statement: str, params: Any) -> Script[Reply]:
        if work.doomed is not None:
            raise BranchDoomed(f"an earlier statement on {self.name} failed: {text_of(work.doomed)}") from work.doomed
        try:
            reply: Reply = yield from do(session, "execute", statement, params)
        except BaseException as error:
            work.doomed = error
            raise
        work.wrote = work.wrote or statement != "read"
        return reply

    def savepoint(self, session: Session, work: Work, step: SavepointStep, name: str) -> Script[None]:
        try:
            yield from do(session, "send", ("savepoint", step, name))
        except StatementFailed as error:
            raise refusal(error, f"savepoint {name} on {self.name}") from error

    def wrote(self, session: Session, work: Work) -> Script[bool]:
        if work.wrote:
            return True
        (reply,) = yield from do(session, "send", ("wrote",))
        return int(reply.scalar()) > 0

    def end_reader(self, session: Session, work: Work) -> Script[None]:
        handle = _handle(work)
        try:
            yield from do(session, "send", ("xa_end", handle), ("xa_commit", handle, True))
        except StatementFailed as error:
            yield from self._undo(session, work)
            raise refusal(error, "the reading branch could not be ended") from error
        except SessionLost as error:
            raise Refused(f"the connection to {self.name} was lost before its reads had ended", retry=True) from error
        self._finished(session, work)

    def rollback(self, session: Session, work: Work) -> Script[None]:
        if work.handle is not None:
            yield from self._undo(session, work)

    def _undo(self, session: Session, work: Work) -> Script[bool]:
        """True if the server said that it rolled back this very branch."""
        handle = _handle(work)
        try:
            try:
                yield from do(session, "send", ("xa_end", handle), ("xa_rollback", handle))
            except StatementFailed:
                yield from do(session, "send", ("xa_rollback", handle))
        except (StatementFailed, SessionLost):
            session.kill()
            return False
        self._finished(session, work)
        return True

    def _finished(self, session: Session, work: Work | None = None) -> None:
        session.usable = True
        if work is not None:
            work.handle = None

    def commit_alone(self, session: Session, work: Work, *, riders: Sequence[str] = ()) -> Script[None]:
        handle = self._committable(work)
        proof = ("ride", tuple(riders)) if riders else self._receipt_row(work, alone=True)
        yield from self._promise(
            session, work, proof, ("xa_commit", handle, True), "the commit was refused and rolled back"
        )
        self._finished(session, work)

    # ---- two phases

    def prepare(self, session: Session, work: Work, *, riders: Sequence[str] = ()) -> Script[None]:
        invariant(not riders, "I4", "rows that ride in a prepared branch can't be seen until it commits")
        handle = self._committable(work)
        proof = self._receipt_row(work, alone=False)
        yield from self._promise(
            session, work, proof, ("xa_prepare", handle), "the branch was not prepared and is rolled back"
        )
        session.usable = False

    def _committable(self, work: Work) -> XaXid:
        if work.doomed is not None:
            raise Refused(
                f"a statement on {self.name} failed, so the branch can only be rolled back: {text_of(work.doomed)}"
            )
        return _handle(work)

    def _promise(
        self, session: Session, work: Work, proof: tuple[Any, ...], promise: tuple[Any, ...], refused: str
    ) -> Script[None]:
        try:
            yield from do(session, "send", *closing(work), proof, ("xa_end", _handle(work)), promise)
        except StatementFailed as error:
            if not (yield from self._undo(session, work)):
                raise Unclear(f"{self.name} failed in the commit, and its state is not known: {error}") from error
            raise refusal(error, refused) from error
        except SessionLost as error:
            raise Unclear(f"{self.name} gave no answer: {error}") from error

    def detach(self, session: Session) -> Script[None]:
        yield from do(session, "close")

    def commit_prepared(
        self, session: Session, prepared: Prepared, *, before: Sequence[str] = (), riders: Sequence[str] = ()
    ) -> Script[None]:
        invariant(not before and not riders, "I4", "rows can't ride on XA COMMIT")
        yield from self._finish(session, prepared, "xa_commit")

    def rollback_prepared(self, session: Session, prepared: Prepared) -> Script[None]:
        yield from self._finish(session, prepared, "xa_rollback")

    def _finish(self, session: Session, prepared: Prepared, verb: str) -> Script[None]:
        handle: XaXid | None = prepared.handle
        if handle is None:
            handle = yield from self._find(session, prepared.xid)
        why = f"{verb} of {handle.xid.gid} on {self.name} was refused"
        try:
            replies = yield from do(session, "send", *_finishing(verb, handle, session))
        except StatementFailed as error:
            if finishing.is_held(error):
                raise UnknownXid(f"{why}: the session that prepared it has not ended") from error
            if FAILURES.get(error.code) in (Failure.UNKNOWN_XID, Failure.REFUSED):
                raise refusal(error, why) from error
            raise Unclear(f"{why}, which may come before or after it was done: {error}") from error
        except SessionLost as error:
            raise Unclear(f"{self.name} gave no answer: {error}") from error
        if finishing.is_own(handle, session):
            self._finished(session)
        finishing.require_done(verb.removeprefix("xa_").upper(), handle, session, replies)

    def _find(self, session: Session, xid: Xid) -> Script[XaXid]:
        listed = yield from self.prepared(session, xid.cluster)
        for one in listed:
            if one.xid == xid:
                return one.handle  # type: ignore[no-any-return]
        raise UnknownXid(f"{self.name} lists no branch {xid.gid}")

    # ---- recovery

    def prepared(self, session: Session, cluster: str, xid: Xid | None = None) -> Script[tuple[Prepared, ...]]:
        try:
            (reply,) = yield from do(session, "send", ("xa_recover",))
        except StatementFailed as error:
            raise Refused(f"{self.name} does not list its prepared branches: {error}") from error
        except SessionLost as error:
            raise Unclear(f"{self.name} gave no answer: {error}") from error
        found = [handle for (handle,) in reply.rows if isinstance(handle, XaXid)]
        return only(xid, (Prepared(one.xid, None, one) for one in found if one.xid.cluster == cluster))

    def free(self, session: Session, prepared: Prepared) -> Script[bool]:
        handle: XaXid = prepared.handle
        if not finishing.same_run(handle, session) or session.connection_id == handle.connection:
            return False
        try:
            listed, holder = yield from do(session, "send", ("xa_recover",), ("process", handle.connection))
            if (handle,) not in listed.rows or not holder.rows:
                return False
            yield from do(session, "send", ("kill", handle.connection))
            for turn in range(KILL_POLLS_MAX):
                (holder,) = yield from do(session, "send", ("process", handle.connection))
                if not holder.rows:
                    return True
                yield Pause(KILL_POLL_FIRST_S * 2**turn)
        except StatementFailed as error:
            if error.code == "1094":
                return True
            raise Refused(f"{self.name} does not end session {handle.connection}: {error}") from error
        except SessionLost as error:
            raise Unclear(f"{self.name} gave no answer: {error}") from error
        return False

    def receipt(self, session: Session, xid: Xid) -> Script[bool]:
        try:
            return (yield from self._confirm(session, xid)) is Verdict.COMMIT
        except (StatementFailed, SessionLost) as error:
            yield from self._clear(session)
            raise Unclear(f"the receipt of {xid.gid} on {self.name} can't be read: {error}") from error

    def fence(self, session: Session, xid: Xid) -> Script[Verdict]:
        try:
            try:
                yield from do(session, "send", ("fence", xid.attempt, xid.branch))
                return Verdict.ABORT
            except StatementFailed as error:
                if FAILURES.get(error.code) is not Failure.DUPLICATE:
                    raise
                yield from self._clear(session)
            stands = yield from self._confirm(session, xid)
            if stands is not None:
                return stands
            raise Unclear(f"the receipt of {xid.gid} on {self.name} was there and is gone: ask again")
        except (StatementFailed, SessionLost) as error:
            yield from self._clear(session)
            raise Unclear(f"the outcome of {xid.gid} on {self.name} can't be settled now: {error}") from error

    def forget(
        self, session: Session, xids: Sequence[Xid], *, older_than: float | None = None, below: str = ""
    ) -> Script[int]:
        return (yield from self._own(session, ("forget", tuple(xids), older_than, below))).count

    # ---- the parts

    def _receipt_row(self, work: Work, *, alone: bool) -> tuple[Any, ...]:
        return "receipt", work.xid.attempt, work.xid.branch, work.epoch, alone

    def _confirm(self, session: Session, xid: Xid) -> Script[Verdict | None]:
        (reply,) = yield from do(session, "send", ("confirm", xid.attempt, xid.branch))
        return None if not reply.rows else Verdict(reply.scalar())

    def _own(self, session: Session, statement: tuple[Any, ...]) -> Script[Reply]:
        """A transaction of our own that is one statement here, or a plain question."""
        try:
            (reply,) = yield from do(session, "send", statement)
        except SessionLost as error:
            raise Unclear(f"{self.name} gave no answer: {error}") from error
        except StatementFailed as error:
            yield from self._clear(session)
            raise refusal(error, f"{statement[0]} on {self.name}") from error
        return reply  # type: ignore[no-any-return]

    def _clear(self, session: Session) -> Script[None]:
        try:
            yield from do(session, "send", ("rollback",))
        except (StatementFailed, SessionLost):
            session.kill()


def _handle(work: Work) -> XaXid:
    invariant(isinstance(work.handle, XaXid), "I2", "branch {} was not begun, or has ended", work.xid)
    return work.handle  # type: ignore[no-any-return]


def _finishing(verb: str, handle: XaXid, session: Session) -> list[tuple[Any, ...]]:
    """As `mariadb_finishing.message`."""
    if finishing.is_own(handle, session):
        return [(verb, handle)]
    guard = [("no_process", handle.connection)] if finishing.same_run(handle, session) else []
    seen = [("receipt_there", handle.xid.attempt, handle.xid.branch)] if verb == "xa_commit" else []
    return [*guard, (verb, handle), *seen]
