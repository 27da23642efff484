"""The handles a user holds while a block is open: a transaction and its branches, sync and async.

Guarantees: an exception in the block rolls back and comes out unchanged; what fails while rolling back is attached
to it as a note, never in its place. After the block the handle is dead. The end of the block runs shielded from
the caller's cancellation (I18). On asyncio, a block in which something was asked for and never awaited is rolled back.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, ParamSpec, Self, TypeVar, cast

from .engine import attempt as attempts
from .engine import verbs
from .engine.attempt import Attempt
from .engine.context import Context
from .engine.phases import raise_for, to_end
from .engine.questions import State
from .engine.shell import AsyncShell, ThreadShell
from .engine.verbs import Result, Wait
from .errors import ClosedTransaction, TransactionAborted, UsageError
from .ports import Reply
from .query import Kind, Runner, Verbs
from .script import Script
from .steps import REGISTRY, Compensation, Step, calling, ledger, running, undoing
from .steps.undoing import Hand

if TYPE_CHECKING:
    from .alchemy import types as alchemy
    from .alchemy.parts import AsyncParts, Outcome, Parts

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")
HOLD_TURNS = 4  # within the time after which others would take a process that has called steps for dead
Beginning = Callable[[], Attempt | Script[Attempt]]


def require_wait(wait: str) -> None:
    """Raises `UsageError`."""
    if wait not in ("applied", "decided"):
        raise UsageError(f'wait is "applied" or "decided", not {wait!r}')


def done(answer: T) -> T:
    """What the caller's function has returned. Raises `UsageError` if its work is still to be done by somebody."""
    if inspect.isawaitable(answer) or inspect.isgenerator(answer) or inspect.isasyncgen(answer):
        if inspect.iscoroutine(answer):
            answer.close()
        raise UsageError(
            f"the work to do returned a {type(answer).__name__}, and has done nothing: give a Coordinator an ordinary "
            "function that works and returns, or use an AsyncCoordinator"
        )
    return answer


async def awaited(answer: Awaitable[T]) -> T:
    """What the caller's asynchronous function returns. Raises `UsageError` if it is none."""
    if not inspect.isawaitable(answer):
        raise UsageError(
            f"the work to do returned a {type(answer).__name__}, which cannot be awaited: write it as async def, and "
            "await its statements"
        )
    return await answer


class Reminder:
    """Warns, as Python does of a coroutine, if what was given work to do goes without having been awaited."""

    def __init__(self, what: str, work: object) -> None:
        self.what, self.over = what, work is None

    def __del__(self) -> None:
        if not self.over:
            warnings.warn(f"{self.what} was never awaited: nothing of it was done", RuntimeWarning, stacklevel=2)


class _Handle:
    """What both kinds share: the names, and what has become of the transaction."""

    _calls_by: ClassVar[running.Runner]  # what runs its steps, and their compensations

    def __init__(self, ctx: Context, beginning: Beginning, wait: Wait) -> None:
        require_wait(wait)
        self._ctx, self._beginning, self._wait = ctx, beginning, wait
        self._attempt: Attempt | None = None
        self.result: Result | None = None  # set when the block has ended well
        self._taken_back = False  # the block has failed, and its work was taken back: a commit was never asked for

    @property
    def _open(self) -> Attempt:
        if self._attempt is None:
            raise ClosedTransaction("use the transaction inside its with block")
        return self._attempt

    @property
    def attempt(self) -> str:
        """The attempt's id: what `status` and `nodoubt show` take, and what makes a name exact."""
        return self._open.id

    @property
    def name(self) -> str:
        """The transaction's name; "" if it has none."""
        return self._open.name

    def _hand(self) -> Hand:
        return Hand(self._ctx, REGISTRY, self._calls_by)

    def _only(self) -> str:
        if not self._ctx.single:
            raise UsageError(f'say which resource: tx["…"], one of {", ".join(self._ctx.participants)}')
        return next(iter(self._ctx.participants))

    def _kind(self, name: str) -> Kind:
        return cast(Kind, self._ctx.participant(name).resource.traits.kind)


