"""What can go wrong, as plain records: a schedule is a list of them.

Each is tied to something that stays where it is when another fault is taken away (the n-th message of a process, the
n-th message of a server, a moment), so that a schedule can be shrunk.

`Faults` is what a world asks at each message.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .process import Process


class When(StrEnum):
    """Against the message it is tied to."""

    BEFORE = "before"  # it is never sent; a server has not begun with it
    SENT = "sent"  # it is on its way, and will arrive
    DURING = "during"  # the server has done it, can show it, and has not flushed it
    DONE = "done"  # the server has done it; its answer is on its way


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """kill -9 of a process at its n-th message. `silent_s`: its machine dies with it, and servers learn that late."""

    process: str
    message: int
    when: When = When.BEFORE
    silent_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoseRequest:
    """It never arrives, and its link is cut. `told`: the client sees that at once, not when it stops waiting.

    `half_open_s`: how long the server takes its side for alive.
    """

    process: str
    message: int
    told: bool = True
    half_open_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoseReply:
    """The server has done it; the client never hears, and the link is cut. The rest as in `LoseRequest`."""

    process: str
    message: int
    told: bool = True
    half_open_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LateRequest:
    """It arrives after so many seconds more, whether or not its client still waits."""

    process: str
    message: int
    by_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LateReply:
    """The same for its answer."""

    process: str
    message: int
    by_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Twice:
    """It arrives twice, one right after the other; the second answer goes nowhere."""

    process: str
    message: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelCallers:
    """Every caller in the process is cancelled as it has sent its n-th message."""

    process: str
    message: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashServer:
    """A server dies at the n-th message it gets, and is back `down_s` later.

    `keep`: how many changes that were never flushed survive all the same, the oldest first. `lose`: how many that it
    had said were flushed do not: its disk lies.
    """

    machine: str
    message: int
    when: When = When.BEFORE
    down_s: float = 0.5
    writing_s: float = 0.0  # how long it had been writing what it was to flush, for all to see, when it died
    keep: int = 0
    lose: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KillAt:
    """A process dies at that moment, whatever it is at."""

    process: str
    at_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashAt:
    """A server dies at that moment, whatever it is at."""

    machine: str
    at_s: float = 0.0
    down_s: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze:
    """A server stops answering for a while; what it gets meanwhile it does later."""

    machine: str
    at_s: float
    for_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Nothing passes between a process and a server for a while; what was sent arrives later."""

    process: str
    machine: str
    at_s: float
    for_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """SIGSTOP, and SIGCONT later: a process does nothing, while its clocks and its servers go on."""

    process: str
    at_s: float
    for_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockJump:
    """The wall clock of a process jumps, either way."""

    process: str
    at_s: float
    by_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FullDisk:
    """A server has no room for a while."""

    machine: str
    at_s: float
    for_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowDisk:
    """Each flush of a server takes so long, for a while."""

    machine: str
    at_s: float
    for_s: float
    flush_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowEnds:
    """For a while the sessions of a MariaDB that have prepared a branch end slowly: `resources.memory.mariadb.Ending`.

    An end of the branch that meets that is answered OK, and nothing is done until the server has been restarted.
    """

    machine: str
    at_s: float
    for_s: float
    listed_s: float
    engine_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """A server dies, and comes back with the backup that was made at `backup_s`.

    It takes longer than any sweep that is under way may take: what has looked at epochs before does not act after.
    """

    machine: str
    at_s: float
    backup_s: float
    down_s: float = 12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EndByHand:
    """A stranger commits or rolls back the oldest of our branches that is prepared on a server at that moment."""

    machine: str
    at_s: float = 0.0
    commit: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Jitter:
    """Every message takes a little longer or shorter than the next, by this salt: processes drift apart."""

    salt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OnNotice:
    """When a process notices a point of the protocol for the nth time, this fault.

    Its message counts from there (1: the next one, of the process or the server), its time too.
    """

    process: str
    point: str
    what: str
    fault: Fault
    nth: int = 1


