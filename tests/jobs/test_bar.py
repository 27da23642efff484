"""The progress bar: on a terminal, and nowhere else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from cli.conftest import ENVIRONMENT

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
