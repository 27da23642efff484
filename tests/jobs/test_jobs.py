"""Long jobs on every kind of database, sync and async by one body: chunks with their checkpoints, leases, progress."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from jobs import mutants
from kit import QUICK, Database, Face, Observer, Watching, make_database, opened, until
from nodoubt import (
    ClosedTransaction,
    Coordinator,
    InDoubt,
    JobLost,
    JobState,
    JobTaken,
    ResourceRefused,
    UnknownJob,
    UsageError,
)
from nodoubt.idempotency import claims
from nodoubt.jobs import board, links
from nodoubt.testing.fakes import FakeCoordinator
from nodoubt.testing.proxy import TcpProxy

pytestmark = pytest.mark.anyio

PAIRS = [("sqlite", "sqlite"), ("postgres", "mariadb"), ("mariadb", "postgres")]
ADD = "update accounts set balance = balance + ? where id = 0"
BRIEF = replace(QUICK, job_lease_s=0.2)
IMPATIENT = replace(BRIEF, connect_s=2, acquire_s=1, prepare_s=1, decide_s=0.5, apply_s=0.5, grace_s=5)
RECEIPT = b"EXECUTE nodoubt_receipt"  # a PostgreSQL session keeps it prepared


@pytest.fixture(params=["sync", "async"])
def mode(request: Any) -> str:
    return str(request.param)


@pytest.fixture(params=PAIRS, ids="+".join)
def pair(request: Any, tmp_path: Path) -> list[Database]:
    """The journal is in the first, and so are the checkpoints unless it is said."""
    return [make_database(kind, name, request, tmp_path) for kind, name in zip(request.param, "ab", strict=True)]


@contextlib.asynccontextmanager
async def block(face: Face, handle: Any) -> AsyncIterator[Any]:
    """A block of either coordinator's."""
    if face.mode == "sync":
        with handle as inner:
            yield inner
    else:
        async with handle as inner:
            yield inner


def job(face: Face, *args: Any, **options: Any) -> Any:
    return block(face, face.db.job(*args, **options))


async def add(face: Face, tx: Any, amount: int, *names: str) -> None:
    for name in names or tuple(face.databases):
        statement = ADD if face.databases[name].kind == "sqlite" else ADD.replace("?", "%s")
        answer = tx[name].execute(statement, (amount,))
        if face.mode == "async":
            await answer


async def said(face: Face, answer: Any) -> Any:
    return answer if face.mode == "sync" else await answer


def balances(pair: list[Database]) -> list[int]:
    return [one.balance() for one in pair]


def kept(one: Database) -> int:
    """How many rows there are among the keys."""
    return int(one.query(f"select count(*) from {'nodoubt.keys' if one.kind == 'postgres' else 'nodoubt_keys'}")[0][0])


ITEMS = list(range(1, 11))  # their sum is 55


async def test_an_error_stops_a_job_and_it_goes_on_from_its_last_checkpoint(mode: str, pair: list[Database]) -> None:
    async with opened(mode, pair) as db:
        with pytest.raises(KeyError, match="mine"):
            async with job(db, "sum", total=10) as first:
                for chunk in first.chunks(ITEMS, 3):
                    async with block(db, chunk) as tx:
                        await add(db, tx, sum(chunk.items))
                        if 7 in chunk.items:
                            raise KeyError("mine")
        assert balances(pair) == [121, 121]  # 1 to 6
        record = await db.progress("sum")
        assert (record.state, record.done, record.total, record.checkpoint) == (JobState.STOPPED, 6, 10, 6)
        assert record.note == "KeyError: 'mine'" and kept(pair[0]) <= 2
    async with opened(mode, pair) as other:
        async with job(other, "sum") as second:
            assert (second.checkpoint, second.done, second.total, second.finished) == (6, 6, 10, False)
            for chunk in second.chunks(ITEMS, 3):
                async with block(other, chunk) as tx:
                    await add(other, tx, sum(chunk.items))
                    seen = await other.progress("sum")
                    assert (seen.state, seen.done) == (JobState.RUNNING, chunk.items[0] - 1)
        assert (await other.progress("sum")).state is JobState.DONE
        assert balances(pair) == [155, 155]
        async with job(other, "sum") as again:
            assert again.finished and list(again.chunks(ITEMS, 3)) == []
            with pytest.raises(ClosedTransaction, match="done"):
                async with block(other, again.chunk()):
                    raise AssertionError("there is no work")
    assert balances(pair) == [155, 155]


