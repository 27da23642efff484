"""kill -9 of a job's worker: whoever begins the job again does the rest of it, no chunk twice, and none is left out.

And the harm that is done without each of the rules.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from crash.test_coordinator_killed import hash_of, killed_at, recover
from jobs import mutants
from jobs.test_jobs import BRIEF, ITEMS, PAIRS, add, balances, block, job, work_off
from kit import Database, make_database, opened
from nodoubt import Coordinator, JobLost, JobState, JobTaken, ResourceUnavailable
from nodoubt.idempotency.store import MariaDBStore, PostgresStore
from nodoubt.url import parse_url

CHILD = Path(__file__).with_name("child.py")
DONE = [100 + sum(ITEMS)] * 2

# Two links are written before the first chunk: the run's own, and the worker's. Then how many items progress tells of,
# and how many are surely done.
POINTS = [
    ("P2.work@b#2", 3, 3),  # in the second chunk
    ("P3.prepared@b#2", 3, 3),  # it is undone by recovery
    ("P6.committed#4", 3, 6),  # it stands, and its progress has not been told
    ("P7.branch-committed@b#2", 3, 6),
]


def resume(pair: list[Database], told: int, done: int) -> None:
    with Coordinator({one.name: one.url for one in pair}, settings=BRIEF, recovery=False) as db:
        recover(db, pair)
        assert db.progress("sum").done == told
        with db.job("sum", patience=10) as rest:
            assert rest.done == done
            for chunk in rest.chunks(ITEMS, 3):
                with chunk as tx:
                    for one in pair:
                        placeholder = "?" if one.kind == "sqlite" else "%s"
                        amount = sum(chunk.items)
                        tx[one.name].execute(f"update accounts set balance = balance + {placeholder}", (amount,))
        record = db.progress("sum")
        assert (record.state, record.done) == (JobState.DONE, 10)


def killed(pair: list[Database], kill: str, mode: str, mutant: str = "", on: str | None = None) -> None:
    urls = {one.name: one.url for one in pair}
    with Coordinator(urls, recovery=False) as db:
        db.setup()
    killed_at({"urls": urls, "mode": mode, "kill": kill, "mutant": mutant, "on": on}, CHILD)


@pytest.mark.parametrize("kinds", PAIRS, ids="+".join)
@pytest.mark.parametrize(("kill", "told", "done"), POINTS)
def test_kill_9_neither_repeats_a_chunk_nor_leaves_one_out(
    kill: str, told: int, done: int, kinds: tuple[str, str], request: Any, tmp_path: Path
) -> None:
    pair = [make_database(kind, name, request, tmp_path) for kind, name in zip(kinds, "ab", strict=True)]
    killed(pair, kill, ("sync", "async")[hash_of(kinds, kill) % 2])
    resume(pair, told, done)
    assert balances(pair) == DONE and not any(one.prepared() for one in pair)


@pytest.mark.parametrize(
    ("kinds", "kill", "done"), [(pair, "P6.committed#4", 6) for pair in PAIRS] + [(PAIRS[1], "P3.prepared@b#2", 3)]
)
def test_a_checkpoint_that_is_prepared_keeps_everybody_out_until_recovery_has_ended_it(
    kinds: tuple[str, str], kill: str, done: int, request: Any, tmp_path: Path
) -> None:
    """It is in b, whose branch is prepared, while the journal's has been decided, or not."""
    pair = [make_database(kind, name, request, tmp_path) for kind, name in zip(kinds, "ab", strict=True)]
    killed(pair, kill, ("sync", "async")[hash_of(kinds, kill) % 2], on="b")
    urls = {one.name: one.url for one in pair}
    with (
        Coordinator(urls, settings=BRIEF, recovery=False) as db,
        pytest.raises(JobTaken, match="waits for recovery"),
        db.job("sum", takeover=True),
    ):
        raise AssertionError("nobody is let in")
    resume(pair, 3, done)
    assert balances(pair) == DONE


@pytest.fixture
def files(tmp_path: Path, request: Any) -> list[Database]:
    return [make_database("sqlite", name, request, tmp_path) for name in "ab"]


