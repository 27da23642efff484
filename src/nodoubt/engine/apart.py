"""Rows of the journal that cannot be read: set apart from the others of their page, and told, loudly.

Guarantees: nothing is done on the strength of such a row, nor as if it were not there; whoever pages through others
goes on; each look tells of it again, until a human has dealt with it.

Must not: guess.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TypeVar

from ..errors import UnreadableRecord
from ..protocol.records import Unreadable
from ..script import Script
from .context import Context, log, told

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


def ownerless(ctx: Context) -> Script[list[Unreadable]]:
    """Rows that may be anybody's, a COMMIT among them: while there are any, nobody is aborted for having no decision.

    To be asked before the look for the decision that is missing, or after: such a row is nobody's work in between.
    """
    return told(ctx, ctx.journal_pool, ctx.journal.ownerless)


def require_owned(ctx: Context) -> Script[None]:
    """Raise `UnreadableRecord` if there are such rows."""
    found = yield from ownerless(ctx)
    if found:
        raise UnreadableRecord(f"{found[0].which}: {found[0].why}. It may be anybody's, so nothing was changed")


def tell(ctx: Context, apart: Collection[Unreadable]) -> None:
    """Say so, once for each row and look."""
    for one in apart:
        ctx.notice("P5", one.printable, "unreadable", table=one.table, number=one.number, why=one.why)
    for one in list(apart)[:TOLD_MAX]:
        log.error("UNREADABLE: %s %s. A human must look: %s", one.which, one.why, WHAT_TO_DO)
    if len(apart) > TOLD_MAX:
        log.error("UNREADABLE: %d rows of the journal more cannot be read", len(apart) - TOLD_MAX)
