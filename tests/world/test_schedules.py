"""Random schedules of the product itself: no rule is ever broken. `make sim HOURS=…` goes on where this ends."""

from __future__ import annotations

import functools
from collections import Counter
from typing import get_args

import pytest

from nodoubt.protocol.records import CallState
from nodoubt.testing.world import Ran, drawn, run
from nodoubt.testing.world import faults as kinds
from nodoubt.testing.world.hunt import Figures, report
from nodoubt.testing.world.schedule import BEYOND

from .kept import KEPT

SCHEDULES, PARTS, SCHEDULES_BEYOND, PARTS_BEYOND = 160, 8, 80, 4  # in parts, so that several processes share them
# How each kind of fault is noted when it comes to pass.
STRIKES = {
    kinds.SlowEnds: "sessions end slowly",
    kinds.Kill: "process killed",
    kinds.KillAt: "process killed",
    kinds.LoseRequest: "request lost",
    kinds.LoseReply: "reply lost",
    kinds.LateRequest: "request late",
    kinds.LateReply: "reply late",
    kinds.Twice: "message twice",
    kinds.CancelCallers: "callers cancelled",
    kinds.CrashServer: "server crashed",
    kinds.CrashAt: "server crashed",
    kinds.Freeze: "server frozen",
    kinds.Cut: "way cut",
    kinds.Stop: "process stopped",
    kinds.ClockJump: "clock jumped",
    kinds.FullDisk: "disk full",
    kinds.SlowDisk: "disk slow",
    kinds.Restore: "server set back",
    kinds.EndByHand: "branch ended by hand",
}
WRONG_NOWHERE = {kinds.Jitter, kinds.OnNotice}  # other delays, and another fault's moment


@functools.cache
def tried(part: int) -> tuple[Figures, Ran | None]:
    """What a part has come to, and the first that broke a rule: once, for all who ask."""
    figures = Figures()
    for seed in range(part, SCHEDULES, PARTS):
        ran = run(drawn(seed))
        figures.add(ran)
        if ran.violated is not None:
            return figures, ran
    return figures, None


@functools.cache
def kept(name: str) -> Ran:
    return run(KEPT[name])


@pytest.mark.parametrize("part", range(PARTS))
def test_no_schedule_breaks_a_rule(part: int) -> None:
    figures, broken = tried(part)
    assert broken is None, report(broken)
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
    ran = kept(name)
    assert ran.violated is None, report(ran)


def test_every_kind_of_fault_has_struck_somewhere() -> None:
    """A branch that is ended by hand is rare: among the schedules that are drawn here it may be in none."""
    figures = Figures()
    for part in range(PARTS):
        figures.merge(tried(part)[0])
    drawn_ones, by_hand = set(figures.faults), STRIKES[kinds.EndByHand]
    assert STRIKES.keys() == set(get_args(kinds.Fault)) - WRONG_NOWHERE, "a kind that is not looked for here"
    assert set(STRIKES.values()) - drawn_ones <= {by_hand}
    assert any(by_hand in kept(name).world.faults.came for name in KEPT)
