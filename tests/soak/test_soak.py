"""A short day of the soak, whole but small; and two mutants of the product, which its judge finds out.

`make soak` is the long one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import pytest
from soak.campaign import Outcome, run
from soak.history import COMMITTED
from soak.plan import plan
from soak.rig import SMALL, Rig, Role
from soak.worker import IGNORES_THE_FENCE, ONE_BY_ONE

SECONDS = float(os.environ.get("NODOUBT_SOAK_S", "20"))
SEED = int(os.environ.get("NODOUBT_SOAK_SEED", time.time_ns() % 1_000_000))
MUTANT_SECONDS = 10.0
MUTANT_DAYS_MAX = 6
MUTANTS = Rig(
    # In threads: whoever is held at a point holds up nobody else.
    (Role("p-sync", "clients", "sync", 12), Role("p-clerk", "clerk", "sync")),
    lanes=("process",),
    think_s=0.1,
    calm_s=0.0,
    settle_s=3.0,  # half a transaction never comes to an end
)


def day(folder: Path, seconds: float, seed: int, rig: Rig) -> Outcome:
    folder.mkdir()
    # MariaDB not in memory: there it maps its log, and a SIGKILL takes nothing from it that was not flushed.
    return run(folder, seconds, seed, rig, under=Path("/var/tmp"), say=print)


@pytest.mark.timeout(SECONDS + 400)
def test_nothing_is_lost_in_a_short_day_of_the_soak(tmp_path: Path) -> None:
    outcome = day(tmp_path / "day", SECONDS, SEED, SMALL)
    again = f"again: NODOUBT_SOAK_S={SECONDS:g} NODOUBT_SOAK_SEED={SEED} pytest tests/soak"
    assert outcome.findings == [], again
    assert any(line.what == COMMITTED for line in outcome.lines), "nothing happened, so nothing was proved"
    assert outcome.done, f"nothing was broken, so nothing was proved; {again}"


def found_out(tmp_path: Path, rig: Rig, seeds: Iterable[int]) -> bool:
    """Whether the judge finds half a transaction in one of a few short days."""
    return any(
        one.rule == "half"
        for seed in islice(seeds, MUTANT_DAYS_MAX)
        for one in day(tmp_path / str(seed), MUTANT_SECONDS, seed, rig).findings
    )


def kills_clients(rig: Rig, seed: int) -> bool:
    acts = plan(seed, MUTANT_SECONDS, rig.all_lanes(), calm_s=rig.calm_s)
    return any(act.fault == "kill" and act.target != "p-clerk" for act in acts)


@pytest.mark.timeout(600)
def test_mutant_without_two_phase_commit_is_found_out(tmp_path: Path) -> None:
    """What people do who have none: one commit after the other. Half of the work is left by whoever dies in between."""
    rig = replace(MUTANTS, mutant=ONE_BY_ONE)
    assert found_out(tmp_path, rig, (seed for seed in count() if kills_clients(rig, seed)))


@pytest.mark.timeout(600)
def test_mutant_that_ignores_the_fence_is_found_out(tmp_path: Path) -> None:
    """Recovery that takes its own ABORT for the register's: a coordinator that only stalls then commits half."""
    assert found_out(tmp_path, replace(MUTANTS, mutant=IGNORES_THE_FENCE, stall_share=0.2, lanes=()), count())
