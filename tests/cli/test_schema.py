"""`schema apply | status | sql`, and databases that are not what they were."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest

from nodoubt.cli import schema as printing
from nodoubt.journals import sql as journals
from nodoubt.resources.sqlite import resource as resources
from schema.releases import BROKEN, EXPANDED, SHIPPED, schema_of

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


# ---- migrations and rights ------------------------------------------------------------------------


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """From now on this release is one of those that there never were: see `tests/schema/releases.py`."""

    def become(release: int) -> None:
        for module in (journals, resources, printing):
            monkeypatch.setattr(module, "shipped", lambda part, kind: schema_of(part, kind, release))

    return become


def test_a_status_tells_versions_and_apply_migrates(empty: Shop, later: Callable[[int], None]) -> None:
    shop = empty
    later(SHIPPED)
    assert shop.nodoubt("schema", "apply").exit_code == 0

    def versions() -> set[tuple[int, int]]:
        document = shop.json("schema", "status", code=0 if document_ok else 1)
        return {(one["version"], one["known"]) for one in (document["journal"], *document["databases"])}

    document_ok = True
    assert versions() == {(1, 1)}
    later(EXPANDED)
    document_ok = False
    assert versions() == {(1, 2)}
    assert "1, this release knows 2" in shop.nodoubt("schema", "status").stdout
    told = shop.nodoubt("ls")
    assert told.exit_code == 1 and "run nodoubt schema apply" in told.stderr
    assert shop.nodoubt("schema", "apply").exit_code == 0
    document_ok = True
    assert versions() == {(2, 2)}
    later(SHIPPED)
    assert versions() == {(2, 1)}
    assert shop.nodoubt("ls").exit_code == 0


def test_whoever_shuts_others_out_is_asked(empty: Shop, later: Callable[[int], None]) -> None:
    shop = empty
    later(EXPANDED)
    assert shop.nodoubt("schema", "apply").exit_code == 0
    later(BROKEN)
    refused = shop.nodoubt("schema", "apply")
    assert refused.exit_code == 2 and "--yes" in refused.stderr
    later(EXPANDED)
    assert shop.nodoubt("ls").exit_code == 0, "nothing was changed"
    later(BROKEN)
    shop.nodoubt("schema", "apply", "--yes")
    later(EXPANDED)
    told = shop.nodoubt("ls")
    assert told.exit_code == 1 and "install here the release that migrated them" in told.stderr


def test_only_what_came_after_can_be_printed(later: Callable[[int], None]) -> None:
    later(EXPANDED)
    whole = nodoubt("schema", "sql", "--dialect", "postgres").stdout
    after = nodoubt("schema", "sql", "--dialect", "postgres", "--after", "1").stdout
    assert "CREATE TABLE IF NOT EXISTS nodoubt.decisions" in whole and "ADD COLUMN note" in whole
    assert "CREATE TABLE IF NOT EXISTS" not in after and "ADD COLUMN note" in after
    assert after.count("INSERT INTO nodoubt.migrations") == 2


@pytest.mark.parametrize("dialect", ["postgres", "mariadb"])
@pytest.mark.parametrize("role", ["app", "recovery", "setup", "look"])
def test_rights_are_printed_for_each_role(dialect: str, role: str) -> None:
    """For a participant alone, and with the journal. No role may change a verdict."""
    parts = json.loads(nodoubt("schema", "sql", "--dialect", dialect, "--role", role, "--json").stdout)["schema"]
    assert [part["part"].partition(",")[0] for part in parts] == ["participant", "journal and participant"]
    alone, both = (part["sql"] for part in parts)
    assert "decisions" not in alone and "decisions" in both and "receipts" in alone
    for sql in (alone, both):
        lines = [line for line in sql.splitlines() if not line.startswith("-- Only with migration ")]
        assert all(line.startswith("GRANT ") and line.endswith(";") for line in lines)
        assert not re.search(r"UPDATE(?! \().* ON \S*(decisions|receipts)|UPDATE \([^)]*verdict|ALL", sql)
    quoted = f'TO "{role}"' if dialect == "postgres" else f"TO '{role}'@'%'"
    assert quoted in alone


def test_rights_are_for_the_user_of_the_url_or_whom_one_names() -> None:
    resources = ["-r", "orders=postgresql://app@db1/orders", "-r", "billing=mariadb://pay@db2/billing"]

    def rights(*more: str) -> list[str]:
        result = nodoubt(*resources, "schema", "sql", "--role", "app", *more, "--json")
        return [part["sql"] for part in json.loads(result.stdout)["schema"]]

    orders, billing = rights()
    assert 'TO "app"' in orders and "nodoubt.decisions" in orders
    assert "`billing`.nodoubt_receipts TO 'pay'@'%'" in billing and "decisions" not in billing
    assert "TO 'me'@'10.0.0.%'" in rights("--to", "me@10.0.0.%")[1]
    for wrong in (["--dialect", "sqlite", "--role", "app"], ["--dialect", "postgres", "--to", "me"]):
        assert nodoubt("schema", "sql", *wrong).exit_code == 2
