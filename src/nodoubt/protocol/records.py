"""What the journal keeps: the decision, the staged name, what is quarantined. Plain data.

Guarantees: frozen, comparable, and encodable by msgspec as they stand. Times are seconds since the epoch.

Must not: know where or how they are stored.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Verdict(StrEnum):
    """The two values of the write-once register."""

    COMMIT = "commit"
    ABORT = "abort"


class Epoch(msgspec.Struct, frozen=True):
    """The journal's time from one start of a coordinator to the next.

    Numbers rise by one. The mark is random: a journal that was restored gives out the same numbers again, and never the
    same marks (I15).
    """

    number: int = 0
    mark: str = ""  # "" before the first start


class Mode(StrEnum):
    """Which of the two ways a transaction is used."""

    ONCE = "once"
    STAGED = "staged"


class BranchRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One writing branch of an attempt, as decision and directory rows list it."""

    number: int
    resource: str  # the name the user gave the resource
    resource_id: str  # the identity that the resource itself stores


class Decision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A row of the register: one verdict for one attempt, with every branch it binds."""

    attempt: str
    verdict: Verdict
    mode: Mode
    name: str  # "" when the transaction has none
    branches: tuple[BranchRef, ...]
    point: int | None = None  # the branch whose own local commit carried this row; it needs no other proof
    owner: str = ""  # who asked: host, process
    reason: str = ""  # why, when the verdict is ABORT
    decided_at: float = 0.0
    gated: bool = False  # not stored. Staged: somebody was asked, or steps were called, and all must be ready
    frees_name: bool = False  # not stored. The ABORT of what was surely never staged: its name was nobody's

    @property
    def kept(self) -> Decision:
        """As it is stored."""
        return msgspec.structs.replace(self, gated=False, frees_name=False) if self.gated or self.frees_name else self


class Standing(msgspec.Struct, frozen=True):
    """A decision as the journal shows it. Only one got by `confirm` may be acted on."""

    decision: Decision
    ended: bool  # every branch has proved itself (I6)

    @property
    def attempt(self) -> str:
        return self.decision.attempt


class Staging(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A row of the directory of names: a staged attempt whose branches, but for `last`, are all prepared."""

    name: str
    attempt: str
    branches: tuple[BranchRef, ...]
    last: int | None  # X: prepares after this row is written, and must be seen prepared before a commit
    deadline: float
    owner: str = ""
    metadata: dict[str, str] = {}
    created_at: float = 0.0
    begin_by: float = 0.0  # a row written before the work: until when that work may take
    confirmations: tuple[str, ...] = ()  # who must say that they are ready before it may be committed
    calls: int = 0  # how many steps had been called when the row was read


class Readiness(StrEnum):
    """What somebody who was asked has said. The first answer of each stands."""

    ASKED = "asked"
    CONFIRMED = "confirmed"
    REFUSED = "refused"


class Confirmation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of those who must confirm a staged attempt, and what they have said so far."""

    attempt: str
    who: str
    answer: Readiness = Readiness.ASKED
    why: str = ""
    at: float = 0.0


class CallState(StrEnum):
    """How far a step, and then its compensation, has come. What may follow what: `compensation.TABLE`."""

    BEGUN = "begun"  # its intent is durable: the action may be under way, or have happened
    DONE = "done"
    REFUSED = "refused"  # by the function's own word nothing happened
    DOUBT = "doubt"  # no answer: it may have happened
    UNDOING = "undoing"  # a worker has its compensation
    DUE = "due"  # its compensation failed, and is tried again
    PARKED = "parked"  # a human must look
    UNDONE = "undone"
    SKIPPED = "skipped"  # by a human
    NOTHING = "nothing"  # never began, or has no compensation


class Call(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One use of a step in one attempt. Times are the journal's own, so that no two clocks are compared."""

    attempt: str
    number: int  # compensations run from the highest down
    key: str  # what the caller knows it by, within its transaction
    step: str  # the function's registered name
    undo: str = ""  # its compensation's; "": there is none
    arguments: str = "{}"  # JSON, by parameter
    state: CallState = CallState.BEGUN
    result: str = ""  # JSON; "": none is known
    error: str = ""
    tries: int = 0  # of the compensation, a worker that died in it included
    until: float = 0.0  # until then whoever has it is left alone
    claim: str = ""  # whose turn it is, the action's or the compensation's: another word for each turn
    worker: str = ""
    begun_at: float = 0.0
    changed_at: float = 0.0
    version: int = 0  # rises with each change: the compare in compare-and-set

    @property
    def closed(self) -> bool:
        """Whether nobody has anything left to do for it, however its transaction ends."""
        return self.state in CLOSED


CLOSED = frozenset({CallState.REFUSED, CallState.UNDONE, CallState.SKIPPED, CallState.NOTHING})
ANSWERED = frozenset({CallState.DONE, CallState.REFUSED})  # a transaction with any other call must not commit


class Quarantined(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something recovery must not resolve by itself. Cleared only by a named operator (I17)."""

    attempt: str
    branch: int
    resource: str
    why: str
    since: float = 0.0
    cleared_by: str = ""


class Unreadable(msgspec.Struct, frozen=True):
    """A row of the journal that cannot be read: damaged, or written in a form that this release does not know.

    It stands in a page in its own place, so that it holds up none of the others. What it says is not guessed at:
    nothing that hangs on it is done, neither a commit nor a presumed abort nor a forgetting.
    """

    table: str
    attempt: str  # as it stands there, by which pages go on: bytes that are no text are lone surrogates
    why: str
    name: str = ""  # the transaction's (a step's, a job's), as far as it can be read; the id of a resource
    number: int | None = None  # the branch's or the step's, likewise

    @property
    def key(self) -> tuple[str, str, int | None, str]:
        """The row, whichever page it is met in."""
        return self.table, self.attempt, self.number, self.name

    @property
    def which(self) -> str:
        """The row, for people."""
        of = f"attempt {self.printable}" if self.attempt else ""
        number = "" if self.number is None else f"number {self.number}"
        name = repr(self.name) if self.name else ""
        return f"{self.table}: {', '.join(filter(None, (of, number, name)))}"

    @property
    def printable(self) -> str:
        """The attempt; what is no text in it is written out."""
        return self.attempt.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of an attempt's trail."""

    attempt: str
    at: float
    what: str
    detail: str = ""
