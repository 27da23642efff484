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


class Standing(msgspec.Struct, frozen=True):
    """A decision as the journal shows it. Only one got by `confirm` may be acted on."""

    decision: Decision
    ended: bool  # every branch has proved itself (I6)


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


class Quarantined(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something recovery must not resolve by itself. Cleared only by a named operator (I17)."""

    attempt: str
    branch: int
    resource: str
    why: str
    since: float = 0.0
    cleared_by: str = ""


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of an attempt's trail."""

    attempt: str
    at: float
    what: str
    detail: str = ""
