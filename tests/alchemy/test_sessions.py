"""ORM sessions and connections in a branch: what they hold is written before the votes, and none of them ends it."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any, cast

import pytest
from sqlalchemy import event, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Mapped, Session, mapped_column, scoped_session, sessionmaker

from alchemy.world import (
    ASYNCMY,
    ENGINES,
    MIX,
    PSYCOPG,
    URLS,
    Account,
    Base,
    Opening,
    Way,
    World,
    engine_over,
    inner,
    state_of,
)
from kit import Watching, make_database, opened
from nodoubt import BranchDoomed, ClosedTransaction, State, TransactionAborted, UsageError
from nodoubt.alchemy import parts
from nodoubt.alchemy import session as sessions
from nodoubt.alchemy.face import Face
from nodoubt.alchemy.part import Part

pytestmark = pytest.mark.anyio

ONE_OF_EACH = [URLS[0], URLS[3], PSYCOPG, ASYNCMY]
BOTH_MODES = URLS[:2]


def bound(world: World, connection: Any) -> Any:
    """A session that the user makes, knowing nothing of us but the connection."""
    return Session(connection) if world.way.mode == "sync" else AsyncSession(connection)


def nothing(*_: Any) -> None:
    """What a check is replaced by."""


async def give(world: World, tx: Any, amount: int) -> Any:
    session = tx["a"].session()
    account = await world.wait(session.get(Account, 0))
    account.balance += amount
    return session


# -- the unit of work


async def test_what_a_session_holds_is_written_and_commits_with_the_block(world: World) -> None:
    async with world.transaction() as tx:
        session = await give(world, tx, 30)
        session.add(Account(id=2, balance=5))
        await world.wait(session.delete(await world.wait(session.get(Account, 1))))
    assert world.a.query("select id, balance from accounts order by id") == [(0, 130), (2, 5)]
    assert world.committed() and world.left_clean()


@pytest.mark.parametrize("way", MIX, ids=str)
async def test_an_exception_rolls_back_what_sessions_wrote_and_hold(world: World) -> None:
    with pytest.raises(KeyError):
        async with world.transaction() as tx:
            session = await give(world, tx, 30)
            await world.wait(session.flush())
            session.add(new := Account(id=2, balance=5))
            raise KeyError
    assert world.a.total() == 200 and not world.committed() and world.left_clean()
    assert new not in session and state_of(new).transient


async def test_a_flush_that_fails_at_the_end_aborts_everything_and_comes_out_unchanged(world: World) -> None:
    with pytest.raises(IntegrityError):
        async with world.transaction() as tx:
            session = await give(world, tx, 30)
            session.add(Account(id=1, balance=5))
    assert world.a.total() == 200 and not world.committed() and world.left_clean()


@pytest.mark.parametrize("way", ONE_OF_EACH, ids=str)
async def test_the_flush_comes_before_anybody_votes(way: Way, opening: Opening) -> None:
    told: list[str] = []
    world = await opening(way, observer=Watching(lambda notice: told.append(f"{notice.point} {notice.what}")))
    async with world.transaction() as tx:
        session = tx["a"].session()
        event.listen(getattr(session, "sync_session", session), "after_flush", lambda *_: told.append("flush"))
        session.add(Account(id=2, balance=5))
    assert told.index("flush") < told.index("P3 prepare")
    assert world.a.total() == 205 and world.committed()


@pytest.mark.parametrize("way", BOTH_MODES, ids=str)
async def test_mutant_a_flush_after_the_votes_commits_without_what_the_session_held(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = parts._Both._flush
    monkeypatch.setattr(parts._Both, "_flush", nothing)
    monkeypatch.setattr(parts._Both, "_ended", lambda these, _: flush(these))
    async with world.transaction() as tx:
        session = tx["a"].session()
        session.add(Account(id=2, balance=5))
    assert world.committed() and world.a.total() == 200, "the other half is there, and this one is not"


@pytest.mark.parametrize("way", ONE_OF_EACH, ids=str)
async def test_staged_work_of_a_session_waits_for_its_name_to_be_committed(world: World) -> None:
    async with world.within(world.db.begin_distributed("order-7")) as tx:
        session = await give(world, tx, 30)
        session.add(Account(id=2, balance=5))
    assert world.a.total() == 200
    assert (await world.wait(world.db.commit_distributed("order-7"))).state is State.COMMITTED
    assert world.a.total() == 235 and world.left_clean()


class Move(Base):
    """A table of `b`'s."""

    __tablename__ = "moves"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.mark.parametrize("way", ONE_OF_EACH, ids=str)
