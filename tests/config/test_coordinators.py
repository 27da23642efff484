"""`from_config`: coordinators as the configuration says."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from nodoubt import AsyncCoordinator, Coordinator, UsageError

from .conftest import Write

FILE = """
journal = "stock"

[resources]
shop = "sqlite:///shop.db"
stock = "sqlite:///stock.db"

[settings]
pool_size = 3
grace = "2m"
"""

pytestmark = pytest.mark.anyio
BOTH = pytest.mark.parametrize("kind", [Coordinator, AsyncCoordinator])


@BOTH
def test_a_coordinator_is_made_from_the_file_and_overrides_say_more(kind: Any, write: Write) -> None:
    write(FILE)
    db = kind.from_config(grace="3m", sweep=0.5, read_only=True)
    ctx = db._ctx
    assert list(ctx.participants) == ["shop", "stock"]
    assert ctx.participants["stock"].holds_journal
    assert (ctx.settings.pool_size, ctx.settings.grace_s, ctx.settings.sweep_s) == (3, 180.0, 0.5)
    assert db._read_only


@BOTH
def test_resources_can_be_overridden_as_a_mapping_or_a_url(kind: Any, write: Write) -> None:
    write(FILE)
    assert list(kind.from_config(resources={"a": "sqlite:///a.db"}, journal="a")._ctx.participants) == ["a"]
    assert list(kind.from_config(resources="sqlite:///a b.db", journal="db")._ctx.participants) == ["db"]


@BOTH
def test_an_override_that_is_none_is_refused_by_name(kind: Any, write: Write) -> None:
    write(FILE)
    with pytest.raises(UsageError, match=r"grcae=: there is no key 'grcae'; did you mean grace\?"):
        kind.from_config(grcae="2m")
    with pytest.raises(UsageError, match=r"grace=: 'soon' is not a time"):
        kind.from_config(grace="soon")


@BOTH
def test_without_a_database_it_says_how_to_name_one(kind: Any) -> None:
    with pytest.raises(
        UsageError, match=r"write nodoubt.toml \(nodoubt init asks a few questions\), set NODOUBT_RESOURCES"
    ):
        kind.from_config()


@BOTH
def test_warnings_are_logged(kind: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("NODOUBT_RESOURCES", "sqlite:///a.db")
    monkeypatch.setenv("NODOUBT_POOLSIZE", "3")
    with caplog.at_level(logging.WARNING, "nodoubt"):
        kind.from_config()
    assert "did you mean NODOUBT_POOL_SIZE?" in caplog.text


async def test_what_is_configured_works(write: Write) -> None:
    """A transaction from threads, and another from asyncio, over the same two files."""
    write(FILE)
    with Coordinator.from_config(recovery=False) as db:
        db.setup()
        for name in ("shop", "stock"):
            with db.transaction() as tx:  # alone, so that it may define tables
                tx[name].execute("select 1")
        assert db._ctx.participants["stock"].holds_journal
    async with AsyncCoordinator.from_config("nodoubt.toml", recovery=False) as adb, adb.transaction() as atx:
        assert (await atx["shop"].execute("select 2")).scalar() == 2