async def test_a_chunk_of_one_s_own_says_where_to_go_on_from(mode: str, pair: list[Database]) -> None:
    async with opened(mode, pair) as db:
        async with job(db, "walk", on="b") as walk:
            while True:
                after = (walk.checkpoint or {"id": 0})["id"]
                if after == 4:
                    break
                async with block(db, walk.chunk()) as chunk:
                    await add(db, chunk, 1)
                    chunk.checkpoint({"id": after + 2}, done=2)
            with pytest.raises(UsageError, match="say how far"):
                async with block(db, walk.chunk()) as chunk:
                    await add(db, chunk, 1000)
            with pytest.raises(UsageError, match="must be JSON"):
                async with block(db, walk.chunk()) as chunk:
                    await add(db, chunk, 1000)
                    chunk.checkpoint(object())
            with pytest.raises(UsageError, match="more than 4096"):
                async with block(db, walk.chunk()) as chunk:
                    chunk.checkpoint("x" * 5000)
            assert walk.done == 4
        record = await db.progress("walk")
        assert (record.state, record.done, record.total, record.checkpoint) == (JobState.DONE, 4, None, {"id": 4})
        assert [one.name for one in await db.jobs()] == ["walk"]
    assert balances(pair) == [102, 102]


async def test_while_somebody_works_on_it_nobody_else_is_let_in(mode: str, pair: list[Database]) -> None:
    """The lease is renewed for as long as the process lives, however long a chunk takes."""
    async with opened(mode, pair, settings=BRIEF) as db, opened(mode, pair, settings=BRIEF) as other:
        async with job(db, "sum") as first:
            begun = (await db.progress("sum")).changed_at
            renewed = lambda: _held_until(pair[0], "sum") > begun + 2 * BRIEF.job_lease_s  # noqa: E731
            await asyncio.to_thread(until, renewed)
            for face in (db, other):
                with pytest.raises(JobTaken, match="is at work on it"):
                    async with job(face, "sum"):
                        raise AssertionError("nobody is let in")
            with pytest.raises(JobTaken):
                await other.forget_job("sum")
            for chunk in first.chunks(ITEMS, 5):
                async with block(db, chunk) as tx:
                    await add(db, tx, sum(chunk.items))
        async with job(other, "sum") as again:
            assert again.finished
    assert balances(pair) == [155, 155]


async def test_who_was_asleep_commits_no_more_and_is_told(mode: str, pair: list[Database]) -> None:
    """However far the other has come: even where it has come to the end, and is forgotten."""
    async with opened(mode, pair) as sleeper, opened(mode, pair) as db:
        for number, ending in enumerate(("taken", "further", "done", "forgotten")):
            name = f"sum-{number}"
            with pytest.raises(JobLost, match="was rolled back"):
                async with job(sleeper, name) as asleep:
                    chunk = next(asleep.chunks(ITEMS, 5))  # it knows where to go on from
                    if ending == "taken":
                        async with job(db, name, takeover=True) as awake:
                            awake.pause("for the other to come")
                    else:
                        await work_off(db, name, upto=5 if ending == "further" else 10, takeover=True)
                    if ending == "forgotten":
                        await db.forget_job(name)
                    async with block(sleeper, chunk) as tx:
                        await add(sleeper, tx, 1000)
            if ending != "forgotten":
                assert (await db.progress(name)).state is (JobState.DONE if ending == "done" else JobState.STOPPED)
    assert balances(pair) == [100 + 15 + 55 + 55] * 2 and not any(one.prepared() for one in pair)


async def work_off(db: Face, name: str, *, upto: int = 10, takeover: bool = False, patience: float = 0) -> None:
    async with job(db, name, takeover=takeover, patience=patience) as some:
        for chunk in some.chunks(ITEMS, 5):
            async with block(db, chunk) as tx:
                await add(db, tx, sum(chunk.items))
            if some.done >= upto < len(ITEMS):
                break


