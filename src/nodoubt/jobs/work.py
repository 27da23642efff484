"""A job while somebody works on it, as scripts: in, out, and what is told of its progress. The blocks: `blocks`.

Guarantees: whoever is let in has written a link of their own, so that whoever was at work before can commit no more; a
block that ends well has written the last one; one that fails leaves the job to be begun again, at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from ..engine import start, verbs
from ..engine.attempt import Attempt
from ..engine.context import Context, Participant, check_seconds, log
from ..errors import (
    ClosedTransaction,
    InDoubt,
    JobLost,
    JobTaken,
    NoDoubtError,
    ResourceRefused,
    UnknownJob,
    UsageError,
    text_of,
)
from ..idempotency import claims
from ..idempotency.claims import Beginning
from ..idempotency.store import Claim
from ..script import Pause, Script
from ..xid import check_name
from . import board, links
from .bar import Bar
from .records import JobState, Link, Row, number_of_items

Item = TypeVar("Item")
C = TypeVar("C")


class _NoCheckpoint(ResourceRefused):
    """The database answers, and has none of this run."""


class Work:
    """What both kinds of `job()` share."""

    def __init__(
        self,
        ctx: Context,
        name: str,
        *,
        total: int | None = None,
        on: str | None = None,
        patience_s: float | None = 0.0,
        takeover: bool = False,
        quiet: bool = True,
    ) -> None:
        if total is not None:
            number_of_items(total)
        if patience_s != 0 and patience_s is not None:
            check_seconds("patience", patience_s)
        self.ctx = ctx
        self.name = check_name(name)
        self.total, self._counted = total, total is not None
        self.link = Link()
        self.at_work = False  # on a chunk
        self.lost = False  # somebody else has it
        self.doubt: InDoubt | None = None  # how a chunk ended is not known here
        self._on, self._patience_s, self._takeover = on, patience_s, takeover
        self._bar = Bar(name, quiet=quiet)
        self._keeper: Participant | None = None
        self._run, self._claim = "", ctx.ids.attempt()
        self._why = ""  # it was paused
        self._entered = self._open = self._paused = self._left = self._gone = False
        self._items: object = None  # the list that it goes through

    # ---- links

    def beginning(self, timeout_s: float | None) -> Script[Attempt]:
        """A transaction of this job."""
        yield from ()
        return verbs.begin_now(self.ctx, self.name, timeout_s)

    def take(self, beginning: Beginning) -> Script[tuple[Claim, Attempt | None]]:
        """An attempt that may write the link after the last one."""
        return links.take(self.ctx, self._kept_by, self._run, self.link, beginning)

    def mine(self) -> Script[bool]:
        """Whether nobody else has taken the job over: whoever is at work on it has claimed it first."""
        row = yield from self._look()
        return row is not None and row.claim == self._claim

    def close(self, attempt: Attempt, after: Link) -> None:
        """The attempt will end with this link."""
        links.close(attempt, self._kept_by, self._run, self.link, after)

    @property
    def _kept_by(self) -> Participant:
        assert self._keeper is not None
        return self._keeper

    def _relay(self, *, finished: bool = False) -> Script[None]:
        """A link without work: whoever begins, or ends. Raises `JobTaken`."""
        outcome, attempt = yield from self.take(lambda: self.beginning(None))
        if attempt is None:
            flying = "a chunk of it is at work, or waits for recovery, which ends it"
            raise JobTaken(self.name, flying if outcome is Claim.IN_FLIGHT else "somebody else has just begun it")
        after = replace(self.link, number=self.link.number + 1, finished=finished)
        self.close(attempt, after)
        yield from verbs.complete(self.ctx, (yield from verbs.finish_work(self.ctx, attempt)))
        self.link = after

    # ---- in

    def enter_once(self) -> None:
        """Raises `ClosedTransaction`."""
        if self._entered:
            raise ClosedTransaction("a job's block is entered once: call job() again")
        self._entered = True

    def entering(self) -> Script[None]:
        """Begin it, or go on with it. Raises `JobTaken`. It runs shielded: `gone` says that nobody waits for it."""
        if (yield from self._look()) is None:
            yield from self._begin_new()
        if self._gone or not (yield from self._claimed()):
            return
        if self._gone:  # while a locked file made it wait for the claim: the job stays as it was left
            yield from self._quietly(self._release())
            return
        try:
            yield from self._find_link()
            if self.link.finished:
                yield from self._done()
                return
            yield from self._relay()
            yield from self.tell()
        except BaseException:
            self._bar.end()
            yield from self._quietly(self._release())
            raise
        if self._gone:
            self._bar.end()
            yield from self._quietly(self._release())
            return
        self._open = True

    def gone(self) -> None:
        """Whoever was to be let in was interrupted, or cancelled."""
        self._gone = True
        self.ctx.jobs.pop(self._claim, None)  # if it was just let in, its lease ends by itself

    def until(self) -> float | None:
        """When patience ends, by the clock's `elapsed`; None: never."""
        return None if self._patience_s is None else self.ctx.clock.elapsed() + self._patience_s

    def waiting(self, error: JobTaken, until: float | None, pause_s: float) -> Script[None]:
        """Before the next look whether the job has become free; raises the error where there is none."""
        if until is not None and self.ctx.clock.elapsed() + pause_s > until:
            raise error
        yield Pause(pause_s)

    def _look(self) -> Script[Row | None]:
        return board.asked(self.ctx, lambda b, s: b.find(s, self.name), changes=False)

    def _begin_new(self) -> Script[None]:
        """Nobody knows this run before it is listed, so nobody else can write its first link."""
        ctx = self.ctx
        keeper = self._keeper = ctx.participant(claims.place_of(ctx, self._on))
        yield from start.admit(ctx, keeper)
        self._run, self.link = ctx.ids.attempt(), Link()
        yield from self._relay()
        ours = yield from board.asked(ctx, lambda b, s: b.add(s, self.name, self._run, keeper.resource_id, self.total))
        if not ours:  # somebody was quicker: what is listed is theirs
            yield from self._quietly(self._drop())

    def _claimed(self) -> Script[bool]:
        """Whether it is ours now; False: it is done. Raises `JobTaken`."""
        ctx = self.ctx
        mine, lease_s, takeover = self._claim, ctx.settings.job_lease_s, self._takeover
        row = yield from board.asked(
            ctx, lambda b, s: b.claim(s, self.name, mine, ctx.owner, lease_s, takeover=takeover)
        )
        if row is None:
            raise JobTaken(self.name, "somebody has just had it forgotten")
        self._run = row.run
        self.total = row.record.total if self.total is None else self.total
        if row.record.state is JobState.DONE:
            self.link = Link(0, row.record.checkpoint, row.record.done, finished=True)
            return False
        if row.claim != self._claim:
            left = f"{row.record.worker} is at work on it, and has it for {row.held_s:.1f} s more, or longer"
            raise JobTaken(self.name, left)
        try:
            yield from self._find_keeper(row)
        except BaseException:
            yield from self._quietly(self._release())
            raise
        ctx.jobs[self._claim] = self.name
        return True

    def _find_keeper(self, row: Row) -> Script[None]:
        ctx = self.ctx
        for participant in ctx.participants.values():
            if participant.resource_id == "":
                yield from start.admit(ctx, participant)
        keeper = ctx.by_id(row.keeper)
        if keeper is None:
            raise UsageError(
                f"the checkpoints of {self.name!r} are on a database ({row.keeper}) that is not among the resources of "
                "this coordinator: name it, too"
            )
        if self._on not in (None, keeper.name):
            raise UsageError(f"the checkpoints of {self.name!r} are on {keeper.name}, for good, not on {self._on}")
        self._keeper = keeper

    def _find_link(self) -> Script[None]:
        found = yield from links.last(self.ctx, self._kept_by, self._run)
        if found is None:
            if not (yield from self.mine()):  # its chain was dropped, but only after that was written
                raise JobTaken(self.name, "somebody else has taken it over in this moment, and has come to its end")
            raise _NoCheckpoint(
                f"{self._kept_by.name} has no checkpoint of the job {self.name!r}, which the journal knows: was that "
                "database restored? Where to go on from is not known: look at its effects, then forget_job(name), and "
                "begin anew"
            )
        self.link, pending = found
        if pending:
            raise JobTaken(self.name, "a chunk of it is prepared, and waits for recovery, which ends it")

    # ---- at work

    def require_open(self) -> None:
        """Raises `ClosedTransaction`, `JobLost`, `UsageError` where no chunk can be begun."""
        if self.link.finished:
            raise ClosedTransaction(f"the job {self.name!r} is done: there is nothing left to do in it")
        if not self._open:
            raise ClosedTransaction("work on a job inside its with block")
        self.require_sure()
        if self.lost:
            raise JobLost(self.name)
        if self.at_work:
            raise UsageError("a job has one chunk at a time: end the one at hand first")

    def require_sure(self) -> None:
        """Raises `InDoubt`, as the chunk did, where how far the job has come is not known in this block."""
        if self.doubt is not None:
            raise InDoubt(
                f"a chunk of the job {self.name!r} was left in doubt, so this block does not know where to go on from: "
                "let the error end it, and begin the job again, which goes on from what was committed",
                name=self.doubt.name,
                attempt=self.doubt.attempt,
            )

    def pause(self, note: str) -> None:
        """As the block ends, it is not done."""
        self._paused, self._why = True, note

    def sliced(self, items: Sequence[Item], size: int, make: Callable[[Sequence[Item], int], C]) -> Iterator[C]:
        """The chunks that are left of the items; whoever leaves this loop early has not done the job."""
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UsageError(f"a chunk has one item or more, not {size!r}")
        if isinstance(items, Mapping) or not (hasattr(items, "__len__") and hasattr(items, "__getitem__")):
            raise UsageError(
                f"chunks() goes through a list, from any position in it, not through a {type(items).__name__}: give "
                "list(…) of it, or say yourself how far each chunk has come, with job.chunk()"
            )
        if self.link.finished:
            return
        if self._items is not None and self._items is not items:
            raise UsageError(
                f"the job {self.name!r} goes through one list, in which its checkpoint is a position: put both in one, "
                "or make a job for each"
            )
        at = 0 if self.link.checkpoint is None else self.link.checkpoint
        if isinstance(at, bool) or not isinstance(at, int) or not 0 <= at <= len(items):
            raise UsageError(
                f"the job {self.name!r} goes on from {at!r}, and these are {len(items)} items: give the same ones as "
                "before, in the same order (more may follow them)"
            )
        if not self._counted:
            if self.total is not None and len(items) < self.total:
                raise UsageError(
                    f"there were {self.total} items of the job {self.name!r}, and these are {len(items)}: what is not "
                    "among them would be taken for done. Give the same ones as before, or, if that many is what there "
                    "is now, say so: job(…, total=…)"
                )
            self.total = len(items)
        self._left = True
        self._items = items if len(items) > 0 else self._items
        while at < len(items):
            some = items[at : at + size]
            at += len(some)
            yield make(some, at)
            self.require_sure()
            if self.link.checkpoint != at:
                raise UsageError(
                    f"the chunk that ends at item {at} was not committed: work on it in its block, with chunk as tx, "
                    "and let its errors end the job, which goes on from there when it is begun again"
                )
        self._left = False

    def tell(self, note: str = "", done: int | None = None) -> Script[None]:
        """Progress, for everybody to see: at the last link, or, not committed yet, at so many items.

        If the journal is away, what is committed stands all the same. Raises `JobLost`.
        """
        ctx, total = self.ctx, self.total
        link = self.link if done is None else replace(self.link, done=done)
        self._bar.show(link.done, total, note)
        try:
            mine = yield from board.asked(
                ctx, lambda b, s: b.advance(s, self.name, self._claim, link, total, note, ctx.settings.job_lease_s)
            )
        except NoDoubtError as error:
            log.warning("the progress of the job %s cannot be told for now: %s", self.name, error)
            return
        if not mine:
            self.lost = True
            raise JobLost(self.name, committed=done is None)

    def reported(self, done: int, note: str) -> Script[None]:
        """As `tell`, between or within chunks."""
        if not self._open:
            raise ClosedTransaction("report on a job inside its with block, and while it is not done")
        return self.tell(note, number_of_items(done))

    # ---- out

    def leaving(self, error: BaseException | None) -> Script[None]:
        """The block has ended. Raises `JobLost`, `InDoubt`, and what the last link's commit raises."""
        if not self._open:
            return
        self._open = False
        try:
            if error is None and not self._left and not self._paused:
                yield from self._finish()
            else:
                note = self._why if error is None else f"{type(error).__name__}: {text_of(error)}"
                yield from self._quietly(self._end(JobState.STOPPED, note))
        finally:
            self.ctx.jobs.pop(self._claim, None)
            self._bar.end()

    def _finish(self) -> Script[None]:
        if self.lost:
            raise JobLost(self.name)
        try:
            self.require_sure()
            yield from self._relay(finished=True)
        except BaseException as error:
            if isinstance(error, JobTaken) and not (yield from self.mine()):
                self.lost = True
                raise JobLost(self.name) from None
            yield from self._quietly(self._end(JobState.STOPPED, f"{type(error).__name__}: {text_of(error)}"))
            raise
        yield from self._quietly(self._done())

    def _done(self) -> Script[None]:
        """First the journal knows it, durably; then the last link may go. Whoever begins the job finds one of them."""
        if (yield from self._end(JobState.DONE, "")):
            yield from self._quietly(self._drop())

    def _drop(self) -> Script[None]:
        return links.drop(self.ctx, self._kept_by, self._run, self.link)

    def _end(self, state: JobState, note: str) -> Script[bool]:
        """False: somebody else has it, and ends it."""
        link = self.link
        self.ctx.jobs.pop(self._claim, None)
        return board.asked(self.ctx, lambda b, s: b.end(s, self.name, self._claim, state, link, note))

    def _release(self) -> Script[None]:
        self.ctx.jobs.pop(self._claim, None)
        yield from board.asked(self.ctx, lambda b, s: b.release(s, self.name, self._claim))

    def _quietly(self, script: Script[object]) -> Script[None]:
        """Whoever begins the job again finds out what could not be told."""
        try:
            yield from script
        except NoDoubtError as error:
            log.warning("how the job %s was left cannot be told for now: %s", self.name, error)

    def forgetting(self) -> Script[None]:
        """End its chain, so that nobody who is asleep goes on with it; then forget it."""
        row = yield from self._look()
        if row is None:
            raise UnknownJob(self.name)
        if (yield from self._claimed()):
            try:
                yield from self._find_link()
                yield from self._relay(finished=True)
            except _NoCheckpoint as error:
                log.warning("%s", error)  # nobody can go on from what is not there
            except BaseException:
                yield from self._quietly(self._release())
                raise
            self.ctx.jobs.pop(self._claim, None)
        yield from board.asked(self.ctx, lambda b, s: b.remove(s, self.name, self._run))
        if self.link.finished and self._keeper is not None:
            yield from self._quietly(self._drop())