async def test_one_session_of_the_user_s_writes_to_two_branches(world: World) -> None:
    """As SQLAlchemy's own `binds`: each model finds its database, and both commit or neither."""
    world.b.query("create table moves (id integer primary key)")
    kind: Any = Session if world.way.mode == "sync" else AsyncSession
    for fails in (True, False):
        with pytest.raises(KeyError) if fails else contextlib.nullcontext():
            async with world.transaction() as tx:
                session = kind(binds={Account: tx["a"].connection, Move: tx["b"].connection})
                session.add_all([Account(id=2, balance=5), Move(id=1)])
                await world.wait(session.flush())
                session.add_all([Account(id=3, balance=6), Move(id=2)])
                if fails:
                    raise KeyError
        assert len(world.b.query("select id from moves")) == (0 if fails else 2)
        assert world.a.total() == (200 if fails else 211) and world.committed() is not fails


@pytest.mark.parametrize("way", [PSYCOPG, ASYNCMY], ids=str)
async def test_a_session_with_one_foot_outside_of_the_transaction_aborts_it(world: World) -> None:
    world.a.query("create table moves (id int primary key)")
    kind: Any = Session if world.way.mode == "sync" else AsyncSession
    with pytest.raises(UsageError, match="give that engine to the coordinator as well"):
        async with world.transaction() as tx:
            session = kind(
                binds={Account: tx["a"].connection, Move: engine_over(world.a, world.way.driver, world.way.mode)}
            )
            session.add_all([Account(id=2, balance=5), Move(id=1)])
            await world.wait(session.flush())
    assert world.a.query("select id from moves") == [] and world.a.total() == 200 and not world.committed()
    assert world.left_clean()


# -- commit


COMMITS = ["session", "connection", "transaction", "user's session", "session's transaction"]
FIRST_USE = ["commit", "block", "create_savepoint", "control_fully", "routed"]  # of a session of the user's


class Routed(Session):
    """One that is bound to nothing, and finds its connection for each statement."""

    def get_bind(self, *_: Any, **__: Any) -> Any:
        return self.info["to"]


async def commit_at_once(world: World, tx: Any, how: str) -> None:
    connection = tx["a"].connection
    options: dict[str, Any] = {}
    if how in ("create_savepoint", "control_fully"):
        options["join_transaction_mode"] = how
    if how == "routed":
        sync = world.way.mode == "sync"
        to: dict[str, Any] = {"info": {"to": connection if sync else connection.sync_connection}}
        own: Any = Routed(**to) if sync else AsyncSession(sync_session_class=Routed, **to)
    else:
        own = (Session if world.way.mode == "sync" else AsyncSession)(connection, **options)
    if how == "block":
        async with world.within(own.begin()):
            own.add(Account(id=2, balance=5))
        return
    own.add(Account(id=2, balance=5))
    await world.wait(own.commit())


async def commit(world: World, tx: Any, how: str) -> Any:
    session = await give(world, tx, 30)
    connection = tx["a"].connection
    if how == "session":
        return await world.wait(session.commit())
    if how == "connection":
        return await world.wait(connection.commit())
    if how == "transaction":
        await world.wait(connection.execute(select(1)))
        return await world.wait(connection.get_transaction().commit())
    if how == "user's session":
        own = bound(world, connection)
        await world.wait(own.execute(select(1)))
        return await world.wait(own.commit())
    return await world.wait(session.get_transaction().commit())


@pytest.mark.parametrize("way", MIX, ids=str)
async def test_commit_is_refused_says_what_to_do_and_dooms_whoever_swallows_it(world: World) -> None:
    for how in COMMITS:
        with pytest.raises(TransactionAborted):
            async with world.transaction() as tx:
                with pytest.raises(UsageError, match="which ends as a whole when its block ends: leave it out"):
                    await commit(world, tx, how)
                with pytest.raises(BranchDoomed):
                    await world.wait(tx["a"].execute(select(1)))
        assert world.a.total() == 200 and not world.committed(), how
    assert world.left_clean()


