"""SQLAlchemy's SQLite dialect on our SQLite: there must not be a second library in the process (FACTS).

Guarantees: types, SQL and errors are those that SQLAlchemy's users know from pysqlite.

Must not: open a file. Its connections are faces over our sessions.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.dialects.sqlite.base import SQLiteDialect

from ..drivers import sqlite_connection as driver


class Error(Exception):
    """PEP 249's tree, from here to `NotSupportedError`. `__cause__` is apsw's own error."""


class InterfaceError(Error):
    """The library was used in a wrong way."""


class DatabaseError(Error):
    """The root of all that a database can answer."""


class DataError(DatabaseError):
    """A value that cannot be stored."""


class OperationalError(DatabaseError):
    """Locks, disks, and statements that SQLite does not understand: pysqlite calls all of these so."""


class IntegrityError(DatabaseError):
    """A constraint."""


class InternalError(DatabaseError):
    """SQLite has found itself in a state that must not be."""


class ProgrammingError(DatabaseError):
    """Wrong parameters."""


class NotSupportedError(DatabaseError):
    """What this library was built without."""


class Dbapi:
    """What the dialect takes for the driver's module."""

    apilevel, paramstyle, threadsafety = "2.0", "qmark", 1
    Binary = bytes
    Error, InterfaceError, DatabaseError, DataError = Error, InterfaceError, DatabaseError, DataError
    OperationalError, IntegrityError, InternalError = OperationalError, IntegrityError, InternalError
    ProgrammingError, NotSupportedError = ProgrammingError, NotSupportedError
    sqlite_version = ".".join(map(str, driver.LIBRARY))
    sqlite_version_info = driver.LIBRARY


def translated(error: Exception) -> Exception:
    """An error of apsw's as PEP 249 names it; anything else as it is."""
    name = driver.standard_name(error)
    return error if name is None else getattr(Dbapi, name)(*error.args)


class Dialect(SQLiteDialect):
    """For threads."""

    driver = "nodoubt"
    default_paramstyle = "qmark"
    supports_statement_cache = True

    @classmethod
    def import_dbapi(cls) -> Any:
        return Dbapi

    def _get_server_version_info(self, connection: Any) -> tuple[int, ...]:
        return driver.LIBRARY

    def get_default_isolation_level(self, dbapi_conn: Any) -> Any:
        return "SERIALIZABLE"

    def get_isolation_level(self, dbapi_connection: Any) -> Any:
        return "SERIALIZABLE"


class AsyncDialect(Dialect):
    """For asyncio."""

    driver = "nodoubt_async"
    is_async = True
    supports_statement_cache = True
