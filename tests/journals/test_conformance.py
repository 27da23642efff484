"""The conformance suite on every journal, with blocking calls and on asyncio."""

from __future__ import annotations

import pytest

from journals.damage import SqlDamage
from journals.places import Place
from nodoubt.testing.bench import Bench
from nodoubt.testing.journals import Damage, JournalSuite, UnreadableSuite


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def damage(place: Place, bench: Bench) -> Damage:
    return SqlDamage(place, bench)


@pytest.mark.parametrize("kind", ["memory", "sqlite", "postgres", "mariadb"], indirect=True)
class TestJournal(JournalSuite):
    """Every claim, everywhere."""


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "mariadb"], indirect=True)
class TestUnreadable(UnreadableSuite):
    """Nobody can damage a row of the journal in memory: it keeps the records themselves."""
