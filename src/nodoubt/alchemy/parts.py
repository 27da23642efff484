"""A transaction's branches as SQLAlchemy sees them, and the ORM sessions that take part in it.

A session has two phases, as the transaction has. Before anybody votes it writes all that it holds (`flush`), and can do
no more; when the outcome is known its listeners and its objects learn of it (`ended`). Its own commit is refused.

Guarantees: a session's first phase is over before the first PREPARE is sent. One that the user made, and bound to our
connection, takes part like those that we make, from the first thing that it is given to hold.

Must not: send anything once the block has ended.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Literal

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, SessionTransaction, sessionmaker
from sqlalchemy.orm.session import SessionTransactionState
from sqlalchemy.util.concurrency import await_, greenlet_spawn

from ..engine.attempt import Attempt
from ..engine.context import Context, log
from ..engine.shell import AsyncShell, ThreadShell
from ..errors import UsageError
from ..ports import Reply
from ..script import Script
from .connection import AsyncBranchConnection, BranchConnection
from .part import Part
from .session import async_session_in, session_in

FLUSHES_MAX = 100  # as many as SQLAlchemy allows one session

Outcome = Literal["committed", "rolled back", "open"]  # open: staged, or in doubt
_END: dict[Outcome, Callable[[Session], None]] = {
    "committed": Session.commit,
    "rolled back": Session.rollback,
    "open": Session.close,
}


class _Both:
    """What the two kinds share."""

    def __init__(self, ctx: Context, attempt: Attempt, run: Callable[[Script[Any]], Any]) -> None:
        self._ctx, self._attempt, self._run = ctx, attempt, run
        self._parts: dict[str, Part] = {}
        self._sessions: list[Session] = []

    def part(self, name: str) -> Part:
        """The branch on that resource. Raises `ClosedTransaction` after the block."""
        self._attempt.require_open()
        if name not in self._parts:  # two threads may come by here: the first one's stands
            one = Part(self._ctx, self._attempt, self._ctx.participant(name), self._run, self._enrol)
            self._parts.setdefault(name, one)
        return self._parts[name]

    def _enrol(self, session: Session) -> None:
        if self._attempt.closed or any(one is session for one in self._sessions):
            return
        self._sessions.append(session)

    def _flush(self) -> None:
        """As SQLAlchemy's own first phase of two: `before_commit`, then flushes until there is nothing left.

        Not in that session alone: what listens to one may add to another, or bring one.
        """
        if not all(part.sound for part in self._parts.values()):
            return
        for session in self._sessions:
            begun = session.get_transaction()
            if begun is not None:
                with _telling(session):
                    begun._prepare_impl()  # `prepare` itself wants connections of SQLAlchemy's own two-phase kind
        self._flush_the_rest()
        for part in self._parts.values():
            part.tell_of_commit()
        self._flush_the_rest()
        for session in self._sessions:
            _refuse_strangers(session)

    def _flush_the_rest(self) -> None:
        for _ in range(FLUSHES_MAX):
            left = [session for session in self._sessions if not session._is_clean()]
            if not left:
                return
            for session in left:
                begun = session.get_transaction()
                if begun is None or begun._state is not SessionTransactionState.PREPARED:
                    session.flush()
                    continue
                begun._state = SessionTransactionState.ACTIVE
                session.flush()
                begun._state = SessionTransactionState.PREPARED
        raise UsageError(
            f"after {FLUSHES_MAX} rounds of flushes the sessions still hold something to write: does a listener to the "
            "flush of each add to the other?"
        )

    def _ended(self, outcome: Outcome) -> None:
        """Listeners are told, and objects are what they are in the database.

        A listener that fails is logged: it is too late to change anything.
        """
        for session in self._sessions:
            begun = session.get_transaction()
            if begun is None:
                continue
            # The user has rolled back there already, or the session's work lies behind a savepoint: it has no say.
            spent = any(one.get_transaction() is None or one.in_nested_transaction() for one in begun.connections)
            keep, session.expire_on_commit = session.expire_on_commit, False  # nothing can be loaded again
            try:
                with _telling(session):  # those that have come late
                    _END["open" if spent else outcome](session)
            except Exception:
                log.exception("a session could not be told that its transaction was %s", outcome)
            finally:
                session.expire_on_commit = keep
        if outcome == "rolled back":
            for part in self._parts.values():
                part.tell_of_rollback()


def _refuse_strangers(session: Session) -> None:
    begun = session.get_transaction()
    if begun and not all(isinstance(connection, BranchConnection) for connection in begun.connections):
        raise UsageError(
            "a session works both in this transaction and on an engine outside of it, whose half could commit alone: "
            "give that engine to the coordinator as well, or use a session of its own for it"
        )


class Parts(_Both):
    """For threads."""

    def __init__(self, ctx: Context, attempt: Attempt, shell: ThreadShell) -> None:
        super().__init__(ctx, attempt, shell.run)

    def execute(self, name: str, statement: Any, params: Any) -> Reply:
        return self.part(name).execute_core(statement, params)

    def connection(self, name: str) -> BranchConnection:
        return self.part(name).connection

    def session(self, name: str, maker: sessionmaker[Any] | None, options: dict[str, Any]) -> Session:
        part = self.part(name)
        session = session_in(part, maker, options)
        part.enrol(session)
        return session

    def flush(self) -> None:
        """Before the votes."""
        self._flush()

    def ended(self, outcome: Outcome) -> None:
        """When the outcome is known."""
        self._ended(outcome)


class AsyncParts(_Both):
    """For asyncio: SQLAlchemy's own code runs in a greenlet, and awaits there what the branch does."""

    def __init__(self, ctx: Context, attempt: Attempt, shell: AsyncShell) -> None:
        super().__init__(ctx, attempt, lambda script: await_(shell.run(script)))
        self._connections: dict[str, AsyncBranchConnection] = {}

    async def execute(self, name: str, statement: Any, params: Any) -> Reply:
        return await greenlet_spawn(self.part(name).execute_core, statement, params)

    def connection(self, name: str) -> AsyncBranchConnection:
        part = self.part(name)
        if name not in self._connections:
            self._connections[name] = AsyncBranchConnection(part.home.asynchronous, part.connection)
        return self._connections[name]

    def session(self, name: str, maker: async_sessionmaker[Any] | None, options: dict[str, Any]) -> AsyncSession:
        part = self.part(name)
        session = async_session_in(part, self.connection(name), maker, options)
        part.enrol(session.sync_session)
        return session

    async def flush(self) -> None:
        """Before the votes."""
        await greenlet_spawn(self._flush)

    async def ended(self, outcome: Outcome) -> None:
        """When the outcome is known."""
        await greenlet_spawn(self._ended, outcome)


