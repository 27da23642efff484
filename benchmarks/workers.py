"""The harness's side of a worker: started, ordered about, ended; a worker that dies says why."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from .contenders import BUN
from .task import ROWS_PER_CLIENT, Order, Ready, Round, Task

HERE = Path(__file__).parent
ANSWER_TIME_MAX_S = 120.0  # beyond what was ordered
STOP_TIME_MAX_S = 60.0
T = TypeVar("T")


class WorkerFailed(Exception):
    """A worker died, or did not answer in time; the message ends with what it said."""


def bun_program() -> Path | None:
    """Bun, as npm has installed it (`make benchmarks/node_modules`); None if it is not there."""
    program = HERE / "node_modules" / ".bin" / "bun"
    return program if program.exists() else None


class Worker:
    """One contender's process."""

    def __init__(self, task: Task, prefix: Sequence[str] = ()) -> None:
        """`prefix`: a program, with its arguments, to run it under."""
        self.task = task
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - goes with the worker
        self._process = subprocess.Popen(
            [*prefix, *_argv(task)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, cwd=HERE.parent
        )
        self._ready: Ready | None = None

    @property
    def ready(self) -> Ready:
        """What it said when it was connected; waits for that."""
        if self._ready is None:
            self._ready = self._hear(Ready, 0.0)
        return self._ready

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, order: Order) -> Round:
        """One round. Raises `WorkerFailed`."""
        assert self._process.stdin is not None
        assert self.ready
        try:
            self._process.stdin.write(msgspec.json.encode(order) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure("died") from None
        return self._hear(Round, order.seconds)

    def _hear(self, kind: type[T], expected_s: float) -> T:
        assert self._process.stdout is not None
        watchdog = threading.Timer(expected_s + ANSWER_TIME_MAX_S, self._process.kill)
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line:
            raise self._failure("gave no answer")
        return msgspec.json.decode(line, type=kind)

    def _failure(self, what: str) -> WorkerFailed:
        self.kill()
        return WorkerFailed(f"{self.task.contender!r} {what}:\n{self.errors()}")

    def errors(self) -> str:
        """What it has written to its standard error."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def close(self) -> None:
        """Let it end in good order."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_TIME_MAX_S)
        except subprocess.TimeoutExpired:
            raise self._failure("did not end") from None
        if self._process.returncode:
            raise self._failure(f"ended with {self._process.returncode}")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.kill()


def _argv(task: Task) -> list[str]:
    text = msgspec.json.encode(task).decode()
    if task.contender != BUN:
        return [sys.executable, "-m", "benchmarks.worker", text]
    program = bun_program()
    if program is None:
        how = "run make benchmarks/node_modules" if shutil.which("npm") else "install npm first"
        raise WorkerFailed(f"Bun is not installed: {how}")
    return [str(program), str(HERE / "contenders" / "bun.mjs"), text, str(ROWS_PER_CLIENT)]