def _table(one: Database) -> str:
    return "nodoubt.jobs" if one.kind == "postgres" else "nodoubt_jobs"


def _held_until(one: Database, name: str) -> float:
    return float(one.query(f"select held_until from {_table(one)} where name = ?", _key(one, name))[0][0])


def _key(one: Database, name: str) -> Any:
    return name.encode() if one.kind == "mariadb" else name


async def test_a_chunk_that_is_at_work_is_waited_for(mode: str, pair: list[Database]) -> None:
    """Its worker's lease has ended, but the transaction is open: nobody else can begin before that has ended."""
    if pair[0].kind == "sqlite":  # whose files are locked while a branch is at work
        await _a_chunk_stands_although_the_job_was_taken(mode, pair)
        return
    async with opened(mode, pair) as sleeper, opened(mode, pair) as db:
        with pytest.raises(JobLost) as lost:
            async with job(sleeper, "sum") as asleep, block(sleeper, next(asleep.chunks(ITEMS, 5))) as tx:
                await add(sleeper, tx, 15)
                with pytest.raises(JobTaken, match="at work, or waits for recovery"):
                    async with job(db, "sum", takeover=True):
                        raise AssertionError("nobody is let in")
        assert lost.value.committed and not sleeper.db._ctx.jobs
        async with job(db, "sum", patience=5) as second:
            assert second.done == 5
            second.pause()
    assert balances(pair) == [115, 115]


async def _a_chunk_stands_although_the_job_was_taken(mode: str, pair: list[Database]) -> None:
    async with opened(mode, pair) as db:
        with pytest.raises(JobLost) as lost:
            async with job(db, "sum", on="b") as asleep, block(db, next(asleep.chunks(ITEMS, 5))) as tx:
                await add(db, tx, 15, "b")
                _take(pair[0], "sum")
        assert lost.value.committed and not db.db._ctx.jobs
    assert balances(pair) == [100, 115]


def _take(one: Database, name: str) -> None:
    one.query(f"update {_table(one)} set claim = 'somebody' where name = ?", _key(one, name))


async def test_progress_is_seen_while_the_work_is_held(mode: str, pair: list[Database]) -> None:
    """The page's job: one transaction for all of it. Its row cannot be seen, and its progress can."""
    journal = {"journal": pair[0].url.replace("a.db", "journal.db")} if pair[0].kind == "sqlite" else {}
    async with opened(mode, pair, **journal) as db, opened(mode, pair, **journal) as other:
        async with job(db, "held", total=10, on="a") as held:
            async with db.staged("all of it") as tx:
                for number in ITEMS:
                    await tx.execute("b", ADD, number)
                    await said(db, held.report(number, f"at {number}"))
                    seen = await other.progress("held")
                    assert (seen.done, seen.note, seen.checkpoint) == (number, f"at {number}", None)
                    assert pair[1].balance() == 100
            assert pair[1].balance() == 100 and (await other.progress("held")).done == 10
            await db.commit_distributed("all of it")
        assert (await other.progress("held")).state is JobState.DONE
    assert pair[1].balance() == 155


async def test_wrong_arguments_are_told_before_any_work(mode: str, request: Any, tmp_path: Path) -> None:
    pair = [make_database("sqlite", name, request, tmp_path) for name in "ab"]
    async with opened(mode, pair, journal=f"sqlite:///{tmp_path}/journal.db") as db:
        for args, options, told in (
            (("",), {"on": "a"}, "name"),
            (("n",), {"on": "c"}, "no resource 'c'"),
            (("n",), {}, "say which database keeps it"),
            (("n",), {"on": "a", "total": -1}, "a number of items"),
        ):
            with pytest.raises(ValueError, match=told):
                async with job(db, *args, **options):
                    raise AssertionError("work must not start")
        with pytest.raises(UnknownJob, match="no job 'n'"):
            await db.progress("n")
        with pytest.raises(UnknownJob):
            await db.forget_job("n")
        assert await db.jobs() == []
        async with job(db, "n", on="a") as n:
            for size, items, told in ((0, ITEMS, "one item or more"), (3, [], "")):
                with pytest.raises(UsageError, match=told) if told else contextlib.nullcontext():
                    list(n.chunks(items, size))
            with pytest.raises(UsageError, match="was not committed"):
                for _ in n.chunks(ITEMS, 5):
                    pass
            async with block(db, n.chunk()) as chunk:
                with pytest.raises(UsageError, match="one chunk at a time"):
                    async with block(db, n.chunk()):
                        pass
                chunk.checkpoint("z")
            with pytest.raises(UsageError, match="goes on from 'z'"):
                list(n.chunks(ITEMS, 5))
        async with job(db, "m", on="b") as m:
            m.pause()
        with pytest.raises(UsageError, match="are on b, for good"):
            async with job(db, "m", on="a"):
                pass


