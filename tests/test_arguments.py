"""Arguments that can't be meant are refused before any work is done: times that never come, drivers not used here."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import nodoubt
from nodoubt import AsyncCoordinator, Coordinator, UsageError
from nodoubt.url import parse_url

NO_TIMES: list[Any] = [0, -1, float("nan"), float("inf"), 1e12, "5", True, [1]]
WHY = "(above zero|a number of) seconds"


@nodoubt.step
def charge(ctx: nodoubt.StepContext) -> None:
    """Never called here."""


@pytest.mark.parametrize("seconds", NO_TIMES)
def test_a_time_that_never_comes_is_refused_wherever_it_is_given(seconds: Any, tmp_path: Path) -> None:
    with Coordinator(f"sqlite:///{tmp_path}/a.db") as db:
        db.setup()
        with pytest.raises(UsageError, match=WHY), db.transaction(timeout=seconds):
            pass
        with pytest.raises(UsageError, match=WHY), db.begin_distributed("order", timeout=seconds):
            pass
        with pytest.raises(UsageError, match=WHY), db.begin_distributed("order", deadline=seconds):
            pass
        with pytest.raises(UsageError, match=WHY), db.once("key", {}, keep=seconds):
            pass
        if seconds != 0:  # which is not to wait at all
            with pytest.raises(UsageError, match=f"patience is {WHY}"):
                db.job("job", patience=seconds)
        with db.transaction() as tx, pytest.raises(UsageError, match=WHY):
            tx.call(charge, timeout=seconds)
        assert db.transactions() == []
    with pytest.raises(UsageError, match=WHY):
        nodoubt.step(timeout=seconds)


@pytest.mark.parametrize("seconds", [float("nan"), "5", True, [1]])
def test_what_is_no_time_is_refused_also_where_one_of_none_at_all_has_a_meaning(seconds: Any, tmp_path: Path) -> None:
    """NaN waited for ever, and as a grace it kept recovery from whatever is prepared, without a word."""
    with Coordinator(f"sqlite:///{tmp_path}/a.db", recovery=False) as db:
        db.setup()
        with db.begin_distributed("order", confirmations=["ada"]) as tx:
            tx.execute("select 1")
        for verb in (
            lambda: db.wait("order", timeout=seconds),
            lambda: db.wait_ready("order", timeout=seconds),
            lambda: db.transactions(older_than=seconds),
            lambda: db.recover(grace=seconds),
            lambda: db.undo_steps(grace=seconds),
        ):
            with pytest.raises(UsageError, match="a number of seconds"):
                verb()
        assert db.transactions(older_than=10**400) == [] and db.recover(grace=10**400).left == 0


@pytest.mark.parametrize("count", [0, -1, 2.5, float("nan"), float("inf"), "3", True])
def test_what_is_no_count_is_refused_wherever_one_is_given(count: Any, tmp_path: Path) -> None:
    """A compensation of NaN tries was never parked (I20)."""
    for declare in (nodoubt.step, nodoubt.compensation):
        with pytest.raises(UsageError, match="whole number"):
            declare(tries=count)
    for name in ("pool_size", "reserve_size", "tries_max", "open_warn"):
        with pytest.raises(UsageError, match=name):
            nodoubt.Settings(**{name: count})
    with Coordinator(f"sqlite:///{tmp_path}/a.db", recovery=False) as db:
        db.setup()
        with pytest.raises(UsageError, match="whole number"):
            db.transactions(limit=count)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg2://host/db",
        "postgresql+nonsense://host/db",
        "mysql+aiomysql://host/db",
        "mariadb+mysqldb://host/db",
        "sqlite+aiosqlite:///file.db",
    ],
)
def test_a_driver_that_is_not_used_is_refused_rather_than_exchanged(url: str) -> None:
    with pytest.raises(UsageError, match="names a driver that is not used here: leave it out, or name"):
        parse_url(url)
    with pytest.raises(UsageError, match="names a driver that is not used here"):
        Coordinator(url)

    async def on_asyncio() -> None:
        with pytest.raises(UsageError, match="names a driver that is not used here"):
            AsyncCoordinator(url)

    asyncio.run(on_asyncio())


@pytest.mark.parametrize(
    "url", ["postgresql+asyncpg://host/db", "mysql+pymysql://host/db", "mariadb+asyncmy://host/db"]
)
def test_the_drivers_that_are_used_may_be_named(url: str) -> None:
    assert parse_url(url).database == "db"
