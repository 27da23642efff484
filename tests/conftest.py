"""Fixtures that every test may ask for: one running server of each kind per test process, started when first asked for.

A test that wants a server of its own, with other settings, starts it: `with PostgresServer({...}) as server`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from nodoubt.testing.servers import MariaDBServer, PostgresServer, Server

_started: list[Server] = []

# A run that was started in the background of a shell ignores SIGINT, and so would everything that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL; `.url()` gives each test a database of its own."""
    with PostgresServer() as server:
        _started.append(server)
        yield server
        _started.remove(server)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDBServer]:
    """A running MariaDB; `.url()` gives each test a database of its own."""
    with MariaDBServer() as server:
        _started.append(server)
        yield server
        _started.remove(server)


@pytest.fixture(scope="module", autouse=True)
def _nothing_outlives_its_module() -> Iterator[None]:
    """What a module leaves prepared would hold locks and snapshots, and be listed, in the tests of all that follow.

    A database of PostgreSQL's is 8 MB, in memory where there is some: a whole run of them takes 13 GB.
    """
    yield
    for server in _started:
        server.roll_back_prepared()
        if isinstance(server, PostgresServer):
            server.drop_fresh()


@pytest.fixture(autouse=True)
def _servers_outlive_each_test() -> Iterator[None]:
    """A test that fails between a server's crash and its restart must not take all the others with it."""
    yield
    for server in _started:
        if not server.running:
            server.restart()
        server.thaw()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What a test has counted, and recorded as `figures`, is told although it passed; and what only root has."""
    figures = [
        value for report in terminalreporter.stats.get("passed", []) for name, value in report.user_properties
        if name == "figures"
    ]  # fmt: skip
    if figures:
        terminalreporter.section("what was gone through")
        terminalreporter.write_line("\n".join(sorted(map(str, figures))))
    if os.geteuid() != 0:
        terminalreporter.section("not in this run")
        terminalreporter.write_line(
            "traps/test_full_disks.py: two tests that mount a disk, and fill it, are root's alone"
        )


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """asyncio is what nodoubt runs on."""
    return "asyncio"
