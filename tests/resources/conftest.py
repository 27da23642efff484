"""Places for the conformance suite: each kind of database, sync and async.

A database is made once per module and emptied between two tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from journals.places import Place as Home
from nodoubt.testing.resources import Place
from nodoubt.url import parse_url
from nodoubt.wiring import resource_of
from resources.places import SqlPlace, empty, make_tables

Wrap = Callable[[Any], Any]


@pytest.fixture(params=["sync", "async"])
def style(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def new_home(kind: str, style: str, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Home]:
    """A database that has never seen us, with tables of the user's."""

    def make() -> Home:
        url = f"sqlite:///{tmp_path}/there.db" if kind == "sqlite" else request.getfixturevalue(kind).url()
        home = Home(kind, style, url)
        make_tables(home)
        return home

    return make


@pytest.fixture(scope="module")
def kept_urls() -> dict[str, str]:
    """One database of each kind per module."""
    return {}


@pytest.fixture
def home(kind: str, style: str, new_home: Callable[[], Home], kept_urls: dict[str, str]) -> Home:
    """A database that a test before may have used."""
    if kind == "sqlite":
        return new_home()
    if kind not in kept_urls:
        kept_urls[kind] = new_home().url
    return Home(kind, style, kept_urls[kind])


@pytest.fixture
def bare(new_home: Callable[[], Home]) -> Iterator[Place]:
    """A place that has never seen us."""
    home = new_home()
    with home.bench(resource_of("there", parse_url(home.url))) as bench:
        yield SqlPlace(bench, home)


@pytest.fixture
def place_of(home: Home) -> Iterator[Callable[[Wrap], Place]]:
    """A place that is set up and holds nothing, over our resource or what a mutant makes of it."""
    with ExitStack() as stack:

        def make(wrap: Wrap) -> Place:
            with home.bench(resource_of("there", parse_url(home.url))) as bench:
                SqlPlace(bench, home).setup()
                empty(bench, home.kind)
            place = SqlPlace(stack.enter_context(home.bench(wrap(resource_of("there", parse_url(home.url))))), home)
            stack.callback(place.clean)
            place.setup()
            return place

        yield make


@pytest.fixture
def place(place_of: Callable[[Wrap], Place]) -> Place:
    """A place that is set up and holds nothing."""
    return place_of(lambda one: one)
