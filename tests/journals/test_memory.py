"""The journal in memory has what a simulator needs: worlds to copy, to cut short, and to rob of what is not flushed."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from journals.places import Place
from nodoubt.journals.memory import MemoryJournal, MemorySession, MemoryStore
from nodoubt.ports import BelowFloor, Conflict, SessionLost, StatementFailed
from nodoubt.protocol.records import Epoch, Event
from nodoubt.script import Do
from nodoubt.testing.bench import Bench
from nodoubt.testing.samples import CUT, LONG_AGO, NOW, abort, attempt_at, decision, staging
from nodoubt.xid import new_attempt, new_mark


@pytest.fixture
def kind() -> str:
    return "memory"


@pytest.fixture
def store(place: Place) -> MemoryStore:
    return place.store


def test_each_transaction_is_one_effect_so_that_a_world_can_end_between_any_two() -> None:
    journal, session = MemoryJournal(), MemorySession(MemoryStore())
    for script in (
        journal.insert(session, [decision(), abort()]),
        journal.confirm(session, [new_attempt()]),
        journal.stage(session, staging("order"), replace=staging("order")),
        journal.raise_epoch(session, new_mark()),
    ):
        effect = next(script)
        assert isinstance(effect, Do) and effect.verb == "apply" and effect.target is session
        with pytest.raises(StopIteration):
            script.send(None)


def test_a_copied_world_goes_its_own_way(bench: Bench, store: MemoryStore) -> None:
    one = decision()
    bench.insert([one])
    twin = copy.deepcopy(store)
    twin.apply("end", (one.attempt,))
    twin.apply("raise_epoch", "m1")
    assert twin.apply("look", (one.attempt,))[one.attempt].ended
    assert not bench.look([one.attempt])[one.attempt].ended
    assert (twin.apply("epoch"), bench.epoch()) == (Epoch(1, "m1"), Epoch())


def test_a_refused_transaction_changes_nothing(bench: Bench, store: MemoryStore) -> None:
    one, fresh, row = decision(), decision(), staging("order")
    bench.insert([one])
    bench.stage(row)
    before = copy.deepcopy(store).state
    for verb, args in (
        ("insert", ((fresh, abort(one.attempt)),)),
        ("stage", (staging("order"), None)),
        ("ride", (bench.journal.decision_rows(fresh) + bench.journal.staging_rows(staging("order")),)),
    ):
        with pytest.raises(Conflict):
            store.apply(verb, *args)
        assert store.state == before


def test_riders_are_written_as_the_journal_writes_them(bench: Bench, store: MemoryStore) -> None:
    one, row = decision(), staging("order")
    rows = (*bench.journal.decision_rows(one), *bench.journal.staging_rows(row))
    store.apply("ride", rows)
    assert bench.confirm([one.attempt])[one.attempt].decision == one
    assert bench.find("order") == row
    with pytest.raises(Conflict):
        store.apply("ride", bench.journal.decision_rows(abort(one.attempt)))
    bench.insert([abort(attempt_at(CUT))])
    bench.end([one.attempt])
    bench.insert([abort(row.attempt)])
    bench.retire(CUT, 10)
    with pytest.raises(BelowFloor):
        store.apply("ride", bench.journal.decision_rows(decision(attempt=attempt_at(LONG_AGO))))


def test_a_power_cut_takes_what_was_not_forced_unless_something_forced_came_after(
    bench: Bench, store: MemoryStore
) -> None:
    lost, kept = Event(new_attempt(), NOW, "lost"), Event(new_attempt(), NOW, "kept")
    bench.record([kept])
    bench.insert([decision()])
    bench.record([lost])
    bench.stage(staging("listed, not flushed"), forced=False)
    assert bench.find("listed, not flushed") is not None
    store.power_cut()
    store.power_cut()
    assert bench.events(kept.attempt) == [kept]
    assert bench.events(lost.attempt) == []
    assert bench.find("listed, not flushed") is None


@pytest.mark.parametrize("style", ["sync"])
def test_a_session_answers_a_pool_and_nobody_else(bench: Bench, store: MemoryStore) -> None:
    session: Any = MemorySession(store)
    assert session.run("SELECT 1")
    with pytest.raises(StatementFailed):
        session.execute("SELECT 1", None)
    assert session.lost(session.timed_out(1.0)) and not session.lost(ValueError())
    session.close()
    with pytest.raises(SessionLost):
        session.run("SELECT 1")
    with pytest.raises(SessionLost):
        session.apply("epoch")
