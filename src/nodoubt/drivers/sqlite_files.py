"""Which SQLite files this process holds open, and what must be kept away from them.

SQLite's locks are POSIX locks, and those belong to the process: closing *any* descriptor of a file drops all locks
that the process has on it. Inside one SQLite library that is taken care of. A second copy of the library (Python's
`sqlite3` beside apsw's own) knows nothing of the first: it closes its connection, the first one's locks are gone,
and two writers overwrite each other's commits without an error.

Guarantees: a file that we hold open cannot be opened by `sqlite3.connect` in this process (an audit hook refuses
it); a file that another library holds open already is refused by `hold`, as far as /proc tells; after a
fork, the child cannot open a file that the parent had open at that moment: SQLite's record of what is locked is
copied by the fork, so that the child would take locks it does not have for granted (measured: none at all are taken).

Must not: import apsw, or open or close a database file itself (that very close would drop the locks).
"""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

from ..errors import ResourceRefused

Key = tuple[int, int]  # st_dev, st_ino: two paths, or a link, may name one file

# Where SQLite locks for writing: byte 120 of the -shm file in WAL, the RESERVED byte of the file otherwise.
_WAL_WRITE_BYTE = 120
_RESERVED_BYTE = 0x40000000 + 1

_LOCKS_FIELDS = 8  # of a line in /proc/locks that tells who holds what


class _Registry:
    """What this process holds open. Hooks cannot be removed, so the audit hook asks here what is held now."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.held: Counter[Key] = Counter()
        self.inherited: set[Key] = set()
        self.hooked = False

    def forked(self) -> None:
        """In the child: a new lock (a thread of the parent's may have held the old one), and nothing is held here."""
        self.lock = threading.RLock()
        self.inherited.update(self.held)
        self.held.clear()


_here = _Registry()
os.register_at_fork(after_in_child=_here.forked)


def key_of(path: str | bytes | os.PathLike[Any]) -> Key | None:
    """Which file a path names; None if there is none yet."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def hold(path: str, opening: Callable[[], Any], ours: Callable[[Key], bool]) -> tuple[Any, Key]:
    """Open the file with `opening` and count it as held. `ours`: whether our own library may have it open already.

    Raises `ResourceRefused` if another library holds it, or a parent process did when it forked.
    """
    with _here.lock:
        if not _here.hooked:
            sys.addaudithook(_audit)
            _here.hooked = True
        key = key_of(path)
        if key is not None:
            _refuse_inherited(path, key)
            if not _here.held[key] and not ours(key):
                _refuse_stranger(path, key)
        opened = opening()
        key = key_of(path)
        if key is None:
            raise ResourceRefused(f"{path} was opened but cannot be found: it is not a file that could survive a crash")
        _here.held[key] += 1
        return opened, key


def let_go(key: Key) -> None:
    """One connection to the file has been closed."""
    with _here.lock:
        _here.held[key] -= 1
        if _here.held[key] <= 0:
            del _here.held[key]


def writers(path: str) -> str:
    """Who has the file locked for writing, in words, for somebody who has met that lock."""
    return " and ".join(lockers(path) or ()) or "another connection"


def lockers(path: str) -> tuple[str, ...] | None:
    """The processes that have the file locked for writing, as far as /proc/locks tells; None: it does not."""
    places = {}
    for name, byte in ((path + "-shm", _WAL_WRITE_BYTE), (path, _RESERVED_BYTE)):
        key = key_of(name)
        if key is not None:
            places[str(key[1])] = byte
    try:
        with open("/proc/locks", encoding="ascii") as file:
            lines = [line.split() for line in file]
    except OSError:
        return None
    pids = {int(line[4]) for line in lines if len(line) == _LOCKS_FIELDS and _covers(line, places)}
    return tuple(sorted(map(_who, pids)))


def _covers(line: list[str], places: dict[str, int]) -> bool:
    _, _, _, mode, _, where, first, last = line
    byte = places.get(where.rpartition(":")[2])
    return byte is not None and mode == "WRITE" and int(first) <= byte and (last == "EOF" or byte <= int(last))


def _who(pid: int) -> str:
    if pid == os.getpid():
        return "another connection of this process"
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return f"process {pid} ({file.read().strip()})"
    except OSError:
        return f"process {pid}"


def _refuse_inherited(path: str, key: Key) -> None:
    if key in _here.inherited:
        raise ResourceRefused(
            f"{path} was open in the parent process when it forked, so this process cannot lock it safely: start "
            "workers with spawn or forkserver, or create the coordinator after the fork"
        )


def _refuse_stranger(path: str, key: Key) -> None:
    """A descriptor on a file that we have not opened is another library's, or will drop our locks when it closes."""
    try:
        descriptors = os.listdir("/proc/self/fd")
    except OSError:
        return
    if any(key_of(f"/proc/self/fd/{number}") == key for number in descriptors):
        raise ResourceRefused(
            f"{path} is open in this process by something else than nodoubt (Python's sqlite3, or a plain open()): two "
            "SQLite libraries on one file lose commits. Close it first, and use nodoubt or apsw in this process"
        )


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event != "sqlite3.connect":
        return
    with _here.lock:
        if _here.held and any(_here.held[key] for key in map(key_of, _paths(args[0])) if key is not None):
            raise ResourceRefused(
                f"sqlite3.connect({args[0]!r}) was refused: nodoubt holds this file open with another SQLite library, "
                "and two libraries in one process lose commits. Use nodoubt or apsw here, or another process"
            )


def _paths(database: Any) -> list[Any]:
    """The files that a `database` argument may name: as a path, and as a URI."""
    if isinstance(database, os.PathLike):
        database = os.fspath(database)
    text = os.fsdecode(database) if isinstance(database, bytes) else database
    if not isinstance(text, str):
        return []
    return [text, unquote(urlsplit(text).path)] if text.startswith("file:") else [text]