MessageFault = Kill | LoseRequest | LoseReply | LateRequest | LateReply | Twice | CancelCallers
TimedFault = KillAt | CrashAt | Freeze | Cut | Stop | ClockJump | FullDisk | SlowDisk | SlowEnds | Restore | EndByHand
Fault = MessageFault | CrashServer | TimedFault | Jitter | OnNotice


@dataclass(slots=True)
class Mishap:
    """All that befalls one message of a process."""

    crash: When | None = None
    silent_s: float = 0.0
    request_lost: bool = False
    reply_lost: bool = False
    told: bool = True
    half_open_s: float = 0.0
    late_s: float = 0.0
    reply_late_s: float = 0.0
    twice: bool = False
    cancel: bool = False


NONE = Mishap()


@dataclass(slots=True)
class Faults:
    """The schedule's faults by what they are tied to, and how often each kind has come to pass."""

    on_messages: dict[tuple[str, int], Mishap] = field(default_factory=dict)
    crashes: dict[tuple[str, int], CrashServer] = field(default_factory=dict)
    timed: list[TimedFault] = field(default_factory=list)
    on_notices: list[OnNotice] = field(default_factory=list)
    salt: int | None = None
    came: dict[str, int] = field(default_factory=dict)

    def add(self, faults: Iterable[Fault]) -> list[TimedFault]:
        """Take these; those tied to a moment are the caller's to bring about."""
        timed = []
        for fault in faults:
            match fault:
                case CrashServer():
                    self.crashes[fault.machine, fault.message] = fault
                case Jitter(salt=salt):
                    self.salt = salt
                case OnNotice():
                    self.on_notices.append(fault)
                case Kill() | LoseRequest() | LoseReply() | LateRequest() | LateReply() | Twice() | CancelCallers():
                    _mark(self.on_messages.setdefault((fault.process, fault.message), Mishap()), fault)
                case _:
                    timed.append(fault)
        return timed

    def on_message(self, process: Process, number: int) -> Mishap:
        return self.on_messages.get((process.name, number), NONE)

    def on_server(self, machine: str, number: int) -> CrashServer | None:
        return self.crashes.get((machine, number))

    def note(self, kind: str) -> None:
        """One of this kind has come to pass."""
        self.came[kind] = self.came.get(kind, 0) + 1

    def note_request(self, mishap: Mishap) -> None:
        if mishap is NONE:
            return
        marks = {
            "request lost": mishap.request_lost,
            "request late": mishap.late_s > 0,
            "message twice": mishap.twice,
            "callers cancelled": mishap.cancel,
        }
        for kind, came in marks.items():
            if came:
                self.note(kind)

    def note_reply(self, mishap: Mishap) -> None:
        if mishap.reply_lost:
            self.note("reply lost")
        if mishap.reply_late_s > 0:
            self.note("reply late")


def _mark(mishap: Mishap, fault: MessageFault) -> None:
    match fault:
        case Kill(when=when, silent_s=silent_s):
            mishap.crash, mishap.silent_s = when, silent_s
        case LoseRequest():
            mishap.request_lost, mishap.told, mishap.half_open_s = True, fault.told, fault.half_open_s
        case LoseReply():
            mishap.reply_lost, mishap.told, mishap.half_open_s = True, fault.told, fault.half_open_s
        case LateRequest(by_s=by_s):
            mishap.late_s += by_s
        case LateReply(by_s=by_s):
            mishap.reply_late_s += by_s
        case Twice():
            mishap.twice = True
        case CancelCallers():
            mishap.cancel = True


def from_here(fault: Fault, *, messages: int, arrived: Mapping[str, int], now: float) -> Fault:
    """The same fault, counted from a point that a process has reached."""
    if isinstance(fault, MessageFault):
        return replace(fault, message=messages + fault.message)
    if isinstance(fault, CrashServer):
        return replace(fault, message=arrived[fault.machine] + fault.message)
    if isinstance(fault, TimedFault):
        return replace(fault, at_s=now + fault.at_s)
    return fault
