"""MariaDB's worst trap: an XA COMMIT that meets the end of the session that prepared: OK, and nothing is done."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nodoubt.resources.memory import mariadb as memory
from nodoubt.testing.world import Schedule
from nodoubt.testing.world.acts import Finish
from nodoubt.testing.world.faults import SlowEnds
from nodoubt.testing.world.running import SETTLE_S, come_to_rest, live, no_broken_invariant_goes_unseen
from nodoubt.testing.world.world import Silenced, World

from .kept import KEPT

MET = KEPT["an XA COMMIT meets the end of the session that prepared"]
COMMITTED = "P7 branch committed b"


def with_ends(*, listed_s: float, engine_s: float) -> Schedule:
    """The same, where sessions end otherwise."""
    items = tuple(
        replace(item, listed_s=listed_s, engine_s=engine_s) if isinstance(item, SlowEnds) else item
        for item in MET.items
    )
    return replace(MET, items=items)


def lived(schedule: Schedule) -> World:
    """A world in which all has been tried, as long as nobody restarts a server."""
    world = World("mislaid", schedule.layout)
    with Silenced(world), no_broken_invariant_goes_unseen(world):
        live(world, schedule)
        world.run(SETTLE_S)
    return world


def rested(world: World) -> None:
    with Silenced(world), no_broken_invariant_goes_unseen(world):
        come_to_rest(world)


def test_such_a_branch_stays_open_until_its_server_has_been_restarted_and_then_recovery_commits_it() -> None:
    world = lived(MET)
    (gid,) = world.machines["b"].mislaid()
    journal = world.journal_view(world.machines["a"].server.durable)
    (decision,) = journal.decisions.values()
    assert decision.is_open and decision.decision.attempt in gid
    assert not journal.quarantine, "it is nobody's fault, and not lost"
    assert COMMITTED not in world.trace.text(), "nobody took it for done"
    rested(world)
    journal = world.journal_view(world.machines["a"].server.durable)
    assert not world.machines["b"].mislaid() and not journal.decisions[decision.decision.attempt].is_open
    assert not journal.quarantine
    assert [world.machines[name].server.durable.rows["x"] for name in "ab"] == [-2, 2]


def test_while_the_session_that_prepared_it_is_listed_a_branch_is_not_touched() -> None:
    """Then there is nothing to restart: the guard keeps the XA COMMIT from what would mislay the branch."""
    world = lived(with_ends(listed_s=1.0, engine_s=0.0))
    assert not world.machines["b"].mislaid()
    assert [world.machines[name].server.durable.rows["x"] for name in "ab"] == [-2, 2]


def test_without_that_guard_it_would_have_to_be_restarted_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """So no rule of the contract is broken without the guard, and no mutant lacks it: it spares restarts."""
    finishing = memory._finishing

    def unguarded(*args: object) -> list[tuple[object, ...]]:
        return [one for one in finishing(*args) if one[0] != "no_process"]  # type: ignore[arg-type]

    monkeypatch.setattr(memory, "_finishing", unguarded)
    world = lived(with_ends(listed_s=1.0, engine_s=0.0))
    assert len(world.machines["b"].mislaid()) == 1
    rested(world)
    assert [world.machines[name].server.durable.rows["x"] for name in "ab"] == [-2, 2]


def test_a_rollback_that_was_answered_and_not_done_is_done_when_its_server_has_been_restarted() -> None:
    """It is listed again then, and sweeps never stop (I11). Until then its locks are there: a session's are as well."""
    rolled_back = tuple(replace(item, commit=False) if isinstance(item, Finish) else item for item in MET.items)
    world = lived(replace(MET, items=rolled_back))
    assert len(world.machines["b"].mislaid()) == 1
    rested(world)
    assert "x" not in world.machines["a"].server.durable.rows and "x" not in world.machines["b"].server.durable.rows
