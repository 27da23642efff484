"""A user's own engine as a resource: what is refused, whose connections do what, and how they come back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pymysql
import pytest
from sqlalchemy import NullPool, StaticPool, create_engine, event, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine

from alchemy.world import (
    ASYNCMY,
    ASYNCPG,
    ENGINES,
    PSYCOPG,
    PYMYSQL,
    Account,
    Opening,
    Way,
    World,
    engine_over,
    inner,
    opened,
)
from kit import QUICK, Database, make_database, until
from nodoubt import AsyncCoordinator, Coordinator, PoolExhausted, ResourceRefused, TransactionAborted, UsageError
from nodoubt.alchemy import engines
from nodoubt.drivers.mysql_async import LentMySQLSession
from nodoubt.drivers.pymysql import LentPyMySQLSession
from nodoubt.testing.servers import MariaDBServer, PostgresServer
from nodoubt.url import parse_url

pytestmark = pytest.mark.anyio

ONE = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 5}
POSTGRES = [way for way in ENGINES if way.kind == "postgres"]
MARIADB = [way for way in ENGINES if way.kind == "mariadb"]


# -- what is refused, before anything is done


SECRET = "hunter2"


@pytest.mark.parametrize(
    ("make", "coordinator", "message"),
    [
        (lambda: create_engine("sqlite:///shop.db"), Coordinator, "give the URL sqlite:///shop.db in its place"),
        (
            lambda: create_async_engine(f"postgresql+asyncpg://u:{SECRET}@h/d"),
            Coordinator,
            r"Coordinator takes an Engine \(made by create_engine\), not AsyncEngine",
        ),
        (
            lambda: create_engine(f"postgresql+psycopg://u:{SECRET}@h/d"),
            AsyncCoordinator,
            r"takes an AsyncEngine \(made by create_async_engine\), not Engine",
        ),
        (
            lambda: create_async_engine(f"postgresql+asyncpg://u:{SECRET}@h/d").sync_engine,
            Coordinator,
            r"postgresql\+asyncpg cannot take part in Coordinator: use one of postgresql\+psycopg",
        ),
        (
            lambda: create_engine(f"mariadb+pymysql://u:{SECRET}@h/d", poolclass=StaticPool),
            Coordinator,
            "StaticPool gives one connection to several users",
        ),
        (
            lambda: create_engine(f"mariadb+pymysql://u:{SECRET}@h/d").execution_options(isolation_level="AUTOCOMMIT"),
            Coordinator,
            r"give it to create_engine\(\)",
        ),
        (
            lambda: create_engine(
                f"postgresql+psycopg://u:{SECRET}@h/d",
                execution_options={"postgresql_readonly": True, "logging_token": "x"},
            ),
            Coordinator,
            "^postgresql_readonly as an execution option .* execute SET TRANSACTION as the branch's first statement",
        ),
        (lambda: create_engine(f"mariadb+pymysql://u:{SECRET}@h"), Coordinator, "names no database"),
        (lambda: 42, Coordinator, "a resource is a URL or a SQLAlchemy engine, not int"),
    ],
)
def test_an_engine_that_cannot_take_part_is_refused_with_what_to_give_instead(
    make: Callable[[], Any], coordinator: Any, message: str
) -> None:
    for resources in (make(), {"a": make(), "b": "sqlite:///b.db"}):
        with pytest.raises(UsageError, match=message) as caught:
            coordinator(resources)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("way", [PSYCOPG, ASYNCMY], ids=str)
async def test_an_unreachable_engine_is_told_without_its_password(way: Way, opening: Opening) -> None:
    world = await opening(way)
    where = parse_url(world.a.url)
    nowhere = replace(where, port=1, password=SECRET)
    engine = engine_over(Database("a", nowhere.secret()), way.driver, way.mode)
    make: Any = Coordinator if way.mode == "sync" else AsyncCoordinator
    db = make({"a": engine, "b": world.b.url}, journal="b", recovery=False)
    with pytest.raises(Exception, match="cannot be reached") as caught:
        await world.wait(db.setup())
    assert SECRET not in str(caught.value)
    await world.wait(db.close())


async def test_a_charset_that_would_garble_names_is_refused(opening: Opening) -> None:
    def latin(database: Database) -> Any:
        return create_engine(engine_over(database, "pymysql").url.update_query_dict({"charset": "latin1"}))

    with pytest.raises(ResourceRefused, match=r"put \?charset=utf8mb4 into the engine's URL"):
        await opening(Way("mariadb", "sync", "pymysql"), engine=latin)


# -- its connections


@pytest.mark.parametrize("way", ENGINES, ids=str)
async def test_all_connections_are_made_as_the_engine_makes_them_and_only_work_uses_its_pool(
    way: Way, opening: Opening
) -> None:
    made: list[object] = []
    out: list[object] = []

    def watched(database: Database) -> Any:
        engine = engine_over(database, way.driver, way.mode, **ONE)
        event.listen(inner(engine), "connect", lambda connection, _: made.append(connection))
        event.listen(inner(engine), "checkout", lambda connection, *_: out.append(connection))
        return engine

    world = await opening(way, engine=watched)
    at_start, in_use = len(made), len(out)
    assert at_start > 0, "admission connects as the engine does"
    async with world.transaction() as tx:
        await world.wait(tx["a"].execute(update(Account).values(balance=1)))
        assert inner(world.engine).pool.checkedout() == 1
        await world.wait(world.db.recover(grace=60))
    assert len(made) == at_start + 1 and len(out) > in_use and world.a.total() == 2
    await returned(world)


async def returned(world: World) -> None:
    """What goes back on asyncio does so in a task of its own."""
    returning = getattr(world.db._ctx.participants["a"].pool, "_returning", None)
    if returning:
        await asyncio.wait(returning, timeout=10)
    assert world.pool.checkedout() == 0


@pytest.mark.parametrize("way", ENGINES, ids=str)
async def test_with_one_connection_phase_two_and_recovery_are_not_starved(way: Way, opening: Opening) -> None:
    world = await opening(way, engine=ONE)
    async with world.within(world.db.begin_distributed("order-7")) as tx:
        await world.wait(tx["a"].execute(update(Account).values(balance=1)))
        await world.wait(tx["b"].execute("update accounts set balance = 1"))
    await returned(world)
    async with world.within(world.engine.connect()) as busy:
        await world.wait(busy.execute(select(1)))
        assert world.pool.checkedout() == 1, "the user has all of them"
        assert (await world.wait(world.db.recover(grace=0))).left == 2
        assert (await world.wait(world.db.commit_distributed("order-7"))).complete
        assert (await world.wait(world.db.recover(grace=0))).clean
    assert world.a.total() == 2 and world.left_clean()


@pytest.mark.parametrize("way", [PSYCOPG, ASYNCPG], ids=str)
async def test_an_exhausted_pool_is_told_with_what_to_raise(way: Way, opening: Opening) -> None:
    world = await opening(way, engine={**ONE, "pool_timeout": 0.1})
    async with world.within(world.engine.connect()) as busy:
        await world.wait(busy.execute(select(1)))
        with pytest.raises(PoolExhausted, match="Raise its pool_size"):
            async with world.transaction() as tx:
                await world.wait(tx["a"].execute(select(1)))
    assert not world.committed()


@pytest.mark.parametrize("way", ENGINES, ids=str)
async def test_a_connection_comes_back_as_it_went_however_the_block_ended(way: Way, opening: Opening) -> None:
    world = await opening(way, engine=ONE)

    async def well(_: Any) -> None:
        return

    async def exception(_: Any) -> None:
        raise KeyError

    async def statement(tx: Any) -> None:
        await world.wait(tx["a"].execute(insert(Account), {"id": 0, "balance": 0}))

    async def reads(tx: Any) -> None:
        await world.wait(tx["a"].execute(select(1)))

    ids = set()
    for end in (well, exception, statement, reads):
        with contextlib.suppress(KeyError, IntegrityError):
            async with world.transaction() as tx:
                if end is not reads:
                    await world.wait(tx["a"].execute(update(Account).values(balance=1)))
                await end(tx)
        await returned(world)
        async with world.within(world.engine.connect()) as connection:
            ids.add(await as_it_was(world, connection))
    assert len(ids) == 1, "one connection, and it was never given up"
    assert world.left_clean()


async def as_it_was(world: World, connection: Any) -> int:
    """Asserts that the user finds the connection as SQLAlchemy's users do; its id."""

    def look(one: Any) -> int:
        fairy = one.connection
        driver = fairy.driver_connection
        if world.way.kind == "postgres":
            assert one.scalar(text("show synchronous_commit")) == "on"
            assert one.scalar(text("select coalesce(current_setting('nodoubt.attempt', true), '')")) == ""
            if world.way.driver == "psycopg":
                assert driver.autocommit is False and driver.info.transaction_status.name == "INTRANS"
                assert {handler.__module__.split(".")[0] for handler in driver._notice_handlers} == {"sqlalchemy"}
            else:
                assert type(driver._transport.get_protocol()).__module__.startswith("asyncpg")
            return int(one.scalar(select(func.pg_backend_pid())))
        assert one.scalar(text("select @@autocommit")) == 0
        if world.way.mode == "sync":
            with pytest.raises(Exception, match="1064"):
                driver.query("select 1; select 2")
        one.execute(update(Account).where(Account.id == 1).values(balance=77))
        one.rollback()
        return int(one.scalar(select(func.connection_id())))

    found = look(connection) if world.way.mode == "sync" else await connection.run_sync(look)
    await world.wait(connection.rollback())
    assert world.a.balance(1) != 77
    return int(found)


