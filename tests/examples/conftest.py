"""The world outside, for each module of tests that asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from examples.outside import client

from workflows import ENVIRONMENT, Service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Running, and where the examples look for it."""
    running = Service(tmp_path_factory.mktemp("outside") / "book.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUTSIDE_URL", running.url)
        ENVIRONMENT["OUTSIDE_URL"] = running.url
        yield running
    running.kill()


@pytest.fixture
def outside(service: Service) -> Iterator[Service]:
    """In which nothing has happened."""
    client.forget()
    yield service
    assert client.waiting() == 0, "a request still waits, and would be done in another test's world"
