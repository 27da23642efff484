"""The nemesis' plan is drawn from its seed, and breaks nothing twice at once."""

from __future__ import annotations

from collections import defaultdict

from soak.campaign import lanes
from soak.plan import CALM_S, FAULTS, MINUTE_S, Act, plan

LANES = lanes(())
HOUR_S = 3600.0


def test_one_seed_gives_one_plan_and_another_another() -> None:
    assert plan(1, HOUR_S, LANES) == plan(1, HOUR_S, LANES) != plan(2, HOUR_S, LANES)


def test_a_shorter_run_has_the_beginning_of_the_same_plan() -> None:
    short = plan(1, 600, LANES)
    assert short and set(short) <= set(plan(1, HOUR_S, LANES))


def test_an_hour_has_every_fault_and_breaks_every_target() -> None:
    acts = plan(1, HOUR_S, LANES)
    assert {act.fault for act in acts} == {fault for family in FAULTS.values() for fault in family}
    assert {act.target for act in acts} == {target for lane in LANES for target in lane.kinds}


def test_nothing_is_broken_twice_at_once() -> None:
    broken: dict[tuple[str, str], list[Act]] = defaultdict(list)
    for act in plan(1, HOUR_S, LANES):
        broken[act.lane.split()[0], act.target].append(act)
    for acts in broken.values():
        for first, second in zip(acts, acts[1:], strict=False):
            assert first.at_s + first.for_s < second.at_s


def test_each_minute_begins_calm_and_all_ends_in_time() -> None:
    for act in plan(3, HOUR_S, LANES):
        assert act.at_s % MINUTE_S >= CALM_S and act.at_s + act.for_s <= HOUR_S


def test_what_a_machine_cannot_make_is_left_out() -> None:
    acts = plan(1, HOUR_S, lanes(("fill the disk", "move the clock")))
    assert {act.fault for act in acts}.isdisjoint({"fill the disk", "move the clock"})
