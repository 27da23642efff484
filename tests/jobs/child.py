"""The process that is killed: adds the items to a and to b, three at a time; it dies by SIGKILL at a point."""

from __future__ import annotations

from typing import Any

from crash.child import say
from jobs.mutants import IN_A_CHILD
from jobs.test_jobs import BRIEF, ITEMS, add, block, job
from kit import Database, Face
from nodoubt.points import AtPoint, Point


async def main(task: dict[str, Any]) -> None:
    databases = [Database(name, url) for name, url in task["urls"].items()]
    IN_A_CHILD.get(task.get("mutant", ""), lambda: None)()
    face = Face(task["mode"], databases, observer=AtPoint(Point.parse(task["kill"])), settings=BRIEF)
    await face.open()
    async with job(face, "sum", on=task["on"]) as some:
        for chunk in some.chunks(ITEMS, 3):
            async with block(face, chunk) as tx:
                await add(face, tx, sum(chunk.items))
            say(str(some.done))
    say("done")
    await face.close()
