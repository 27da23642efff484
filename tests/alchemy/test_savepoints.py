"""Savepoints: the one exception to I16, and its bounds. An error that lies wholly behind a savepoint which the server
has rolled back to, and said so, dooms nothing; nothing else lifts a doom.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any, Self

import psycopg
import pytest
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.sql import elements

from alchemy.world import ASYNC_PSYCOPG, ASYNCMY, ASYNCPG, MIX, PSYCOPG, URLS, WAYS, Account, Way, World, opened
from kit import _mariadb, until
from nodoubt import BranchDoomed, TransactionAborted, UsageError
from nodoubt.alchemy.session import BranchSession
from nodoubt.engine import attempt as attempts
from nodoubt.ports import Refused, SavepointStep
from nodoubt.resources.mariadb import MariaDBResource
from nodoubt.script import Script
from nodoubt.testing.servers import MariaDBServer
from nodoubt.url import parse_url

pytestmark = pytest.mark.anyio

POSTGRES = [way for way in WAYS if way.kind == "postgres"]
MARIADB = [way for way in WAYS if way.kind == "mariadb"]
SQLITE = [way for way in WAYS if way.kind == "sqlite"]
ASYNC = [way for way in WAYS if way.mode == "async"]


async def add(world: World, target: Any, number: int) -> None:
    await world.wait(target.execute(insert(Account), {"id": number, "balance": number}))


async def ids(world: World, target: Any) -> list[int]:
    rows = await world.wait(target.execute(select(Account.id).order_by(Account.id)))
    return [row[0] for row in rows]


@contextlib.asynccontextmanager
async def failing(error: type[Exception] = IntegrityError) -> AsyncIterator[None]:
    with pytest.raises(error):
        yield


# -- what stays and what goes


@pytest.mark.parametrize("way", MIX, ids=str)
async def test_what_is_released_stays_and_what_is_rolled_back_to_is_gone(world: World) -> None:
    async with world.transaction() as tx:
        connection = tx["a"].connection
        await add(world, connection, 2)
        async with world.within(connection.begin_nested()):
            await add(world, connection, 3)
        async with world.within(connection.begin_nested()) as nested:
            await add(world, connection, 4)
            await world.wait(nested.rollback())
        async with world.within(connection.begin_nested()):
            await add(world, connection, 5)
            async with world.within(connection.begin_nested()) as inner:
                await add(world, connection, 6)
                await world.wait(inner.rollback())
            await add(world, connection, 7)
        assert await ids(world, connection) == [0, 1, 2, 3, 5, 7]
    assert world.a.total() == 200 + 2 + 3 + 5 + 7 and world.committed() and world.left_clean()


async def test_an_error_behind_a_savepoint_is_undone_and_the_rest_commits(world: World) -> None:
    async with world.transaction() as tx:
        connection = tx["a"].connection
        await add(world, connection, 2)
        for _ in range(2):
            with pytest.raises(IntegrityError):
                async with world.within(connection.begin_nested()):
                    await add(world, connection, 3)
                    await add(world, connection, 1)
        assert await ids(world, connection) == [0, 1, 2]
        async with world.within(connection.begin_nested()):
            await add(world, connection, 4)
            with pytest.raises(IntegrityError):
                async with world.within(connection.begin_nested()):
                    await add(world, connection, 5)
                    await add(world, connection, 1)
            await add(world, connection, 6)
    assert world.a.total() == 200 + 2 + 4 + 6 and world.committed() and world.left_clean()


@pytest.mark.parametrize("way", MIX, ids=str)
async def test_an_error_behind_two_savepoints_is_undone_by_the_outer_one(world: World) -> None:
    async with world.transaction() as tx:
        connection = tx["a"].connection
        with pytest.raises(IntegrityError):
            async with world.within(connection.begin_nested()):
                await add(world, connection, 2)
                async with world.within(connection.begin_nested()):
                    await add(world, connection, 1)
        await add(world, connection, 3)
    assert world.a.total() == 203 and world.committed()


async def test_an_orm_session_s_savepoint_undoes_a_failed_flush(world: World) -> None:
    async with world.transaction() as tx:
        session = tx["a"].session()
        session.add(Account(id=2, balance=2))
        with pytest.raises(IntegrityError):
            async with world.within(session.begin_nested()):
                session.add_all([Account(id=3, balance=3), Account(id=1, balance=9)])
                await world.wait(session.flush())
        async with world.within(session.begin_nested()):
            session.add(Account(id=4, balance=4))
        session.add(Account(id=5, balance=5))
    assert world.a.total() == 200 + 2 + 4 + 5 and world.committed() and world.left_clean()


@pytest.mark.parametrize("way", [*URLS[::3], ASYNCPG], ids=str)
async def test_savepoints_that_are_still_open_at_the_end_are_part_of_the_work(world: World) -> None:
    async with world.transaction() as tx:
        session = tx["a"].session()
        nested = session.begin_nested()
        await world.wait(nested.start() if world.way.mode == "async" else None)
        session.add(Account(id=2, balance=5))
        await world.wait(session.flush())
        await add(world, tx["a"].connection, 3)
    assert world.a.total() == 208 and world.committed() and world.left_clean()


CLOSES = ["leaves its block", "close", "reset", "close in the savepoint's block", "two savepoints"]


async def close_behind_a_savepoint(world: World, tx: Any, how: str) -> None:
    """The session's half of a transfer of 50."""
    session = tx["a"].session()

    async def debit() -> None:
        account = await world.wait(session.get(Account, 0))
        account.balance -= 50

    if how == "close in the savepoint's block":
        async with world.within(session.begin_nested()):
            await debit()
            await world.wait(session.close())
        return
    async with world.within(session) if how == "leaves its block" else contextlib.nullcontext():
        for _ in range(2 if how == "two savepoints" else 1):
            nested = session.begin_nested()
            await world.wait(nested.start() if world.way.mode == "async" else None)
        await debit()
        if how == "two savepoints":
            await world.wait(session.flush())
        if how != "leaves its block":
            await world.wait(session.reset() if how == "reset" else session.close())


