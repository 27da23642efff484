"""The reaper: what is staged past its deadline is aborted once, by whichever of several is first, and cleaned up.

`make reap-10k` runs the first test with 10,000 (NODOUBT_REAP) and prints rate and memory.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kit import QUICK, Database, make_database, opened
from nodoubt import Coordinator, OutcomeConflict, Settings, State
from nodoubt.testing.servers import PostgresServer
from steps import app
from steps.conftest import Outside

pytestmark = pytest.mark.anyio

COUNT = int(os.environ.get("NODOUBT_REAP", "300"))
REAPERS = 3
GROWTH_MB_MAX = 64
STAGERS = 4


def stage_many(url: str, count: int) -> None:
    """So many transactions, each a row of its own, past their deadline as soon as they are staged."""
    with Coordinator({"a": url}, settings=QUICK, recovery=False) as db:
        db.setup()

        def stage(numbers: range) -> None:
            for number in numbers:
                with db.begin_distributed(f"late-{number}", deadline=0.001) as tx:
                    tx["a"].execute("insert into rows_ values (%s)", (number,))

        with ThreadPoolExecutor(STAGERS) as threads:
            list(threads.map(stage, [range(first, count, STAGERS) for first in range(STAGERS)]))


def reapers(url: str, number: int) -> list[tuple[dict[str, Any], int]]:
    """Processes that reap at the same time: what each reports, and its greatest size in kB."""
    command = [sys.executable, "-m", "nodoubt", "-r", f"a={url}", "reap", "--json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
        for _ in range(number)
    ]
    ended = []
    for process in started:
        assert process.stdout is not None
        report = json.loads(process.stdout.read())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        assert process.returncode == 0, report
        ended.append((report, usage.ru_maxrss))
    return ended


@pytest.mark.timeout(180 if COUNT <= 1000 else 3600)
def test_many_past_their_deadline_are_cleaned_up_by_three_reapers_each_exactly_once() -> None:
    with PostgresServer({"max_prepared_transactions": COUNT + 10}) as server:
        url = server.url()
        one = Database("a", url)
        one.query("create table rows_ (id int primary key)")
        stage_many(url, 1)
        ((_, idle_kb),) = reapers(url, 1)
        one.query("delete from nodoubt.decisions; delete from nodoubt.names")
        stage_many(url, COUNT)
        assert len(one.prepared()) == COUNT
        began = time.monotonic()
        ended = reapers(url, REAPERS)
        took_s = time.monotonic() - began
        counts = [report["reaped"] for report, _ in ended]
        growth_mb = (max(size for _, size in ended) - idle_kb) / 1024
        sys.stdout.write(
            f"reaped {COUNT} by {REAPERS} processes ({counts}) in {took_s:.1f} s, {COUNT / took_s:.0f}/s, their start "
            f"included; memory grew by at most {growth_mb:.0f} MB\n"
        )
        assert sum(counts) == COUNT, "each was counted by the one that aborted it"
        assert sum(report["rolled_back"] for report, _ in ended) == COUNT
        assert one.prepared() == [] and one.query("select count(*) from rows_") == [(0,)]
        decided = one.query("select attempt, verdict from nodoubt.decisions")
        assert Counter(verdict for _, verdict in decided) == {"abort": COUNT}
        assert len({attempt for attempt, _ in decided}) == COUNT
        assert growth_mb < GROWTH_MB_MAX


@pytest.mark.parametrize("kinds", ["mariadb+sqlite", "sqlite+postgres", "postgres+mariadb"])
async def test_what_is_reaped_is_rolled_back_everywhere_and_says_so(
    plain_mode: str, kinds: str, request: Any, tmp_path: Path
) -> None:
    pair = [make_database(kind, name, request, tmp_path) for kind, name in zip(kinds.split("+"), "ab", strict=True)]
    async with opened(plain_mode, pair) as db:
        async with db.staged("late", deadline=0.001) as tx:
            await tx.move("a", "b", 30)
        report = await db.reap()
        async with db.staged("early") as tx:
            await tx.move("a", "b", 1)
        assert (await db.reap()).reaped == 0
        assert (report.reaped, report.rolled_back, report.trouble) == (1, 2, {})
        record = await db.status("late")
        assert (record.state, record.status) == (State.ABORTED, "cleaned_up") and "stale_timeout" in record.reason
        assert [one.name for one in await db.transactions(state="cleaned_up")] == ["late"]
        with pytest.raises(OutcomeConflict):
            await db.commit_distributed("late")
        assert (await db.status("early")).state is State.PREPARED
        await db.rollback_distributed("early")
        assert (await db.status("early")).status == "aborted"
    assert not any(d.prepared() or d.locked() for d in pair)


@pytest.mark.parametrize("kind", ["mariadb", "postgres"])
async def test_a_branch_that_somebody_else_has_committed_before_is_quarantined_at_once(
    kind: str, request: Any, tmp_path: Path
) -> None:
    """On MariaDB XA RECOVER does not list it, and once it is decided no sweep looks for it any more."""
    pair = [make_database(kind, "a", request, tmp_path), make_database("postgres", "b", request, tmp_path)]
    async with opened("sync", pair, journal="b") as db:
        db.db._ctx.participants["a"].lingers = False  # or its session would hold the branch a moment longer
        async with db.staged("late", deadline=0.001) as tx:
            await tx.move("a", "b", 30)
        (gid,) = pair[0].prepared()
        if kind == "postgres":
            pair[0].query(f"commit prepared '{gid}'")
        else:
            (xid,) = [str(row[3]) for row in pair[0].query("xa recover format='sql'")]
            pair[0].query(f"xa commit {xid}")
        assert (await db.reap()).reaped == 1
        (entry,) = await db.quarantined()
        assert entry.resource == "a" and "somebody else committed it" in entry.why
    assert not any(d.prepared() for d in pair)


async def test_its_steps_are_undone(plain_mode: str, outside: Outside, request: Any, tmp_path: Path) -> None:
    one = make_database("sqlite", "a", request, tmp_path)
    order = f"order-{secrets.token_hex(4)}"
    async with opened(plain_mode, [one]) as db:
        async with db.staged(order, deadline=0.001) as tx:
            await tx.execute("a", "update accounts set balance = 7 where id = 0")
        await db.call(order, app.charge, order, "good", undo=app.refund)
        assert (await db.reap()).reaped == 1
    assert (outside.of(order).charges, outside.of(order).refunds) == (1, 1) and one.balance() == 100


async def test_one_that_is_committed_at_the_last_moment_is_not_reaped(request: Any, tmp_path: Path) -> None:
    """Both go to the register, and one of them is first."""
    one = make_database("postgres", "a", request, tmp_path)
    with Coordinator({"a": one.url}, settings=QUICK, recovery=False) as db:
        db.setup()
        with Coordinator({"a": one.url}, settings=QUICK, recovery=False) as other:
            reaped = committed = 0
            for number in range(12):
                with db.begin_distributed(f"n{number}", deadline=0.001) as tx:
                    tx["a"].execute("update accounts set balance = balance + 1 where id = 0")
                with ThreadPoolExecutor(2) as threads:
                    reaping, commit = threads.submit(other.reap), threads.submit(db.commit_distributed, f"n{number}")
                    reaped += reaping.result().reaped
                    committed += commit.exception() is None
            assert reaped + committed == 12
    assert one.balance() == 100 + committed and not one.prepared()


async def test_a_deadline_is_due_also_where_a_database_is_away(request: Any, tmp_path: Path) -> None:
    pair = [make_database("sqlite", "a", request, tmp_path), make_database("postgres", "b", request, tmp_path)]
    brief = Settings(connect_s=1, acquire_s=1, prepare_s=5, grace_s=5)
    async with opened("sync", pair) as db, db.staged("late", deadline=0.001) as tx:
        await tx.move("a", "b", 30)
    urls = {"a": pair[0].url, "b": "postgresql://me@127.0.0.1:1/nowhere"}
    with Coordinator(urls, settings=brief, recovery=False) as alone:
        report = alone.reap()
        assert (report.reaped, report.rolled_back) == (1, 1) and list(report.trouble) == ["b"]
    async with opened("sync", pair) as db:
        assert (await db.recover(grace=0)).rolled_back == 1
    assert not any(d.prepared() or d.locked() for d in pair)
