"""Our tables for Alembic: so that autogenerate neither drops nor makes them.

In a project's `env.py`:

    from nodoubt.contrib.alembic import include_object

    context.configure(…, include_object=include_object)

That is enough: our tables, and no others, are left alone, and `nodoubt schema apply` keeps them. To have them among
one's own, to compare or to draw them, put `metadata(dialect)` into `target_metadata` beside them; on PostgreSQL that
takes `include_schemas=True`.

Guarantees: `metadata` is what the numbered files of this release make; a test compares the two by reflection.

Must not: be used to make the tables. A migration of ours has rules that Alembic does not know (`nodoubt.schema`).
"""

from __future__ import annotations

import functools
from typing import Any

from ..errors import MissingExtra, UsageError

try:
    import sqlalchemy as sa
except ImportError:
    raise MissingExtra("nodoubt.contrib.alembic", "sqlalchemy") from None

from . import tables_mariadb, tables_postgres, tables_sqlite

SCHEMA = "nodoubt"  # PostgreSQL's
ALIKE = 0.75  # so many of our columns make a table of our name ours: other releases have others
_TABLES = {
    "postgresql": tables_postgres,
    "mariadb": tables_mariadb,
    "mysql": tables_mariadb,
    "sqlite": tables_sqlite,
}


def include_object(of: Any, name: str | None, kind: str, *_: Any) -> bool:  # noqa: ARG001 - Alembic's signature
    """Alembic's hook: everything but our tables. A project with a hook of its own asks `is_ours` there."""
    table = of if kind == "table" else getattr(of, "table", None)
    return table is None or not is_ours(table)


def is_ours(table: Any) -> bool:
    """Whether a table is one of ours: whatever is in the schema `nodoubt`, which is ours alone, and where there are no
    schemas the tables that this release knows, by their names and keys. Anything else with `nodoubt_` before it is the
    user's.

    A table of ours that has more columns, or fewer, than this release makes is ours: Alembic would drop it otherwise.
    And so is one without its schema: a role that is called `nodoubt` has ours for its default, and SQLAlchemy then
    names none. There the names are anybody's, so the columns must be, for the most part, ours as well.
    """
    there = set(table.columns.keys())
    if table.schema == SCHEMA or any(key <= there for key in _keys().get(table.name, ())):
        return True
    columns = _unnamed().get(table.name)
    return table.schema is None and columns is not None and len(columns & there) >= ALIKE * len(columns)


@functools.cache
def _unnamed() -> dict[str, set[str]]:
    """The columns of our tables on PostgreSQL, by names without the schema."""
    return {table.name: set(table.columns.keys()) for table in metadata("postgresql").tables.values()}


@functools.cache
def _keys() -> dict[str, list[set[str]]]:
    """The columns of our tables' primary keys, where there are no schemas: they never change."""
    found: dict[str, list[set[str]]] = {}
    for dialect in ("mariadb", "sqlite"):
        for table in metadata(dialect).tables.values():
            found.setdefault(table.name, []).append(set(table.primary_key.columns.keys()))
    return found


def metadata(dialect: str, *, journal: bool = True) -> sa.MetaData:
    """Our tables on this SQLAlchemy dialect. `journal`: False for a database that only takes part.

    Raises `UsageError` for a dialect on which there are none.
    """
    if dialect not in _TABLES:
        raise UsageError(f"there are no tables for {dialect!r}: name {', '.join(_TABLES)}")
    made = sa.MetaData()
    _TABLES[dialect].participant(made)
    if journal:
        _TABLES[dialect].journal(made)
    return made
