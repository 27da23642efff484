"""A process that runs a function in children of its own, each of which may be killed at a point of the protocol.

The nursery is a fresh interpreter that loads the file of the function once, and forks a child for each run: a fork
costs milliseconds, and a process that has opened no database hands down no lock and no connection. What its children
print, they print into `log`.

Guarantees: `run` tells every point that the child has reached, in their order, the last of them before it died; it
ends, or raises `NurseryFailed` after the time given to it.

Must not: know databases, or judge what came of a run.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Self

import msgspec

from ..engine.context import Settings
from ..errors import NoDoubtError, UsageError
from ..points import AtPoint, Names, Point
from ..ports import Notice
from .processes import kill_tree

LOG_TAIL_CHARACTERS = 4000
_CHUNK_BYTES = 65536


class NurseryFailed(NoDoubtError):
    """The function cannot be loaded in a process of its own, or did not end in time."""


class Address(msgspec.Struct, frozen=True):
    """Where a function is: what another process needs to find it."""

    file: str
    function: str  # its qualified name
    module: str = ""  # as this process knows it; "": by the file alone

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Self:
        """The address of a function at the top level of a module. Raises `UsageError` for any other."""
        name = getattr(function, "__qualname__", None)
        if not inspect.isroutine(function) or name is None or "<" in name:
            raise UsageError(
                f"{name or function!r} cannot be run in a process of its own: give a function that stands at the top "
                "level of a module, and what it needs in args="
            )
        file = inspect.getsourcefile(inspect.unwrap(function))
        if file is None or not os.path.exists(file):
            raise UsageError(f"the file of {name} is not there, so no other process can load it")
        return cls(os.path.realpath(file), name, function.__module__)

    @classmethod
    def parse(cls, text: str) -> Self:
        """`FILE:FUNCTION`. Raises `UsageError`."""
        file, separator, function = text.rpartition(":")
        if not separator or not all(part.isidentifier() for part in function.split(".")):
            raise UsageError(f"write FILE:FUNCTION, as in examples/order.py:process_order, not {text!r}")
        if not os.path.isfile(file):
            raise UsageError(f"there is no file {file!r}")
        return cls(os.path.realpath(file), function)

    def load(self) -> tuple[ModuleType, Callable[..., Any]]:
        """The module and the function in it. Raises `UsageError`."""
        try:
            module = self._module()
        except Exception as error:
            raise UsageError(f"{self.file} cannot be loaded: {type(error).__name__}: {error}") from error
        found: Any = module
        for part in self.function.split("."):
            found = getattr(found, part, None)
        if not callable(found):
            raise UsageError(f"{self.file} has no function {self.function!r}")
        return module, found

    def _module(self) -> ModuleType:
        if self.module in sys.modules and _file_of(sys.modules[self.module]) == self.file:
            return sys.modules[self.module]
        if self.module and self.module != "__main__" and self._is_found():
            return importlib.import_module(self.module)
        name, folder = _packaged(Path(self.file))
        sys.path.insert(0, str(folder))  # as for a file that is run
        if "." in name:
            module = importlib.import_module(name)
            if _file_of(module) != self.file:
                raise ImportError(f"{name} is {_file_of(module)} already")
            return module
        spec = importlib.util.spec_from_file_location(name, self.file)
        if spec is None or spec.loader is None:
            raise UsageError(f"{self.file} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    def _is_found(self) -> bool:
        """Whether to import the module by its name would give this very file."""
        try:
            spec = importlib.util.find_spec(self.module)
        except (ImportError, ValueError):
            return False
        return spec is not None and spec.origin is not None and os.path.realpath(spec.origin) == self.file


def _packaged(file: Path) -> tuple[str, Path]:
    """The name of a file's module, and the folder to import it from: one in a package is imported as part of it."""
    name, folder = file.stem, file.parent
    while (folder / "__init__.py").exists() and folder.name.isidentifier():
        name, folder = f"{folder.name}.{name}", folder.parent
    return name, folder


def _file_of(module: ModuleType) -> str:
    return os.path.realpath(getattr(module, "__file__", None) or "")


