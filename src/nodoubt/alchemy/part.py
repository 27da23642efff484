"""One branch as SQLAlchemy sees it: the calls behind its face, and its connection.

Guarantees: every statement goes through `engine.attempt`, whatever of SQLAlchemy's it comes from; nothing works any
more after the block.

Must not: know which kind of database it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, Self

import msgspec
from sqlalchemy import CursorResult, Executable
from sqlalchemy.orm import Session

from ..engine import attempt as attempts
from ..engine.attempt import Attempt
from ..engine.context import Context, Participant, bounded, log
from ..errors import BranchDoomed, NoDoubtError, UsageError
from ..ports import Bound, Reply, SavepointStep
from ..script import Script, do
from .connection import BranchConnection

Run = Callable[[Script[Any]], Any]


class Part:
    """A branch for threads; and, inside a greenlet, for asyncio.

    `enrol`: tells the transaction of a session that takes part from now on.
    """

    def __init__(
        self, ctx: Context, attempt: Attempt, participant: Participant, run: Run, enrol: Callable[[Session], None]
    ) -> None:
        assert participant.home is not None
        self.home = participant.home()
        self._ctx, self._attempt, self._participant, self._run, self.enrol = ctx, attempt, participant, run, enrol
        self._connection: BranchConnection | None = None
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

    @contextlib.contextmanager
    def dooming(self) -> Iterator[None]:
        """An error of SQLAlchemy's before anything was sent is a statement's error, too (I16)."""
        try:
            yield
        except BaseException as error:
            self.fail(error)
            raise

    def fail(self, error: BaseException) -> None:
        """Doom the branch, if nothing has, as a statement's own error does: a savepoint that stands before it cures."""
        if not self.sound:
            return
        self.spoil(error)
        branch = self._attempt.branches[self._participant.name]
        refused = isinstance(error, NoDoubtError) or not isinstance(error, Exception)
        branch.curable = bool(branch.savepoints) and not refused

    @property
    def sound(self) -> bool:
        """Whether the block is still open, and the branch not doomed."""
        branch = self._attempt.branches.get(self._participant.name)
        return not self._attempt.closed and (branch is None or branch.work.doomed is None)

    @property
    def open(self) -> bool:
        """Whether the block has not ended."""
        return not self._attempt.closed

    def begin(self) -> None:
        """Begin the branch, if it has not been, and see that the dialect knows the server before it compiles."""
        if not self.begun:
            self._run(attempts.open_branch(self._ctx, self._attempt, self._participant.name))
            self.make_ready()
            self.begun = True
        if not self.valid:
            attempts.require_sound(self._attempt, self._participant.name)

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
        with self.dooming():
            if not isinstance(statement, Executable):
                kind = type(statement).__name__
                raise UsageError(f"a statement is text, or an executable of SQLAlchemy's, not {kind}")
            reply = _reply(self.connection.execute(statement, params))
        return reply if self.home.counts(statement) else msgspec.structs.replace(reply, count=-1)

    def tell_of_commit(self) -> None:
        """To listeners of the engine's own event, who may write, or raise and so prevent it."""
        connection = self._connection
        if connection is not None and connection.get_transaction() is not None:
            connection.dispatch.commit(connection)

    def tell_of_rollback(self) -> None:
        """Likewise, when it is too late to change anything; where SQLAlchemy has rolled back, it has told them."""
        connection = self._connection
        if connection is None or connection.get_transaction() is None:
            return
        try:
            connection.dispatch.rollback(connection)
        except Exception:
            log.exception("a listener to the rollback on %s has failed", self._participant.name)


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


def _reply(result: CursorResult[Any]) -> Reply:
    tag: str = getattr(result.context.cursor, "tag", "")
    if not result.returns_rows:
        return Reply(tag, result.rowcount)
    columns = tuple(result.keys())
    rows = tuple(tuple(row) for row in result)
    return Reply(tag, len(rows), columns, rows)
