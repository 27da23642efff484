"""A transaction that carries a row of ours: the block around it, sync and async.

What stands on it says how the transaction begins, and which row it ends with: an idempotency key's, a job's checkpoint.

Guarantees: the row is settled before the votes, in the very transaction; if it cannot be, the work is rolled back.
"""

from __future__ import annotations

from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

from ..engine import verbs
from ..engine.attempt import Attempt
from ..engine.context import Context
from ..engine.shell import AsyncShell, ThreadShell
from ..engine.verbs import Result, Wait
from ..errors import ClosedTransaction, TransactionAborted
from ..ports import Reply
from ..script import Script
from ..transaction import AsyncBranch, AsyncTransaction, Branch, Transaction


class Carrying:
    """What both kinds share."""

    def __init__(self, ctx: Context, shell: Any, wait: Wait) -> None:
        self._ctx, self._shell, self._wait = ctx, shell, wait
        self._attempt: Attempt | None = None

    def _take(self) -> Script[Attempt | None]:
        """An attempt that may write the row. None: there is nothing to do in this block."""
        raise NotImplementedError

    def _carry(self, attempt: Attempt) -> None:
        """The block has ended well: have the attempt end with the row."""
        raise NotImplementedError

    def _cut_off(self, attempt: Attempt, error: BaseException) -> None:
        """How the transaction ends was not waited for, or is in doubt: `error` comes out of the block."""

    def _drop(self) -> None:
        """The block is over, however it ended."""

    def _no_work(self) -> ClosedTransaction:
        raise NotImplementedError

    def _begin(self) -> Script[None]:
        self._attempt = yield from self._take()

    def _begun(self) -> Script[Attempt]:
        yield from ()
        assert self._attempt is not None
        return self._attempt


class Block(Carrying):
    """From threads."""

    _shell: ThreadShell
    _tx: Transaction | None = None

    @property
    def tx(self) -> Transaction:
        """The transaction to work in. Raises `ClosedTransaction` where there is none."""
        if self._tx is None:
            raise self._no_work()
        return self._tx

    @property
    def result(self) -> Result | None:
        """How the transaction ended; None if there was none."""
        return None if self._tx is None else self._tx.result

    def __getitem__(self, name: str) -> Branch:
        return self.tx[name]

    def execute(self, statement: Any, params: Any = None) -> Reply:
        """With one resource: as `Transaction.execute`."""
        return self.tx.execute(statement, params)

    def __enter__(self) -> Self:
        try:
            self._shell.run(self._begin())
            if self._attempt is not None:
                self._tx = Transaction(self._ctx, self._shell, self._begun, self._wait).__enter__()
        except BaseException:
            if self._attempt is not None:  # a signal's handler: nobody will be in the block, and end it
                self._shell.shielded(verbs.abandon(self._ctx, self._attempt))
                self._drop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tx is None:
            return
        assert self._attempt is not None
        try:
            if error is None:
                try:
                    self._carry(self._attempt)
                except BaseException as failure:
                    self._end(self._tx, type(failure), failure, failure.__traceback__)
                    raise
            self._end(self._tx, kind, error, trace)
        except BaseException as failure:
            if not self._attempt.closed:  # as in `Transaction.__exit__`
                self._end(self._tx, type(failure), failure, failure.__traceback__)
            raise
        finally:
            self._drop()

    def _end(
        self,
        tx: Transaction,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._attempt is not None
        try:
            tx.__exit__(kind, error, trace)
        except BaseException as left:
            if not (tx._taken_back or isinstance(left, TransactionAborted)):
                self._cut_off(self._attempt, left)
            raise


class AsyncBlock(Carrying):
    """On asyncio."""

    _shell: AsyncShell
    _tx: AsyncTransaction | None = None

    @property
    def tx(self) -> AsyncTransaction:
        """As `Block.tx`."""
        if self._tx is None:
            raise self._no_work()
        return self._tx

    @property
    def result(self) -> Result | None:
        """As `Block.result`."""
        return None if self._tx is None else self._tx.result

    def __getitem__(self, name: str) -> AsyncBranch:
        return self.tx[name]

    def execute(self, statement: Any, params: Any = None) -> Coroutine[Any, Any, Reply]:
        """As `Block.execute`."""
        return self._refused() if self._tx is None else self._tx.execute(statement, params)

    async def _refused(self) -> Reply:
        raise self._no_work()

    async def __aenter__(self) -> Self:
        await self._shell.run(self._begin())
        if self._attempt is not None:
            self._tx = await AsyncTransaction(self._ctx, self._shell, self._begun, self._wait).__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tx is None:
            return
        assert self._attempt is not None
        try:
            if error is None:
                try:
                    self._carry(self._attempt)
                except BaseException as failure:
                    await self._end(self._tx, type(failure), failure, failure.__traceback__)
                    raise
            await self._end(self._tx, kind, error, trace)
        finally:
            self._drop()

    async def _end(
        self,
        tx: AsyncTransaction,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._attempt is not None
        try:
            await tx.__aexit__(kind, error, trace)
        except BaseException as left:
            if not (tx._taken_back or isinstance(left, TransactionAborted)):
                self._cut_off(self._attempt, left)
            raise
