"""Databases in memory that can take part: what PostgreSQL, MariaDB and SQLite do, where the protocol depends on it.

Each flavour is a server, which answers messages as the real one does (tags, error codes, locks, what a crash takes),
and the scripts over it, which send the messages that the real resource sends, in the same order, and read the answers
as warily. Whoever drives a server decides how long a message waits for a lock or for the disk, and when the server
dies: `nodoubt.testing.world` does.

A journal in memory can be the server's guest: then a decision rides in the very transaction that carries the work.

Must not: be reachable by a URL. Nothing here outlives the process.
"""

from __future__ import annotations

from .mariadb import MemoryMariaDB, MemoryMariaDBResource
from .postgres import MemoryPostgres, MemoryPostgresResource
from .server import Guest, Locked, MemoryServer, Tables, Writing
from .sqlite import MemorySqlite, MemorySqliteResource

__all__ = [
    "Guest",
    "Locked",
    "MemoryMariaDB",
    "MemoryMariaDBResource",
    "MemoryPostgres",
    "MemoryPostgresResource",
    "MemoryServer",
    "MemorySqlite",
    "MemorySqliteResource",
    "Tables",
    "Writing",
]
