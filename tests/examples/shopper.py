"""One life of the shop, in a process of its own: `python shopper.py before|after '"P7.branch-committed"'`.

Orders two of product 7, and then more of it than there is; prints each answer's status. Where it is told to, it dies by
SIGKILL: the program without nodoubt as the second of its two commits is about to begin, the other at a notice.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import sys
from typing import Any

from fastapi.testclient import TestClient
from sqlalchemy import Engine, event

import nodoubt
from crash.child import say
from nodoubt.points import AtPoint, Point


def die_at_the_second_commit() -> None:
    commits: list[Any] = []

    def on_commit(connection: Any) -> None:
        commits.append(connection)
        if len(commits) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "commit", on_commit)


def main(which: str, kill: str | None) -> None:
    if which == "before" and kill:
        die_at_the_second_commit()
    elif kill:
        # The program itself has no word about being watched, or killed.
        nodoubt.Coordinator = functools.partial(nodoubt.Coordinator, observer=AtPoint(Point.parse(kill)))  # type: ignore[misc, assignment]
    program = importlib.import_module(f"examples.fastapi_shop.{which}")
    with TestClient(program.app) as shop:
        for quantity in (2, 100):
            say(str(shop.post("/orders", json={"product_id": 7, "quantity": quantity}).status_code))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
