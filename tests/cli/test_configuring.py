"""`config show`, `init`, and the configuration that every command stands on."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nodoubt import Coordinator, Settings, doctor
from nodoubt.cli import benching
from nodoubt.cli.initiating import WORDS
from nodoubt.config import SETTINGS, load
from nodoubt.testing.servers import PostgresServer
from nodoubt.xid import new_attempt

from .conftest import ENVIRONMENT, Shop, nodoubt

SECRET = "hunter22"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def shown(*arguments: str, **more: Any) -> Any:
    result = nodoubt(*arguments, "config", "show", "--json", **more)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


# ---- one configuration for all commands -----------------------------------------------------------


def test_a_file_is_enough_for_every_command(shop: Shop) -> None:
    lines = "".join(f'{name} = "{url}"\n' for name, url in shop.urls.items())
    Path("nodoubt.toml").write_text(f'journal = "shop"\n[resources]\n{lines}')
    shop.stage("order-1")
    assert "order-1" in nodoubt("ls").stdout
    assert nodoubt("schema", "status").exit_code == 0
    assert nodoubt("commit", "order-1", "--yes").exit_code == 0
    Path("nodoubt.toml").rename("other.toml")
    assert nodoubt("ls").exit_code == 2
    assert "order-1" in nodoubt("--config", "other.toml", "ls").stdout
    assert "order-1" in nodoubt("ls", "--config", "other.toml").stdout
    assert "order-1" in nodoubt("ls", env={"NODOUBT_CONFIG": "other.toml"}).stdout


def test_settings_reach_the_coordinator(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Settings] = []

    def transactions(self: Coordinator, **_: Any) -> list[Any]:
        seen.append(self._ctx.settings)
        return []

    monkeypatch.setattr(Coordinator, "transactions", transactions)
    result = shop.nodoubt("--set", "pool_size=3", "ls", "--set", "sweep=1m", env={"NODOUBT_GRACE": "5m"})
    assert result.exit_code == 0, result.output
    assert (seen[0].pool_size, seen[0].sweep_s, seen[0].grace_s) == (3, 60.0, 300.0)


def test_what_is_wrong_in_the_file_is_a_usage_error_of_every_command() -> None:
    Path("nodoubt.toml").write_text("[settings]\ngrcae = '2m'\n")
    for command in (["ls"], ["config", "show"], ["schema", "status"]):
        result = nodoubt(*command)
        assert result.exit_code == 2
        assert "nodoubt.toml line 2, settings.grcae" in result.stderr


@pytest.mark.parametrize(
    ("sets", "why"),
    [("grace", "write KEY=VALUE"), ("grcae=2m", "did you mean grace?"), ("grace=soon", "--set grace: 'soon' is not")],
)
def test_what_is_wrong_in_a_flag_is_told_with_it(sets: str, why: str) -> None:
    result = nodoubt("--set", sets, "config", "show")
    assert result.exit_code == 2 and why in result.stderr


# ---- config show ----------------------------------------------------------------------------------


def test_every_value_is_shown_with_where_it_came_from_and_no_password() -> None:
    Path("nodoubt.toml").write_text(
        f'journal = "orders"\n[resources]\norders = "postgresql://app:{SECRET}@db1/orders"\n'
        'billing = { url = "mariadb://app@db2/billing", password_env = "BILLING_PASSWORD" }\n[settings]\ngrace = "2m"\n'
    )
    Path("nodoubt.toml").chmod(0o600)
    environ = {"BILLING_PASSWORD": "other-secret", "NODOUBT_SWEEP": "20s"}
    document = shown("--set", "pool_size=3", env=environ)
    values = document["values"]
    assert document["file"] == str(Path("nodoubt.toml").absolute())
    assert document["warnings"] == []
    assert values["resources.orders"]["value"] == "postgresql://app:***@db1/orders"
    assert values["resources.billing"]["value"] == "mariadb://app:***@db2/billing (password from $BILLING_PASSWORD)"
    assert values["settings.grace"] == {"value": "2m", "from": {"kind": "file", "name": "nodoubt.toml", "line": 6}}
    variable = {"kind": "environment", "name": "NODOUBT_SWEEP", "line": None}
    assert values["settings.sweep"] == {"value": "20s", "from": variable}
    assert values["settings.pool_size"]["from"] == {"kind": "flag", "name": "--set pool_size", "line": None}
    assert values["settings.deadline"] == {"value": "1d", "from": {"kind": "default", "name": "", "line": None}}
    assert {f"settings.{key}" for key in SETTINGS} < set(values)
    people = nodoubt("config", "show", env=environ).output
    assert "nodoubt.toml line 4" in people
    for secret in (SECRET, "other-secret"):
        assert secret not in people + json.dumps(document)


def test_without_anything_the_defaults_are_shown() -> None:
    document = shown()
    assert document["file"] is None
    assert document["values"]["journal"]["value"] == "none"
    assert {one["from"]["kind"] for one in document["values"].values()} == {"default"}


# ---- init -----------------------------------------------------------------------------------------


def answered(*arguments: str, answers: Sequence[str]) -> tuple[int, str]:
    """The command on a terminal, each question answered as it is asked; its exit code, and what was to be seen."""
    ours, its = pty.openpty()
    left, seen = list(answers), ""
    with subprocess.Popen(
        [sys.executable, "-m", "nodoubt", "init", *arguments],
        stdin=its, stdout=its, stderr=its, env={**ENVIRONMENT, "TERM": "dumb", "COLUMNS": "300"},
    ) as child:  # fmt: skip
        os.close(its)
        try:
            while True:
                if not select.select([ours], [], [], 30)[0]:
                    child.kill()  # it waits for an answer that there is not
                    break
                try:
                    more = os.read(ours, 65536).decode()
                except OSError:  # Linux: the other side is closed
                    break
                seen += more
                if seen.endswith(": ") and left:
                    os.write(ours, f"{left.pop(0)}\n".encode())
        finally:
            os.close(ours)
    return child.returncode, " ".join(seen.split())  # however a terminal breaks the lines


def mode(path: str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_yes_takes_the_defaults_and_what_is_written_loads_and_works() -> None:
    assert nodoubt("init", "--yes").exit_code == 0
    config = load()
    assert config.urls() == {"db": "sqlite:///nodoubt.db"} and config.journal == "db"
    assert nodoubt("schema", "apply").exit_code == 0
    assert nodoubt("ls").exit_code == 0


def test_what_holds_is_what_is_written() -> None:
    orders, odd, other = "postgresql://app@db1/orders", 'it\'s "me"', "sqlite:///a b.db"
    named = ["-r", f"orders={orders}", "-r", f"{odd}={other}", "--journal", "orders"]
    assert nodoubt(*named, "init", "--yes").exit_code == 0
    assert load().urls() == {"orders": orders, odd: other}
    assert load().journal == "orders"
    assert mode("nodoubt.toml") & 0o600 == 0o600


def test_a_file_that_holds_a_password_is_for_its_owner_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0)
    try:
        result = nodoubt("-r", f"orders=postgresql://app:{SECRET}@db1/orders", "init", "--yes", "--json")
        assert nodoubt("-r", "a=sqlite:///a.db", "--journal", "a", "init", "--yes", "open.toml").exit_code == 0
    finally:
        os.umask(before)
    assert json.loads(result.stdout) == {"file": "nodoubt.toml", "holds_secret": True, "wanting": ""}
    assert SECRET not in result.output and SECRET in Path("nodoubt.toml").read_text()
    assert (mode("nodoubt.toml"), mode("open.toml")) == (0o600, 0o666)


def test_a_password_that_is_kept_elsewhere_stays_there() -> None:
    """Its value is known to us as we write, of a resource and of a journal of its own."""
    text = (
        '[journal]\nurl = "postgresql://app@db0/journal"\npassword_env = "JOURNAL_PASSWORD"\n[resources]\n'
        'orders = { url = "postgresql://app@db1/orders", password_env = "ORDERS_PASSWORD" }\n'
        'stock = { url = "postgresql://app@db2/stock", password_file = "stock" }\n'
    )
    Path("before.toml").write_text(text)
    Path("stock").write_text("third-secret")
    Path("stock").chmod(0o600)
    environ = {"JOURNAL_PASSWORD": "first-secret", "ORDERS_PASSWORD": "second-secret"}
    assert nodoubt("--config", "before.toml", "init", "--yes", env=environ).exit_code == 0
    assert not re.search("(first|second|third)-secret", Path("nodoubt.toml").read_text())
    assert load(environ=environ).urls() == load("before.toml", environ=environ).urls()
    assert load(environ=environ).journal_url() == load("before.toml", environ=environ).journal_url()


def test_nothing_is_overwritten_without_asking() -> None:
    Path("nodoubt.toml").write_text("# mine\n")
    result = nodoubt("init", "--yes")
    assert result.exit_code == 2 and "there is nodoubt.toml already" in result.stderr
    code, seen = answered(answers=["", "", "n", "", "n", "n"])
    assert code == 1 and "will be overwritten" in seen
    assert Path("nodoubt.toml").read_text() == "# mine\n"
    code, seen = answered(answers=["", "", "n", "", "n", "y"])
    assert code == 0, seen
    assert load().urls() == {"db": "sqlite:///nodoubt.db"}
    assert [one.name for one in Path().iterdir() if "toml" in one.name] == ["nodoubt.toml"], "nothing is left beside it"


def test_without_a_terminal_there_is_nobody_to_ask() -> None:
    result = nodoubt("init", input="\n\n\n")
    assert result.exit_code == 2 and "--yes" in result.stderr
    assert not Path("nodoubt.toml").exists()


def test_questions_are_asked_again_until_they_are_answered_and_databases_are_looked_at(
    postgres: PostgresServer,
) -> None:
    """Two databases, one of them PostgreSQL, which is connected to; nothing is changed there."""
    url = postgres.url()
    answers = [
        "orders", "oracle://x/y", url, "env", "",  # a URL that is none is asked for again
        "y", "orders", "stock", "sqlite:///stock.db",  # a name that is taken, too
        "n", "elsewhere", "stock",  # a journal that is nowhere
        "y",
    ]  # fmt: skip
    code, seen = answered(answers=answers)
    assert code == 0, seen
    assert "orders: can take part" in seen
    assert "there is no file stock.db yet" in seen and not Path("stock.db").exists()
    assert "the environment has no ORDERS_PASSWORD" in seen
    config = load(environ={"ORDERS_PASSWORD": "x"})
    assert list(config.resources) == ["orders", "stock"] and config.journal == "stock"
    assert config.resources["orders"].secret == "$ORDERS_PASSWORD"


def test_a_password_that_is_typed_is_not_echoed() -> None:
    answers = ["orders", "postgresql://app@127.0.0.1:1/orders", "here", SECRET, "n", "", "y"]
    code, seen = answered(answers=answers)
    assert code == 0, seen
    assert SECRET not in seen
    assert "cannot connect to postgresql://app:***@127.0.0.1:1/orders" in seen
    assert load().resources["orders"].url.password == SECRET
    assert mode("nodoubt.toml") == 0o600


def test_every_setting_is_explained_in_the_file_that_is_written() -> None:
    assert set(WORDS) == set(SETTINGS)
    assert nodoubt("init", "--yes").exit_code == 0
    text = Path("nodoubt.toml").read_text()
    plain = text.replace("\n# pool_size", "\npool_size").replace('\n# grace = "1m"', '\ngrace = "90s"')
    Path("nodoubt.toml").write_text(plain)
    assert load().settings.grace_s == 90.0
    for key in SETTINGS:
        assert f"\n# {key} = " in text


# ---- commands that are about other databases too --------------------------------------------------


def test_the_doctor_takes_databases_and_settings_from_the_configuration(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, int]] = []
    diagnose = doctor.diagnose

    def told(facts: Any, *, grace_s: float, expected: int, **more: Any) -> Any:
        seen.append((grace_s, expected))
        return diagnose(facts, grace_s=grace_s, expected=expected, **more)

    monkeypatch.setattr(doctor, "diagnose", told)
    lines = "".join(f'{name} = "{url}"\n' for name, url in shop.urls.items())
    Path("nodoubt.toml").write_text(f'[resources]\n{lines}[settings]\ngrace = "2m"\npool_size = 7\n')
    result = nodoubt("doctor", "--json")
    assert result.exit_code == 0, result.output
    assert [one["name"] for one in json.loads(result.stdout)["databases"]] == ["shop", "stock"]
    assert nodoubt("doctor", shop.urls["shop"], env={"NODOUBT_GRACE": "3m"}).exit_code == 0
    assert nodoubt("doctor", "--set", "grace=5m", "--expect", "9").exit_code == 0
    assert seen == [(120.0, 7), (180.0, 7), (300.0, 9)]


def test_a_url_is_examined_where_the_configuration_cannot_be_used_for_its_databases(shop: Shop) -> None:
    Path("nodoubt.toml").write_text(
        '[resources]\norders = { url = "postgresql://app@db1/orders", password_env = "NOWHERE" }\n'
    )
    assert "NOWHERE" in nodoubt("doctor").stderr
    told = nodoubt("doctor", shop.urls["shop"], "--json")
    assert told.exit_code == 0, told.output
    assert [one["name"] for one in json.loads(told.stdout)["databases"]] == ["shop.db"]
    assert nodoubt("doctor", shop.urls["shop"], "--config", "nodoubt.toml").exit_code == 2
    Path("nodoubt.toml").write_text("[settings]\ngrcae = '2m'\n")
    assert "nodoubt.toml line 2, settings.grcae" in nodoubt("doctor", shop.urls["shop"]).stderr


def test_a_benchmark_runs_with_the_settings_of_the_configuration(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Settings] = []

    def measured(db: Coordinator, *_: Any) -> dict[str, Any]:
        seen.append(db._ctx.settings)
        return {"on": ["shop"], "per_second": 1.0, "p50_ms": 1.0, "p99_ms": 1.0, "tried_again": 0}

    monkeypatch.setattr(benching, "_measured", measured)
    told = shop.nodoubt("bench", "--yes", "--clients", "2", "--set", "grace=5m")
    assert told.exit_code == 0, told.output
    assert {(one.pool_size, one.grace_s) for one in seen} == {(2, 300.0)}


def test_settle_reads_the_file_too(shop: Shop) -> None:
    lines = "".join(f'{name} = "{url}"\n' for name, url in shop.urls.items())
    Path("nodoubt.toml").write_text(f"[resources]\n{lines}")
    told = nodoubt("settle", new_attempt(), "--yes", "--json")
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["state"] == "aborted"
