"""The conformance suite on every journal, with blocking calls and on asyncio."""

from __future__ import annotations

import pytest

from nodoubt.testing.journals import JournalSuite


@pytest.fixture(params=["memory", "sqlite", "postgres", "mariadb"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestJournal(JournalSuite):
    """Every claim, everywhere."""
