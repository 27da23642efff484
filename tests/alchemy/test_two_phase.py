"""SQLAlchemy's own two-phase cases, as they look through nodoubt: on PostgreSQL and MariaDB, on users' engines.

What they try there (`begin_twophase`, `prepare`, `recover_twophase`, `commit_prepared`, `Session(twophase=True)`) is a
block, a staged name, another coordinator, a session. Among them are the cases in which SQLAlchemy's own two-phase
commit fails: recovery on MariaDB, the prepare of a failed transaction, asyncio.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from sqlalchemy import create_engine, event, func, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from alchemy.world import ASYNCMY, ASYNCPG, PSYCOPG, PYMYSQL, Account, Opening, Way, World, engine_over, inner
from kit import QUICK, Database, until
from nodoubt import AsyncCoordinator, Coordinator, OutcomeConflict, State, TransactionAborted

pytestmark = pytest.mark.anyio

ONE = {"pool_size": 1, "max_overflow": 0}


@pytest.fixture(params=[PSYCOPG, ASYNCPG, PYMYSQL, ASYNCMY], ids=str)
def way(request: Any) -> Way:
    return request.param  # type: ignore[no-any-return]


async def add(world: World, tx: Any, number: int) -> None:
    for name in ("a", "b"):
        await world.wait(tx[name].execute(insert(Account), {"id": number, "balance": 0}))


def ids(world: World) -> list[int]:
    """The same in both databases, or the test fails."""
    first, second = (d.query("select id from accounts where id > 1 order by id") for d in (world.a, world.b))
    assert first == second
    return [row[0] for row in first]


async def test_prepared_and_committed_or_rolled_back_on_one_connection(way: Way, opening: Opening) -> None:
    """Their `test_two_phase_transaction` and `test_multiple_two_phase`."""
    world = await opening(way, engine=ONE)
    for number, (staged, commits) in enumerate([(True, True), (False, True), (False, False), (True, False)], 2):
        name = f"xa-{number}"
        with contextlib.nullcontext() if staged or commits else pytest.raises(KeyError):
            block = world.db.begin_distributed(name) if staged else world.db.transaction(name)
            async with world.within(block) as tx:
                await add(world, tx, number)
                if not staged and not commits:
                    raise KeyError
        if staged:
            end = world.db.commit_distributed if commits else world.db.rollback_distributed
            assert (await world.wait(end(name))).state is (State.COMMITTED if commits else State.ABORTED)
    assert ids(world) == [2, 3] and world.left_clean()


@pytest.mark.parametrize("commits", [True, False])
async def test_what_one_process_prepared_another_finds_and_ends(way: Way, commits: bool, opening: Opening) -> None:
    """Their `test_two_phase_recover`, and `test_provided_id_round_trip`: the engine that prepared it is gone."""
    world = await opening(way)
    async with world.within(world.db.begin_distributed("my id")) as tx:
        await add(world, tx, 2)
    await world.wait(world.db.close())
    await world.wait(world.engine.dispose())
    assert ids(world) == []
    engine = engine_over(world.a, way.driver, way.mode)
    make: Any = Coordinator if way.mode == "sync" else AsyncCoordinator
    other = make({"a": engine, "b": world.b.url}, journal="b", settings=QUICK, recovery=False)
    await world.wait(other.open())
    assert (await world.wait(other.status("my id"))).state is State.PREPARED
    assert (await world.wait(other.recover(grace=0))).left == 2, "recovery leaves it: somebody is to decide"
    end, contrary = other.commit_distributed, other.rollback_distributed
    if not commits:
        end, contrary = contrary, end
    assert (await world.wait(end("my id"))).complete
    assert (await world.wait(end("my id"))).state is (State.COMMITTED if commits else State.ABORTED), (
        "as the first time"
    )
    with pytest.raises(OutcomeConflict):
        await world.wait(contrary("my id"))
    assert ids(world) == ([2] if commits else []) and world.left_clean()
    await world.wait(other.close())
    await world.wait(engine.dispose())


async def test_recovery_finds_what_nobody_decided_by_itself(way: Way, opening: Opening) -> None:
    world = await opening(way)
    async with world.within(world.db.begin_distributed("due", deadline=0.001)) as tx:
        await add(world, tx, 2)
    until(lambda: len(world.a.prepared()) == 1)
    await world.wait(world.db.recover(grace=0))
    assert (await world.wait(world.db.status("due"))).state is State.ABORTED
    assert (await world.wait(world.db.recover(grace=0))).clean
    assert ids(world) == [] and world.left_clean()


async def test_a_block_that_is_left_gives_its_connection_back_without_a_rollback_that_the_server_refuses(
    way: Way, opening: Opening
) -> None:
    """Their `test_reset_rollback_two_phase_no_rollback`: MySQL refuses a plain ROLLBACK while an XID is there."""
    world = await opening(way, engine=ONE)
    lost: list[object] = []
    event.listen(inner(world.engine), "invalidate", lambda connection, *_: lost.append(connection))
    for _ in range(2):
        with pytest.raises(KeyError):
            async with world.transaction() as tx:
                await add(world, tx, 2)
                raise KeyError
    async with world.within(world.engine.connect()) as connection:
        assert (await world.wait(connection.execute(select(func.count()).select_from(Account)))).scalar() == 2
    assert lost == [] and world.left_clean()


async def test_a_failed_transaction_is_not_prepared_whoever_swallowed_its_error(way: Way, opening: Opening) -> None:
    """PostgreSQL answers PREPARE TRANSACTION with ROLLBACK, and no error; MariaDB prepares the half that went well."""
    world = await opening(way)
    for staged in (False, True):
        with pytest.raises(TransactionAborted):
            block = world.db.begin_distributed("swallowed") if staged else world.db.transaction()
            async with world.within(block) as tx:
                await add(world, tx, 2)
                with contextlib.suppress(IntegrityError):
                    await world.wait(tx["a"].execute(insert(Account), {"id": 2, "balance": 0}))
        assert ids(world) == [] and world.left_clean()


async def test_one_unit_of_work_on_two_engines(way: Way, opening: Opening) -> None:
    """Their `test_twophase` of the ORM, with the failure that it leaves to be mocked."""
    world = await opening(way)
    for fails in (True, False):
        with pytest.raises(IntegrityError) if fails else contextlib.nullcontext():
            async with world.within(world.db.transaction()) as tx:
                for name in ("a", "b"):
                    session = tx[name].session(autoflush=False)
                    session.add(Account(id=1 if fails and name == "b" else 2, balance=0))
        assert ids(world) == ([] if fails else [2]) and world.left_clean()


async def test_a_vote_that_is_refused_rolls_the_sessions_objects_back(way: Way, opening: Opening) -> None:
    """Their `test_rollback_on_prepare` and `test_rollback_on_prepare_failure`, with a vote that the server refuses."""
    world = await opening(way)
    if way.kind == "postgres":
        world.a.query("create table once (id int unique deferrable initially deferred)")
        spoil = "insert into once values (1), (1)"
    else:
        world.a.query("create table once (id int) engine=MyISAM")
        world.a.query("create trigger spoil after insert on accounts for each row insert into once values (1)")
        spoil = "select 1"
    with pytest.raises(TransactionAborted):
        async with world.transaction() as tx:
            session = tx["a"].session()
            session.add(new := Account(id=2, balance=0))
            await world.wait(session.execute(text(spoil)))
    assert new not in session and world.a.total() == 200 and not world.committed()
    assert world.left_clean()


# -- where SQLAlchemy's own two-phase commit fails, on the same servers: why these cases are here


def plain(database: Database, driver: str) -> Any:
    return create_engine(inner(engine_over(database, driver)).url)


@pytest.mark.parametrize("way", [PYMYSQL], ids=str)
async def test_sqlalchemy_s_own_recovery_cannot_finish_on_mariadb(way: Way, opening: Opening) -> None:
    world = await opening(way)
    engine = plain(world.a, "pymysql")
    first = engine.connect()
    prepared = first.begin_twophase()
    first.execute(insert(Account), {"id": 2, "balance": 0})
    prepared.prepare()
    first.invalidate()
    with engine.connect() as second:
        found = [xid.decode() if isinstance(xid, bytes) else xid for xid in second.recover_twophase()]
        assert prepared.xid in found, "it is listed, and that is all"
        with pytest.raises(DBAPIError, match="XAER_"):
            second.commit_prepared(prepared.xid, recover=True)
    until(lambda: end_by_hand(world.a, prepared.xid))
    engine.dispose()


def end_by_hand(database: Database, xid: str) -> bool:
    with contextlib.suppress(Exception):
        database.query(f"xa rollback '{xid}'")
    return not [row for row in database.query("xa recover") if xid in str(row[3])]


@pytest.mark.parametrize("way", [PSYCOPG], ids=str)
async def test_sqlalchemy_s_own_prepare_of_a_failed_transaction_is_silent_on_postgresql(
    way: Way, opening: Opening
) -> None:
    world = await opening(way)
    engine = plain(world.a, "psycopg")
    with engine.connect() as connection:
        transaction = connection.begin_twophase()
        connection.execute(insert(Account), {"id": 2, "balance": 0})
        with pytest.raises(IntegrityError):
            connection.execute(insert(Account), {"id": 2, "balance": 0})
        transaction.prepare()
        assert world.a.prepared() == [], "it returned, and nothing is prepared"
        with pytest.raises(DBAPIError):
            transaction.commit()
    assert world.a.total() == 200
    engine.dispose()
