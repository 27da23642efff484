"""What the engine needs from outside: sessions, resources, a journal, a clock, ids, an observer.

A `Session` is one connection, from `drivers`. A `Resource` and a `Journal` are scripts over sessions: they
say which statements, in which order, and what an answer means. Neither knows whether it runs sync or
async, and neither knows the other.

Every script here ends in one of three ways, and the difference is the product:

- it returns: done, by the server's own word (a command tag, a row), not by the absence of an error;
- it raises `Refused` or a subclass: surely *not* done;
- it raises `Unclear`: no answer. Neither success nor failure; only the register or a receipt can tell.

Must not: import a driver, or anything of the engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import msgspec

from ..protocol.records import (
    Call,
    Confirmation,
    Decision,
    Epoch,
    Event,
    Quarantined,
    Readiness,
    Staging,
    Standing,
    Unreadable,
    Verdict,
)
from ..script import Script
from ..xid import Xid
from .answers import BelowFloor as BelowFloor
from .answers import Conflict as Conflict
from .answers import Failure as Failure
from .answers import Refused as Refused
from .answers import SessionLost as SessionLost
from .answers import Shortcoming as Shortcoming
from .answers import StatementFailed as StatementFailed
from .answers import Unclear as Unclear
from .answers import UnknownXid as UnknownXid
from .answers import readable as readable
from .answers import require_none as require_none
from .backend import Backend as Backend
from .chance import Clock as Clock
from .chance import Ids as Ids
from .notices import Notice as Notice
from .notices import Observer as Observer

# ---- what a server answers ------------------------------------------------------------------------


class Reply(msgspec.Struct, frozen=True):
    """One statement's answer. Iterates over its rows as mappings.

    `tag` is the server's own word for what it did (`INSERT 0 1`, `COMMIT`); "" where the server has none.
    `count` is the number of rows matched or returned, -1 where unknown. `types` (the driver's codes of the columns'
    types) and `last_id` (the id that the last INSERT was given) are there for those who passed `Bound`.
    """

    tag: str = ""
    count: int = -1
    columns: tuple[str, ...] = ()
    rows: Sequence[tuple[Any, ...]] = ()
    types: tuple[Any, ...] = ()
    last_id: int = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (dict(zip(self.columns, row, strict=True)) for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(zip(self.columns, self.rows[index], strict=True))

    def scalar(self) -> Any:
        """The first column of the first row; None where there is no row."""
        return self.rows[0][0] if self.rows else None


@dataclass(frozen=True, slots=True)
class Bound:
    """Parameters from somebody who needs the reply in full (`Reply.types`, `Reply.last_id`).

    `many`: `values` are rows of parameters, and the statement is run for each; the reply has the sum of their counts.
    """

    values: Any
    many: bool = False


Params = Sequence[Any] | Mapping[str, Any] | Bound | None


class Session(Protocol):
    """One connection. The async twin has the same methods as coroutines (but `kill` and `timed_out`)."""

    usable: bool  # False once closed, interrupted, or in a state that no pool may hand on
    connection_id: int  # the server's id for it, 0 where it has none
    server_started: int  # when that server started, in seconds since the epoch; 0 where unknown

    def run(self, sql: str) -> tuple[Reply, ...]:
        """Our own literal statements, `;` between them, in one message; a reply for each.

        The first error ends the message. Raises `StatementFailed` or `SessionLost`, nothing else.
        """
        ...

    def execute(self, statement: str, params: Params) -> Reply:
        """The user's statement, with the driver's own placeholders. Raises the driver's own errors."""
        ...

    def lost(self, error: BaseException) -> bool:
        """Whether this error of `execute` means that the connection is gone."""
        ...

    def close(self) -> None:
        """End the connection in good order. Never raises."""
        ...

    def kill(self) -> None:
        """End it at once, from any thread, so that a call in progress fails."""
        ...

    def timed_out(self, seconds: float) -> Exception:
        """The error to raise for a call that `kill` cut short."""
        ...


# ---- what a resource is told, and knows ------------------------------------------------------------


class SavepointStep(Enum):
    """What can be done with a savepoint, in the SQL that all three kinds of database share."""

    SET = ("SAVEPOINT {0}",)
    RELEASE = ("RELEASE SAVEPOINT {0}",)
    BACK = ("ROLLBACK TO SAVEPOINT {0}", "RELEASE SAVEPOINT {0}")

    def statements(self, name: str) -> tuple[str, ...]:
        """The statements, for a savepoint of that name."""
        return tuple(statement.format(name) for statement in self.value)


