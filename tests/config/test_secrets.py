"""Passwords: from the environment or a file, and never to be read anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from nodoubt import UsageError
from nodoubt.config import Config, load

from .conftest import Write

SECRET = "hun'ter\"2/2 ü@:#"
URL = "postgresql://app@db1/orders"


def inline(**more: str) -> str:
    pairs = ", ".join(f'{key} = "{value}"' for key, value in {"url": URL, **more}.items())
    return f"[resources]\norders = {{ {pairs} }}\n"


def assert_kept(config: Config, *, of: str) -> None:
    """It is in the URL that a driver gets, and in nothing that is shown."""
    assert config.resources["orders"].url.password == SECRET
    assert config.passwords() == (SECRET,)
    assert "ter%222%2F2" in config.urls()["orders"]
    for shown in (repr(config), str(config.resources["orders"]), str(config.origins)):
        assert SECRET not in shown and "hun" not in shown
    assert of in str(config.resources["orders"])


def test_a_password_comes_from_the_environment(write: Write) -> None:
    write(inline(password_env="ORDERS_PASSWORD"))
    assert_kept(load(environ={"ORDERS_PASSWORD": SECRET}), of="(password from $ORDERS_PASSWORD)")


@pytest.mark.parametrize("url", ["postgresql://app@db1/orders?password={}", "mariadb://db1/orders?password={}"])
def test_a_password_may_stand_behind_the_question_mark_as_drivers_allow_and_is_kept_there_too(
    write: Write, url: str
) -> None:
    write(f"[resources]\norders = '{url.format(quote(SECRET))}'\n", mode=0o600)
    assert_kept(load(environ={}), of=":***@")


def test_the_password_of_a_client_s_key_is_kept(write: Write) -> None:
    write("[resources]\norders = 'postgresql://db1/orders?sslpassword=hunter22'\n")
    config = load(environ={})
    assert "hunter22" not in repr(config) + str(config.resources["orders"])
    assert "sslpassword=hunter22" in config.urls()["orders"] and config.passwords() == ("hunter22",)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql:/me:hunter22@db1/orders", "me:hunter22@db1", "me:hunter22@db1://orders",
        "postgresql://me:hunter22/x@db1/orders", "postgresql://me:hunter22#x@db1/orders",
        "postgresql://me:hunter22@db1/orders?password=hunter22", "mariadb://me:hunter22@db1",
    ],
)  # fmt: skip
def test_a_url_that_is_none_is_told_without_what_may_be_its_password(text: str, write: Write) -> None:
    write(f"[resources]\norders = '{text}'\n")
    with pytest.raises(UsageError, match="line 2, resources.orders: ") as caught:
        load(environ={})
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize("key", ["journal", "settings.grace", "settings.pool_size"])
def test_a_url_where_none_belongs_is_not_quoted(key: str, write: Write) -> None:
    write(f"{key} = 'me:hunter22@db1/orders'\n")
    with pytest.raises(UsageError, match=f"line 1, {key}: this text is n") as caught:
        load(environ={})
    assert "hunter22" not in str(caught.value)


def test_how_to_write_a_password_with_strange_characters_is_told(write: Write) -> None:
    write("[resources]\norders = 'postgresql://me:a/b@db1/orders'\n")
    with pytest.raises(UsageError, match="in a user or password, / is written %2F"):
        load(environ={})


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_password_comes_from_a_file_whose_last_line_may_end(write: Write, end: str, here: Path) -> None:
    """The file is looked for beside the configuration, wherever that is read from."""
    write(inline(password_file="secrets/orders"), "etc/nodoubt.toml")
    secret = here / "etc/secrets/orders"
    secret.parent.mkdir()
    secret.write_bytes((SECRET + end).encode())
    secret.chmod(0o640)
    assert_kept(load("etc/nodoubt.toml", environ={}), of="(password from secrets/orders)")


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o444])
def test_a_file_that_everybody_may_read_is_no_secret(write: Write, mode: int) -> None:
    write(inline(password_file="secret"))
    write(SECRET, "secret", mode)
    with pytest.raises(
        UsageError, match=r"resources.orders.password_file: everybody on this machine may read .*secret: chmod o-r"
    ):
        load(environ={})


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "must hold the password"),
        (b"\n", "must hold the password"),
        (b"a\nb\n", "on one line"),
        (b"\xff", "not UTF-8"),
        (b"a\0", "on one line"),
    ],
)
def test_a_file_with_anything_else_in_it_is_refused(write: Write, content: bytes, why: str) -> None:
    write(inline(password_file="secret"))
    write("", "secret").write_bytes(content)
    with pytest.raises(UsageError, match=why):
        load(environ={})


def test_a_journal_of_its_own_has_a_password_too(write: Write) -> None:
    write(f'[journal]\nurl = "{URL}"\npassword_env = "JOURNAL_PASSWORD"\n')
    config = load(environ={"JOURNAL_PASSWORD": SECRET})
    assert config.passwords() == (SECRET,)
    assert "ter%222%2F2" in (config.journal_url() or "")
    assert "hun" not in repr(config)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_a_password_in_a_file_that_everybody_may_read_is_a_warning(write: Write, mode: int) -> None:
    write('[resources]\norders = "postgresql://app:hunter22@db1/orders"\n', mode=mode)
    config: Any = load(environ={})
    told = "".join(config.warnings)
    assert ("nodoubt.toml line 2, resources.orders" in told and "chmod 600" in told) is (mode == 0o644)
    assert "hunter22" not in told
