"""A disk that is full under the journal, or under the commit point, when the decision is to be written.

With root's rights the disk is a real one, of two or sixteen megabytes, filled to its last byte; without,
SQLite is told that
its file cannot grow. Whatever the answer is, it is true, and nothing is done by half. The resource's own half:
`tests/sqlite/test_sqlite_crash.py`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kit import Database, Face, Watching, opened
from nodoubt import Coordinator, InDoubt, JournalUnavailable, Notice, Settings, TransactionAborted
from nodoubt.testing.servers import PostgresServer
from nodoubt.url import parse_url
from traps.scenes import MOVED, balances, context, databases, recovered

pytestmark = pytest.mark.anyio
BRIEF = Settings(connect_s=5, acquire_s=5, prepare_s=5, decide_s=1, apply_s=1, grace_s=5, sweep_s=60)
ROOT = os.geteuid() == 0  # whoever is not is told at the end of the run what it was without: tests/conftest.py


@contextlib.contextmanager
def disk(at: Path, size: str) -> Iterator[Path]:
    at.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0777", "none", str(at)], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


def fill(at: Path) -> None:
    with (at / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def empty(at: Path) -> None:
    (at / "filler").unlink()


async def told_at(db: Face, when_deciding: Callable[[], None]) -> str:
    """What the caller is told of a transaction that finds the disk full as it decides."""

    def notice(notice: Notice) -> None:
        if (notice.point, notice.what) == ("P5", "deciding"):
            when_deciding()

    context(db).observer = Watching(notice)
    try:
        async with db.transaction("pay") as tx:
            await tx.move("a", "b", 30)
    except (TransactionAborted, JournalUnavailable):
        return "aborted"
    except InDoubt:
        return "in doubt"
    return "committed"


def is_true(told: str, pair: list[Database], journal: str | None) -> None:
    with Coordinator({d.name: d.url for d in pair}, journal=journal, settings=BRIEF, recovery=False) as db:
        came = recovered(db, pair)
        assert told != "committed" and (told == "in doubt" or not came), f"told {told}, and it was {came}"
        with db.transaction() as tx:
            tx["a"].execute("update accounts set balance = balance - 30 where id = 0")
            tx["b"].execute("update accounts set balance = balance + 30 where id = 0")
        assert balances(pair) == ([40, 160] if came else MOVED)


@pytest.mark.parametrize("where", ["journal", "commit point"])
async def test_a_file_that_cannot_grow_decides_nothing(where: str, mode: str, request: Any, tmp_path: Path) -> None:
    pair = databases("sqlite+postgres", request, tmp_path)
    own = f"sqlite:///{tmp_path}/journal.db" if where == "journal" else None
    async with opened(mode, pair, journal=own, settings=BRIEF) as db:
        journal: Any = context(db).journal
        rows = journal._decision_rows
        # The row itself finds room on a page that is there; what comes with it does not.
        journal._decision_rows = lambda decision: (
            "PRAGMA main.max_page_count = 1",
            *rows(decision),
            "CREATE TABLE big AS SELECT zeroblob(1000000) AS bytes",
        )
        told = await told_at(db, lambda: None)
    is_true(told, pair, own)


if ROOT:

    @pytest.mark.parametrize("where", ["journal", "commit point"])
    async def test_a_full_disk_decides_nothing(where: str, mode: str, request: Any, tmp_path: Path) -> None:
        with disk(tmp_path / "small", "2m") as small:
            other = tmp_path / "other"
            other.mkdir()
            pair = [
                *databases("sqlite", request, small if where == "commit point" else other),
                *[d for d in databases("sqlite+postgres", request, tmp_path) if d.name == "b"],
            ]
            own = f"sqlite:///{small}/journal.db" if where == "journal" else None
            async with opened(mode, pair, journal=own, settings=BRIEF) as db:
                told = await told_at(db, lambda: fill(small))
                empty(small)
            is_true(told, pair, own)

    async def test_a_full_disk_under_postgres_decides_nothing(mode: str, request: Any, tmp_path: Path) -> None:
        """Its log has room, its tables have not."""
        pair = databases("sqlite+sqlite", request, tmp_path)
        with PostgresServer() as server, disk(Path(server.directory) / "small", "16m") as small:
            (small / "tables").mkdir()
            os.chown(small / "tables", *owner(server.data))
            url = server.url("postgres")
            with psycopg.connect(url, autocommit=True) as admin:
                admin.execute(f"create tablespace small location '{small}/tables'")
                admin.execute("create database journal tablespace small")
            own = replace(parse_url(url), database="journal").secret()
            async with opened(mode, pair, journal=own, settings=BRIEF) as db:
                told = await told_at(db, lambda: fill(small))
                empty(small)
            is_true(told, pair, own)
            assert told == "aborted", "PostgreSQL says that it surely did not"


def owner(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_uid, found.st_gid
