"""The conformance suite on every resource, with blocking calls and on asyncio."""

from __future__ import annotations

import pytest

from nodoubt.testing.resources import ResourceSuite


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestResource(ResourceSuite):
    """Every claim, everywhere."""
