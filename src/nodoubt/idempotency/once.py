"""`db.once(key, payload)`: a transaction that happens once, as a block or with the work to do; sync and async.

Guarantees: the block's transaction carries the key's row, or the block has none: what is done already cannot be done
again in it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Any, TypeVar

from ..engine import verbs
from ..engine.attempt import Attempt
from ..engine.context import Context, check_seconds
from ..engine.shell import AsyncShell, ThreadShell
from ..engine.verbs import Wait
from ..errors import ClosedTransaction, UsageError
from ..script import Script
from ..transaction import AsyncTransaction, Reminder, Transaction, awaited, done, require_wait
from . import blocks, claims, keys
from .claims import Beginning, Wanted

T = TypeVar("T")


class _Once(blocks.Carrying):
    """What both kinds share.

    `replayed`: it was done before, and `value` is what it had returned. Otherwise set `value` to what a repetition is
    to be told: JSON, read back as `returns`.
    """

    def __init__(
        self, ctx: Context, shell: Any, wanted: Wanted, beginning: Beginning, wait: Wait, returns: Any
    ) -> None:
        super().__init__(ctx, shell, wait)
        self._wanted, self._beginning, self._returns = wanted, beginning, returns
        self._entered = False
        self.replayed = False
        self.value: Any = None

    def _take(self) -> Script[Attempt | None]:
        if self._entered:
            raise ClosedTransaction("a block of once() is entered once; call once() again")
        self._entered = True
        taken = yield from claims.take(self._ctx, self._wanted, self._beginning)
        if isinstance(taken, Attempt):
            return taken
        self.replayed, self.value = True, keys.value_of(taken.result, self._returns)
        return None

    def _carry(self, attempt: Attempt) -> None:
        result = keys.stored(self.value)
        self.value = keys.value_of(result, self._returns)  # as a repetition will be told
        claims.close(self._ctx, attempt, self._wanted, result)

    def _drop(self) -> None:
        claims.drop(self._ctx, self._wanted)

    def _no_work(self) -> ClosedTransaction:
        if self.replayed:
            return ClosedTransaction(
                f"{self._wanted.key.key!r} was done before, so there is no transaction to work in: look at "
                "once.replayed, and take once.value"
            )
        return ClosedTransaction("use once() inside its with block")


class Once(_Once, blocks.Block):
    """A block of `Coordinator.once`."""


class AsyncOnce(_Once, blocks.AsyncBlock):
    """A block of `AsyncCoordinator.once`; or awaited, with the work to do."""


class Doing:
    """What `AsyncCoordinator.once` returns: a block to enter, or, given the work, something to await."""

    def __init__(self, block: AsyncOnce, work: Callable[[AsyncTransaction], Awaitable[Any]] | None) -> None:
        self._block, self._work = block, work
        self._reminder = Reminder("once(key, payload, work)", work)

    def __await__(self) -> Generator[Any, None, Any]:
        self._reminder.over = True
        return self._call().__await__()

    async def _call(self) -> Any:
        if self._work is None:
            raise UsageError("give once() the work to do, or enter it: async with db.once(key, payload) as once")
        async with self._block as once:
            if not once.replayed:
                once.value = await awaited(self._work(once.tx))
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
    keep_s = ctx.settings.retention_s if keep is None else check_seconds("what a key is kept for", keep)
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
                once.value = done(work(once.tx))
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
