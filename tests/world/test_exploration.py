"""Every order of the messages of small scenes, and every place for a fault: no rule is ever broken.

The counts stand at the end of pytest's output. `make explore` goes through larger ones.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nodoubt.testing.world.explore import SCENES, Scene, _Way, explored

from .mutants import MUTANTS


@pytest.mark.timeout(900)  # ten seconds of one core, which a busy machine may not have for a while
@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_no_order_of_messages_breaks_a_rule(scene: Scene, record_property: Callable[[str, object], None]) -> None:
    result = explored(scene)
    assert result.violated is None, result.story
    assert result.complete
    record_property("figures", str(result))


def test_what_is_left_out_of_the_orders_loses_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same ends with everything in: recoverers that begin in any order, faults of whoever is not at his turn."""
    scene = Scene(("postgres", "postgres"), recoverers=2, switches=0, kinds=("sudden kill",))
    less = explored(scene)
    monkeypatch.setattr(_Way, "_comes_later", lambda *_: False)
    monkeypatch.setattr(_Way, "_befalls_now", lambda *_: True)
    more = explored(scene)
    assert less.ends == more.ends and less.states < more.states, (less, more)


NOTICED = {
    "no compare-and-set": Scene(("postgres", "postgres"), faults=0),
    "no fence": Scene(("postgres", "postgres"), faults=0),
    "the shape of its branches decides": Scene(("postgres", "postgres"), faults=0),
    "decision after commit": Scene(("postgres", "postgres"), journal="j", faults=0),
    "a bare COMMIT row after a lost reply": Scene(("postgres", "postgres"), switches=0),
    "staged commit before the last is listed": Scene(("postgres", "postgres"), staged=True, faults=0, switches=1),
    "the contrary is answered in peace": Scene(("postgres", "postgres"), staged=True, rival=True, faults=0, switches=1),
    "accuses what another has ended": Scene(("postgres", "postgres"), faults=0),
    "unknown is done": Scene(("mariadb", "mariadb"), switches=0),
}
SOONER = {"no compare-and-set": "I17"}  # what is broken in these orders before the harm that the mutant is known for


@pytest.mark.parametrize("name", NOTICED)
def test_a_check_taken_out_is_noticed_at_some_order(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (mutant,) = (mutant for mutant in MUTANTS if mutant.name == name)
    result = explored(NOTICED[name], mutant.apply(monkeypatch))
    assert result.violated is not None and result.violated.number in (*mutant.breaks, SOONER.get(name)), result
