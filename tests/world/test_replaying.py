"""A planted bug is found, made small, and replayed by the line that is printed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nodoubt.testing.world import drawn, run, shrunk

from .planted import ON_CONFLICT_DO_NOTHING

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path])}


def made(*words: str) -> subprocess.CompletedProcess[str]:
    """What `make` would run, by this Python."""
    plan = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    command = plan.stdout.replace("\\\n", " ").strip().splitlines()[-1]
    _, *arguments = shlex.split(command)
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


@pytest.mark.timeout(600)
def test_a_planted_bug_is_found_made_small_and_replayed_by_the_printed_line() -> None:
    hunt = made("sim", "HOURS=0.1", "JOBS=1", "VARIANT=world.planted:ON_CONFLICT_DO_NOTHING")
    assert hunt.returncode == 1, hunt.stdout + hunt.stderr
    rule = next(line for line in hunt.stdout.splitlines() if re.match(r"I\d+: ", line))
    enough = re.search(r"found with seed \d+, (\d+) acts and faults; these are enough:", hunt.stdout)
    line = re.search(r"^replay it: make (sim SEED=\d+ KEEP=([\d,]+) VARIANT=\S+)$", hunt.stdout, re.MULTILINE)
    assert enough is not None and line is not None, hunt.stdout
    assert len(line[2].split(",")) < int(enough[1])
    again = made(*line[1].split())
    assert again.returncode == 1 and again.stdout.rstrip().endswith(rule), again.stdout + again.stderr
    sound = made(*line[1].split()[:-1])
    assert sound.returncode == 0 and sound.stdout.rstrip().endswith("every rule held")


def test_of_what_is_made_small_nothing_can_be_spared() -> None:
    ran = next(ran for seed in range(200) if (ran := run(drawn(seed), ON_CONFLICT_DO_NOTHING)).violated is not None)
    small = shrunk(ran, ON_CONFLICT_DO_NOTHING)
    assert ran.violated is not None and small.violated is not None and small.violated.number == ran.violated.number
    keep = small.schedule.keep
    for number in keep:
        less = run(ran.schedule.only([other for other in keep if other != number]), ON_CONFLICT_DO_NOTHING)
        assert less.violated is None or less.violated.number != ran.violated.number
