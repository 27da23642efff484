"""The progress bar: on a terminal, and nowhere else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from cli.conftest import ENVIRONMENT
from nodoubt import Coordinator, JobLost, JobState
from nodoubt.jobs.bar import Bar
from nodoubt.jobs.board import Board
from nodoubt.script import Script

PROGRAM = """
from nodoubt import Coordinator
with Coordinator("sqlite:///a.db", recovery=False) as db:
    db.setup()
    with db.job("index [orders]", quiet={quiet}) as job:
        for chunk in job.chunks(range(4), 2):
            with chunk:
                pass
    with db.job("outer", total=1) as outer, db.job("inner", total=1) as inner:
        pass
"""


def run(folder: Path, *, quiet: bool = False) -> str:
    """What is seen on a terminal that standard error is."""
    here, there = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(quiet=quiet)],
        stdout=subprocess.PIPE,
        stderr=there,
        cwd=folder,
        env={**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(there)
    seen = b""
    while True:
        try:
            some = os.read(here, 65536)
        except OSError:  # the other end is closed
            break
        if not some:
            break
        seen += some
    os.close(here)
    assert child.communicate(timeout=60)[0] == b"" and child.returncode == 0, seen.decode()
    return seen.decode()


def test_a_terminal_shows_how_far_it_is(tmp_path: Path) -> None:
    seen = run(tmp_path)
    assert "index [orders]" in seen and "4/4" in seen and "outer" in seen


def test_told_to_be_quiet_it_is(tmp_path: Path) -> None:
    assert "index [orders]" not in run(tmp_path, quiet=True)


def test_what_a_program_prints_into_a_file_is_there_and_not_on_the_terminal(tmp_path: Path) -> None:
    here, there = pty.openpty()
    program = PROGRAM.format(quiet=False).replace("pass", "print('a result')", 1)
    with (tmp_path / "results").open("w") as results:
        child = subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=results,
            stderr=there,
            cwd=tmp_path,
            env={**ENVIRONMENT, "TERM": "xterm"},
        )
        os.close(there)
        with suppress(OSError):  # the other end is closed
            while os.read(here, 65536):
                pass
        assert child.wait(60) == 0
    os.close(here)
    assert (tmp_path / "results").read_text() == "a result\n" * 2


class Gone:
    """A terminal that nobody is at any more."""

    def isatty(self) -> bool:
        return True

    def fileno(self, *_: object) -> int:
        raise OSError(5, "Input/output error")

    write = flush = fileno


def test_a_terminal_that_is_gone_is_no_error_of_the_job_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with Coordinator(f"sqlite:///{tmp_path}/a.db", recovery=False) as db:
        db.setup()
        monkeypatch.setattr(sys, "stderr", Gone())
        with db.job("sum") as job:
            for chunk in job.chunks(range(4), 2):
                with chunk:
                    pass
        assert db.progress("sum").state is JobState.DONE


def test_whoever_is_thrown_out_as_he_comes_in_leaves_no_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar that nobody ends hides the cursor, and holds the terminal for good."""
    ended: list[str] = []
    monkeypatch.setattr(Bar, "end", lambda bar: ended.append(bar._name))
    with Coordinator(f"sqlite:///{tmp_path}/a.db", recovery=False) as db:
        db.setup()

        def somebody_else(_: Board, *__: object) -> Script[bool]:
            yield from ()
            return False

        monkeypatch.setattr(Board, "advance", somebody_else)
        with pytest.raises(JobLost), db.job("sum"):
            raise AssertionError("nobody is let in")
    assert ended == ["sum"]


@pytest.mark.parametrize("where", ["a pipe", "a file"])
def test_elsewhere_nothing_is_said(where: str, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+") as log:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(quiet=False)],
            stdout=subprocess.PIPE if where == "a pipe" else log,
            stderr=subprocess.PIPE if where == "a pipe" else log,
            cwd=tmp_path,
            env={**ENVIRONMENT, "TERM": "xterm"},
            check=True,
        )
    assert not done.stderr and not done.stdout and (tmp_path / "log").read_text() == ""
