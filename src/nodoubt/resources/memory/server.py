"""What the three servers in memory share: tables, an ordered log of which the end may not be on disk yet, locks,
connections, and crashes.

Guarantees: a state of the tables is never changed in place, so a reference is a snapshot; the log is flushed in
order; a crash leaves what was flushed and, of the rest, as many changes as whoever causes it wishes, the oldest first;
a message that waits for a lock has changed nothing of the statement that waits.

Must not: know what an answer means to the protocol.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import msgspec

from ...ports import (
    BelowFloor,
    Conflict,
    Identity,
    Prepared,
    Reply,
    SavepointStep,
    Session,
    SessionLost,
    StatementFailed,
    Unclear,
    Version,
    Work,
)
from ...protocol.records import Epoch, Verdict
from ...script import Script, do
from ...xid import Xid, first_attempt_of

LOCK_WAIT_S = 2.0  # for a row that somebody else has changed and neither committed nor rolled back
BRIEF_WAIT_S = 1.0  # recovery's own statements wait no longer than this

Key = tuple[str, ...]
Message = Sequence[tuple[Any, ...]]


class Guest(Protocol):
    """What else lives in the database: the journal's tables. Each write replaces `state`, and changes none in place."""

    state: Any

    def perform(self, verb: str, *args: Any) -> Any:
        """One transaction: all of it or, raising, nothing."""
        ...

    def reads(self, verb: str) -> bool: ...
    def forces(self, verb: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class Locked:
    """The message waits for a lock; go on with it when the lock may be free, or throw `LockTimeout` into it."""

    key: Key
    within_s: float


@dataclass(frozen=True, slots=True)
class Writing:
    """What was done can be seen, and its answer waits for the disk; go on with it when that is done."""


Handling = Generator[Locked | Writing, None, Any]


class LockTimeout(Exception):
    """Thrown into a message that has waited for a lock long enough."""


class Blocked(Exception):
    """A statement cannot go on before this lock is free."""

    def __init__(self, key: Key, within_s: float) -> None:
        super().__init__(str(key))
        self.key, self.within_s = key, within_s


@dataclass(frozen=True, slots=True)
class Receipt:
    """A row of the receipts."""

    verdict: Verdict
    epoch: int
    alone: bool
    at: float
    confirms: int = 0


class KeyRow(msgspec.Struct, frozen=True):
    """A row of the idempotency keys, which is also what a branch ends with (`Work.closing`), as JSON."""

    scope: str
    key: str
    payload: str
    result: str
    gid: str
    confirms: int = 0

    @property
    def place(self) -> tuple[str, str]:
        return self.scope, self.key


@dataclass(frozen=True, slots=True)
class Change:
    """What a transaction will do to the tables when it commits: `table` is "rows", "receipts", "keys" or "guest"."""

    table: str
    key: Any
    value: Any


@dataclass(frozen=True, slots=True)
class Promise:
    """A prepared branch. The rest is MariaDB's, and kept in its memory alone.

    `holder`: the connection that prepared it, whose end must come first. `bound_until`: when the engine lets go of it,
    after that end. `mislaid`: an end of it was answered before that, and not done.
    """

    changes: tuple[Change, ...]
    locks: tuple[Key, ...]
    epoch: int
    at: float
    handle: Any = None
    holder: int | None = None
    bound_until: float = 0.0
    mislaid: bool = False


@dataclass(frozen=True, slots=True)
class Tables:
    """All that is stored. `rows` are the user's: numbers by key."""

    rows: Mapping[str, int] = field(default_factory=dict)
    receipts: Mapping[tuple[str, int], Receipt] = field(default_factory=dict)
    prepared: Mapping[str, Promise] = field(default_factory=dict)
    keys: Mapping[tuple[str, str], KeyRow] = field(default_factory=dict)
    identity: Identity | None = None
    guest: Any = None


class Log:
    """The tables as they were after each change: the first as they are on disk, the last as everybody sees them."""

    def __init__(self, tables: Tables) -> None:
        self.states = [tables]
        self.flushed = 0  # how many changes are on disk

    @property
    def end(self) -> int:
        """How many changes there were."""
        return self.flushed + len(self.states) - 1

    def append(self, tables: Tables) -> None:
        self.states.append(tables)

    def flush(self, upto: int) -> None:
        """Make all changes up to this one durable."""
        if upto > self.flushed:
            del self.states[: upto - self.flushed]
            self.flushed = upto

    def cut(self, keep: int) -> None:
        """Forget what is not on disk, but for the oldest `keep` changes."""
        del self.states[1 + keep :]
        self.flush(self.end)


@dataclass(slots=True)
class Transaction:
    """What a connection is in the middle of."""

    mark: str = ""  # PostgreSQL: set by the statement that began it, gone with it
    handle: Any = None  # MariaDB: the xid; None in a plain transaction
    idle: bool = False  # MariaDB: after XA END
    gid: str = ""  # SQLite: the branch
    failed: bool = False  # PostgreSQL: an error has made it fail
    changes: list[Change] = field(default_factory=list)
    savepoints: dict[str, int] = field(default_factory=dict)  # name -> how many changes came before it
    locks: set[Key] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Connection:
    """The server's side of a session. `bound`: the prepared branch that it cannot leave (MariaDB)."""

    number: int
    transaction: Transaction | None = None
    bound: str = ""
    must_flush: int = 0  # the answer waits until so many changes are on disk


class MemoryServer:
    """One database server, or SQLite file. `now`: its clock. `full`: its disk is."""

    kind: ClassVar[str]
    visible_first: ClassVar[bool] = False  # a commit is seen before it is flushed (InnoDB)
    unforced_rows: ClassVar[bool] = False  # a commit may be answered before it is flushed (PostgreSQL)
    duplicate: ClassVar[str]  # the codes it gives
    no_floor: ClassVar[str]
    lock_timeout: ClassVar[str]
    disk_full: ClassVar[str]
    no_savepoint: ClassVar[str]

    def __init__(self, name: str, *, now: Callable[[], float], guest: Guest | None = None) -> None:
        self.name, self.now, self.guest = name, now, guest
        self.log = Log(Tables(guest=None if guest is None else guest.state))
        self.connections: dict[int, Connection] = {}
        self.started = int(now())
        self.full = False
        self._numbers = itertools.count(1)

    # ---- what everybody sees, and what a crash leaves

    @property
    def tables(self) -> Tables:
        return self.log.states[-1]

    @property
    def durable(self) -> Tables:
        return self.log.states[0]

    def write(self, tables: Tables, connection: Connection, *, forced: bool) -> None:
        """The next state. `forced`: it is on disk before its message is answered."""
        self.log.append(tables)
        if forced and self.visible_first:
            connection.must_flush = self.log.end
        elif forced:
            self.log.flush(self.log.end)

    def crash(self, keep: int = 0) -> None:
        """Every connection ends, and what is not on disk is gone but for its oldest `keep` changes."""
        self.connections.clear()
        self.log.cut(keep)
        promises = self.tables.prepared.items()
        freed = {gid: replace(one, holder=None, bound_until=0.0, mislaid=False) for gid, one in promises}
        self.log.states[-1] = replace(self.tables, prepared=freed)
        self._seat_guest()
        self.started = int(self.now())

    def restore(self, tables: Tables) -> None:
        """As after a crash, with the tables of a backup."""
        self.log.append(tables)
        self.log.flush(self.log.end)
        self.crash()

    def _seat_guest(self) -> None:
        if self.guest is not None:
            self.guest.state = self.tables.guest

    # ---- connections and messages

    def connect(self) -> Connection:
        connection = Connection(next(self._numbers))
        self.connections[connection.number] = connection
        return connection

    def disconnect(self, connection: Connection) -> None:
        """What it was in the middle of is rolled back."""
        self.connections.pop(connection.number, None)
        connection.transaction = None
        for gid, promise in self.tables.prepared.items():
            if promise.holder == connection.number:
                self.remember(gid, holder=None)

    def remember(self, gid: str, **what: Any) -> None:
        """No change of the tables: who holds a branch is the server's memory, and ends with it."""
        prepared = {**self.tables.prepared, gid: replace(self.tables.prepared[gid], **what)}
        self.log.states[-1] = replace(self.tables, prepared=prepared)

    def handle(self, connection: Connection, verb: str, args: tuple[Any, ...]) -> Handling:
        """One message: our statements (`send`), the user's (`execute`), the journal's (`apply`), a pool's (`run`)."""
        match verb:
            case "send":
                return self._message(connection, args)
            case "execute":
                return self._message(connection, (("execute", *args),))
            case "apply":
                return self._message(connection, (("apply", *args),))
            case "run":
                return self._message(connection, (("ping",),))
        raise ValueError(f"a server in memory knows no {verb!r}")

    def _message(self, connection: Connection, statements: Message) -> Handling:
        """The first error ends the message."""
        replies = []
        for name, *args in statements:
            while True:
                try:
                    replies.append(self._statement(connection, name, args))
                    break
                except Blocked as blocked:
                    try:
                        yield Locked(blocked.key, blocked.within_s)
                    except LockTimeout:
                        self.failed(connection)
                        raise StatementFailed(self.lock_timeout, f"{self.name} waited for {blocked.key}") from None
                except StatementFailed:
                    self.failed(connection)
                    raise
            if connection.must_flush:
                yield Writing()
                self.log.flush(connection.must_flush)
                connection.must_flush = 0
        if len(statements) == 1 and statements[0][0] in ("execute", "apply"):
            return replies[0]
        return tuple(replies)

    def _statement(self, connection: Connection, name: str, args: Sequence[Any]) -> Any:
        return getattr(self, f"_{name}")(connection, *args)

    def failed(self, connection: Connection) -> None:
        """A statement has failed: what that does to the transaction."""

    # ---- locks

    def holder(self, key: Key, but: Connection | None = None) -> bool:
        """Whether a transaction other than this connection's, or a prepared branch, holds the lock."""
        for other in self.connections.values():
            if other is not but and other.transaction is not None and key in other.transaction.locks:
                return True
        return any(key in promise.locks for promise in self.tables.prepared.values())

    def lock(self, connection: Connection, key: Key, within_s: float = LOCK_WAIT_S) -> None:
        """Take the lock for the connection's transaction, or for this statement if there is none."""
        if self.holder(key, but=connection):
            raise Blocked(key, within_s)
        if connection.transaction is not None:
            connection.transaction.locks.add(key)

    # ---- changes

    def applied(self, changes: Iterable[Change]) -> Tables:
        """The tables after these changes. Raises `StatementFailed` where a row stands in the way, with nothing done."""
        tables = self.tables
        for change in changes:
            match change.table:
                case "rows":
                    rows = {**tables.rows, change.key: tables.rows.get(change.key, 0) + change.value}
                    tables = replace(tables, rows=rows)
                case "receipts":
                    if change.key in tables.receipts:
                        raise StatementFailed(self.duplicate, f"a receipt of {change.key} stands already")
                    tables = replace(tables, receipts={**tables.receipts, change.key: change.value})
                case "keys":
                    if change.key in tables.keys:
                        raise StatementFailed(self.duplicate, f"the key {change.key} stands already")
                    tables = replace(tables, keys={**tables.keys, change.key: change.value})
                case _:
                    tables = replace(tables, guest=self._ridden(change.value))
        return tables

    def _ridden(self, riders: Sequence[str]) -> Any:
        """The guest's tables after these rows, which the guest itself does not keep."""
        assert self.guest is not None
        before = self.guest.state
        try:
            self.guest.perform("ride", riders)
            return self.guest.state
        except Conflict as error:
            raise StatementFailed(self.duplicate, str(error)) from error
        except BelowFloor as error:
            raise StatementFailed(self.no_floor, str(error)) from error
        finally:
            self.guest.state = before

    def refuse_if_full(self) -> None:
        if self.full:
            raise StatementFailed(self.disk_full, f"the disk of {self.name} is full")

    def store(self, connection: Connection, changes: Iterable[Change], *, forced: bool = True, **more: Any) -> None:
        """Commit these changes, and what `more` says of the other tables."""
        self.write(replace(self.applied(changes), **more), connection, forced=forced)
        self._seat_guest()

    # ---- statements that all flavours know

    def _execute(self, connection: Connection, statement: str, params: Sequence[Any]) -> Reply:
        """The user's: `add` (key, number), `read` (key), `fail`. Outside a transaction it commits by itself."""
        match statement:
            case "add":
                key, number = params
                self.refuse_if_full()
                self.lock(connection, row_lock(key))
                change = Change("rows", key, number)
                if connection.transaction is None:
                    self.store(connection, [change])
                else:
                    connection.transaction.changes.append(change)
                return Reply("UPDATE 1", 1)
            case "read":
                (key,) = params
                own = [] if connection.transaction is None else connection.transaction.changes
                mine = sum(change.value for change in own if (change.table, change.key) == ("rows", key))
                return Reply("SELECT 1", 1, ("number",), ((self.tables.rows.get(key, 0) + mine,),))
        raise StatementFailed("42601", f"{statement!r} is no statement")

    def _savepoint(self, connection: Connection, step: SavepointStep, name: str) -> Reply:
        """A name is set once at a time: the engine sees to that."""
        transaction = connection.transaction
        if step is SavepointStep.SET and transaction is not None:
            transaction.savepoints[name] = len(transaction.changes)
        elif transaction is None or name not in transaction.savepoints:
            raise StatementFailed(self.no_savepoint, f"there is no savepoint {name}")
        else:
            changes, names = transaction.savepoints[name], list(transaction.savepoints)
            for later in names[names.index(name) :]:
                del transaction.savepoints[later]
            if step is SavepointStep.BACK:
                del transaction.changes[changes:]
                transaction.failed = False
        return Reply(step.statements(name)[-1].split()[0])

    def _ping(self, connection: Connection) -> Reply:
        return Reply(rows=((1,),))

    def _apply(self, connection: Connection, verb: str, *args: Any) -> Any:
        """A transaction of the guest's."""
        assert self.guest is not None
        if not self.guest.reads(verb):
            self.refuse_if_full()
        answer = self.guest.perform(verb, *args)
        if self.guest.state is not self.tables.guest:
            forced = self.guest.forces(verb) or not self.unforced_rows
            self.write(replace(self.tables, guest=self.guest.state), connection, forced=forced)
        return answer

    def _setup(self, connection: Connection, resource_id: str, cluster: str) -> Reply:
        if self.tables.identity is None:
            identity = Identity(resource_id, cluster, self.name, 0)
            self.write(replace(self.tables, identity=identity), connection, forced=True)
        return Reply("SETUP")

    def _identity(self, connection: Connection) -> Reply:
        identity = self.tables.identity
        if identity is None:
            return Reply("SELECT 0")
        seen = [receipt.epoch for receipt in self.tables.receipts.values()] + self.epochs_of_promises()
        return Reply("SELECT 1", rows=((replace(identity, epoch=max([identity.epoch, *seen])),),))

    def epochs_of_promises(self) -> list[int]:
        """What prepared branches have witnessed, where that can be seen."""
        return []

    def _server(self, connection: Connection) -> Reply:
        return Reply("SELECT 1", rows=((self.name,),))

    def _witness(self, connection: Connection, epoch: Epoch) -> Reply:
        identity = self.tables.identity
        if identity is None:
            return Reply("UPDATE 0")
        if epoch.number > identity.epoch:
            identity = replace(identity, epoch=epoch.number, mark=epoch.mark)
        self.write(replace(self.tables, identity=identity), connection, forced=True)
        return Reply("UPDATE 1")

    def _adopt(self, connection: Connection, identity: Identity) -> Reply:
        receipts = {
            key: replace(receipt, epoch=min(receipt.epoch, identity.epoch))
            for key, receipt in self.tables.receipts.items()
        }
        self.write(replace(self.tables, identity=identity, receipts=receipts), connection, forced=True)
        return Reply("UPDATE 1")

    def _leave(self, connection: Connection) -> Reply:
        self.write(replace(self.tables, identity=None), connection, forced=True)
        return Reply("DELETE 1")

    def _confirm(self, connection: Connection, attempt: str, branch: int) -> Reply:
        """The verdict of a receipt, its row written again by force; no row: nothing."""
        key = (attempt, branch)
        self.lock(connection, receipt_lock(key), BRIEF_WAIT_S)
        receipt = self.tables.receipts.get(key)
        if receipt is None:
            return Reply("UPDATE 0", 0)
        receipts = {**self.tables.receipts, key: replace(receipt, confirms=receipt.confirms + 1)}
        self.write(replace(self.tables, receipts=receipts), connection, forced=True)
        return Reply("UPDATE 1", 1, rows=((receipt.verdict,),))

    def _receipt_there(self, connection: Connection, attempt: str, branch: int) -> Reply:
        """A plain look: what nobody may act on."""
        receipt = self.tables.receipts.get((attempt, branch))
        return Reply("SELECT", rows=() if receipt is None else ((receipt.verdict,),))

    def _fence(self, connection: Connection, attempt: str, branch: int) -> Reply:
        """INSERT our marker where the receipt would stand. It waits for a branch that is under way, briefly."""
        key = (attempt, branch)
        self.refuse_if_full()
        self.lock(connection, receipt_lock(key), BRIEF_WAIT_S)
        marker = Receipt(Verdict.ABORT, 0, True, self.now())
        self.store(connection, [Change("receipts", key, marker)])
        return Reply("INSERT 0 1", 1)

    def _forget(self, connection: Connection, xids: Sequence[Xid], older_than: float | None, below: str) -> Reply:
        """Delete these receipts, those of one-phase commits from before, and what two phases left below the floor."""
        named = {(xid.attempt, xid.branch) for xid in xids}

        def goes(key: tuple[str, int], receipt: Receipt) -> bool:
            old = older_than is not None and receipt.at < older_than and key[0] < first_attempt_of(older_than)
            return key in named or (receipt.alone and old) or (not receipt.alone and key[0] < below)

        kept = {key: receipt for key, receipt in self.tables.receipts.items() if not goes(key, receipt)}
        gone = len(self.tables.receipts) - len(kept)
        if gone:
            self.write(replace(self.tables, receipts=kept), connection, forced=True)
        return Reply(f"DELETE {gone}", gone)

    # ---- idempotency keys: `idempotency.store` tells why each kind of database is asked as it is

    def _key_row(self, connection: Connection, scope: str, key: str) -> Reply:
        """A plain look. The last column: it belongs to a prepared branch, so nothing has happened yet (SQLite)."""
        row = self.tables.keys.get((scope, key))
        return Reply(rows=() if row is None else ((row.payload, row.result, row.gid in self.tables.prepared),))

    def _key_confirm(self, connection: Connection, scope: str, key: str) -> Reply:
        """The same, its row written again by force."""
        row = self.tables.keys.get((scope, key))
        if row is not None:
            keys = {**self.tables.keys, row.place: msgspec.structs.replace(row, confirms=row.confirms + 1)}
            self.write(replace(self.tables, keys=keys), connection, forced=True)
        return self._key_row(connection, scope, key)

    def _key_lock(self, connection: Connection, scope: str, key: str) -> Reply:
        """PostgreSQL's advisory lock, if nobody has it: a prepared branch keeps it."""
        lock = ("key", scope, key)
        taken = not self.holder(lock, but=connection)
        if taken and connection.transaction is not None:
            connection.transaction.locks.add(lock)
        return Reply(rows=((taken,),))

    def _key_insert(self, connection: Connection, text: str, within_s: float = LOCK_WAIT_S) -> Reply:
        """The row, in the branch; in the place of one that the same branch has put there."""
        row = msgspec.json.decode(text, type=KeyRow)
        self.refuse_if_full()
        self.lock(connection, ("key row", *row.place), within_s)
        if row.place in self.tables.keys:
            raise StatementFailed(self.duplicate, f"the key {row.place} stands already")
        assert connection.transaction is not None
        changes = connection.transaction.changes
        changes[:] = [one for one in changes if (one.table, one.key) != ("keys", row.place)]
        changes.append(Change("keys", row.place, row))
        return Reply("INSERT 0 1", 1)


class MemoryTables:
    """`ports.Tables`. There is only one version: a server lives no longer than the program that made it."""

    known = 1

    def version(self, session: Session) -> Script[Version | None]:
        try:
            (reply,) = yield from do(session, "send", ("identity",))
        except SessionLost as error:
            raise Unclear(f"the database gave no answer: {error}") from error
        return Version(1, 1) if reply.rows else None

    def shuts_out(self, version: Version | None) -> bool:
        return False

    def migrate(self, session: Session) -> Script[None]:
        yield from ()


def receipt_lock(key: tuple[str, int]) -> Key:
    """The lock on the place of a receipt, whether or not it is there."""
    return ("receipt", key[0], str(key[1]))


def only(xid: Xid | None, listed: Iterable[Prepared]) -> tuple[Prepared, ...]:
    """That one, if it is asked for."""
    return tuple(one for one in listed if xid is None or one.xid == xid)


def row_lock(key: str) -> Key:
    return ("row", key)


def closing(work: Work) -> Message:
    """The rows of ours that a branch ends with, as statements."""
    return [("key_insert", row) for row in work.closing]


def without(prepared: Mapping[str, Promise], gid: str) -> dict[str, Promise]:
    return {other: promise for other, promise in prepared.items() if other != gid}
