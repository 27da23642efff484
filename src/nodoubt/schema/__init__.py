"""Our tables in the users' databases: numbered files, what has been applied of them, and who may work on the result.

A *schema* is the tables of one part (the journal, or what each participant keeps) on one kind of database: migrations,
numbered from 1, in files that come with the release. A release *knows* the newest number it brings. Each migration says
of the coordinators that know only the one before, and may be at work at this moment, that

- they *work on*: it only adds what they do not see; or that
- they *are refused*: then its first statement renames the table through which every commit of theirs goes (`GATES`), so
  that whatever they have under way fails, surely undone, instead of meaning something else.

Guarantees: nothing is ever migrated but by `setup` where there is nothing yet and by `migrate`, which somebody asked
for; what was applied is recorded in the database itself, in a table whose form never changes; one at a time migrates
a database; a migration that a crash cut short is finished by the next `migrate`, not begun again.

Must not: know a driver, or what the tables mean.
"""

from .files import GATES, Migration, Part, Schema, SchemaError, read, shipped
from .grants import Grant, Role, grants, quoted, statements
from .meddling import SEARCH_PATH, meddlers, meddlers_sql
from .standing import MIGRATED, judge, pending
from .tables import Tables, rows_of, version_of

__all__ = [
    "GATES",
    "MIGRATED",
    "SEARCH_PATH",
    "Grant",
    "Migration",
    "Part",
    "Role",
    "Schema",
    "SchemaError",
    "Tables",
    "grants",
    "judge",
    "meddlers",
    "meddlers_sql",
    "pending",
    "quoted",
    "read",
    "rows_of",
    "shipped",
    "statements",
    "version_of",
]