def _note(error: BaseException, failure: Exception) -> None:
    error.add_note(f"nodoubt: rolling back failed too, recovery will finish it: {failure}")


def _finish(
    ctx: Context, shell: ThreadShell | AsyncShell, attempt: Attempt, wait: Wait, hand: Callable[[], Hand]
) -> Script[Result]:
    """One script, so that a caller who is cancelled in it leaves behind the whole of it, not half."""
    try:
        course = yield from verbs.finish_work(ctx, attempt)
        if wait == "applied" or (attempt.calls and verbs.result_of(course).state is State.ABORTED):
            return (yield from verbs.complete(ctx, course))
        shell.behind(to_end(ctx, course))
        raise_for(course)
        return verbs.result_of(course)
    except Exception as error:
        if attempt.calls:
            yield from _undo(hand(), attempt, error)
        raise
    finally:
        ctx.holding.discard(attempt.id)


def _take_back(ctx: Context, attempt: Attempt, error: BaseException, hand: Callable[[], Hand]) -> Script[None]:
    """The block has failed: take its work back, then undo its steps."""
    try:
        yield from verbs.abandon(ctx, attempt)
        if attempt.calls and not attempt.inherited:
            yield from _undo(hand(), attempt, error)
    finally:
        ctx.holding.discard(attempt.id)


def _undo(hand: Hand, attempt: Attempt, error: BaseException) -> Script[None]:
    """Only if the register says ABORT: after an error that leaves that open nothing is undone."""
    if not attempt.aborted:
        error.add_note(f"nodoubt: the steps of {attempt.id} are left to recovery, which asks the register first")
        return
    hand.mine = attempt.calling == 0
    left = yield from undoing.undo_quietly(hand, attempt.id)
    if left:
        error.add_note(f"nodoubt: {left} steps of {attempt.id} are not undone yet: see nodoubt steps show {attempt.id}")


def _hold(ctx: Context, shell: ThreadShell | AsyncShell) -> None:
    """From the first step on, tell others now and then that this process is alive."""
    if not ctx.beating:
        ctx.beating = True
        try:
            shell.loop("holding", lambda: ledger.hold(ctx), ctx.settings.grace_s / HOLD_TURNS)
        except BaseException:
            ctx.beating = False
            raise


class Branch(Verbs[Reply, int]):
    """One resource's share of a transaction: `tx["orders"]`."""

    def __init__(self, transaction: Transaction, name: str) -> None:
        self._transaction, self._name = transaction, name

    def execute(self, statement: str | alchemy.Executable, params: Any = None) -> Reply:
        """Run a statement; begins the branch if this is its first.

        A text goes to the driver as it is, with the driver's own placeholders. A statement of SQLAlchemy's is compiled
        for this database, once; `params` is then a mapping, or a list of them.

        Returns the rows (as mappings) and the count. Raises the driver's own error (SQLAlchemy's, of a statement of
        SQLAlchemy's), after which the branch can only be rolled back (I16); `BranchDoomed`, `ClosedTransaction`,
        `UsageError`, `ResourceUnavailable`.
        """
        return self._transaction._execute(self._name, statement, params)

    @property
    def connection(self) -> alchemy.Connection:
        """SQLAlchemy's connection, in this transaction. Its `commit` is refused, its `rollback` rolls back all."""
        return self._transaction._parts().connection(self._name)

    def session(self, maker: alchemy.sessionmaker[Any] | None = None, /, **options: Any) -> alchemy.Session:
        """An ORM session, in this transaction; flushed as the block ends, before the votes.

        `maker`: your sessionmaker, for its class and options (not for its engine). `options`: those of
        `sqlalchemy.orm.Session`, and `class_`.
        """
        return self._transaction._parts().session(self._name, maker, options)

    def _runner(self) -> Runner[Reply, int]:
        return Runner(self._transaction._kind(self._name), self.execute, self._count)

    def _count(self, statement: Any) -> int:
        return self.execute(statement).count