# ---- every session in the process, for some are the user's own, and bound to our connections

_TOLD = ContextVar[Session | None]("nodoubt_told", default=None)  # its listeners are told by `_flush`


@contextlib.contextmanager
def _telling(session: Session) -> Iterator[None]:
    before = _TOLD.set(session)
    try:
        yield
    finally:
        _TOLD.reset(before)


def _ours(session: Session) -> list[BranchConnection]:
    """The connections of branches that it is bound to, or has joined."""
    begun = session.get_transaction()
    joined = () if begun is None else begun.connections
    found = {one for one in (session.bind, *session.binds.values(), *joined) if isinstance(one, BranchConnection)}
    return list(found)


@event.listens_for(Session, "after_transaction_create")
def _begun(session: Session, transaction: SessionTransaction) -> None:
    """Before its first statement: what is added to it may be all that it will ever hold."""
    if transaction.parent is None:
        for connection in _ours(session):
            connection.part.enrol(session)


@event.listens_for(Session, "after_begin")
def _joined(session: Session, _: Any, connection: Any) -> None:
    """A session need not be bound: it may find its connection for each statement."""
    if isinstance(connection, BranchConnection):
        connection.part.enrol(session)


@event.listens_for(Session, "before_commit")
def _refuse_commit(session: Session) -> None:
    if session.in_nested_transaction() or _TOLD.get() is session:
        return
    for connection in _ours(session):
        connection.part.refuse("session.commit()", "leave it out, or write flush()")


@event.listens_for(Session, "after_commit")
def _refuse_late(session: Session) -> None:
    """It has joined while it flushed what it was to commit."""
    for connection in () if session.in_nested_transaction() else _ours(session):
        if connection.part.open:
            connection.part.refuse("session.commit()", "leave it out, or write flush()")


@event.listens_for(Session, "after_rollback")
def _rolled_back(session: Session) -> None:
    """What it held is lost, also where it has not told the connection, which it had not yet joined."""
    root = session.get_transaction()
    if root is None or root.is_active:
        return  # it has gone back to a savepoint of its own
    for connection in _ours(session):
        part, error = connection.part, sys.exception()
        if connection in root.connections or not part.sound:
            continue
        if error is None:
            part.doom("session.rollback()")
        else:
            part.spoil(error)
