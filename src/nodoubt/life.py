"""What both coordinators share: the context, whether it is open, and what runs behind while it is.

Guarantees: a verb on a coordinator that is not open is refused before anything is done; what was closed and is opened
again begins as in a new process; in the child of a fork nothing of the parent's is touched.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable

from . import wiring
from .engine import cautions, ends, lingering, questions, reaper, start, sweep
from .engine.context import Context
from .engine.shell import AsyncShell, ThreadShell
from .errors import ClosedTransaction, NoDoubtError, SchemaMismatch, UsageError
from .idempotency import claims
from .jobs import board
from .outside import Scripts
from .protocol.records import Event, Quarantined
from .script import Script

SELDOM = 60  # sweeps, in the background or asked for, between two clean-ups, and two epochs
_COORDINATORS: weakref.WeakSet[Life] = weakref.WeakSet()


class Life(Scripts):
    """What both coordinators share: the context, and whether it is open."""

    def __init__(
        self,
        ctx: Context,
        shell: ThreadShell | AsyncShell,
        *,
        recovery: bool,
        read_only: bool,
        anew: Callable[..., Context] | None = None,
    ) -> None:
        """`anew`: makes another context, over a shell, for a coordinator that is opened again; None: it is not."""
        self._ctx, self._runs, self._anew = ctx, shell, anew
        self._loop: asyncio.AbstractEventLoop | None = None  # on asyncio: in which it was opened
        self._read_only = read_only
        self._recovery = recovery and not read_only
        self._opened = self._unminded = False  # unminded: in the child of a fork, where nothing runs behind yet
        self._not_ready: NoDoubtError | None = None
        self._turns = 0
        _COORDINATORS.add(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {', '.join(self._ctx.participants)}>"

    @property
    def barred(self) -> dict[str, str]:
        """The databases whose lineage is in question, each with why; nothing of them is resolved (I15)."""
        return {name: one.barred for name, one in self._ctx.participants.items() if one.barred}

    def _ready(self) -> Context:
        if not self._opened or self._ctx.closing:
            raise ClosedTransaction("the coordinator is not open: use it in a with block, or call open()")
        if self._not_ready is not None:
            raise self._not_ready
        if self._unminded:
            self._begin_behind()
        return self._ctx

    def _writable(self) -> Context:
        ctx = self._ready()
        if self._read_only:
            raise UsageError("this coordinator was opened with read_only=True: it only answers questions")
        return ctx

    def _begin_anew(self, shell: ThreadShell | AsyncShell) -> None:
        """It was closed: what is opened again begins as in a new process."""
        if self._anew is None:
            raise ClosedTransaction("this coordinator was closed: make another one")
        self._ctx, self._runs = self._anew(shell=shell), shell
        self._unminded, self._not_ready, self._turns, self._loop = False, None, 0, None

    def _open_script(self) -> Script[None]:
        try:
            yield from (start.look(self._ctx) if self._read_only else start.start(self._ctx))
            self._not_ready = None
        except SchemaMismatch as error:
            # setup() must stay possible; every other verb raises this.
            self._not_ready = error

    def _setup_script(self, *, migrate: bool) -> Script[None]:
        if self._read_only:
            raise UsageError("a coordinator with read_only=True creates nothing")
        if migrate:
            yield from start.migrate(self._ctx)
        yield from start.setup(self._ctx)
        yield from start.start(self._ctx)
        self._not_ready = None

    def _turn(self) -> Script[None]:
        """One turn of what runs behind: write the ends, sweep, and now and then forget what is old."""
        if self._not_ready is not None:
            return
        yield from ends.flush_or_keep(self._ctx)
        reaped = yield from reaper.reap(self._ctx)
        yield from sweep.sweep(self._ctx, grace_s=self._ctx.settings.grace_s, courteous=True, reaped=reaped)
        yield from cautions.look(self._ctx)
        yield from self._now_and_then()

    def _now_and_then(self) -> Script[None]:
        """Forget what is old, and begin a new epoch: only a backup from before it can then be restored unnoticed."""
        self._turns += 1
        if self._turns % SELDOM == 0:
            yield from ends.retire(self._ctx)
            yield from claims.expire(self._ctx)
            yield from board.expire(self._ctx)
            yield from start.renew(self._ctx)

    def _events_script(self, attempt: str) -> Script[list[Event]]:
        ctx = self._ready()
        return questions.ask(ctx, lambda session: ctx.journal.events(session, attempt))

    def _clear_script(self, attempt: str, branch: int, by: str) -> Script[None]:
        ctx = self._writable()
        return questions.ask(ctx, lambda session: ctx.journal.clear(session, attempt, branch, by), changes=True)

    def _quarantined_script(self) -> Script[list[Quarantined]]:
        return questions.quarantined(self._ready())

    def _after_fork(self) -> None:
        """In the child: what the parent was at work on is the parent's. Recovery begins with its first verb."""
        self._unminded, self._loop = self._opened, None
        lingering.forsake(self._ctx)
        self._ctx.forget(wiring.owner())
        self._ctx.register_batch = wiring.register_batch(self._ctx, self._runs)


def _children() -> None:
    for coordinator in list(_COORDINATORS):
        coordinator._after_fork()


os.register_at_fork(after_in_child=_children)
