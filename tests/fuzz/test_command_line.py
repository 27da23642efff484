"""The command line and what it reads: any words end in an answer or a documented exit code, never in an accident."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cli.conftest import Shop, nodoubt
from kit import Database
from nodoubt import UsageError
from nodoubt.cli.asking import Duration
from nodoubt.cli.databases import databases
from nodoubt.cli.outcome import Exit
from nodoubt.cli.root import root
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


# ---- commands, as the command line itself knows them

# What starts something that has no end, or is not ours to start here.
LEFT_OUT = {
    "demo": "kills processes of its own, and with --servers starts database servers; tests/cli/test_demo.py runs it",
    "bench": "works for as long as --for says, an hour too",
}
ENDLESS = "--watch"  # of recover, doctor and jobs show: until it is stopped


def tree(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """The command and all below it, by the words that lead there."""
    yield " ".join(path), command
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from tree(below, (*path, name))


COMMANDS = {name: command for name, command in tree(root) if name not in LEFT_OUT}


# No way to another folder: init writes the file that it is told to.
def can_be_said(word: str) -> bool:
    """Whether a command line can hold it: bytes that are no text come as surrogates, but not all of those as bytes."""
    try:
        return bool(os.fsencode(word) or not word)
    except UnicodeEncodeError:
        return False


names = anything.filter(lambda text: "\0" not in text and "/" not in text and can_be_said(text))
known = st.sampled_from(["order", "shop", "stock", "0" * 32, "0", "1"])


def values_of(parameter: click.Parameter) -> st.SearchStrategy[str]:
    """Mostly what it may take: with nonsense alone, nothing would come further than the usage."""
    if isinstance(parameter.type, click.Choice):
        good = st.sampled_from(list(parameter.type.choices))
    elif isinstance(parameter.type, Duration):
        good = st.sampled_from(["0s", "1h", "-1s", "1e400"])
    else:
        good = known
    return st.one_of(good, good, good, names)


def words_of(parameter: click.Parameter) -> st.SearchStrategy[list[str]]:
    """An argument, or an option with what belongs to it."""
    if not isinstance(parameter, click.Option):
        return values_of(parameter).map(lambda value: [value])
    options = st.sampled_from([*parameter.opts, *parameter.secondary_opts])
    if parameter.is_flag:
        return options.map(lambda option: [option])
    return st.tuples(options, values_of(parameter)).map(list)


def words_after(command: click.Command) -> st.SearchStrategy[list[str]]:
    """All that a command must be given, and some of its options; now and then a word too many."""
    everywhere = {one.name for one in root.params}
    options = [one for one in command.params if isinstance(one, click.Option) and ENDLESS not in one.opts]
    own = [words_of(one) for one in options if one.name not in everywhere] or [st.just(["--help"])]
    shared = [words_of(one) for one in options if one.name in everywhere]
    other = st.sampled_from([["--help"], ["--nothing"], ["--yes"]]) | names.map(lambda word: [word])
    must = [words_of(one) for one in command.params if isinstance(one, click.Argument) or one.required]
    if any(one.name == "yes" for one in options):
        must.append(st.sampled_from([["--yes"], []]))  # nobody is there to be asked
    chosen = st.lists(st.one_of(*own, *own, *own, *shared, other), max_size=2)
    return st.tuples(st.tuples(*must), chosen).map(
        lambda both: [word for some in (*both[0], *both[1]) for word in some]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both databases set up, and a name staged there."""
    made = Shop(tmp_path_factory.mktemp("shop"))
    for name, url in made.urls.items():
        Database(name, url).query("create table notes (note text primary key)")
    with made.coordinator() as db:
        db.setup()
    made.stage("order")
    return made.folder


def no_accident(folder: Path, *words: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("NODOUBT_RESOURCES", raising=False)
        patch.chdir(folder)
        result: Any = nodoubt(*Shop(folder).options, *words)
    assert result.exit_code in set(Exit), result.output
    assert "bug in nodoubt" not in result.output + result.stderr


@pytest.mark.parametrize("name", COMMANDS)
@given(st.data())
@settings(max_examples=8, deadline=None)
def test_no_words_after_a_command_are_a_bug_in_nodoubt(folder: Path, name: str, data: st.DataObject) -> None:
    no_accident(folder, *name.split(), *data.draw(words_after(COMMANDS[name])))


@pytest.mark.parametrize(
    "words",
    [["show", "\udcff"], ["commit", "\udcff", "--yes"], ["settle", "0" * 32, "--json"], ["nothing"], []],
    ids=ascii,
)
def test_words_that_have_been_an_accident_are_none(folder: Path, words: list[str]) -> None:
    no_accident(folder, *words)


def test_what_is_left_out_is_a_command() -> None:
    assert LEFT_OUT.keys() < dict(tree(root)).keys()
