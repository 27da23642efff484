"""The engine and dialect through which SQLAlchemy speaks to one database: the user's own, or one made for a URL.

An engine made for a URL has no connections, only a dialect, a cache of compiled statements, and a place for events. Its
dialect is told about the server on a reserved session, before the first statement is compiled.

Guarantees: errors come out as SQLAlchemy's users know them from the same driver.

Must not: connect.
"""

from __future__ import annotations

from typing import Any, NoReturn

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.mysql.dml import OnDuplicateClause
from sqlalchemy.ext.asyncio import AsyncEngine

from ..errors import UsageError
from ..url import Url
from .face import Calls, Proxy

_DRIVERS = {
    ("postgres", False): "psycopg",
    ("postgres", True): "psycopg_async",
    ("mariadb", False): "pymysql",
    ("mariadb", True): "asyncmy",
    ("sqlite", False): "nodoubt",
    ("sqlite", True): "nodoubt_async",
}
registry.register("sqlite.nodoubt", f"{__package__}.sqlite", "Dialect")
registry.register("sqlite.nodoubt_async", f"{__package__}.sqlite", "AsyncDialect")


class Home:
    """One database's engine. `lent`: it is the user's; `ready`: its dialect knows the server."""

    def __init__(self, engine: Engine, asynchronous: AsyncEngine | None, *, lent: bool) -> None:
        self.engine = engine
        self.asynchronous = asynchronous or (AsyncEngine(engine) if engine.dialect.is_async else None)
        self.lent = lent
        self.ready = lent  # by the first of its connections

    def make_ready(self, calls: Calls) -> None:
        """Let the dialect ask the server. Two at a time do no harm: they are told the same."""
        proxy = Proxy(calls)
        asking = Connection(
            self.engine, connection=proxy, _has_events=False, _allow_revalidate=False, _allow_autobegin=False
        )
        self.engine.dialect.initialize(asking)
        self.ready = True

    def counts(self, statement: Any) -> bool:
        """Whether the count that comes with the statement's result says how many rows it wrote.

        SQLAlchemy's own connections have MariaDB count the rows found, and so those that an INSERT … ON DUPLICATE KEY
        UPDATE has found and left alone.
        """
        return not (self.lent and isinstance(getattr(statement, "_post_values_clause", None), OnDuplicateClause))

    def translated(self, error: Exception) -> Exception:
        """A driver's error in the shape that the dialect knows. The drivers themselves keep to PEP 249, but for two."""
        if self.engine.dialect.driver == "asyncpg":
            return _of_asyncpg(self.engine.dialect, error)
        if self.engine.dialect.name == "sqlite":
            from .sqlite import translated

            return translated(error)
        return error


def home_of_url(url: Url, *, asynchronous: bool) -> Home:
    """For a database that was given as a URL."""
    driver = "asyncpg" if asynchronous and url.driver == "asyncpg" else _DRIVERS[url.kind, asynchronous]
    options: dict[str, Any] = {}
    if driver.startswith("psycopg"):
        options["use_native_hstore"] = False  # it would be registered on connections that SQLAlchemy makes
    name = "postgresql" if url.kind == "postgres" else url.scheme
    place = URL.create(f"{name}+{driver}", host=url.host or None, port=url.port, database=url.database)
    engine = create_engine(place, creator=_no_connection, poolclass=NullPool, **options)
    if driver == "asyncpg":
        # SQLAlchemy's own connections decode JSON, by codecs. Ours hand it out as asyncpg does, so that a text
        # statement on the same session means the same before and after.
        engine.dialect.supports_native_json_deserialization = False
    return Home(engine, None, lent=False)


def home_of_engine(engine: Engine | AsyncEngine) -> Home:
    """For a user's own engine; its dialect is made ready by its first connection."""
    if isinstance(engine, AsyncEngine):
        return Home(engine.sync_engine, engine, lent=True)
    return Home(engine, None, lent=True)


def _no_connection() -> NoReturn:
    raise UsageError(
        "this engine belongs to nodoubt and has no connections of its own: work in a transaction's block, with "
        "tx[…].connection, or make an engine and give that to the coordinator in place of the URL"
    )


def _of_asyncpg(dialect: Any, error: Exception) -> Exception:
    from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection

    try:
        AsyncAdapt_asyncpg_connection._handle_exception_no_connection(dialect.dbapi, error)
    except Exception as translated:
        return translated
