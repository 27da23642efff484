"""Times and ages as people read them, and text that is safe to print.

Must not: know transactions, or print.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime

from ..amounts import span

SHORT_SECRET = 4  # a password below this length is masked as a word only, or it would mask half of every sentence


def age(at: float | None, now: float) -> str:
    """How long ago, or in how long; "" for a time that is not known."""
    if at is None:
        return ""
    gone = now - at
    return f"{span(gone)} ago" if gone >= 0 else f"in {span(-gone)}"


def moment(at: float | None) -> str:
    """A time of day in the reader's own zone."""
    return "" if at is None else datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def printable(text: str) -> str:
    """The text with everything that could steer a terminal written out: metadata and reasons are anybody's."""
    text = text.expandtabs(4)
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def masked(text: str, secrets: Iterable[str]) -> str:
    """The text without these passwords, should a driver have quoted one."""
    for secret in sorted(secrets, key=len, reverse=True):
        pattern = re.escape(secret) if len(secret) >= SHORT_SECRET else rf"(?<!\w){re.escape(secret)}(?!\w)"
        text = re.sub(pattern, "***", text)
    return text