async def test_a_job_whose_checkpoint_is_gone_is_not_begun_again_by_guess(mode: str, files: list[Database]) -> None:
    async with opened(mode, files) as db:
        await work_off(db, "sum", upto=5)
        files[0].query("delete from nodoubt_keys")
        with pytest.raises(Exception, match="Where to go on from is not known"):
            async with job(db, "sum"):
                raise AssertionError("nobody knows where from")
        await db.forget_job("sum")
        await work_off(db, "sum")
    assert balances(files) == [170, 170]


class Behind:
    """To it, the journal's clock has jumped ahead."""

    elapsed = staticmethod(time.monotonic)

    @staticmethod
    def now() -> float:
        return time.time() - 3600.0


async def test_what_was_done_long_ago_is_forgotten_and_nothing_else(pair: list[Database]) -> None:
    mode = "sync"
    async with opened(mode, pair) as db:
        await work_off(db, "done")
        await work_off(db, "stopped", upto=5)
    async with opened(mode, pair, settings=replace(QUICK, retention_s=1e-9)) as db:

        def expire() -> Any:
            return db.db._shell.run(board.expire(db.db._ctx))

        sound, db.db._ctx.clock = db.db._ctx.clock, Behind()
        assert await said(db, expire()) == 0, "it is old by one clock alone"
        db.db._ctx.clock = sound
        assert await said(db, expire()) == 1 and await said(db, expire()) == 0
        assert [one.name for one in await db.jobs()] == ["stopped"]
    async with opened(mode, pair) as db:
        await work_off(db, "stopped")
    assert balances(pair) == [210, 210]


async def test_jobs_that_cannot_be_read_keep_none_behind_them_from_being_forgotten(
    pair: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "FORGET_MAX", 2)
    bad, good = ["bad 1", "bad 2", "bad 3"], ["good 1", "good 2", "good 3"]
    async with opened("sync", pair) as db:
        for name in (*bad, *good):
            await work_off(db, name, upto=1)
    table = "nodoubt.jobs" if pair[0].kind == "postgres" else "nodoubt_jobs"
    pair[0].query(f"update {table} set state = 'done', changed_at = 0")
    pair[0].query(f"update {table} set checkpoint = '[' where name < 'c'")
    async with opened("sync", pair) as db:
        gone = [await said(db, db.db._shell.run(board.expire(db.db._ctx))) for _ in range(4)]
        assert sum(gone) == 3 and gone[0] > 0
        assert sorted(one.name for one in await db.jobs()) == bad


@pytest.mark.parametrize("died", ["before its first chunk", "after its last link"])
async def test_whoever_comes_back_after_the_retention_goes_on_all_the_same(
    died: str, mode: str, pair: list[Database]
) -> None:
    """A worker that dies between a link and what the journal is told of it; nobody comes for a long time."""
    async with opened(mode, pair, settings=replace(BRIEF, retention_s=1e-9)) as db:
        shell = db.db._shell
        if died == "before its first chunk":
            await said(db, shell.run(db.db.job("sum")._work._begin_new()))
        else:
            dead = db.db.job("sum")
            await said(db, dead.__enter__() if mode == "sync" else dead.__aenter__())
            async with block(db, dead.chunk()) as tx:
                await add(db, tx, 55)
                tx.checkpoint(10, done=10)
            await said(db, shell.run(dead._work._relay(finished=True)))
            db.db._ctx.jobs.clear()
        assert await said(db, shell.run(claims.expire(db.db._ctx))) == 0
        async with job(db, "sum", patience=60) as again:
            assert again.finished is (died == "after its last link")
            for chunk in again.chunks(ITEMS, 10):
                async with block(db, chunk) as tx:
                    await add(db, tx, sum(chunk.items))
        assert (await db.progress("sum")).state is JobState.DONE
    assert balances(pair) == [155, 155] and kept(pair[0]) == 0


