"""Every test that asks for `mode` runs on both coordinators, every one that asks for `kind` on each database."""

from __future__ import annotations

import pytest

from nodoubt.schema import tables


@pytest.fixture(params=["sync", "async"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration gives up at once where somebody holds a table."""
    monkeypatch.setattr(tables, "TABLE_WAIT_S", 1)
    monkeypatch.setattr(tables, "TABLE_TRIES_MAX", 1)
