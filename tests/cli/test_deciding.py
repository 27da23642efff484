"""`commit` and `rollback`: who is asked, and what is decided."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from typing import Any

import pytest

from nodoubt import Coordinator, InDoubt, StillBeginning

from .conftest import ENVIRONMENT, Shop


def test_a_commit_is_carried_out_everywhere(shop: Shop) -> None:
    attempt = shop.stage("order-1")
    assert shop.notes() == {"shop": [], "stock": []}
    document = shop.json("commit", "order-1", "--yes")
    assert document == {"name": "order-1", "attempt": attempt, "state": "committed", "complete": True, "undoing": 0}
    assert shop.notes() == {"shop": ["order-1"], "stock": ["order-1"]}


def test_a_rollback_is_carried_out_everywhere(shop: Shop) -> None:
    shop.stage("order-1")
    result = shop.nodoubt("rollback", "order-1", "--yes")
    assert (result.exit_code, "rolled back" in result.stdout) == (0, True)
    assert shop.notes() == {"shop": [], "stock": []}


def test_repeating_tells_the_first_outcome_and_the_contrary_fails(shop: Shop) -> None:
    shop.stage("order-1")
    assert shop.nodoubt("commit", "order-1", "--yes").exit_code == 0
    assert shop.nodoubt("commit", "order-1", "--yes").exit_code == 0
    contrary = shop.nodoubt("rollback", "order-1", "--yes")
    assert contrary.exit_code == 1
    assert "committed already" in contrary.stderr


def test_an_attempt_that_is_not_the_names_own_is_refused(shop: Shop) -> None:
    shop.stage("order-1")
    assert shop.nodoubt("commit", "order-1", "--attempt", "0" * 32, "--yes").exit_code == 1
    assert shop.notes() == {"shop": [], "stock": []}


@pytest.mark.parametrize("verb", ["commit", "rollback"])
def test_without_a_terminal_nothing_is_decided_unless_told_so(shop: Shop, verb: str) -> None:
    """Taking `require_terminal` out makes this fail."""
    shop.stage("order-1")
    result = shop.nodoubt(verb, "order-1", input="y\n")
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert shop.json("show", "order-1")["transaction"]["state"] == "prepared"


@pytest.mark.parametrize(
    ("answer", "code", "state"), [("y", 0, "committed"), ("n", 1, "prepared"), ("", 1, "prepared")]
)
def test_on_a_terminal_a_human_is_shown_the_transaction_and_asked(
    shop: Shop, answer: str, code: int, state: str
) -> None:
    attempt = shop.stage("order-1")
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "nodoubt", *shop.options, "commit", "order-1"],
        stdin=its,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    os.close(its)
    os.write(ours, f"{answer}\n".encode())
    shown, asked = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == code
    assert attempt in shown
    assert "Commit 'order-1' on shop, stock?" in asked
    assert shop.json("show", "order-1")["transaction"]["state"] == state


def test_an_unknown_name_is_no_success(shop: Shop) -> None:
    assert shop.nodoubt("commit", "order-9", "--yes").exit_code == 1


def test_an_outcome_that_nobody_knows_is_neither_success_nor_failure(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taking InDoubt out of the table of exit codes makes this fail."""

    def lost(*_: Any, **__: Any) -> None:
        raise InDoubt("no answer", name="order-1", attempt="a" * 32)

    monkeypatch.setattr(Coordinator, "commit_distributed", lost)
    result = shop.nodoubt("commit", "order-1", "--yes")
    assert result.exit_code == 3
    assert f"nodoubt settle {'a' * 32}" in result.stderr
    assert shop.json("commit", "order-1", "--yes", code=3)["error"]["type"] == "InDoubt"


def test_a_doubt_is_ended_for_good(shop: Shop) -> None:
    """What the error of an outcome that nobody knows says to run."""
    attempt = shop.stage("order-1")
    assert shop.nodoubt("settle", attempt, "--yes").exit_code == 2, "what is staged is decided by its name"
    assert shop.nodoubt("settle", "order-1", "--yes").exit_code == 2
    shop.json("commit", "order-1", "--yes")
    assert shop.json("settle", attempt, "--yes")["state"] == "committed"
    never = "01a" + attempt[3:-4] + "0000"
    assert shop.nodoubt("settle", never, input="y\n").exit_code == 2, "nobody is there to ask"
    document = shop.json("settle", never, "--yes")
    assert document == {"name": "", "attempt": never, "state": "aborted", "complete": True, "undoing": 0}


def test_an_interrupted_commit_has_not_failed(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle leaves the decision to the phases, which go on: exit code 1 would be a lie."""

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Coordinator, "commit_distributed", interrupted)
    result = shop.nodoubt("commit", "order-1", "--yes")
    assert result.exit_code == 130
    assert "nodoubt show" in result.stderr


def test_what_is_not_ready_yet_may_be_tried_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def early(*_: Any, **__: Any) -> None:
        raise StillBeginning("order-1")

    monkeypatch.setattr(Coordinator, "commit_distributed", early)
    assert shop.nodoubt("commit", "order-1", "--yes").exit_code == 75