async def test_whoever_fell_asleep_as_they_were_let_in_is_told_that_others_have_come_to_the_end(
    mode: str, pair: list[Database]
) -> None:
    """They look for a checkpoint that was dropped because the job is done: no database was restored."""
    async with opened(mode, pair) as db:
        await work_off(db, "sum", upto=5)
        asleep, run = db.db.job("sum")._work, db.db._shell.run
        assert await said(db, run(asleep._claimed()))
        await work_off(db, "sum", takeover=True)
        with pytest.raises(JobTaken, match="come to its end"):
            await said(db, run(asleep._find_link()))
        asleep.gone()
        async with job(db, "sum") as again:
            assert again.finished
    assert balances(pair) == [155, 155]


@pytest.mark.parametrize("then", ["another chunk", "the next of the list", "the end of the block"])
async def test_after_a_chunk_in_doubt_nothing_is_guessed_in_its_block(
    then: str, mode: str, request: Any, tmp_path: Path
) -> None:
    """Its error was caught. Nobody has taken the job over, and whether that chunk stands is known by beginning anew."""
    one = make_database("postgres", "a", request, tmp_path)
    with TcpProxy.to(one.url) as proxy:
        near = replace(one, url=proxy.url_for(one.url))
        async with opened(mode, [near], settings=IMPATIENT) as db:
            with pytest.raises(InDoubt, match="begin the job again, which goes on from what was committed") as told:
                async with job(db, "sum") as some:
                    chunks = some.chunks(ITEMS, 5)
                    chunk = next(chunks) if then == "the next of the list" else some.chunk()
                    with pytest.raises(InDoubt) as caught:
                        async with block(db, chunk) as tx:
                            await add(db, tx, 15)
                            if then != "the next of the list":
                                chunk.checkpoint(5, done=5)
                            proxy.cut_reply(RECEIPT, isolate=True)
                    proxy.heal()
                    if then == "another chunk":
                        async with block(db, some.chunk()) as tx:
                            raise AssertionError("nobody knows what it would follow")
                    if then == "the next of the list":
                        next(chunks)
            assert told.value.attempt == caught.value.attempt
            assert (await db.progress("sum")).state is JobState.STOPPED
    async with opened(mode, [one]) as db:
        await work_off(db, "sum", patience=60)
    assert one.balance() == 155


