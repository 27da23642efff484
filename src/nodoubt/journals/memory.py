"""The journal in memory, for tests and simulated worlds: the rules of `sql`, without a server.

Any number of sessions share a `MemoryStore`. Each transaction is one effect, `Do(session, "apply", (verb, *args))`, so
that whoever drives the scripts can crash, lose or delay between any two. What is written unforced, or by `visible` (a
commit that others see before it is flushed, as on InnoDB), is lost in a `power_cut`, unless a forced one came later.

Guarantees: the same conformance suite as for every journal. A deep copy of a store is a world of its own.

Must not: be used where a decision has to outlive the process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ..errors import SchemaMismatch, UsageError
from ..ports import (
    START,
    BelowFloor,
    Conflict,
    Identity,
    Known,
    Listed,
    Params,
    Refused,
    Reply,
    Session,
    SessionLost,
    Spot,
    StatementFailed,
    Unclear,
    Version,
)
from ..protocol.records import (
    Confirmation,
    Decision,
    Epoch,
    Event,
    Mode,
    Quarantined,
    Staging,
    Standing,
    Unreadable,
    Verdict,
)
from ..script import Do, Script
from ..xid import check_name, first_attempt_of, is_attempt
from . import trail
from .attempts import next_attempt
from .memory_calls import CallJournal, CallStore
from .memory_state import Row, State, at_once

UNFORCED = frozenset({"record", "stage_unforced", "hold"})
READING = frozenset(
    {
        "clock",
        "cluster",
        "epoch",
        "minted",
        "look",
        "open_commits",
        "aborted",
        "floor",
        "find",
        "staged",
        "undecided",
        "list_staged",
        "registered",
    }
    | {"quarantined", "events", "retirable", "overdue", "confirmations", "calls", "unfinished_calls", "parked_calls"}
)


class Rider(msgspec.Struct, frozen=True):
    """One of `decision_rows` or `staging_rows`, as text."""

    decision: Decision | None = None
    staging: Staging | None = None
    replace: Staging | None = None


class MemoryStore(CallStore):
    """What the database is to the SQL journal. `now` is its clock."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self.now = now
        self.state = State()
        self._flushed: State | None = None  # what a power cut goes back to, if anything since is not flushed
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> MemoryStore:
        twin = MemoryStore(self.now)
        with self._lock:
            twin.state = self.state.copy()
            twin._flushed = self._flushed.copy() if self._flushed is not None else None
        memo[id(self)] = twin
        return twin

    def apply(self, verb: str, *args: Any) -> Any:
        """One transaction, atomic. Forced ones flush all that came before them."""
        with self._lock:
            if self.reads(verb):
                return self.perform(verb, *args)
            if not self.forces(verb):
                self._keep_flushed()
            before = self.state
            result = self.perform(verb, *args)
            if self.forces(verb) and self.state is not before:
                self._flushed = None
            return result

    def visible(self, verb: str, *args: Any) -> Any:
        """One transaction that everybody can see and nobody has flushed: its committer has not been answered."""
        with self._lock:
            self._keep_flushed()
            return self.perform(verb, *args)

    def power_cut(self) -> None:
        """What is not flushed is gone."""
        with self._lock:
            if self._flushed is not None:
                self.state, self._flushed = self._flushed, None

    def _keep_flushed(self) -> None:
        if self._flushed is None:
            self._flushed = self.state.copy()

    # ---- for a server whose guest the journal is, and which keeps the log itself

    def reads(self, verb: str) -> bool:
        return verb in READING

    def forces(self, verb: str) -> bool:
        return verb not in UNFORCED

    def perform(self, verb: str, *args: Any) -> Any:
        """One transaction, atomic: `state` is replaced, or stays. What of it is on disk is the caller's business."""
        if self.reads(verb):
            return getattr(self, f"_{verb}")(*args)
        before = self.state
        self.state = before.copy()
        try:
            result = getattr(self, f"_{verb}")(*args)
        except BaseException:
            self.state = before  # all or nothing
            raise
        if self.state == before:
            self.state = before  # it wrote nothing, so its commit flushes nothing
        return result

    # ---- setup

    def _setup(self, cluster: str) -> None:
        self.state.cluster = self.state.cluster or cluster

    def _cluster(self) -> str:
        if not self.state.cluster:
            raise SchemaMismatch("the journal has not been set up: run nodoubt schema apply")
        return self.state.cluster

    def _epoch(self) -> Epoch:
        return self.state.epochs[-1] if self.state.epochs else Epoch()

    def _raise_epoch(self, mark: str) -> Epoch:
        self.state.epochs.append(Epoch(self._epoch().number + 1, mark))
        return self._epoch()

    def _minted(self, mark: str) -> bool:
        return any(epoch.mark == mark for epoch in self.state.epochs)

    def _clock(self) -> float:
        return self.now()

    # ---- the register

    def _insert(self, decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            if decision.attempt in self.state.decisions:
                raise Conflict("a decision for this attempt stands already")
            self._require_above_floor(decision.attempt)
            if decision.mode is Mode.STAGED and decision.verdict is Verdict.COMMIT:
                if not decision.gated and not self._staged([decision.attempt]):
                    raise BelowFloor("the name is not there")
                self._require_ready(decision.attempt, decision.gated)
            self.state.decisions[decision.attempt] = Row(decision.kept)
            if decision.frees_name:
                self.state.unlist([decision.attempt])

    def _require_above_floor(self, attempt: str) -> None:
        if not is_attempt(attempt):
            raise UsageError(f"not an attempt id: {attempt!r}")
        if attempt < self.state.floor:
            raise BelowFloor("the attempt is older than what the journal remembers")

    def _confirm(self, attempts: Sequence[str]) -> dict[str, Standing]:
        for attempt in self._known(attempts):
            self.state.decisions[attempt].confirms += 1
        return self._look(attempts)

    def _look(self, attempts: Sequence[str]) -> dict[str, Standing]:
        return {attempt: self.state.decisions[attempt].standing for attempt in self._known(attempts)}

    def _known(self, attempts: Sequence[str]) -> list[str]:
        return [attempt for attempt in sorted(set(attempts)) if attempt in self.state.decisions]

    def _open_commits(self, after: str, limit: int) -> list[Standing]:
        rows = [row for attempt, row in sorted(self.state.decisions.items()) if row.is_open and attempt > after]
        return [row.standing for row in rows[:limit]]

    def _end(self, attempts: Sequence[str]) -> None:
        for attempt in self._known(attempts):
            row = self.state.decisions[attempt]
            row.ended_at = self.now() if row.ended_at is None else row.ended_at
            row.confirms += 1
            self.state.stand.add(attempt)

    # ---- retention

    def _floor(self) -> str:
        return self.state.floor

    def _floor_flushed(self) -> str:
        self.state.flushes += 1
        return self.state.floor

    def _raise_floor(self, cutoff: str) -> None:
        """Not above a COMMIT that has not ended, nor an undecided name, nor far beyond the newest record."""
        state = self.state
        if not state.decisions:
            return
        bounds = [attempt for attempt, row in state.decisions.items() if row.is_open]
        bounds += [one.attempt for one in state.names.values() if one.attempt not in state.decisions]
        bounds += [c.attempt for c in state.calls.values() if state.unfinished(c) and c.attempt not in state.decisions]
        state.floor = max(state.floor, min(cutoff, next_attempt(max(state.decisions)), *bounds))

    def _forget_epochs(self) -> None:
        """Those that no registered resource can show any more."""
        if self.state.resources:
            oldest = min(identity.epoch for _, identity in self.state.resources.values())
            self.state.epochs = [epoch for epoch in self.state.epochs if epoch.number >= oldest]

    def _aborted(self, older_than: float, limit: int, after: str) -> list[Standing]:
        uncleared = self._kept()
        return [
            row.standing
            for attempt, row in sorted(self.state.decisions.items())
            if after < attempt < first_attempt_of(older_than)
            and row.decision.verdict is Verdict.ABORT
            and row.decision.decided_at < older_than
            and attempt not in uncleared
        ][:limit]

    def _kept(self) -> set[str]:
        """What an operator may still ask for, and what has steps to undo."""
        unfinished = {call.attempt for call in self.state.calls.values() if self.state.unfinished(call)}
        return unfinished | {entry.attempt for entry in self._quarantined()}

    def _retirable(self, older_than: float, limit: int, after: str) -> list[str]:
        uncleared = self._kept()
        old = [
            attempt
            for attempt, row in sorted(self.state.decisions.items())
            if after < attempt < self.state.floor and row.over(older_than) and attempt not in uncleared
        ]
        return old[:limit]

    def _delete(self, retired: Sequence[str], older_than: float) -> None:
        state = self.state
        for attempt in retired:
            row = state.decisions.get(attempt)
            if row is not None and not row.is_open:
                del state.decisions[attempt]
        state.unlist(retired)
        state.confirmations = {key: one for key, one in state.confirmations.items() if one.attempt not in retired}
        state.calls = {key: one for key, one in state.calls.items() if one.attempt not in retired}
        state.events = [
            event
            for event in state.events
            if event.attempt in state.decisions or event.attempt >= state.floor or event.at >= older_than
            if event.attempt not in retired
        ]

    # ---- names

    def _stage(self, staging: Staging, old: Staging | None) -> None:
        state = self.state
        check_name(staging.name)
        standing = state.names.get(staging.name)
        if old is not None:
            if standing is not None and standing.attempt == old.attempt and old.attempt in state.decisions:
                del state.names[staging.name]
            state.events.append(trail.of_staging(old))
        if staging.attempt in state.decisions:
            raise Conflict("the attempt has been decided already")
        if staging.name in state.names or staging.attempt in {one.attempt for one in state.names.values()}:
            raise Conflict("the name or the attempt is staged already")
        self._require_above_floor(staging.attempt)
        state.names[staging.name] = staging
        for who in staging.confirmations:
            state.confirmations[staging.attempt, who] = Confirmation(staging.attempt, who)

    _stage_unforced = _stage

    def _find(self, name: str) -> Staging | None:
        by_name = self.state.names.get(name)
        return by_name or next((one for one in self.state.names.values() if one.attempt == name), None)

    def _staged(self, attempts: Sequence[str]) -> dict[str, Staging]:
        return {one.attempt: one for one in self.state.names.values() if one.attempt in attempts}

    def _undecided(self, after: str, limit: int) -> list[Staging]:
        decisions = self.state.decisions
        found = [one for one in self.state.names.values() if one.attempt > after and one.attempt not in decisions]
        return sorted(found, key=lambda one: one.attempt)[:limit]

    def _list_staged(self, after: str, limit: int) -> list[tuple[Staging, Standing | None]]:
        newest_first = sorted(self.state.names.values(), key=lambda one: one.attempt, reverse=True)
        page = [one for one in newest_first if not after or one.attempt < after][:limit]
        decided = self._look([one.attempt for one in page])
        return [(one, decided.get(one.attempt)) for one in page]

    def _ride(self, riders: Sequence[str]) -> None:
        for text in riders:
            rider = msgspec.json.decode(text, type=Rider)
            if rider.decision is not None:
                self._insert([rider.decision])
            if rider.staging is not None:
                self._stage(rider.staging, rider.replace)

    # ---- resources, quarantine, events

    def _register(self, name: str, identity: Identity) -> None:
        self.state.resources[identity.resource_id] = (name, identity)

    def _registered(self) -> dict[str, tuple[str, Identity]]:
        return dict(self.state.resources)

    def _unregister(self, resource_id: str) -> None:
        state = self.state
        undone = [row.decision.branches for row in state.decisions.values() if row.is_open]
        undone += [one.branches for one in state.names.values() if one.attempt not in state.decisions]
        if any(branch.resource_id == resource_id for branches in undone for branch in branches):
            raise Conflict("transactions that have not ended list this resource: finish them before it is dropped")
        state.resources.pop(resource_id, None)

    def _quarantine(self, entry: Quarantined) -> None:
        key = (entry.attempt, entry.branch)
        standing = self.state.quarantine.get(key)
        known = standing is not None and not standing.cleared_by
        if not known:
            self.state.events.append(trail.of_quarantine(entry))
        since = standing.since if standing is not None and known else entry.since
        self.state.quarantine[key] = msgspec.structs.replace(entry, since=since, cleared_by="")

    def _quarantined(self) -> list[Quarantined]:
        uncleared = [entry for entry in self.state.quarantine.values() if not entry.cleared_by]
        return sorted(uncleared, key=lambda entry: (entry.since, entry.attempt, entry.branch))

    def _clear(self, attempt: str, branch: int, by: str) -> None:
        standing = self.state.quarantine.get((attempt, branch))
        if standing is not None and not standing.cleared_by:
            self.state.quarantine[attempt, branch] = msgspec.structs.replace(standing, cleared_by=by)

    def _record(self, events: Sequence[Event]) -> None:
        self.state.events.extend(events)

    def _events(self, attempt: str) -> list[Event]:
        stored = [event for event in self.state.events if event.attempt == attempt]
        row = self.state.decisions.get(attempt)
        standing, ended_at = (None, None) if row is None else (row.standing, row.ended_at)
        return trail.told(stored, self._staged([attempt]).get(attempt), standing, ended_at)


class MemorySession:
    """A `ports.Session` on a store, blocking. It knows no SQL: `apply` is its one verb."""

    connection_id = 0
    server_started = 0

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.usable = True

    def apply(self, verb: str, *args: Any) -> Any:
        """One transaction of the store."""
        if not self.usable:
            raise SessionLost("the session to the journal in memory has ended")
        return self.store.apply(verb, *args)

    def run(self, sql: str) -> tuple[Reply, ...]:
        """Only so that a pool can ask whether it lives."""
        if not self.usable:
            raise SessionLost("the session to the journal in memory has ended")
        return (Reply(),)

    def execute(self, statement: str, params: Params) -> Reply:
        raise StatementFailed("0A000", "the journal in memory knows no statements")

    def lost(self, error: BaseException) -> bool:
        return isinstance(error, SessionLost)

    def close(self) -> None:
        self.usable = False

    def kill(self) -> None:
        self.usable = False

    def timed_out(self, seconds: float) -> Exception:
        return SessionLost(f"no answer within {seconds:g} s")


class AsyncMemorySession:
    """The same for asyncio."""

    connection_id = 0
    server_started = 0

    def __init__(self, store: MemoryStore) -> None:
        self.session = MemorySession(store)
        self.lost = self.session.lost
        self.kill = self.session.kill
        self.timed_out = self.session.timed_out

    @property
    def usable(self) -> bool:
        return self.session.usable

    async def apply(self, verb: str, *args: Any) -> Any:
        """One transaction of the store."""
        return self.session.apply(verb, *args)

    async def run(self, sql: str) -> tuple[Reply, ...]:
        return self.session.run(sql)

    async def execute(self, statement: str, params: Params) -> Reply:
        return self.session.execute(statement, params)

    async def close(self) -> None:
        self.session.close()


class MemoryTables:
    """There is only one version: a store lives no longer than the program that made it."""

    known = 1

    def version(self, session: Session) -> Script[Version | None]:
        try:
            yield Do(session, "apply", ("cluster",))
        except SchemaMismatch:
            return None
        return Version(1, 1)

    def shuts_out(self, version: Version | None) -> bool:
        return False

    def migrate(self, session: Session) -> Script[None]:
        yield from ()


class MemoryJournal(CallJournal):
    """`ports.Journal` over memory sessions."""

    tables = MemoryTables()

    def _apply(self, session: Session, verb: str, *args: Any) -> Script[Any]:
        try:
            return (yield Do(session, "apply", (verb, *args)))
        except SessionLost as error:
            raise Unclear(f"the journal did not answer: {error}") from error
        except StatementFailed as error:
            raise Refused(f"the journal could not do it now: {error}", retry=True) from error

    def setup(self, session: Session, cluster: str) -> Script[None]:
        return self._apply(session, "setup", cluster)

    def cluster(self, session: Session, *, judged: bool = True) -> Script[str]:
        return self._apply(session, "cluster")

    def epoch(self, session: Session) -> Script[Epoch]:
        return self._apply(session, "epoch")

    def raise_epoch(self, session: Session, mark: str) -> Script[Epoch]:
        return self._apply(session, "raise_epoch", mark)

    def minted(self, session: Session, mark: str) -> Script[bool]:
        return self._apply(session, "minted", mark)

    # -- the register
    def insert(self, session: Session, decisions: Sequence[Decision]) -> Script[None]:
        return self._apply(session, "insert", tuple(decisions))

    def decision_rows(self, decision: Decision) -> tuple[str, ...]:
        """For `apply("ride", rows)`, by whoever begins and commits the transaction."""
        return (msgspec.json.encode(Rider(decision=decision)).decode(),)

    def confirm(self, session: Session, attempts: Sequence[str]) -> Script[dict[str, Standing | Unreadable]]:
        return self._apply(session, "confirm", tuple(attempts))

    def look(self, session: Session, attempts: Sequence[str]) -> Script[dict[str, Standing | Unreadable]]:
        return self._apply(session, "look", tuple(attempts))

    def open_commits(self, session: Session, after: str, limit: int) -> Script[list[Standing | Unreadable]]:
        return self._apply(session, "open_commits", after, limit)

    def end(self, session: Session, attempts: Sequence[str]) -> Script[None]:
        return self._apply(session, "end", tuple(attempts))

    def floor(self, session: Session, *, flushed: bool = False) -> Script[str]:
        return self._apply(session, "floor_flushed" if flushed else "floor")

    def aborted(
        self, session: Session, older_than: float, limit: int, after: str = ""
    ) -> Script[list[Standing | Unreadable]]:
        return self._apply(session, "aborted", older_than, max(limit, 1), after)

    def retire(self, session: Session, older_than: float, limit: int, after: str = "") -> Script[tuple[str, ...]]:
        """Two transactions, as in SQL: a crash between them leaves records, never a place to decide again."""
        yield from self._apply(session, "raise_floor", first_attempt_of(older_than))
        yield from self._apply(session, "forget_epochs")
        retired = yield from self._apply(session, "retirable", older_than, max(limit, 1), after)
        yield from self._apply(session, "delete", retired, older_than)
        return tuple(retired)

    def unreadable(
        self, session: Session, after: Spot = START, *, old: bool = False
    ) -> Script[tuple[list[Unreadable], Spot | None]]:
        """None, and so are the next two: what is kept here are the records themselves."""
        return at_once(([], None))

    def unreadable_of(self, session: Session, attempts: Sequence[str]) -> Script[list[Unreadable]]:
        return at_once([])

    def ownerless(self, session: Session) -> Script[list[Unreadable]]:
        return at_once([])

    # -- the directory of names
    def stage(
        self, session: Session, staging: Staging, *, replace: Staging | None = None, forced: bool = True
    ) -> Script[None]:
        return self._apply(session, "stage" if forced else "stage_unforced", staging, replace)

    def staging_rows(self, staging: Staging, *, replace: Staging | None = None) -> tuple[str, ...]:
        """As `decision_rows`."""
        return (msgspec.json.encode(Rider(staging=staging, replace=replace)).decode(),)

    def find(self, session: Session, name: str) -> Script[Staging | Unreadable | None]:
        return self._apply(session, "find", name)

    def known(self, session: Session, name: str, *, listed_sql: str = "") -> Script[Known | None]:
        staging = yield from self.find(session, name)
        if staging is None:
            return None
        return staging, (yield from self.look(session, [staging.attempt])).get(staging.attempt), False

    def staged(self, session: Session, attempts: Sequence[str]) -> Script[dict[str, Staging | Unreadable]]:
        return self._apply(session, "staged", tuple(attempts))

    def undecided(self, session: Session, after: str, limit: int) -> Script[list[Staging | Unreadable]]:
        return self._apply(session, "undecided", after, limit)

    def list_staged(self, session: Session, after: str, limit: int) -> Script[list[Listed]]:
        return self._apply(session, "list_staged", after, limit)

    # -- resources, quarantine, events
    def register(self, session: Session, name: str, identity: Identity) -> Script[None]:
        return self._apply(session, "register", name, identity)

    def registered(self, session: Session) -> Script[dict[str, tuple[str, Identity] | Unreadable]]:
        return self._apply(session, "registered")

    def unregister(self, session: Session, resource_id: str) -> Script[None]:
        return self._apply(session, "unregister", resource_id)

    def quarantine(self, session: Session, entry: Quarantined) -> Script[None]:
        return self._apply(session, "quarantine", entry)

    def quarantined(self, session: Session, limit: int | None = None) -> Script[list[Quarantined | Unreadable]]:
        every: list[Quarantined | Unreadable] = yield from self._apply(session, "quarantined")
        return every[:limit]

    def clear(self, session: Session, attempt: str, branch: int, by: str) -> Script[None]:
        if not by.strip():
            raise UsageError("clearing a quarantined branch takes the name of the operator who has looked at it")
        return self._apply(session, "clear", attempt, branch, by)

    def record(self, session: Session, events: Sequence[Event]) -> Script[None]:
        return self._apply(session, "record", tuple(events))

    def events(self, session: Session, attempt: str) -> Script[list[Event]]:
        return self._apply(session, "events", attempt)
