"""pytest's plugin, in runs of somebody else's tests: fresh databases, and nothing at all where none is asked for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from cli.conftest import ENVIRONMENT

FRESH = """
from nodoubt import Coordinator, State
import pytest, signal

seen = []

@pytest.mark.parametrize("_", [1, 2])
def test_fresh_for_each_test(_, nodoubt_postgres, nodoubt_mariadb, nodoubt_sqlite, nodoubt_database):
    urls = {"a": nodoubt_postgres, "b": nodoubt_mariadb, "c": nodoubt_sqlite, "d": nodoubt_database("sqlite")}
    assert len({*urls.values(), *seen}) == len(seen) + 4
    seen.extend(urls.values())
    with Coordinator(urls) as db:
        db.setup()
        with db.begin_distributed("left behind") as tx:  # with what is prepared, a database is not easy to drop
            tx["a"].execute("create table t (id int)")

def test_a_server_that_a_test_kills_is_there_for_the_next(nodoubt_postgres_server, nodoubt_mariadb_server):
    nodoubt_postgres_server.kill()
    nodoubt_mariadb_server.freeze()

def test_the_next(nodoubt_postgres, nodoubt_mariadb):
    with Coordinator({"a": nodoubt_postgres, "b": nodoubt_mariadb}) as db:
        db.setup()

def test_another_kind(nodoubt_database):
    with pytest.raises(ValueError, match="one of sqlite, postgres"):
        nodoubt_database("oracle")

def test_what_was_made_is_gone(nodoubt_postgres_server):
    listed = nodoubt_postgres_server._psql("postgres", "select datname from pg_database where datname like 't\\\\_%'")
    assert listed.stdout.split() == []
"""
UNUSED = """
import sys

def test_without_it():
    assert "pytest_nodoubt" in sys.modules
    assert not [name for name in sys.modules if name.split(".")[0] in ("nodoubt", "apsw", "psycopg", "msgspec")]
"""


def ran(folder: Path, tests: str, *options: str) -> str:
    """Somebody's tests, in a process and a folder of their own: what pytest says of them."""
    (folder / "test_somebody_s.py").write_text(tests, "utf-8")
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n", "utf-8")
    environment = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_each_test_has_databases_of_its_own_that_are_gone_afterwards(tmp_path: Path) -> None:
    assert "6 passed" in ran(tmp_path, FRESH)


def test_where_nobody_asks_for_it_nothing_is_imported(tmp_path: Path) -> None:
    assert "1 passed" in ran(tmp_path, UNUSED)


def test_the_fixtures_say_what_they_are(tmp_path: Path) -> None:
    listed = ran(tmp_path, UNUSED, "--fixtures")
    for name in ("postgres", "mariadb", "sqlite", "database", "postgres_server", "mariadb_server"):
        assert re.search(rf"^nodoubt_{name}( \[session scope\])? -- .*\n    \w+", listed, re.MULTILINE), listed
