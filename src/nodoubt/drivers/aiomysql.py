"""The async session on MariaDB and MySQL, over aiomysql: for users' own engines alone; URLs are served by asyncmy.

Guarantees: see `mysql_async`.

Must not: see `mysql_async`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pymysql.err import MySQLError

from . import mysql_wire as wire
from .mysql_async import LentMySQLSession


class LentAiomysqlSession(LentMySQLSession):
    """A connection on loan."""

    errors: ClassVar[type[Exception]] = MySQLError

    def __init__(self, connection: Any, read_timeout_s: float) -> None:
        super().__init__(connection, read_timeout_s)
        self._first_transport = connection._writer.transport

    def _transport(self) -> Any:
        return self._first_transport


def lend(connection: Any, _: str) -> LentAiomysqlSession:
    """A session over a connection of the user's pool. Its isolation level is the connection's own already."""
    return LentAiomysqlSession(connection, wire.READ_TIMEOUT_DEFAULT_S)
