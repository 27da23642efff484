"""The nemesis' plan is drawn from its seed, and breaks nothing twice at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from soak.plan import FAULTS, MINUTE_S, Act, Lane, plan
from soak.rig import WHOLE

LANES = WHOLE.all_lanes()
CALM_S = WHOLE.calm_s
HOUR_S = 3600.0


def drawn(seed: int, seconds: float, lanes: Sequence[Lane] = LANES) -> list[Act]:
    return plan(seed, seconds, lanes, calm_s=CALM_S)


def test_one_seed_gives_one_plan_and_another_another() -> None:
    assert drawn(1, HOUR_S) == drawn(1, HOUR_S) != drawn(2, HOUR_S)


def test_a_shorter_run_has_the_beginning_of_the_same_plan() -> None:
    short = drawn(1, 600)
    assert short and set(short) <= set(drawn(1, HOUR_S))


def test_an_hour_has_every_fault_and_breaks_every_target() -> None:
    acts = drawn(1, HOUR_S)
    assert {act.fault for act in acts} == {fault for family in FAULTS.values() for fault in family}
    assert {act.target for act in acts} == {target for lane in LANES for target in lane.kinds}


def test_nothing_is_broken_twice_at_once() -> None:
    broken: dict[tuple[str, str], list[Act]] = defaultdict(list)
    for act in drawn(1, HOUR_S):
        broken[act.lane.split()[0], act.target].append(act)
    for acts in broken.values():
        for first, second in pairwise(acts):
            assert first.at_s + first.for_s < second.at_s


def test_each_minute_begins_calm_and_all_ends_in_time() -> None:
    for act in drawn(3, HOUR_S):
        assert act.at_s % MINUTE_S >= CALM_S and act.at_s + act.for_s <= HOUR_S


def test_what_a_machine_cannot_make_is_left_out() -> None:
    acts = drawn(1, HOUR_S, WHOLE.all_lanes(("fill the disk", "move the clock")))
    assert {act.fault for act in acts}.isdisjoint({"fill the disk", "move the clock"})
