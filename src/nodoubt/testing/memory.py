"""Databases in memory, for fakes: they store which statements were committed, and run none of them.

Guarantees: the conformance suite for resources, as every database that can promise. What was told to fail does so from
its point on, until it is healed.

Must not: outlive its process, or be mistaken for a database: a statement has no effect and no result of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..errors import UsageError, text_of
from ..journals.memory import MemoryStore, MemoryTables
from ..points import Point
from ..ports import (
    Bound,
    Conflict,
    Identity,
    Prepared,
    Refused,
    Reply,
    SavepointStep,
    Session,
    SessionLost,
    Traits,
    Unclear,
    UnknownXid,
    Version,
    Work,
)
from ..protocol.records import Epoch, Verdict
from ..resources.mariadb_text import refuse_control
from ..script import Do, Script
from ..xid import Xid, first_attempt_of

_READS = ("select", "with", "values", "show", "explain")


class Statement(NamedTuple):
    """A statement as it was given: on which resource, the text, and the parameters."""

    on: str
    text: str
    params: Any = None


@dataclass(slots=True)
class Fault:
    """A point that fails. `done`: what was asked there is done, and only the answer is lost."""

    point: Point
    error: Exception
    done: bool = False
    seen: int = 0


@dataclass(frozen=True, slots=True)
class Scripted:
    """What is answered to statements that contain this text."""

    containing: str
    on: str
    answer: Reply | Exception


@dataclass(slots=True)
class World:
    """What the databases of one fake share."""

    faults: list[Fault] = field(default_factory=list)
    scripted: list[Scripted] = field(default_factory=list)
    executed: list[Statement] = field(default_factory=list)
    committed: list[Statement] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def at(self, number: str, what: str, on: str, act: Callable[[], Any]) -> Any:
        """Do what is asked at this point, or fail as it was told."""
        for fault in self.faults:
            if (fault.point.number, fault.point.what) == (number, what) and fault.point.on in ("", on):
                fault.seen += 1
                if fault.seen >= fault.point.count:
                    if fault.done and fault.seen == fault.point.count:
                        act()
                    raise fault.error
        return act()

    def require_voice(self, on: str) -> None:
        """Raise where a decision has had no answer: who does not answer that one tells nothing of it either."""
        for fault in self.faults:
            if fault.point.what == "deciding" and fault.point.on in ("", on) and fault.seen >= fault.point.count:
                raise fault.error

    def answer(self, statement: Statement) -> Reply:
        """As scripted, the newest first; else no rows, and one row affected."""
        for one in reversed(self.scripted):
            if one.on in ("", statement.on) and one.containing.lower() in statement.text.lower():
                if isinstance(one.answer, Exception):
                    raise one.answer
                return one.answer
        return Reply(count=1)


class FakeStore(MemoryStore):
    """The journal's database. Once it has failed, it is silent."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def apply(self, verb: str, *args: Any) -> Any:
        perform = super().apply
        with self._world.lock:
            if verb == "insert":
                return self._world.at("P5", "deciding", "", lambda: perform(verb, *args))
            self._world.require_voice("")
            return perform(verb, *args)


@dataclass(slots=True)
class _Open:
    """A branch at work."""

    statements: list[Statement] = field(default_factory=list)
    savepoints: dict[str, int] = field(default_factory=dict)
    alone: bool = False
    epoch: int = 0
    since: float = field(default_factory=time.monotonic)


class _Receipt(NamedTuple):
    verdict: Verdict
    alone: bool
    at: float


