"""Rows of the journal that cannot be read: set apart from the others of their page, and told, loudly.

Guarantees: nothing is done on the strength of such a row, nor as if it were not there; whoever pages through others
goes on; each look tells of it again, until a human has dealt with it.

Must not: guess.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TypeVar

from ..protocol.records import Unreadable
from .context import Context, log

R = TypeVar("R")
Apart = dict[tuple[str, str, int | None, str], Unreadable]  # by row: one look may meet it more than once
TOLD_MAX = 20  # of one look, row by row

WHAT_TO_DO = (
    "nothing that hangs on it is done, by hand neither. Run the release that wrote it, or mend the row from a backup: "
    "docs/operations.md, A row cannot be read"
)


def split(page: Iterable[R | Unreadable], into: Apart) -> list[R]:
    """Those that can be read; the others are put there."""
    found: list[R] = []
    for one in page:
        if isinstance(one, Unreadable):
            into[one.key] = one
        else:
            found.append(one)
    return found


def tell(ctx: Context, apart: Collection[Unreadable]) -> None:
    """Say so, once for each row and look."""
    for one in apart:
        ctx.notice("P5", one.printable, "unreadable", table=one.table, number=one.number, why=one.why)
    for one in list(apart)[:TOLD_MAX]:
        log.error("UNREADABLE: %s %s. A human must look: %s", one.which, one.why, WHAT_TO_DO)
    if len(apart) > TOLD_MAX:
        log.error("UNREADABLE: %d rows of the journal more cannot be read", len(apart) - TOLD_MAX)
