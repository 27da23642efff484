"""Public aids for tests: real servers that can be killed, connections that can be cut, a transaction of the user's own
that is killed at every point of the protocol, and a fake coordinator for tests that want none of this.

Guarantees: importing this package starts nothing and imports no driver.

Must not: be imported by production code.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..points import Point
    from .crashes import Crash, CrashPointFailed, Exploration, crash_points, explore
    from .databases import run_sql
    from .fakes import AsyncFakeCoordinator, FakeCoordinator
    from .memory import Statement

_FROM = {
    "AsyncFakeCoordinator": ".fakes",
    "Crash": ".crashes",
    "CrashPointFailed": ".crashes",
    "Exploration": ".crashes",
    "FakeCoordinator": ".fakes",
    "Point": "..points",
    "Statement": ".memory",
    "crash_points": ".crashes",
    "explore": ".crashes",
    "run_sql": ".databases",
}

__all__ = [
    "AsyncFakeCoordinator",
    "Crash",
    "CrashPointFailed",
    "Exploration",
    "FakeCoordinator",
    "Point",
    "Statement",
    "crash_points",
    "explore",
    "run_sql",
]


def __getattr__(name: str) -> Any:
    """What is asked for, when it is: who only starts a server need not pay for the rest."""
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_FROM[name], __name__), name)
