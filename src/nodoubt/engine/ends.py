"""The end of records: what may be forgotten, and when.

Guarantees: an end is written, forced, only for attempts whose branches have all proved themselves (I6), and receipts
are deleted only after it; the journal raises its floor before it deletes anything (see `ports.Journal.retire`).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import NoDoubtError
from ..ports import Session
from ..script import Script, every
from ..xid import Xid
from .context import ENDED_MAX, Context, Participant, using


def flush(ctx: Context) -> Script[None]:
    """Write the ends of all attempts that have proved themselves, in one forced write; then their receipts may go.

    If the write fails they stay in memory; if the process dies, the next sweep proves them again.
    """
    with ctx.lock:
        ended, ctx.ended = ctx.ended[:ENDED_MAX], ctx.ended[ENDED_MAX:]
    if not ended:
        return

    def body(session: Session) -> Script[None]:
        return ctx.journal.end(session, [attempt for attempt, _ in ended])

    try:
        yield from using(ctx.journal_pool, body)
    except NoDoubtError:
        with ctx.lock:
            ctx.ended = ended + ctx.ended
        raise
    xids = [xid for _, branches in ended for xid in branches]
    yield from every([_forget(participant, xids) for participant in ctx.participants.values()])
    for attempt, _ in ended:
        ctx.notice("P10", attempt, "ended")


def _forget(participant: Participant, xids: Sequence[Xid]) -> Script[int]:
    def body(session: Session) -> Script[int]:
        return participant.resource.forget(session, xids)

    return using(participant.reserve, body)


def retire(ctx: Context) -> Script[int]:
    """Forget what ended longer ago than the retention, in batches; the floor is raised before anything is deleted."""
    cut = ctx.clock.now() - ctx.settings.retention_s
    gone = 0

    def body(session: Session) -> Script[tuple[str, ...]]:
        return ctx.journal.retire(session, cut, ENDED_MAX)

    while True:
        attempts = yield from using(ctx.journal_pool, body)
        gone += len(attempts)
        if len(attempts) < ENDED_MAX:
            break

    def old(participant: Participant) -> Script[int]:
        def receipts(session: Session) -> Script[int]:
            return participant.resource.forget(session, (), older_than=cut)

        return using(participant.reserve, receipts)

    yield from every([old(participant) for participant in ctx.participants.values()])
    return gone
