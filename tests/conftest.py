"""Fixtures that every test may ask for: one running server of each kind per test process, started when first asked for.

A test that wants a server of its own, with other settings, starts it: `with PostgresServer({...}) as server`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nodoubt.testing.servers import MariaDBServer, PostgresServer, Server

_started: list[Server] = []


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


@pytest.fixture(autouse=True)
def _servers_outlive_each_test() -> Iterator[None]:
    """A test that fails between a server's crash and its restart must not take all the others with it."""
    yield
    for server in _started:
        if not server.running:
            server.restart()
        server.thaw()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """asyncio is what nodoubt runs on."""
    return "asyncio"