@pytest.mark.parametrize(
    ("mutant", "told", "done", "wrong"),
    [("checkpoint first", 3, 6, -sum(ITEMS[3:6])), ("checkpoint after", 3, 3, sum(ITEMS[3:6]))],
)
def test_mutants_that_write_the_checkpoint_apart_lose_a_chunk_or_do_it_twice(
    mutant: str, told: int, done: int, wrong: int, files: list[Database]
) -> None:
    """Killed between the two transactions of the second chunk."""
    killed(files, "P6.committed#5", "sync", mutant)
    resume(files, told, done)
    assert balances(files) == [one + wrong for one in DONE]


@pytest.fixture(params=PAIRS, ids="+".join)
def pair(request: Any, tmp_path: Path) -> list[Database]:
    return [make_database(kind, name, request, tmp_path) for kind, name in zip(request.param, "ab", strict=True)]


def test_mutant_without_the_fence_who_was_asleep_does_a_chunk_again(
    pair: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutants.without_the_fence(monkeypatch)

    async def main() -> None:
        async with opened("sync", pair) as sleeper, opened("sync", pair) as db:
            with pytest.raises(JobLost) as lost:
                async with job(sleeper, "sum") as asleep:
                    chunk = next(asleep.chunks(ITEMS, 5))
                    await work_off(db, "sum", takeover=True)
                    async with block(sleeper, chunk) as tx:
                        await add(sleeper, tx, sum(chunk.items))
            assert lost.value.committed

    asyncio.run(main())
    assert balances(pair) == [one + sum(ITEMS[:5]) for one in DONE]


@pytest.mark.parametrize(
    ("kind", "isolation"),
    [("postgres", "read committed"), ("postgres", "repeatable read"), ("mariadb", "repeatable read")],
)
def test_who_falls_asleep_with_an_old_snapshot_is_thrown_out_all_the_same(
    kind: str, isolation: str, request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chunk's transaction has its snapshot, and no lock yet, while another worker does all of the job."""
    only = make_database(kind, "a", request, tmp_path)
    urls = {"a": only.url}
    if kind == "postgres":  # it is MariaDB's default
        only.query(f"alter database {parse_url(only.url).database} set default_transaction_isolation = '{isolation}'")
    asleep: list[str] = []

    def all_of_it() -> None:
        with Coordinator(urls, settings=BRIEF, recovery=False) as other, other.job("sum", takeover=True) as job_:
            for chunk in job_.chunks(ITEMS, 5):
                with chunk as tx:
                    tx["a"].execute(f"update accounts set balance = balance + {sum(chunk.items)} where id = 0")

    store: Any = {"postgres": PostgresStore, "mariadb": MariaDBStore}[kind]
    sound = store.claim

    def claim(self: Any, session: Any, work: Any, key: Any) -> Any:
        if armed and not asleep:
            asleep.append(key.key)
            yield from self._ask(session, "SELECT count(*) FROM accounts")
            all_of_it()
        return (yield from sound(self, session, work, key))

    armed: list[bool] = []
    monkeypatch.setattr(store, "claim", claim)
    with Coordinator(urls, settings=BRIEF, recovery=False) as db:
        db.setup()
        with pytest.raises(JobLost, match="was rolled back"), db.job("sum") as mine:
            armed.append(True)
            with next(mine.chunks(ITEMS, 5)) as tx:
                tx["a"].execute("update accounts set balance = balance + 15 where id = 0")
    assert asleep and only.balance() == DONE[0]


def test_without_the_lease_workers_throw_each_other_out_and_no_chunk_is_done_twice(
    pair: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four at the same time, each of whom begins again until it is done: the lease is not what makes it safe."""
    mutants.without_the_lease(monkeypatch)
    urls = {one.name: one.url for one in pair}
    with Coordinator(urls, recovery=False) as db:
        db.setup()

    all_within = threading.Barrier(4)

    def worker(_: int) -> int:
        thrown_out, waited = 0, False
        with Coordinator(urls, settings=BRIEF) as db:
            while True:
                try:
                    with db.job("sum", quiet=True) as some:
                        if not waited:
                            all_within.wait(60)
                            waited = True
                        for chunk in some.chunks(ITEMS, 1):
                            with chunk as tx:
                                for one in pair:
                                    tx[one.name].execute(f"update accounts set balance = balance + {chunk.items[0]}")
                    return thrown_out
                except (JobTaken, JobLost, ResourceUnavailable):  # or the other's branch has locked a table of SQLite's
                    thrown_out += 1

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(worker, range(4))) > 0
    assert balances(pair) == DONE