@pytest.mark.parametrize("how", FIRST_USE)
@pytest.mark.parametrize("way", MIX, ids=str)
async def test_a_commit_is_refused_too_as_the_first_use_of_a_user_s_session(world: World, how: str) -> None:
    with pytest.raises(TransactionAborted):
        async with world.transaction() as tx:
            with pytest.raises(UsageError, match="which ends as a whole when its block ends: leave it out"):
                await commit_at_once(world, tx, how)
            with pytest.raises(BranchDoomed):
                await world.wait(tx["a"].execute(select(1)))
    assert world.a.total() == 200 and not world.committed() and world.left_clean()


@pytest.mark.parametrize("how", [how for how in FIRST_USE if how != "control_fully"])  # that one asks the connection
@pytest.mark.parametrize("way", URLS[:1], ids=str)
async def test_mutant_that_waits_for_a_session_s_first_statement_lets_its_first_commit_pass(
    world: World, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_ours", lambda _: [])
    with pytest.raises(KeyError):
        async with world.transaction() as tx:
            await commit_at_once(world, tx, how)
            raise KeyError("after a commit that was answered")
    assert world.a.total() == 200


@pytest.mark.parametrize("way", BOTH_MODES, ids=str)
async def test_while_one_session_is_told_of_the_commit_another_one_s_is_refused(world: World) -> None:
    with pytest.raises(UsageError, match=r"session.commit\(\) is not for a branch"):
        async with world.transaction() as tx:
            one, other = await give(world, tx, 30), await give(world, tx, 40)
            commit = getattr(other, "sync_session", other).commit
            event.listen(getattr(one, "sync_session", one), "before_commit", lambda _: commit())
    assert world.a.total() == 200 and not world.committed() and world.left_clean()


@pytest.mark.parametrize("way", [PSYCOPG, ASYNCMY], ids=str)
async def test_a_session_on_an_engine_of_its_own_is_free_again_after_the_block(world: World) -> None:
    """It has worked in the transaction once, by a statement that said so."""
    engine = engine_over(world.a, world.way.driver, world.way.mode)
    own: Any = (Session if world.way.mode == "sync" else AsyncSession)(engine)
    for fails in (True, False):
        with pytest.raises(KeyError) if fails else contextlib.nullcontext():
            async with world.transaction() as tx:
                bind = {"bind": getattr(tx["a"].connection, "sync_connection", tx["a"].connection)}
                await world.wait(own.execute(insert(Account).values(id=2, balance=5), bind_arguments=bind))
                if fails:
                    raise KeyError
        own.add(Account(id=3 + fails, balance=7))
        await world.wait(own.commit())
        await world.wait(own.close())
        await world.wait(engine.dispose())
    assert world.a.total() == 219 and world.committed() and world.left_clean()


@pytest.mark.parametrize("way", BOTH_MODES, ids=str)
async def test_mutant_a_commit_that_is_not_refused_has_promised_what_is_rolled_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Part, "refuse", nothing)
    monkeypatch.setattr(Face, "commit", nothing)
    for how in COMMITS:
        with pytest.raises(KeyError):
            async with world.transaction() as tx:
                await commit(world, tx, how)
                raise KeyError("after a commit that was answered")
        assert world.a.total() == 200, how


@pytest.mark.parametrize("way", BOTH_MODES, ids=str)
async def test_a_second_beginning_is_refused_before_anything_is_done(world: World) -> None:
    async with world.transaction() as tx:
        session, connection = tx["a"].session(), tx["a"].connection
        for statements_before in (0, 1):
            for beginning in (session, connection):
                with pytest.raises(UsageError, match=r"begin_nested\(\)"):
                    async with world.within(beginning.begin()):
                        raise AssertionError(statements_before)
            await world.wait(connection.execute(select(1)))
        await world.wait(connection.execute(insert(Account), {"id": 2, "balance": 5}))
    assert world.a.total() == 205 and world.committed()