class FakeDatabase:
    """A database that promises. Its sessions are those of the journal in memory: their one verb is `apply`."""

    def __init__(self, name: str, world: World) -> None:
        self.name, self.world = name, world
        self._has_tables = False
        self._identity: Identity | None = None
        self._open: dict[Xid, _Open] = {}
        self._prepared: dict[Xid, _Open] = {}
        self._receipts: dict[Xid, _Receipt] = {}

    def apply(self, verb: str, *args: Any) -> Any:
        """One command of a resource's, atomic."""
        with self.world.lock:
            return getattr(self, f"do_{verb}")(*args)

    # ---- registration

    def do_setup(self, resource_id: str, cluster: str) -> None:
        self._has_tables = True
        self._identity = self._identity or Identity(resource_id, cluster, "", 0)

    def do_identity(self) -> Identity | None:
        return self._identity

    def do_has_tables(self) -> bool:
        return self._has_tables

    def do_leave(self) -> None:
        self._identity = None

    def do_adopt(self, identity: Identity) -> None:
        self._identity = identity

    def do_witness(self, epoch: int, mark: str) -> None:
        known = self._identity
        if known is not None and epoch > known.epoch:
            self._identity = Identity(known.resource_id, known.cluster, known.server, epoch, mark)

    # ---- work

    def do_begin(self, xid: Xid, epoch: int) -> None:
        self._open[xid] = _Open(epoch=epoch)

    def do_execute(self, xid: Xid, text: str, params: Any) -> Reply:
        statement = Statement(self.name, text, params)

        def act() -> Reply:
            self.world.executed.append(statement)
            reply = self.world.answer(statement)
            if not text.lstrip(" \t\n(").lower().startswith(_READS):
                self._open[xid].statements.append(statement)
            return reply

        return self.world.at("P2", "work", self.name, act)  # type: ignore[no-any-return]

    def do_savepoint(self, xid: Xid, step: SavepointStep, name: str) -> None:
        work = self._open[xid]
        if step is SavepointStep.SET:
            work.savepoints[name] = len(work.statements)
            return
        length = work.savepoints.pop(name)
        if step is SavepointStep.BACK:
            del work.statements[length:]

    def do_wrote(self, xid: Xid) -> bool:
        return bool(self._open[xid].statements)

    def do_forsake(self, xid: Xid) -> None:
        self._open.pop(xid, None)

    def do_commit_alone(self, xid: Xid) -> None:
        self.world.at("P5", "deciding", self.name, lambda: self._commit(xid, self._open.pop(xid), alone=True))

    def _commit(self, xid: Xid, work: _Open, *, alone: bool) -> None:
        if xid in self._receipts:
            raise Conflict("its receipt is fenced")
        self._receipts[xid] = _Receipt(Verdict.COMMIT, alone, time.time())
        self.world.committed.extend(work.statements)
        self.do_witness(work.epoch, "")

    # ---- two phases

    def do_prepare(self, xid: Xid) -> None:
        def act() -> None:
            if xid in self._receipts:
                raise Conflict("its receipt is fenced")
            self._prepared[xid] = self._open.pop(xid)

        self.world.at("P3", "prepare", self.name, act)

    def do_commit_prepared(self, xid: Xid) -> None:
        def act() -> None:
            self._commit(xid, self._require(xid), alone=False)
            del self._prepared[xid]

        self.world.at("P8", "commit", self.name, act)

    def do_rollback_prepared(self, xid: Xid) -> None:
        self._require(xid)
        del self._prepared[xid]

    def _require(self, xid: Xid) -> _Open:
        if xid not in self._prepared:
            raise UnknownXid(f"no prepared branch {xid.gid}")
        return self._prepared[xid]

    def do_prepared(self, cluster: str, only: Xid | None) -> tuple[Prepared, ...]:
        now = time.monotonic()
        return tuple(
            Prepared(xid, now - one.since)
            for xid, one in self._prepared.items()
            if xid.cluster == cluster and only in (None, xid)
        )

    # ---- receipts

    def do_receipt(self, xid: Xid) -> bool:
        return xid in self._receipts and self._receipts[xid].verdict is Verdict.COMMIT

    def do_fence(self, xid: Xid) -> Verdict:
        self.world.require_voice(self.name)
        if xid in self._prepared:
            raise Unclear(f"the branch {xid.gid} is prepared")
        return self._receipts.setdefault(xid, _Receipt(Verdict.ABORT, True, time.time())).verdict

    def do_forget(self, xids: Sequence[Xid], older_than: float | None, below: str) -> int:
        gone = {
            xid
            for xid, one in self._receipts.items()
            if xid in xids
            or (
                one.alone
                and older_than is not None
                and one.at < older_than
                and xid.attempt < first_attempt_of(older_than)
            )
            or (not one.alone and xid.attempt < below)
        }
        for xid in gone:
            del self._receipts[xid]
        return len(gone)


class FakeTables(MemoryTables):
    """Of one version, as those of the journal in memory."""

    def version(self, session: Session) -> Script[Version | None]:
        there = yield Do(session, "apply", ("has_tables",))
        return Version(1, 1) if there else None


