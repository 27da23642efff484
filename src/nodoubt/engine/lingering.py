"""Sessions that are kept for a moment after a staged prepare, for a commit by name that comes at once.

Where a branch stays bound to the session that prepared it (MariaDB), that session has to end before anybody else can
finish the branch: a few milliseconds in which a commit by name would only be refused, and then another session to be
opened. So this process keeps it, and finishes the branch in it if it is asked to. Whoever else comes first ends the
session (`Resource.free`), as recovery does with that of a process that hangs.

Guarantees: nobody waits for a session that lingers for longer than `CROWDED_S`, nor does a process that ends; none
lingers for longer than the setting `linger_s`; none is handed on while it holds a branch (I18); nothing hangs on any of
this but time.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ports import Prepared, Session
from ..script import Pause, Script
from ..xid import Xid
from . import recent
from .attempt import Branch
from .context import Context, Participant, bounded, log

TURN_S = 0.025
CROWDED_S = 0.05  # long enough for a commit that follows its begin


@dataclass(frozen=True, slots=True)
class Stay:
    """One of them."""

    participant: Participant
    session: Session
    prepared: Prepared
    since: float


def stay(ctx: Context, branch: Branch) -> bool:
    """Keep the session of a branch that has just been prepared. False: let go of it now."""
    session = branch.session
    if not branch.participant.lingers or ctx.aside is None or ctx.closing or session is None:
        return False
    xid = branch.work.xid
    kept = Stay(branch.participant, session, Prepared(xid, handle=branch.work.handle), ctx.clock.elapsed())
    branch.session = None
    with ctx.lock:
        ctx.lingering[xid] = kept
        minded, ctx.lingering_minded = ctx.lingering_minded, True
    if minded:
        return True
    try:
        ctx.aside(_mind(ctx))
    except Exception:
        # No thread can be started. Nobody would end it, and its place in the pool would be lost with it.
        log.exception("nobody can mind a session that lingers")
        ctx.lingering_minded = False
        rejoin(ctx, branch)
        return branch.session is None
    return True


def stays(ctx: Context, xid: Xid) -> bool:
    """Whether this process has just prepared the branch, and holds it in a session of its own.

    Only a stranger who has ended that session first can have ended the branch; the older it is, the likelier.
    """
    kept = ctx.lingering.get(xid)
    return kept is not None and ctx.clock.elapsed() - kept.since < recent.TRUSTED_S


def rejoin(ctx: Context, branch: Branch) -> None:
    """Give the branch its session back, if that is still here."""
    kept = ctx.lingering.pop(branch.work.xid, None)
    if kept is not None:
        branch.session, branch.prepared = kept.session, kept.prepared


def _mind(ctx: Context) -> Script[None]:
    """End them in time, as long as there are any."""
    try:
        while True:
            yield Pause(TURN_S)
            yield from _end_some(ctx)
            with ctx.lock:
                if not ctx.lingering:
                    ctx.lingering_minded = False
                    return
    except BaseException:
        _abandon(ctx)  # cancelled, with all the tasks of its loop: nobody else would give their places back
        raise


def _abandon(ctx: Context) -> None:
    """End them all at once, without a word to the server: it finds the sockets shut, and lets go of the branches."""
    with ctx.lock:
        ctx.lingering_minded = False
        abandoned = list(ctx.lingering)
    for xid in abandoned:
        kept = ctx.lingering.pop(xid, None)
        if kept is not None:
            kept.session.kill()
            kept.participant.pool.release(kept.session)


def _end_some(ctx: Context) -> Script[None]:
    now = ctx.clock.elapsed()
    with ctx.lock:
        kept_now = list(ctx.lingering.items())
    for xid, kept in kept_now:
        lasts_s = min(CROWDED_S, ctx.settings.linger_s) if kept.participant.pool.crowded else ctx.settings.linger_s
        if not ctx.closing and now - kept.since < lasts_s:
            continue
        if ctx.lingering.pop(xid, None) is None:
            continue  # a commit was quicker
        try:
            yield from bounded(kept.participant.resource.detach(kept.session), ctx.settings.prepare_s, ctx.clock)
        except Exception:
            log.exception("the session that prepared %s was not ended in good order", xid.gid)
            kept.session.kill()
        finally:
            kept.participant.pool.release(kept.session)


def forsake(ctx: Context) -> None:
    """In the child of a fork: they are the parent's."""
    for kept in ctx.lingering.values():
        kept.participant.pool.release(kept.session)
    ctx.lingering, ctx.lingering_minded = {}, False
