"""What the tests of `crash_points` have killed: at the top level of a module, for another process to find it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nodoubt
from nodoubt import AsyncCoordinator, Coordinator, State
from nodoubt.testing import Crash

TABLES = {
    "a": "create table accounts (id int primary key, balance int not null); insert into accounts values (0, 100)",
    "b": "create table accounts (id int primary key, balance int not null); insert into accounts values (0, 100)",
}
TAKE = "update accounts set balance = balance - 30"
GIVE = "update accounts set balance = balance + 30"


def pay(db: Coordinator) -> None:
    with db.transaction("pay") as tx:
        tx["a"].execute(TAKE)
        tx["b"].execute(GIVE)


def pay_elsewhere(_: Coordinator) -> None:
    """Somebody who opens a coordinator of their own, or forgets to pay."""


async def pay_on_a_loop(db: AsyncCoordinator) -> None:
    async with db.transaction("pay") as tx:
        await tx["a"].execute(TAKE)
        await tx["b"].execute(GIVE)


def pay_staged(db: Coordinator, name: str, *, commit: bool = True) -> None:
    with db.begin_distributed(name) as tx:
        tx["a"].execute(TAKE)
        tx["b"].execute(GIVE)
    if commit:
        db.commit_distributed(name)


def stage_and_roll_back(db: Coordinator) -> None:
    pay_staged(db, "pay", commit=False)
    db.rollback_distributed("pay")


def pay_in_two_transactions(db: Coordinator) -> None:
    """What somebody writes who does not know better."""
    print("taking, then giving")
    with db.transaction() as tx:
        tx["a"].execute(TAKE)
    with db.transaction() as tx:
        tx["b"].execute(GIVE)


def pay_after_a_look(db: Coordinator) -> None:
    """A transaction that only reads leaves no trace that anybody could ask for."""
    with db.transaction() as tx:
        assert tx["a"].execute("select balance from accounts").scalar() == 100
    pay(db)


def pay_differently_each_time(db: Coordinator, marker: str) -> None:
    with db.transaction() as tx:
        tx["a"].execute(TAKE)
        tx["b"].execute(GIVE)
        if not os.path.exists(marker):
            open(marker, "x").close()
            tx["b"].execute("update accounts set balance = balance")


def pay_and_lose_a_database(db: Coordinator) -> None:
    pay(db)
    os.unlink(db._ctx.participants["b"].pool.acquire().run("pragma database_list")[0].rows[0][2])


@nodoubt.step("tests.crashing.send")
def send(path: str) -> None:
    Path(path).touch()


@nodoubt.compensation("tests.crashing.call_back")
def call_back(path: str) -> None:
    Path(path).unlink(missing_ok=True)


def pay_and_send(db: Coordinator, path: str) -> None:
    with db.transaction("pay") as tx:
        tx["a"].execute(TAKE)
        tx["b"].execute(GIVE)
        tx.call(send, path, undo=call_back)


def fail(db: Coordinator) -> None:
    raise RuntimeError("out of stock")


def balances(db: Coordinator) -> tuple[Any, ...]:
    with db.transaction() as tx:
        return tuple(tx[name].execute("select balance from accounts").scalar() for name in ("a", "b"))


def check(db: Coordinator, crash: Crash) -> None:
    assert balances(db) == ((70, 130) if crash.state is State.COMMITTED else (100, 100)), crash.state


async def check_on_a_loop(db: AsyncCoordinator, crash: Crash) -> None:
    async with db.transaction() as tx:
        found = [(await tx[name].execute("select balance from accounts")).scalar() for name in ("a", "b")]
    assert found == ([70, 130] if crash.state is State.COMMITTED else [100, 100]), crash.state


def together(db: Coordinator, crash: Crash) -> None:
    assert sum(balances(db)) == 200
