"""SQLite through apsw, to look and change nothing: not the file, and nothing beside it.

`mode=ro` alone does not do that. Measured with SQLite 3.54 (tests/doctor): a read-only connection to a file in WAL mode
makes a `-wal` and a `-shm` where there are none, and leaves them; where there is a `-shm`, it writes into it. So it
depends on what lies beside the file:

    -shm is there           somebody has the file open, or died with it open: `readonly_shm=1`. The WAL is read, by
                            the index that stands or one in our own memory; nothing is written, and no lock but a
                            reader's is taken
    a -wal alone            its index is lost (a copy, or the machine went down). It cannot be read without making
                            one, and without it the file may be half of a checkpoint: refused
    neither, WAL mode       the last user has closed it, so all is in the file: `immutable=1`, which takes no lock at
                            all. Read while somebody opens and writes it: refused afterwards, to be asked again
    neither, another mode   `mode=ro`: a reader's lock for as long as a statement runs, which a writer's commit waits
                            for. A journal that a crash has left would have to be rolled back first: refused

What is left: between the look for a `-shm` and the opening the last user may close the file; then an empty `-wal` can
stay behind, as SQLite itself leaves one.

Must not: write, lock for writing, checkpoint, or recover.
"""

from __future__ import annotations

import os
from urllib.parse import quote

from ..errors import MissingExtra, ResourceUnavailable
from ..ports import SessionLost, StatementFailed
from ..url import Url
from . import sqlite_files
from .sqlite import SqliteSession, _may_be_open
from .sqlite_connection import Connection

try:
    import apsw
except ImportError:
    raise MissingExtra("SQLite", "sqlite") from None

LOCK_WAIT_S = 1.0
_WAL_VERSION = b"\x02\x02"  # bytes 18 and 19 of the file: it is in WAL mode
_VERSION_AT = 18


class Onlooker(Connection):
    """A connection that only reads. `journal_mode`: the file's own (SQLite tells another of an immutable file)."""

    journal_mode: str

    def settled(self) -> bool:
        """Whether what was read is what the file holds: False if it was opened by a writer meanwhile."""
        return self._kept_out is None or self._kept_out == _beside(self.path)

    _kept_out: tuple[object, ...] | None = None


def connect(url: Url, *, connect_timeout_s: float = LOCK_WAIT_S) -> SqliteSession:
    """Open a session. Raises `ResourceUnavailable` where reading would change something."""
    path = os.path.abspath(url.database)
    if not os.path.isfile(path):
        raise ResourceUnavailable(f"there is no file {path}")
    before = _beside(path)
    shm, wal_bytes = os.path.exists(path + "-shm"), _size(path + "-wal")
    if wal_bytes and not shm:
        raise ResourceUnavailable(
            f"{path} has a write-ahead log of {wal_bytes} bytes without its index: it was copied, or its machine went "
            "down. To read it would make that index: have the program that it belongs to open it first"
        )
    try:
        immutable = not shm and _is_wal(path)
        options = "readonly_shm=1" if shm else "immutable=1" if immutable else "mode=ro"
        session = _open(path, options, connect_timeout_s)
    except (apsw.Error, SessionLost, StatementFailed) as error:
        raise ResourceUnavailable(f"cannot look at {path} without changing it: {_reason(error)}") from error
    connection = session.connection
    assert isinstance(connection, Onlooker)
    connection.journal_mode = "wal" if immutable else connection.query("PRAGMA main.journal_mode")[0][0]
    connection._kept_out = before if immutable else None
    return session


def _open(path: str, options: str, lock_wait_s: float) -> SqliteSession:
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    name = f"file:{quote(path)}?{options}"
    database, key = sqlite_files.hold(path, lambda: apsw.Connection(name, flags=flags), _may_be_open)
    session = SqliteSession(Onlooker(database, lock_wait_s), key)
    try:
        session.call(lambda connection: connection.query("SELECT 1 FROM main.sqlite_schema LIMIT 1"))
    except BaseException:
        session.close()
        raise
    return session


def _is_wal(path: str) -> bool:
    """By the file's header, read through SQLite: closing a descriptor of our own would drop this process's locks."""
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    opening = f"file:{quote(path)}?immutable=1"
    database, key = sqlite_files.hold(path, lambda: apsw.Connection(opening, flags=flags), _may_be_open)
    try:
        return _size(path) > 0 and database.read("main", 0, _VERSION_AT, 2)[1] == _WAL_VERSION
    finally:
        database.close()
        sqlite_files.let_go(key)


def _beside(path: str) -> tuple[object, ...]:
    """What would tell that somebody has opened the file and written."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, _size(path + "-wal"), os.path.exists(path + "-shm")


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _reason(error: Exception) -> str:
    code = getattr(error, "extendedresult", None) or getattr(error, "code", None)
    if str(code) == str(apsw.SQLITE_READONLY_ROLLBACK):
        return (
            "a crash has left a journal, which the next program that opens the file for writing rolls back; have the "
            "program that it belongs to open it"
        )
    return str(error)
