"""Each check of safety taken out, one at a time: the checker sees the rule that it kept broken."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nodoubt.testing.world import Ran, Variant, drawn, run

from .mutants import MUTANTS, NOTICED_WITH, Mutant
from .outside_mutants import OUTSIDE_MUTANTS, OUTSIDE_NOTICED_WITH

NOTICED = NOTICED_WITH | OUTSIDE_NOTICED_WITH


def schedules(mutant: Mutant, variant: Variant) -> Iterator[Ran]:
    if mutant.schedule is not None:
        yield run(mutant.schedule, variant, rules=mutant.rules)
        return
    for seed in (NOTICED.get(mutant.name, 0), *range(mutant.schedules_max)):
        yield run(drawn(seed, mutant.focus), variant, rules=mutant.rules)


@pytest.mark.parametrize("mutant", [*MUTANTS, *OUTSIDE_MUTANTS], ids=str)
def test_a_check_taken_out_is_noticed(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    variant = mutant.apply(monkeypatch)
    broken = set[str]()
    for ran in schedules(mutant, variant):
        if ran.violated is not None:
            broken.add(ran.violated.number)
            if ran.violated.number in mutant.breaks:
                print(f"{ran.schedule.command}: {ran.violated}")
                return
    pytest.fail(f"{mutant} is not noticed; it broke {broken or 'nothing'}")