@pytest.mark.parametrize("way", POSTGRES, ids=str)
async def test_the_user_s_own_durability_is_set_back(way: Way, opening: Opening) -> None:
    def lax(database: Database) -> Any:
        setting = {"options": "-csynchronous_commit=off"}
        if way.driver == "asyncpg":
            setting = {"server_settings": {"synchronous_commit": "off"}}  # type: ignore[dict-item]
        return engine_over(database, way.driver, way.mode, connect_args=setting, **ONE)

    world = await opening(way, engine=lax)
    async with world.transaction() as tx:
        await world.wait(tx["a"].execute(update(Account).values(balance=1)))
    await returned(world)
    async with world.within(world.engine.connect()) as connection:
        assert (await world.wait(connection.execute(text("show synchronous_commit")))).scalar() == "off"


@pytest.mark.parametrize("way", ENGINES, ids=str)
async def test_the_engine_s_isolation_level_is_the_branch_s(way: Way, opening: Opening) -> None:
    world = await opening(way, engine={"isolation_level": "SERIALIZABLE", **ONE})
    ask = "show transaction isolation level" if way.kind == "postgres" else "select @@tx_isolation"
    for _ in range(2):
        async with world.transaction() as tx:
            level = (await world.wait(tx["a"].execute(text(ask)))).scalar()
            assert level.upper() == "SERIALIZABLE"
    assert (await world.wait(world.db.recover(grace=0))).clean


