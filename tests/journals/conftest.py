"""Benches for the conformance suite: each database, sync and async, empty for each test.

A database is made once per module; between two tests its tables are emptied, which a hundred tests can afford.
"""

# ruff: noqa: E402 - assertions are rewritten before the suite is imported

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("nodoubt.testing.journals")

import nodoubt.drivers.asyncmy
import nodoubt.drivers.asyncpg
import nodoubt.drivers.psycopg
import nodoubt.drivers.pymysql
import nodoubt.drivers.sqlite
from nodoubt.journals.dialects import MariaDBDialect, PostgresDialect, SqliteDialect
from nodoubt.journals.memory import AsyncMemorySession, MemoryJournal, MemorySession, MemoryStore
from nodoubt.journals.sql import SqlJournal
from nodoubt.ports import Reply
from nodoubt.script import do
from nodoubt.testing.journals import Bench, LoopBench, ThreadBench
from nodoubt.url import parse_url

CLUSTER = "00000000000000c1"
TABLES = ("decisions", "names", "resources", "quarantine", "events")
EMPTY = (
    "UPDATE {journal} SET counter = 0 WHERE item = 'epoch'; "
    "UPDATE {journal} SET value = '{floor}' WHERE item = 'floor'"
)


@dataclass
class Place:
    """Where a journal can be: its kind, its style, and how to have a session there."""

    kind: str
    style: str
    url: str = ""
    store: MemoryStore = field(default_factory=MemoryStore)

    def journal(self) -> Any:
        """The journal for this place."""
        if self.kind == "memory":
            return MemoryJournal()
        return SqlJournal(self.dialect())

    def dialect(self) -> Any:
        match self.kind:
            case "postgres":
                return PostgresDialect()
            case "mariadb":
                return MariaDBDialect(parse_url(self.url).database)
            case _:
                return SqliteDialect()

    def connect(self) -> Any:
        """A session, or, in the async style, the promise of one."""
        url = parse_url(self.url) if self.url else None
        match self.kind, self.style:
            case "memory", "sync":
                return MemorySession(self.store)
            case "memory", _:
                return _ready(AsyncMemorySession(self.store))
            case "postgres", "sync":
                return nodoubt.drivers.psycopg.connect(url)  # type: ignore[arg-type]
            case "postgres", _:
                return nodoubt.drivers.asyncpg.connect(url)  # type: ignore[arg-type]
            case "mariadb", "sync":
                return nodoubt.drivers.pymysql.connect(url)  # type: ignore[arg-type]
            case "mariadb", _:
                return nodoubt.drivers.asyncmy.connect(url)  # type: ignore[arg-type]
            case _, "sync":
                return nodoubt.drivers.sqlite.connect(url)  # type: ignore[arg-type]
            case _:
                return nodoubt.drivers.sqlite.aconnect(url)  # type: ignore[arg-type]

    def bench(self, journal: Any = None) -> Bench:
        kind = ThreadBench if self.style == "sync" else LoopBench
        return kind(journal or self.journal(), self.connect)


async def _ready(session: Any) -> Any:
    return session


MakePlace = Callable[[str, str], Place]


@pytest.fixture
def make_place(request: pytest.FixtureRequest, tmp_path: Path) -> MakePlace:
    """An empty database of this kind."""

    def make(kind: str, style: str) -> Place:
        match kind:
            case "memory":
                return Place(kind, style)
            case "sqlite":
                return Place(kind, style, f"sqlite:///{tmp_path}/journal.db")
            case _:
                return Place(kind, style, request.getfixturevalue(kind).url())

    return make


@pytest.fixture(params=["sync", "async"])
def style(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bare(kind: str, style: str, make_place: MakePlace) -> Iterator[Bench]:
    """A bench over a database that holds nothing yet."""
    with make_place(kind, style).bench() as bench:
        yield bench


@pytest.fixture(scope="module")
def kept_urls() -> dict[str, str]:
    """One database of each kind per module."""
    return {}


@pytest.fixture
def place(kind: str, style: str, make_place: MakePlace, kept_urls: dict[str, str]) -> Place:
    """A database with an empty journal."""
    if kind in ("memory", "sqlite"):
        made = make_place(kind, style)
    else:
        if kind not in kept_urls:
            kept_urls[kind] = make_place(kind, style).url
        made = Place(kind, style, kept_urls[kind])
    with made.bench() as bench:
        bench.setup(CLUSTER)
        if kind not in ("memory", "sqlite"):
            table = made.dialect().table
            empty = [f"DELETE FROM {table(name)}" for name in TABLES]
            empty.append(EMPTY.format(journal=table("journal"), floor="0" * 32))
            query(bench, "; ".join(empty))
    return made


@pytest.fixture
def bench(place: Place) -> Iterator[Bench]:
    """A bench over a journal that is set up and empty."""
    with place.bench() as bench:
        yield bench


@pytest.fixture
def other_bench(place: Place) -> Iterator[Callable[[Any], Bench]]:
    """Benches over the same database with another journal: for the mutants."""
    with contextlib.ExitStack() as stack:
        yield lambda journal: stack.enter_context(place.bench(journal))


def query(bench: Bench, sql: str, session: Any = None) -> Reply:
    """SQL of a test's own; the last statement's reply."""
    replies: tuple[Reply, ...] = bench.run(do(session or bench.main, "run", sql))
    return replies[-1]