@pytest.mark.parametrize("way", BOTH_MODES, ids=str)
async def test_what_a_branch_s_connection_cannot_do_is_refused_by_name(world: World) -> None:
    async with world.transaction() as tx:
        outer = tx["a"].connection
        connection = getattr(outer, "sync_connection", outer)
        wanted, other_maker = "sessionmaker", cast(Any, async_sessionmaker())
        if world.way.mode == "async":
            wanted, other_maker = ("async_sessionmaker", sessionmaker())
        for attempt, message in (
            (connection.begin_twophase, "in a two-phase transaction already"),
            (connection.recover_twophase, "nodoubt recover"),
            (lambda: connection.commit_prepared("x"), "commit_distributed"),
            (lambda: connection.rollback_prepared("x"), "rollback_distributed"),
            (lambda: connection.execution_options(isolation_level="SERIALIZABLE"), "execute SET TRANSACTION"),
            (lambda: connection.connection.driver_connection, "the driver's own connection is not given out"),
            (lambda: tx["a"].session(bind=outer), "bind cannot be chosen"),
            (lambda: tx["a"].session(twophase=True), "twophase cannot be chosen"),
            (lambda: tx["a"].session(class_=dict), "class_ is a subclass of"),
            (lambda: tx["a"].session(Session), "write class_=Session"),
            (lambda: tx["a"].session(scoped_session(sessionmaker())), r"pass its session_factory"),
            (lambda: tx["a"].session(async_scoped_session(async_sessionmaker(), str)), r"pass its session_factory"),
            (lambda: tx["a"].session("Orders"), f"takes your {wanted}, not 'Orders'"),
            (lambda: tx["a"].session(other_maker), f"takes your {wanted}, not"),
        ):
            refused: Any = attempt
            with pytest.raises(UsageError, match=message):
                refused()
    assert world.committed()


@pytest.mark.parametrize("way", URLS[::3], ids=str)
async def test_an_engine_made_for_a_url_has_no_connections_to_give(world: World) -> None:
    async with world.transaction() as tx:
        engine = tx["a"].connection.engine
        with pytest.raises(UsageError, match="has no connections of its own"):
            await world.wait(engine.connect().__enter__() if world.way.mode == "sync" else engine.connect().start())


# -- rollback and close


ROLLBACKS = ["session", "connection", "transaction", "user's session", "untouched session", "invalidate"]
PENDING_ROLLBACKS = [
    "session",
    "session's transaction",
    "session's invalidation",
    "user's session",
    "user's transaction",
    "begun by the user",
]


@pytest.mark.parametrize("way", MIX, ids=str)
async def test_rollback_dooms_the_branch_and_with_it_the_transaction(world: World) -> None:
    for how in ROLLBACKS:
        with pytest.raises(TransactionAborted, match="was given up by"):
            async with world.transaction() as tx:
                if how == "untouched session":
                    await world.wait(tx["a"].session().rollback())
                    continue
                session = await give(world, tx, 30)
                await world.wait(session.flush())
                connection = tx["a"].connection
                if how == "session":
                    await world.wait(session.rollback())
                elif how == "connection":
                    await world.wait(connection.rollback())
                elif how == "transaction":
                    await world.wait(connection.get_transaction().rollback())
                elif how == "invalidate":
                    await world.wait(connection.invalidate())
                else:
                    own = bound(world, connection)
                    await world.wait(own.execute(select(1)))
                    await world.wait(own.rollback())
                with pytest.raises(BranchDoomed):
                    await world.wait(tx["a"].execute(select(1)))
        assert world.a.total() == 200 and not world.committed(), how
    assert world.left_clean()


async def roll_back_what_is_pending(world: World, tx: Any, how: str) -> None:
    session = tx["a"].session() if how.startswith("session") else bound(world, tx["a"].connection)
    inside = getattr(session, "sync_session", session)
    if how == "begun by the user":
        with pytest.raises(KeyError):
            async with world.within(session.begin()):
                session.add(Account(id=2, balance=5))
                raise KeyError("by the user")
        return
    session.add(Account(id=2, balance=5))
    if how.endswith("transaction"):
        inside.get_transaction().rollback()
    elif how.endswith("invalidation"):
        await world.wait(session.invalidate())
    else:
        await world.wait(session.rollback())


@pytest.mark.parametrize("how", PENDING_ROLLBACKS)
@pytest.mark.parametrize("way", MIX, ids=str)
async def test_a_rollback_before_the_first_statement_dooms_for_what_was_pending_is_lost(world: World, how: str) -> None:
    with pytest.raises(TransactionAborted, match=r"given up by session.(rollback|invalidate)\(\)|by the user"):
        async with world.transaction() as tx:
            await roll_back_what_is_pending(world, tx, how)
            with pytest.raises(BranchDoomed):
                await world.wait(tx["a"].execute(select(1)))
    assert world.a.total() == 200 and not world.committed() and world.left_clean()


