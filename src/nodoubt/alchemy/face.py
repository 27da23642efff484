"""A PEP 249 face: what a SQLAlchemy dialect takes for a driver's connection and its cursor.

Behind it stand the `Calls` of one branch; no driver's cursor, and no transaction of its own. Results are read whole
before `execute` returns: an error that came while rows are fetched would come too late to be told from the work's own.

Guarantees: `commit` is refused and `rollback` dooms, whoever calls them and by whatever way, the pool's reset included.

Must not: reach for the driver's connection. What would be done on it could neither be proved nor be seen to fail.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn, Protocol

from sqlalchemy import PoolProxiedConnection

from ..errors import UsageError
from ..ports import Bound, Reply, SavepointStep


class Calls(Protocol):
    """What a face asks of whoever stands behind it."""

    @property
    def valid(self) -> bool:
        """Whether it would be of any use to roll back to a savepoint."""
        ...

    def execute(self, statement: str, params: Bound) -> Reply: ...
    def savepoint(self, step: SavepointStep, name: str) -> None: ...
    def refuse(self, what: str, instead: str) -> NoReturn: ...
    def doom(self, what: str) -> None: ...


class Cursor:
    """One statement and its rows."""

    arraysize = 1

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._rows: deque[tuple[Any, ...]] = deque()
        self.description: Sequence[Sequence[Any]] | None = None
        self.rowcount = -1
        self.lastrowid = 0
        self.tag = ""
        self.step: tuple[SavepointStep, str] | None = None  # `execute` does this, whatever the statement says

    def execute(self, operation: str, parameters: Any = None) -> None:
        if self.step is not None:
            self._calls.savepoint(*self.step)
        else:
            self._take(self._calls.execute(operation, Bound(parameters)))

    def executemany(self, operation: str, parameters: Sequence[Any]) -> int:
        self._take(self._calls.execute(operation, Bound(parameters, many=True)))
        return self.rowcount

    def _take(self, reply: Reply) -> None:
        types = reply.types or (None,) * len(reply.columns)
        described = [(name, code, *(None,) * 5) for name, code in zip(reply.columns, types, strict=True)]
        self.description = described or None
        self.rowcount, self.lastrowid, self.tag = reply.count, reply.last_id, reply.tag
        self._rows = deque(reply.rows)

    def fetchone(self) -> tuple[Any, ...] | None:
        return self._rows.popleft() if self._rows else None

    def fetchmany(self, size: int | None = None) -> list[tuple[Any, ...]]:
        wanted = self.arraysize if size is None else size
        return [self._rows.popleft() for _ in range(min(wanted, len(self._rows)))]

    def fetchall(self) -> list[tuple[Any, ...]]:
        rows = list(self._rows)
        self._rows.clear()
        return rows

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        while self._rows:
            yield self._rows.popleft()

    def close(self) -> None:
        self._rows.clear()

    async def _async_soft_close(self) -> None:
        """Asked of every cursor by SQLAlchemy's asyncio side; the rows are kept, and there is nothing else."""

    def setinputsizes(self, *_: Any) -> None:
        """PEP 249 asks for it, and lets it do nothing."""

    def setoutputsize(self, *_: Any) -> None:
        """Likewise."""


class Face:
    """What the dialect takes for the driver's connection. Its attributes are those that dialects look at."""

    closed = broken = autocommit = False
    isolation_level = None
    info = SimpleNamespace(transaction_status=None)  # psycopg's: where it is not idle, its dialect rolls nothing back

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    @property
    def _connection(self) -> Face:
        return self  # asyncpg's dialect asks the driver's connection whether it is closed

    def is_closed(self) -> bool:
        return False

    def get_autocommit(self) -> bool:
        return False

    def character_set_name(self) -> str:
        return "utf8mb4"

    def cursor(self, *_: Any, **__: Any) -> Cursor:
        """A buffered one, also where the dialect asks for one on the server's side."""
        return Cursor(self._calls)

    def commit(self) -> None:
        self._calls.refuse("COMMIT", "leave it out")

    def rollback(self) -> None:
        self._calls.doom("a ROLLBACK")

    def close(self) -> None:
        """The branch keeps its session until it ends."""


class Proxy(PoolProxiedConnection):
    """What SQLAlchemy's `Connection` takes for a connection on loan from a pool."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._info: dict[str, Any] = {}
        self._connection_record = SimpleNamespace(finalize_callback=[], starttime=math.inf)
        self.dbapi_connection: Any = Face(calls)

    @property
    def is_valid(self) -> bool:
        return self._calls.valid

    @property
    def is_detached(self) -> bool:
        return False

    @property
    def info(self) -> Any:
        return self._info

    @property
    def record_info(self) -> Any:
        return None

    @property
    def driver_connection(self) -> NoReturn:  # type: ignore[override] # an attribute there
        raise UsageError(
            "the driver's own connection is not given out inside a transaction: what is done on it could be neither "
            "proved nor seen to fail. Execute statements, or use a connection of your own outside"
        )

    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:
        """The engine ends the session, if it must; SQLAlchemy's pool has none of it."""

    def detach(self) -> None:
        self._calls.refuse("detach()", "leave it out")

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        return self.dbapi_connection.cursor(*args, **kwargs)

    def commit(self) -> None:
        self.dbapi_connection.commit()

    def rollback(self) -> None:
        self.dbapi_connection.rollback()

    def close(self) -> None:
        """As `Face.close`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dbapi_connection, name)
