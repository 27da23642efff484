"""The process that is killed: moves 30 from a to b, or out of a that is alone, and dies by SIGKILL where it was told.

Run by `nest`, with `{"urls": {…}, "journal": …, "way": "once|staged", "mode": "sync|async", "kill": "P8.commit@a"}`.
Prints, and flushes, what the caller was told: that is what must turn out to be true (I5).
"""

from __future__ import annotations

import sys
from typing import Any

from kit import QUICK, Database, Face, FaceTransaction
from nodoubt import NoDoubtError
from nodoubt.points import AtPoint, Point


def say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


async def work(tx: FaceTransaction) -> None:
    if "b" in tx.face.databases:
        await tx.move("a", "b", 30)
    else:
        await tx.execute("a", "update accounts set balance = balance - ? where id = 0", 30)


async def main(task: dict[str, Any]) -> None:
    databases = [Database(name, url) for name, url in task["urls"].items()]
    kill = task.get("kill")
    observer = AtPoint(Point.parse(kill)) if kill else None
    face = Face(task["mode"], databases, journal=task.get("journal"), observer=observer, settings=QUICK)
    await face.open()
    try:
        if task["way"] == "once":
            async with face.transaction("pay") as tx:
                await work(tx)
            say("committed")
        else:
            async with face.staged("pay") as tx:
                await work(tx)
            say("staged")
            await face.commit_distributed("pay")
            say("committed")
    except NoDoubtError as error:
        say(type(error).__name__)
    await face.close()
