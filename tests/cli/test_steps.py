"""`steps`, `reap`, `resolve`, and `recover --app`: what an operator does about what is outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli import shop_steps
from cli.conftest import ENVIRONMENT, Shop
from nodoubt.steps import REGISTRY

HERE = Path(__file__).parent


def call(shop: Shop, name: str, to: str = "ada") -> None:
    """Staged, with a step called."""
    shop.stage(name)
    with shop.coordinator() as db:
        db.call(name, shop_steps.mail, to, undo=shop_steps.unmail)


@pytest.fixture
def unmailed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "unmailed"
    file.touch()
    monkeypatch.setenv("UNMAILED", str(file))
    return file


def parked(shop: Shop, name: str) -> None:
    call(shop, name, "nobody")
    assert shop.nodoubt("rollback", name, "--yes").exit_code == 0


def test_a_parked_step_is_seen_everywhere_and_makes_it_exit_with_3(shop: Shop, unmailed: Path) -> None:
    parked(shop, "order-1")
    result = shop.nodoubt("ls")
    assert result.exit_code == 3 and "aborted, needs a human" in result.stdout
    assert "no such address" in result.stdout
    assert [one["name"] for one in shop.json("ls", "--state", "requires_manual_intervention", code=3)["transactions"]]
    (entry,) = shop.json("steps", "ls", code=3)["parked"]
    assert (entry["step"], entry["compensation"], entry["tries"]) == ("shop.mail", "shop.unmail", 1)
    assert shop.nodoubt("recover").exit_code == 3
    shown = shop.nodoubt("show", "order-1")
    assert shown.exit_code == 3 and '{"to":"nobody"}' in shown.stdout and "step parked" in shown.stdout


def test_a_parked_step_is_mended_and_retried(shop: Shop, unmailed: Path) -> None:
    parked(shop, "order-1")
    by = ("--by", "ada", "--because", "a typo")
    wrong = shop.nodoubt("steps", "edit", "order-1", "0", "--arguments", '{"to": 7}', *by, "--app", "cli.shop_steps")
    assert wrong.exit_code == 2 and "does not fit" in wrong.output
    right = ("steps", "edit", "order-1", "0", "--arguments", '{"to": "bob"}', *by, "--app", "cli.shop_steps")
    assert shop.json(*right)["arguments"] == '{"to":"bob"}'
    assert shop.json("steps", "retry", "order-1", "0", "--by", "ada")["state"] == "due"
    assert shop.json("recover")["steps"]["undone"] == 1
    assert unmailed.read_text() == "bob\n"
    assert shop.nodoubt("steps", "ls").stdout.strip() == "No step is parked."
    trail = [event["what"] for event in shop.json("show", "order-1")["events"]]
    assert trail[-4:] == ["step parked", "step due", "step undoing", "step undone"]


def test_a_parked_step_is_skipped_with_a_name_and_a_reason(shop: Shop, unmailed: Path) -> None:
    parked(shop, "order-1")
    assert shop.nodoubt("steps", "skip", "order-1", "0", "--by", "ada").exit_code == 2
    result = shop.nodoubt("steps", "skip", "order-1", "0", "--by", "ada", "--because", "told them by phone")
    assert result.exit_code == 0 and "is not run any more" in result.stdout
    assert shop.nodoubt("ls").exit_code == 0
    assert "told them by phone" in shop.nodoubt("steps", "show", "order-1").stdout


def test_a_worker_without_the_code_says_what_it_lacks_and_one_with_it_undoes(shop: Shop, unmailed: Path) -> None:
    """In processes of their own: one that has imported the application, and one that has not."""
    call(shop, "order-1")
    kept = REGISTRY.compensations.pop("shop.unmail")
    try:
        result = shop.nodoubt("rollback", "order-1", "--yes")
        assert result.exit_code == 0 and "not undone yet" in result.stdout
    finally:
        REGISTRY.compensations["shop.unmail"] = kept
    environment = ENVIRONMENT | {"UNMAILED": str(unmailed)}
    command = [sys.executable, "-m", "nodoubt", *shop.options, "recover"]
    without = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert without.returncode == 0 and "wait for the code of shop.unmail" in without.stdout
    with_it = subprocess.run(
        [*command, "--app", "shop_steps", "--json"],
        capture_output=True, text=True, env=environment, cwd=HERE, check=False,
    )  # fmt: skip
    assert with_it.returncode == 0, with_it.stderr
    assert json.loads(with_it.stdout)["steps"]["undone"] == 1
    assert unmailed.read_text() == "ada\n"


def test_an_app_that_cannot_be_imported_is_a_usage_error(shop: Shop) -> None:
    result = shop.nodoubt("recover", "--app", "no.such.module")
    assert result.exit_code == 2 and "no.such.module can't be imported" in result.output


def test_the_watching_recovery_undoes_what_it_has_the_code_for(shop: Shop, unmailed: Path) -> None:
    shop.stage("order-1", deadline=0.001)
    environment = ENVIRONMENT | {"UNMAILED": str(unmailed)}
    with shop.coordinator() as db:
        db.call("order-1", shop_steps.mail, "ada", undo=shop_steps.unmail)
    command = ("recover", "--watch", "--every", "0.1s", "--json", "--app", "shop_steps")
    process = subprocess.Popen(
        [sys.executable, "-m", "nodoubt", *shop.options, *command],
        stdout=subprocess.PIPE, text=True, env=environment, cwd=HERE,
    )  # fmt: skip
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert (first["reaped"], first["rolled_back"], first["steps"]["undone"]) == (1, 2, 1)
    assert unmailed.read_text() == "ada\n"


# ---- reap -----------------------------------------------------------------------------------------


def test_reap_cleans_up_what_is_past_its_deadline_and_nothing_else(shop: Shop) -> None:
    shop.stage("late", deadline=0.001)
    assert shop.json("reap") == {"reaped": 1, "rolled_back": 2, "trouble": {}, "unreadable": []}
    shop.stage("early")
    assert shop.nodoubt("reap").stdout.startswith("0 overdue transactions aborted")
    assert "cleaned up" in shop.nodoubt("ls").stdout
    (late,) = shop.json("ls", "--state", "cleaned_up")["transactions"]
    assert late["name"] == "late" and "stale_timeout" in late["reason"]
    assert shop.json("show", "early")["transaction"]["status"] == "prepared"


# ---- resolve --------------------------------------------------------------------------------------

WHO = ("--by", "ada", "--because", "the customer called")


@pytest.mark.parametrize(("ending", "state"), [("commit", "committed"), ("rollback", "aborted")])
def test_an_operator_resolves_what_is_undecided_and_it_is_recorded(shop: Shop, ending: str, state: str) -> None:
    shop.stage("order-1")
    assert shop.json("resolve", "order-1", "--as", ending, *WHO, "--yes")["state"] == state
    assert shop.notes() == {name: ["order-1"] if ending == "commit" else [] for name in shop.urls}
    details = [event["detail"] for event in shop.json("show", "order-1")["events"]]
    assert f"as {'commit' if ending == 'commit' else 'abort'} by ada: the customer called" in details
    other = "rollback" if ending == "commit" else "commit"
    again = shop.nodoubt("resolve", "order-1", "--as", other, *WHO, "--yes")
    assert again.exit_code == 1 and "first outcome stands" in again.output
    assert shop.json("resolve", "order-1", "--as", ending, *WHO, "--yes")["state"] == state


def test_resolving_takes_a_name_that_is_typed_and_a_reason(shop: Shop) -> None:
    shop.stage("order-1")
    assert shop.nodoubt("resolve", "order-1", "--as", "commit", "--by", "ada", "--yes").exit_code == 2
    result = shop.nodoubt("resolve", "order-1", "--as", "commit", *WHO)
    assert result.exit_code == 2 and "add --yes" in result.output
    assert shop.json("show", "order-1")["transaction"]["state"] == "prepared"


def typed(shop: Shop, words: str) -> subprocess.CompletedProcess[bytes]:
    """The command on a terminal of its own, with these words typed."""
    leader, follower = os.openpty()
    try:
        os.write(leader, words.encode())
        return subprocess.run(
            [sys.executable, "-m", "nodoubt", *shop.options, "resolve", "order-1", "--as", "commit", *WHO],
            stdin=follower, capture_output=True, env=ENVIRONMENT, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(leader)
        os.close(follower)


def test_on_a_terminal_the_name_must_be_typed(shop: Shop) -> None:
    shop.stage("order-1")
    wrong = typed(shop, "y\n")
    assert wrong.returncode == 1 and b"another name" in wrong.stderr
    assert shop.json("show", "order-1")["transaction"]["state"] == "prepared"
    assert typed(shop, "order-1\n").returncode == 0
    assert shop.json("show", "order-1")["transaction"]["state"] == "committed"
