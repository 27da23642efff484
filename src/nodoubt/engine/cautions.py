"""Warnings of what works and should not be done: locks held for long, too many open, two phases where one would do.

Guarantees: each cause is told once, not with every sweep; nothing is changed, and nothing hangs on it.
"""

from __future__ import annotations

from ..errors import NoDoubtError
from ..ports import Session
from ..protocol.records import Staging, Unreadable
from ..script import Script
from .apart import split
from .context import Context, asked, log

TOLD_MAX = 10_000


def look(ctx: Context) -> Script[None]:
    """Look at what is staged and undecided."""

    def body(session: Session) -> Script[list[Staging | Unreadable]]:
        return ctx.journal.undecided(session, "", ctx.settings.open_warn + 1)

    try:
        stagings = yield from asked(ctx, ctx.journal_pool, body)
    except NoDoubtError:
        return  # the sweep tells that the journal is away
    for staging in split(stagings, {}):  # the sweep tells of the others
        held_s = ctx.clock.now() - staging.created_at
        if held_s > ctx.settings.held_warn_s and _first(ctx, f"held {staging.attempt}"):
            log.warning(
                "%r has been prepared for %.0f s: it holds its locks on %s, and on PostgreSQL it holds back VACUUM. "
                "Commit it or roll it back",
                staging.name, held_s, ", ".join(ref.resource for ref in staging.branches),
            )  # fmt: skip
    if len(stagings) <= ctx.settings.open_warn:
        ctx.told.discard("open")
    elif _first(ctx, "open"):
        log.warning(
            "more than %d staged transactions are undecided: each holds locks and a place among those that the server "
            "can keep prepared. Is it used for every request, or does nobody decide?",
            ctx.settings.open_warn,
        )


def one_branch(ctx: Context, staging: Staging) -> None:
    """Staged on one of several databases, with nobody asked and no step called: it may not have been worth it."""
    alone = len(staging.branches) == 1 and not ctx.single and not staging.confirmations and not staging.calls
    if alone and _first(ctx, "one branch"):
        log.warning(
            "%r was staged with one branch only, on %s, without steps or confirmations: if the process that begins "
            "also decides, transaction() does it in one phase",
            staging.name, staging.branches[0].resource,
        )  # fmt: skip


def _first(ctx: Context, cause: str) -> bool:
    if cause in ctx.told:
        return False
    if len(ctx.told) >= TOLD_MAX:
        ctx.told.clear()
    ctx.told.add(cause)
    return True
