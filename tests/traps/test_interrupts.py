"""Ctrl-C at every step of a transaction in threads, and in the middle of a statement that waits (I18).

The signal is a real SIGINT to this very process, sent as the step is reached; the main thread gets the
KeyboardInterrupt.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest

from kit import QUICK, Database, Face, until
from nodoubt import Coordinator, OutcomeConflict, State, UnknownTransaction
from nodoubt.url import parse_url
from traps.scenes import at_rest, context, databases, joined
from traps.steps import at_step, every_step

pytestmark = pytest.mark.anyio
DELIVERY_TIME_MAX_S = 10.0


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def move(tx: Any, last: str = "b") -> None:
    tx["a"].execute("update accounts set balance = balance - 1 where id = 0")
    tx[last].execute("update accounts set balance = balance + 1 where id = 0")


def at_once(db: Coordinator, name: str) -> None:
    with db.transaction(name) as tx:
        move(tx)


def staged(db: Coordinator, name: str) -> None:
    with db.begin_distributed(name) as tx:
        move(tx)
    db.commit_distributed(name)


def interrupted_at(db: Face, at: int, work: Callable[[], None]) -> bool:
    """Whether there was such a step, and the work was interrupted."""
    acted = False
    try:
        with at_step(db, at, ctrl_c) as steps:
            try:
                work()
            finally:
                acted = steps.acted
        if acted:
            time.sleep(DELIVERY_TIME_MAX_S)  # the signal came with the last step, and is on its way
    except KeyboardInterrupt:
        return True
    assert not acted, "the interrupt was swallowed"
    return False


def nothing_is_lost(db: Face) -> bool:
    ctx = context(db)
    pools: list[Any] = [ctx.journal_pool, *(p for one in ctx.participants.values() for p in (one.pool, one.reserve))]
    return not any(pool._count or pool._ours or pool._waiting for pool in pools) and not ctx.live


def end(watcher: Coordinator, name: str) -> None:
    try:
        assert watcher.status(name).state is not State.BEGINNING
        watcher.rollback_distributed(name)
    except (UnknownTransaction, OutcomeConflict):
        return


@pytest.mark.parametrize(("kinds", "work"), [("postgres+mariadb", at_once), ("postgres+sqlite", staged)])
async def test_interrupted_at_any_step_a_transaction_is_decided_or_never_was(
    kinds: str, work: Callable[[Coordinator, str], None], request: Any, tmp_path: Path
) -> None:
    pair = databases(kinds, request, tmp_path)
    moved, outcomes = 0, set()
    with Coordinator({d.name: d.url for d in pair}, settings=QUICK, recovery=False) as watcher:
        watcher.setup()
        for at in every_step():
            name = f"order-{at}"
            async with joined("sync", pair) as db:
                interrupted = interrupted_at(db, at, lambda db=db, name=name: work(db.db, name))  # type: ignore[misc]
                assert nothing_is_lost(db), f"step {at}"
                prepared = sum(len(d.prepared()) for d in pair)
                assert prepared == 0 or (prepared == 2 and watcher.status(name).state is State.PREPARED)
                assert watcher.recover(grace=0).trouble == {}
                assert watcher.recover(grace=0).clean
                end(watcher, name)
                at_once(db.db, "next")
            moved += 1
            happened = 100 - pair[0].balance() - moved
            assert happened in (0, 1) and pair[1].balance() - 100 == moved + happened, f"atomicity is broken at {at}"
            outcomes.add(happened)
            moved += happened
            assert at_rest(pair), f"step {at}"
            if not interrupted:
                break
        assert outcomes == {0, 1}
        assert watcher.quarantined() == []


@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
async def test_interrupted_in_the_middle_of_a_statement_that_waits_the_transaction_never_was(
    kind: str, request: Any, tmp_path: Path
) -> None:
    pair = databases(f"{kind}+sqlite", request, tmp_path)
    async with joined("sync", pair) as db:
        db.db.setup()
        with locked(pair[0]) as waits:

            def interrupt() -> None:
                until(waits)
                ctrl_c()

            thread = threading.Thread(target=interrupt)
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                at_once(db.db, "order")
                time.sleep(DELIVERY_TIME_MAX_S)  # noqa: ASYNC251 - a signal is waited for, and the loop is not in use
            thread.join()
            assert nothing_is_lost(db)
        at_once(db.db, "next")
    assert [d.balance() for d in pair] == [99, 101] and at_rest(pair)


class locked:  # noqa: N801 - read as a word: with locked(…)
    """In the block a stranger has locked the account; gives a way to ask whether somebody waits for it."""

    def __init__(self, database: Database) -> None:
        self.database, self.url = database, parse_url(database.url)
        self.connection: Any = None

    def __enter__(self) -> Callable[[], bool]:
        if self.url.kind == "postgres":
            self.connection = psycopg.connect(self.url.secret())
        else:
            self.connection = pymysql.connect(
                host=self.url.host, port=self.url.port or 3306, user=self.url.user, password=self.url.password,
                database=self.url.database,
            )  # fmt: skip
        self.connection.cursor().execute("update accounts set balance = balance where id = 0")
        return self.somebody_waits

    def somebody_waits(self) -> bool:
        if self.url.kind == "postgres":
            return bool(self.database.query("select 1 from pg_locks where not granted"))
        # Not information_schema.innodb_trx: it shows a copy that is not renewed while somebody keeps asking.
        return "TRX HAS BEEN WAITING" in str(self.database.query("show engine innodb status")[0][2])

    def __exit__(self, *_: object) -> None:
        self.connection.rollback()
        self.connection.close()
