"""The process that migrates MariaDB, and is killed in the middle.

`python child.py '{"urls": {…}, "journal": …, "journal_release": 2, "participants_release": 1, "step": 2, "when": …,
"first": false}'` dies by SIGKILL before the server is told of that step of a migration, between the step and the note
of it, or after. `first`: our tables are made, not migrated.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from kit import Database
from nodoubt.drivers.pymysql import PyMySQLSession
from nodoubt.ports import Reply
from schema.releases import Releases, Scene, coordinator, migrate


def kill_at(step: int, when: str) -> None:
    run = PyMySQLSession.run
    seen = 0

    def killing(self: PyMySQLSession, sql: str) -> tuple[Reply, ...]:
        nonlocal seen
        seen += sql.startswith("START TRANSACTION")
        noted = seen == step and sql.startswith("UPDATE ")
        if seen == step and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if noted and when == "between":  # the step itself, and not the note of it
            os.kill(os.getpid(), signal.SIGKILL)
        replies = run(self, sql)
        if noted:
            os.kill(os.getpid(), signal.SIGKILL)
        return replies

    PyMySQLSession.run = killing  # type: ignore[method-assign]


if __name__ == "__main__":
    task: dict[str, Any] = json.loads(sys.argv[1])
    kill_at(task["step"], task["when"])
    some = [Database(name, url) for name, url in task["urls"].items()]
    scene, releases = Scene(some, task["journal"]), Releases(task["journal_release"], task["participants_release"])
    if task["first"]:
        coordinator(scene, releases).setup()
    else:
        migrate(scene, releases)
