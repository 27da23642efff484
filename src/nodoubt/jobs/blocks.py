"""What `db.job` returns, and the transactions of its chunks, as blocks: sync and async."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Generic, Self

from ..engine.attempt import Attempt
from ..engine.context import Context, backoff
from ..engine.shell import AsyncShell, ThreadShell
from ..errors import ClosedTransaction, InDoubt, JobLost, JobTaken, UsageError
from ..idempotency.blocks import AsyncBlock, Block, Carrying
from ..idempotency.store import Claim
from ..script import Script
from . import board, links
from .records import Link, number_of_items
from .work import Item, Work

CHUNK_SIZE = 100  # items


class _Chunk(Carrying, Generic[Item]):
    """What both kinds share. `items`: of those that were given to `chunks`, what this chunk is about."""

    def __init__(self, work: Work, shell: Any, items: Sequence[Item], upto: int | None, timeout: float | None) -> None:
        super().__init__(work.ctx, shell, "applied")
        self.items = items
        self._work, self._timeout_s = work, timeout
        self._said = None if upto is None else (upto, upto)
        self._own = upto is None
        self._used = False
        self._after = Link()

    def checkpoint(self, value: Any, *, done: int = 0) -> None:
        """So far the job is once this chunk has committed: `value` is where to go on from, JSON of up to 4096 bytes.

        `done`: how many items this chunk has done, for the progress. Said again, the last word counts.
        """
        if not self._own:
            raise UsageError("a chunk of chunks(items) has its checkpoint already: use job.chunk() for one of your own")
        told = links.decoded(links.encoded(value))  # as whoever begins the job again will be told it
        self._said = told, number_of_items(self._work.link.done + number_of_items(done))

    def _take(self) -> Script[Attempt | None]:
        if self._used:
            raise ClosedTransaction("a chunk is entered once: take another one")
        work = self._work
        work.require_open()
        self._used = work.at_work = True
        attempt: Attempt | None = None
        try:
            outcome, attempt = yield from work.take(lambda: work.beginning(self._timeout_s))
            if attempt is None:
                if outcome is Claim.IN_FLIGHT and (yield from work.mine()):
                    raise JobTaken(work.name, "a chunk of this very block, which was interrupted, has not ended yet")
                work.lost = True
                raise JobLost(work.name)
        finally:
            work.at_work = attempt is not None
        return attempt

    def _carry(self, attempt: Attempt) -> None:
        if self._said is None:
            raise UsageError(
                "say how far this chunk has come, chunk.checkpoint(value, done=…): without it the same would be done "
                "again. It is rolled back"
            )
        before = self._work.link
        self._after = replace(before, number=before.number + 1, checkpoint=self._said[0], done=self._said[1])
        self._work.close(attempt, self._after)

    def _cut_off(self, attempt: Attempt, error: BaseException) -> None:
        """Cancelled, or interrupted, too: the commit goes on without whoever waited for it."""
        why = f"nobody has waited for how it ends ({type(error).__name__})"
        self._work.doubt = error if isinstance(error, InDoubt) else InDoubt(why, name=attempt.name, attempt=attempt.id)

    def _drop(self) -> None:
        self._work.at_work = False

    def _committed(self) -> Script[None]:
        self._work.link = self._after
        return self._work.tell()

    def _no_work(self) -> ClosedTransaction:
        return ClosedTransaction(f"use the chunk of {self._work.name!r} inside its with block")


class Chunk(_Chunk[Item], Block):
    """A chunk's transaction: it commits with its checkpoint, or neither is there."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if kind is None:
            self._shell.run(self._committed())