@pytest.mark.parametrize("way", [way for way in ENGINES if way.kind == "postgres"], ids=str)
async def test_the_isolation_level_outlives_a_listener_that_resets_what_comes_back(way: Way, opening: Opening) -> None:
    def resetting(database: Database) -> Any:
        engine = engine_over(database, way.driver, way.mode, isolation_level="SERIALIZABLE", **ONE)

        @event.listens_for(inner(engine), "reset")
        def reset(connection: Any, *_: object) -> None:
            connection.cursor().execute("RESET ALL")
            connection.commit()

        return engine

    world = await opening(way, engine=resetting)
    for _ in range(2):
        async with world.transaction() as tx:
            level = (await world.wait(tx["a"].execute(text("show transaction isolation level")))).scalar()
            assert level == "serializable"
        await returned(world)


@pytest.mark.parametrize("way", ENGINES, ids=str)
async def test_an_engine_that_commits_by_itself_does_not_in_a_branch(way: Way, opening: Opening) -> None:
    world = await opening(way, engine={"isolation_level": "AUTOCOMMIT", **ONE})
    with pytest.raises(KeyError):
        async with world.transaction() as tx:
            await world.wait(tx["a"].execute(update(Account).values(balance=1)))
            raise KeyError
    await returned(world)
    assert world.a.total() == 200 and not world.committed()
    async with world.within(world.engine.connect()) as connection:
        await world.wait(connection.execute(update(Account).values(balance=2)))
    assert world.a.total() == 4, "and still does for the user"