class Work(msgspec.Struct):
    """One branch while it is being worked on. The engine owns it; the resource's scripts update it."""

    xid: Xid
    epoch: int
    alone: bool = False  # the coordinator has this one resource: it may end in one phase only
    staged: bool = False
    wrote: bool = False  # surely wrote something; False means not known
    statements: int = 0
    lazy: bool = False  # a statement follows at once, and what begins the branch may go with it
    opening: tuple[str, ...] = ()  # what begins the branch, as long as the server has not answered it
    doomed: BaseException | None = None  # the error after which only a rollback is possible (I16)
    handle: Any = None  # what the resource needs to name the branch again (MariaDB: `XaXid`)
    closing: tuple[str, ...] = ()  # rows of ours that it ends with, beside its receipt: an idempotency key's


class Prepared(msgspec.Struct, frozen=True):
    """A branch that a resource lists as prepared. `age_s`: since when, by the server's clock; None if it can't tell."""

    xid: Xid
    age_s: float | None = None
    handle: Any = None  # as in `Work`


@dataclass(frozen=True, slots=True)
class Identity:
    """What a participant stores about itself and its journal (I15)."""

    resource_id: str
    cluster: str  # of the journal it belongs to
    server: str  # what the server says it is (system identifier and database, inode …); "" if it can't tell
    epoch: int  # the highest epoch of the journal it has witnessed
    mark: str = ""  # of the epoch that was witnessed last; "" if none was


@dataclass(frozen=True, slots=True)
class Version:
    """Of our tables in one database. `stands`: the newest migration that is finished.

    `works_from`: what a coordinator must know at least to work on them. `unfinished`: a migration has begun since.
    """

    stands: int
    works_from: int
    unfinished: bool = False


class Tables(Protocol):
    """Our own tables in one database, whatever their version."""

    @property
    def known(self) -> int:
        """The newest version that this release knows."""
        ...

    def version(self, session: Session) -> Script[Version | None]:
        """Of what is there; None: nothing is."""
        ...

    def shuts_out(self, version: Version | None) -> bool:
        """Whether `migrate`, from there, refuses coordinators that are at work now."""
        ...

    def migrate(self, session: Session) -> Script[None]:
        """Make them those that this release knows. Idempotent, and safe when two run it at the same time."""
        ...


@dataclass(frozen=True, slots=True)
class Traits:
    """How a kind of resource differs, where the engine must know."""

    kind: str
    riders_on_prepare: bool = False  # rows ride *inside* a prepare or phase-two commit, atomically (SQLite)
    rows_at_begin: bool = False  # rows are committed in the message that begins a branch (PostgreSQL, MariaDB)
    unforced_rows: bool = False  # a row committed unforced is flushed by the next forced command (PostgreSQL's log)
    holds_session: bool = False  # a prepared branch is bound to its session until that session ends (MariaDB)
    locks_all: bool = False  # while a branch is at work nobody else can write to its database (SQLite)
    listed_sql: str = ""  # a condition, that {attempt} of {cluster} is prepared with the number {branch} (PostgreSQL)