async def test_a_job_is_not_forgotten_while_the_database_of_its_checkpoints_refuses(
    mode: str, files: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is asleep on it could still commit, beside the one who begins it anew."""

    def refuses(*_: Any) -> Any:
        raise ResourceRefused("permission denied for table keys")

    async with opened(mode, files) as db:
        await work_off(db, "sum", upto=5)
        with monkeypatch.context() as patch, pytest.raises(ResourceRefused, match="permission denied"):
            patch.setattr(links, "last", refuses)
            await db.forget_job("sum")
        assert (await db.progress("sum")).done == 5
        await work_off(db, "sum")
    assert balances(files) == [155, 155]


@pytest.fixture
def files(tmp_path: Path, request: Any) -> list[Database]:
    return [make_database("sqlite", name, request, tmp_path) for name in "ab"]


async def test_whoever_is_not_let_in_leaves_the_lease_of_another_in_this_process_alone(
    mode: str, files: list[Database]
) -> None:
    async with opened(mode, files) as db, job(db, "sum") as first:
        held = dict(db.db._ctx.jobs)
        assert list(held.values()) == ["sum"]
        refusing = db.db.job("sum")
        refusing._work.gone()  # as one whose caller was interrupted while it looked
        assert db.db._ctx.jobs == held, "the first is still renewed"
        first.pause()


async def test_a_job_goes_through_one_list(mode: str, files: list[Database]) -> None:
    """Its checkpoint is a position in it: in another one it would leave out as many as were done."""
    async with opened(mode, files) as db:
        with pytest.raises(UsageError, match="one list"):
            async with job(db, "sum") as some:
                for items in (ITEMS, [*ITEMS, 11]):
                    for chunk in some.chunks(items, 5):
                        async with block(db, chunk):
                            pass
        assert (await db.progress("sum")).state is JobState.STOPPED


async def test_a_checkpoint_is_told_as_whoever_begins_again_will_be_told_it(mode: str, files: list[Database]) -> None:
    async with opened(mode, files) as db:
        async with job(db, "day") as first:
            said_ = {"day": date(2026, 1, 2), "pair": (1, 2)}
            async with block(db, first.chunk()) as chunk:
                chunk.checkpoint(said_)
                said_["day"] = "changed since"
            told = first.checkpoint
            first.pause()
        async with job(db, "day") as second:
            assert told == second.checkpoint == {"day": "2026-01-02", "pair": [1, 2]}


async def test_a_pause_holds_although_the_loop_goes_to_its_end(mode: str, files: list[Database]) -> None:
    async with opened(mode, files) as db:
        async with job(db, "sum") as some:
            for chunk in some.chunks(ITEMS, 5):
                async with block(db, chunk):
                    some.pause("for lunch")
        record = await db.progress("sum")
        assert (record.state, record.done, record.note) == (JobState.STOPPED, 10, "for lunch")


@pytest.mark.parametrize("wrong", [-1, 2**63, 1.5, "x", True])
async def test_what_is_no_number_of_items_is_refused_before_it_is_written(wrong: Any, files: list[Database]) -> None:
    async with opened("sync", files) as db:
        with pytest.raises(UsageError, match="a number of items"):
            db.db.job("n", total=wrong)
        async with job(db, "n") as some:
            with pytest.raises(UsageError, match="a number of items"):
                some.report(wrong)
            async with block(db, some.chunk()) as chunk:
                with pytest.raises(UsageError, match="a number of items"):
                    chunk.checkpoint(1, done=wrong)
                chunk.checkpoint(-2)
            for items in (iter(ITEMS), {1: 2}, {1, 2}):
                with pytest.raises(UsageError, match="a list"):
                    next(some.chunks(items))
            with pytest.raises(UsageError, match="goes on from -2"):
                next(some.chunks(ITEMS))


async def test_what_is_no_size_and_no_checkpoint_is_refused_before_any_work(mode: str, files: list[Database]) -> None:
    async with opened(mode, files) as db:
        async with job(db, "n") as some:
            for size in (True, 1.5, "2", None, 0, -1, math.nan):
                with pytest.raises(UsageError, match="one item or more"):
                    next(some.chunks(ITEMS, size))
            async with block(db, some.chunk()) as chunk:
                chunk.checkpoint({"after": [1, None]}, done=1)
                for value in (math.nan, math.inf, {"after": [1, -math.inf]}):
                    with pytest.raises(UsageError, match="must be JSON"):
                        chunk.checkpoint(value)
            assert some.checkpoint == {"after": [1, None]}
        for patience in ("5", True):
            with pytest.raises(UsageError, match="seconds"):
                db.db.job("n", patience=patience)


async def test_a_lease_that_is_renewed_too_late_does_not_keep_a_job_that_was_left(
    mode: str, pair: list[Database]
) -> None:
    """What renews them had looked up this one just before its block ended."""
    async with opened(mode, pair) as db:
        ctx = db.db._ctx
        async with job(db, "sum", quiet=True) as some:
            (held,) = ctx.jobs.items()
            some.pause()
        ctx.jobs.update([held])
        script = board.hold_all(ctx)
        await said(db, db.db._shell.run(script))
        del ctx.jobs[held[0]]
        async with job(db, "sum", quiet=True) as again:
            again.pause()


async def test_a_list_that_has_grown_shorter_does_not_make_a_job_done(mode: str, files: list[Database]) -> None:
    """Where it had just as many as were done, the job was done, and what was left of it never came."""
    async with opened(mode, files) as db:
        async with job(db, "sum", quiet=True) as some:
            for chunk in some.chunks(ITEMS, 5):
                async with block(db, chunk) as tx:
                    await add(db, tx, sum(chunk.items))
                break
        for fewer in (ITEMS[:5], ITEMS[:9]):
            with pytest.raises(UsageError, match=f"there were 10 items .* these are {len(fewer)}"):
                async with job(db, "sum", quiet=True) as some:
                    next(iter(some.chunks(fewer, 5)), None)
            assert (await db.progress("sum")).state is JobState.STOPPED
        async with job(db, "sum", quiet=True, total=5) as some:
            assert not list(some.chunks(ITEMS[:5], 5))
        assert (await db.progress("sum")).state is JobState.DONE


async def test_whoever_is_cancelled_leaves_a_job_that_can_be_begun_again(files: list[Database]) -> None:
    """While it waits to be let in, and in the middle of a chunk."""
    async with opened("async", files) as db, opened("async", files) as other:

        async def works(waits: asyncio.Event) -> None:
            async with db.db.job("sum", patience=None) as some:
                for chunk in some.chunks(ITEMS, 5):
                    async with chunk as tx:
                        await add(db, tx, sum(chunk.items))
                        waits.set()
                        await asyncio.Event().wait()

        async with job(other, "sum") as first:
            waiting = asyncio.create_task(works(asyncio.Event()))
            await asyncio.sleep(0)
            first.pause()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        at_work = asyncio.Event()
        working = asyncio.create_task(works(at_work))
        await at_work.wait()
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        record = await db.progress("sum")
        assert (record.state, record.done) == (JobState.STOPPED, 0) and "CancelledError" in record.note
        await work_off(other, "sum", patience=30)  # the first's last look may still wait for the file: it lets go
    assert balances(files) == [155, 155]


POINTS = ["P3", "P4", "P5", "P6", "P7", "P8", "P9"]


class Soft(Exception):
    """A signal's: the time that this worker may use is nearly up."""


@pytest.fixture
def interrupted() -> Iterator[Callable[[str], Observer]]:
    """Raises at that point of the protocol, in whoever waits for the end, once it is armed."""

    def raises(*_: Any) -> None:
        raise Soft

    def at(point: str) -> Observer:
        def call(notice: Any) -> None:
            if notice.point == point and ARMED:
                ARMED.pop()()

        return Watching(call)

    before = signal.signal(signal.SIGUSR1, raises)
    yield at
    signal.signal(signal.SIGUSR1, before)
    ARMED.clear()


ARMED: list[Callable[[], object]] = []


def test_a_job_whose_worker_a_handler_throws_out_of_the_door_is_held_by_nobody(
    files: list[Database], interrupted: Callable[[str], Observer]
) -> None:
    """It was said to be at work on it for as long as the process lived, if that had other jobs as well."""
    places = {one.name: one.url for one in files}
    with Coordinator(places, settings=BRIEF, recovery=False, observer=interrupted("P6")) as db:
        db.setup()
        with db.job("another", quiet=True) as other:
            ARMED.append(lambda: os.kill(os.getpid(), signal.SIGUSR1))
            with pytest.raises(Soft), db.job("sum", quiet=True):
                raise AssertionError("nobody may be let in")
            assert [*db._ctx.jobs.values()] == ["another"]
            until(lambda: db.progress("sum").state is JobState.ABANDONED)
            assert db.progress("another").state is JobState.RUNNING
            other.pause()
        with db.job("sum", quiet=True, patience=10) as again:
            assert again.done == 0


def test_where_no_thread_can_be_started_nobody_is_let_in_and_the_next_is_minded(
    files: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each later job of this process was taken for abandoned while somebody was at work on it."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Coordinator({one.name: one.url for one in files}, settings=BRIEF, recovery=False) as db:
        db.setup()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="new thread"), db.job("sum", quiet=True):
                raise AssertionError("nobody may be let in")
        with pytest.raises(UnknownJob):
            db.progress("sum")
        with db.job("sum", quiet=True) as some:
            time.sleep(2 * BRIEF.job_lease_s)
            assert db.progress("sum").state is JobState.RUNNING
            some.pause()


async def cut_off(mode: str, files: list[Database], observer: Observer, *, own: bool) -> None:
    """A chunk that commits while whoever waited for it is interrupted, and catches that; then the job begun again."""
    calls: list[Callable[[], object]] = [lambda: os.kill(os.getpid(), signal.SIGUSR1)]
    async with opened(mode, files, observer=observer) as db:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        if mode == "async":
            calls = [lambda: loop.call_soon(task.cancel)]
        with pytest.raises(InDoubt, match="begin the job again, which goes on from what was committed"):
            async with job(db, "sum") as some:
                for chunk in (some.chunk() for _ in range(2)) if own else some.chunks(ITEMS, 5):
                    try:
                        async with block(db, chunk) as tx:
                            await add(db, tx, 15)
                            if own:
                                chunk.checkpoint(5, done=5)
                            ARMED[:] = calls
                    except (asyncio.CancelledError, Soft):
                        task.uncancel()
        await asyncio.sleep(0)
        assert (await db.progress("sum")).state is JobState.STOPPED
        async with job(db, "sum", patience=10) as again:
            assert (again.checkpoint, again.done) == (5, 5), "it was committed"
            for chunk in again.chunks(ITEMS, 5):
                async with block(db, chunk) as tx:
                    await add(db, tx, sum(chunk.items))
    assert balances(files) == [155, 155]


@pytest.mark.parametrize("own", [False, True], ids=["list", "own"])
@pytest.mark.parametrize("point", POINTS)
async def test_a_chunk_that_commits_without_whoever_waited_for_it_is_told_as_nothing_else(
    point: str, own: bool, mode: str, files: list[Database], interrupted: Callable[[str], Observer]
) -> None:
    """Whether the chunk stands is known by beginning anew, which can be done at once."""
    await cut_off(mode, files, interrupted(point), own=own)


@pytest.mark.parametrize(("own", "lie"), [(False, UsageError), (True, JobLost)], ids=["list", "own"])
async def test_without_the_doubt_such_a_chunk_is_told_as_what_it_is_not(
    own: bool, lie: type[Exception], mode: str, files: list[Database], interrupted: Callable[[str], Observer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    mutants.without_the_doubt(monkeypatch)
    with pytest.raises(lie, match="was not committed|was rolled back"):
        await cut_off(mode, files, interrupted("P6"), own=own)
    assert [one.balance() for one in files] == [115, 115], "it was committed"


async def test_a_chunk_of_its_own_that_is_still_being_rolled_back_is_not_another_workers(
    mode: str, request: Any, tmp_path: Path
) -> None:
    """Cancelled as it began, it has the next number until the server has seen to it."""
    one = make_database("postgres", "a", request, tmp_path)
    async with opened(mode, [one]) as db:
        async with job(db, "sum") as some:
            async with block(db, some.chunk()) as first:
                some._work.at_work = False  # as far as the block knows
                with pytest.raises(JobTaken, match="this very block.*not ended"):
                    async with block(db, some.chunk()):
                        raise AssertionError("the first is at work")
                await add(db, first, 1)
                first.checkpoint(1)
            async with block(db, some.chunk()) as second:
                await add(db, second, 1)
                second.checkpoint(2)
        assert (await db.progress("sum")).state is JobState.DONE
        with pytest.raises(JobTaken, match="at work"):
            async with job(db, "another") as other:
                last = block(db, other.chunk())
                await add(db, await last.__aenter__(), 1)
        assert (await db.progress("another")).state is JobState.STOPPED
        assert not await last.__aexit__(KeyError, KeyError(), None)
        async with job(db, "another") as other:
            assert other.checkpoint is None
    assert one.balance() == 102


def test_what_is_in_doubt_is_not_what_could_not_be_flushed(files: list[Database]) -> None:
    """SQLAlchemy's own error, before the votes: the chunk was rolled back, and the job may go on."""
    from sqlalchemy import exc

    from alchemy.world import Account

    with Coordinator({one.name: one.url for one in files}, settings=QUICK, recovery=False) as db:
        db.setup()
        with db.job("sum") as some:
            with pytest.raises(exc.IntegrityError), some.chunk() as chunk:
                chunk["a"].session().add(Account(id=0, balance=1))
                chunk.checkpoint(1)
            with some.chunk() as chunk:
                chunk["a"].session().add(Account(id=7, balance=1))
                chunk.checkpoint(2)
        assert db.progress("sum").checkpoint == 2


def test_on_fakes_there_are_no_jobs() -> None:
    with FakeCoordinator("shop") as db, pytest.raises(UsageError, match="this journal keeps no jobs"), db.job("n"):
        raise AssertionError("nobody is let in")
