"""Everywhere that an order can die, and what must be so after it.

`nodoubt explore` kills `sell`, `lose_the_answer` or `decline` at every point, on fresh databases; recovers; and calls
`check`.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from nodoubt import Coordinator, State
from nodoubt.testing import Crash

from examples.order_processing.orders import Item, Order, process_order, ship
from examples.outside.client import Refused, done, forget, misbehave

RESOURCES = {"shop": "sqlite", "stock": "sqlite"}
JOURNAL = "sqlite"  # a file of its own: the order locks the shop's, while the step's intent must be written
TABLES = {
    "shop": """
        create table orders (number int primary key, cents int not null);
        create table order_items (number int not null, product int not null, quantity int not null);
        create table to_ship (number int primary key);
    """,
    "stock": """
        create table products (id int primary key, stock int not null, reserved int not null);
        insert into products values (7, 5, 0);
        insert into products values (8, 5, 0);
    """,
}
ITEMS = (Item(product=7, quantity=2, cents=990), Item(product=8, quantity=1, cents=20))


def sell(db: Coordinator) -> None:
    """All goes well, if nobody dies."""
    process_order(db, Order(42, "good", ITEMS))
    ship(db)


def lose_the_answer(db: Coordinator) -> None:
    """The card is charged, and nobody is told: the order is rolled back, and the money given back."""
    misbehave("/payments", "lose")
    with suppress(Exception):
        process_order(db, Order(42, "good", ITEMS))


def decline(db: Coordinator) -> None:
    """The card is refused."""
    with suppress(Refused):
        process_order(db, Order(42, "stolen", ITEMS))


def before(_: Coordinator) -> None:
    """Nothing has happened outside."""
    forget()


def check(db: Coordinator, crash: Crash) -> None:
    """The order, its charge, its parcel: all of them, once, or none. The worker that ships has had its turn."""
    ship(db)
    ordered = bool(crash.states) and crash.states[0] is State.COMMITTED
    require(db, {"orders": 1, "items": 2, "reserved": 3, "paid": 2000, "parcels": 1, "letters": 1}, there=ordered)


def require(db: Coordinator, whole: dict[str, int], *, there: bool) -> None:
    """Databases and outside agree, nothing has happened twice, and nothing is left to do."""
    found = seen(db)
    assert found == (whole if there else dict.fromkeys(whole, 0)), f"ordered: {there}, but {found}"
    charges = done("/payments")
    assert len(charges) <= 1, f"charged twice: {charges}"
    assert not any(one["undone"] > 1 for one in charges), f"refunded twice: {charges}"
    assert not db.parked_steps(), "a human must look"
    assert not db.undo_steps(grace=0).waiting, "steps are left to undo"


def seen(db: Coordinator) -> dict[str, Any]:
    """What there is of the order in each place."""
    with db.transaction() as tx:
        orders = tx["shop"].execute("select count(*) from orders").scalar()
        items = tx["shop"].execute("select count(*) from order_items").scalar()
        reserved = tx["stock"].execute("select sum(reserved) from products").scalar()
    return {
        "orders": orders,
        "items": items,
        "reserved": int(reserved),
        "paid": sum(one["what"]["cents"] * (1 - one["undone"]) for one in done("/payments")),
        "parcels": len(done("/parcels")),
        "letters": len(done("/letters")),
    }