class Resource(Protocol):
    """A database that can take part: scripts over its sessions. One object, used by any number of sessions."""

    name: str
    traits: Traits

    @property
    def tables(self) -> Tables: ...

    # -- registration
    def check(self, session: Session) -> Script[tuple[str, ...]]:
        """Refuse (`ResourceRefused`, naming the setting) what can't be made durable; return warnings."""
        ...

    def setup(self, session: Session, resource_id: str, cluster: str) -> Script[None]:
        """Create our tables if they are missing and store the identity once. Migrates nothing: `SchemaMismatch`.

        Idempotent, and safe when two run it at the same time.
        """
        ...

    def identity(self, session: Session) -> Script[Identity | None]:
        """What is stored, with `epoch` the highest witnessed in identity or receipts; None: no `setup` yet.

        Raises `SchemaMismatch` where this release may not work on our tables.
        """
        ...

    def server(self, session: Session) -> Script[str]:
        """What the server says it is, now."""
        ...

    def witness(self, session: Session, epoch: Epoch) -> Script[None]:
        """Store that the journal has shown this epoch (never an older one). Forced."""
        ...

    def adopt(self, session: Session, identity: Identity) -> Script[None]:
        """Overwrite the stored identity: an operator has looked and takes responsibility."""
        ...

    def leave(self, session: Session) -> Script[None]:
        """Forget the stored identity, forced: this database takes part no more. What else is stored stays."""
        ...

    # -- one branch's work
    def begin(self, session: Session, work: Work, *, before: Sequence[str] = ()) -> Script[None]:
        """Begin the branch. `before`: statements to commit first, in the same message (`rows_at_begin`), unforced where
        that can be (`unforced_rows`). `Conflict`, `BelowFloor`: surely none was; after any other failure nobody knows.

        A `lazy` branch may be begun by its first `execute`, in the same message; until then `work.opening` says how.
        """
        ...

    def execute(self, session: Session, work: Work, statement: str, params: Any) -> Script[Reply]:
        """The user's statement. Transaction control is refused; any error dooms the branch (I16)."""
        ...

    def savepoint(self, session: Session, work: Work, step: SavepointStep, name: str) -> Script[None]:
        """Returns only on the server's own word. After anything else nobody knows which work is left.

        `Refused`: the server does not know the savepoint, because it has undone more than what came after it.
        """
        ...

    def wrote(self, session: Session, work: Work) -> Script[bool]:
        """False only if the branch *surely* wrote nothing."""
        ...

    def end_reader(self, session: Session, work: Work) -> Script[None]:
        """Plain commit of a branch that wrote nothing. `Refused` if its reads can't stand (serialization)."""
        ...

    def rollback(self, session: Session, work: Work) -> Script[None]:
        """Undo work that was not prepared; afterwards the session is clean, or not `usable`. Never raises."""
        ...

    def commit_alone(self, session: Session, work: Work, *, riders: Sequence[str] = ()) -> Script[None]:
        """One-phase commit, proven to be in the transaction that was begun.

        Without riders it writes the receipt; with them (the decision row) they are its proof, and `Conflict`
        or `BelowFloor` mean that the rider, and so all of the branch, did not happen.
        """
        ...

    # -- two phases
    def prepare(self, session: Session, work: Work, *, riders: Sequence[str] = ()) -> Script[None]:
        """Write the receipt and prepare. Returns only on the server's own word (I2). Sets `work.handle`."""
        ...

    def detach(self, session: Session) -> Script[None]:
        """After a prepare, let go of the branch, so that any session can finish it (MariaDB: close)."""
        ...

    def commit_prepared(
        self, session: Session, prepared: Prepared, *, before: Sequence[str] = (), riders: Sequence[str] = ()
    ) -> Script[None]:
        """Phase two. `UnknownXid` is no success.

        `before`: unforced rows in the same session (`unforced_rows`); `riders`: rows of the same local transaction
        (`riders_on_prepare`).
        """
        ...

    def rollback_prepared(self, session: Session, prepared: Prepared) -> Script[None]: ...

    # -- recovery
    def prepared(self, session: Session, cluster: str, xid: Xid | None = None) -> Script[tuple[Prepared, ...]]:
        """All branches of this cluster that are prepared in this database, or, asked for one, that one if it is."""
        ...

    def free(self, session: Session, prepared: Prepared) -> Script[bool]:
        """End the session that still holds the branch, after making sure who it is. True if one was ended."""
        ...

    def receipt(self, session: Session, xid: Xid) -> Script[bool]:
        """Whether the branch committed: its receipt, seen in a new snapshot and confirmed by a forced UPDATE."""
        ...

    def fence(self, session: Session, xid: Xid) -> Script[Verdict]:
        """Settle a one-phase commit: COMMIT if the receipt stands (confirmed), ABORT if our marker now does, forced.

        `Unclear` if neither could be found out (blocked by the branch itself, unreachable).
        """
        ...

    def forget(
        self, session: Session, xids: Sequence[Xid], *, older_than: float | None = None, below: str = ""
    ) -> Script[int]:
        """Delete these receipts, whose end record is forced.

        With `older_than`, also a batch of those of one-phase commits from before, by the server's clock and their
        attempt's; with `below`, the journal's floor, a batch of attempts that had ended before it forgot them.
        """
        ...


Listed = tuple[Staging | Unreadable, Standing | Unreadable | None]  # a name, and the decision seen: advice
Known = tuple[Staging | Unreadable, Standing | Unreadable | None, bool]  # True: X is prepared; False: ask for it
Spot = tuple[int, str]  # how far a look through the journal has come: the set, and the last key that was seen of it
START: Spot = (0, "")


