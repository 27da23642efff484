"""Where values come from, which of several holds, and what is wrong with them."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodoubt import Settings, UsageError
from nodoubt.config import DEFAULT, SETTINGS, Origin, key_lines, load, seconds_of, written

from .conftest import Write

A, B = "sqlite:///a.db", "sqlite:///b.db"


def flag(key: str, value: Any) -> dict[str, Any]:
    return {"flags": {key: value}, "flag_names": {key: f"--{key}"}}


# ---- which of several holds -----------------------------------------------------------------------

LAYERS: dict[str, tuple[Any, str, str]] = {  # key: as a flag, in the environment, in the file
    "resources": ([f"flag={A}"], f"variable={A}", f'[resources]\nfile = "{A}"\n'),
    "journal": ("sqlite:///flag.db", "sqlite:///variable.db", 'journal = "sqlite:///file.db"\n'),
    "pool_size": ("31", "32", "[settings]\npool_size = 33\n"),
    "grace": ("71s", "72s", '[settings]\ngrace = "73s"\n'),
}


def value_of(config: Any, key: str) -> Any:
    match key:
        case "resources":
            return list(config.resources)
        case "journal":
            return None if config.journal is None else config.journal.url.database
        case _:
            return getattr(config.settings, SETTINGS[key])


@pytest.mark.parametrize("key", LAYERS)
@pytest.mark.parametrize("there", range(8))
def test_flags_come_before_the_environment_and_that_before_the_file(key: str, there: int, write: Write) -> None:
    """Each of the three may be there or not: the first that is there holds, as a whole."""
    as_flag, in_environment, in_file = LAYERS[key]
    if there & 1:
        write(in_file)
    environ = {f"NODOUBT_{key.upper()}": in_environment} if there & 2 else {}
    config = load(**flag(key, as_flag) if there & 4 else {}, environ=environ)
    values: dict[str, tuple[Any, ...]] = {
        "resources": ([], ["file"], ["variable"], ["flag"]),
        "journal": (None, "file.db", "variable.db", "flag.db"),
        "pool_size": (Settings().pool_size, 33, 32, 31),
        "grace": (Settings().grace_s, 73.0, 72.0, 71.0),
    }
    place = 3 if there & 4 else 2 if there & 2 else 1 if there & 1 else 0
    assert value_of(config, key) == values[key][place]
    name = f"resources.{('', 'file', 'variable', 'flag')[place]}" if key == "resources" else key
    name = f"settings.{key}" if key in SETTINGS else name
    origins = (
        DEFAULT,
        Origin("file", "nodoubt.toml", 1 if key == "journal" else 2),
        Origin("environment", f"NODOUBT_{key.upper()}"),
        Origin("flag", f"--{key}"),
    )
    assert config.origins.get(name, DEFAULT) == origins[place]


def test_every_setting_can_be_given_everywhere(write: Write) -> None:
    """What is added to `Settings` is a key of the configuration by that."""
    assert set(SETTINGS.values()) == set(Settings.__slots__)
    for key, name in SETTINGS.items():
        value: Any = 1000 if not name.endswith("_s") else "55s"
        wanted = 1000 if not name.endswith("_s") else 55.0
        path = write(_setting(key, value))
        for config in (
            load(path, environ={}),
            load(environ={f"NODOUBT_{key.upper()}": str(value)}),
            load(**flag(key, value), environ={}),
        ):
            assert getattr(config.settings, name) == wanted
        path.unlink()


def _setting(key: str, value: Any) -> str:
    shown = f'"{value}"' if isinstance(value, str) else str(value)
    return f"[settings]\n{key} = {shown}\n"


def test_the_file_that_is_named_comes_first_then_the_variable_s_then_those_of_the_directory(write: Write) -> None:
    write("[tool.nodoubt.settings]\npool_size = 4\n", "pyproject.toml")
    assert load(environ={}).settings.pool_size == 4
    write("[settings]\npool_size = 3\n")
    assert load(environ={}).settings.pool_size == 3
    write("[settings]\npool_size = 2\n", "variable.toml")
    variable = {"NODOUBT_CONFIG": "variable.toml"}
    assert load(environ=variable).settings.pool_size == 2
    named = write("[settings]\npool_size = 1\n", "named.toml")
    config = load(named, environ=variable)
    assert config.settings.pool_size == 1 and config.file == named


@pytest.mark.parametrize("text", ["[project]\nname = 'x'\n", "[tool.other]\n", "tool = 3\n", "broken ="])
def test_a_pyproject_that_is_not_about_us_is_not_ours_to_read(text: str, write: Write) -> None:
    write(text, "pyproject.toml")
    assert load(environ={}).file is None


def test_in_pyproject_lines_and_keys_are_told_too(write: Write) -> None:
    write("[project]\nname = 'x'\n\n[tool.nodoubt.settings]\npool_siz = 4\n", "pyproject.toml")
    with pytest.raises(UsageError, match=r"pyproject.toml line 5, settings.pool_siz: .*did you mean pool_size\?"):
        load(environ={})


@pytest.mark.parametrize(("path", "environ"), [("no.toml", {}), (None, {"NODOUBT_CONFIG": "no.toml"})])
def test_a_file_that_is_named_must_be_there(path: str | None, environ: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"no\.toml.* cannot be read: No such file"):
        load(path, environ=environ)


# ---- what is wrong --------------------------------------------------------------------------------


def inline(url: str, **more: str) -> str:
    pairs = ", ".join(f'{key} = "{value}"' for key, value in {"url": url, **more}.items())
    return f"[resources]\na = {{ {pairs} }}\n"


WRONG = {
    "a key that is nearly one": (
        "[settings]\ngrcae = '2m'\n",
        "nodoubt.toml line 2, settings.grcae",
        "did you mean grace?",
    ),
    "a key that is none": ("colour = 1\n", "nodoubt.toml line 1, colour", "known are resources, journal, settings"),
    "a setting at the top": ("grace = '2m'\n", "nodoubt.toml line 1, grace", "did you mean settings.grace?"),
    "a field's name": ("[settings]\ngrace_s = 2\n", "nodoubt.toml line 2, settings.grace_s", "did you mean grace?"),
    "no time": ("[settings]\n\n# soon\nsweep = 'soon'\n", "line 4, settings.sweep", "write 30s, 5m, 1h30m or 2d"),
    "a time of another type": (
        "[settings]\nsweep = [1]\n",
        "line 2, settings.sweep",
        "or a number of seconds, not a list",
    ),
    "a time that is true": ("[settings]\nsweep = true\n", "line 2, settings.sweep", "not true or false"),
    "no time at all": ("[settings]\nsweep = 0\n", "line 2, settings.sweep", "not a time above zero"),
    "for ever": ("[settings]\nsweep = inf\n", "line 2, settings.sweep", "not a time above zero"),
    "longer than a clock can wait": (
        "[settings]\nsweep = '999999999d'\n",
        "line 2, settings.sweep",
        "a time above zero, and at most 36500d",
    ),
    "more digits than a number has": (
        f"[settings]\nsweep = {'9' * 400}\n",
        "line 2, settings.sweep",
        "a time above zero, and at most 36500d",
    ),
    "more digits than can be read": (f"[settings]\nsweep = {'9' * 5000}\n", "nodoubt.toml is not TOML", "limit"),
    "no number": ("[settings]\npool_size = 2.5\n", "line 2, settings.pool_size", "a whole number from 1 on"),
    "too small a number": (
        "[settings]\npool_size = 0\n",
        "line 2, settings.pool_size",
        "0 is not a whole number from 1 on",
    ),
    "two that contradict": (
        "[settings]\nprepare = '2m'\n",
        "line 2, settings.prepare",
        "grace (1m, default) must not be below prepare (2m, nodoubt.toml line 2)",
    ),
    "settings that are none": ("settings = 3\n", "line 1, settings", "write [settings]"),
    "resources that are none": ("resources = 'x'\n", "line 1, resources", "write [resources]"),
    "a resource that is none": ("[resources]\na = 3\n", "line 2, resources.a", "write a URL"),
    "a resource's name": (f"[resources]\n'a://b' = '{A}'\n", "line 2, resources.a://b", "printable text of 1 to 63"),
    "a resource's URL": ("[resources]\na = 'oracle://x/y'\n", "line 2, resources.a", "write postgresql://, mariadb://"),
    "a resource without a URL": ("[resources.a]\npassword_env = 'X'\n", "line 1, resources.a", "the URL is missing"),
    "a resource's key": (
        "[resources.a]\nurl = 'sqlite:///a.db'\npassword = 'hunter22'\n",
        "line 3, resources.a.password",
        "did you mean password_",
    ),
    "a resource's type": ("[resources.a]\nurl = 3\n", "line 2, resources.a.url", "this is text, not a number"),
    "a journal that is none": (
        f"journal = 'b'\n[resources]\na = '{A}'\n",
        "line 1, journal",
        "'b' is neither a URL nor a resource: a",
    ),
    "what is expanded elsewhere": (
        "[resources]\na = 'postgresql://me:${PW}@h/d'\n",
        "line 2, resources.a",
        "not expanded in a URL: leave the password out, and write password_env",
    ),
    "a variable that is not there": (
        inline("postgresql://me@h/d", password_env="NOT_THERE"),
        "line 2, resources.a.password_env",
        "the environment has no NOT_THERE",
    ),
    "a file that is not there": (
        inline("postgresql://me@h/d", password_file="none"),
        "line 2, resources.a.password_file",
        "cannot be read: No such file",
    ),
    "two passwords": (
        inline("postgresql://me:hunter22@h/d", password_env="PATH"),
        "line 2, resources.a",
        "one password is enough: the URL, password_env",
    ),
    "a password of SQLite's": (inline(A, password_env="PATH"), "line 2, resources.a", "SQLite knows no passwords"),
    "no TOML": ("journal = \n", "nodoubt.toml is not TOML", "line 1"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_told_with_file_line_and_key(what: str, write: Write) -> None:
    text, where, why = WRONG[what]
    write(text)
    with pytest.raises(UsageError) as caught:
        load(environ={"PATH": "/bin"})
    assert where in str(caught.value) and why in str(caught.value)
    assert "hunter22" not in str(caught.value)
    assert "mistakes" not in str(caught.value), "one mistake is told once"


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 1e300])
def test_settings_made_by_hand_are_held_to_the_same(value: float) -> None:
    with pytest.raises(UsageError, match="sweep_s must be above zero, and at most"):
        Settings(sweep_s=value)


def test_all_that_is_wrong_is_told_at_once(write: Write) -> None:
    write("colour = 1\n[settings]\npool_size = 0\nsweep = 'soon'\n[resources]\na = 3\n")
    with pytest.raises(UsageError) as caught:
        load(environ={})
    assert str(caught.value).startswith("4 mistakes:")
    assert [int(one) for one in re.findall(r"line (\d)", str(caught.value))] == [1, 6, 3, 4]


@pytest.mark.parametrize(
    ("environ", "where"),
    [
        ({"NODOUBT_GRACE": "soon"}, "NODOUBT_GRACE: 'soon' is not a time"),
        ({"NODOUBT_POOL_SIZE": "many"}, "NODOUBT_POOL_SIZE: 'many' is not a whole number"),
        ({"NODOUBT_RESOURCES": "a=nonsense"}, "NODOUBT_RESOURCES, a: not a database URL"),
        ({"NODOUBT_RESOURCES": f"{A} {B}"}, "NODOUBT_RESOURCES: resource 1 has no name"),
        ({"NODOUBT_RESOURCES": f"a={A} a={B}"}, "NODOUBT_RESOURCES: two resources are called 'a'"),
        ({"NODOUBT_JOURNAL": "b"}, "NODOUBT_JOURNAL: 'b' is neither a URL nor a resource: there are none"),
    ],
)
def test_what_is_wrong_in_the_environment_is_told_with_the_variable(environ: dict[str, str], where: str) -> None:
    with pytest.raises(UsageError, match=re.escape(where)):
        load(environ=environ)


def test_a_journal_that_is_no_resource_any_more_names_both(write: Write) -> None:
    """Resources that are flags replace the file's, and the file's journal may be none of them."""
    write(f"journal = 'b'\n[resources]\nb = '{B}'\n")
    with pytest.raises(UsageError, match="nodoubt.toml line 1, journal: 'b' is neither a URL nor a resource: a"):
        load(**flag("resources", [f"a={A}"]), environ={})


def test_a_variable_that_is_nearly_ours_is_a_warning_and_any_other_is_somebodys() -> None:
    config = load(environ={"NODOUBT_GRACES": "1m", "NODOUBT_SOAK_SEED": "7", "GRACE": "1m"})
    assert config.warnings == ("NODOUBT_GRACES is not known; did you mean NODOUBT_GRACE?",)


def test_empty_variables_say_nothing() -> None:
    assert load(environ={"NODOUBT_RESOURCES": " ", "NODOUBT_GRACE": "", "NODOUBT_CONFIG": ""}) == load(environ={})


def test_one_bare_url_needs_no_name() -> None:
    """In the environment and as a flag; it may hold blanks there."""
    assert load(environ={"NODOUBT_RESOURCES": A}).urls() == {"db": A}
    assert load(**flag("resources", ["sqlite:///a b.db"]), environ={}).urls() == {"db": "sqlite:///a b.db"}
    assert load(environ={"NODOUBT_RESOURCES": "postgresql://h/d?options=a"}).urls() == {
        "db": "postgresql://h/d?options=a"
    }


# ---- times ----------------------------------------------------------------------------------------


@given(st.integers(1, 10**9))
def test_a_time_is_written_as_it_is_read(seconds: int) -> None:
    assert seconds_of(written(seconds)) == seconds


def test_times_are_written_short() -> None:
    assert [written(s) for s in (0.2, 1, 60, 90, 5400, 86400, 90061)] == [
        "0.2s",
        "1s",
        "1m",
        "1m30s",
        "1h30m",
        "1d",
        "1d1h1m1s",
    ]


# ---- lines ----------------------------------------------------------------------------------------

KEYS = st.sampled_from(["a", "b", "c", '"d e"', "'f.g'", "a.b", "c.a"])
VALUES = st.sampled_from(
    [
        "1",
        '"x"',
        "'# no comment'",
        '"""\na = 1\n[b]\n"""',
        "'''\n\n'''",
        "[\n  1, # one\n  2,\n]",
        "{ a = 1, b = [ 2 ] }",
        "true",
    ]
)
STATEMENTS = st.one_of(
    st.builds("{} = {}".format, KEYS, VALUES),
    st.builds("{} = {} # why".format, KEYS, VALUES),
    st.builds("[{}]".format, KEYS),
    st.builds("[[{}]]".format, st.sampled_from(["x", "x.y"])),
    st.sampled_from(["", "# a = 1", "   "]),
)


@given(st.lists(STATEMENTS, max_size=12))
def test_the_line_of_a_key_is_that_on_which_its_statement_begins(statements: list[str]) -> None:
    """Against the slow way: the key comes with the first line up to which the document can be read and has it."""
    text = "\n".join(statements)
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    found, begun, lines = dict[tuple[str, ...], int](), 1, text.split("\n")
    for number in range(1, len(lines) + 1):
        try:
            table = tomllib.loads("\n".join(lines[:number]))
        except tomllib.TOMLDecodeError:
            continue
        for path in _paths(table):
            found.setdefault(path, begun)
        begun = number + 1
    told = key_lines(text)
    assert {path: told.get(path) for path in found} == found


def _paths(table: dict[str, Any], above: tuple[str, ...] = ()) -> Any:
    for key, value in table.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from _paths(value, (*above, key))