@pytest.mark.parametrize("how", PENDING_ROLLBACKS[1:])
@pytest.mark.parametrize("way", URLS[:1], ids=str)
async def test_mutant_that_leaves_rollbacks_to_the_connection_commits_without_what_was_pending(
    world: World, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Part, "spoil", nothing)
    async with world.transaction() as tx:
        await roll_back_what_is_pending(world, tx, how)
    assert world.committed() and world.a.total() == 200, "the other half is there, and this one is not"


async def test_close_is_harmless_and_writes_what_is_pending(world: World) -> None:
    async with world.transaction() as tx:
        async with world.within(tx["a"].session()) as session:
            session.add(Account(id=2, balance=5))
        closed = tx["a"].session()
        closed.add(Account(id=3, balance=7))
        await world.wait(closed.close())
        reset = tx["a"].session()
        reset.add(Account(id=4, balance=9))
        await world.wait(reset.reset())
        async with world.within(tx["a"].connection) as connection:
            await world.wait(connection.execute(insert(Account), {"id": 5, "balance": 11}))
        await world.wait(tx["a"].connection.close())
        assert (await world.wait(tx["a"].execute(select(Account.balance).where(Account.id == 5)))).scalar() == 11
        own = bound(world, tx["a"].connection)
        await world.wait(own.execute(insert(Account), {"id": 6, "balance": 13}))
        await world.wait(own.close())
    assert world.a.total() == 200 + 5 + 7 + 9 + 11 + 13 and world.committed() and world.left_clean()


@pytest.mark.parametrize("way", MIX, ids=str)
async def test_a_close_that_could_not_write_dooms_whoever_swallows_its_error(world: World) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("before any statement")

    for how in ("close", "reset"):
        with pytest.raises(TransactionAborted, match="before any statement"):
            async with world.transaction() as tx:
                session = await give(world, tx, 30)
                event.listen(getattr(session, "sync_session", session), "before_flush", fail)
                with pytest.raises(KeyError):
                    await world.wait(getattr(session, how)())
        assert world.a.total() == 200 and not world.committed() and world.left_clean()


@pytest.mark.parametrize("way", MIX, ids=str)
async def test_an_exception_that_leaves_a_session_s_or_connection_s_own_block_rolls_back_all(world: World) -> None:
    for what in ("session", "connection"):
        with pytest.raises(TransactionAborted):
            async with world.transaction() as tx:
                inside = tx["a"].session() if what == "session" else tx["a"].connection
                with pytest.raises(KeyError):
                    async with world.within(inside):
                        await world.wait(inside.execute(insert(Account), {"id": 2, "balance": 5}))
                        raise KeyError
        assert world.a.total() == 200 and not world.committed()


# -- after the block


@pytest.mark.parametrize("way", MIX, ids=str)
async def test_after_the_block_connection_and_sessions_are_dead(world: World) -> None:
    async with world.transaction() as tx:
        connection, session, unused = tx["a"].connection, tx["a"].session(), tx["a"].session()
        account = await world.wait(session.get(Account, 0))
        own = bound(world, connection)
        await world.wait(own.execute(select(1)))
        branch = tx["a"]
    assert account.balance == 100, "what was loaded can be read"
    uses: list[Any] = [
        lambda: connection.execute(select(1)),
        lambda: connection.exec_driver_sql("select 1"),
        connection.commit,
        connection.rollback,
        lambda: session.execute(select(1)),
        lambda: session.get(Account, 1),
        session.commit,
        session.rollback,
        lambda: session.refresh(account),
        lambda: unused.execute(select(1)),
        lambda: own.execute(select(1)),
        own.commit,
        lambda: bound(world, connection).commit(),
        lambda: branch.execute(select(1)),
        lambda: branch.connection,
        branch.session,
    ]
    for use in uses:
        with pytest.raises(ClosedTransaction):
            await world.wait(use())
    session.add(Account(id=9, balance=1))
    with pytest.raises(ClosedTransaction):
        await world.wait(session.flush())
    for one in (session, unused, own, connection):
        await world.wait(one.close())
    assert world.committed() and world.a.total() == 200


# -- events


