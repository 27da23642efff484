"""What every part of the engine shares: the databases, the journal, settings, and what is alive in this process.

Guarantees: nothing here is needed for safety (I13): all of it may be lost in a crash.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..errors import NoDoubtError, ResourceRefused, ResourceUnavailable, UsageError
from ..ports import (
    Clock,
    Ids,
    Journal,
    Notice,
    Observer,
    Pool,
    Refused,
    Resource,
    Session,
    SessionLost,
    StatementFailed,
    Unclear,
)
from ..protocol.records import BranchRef, Epoch
from ..script import Do, Effect, Every, Pause, Script
from ..xid import Xid

log = logging.getLogger("nodoubt")
R = TypeVar("R")

REMEMBERED_BEGINS_MAX = 10_000
ENDED_MAX = 500  # attempts that have proved themselves, before their ends are written in line
COUNTS = frozenset({"pool_size", "reserve_size", "tries_max", "open_warn"})  # of the settings; all else are seconds
TIME_MAX_S = 36500 * 86400.0  # locks and clocks count no further than some centuries: a thread that waits on dies


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every time and size that can be chosen. Times in seconds; none of them matters to safety (I14)."""

    pool_size: int = 10
    reserve_size: int = 2  # sessions per database for admission, phase two and recovery alone
    connect_s: float = 10.0
    acquire_s: float = 30.0
    prepare_s: float = 10.0
    decide_s: float = 30.0
    apply_s: float = 30.0
    linger_s: float = 0.5  # for which a session that has prepared a staged branch is kept, where it is bound to it
    begin_s: float = 3600.0  # for staged work without a timeout of its own, where its row goes before it
    answer_s: float = 10.0  # for one question to a database, recovery's included
    grace_s: float = 60.0  # an undecided branch older than this may be fenced; longer than prepare_s and decide_s
    sweep_s: float = 10.0
    deadline_s: float = 24 * 3600.0
    retention_s: float = 7 * 24 * 3600.0
    step_s: float = 30.0  # for a step, or a compensation, without a timeout of its own
    retry_first_s: float = 1.0  # between two tries of a compensation; then twice as long each time
    retry_most_s: float = 300.0
    tries_max: int = 8  # of a compensation; then it is parked
    unclaimed_s: float = 3600.0  # a compensation that no worker has the code for is parked after so long
    job_lease_s: float = 30.0  # a job whose worker has not been heard of for so long may be taken over by another
    held_warn_s: float = 3600.0  # staged work that holds its locks for longer is warned of
    open_warn: int = 100  # more undecided names than this are warned of

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value, count = getattr(self, name), name in COUNTS
            if isinstance(value, bool) or not isinstance(value, int if count else (int, float)):
                raise UsageError(f"{name} is a {'whole ' if count else ''}number, not {value!r}")
            if not 0 < value <= TIME_MAX_S:
                raise UsageError(f"{name} must be above zero, and at most {TIME_MAX_S:.0f}, not {value!r}")
        if self.grace_s < self.prepare_s:
            raise UsageError("grace_s must not be below prepare_s: recovery would abort work that is still preparing")


def check_number(what: str, number: float) -> float:
    """Seconds that somebody has given, as far as clocks count; NaN, which is neither more nor less than any, is none.

    Raises `UsageError`.
    """
    if isinstance(number, bool) or not isinstance(number, (int, float)) or number != number:  # noqa: PLR0124 — NaN
        raise UsageError(f"{what} is a number of seconds, not {number!r}")
    return min(max(number, -TIME_MAX_S), TIME_MAX_S)


def check_seconds(what: str, seconds: float) -> float:
    """A time that somebody has given. Raises `UsageError`."""
    check_number(what, seconds)
    if not 0 < seconds <= TIME_MAX_S:
        raise UsageError(f"{what} is above zero seconds, and at most {TIME_MAX_S:.0f}, not {seconds!r}")
    return seconds


