"""Configuration: any file, environment and flags end in a configuration or in mistakes in words; no password shows.

What each value means is in tests/config.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nodoubt import Settings, UsageError
from nodoubt.config import SETTINGS, Config, load
from nodoubt.url import parse_url

anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
values = st.sampled_from(
    ['"2m"', "3", "-1", "0.5", "nan", "inf", "true", '""', "[]", "{}", '"x"', '"1e400"', "1979-05-27", '"sqlite:///a.db"',
     '"postgresql://me:s3cr3t@host/db"', '{ url = "mariadb://me@h/db", password_env = "SECRET" }', '{ url = 3 }',
     '{ url = "postgresql://me:s3cr3t@h/db", password_file = "nowhere" }', '"postgresql://me:s3cr3t@[/db"']
)  # fmt: skip
keys = (
    st.sampled_from(["orders", "journal", "resources", "settings", "url", "a.b", '"x y"', '""', *SETTINGS]) | anything
)
lines = st.one_of(
    st.sampled_from(["[resources]", "[settings]", "[resources.orders]", "[[resources]]", "[tool.nodoubt]", "#", "= ="]),
    st.builds("{} = {}".format, keys, values),
    anything,
)
texts = st.lists(lines, max_size=8).map("\n".join)
SECRET = {"SECRET": "s3cr3t"}


def told(path: Path | None, **more: Any) -> str:
    """All that somebody may see of it. What is understood is sound."""
    try:
        config = load(path, **more)
    except UsageError as error:
        return str(error)
    assert isinstance(config, Config) and isinstance(config.settings, Settings)
    assert all(parse_url(url) for url in config.urls().values())
    assert config.journal is None or isinstance(config.journal_url(), str)
    assert all(getattr(config.settings, name) > 0 for name in SETTINGS.values())
    return f"{config!r} {[str(one) for one in config.resources.values()]} {config.warnings}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("configuration") / "nodoubt.toml"


@given(texts)
@example('[resources]\norders = "postgresql://me:s3cr3t@host/db"\n[settings]\ngrace = "1s"')
@settings(max_examples=120, deadline=None)
def test_any_file_is_a_configuration_or_a_list_of_mistakes(place: Path, text: str) -> None:
    place.write_text(text, "utf-8")
    assert "s3cr3t" not in told(place, environ=SECRET)


@given(st.binary(max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_a_file(place: Path, content: bytes) -> None:
    place.write_bytes(content)
    told(place, environ={})


variables = st.sampled_from(["RESOURCES", "JOURNAL", *(key.upper() for key in SETTINGS)]).map("NODOUBT_".__add__)
words = values.map(lambda text: text.strip('"')) | anything | st.sampled_from(["a=sqlite:///a.db b=x", "a=a=a", "="])


@given(st.dictionaries(variables, words.filter(lambda text: "\0" not in text), max_size=4))
@settings(max_examples=100, deadline=None)
def test_any_environment_is_understood_or_a_mistake(tmp_path_factory: pytest.TempPathFactory, environ: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.getbasetemp())
        assert not os.path.exists("nodoubt.toml")
        assert "s3cr3t" not in told(None, environ=environ)


flags = st.one_of(
    st.none(), anything, st.integers(), st.floats(), st.booleans(), words, st.lists(words, max_size=3),
    st.dictionaries(anything, words | st.integers(), max_size=2),
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["resources", "journal", "nonsense", *SETTINGS]), flags, max_size=3))
@settings(max_examples=100, deadline=None)
def test_any_flags_are_understood_or_a_mistake(given_: dict[str, Any]) -> None:
    assert "s3cr3t" not in told(None, flags=given_, environ={})
