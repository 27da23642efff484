"""`db.once(key, payload)`: a transaction that happens once, as a block or with the work to do; sync and async.

Guarantees: the block's transaction carries the key's row, or the block has none: what is done already cannot be done
again in it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Any, Self, TypeVar

from ..engine import verbs
from ..engine.attempt import Attempt
from ..engine.context import Context
from ..engine.shell import AsyncShell, ThreadShell
from ..engine.verbs import Result, Wait
from ..errors import ClosedTransaction, UsageError
from ..ports import Reply
from ..script import Script
from ..transaction import AsyncBranch, AsyncTransaction, Branch, Transaction, require_wait
from . import claims, keys
from .claims import Beginning, Wanted

T = TypeVar("T")


class _Once:
    """What both kinds share.

    `replayed`: it was done before, and `value` is what it had returned. Otherwise set `value` to what a repetition is
    to be told: JSON, read back as `returns`.
    """

    def __init__(self, ctx: Context, wanted: Wanted, beginning: Beginning, wait: Wait, returns: Any) -> None:
        self._ctx, self._wanted, self._beginning, self._wait, self._returns = ctx, wanted, beginning, wait, returns
        self._entered = False
        self._attempt: Attempt | None = None
        self.replayed = False
        self.value: Any = None

    def _enter(self) -> Script[None]:
        if self._entered:
            raise ClosedTransaction("a block of once() is entered once; call once() again")
        self._entered = True
        taken = yield from claims.take(self._ctx, self._wanted, self._beginning)
        if isinstance(taken, Attempt):
            self._attempt = taken
            return
        self.replayed, self.value = True, keys.value_of(taken.result, self._returns)

    def _begun(self) -> Script[Attempt]:
        yield from ()
        assert self._attempt is not None
        return self._attempt

    def _close(self) -> None:
        assert self._attempt is not None
        result = keys.stored(self.value)
        self.value = keys.value_of(result, self._returns)  # as a repetition will be told
        claims.close(self._ctx, self._attempt, self._wanted, result)

    def _drop(self) -> None:
        claims.drop(self._ctx, self._wanted)

    def _no_work(self) -> ClosedTransaction:
        if self.replayed:
            return ClosedTransaction(
                f"{self._wanted.key.key!r} was done before, so there is no transaction to work in: look at "
                "once.replayed, and take once.value"
            )
        return ClosedTransaction("use once() inside its with block")


class Once(_Once):
    """A block of `Coordinator.once`."""

    _tx: Transaction | None = None

    def __init__(
        self, ctx: Context, shell: ThreadShell, wanted: Wanted, beginning: Beginning, wait: Wait, returns: Any
    ) -> None:
        super().__init__(ctx, wanted, beginning, wait, returns)
        self._shell = shell

    @property
    def tx(self) -> Transaction:
        """The transaction to work in. Raises `ClosedTransaction` where the work was done before."""
        if self._tx is None:
            raise self._no_work()
        return self._tx

    @property
    def result(self) -> Result | None:
        """How the transaction ended; None if this was a replay."""
        return None if self._tx is None else self._tx.result

    def __getitem__(self, name: str) -> Branch:
        return self.tx[name]

    def execute(self, statement: Any, params: Any = None) -> Reply:
        """With one resource: as `Transaction.execute`."""
        return self.tx.execute(statement, params)

    def __enter__(self) -> Self:
        self._shell.run(self._enter())
        if not self.replayed:
            self._tx = Transaction(self._ctx, self._shell, self._begun, self._wait).__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tx is None:
            return
        try:
            if error is None:
                try:
                    self._close()
                except BaseException as failure:
                    self._tx.__exit__(type(failure), failure, failure.__traceback__)
                    raise
            self._tx.__exit__(kind, error, trace)
        finally:
            self._drop()


class AsyncOnce(_Once):
    """A block of `AsyncCoordinator.once`; or awaited, with the work to do."""

    _tx: AsyncTransaction | None = None

    def __init__(
        self, ctx: Context, shell: AsyncShell, wanted: Wanted, beginning: Beginning, wait: Wait, returns: Any
    ) -> None:
        super().__init__(ctx, wanted, beginning, wait, returns)
        self._shell = shell

    @property
    def tx(self) -> AsyncTransaction:
        """As `Once.tx`."""
        if self._tx is None:
            raise self._no_work()
        return self._tx

    @property
    def result(self) -> Result | None:
        """As `Once.result`."""
        return None if self._tx is None else self._tx.result

    def __getitem__(self, name: str) -> AsyncBranch:
        return self.tx[name]

    async def execute(self, statement: Any, params: Any = None) -> Reply:
        """As `Once.execute`."""
        return await self.tx.execute(statement, params)

    async def __aenter__(self) -> Self:
        await self._shell.run(self._enter())
        if not self.replayed:
            self._tx = await AsyncTransaction(self._ctx, self._shell, self._begun, self._wait).__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tx is None:
            return
        try:
            if error is None:
                try:
                    self._close()
                except BaseException as failure:
                    await self._tx.__aexit__(type(failure), failure, failure.__traceback__)
                    raise
            await self._tx.__aexit__(kind, error, trace)
        finally:
            self._drop()


class Doing:
    """What `AsyncCoordinator.once` returns: a block to enter, or, given the work, something to await."""

    def __init__(self, block: AsyncOnce, work: Callable[[AsyncTransaction], Awaitable[Any]] | None) -> None:
        self._block, self._work = block, work

    def __await__(self) -> Generator[Any, None, Any]:
        return self._call().__await__()

    async def _call(self) -> Any:
        if self._work is None:
            raise UsageError("give once() the work to do, or enter it: async with db.once(key, payload) as once")
        async with self._block as once:
            if not once.replayed:
                once.value = await self._work(once.tx)
        return once.value

    async def __aenter__(self) -> AsyncOnce:
        if self._work is not None:
            raise UsageError("once() with the work to do is awaited, not entered")
        return await self._block.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._block.__aexit__(kind, error, trace)


def wanted_of(ctx: Context, key: str, payload: Any, *, scope: str, on: str | None, keep: float | None) -> Wanted:
    """The arguments of `once`, checked before any work is done."""
    keep_s = ctx.settings.retention_s if keep is None else keep
    if keep_s <= 0:
        raise UsageError(f"a key is kept for more than zero seconds, not {keep!r}")
    return Wanted(keys.key_of(key, payload, scope), claims.place_of(ctx, on), keep_s)


def beginning_of(ctx: Context, *, timeout: float | None, staged: str | None, deadline: float | None) -> Beginning:
    """How its transaction begins: at once, or staged under a name."""
    if staged is None and deadline is not None:
        raise UsageError("a deadline is for staged work: once(key, payload, staged=name, deadline=…)")

    def at_once() -> Script[Attempt]:
        yield from ()
        return verbs.begin_now(ctx, None, timeout)

    def later() -> Script[Attempt]:
        assert staged is not None
        return verbs.begin_staged(ctx, staged, timeout_s=timeout, deadline_s=deadline, metadata=None, reuse=False)

    return at_once if staged is None else later


class Verb:
    """`once`, for `Coordinator`."""

    _shell: ThreadShell

    def _writable(self) -> Context:
        raise NotImplementedError

    def once(
        self,
        key: str,
        payload: Any = None,
        work: Callable[[Transaction], T] | None = None,
        *,
        scope: str = "",
        on: str | None = None,
        keep: float | None = None,
        returns: Any = Any,
        staged: str | None = None,
        deadline: float | None = None,
        timeout: float | None = None,
        wait: Wait = "applied",
    ) -> Any:
        """A transaction that happens at most once for this key; a repetition is told what the first had returned.

        `payload`: what is asked for, JSON or bytes; the key with another payload is refused. With `work`, returns what
        it returns (as JSON reads it back, into the type `returns`); without, a block: see `replayed`, set `value`.
        `scope`: keys of one scope (a tenant, an operation) are never another's. `on`: the database that keeps the key,
        with a branch of its own there; default: the one with the journal. `keep`: seconds that the key is kept at least
        (default: the retention). `staged`: stage the work under this name, as `begin_distributed`, `deadline` as there;
        until it is decided the key is in flight.

        Raises `KeyInFlight` (ask again), `KeyReused`, `UsageError`, and as `transaction` or `begin_distributed`.
        """
        ctx = self._writable()
        require_wait(wait)
        wanted = wanted_of(ctx, key, payload, scope=scope, on=on, keep=keep)
        beginning = beginning_of(ctx, timeout=timeout, staged=staged, deadline=deadline)
        block = Once(ctx, self._shell, wanted, beginning, wait, returns)
        if work is None:
            return block
        with block as once:
            if not once.replayed:
                once.value = work(once.tx)
        return once.value


class AsyncVerb:
    """`once`, for `AsyncCoordinator`."""

    _shell: AsyncShell

    def _writable(self) -> Context:
        raise NotImplementedError

    def once(
        self,
        key: str,
        payload: Any = None,
        work: Callable[[AsyncTransaction], Awaitable[Any]] | None = None,
        *,
        scope: str = "",
        on: str | None = None,
        keep: float | None = None,
        returns: Any = Any,
        staged: str | None = None,
        deadline: float | None = None,
        timeout: float | None = None,
        wait: Wait = "applied",
    ) -> Doing:
        """As `Coordinator.once`: await it with `work`, or enter it as a block."""
        ctx = self._writable()
        require_wait(wait)
        wanted = wanted_of(ctx, key, payload, scope=scope, on=on, keep=keep)
        beginning = beginning_of(ctx, timeout=timeout, staged=staged, deadline=deadline)
        return Doing(AsyncOnce(ctx, self._shell, wanted, beginning, wait, returns), work)
