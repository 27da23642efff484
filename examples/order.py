"""An order in two databases, and what must be so whatever dies on the way.

    nodoubt explore examples/order.py:process_order

runs `process_order` once for each point of the protocol, in a process that is killed there, on fresh databases of
the kinds in RESOURCES; then it recovers and asks `check`. `python examples/order.py` does the same.
"""

from __future__ import annotations

from nodoubt import Coordinator, State
from nodoubt.testing import Crash, crash_points

RESOURCES = {"shop": "sqlite", "stock": "sqlite"}
TABLES = {
    "shop": "create table orders (id integer primary key, product int not null)",
    "stock": "create table products (id integer primary key, stock int not null); insert into products values (7, 3)",
}


def process_order(db: Coordinator) -> None:
    """Sell one of product 7."""
    with db.transaction("order-42") as tx:
        tx["shop"].execute("insert into orders values (42, 7)")
        taken = tx["stock"].execute("update products set stock = stock - 1 where id = 7 and stock > 0")
        if taken.count != 1:
            raise LookupError("there is none left")


def check(db: Coordinator, crash: Crash) -> None:
    """The order and what it takes from stock are there together, if and only if it was committed."""
    with db.transaction() as tx:
        orders = tx["shop"].execute("select count(*) from orders").scalar()
        left = tx["stock"].execute("select stock from products where id = 7").scalar()
    expected = (1, 2) if crash.state is State.COMMITTED else (0, 3)
    assert (orders, left) == expected, f"{orders} orders, {left} left; it was {crash.state}"


if __name__ == "__main__":
    explored = crash_points(process_order, resources=RESOURCES, tables=TABLES, check=check)
    print(f"{len(explored.outcomes) - 1} ways to die, and each of them ended well")
