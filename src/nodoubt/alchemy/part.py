"""One branch as SQLAlchemy sees it: the calls behind its face, its connection, its sessions.

Guarantees: every statement goes through `engine.attempt`, whatever of SQLAlchemy's it comes from; all sessions are
flushed before the block ends, that is before anybody votes; nothing works any more after it.

Must not: know which kind of database it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NoReturn, Self

from sqlalchemy import CursorResult, Executable, event
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.util.concurrency import await_, greenlet_spawn

from ..engine import attempt as attempts
from ..engine.attempt import Attempt
from ..engine.context import Context, Participant, bounded, log
from ..engine.shell import AsyncShell
from ..errors import BranchDoomed, NoDoubtError, UsageError
from ..ports import Bound, Reply, SavepointStep
from ..script import Script, do
from .connection import AsyncBranchConnection, BranchConnection
from .session import async_session_in, session_in

Outcome = Literal["committed", "rolled back", "open"]  # open: staged, or in doubt
_END: dict[Outcome, Callable[[Session], None]] = {
    "committed": Session.commit,
    "rolled back": Session.rollback,
    "open": Session.close,
}

Run = Callable[[Script[Any]], Any]


class Part:
    """A branch for threads; and, inside a greenlet, for asyncio (see `AsyncPart`)."""

    def __init__(self, ctx: Context, attempt: Attempt, participant: Participant, run: Run) -> None:
        assert participant.home is not None
        self.home = participant.home()
        self._ctx, self._attempt, self._participant, self._run = ctx, attempt, participant, run
        self._connection: BranchConnection | None = None
        self._sessions: list[Session] = []
        self._ending = False
        self.begun = False

    # -- what a face asks (see `face.Calls`)

    @property
    def valid(self) -> bool:
        """Whether it makes sense to roll back to a savepoint: not where only all of it can be rolled back."""
        if self._attempt.closed:
            return False
        branch = self._attempt.branches.get(self._participant.name)
        return branch is None or branch.work.doomed is None or branch.curable

    def execute(self, statement: str, params: Bound) -> Reply:
        """The statement, with what the dialect made of its parameters."""
        script = attempts.execute(self._ctx, self._attempt, self._participant.name, statement, params)
        try:
            return self._run(script)  # type: ignore[no-any-return]
        except Exception as error:
            translated = self.home.translated(error)
            if translated is error:
                raise
            raise translated from error

    def savepoint(self, step: SavepointStep, name: str) -> None:
        """Set, release, or roll back to a savepoint."""
        spoilt = not self.sound
        try:
            self._run(attempts.savepoint(self._ctx, self._attempt, self._participant.name, step, name))
        except NoDoubtError as error:
            if not (spoilt and step is SavepointStep.BACK):
                raise
            # Whoever rolls back has the error in hand that spoilt the work, and that is the one to come out.
            log.warning("%s cannot go back to a savepoint, and is rolled back whole: %s", self._participant.name, error)

    def refuse(self, what: str, instead: str) -> NoReturn:
        """Refuse what would end the branch by itself. It is doomed, too: whoever swallows this must not believe it."""
        error = UsageError(
            f"{what} is not for a branch of a distributed transaction, which ends as a whole when its block ends: "
            f"{instead}. The branch can only be rolled back now"
        )
        self.spoil(error)
        raise error

    def doom(self, what: str) -> None:
        """Somebody wants the branch rolled back: then all of the transaction is, when the block ends."""
        name = self._participant.name
        self.spoil(BranchDoomed(f"the branch on {name} was given up by {what}: all of it can only be rolled back now"))

    def spoil(self, error: BaseException) -> None:
        """Doom the branch because of this error. Raises `ClosedTransaction` after the block."""
        attempts.doom(self._ctx, self._attempt, self._participant.name, error)

    @property
    def sound(self) -> bool:
        """Whether the block is still open, and the branch not doomed."""
        branch = self._attempt.branches.get(self._participant.name)
        return not self._attempt.closed and (branch is None or branch.work.doomed is None)

    def require_open(self) -> None:
        """Raise `ClosedTransaction` after the block."""
        self._attempt.require_open()

    def begin(self) -> None:
        """Begin the branch, if it has not been, and see that the dialect knows the server before it compiles."""
        if self.begun:
            return
        self._run(attempts.open_branch(self._ctx, self._attempt, self._participant.name))
        self.make_ready()
        self.begun = True

    def make_ready(self) -> None:
        """Tell the dialect about the server, on a reserved session."""
        if not self.home.ready:
            with _Reserved(self._ctx, self._participant, self._run) as calls:
                self.home.make_ready(calls)

    # -- what the user asks

    @property
    def connection(self) -> BranchConnection:
        """The branch's connection; there is one."""
        self._attempt.require_open()
        if self._connection is None:
            if not self.home.engine.dialect.is_async:
                self.make_ready()
            self._connection = BranchConnection(self)
        return self._connection

    def execute_core(self, statement: Any, params: Any) -> Reply:
        """A Core or ORM statement; the rows as SQLAlchemy's types give them."""
        if not isinstance(statement, Executable):
            raise UsageError(f"a statement is text, or an executable of SQLAlchemy's, not {type(statement).__name__}")
        return _reply(self.connection.execute(statement, params))

    def session(self, maker: sessionmaker[Any] | None, options: dict[str, Any]) -> Session:
        """A session that takes part; see `session`."""
        session = session_in(self, maker, options)
        self.enrol(session)
        return session

    def enrol(self, session: Session) -> None:
        """From now on the session is flushed with the block, and its commit refused."""
        if not any(one is session for one in self._sessions):
            self._sessions.append(session)
            event.listen(session, "before_commit", self._refuse_commit)

    def _refuse_commit(self, session: Session) -> None:
        if not self._ending and not session.in_nested_transaction():
            self.refuse("session.commit()", "leave it out, or write flush()")

    # -- the end of the block

    def flush(self) -> None:
        """The sessions' own first phase, as SQLAlchemy has it for two-phase commits: `before_commit`, then every flush.

        What they still hold is written now: after this come the votes.
        """
        self._ending = True
        try:
            for session in self._sessions if self.sound else ():
                begun = session.get_transaction()
                if begun is not None:
                    begun._prepare_impl()  # `prepare` itself wants connections of SQLAlchemy's own two-phase kind
        finally:
            self._ending = False

    def ended(self, outcome: Outcome) -> None:
        """The sessions' second phase: their listeners are told, their objects are what they are in the database.

        Nothing is sent. A listener that fails is logged: it is too late to change anything.
        """
        for session in self._sessions:
            if session.get_transaction() is None:
                continue
            keep, session.expire_on_commit = session.expire_on_commit, False  # nothing can be loaded again
            try:
                _END[outcome](session)
            except Exception:
                log.exception("a session could not be told that its transaction was %s", outcome)
            finally:
                session.expire_on_commit = keep


