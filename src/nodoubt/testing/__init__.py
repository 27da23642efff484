"""Public aids for tests: real servers that can be killed, connections that can be cut, and a transaction of the user's
own that is killed at every point of the protocol.

Guarantees: importing this package starts nothing and imports no driver.

Must not: be imported by production code.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..points import Point
    from .crashes import Crash, CrashPointFailed, Exploration, crash_points, explore

_FROM = {
    "Crash": ".crashes",
    "CrashPointFailed": ".crashes",
    "Exploration": ".crashes",
    "Point": "..points",
    "crash_points": ".crashes",
    "explore": ".crashes",
}

__all__ = ["Crash", "CrashPointFailed", "Exploration", "Point", "crash_points", "explore"]


def __getattr__(name: str) -> Any:
    """What is asked for, when it is: who only starts a server need not pay for the rest."""
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_FROM[name], __name__), name)
