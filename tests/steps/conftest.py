"""What every test of steps may ask for: both coordinators, both kinds of function, a world outside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from steps import app
from steps.outside import Account, ledger, service


@pytest.fixture(params=["sync", "async"])
def plain_mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def outside_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outside") / "book"


@pytest.fixture(scope="module")
def outside_url(outside_file: Path) -> Iterator[str]:
    with service(outside_file) as url:
        yield url


class Outside:
    """The service, and what it has done for some orders."""

    def __init__(self, url: str) -> None:
        self.url = url

    def of(self, order: str) -> Account:
        """The one charge of an order; a key of its own if it has never been heard of."""
        found = [account for account in ledger(self.url) if account.order == order]
        assert len(found) <= 1, f"more than one charge for {order}: {found}"
        return found[0] if found else Account("", order)

    def under(self, key: str) -> Account:
        """What was done, or not, under the key of one call."""
        (found,) = [account for account in ledger(self.url) if account.key == key]
        return found


@pytest.fixture
def outside(outside_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outside]:
    monkeypatch.setenv("OUTSIDE_URL", outside_url)
    app.MISCHIEF.clear()
    app.SEEN.clear()
    yield Outside(outside_url)
    app.MISCHIEF.clear()
