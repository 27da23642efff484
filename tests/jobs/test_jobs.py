"""Long jobs on every kind of database, sync and async by one body: chunks with their checkpoints, leases, progress."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kit import QUICK, Database, Face, make_database, opened, until
from nodoubt import ClosedTransaction, JobLost, JobState, JobTaken, UnknownJob, UsageError
from nodoubt.jobs import board

pytestmark = pytest.mark.anyio

PAIRS = [("sqlite", "sqlite"), ("postgres", "mariadb"), ("mariadb", "postgres")]
ADD = "update accounts set balance = balance + ? where id = 0"
BRIEF = replace(QUICK, job_lease_s=0.2)


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