class AsyncChunk(_Chunk[Item], AsyncBlock):
    """As `Chunk`."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        if kind is None:
            await self._shell.run(self._committed())


class _Job:
    """What both kinds share."""

    def __init__(self, work: Work, shell: Any) -> None:
        self._work, self._shell = work, shell

    @property
    def name(self) -> str:
        return self._work.name

    @property
    def checkpoint(self) -> Any:
        """Where to go on from: what the last chunk that has committed has said; None at the beginning."""
        return self._work.link.checkpoint

    @property
    def done(self) -> int:
        """How many items are surely done."""
        return self._work.link.done

    @property
    def total(self) -> int | None:
        """How many items there are, if that was said."""
        return self._work.total

    @property
    def finished(self) -> bool:
        """Whether it was done before: then there is nothing to do in this block."""
        return self._work.link.finished

    def pause(self, note: str = "") -> None:
        """Leave it, as the block ends, to be begun again: it is not done yet."""
        self._work.pause(note)

    def _mind(self) -> None:
        """From the first job on, say now and then that this process is alive."""
        ctx: Context = self._work.ctx
        if not ctx.minding:
            ctx.minding = True
            try:
                self._shell.loop("jobs", lambda: board.hold_all(ctx), ctx.settings.job_lease_s / 3)
            except BaseException:
                ctx.minding = False
                raise


class Job(_Job):
    """A block of `Coordinator.job`."""

    _shell: ThreadShell

    def chunk(self, *, timeout: float | None = None) -> Chunk[Any]:
        """The next chunk's transaction: work, and say how far it has come, `chunk.checkpoint(value, done=…)`.

        Raises `JobLost`; `JobTaken` where one that was interrupted has not ended yet; and as `transaction`.
        """
        return Chunk(self._work, self._shell, (), None, timeout)

    def chunks(
        self, items: Sequence[Item], size: int = CHUNK_SIZE, *, timeout: float | None = None
    ) -> Iterator[Chunk[Item]]:
        """What is left of the items, so many at a time, each as a transaction: `with chunk as tx`, `chunk.items`.

        The checkpoint is how many are done: they must be the same ones, in the same order, whenever it is begun again.
        """
        return self._work.sliced(items, size, lambda some, upto: Chunk(self._work, self._shell, some, upto, timeout))

    def report(self, done: int, note: str = "") -> None:
        """Progress for others to see now, whatever is committed; the checkpoint stays where it is.

        Not while a transaction on SQLite has the file that the journal is in: that is locked.
        """
        self._shell.run(self._work.reported(done, note))

    def __enter__(self) -> Self:
        work = self._work
        work.enter_once()
        self._mind()
        until = work.until()
        for pause_s in backoff():
            try:
                self._shell.shielded(work.entering())
                break
            except JobTaken as error:
                self._shell.run(work.waiting(error, until, pause_s))
            except BaseException:  # whatever a signal's handler raises: nobody will be in the block
                work.gone()
                raise
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        self._shell.shielded(self._work.leaving(error))


class AsyncJob(_Job):
    """A block of `AsyncCoordinator.job`."""

    _shell: AsyncShell

    def chunk(self, *, timeout: float | None = None) -> AsyncChunk[Any]:
        """As `Job.chunk`."""
        return AsyncChunk(self._work, self._shell, (), None, timeout)

    def chunks(
        self, items: Sequence[Item], size: int = CHUNK_SIZE, *, timeout: float | None = None
    ) -> Iterator[AsyncChunk[Item]]:
        """As `Job.chunks`: `for chunk in job.chunks(items)`, `async with chunk as tx`."""
        return self._work.sliced(
            items, size, lambda some, upto: AsyncChunk(self._work, self._shell, some, upto, timeout)
        )

    async def report(self, done: int, note: str = "") -> None:
        """As `Job.report`."""
        await self._shell.run(self._work.reported(done, note))

    async def __aenter__(self) -> Self:
        work = self._work
        work.enter_once()
        self._mind()
        until = work.until()
        for pause_s in backoff():
            try:
                await self._shell.shielded(work.entering())
                break
            except JobTaken as error:
                await self._shell.run(work.waiting(error, until, pause_s))
            except BaseException:
                work.gone()
                raise
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        await self._shell.shielded(self._work.leaving(error))
