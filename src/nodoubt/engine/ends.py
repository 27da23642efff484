"""The end of records: what may be forgotten, and when.

Guarantees: an end is written, forced, only for attempts whose branches have all proved themselves (I6), and receipts
are deleted only after it; the journal raises its floor before it deletes anything (see `ports.Journal.retire`); no
ABORT is forgotten that somebody has broken and nobody was told of (I17).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import NoDoubtError, UnreadableRecord
from ..ports import Session
from ..protocol.records import BranchRef, Standing, Unreadable
from ..script import Script, every
from ..xid import Xid, is_attempt
from . import questions
from .apart import Apart, split, tell
from .branches import alarm_if_committed, may_have_committed
from .context import ENDED_MAX, Context, Participant, asked, chunks, log

FORGET_BATCHES_MAX = 1000  # of receipts, per resource and clean-up
AT_ONCE_MAX = 16


def flush(ctx: Context) -> Script[None]:
    """Write the ends of all attempts that have proved themselves, many in one forced write; then their receipts may go.

    If the write fails they stay in memory; if the process dies, the next sweep proves them again. Those that come
    meanwhile have their turn next time: under load there are always some, and whoever writes here has to get away.
    """
    for _ in range(math.ceil(len(ctx.ended) / ENDED_MAX)):
        yield from _flush_some(ctx)


def flush_or_keep(ctx: Context) -> Script[str]:
    """The same for somebody who has other things to do than to wait for the journal. Why they wait; "": they don't."""
    try:
        yield from flush(ctx)
    except NoDoubtError as error:
        why = f"the ends of {len(ctx.ended)} transactions wait for the journal: {error}"
        log.warning("%s", why)
        return why
    return ""


def _flush_some(ctx: Context) -> Script[None]:
    with ctx.lock:
        ended, ctx.ended = ctx.ended[:ENDED_MAX], ctx.ended[ENDED_MAX:]
    if not ended:
        return

    def body(session: Session) -> Script[None]:
        return ctx.journal.end(session, [attempt for attempt, _ in ended])

    try:
        yield from asked(ctx, ctx.journal_pool, body)
    except NoDoubtError:
        with ctx.lock:
            ctx.ended = ended + ctx.ended
        raise
    yield from every([_forget(ctx, participant, ended) for participant in ctx.participants.values()])
    for attempt, _ in ended:
        ctx.notice("P10", attempt, "ended")


def _forget(ctx: Context, participant: Participant, ended: Sequence[tuple[str, Sequence[BranchRef]]]) -> Script[int]:
    """Delete the receipts that are there: its own."""
    own = participant.resource_id
    xids = [Xid(ctx.cluster, attempt, ref.number) for attempt, refs in ended for ref in refs if ref.resource_id == own]
    if not xids:
        return 0

    def body(session: Session) -> Script[int]:
        return participant.resource.forget(session, xids)

    return (yield from asked(ctx, participant.reserve, body))


def retire(ctx: Context) -> Script[int]:
    """Forget what ended longer ago than the retention, in batches; the floor is raised before anything is deleted.

    A record that cannot be read is kept, with the receipts it may need; the others go as ever. It is old if it is so by
    our clock and by the journal's: one that runs ahead alone would have receipts deleted of which a reply was lost just
    now, and whoever then looked for theirs would take a commit for aborted (I14).
    """
    shown = yield from asked(ctx, ctx.journal_pool, ctx.journal.now)
    cut = min(ctx.clock.now(), shown) - ctx.settings.retention_s
    gone, after, apart = 0, "", Apart()
    while (yield from _aborts_were_kept(ctx, cut, after, apart)):

        def body(session: Session, after: str = after) -> Script[tuple[str, ...]]:
            return ctx.journal.retire(session, cut, ENDED_MAX, after)

        try:
            attempts = yield from asked(ctx, ctx.journal_pool, body)
        except UnreadableRecord as error:
            log.error("UNREADABLE: nothing is forgotten: %s", error)
            break
        gone += len(attempts)
        if len(attempts) < ENDED_MAX:
            break
        after = attempts[-1]
    try:
        yield from _forget_old(ctx, cut, apart)
    except NoDoubtError as error:
        log.warning("old receipts are kept for now, as what may need them is not known: %s", error)
    return gone


def _forget_old(ctx: Context, cut: float, apart: Apart) -> Script[None]:
    """Delete old receipts, but those that a record may need of which a row cannot be read."""

    # What was not deleted after its end record, because the process died or the database was away: no COMMIT that has
    # not ended lies below the floor, so nobody can ask for it any more.
    def below(session: Session) -> Script[str]:
        return ctx.journal.floor(session, flushed=True)

    floor = yield from asked(ctx, ctx.journal_pool, below)
    split((yield from questions.unreadable(ctx, old=True)), apart)
    tell(ctx, apart.values())
    floor = min(floor, *(one.attempt for one in apart.values() if is_attempt(one.attempt)), floor)

    def old(participant: Participant) -> Script[int]:
        def receipts(session: Session) -> Script[int]:
            return participant.resource.forget(session, (), older_than=cut, below=floor)

        return asked(ctx, participant.reserve, receipts)

    for participant in ctx.participants.values():
        for _ in range(FORGET_BATCHES_MAX):
            try:
                some = yield from old(participant)
            except NoDoubtError as error:
                log.warning("old receipts on %s are kept for now: %s", participant.name, error)
                break
            if some == 0:
                break


def _aborts_were_kept(ctx: Context, cut: float, after: str, apart: Apart) -> Script[bool]:
    """Look for receipts of the ABORTs that would be forgotten next; whoever has committed one has broken it (I17).

    Whoever rolls back meets most of those, but not where a process died between its decision and the last branch, and
    somebody ended that by hand. False: a database can't be asked, so nothing may be forgotten yet.
    """

    def aborts(session: Session) -> Script[list[Standing | Unreadable]]:
        return ctx.journal.aborted(session, cut, ENDED_MAX, after)

    standings = split((yield from asked(ctx, ctx.journal_pool, aborts)), apart)
    places = [place for standing in standings for place in may_have_committed(ctx, standing.decision)]
    for part in chunks(places, AT_ONCE_MAX):
        for outcome in (yield from every([alarm_if_committed(ctx, participant, xid) for participant, xid in part])):
            if outcome.error is not None:
                log.warning("old decisions are kept for now: %s", outcome.error)
                return False
    return True


def may_be_forgotten(ctx: Context, attempt: str) -> bool:
    """Whether a clean-up may have removed its receipts: then their absence means unknown, never aborted.

    A process can be stopped for days between its commit and the lost reply. Half of the retention, for the clocks of
    those who clean up may be others.
    """
    begun_at = int(attempt[:12], 16) / 1000  # a UUIDv7 begins with its time
    return begun_at < ctx.clock.now() - ctx.settings.retention_s / 2
