"""From URLs to a context: which driver, which scripts, which journal.

Guarantees: everything that can be wrong with the arguments is found here, before a connection is opened. Drivers are
imported only when a URL asks for them; a missing one names the extra to install.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .engine import register
from .engine.context import Context, Participant, Settings
from .engine.pool import AsyncPool, ThreadPool
from .engine.shell import AsyncShell, ThreadShell
from .errors import UsageError
from .ports import Clock, Journal, Notice, Observer, Resource, Session
from .url import Url, parse_url

if TYPE_CHECKING:
    from .doctor import Patient

ONLY = "db"  # the name of a resource that was given as a bare URL
JOURNAL_SESSIONS = 4  # concurrent decisions share a write, so a few sessions serve any number of transactions
LOOK_CONNECT_S = 5.0  # for a look at a database: whoever looks wants to know soon that it is down
_NAME_MAX = 63

Resources = str | Mapping[str, str]


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        return time.time()

    def elapsed(self) -> float:
        return time.monotonic()


class NoObserver:
    """Watches nothing."""

    def notice(self, notice: Notice) -> None:
        return


def context(
    resources: Resources,
    *,
    journal: str | None,
    settings: Settings,
    observer: Observer | None,
    clock: Clock | None,
    shell: ThreadShell | AsyncShell,
) -> Context:
    """A context over pools that connect when they are first used."""
    urls = _named(resources)
    at = _journal_of(urls, journal)
    journal_url = urls[at] if at in urls else parse_url(at)
    wired = Context(
        participants={
            name: Participant(
                name,
                resource_of(name, url),
                _pool(name, url, settings, settings.pool_size, shell),
                _pool(name, url, settings, settings.reserve_size, shell),
                holds_journal=name == at,
            )
            for name, url in urls.items()
        },
        journal=journal_of(journal_url),
        journal_pool=_pool("the journal", journal_url, settings, JOURNAL_SESSIONS, shell),
        register_batch=None,
        settings=settings,
        clock=clock or SystemClock(),
        observer=observer or NoObserver(),
    )
    wired.register_batch = register_batch(wired, shell)
    return wired


def register_batch(ctx: Context, shell: ThreadShell | AsyncShell) -> Any:
    """What lets the concurrent decisions of one process share a forced write."""
    return shell.batch(lambda decisions: register.write(ctx, decisions))


@contextmanager
def onlooker(resources: Resources, journal: str | None) -> Iterator[tuple[Context, ThreadShell]]:
    """A context without a coordinator, to look and not to take part: no epoch is raised, nothing is admitted."""
    shell = ThreadShell()
    ctx = context(resources, journal=journal, settings=Settings(), observer=None, clock=None, shell=shell)
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
        return _driver(url)(url, connect_timeout_s=settings.connect_s)

    return ThreadPool(name, connect, size=1, acquire_s=settings.acquire_s, call=shell.call)


def _named(resources: Resources) -> dict[str, Url]:
    if isinstance(resources, str):
        return {ONLY: parse_url(resources)}
    if not isinstance(resources, Mapping) or not resources:
        raise UsageError('resources are one URL, or names with URLs: {"orders": "postgresql://…"}')
    for name in resources:
        if not isinstance(name, str) or not name or len(name) > _NAME_MAX or not name.isprintable() or "://" in name:
            raise UsageError(f"a resource's name is printable text of 1 to {_NAME_MAX} characters, not {name!r}")
    return {name: parse_url(url) for name, url in resources.items()}


def _journal_of(urls: Mapping[str, Url], journal: str | None) -> str:
    """A resource's name, or a URL of the journal's own."""
    if journal is None:
        return next(iter(urls))
    if journal in urls:
        return journal
    if "://" not in journal:
        raise UsageError(
            f"journal={journal!r} is neither a resource ({', '.join(urls)}) nor a URL of a database of its own"
        )
    url = parse_url(journal)
    return next((name for name, other in urls.items() if other == url), journal)


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


def _pool(name: str, url: Url, settings: Settings, size: int, shell: ThreadShell | AsyncShell) -> Any:
    if isinstance(shell, AsyncShell):
        opening = _async_driver(url)

        def aopen() -> Awaitable[Any]:
            return opening(url, connect_timeout_s=settings.connect_s)

        return AsyncPool(name, aopen, size=size, acquire_s=settings.acquire_s)
    connecting = _driver(url)

    def connect() -> Session:
        return connecting(url, connect_timeout_s=settings.connect_s)

    return ThreadPool(name, connect, size=size, acquire_s=settings.acquire_s, call=shell.call)


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
        from .drivers import asyncpg

        return asyncpg.connect
    if url.kind == "mariadb":
        from .drivers import asyncmy

        return asyncmy.connect
    from .drivers import sqlite

    return sqlite.aconnect
