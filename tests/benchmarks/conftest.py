"""Places on the servers that the tests have anyway: a fresh database for each branch, two branches on one server."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.places import Places, furnish
from benchmarks.workers import bun_program

from nodoubt.testing.servers import MariaDBServer, PostgresServer, Server


class Shared(Places):
    """As `Places`, but its servers are lent."""

    def __init__(self, folder: Path, **servers: Server) -> None:
        super().__init__(str(folder))
        self._lent = servers

    def fresh(self, kind: str, number: int) -> str:
        if kind == "sqlite":
            return super().fresh(kind, number)
        url = self._lent[kind].url()
        furnish(url)
        return url


@pytest.fixture
def places(postgres: PostgresServer, mariadb: MariaDBServer, tmp_path: Path) -> Iterator[Shared]:
    with Shared(tmp_path, postgres=postgres, mariadb=mariadb) as shared:
        yield shared


@pytest.fixture(scope="session")
def bun() -> bool:
    """Whether Bun is there; where it is not, that is said at the end of the run."""
    found = bun_program() is not None
    if not found:
        warnings.warn("Bun is not installed (make benchmarks/node_modules), so its worker was not run", stacklevel=1)
    return found
