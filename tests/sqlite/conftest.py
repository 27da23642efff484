"""Fixtures for tests on real SQLite files; see `world`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sqlite.world import CLUSTER, Nursery, World


@pytest.fixture(params=["sync", "async"])
def style(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def world(tmp_path: Path, style: str) -> Iterator[World]:
    """A file with nodoubt's tables."""
    world = World(tmp_path / "file.db", style)
    session = world.session()
    world.drive(world.resource.setup(session, "a" * 32, CLUSTER))
    yield world
    world.close()


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()
