"""From URLs and engines to a context: which driver, which scripts, which journal.

Guarantees: everything that can be wrong with the arguments is found here, before a connection is opened. Drivers, and
SQLAlchemy, are imported only when somebody asks for them; a missing one names the extra to install.
"""

from __future__ import annotations

import functools
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from .engine import register
from .engine.context import Context, Participant, Settings
from .engine.pool import AsyncPool, ThreadPool
from .engine.shell import AsyncShell, ThreadShell
from .errors import UsageError
from .ports import Backend, Clock, Journal, Observer, Resource, Session
from .url import Url, parse_url
from .xid import new_attempt, new_cluster, new_mark

if TYPE_CHECKING:
    from .alchemy.types import AsyncEngine, Engine
    from .doctor import Patient

ONLY = "db"  # the name of a resource that was given as a bare URL
JOURNAL_SESSIONS = 4  # concurrent decisions share a write, so a few sessions serve any number of transactions
LOCK_WAIT_SHARE = 0.5  # of the time for a call: SQLite itself tells of a locked file, before the call is cut off
LOOK_CONNECT_S = 5.0  # for a look at a database: whoever looks wants to know soon that it is down
_NAME_MAX = 63
NAMES = f"printable text of 1 to {_NAME_MAX} characters"

# A database: its URL, a SQLAlchemy engine that the user has, or one of a kind that is not ours.
Where: TypeAlias = "str | Engine | AsyncEngine | Backend"
Resources: TypeAlias = "Where | Mapping[str, Where]"


@dataclass(frozen=True, slots=True)
class _Place:
    """One database as it was given."""

    url: Url
    engine: Any = None
    backend: Backend | None = None

    def resource(self, name: str) -> Resource:
        return resource_of(name, self.url) if self.backend is None else self.backend.resource(name)

    def journal(self) -> Journal:
        return journal_of(self.url) if self.backend is None else self.backend.journal()

    @property
    def is_server(self) -> bool:
        """Whether its sessions are ours and many may write: one does in a file, and an engine's are the user's."""
        return self.engine is None and self.backend is None and self.url.kind != "sqlite"

    def is_same(self, other: _Place) -> bool:
        return self.backend is other.backend and (self.backend is not None or self.url == other.url)


class SystemClock:
    """The machine's clocks."""

    now = staticmethod(time.time)
    elapsed = staticmethod(time.monotonic)


class RandomIds:
    """The machine's randomness."""

    def attempt(self) -> str:
        return new_attempt()

    def cluster(self) -> str:
        return new_cluster()

    def mark(self) -> str:
        return new_mark()


def owner() -> str:
    """Who this is, for people: host and process."""
    return f"{socket.gethostname()}/{os.getpid()}"


def context(
    resources: Resources,
    *,
    journal: Where | None,
    settings: Settings,
    observer: Observer | None,
    clock: Clock | None,
    shell: ThreadShell | AsyncShell,
) -> Context:
    """A context over pools that connect when they are first used."""
    if not isinstance(settings, Settings):
        raise UsageError(f"settings are nodoubt.Settings(pool_size=…), not {type(settings).__name__}")
    answer_s, decide_s = settings.answer_s, settings.decide_s
    places = _named(resources, shell)
    journal_place = _journal_of(places, journal, shell)
    wired = Context(
        participants={
            name: Participant(
                name,
                place.resource(name),
                *_pools(name, place, settings, shell),
                holds_journal=place is journal_place,
                home=_home(name, place, shell),
                lingers=place.is_server and place.url.kind == "mariadb",
            )
            for name, place in places.items()
        },
        journal=journal_place.journal(),
        journal_pool=_pool("the journal", journal_place, settings, JOURNAL_SESSIONS, shell, min(decide_s, answer_s)),
        register_batch=None,
        settings=settings,
        clock=clock or SystemClock(),
        ids=RandomIds(),
        observer=observer,
        owner=owner(),
    )
    wired.register_batch = register_batch(wired, shell)
    wired.aside = shell.aside
    return wired


def register_batch(ctx: Context, shell: ThreadShell | AsyncShell) -> Any:
    """What lets the concurrent decisions of one process share a forced write."""
    return shell.batch(lambda decisions: register.write(ctx, decisions))