class _Reserved:
    """A reserved session, as a face sees it, for as long as the `with` block lasts."""

    valid = True

    def __init__(self, ctx: Context, participant: Participant, run: Run) -> None:
        self._pool, self._ctx, self._to_end = participant.reserve, ctx, run
        self._session: Any = None

    def _run(self, script: Script[Any]) -> Any:
        return self._to_end(bounded(script, self._ctx.settings.answer_s, self._ctx.clock))

    def __enter__(self) -> Self:
        self._session = self._run(do(self._pool, "acquire"))
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.release(self._session)

    def execute(self, statement: str, params: Bound) -> Reply:
        return self._run(do(self._session, "execute", statement, params))  # type: ignore[no-any-return]

    def savepoint(self, step: SavepointStep, name: str) -> None:
        self.refuse("a savepoint", "there is no transaction")

    def refuse(self, what: str, instead: str) -> NoReturn:
        raise UsageError(f"{what} cannot be had here: {instead}")

    def doom(self, what: str) -> None:
        """There is no transaction, so there is nothing to roll back."""


class AsyncPart:
    """A branch for asyncio: SQLAlchemy's own code runs in a greenlet, and awaits what the branch does."""

    def __init__(self, ctx: Context, attempt: Attempt, participant: Participant, shell: AsyncShell) -> None:
        self._part = Part(ctx, attempt, participant, lambda script: await_(shell.run(script)))
        self._connection: AsyncBranchConnection | None = None

    @property
    def connection(self) -> AsyncBranchConnection:
        connection = self._part.connection
        if self._connection is None:
            self._connection = AsyncBranchConnection(self._part.home.asynchronous, connection)
        return self._connection

    async def execute_core(self, statement: Any, params: Any) -> Reply:
        return await greenlet_spawn(self._part.execute_core, statement, params)

    def session(self, maker: async_sessionmaker[Any] | None, options: dict[str, Any]) -> AsyncSession:
        session = async_session_in(self._part, self.connection, maker, options)
        self._part.enrol(session.sync_session)
        return session

    async def flush(self) -> None:
        await greenlet_spawn(self._part.flush)

    async def ended(self, outcome: Outcome) -> None:
        await greenlet_spawn(self._part.ended, outcome)


def _reply(result: CursorResult[Any]) -> Reply:
    tag: str = getattr(result.context.cursor, "tag", "")
    if not result.returns_rows:
        return Reply(tag, result.rowcount)
    columns = tuple(result.keys())
    rows = tuple(tuple(row) for row in result)
    return Reply(tag, len(rows), columns, rows)


@event.listens_for(Session, "after_begin")
def _joined(session: Session, _: Any, connection: Any) -> None:
    """A session that the user made, and bound to our connection: it takes part as those that we make."""
    if isinstance(connection, BranchConnection):
        connection.part.enrol(session)
