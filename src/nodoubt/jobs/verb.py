"""`db.job(name)`, `db.progress(name)`, `db.jobs()`, `db.forget_job(name)`: the verbs of both coordinators."""

from __future__ import annotations

from ..engine.context import Context
from ..engine.shell import AsyncShell, ThreadShell
from ..errors import UnknownJob
from ..protocol.records import Unreadable
from ..script import Script
from . import board
from .blocks import AsyncJob, Job
from .records import JobRecord, JobState
from .work import Work


def _progress(ctx: Context, name: str) -> Script[JobRecord]:
    row = yield from board.asked(ctx, lambda b, s: b.find(s, name), changes=False)
    if row is None:
        raise UnknownJob(name)
    return row.record


def _listing(ctx: Context) -> Script[list[JobRecord]]:
    """One whose row cannot be read stands among them, and says so."""
    found = yield from board.asked(ctx, lambda b, s: b.listing(s), changes=False)
    return [_unreadable(row) if isinstance(row, Unreadable) else row.record for row in found]


def _unreadable(row: Unreadable) -> JobRecord:
    return JobRecord(row.name or row.printable, JobState.UNREADABLE, 0, None, None, f"it {row.why}", "", 0.0, 0.0)


class _Verb:
    def _ready(self) -> Context:
        raise NotImplementedError

    def _writable(self) -> Context:
        raise NotImplementedError


class Verb(_Verb):
    """For `Coordinator`."""

    _shell: ThreadShell

    def job(
        self,
        name: str,
        *,
        total: int | None = None,
        on: str | None = None,
        patience: float | None = 0.0,
        takeover: bool = False,
        quiet: bool = False,
    ) -> Job:
        """A long job, as a block: begun, or gone on with from its last checkpoint; done when the block ends well.

        Each chunk is a transaction that commits with its checkpoint; see `Job.chunks`, `Job.chunk`. An error leaves
        the job to be begun again. `total`: how many items there are, for the progress. `on`: the database that keeps
        the checkpoint, a branch of every chunk's transaction, chosen once; default: the one with the journal.
        `patience`: seconds to wait while somebody else is at work on it, or a chunk is in doubt; None: however long.
        `takeover`: do not wait until its worker has not been heard of for a while, for you know that it is dead; if it
        is not, it is thrown out, but for a chunk that it has open: while that is, this raises `JobTaken`.
        `quiet`: no progress bar, in a terminal either.

        Raises `JobTaken` (nothing was done), `JobLost` (somebody else has taken it over), `UsageError`, `InvalidName`,
        `JournalUnavailable`, and as `transaction`.
        """
        return Job(
            Work(self._writable(), name, total=total, on=on, patience_s=patience, takeover=takeover, quiet=quiet),
            self._shell,
        )

    def progress(self, name: str) -> JobRecord:
        """How far a job is, as everybody can see. Raises `UnknownJob`."""
        return self._shell.run(_progress(self._ready(), name))

    def jobs(self) -> list[JobRecord]:
        """Those that changed last come first, 1000 at most; those that were done, for as long as the retention."""
        return self._shell.run(_listing(self._ready()))

    def forget_job(self, name: str) -> None:
        """Give a job up, or begin it anew: its name is free then, and no worker of it commits any more.

        What its chunks have committed stands. Raises `UnknownJob`, `JobTaken`.
        """
        self._shell.shielded(Work(self._writable(), name).forgetting())


class AsyncVerb(_Verb):
    """For `AsyncCoordinator`."""

    _shell: AsyncShell

    def job(
        self,
        name: str,
        *,
        total: int | None = None,
        on: str | None = None,
        patience: float | None = 0.0,
        takeover: bool = False,
        quiet: bool = False,
    ) -> AsyncJob:
        """As `Coordinator.job`."""
        return AsyncJob(
            Work(self._writable(), name, total=total, on=on, patience_s=patience, takeover=takeover, quiet=quiet),
            self._shell,
        )

    async def progress(self, name: str) -> JobRecord:
        """As `Coordinator.progress`."""
        return await self._shell.run(_progress(self._ready(), name))

    async def jobs(self) -> list[JobRecord]:
        """As `Coordinator.jobs`."""
        return await self._shell.run(_listing(self._ready()))

    async def forget_job(self, name: str) -> None:
        """As `Coordinator.forget_job`."""
        await self._shell.shielded(Work(self._writable(), name).forgetting())
