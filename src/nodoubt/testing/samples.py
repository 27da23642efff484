"""Decisions, names and attempts for tests, of any age.

Must not: be random where it matters: what a test is about, it says.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

from ..protocol.records import BranchRef, Call, Decision, Mode, Staging, Verdict
from ..xid import new_attempt

DAY_S = 24 * 3600.0
NOW = time.time()
LONG_AGO = NOW - 30 * DAY_S
RETENTION_S = 7 * DAY_S
CUT = NOW - RETENTION_S

# Names that some database takes for one another, or for something else.
NAMES = (
    "order", "Order", "order ", " order", "örder", "o\u0308rder", "ORDER", "orde%", "orde_", "ord\\er", "ord'er",
    'ord"er', "ord`er", "'; DROP TABLE nodoubt_names; --", "$$order$$", "{order}", "%(order)s", "%s", "$1", "?",
    ":order", "🦀", "🦀🦀", "🦀" * 200, "é" * 200, "straße", "strasse", "ﬁ", "fi", "\u200border", "注文七", "0",
    "NULL", "0" * 32,
)  # fmt: skip


def attempt_at(seconds: float) -> str:
    """An attempt id as a clock showing this time would make it."""
    return f"{int(seconds * 1000):012x}7{secrets.token_hex(2)[1:]}8{secrets.token_hex(8)[1:]}"


def branches(*resource_ids: str) -> tuple[BranchRef, ...]:
    """One branch on each of these resources."""
    return tuple(BranchRef(number, f"db-{one}", one) for number, one in enumerate(resource_ids or ("r0", "r1")))


def decision(verdict: Verdict = Verdict.COMMIT, attempt: str | None = None, **more: Any) -> Decision:
    """A decision, taken when its attempt began unless `decided_at` says otherwise."""
    attempt = attempt or new_attempt()
    begun = int(attempt[:12], 16) / 1000
    fields: dict[str, Any] = {"mode": Mode.ONCE, "name": "", "branches": branches(), "decided_at": begun}
    return Decision(attempt, verdict, **(fields | more))


def abort(attempt: str | None = None, **more: Any) -> Decision:
    """The other verdict."""
    return decision(Verdict.ABORT, attempt, **more)


def staging(name: str, attempt: str | None = None, **more: Any) -> Staging:
    """A row of the directory."""
    fields: dict[str, Any] = {"branches": branches(), "last": None, "deadline": NOW + DAY_S, "created_at": NOW}
    return Staging(name, attempt or new_attempt(), **(fields | more))


def call(attempt: str, number: int = 0, **more: Any) -> Call:
    """A call of a step, as it is before its action."""
    fields: dict[str, Any] = {"key": f"charge {number}", "step": "shop:charge", "undo": "shop:refund", "begun_at": NOW}
    return Call(attempt, number, **(fields | {"changed_at": NOW} | more))
