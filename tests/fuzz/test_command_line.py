"""The command line and what it reads: any words end in an answer or a documented exit code, never in an accident."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cli.conftest import Shop, nodoubt
from nodoubt import Coordinator, UsageError
from nodoubt.cli.databases import databases
from nodoubt.cli.outcome import Exit
from nodoubt.cli.words import masked, printable
from nodoubt.config import load, seconds_of
from nodoubt.url import parse_url

anything = st.text(st.characters(), max_size=30)
urls = st.sampled_from(["postgresql://me:s3cr3t@host/db", "sqlite:///x.db", "sqlite:///", "x://y", "://", "=", ""])
words = st.lists(st.sampled_from(["a", "=", "shop", "journal", " "]) | urls | anything, max_size=4).map("".join)


@given(st.lists(words, max_size=3), st.none() | words)
@example(["postgresql://\udcff@host/db"], None)
@settings(max_examples=120, deadline=None)
def test_databases_are_understood_or_a_usage_error_without_a_password(given_: list[str], journal: str | None) -> None:
    told = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("NODOUBT_RESOURCES", raising=False)
        patch.delenv("NODOUBT_JOURNAL", raising=False)
        try:
            flags = {"resources": given_} | ({} if journal is None else {"journal": journal})
            found = databases(load(flags=flags, environ={}))
        except UsageError as error:
            told = str(error)
        except click.UsageError as error:
            told = error.message
        else:
            assert found.resources and all(parse_url(url) for url in found.resources.values())
            assert found.journal is None or found.journal in found.resources or found.own_journal is not None
    if all("s3cr3t" not in text.partition("://")[0] for text in (*given_, journal or "")):
        assert "s3cr3t" not in told


@given(anything | st.from_regex(r"\A[0-9]{1,3}(\.[0-9])? ?[smhdw]?( ?[0-9]+[smhd])*\Z"))
@settings(max_examples=120, deadline=None)
def test_a_time_is_a_number_of_seconds_or_refused(text: str) -> None:
    try:
        seconds = seconds_of(text)
    except ValueError:
        return
    assert seconds >= 0 and seconds_of(f" {text} ") == seconds


@given(anything, st.lists(st.text(min_size=1, max_size=6), max_size=3))
@settings(max_examples=120, deadline=None)
def test_what_is_printed_steers_no_terminal_and_holds_no_secret(text: str, secrets: list[str]) -> None:
    shown = printable(text)
    assert all(c.isprintable() or c == "\n" for c in shown)
    for secret in secrets:
        if len(secret) >= 4 and "*" not in secret:
            assert secret not in masked(text + secret, [secret])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("shop")
    with Coordinator(Shop(made).urls, recovery=False) as db:
        db.setup()
    return made


names = anything.filter(lambda text: "\0" not in text)
options = st.sampled_from(
    [["--json"], ["--yes"], ["--attempt", "0" * 32], ["--older-than", "1h"], ["--state", "prepared"], ["--limit", "2"],
     ["--as", "ada"], ["--grace", "0s"], ["--help"]]
)  # fmt: skip
commands = st.sampled_from(["ls", "show", "commit", "rollback", "settle", "recover", "explore", "schema", "nothing"])


@given(commands, st.lists(names.map(lambda text: [text]) | options, max_size=3))
@example("show", [["\udcff"]])
@example("commit", [["\udcff"], ["--yes"]])
@example("settle", [["0" * 32], ["--json"]])
@settings(max_examples=80, deadline=None)
def test_no_arguments_are_a_bug_in_nodoubt(folder: Path, command: str, arguments: list[list[str]]) -> None:
    given_ = [part for some in arguments for part in some]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("NODOUBT_RESOURCES", raising=False)
        result: Any = nodoubt(*Shop(folder).options, command, *given_)
    assert result.exit_code in set(Exit), result.output
    assert "bug in nodoubt" not in result.output + result.stderr