@pytest.mark.parametrize("how", CLOSES)
@pytest.mark.parametrize("way", MIX, ids=str)
async def test_a_session_that_is_closed_behind_its_savepoint_leaves_its_work(world: World, how: str) -> None:
    async with world.transaction() as tx:
        await close_behind_a_savepoint(world, tx, how)
        await add(world, tx["a"], 2)
    assert world.a.balance(0) == 50 and world.a.total() == 152 and world.committed() and world.left_clean()


@pytest.mark.parametrize("way", URLS[:2], ids=str)
async def test_mutant_a_close_that_leaves_savepoints_to_sqlalchemy_commits_the_other_half_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BranchSession, "_write", BranchSession.flush)
    async with world.transaction() as tx:
        await close_behind_a_savepoint(world, tx, "close")
    assert world.committed() and world.a.balance(0) == 100, "the other half is there, and this one is not"


@pytest.mark.parametrize("way", [SQLITE[0], POSTGRES[0], MARIADB[0]], ids=str)
async def test_staged_work_with_an_undone_savepoint_commits_by_name(world: World) -> None:
    async with world.within(world.db.begin_distributed("order-7")) as tx:
        await add(world, tx["a"], 2)
        with pytest.raises(IntegrityError):
            async with world.within(tx["a"].connection.begin_nested()):
                await add(world, tx["a"], 3)
                await add(world, tx["a"], 1)
    await world.wait(world.db.commit_distributed("order-7"))
    assert world.a.total() == 202 and world.left_clean()


# -- what dooms for good


async def doomed(world: World, tx: Any) -> None:
    """No statement and no savepoint is possible any more."""
    with pytest.raises(BranchDoomed):
        await world.wait(tx["a"].execute(select(1)))
    with pytest.raises(BranchDoomed):
        async with world.within(tx["a"].connection.begin_nested()):
            raise AssertionError


@pytest.mark.parametrize("way", MIX, ids=str)
async def test_an_error_before_the_savepoint_is_not_undone_by_it(world: World) -> None:
    with pytest.raises(TransactionAborted):
        async with world.transaction() as tx:
            connection = tx["a"].connection
            async with world.within(connection.begin_nested()):
                await add(world, connection, 2)
            with pytest.raises(IntegrityError):
                await add(world, connection, 1)
            await doomed(world, tx)
    assert world.a.total() == 200 and not world.committed() and world.left_clean()


@pytest.mark.parametrize("way", [*URLS[::3], PSYCOPG, ASYNC_PSYCOPG, ASYNCMY], ids=str)
async def test_a_refusal_of_ours_behind_a_savepoint_is_not_undone(world: World) -> None:
    async def refused_text(tx: Any) -> None:
        await world.wait(tx["a"].execute(text("COMMIT")))

    async def refused_commit(tx: Any) -> None:
        await world.wait(tx["a"].connection.commit())

    async def wish(tx: Any) -> None:
        await world.wait(tx["a"].connection.rollback())
        raise UsageError

    for spoil in (refused_text, refused_commit, wish):
        with pytest.raises(TransactionAborted):
            async with world.transaction() as tx:
                await add(world, tx["a"], 2)
                with pytest.raises(UsageError):
                    async with world.within(tx["a"].connection.begin_nested()):
                        await spoil(tx)
                await doomed(world, tx)
        assert world.a.total() == 200 and not world.committed(), spoil.__name__