@contextmanager
def onlooker(
    resources: Resources, journal: str | None, settings: Settings | None = None
) -> Iterator[tuple[Context, ThreadShell]]:
    """A context without a coordinator, to look and not to take part: no epoch is raised, nothing is admitted."""
    shell = ThreadShell()
    ctx = context(resources, journal=journal, settings=settings or Settings(), observer=None, clock=None, shell=shell)
    try:
        yield ctx, shell
    finally:
        for participant in ctx.participants.values():
            participant.pool.close()
            participant.reserve.close()
        ctx.journal_pool.close()
        shell.close()


@contextmanager
def patients(urls: Mapping[str, Url]) -> Iterator[tuple[list[Patient], ThreadShell]]:
    """Databases to look at and not to write to, whoever's they are; each opened when it is first asked."""
    from .doctor import Patient

    shell = ThreadShell()
    settings = Settings(connect_s=LOOK_CONNECT_S)
    found = [
        Patient(name, str(url), url.kind, url.database, _looking_pool(name, url, settings, shell), *_scripts(name, url))
        for name, url in urls.items()
    ]
    try:
        yield found, shell
    finally:
        for patient in found:
            patient.pool.close()
        shell.close()


def _scripts(name: str, url: Url) -> tuple[Resource, Journal]:
    return resource_of(name, url), journal_of(url)


def _looking_pool(name: str, url: Url, settings: Settings, shell: ThreadShell) -> ThreadPool:
    """One session. A missing driver is an error of this database alone, so it is imported when the pool connects."""

    def connect() -> Session:
        if url.kind == "sqlite":
            from .drivers import sqlite_onlooker

            return sqlite_onlooker.connect(url)
        session: Any = _driver(url)(url, connect_timeout_s=settings.connect_s)
        if url.kind == "postgres":
            session.read_any_text()
        return session  # type: ignore[no-any-return]

    return ThreadPool(name, connect, size=1, acquire_s=settings.acquire_s, call=shell.call)


def is_name(name: object) -> bool:
    """Whether a resource may be called so."""
    return isinstance(name, str) and 0 < len(name) <= _NAME_MAX and name.isprintable() and "://" not in name


def _named(resources: Resources, shell: ThreadShell | AsyncShell) -> dict[str, _Place]:
    if not isinstance(resources, Mapping):
        return {ONLY: _place(resources, shell)}
    if not resources:
        raise UsageError('resources are one URL or engine, or names with them: {"orders": "postgresql://…"}')
    for name in resources:
        if not is_name(name):
            raise UsageError(f"a resource's name is {NAMES}, not {name!r}")
    return {name: _place(given, shell) for name, given in resources.items()}


def _place(given: Where, shell: ThreadShell | AsyncShell) -> _Place:
    if isinstance(given, str):
        return _Place(parse_url(given))
    if isinstance(given, Backend):
        given.require(asynchronous=isinstance(shell, AsyncShell))
        return _Place(Url(type(given).__name__, ""), backend=given)
    if "sqlalchemy" not in sys.modules:
        raise UsageError(f"a resource is a URL or a SQLAlchemy engine, not {type(given).__name__}")
    from .alchemy.engines import url_of

    return _Place(url_of(given, asynchronous=isinstance(shell, AsyncShell)), given)


def _journal_of(places: Mapping[str, _Place], journal: Where | None, shell: ThreadShell | AsyncShell) -> _Place:
    """A resource's place, by its name or because it is the same; or a place of the journal's own."""
    if journal is None:
        return next(iter(places.values()))
    if isinstance(journal, str) and journal in places:
        return places[journal]
    if isinstance(journal, str) and "://" not in journal:
        raise UsageError(
            f"journal={journal!r} is neither a resource ({', '.join(places)}) nor a URL of a database of its own"
        )
    own = _place(journal, shell)
    return next((place for place in places.values() if place.is_same(own)), own)


def resource_of(name: str, url: Url) -> Resource:
    """The scripts of a database that takes part. Imports no driver."""
    if url.kind == "postgres":
        from .resources.postgres import PostgresResource

        return PostgresResource(name)
    if url.kind == "mariadb":
        from .resources.mariadb import MariaDBResource

        return MariaDBResource(name, url.database)
    from .resources.sqlite import SqliteResource

    return SqliteResource(name)


