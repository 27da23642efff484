"""Every contender does the work it is measured for: the same rows, as often as it says, with nothing left prepared."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest
from benchmarks.contenders import BUN, PLACES
from benchmarks.places import Places, statement
from benchmarks.rounds import label
from benchmarks.scenarios import (
    ELSEWHERE,
    FILE,
    FILE_STAGED,
    FILES,
    JOURNAL,
    MARIA_CLOSED,
    MARIA_STAGED,
    MIXED,
    MIXED_STAGED,
    MIXED_THREADS,
    ONE,
    PAIR,
    PAIR_THREADS,
    SCENARIOS,
    STAGED,
    TARGETS,
    Scenario,
)
from benchmarks.task import ADD, Order, Task
from benchmarks.workers import Worker, WorkerFailed

from nodoubt.url import parse_url

CLIENTS = 2
COUNT = 5
TRIED = [
    PAIR,
    PAIR_THREADS,
    STAGED,
    MIXED,
    MARIA_STAGED,
    MARIA_CLOSED,
    MIXED_THREADS,
    MIXED_STAGED,
    FILE,
    FILES,
    FILE_STAGED,
    JOURNAL,
    replace(ONE, statements=2),
]
PREPARED = {
    "postgres": "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()",
    "mariadb": "XA RECOVER",
}


def total(url: str) -> int:
    return int(statement(url, "SELECT sum(balance) FROM accounts")[0][0])


@pytest.mark.parametrize("scenario", TRIED, ids=lambda scenario: scenario.name)
def test_a_contender_does_its_transactions_on_every_branch(scenario: Scenario, places: Places, bun: bool) -> None:
    clients = min(CLIENTS, max(scenario.clients))
    tasks = [task for task in scenario.tasks(places, clients) if bun or task.contender != BUN]
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(task)) for task in tasks]
        for worker in workers:
            assert worker.pid, "connected: what it did for that is not counted"
            before = [total(url) for url in worker.task.urls]
            done = worker.ask(Order(count=COUNT))
            assert done.transactions == COUNT and done.cpu_ms > 0 and 0 < done.p50_ms <= done.p99_ms
            assert 0 <= done.fewest <= COUNT / clients <= done.most, label(worker.task)
            changed = [total(url) - old for url, old in zip(worker.task.urls, before, strict=True)]
            assert changed == [COUNT * scenario.statements] * len(changed), label(worker.task)
    for url in tasks[0].urls:
        if parse_url(url).kind == "postgres":
            assert statement(url, PREPARED["postgres"]) == []


def test_no_contender_is_untried_and_no_target_names_one_that_does_not_run() -> None:
    tried = {task.removesuffix(", uvloop") for scenario in TRIED for task in scenario.contenders}
    assert tried == {*PLACES, BUN, ELSEWHERE} - {"nodoubt, one sweep"}  # that one is in test_scale
    for target in TARGETS:
        assert target.scenario in SCENARIOS and target.clients in target.scenario.clients
        assert {target.ours, *target.against} <= set(target.scenario.contenders)


def test_a_worker_that_dies_tells_why(places: Places) -> None:
    url = places.url("postgres", 0)
    statement(url, "DROP TABLE accounts")
    worker = Worker(Task(contender="by hand", urls=(url,)))
    with pytest.raises(WorkerFailed, match='relation "accounts" does not exist'):
        worker.ask(Order(count=1))


def test_the_statement_is_the_same_for_all() -> None:
    assert ADD.endswith("WHERE id = ")
