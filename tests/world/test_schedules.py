"""Random schedules of the product itself: no rule is ever broken. `make sim HOURS=…` goes on where this ends."""

from __future__ import annotations

import pytest

from nodoubt.testing.world import drawn, run
from nodoubt.testing.world.hunt import Figures, report

from .kept import KEPT

SCHEDULES, PARTS = 160, 8  # in parts, so that several processes share them


@pytest.mark.parametrize("part", range(PARTS))
def test_no_schedule_breaks_a_rule(part: int) -> None:
    figures = Figures()
    for seed in range(part, SCHEDULES, PARTS):
        ran = run(drawn(seed))
        figures.add(ran)
        assert ran.violated is None, report(ran)
    print(figures)
    assert figures.outcomes["committed"] > 0 and figures.outcomes["aborted"] > 0


@pytest.mark.parametrize("name", KEPT)
def test_what_once_broke_a_rule_or_could_breaks_none(name: str) -> None:
    ran = run(KEPT[name])
    assert ran.violated is None, report(ran)