@pytest.mark.parametrize("way", [PSYCOPG, ASYNCPG, PYMYSQL, ASYNCMY], ids=str)
async def test_an_engine_alone_is_a_coordinator_s_one_resource(way: Way, request: Any, tmp_path: Path) -> None:
    only = make_database(way.kind, "a", request, tmp_path)
    engine = engine_over(only, way.driver, way.mode)
    make: Any = Coordinator if way.mode == "sync" else AsyncCoordinator
    world = World(way, only, only, engine, make(engine, recovery=False))
    await world.wait(world.db.open())
    await world.wait(world.db.setup())
    async with world.within(world.db.transaction()) as tx:
        await world.wait(tx.execute(update(Account).values(balance=1)))
        tx.session().add(Account(id=2, balance=1))
    async with world.within(world.db.begin_distributed("order-7")) as tx:
        await world.wait(tx.execute(insert(Account), {"id": 3, "balance": 1}))
    await world.wait(world.db.commit_distributed("order-7"))
    assert only.total() == 4
    await world.wait(world.db.close())
    await world.wait(engine.dispose())


@pytest.mark.parametrize("way", ENGINES, ids=str)
async def test_what_a_listener_leaves_open_on_a_connection_is_no_part_of_the_branch(way: Way, opening: Opening) -> None:
    """A handler that sets something up, and forgets to commit, would else stand in the way of the branch."""

    def careless(database: Database) -> Any:
        engine = engine_over(database, way.driver, way.mode, **ONE)

        def touch(connection: Any, *_: Any) -> None:
            cursor = connection.cursor()
            cursor.execute("select balance from accounts")
            cursor.fetchall()
            cursor.close()

        event.listen(inner(engine), "connect", touch)
        event.listen(inner(engine), "checkout", touch)
        return engine

    world = await opening(way, engine=careless)
    for _ in range(2):
        async with world.transaction() as tx:
            await world.wait(tx["a"].execute(update(Account).values(balance=Account.balance + 1)))
    assert world.a.total() == 204 and world.left_clean()


@pytest.mark.parametrize("way", [PSYCOPG, PYMYSQL], ids=str)
async def test_an_engine_without_a_pool_works_too(way: Way, opening: Opening) -> None:
    world = await opening(way, engine={"poolclass": NullPool})
    async with world.transaction() as tx:
        await world.wait(tx["a"].execute(update(Account).values(balance=1)))
    assert world.a.total() == 2 and world.committed() and world.left_clean()


@pytest.mark.parametrize("way", [PSYCOPG, ASYNCMY], ids=str)
async def test_the_journal_too_can_be_an_engine_s(way: Way, opening: Opening, request: Any, tmp_path: Path) -> None:
    """A resource's, by its name or because it is the same engine; or one of its own."""
    a = make_database(way.kind, "x", request, tmp_path)
    c = make_database("sqlite", "c", request, tmp_path)
    engine, name = engine_over(a, way.driver, way.mode, **ONE), "order 'é' 🎉"
    make: Any = Coordinator if way.mode == "sync" else AsyncCoordinator
    world = await opening(way)
    for journal, resources in ((engine, {"x": engine, "c": c.url}), ("x", {"c": c.url, "x": engine})):
        db = make(resources, journal=journal, recovery=False, settings=QUICK)
        assert db._ctx.participants["x"].holds_journal and not db._ctx.participants["c"].holds_journal
        await world.wait(db.open())
        await world.wait(db.setup())
        async with world.within(db.begin_distributed(name, reuse=True)) as tx:
            for branch in ("x", "c"):
                await world.wait(tx[branch].execute(update(Account).values(balance=Account.balance + 1)))
        assert (await world.wait(db.status(name))).name == name
        assert (await world.wait(db.commit_distributed(name))).complete
        await world.wait(db.close())
    assert a.total() == c.total() == 204 and not a.prepared()
    await world.wait(engine.dispose())


