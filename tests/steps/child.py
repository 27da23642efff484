"""The process that is killed: moves 30 from a to b and charges a card, and dies by SIGKILL where it was told.

`python child.py '{"urls": …, "journal": …, "way": "once|staged|run", "mode": "sync|async", "end": "commit|abort",
"order": …, "kill": ["S2", "intended"] or null}'`; inside of a function it dies where the environment's KILL_AT says.
Prints, and flushes, what the caller was told (I5).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import Any

from kit import QUICK, Database, Face
from nodoubt import NoDoubtError, Notice
from steps import app, mutants


class Killer:
    """Kills this process at a notice, or freezes it there."""

    def __init__(self, at: list[str], how: int) -> None:
        self.at, self.how = tuple(at), how

    def notice(self, notice: Notice) -> None:
        if (notice.point, notice.what) == self.at:
            say("here")
            os.kill(os.getpid(), self.how)


class GivenUp(Exception):
    """The work's own reason to fail."""


def say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


async def work(face: Face, task: dict[str, Any]) -> None:
    order = task["order"]
    charge = (order, "good")
    if task["way"] == "once":
        async with face.transaction("pay") as tx:
            say(tx.handle.attempt)
            await tx.move("a", "b", 30)
            await tx.call(app.charge, *charge, undo=app.refund)
            if task["end"] == "abort":
                raise GivenUp
        return
    if task["way"] == "alone":
        async with face.transaction("pay") as tx:
            await tx.execute("a", TAKE)
            await tx.call(app.charge, *charge, undo=app.refund)
        return
    if task["way"] == "staged":
        async with face.staged("pay") as tx:
            say(tx.handle.attempt)
            await tx.move("a", "b", 30)
        await face.call("pay", app.charge, *charge, undo=app.refund)
        await (face.commit_distributed if task["end"] == "commit" else face.rollback_distributed)("pay")
        return
    if task["end"] == "abort":
        app.MISCHIEF["charge: after"] = lose
    if task["mode"] == "sync":
        face.db.run_distributed("pay", move, app.charge, app.refund, *charge)
    else:
        await face.db.run_distributed("pay", amove, app.charge, app.refund, *charge)


def lose() -> None:
    raise GivenUp("the answer was lost")


TAKE, GIVE = (f"update accounts set balance = balance {sign} 30 where id = 0" for sign in "-+")


def move(tx: Any) -> None:
    tx["a"].execute(TAKE)
    tx["b"].execute(GIVE)


async def amove(tx: Any) -> None:
    await tx["a"].execute(TAKE)
    await tx["b"].execute(GIVE)


async def main(task: dict[str, Any]) -> None:
    mutants.apply(task.get("mutant", ""))
    databases = [Database(name, url) for name, url in task["urls"].items()]
    kill = task.get("kill")
    how = signal.SIGSTOP if task.get("freeze") else signal.SIGKILL
    observer = Killer(kill, how) if kill else None
    face = Face(task["mode"], databases, journal=task.get("journal"), observer=observer, settings=QUICK)
    await face.open()
    try:
        await work(face, task)
        say("committed" if task["end"] == "commit" else "aborted")
    except GivenUp:
        say("aborted")
    except NoDoubtError as error:
        say(type(error).__name__)
    await face.close()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