class Transaction(_Handle, Verbs[Reply, int]):
    """A transaction in a `with` block. Threads may work on its branches, one on each at a time."""

    _calls_by = running.BLOCKING

    def __init__(self, ctx: Context, shell: ThreadShell, beginning: Beginning, wait: Wait) -> None:
        super().__init__(ctx, beginning, wait)
        self._shell = shell
        self._alchemy: Parts | None = None  # made when SQLAlchemy is first spoken

    def __getitem__(self, name: str) -> Branch:
        self._ctx.participant(name)
        return Branch(self, name)

    def execute(self, statement: str | alchemy.Executable, params: Any = None) -> Reply:
        """With one resource: its `Branch.execute`."""
        return self._execute(self._only(), statement, params)

    @property
    def connection(self) -> alchemy.Connection:
        """With one resource: its `Branch.connection`."""
        return self._parts().connection(self._only())

    def session(self, maker: alchemy.sessionmaker[Any] | None = None, /, **options: Any) -> alchemy.Session:
        """With one resource: its `Branch.session`."""
        return self._parts().session(self._only(), maker, options)

    def _runner(self) -> Runner[Reply, int]:
        return self[self._only()]._runner()

    def _execute(self, name: str, statement: Any, params: Any) -> Reply:
        if isinstance(statement, str):
            return self._shell.run(attempts.execute(self._ctx, self._open, name, statement, params))
        return self._parts().execute(name, statement, params)

    def _parts(self) -> Parts:
        if self._alchemy is None:
            from .alchemy.parts import Parts

            self._open.require_ours()
            with self._open.lock:  # two would each flush but their own sessions
                self._alchemy = self._alchemy or Parts(self._ctx, self._open, self._shell)
        return self._alchemy

    def call(
        self,
        step: Step[..., Any, R],
        *args: Any,
        undo: Compensation[..., Any] | None = None,
        timeout: float | None = None,
        key: str | None = None,
        **named: Any,
    ) -> R:
        """Call a step outside, in this transaction: if it is aborted, however it comes to that, `undo` runs.

        `step` and `undo` are declared by `@nodoubt.step` and `@nodoubt.compensation`; `undo` takes those of the step's
        arguments that it names. `timeout`: seconds. `key`: what the call is known by in this transaction, the step's
        name if not said; called again under it, the step is not done again.

        Arguments and results are stored in the journal as they are: pass ids and tokens, not secrets.

        Returns what the step returns. Its own errors come out unchanged; but for those that it declares as `refused`,
        they leave open whether it happened, so the transaction can only be rolled back. Raises `StepTimedOut`,
        `TransactionDoomed`, `StepRefused`, `TransactionAborted`, `BranchDoomed`, `JournalUnavailable`, `UsageError`.

        An `async` step gets an event loop of its own here: it must bring its own clients.
        """
        use = calling.use(step, args, named, undo=undo, timeout_s=timeout, key=key)
        _hold(self._ctx, self._shell)
        return cast(R, self._shell.run(calling.call(self._ctx, self._open, self._calls_by, use)))

    def __enter__(self) -> Self:
        if self._attempt is not None:
            raise ClosedTransaction("a transaction's block is entered once; begin another transaction")
        begun = self._beginning()
        self._attempt = begun if isinstance(begun, Attempt) else self._shell.run(begun)
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        try:
            self._end(error)
        except BaseException as failure:
            # A signal's handler has raised before the end had begun: it would stay open, with its locks, for good.
            if not self._open.closed:
                self._abandon(failure)
            raise

    def _end(self, error: BaseException | None) -> None:
        if error is not None:
            self._abandon(error)
            return
        try:
            if self._alchemy is not None:
                self._alchemy.flush()
        except BaseException as failure:
            self._abandon(failure)
            raise
        outcome: Outcome = "open"
        try:
            self.result = self._shell.shielded(_finish(self._ctx, self._shell, self._open, self._wait, self._hand))
            outcome = "committed" if self.result.state is State.COMMITTED else "open"
        except TransactionAborted:
            outcome = "rolled back"
            raise
        finally:
            if self._alchemy is not None:
                self._alchemy.ended(outcome)

    def _abandon(self, error: BaseException) -> None:
        try:
            self._shell.shielded(_take_back(self._ctx, self._open, error, self._hand))
        except Exception as failure:
            _note(error, failure)
        self._taken_back = True
        if self._alchemy is not None:
            self._alchemy.ended("rolled back")