class Task(msgspec.Struct, frozen=True):
    """One run. `point`: where the child dies; "": nowhere. `hold`: as in `points.AtPoint`."""

    resources: dict[str, str]
    journal: str | None
    settings: Settings
    args: tuple[Any, ...] = ()
    point: str = ""
    hold: tuple[str, ...] = ()


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line on the way back: a point reached, an error, or how the process ended."""

    point: str = ""
    attempt: str = ""
    failed: str = ""
    gone: int | None = None  # as `os.waitstatus_to_exitcode` gives it


class Life(msgspec.Struct, frozen=True):
    """What one child did. `failed`: the traceback of what the function raised."""

    reached: tuple[tuple[Point, str], ...]  # with the attempt
    failed: str
    exit_code: int

    @property
    def killed(self) -> bool:
        return self.exit_code == -signal.SIGKILL

    @property
    def ended_well(self) -> bool:
        return self.exit_code == 0 and not self.failed


# ---- the parent's end -----------------------------------------------------------------------------


class Nursery:
    """The process, from outside."""

    def __init__(self, address: Address, log: Path) -> None:
        self._log = log
        self._name = address.function
        theirs_in, self._jobs = os.pipe()
        self._answers, theirs_out = os.pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs_in), str(theirs_out)],
                pass_fds=(theirs_in, theirs_out), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env=environment,
            )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._rest = b""
        self._send(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._jobs)
        os.close(self._answers)
        kill_tree(self._process.pid)
        self._process.wait()

    def run(self, task: Task, within_s: float) -> Life:
        """One child's whole life. Raises `NurseryFailed`."""
        self._send(task)
        until = time.monotonic() + within_s
        reached: list[tuple[Point, str]] = []
        failed = ""
        while True:
            said = self._hear(until)
            if said.point:
                reached.append((Point.parse(said.point), said.attempt))
            failed = failed or said.failed
            if said.gone is not None:
                return Life(tuple(reached), failed, said.gone)

    def printed(self) -> str:
        """The end of what the children have printed."""
        return self._log.read_text("utf-8", errors="replace")[-LOG_TAIL_CHARACTERS:]

    def _send(self, what: Address | Task) -> None:
        try:
            os.write(self._jobs, msgspec.json.encode(what) + b"\n")
        except BrokenPipeError:
            raise self._failure("its process has ended") from None

    def _hear(self, until: float) -> Said:
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], max(until - time.monotonic(), 0))
            if not ready:
                raise self._failure("it did not end in time")
            chunk = os.read(self._answers, _CHUNK_BYTES)
            if not chunk:
                raise self._failure("its process has ended")
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return msgspec.json.decode(line, type=Said)

    def _failure(self, what: str) -> NurseryFailed:
        return NurseryFailed(f"{self._name}, in a process of its own: {what}. It has printed:\n{self.printed()}")


# ---- the nursery's own life -----------------------------------------------------------------------


class _Teller:
    """An observer that tells each point, and then lets the other one act."""

    def __init__(self, say: Callable[[Said], None], then: AtPoint | None) -> None:
        self._say, self._then = say, then
        self._names = Names()
        self._lock = threading.Lock()

    def notice(self, notice: Notice) -> None:
        with self._lock:  # so that they are told in the order in which they are counted
            self._say(Said(str(self._names.of(notice)), notice.attempt))
        if self._then is not None:
            self._then.notice(notice)


def _live(task: Task, work: Callable[..., Any], say: Callable[[Said], None]) -> None:
    """The child's whole life."""
    from ..coordinator import AsyncCoordinator, Coordinator

    at_point = AtPoint(Point.parse(task.point), hold=task.hold) if task.point else None
    options: Any = {"settings": task.settings, "recovery": False, "observer": _Teller(say, at_point)}

    async def alive() -> None:
        async with AsyncCoordinator(task.resources, journal=task.journal, **options) as db:
            await work(db, *task.args)

    if inspect.iscoroutinefunction(work):
        asyncio.run(alive())
        return
    with Coordinator(task.resources, journal=task.journal, **options) as db:
        work(db, *task.args)


def _nurse(jobs: int, answers: int) -> None:
    """Fork a child for each task that comes, until no more can come."""
    for end in (jobs, answers):
        os.set_inheritable(end, False)

    saying = threading.Lock()

    def say(said: Said) -> None:
        with saying:
            os.write(answers, msgspec.json.encode(said) + b"\n")

    with os.fdopen(jobs, "rb") as lines, tempfile.TemporaryFile() as imported:
        _, work = msgspec.json.decode(lines.readline(), type=Address).load()
        for line in lines:
            before = set(sys.modules)
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    _live(msgspec.json.decode(line, type=Task), work, say)
                    imported.write("\n".join(set(sys.modules) - before).encode())
                    imported.flush()
                    code = 0
                except BaseException:
                    say(Said(failed=traceback.format_exc()))
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(code)
            _, status = os.waitpid(child, 0)
            _import_all(imported)
            say(Said(gone=os.waitstatus_to_exitcode(status)))


def _import_all(names: IO[bytes]) -> None:
    """What a child had to import, drivers above all, its successors find: it takes longer than all else they do."""
    names.seek(0)
    for name in names.read().decode().split():
        with suppress(Exception):
            importlib.import_module(name)
    names.seek(0)
    names.truncate()


if __name__ == "__main__":
    _nurse(int(sys.argv[1]), int(sys.argv[2]))
