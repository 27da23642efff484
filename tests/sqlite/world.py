"""One body for sync and async, on real files; and children that are killed for real.

`World` drives scripts either way from the test's thread. `Nursery` is a process that forks a child for each job: it
never opens a database itself, so a fork costs milliseconds and inherits no locks.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nodoubt
from nodoubt.drivers.sqlite import aconnect, connect
from nodoubt.ports import Prepared, Reply, Work
from nodoubt.resources.sqlite import SqliteResource
from nodoubt.script import Script, Watch, adrive, drive
from nodoubt.url import parse_url
from nodoubt.xid import Xid

CLUSTER = "00000000000000c1"
PATIENCE_S = 20.0
CHILD = [sys.executable, str(Path(__file__).with_name("child.py"))]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(nodoubt.__file__).parents[1])}


class World:
    """One fresh file, a resource over it, and sessions of one style."""

    def __init__(self, path: Path, style: str) -> None:
        self.path, self.style = path, style
        self.url = parse_url(f"sqlite:///{path}")
        self.resource = SqliteResource("file")
        self.sessions: list[Any] = []
        self._numbers = itertools.count(1)
        self._threads = ThreadPoolExecutor(8)
        self._loop = asyncio.new_event_loop()
        self._looper = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._looper.start()

    # -- scripts
    def start(self, script: Script[Any]) -> Future[Any]:
        """Begin to run it; the future has its result."""
        if self.style == "async":
            return asyncio.run_coroutine_threadsafe(adrive(script), self._loop)
        return self._threads.submit(drive, script, executor=self._threads, watch=Watch())

    def drive(self, script: Script[Any]) -> Any:
        return self.start(script).result(PATIENCE_S)

    def ask(self, target: Any, verb: str, *args: Any) -> Any:
        """One verb of a session, whether it is a coroutine or not."""
        if self.style == "async":
            return asyncio.run_coroutine_threadsafe(getattr(target, verb)(*args), self._loop).result(PATIENCE_S)
        return getattr(target, verb)(*args)

    def session(self, lock_wait_s: float = 0.2, path: Path | None = None) -> Any:
        url = self.url if path is None else parse_url(f"sqlite:///{path}")
        session: Any
        if self.style == "async":
            opening = aconnect(url, lock_wait_s=lock_wait_s)
            session = asyncio.run_coroutine_threadsafe(opening, self._loop).result(PATIENCE_S)
        else:
            session = connect(url, lock_wait_s=lock_wait_s)
        self.sessions.append(session)
        return session

    def run(self, session: Any, sql: str) -> Reply:
        """Statements of a stranger in this process; the last one's reply."""
        replies: tuple[Reply, ...] = self.ask(session, "run", sql)
        return replies[-1]

    def rows(self, session: Any, sql: str) -> list[tuple[Any, ...]]:
        return list(self.run(session, sql).rows)

    # -- branches
    def work(self, *, branch: int = 0, epoch: int = 7, **settings: Any) -> Work:
        return Work(Xid(CLUSTER, f"{next(self._numbers):032x}", branch), epoch, **settings)

    def begin(self, session: Any, **settings: Any) -> Work:
        work = self.work(**settings)
        self.drive(self.resource.begin(session, work))
        return work

    def do(self, session: Any, work: Work, *statements: str, params: Any = None) -> Reply:
        reply = Reply()
        for statement in statements:
            reply = self.drive(self.resource.execute(session, work, statement, params))
        return reply

    def stage(self, session: Any, *statements: str) -> Prepared:
        """Begin, work, prepare."""
        work = self.begin(session)
        self.do(session, work, *statements)
        self.drive(self.resource.prepare(session, work))
        return Prepared(work.xid, handle=work.handle)

    def commit(self, session: Any, prepared: Prepared) -> None:
        self.drive(self.resource.commit_prepared(session, prepared))

    def rollback(self, session: Any, prepared: Prepared) -> None:
        self.drive(self.resource.rollback_prepared(session, prepared))

    def listed(self, session: Any) -> list[Xid]:
        found: tuple[Prepared, ...] = self.drive(self.resource.prepared(session, CLUSTER))
        return [one.xid for one in found]

    def close(self) -> None:
        for session in self.sessions:
            self.ask(session, "close")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._looper.join(PATIENCE_S)
        self._loop.close()
        self._threads.shutdown()


def shell(path: Path, sql: str) -> subprocess.CompletedProcess[str]:
    """The `sqlite3` shell: another process, another library, that knows nothing of nodoubt."""
    command = ["sqlite3", "-bail", str(path)]
    return subprocess.run(command, input=sql, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def contents(query: Callable[[str], Iterable[tuple[Any, ...]]]) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table of the user's, with rowids, types and bytes."""
    found = {}
    tables = query(
        "select name, wr from pragma_table_list where schema = 'main' and type = 'table' and name not glob 'nodoubt_*' "
        "and name <> 'sqlite_schema'"
    )
    for name, without_rowid in list(tables):
        text, table = (mark + name.replace(mark, mark * 2) + mark for mark in "'\"")
        columns = [] if without_rowid else ["_rowid_"]
        for (column,) in list(query(f"select name from pragma_table_xinfo({text})")):
            one = '"' + column.replace('"', '""') + '"'
            columns += [f"typeof({one})", f"quote(cast({one} as blob))"]
        found[name] = sorted(query(f"select {', '.join(columns)} from main.{table}"), key=repr)
    return found


def until(condition: Callable[[], Any], what: str) -> Any:
    """Poll, with a deadline."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S} s"
        time.sleep(0.005)
    return found


class Nursery:
    """Forks a child for each job."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            CHILD,
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Its answer, or {"killed": signal}."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)
        self._process.stdout.close()
