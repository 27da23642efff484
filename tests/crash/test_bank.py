"""Under kill -9 of everything, the bank loses no money and tells no lie; and the audit would see it if it did."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from crash.bank import SECONDS_DEFAULT, Bank

SECONDS = float(os.environ.get("NODOUBT_BANK_S", SECONDS_DEFAULT))
SEED = int(os.environ.get("NODOUBT_BANK_SEED", time.time_ns() % 1_000_000))
MUTANT_SECONDS = 8.0
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


def test_mutant_without_two_phase_commit_is_found_out(tmp_path: Path) -> None:
    """What people do who have none: one commit after the other. Half a transfer is left by whoever dies in between."""
    audit = Bank(tmp_path, MUTANT_SECONDS, 1, mutant="one by one").run()
    assert any("touched" in one for one in audit.wrong), audit


def test_mutant_that_ignores_the_fence_is_found_out(tmp_path: Path) -> None:
    """Recovery that takes its own ABORT for the register's: a coordinator that only stalls then commits half."""
    audit = Bank(tmp_path, MUTANT_SECONDS, 1, stall_share=MUTANT_STALL_SHARE, mutant="ignores the fence").run()
    assert any("touched" in one for one in audit.wrong), audit