@pytest.mark.parametrize("way", [URLS[0], POSTGRES[0], MARIADB[0]], ids=str)
async def test_mutant_a_savepoint_that_undoes_everything_makes_a_refused_commit_commit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "_is_answer", lambda *_: True)
    async with world.transaction() as tx:
        await add(world, tx["a"], 2)
        with pytest.raises(UsageError):
            async with world.within(tx["a"].connection.begin_nested()):
                await world.wait(tx["a"].execute(text("COMMIT")))
    assert world.a.total() == 202 and world.committed(), "whoever was refused has been believed all the same"


@pytest.mark.parametrize("way", [way for way in ASYNC if way.kind != "sqlite"], ids=str)
async def test_a_statement_that_was_cancelled_behind_a_savepoint_is_not_undone(world: World) -> None:
    wait = {"postgres": "select pg_sleep(60)", "mariadb": "select sleep(2)"}[world.way.kind]
    with pytest.raises(TransactionAborted):
        async with world.transaction() as tx:
            await add(world, tx["a"], 2)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1), tx["a"].connection.begin_nested():
                    await tx["a"].execute(text(wait))
            await doomed(world, tx)
    assert world.a.total() == 200 and not world.committed()
    until(world.left_clean)  # MariaDB sleeps to the end, whoever has gone


@pytest.mark.parametrize("way", POSTGRES, ids=str)
async def test_a_connection_that_is_lost_behind_a_savepoint_is_not_undone(world: World) -> None:
    with pytest.raises(TransactionAborted):
        async with world.transaction() as tx:
            pid = (await world.wait(tx["a"].execute(select(func.pg_backend_pid())))).scalar()
            with pytest.raises((DBAPIError, TransactionAborted)):
                async with world.within(tx["a"].connection.begin_nested()):
                    world.a.query("select pg_terminate_backend(?)", pid)
                    await world.wait(tx["a"].execute(select(1)))
            await doomed(world, tx)
    assert world.a.total() == 200 and not world.committed()
    until(world.left_clean)


@pytest.mark.parametrize("way", SQLITE, ids=str)
async def test_a_transaction_that_sqlite_has_rolled_back_has_no_savepoint_to_go_back_to(world: World) -> None:
    with pytest.raises(TransactionAborted):
        async with world.transaction() as tx:
            await add(world, tx["a"], 2)
            with pytest.raises(IntegrityError):
                async with world.within(tx["a"].connection.begin_nested()):
                    await world.wait(tx["a"].execute(text("insert or rollback into accounts values (1, 1)")))
            await doomed(world, tx)
    assert world.a.total() == 200 and not world.committed() and world.left_clean()


