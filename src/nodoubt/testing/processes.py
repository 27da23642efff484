"""Trees of processes: stop, continue and kill all of one at once, and leave none behind.

`kill_tree` is what makes a crash of a server a real one: the root is stopped first, so that it can neither
fork, nor notice its children's deaths and begin an orderly end. `Guard` is a small process of its own that
ends a server and removes its directory when the process that started it is gone, however it went
(an exit handler does not run after SIGKILL, and tests kill their processes).

Guarantees: each function returns once what it says is so, or raises `ProcessError` after `SETTLE_TIME_MAX_S`.

Must not: import anything but the standard library: the guard runs this file as a script, without the project.
Linux only: it reads /proc.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

__all__ = ["Guard", "ProcessError", "continue_tree", "descendants", "kill_tree", "stop_tree", "wait_for"]

SETTLE_TIME_MAX_S = 20.0
CLEAN_TIME_MAX_S = 600.0  # hundreds of databases are some hundred thousand files
CLEAN_AGAIN_S = 10.0
POLL_S = 0.002
ROUNDS_MAX = 1000


class ProcessError(Exception):
    """A process did not do in time what a signal asks of it."""


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = SETTLE_TIME_MAX_S) -> None:
    """Poll until the condition holds; `ProcessError` says what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise ProcessError(f"waited {timeout_s:g} s in vain: {what}")
        time.sleep(POLL_S)


def _stat(pid: int) -> tuple[str, int] | None:
    """State letter and parent of a process; None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The command's name stands in brackets and may itself hold brackets and blanks.
    state, parent, *_ = text[text.rindex(")") + 2 :].split()
    return state, int(parent)


def _gone(pid: int) -> bool:
    """Whether it runs no more. A zombie is gone: it holds no file, lock or socket, only its number."""
    stat = _stat(pid)
    return stat is None or stat[0] in "ZX"


def _halted(pid: int) -> bool:
    stat = _stat(pid)
    return stat is None or stat[0] in "TtZX"


def descendants(pid: int) -> list[int]:
    """Every living process below `pid`, parents before children."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := _stat(int(entry))) is not None and stat[0] not in "ZX":
            children.setdefault(stat[1], []).append(int(entry))
    found: list[int] = []
    level = [pid]
    while level:
        level = [child for parent in level for child in children.get(parent, [])]
        found += level
    return found


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def stop_tree(pid: int) -> None:
    """SIGSTOP the process and all below it; returns when none of them runs."""
    stopped: set[int] = set()
    for _ in range(ROUNDS_MAX):
        # A parent is stopped before its children are listed, so the next round finds what it forked meanwhile.
        fresh = [one for one in (pid, *descendants(pid)) if one not in stopped]
        if not fresh:
            return
        for one in fresh:
            _send(one, signal.SIGSTOP)
            wait_for(partial(_halted, one), f"process {one} to stop")
        stopped.update(fresh)
    raise ProcessError(f"process {pid} forks faster than it can be stopped")


def continue_tree(pid: int) -> None:
    """SIGCONT to all of a stopped tree, children first."""
    for one in (*reversed(descendants(pid)), pid):
        _send(one, signal.SIGCONT)


def kill_tree(pid: int) -> None:
    """SIGKILL the process and all below it, with no time for any of them to react; returns when all are gone.

    `pid` may be left as a zombie: reaping it is its parent's business.
    """
    stop_tree(pid)
    everyone = (*reversed(descendants(pid)), pid)
    for one in everyone:
        _send(one, signal.SIGKILL)
    for one in everyone:
        wait_for(partial(_gone, one), f"process {one} to be gone")


class Guard:
    """Watches over a directory and the server that runs in it, from a process of its own."""

    def __init__(self, directory: Path) -> None:
        # A session of its own: Ctrl-C at the terminal ends the tests, and then the guard has its work to do.
        # Isolated and without site: it starts in some 15 ms and depends on no path.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(directory)],
            stdin=subprocess.PIPE,
            start_new_session=True,
            cwd="/",
        )

    def watch(self, pid: int) -> None:
        """This is the server's process from now on; 0: there is none."""
        pipe = self._process.stdin
        if pipe is not None and not pipe.closed:
            pipe.write(f"{pid}\n".encode())
            pipe.flush()

    def close(self) -> None:
        """Have it do its work now, and wait."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(CLEAN_TIME_MAX_S)


def _guard(directory: str) -> None:
    """The guard's whole life: note the newest pid until the pipe ends, then kill and clean up."""
    pid = 0
    for line in sys.stdin:
        pid = int(line)
    if pid and not _gone(pid):
        kill_tree(pid)
    # Whoever was interrupted as it initialised the directory may have left behind a process that still writes there.
    until = time.monotonic() + CLEAN_AGAIN_S
    shutil.rmtree(directory, ignore_errors=True)
    while os.path.lexists(directory) and time.monotonic() < until:
        time.sleep(0.05)
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    _guard(sys.argv[1])