@pytest.mark.parametrize("way", ENGINES, ids=str)
async def test_events_of_the_user_s_engine_and_of_sessions_fire(world: World) -> None:
    told: list[str] = []

    def tell(name: str) -> Any:
        return lambda *_, **__: told.append(name)

    engine = inner(world.engine)
    event.listen(engine, "before_cursor_execute", lambda *args: told.append(args[2].split()[0].lower()))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("select 'begun'"))
    async with world.transaction() as tx:
        session = tx["a"].session()
        target = getattr(session, "sync_session", session)
        for name in ("before_flush", "after_flush", "before_commit", "after_commit", "after_rollback", "after_begin"):
            event.listen(target, name, tell(name))
        await world.wait(session.execute(select(Account)))
        session.add(Account(id=2, balance=5))
    order = [
        "select",
        "after_begin",
        "select",
        "before_commit",
        "before_flush",
        "insert",
        "after_flush",
        "after_commit",
    ]
    assert told == order and world.committed()
    told.clear()
    with pytest.raises(KeyError):
        async with world.transaction() as tx:
            session = tx["a"].session()
            event.listen(getattr(session, "sync_session", session), "after_rollback", tell("after_rollback"))
            await world.wait(session.execute(select(Account)))
            raise KeyError
    assert told == ["select", "select", "after_rollback"]


@pytest.mark.parametrize("way", [PSYCOPG, ASYNCMY], ids=str)
async def test_the_engine_s_own_events_of_the_end_fire_once_and_before_it(world: World) -> None:
    """A `commit` comes as anywhere in SQLAlchemy: while there is still a transaction, to write in or to stop."""
    told: list[str] = []

    def audit(connection: Any) -> None:
        told.append("commit")
        connection.execute(insert(Account), {"id": 3, "balance": len(told)})
        if stop:
            raise KeyError("not like this")

    event.listen(inner(world.engine), "commit", audit)
    event.listen(inner(world.engine), "rollback", lambda _: told.append("rollback"))
    for stop in (True, False):
        told.clear()
        with pytest.raises(KeyError) if stop else contextlib.nullcontext():
            async with world.transaction() as tx:
                await world.wait(tx["a"].execute(insert(Account), {"id": 2, "balance": 5}))
        assert told == (["commit", "rollback"] if stop else ["commit"]), "of Core"
    assert world.a.total() == 206 and world.committed() and world.left_clean()
    told.clear()
    with pytest.raises(IntegrityError):
        async with world.transaction() as tx:
            session = tx["a"].session()
            session.add(Account(id=2, balance=5))
            await world.wait(session.flush())
    assert told == ["rollback"], "of the ORM"


@pytest.mark.parametrize("way", BOTH_MODES, ids=str)
async def test_a_hook_before_the_commit_can_still_add_and_one_after_it_cannot_harm(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Any) -> None:
        raise KeyError("too late")

    async with world.transaction() as tx:
        session = tx["a"].session()
        target = getattr(session, "sync_session", session)
        event.listen(target, "before_commit", lambda one: one.add(Account(id=2, balance=5)))
        event.listen(target, "after_commit", fail)
        await world.wait(session.execute(select(Account)))
    assert world.a.total() == 205 and world.committed()
    assert "could not be told" in caplog.text


def add_from_the_other_one_s_hook(tx: Any, hook: str) -> Any:
    """`other` is written last, and what listens to it adds to the one that was written first."""
    first, other = tx["a"].session(), tx["b"].session()
    first.add(Account(id=2, balance=5))
    other.add(Account(id=2, balance=0))

    def audit(*_: Any) -> None:
        first.add(Account(id=3, balance=7))

    if hook == "engine":
        connection = tx["b"].connection
        event.listen(getattr(connection, "sync_connection", connection), "commit", audit, once=True)
    else:
        event.listen(getattr(other, "sync_session", other), hook, audit, once=True)
    return first


