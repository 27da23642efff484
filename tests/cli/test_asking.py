"""`ls` and `show`."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from .conftest import ENVIRONMENT, Shop, nodoubt

RECORD_KEYS = {
    "name",
    "attempt",
    "mode",
    "state",
    "complete",
    "branches",
    "created_at",
    "deadline",
    "decided_at",
    "reason",
    "owner",
    "metadata",
    "heuristic",
    "status",
}


def test_an_empty_journal_is_fine(shop: Shop) -> None:
    result = shop.nodoubt("ls")
    assert (result.exit_code, result.stdout) == (0, "No transactions.\n")


def test_a_listing_shows_state_and_databases(shop: Shop) -> None:
    shop.stage("order-1")
    result = shop.nodoubt("ls")
    assert result.exit_code == 0
    assert "order-1" in result.stdout
    assert "prepared" in result.stdout
    assert "shop, stock" in result.stdout


def test_the_keys_of_a_record_are_a_contract(shop: Shop) -> None:
    attempt = shop.stage("order-1", metadata={"customer": "Avery"})
    document = shop.json("ls")
    assert set(document) == {"transactions", "quarantined", "parked", "unreadable"}
    (record,) = document["transactions"]
    assert set(record) == RECORD_KEYS
    assert record["attempt"] == attempt
    assert record["state"] == "prepared"
    assert record["branches"] == ["shop", "stock"]
    assert record["metadata"] == {"customer": "Avery"}
    assert record["created_at"].endswith("Z")
    assert record["decided_at"] is None


def test_filters_choose_by_state_age_and_number(shop: Shop) -> None:
    shop.stage("order-1")
    shop.nodoubt("commit", "order-1", "--yes")
    shop.stage("order-2")
    names = [
        [record["name"] for record in shop.json("ls", *filters)["transactions"]]
        for filters in (["--state", "committed"], ["--state", "prepared"], ["--older-than", "1h"], ["--limit", "1"])
    ]
    assert names == [["order-1"], ["order-2"], [], ["order-2"]]


@pytest.mark.parametrize("filters", [["--state", "lost"], ["--older-than", "soon"], ["--limit", "0"]])
def test_a_filter_that_means_nothing_is_a_usage_error(shop: Shop, filters: list[str]) -> None:
    assert shop.nodoubt("ls", *filters).exit_code == 2


def test_a_long_name_is_cut_on_a_terminal_and_whole_in_a_pipe(shop: Shop) -> None:
    name = "order-" + "x" * 150
    shop.stage(name)
    assert name in shop.nodoubt("ls").stdout
    assert shop.json("ls")["transactions"][0]["name"] == name
    shown = on_a_terminal(shop, "ls", columns=80)
    assert name not in shown
    assert "order-xxx" in shown
    assert "shop, stock" in shown


def test_what_others_have_written_cannot_steer_a_terminal(shop: Shop) -> None:
    shop.stage("order-1", metadata={"note": "\x1b[2Jgone"})
    shown = shop.nodoubt("show", "order-1").stdout
    assert "\x1b" not in shown
    assert r"\x1b[2Jgone" in shown


def test_show_finds_a_transaction_by_name_and_by_attempt(shop: Shop) -> None:
    attempt = shop.stage("order-1")
    assert shop.json("show", "order-1") == shop.json("show", attempt)
    document = shop.json("show", "order-1")
    assert set(document) == {"transaction", "events", "quarantined", "confirmations", "steps", "unreadable"}
    assert set(document["transaction"]) == RECORD_KEYS
    shown = shop.nodoubt("show", "order-1").stdout
    assert attempt in shown
    assert "prepared" in shown


def test_an_unknown_name_has_failed_and_says_so(shop: Shop) -> None:
    result = shop.nodoubt("show", "order-9")
    assert result.exit_code == 1
    assert "no transaction 'order-9'" in result.stderr
    error = shop.json("show", "order-9", code=1)["error"]
    assert (error["type"], error["exit_code"]) == ("UnknownTransaction", 1)


def test_what_is_quarantined_needs_a_human(shop: Shop) -> None:
    """Taking `held` out of the exit codes makes this fail (I17)."""
    attempt = shop.stage("order-1")
    shop.nodoubt("rollback", "order-1", "--yes")
    shop.stage("order-2")
    shop.quarantine(attempt)
    listed = shop.nodoubt("ls")
    assert listed.exit_code == 3
    assert "need a human" in listed.stdout
    assert "somebody rolled it back" in listed.stdout
    assert shop.nodoubt("ls", "--state", "committed").exit_code == 3
    entry = shop.json("ls", code=3)["quarantined"][0]
    assert entry == {
        "attempt": attempt,
        "branch": 1,
        "resource": "stock",
        "why": "somebody rolled it back",
        "since": "2023-11-14T22:13:20.000Z",
    }
    assert shop.nodoubt("show", "order-1").exit_code == 3
    assert shop.nodoubt("show", "order-2").exit_code == 0


def test_what_is_quarantined_is_shown_even_if_the_journal_has_forgotten_the_rest(shop: Shop) -> None:
    attempt = "0" * 32
    shop.quarantine(attempt)
    document = shop.json("show", attempt, code=3)
    assert document["transaction"] is None
    assert document["quarantined"][0]["attempt"] == attempt
    assert shop.nodoubt("show", "1" * 32).exit_code == 1


def test_a_file_that_is_not_there_is_not_made_by_asking(empty: Shop) -> None:
    for command in (["ls"], ["show", "order-1"], ["recover"], ["schema", "status"], ["commit", "order-1", "--yes"]):
        result = empty.nodoubt(*command)
        assert result.exit_code == 1
        assert "schema apply" in result.stderr
    assert not list(empty.folder.iterdir())


def test_a_file_without_our_tables_is_named_with_what_to_do(empty: Shop) -> None:
    for name in ("shop", "stock"):
        (empty.folder / f"{name}.db").touch()
    result = empty.nodoubt("ls")
    assert result.exit_code == 1
    assert "nodoubt schema apply" in result.stderr


def test_no_one_needs_options_where_the_environment_says_it(shop: Shop) -> None:
    variables = {"NODOUBT_RESOURCES": "\n".join(f"{name}={url}" for name, url in shop.urls.items())}
    shop.stage("order-1")
    assert "order-1" in nodoubt("ls", env=variables).stdout
    elsewhere = nodoubt("ls", env={**variables, "NODOUBT_JOURNAL": "stock"})
    assert elsewhere.exit_code == 1
    assert "the journal: our tables are missing" in elsewhere.stderr


def test_options_may_stand_behind_the_command(shop: Shop) -> None:
    assert nodoubt("ls", *shop.options).exit_code == 0


def on_a_terminal(shop: Shop, *arguments: str, columns: int) -> str:
    """What the command writes to a terminal so wide."""
    ours, its = pty.openpty()
    try:
        subprocess.run(
            [*command_line(shop), *arguments],
            stdout=its,
            stdin=its,
            stderr=its,
            env={**ENVIRONMENT, "COLUMNS": str(columns), "TERM": "xterm"},
            check=True,
            timeout=60,
        )
        os.close(its)
        return read_all(ours)
    finally:
        os.close(ours)


def command_line(shop: Shop) -> list[str]:
    return [sys.executable, "-m", "nodoubt", *shop.options]


def read_all(terminal: int) -> str:
    parts = []
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # Linux: the other side is closed
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts).decode()
