"""`SqliteResource`: the scripts of `ports.Resource` for a SQLite file.

Every script is one effect: a `call` that runs one function of this package in the session's thread. `run` and
`execute` of the session are not used here; the scripts of `schema`, which make our tables, use `run`.

Guarantees: any error of a statement dooms its branch (I16); `SessionLost` leaves `execute` alone as it is, and every
other script as `Unclear` (or `Refused`, where nothing had been sent that could matter).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...errors import BranchDoomed, UsageError, text_of
from ...ports import (
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
from ...schema import Part, Tables, judge, shipped
from ...script import Do, Script
from ...xid import Xid, parse_gid
from . import receipts, two_phase
from .check import check
from .failures import refusal


class SqliteResource:
    """A SQLite file as a participant that can promise. Any number of sessions, processes and coordinators share it."""

    traits = Traits(kind="sqlite", riders_on_prepare=True, locks_all=True)

    def __init__(self, name: str) -> None:
        self.name = name
        self.tables = Tables(shipped(Part.PARTICIPANT, "sqlite"), whose=name)

    # -- registration
    def check(self, session: Session) -> Script[tuple[str, ...]]:
        """Refuse what cannot be made durable; warn of tables that cannot be staged."""
        return self._ask(session, check)

    def setup(self, session: Session, resource_id: str, cluster: str) -> Script[None]:
        """Create our tables if they are missing, and store the identity once."""
        yield from self.tables.create(session)
        if (yield from self.identity(session)) is None:
            yield from self._ask(session, receipts.setup, resource_id, cluster)

    def identity(self, session: Session) -> Script[Identity | None]:
        """What is stored; None: no `setup` yet."""
        version = yield from self.tables.version(session)
        if version is None:
            return None
        judge(version, self.tables.schema, self.name)
        return (yield from self._ask(session, receipts.identity))  # type: ignore[no-any-return]

    def server(self, session: Session) -> Script[str]:
        """The file's inode: a copy has another."""
        return self._ask(session, receipts.server)

    def witness(self, session: Session, epoch: Epoch) -> Script[None]:
        """Store that the journal has shown this epoch."""
        return self._ask(session, receipts.witness, epoch)

    def adopt(self, session: Session, identity: Identity) -> Script[None]:
        """Overwrite the stored identity."""
        return self._ask(session, receipts.adopt, identity)

    def leave(self, session: Session) -> Script[None]:
        """Forget who this file was."""
        return self._ask(session, receipts.leave)

    # -- one branch's work
    def begin(self, session: Session, work: Work, *, before: Sequence[str] = ()) -> Script[None]:
        """BEGIN IMMEDIATE. `Refused` names who holds the file, if it stays locked. A `lazy` one goes with `execute`."""
        self._refuse_unforced(before)
        if work.lazy:
            work.opening = ("BEGIN IMMEDIATE",)
            return
        yield from self._ask(session, two_phase.begin, work)

    def execute(self, session: Session, work: Work, statement: str, params: Any) -> Script[Reply]:
        """The user's statement, `?` or `:name`."""
        if work.doomed is not None:
            raise BranchDoomed(
                f"an earlier statement on {self.name} failed ({text_of(work.doomed)}): this branch can only be rolled "
                "back"
            ) from work.doomed
        try:
            reply, wrote = yield Do(session, "call", (two_phase.execute, work, statement, params))
        except BaseException as error:
            work.doomed = error
            raise
        work.wrote = work.wrote or wrote
        return reply  # type: ignore[no-any-return]

    def savepoint(self, session: Session, work: Work, step: SavepointStep, name: str) -> Script[None]:
        """`Refused` where SQLite has undone the whole transaction, as after an error of the disk."""
        try:
            yield Do(session, "call", (two_phase.savepoint, work, step, name))
        except StatementFailed as error:
            raise refusal(error, f"savepoint {name} on {self.name}") from error

    def wrote(self, session: Session, work: Work) -> Script[bool]:
        """False only if the branch surely wrote nothing."""
        if work.wrote or work.opening:
            return work.wrote
        try:
            return (yield Do(session, "call", (two_phase.wrote, work.xid.gid)))  # type: ignore[no-any-return]
        except SessionLost as error:
            # Nothing that could end the branch was ever sent, so SQLite rolls it back.
            raise Refused(f"{self.name} was lost before its work could end: {error}", retry=True) from error

    def end_reader(self, session: Session, work: Work) -> Script[None]:
        """Commit a branch that wrote nothing."""
        if not work.opening:
            yield from self._ask(session, two_phase.end_reader, work.xid.gid)

    def rollback(self, session: Session, work: Work) -> Script[None]:
        """Undo the work. Never raises: a session that could not be cleaned is ended, and SQLite rolls back."""
        try:
            yield Do(session, "call", (two_phase.rollback,))
        except Exception:
            session.kill()

    def commit_alone(self, session: Session, work: Work, *, riders: Sequence[str] = ()) -> Script[None]:
        """One phase, with the receipt or the riders."""
        self._refuse_doomed(work)
        yield from self._ask(session, two_phase.commit_alone, work.xid, work.epoch, tuple(riders), work.closing)

    # -- two phases
    def prepare(self, session: Session, work: Work, *, riders: Sequence[str] = ()) -> Script[None]:
        """Promise. The receipt is written by phase two, in the same local transaction as the rows."""
        self._refuse_doomed(work)
        yield from self._ask(session, two_phase.prepare, work.xid, work.epoch, (*riders, *work.closing))

    def detach(self, session: Session) -> Script[None]:
        """Nothing holds a prepared branch: any session can finish it."""
        yield from ()

    def commit_prepared(
        self, session: Session, prepared: Prepared, *, before: Sequence[str] = (), riders: Sequence[str] = ()
    ) -> Script[None]:
        """Phase two. `Hazard`: its tables were changed from outside, and it stays prepared."""
        self._refuse_unforced(before)
        yield from self._ask(session, two_phase.commit_prepared, prepared.xid, tuple(riders))

    def rollback_prepared(self, session: Session, prepared: Prepared) -> Script[None]:
        """Drop the record and its locks."""
        return self._ask(session, two_phase.rollback_prepared, prepared.xid)

    # -- recovery
    def prepared(self, session: Session, cluster: str, xid: Xid | None = None) -> Script[tuple[Prepared, ...]]:
        """All branches of this cluster that are prepared in this file, hazards included."""
        rows = yield from self._ask(session, two_phase.prepared, "" if xid is None else xid.gid)
        found = ((parse_gid(gid), age_s) for gid, age_s in rows)
        return tuple(Prepared(one, age_s) for one, age_s in found if one is not None and one.cluster == cluster)

    def free(self, session: Session, prepared: Prepared) -> Script[bool]:
        """No session ever holds a prepared branch."""
        yield from ()
        return False

    def receipt(self, session: Session, xid: Xid) -> Script[bool]:
        """Whether the branch committed, confirmed."""
        return self._settled(session, receipts.receipt, xid)

    def fence(self, session: Session, xid: Xid) -> Script[Verdict]:
        """Settle a one-phase commit."""
        return self._settled(session, receipts.fence, xid)

    def forget(
        self, session: Session, xids: Sequence[Xid], *, older_than: float | None = None, below: str = ""
    ) -> Script[int]:
        """Delete receipts."""
        return self._ask(session, receipts.forget, tuple(xids), older_than, below)

    # -- how they are asked
    def _ask(self, session: Session, function: Callable[..., Any], *args: Any) -> Script[Any]:
        try:
            return (yield Do(session, "call", (function, *args)))
        except SessionLost as error:
            raise Unclear(f"{self.name} gave no answer: {error}") from error
        except StatementFailed as error:
            raise refusal(error, self.name) from error

    def _settled(self, session: Session, function: Callable[..., Any], *args: Any) -> Script[Any]:
        """As `_ask`, where even a refusal (the file is locked) tells nothing about the branch."""
        try:
            return (yield from self._ask(session, function, *args))
        except Refused as error:
            raise Unclear(f"{self.name} cannot tell now: {error}") from error

    def _refuse_doomed(self, work: Work) -> None:
        if work.doomed is not None:
            raise Refused(
                f"a statement on {self.name} failed ({text_of(work.doomed)}), so the branch can only be rolled back"
            ) from work.doomed

    def _refuse_unforced(self, before: Sequence[str]) -> None:
        if before:
            raise UsageError(f"{self.name}: rows cannot ride unforced on SQLite; let them ride on the commit itself")
