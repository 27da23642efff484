"""A child process that works on a file and is killed at a chosen statement. Run by `world.Nursery`, or by hand:

    python child.py '{"path": …, "attempt": …, "do": "prepare", "statements": […], "kill_at": 3}'

`do` is prepare, alone, commit or rollback. `kill_at` counts the statements of nodoubt's own after the work, from 0: the
child kills itself before that one. `spared`: how many there were, if it was not killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nodoubt.drivers.sqlite import connect
from nodoubt.drivers.sqlite_connection import Connection
from nodoubt.ports import Prepared, Work
from nodoubt.resources.sqlite import SqliteResource
from nodoubt.script import Script, Watch, drive
from nodoubt.url import parse_url
from nodoubt.xid import Xid

CLUSTER = "00000000000000c1"


class Counter:
    """Counts the statements of our own, and kills the process before one of them."""

    def __init__(self, kill_at: int | None) -> None:
        self.kill_at, self.count, self.on = kill_at, 0, False
        for verb in ("query", "many", "run"):
            self._wrap(verb)

    def _wrap(self, verb: str) -> None:
        original = getattr(Connection, verb)

        def counted(connection: Connection, *args: Any) -> Any:
            if self.on:
                self.tick()
            return original(connection, *args)

        setattr(Connection, verb, counted)

    def tick(self) -> None:
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1


def perform(job: dict[str, Any]) -> dict[str, Any]:
    counter = Counter(job.get("kill_at"))
    resource = SqliteResource("file")
    threads = ThreadPoolExecutor(1)

    def go(script: Script[Any]) -> Any:
        return drive(script, executor=threads, watch=Watch())

    session = connect(parse_url(f"sqlite:///{job['path']}"))
    for sql in job.get("first", ()):
        session.run(sql)
    xid = Xid(CLUSTER, job["attempt"], job.get("branch", 0))
    riders = tuple(job.get("riders", ()))
    what = job["do"]
    answer: dict[str, Any] = {}
    try:
        if what in ("prepare", "alone"):
            work = Work(xid, 1)
            go(resource.begin(session, work))
            for statement in job["statements"]:
                go(resource.execute(session, work, statement, None))
            counter.on = True
            if what == "prepare":
                go(resource.prepare(session, work, riders=riders))
            else:
                go(resource.commit_alone(session, work, riders=riders))
        else:
            counter.on = True
            if what == "commit":
                go(resource.commit_prepared(session, Prepared(xid), riders=riders))
            else:
                go(resource.rollback_prepared(session, Prepared(xid)))
    except Exception as error:
        answer["error"] = f"{type(error).__name__}: {error}"
    answer["usable"] = session.usable
    answer["spared"] = counter.count
    counter.tick()  # the last point: all is done, and nobody has been told
    session.close()
    return answer


def main() -> None:
    """Fork a child for each line, and print its answer."""
    for line in sys.stdin:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            answer = perform(json.loads(line))
            os.write(write, json.dumps(answer).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            said = pipe.read()
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            print(json.dumps({"killed": os.WTERMSIG(status)}), flush=True)
        else:
            print(said.decode() or json.dumps({"failed": status}), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(perform(json.loads(sys.argv[1]))))
    else:
        main()
