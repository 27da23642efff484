"""`doctor`: which databases, exit codes, for people and for programs, once and on and on."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from typing import Any

import psycopg
import pytest

from nodoubt import doctor, wiring
from nodoubt.config import RESOURCES_VARIABLE
from nodoubt.errors import MissingExtra
from nodoubt.testing.servers import PostgresServer

from .conftest import ENVIRONMENT, Shop, nodoubt

DEAD = "postgresql://me:hunter22@127.0.0.1:1/far"


def examined(*arguments: str, code: int = 0, **more: Any) -> Any:
    result = nodoubt("doctor", *arguments, "--json", **more)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def names(document: Any) -> list[str]:
    return [one["name"] for one in document["databases"]]


# ---- which databases ------------------------------------------------------------------------------


def test_databases_are_named_by_urls_and_called_by_their_own_names(shop: Shop) -> None:
    assert names(examined(*shop.urls.values())) == ["shop.db", "stock.db"]
    url = shop.urls["shop"]
    assert names(examined(url, url)) == ["shop.db", "shop.db-2"]


def test_databases_are_named_with_r_or_in_the_environment(shop: Shop) -> None:
    assert names(examined(*shop.options)) == ["shop", "stock"]
    variables = {RESOURCES_VARIABLE: " ".join(f"{name}={url}" for name, url in shop.urls.items())}
    assert names(examined(env=variables)) == ["shop", "stock"]
    assert names(examined(shop.urls["stock"], env=variables)) == ["stock.db"]
    assert names(examined(shop.urls["stock"], "-r", f"main={shop.urls['shop']}")) == ["stock.db", "main"]


def test_a_journal_of_its_own_is_examined_too(shop: Shop) -> None:
    journal = f"sqlite:///{shop.folder}/journal.db"
    wanted = ["-r", f"shop={shop.urls['shop']}", "--journal", journal]
    document = examined(*wanted, code=1)
    assert names(document) == ["shop", "journal"]
    assert "there is no file" in document["databases"][1]["error"]


def test_without_databases_it_shows_how_to_give_them() -> None:
    result = nodoubt("doctor")
    assert result.exit_code == 2
    assert RESOURCES_VARIABLE in result.stderr


@pytest.mark.parametrize("url", ["nonsense", "oracle://me:hunter22@host/x", "postgresql://me:hunter22@host:port/x"])
def test_a_malformed_url_is_a_usage_error_that_quotes_no_password(url: str) -> None:
    result = nodoubt("doctor", url)
    assert result.exit_code == 2
    assert "database 1:" in result.stderr
    assert "hunter22" not in result.output


# ---- exit codes -----------------------------------------------------------------------------------


def test_a_sound_database_exits_with_0(shop: Shop) -> None:
    assert examined(*shop.options)["exit_code"] == 0
    result = nodoubt("doctor", *shop.options)
    assert result.exit_code == 0
    assert "Nothing needs a human." in result.stdout


def test_a_database_that_is_down_exits_with_1_and_keeps_none_of_the_others_from_being_examined(shop: Shop) -> None:
    document = examined(DEAD, *shop.options, code=1)
    far, *others = document["databases"]
    assert "Connection refused" in far["error"]
    assert [one["error"] for one in others] == [None, None]
    assert all(one["identity"] for one in others)


def test_what_needs_a_human_exits_with_3_even_if_another_is_down(shop: Shop) -> None:
    shop.quarantine("0" * 32)
    assert examined(*shop.options, code=3)["exit_code"] == 3
    assert examined(DEAD, *shop.options, code=3)["exit_code"] == 3


def test_a_driver_that_is_missing_is_the_error_of_its_database_alone(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(url: Any) -> Any:
        raise MissingExtra("PostgreSQL", "postgres")

    monkeypatch.setattr(wiring, "_driver", missing)
    document = examined(DEAD, *shop.options, code=1)
    assert "pip install 'nodoubt[postgres]'" in document["databases"][0]["error"]
    assert document["databases"][1]["error"] is None


def test_a_bug_is_a_sentence(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(doctor, "diagnose", broken)
    result = nodoubt("doctor", *shop.options)
    assert result.exit_code == 1
    assert "this is a bug" in result.stderr


# ---- for people -----------------------------------------------------------------------------------


def test_no_password_is_printed(shop: Shop) -> None:
    for more in ([], ["--json"]):
        result = nodoubt("doctor", DEAD, *more)
        assert "hunter22" not in result.output
        assert "me:***@127.0.0.1" in result.stdout


def test_people_read_what_is_prepared_what_to_do_and_what_was_not_seen(shop: Shop) -> None:
    attempt = shop.stage("order-7", deadline=0.001)
    told = nodoubt("doctor", *shop.options, "--grace", "0")
    assert told.exit_code == 3
    for words in (
        attempt,
        "Needs a human",
        "nodoubt recover -r shop=URL -r stock=URL --journal shop",
        "past its deadline",
        "notes",
        "Not seen",
        "PRAGMA synchronous",
    ):
        assert words in told.stdout
    assert "PREPARED '" not in told.stdout
    assert "\x1b" not in told.stdout  # no colour where no terminal is


def test_on_a_terminal_there_is_colour(shop: Shop) -> None:
    shop.quarantine("0" * 32)
    ours, its = pty.openpty()
    process = subprocess.run(
        [sys.executable, "-m", "nodoubt", "doctor", *shop.options],
        stdout=its, stderr=its, stdin=its, check=False, timeout=60,
        env={**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(its)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.returncode == 3
    assert b"\x1b[" in shown


# ---- on and on ------------------------------------------------------------------------------------


def watching(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "nodoubt", "doctor", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watching_looks_again_until_it_is_told_to_stop_and_exits_with_the_last_code(
    shop: Shop, number: signal.Signals
) -> None:
    process = watching(*shop.options, "--watch", "0.05", "--json")
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    assert first["exit_code"] == 0
    shop.quarantine("0" * 32)
    while json.loads(process.stdout.readline())["exit_code"] != 3:
        pass
    process.send_signal(number)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 3, complaint
    assert "Traceback" not in complaint


def test_watching_outlives_an_outage(shop: Shop) -> None:
    shop.folder.joinpath("shop.db").rename(shop.folder / "away.db")
    process = watching(shop.urls["shop"], "--watch", "0.05", "--json")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["exit_code"] == 1
    shop.folder.joinpath("away.db").rename(shop.folder / "shop.db")
    while json.loads(process.stdout.readline())["exit_code"] != 0:
        pass
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 0, complaint


def test_watch_may_stand_before_a_url_and_without_a_time(shop: Shop) -> None:
    for arguments in (
        ["--watch", shop.urls["shop"]],
        [shop.urls["shop"], "--watch"],
        [shop.urls["shop"], "--watch", "9s"],
    ):
        process = watching(*arguments, "--json")
        assert process.stdout is not None
        assert names(json.loads(process.stdout.readline())) == ["shop.db"]
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=60)
        assert process.returncode == 0, complaint


@pytest.mark.parametrize("arguments", [["--watch=0"], ["--watch=0.01s"], ["--watch=soon"], ["--expect", "0"]])
def test_what_is_no_time_or_number_is_a_usage_error(shop: Shop, arguments: list[str]) -> None:
    assert nodoubt("doctor", *shop.options, *arguments).exit_code == 2


def test_strangers_are_told_of_once_where_they_want_the_same_and_each_by_statements_behind_the_question(
    postgres: PostgresServer,
) -> None:
    url = postgres.url()
    gids = [f"order-{number}" for number in range(7)]
    with psycopg.connect(url, autocommit=True) as connection:
        for gid in gids:
            connection.execute(f"begin; create table t_{gid[-1]} (x int); prepare transaction '{gid}'".encode())
        told = nodoubt("doctor", url, "--grace", "0")
        for gid in gids:
            connection.execute(f"rollback prepared '{gid}'".encode())
    assert told.exit_code == 3
    assert told.stdout.count("its name says nothing of who decides") == 1
    assert "7 of a plain name: order-0, order-1, order-2, order-3, order-4 and 2 more" in told.stdout
    asked = told.stdout.index("only after having asked, in database ")
    assert asked < told.stdout.index("COMMIT PREPARED 'order-0';") < told.stdout.index("ROLLBACK PREPARED 'order-0';")
    assert "COMMIT PREPARED 'order-1'" not in told.stdout


def test_no_id_goes_on_as_advice_of_ours_or_steers_the_terminal(postgres: PostgresServer) -> None:
    url, gid = postgres.url(), "x\n    → COMMIT PREPARED mine;\x1b[2J\u202e"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"begin; create table t (x int); prepare transaction '{gid}'".encode())
        told, document = nodoubt("doctor", url, "--grace", "0"), examined(url, "--grace", "0", code=3)
        connection.execute(f"rollback prepared '{gid}'".encode())
    lines = [line for line in told.stdout.splitlines() if "mine" in line]
    assert lines and all(r"x\n" in line or r"x\U0000000A" in line for line in lines)
    assert "\x1b" not in told.stdout and "\u202e" not in told.stdout
    assert [one["id"] for one in document["databases"][0]["prepared"]] == [gid], "to programs it is told as it is"
