"""The five verbs as methods, for whatever can run a SQLAlchemy Core statement.

Must not: import SQLAlchemy before a verb is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..errors import MissingExtra
from .fragments import Kind

if TYPE_CHECKING:
    from .builders import DeleteFrom, InsertInto, SelectFrom, UpdateTable

Rows = TypeVar("Rows")  # what running a statement for its rows gives: a Reply, or an awaitable of one
Count = TypeVar("Count")  # likewise for the number of rows it affected: an int, or an awaitable of one
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Runner(Generic[Rows, Count]):
    """What a builder needs of a branch: the kind of its database, and how it runs a Core statement."""

    kind: Kind
    rows: Callable[[Any], Rows]
    count: Callable[[Any], Count]


class Verbs(Generic[Rows, Count]):
    """The verbs of a branch, which says in `_runner` how it runs a statement.

    A table is named `table` or `schema.table`. Names are quoted, so they are what they are, capitals included.
    """

    __slots__ = ()

    def _runner(self) -> Runner[Rows, Count]:
        raise NotImplementedError

    def select_from(self, table: str) -> SelectFrom[Rows, Count]:
        """Read: `.columns(…).where(…).order_by(…).limit(…).execute()`, the rows."""
        _require_sqlalchemy()
        from .builders import SelectFrom, table_of

        return SelectFrom(self._runner(), table_of(table))

    def insert_into(self, table: str) -> InsertInto[Rows, Count]:
        """Insert: `.values(row or rows).execute()`, how many; with `.returning(…)` before `execute`, the rows."""
        _require_sqlalchemy()
        from .builders import InsertInto, table_of

        return InsertInto(self._runner(), table_of(table))

    def insert_or_ignore(self, table: str, rows: Row | Iterable[Row]) -> InsertInto[Rows, Count]:
        """Insert the rows whose keys are not there yet: `.execute()`, how many.

        Only duplicates of a primary or unique key are ignored; any other error is one. For a duplicate, MariaDB calls
        the table's triggers for UPDATE, too; and on MariaDB through a SQLAlchemy engine, whose connections count
        duplicates as well, how many is not known: -1.
        """
        _require_sqlalchemy()
        from .builders import InsertInto, table_of

        return InsertInto(self._runner(), table_of(table), ignoring=True).values(rows)

    def update_table(self, table: str) -> UpdateTable[Rows, Count]:
        """Update: `.set({…}).where(…).execute()`, how many rows matched."""
        _require_sqlalchemy()
        from .builders import UpdateTable, table_of

        return UpdateTable(self._runner(), table_of(table))

    def delete_from(self, table: str) -> DeleteFrom[Rows, Count]:
        """Delete: `.where(…).execute()`, how many."""
        _require_sqlalchemy()
        from .builders import DeleteFrom, table_of

        return DeleteFrom(self._runner(), table_of(table))


def _require_sqlalchemy() -> None:
    try:
        import sqlalchemy  # noqa: F401 — only whether it is there
    except ImportError as missing:
        raise MissingExtra("A query verb", "sqlalchemy") from missing