@dataclass(slots=True)
class Participant:
    """One database: its scripts, its sessions, and who it said it is."""

    name: str
    resource: Resource
    pool: Pool
    reserve: Pool
    holds_journal: bool = False
    resource_id: str = ""  # "" until admitted
    home: Callable[[], Any] | None = None  # what SQLAlchemy needs to speak to it, made when that is first wanted
    lingers: bool = False  # whether a session that holds what it has prepared may be kept for a moment: `lingering`
    barred: str = ""  # why its lineage is in question, if a sweep has found that
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FailedBegin:
    """A begin that failed in this process. `harmless`: surely nothing of it can come alive any more."""

    attempt: str
    harmless: bool


@dataclass(slots=True)
class Context:
    """One coordinator's world."""

    participants: dict[str, Participant]
    journal: Journal
    journal_pool: Pool
    register_batch: Any  # a `shell` batch over `register.write`
    settings: Settings
    clock: Clock
    ids: Ids
    observer: Observer | None
    owner: str  # who we are, for people: host and process
    cluster: str = ""
    epoch: Epoch = field(default_factory=Epoch)
    live: set[str] = field(default_factory=set)  # attempts this process is at work on
    ended: list[tuple[str, tuple[BranchRef, ...]]] = field(default_factory=list)  # proved, their end not yet recorded
    first_seen: dict[Xid, float] = field(default_factory=dict)
    closing: bool = False
    failed_begins: OrderedDict[str, FailedBegin] = field(default_factory=OrderedDict)
    keys_at_work: set[tuple[str, str, str]] = field(default_factory=set)  # idempotency keys: where, scope, key
    names_seen: dict[str, float] = field(default_factory=dict)  # undecided names without a branch, since when
    holding: set[str] = field(default_factory=set)  # attempts at work here that have called steps
    journal_clock: tuple[float, float] | None = None  # what it showed, and our `elapsed` then
    beating: bool = False  # whether something runs behind that tells others what is in `holding`
    jobs: dict[str, str] = field(default_factory=dict)  # claims of those at work in this process: which job's
    minding: bool = False  # whether something runs behind that renews them
    aside: Callable[[Script[Any]], None] | None = None  # runs a script in the background; the process may end before it
    lingering: dict[Xid, Any] = field(default_factory=dict)  # `lingering.Stay`: sessions kept after a staged prepare
    lingering_minded: bool = False  # whether something runs behind that ends them
    recent: dict[str, Any] = field(default_factory=dict)  # `recent.Recent`: staged a moment ago, by name, in order
    told: set[str] = field(default_factory=set)  # cautions that were given already
    unclaimed: dict[tuple[str, int], float] = field(default_factory=dict)  # calls without code here, since when
    lock: threading.Lock = field(default_factory=threading.Lock)

    def chance(self) -> float:
        """From 0 to 1, of the ids' own randomness: in a simulated world it is to be foretold, too."""
        return int(self.ids.mark(), 16) / (1 << 64)

    @property
    def single(self) -> bool:
        """Whether there is one resource only: its verbs stand on the transaction itself."""
        return len(self.participants) == 1

    def notice(self, point: str, attempt: str, what: str, branch: int | None = None, **fields: object) -> None:
        """Tell the observer. What it raises is logged: an observer can watch, and even kill, but not steer."""
        if self.observer is None:
            return
        try:
            self.observer.notice(Notice(point, attempt, what, branch, fields))
        except Exception:
            log.exception("the observer failed at %s", point)

    def participant(self, name: str) -> Participant:
        try:
            return self.participants[name]
        except KeyError:
            known = ", ".join(sorted(self.participants))
            raise UsageError(f"no resource {name!r} in this coordinator; there are: {known}") from None

    def by_id(self, resource_id: str) -> Participant | None:
        return next((p for p in self.participants.values() if p.resource_id == resource_id), None)

    def drop_idle(self) -> None:
        """End every session that is not in use."""
        for participant in self.participants.values():
            participant.pool.drop_idle()
            participant.reserve.drop_idle()
        self.journal_pool.drop_idle()

    def forget(self, owner: str) -> None:
        """In the child of a fork: nothing here is this process's work. `owner`: who it is."""
        self.owner = owner
        self.lock = threading.Lock()
        self.live, self.ended, self.keys_at_work = set(), [], set()
        self.holding, self.beating = set(), False
        self.jobs, self.minding = {}, False
        self.recent = {}

    def remember_failed_begin(self, name: str, attempt: str, *, harmless: bool) -> None:
        """So that the caller's `except` block can roll it back, and nobody else's attempt of that name."""
        with self.lock:
            self.failed_begins[name] = FailedBegin(attempt, harmless)
            while len(self.failed_begins) > REMEMBERED_BEGINS_MAX:
                self.failed_begins.popitem(last=False)


