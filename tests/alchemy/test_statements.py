"""Core statements on every kind of branch: compiled for it, once; a text still goes to the driver as it is."""

from __future__ import annotations

import datetime as dt
import enum
import subprocess
import sys
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    Integer,
    MetaData,
    Numeric,
    String,
    Table,
    TypeDecorator,
    bindparam,
    column,
    delete,
    func,
    insert,
    inspect,
    literal_column,
    select,
    table,
    text,
    update,
)
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    NoSuchTableError,
    ProgrammingError,
    SQLAlchemyError,
    StatementError,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.sql.functions import FunctionElement

from alchemy.ddl import create_outside
from alchemy.world import MIX, URLS, WAYS, Account, World
from kit import placed
from nodoubt import BranchDoomed, TransactionAborted, UsageError
from nodoubt.alchemy.part import Part
from nodoubt.drivers import mysql_wire

pytestmark = pytest.mark.anyio


async def test_a_core_statement_runs_on_any_branch_and_its_rows_are_mappings(world: World) -> None:
    async with world.transaction() as tx:
        rows = await world.wait(tx["a"].execute(select(Account.id, Account.balance).order_by(Account.id)))
        assert list(rows) == [{"id": 0, "balance": 100}, {"id": 1, "balance": 100}]
        assert rows.columns == ("id", "balance") and len(rows) == rows.count == 2 and rows.scalar() == 0
        pay = update(Account).where(Account.id == bindparam("who"))
        pay = pay.values(balance=Account.balance - bindparam("amount"))
        assert (await world.wait(tx["a"].execute(pay, {"who": 0, "amount": 30}))).count == 1
        assert (await world.wait(tx["a"].execute(delete(Account).where(Account.id == 17)))).count == 0
        total = await world.wait(tx["a"].execute(select(func.sum(Account.balance).label("total"))))
        assert [int(row["total"]) for row in total] == [170]
        raw = await world.wait(tx["a"].execute(text("select balance from accounts where id = :id"), {"id": 0}))
        assert raw[0] == {"balance": 70}
    assert world.a.balance(0) == 70 and world.committed() and world.left_clean()


async def test_a_list_of_parameters_runs_the_statement_for_each(world: World) -> None:
    names = [{"id": number, "balance": 1} for number in range(2, 402)]
    async with world.transaction() as tx:
        await world.wait(tx["a"].execute(insert(Account), names))
        raising = update(Account).where(Account.id == bindparam("who")).values(balance=bindparam("to"))
        await world.wait(tx["a"].execute(raising, [{"who": number, "to": number} for number in range(402)]))
    assert world.a.total() == sum(range(402)) and world.committed()


class Counted(FunctionElement[int]):
    """A one, whose compilations are counted."""

    inherit_cache = True
    type = Integer()
    compilations = 0


@compiles(Counted)
def _compile_counted(element: Counted, compiler: Any, **_: Any) -> str:
    Counted.compilations += 1
    return "1"


@pytest.mark.parametrize("way", MIX, ids=str)
async def test_a_statement_is_compiled_once_however_many_transactions_run_it(world: World) -> None:
    Counted.compilations = 0
    for _ in range(3):
        async with world.transaction() as tx:
            for who in (0, 1):
                one = select(Counted().label("one"), Account.balance).where(Account.id == who)
                assert (await world.wait(tx["a"].execute(one)))[0] == {"one": 1, "balance": 100}
    assert Counted.compilations == 1


@pytest.mark.parametrize("way", URLS, ids=str)
async def test_a_text_goes_to_the_driver_as_it_is(world: World) -> None:
    mark = placed("?", world.way.kind)
    async with world.transaction() as tx:
        await world.wait(tx["a"].execute(select(1)))
        rows = await world.wait(tx["a"].execute(f"select balance from accounts where id = {mark}", (0,)))
        assert rows[0] == {"balance": 100}
    assert world.committed()


def test_nothing_of_sqlalchemy_is_imported_for_a_text(tmp_path: Path) -> None:
    program = f"""
import sys
from nodoubt import Coordinator
with Coordinator({{"a": "sqlite:///{tmp_path}/a.db", "b": "sqlite:///{tmp_path}/b.db"}}) as db:
    db.setup()
    with db.transaction() as tx:
        tx["a"].execute("select 1")
        tx["b"].execute("select 1")
print([name for name in sys.modules if name.startswith(("sqlalchemy", "nodoubt.alchemy", "greenlet"))])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_without_sqlalchemy_a_text_works_and_the_rest_names_the_extra(tmp_path: Path) -> None:
    program = f"""
