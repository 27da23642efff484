"""`Coordinator` and `AsyncCoordinator`: the public verbs. Wiring and delegation, no logic.

The two have the same verbs; one is not a wrapper round the other's event loop. Every verb runs an engine script,
with threads here and on asyncio there.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable, Collection
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from . import wiring
from .config import for_program
from .engine import ends, leaving, questions, start, verbs
from .engine.attempt import Attempt
from .engine.context import Context, Settings
from .engine.leaving import Dropped
from .engine.questions import State, TransactionRecord
from .engine.shell import CLOSE_WAIT_S, AsyncShell, ThreadShell
from .engine.sweep import SweepReport
from .engine.verbs import Result, Wait
from .errors import ClosedTransaction, NoDoubtError, UsageError
from .idempotency import once
from .jobs import verb
from .life import Life
from .outside import AsyncOutside, Outside
from .ports import Clock, Observer
from .protocol.records import Event, Quarantined, Unreadable, Verdict
from .script import Script
from .transaction import AsyncTransaction, Staging, Transaction, done

T = TypeVar("T")
LIST_MAX = 1000


class Coordinator(Outside, Life, once.Verb, verb.Verb):
    """Transactions over several databases, from threads.

    `resources`: one URL or SQLAlchemy engine, or names with them. `journal`: the name of the resource whose database
    holds the journal (default: the first), or the URL or engine of a database of its own. `recovery`: run recovery in
    the background while open.
    `read_only`: answer questions, and take part in nothing; it opens on databases that were restored, too.
    """

    def __init__(
        self,
        resources: wiring.Resources,
        *,
        journal: wiring.Where | None = None,
        settings: Settings | None = None,
        recovery: bool = True,
        read_only: bool = False,
        observer: Observer | None = None,
        clock: Clock | None = None,
    ) -> None:
        anew = functools.partial(
            wiring.context, resources, journal=journal, settings=settings or Settings(), observer=observer, clock=clock
        )
        self._shell = ThreadShell()
        super().__init__(anew(shell=self._shell), self._shell, recovery=recovery, read_only=read_only, anew=anew)

    def _afresh(self) -> None:
        if self._ctx.closing and not self._opened:
            shell = ThreadShell()
            self._begin_anew(shell)
            self._shell = shell

    @classmethod
    def from_config(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        recovery: bool = True,
        read_only: bool = False,
        observer: Observer | None = None,
        clock: Clock | None = None,
        **overrides: Any,
    ) -> Self:
        """A coordinator as `nodoubt.toml` and the environment say; see `nodoubt.config`.

        `overrides`: what says more than both: `resources`, `journal`, or a setting by its name there (`grace="2m"`).
        Raises `UsageError`, with file, line and key.
        """
        config = for_program(path, overrides)
        return cls(
            config.urls(),
            journal=config.journal_url(),
            settings=config.settings,
            recovery=recovery,
            read_only=read_only,
            observer=observer,
            clock=clock,
        )

    def open(self) -> Self:
        """Check every database and start recovery. What was closed may be opened again.

        Raises `LineageBroken`, `ResourceRefused`, `ResourceUnavailable`.
        """
        if self._opened:
            raise ClosedTransaction("this coordinator is open already")
        self._afresh()
        try:
            self._shell.run(self._open_script())
        except BaseException:
            self._ctx.drop_idle()  # not closed: whoever waits for a server to boot opens it again
            raise
        self._opened = True
        try:
            self._begin_behind()
            return self
        except BaseException:
            self.close()  # half of what runs behind would be taken for the whole of it
            raise

    def close(self) -> None:
        """Let what is under way finish, write the last ends, and close every session."""
        if not self._opened:
            self._ctx.closing = True
            self._close_pools()  # `setup` and `adopt` work on a coordinator that was never opened
            return
        self._ctx.closing = True
        self._shell.run(verbs.wait_for_live(self._ctx, CLOSE_WAIT_S))
        self._shell.stop()
        try:
            if self._not_ready is None:
                self._shell.run(ends.flush(self._ctx))
        except NoDoubtError:
            pass  # the next sweep of anybody proves them again
        finally:
            self._opened = False
            self._close_pools()

    def _close_pools(self) -> None:
        for participant in self._ctx.participants.values():
            participant.pool.close()
            participant.reserve.close()
        self._ctx.journal_pool.close()
        self._shell.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()

    def setup(self, *, migrate: bool = False) -> None:
        """Create our tables where there are none. Idempotent.

        Raises `ResourceRefused`, `LineageBroken`, `SchemaMismatch`.
        `migrate`: bring those of an older release up to this one, as `nodoubt schema apply` does; never done unasked.
        """
        self._afresh()
        self._shell.run(self._setup_script(migrate=migrate))

    def adopt(self, name: str) -> None:
        """Take a cloned or restored database as it is now. Only after a human has looked (I15).

        Call it, like `setup`, on a coordinator that is not open: to open it would raise `LineageBroken`.
        """
        self._afresh()
        self._shell.run(start.adopt(self._ctx, name))

    def drop(self, name: str, *, gone: bool = False) -> Dropped:
        """Forget a database, by name or resource id, for good: it takes part no more, and its data stay.

        `gone`: it does not exist any more. No coordinator may be at work with it. As `adopt`, for one that is not open.
        Raises `ResourceRefused` while it is needed, `ResourceUnavailable`, `JournalUnavailable` (do it again).
        """
        self._afresh()
        return self._shell.run(leaving.drop(self._ctx, name, gone=gone))

    def transaction(
        self, name: str | None = None, *, timeout: float | None = None, wait: Wait = "applied"
    ) -> Transaction:
        """A block that commits everywhere as it ends, or nowhere. `timeout`: seconds for the work.

        Raises `TransactionAborted` (nothing happened), `InDoubt` (ask later), and what the work raises, unchanged.
        """
        ctx = self._writable()

        def beginning() -> Attempt:
            return verbs.begin_now(ctx, name, timeout)

        return Transaction(ctx, self._shell, beginning, wait)

    @overload
    def begin_distributed(
        self,
        name: str,
        work: None = None,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        metadata: dict[str, str] | None = None,
        reuse: bool = False,
        confirmations: Collection[str] = (),
    ) -> Transaction: ...
    @overload
    def begin_distributed(
        self,
        name: str,
        work: Callable[[Transaction], T],
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        metadata: dict[str, str] | None = None,
        reuse: bool = False,
        confirmations: Collection[str] = (),
    ) -> T: ...
    def begin_distributed(
        self,
        name: str,
        work: Callable[[Transaction], T] | None = None,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        metadata: dict[str, str] | None = None,
        reuse: bool = False,
        confirmations: Collection[str] = (),
    ) -> Transaction | T:
        """Stage work under a name: prepared everywhere when this returns, decided later by anybody.

        `timeout`: seconds for the work. `deadline`: seconds until recovery aborts it (default a day). `confirmations`:
        who must `confirm` before it can be committed. `reuse`: take the name of a transaction that has ended, and is
        reserved for the retention period. A begin that fails gives its name back, to others if nobody can have seen it
        staged. With `work`, returns what it returns; without, a block. Raises `DuplicateTransaction`, `InvalidName`,
        `TransactionAborted`.
        """
        ctx = self._writable()

        def beginning() -> Script[Attempt]:
            return verbs.begin_staged(
                ctx,
                name,
                timeout_s=timeout,
                deadline_s=deadline,
                metadata=metadata,
                reuse=reuse,
                confirmations=confirmations,
            )

        transaction = Transaction(ctx, self._shell, beginning, "applied")
        if work is None:
            return transaction
        with transaction:
            return done(work(transaction))

    def commit_distributed(self, name: str, *, attempt: str | None = None, wait: Wait = "applied") -> Result:
        """Commit a staged transaction, from any process. Repeating it returns the first outcome (I12).

        Raises `UnknownTransaction`, `OutcomeConflict` (it was aborted), `StillBeginning`, `NotReady` (somebody has not
        confirmed, or a step has not been answered), `InDoubt`, `JournalUnavailable`.
        """
        return self._shell.shielded(self._finish_script(name, Verdict.COMMIT, attempt, wait))

    def rollback_distributed(self, name: str, *, attempt: str | None = None, wait: Wait = "applied") -> Result:
        """Roll a staged transaction back, and undo its steps. Quiet where its begin failed in this process.

        That is for an `except` block: it means that begin, until this process commits by that name. If somebody else
        has the name since, say the `attempt`.
        Raises as `commit_distributed`.
        """
        return self._shell.shielded(self._finish_script(name, Verdict.ABORT, attempt, wait))

    def settle(self, attempt: str) -> Result:
        """How an attempt ended, for good: what `InDoubt` is followed by. If it has not ended, it is aborted now.

        Raises `InDoubt` (it is too old to tell), `ResourceUnavailable`, `JournalUnavailable` (try again), `UsageError`
        (it is staged and undecided, or a database where it may have committed is not among the resources).
        """
        return self._shell.shielded(self._settle_script(attempt))

    def status(self, name: str) -> TransactionRecord:
        """What the journal knows of a staged name, or of any attempt id. Raises `UnknownTransaction`."""
        return self._shell.run(questions.status(self._ready(), name))

    def transactions(
        self, *, state: State | str | None = None, older_than: float | None = None, limit: int = LIST_MAX
    ) -> list[TransactionRecord]:
        """Staged transactions, newest first. `state`: as in their `state` or `status`; `older_than`: begun more than so
        many seconds ago. Those that cannot be read are listed whatever is asked for.
        """
        return self._shell.run(questions.listing(self._ready(), state=state, older_than_s=older_than, limit=limit))

    def wait(self, name: str, *, timeout: float | None = None) -> TransactionRecord:
        """Wait until a transaction is decided and carried out everywhere. Raises `TimeoutError`."""
        return self._shell.run(questions.wait_until(self._ready(), name, timeout, lambda record: record.complete))

    def events(self, attempt: str) -> list[Event]:
        """The trail of an attempt."""
        return self._shell.run(self._events_script(attempt))

    def quarantined(self) -> list[Quarantined]:
        """What recovery must not resolve by itself, and no operator has cleared."""
        return self._shell.run(self._quarantined_script())

    def unreadable(self) -> list[Unreadable]:
        """Rows of the journal that cannot be read, of all that is not over: nothing that hangs on one is done."""
        return self._shell.run(self._unreadable_script())

    def clear_quarantined(self, attempt: str, branch: int, *, by: str) -> None:
        """A named operator has looked at a quarantined branch, and takes it off the list (I17)."""
        self._shell.run(self._clear_script(attempt, branch, by))

    def recover(self, *, grace: float | None = None) -> SweepReport:
        """One sweep of recovery, now, and one turn at what is to be undone.

        `grace`: seconds an undecided branch is left alone (default: the settings').
        """
        return self._shell.run(self._sweep_script(grace))


class AsyncCoordinator(AsyncOutside, Life, once.AsyncVerb, verb.AsyncVerb):
    """Transactions over several databases, on asyncio. The verbs and arguments of `Coordinator`."""

    def __init__(
        self,
        resources: wiring.Resources,
        *,
        journal: wiring.Where | None = None,
        settings: Settings | None = None,
        recovery: bool = True,
        read_only: bool = False,
        observer: Observer | None = None,
        clock: Clock | None = None,
    ) -> None:
        anew = functools.partial(
            wiring.context, resources, journal=journal, settings=settings or Settings(), observer=observer, clock=clock
        )
        self._shell = AsyncShell()
        super().__init__(anew(shell=self._shell), self._shell, recovery=recovery, read_only=read_only, anew=anew)

    def _afresh(self) -> None:
        if self._ctx.closing and not self._opened:
            shell = AsyncShell()
            self._begin_anew(shell)
            self._shell = shell

    @classmethod
    def from_config(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        recovery: bool = True,
        read_only: bool = False,
        observer: Observer | None = None,
        clock: Clock | None = None,
        **overrides: Any,
    ) -> Self:
        """As `Coordinator.from_config`."""
        config = for_program(path, overrides)
        return cls(
            config.urls(),
            journal=config.journal_url(),
            settings=config.settings,
            recovery=recovery,
            read_only=read_only,
            observer=observer,
            clock=clock,
        )

    async def open(self) -> Self:
        """As `Coordinator.open`. It works in the event loop in which it was opened, and in no other."""
        if self._opened:
            self._require_loop()
            raise ClosedTransaction("this coordinator is open already")
        self._afresh()
        try:
            await self._shell.run(self._open_script())
        except BaseException:
            self._ctx.drop_idle()  # not closed: whoever waits for a server to boot opens it again
            raise
        self._opened = True
        self._begin_behind()
        return self

    async def close(self) -> None:
        """As `Coordinator.close`."""
        if not self._opened:
            self._ctx.closing = True
            await self._close_pools()  # `setup` and `adopt` work on a coordinator that was never opened
            return
        if self._loop is not None and self._loop.is_closed():
            self._drop()
            return
        self._require_loop()
        self._ctx.closing = True
        await self._shell.run(verbs.wait_for_live(self._ctx, CLOSE_WAIT_S))
        await self._shell.stop()
        try:
            if self._not_ready is None:
                await self._shell.run(ends.flush(self._ctx))
        except NoDoubtError:
            pass  # the next sweep of anybody proves them again
        finally:
            self._opened = False
            await self._close_pools()

    def _begin_behind(self) -> None:
        self._loop = asyncio.get_running_loop()
        super()._begin_behind()

    def _ready(self) -> Context:
        ctx = super()._ready()
        self._require_loop()
        return ctx

    def _require_loop(self) -> None:
        """Raises `UsageError`. Its connections, and what runs behind, belong to one event loop."""
        if self._loop is not None and asyncio._get_running_loop() not in (None, self._loop):
            raise UsageError(
                "this coordinator was opened in another event loop, and works in that one only; nothing was done. Each "
                "asyncio.run() has a loop of its own, and so has each test by default: close it at the end of the one, "
                "and open it in the other"
            )

    def _drop(self) -> None:
        """Its loop has ended, and with it whatever ran there: recovery finishes what is left."""
        self._ctx.closing, self._opened = True, False
        self._ctx.drop_idle()

    async def _close_pools(self) -> None:
        for participant in self._ctx.participants.values():
            await participant.pool.close()
            await participant.reserve.close()
        await self._ctx.journal_pool.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        await self.close()

    async def setup(self, *, migrate: bool = False) -> None:
        """As `Coordinator.setup`."""
        self._afresh()
        await self._shell.run(self._setup_script(migrate=migrate))

    async def adopt(self, name: str) -> None:
        """As `Coordinator.adopt`."""
        self._afresh()
        await self._shell.run(start.adopt(self._ctx, name))

    async def drop(self, name: str, *, gone: bool = False) -> Dropped:
        """As `Coordinator.drop`."""
        self._afresh()
        return await self._shell.run(leaving.drop(self._ctx, name, gone=gone))

    def transaction(
        self, name: str | None = None, *, timeout: float | None = None, wait: Wait = "applied"
    ) -> AsyncTransaction:
        """As `Coordinator.transaction`."""
        ctx = self._writable()

        def beginning() -> Attempt:
            return verbs.begin_now(ctx, name, timeout)

        return AsyncTransaction(ctx, self._shell, beginning, wait)

    def begin_distributed(
        self,
        name: str,
        work: Callable[[AsyncTransaction], Awaitable[T]] | None = None,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        metadata: dict[str, str] | None = None,
        reuse: bool = False,
        confirmations: Collection[str] = (),
    ) -> Staging[T]:
        """As `Coordinator.begin_distributed`: await it with `work`, or enter it as a block."""
        ctx = self._writable()

        def beginning() -> Script[Attempt]:
            return verbs.begin_staged(
                ctx,
                name,
                timeout_s=timeout,
                deadline_s=deadline,
                metadata=metadata,
                reuse=reuse,
                confirmations=confirmations,
            )

        return Staging(AsyncTransaction(ctx, self._shell, beginning, "applied"), work)

    async def commit_distributed(self, name: str, *, attempt: str | None = None, wait: Wait = "applied") -> Result:
        """As `Coordinator.commit_distributed`."""
        return await self._shell.shielded(self._finish_script(name, Verdict.COMMIT, attempt, wait))

    async def rollback_distributed(self, name: str, *, attempt: str | None = None, wait: Wait = "applied") -> Result:
        """As `Coordinator.rollback_distributed`."""
        return await self._shell.shielded(self._finish_script(name, Verdict.ABORT, attempt, wait))

    async def settle(self, attempt: str) -> Result:
        """As `Coordinator.settle`."""
        return await self._shell.shielded(self._settle_script(attempt))

    async def status(self, name: str) -> TransactionRecord:
        """As `Coordinator.status`."""
        return await self._shell.run(questions.status(self._ready(), name))

    async def transactions(
        self, *, state: State | str | None = None, older_than: float | None = None, limit: int = LIST_MAX
    ) -> list[TransactionRecord]:
        """As `Coordinator.transactions`."""
        return await self._shell.run(
            questions.listing(self._ready(), state=state, older_than_s=older_than, limit=limit)
        )

    async def wait(self, name: str, *, timeout: float | None = None) -> TransactionRecord:
        """As `Coordinator.wait`."""
        return await self._shell.run(questions.wait_until(self._ready(), name, timeout, lambda record: record.complete))

    async def events(self, attempt: str) -> list[Event]:
        """As `Coordinator.events`."""
        return await self._shell.run(self._events_script(attempt))

    async def quarantined(self) -> list[Quarantined]:
        """As `Coordinator.quarantined`."""
        return await self._shell.run(self._quarantined_script())

    async def unreadable(self) -> list[Unreadable]:
        """As `Coordinator.unreadable`."""
        return await self._shell.run(self._unreadable_script())

    async def clear_quarantined(self, attempt: str, branch: int, *, by: str) -> None:
        """As `Coordinator.clear_quarantined`."""
        await self._shell.run(self._clear_script(attempt, branch, by))

    async def recover(self, *, grace: float | None = None) -> SweepReport:
        """As `Coordinator.recover`."""
        return await self._shell.run(self._sweep_script(grace))