def using(pool: Pool, body: Callable[[Session], Script[R]]) -> Script[R]:
    """Run a script on a session of the pool; it goes back, or ends if it is not usable any more."""
    session: Session = yield Do(pool, "acquire")
    try:
        return (yield from body(session))
    except (SessionLost, Unclear) as error:
        if not session.usable:
            # Where its server has crashed the idle ones are dead as well, and each would fail somebody's transaction.
            pool.drop_idle()
        if isinstance(error, SessionLost):
            raise Unclear(f"no answer: {error}") from error
        raise
    finally:
        pool.release(session)


def asked(ctx: Context, pool: Pool, body: Callable[[Session], Script[R]]) -> Script[R]:
    """`using`, bounded by `answer_s`: a server that has stopped answering holds up nobody for longer."""
    return bounded(using(pool, body), ctx.settings.answer_s, ctx.clock)


def told(ctx: Context, pool: Pool, body: Callable[[Session], Script[R]]) -> Script[R]:
    """`asked`, for a question that changes nothing: where its session had died with its server, it is asked again."""

    def twice() -> Script[R]:
        try:
            return (yield from using(pool, body))
        except (Unclear, ResourceUnavailable):
            return (yield from using(pool, body))

    return bounded(twice(), ctx.settings.answer_s, ctx.clock)


def bounded(script: Script[R], within_s: float, clock: Clock) -> Script[R]:
    """The same script, whose calls must all be answered within this time together; a late one is cut off."""
    until = clock.elapsed() + within_s
    send: Callable[[Any], Effect] = script.send
    result: Any = None
    try:
        while True:
            effect = send(result)
            left = max(until - clock.elapsed(), 0.001)
            if isinstance(effect, Do):
                limit = left if effect.within_s is None else min(left, effect.within_s)
                effect = Do(effect.target, effect.verb, effect.args, limit)
            elif isinstance(effect, Pause):
                effect = Pause(min(effect.seconds, left))
            else:
                effect = Every(tuple(bounded(one, left, clock) for one in effect.scripts))
            try:
                result = yield effect
                send = script.send
            except BaseException as error:
                result, send = error, script.throw
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        script.close()


def plainly(script: Script[R]) -> Script[R]:
    """The same script for somebody outside: what a port raises comes out in the words of `errors`.

    Wherever an outcome hangs on it, it has been dealt with before; what comes this far was a question, or a begin.
    """
    try:
        return (yield from script)
    except Refused as error:
        kind = ResourceUnavailable if error.retry else ResourceRefused
        raise kind(f"a database refuses; nothing was decided: {error}") from error
    except StatementFailed as error:
        raise ResourceRefused(f"a database refuses; nothing was decided: {error}") from error
    except (Unclear, SessionLost) as error:
        raise ResourceUnavailable(f"a database gave no answer; ask again, or look at the status: {error}") from error


def chunks(items: Sequence[R], size: int) -> list[Sequence[R]]:
    """The items in pieces of at most `size`."""
    return [items[i : i + size] for i in range(0, len(items), size)]


def backoff(first_s: float = 0.02, most_s: float = 1.0) -> itertools.chain[float]:
    """Growing pauses between tries. What bounds the tries is the caller's deadline."""
    growing = itertools.takewhile(lambda s: s < most_s, (first_s * 2**n for n in itertools.count()))
    return itertools.chain(growing, itertools.repeat(most_s))


__all__ = [
    "Context",
    "NoDoubtError",
    "Participant",
    "Settings",
    "asked",
    "backoff",
    "bounded",
    "chunks",
    "log",
    "plainly",
    "told",
    "using",
]