import sys
sys.modules["sqlalchemy"] = None
from nodoubt import Coordinator, MissingExtra
with Coordinator("sqlite:///{tmp_path}/a.db") as db:
    db.setup()
    with db.transaction() as tx:
        tx.execute("select 1")
        for use in (lambda: tx.connection, tx.session, lambda: tx.execute(object())):
            try:
                use()
            except MissingExtra as error:
                print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    told = done.stdout.splitlines()
    assert len(told) == 3 and all(line.endswith("pip install 'nodoubt[sqlalchemy]'") for line in told)


async def test_an_error_is_sqlalchemys_own_over_the_drivers_and_dooms_the_branch(world: World) -> None:
    with pytest.raises(TransactionAborted):
        async with world.transaction() as tx:
            with pytest.raises(IntegrityError) as caught:
                await world.wait(tx["a"].execute(insert(Account), {"id": 1, "balance": 0}))
            assert caught.value.orig is not None and "INSERT INTO accounts" in str(caught.value)
            with pytest.raises(BranchDoomed):
                await world.wait(tx["a"].execute(select(1)))
    assert world.a.total() == 200 and not world.committed() and world.left_clean()


@pytest.mark.parametrize("way", MIX, ids=str)
async def test_an_error_that_leaves_the_block_comes_out_unchanged(world: World) -> None:
    with pytest.raises((ProgrammingError, Exception), match="nowhere") as caught:
        async with world.transaction() as tx:
            await world.wait(tx["a"].execute(select(literal_column("x")).select_from(table("nowhere"))))
    assert type(caught.value).__module__ == "sqlalchemy.exc" and not world.committed()


