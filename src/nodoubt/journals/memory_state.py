"""The tables of the journal in memory.

Must not: know the rules that are kept over them.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from ..ports import Identity
from ..protocol.records import Call, Confirmation, Decision, Epoch, Event, Quarantined, Staging, Standing, Verdict
from ..script import R, Script
from .attempts import FLOOR_LOWEST


@dataclass(slots=True)
class Row:
    """A row of the register."""

    decision: Decision
    ended_at: float | None = None
    confirms: int = 0

    @property
    def is_open(self) -> bool:
        return self.decision.verdict is Verdict.COMMIT and self.ended_at is None

    @property
    def standing(self) -> Standing:
        return Standing(self.decision, self.ended_at is not None)

    def over(self, before: float) -> bool:
        if self.is_open or self.decision.decided_at >= before:
            return False
        return self.decision.verdict is Verdict.ABORT or (self.ended_at is not None and self.ended_at < before)


@dataclass(slots=True)
class State:
    """All tables. Records are frozen, so a copy of the containers is a copy."""

    cluster: str = ""
    epochs: list[Epoch] = field(default_factory=list)
    floor: str = FLOOR_LOWEST
    decisions: dict[str, Row] = field(default_factory=dict)
    names: dict[str, Staging] = field(default_factory=dict)
    resources: dict[str, tuple[str, Identity]] = field(default_factory=dict)
    quarantine: dict[tuple[str, int], Quarantined] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    confirmations: dict[tuple[str, str], Confirmation] = field(default_factory=dict)
    calls: dict[tuple[str, int], Call] = field(default_factory=dict)
    flushes: int = 0  # transactions that wrote for nothing but to flush what they had seen
    stand: set[str] = field(default_factory=set)  # attempts whose COMMIT has ended: nothing is left to do for a call

    def copy(self) -> State:
        return replace(
            self,
            decisions={attempt: copy.copy(row) for attempt, row in self.decisions.items()},
            names=dict(self.names),
            epochs=list(self.epochs),
            resources=dict(self.resources),
            quarantine=dict(self.quarantine),
            events=list(self.events),
            confirmations=dict(self.confirmations),
            calls=dict(self.calls),
            stand=set(self.stand),
        )

    def unlist(self, attempts: Collection[str]) -> None:
        self.names = {name: one for name, one in self.names.items() if one.attempt not in attempts}

    def unfinished(self, call: Call) -> bool:
        return not call.closed and call.attempt not in self.stand


def at_once(answer: R) -> Script[R]:
    """A script that has the answer already."""
    yield from ()
    return answer