def journal_of(url: Url) -> Journal:
    """The scripts of a journal. Imports no driver."""
    from .journals.dialects import MariaDBDialect, PostgresDialect, SqliteDialect
    from .journals.sql import SqlJournal

    if url.kind == "postgres":
        return SqlJournal(PostgresDialect())
    if url.kind == "mariadb":
        return SqlJournal(MariaDBDialect(url.database))
    return SqlJournal(SqliteDialect())


def _pools(name: str, place: _Place, settings: Settings, shell: ThreadShell | AsyncShell) -> tuple[Any, Any]:
    """For work, and in reserve. What the reserve is too small for, an idle session of the other does, on a server."""
    work = _work_pool(name, place, settings, shell)
    beside = work if place.is_server else None
    shortest_s = min(settings.prepare_s, settings.apply_s, settings.answer_s)
    return work, _pool(name, place, settings, settings.reserve_size, shell, shortest_s, beside)


def _work_pool(name: str, place: _Place, settings: Settings, shell: ThreadShell | AsyncShell) -> Any:
    if place.engine is None:
        return _pool(name, place, settings, settings.pool_size, shell, settings.prepare_s)
    from .alchemy import engines

    if isinstance(shell, AsyncShell):
        return engines.AsyncEnginePool(name, place.engine)
    return engines.EnginePool(name, place.engine, call=shell.call)


def _pool(
    name: str,
    place: _Place,
    settings: Settings,
    size: int,
    shell: ThreadShell | AsyncShell,
    call_s: float,
    beside: Any = None,
) -> Any:
    """`call_s`: the time that the shortest-lived of its calls has, where it may wait for a lock."""
    if isinstance(shell, AsyncShell):
        connect_async = _aconnect(place, settings, call_s)
        return AsyncPool(name, connect_async, size=size, acquire_s=settings.acquire_s, beside=beside)
    connect = _connect(place, settings, call_s)
    return ThreadPool(name, connect, size=size, acquire_s=settings.acquire_s, call=shell.call, beside=beside)


def _connect(place: _Place, settings: Settings, call_s: float) -> Callable[[], Session]:
    if place.backend is not None:
        return place.backend.connect
    if place.engine is not None:
        from .alchemy.engines import connecting

        return connecting(place.engine)
    return functools.partial(_driver(place.url), place.url, **_patience(place.url, settings, call_s))


def _aconnect(place: _Place, settings: Settings, call_s: float) -> Callable[[], Awaitable[Any]]:
    if place.backend is not None:
        return place.backend.aconnect
    if place.engine is not None:
        from .alchemy.engines import connecting_async

        return connecting_async(place.engine)
    return functools.partial(_async_driver(place.url), place.url, **_patience(place.url, settings, call_s))


def _patience(url: Url, settings: Settings, call_s: float) -> dict[str, float]:
    """How long a session waits, which only SQLite's is told of locks: a server's are bounded by the server."""
    times = {"connect_timeout_s": settings.connect_s}
    if url.kind == "sqlite":
        times["lock_wait_s"] = LOCK_WAIT_SHARE * call_s
    return times


def _home(name: str, place: _Place, shell: ThreadShell | AsyncShell) -> Callable[[], Any]:
    """Imports SQLAlchemy only when somebody speaks it."""

    @functools.cache
    def made() -> Any:
        if place.backend is not None:
            raise UsageError(f"{name} is {place.backend}: whose SQL nobody here knows: use execute()")
        from .alchemy import home

        if place.engine is not None:
            return home.home_of_engine(place.engine)
        return home.home_of_url(place.url, asynchronous=isinstance(shell, AsyncShell))

    return made


def _driver(url: Url) -> Callable[..., Session]:
    if url.kind == "postgres":
        from .drivers import psycopg

        return psycopg.connect
    if url.kind == "mariadb":
        from .drivers import pymysql

        return pymysql.connect
    from .drivers import sqlite

    return sqlite.connect


def _async_driver(url: Url) -> Callable[..., Awaitable[Any]]:
    if url.kind == "postgres":
        if url.driver == "asyncpg":
            from .drivers import asyncpg

            return asyncpg.connect
        from .drivers import psycopg_async

        return psycopg_async.connect
    if url.kind == "mariadb":
        from .drivers import asyncmy

        return asyncmy.connect
    from .drivers import sqlite

    return sqlite.aconnect
