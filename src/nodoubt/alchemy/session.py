"""ORM sessions in a branch.

A session is bound to the branch's connection, and joins its transaction for rollbacks alone: SQLAlchemy's own mode for
a transaction that somebody else commits. Its commit is refused (see `parts`); its close writes what is pending, for
where nobody commits, close is where plain code leaves its unit of work.

Guarantees: what was added to a session is written when the session is closed, or else when the block ends, and stays,
whether the session's savepoints were released or not; an exception that leaves the session's own block rolls back the
whole transaction.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session, SessionTransaction, scoped_session, sessionmaker

from ..errors import UsageError

if TYPE_CHECKING:
    from .connection import AsyncBranchConnection
    from .part import Part

_MAKERS: dict[Any, Any] = {Session: sessionmaker, AsyncSession: async_sessionmaker}
_OURS = ("bind", "binds", "twophase", "join_transaction_mode", "autobegin")


class BranchSession(Session):
    """What the session's class, the user's perhaps, becomes in a branch."""

    def __init__(self, part: Part, **options: Any) -> None:
        self._nodoubt = part
        super().__init__(**options)

    def begin(self, nested: bool = False) -> SessionTransaction:
        if not nested:
            raise UsageError(
                "the transaction has begun, with nodoubt's block, and ends with it: use the session without begin(), "
                "or make a savepoint with begin_nested()"
            )
        return super().begin(nested=True)

    def rollback(self) -> None:
        """The whole transaction can then only be rolled back: it is as nodoubt's block ends."""
        self._nodoubt.doom("session.rollback()")
        super().rollback()

    def invalidate(self) -> None:
        """What is pending goes with it, whether it has reached the connection or not."""
        if self._nodoubt.sound:
            self._nodoubt.doom("session.invalidate()")
        super().invalidate()

    def close(self) -> None:
        """Write what is pending, and let the objects go; the branch goes on."""
        self._write()
        super().close()

    def reset(self) -> None:
        """As `close`."""
        self._write()
        super().reset()

    def _write(self) -> None:
        """Release the savepoints, too, that the session has set and that still stand: to close them would undo them."""
        if not self._nodoubt.sound:
            return
        try:
            self.flush()
            while (savepoint := self.get_nested_transaction()) is not None:
                savepoint.commit()
        except BaseException as error:
            if self._nodoubt.sound:  # swallowed by the user, it would leave a branch without this work
                self._nodoubt.spoil(error)
            raise

    def __exit__(self, type_: object, value: BaseException | None, traceback: object) -> None:
        if value is not None and self._nodoubt.sound:
            self._nodoubt.spoil(value)
        super().__exit__(type_, value, traceback)


class AsyncBranchSession(AsyncSession):
    """The same for asyncio: its own session is a `BranchSession`."""

    async def __aexit__(self, type_: object, value: BaseException | None, traceback: object) -> None:
        session = self.sync_session
        assert isinstance(session, BranchSession)
        if value is not None and session._nodoubt.sound:
            session._nodoubt.spoil(value)
        await super().__aexit__(type_, value, traceback)


def session_in(part: Part, maker: sessionmaker[Any] | None, options: dict[str, Any]) -> Session:
    """A session of the maker's class and options, or of `class_`, in the branch."""
    kind, settings = _wanted(maker, options, Session)
    made: Session = _in_branch(BranchSession, kind)(
        part, bind=part.connection, join_transaction_mode="rollback_only", **settings
    )
    return made


def async_session_in(
    part: Part, connection: AsyncBranchConnection, maker: async_sessionmaker[Any] | None, options: dict[str, Any]
) -> AsyncSession:
    """The same for asyncio."""
    kind, settings = _wanted(maker, options, AsyncSession)
    outer = _in_branch(AsyncBranchSession, kind)
    inner: Any = settings.pop("sync_session_class", kind.sync_session_class)
    made: AsyncSession = outer(
        bind=connection,
        sync_session_class=functools.partial(_in_branch(BranchSession, inner), part),
        join_transaction_mode="rollback_only",
        **settings,
    )
    return made


def _wanted(maker: Any, options: dict[str, Any], default: type[Any]) -> tuple[Any, dict[str, Any]]:
    """The class, and what to make it with. A maker's engine, and its two-phase commit, are nodoubt's to give here."""
    if maker is not None and not isinstance(maker, _MAKERS[default]):
        raise UsageError(f"session() takes your {_MAKERS[default].__name__}, not {maker!r:.200}{_instead(maker)}")
    ours = [name for name in _OURS if name in options]
    if ours or (maker is not None and maker.kw.get("binds")):
        raise UsageError(
            f"{', '.join(ours) or 'binds'} cannot be chosen for a session in a branch: it is bound to the branch's "
            "connection, in a transaction that nodoubt begins and ends"
        )
    if maker is None:
        return options.pop("class_", default), options
    kept = {name: value for name, value in maker.kw.items() if name not in _OURS}
    return maker.class_, {**kept, **options}


def _instead(maker: Any) -> str:
    """What to write for what is nearly one."""
    if isinstance(maker, type) and issubclass(maker, (Session, AsyncSession)):
        return f": write class_={maker.__name__}"
    if isinstance(maker, (scoped_session, async_scoped_session)):
        return ": pass its session_factory. What it keeps for the thread or task is bound elsewhere"
    return ""


@functools.cache
def _in_branch(ours: Any, kind: Any) -> Any:
    """The user's class of session, with our ends. Cached: SQLAlchemy keeps listeners by class."""
    if not isinstance(kind, type) or not issubclass(kind, ours.__bases__[0]):
        raise UsageError(f"class_ is a subclass of {ours.__bases__[0].__name__}, not {kind!r}")
    return ours if kind is ours.__bases__[0] else type(kind.__name__, (ours, kind), {})
