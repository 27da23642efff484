"""Whether a file can keep a promise: what is refused, and what is only worth a warning."""

from __future__ import annotations

import os

from ...errors import ResourceRefused
from .face import Connection
from .tables import load

WAL_SAFE_VERSION = (3, 51, 3)
FULL, EXTRA = 2, 3  # PRAGMA synchronous

# A WAL's index is shared memory, and POSIX locks are often not kept, between the machines of such a file system.
NETWORK_FILESYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ncpfs", "ceph", "glusterfs", "fuse.sshfs", "fuse.glusterfs"}
)


def check(connection: Connection) -> tuple[str, ...]:
    """Raise `ResourceRefused`, naming the setting; return warnings."""
    if not connection.path or not os.path.isfile(connection.path):
        raise ResourceRefused("a SQLite database in memory, or a temporary one, cannot survive a crash: name a file")
    if connection.readonly:
        raise ResourceRefused(f"{connection.path} is read-only: allow this process to write the file and its directory")
    _check_durability(connection)
    encoding = connection.query("PRAGMA main.encoding")[0][0]
    if encoding != "UTF-8":
        raise ResourceRefused(f"{connection.path} has PRAGMA encoding = {encoding}; only UTF-8 can be staged exactly")
    schema = load(connection)
    barred = [f"cannot take part in two-phase commit: {why}" for _, why in sorted(schema.barred.items())]
    return (*_network(connection.path), *barred)


def _check_durability(connection: Connection) -> None:
    mode = connection.query("PRAGMA main.journal_mode")[0][0]
    synchronous = connection.query("PRAGMA main.synchronous")[0][0]
    version = ".".join(map(str, connection.library))
    if mode == "wal" and connection.library < WAL_SAFE_VERSION:
        raise ResourceRefused(
            f"{connection.path} has PRAGMA journal_mode = WAL, and SQLite {version} can corrupt a WAL file: use SQLite "
            "3.51.3 or newer (apsw brings one), or set journal_mode = DELETE"
        )
    if mode not in ("wal", "delete", "truncate", "persist"):
        raise ResourceRefused(f"PRAGMA journal_mode = {mode} does not survive a crash: set WAL or DELETE")
    least, name = (FULL, "FULL") if mode == "wal" else (EXTRA, "EXTRA")
    if synchronous < least:
        raise ResourceRefused(f"PRAGMA synchronous = {synchronous} with journal_mode = {mode}: it must be {name}")
    if connection.query("PRAGMA main.locking_mode")[0][0] != "normal":
        raise ResourceRefused("PRAGMA locking_mode = EXCLUSIVE keeps recovery out: set NORMAL")


def _network(path: str) -> tuple[str, ...]:
    kind = filesystem(path)
    if kind not in NETWORK_FILESYSTEMS:
        return ()
    return (f"{path} is on a network file system ({kind}): its locks and flushes may not hold; use a local disk",)


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
