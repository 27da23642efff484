"""Under kill -9 of everything, the bank loses no money and tells no lie; and the audit would see it if it did."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from crash.bank import SECONDS_DEFAULT, STALL_SHARE, Bank

SECONDS = float(os.environ.get("NODOUBT_BANK_S", SECONDS_DEFAULT))
SEED = int(os.environ.get("NODOUBT_BANK_SEED", time.time_ns() % 1_000_000))
MUTANT_SECONDS = 8.0
MUTANT_DAYS_MAX = 5
MUTANT_STALL_SHARE = 0.1


@pytest.mark.timeout(SECONDS + 240)
def test_the_bank_loses_nothing_while_processes_and_servers_are_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit = Bank(tmp_path, SECONDS, SEED).run()
    with capsys.disabled():
        print(f"\n{audit}")
    assert audit.wrong == [], f"again: NODOUBT_BANK_S={SECONDS:g} NODOUBT_BANK_SEED={SEED} python tests/crash/bank.py"
    assert audit.said["committed"] and audit.kills.total(), "nothing happened, so nothing was proved"


def found_out(tmp_path: Path, mutant: str, stall_share: float = STALL_SHARE) -> bool:
    """Whether the audit of one of a few short days finds half a transfer."""
    for day in range(1, MUTANT_DAYS_MAX + 1):
        directory = tmp_path / str(day)
        directory.mkdir()
        audit = Bank(directory, MUTANT_SECONDS, day, stall_share=stall_share, mutant=mutant).run()
        if any("touched" in one for one in audit.wrong):
            return True
    return False


@pytest.mark.timeout(600)
def test_mutant_without_two_phase_commit_is_found_out(tmp_path: Path) -> None:
    """What people do who have none: one commit after the other. Half a transfer is left by whoever dies in between."""
    assert found_out(tmp_path, "one by one")


@pytest.mark.timeout(600)
def test_mutant_that_ignores_the_fence_is_found_out(tmp_path: Path) -> None:
    """Recovery that takes its own ABORT for the register's: a coordinator that only stalls then commits half."""
    assert found_out(tmp_path, "ignores the fence", MUTANT_STALL_SHARE)