class Checked(TypeDecorator[int]):
    """A column that refuses 13, in Python."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: Any, _: Any) -> Any:
        if value == 13:
            raise ValueError("not this one")
        return value


class CheckedAccount(DeclarativeBase):
    """A registry of its own: the same table."""


class Checks(CheckedAccount):
    """Accounts, checked."""

    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    balance: Mapped[int] = mapped_column(Checked)


BEFORE_THE_DRIVER: dict[str, tuple[Any, ...]] = {
    "no such column": (insert(Account).values(id=3, nonsense=1),),
    "no value for a parameter": (text("update accounts set balance = :x where id = 0"),),
    "a value that its type refuses": (insert(Checks).values(id=3, balance=13),),
    "one such of many": (insert(Checks), [{"id": 3, "balance": 1}, {"id": 4, "balance": 13}]),
    "no statement": (42,),
    "no statement, but a class": (Account,),
}


@pytest.mark.parametrize("what", BEFORE_THE_DRIVER)
@pytest.mark.parametrize("way", MIX, ids=str)
async def test_an_error_before_the_driver_is_reached_dooms_the_branch_too(world: World, what: str) -> None:
    """Swallowed, it would leave a transaction that commits without the statement."""
    wrong = BEFORE_THE_DRIVER[what]
    for on in ("branch", "connection", "scalar", "session"):
        if on == "session" and what.startswith("no statement"):
            continue  # it looks at them before it has a connection
        with pytest.raises(TransactionAborted):
            async with world.transaction() as tx:
                target = tx["a"].connection if on in ("connection", "scalar") else tx["a"]
                target = tx["a"].session() if on == "session" else target
                with pytest.raises((SQLAlchemyError, UsageError)):
                    await world.wait((target.scalar if on == "scalar" else target.execute)(*wrong))
                with pytest.raises(BranchDoomed):
                    await world.wait(tx["a"].execute(select(1)))
        assert world.a.total() == 200 and not world.committed(), on
    assert world.left_clean()


@pytest.mark.parametrize("what", [what for what in BEFORE_THE_DRIVER if "no statement" not in what])
@pytest.mark.parametrize("way", MIX, ids=str)
async def test_an_error_before_the_driver_is_reached_is_undone_by_a_savepoint(world: World, what: str) -> None:
    async with world.transaction() as tx:
        connection = tx["a"].connection
        with pytest.raises(SQLAlchemyError):
            async with world.within(connection.begin_nested()):
                await world.wait(connection.execute(insert(Account), {"id": 2, "balance": 5}))
                await world.wait(connection.execute(*BEFORE_THE_DRIVER[what]))
        await world.wait(connection.execute(insert(Account), {"id": 5, "balance": 7}))
    assert world.a.total() == 207 and world.committed() and world.left_clean()


@pytest.mark.parametrize("way", URLS[:2], ids=str)
async def test_mutant_that_knows_the_driver_s_errors_alone_commits_without_the_statement(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Part, "fail", lambda *_: None)
    async with world.transaction() as tx:
        with pytest.raises(StatementError):
            await world.wait(tx["a"].execute(*BEFORE_THE_DRIVER["one such of many"]))
    assert world.committed() and world.a.total() == 200, "the other half is there, and this one is not"


@pytest.mark.parametrize("way", URLS[:2], ids=str)
async def test_what_is_no_statement_is_refused_before_anything_is_done(world: World) -> None:
    for nothing in (None, 42, Account, ["select 1"]):
        with pytest.raises(TransactionAborted):
            async with world.transaction() as tx:
                with pytest.raises(UsageError, match="a statement is text, or an executable of SQLAlchemy's"):
                    await world.wait(tx["a"].execute(nothing))
        assert not world.committed()


CONTROL = ["commit", "ROLLBACK", "begin", "/* hi */ commit", "savepoint s", "start transaction", "end"]


@pytest.mark.parametrize("way", MIX, ids=str)
async def test_transaction_control_as_text_is_refused_as_in_any_other_statement(world: World) -> None:
    for number, control in enumerate(CONTROL):
        with pytest.raises(TransactionAborted):
            async with world.transaction() as tx:
                await world.wait(tx["a"].execute(update(Account).values(balance=0)))
                with pytest.raises((UsageError, DBAPIError)):
                    if number % 2:
                        await world.wait(tx["a"].connection.exec_driver_sql(control))
                    else:
                        await world.wait(tx["a"].connection.execute(text(control)))
        assert world.a.total() == 200 and not world.committed(), control
    assert world.left_clean()


@pytest.mark.parametrize("way", MIX, ids=str)
async def test_a_count_is_of_rows_matched_whether_or_not_they_changed(world: World) -> None:
    async with world.transaction() as tx:
        same = update(Account).values(balance=100)
        assert (await world.wait(tx["a"].execute(same))).count == 2
        if not world.way.engine:
            assert (await world.wait(tx["a"].execute("update accounts set balance = 100"))).count == 2


# -- types and ids


class Typed(DeclarativeBase):
    """A registry of their own."""


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Thing(Typed):
    """A column of each type that drivers differ about."""

    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True)
    colour: Mapped[Colour]
    name: Mapped[str] = mapped_column(String(100))
    price: Mapped[Decimal] = mapped_column(Numeric(10, 2))
    ratio: Mapped[float]
    flag: Mapped[bool]
    at: Mapped[dt.datetime]
    day: Mapped[dt.date]
    raw: Mapped[bytes | None]
    key: Mapped[uuid.UUID]
    more: Mapped[dict[str, Any]] = mapped_column(JSON)
    none: Mapped[str | None] = mapped_column(String(10))


THINGS: Any = Thing.__table__
WHOLE: dict[str, Any] = {
    "colour": Colour.BLUE, "name": "50% of 'é' \\ 🎉 :x ?", "price": Decimal("12.30"), "ratio": 0.5, "flag": True,
    "at": dt.datetime.fromisoformat("2026-11-26T12:30:15"), "day": dt.date(2026, 11, 26), "raw": b"\x00\xff'\\",
    "key": uuid.UUID(int=7), "more": {"a": [1, None, "é"]}, "none": None,
}  # fmt: skip


async def test_values_of_every_type_come_back_as_they_went_and_ids_are_given(world: World) -> None:
    on = world.wait
    create_outside(world, Typed.metadata)
    async with world.transaction() as tx:
        session = tx["a"].session()
        made = [Thing(**WHOLE) for _ in range(3)]
        session.add_all(made)
        await on(session.flush())
        assert [thing.id for thing in made] == [1, 2, 3]
        session.add(alone := Thing(**WHOLE))
        await on(session.flush())
        assert alone.id == 4
        rows = list(await on(tx["a"].execute(select(THINGS).order_by(Thing.id))))
        assert rows == [{"id": number, **WHOLE} for number in (1, 2, 3, 4)]
        session.expunge_all()
        again = await on(session.get(Thing, 2))
        assert {name: getattr(again, name) for name in WHOLE} == WHOLE
        again.more = {"b": 1}
        result = await on(session.execute(insert(THINGS), {**WHOLE, "name": "core"}))
        assert result.inserted_primary_key == (5,)
    assert world.a.query("select count(*) from things")[0][0] == 5 and world.committed()


@pytest.mark.parametrize("way", [way for way in URLS if way.kind == "postgres"], ids=str)
async def test_a_text_s_json_is_the_drivers_before_and_after_sqlalchemy_was_there(world: World) -> None:
    world.a.query("create table j (doc jsonb); insert into j values ('{\"a\": 1}')")
    plain = "select doc from j"
    documents = table("j", column("doc", JSON))
    async with world.transaction() as tx:
        before = (await world.wait(tx["a"].execute(plain))).scalar()
        assert (await world.wait(tx["a"].execute(select(documents.c.doc)))).scalar() == {"a": 1}
        assert (await world.wait(tx["a"].execute(plain))).scalar() == before


@pytest.mark.parametrize("way", MIX, ids=str)
async def test_a_database_can_be_reflected_in_a_transaction(world: World) -> None:
    def look(connection: Any) -> Any:
        seen = inspect(connection)
        assert "accounts" in seen.get_table_names()
        reflected = Table("accounts", MetaData(), autoload_with=connection)
        return {name: col.primary_key for name, col in reflected.columns.items()}

    async with world.transaction() as tx:
        connection = tx["a"].connection
        found = look(connection) if world.way.mode == "sync" else await connection.run_sync(look)
        assert found == {"id": True, "balance": False}
    assert world.committed()


@pytest.mark.parametrize("way", MIX, ids=str)
async def test_a_table_can_be_asked_for_that_is_not_there_and_the_transaction_goes_on(world: World) -> None:
    """MariaDB answers that with an error, which would doom the branch (I16)."""

    def look(connection: Any) -> Any:
        there = [inspect(connection).has_table(name) for name in ("nowhere", "accounts", "nowhere")]
        with pytest.raises(NoSuchTableError):
            Table("nowhere", MetaData(), autoload_with=connection)
        return there

    async with world.transaction() as tx:
        connection = tx["a"].connection
        await world.wait(connection.execute(insert(Account), {"id": 9, "balance": 0}))
        found = look(connection) if world.way.mode == "sync" else await connection.run_sync(look)
        assert found == [False, True, False]
    assert world.a.query("select count(*) from accounts where id = 9") == [(1,)] and world.committed()


@pytest.mark.parametrize("way", [way for way in MIX if way.kind == "mariadb"], ids=str)
async def test_who_asks_for_a_table_by_a_statement_of_their_own_is_told_and_the_branch_is_doomed(world: World) -> None:
    with pytest.raises(TransactionAborted):
        async with world.transaction() as tx:
            connection = tx["a"].connection
            await world.wait(connection.execute(insert(Account), {"id": 9, "balance": 0}))
            with pytest.raises(DBAPIError):
                await world.wait(connection.exec_driver_sql("DESCRIBE nowhere"))
    assert world.a.query("select count(*) from accounts where id = 9") == [(0,)]


@pytest.mark.parametrize("way", [way for way in WAYS if way.kind != "sqlite"], ids=str)
async def test_a_stream_is_read_whole_and_delivered_in_pieces(world: World) -> None:
    async with world.transaction() as tx:
        connection, many = tx["a"].connection, select(Account.id).order_by(Account.id)
        if world.way.mode == "sync":
            parts = [list(part) for part in connection.execution_options(yield_per=1).execute(many).partitions()]
        else:
            result = await connection.stream(many, execution_options={"yield_per": 1})
            parts = [list(part) async for part in result.partitions()]
        assert parts == [[(0,)], [(1,)]]
    assert world.committed()


# -- packets of several statements


def test_many_statements_share_a_packet_up_to_its_bounds() -> None:
    texts = [f"update t set v = {number}" for number in range(450)]
    packets = list(mysql_wire.batches(texts))
    assert [count for _, count in packets] == [200, 200, 50]
    assert sum(text.count("update") for text, _ in packets) == 450
    long = ["x" * 200_000, "y" * 100_000, "z"]
    assert [count for _, count in mysql_wire.batches(long)] == [1, 2]
    assert list(mysql_wire.batches([])) == []


@pytest.mark.parametrize("way", [way for way in WAYS if way.kind == "mariadb"], ids=str)
async def test_a_comment_at_the_end_does_not_swallow_the_next_of_many(world: World) -> None:
    commented = "update accounts set balance = %s where id = %s -- so much"
    async with world.transaction() as tx:
        await world.wait(tx["a"].connection.exec_driver_sql(commented, [(1, 0), (2, 1)]))
    assert world.a.total() == 3 and world.committed()


@pytest.mark.parametrize("way", [way for way in WAYS if way.kind == "mariadb"], ids=str)
async def test_several_statements_in_one_text_doom_the_branch_also_among_many(world: World) -> None:
    two = "update accounts set balance = %s where id = %s; update accounts set balance = 7"
    with pytest.raises(TransactionAborted):
        async with world.transaction() as tx:
            with pytest.raises(UsageError, match="one statement at a time"):
                await world.wait(tx["a"].connection.exec_driver_sql(two, [(1, 0), (2, 1)]))
    assert world.a.total() == 200 and not world.committed()