class AsyncBranch(Verbs[Coroutine[Any, Any, Reply], Coroutine[Any, Any, int]]):
    """One resource's share of a transaction: `tx["orders"]`."""

    def __init__(self, transaction: AsyncTransaction, name: str) -> None:
        self._transaction, self._name = transaction, name

    def execute(self, statement: str | alchemy.Executable, params: Any = None) -> Coroutine[Any, Any, Reply]:
        """As `Branch.execute`; to be awaited before the block ends, which otherwise rolls back."""
        return self._transaction._asked(self._transaction._execute, self._name, statement, params)

    @property
    def connection(self) -> alchemy.AsyncConnection:
        """As `Branch.connection`."""
        return self._transaction._parts().connection(self._name)

    def session(self, maker: alchemy.async_sessionmaker[Any] | None = None, /, **options: Any) -> alchemy.AsyncSession:
        """As `Branch.session`, with the options of `sqlalchemy.ext.asyncio.AsyncSession`."""
        return self._transaction._parts().session(self._name, maker, options)

    def _runner(self) -> Runner[Coroutine[Any, Any, Reply], Coroutine[Any, Any, int]]:
        return Runner(self._transaction._kind(self._name), self.execute, self._count)

    def _count(self, statement: Any) -> Coroutine[Any, Any, int]:
        return self._transaction._asked(self._transaction._counted, self._name, statement)


