"""`schema apply | status | sql`, and databases that are not what they were."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from .conftest import ENVIRONMENT, Shop, nodoubt

DEAD = "mariadb://me:hunter22@127.0.0.1:1/stock"


def test_apply_creates_what_is_missing_and_can_be_repeated(empty: Shop) -> None:
    assert empty.nodoubt("schema", "apply").exit_code == 0
    first = empty.json("schema", "status")
    assert empty.nodoubt("schema", "apply").exit_code == 0
    again = empty.json("schema", "status")
    assert first["journal"]["cluster"] == again["journal"]["cluster"]
    assert [one["resource_id"] for one in first["databases"]] == [one["resource_id"] for one in again["databases"]]


def test_the_keys_of_a_status_are_a_contract(shop: Shop) -> None:
    document = shop.json("schema", "status")
    assert set(document) == {"ok", "journal", "databases"}
    assert set(document["journal"]) == {"in", "tables", "version", "known", "cluster", "epoch", "error"}
    assert document["journal"]["in"] == "shop"
    assert document["ok"] is True
    for database in document["databases"]:
        assert set(database) == {
            "name",
            "url",
            "kind",
            "holds_journal",
            "tables",
            "version",
            "known",
            "resource_id",
            "cluster",
            "epoch",
            "server",
            "prepared",
            "warnings",
            "error",
        }


def test_a_status_changes_nothing(shop: Shop) -> None:
    """A coordinator would begin an epoch: opening one in `status`, or one to work with in `ls`, makes this fail."""
    before = shop.json("schema", "status")
    assert shop.json("schema", "status") == before
    assert shop.nodoubt("ls").exit_code == 0
    assert shop.nodoubt("show", "nobody").exit_code == 1
    assert shop.json("schema", "status") == before
    assert shop.nodoubt("recover").exit_code == 0
    assert shop.json("schema", "status")["journal"]["epoch"] > before["journal"]["epoch"]


def test_a_status_lists_what_is_prepared(shop: Shop) -> None:
    attempt = shop.stage("order-1")
    document = shop.json("schema", "status")
    assert [len(one["prepared"]) for one in document["databases"]] == [1, 1]
    assert all(attempt in one["prepared"][0] for one in document["databases"])


def test_a_status_without_tables_has_failed(empty: Shop) -> None:
    for name in ("shop", "stock"):
        (empty.folder / f"{name}.db").touch()
    document = empty.json("schema", "status", code=1)
    assert document["ok"] is False
    assert document["journal"]["tables"] == "mismatch"
    assert "schema apply" in empty.nodoubt("schema", "status").stdout


def test_a_journal_of_its_own_is_shown_as_such(empty: Shop) -> None:
    own = ["--journal", f"sqlite:///{empty.folder / 'journal.db'}"]
    assert empty.nodoubt(*own, "schema", "apply").exit_code == 0
    assert empty.json(*own, "schema", "status")["journal"]["in"] is None
    assert "journal.db" in empty.nodoubt(*own, "schema", "status").stdout


def test_a_database_that_is_down_is_told_beside_those_that_are_not(shop: Shop) -> None:
    result = shop.nodoubt("-r", f"far={DEAD}", "schema", "status", "--json")
    assert result.exit_code == 75
    far = json.loads(result.stdout)["databases"][2]
    assert far["url"] == "mariadb://me:***@127.0.0.1:1/stock"
    assert far["error"]
    assert [one["error"] for one in json.loads(result.stdout)["databases"][:2]] == [None, None]
    assert "hunter22" not in result.output


def test_a_restored_copy_is_refused_until_an_operator_adopts_it(shop: Shop) -> None:
    """I15, from the operator's chair."""
    stock = shop.folder / "stock.db"
    stock.rename(stock.with_suffix(".original"))
    shutil.copy(stock.with_suffix(".original"), stock)
    for command in ("ls", "recover"):  # to look is allowed, and tells
        told = shop.nodoubt(command)
        assert told.exit_code == 3
        assert "schema apply --adopt stock" in told.stderr
    assert shop.json("schema", "status", code=3)["ok"] is False
    assert shop.nodoubt("schema", "apply").exit_code == 3
    assert shop.nodoubt("schema", "apply", "--adopt", "stock").exit_code == 2
    assert shop.nodoubt("ls").exit_code == 3
    assert shop.json("schema", "apply", "--adopt", "stock", "--yes")["adopted"] == "stock"
    assert shop.nodoubt("ls").exit_code == 0


def test_only_a_resource_can_be_adopted(shop: Shop) -> None:
    assert shop.nodoubt("schema", "apply", "--adopt", "elsewhere", "--yes").exit_code == 2


@pytest.mark.parametrize("dialect", ["postgres", "mariadb", "sqlite"])
def test_the_statements_can_be_had_without_a_database_or_a_driver(dialect: str) -> None:
    program = (
        "import sys; sys.argv[1:] = ['schema', 'sql', '--dialect', sys.argv[1]]\n"
        "from nodoubt.cli import main\n"
        "try: main()\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, dialect], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    assert done.stdout.count("CREATE TABLE") >= 4
    assert not set(done.stderr.split()) & {"apsw", "psycopg", "pymysql", "asyncpg", "asyncmy"}


def test_the_statements_of_the_databases_at_hand(shop: Shop) -> None:
    parts = shop.json("schema", "sql")["schema"]
    assert [(part["name"], part["part"]) for part in parts] == [
        ("shop", "journal"),
        ("shop", "participant"),
        ("stock", "participant"),
    ]
    assert nodoubt("schema", "sql").exit_code == 2
