"""What the record says, and what follows from it for a coordinator.

Must not: do I/O.
"""

from __future__ import annotations

from ..errors import SchemaMismatch
from ..ports import Version
from .files import Migration, Schema

# To a coordinator that is at work while its tables change their names.
MIGRATED = "Our tables are not there, or were migrated to what only a newer release knows: run nodoubt schema status"


def judge(version: Version | None, schema: Schema, whose: str) -> None:
    """Raise `SchemaMismatch` unless a coordinator of this release may work on the tables. It says what to do."""
    known = schema.known
    if version is None:
        raise SchemaMismatch(f"{whose}: our tables are missing: run nodoubt schema apply")
    if version.works_from > known:
        raise SchemaMismatch(
            f"{whose}: our tables were migrated to version {max(version.stands, version.works_from)}, on which only "
            f"coordinators that know version {version.works_from} may work; this release knows {known}. Nothing was "
            "changed: install here the release that migrated them, or a newer one"
        )
    if version.stands < schema.needed:
        begun = ", and a migration has begun that was not finished" if version.unfinished else ""
        raise SchemaMismatch(
            f"{whose}: our tables are of version {version.stands}{begun}; this release needs {schema.needed}: run "
            "nodoubt schema apply"
        )


def pending(version: Version | None, schema: Schema) -> tuple[Migration, ...]:
    """What `migrate` would do."""
    stands = 0 if version is None else version.stands
    return tuple(one for one in schema.migrations if one.number > stands)
