"""The scale scenarios and the profile run, each with very little of what they are about."""

from __future__ import annotations

import pytest
from benchmarks.places import Places, statement
from benchmarks.scenarios import OURS
from benchmarks.task import Order, Task
from benchmarks.workers import Worker

from benchmarks import scale, whereabouts


def test_a_sweep_leaves_nothing_prepared_and_commits_what_was_decided(places: Places) -> None:
    found = {one.what: one.value for one in scale.sweep(places, 6)}
    assert found["left prepared; committed"] == "0; 3 of the 3 that were decided"
    assert set(found) >= {"time", "round trips per branch"}


def test_a_filled_journal_has_ended_transactions_and_still_takes_new_ones(places: Places) -> None:
    assert len(list(scale.full_journal(places, 50, rounds=1, seconds=0.1))) == 2


def test_more_clients_than_connections_are_all_served(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "CROWD", 30)
    monkeypatch.setattr(scale, "CROWD_POOL", 4)
    found = {one.what: one.value for one in scale.crowd(places, rounds=1, seconds=0.3)}
    fewest = int(found["nodoubt: transactions of the least and the most served"].split(",")[0])
    assert fewest >= 1


def test_the_profile_names_every_message_of_a_transaction(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whereabouts, "TRANSACTIONS", 5)
    text = whereabouts.messages(Task(contender=OURS, urls=places.urls(("postgres", "postgres"))))
    assert text.count("`UPDATE accounts") == 2 and text.count("`COMMIT PREPARED") == 1


def test_the_profile_hears_mariadb_too(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whereabouts, "TRANSACTIONS", 5)
    task = Task(contender=OURS, urls=places.urls(("mariadb",)), staged=True)
    assert whereabouts.messages(task).count("`XA COMMIT") == 1
    assert "| `Com_xa_commit` | 1.00 | 1.00 |" in whereabouts.servers(task)


def test_samples_are_of_the_client_s_own_stack(places: Places, tmp_path: object) -> None:
    file = f"{tmp_path}/profile"
    with Worker(Task(contender=OURS, urls=places.urls(("postgres",)), clients=8)) as worker:
        worker.ask(Order(seconds=0.5, profile=file))
    stacks = whereabouts.read(file)
    assert any("engine/" in line for stack, _ in stacks for line in stack)


def test_a_sweeper_that_is_named_in_a_task_sweeps(places: Places) -> None:
    urls = places.urls(("postgres", "postgres"))
    with Worker(Task(contender=OURS, urls=urls)) as worker:
        worker.ask(Order(count=1))
    with Worker(Task(contender="nodoubt, one sweep", urls=urls)) as worker:
        assert worker.ask(Order(count=1, settle=False)).transactions == 1
    assert statement(urls[0], "SELECT count(*) FROM nodoubt.decisions WHERE ended_at IS NULL") == [(0,)]
