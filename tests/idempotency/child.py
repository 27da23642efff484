"""The process that is killed: takes a key, moves 30 from a to b, and dies by SIGKILL at the point it was told."""

from __future__ import annotations

from typing import Any

from crash.child import say
from idempotency.test_once import once
from kit import QUICK, Database, Face
from nodoubt.points import AtPoint, Point


async def main(task: dict[str, Any]) -> None:
    databases = [Database(name, url) for name, url in task["urls"].items()]
    face = Face(task["mode"], databases, observer=AtPoint(Point.parse(task["kill"])), settings=QUICK)
    await face.open()
    async with once(face, "pay", {"amount": 30}, on=task["on"], **task["options"]) as block:
        await block.add(-30, "a")
        await block.add(30, "b")
        block.once.value = "paid"
    say("done")
    if task["options"]:
        await face.commit_distributed(task["options"]["staged"])
    await face.close()
