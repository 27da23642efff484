"""Servers that cannot keep a promise are refused before any work, with the setting to change.

Each setting of its own, and each warning: `tests/postgres/test_postgres_registration.py`,
`tests/mariadb/test_mariadb_registration.py`. That a second SQLite library in the process is kept off our files:
`tests/sqlite/test_sqlite_session.py`. Names of any kind: `tests/integration/test_transactions.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit import QUICK, Database, Face, make_database
from nodoubt import Coordinator, ResourceRefused
from nodoubt.testing.servers import PostgresServer
from traps.scenes import balances

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as one:
        yield one


async def test_without_prepared_transactions_setup_and_open_are_refused_and_name_the_setting(
    server: PostgresServer, mode: str, request: Any, tmp_path: Path
) -> None:
    """PostgreSQL's default is 0, and it says so only at the first PREPARE."""
    for journal in ("a", "b"):
        (tmp_path / journal).mkdir()
        some = [make_database("sqlite", "a", request, tmp_path / journal), Database("b", server.url())]
        some[1].create()
        urls = {d.name: d.url for d in some}
        server.settings["max_prepared_transactions"] = 0
        server.restart()
        fresh = Face(mode, some, journal=journal)
        await fresh.open()
        with pytest.raises(ResourceRefused, match="max_prepared_transactions"):
            await fresh.setup()
        await fresh.close()
        server.settings["max_prepared_transactions"] = 10
        server.restart()
        with Coordinator(urls, journal=journal, settings=QUICK, recovery=False) as db:
            db.setup()
        server.settings["max_prepared_transactions"] = 0
        server.restart()
        with pytest.raises(ResourceRefused, match="max_prepared_transactions"):
            await Face(mode, some, journal=journal).open()
        assert balances(some) == [100, 100]
