"""Whether a file can keep a promise: what is refused, and what is only worth a warning."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ...ports import Shortcoming, require_none
from ...schema import meddlers, meddlers_sql
from .face import Connection
from .tables import load

WAL_SAFE_VERSION = (3, 51, 3)
FULL, EXTRA = 2, 3  # PRAGMA synchronous

# A WAL's index is shared memory, and POSIX locks are often not kept, between the machines of such a file system.
NETWORK_FILESYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ncpfs", "ceph", "glusterfs", "fuse.sshfs", "fuse.glusterfs"}
)


@dataclass(frozen=True, slots=True)
class FileState:
    """What is known of a file and of the connection to it; None: not of interest, or not to be known."""

    path: str
    library: tuple[int, ...]
    journal_mode: str
    encoding: str
    network: str  # the type of its file system, if that is one of a network
    synchronous: int | None = None
    locking_mode: str | None = None


def check(connection: Connection) -> tuple[str, ...]:
    """Raise `ResourceRefused`, naming the setting; return warnings."""
    path = connection.path
    if not path or not os.path.isfile(path):
        _refuse(path or "a temporary database", "a database in memory, or a temporary one, cannot survive a crash")
    if connection.readonly:
        _refuse(path, "it is read-only: allow this process to write the file and its directory")
    state = FileState(
        path,
        connection.library,
        connection.query("PRAGMA main.journal_mode")[0][0],
        connection.query("PRAGMA main.encoding")[0][0],
        network(path),
        connection.query("PRAGMA main.synchronous")[0][0],
        connection.query("PRAGMA main.locking_mode")[0][0],
    )
    meddling = meddlers("sqlite", connection.query(meddlers_sql("sqlite")))
    found = require_none([*shortcomings(state), *meddling], path)
    schema = load(connection)
    return (*found, *(f"cannot take part in two-phase commit: {why}" for _, why in sorted(schema.barred.items())))


def _refuse(path: str, why: str) -> None:
    require_none([Shortcoming(what=path, advice=why, refused=True)], "a SQLite database")


def shortcomings(file: FileState) -> list[Shortcoming]:
    """What stands in the way, refusals first."""
    found = []

    def refuse(holds: bool, what: str, advice: str, line: str = "") -> None:
        if holds:
            found.append(Shortcoming(what=what, advice=advice, refused=True, line=line))

    mode = file.journal_mode
    version = ".".join(map(str, file.library))
    refuse(
        mode == "wal" and file.library < WAL_SAFE_VERSION,
        f"PRAGMA journal_mode = WAL, and SQLite {version} can corrupt a WAL file",
        "use SQLite 3.51.3 or newer (apsw brings one), or set journal_mode = DELETE",
        "PRAGMA journal_mode = DELETE",
    )
    refuse(
        mode not in ("wal", "delete", "truncate", "persist"),
        f"PRAGMA journal_mode = {mode} does not survive a crash",
        "set WAL or DELETE",
        "PRAGMA journal_mode = WAL",
    )
    least, name = (FULL, "FULL") if mode == "wal" else (EXTRA, "EXTRA")
    refuse(
        file.synchronous is not None and file.synchronous < least,
        f"PRAGMA synchronous = {file.synchronous} with journal_mode = {mode}",
        f"it must be {name}",
        f"PRAGMA synchronous = {name}",
    )
    refuse(
        file.locking_mode not in (None, "normal"),
        "PRAGMA locking_mode = EXCLUSIVE keeps recovery out",
        "set NORMAL",
        "PRAGMA locking_mode = NORMAL",
    )
    refuse(
        file.encoding != "UTF-8",
        f"PRAGMA encoding = {file.encoding}",
        "only UTF-8 can be staged exactly; the encoding of a file is chosen when it is made",
    )
    if file.network:
        found.append(
            Shortcoming(
                what=f"it is on a network file system ({file.network})",
                advice="its locks and flushes may not hold; use a local disk",
            )
        )
    return found


def network(path: str) -> str:
    """The type of the file system that a path is on, if that is one of a network; else ""."""
    kind = filesystem(path)
    return kind if kind in NETWORK_FILESYSTEMS else ""


def filesystem(path: str) -> str:
    """The type of the file system that a path is on; "" where /proc does not tell."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                fields = line.split()
                if fields[2] == wanted:
                    return fields[fields.index("-") + 1]
    except (OSError, ValueError, IndexError):
        return ""
    return ""
