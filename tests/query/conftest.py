"""A database of each kind with the tables of the cases, and the ways to reach it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kit import Database
from query.tables import create
from query.ways import Way, opened

Ways = Callable[[str], Way]


@pytest.fixture(scope="module")
def ways(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    """A way by its name, opened once for a module, with the tables as the cases want them."""
    open_ways: dict[str, Way] = {}
    with ExitStack() as stack:

        def way(name: str) -> Way:
            if name not in open_ways:
                kind = name.partition(" ")[0]
                database = _database(kind, request, tmp_path_factory.mktemp("query"))
                open_ways[name] = stack.enter_context(opened(name, database))
                create(open_ways[name].stranger)
            open_ways[name].sent.clear()
            return open_ways[name]

        yield way


def _database(kind: str, request: Any, folder: Path) -> Database:
    url = f"sqlite:///{folder}/shop.db" if kind == "sqlite" else request.getfixturevalue(kind).url()
    return Database("shop", url)
