"""What the pieces of this package need of a connection, and what they keep on it.

`drivers.sqlite_connection.Connection` is the one that is used; this is its face, so that no driver is imported here.
All functions of this package that take a `Connection` run inside one `call` of a session, in the session's thread.

Must not: import a driver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ...ports import Reply

if TYPE_CHECKING:
    from .capture import Branch
    from .tables import Schema

OURS = "nodoubt_"  # how the names of all our own tables begin


class Change(Protocol):
    """One row about to change: what SQLite's preupdate hook is told."""

    @property
    def op(self) -> str: ...
    @property
    def database_name(self) -> str: ...
    @property
    def table_name(self) -> str: ...
    @property
    def rowid(self) -> int: ...
    @property
    def rowid_new(self) -> int: ...
    @property
    def old(self) -> Any: ...
    @property
    def new(self) -> Any: ...


class Connection(Protocol):
    """See `drivers.sqlite_connection.Connection`."""

    path: str
    lock_wait_s: float
    broken: bool
    at_work: bool
    kept: Any

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]: ...
    def look(self, sql: str) -> list[tuple[Any, ...]]: ...
    def many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None: ...
    def run(self, sql: str) -> tuple[Reply, ...]: ...
    def execute(self, statement: str, params: Any) -> Reply: ...
    @property
    def in_transaction(self) -> bool: ...
    @property
    def library(self) -> tuple[int, ...]: ...
    @property
    def readonly(self) -> bool: ...
    def total_changes(self) -> int: ...
    def unresolved_references(self) -> bool: ...
    def writers(self) -> str: ...
    def watch(
        self,
        on_access: Callable[[str, str | None, str | None, str | None, str | None], None],
        on_change: Callable[[Any], None] | None,
    ) -> None: ...
    def unwatch(self) -> None: ...
    def bare(self, on: bool) -> None: ...


@dataclass(slots=True)
class Kept:
    """What lives with a connection: the branch at work on it, and the schema as it was last read."""

    branch: Branch | None = None
    schema: Schema | None = None


def kept(connection: Connection) -> Kept:
    """What is kept on this connection."""
    if connection.kept is None:
        connection.kept = Kept()
    found: Kept = connection.kept
    return found


def quoted(name: str) -> str:
    """A table's or column's name as an identifier. Names come from the schema: they cannot be parameters."""
    return '"' + name.replace('"', '""') + '"'


def is_ours(name: str) -> bool:
    """Whether a table belongs to nodoubt."""
    return name.lower().startswith(OURS)