# -- prepared sessions, lost sessions, cancelled ones


@pytest.mark.parametrize("way", MARIADB, ids=str)
async def test_a_session_that_has_prepared_never_goes_back_to_the_pool(
    way: Way, opening: Opening, caplog: pytest.LogCaptureFixture
) -> None:
    gone: list[object] = []
    reset: list[object] = []

    def watched(database: Database) -> Any:
        engine = engine_over(database, way.driver, way.mode, **ONE)
        event.listen(inner(engine), "invalidate", lambda connection, *_: gone.append(connection))
        event.listen(inner(engine), "reset", lambda connection, *_: reset.append(connection))
        return engine

    world = await opening(way, engine=watched)
    async with world.within(world.db.begin_distributed("order-7")) as tx:
        await world.wait(tx["a"].execute(update(Account).values(balance=1)))
        used = tx["a"]._transaction._open.branches["a"].session._connection
    await returned(world)
    assert [getattr(one, "_connection", one) for one in gone] == [used] and reset == []
    async with world.within(world.engine.connect()) as connection:
        assert (await world.wait(connection.execute(select(1)))).scalar() == 1
    await world.wait(world.db.commit_distributed("order-7"))
    assert world.a.total() == 2 and world.left_clean()
    told = [record.getMessage() for record in caplog.records if record.name.startswith("sqlalchemy")]
    assert not told, "nothing went wrong"


@pytest.mark.parametrize("way", MARIADB, ids=str)
async def test_mutant_that_gives_a_prepared_session_back_poisons_the_user_s_pool(
    way: Way, opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_close(_: Any) -> None:
        return

    kept: list[object] = []

    def back(loan: Any) -> None:
        kept.append(loan.fairy)  # SQLAlchemy would reset a connection that it finds lost, and see that it cannot be
        world.pool._do_return_conn(loan.fairy._connection_record)

    monkeypatch.setattr(engines._Loan, "drop", back)
    monkeypatch.setattr(LentPyMySQLSession, "close", lambda _: None)
    monkeypatch.setattr(LentMySQLSession, "close", no_close)
    world = await opening(way, engine=ONE)
    async with world.within(world.db.begin_distributed("order-7")) as tx:
        await world.wait(tx["a"].execute(update(Account).values(balance=1)))
    with pytest.raises(Exception, match="1399|PREPARED"):
        async with world.within(world.engine.connect()) as connection:
            await world.wait(connection.execute(update(Account).values(balance=2)))
    monkeypatch.undo()
    until(lambda: killed(world.a))
    await world.wait(world.db.rollback_distributed("order-7"))


def killed(database: Database) -> bool:
    """The session that holds the branch has to go, or nobody could end it."""
    for (number,) in database.query("select id from information_schema.processlist where command = 'Sleep'"):
        with contextlib.suppress(pymysql.Error):
            database.query(f"kill {number}")
    return True


@pytest.mark.parametrize("way", [way for way in ENGINES if way.mode == "async"], ids=str)
async def test_a_cancelled_statement_leaves_the_pool_clean(
    way: Way, opening: Opening, caplog: pytest.LogCaptureFixture
) -> None:
    world = await opening(way, engine=ONE)
    wait = "select pg_sleep(60)" if way.kind == "postgres" else "select sleep(1)"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2), world.transaction() as tx:
            await tx["a"].execute(update(Account).values(balance=1))
            await tx["a"].connection.execute(text(wait))
    await returned(world)
    until(world.left_clean)
    async with world.transaction() as tx:
        await tx["a"].execute(update(Account).values(balance=2))
    await returned(world)
    async with world.engine.connect() as connection:
        await as_it_was(world, connection)
    assert world.a.total() == 4 and world.committed()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("way", [PSYCOPG, ASYNCMY], ids=str)
