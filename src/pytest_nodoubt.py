"""Fixtures for tests on real, throw-away databases; found by pytest wherever nodoubt is installed.

    def test_an_order_is_all_or_nothing(nodoubt_postgres, nodoubt_mariadb):
        with Coordinator({"orders": nodoubt_postgres, "billing": nodoubt_mariadb}) as db: …

`nodoubt_postgres`, `nodoubt_mariadb`, `nodoubt_sqlite`: the URL of a fresh database for each test.
`nodoubt_database`: makes any number of them, `nodoubt_database("postgres")`. `nodoubt_postgres_server`,
`nodoubt_mariadb_server`: the servers, one for the session, to `kill()`, `restart()`, `freeze()`.

A claim of a conformance suite that fails tells what was promised, by which rule, what was done and what was seen.

Guarantees: nothing is imported, let alone started, before a test asks for it. That is why this is no module of the
package: pytest imports it in every run, and the package would cost each of them a tenth of a second.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from nodoubt.testing.servers import Server

# Not everybody's are rewritten by themselves: an editable installation's are not.
pytest.register_assert_rewrite("nodoubt.testing.resources", "nodoubt.testing.journals")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed claim of a conformance suite is told in full."""
    report = yield
    telling = sys.modules.get("nodoubt.testing.telling")  # it is there, if a suite is
    claim = getattr(item, "function", None)
    of = getattr(item, "cls", None)
    if telling and call.when == "call" and call.excinfo and report.failed and of and issubclass(of, telling.Suite):
        _, _, which = item.name.partition("[")
        given = getattr(item, "funcargs", {}).values()
        report.sections.append(("the claim", telling.tell(claim, which.rstrip("]"), given, call.excinfo.value)))
    return report


@pytest.fixture(scope="session")
def nodoubt_postgres_server() -> Server:
    """A running PostgreSQL: `url()` gives a fresh database, `kill()` is a crash. It ends with the process."""
    from nodoubt.testing.databases import shared_server

    return shared_server("postgres")


@pytest.fixture(scope="session")
def nodoubt_mariadb_server() -> Server:
    """A running MariaDB: `url()` gives a fresh database, `kill()` is a crash. It ends with the process."""
    from nodoubt.testing.databases import shared_server

    return shared_server("mariadb")


@pytest.fixture
def nodoubt_database() -> Iterator[Callable[[str], str]]:
    """Makes fresh databases: `nodoubt_database("postgres")`, "mariadb" or "sqlite" gives a URL. Gone after the test."""
    from nodoubt.testing.databases import fresh

    with ExitStack() as stack:
        yield lambda kind: stack.enter_context(fresh(kind))


@pytest.fixture
def nodoubt_postgres(nodoubt_database: Callable[[str], str]) -> str:
    """The URL of a fresh PostgreSQL database."""
    return nodoubt_database("postgres")


@pytest.fixture
def nodoubt_mariadb(nodoubt_database: Callable[[str], str]) -> str:
    """The URL of a fresh MariaDB database."""
    return nodoubt_database("mariadb")


@pytest.fixture
def nodoubt_sqlite(nodoubt_database: Callable[[str], str]) -> str:
    """The URL of a fresh SQLite file."""
    return nodoubt_database("sqlite")