@pytest.mark.parametrize("hook", ["before_flush", "after_flush", "before_commit", "engine"])
@pytest.mark.parametrize("way", ONE_OF_EACH, ids=str)
async def test_what_a_hook_of_one_session_adds_to_another_is_written_too(
    world: World, hook: str, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    async with world.transaction() as tx:
        first = add_from_the_other_one_s_hook(tx, hook)
        for name in ("before_commit", "after_commit"):
            event.listen(getattr(first, "sync_session", first), name, lambda _, name=name: told.append(name))
    assert world.a.total() == 212 and world.committed() and world.left_clean()
    assert told == ["before_commit", "after_commit"] and not caplog.records


@pytest.mark.parametrize("way", BOTH_MODES, ids=str)
async def test_a_session_that_a_hook_brings_is_written_and_told(world: World, caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    async with world.transaction() as tx:
        session, connection = tx["a"].session(), tx["b"].connection
        session.add(Account(id=2, balance=5))

        def bring(*_: Any) -> None:
            own = Session(getattr(connection, "sync_connection", connection))
            event.listen(own, "after_commit", lambda _: told.append("after_commit"))
            own.add(Account(id=2, balance=0))

        event.listen(getattr(session, "sync_session", session), "after_flush", bring)
    assert world.b.query("select balance from accounts where id = 2") == [(0,)] and world.committed()
    assert told == ["after_commit"] and not caplog.records


@pytest.mark.parametrize("way", URLS[:1], ids=str)
async def test_mutant_that_goes_over_the_sessions_once_commits_without_what_came_late(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts._Both, "_flush_the_rest", nothing)
    async with world.transaction() as tx:
        add_from_the_other_one_s_hook(tx, "before_flush")
    assert world.a.total() == 205 and world.committed(), "the other half is there, and this one is not"


@pytest.mark.parametrize("way", BOTH_MODES, ids=str)
async def test_sessions_that_never_have_done_are_an_error(world: World) -> None:
    numbers = itertools.count(10)
    with pytest.raises(UsageError, match="still hold something to write"):
        async with world.transaction() as tx:
            pair = [tx["a"].session(), tx["a"].session()]
            for one, other in (pair, pair[::-1]):
                one.add(Account(id=next(numbers), balance=1))

                def add(*_: Any, to: Any = other) -> None:
                    to.add(Account(id=next(numbers), balance=1))

                event.listen(getattr(one, "sync_session", one), "before_flush", add)
    assert world.a.total() == 200 and not world.committed() and world.left_clean()


# -- whose classes


class Mine(Session):
    """A class of the user's."""


class AsyncMine(AsyncSession):
    """A class of the user's."""

    sync_session_class = Mine


@pytest.mark.parametrize("way", BOTH_MODES, ids=str)
async def test_a_session_of_the_user_s_class_and_maker(world: World) -> None:
    asynchronous = world.way.mode == "async"
    kind: Any = AsyncMine if asynchronous else Mine
    maker: Any = (async_sessionmaker if asynchronous else sessionmaker)(
        class_=kind, expire_on_commit=False, autoflush=False, twophase=True, info={"tenant": 7}
    )
    async with world.transaction() as tx:
        for session in (tx["a"].session(maker), tx["a"].session(class_=kind, autoflush=False, info={"tenant": 7})):
            inside = getattr(session, "sync_session", session)
            assert isinstance(session, kind) and isinstance(inside, Mine) and isinstance(inside, sessions.BranchSession)
            assert inside.autoflush is False and inside.info["tenant"] == 7
        assert tx["a"].session(maker, autoflush=True).autoflush
        session.add(Account(id=2, balance=5))
        with pytest.raises(UsageError, match="binds cannot be chosen"):
            maker.configure(binds={Account: None})
            tx["a"].session(maker)
    assert world.a.total() == 205 and world.committed()


@pytest.mark.parametrize("way", ONE_OF_EACH, ids=str)
async def test_a_session_that_the_user_bound_to_the_connection_takes_part(world: World) -> None:
    async with world.transaction() as tx:
        own = bound(world, tx["a"].connection)
        account = await world.wait(own.get(Account, 0))
        account.balance += 30
        bound(world, tx["a"].connection).add(Account(id=2, balance=5))
    assert world.a.balance(0) == 130 and world.a.total() == 235 and world.committed()


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_with_one_resource_the_verbs_stand_on_the_transaction(mode: str, request: Any, tmp_path: Any) -> None:
    only = make_database("postgres", "a", request, tmp_path)
    async with opened(mode, [only]) as db, db.transaction() as tx:
        wait = _waiting(mode)
        await wait(tx.handle.execute(insert(Account), {"id": 2, "balance": 5}))
        await wait(tx.handle.connection.execute(insert(Account), {"id": 3, "balance": 6}))
        tx.handle.session().add(Account(id=4, balance=7))
    assert only.total() == 218


def _waiting(mode: str) -> Any:
    async def wait(answer: Any) -> Any:
        return answer if mode == "sync" else await answer

    return wait