class Journal(Protocol):
    """Where decisions live: scripts over sessions of the database that holds it.

    A row that cannot be read stands in an answer as `Unreadable`, in its own place: neither left out nor guessed at.
    """

    @property
    def tables(self) -> Tables: ...

    def setup(self, session: Session, cluster: str) -> Script[None]:
        """Create the tables if they are missing and store the cluster id once; an id that stands is kept.

        Migrates nothing: `SchemaMismatch`.
        """
        ...

    def cluster(self, session: Session, *, judged: bool = True) -> Script[str]:
        """The cluster id. Raises `SchemaMismatch` where this release may not work on our tables, or there are none.

        Not `judged`: whatever version they are, for whoever is about to migrate them; its row never changes its form.
        """
        ...

    def epoch(self, session: Session) -> Script[Epoch]:
        """The epoch as it stands. Raises `SchemaMismatch` where this release may not work on our tables any more."""
        ...

    def raise_epoch(self, session: Session, mark: str) -> Script[Epoch]:
        """Begin the next epoch, under this mark, forced. At each start of a coordinator."""
        ...

    def minted(self, session: Session, mark: str) -> Script[bool]:
        """Whether this journal has given out that mark, as far back as a registered resource may show it."""
        ...

    # -- the register
    def insert(self, session: Session, decisions: Sequence[Decision]) -> Script[None]:
        """Write these decisions in one forced transaction: all of them or, raising, none.

        `Conflict`: one of them stands already. `BelowFloor`: one of them is below the floor, or is the COMMIT of what
        was staged while somebody who was asked has not confirmed, or a step is open. `frees_name`: its name's row goes.
        """
        ...

    def decision_rows(self, decision: Decision) -> tuple[str, ...]:
        """The literal statements of such a write, for a transaction that somebody else begins and commits."""
        ...

    def confirm(self, session: Session, attempts: Sequence[str]) -> Script[dict[str, Standing | Unreadable]]:
        """The decisions that stand, each flushed by a forced UPDATE of its own row. Only these may be acted on."""
        ...

    def look(self, session: Session, attempts: Sequence[str]) -> Script[dict[str, Standing | Unreadable]]:
        """A plain read: advice, never grounds to act."""
        ...

    def open_commits(self, session: Session, after: str, limit: int) -> Script[list[Standing | Unreadable]]:
        """COMMIT decisions that have not ended, by attempt, from `after` on (exclusive)."""
        ...

    def end(self, session: Session, attempts: Sequence[str]) -> Script[None]:
        """Every branch of these attempts has proved itself, so their steps stand. Forced."""
        ...

    def floor(self, session: Session, *, flushed: bool = False) -> Script[str]:
        """The oldest attempt that may still be decided COMMIT; below it all is unknown. `flushed`: and stays so.
        `UnreadableRecord`, if it is no attempt; then whatever writes a decision, a name or a call raises that, too.
        """
        ...

    def aborted(
        self, session: Session, older_than: float, limit: int, after: str = ""
    ) -> Script[list[Standing | Unreadable]]:
        """ABORT decisions from before, by attempt, from `after` on (exclusive): with those that a `retire` of as many
        would delete; then, uncounted, what could not be read among them. A plain read.
        """
        ...

    def retire(self, session: Session, older_than: float, limit: int, after: str = "") -> Script[tuple[str, ...]]:
        """Raise the floor, then delete ended and aborted records from before, in one batch; returns their attempts, in
        order. Of an attempt of which a row cannot be read all stays. `after`: the last of the batch before.
        """
        ...

    def unreadable(
        self, session: Session, after: Spot = START, *, old: bool = False
    ) -> Script[tuple[list[Unreadable], Spot | None]]:
        """The rows that cannot be read, of all that is not over and of all below the floor: those of one page, of a
        bounded size, and where the next one goes on (None: there is none). `old`: without those that are not over.
        A plain read.
        """
        ...

    def unreadable_of(self, session: Session, attempts: Sequence[str]) -> Script[list[Unreadable]]:
        """What there is of these attempts beside their decisions, and cannot be read. A plain read."""
        ...

    def ownerless(self, session: Session) -> Script[list[Unreadable]]:
        """Of what is not over, the rows whose very attempt cannot be read, or is stored twice and differs; likewise the
        floor. Whose they are nobody can tell: while there are any, the lack of a decision proves nothing.
        """
        ...

    # -- the directory of names
    def stage(
        self, session: Session, staging: Staging, *, replace: Staging | None = None, forced: bool = True
    ) -> Script[None]:
        """Write the row. `Conflict`: the name is taken. `replace`: the row of an ended attempt that it may replace.

        Not `forced`: it may be lost in a crash until a later flush of the same log (`unforced_rows`) has been answered.
        """
        ...

    def staging_rows(self, staging: Staging, *, replace: Staging | None = None) -> tuple[str, ...]: ...
    def find(self, session: Session, name: str) -> Script[Staging | Unreadable | None]:
        """The row by name, or by attempt id."""
        ...

    def known(self, session: Session, name: str, *, listed_sql: str = "") -> Script[Known | None]:
        """As `find`, with more. `listed_sql`: the trait of X's resource, if that is this very database."""
        ...

    def staged(self, session: Session, attempts: Sequence[str]) -> Script[dict[str, Staging | Unreadable]]: ...
    def undecided(self, session: Session, after: str, limit: int) -> Script[list[Staging | Unreadable]]:
        """Names without a decision, by attempt, from `after` on (exclusive). A plain read."""
        ...

    def list_staged(self, session: Session, after: str, limit: int) -> Script[list[Listed]]:
        """The directory with what was decided, newest first."""
        ...

    def overdue(self, session: Session, before: float, after: str, limit: int) -> Script[list[Staging | Unreadable]]:
        """As `undecided`, but only those whose deadline lies before, or that somebody has refused."""
        ...

    # -- readiness: who was asked is stored with the row of the name
    def answer(
        self, session: Session, attempt: str, who: str, answer: Readiness, *, why: str, at: float
    ) -> Script[Confirmation | Unreadable | None]:
        """What stands for them now, forced; None: nobody asked them.

        Only a first answer is written, and none where a decision is seen.
        """
        ...

    def confirmations(self, session: Session, attempt: str) -> Script[list[Confirmation | Unreadable]]: ...

    # -- steps that were called outside (I19)
    def now(self, session: Session) -> Script[float]:
        """The journal's own clock. Whatever is compared with a call's `until` is this, whoever asks."""
        ...

    def intend(self, session: Session, call: Call) -> Script[None]:
        """Write a call before its action, forced. `Conflict`: its number or key is taken, or the attempt is decided."""
        ...

    def advance(self, session: Session, before: Call, after: Call) -> Script[bool]:
        """Compare-and-set, forced: write `after` if the call still has the version of `before`. False: it has not."""
        ...

    def hold(self, session: Session, attempts: Sequence[str], until: float) -> Script[None]:
        """Whoever called steps in these undecided attempts is alive, and shall be left alone until then. Unforced."""
        ...

    def calls(self, session: Session, attempts: Sequence[str]) -> Script[list[Call | Unreadable]]:
        """All calls of these attempts, by attempt and number."""
        ...

    def unfinished_calls(self, session: Session, after: str, limit: int) -> Script[list[str | Unreadable]]:
        """Attempts with calls that are neither closed nor parked, and have not ended with a COMMIT; from `after` on."""
        ...

    def parked_calls(self, session: Session) -> Script[list[Call | Unreadable]]:
        """Those that a human must look at."""
        ...

    # -- what is registered, what went wrong, what happened
    def register(self, session: Session, name: str, identity: Identity) -> Script[None]:
        """Remember the resource, its server and the epoch it has witnessed."""
        ...

    def registered(self, session: Session) -> Script[dict[str, tuple[str, Identity] | Unreadable]]:
        """By resource id: the name it was registered under, and its identity as of then."""
        ...

    def unregister(self, session: Session, resource_id: str) -> Script[None]:
        """Forget a resource. `Conflict` while a COMMIT that has not ended, or an undecided name, lists it; or nobody
        knows of a decision whether it is such a one. The journal can't see a branch that is prepared and has no
        decision yet, or whom a row that is unreadable lists: look at the resource itself, and at those, first.
        """
        ...

    def quarantine(self, session: Session, entry: Quarantined) -> Script[None]:
        """Store it, forced; one entry per (attempt, branch)."""
        ...

    def quarantined(self, session: Session, limit: int | None = None) -> Script[list[Quarantined | Unreadable]]:
        """Those not cleared, oldest first."""
        ...

    def clear(self, session: Session, attempt: str, branch: int, by: str) -> Script[None]: ...
    def record(self, session: Session, events: Sequence[Event]) -> Script[None]: ...
    def events(self, session: Session, attempt: str) -> Script[list[Event]]:
        """The trail: what was recorded, and what the rows of the attempt tell themselves (`journals.trail`)."""
        ...


class Pool(Protocol):
    """Sessions of one database; the async twin has coroutines."""

    def acquire(self) -> Session: ...
    def release(self, session: Session) -> None:
        """Take it back if it is `usable`, else end it."""
        ...

    def drop_idle(self) -> None:
        """End the idle ones: their server has gone."""
        ...

    def close(self) -> Any:
        """End the idle sessions; the others end as they come back."""
        ...

    def kill(self) -> None: ...
    def timed_out(self, seconds: float) -> Exception: ...
