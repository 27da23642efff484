"""SQLAlchemy's `Connection` on a branch, and its asyncio twin.

Guarantees: `commit` is refused and dooms the branch, `rollback` dooms it, `close` does nothing (the branch ends with
its block, and so does the connection), savepoints are the branch's own.

Must not: reconnect. A connection that was invalidated would be given a stranger's by the pool, outside the transaction.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from sqlalchemy import Connection, CursorResult, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ReleaseSavepointClause, RollbackToSavepointClause, SavepointClause
from sqlalchemy.util.concurrency import greenlet_spawn, in_greenlet

from ..errors import ClosedTransaction, UsageError
from ..ports import SavepointStep
from .face import Proxy

if TYPE_CHECKING:
    from .part import Part

_STEPS: dict[Any, SavepointStep] = {
    SavepointClause: SavepointStep.SET,
    ReleaseSavepointClause: SavepointStep.RELEASE,
    RollbackToSavepointClause: SavepointStep.BACK,
}


# What marks them: SQLAlchemy's own MySQL dialect, in `has_table` and as it reflects.
_ASKS, _QUESTIONS = "skip_user_error_events", ("DESCRIBE ", "SHOW CREATE TABLE ")


class BranchConnection(Connection):
    """A connection that a branch has lent to SQLAlchemy."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self._beginning = False
        super().__init__(part.home.engine, connection=Proxy(part), _allow_revalidate=False)

    # -- one transaction, and not SQLAlchemy's

    def begin(self) -> NoReturn:
        """It has begun, at the first use by itself."""
        raise UsageError(
            "the transaction has begun, with nodoubt's block, and ends with it: work in it without begin(), or "
            "make a savepoint with begin_nested()"
        )

    def _autobegin(self) -> None:
        """SQLAlchemy's own, which would call `begin`: that is how a caller is told from SQLAlchemy."""
        if self._beginning:
            return
        self._beginning = True
        try:
            self.part.begin()
            super().begin()
        finally:
            self._beginning = False

    def in_transaction(self) -> bool:
        """True in the block. A session that joins sees a transaction that is not its own, and so does not end it."""
        may_wait = not self.dialect.is_async or in_greenlet()
        if self.get_transaction() is None and not self._beginning and self.part.sound:
            if not may_wait:
                return True
            self._autobegin()
        return super().in_transaction()

    def commit(self) -> NoReturn:
        self.part.refuse("connection.commit()", "leave it out")

    def rollback(self) -> None:
        """The branch, and with it the whole transaction, can then only be rolled back: it is as the block ends."""
        self.part.doom("connection.rollback()")

    def close(self) -> None:
        """Nothing: it is the branch that ends."""

    def __exit__(self, type_: object, value: BaseException | None, traceback: object) -> None:
        """An exception that leaves the connection's block rolls back, as everywhere in SQLAlchemy."""
        if value is not None and self.part.sound:
            self.part.spoil(value)

    def invalidate(self, exception: BaseException | None = None) -> None:
        with contextlib.suppress(ClosedTransaction):
            self.part.doom("connection.invalidate()")

    def detach(self) -> NoReturn:
        self.part.refuse("detach()", "leave it out")

    def begin_twophase(self, xid: Any = None) -> NoReturn:
        raise UsageError("this branch is in a two-phase transaction already, nodoubt's: work in it as in any other")

    def recover_twophase(self) -> NoReturn:
        raise UsageError("recovery is nodoubt's own: call recover() on the coordinator, or run nodoubt recover")

    def commit_prepared(self, xid: Any, recover: bool = False) -> NoReturn:
        raise UsageError("a prepared transaction is ended by name: call commit_distributed() on the coordinator")

    def rollback_prepared(self, xid: Any, recover: bool = False) -> NoReturn:
        raise UsageError("a prepared transaction is ended by name: call rollback_distributed() on the coordinator")

    # -- what would change the session

    def execution_options(self, **opt: Any) -> Connection:
        known: Any = getattr(self.dialect, "connection_characteristics", {})
        lasting = [name for name in opt if name in known and known[name].transactional]
        if lasting:
            raise UsageError(
                f"{', '.join(lasting)} cannot be set on a connection whose transaction has begun: execute SET "
                "TRANSACTION as the branch's first statement, or give create_engine() an isolation_level"
            )
        return super().execution_options(**opt)

    # -- errors

    def execute(self, statement: Any, parameters: Any = None, *, execution_options: Any = None) -> Any:
        with self.part.dooming():
            return super().execute(statement, parameters, execution_options=execution_options)

    def scalar(self, statement: Any, parameters: Any = None, *, execution_options: Any = None) -> Any:
        with self.part.dooming():
            return super().scalar(statement, parameters, execution_options=execution_options)

    # -- questions whose answer is an error

    def exec_driver_sql(
        self, statement: str, parameters: Any = None, execution_options: Any = None
    ) -> CursorResult[Any]:
        """SQLAlchemy asks MariaDB and MySQL for a table by a statement that fails where there is none, and takes that
        error for the answer. It would doom the branch (I16); behind a savepoint it leaves nothing.
        """
        options = {**self.get_execution_options(), **(execution_options or {})}
        if not options.get(_ASKS) or not statement.startswith(_QUESTIONS):
            with self.part.dooming():
                return super().exec_driver_sql(statement, parameters, execution_options)
        savepoint = self.begin_nested()
        try:
            answer = super().exec_driver_sql(statement, parameters, execution_options)
        except DBAPIError:
            savepoint.rollback()
            raise
        savepoint.commit()
        return answer

    def get_isolation_level(self) -> Any:
        self.part.begin()
        return super().get_isolation_level()


class AsyncBranchConnection(AsyncConnection):
    """The same for asyncio."""

    @property
    def _branch(self) -> BranchConnection:
        assert isinstance(self.sync_connection, BranchConnection)
        return self.sync_connection

    async def start(self, is_ctxmanager: bool = False) -> AsyncBranchConnection:
        return self

    async def __aexit__(self, type_: object, value: BaseException | None, traceback: object) -> None:
        self._branch.__exit__(type_, value, traceback)

    async def run_sync(self, fn: Callable[..., Any], *arg: Any, **kw: Any) -> Any:
        """The function may look at the dialect before it executes anything."""
        await greenlet_spawn(self._branch.part.begin)
        return await super().run_sync(fn, *arg, **kw)


@event.listens_for(BranchConnection, "before_execute")
def _begin_before_compiling(connection: BranchConnection, *_: Any) -> None:
    connection.part.begin()


@event.listens_for(BranchConnection, "before_cursor_execute")
def _know_savepoints(_: Any, cursor: Any, *rest: Any) -> None:
    """SQLAlchemy's own savepoints are told from a user's text by what they were compiled from."""
    compiled = getattr(rest[2], "compiled", None)  # of (statement, parameters, context, executemany)
    element = getattr(compiled, "statement", None)
    step = _STEPS.get(type(element))
    if step is not None:
        cursor.step = (step, getattr(element, "ident", ""))
