"""Counts forced writes: every fsync and fdatasync of the servers' and the test's own processes, seen by strace.

    with Trace(pids, marks) as trace:
        …                        # whoever is counted says `mark(marks, "begin")` before, "end" after, "done" at last
        trace.between("begin", "end")

A mark is itself an fsync, of an empty file whose name says it: in the trace it stands exactly between what was forced
before it and after it, however late the trace is read. A server's write is in the trace before its reply is sent.

Guarantees: whatever is forced in between is listed, by process and file. Not counted are processes that serve nobody
(PostgreSQL's walwriter, checkpointer and background writer): no caller waits for them.

Must not: be used on a server whose log is forced by other means than fsync and fdatasync (`wal_sync_method`,
`innodb_flush_method`): `between` would find nothing, and the tests that expect an exact number would fail.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from .processes import descendants

ATTACH_TIME_MAX_S = 30.0
DONE = "done"
SYSCALLS = "fsync,fdatasync,sync_file_range,msync,sync,syncfs"
BACKGROUND = re.compile(rb"postgres: (walwriter|checkpointer|background writer)")
_LINE = re.compile(r"(?P<pid>\d+) +(?P<call>\w+)\((?:\d+<(?P<path>[^>]*)>)?")


def mark(directory: Path, name: str) -> None:
    """Leave a mark in the trace of this process."""
    number = os.open(directory / f"mark-{name}", os.O_CREAT | os.O_RDWR)
    os.fsync(number)
    os.close(number)


class Trace:
    """strace on running processes and whatever they fork, from `with` to its end."""

    def __init__(self, pids: Iterable[int], directory: Path) -> None:
        self._pids = sorted({one for pid in pids for one in (pid, *descendants(pid))})
        self._quiet = {str(pid) for pid in self._pids if BACKGROUND.match(Path(f"/proc/{pid}/cmdline").read_bytes())}
        self._out, self._err = directory / "trace", directory / "strace.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        which = [argument for pid in self._pids for argument in ("-p", str(pid))]
        with self._err.open("wb") as log:
            self._process = subprocess.Popen(
                ["strace", "-f", "-y", "-e", f"trace={SYSCALLS}", "-e", "signal=none", "-o", str(self._out), *which],
                stderr=log,
            )
        deadline = time.monotonic() + ATTACH_TIME_MAX_S
        while not self._attached():
            assert self._process.poll() is None and time.monotonic() < deadline, self._err.read_text()
            time.sleep(0.01)
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)  # it lets go of all of them, and they go on
        self._process.wait()

    def _attached(self) -> bool:
        seen = set(re.findall(r"Process (\d+) attached", self._err.read_text()))
        return seen >= set(map(str, self._pids))

    def between(self, first: str, last: str) -> Counter[str]:
        """What was forced between these two marks, each time they came: how often each file."""
        found: Counter[str] = Counter()
        counting = False
        for match in filter(None, map(_LINE.match, self._lines())):  # "resumed" and "exited" lines do not match
            path = match["path"] or match["call"]
            if "/mark-" in path:
                counting = path.endswith(f"/mark-{first}") or (counting and not path.endswith(f"/mark-{last}"))
            elif counting and match["pid"] not in self._quiet:
                found[path] += 1
        return found

    def _lines(self) -> list[str]:
        """The trace as far as the mark "done", which must come."""
        deadline = time.monotonic() + ATTACH_TIME_MAX_S
        while f"/mark-{DONE}>" not in (text := self._out.read_text()):
            assert time.monotonic() < deadline, f"no mark {DONE!r} in the trace:\n{text}"
            time.sleep(0.01)
        return text.splitlines()
