"""A process that does one transaction, and stops itself (SIGSTOP) at the point it was told, for its parent to wake.

`python child.py '{"urls": {…}, "journal": …, "way": "once|staged", "mode": "sync|async", "stop": "P5.deciding"}'`,
where stop is the name of a point.
Prints what its caller was told.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from kit import QUICK, Database, Face
from nodoubt import NoDoubtError
from nodoubt.points import AtPoint, Point
from nodoubt.testing.processes import continue_tree, wait_for

PATIENCE_S = 60


class Child:
    """The parent's end of it."""

    def __init__(self, some: Sequence[Database], mode: str, way: str, **task: Any) -> None:
        here = Path(__file__)
        task |= {"urls": {d.name: d.url for d in some}, "mode": mode, "way": way}
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent.parent), *sys.path])}
        self._process = subprocess.Popen(
            [sys.executable, str(here), json.dumps(task)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def wait_stopped(self) -> None:
        """Until it has stopped itself."""

        def stopped() -> bool:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
            assert state != "Z", self._process.communicate()
            return state == "T"

        wait_for(stopped, "the child to stop itself", PATIENCE_S)

    def told(self) -> list[str]:
        """Let it go on to its end: what its caller was told."""
        continue_tree(self.pid)
        out, errors = self._process.communicate(timeout=PATIENCE_S)
        assert self._process.returncode == 0, errors
        return out.split()


def stop() -> None:
    """Stop this process, all of its threads."""
    # To this thread: sent to the process, it may be taken by another, while this one goes on for a while.
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


async def main(task: dict[str, Any]) -> None:
    some = [Database(name, url) for name, url in task["urls"].items()]
    face = Face(
        task["mode"],
        some,
        journal=task.get("journal"),
        observer=AtPoint(Point.parse(task["stop"]), stop),
        settings=QUICK,
    )
    await face.open()
    try:
        if task["way"] == "once":
            async with face.transaction("pay") as tx:
                await tx.move("a", "b", 30)
            say("committed")
        else:
            async with face.staged("pay", deadline=task.get("deadline")) as tx:
                await tx.move("a", "b", 30)
            say("staged")
            await face.commit_distributed("pay")
            say("committed")
    except NoDoubtError as error:
        say(type(error).__name__)
    await face.close()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