class FakeResource:
    """`ports.Resource` over sessions of a `FakeDatabase`."""

    traits = Traits(kind="sqlite")  # in whose dialect the query verbs are compiled
    keeps_keys = False  # there is no table for idempotency keys
    tables = FakeTables()

    def __init__(self, name: str) -> None:
        self.name = name

    def _apply(self, session: Session, verb: str, *args: Any) -> Script[Any]:
        try:
            return (yield Do(session, "apply", (verb, *args)))
        except SessionLost as error:
            raise Unclear(f"{self.name} gave no answer: {error}") from error

    def schema_sql(self) -> str:
        return ""

    def check(self, session: Session) -> Script[tuple[str, ...]]:
        yield from ()
        return ()

    def setup(self, session: Session, resource_id: str, cluster: str) -> Script[None]:
        return self._apply(session, "setup", resource_id, cluster)

    def identity(self, session: Session) -> Script[Identity | None]:
        return self._apply(session, "identity")

    def server(self, session: Session) -> Script[str]:
        yield from ()
        return ""

    def witness(self, session: Session, epoch: Epoch) -> Script[None]:
        return self._apply(session, "witness", epoch.number, epoch.mark)

    def adopt(self, session: Session, identity: Identity) -> Script[None]:
        return self._apply(session, "adopt", identity)

    def leave(self, session: Session) -> Script[None]:
        return self._apply(session, "leave")

    def begin(self, session: Session, work: Work, *, before: Sequence[str] = ()) -> Script[None]:
        return self._apply(session, "begin", work.xid, work.epoch)

    def execute(self, session: Session, work: Work, statement: str, params: Any) -> Script[Reply]:
        self._require_sound(work)
        params = params.values if isinstance(params, Bound) else params
        try:
            refuse_control(statement)
            return (yield Do(session, "apply", ("execute", work.xid, statement, params)))  # type: ignore[no-any-return]
        except BaseException as error:
            work.doomed = error
            raise

    def savepoint(self, session: Session, work: Work, step: SavepointStep, name: str) -> Script[None]:
        return self._apply(session, "savepoint", work.xid, step, name)

    def wrote(self, session: Session, work: Work) -> Script[bool]:
        return self._apply(session, "wrote", work.xid)

    def end_reader(self, session: Session, work: Work) -> Script[None]:
        return self._apply(session, "forsake", work.xid)

    def rollback(self, session: Session, work: Work) -> Script[None]:
        return self._apply(session, "forsake", work.xid)

    def commit_alone(self, session: Session, work: Work, *, riders: Sequence[str] = ()) -> Script[None]:
        self._require_sound(work)
        return self._apply(session, "commit_alone", work.xid)

    def prepare(self, session: Session, work: Work, *, riders: Sequence[str] = ()) -> Script[None]:
        self._require_sound(work)
        return self._apply(session, "prepare", work.xid)

    def _require_sound(self, work: Work) -> None:
        if work.doomed is not None:
            raise Refused(
                f"a statement on {self.name} failed, so the branch can only be rolled back: {text_of(work.doomed)}"
            )

    def detach(self, session: Session) -> Script[None]:
        yield from ()

    def commit_prepared(
        self, session: Session, prepared: Prepared, *, before: Sequence[str] = (), riders: Sequence[str] = ()
    ) -> Script[None]:
        return self._apply(session, "commit_prepared", prepared.xid)

    def rollback_prepared(self, session: Session, prepared: Prepared) -> Script[None]:
        return self._apply(session, "rollback_prepared", prepared.xid)

    def prepared(self, session: Session, cluster: str, xid: Xid | None = None) -> Script[tuple[Prepared, ...]]:
        return self._apply(session, "prepared", cluster, xid)

    def free(self, session: Session, prepared: Prepared) -> Script[bool]:
        yield from ()
        return False

    def receipt(self, session: Session, xid: Xid) -> Script[bool]:
        return self._apply(session, "receipt", xid)

    def fence(self, session: Session, xid: Xid) -> Script[Verdict]:
        return self._apply(session, "fence", xid)

    def forget(
        self, session: Session, xids: Sequence[Xid], *, older_than: float | None = None, below: str = ""
    ) -> Script[int]:
        return self._apply(session, "forget", tuple(xids), older_than, below)


_FAILS: Mapping[tuple[str, str], Callable[[str], Exception]] = {
    ("P2", "work"): SessionLost,
    ("P3", "prepare"): Refused,
    ("P5", "deciding"): SessionLost,
    ("P8", "commit"): SessionLost,
}


def fault_at(point: Point, *, done: bool) -> Fault:
    """What goes wrong at that point. Raises `UsageError` for a point at which nothing is asked of a database."""
    error = _FAILS.get((point.number, point.what))
    if error is None:
        known = ", ".join(f"{number}.{what}" for number, what in _FAILS)
        raise UsageError(f"nothing is asked of a database at {point}; what can fail is {known}")
    return Fault(point, error(f"the fake was told to fail at {point}"), done)
