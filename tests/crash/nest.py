"""Programs that are to die, each forked from a process that has imported what it needs: a new Python takes a second.

`python nest.py MODULE` imports the module, and forks a child for each task that it is told, a JSON document a line. The
child runs the module's `main(task)`; what became of it is told by a line, too.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any

PATIENCE_S = 60.0
FAILED = 70
TESTS = Path(__file__).parent.parent


class Nest:
    """The process, from outside."""

    def __init__(self, module: str) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
        self._process = subprocess.Popen(
            [sys.executable, __file__, module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def run(self, task: dict[str, Any]) -> tuple[int, str]:
        """How one child ended, as of `subprocess`, and what it had written by then."""
        assert self._process.stdin is not None and self._process.stdout is not None
        watchdog = threading.Timer(PATIENCE_S, os.killpg, (self._process.pid, signal.SIGKILL))
        watchdog.start()
        try:
            print(json.dumps(task), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        assert line, f"no child of {self._process.args!r} has ended within {PATIENCE_S:g} s, or it could not start"
        code, written = json.loads(line)
        return code, written

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)
        self._process.stdout.close()


@functools.cache
def nest_of(program: Path) -> Nest:
    """The one of this process."""
    nest = Nest(f"{program.parent.name}.{program.stem}")
    atexit.register(nest.close)
    return nest


def _hatch(module: Any, task: dict[str, Any]) -> tuple[int, str]:
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            _live(module, task)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read()


def _live(module: Any, task: dict[str, Any]) -> None:
    try:
        done = module.main(task)
        if inspect.iscoroutine(done):
            asyncio.run(done)
    except BaseException:
        traceback.print_exc()
        os._exit(FAILED)
    sys.stdout.flush()
    os._exit(0)


def main() -> None:
    module = importlib.import_module(sys.argv[1])
    for driver in ("psycopg", "psycopg_async", "pymysql", "asyncmy", "sqlite"):
        importlib.import_module(f"nodoubt.drivers.{driver}")
    for line in sys.stdin:
        print(json.dumps(_hatch(module, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