async def test_connections_that_a_restarted_server_left_dead_cost_no_transaction(
    way: Way, request: Any, tmp_path: Any
) -> None:
    kind: Any = PostgresServer if way.kind == "postgres" else MariaDBServer
    with kind() as server:

        class Asking:
            def getfixturevalue(self, name: str) -> Any:
                return server if name == way.kind else request.getfixturevalue(name)

        async with opened(way, Asking(), tmp_path, engine={"pool_size": 4}) as world:
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(4):
                    tx = await stack.enter_async_context(world.within(world.db.transaction()))
                    await world.wait(tx["a"].execute(select(1)))
            await returned(world)
            server.kill()
            server.restart()
            async with world.transaction() as tx:
                await world.wait(tx["a"].execute(update(Account).values(balance=1)))
            assert world.a.total() == 2 and world.committed()


def in_a_fork(work: Callable[[], None]) -> int:
    """How the child ended."""
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            work()
            code = 0
        os._exit(code)
    return os.waitpid(child, 0)[1]


def select_one(world: World) -> None:
    with world.engine.connect() as connection:
        connection.execute(select(1))


@pytest.mark.parametrize("way", [way for way in ENGINES if way.mode == "sync"], ids=str)
async def test_a_child_of_a_fork_connects_anew_and_leaves_its_parent_s_connections_alone(
    way: Way, opening: Opening
) -> None:
    world = await opening(way, engine=ONE)
    with world.db.transaction() as tx:
        tx["a"].execute(update(Account).values(balance=1))
        assert in_a_fork(lambda: select_one(world)) == 0
        tx["a"].execute(update(Account).values(balance=Account.balance + 1))
        tx["b"].execute("update accounts set balance = balance + 1 where id = 1")
    assert world.a.total() == 4 and world.committed() and world.left_clean()


@pytest.mark.parametrize("way", [PSYCOPG], ids=str)
async def test_a_lent_session_that_left_its_transaction_cannot_promise_for_it(way: Way, opening: Opening) -> None:
    """The proof before the end is the same, whoever's connection it is."""
    world = await opening(way, engine=ONE)
    for end in ("commit", "rollback"):
        with pytest.raises(TransactionAborted, match="rolled back everywhere"):
            async with world.transaction() as tx:
                tx["a"].execute(update(Account).values(balance=Account.balance))
                tx._open.branches["a"].session.connection.execute(end)
        await returned(world)
        assert not world.committed() and world.a.total() == 200 and world.left_clean()


# -- many at a time


@pytest.mark.parametrize("way", [PSYCOPG, ASYNCPG, PYMYSQL], ids=str)
async def test_more_transactions_than_connections_wait_their_turn(way: Way, opening: Opening) -> None:
    world = await opening(way, engine={"pool_size": 2, "max_overflow": 0, "pool_timeout": 30})

    async def one(number: int) -> None:
        async with world.within(world.db.transaction()) as tx:
            await world.wait(tx["a"].execute(insert(Account), {"id": 10 + number, "balance": 1}))

    if way.mode == "async":
        await asyncio.gather(*(one(number) for number in range(12)))
    else:
        threads = [threading.Thread(target=asyncio.run, args=(one(number),)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert world.a.total() == 212
    await returned(world)
    assert world.pool.checkedin() <= 2 and world.left_clean()


async def test_two_coordinators_and_the_user_share_one_engine(opening: Opening) -> None:
    world = await opening(PSYCOPG, engine=ONE)
    with Coordinator({"a": world.engine, "b": world.b.url}, journal="b", recovery=False) as other:
        for db in (world.db, other, world.db):
            with db.transaction() as tx:
                tx["a"].execute(update(Account).values(balance=Account.balance + 1))
                tx["b"].execute("update accounts set balance = balance")
            with world.engine.begin() as connection:
                connection.execute(update(Account).values(balance=Account.balance + 1))
        assert world.a.total() == 212
