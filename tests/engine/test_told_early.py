"""What a newcomer gets wrong is told in words that say what to do, and leaves nothing behind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from nodoubt import (
    AsyncCoordinator,
    Coordinator,
    DuplicateTransaction,
    JournalUnavailable,
    LineageBroken,
    OutcomeConflict,
    State,
    Transaction,
    TransactionAborted,
    UsageError,
    sql,
)
from nodoubt.testing import run_sql

pytestmark = pytest.mark.anyio


@pytest.fixture
def urls(tmp_path: Path) -> dict[str, str]:
    made = {name: f"sqlite:///{tmp_path}/{name}.db" for name in ("orders", "stock")}
    with Coordinator(made, recovery=False) as db:
        db.setup()
    for url in made.values():
        run_sql(url, "create table t (id integer primary key, body text)")
    return made


def test_a_setup_with_the_wrong_journal_binds_no_new_database_to_it(urls: dict[str, str], tmp_path: Path) -> None:
    """The first resource keeps the journal: who puts a new one before the others has named another journal."""
    new = f"sqlite:///{tmp_path}/new.db"
    with Coordinator({"new": new, **urls}, recovery=False) as db, pytest.raises(LineageBroken, match="journal="):
        db.setup()
    with Coordinator({**urls, "new": new}, recovery=False) as db:
        db.setup()
        with db.transaction() as tx:
            for name in ("orders", "new"):
                tx[name].execute("select 1")


def test_a_rollback_of_what_was_committed_here_conflicts_although_an_earlier_begin_had_failed(
    urls: dict[str, str],
) -> None:
    """Told *aborted*, an `except` block gives the money back for an order that stands."""

    def work(tx: Transaction) -> None:
        tx["orders"].execute("select 1")

    with Coordinator(urls, recovery=False) as db, Coordinator(urls, recovery=False) as other:
        other.begin_distributed("order-1", work)
        with pytest.raises(DuplicateTransaction):
            db.begin_distributed("order-1", work)
        assert db.rollback_distributed("order-1").state is State.ABORTED  # of the begin that failed
        assert db.status("order-1").state is State.PREPARED
        for _ in range(2):
            assert db.commit_distributed("order-1").state is State.COMMITTED
            with pytest.raises(OutcomeConflict):
                db.rollback_distributed("order-1")


@pytest.mark.parametrize("values", [7, "x", b"x", {1}, (one for one in [1])], ids=lambda one: type(one).__name__)
def test_values_that_are_no_list_of_values_are_refused_and_doom_the_block(values: Any, urls: dict[str, str]) -> None:
    with Coordinator(urls, recovery=False) as db:
        with pytest.raises(TransactionAborted), db.transaction() as tx:
            tx["orders"].execute("insert into t (id) values (1)")
            with pytest.raises(UsageError, match=r"not a \w+: for one value write \(value,\)"):
                tx["stock"].execute("insert into t (body) values (?)", values)
        with db.transaction() as tx:
            assert tx["orders"].execute("select count(*) from t").scalar() == 0


def test_settings_are_settings(urls: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"nodoubt\.Settings\(pool_size=…\), not dict"):
        Coordinator(urls, settings={"pool_size": 3})  # type: ignore[arg-type]


async def test_a_statement_that_was_cancelled_is_told_as_the_reason(nodoubt_postgres: str) -> None:
    async with AsyncCoordinator(nodoubt_postgres, recovery=False) as db:
        await db.setup()
        with pytest.raises(TransactionAborted, match="rolled back everywhere: CancelledError"):
            async with db.transaction() as tx:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(tx.execute("select pg_sleep(60)"), 0.2)


def test_a_wrong_password_is_nothing_that_passes_by_itself(nodoubt_mariadb: str) -> None:
    wrong = nodoubt_mariadb.replace(":nodoubt@", ":mistyped@")
    with pytest.raises(JournalUnavailable, match="try again once this is mended: .*Access denied") as told:
        Coordinator(wrong).open()
    assert "mistyped" not in str(told.value)


@pytest.mark.parametrize("value", [{"a": 1}, [[1]]])
def test_json_is_stored_and_not_compared(value: Any, urls: dict[str, str]) -> None:
    with Coordinator(urls, recovery=False) as db, db.transaction() as tx:
        tx["orders"].insert_into("t").values({"id": 1, "body": value}).execute()
        with pytest.raises(UsageError, match=r"body: JSON can be stored, and is not compared .* sql\(\)"):
            tx["orders"].select_from("t").where("body", "in" if isinstance(value, list) else "=", value)
        assert len(tx["orders"].select_from("t").where(sql("body like {like}", like="%1%")).execute()) == 1
