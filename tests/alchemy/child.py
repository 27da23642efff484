"""The process that is killed: ORM work that moves 30 from a to b, on engines of its own.

Run by `crash.nest`, with `{"urls": {…}, "drivers": {…}, "way": "once|staged", "kill": "P8.commit"}`.
Prints, and flushes, what the caller was told.
"""

from __future__ import annotations

import asyncio
from typing import Any

from alchemy.world import Account, engine_over
from crash.child import say
from kit import QUICK, Database
from nodoubt import AsyncCoordinator, Coordinator, NoDoubtError
from nodoubt.points import AtPoint, Point


def engines(task: dict[str, Any]) -> dict[str, Any]:
    return {
        name: engine_over(Database(name, url), task["drivers"][name], task["mode"])
        for name, url in task["urls"].items()
    }


def work(session: Any, amount: int) -> None:
    """Nothing is written before the block's own flush."""
    session.get(Account, 0).balance += amount
    session.add(Account(id=7, balance=0))


def threads(task: dict[str, Any], observer: Any) -> None:
    with Coordinator(engines(task), observer=observer, settings=QUICK, recovery=False) as db:
        block = db.transaction("pay") if task["way"] == "once" else db.begin_distributed("pay")
        with block as tx:
            for name, amount in (("a", -30), ("b", 30)):
                work(tx[name].session(), amount)
        if task["way"] == "staged":
            say("staged")
            db.commit_distributed("pay")
        say("committed")


async def tasks(task: dict[str, Any], observer: Any) -> None:
    async with AsyncCoordinator(engines(task), observer=observer, settings=QUICK, recovery=False) as db:
        block: Any = db.transaction("pay") if task["way"] == "once" else db.begin_distributed("pay")
        async with block as tx:
            for name, amount in (("a", -30), ("b", 30)):
                session = tx[name].session()
                await session.run_sync(work, amount)
        if task["way"] == "staged":
            say("staged")
            await db.commit_distributed("pay")
        say("committed")


def main(task: dict[str, Any]) -> None:
    killer = AtPoint(Point.parse(task["kill"]))
    try:
        if task["mode"] == "sync":
            threads(task, killer)
        else:
            asyncio.run(tasks(task, killer))
    except NoDoubtError as error:
        say(type(error).__name__)
