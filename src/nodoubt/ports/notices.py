"""What the engine tells whoever watches it.

Must not: be needed for anything: an observer changes no outcome.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec


class Notice(msgspec.Struct, frozen=True):
    """A point of the protocol that one attempt has reached: P1 to P10 of the fault matrix, and what happened.

    S1 to S7 are those of a step: about to be called, its intent written, answered, recorded; its compensation about to
    run, over, recorded.
    """

    point: str
    attempt: str
    what: str
    branch: int | None = None
    fields: Mapping[str, object] = msgspec.field(default_factory=dict)


class Observer(Protocol):
    """Told of every point, in the thread or task that reached it. Telemetry, logs and crash tests hang here."""

    def notice(self, notice: Notice) -> None: ...
