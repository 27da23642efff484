"""A server that stops answering without ending its connections: everything is bounded, and nobody else has to
wait for it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from kit import Watching, opened, until
from nodoubt import Coordinator, InDoubt, Notice, Settings, State, TransactionAborted
from traps.scenes import MOVED, UNTOUCHED, at_rest, balances, databases, joined

pytestmark = pytest.mark.anyio
BRIEF = Settings(connect_s=1, acquire_s=1, prepare_s=1, decide_s=1, apply_s=1, grace_s=5, sweep_s=60)
PATIENCE_S = 15.0


async def test_a_journal_that_freezes_at_the_decision_leaves_the_caller_in_doubt_within_bounds(
    mode: str, postgres: Any, request: Any, tmp_path: Path
) -> None:
    pair, own = databases("sqlite+sqlite", request, tmp_path), postgres.url()

    def freeze(notice: Notice) -> None:
        if (notice.point, notice.what) == ("P5", "deciding"):
            postgres.freeze()

    async with opened(mode, pair, journal=own, settings=BRIEF) as db:
        db.db._ctx.observer = Watching(freeze)
        began = time.monotonic()
        with pytest.raises(InDoubt):
            async with db.transaction("pay") as tx:
                await tx.move("a", "b", 30)
        assert time.monotonic() - began < PATIENCE_S
        postgres.thaw()
    with Coordinator({d.name: d.url for d in pair}, journal=own, settings=BRIEF, recovery=False) as db2:
        until(lambda: db2.recover(grace=0).clean)
        assert db2.recover(grace=0).clean
    assert balances(pair) in (MOVED, UNTOUCHED) and at_rest(pair)


async def test_a_commit_point_that_freezes_leaves_the_caller_in_doubt_within_bounds(
    mode: str, postgres: Any, request: Any, tmp_path: Path
) -> None:
    pair = databases("postgres+sqlite", request, tmp_path)

    def freeze(notice: Notice) -> None:
        if (notice.point, notice.what) == ("P5", "deciding"):
            postgres.freeze()

    async with opened(mode, pair, settings=BRIEF) as db:
        db.db._ctx.observer = Watching(freeze)
        began = time.monotonic()
        with pytest.raises(InDoubt):
            async with db.transaction("pay") as tx:
                await tx.move("a", "b", 30)
        assert time.monotonic() - began < PATIENCE_S
        postgres.thaw()
    with Coordinator({d.name: d.url for d in pair}, settings=BRIEF, recovery=False) as db2:
        until(lambda: db2.recover(grace=0).clean)
        assert db2.recover(grace=0).clean
    assert balances(pair) in (MOVED, UNTOUCHED) and at_rest(pair)


async def test_a_participant_that_freezes_before_it_prepares_aborts_within_bounds(
    mode: str, postgres: Any, request: Any, tmp_path: Path
) -> None:
    pair = databases("sqlite+postgres", request, tmp_path)
    async with opened(mode, pair, settings=BRIEF) as db:
        began = time.monotonic()
        with pytest.raises(TransactionAborted):
            async with db.transaction("pay") as tx:
                await tx.move("a", "b", 30)
                postgres.freeze()
        assert time.monotonic() - began < PATIENCE_S
        postgres.thaw()
    with Coordinator({d.name: d.url for d in pair}, settings=BRIEF, recovery=False) as db2:
        until(lambda: db2.recover(grace=0).clean and at_rest(pair))
    assert balances(pair) == UNTOUCHED


async def test_a_frozen_server_keeps_no_other_from_being_swept(
    mode: str, postgres: Any, request: Any, tmp_path: Path
) -> None:
    some = databases("sqlite+sqlite+postgres", request, tmp_path)
    async with opened(mode, some, settings=BRIEF) as db:
        async with db.staged("due", deadline=0.001) as tx:
            await tx.move("a", "b", 30)
        async with joined(mode, some, settings=BRIEF) as other:
            postgres.freeze()
            began = time.monotonic()
            report = await other.recover(grace=0)
            assert time.monotonic() - began < PATIENCE_S
            assert list(report.trouble) == ["c"] and report.rolled_back == 2
            assert (await other.status("due")).state is State.ABORTED
            postgres.thaw()
    assert balances(some[:2]) == UNTOUCHED and at_rest(some)
