"""Benches for the conformance suite: each database, sync and async, empty for each test.

A database is made once per module; between two tests its tables are emptied, which a hundred tests can afford.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from journals.places import CLUSTER, EMPTY, TABLES, MakePlace, Place, query
from nodoubt.testing.bench import Bench


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
