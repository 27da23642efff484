"""What is common to all commands: usage errors, exit codes, passwords, tracebacks, and a quick start."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from nodoubt import Coordinator, errors, ports
from nodoubt.amounts import quantity, span
from nodoubt.cli.outcome import Exit, code_of, worst
from nodoubt.cli.words import masked
from nodoubt.config import seconds_of
from nodoubt.engine.register import NotDecided

from .conftest import ENVIRONMENT, Shop, nodoubt

COMMANDS: list[list[str]] = [
    ["ls"],
    ["show", "x"],
    ["commit", "x", "--yes"],
    ["rollback", "x", "--yes"],
    ["recover"],
    ["schema", "status"],
    ["schema", "apply"],
]
DRIVERS = {"apsw", "sqlite3", "psycopg", "asyncpg", "pymysql", "asyncmy"}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_without_databases_a_command_shows_how_to_give_them(command: list[str]) -> None:
    result = nodoubt(*command)
    assert result.exit_code == 2
    assert "NODOUBT_RESOURCES" in result.stderr
    assert "-r orders=postgresql://" in result.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_server_that_is_down_is_worth_another_try_and_no_password(command: list[str]) -> None:
    result = nodoubt("-r", "postgresql://me:hunter22@127.0.0.1:1/shop", *command)
    assert result.exit_code == 75
    assert "hunter22" not in result.output


@pytest.mark.parametrize(
    "resources",
    [
        ["shop=nonsense"],
        ["shop=oracle://me:hunter22@host/x"],
        ["shop=postgresql://me:hunter22@host:port/x"],
        ["sqlite:///a.db", "sqlite:///b.db"],
        ["shop=sqlite:///a.db", "shop=sqlite:///b.db"],
        ["shop=sqlite:///:memory:"],
    ],
)
def test_a_malformed_resource_is_a_usage_error_that_quotes_no_password(resources: list[str]) -> None:
    result = nodoubt(*[part for one in resources for part in ("-r", one)], "ls")
    assert result.exit_code == 2
    assert "hunter22" not in result.output


def test_a_journal_that_is_neither_name_nor_url_is_a_usage_error(shop: Shop) -> None:
    result = shop.nodoubt("--journal", "elsewhere", "ls")
    assert result.exit_code == 2
    assert "shop, stock" in result.stderr


def test_a_bug_is_a_sentence(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("hunter22")

    monkeypatch.setattr(Coordinator, "transactions", broken)
    result = shop.nodoubt("ls")
    assert result.exit_code == 1
    assert "ZeroDivisionError" in result.stderr
    assert "this is a bug" in result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InDoubt("?", name=None, attempt="a"), Exit.HUMAN),
        (errors.Heuristic("!", attempt="a"), Exit.HUMAN),
        (errors.LineageBroken("!"), Exit.HUMAN),
        (errors.ResourceUnavailable("!"), Exit.AGAIN),
        (errors.PoolExhausted("!"), Exit.AGAIN),
        (errors.JournalUnavailable("!"), Exit.AGAIN),
        (errors.StillBeginning("x"), Exit.AGAIN),
        (NotDecided("!"), Exit.AGAIN),
        (ports.Unclear("!"), Exit.AGAIN),
        (ports.Refused("!", retry=True), Exit.AGAIN),
        (ports.Refused("!"), Exit.FAILED),
        (errors.UsageError("!"), Exit.USAGE),
        (errors.InvalidName("!"), Exit.USAGE),
        (errors.OutcomeConflict("x", stands="aborted"), Exit.FAILED),
        (errors.UnknownTransaction("x"), Exit.FAILED),
        (errors.SchemaMismatch("!"), Exit.FAILED),
        (errors.UnreadableRecord("!"), Exit.HUMAN),
        (errors.InvariantViolated("!"), Exit.FAILED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_every_error_has_its_exit_code(error: Exception, code: Exit) -> None:
    assert code_of(error) is code


def test_of_several_codes_the_one_that_must_be_seen_counts() -> None:
    assert worst(Exit.AGAIN, Exit.HUMAN, Exit.FAILED) is Exit.HUMAN
    assert worst(Exit.AGAIN, Exit.FAILED) is Exit.FAILED
    assert worst() is Exit.FINE


@pytest.mark.parametrize("module", ["nodoubt.cli", "nodoubt.cli.root"])
def test_the_command_line_starts_without_any_driver(module: str) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    loaded = set(
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=ENVIRONMENT
        ).stdout.split()
    )
    assert not loaded & DRIVERS
    assert not any(name.startswith(("nodoubt.drivers.", "nodoubt.testing", "nodoubt.demo")) for name in loaded)
    if module == "nodoubt.cli":
        assert not loaded & {"click", "rich"}


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nodoubt", "--version"], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    assert done.stdout.startswith("nodoubt, version ")


def test_help_names_every_command_and_the_exit_codes() -> None:
    shown = nodoubt("--help").stdout
    for name in ("demo", "ls", "show", "commit", "rollback", "recover", "doctor", "schema", "bench", "75 try again"):
        assert name in shown


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("5m", 300), ("1h30m", 5400), ("2d", 172800), ("0.5s", 0.5)]
)
def test_times_are_written_as_people_do(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "5x", "-5s", "s"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write 30s"):
        seconds_of(text)


def test_spans_are_short() -> None:
    assert [span(s) for s in (0.25, 42, 300, 7200, 500_000)] == ["250 ms", "42 s", "5 min", "2 h", "6 d"]


def test_large_numbers_are_short() -> None:
    assert [quantity(number) for number in (7, 1234, 200_000_000, 2_147_483_648)] == ["7", "1.23 k", "200 M", "2.15 G"]


def test_a_password_is_masked_wherever_a_driver_quotes_it() -> None:
    assert masked("user:hunter22@host", ["hunter22"]) == "user:***@host"
    assert masked("a short a in abc", ["a"]) == "*** short *** in abc"
