"""Worlds, one for each way to give a database."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from alchemy.world import ENGINES, URLS, WAYS, Opening, Way, World, opened


@pytest.fixture(params=WAYS, ids=str)
def way(request: Any) -> Way:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
async def world(way: Way, request: Any, tmp_path: Path) -> AsyncIterator[World]:
    async with opened(way, request, tmp_path) as made:
        yield made


@pytest.fixture
async def opening(request: Any, tmp_path: Path) -> AsyncIterator[Opening]:
    """For tests that want options: `world = await opening(way, …)`."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_one(way: Way, **options: Any) -> World:
            return await stack.enter_async_context(opened(way, request, tmp_path, **options))

        yield open_one


__all__ = ["ENGINES", "URLS"]
