"""Random schedules of the product itself: no rule is ever broken. `make sim HOURS=…` goes on where this ends."""

from __future__ import annotations

from collections import Counter

import pytest

from nodoubt.protocol.records import CallState
from nodoubt.testing.world import drawn, run
from nodoubt.testing.world.hunt import Figures, report
from nodoubt.testing.world.schedule import BEYOND

from .kept import KEPT

SCHEDULES, PARTS, SCHEDULES_BEYOND, PARTS_BEYOND = 160, 8, 80, 4  # in parts, so that several processes share them


@pytest.mark.parametrize("part", range(PARTS))
def test_no_schedule_breaks_a_rule(part: int) -> None:
    figures = Figures()
    for seed in range(part, SCHEDULES, PARTS):
        ran = run(drawn(seed))
        figures.add(ran)
        assert ran.violated is None, report(ran)
    print(figures)
    assert figures.outcomes["committed"] > 0 and figures.outcomes["aborted"] > 0


@pytest.mark.parametrize("part", range(PARTS_BEYOND))
def test_no_schedule_with_steps_outside_and_idempotency_keys_breaks_a_rule(part: int) -> None:
    calls, replays = Counter[CallState](), 0
    for seed in range(part, SCHEDULES_BEYOND, PARTS_BEYOND):
        ran = run(drawn(seed, BEYOND))
        calls.update(call.state for call in ran.world.effects.last.values())
        replays += ran.world.keys.replays
        assert ran.violated is None, report(ran)
    print(calls, replays)
    assert calls[CallState.DONE] > 0 and calls[CallState.UNDONE] > 0 and replays > 0


@pytest.mark.parametrize("name", KEPT)
def test_what_once_broke_a_rule_or_could_breaks_none(name: str) -> None:
    ran = run(KEPT[name])
    assert ran.violated is None, report(ran)
