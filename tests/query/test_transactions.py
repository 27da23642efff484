"""The page's own flows, with the verbs, over two databases: all of it or nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from kit import Database, Face, opened
from nodoubt import BranchDoomed, Coordinator, UsageError, sql

PLACES = [("postgres", "mariadb"), ("sqlite", "postgres"), ("mariadb", "sqlite")]


@pytest.fixture(params=PLACES, ids="+".join)
def databases(request: pytest.FixtureRequest, tmp_path: Path) -> list[Database]:
    made = []
    for kind, name in zip(request.param, ("orders", "stock"), strict=True):
        url = f"sqlite:///{tmp_path}/{name}.db" if kind == "sqlite" else request.getfixturevalue(kind).url()
        made.append(Database(name, url))
    orders, stock = made
    orders.query("create table orders (id integer primary key, customer integer, status varchar(20))")
    orders.query("create table items (line integer primary key, order_id integer, product integer, quantity integer)")
    stock.query("create table products (id integer primary key, reserved integer not null, stock integer not null)")
    stock.query("insert into products values (7, 0, 5), (8, 1, 9)")
    return made


@pytest.fixture(params=["sync", "async"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def order(face: Face, tx: Any, **bought: int) -> None:
    """The page's `processOrder`: an order, its items, and what they reserve."""

    async def done(builder: Any) -> Any:
        return builder.execute() if face.mode == "sync" else await builder.execute()

    placed = await done(
        tx["orders"].insert_into("orders").values({"id": 42, "customer": 1, "status": "processing"}).returning("id")
    )
    for line, (product, quantity) in enumerate((int(name[1:]), quantity) for name, quantity in bought.items()):
        reserved = await done(
            tx["stock"]
            .update_table("products")
            .set({"reserved": sql("reserved + {n}", n=quantity)})
            .where({"id": product})
            .where(sql("stock - reserved >= {n}", n=quantity))
        )
        if reserved != 1:
            raise LookupError(product)
        item = {"line": line, "order_id": placed[0]["id"], "product": product, "quantity": quantity}
        assert await done(tx["orders"].insert_into("items").values(item)) == 1


Block = Callable[[Any], Awaitable[Any]]


@pytest.mark.anyio
async def test_an_order_and_its_stock_are_committed_together(databases: list[Database], mode: str) -> None:
    orders, stock = databases
    async with opened(mode, databases) as face, face.transaction() as tx:
        await order(face, tx.handle, p7=2, p8=3)
    assert orders.query("select id, customer, status from orders") == [(42, 1, "processing")]
    assert orders.query("select product, quantity from items order by line") == [(7, 2), (8, 3)]
    assert stock.query("select id, reserved from products order by id") == [(7, 2), (8, 4)]


@pytest.mark.anyio
async def test_an_order_is_staged_now_and_committed_later(databases: list[Database], mode: str) -> None:
    orders, stock = databases
    async with opened(mode, databases) as face:
        async with face.staged("order-42") as tx:
            await order(face, tx.handle, p7=2)
        assert orders.query("select id from orders") == []
        await face.commit_distributed("order-42")
    assert orders.query("select id from orders") == [(42,)]
    assert stock.query("select reserved from products where id = 7") == [(2,)]


@pytest.mark.anyio
async def test_what_is_out_of_stock_leaves_nothing_behind(databases: list[Database], mode: str) -> None:
    orders, stock = databases
    async with opened(mode, databases) as face:
        with pytest.raises(LookupError):
            async with face.transaction() as tx:
                await order(face, tx.handle, p7=2, p8=9)
    assert orders.query("select id from orders") == []
    assert stock.query("select id, reserved from products order by id") == [(7, 0), (8, 1)]


@pytest.mark.anyio
async def test_a_refused_verb_leaves_the_transaction_as_it_was(databases: list[Database], mode: str) -> None:
    """It never came to a statement, so whoever catches the refusal can go on."""
    orders, stock = databases
    async with opened(mode, databases) as face, face.transaction() as tx:
        with pytest.raises(UsageError, match="everywhere"):
            tx.handle["stock"].delete_from("products").execute()
        await order(face, tx.handle, p7=1)
    assert stock.query("select id, reserved from products order by id") == [(7, 1), (8, 1)]
    assert orders.query("select id from orders") == [(42,)]


@pytest.mark.anyio
async def test_a_verb_that_fails_dooms_its_branch(databases: list[Database], mode: str) -> None:
    orders, stock = databases
    async with opened(mode, databases) as face:
        with pytest.raises(BranchDoomed):
            async with face.transaction() as tx:
                await order(face, tx.handle, p7=1)
                with pytest.raises(Exception, match=r"(?i)unique|duplicate"):
                    await order(face, tx.handle, p7=1)
                await order(face, tx.handle, p7=1)
    assert orders.query("select id from orders") == []
    assert stock.query("select id, reserved from products order by id") == [(7, 0), (8, 1)]


def test_with_one_resource_the_verbs_are_on_the_transaction_itself(tmp_path: Path) -> None:
    with Coordinator(f"sqlite:///{tmp_path}/shop.db") as db:
        db.setup()
        with db.transaction() as tx:
            tx.execute("create table orders (id integer primary key, total integer)")
        with db.transaction() as tx:
            assert tx.insert_into("orders").values([{"id": 1, "total": 5}, {"id": 2, "total": 50}]).execute() == 2
            assert tx.insert_or_ignore("orders", {"id": 1, "total": 9}).execute() == 0
            assert tx.update_table("orders").set({"total": sql("total + {n}", n=1)}).where({"id": 1}).execute() == 1
            assert tx.delete_from("orders").where("total", ">", 40).execute() == 1
            assert list(tx.select_from("orders").execute()) == [{"id": 1, "total": 6}]


def test_with_several_resources_a_verb_on_the_transaction_asks_which(tmp_path: Path) -> None:
    with Coordinator({"a": f"sqlite:///{tmp_path}/a.db", "b": f"sqlite:///{tmp_path}/b.db"}) as db:
        db.setup()
        with db.transaction() as tx, pytest.raises(UsageError, match="say which resource"):
            tx.select_from("orders")
