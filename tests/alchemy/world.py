"""What the tests of SQLAlchemy in a branch share: every way to give a database, models, one face for both modes.

The branch under test is always `a`. `b`, a SQLite file, holds the journal and writes too, so that `a` has to prepare.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, create_engine, inspect
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from kit import QUICK, Database, make_database
from nodoubt import AsyncCoordinator, Coordinator
from nodoubt.url import parse_url


class Base(DeclarativeBase):
    """The models' registry."""


class Account(Base):
    """What `kit.Database` creates."""

    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    balance: Mapped[int]


@dataclass(frozen=True)
class Way:
    """How a database is given: its kind, by whom it is driven, as a URL or as an engine of the user's."""

    kind: str
    mode: str
    driver: str = ""  # "": a URL

    def __str__(self) -> str:
        return f"{self.kind}-{self.mode}-{self.driver or 'url'}"

    @property
    def engine(self) -> bool:
        return bool(self.driver)


URLS = [Way(kind, mode) for kind in ("sqlite", "postgres", "mariadb") for mode in ("sync", "async")]
ENGINES = [
    Way("postgres", "sync", "psycopg"),
    Way("postgres", "async", "asyncpg"),
    Way("postgres", "async", "psycopg"),
    Way("mariadb", "sync", "pymysql"),
    Way("mariadb", "async", "asyncmy"),
    Way("mariadb", "async", "aiomysql"),
]
PSYCOPG, ASYNCPG, ASYNC_PSYCOPG, PYMYSQL, ASYNCMY, AIOMYSQL = ENGINES
WAYS = URLS + ENGINES
MIX = [URLS[1], URLS[3], URLS[4], PSYCOPG, ASYNC_PSYCOPG, ASYNCMY]  # where it is no driver's doing


def engine_over(database: Database, driver: str, mode: str = "", **options: Any) -> Any:
    """A user's own engine on that database. `mode`: for the one driver that has both."""
    where = parse_url(database.url)
    name = "postgresql" if where.kind == "postgres" else "mariadb"
    url = URL.create(
        f"{name}+{driver}",
        username=where.user or None,
        password=where.password or None,
        host=where.host,
        port=where.port,
        database=where.database,
    )
    if driver == "pymysql":
        options.setdefault("connect_args", {"ssl_disabled": True})  # as in `kit`
    asynchronous = mode == "async" or driver in ("asyncpg", "asyncmy", "aiomysql")
    return (create_async_engine if asynchronous else create_engine)(url, **options)


class World:
    """Two databases, and a coordinator over them, behind coroutines whatever the mode."""

    def __init__(self, way: Way, a: Database, b: Database, engine: Any, db: Any) -> None:
        self.way, self.a, self.b, self.engine, self.db = way, a, b, engine, db

    async def wait(self, answer: Any) -> Any:
        """The answer of a method that is a coroutine's in async mode."""
        return answer if self.way.mode == "sync" else await answer

    @contextlib.asynccontextmanager
    async def within(self, block: Any) -> AsyncIterator[Any]:
        """Any of SQLAlchemy's or our own blocks."""
        if self.way.mode == "sync":
            with block as inside:
                yield inside
        else:
            async with block as inside:
                yield inside

    @contextlib.asynccontextmanager
    async def transaction(self, *args: Any, **options: Any) -> AsyncIterator[Any]:
        """A block in which `b` has written already."""
        async with self.within(self.db.transaction(*args, **options)) as tx:
            await self.wait(tx["b"].execute("update accounts set balance = balance + 1 where id = 1"))
            yield tx

    @property
    def pool(self) -> Any:
        """The user's own pool."""
        return inner(self.engine).pool

    def committed(self) -> bool:
        """Whether `b` has: everything else must be as this is."""
        assert self.b.balance(1) in (100, 101)
        return self.b.balance(1) == 101

    def left_clean(self) -> bool:
        return not any(d.prepared() or d.locked() for d in (self.a, self.b))


def inner(engine: Any) -> Any:
    """The synchronous engine inside, where events are listened to."""
    return engine.sync_engine if isinstance(engine, AsyncEngine) else engine


Opening = Callable[..., Any]


@contextlib.asynccontextmanager
async def opened(way: Way, request: Any, tmp_path: Path, *, engine: Any = None, **options: Any) -> AsyncIterator[World]:
    """A world of that way. `engine`: options of the user's engine, or a function that makes one for the database."""
    a, b = make_database(way.kind, "a", request, tmp_path), make_database("sqlite", "b", request, tmp_path)
    given: Any = a.url
    if way.engine:
        given = engine(a) if callable(engine) else engine_over(a, way.driver, way.mode, **(engine or {}))
    options.setdefault("settings", QUICK)
    make: Any = Coordinator if way.mode == "sync" else AsyncCoordinator
    db = make({"a": given, "b": b.url}, journal="b", recovery=False, **options)
    world = World(way, a, b, given if way.engine else None, db)
    await world.wait(db.open())
    try:
        await world.wait(db.setup())
        yield world
    finally:
        await world.wait(db.close())
        if way.engine:
            await world.wait(given.dispose())


def state_of(instance: object) -> Any:
    return inspect(instance)
