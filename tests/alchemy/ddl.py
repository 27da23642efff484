"""Tables made outside of any transaction, as a migration would."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Enum, MetaData
from sqlalchemy.schema import CreateTable

from alchemy.world import World


def create_outside(world: World, metadata: MetaData) -> None:
    """Create these tables in `a`, through a stranger's connection, in `a`'s own dialect."""
    dialect = world.db._ctx.participants["a"].home().engine.dialect
    for kind in _enums(world, metadata):
        world.a.query(kind)
    for one in metadata.sorted_tables:
        world.a.query(str(CreateTable(one).compile(dialect=dialect)).replace("%%", "%"))


def _enums(world: World, metadata: MetaData) -> list[str]:
    if world.way.kind != "postgres":
        return []
    kinds: dict[str, Any] = {
        str(column.type.name): column.type.enums
        for one in metadata.sorted_tables
        for column in one.columns
        if isinstance(column.type, Enum)
    }
    return [
        f"create type {name} as enum ({', '.join(repr(str(value)) for value in values)})"
        for name, values in kinds.items()
    ]