@pytest.mark.parametrize("way", [URLS[0], POSTGRES[0], MARIADB[0], MARIADB[1]], ids=str)
async def test_going_back_to_a_savepoint_that_fails_dooms_for_good(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an error before it, and with one: that one comes out then."""
    resource = world.db._ctx.participants["a"].resource

    def fails(*_: Any) -> Script[None]:
        raise Refused("the server does not know it")
        yield

    for error in (False, True):
        with pytest.raises(TransactionAborted):
            async with world.transaction() as tx:
                await add(world, tx["a"], 2)
                with monkeypatch.context() as patch, pytest.raises(IntegrityError if error else Exception) as caught:
                    async with world.within(tx["a"].connection.begin_nested()) as nested:
                        patch.setattr(type(resource), "savepoint", fails)
                        await add(world, tx["a"], 1 if error else 3)
                        await world.wait(nested.rollback())
                assert error or "does not know it" in str(caught.value)
                await doomed(world, tx)
        assert world.a.total() == 200 and not world.committed()
    assert world.left_clean()


@pytest.mark.parametrize("way", [URLS[0], POSTGRES[0], MARIADB[0]], ids=str)
async def test_a_savepoint_that_nobody_set_and_a_name_that_is_none_are_refused(world: World) -> None:
    back_to, set_to = elements.RollbackToSavepointClause, elements.SavepointClause
    clauses: list[tuple[Any, str]] = [(back_to, "nobody"), (set_to, "x; commit"), (set_to, "x" * 64)]
    clauses += [(set_to, "NoDoubt_branch"), (set_to, "")]  # SQLite's prepare goes back to the first of these
    for clause, name in clauses:
        with pytest.raises(TransactionAborted):
            async with world.transaction() as tx:
                await add(world, tx["a"], 2)
                with pytest.raises(UsageError, match="savepoint"):
                    await world.wait(tx["a"].execute(clause(name)))
                await doomed(world, tx)
        assert world.a.total() == 200 and not world.committed()


@pytest.mark.parametrize("way", [URLS[0], POSTGRES[0], MARIADB[0]], ids=str)
async def test_a_rollback_that_is_asked_for_while_the_server_goes_back_to_a_savepoint_stands(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(world.db._ctx.participants["a"].resource)
    honest = kind.savepoint
    with pytest.raises(TransactionAborted, match=r"given up by connection.rollback\(\)|UNIQUE|uplicate"):
        async with world.transaction() as tx:
            connection = tx["a"].connection

            def meanwhile(*args: Any) -> Script[None]:
                if args[3] is SavepointStep.BACK:
                    connection.rollback()
                yield from honest(*args)

            monkeypatch.setattr(kind, "savepoint", meanwhile)
            await add(world, connection, 2)
            with pytest.raises(IntegrityError):
                async with world.within(connection.begin_nested()):
                    await add(world, connection, 1)
            await doomed(world, tx)
    assert world.a.total() == 200 and not world.committed()


@pytest.mark.parametrize("way", [URLS[0], POSTGRES[0], MARIADB[0]], ids=str)
async def test_names_of_savepoints_are_the_same_in_small_and_capital_letters(world: World) -> None:
    """As two of the servers take them: to go back to one must not be to go back to another."""
    with pytest.raises(TransactionAborted):
        async with world.transaction() as tx:
            for name in ("S", "s"):
                with contextlib.nullcontext() if name == "S" else pytest.raises(UsageError, match="there is a savep"):
                    await world.wait(tx["a"].execute(elements.SavepointClause(name)))  # type: ignore[no-untyped-call]
    assert not world.committed()


# -- locks


class Rival:
    """A stranger who holds row 1 of `a`, and in a thread of its own wants row 0 too."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        where = parse_url(self.world.a.url)
        if where.kind == "postgres":
            self.connection: Any = psycopg.connect(where.secret())
            self.connection.execute("set deadlock_timeout = '60s'")  # so that it is never the one who looks
        else:
            self.connection = _mariadb(where)
            self.connection.begin()
        self.run("update accounts set balance = balance where id = 1")
        return self

    def run(self, sql: str) -> None:
        cursor = self.connection.cursor()
        cursor.execute(sql)

    def want_the_other(self) -> None:
        self.thread = threading.Thread(target=self.run, args=("update accounts set balance = balance where id = 0",))
        self.thread.start()
        until(self.waits)

    def waits(self) -> bool:
        if self.world.way.kind == "postgres":
            return bool(self.world.a.query("select 1 from pg_locks where not granted"))
        # Not information_schema.innodb_trx: it shows a copy that is not renewed while somebody keeps asking.
        return "TRX HAS BEEN WAITING" in str(self.world.a.query("show engine innodb status")[0][2])

    def weigh(self) -> None:
        """InnoDB undoes the lighter of two: let it not be this one."""
        for number in range(100, 120):
            self.run(f"insert into accounts values ({number}, 0)")

    def __exit__(self, *_: object) -> None:
        if self.thread is not None:
            self.thread.join(30)
        self.connection.rollback()
        self.connection.close()


async def deadlock(world: World, tx: Any, rival: Rival) -> Any:
    """The branch, with row 0 from before a savepoint, wants row 1 behind it."""
    await world.wait(tx["a"].execute(update(Account).where(Account.id == 0).values(balance=1)))
    async with world.within(tx["a"].connection.begin_nested()):
        await add(world, tx["a"], 3)
        rival.want_the_other()
        await world.wait(tx["a"].execute(update(Account).where(Account.id == 1).values(balance=1)))


@pytest.mark.parametrize("way", POSTGRES[:3], ids=str)
async def test_a_deadlock_behind_a_savepoint_is_undone_on_postgresql(world: World) -> None:
    """The server undoes exactly what came after the savepoint, and row 0 is still ours."""
    with Rival(world) as rival:
        async with world.transaction() as tx:
            await world.wait(tx["a"].execute("set local deadlock_timeout = '10ms'"))
            with (
                pytest.raises(OperationalError, match="deadlock detected")
                if world.way.mode == "sync"
                else (pytest.raises(DBAPIError, match="deadlock detected"))
            ):
                await deadlock(world, tx, rival)
            assert await ids(world, tx["a"].connection) == [0, 1]
    assert world.a.query("select balance from accounts order by id") == [(1,), (100,)] and world.committed()
    assert world.left_clean()


@pytest.mark.parametrize("way", MARIADB, ids=str)
async def test_a_deadlock_behind_a_savepoint_dooms_on_mariadb(world: World) -> None:
    """InnoDB has undone all of the branch, row 0 included: to go on would commit the other half alone."""
    with Rival(world) as rival:
        rival.weigh()
        with pytest.raises(TransactionAborted):
            async with world.transaction() as tx:
                with pytest.raises(OperationalError, match="Deadlock found"):
                    await deadlock(world, tx, rival)
                await doomed(world, tx)
    assert world.a.total() == 200 and not world.committed()
    until(world.left_clean)


@pytest.mark.parametrize("way", MARIADB[:1], ids=str)
async def test_mutant_that_takes_a_deadlock_for_undone_runs_into_the_server_s_own_rule(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second line of defence: without the doom the branch looks sound, and the server still does not prepare it."""

    def believes(*_: Any) -> Script[None]:
        return
        yield

    with Rival(world) as rival:
        rival.weigh()
        with pytest.raises(TransactionAborted, match="rolled back everywhere"):
            async with world.transaction() as tx:
                savepoint = MariaDBResource.savepoint
                with pytest.raises(OperationalError, match="Deadlock found"):
                    await world.wait(tx["a"].execute(update(Account).where(Account.id == 0).values(balance=1)))
                    async with world.within(tx["a"].connection.begin_nested()):
                        rival.want_the_other()
                        monkeypatch.setattr(MariaDBResource, "savepoint", believes)
                        await world.wait(tx["a"].execute(update(Account).where(Account.id == 1).values(balance=1)))
                monkeypatch.setattr(MariaDBResource, "savepoint", savepoint)
                await world.wait(tx["a"].execute(select(1)))
    assert world.a.total() == 200 and not world.committed()


async def lock_timeout(world: World, tx: Any) -> None:
    await world.wait(tx["a"].execute(update(Account).where(Account.id == 0).values(balance=1)))
    async with world.within(tx["a"].connection.begin_nested()):
        await add(world, tx["a"], 3)
        wants = "set statement innodb_lock_wait_timeout=1 for update accounts set balance = 1 where id = 1"
        await world.wait(tx["a"].execute(text(wants)))


@pytest.mark.parametrize("way", [MARIADB[0], MARIADB[3]], ids=str)
async def test_a_lock_that_did_not_come_in_time_is_undone_on_mariadb(world: World) -> None:
    with Rival(world):
        async with world.transaction() as tx:
            with pytest.raises(OperationalError, match="Lock wait timeout"):
                await lock_timeout(world, tx)
            await add(world, tx["a"], 4)
    assert world.a.query("select balance from accounts order by id") == [(1,), (100,), (4,)] and world.committed()
    assert world.left_clean()


@pytest.fixture
def rolling_back_on_timeouts(request: Any) -> Any:
    """A server that undoes the whole transaction then, in the place of the shared one."""
    with MariaDBServer({"innodb_rollback_on_timeout": "ON"}) as server:
        plain = request.getfixturevalue

        class Asking:
            def getfixturevalue(self, name: str) -> Any:
                return server if name == "mariadb" else plain(name)

        yield Asking()


async def test_where_a_timeout_undoes_all_of_it_there_is_no_savepoint_to_go_back_to(
    rolling_back_on_timeouts: Any, tmp_path: Any
) -> None:
    async with opened(Way("mariadb", "sync"), rolling_back_on_timeouts, tmp_path) as world:
        with Rival(world), pytest.raises(TransactionAborted):
            async with world.transaction() as tx:
                with pytest.raises(OperationalError, match="Lock wait timeout"):
                    await lock_timeout(world, tx)
                await doomed(world, tx)
        assert world.a.total() == 200 and not world.committed()


# -- by text


@pytest.mark.parametrize("way", [URLS[0], POSTGRES[0], MARIADB[0]], ids=str)
async def test_a_savepoint_by_text_is_refused_also_under_a_name_of_sqlalchemy_s(world: World) -> None:
    for control in ("ROLLBACK TO SAVEPOINT sa_savepoint_1", "RELEASE SAVEPOINT sa_savepoint_1", "SAVEPOINT x"):
        with pytest.raises(TransactionAborted):
            async with world.transaction() as tx:
                with pytest.raises(UsageError):
                    async with world.within(tx["a"].connection.begin_nested()):
                        await add(world, tx["a"], 2)
                        await world.wait(tx["a"].connection.exec_driver_sql(control))
                await doomed(world, tx)
        assert world.a.total() == 200 and not world.committed()
