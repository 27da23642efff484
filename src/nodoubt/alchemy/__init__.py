"""SQLAlchemy at home in a branch: Core statements, connections, ORM sessions, and a user's own engines as resources.

One mechanism carries all of it. A SQLAlchemy `Connection` is put on a small PEP 249 face (`face`), whose cursor sends
every statement the way that `execute` with a text goes: through `engine.attempt`, which refuses transaction control,
dooms the branch at an error, counts what is set back by a savepoint, and ends it with proof. So no statement of
SQLAlchemy's has a way of its own to the server, and there is no BEGIN, COMMIT or ROLLBACK of SQLAlchemy's at all.

The rooms: `face` (cursor and connection), `part` (one branch as SQLAlchemy sees it), `home` (the engine and dialect of
one database: the user's, or one made for a URL), `engines` (pools over a user's engine), `sqlite` (the dialect on our
SQLite).

Must not: be imported before somebody uses SQLAlchemy with nodoubt.
"""

from __future__ import annotations

from ..errors import MissingExtra, UsageError

try:
    import sqlalchemy
except ImportError:
    raise MissingExtra("a statement, connection or session of SQLAlchemy's", "sqlalchemy") from None

VERSION_MIN = (2, 1)

if tuple(map(int, sqlalchemy.__version__.split(".")[:2])) < VERSION_MIN:
    raise UsageError(f"nodoubt speaks with SQLAlchemy from 2.1 on, and this is {sqlalchemy.__version__}: upgrade it")
