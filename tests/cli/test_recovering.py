"""`recover`: once, and on and on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from .conftest import ENVIRONMENT, Shop

REPORT_KEYS = {
    "at",
    "clean",
    "prepared",
    "committed",
    "rolled_back",
    "left",
    "presumed",
    "ended",
    "trouble",
    "quarantined",
    "parked",
    "reaped",
    "steps",
    "unreadable",
}
DEAD = "postgresql://me:hunter22@127.0.0.1:1/shop"


def past_deadline(shop: Shop, name: str) -> None:
    """A staged transaction whose deadline has passed."""
    shop.stage(name, deadline=0.001)
    until = time.monotonic() + 10
    while not shop.nodoubt("ls").stdout.count("past its deadline"):
        assert time.monotonic() < until


def test_with_nothing_left_behind_there_is_nothing_to_do(shop: Shop) -> None:
    result = shop.nodoubt("recover")
    assert (result.exit_code, result.stdout) == (0, "0 prepared branches found.\n")


def test_a_sweep_tells_what_it_did(shop: Shop) -> None:
    past_deadline(shop, "order-1")
    report = shop.json("recover", "--grace", "0")
    assert set(report) == REPORT_KEYS
    assert (report["prepared"], report["rolled_back"], report["clean"]) == (2, 2, True)
    assert shop.json("show", "order-1")["transaction"]["state"] == "aborted"


def test_a_sweep_in_words(shop: Shop) -> None:
    past_deadline(shop, "order-1")
    assert "2 prepared branches found: 2 rolled back." in shop.nodoubt("recover", "--grace", "0").stdout


def test_what_is_staged_and_in_time_is_left_alone(shop: Shop) -> None:
    shop.stage("order-1")
    result = shop.nodoubt("recover", "--grace", "0")
    assert result.exit_code == 0
    assert "2 left alone" in result.stdout
    assert shop.json("show", "order-1")["transaction"]["state"] == "prepared"


def test_what_is_quarantined_makes_a_sweep_exit_with_3(shop: Shop) -> None:
    shop.quarantine("0" * 32)
    assert shop.nodoubt("recover").exit_code == 3
    assert shop.json("recover", code=3)["quarantined"][0]["attempt"] == "0" * 32


def test_a_database_that_is_down_is_trouble_to_try_again(shop: Shop) -> None:
    result = shop.nodoubt("-r", f"far={DEAD}", "recover")
    assert result.exit_code == 75
    assert "far:" in result.stdout
    assert "hunter22" not in result.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watching_goes_on_until_it_is_told_to_stop(shop: Shop, number: signal.Signals) -> None:
    past_deadline(shop, "order-1")
    process = shop.start("recover", "--watch", "--every", "0.1s", "--grace", "0", "--json")
    assert process.stdout is not None
    first, second = (json.loads(process.stdout.readline()) for _ in range(2))
    process.send_signal(number)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 0, complaint
    assert "Traceback" not in complaint
    assert set(first) == set(second) == REPORT_KEYS
    assert (first["rolled_back"], second["rolled_back"]) == (2, 0)


def test_watching_outlives_an_outage_of_the_journal_itself() -> None:
    """Without the loop in `_watch` this process ends with 75 at once."""
    process = subprocess.Popen(
        [sys.executable, "-m", "nodoubt", "-r", DEAD, "recover", "--watch", "--every", "0.1s", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2)]
    process.send_signal(signal.SIGINT)
    rest, complaint = process.communicate(timeout=60)
    assert process.returncode == 0, complaint
    assert all("journal" in json.loads(line)["trouble"] for line in lines)
    assert "hunter22" not in "".join(lines) + rest + complaint


def test_sweeps_that_follow_at_once_are_a_usage_error(shop: Shop) -> None:
    assert shop.nodoubt("recover", "--watch", "--every", "0").exit_code == 2