class AsyncTransaction(_Handle, Verbs[Coroutine[Any, Any, Reply], Coroutine[Any, Any, int]]):
    """A transaction in an `async with` block."""

    _calls_by = running.LOOPING

    def __init__(self, ctx: Context, shell: AsyncShell, beginning: Beginning, wait: Wait) -> None:
        super().__init__(ctx, beginning, wait)
        self._shell = shell
        self._alchemy: AsyncParts | None = None  # made when SQLAlchemy is first spoken
        self._unawaited = 0  # so many statements and steps were asked for, and not begun

    def __getitem__(self, name: str) -> AsyncBranch:
        self._ctx.participant(name)
        return AsyncBranch(self, name)

    def execute(self, statement: str | alchemy.Executable, params: Any = None) -> Coroutine[Any, Any, Reply]:
        """With one resource: its `AsyncBranch.execute`."""
        return self._asked(self._execute, None, statement, params)

    @property
    def connection(self) -> alchemy.AsyncConnection:
        """With one resource: its `AsyncBranch.connection`."""
        return self._parts().connection(self._only())

    def session(self, maker: alchemy.async_sessionmaker[Any] | None = None, /, **options: Any) -> alchemy.AsyncSession:
        """With one resource: its `AsyncBranch.session`."""
        return self._parts().session(self._only(), maker, options)

    def _runner(self) -> Runner[Coroutine[Any, Any, Reply], Coroutine[Any, Any, int]]:
        return self[self._only()]._runner()

    def _asked(self, body: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """What the caller has to await. A statement that never is would be missing from what commits."""
        self._unawaited += 1
        return self._awaited(body, *args, **kwargs)

    async def _awaited(self, body: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> R:
        self._unawaited -= 1
        return await body(*args, **kwargs)

    def _execute(self, name: str | None, statement: Any, params: Any) -> Coroutine[Any, Any, Reply]:
        """`name`: None if there is one resource only."""
        name = self._only() if name is None else name
        if isinstance(statement, str):
            return self._shell.run(attempts.execute(self._ctx, self._open, name, statement, params))
        return self._parts().execute(name, statement, params)

    async def _counted(self, name: str, statement: Any) -> int:
        return (await self._execute(name, statement, None)).count

    def _parts(self) -> AsyncParts:
        if self._alchemy is None:
            from .alchemy.parts import AsyncParts

            self._alchemy = AsyncParts(self._ctx, self._open, self._shell)
        return self._alchemy

    def call(
        self,
        step: Step[..., Any, R],
        *args: Any,
        undo: Compensation[..., Any] | None = None,
        timeout: float | None = None,
        key: str | None = None,
        **named: Any,
    ) -> Coroutine[Any, Any, R]:
        """As `Transaction.call`. An `async` step runs on this event loop, an ordinary function in a thread."""

        async def called() -> R:
            use = calling.use(step, args, named, undo=undo, timeout_s=timeout, key=key)
            _hold(self._ctx, self._shell)
            return cast(R, await self._shell.run(calling.call(self._ctx, self._open, self._calls_by, use)))

        return self._asked(called)

    async def __aenter__(self) -> Self:
        if self._attempt is not None:
            raise ClosedTransaction("a transaction's block is entered once; begin another transaction")
        begun = self._beginning()
        self._attempt = begun if isinstance(begun, Attempt) else await self._shell.run(begun)
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        if error is not None:
            await self._abandon(error)
            return
        try:
            self._require_awaited()
            if self._alchemy is not None:
                await self._alchemy.flush()
        except BaseException as failure:
            await self._abandon(failure)
            raise
        outcome: Outcome = "open"
        try:
            self.result = await self._shell.shielded(
                _finish(self._ctx, self._shell, self._open, self._wait, self._hand)
            )
            outcome = "committed" if self.result.state is State.COMMITTED else "open"
        except TransactionAborted:
            outcome = "rolled back"
            raise
        finally:
            if self._alchemy is not None:
                await self._alchemy.ended(outcome)

    def _require_awaited(self) -> None:
        """Before the votes. Raises `TransactionAborted`."""
        if self._unawaited:
            name, attempt = self._open.name, self._open.id
            raise TransactionAborted(
                f"{name or attempt!r} is rolled back everywhere: {self._unawaited} of its statements, or steps, were "
                "never awaited, so they were not done: write await before each",
                name=name,
                attempt=attempt,
            )

    async def _abandon(self, error: BaseException) -> None:
        try:
            await self._shell.shielded(_take_back(self._ctx, self._open, error, self._hand))
        except Exception as failure:
            _note(error, failure)
        self._taken_back = True
        if self._alchemy is not None:
            await self._alchemy.ended("rolled back")


class Staging(Generic[T]):
    """What `AsyncCoordinator.begin_distributed` returns: await it (with a callback), or enter it as a block."""

    def __init__(self, transaction: AsyncTransaction, work: Callable[[AsyncTransaction], Awaitable[T]] | None) -> None:
        self._transaction, self._work = transaction, work
        self._reminder = Reminder("begin_distributed(name, work)", work)

    def __await__(self) -> Generator[Any, None, T]:
        self._reminder.over = True
        return self._call().__await__()

    async def _call(self) -> T:
        if self._work is None:
            raise UsageError(
                "give begin_distributed the work to do, or enter it: async with db.begin_distributed(name)"
            )
        async with self._transaction as transaction:
            return await awaited(self._work(transaction))

    async def __aenter__(self) -> AsyncTransaction:
        if self._work is not None:
            raise UsageError("begin_distributed with a callback is awaited, not entered")
        return await self._transaction.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transaction.__aexit__(kind, error, trace)
