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
ANSWER_TIME_MAX_S = 120.0
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
        self._pid = 0
        self._before_bytes = 0

    @property
    def pid(self) -> int:
        """Its process, once it is connected; waits for that."""
        if not self._pid:
            self._pid = self._hear(Ready, ANSWER_TIME_MAX_S).pid
            self._before_bytes = _memory_bytes(self._pid, "VmRSS")
            Path(f"/proc/{self._pid}/clear_refs").write_text("5")  # the peak starts anew: proc(5)
        return self._pid

    @property
    def grown_bytes(self) -> int:
        """By how much the peak of its resident memory lies above what it had when it was connected."""
        return max(0, _memory_bytes(self.pid, "VmHWM") - self._before_bytes)

    def ask(self, order: Order, *, within_s: float = ANSWER_TIME_MAX_S) -> Round:
        """One round; `within_s`: how much longer it may take than was ordered. Raises `WorkerFailed`."""
        assert self._process.stdin is not None
        assert self.pid
        try:
            self._process.stdin.write(msgspec.json.encode(order) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure("died") from None
        return self._hear(Round, order.seconds + within_s)

    def _hear(self, kind: type[T], within_s: float) -> T:
        assert self._process.stdout is not None
        watchdog = threading.Timer(within_s, self._process.kill)
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line:
            raise self._failure(f"died, or gave no answer within {within_s:g} s")
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


def _memory_bytes(pid: int, what: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(what)).split()[1]) * 1024


def _argv(task: Task) -> list[str]:
    text = msgspec.json.encode(task).decode()
    if task.contender != BUN:
        return [sys.executable, "-m", "benchmarks.worker", text]
    program = bun_program()
    if program is None:
        how = "run make benchmarks/node_modules" if shutil.which("npm") else "install npm first"
        raise WorkerFailed(f"Bun is not installed: {how}")
    return [str(program), str(HERE / "contenders" / "bun.mjs"), text, str(ROWS_PER_CLIENT)]
