"""A MariaDB branch whose preparing session still lives: the server answers XAER_NOTA, the very code of "already done".

Such a session is what a process leaves that was stopped, cut off or killed between its XA PREPARE and the end of its
connection. Whoever finishes the transaction from another process must end that session, and no other, and then the
branch (I7). The resource's own half of this is in `tests/mariadb/test_mariadb_recovery.py`; a process that is
really stopped there, in `test_stalled_writers.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import nodoubt.drivers.pymysql
from kit import Database, Face, opened
from nodoubt import Settings, State
from nodoubt.ports import Work
from nodoubt.resources.mariadb import MariaDBResource
from nodoubt.script import Script, Watch, drive
from nodoubt.testing.proxy import TcpProxy
from nodoubt.url import parse_url
from nodoubt.xid import Xid
from traps.scenes import MOVED, UNTOUCHED, at_rest, balances, context, databases, joined, resource_of

pytestmark = pytest.mark.anyio
IMPATIENT = Settings(connect_s=5, acquire_s=5, prepare_s=2, decide_s=2, apply_s=0.5, grace_s=5, sweep_s=60)


@pytest.fixture
def pair(request: Any, tmp_path: Path) -> list[Database]:
    """The journal, and the commit point, are in a; the branch in b is held."""
    return databases("sqlite+mariadb", request, tmp_path)


@dataclass
class Holder:
    """A connection that has prepared a branch of ours and stays."""

    session: Any

    def alive(self, database: Database) -> bool:
        sql = "select 1 from information_schema.processlist where id = ?"
        return bool(database.query(sql, self.session.connection_id))


@contextlib.contextmanager
def holding(db: Face, attempt: str, database: Database, url: str) -> Iterator[Holder]:
    """Take the staged branch away and prepare the same one again, over `url`, on a connection that stays open."""
    xid = Xid(context(db).cluster, attempt, 1)
    for format_id, length, _, both in database.query("xa recover"):
        text = both.decode() if isinstance(both, bytes) else both
        if text[:length] == xid.gtrid:
            database.query(f"xa rollback '{text[:length]}','{text[length:]}',{format_id}")
    resource = MariaDBResource("b", parse_url(database.url).database)
    session: Any = nodoubt.drivers.pymysql.connect(parse_url(url))
    work = Work(xid, context(db).epoch.number)
    with ThreadPoolExecutor() as executor:

        def run(script: Script[Any]) -> None:
            drive(script, executor=executor, watch=Watch())

        run(resource.begin(session, work))
        run(resource.execute(session, work, "update accounts set balance = balance + 30 where id = 0", None))
        run(resource.prepare(session, work))
    try:
        yield Holder(session)
    finally:
        session.kill()
        session.close()


async def staged(db: Face) -> str:
    context(db).participants["b"].lingers = False  # the session that holds it shall be the test's
    async with db.staged("order") as tx:
        await tx.move("a", "b", 30)
    attempt: str = tx.handle.attempt
    return attempt


@pytest.mark.parametrize(
    ("verb", "how"), [("commit", "lives"), ("commit", "half-open"), ("commit", "killed"), ("rollback", "half-open")]
)
async def test_a_transaction_is_finished_from_another_process_whatever_the_preparing_session_does(
    verb: str, how: str, mode: str, pair: list[Database]
) -> None:
    with TcpProxy.to(pair[1].url) as proxy:
        async with opened(mode, pair) as db:
            attempt = await staged(db)
            with holding(db, attempt, pair[1], proxy.url_for(pair[1].url)) as holder:
                assert holder.alive(pair[1])
                if how == "half-open":
                    proxy.half_open()
                    assert holder.alive(pair[1])
                elif how == "killed":
                    holder.session.kill()
                async with joined(mode, pair) as other:
                    finish = other.commit_distributed if verb == "commit" else other.rollback_distributed
                    result = await finish("order")
                    assert result.complete, "a branch was left to recovery"
                    assert result.state is (State.COMMITTED if verb == "commit" else State.ABORTED)
                assert not holder.alive(pair[1])
    assert balances(pair) == (MOVED if verb == "commit" else UNTOUCHED) and at_rest(pair)


@pytest.mark.parametrize("verb", ["commit", "rollback"])
async def test_a_sweep_ends_the_session_that_holds_a_decided_branch(verb: str, mode: str, pair: list[Database]) -> None:
    async with opened(mode, pair) as db:
        attempt = await staged(db)
        with holding(db, attempt, pair[1], pair[1].url):
            async with joined(mode, pair, settings=IMPATIENT) as other:
                # The decision stands, and then the process that made it does nothing more.
                with resource_of(other, "b", NeverFrees):
                    finish = other.commit_distributed if verb == "commit" else other.rollback_distributed
                    assert not (await finish("order")).complete
            report = await db.recover(grace=0)
            assert report.clean and (report.committed, report.rolled_back) == ((1, 0) if verb == "commit" else (0, 1))
    assert balances(pair) == (MOVED if verb == "commit" else UNTOUCHED) and at_rest(pair)


class NeverFrees(MariaDBResource):
    """The mutant of I7's second half: lists the branch, tries again, and leaves its session alone."""

    def free(self, session: Any, prepared: Any) -> Script[bool]:
        yield from ()
        return False


class TakesUnknownForDone(MariaDBResource):
    """The mutant of I7's first half: XAER_NOTA means that somebody else has done it."""

    def commit_prepared(self, session: Any, prepared: Any, **rows: Any) -> Script[None]:
        with contextlib.suppress(Exception):
            yield from super().commit_prepared(session, prepared, **rows)


async def test_a_session_that_cannot_be_ended_leaves_the_branch_to_recovery_and_the_caller_is_told(
    mode: str, pair: list[Database]
) -> None:
    async with opened(mode, pair, settings=IMPATIENT) as db:
        attempt = await staged(db)
        with holding(db, attempt, pair[1], pair[1].url), resource_of(db, "b", NeverFrees):
            result = await db.commit_distributed("order")
            assert result.state is State.COMMITTED and not result.complete
            assert not (await db.status("order")).complete
            assert pair[1].balance() == 100 and pair[1].prepared() != []
        assert (await db.recover(grace=0)).clean
        await db.recover(grace=0)
        assert (await db.status("order")).complete
    assert balances(pair) == MOVED and at_rest(pair)


async def test_taking_unknown_for_done_loses_half_of_a_commit(pair: list[Database]) -> None:
    """The mutant: the record ends, and the branch that is still prepared is nobody's: a human must look."""
    async with opened("sync", pair) as db:
        attempt = await staged(db)
        with holding(db, attempt, pair[1], pair[1].url), resource_of(db, "b", TakesUnknownForDone):
            assert (await db.commit_distributed("order")).complete, "the mutant says that all is done"
            assert balances(pair) == [70, 100]
        report = await db.recover(grace=0)
        assert report.quarantined == 1 and not report.committed
        await let_go(db)


async def let_go(db: Face) -> None:
    """What the mutant has left must not meet the next test: the server is shared."""
    (entry,) = await db.quarantined()
    database = db.databases["b"]
    for format_id, length, _, both in database.query("xa recover"):
        text = both.decode() if isinstance(both, bytes) else both
        if entry.attempt in text:
            database.query(f"xa rollback '{text[:length]}','{text[length:]}',{format_id}")
