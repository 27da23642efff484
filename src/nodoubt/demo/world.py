"""The demo's world: a shop, a warehouse, a journal and a payment service, and the one order flow that uses them.

`place_order` is the order processing of a web shop as anybody would write it with nodoubt: stage, pay, commit; on an
error roll back and give the money back. It knows nothing of the demo, and nothing of the ways in which it is killed.

Must not: look behind the public interface of `Coordinator`.
"""

from __future__ import annotations

import msgspec

from ..coordinator import Coordinator
from ..engine.context import Settings
from ..errors import InDoubt, NoDoubtError
from ..ports import Observer
from ..transaction import Transaction
from ..url import parse_url
from . import payments

SHOP_TABLES = """
CREATE TABLE orders (
    id VARCHAR(40) PRIMARY KEY, customer VARCHAR(40) NOT NULL, status VARCHAR(20) NOT NULL, total INTEGER NOT NULL
);
CREATE TABLE order_items (
    order_id VARCHAR(40) NOT NULL, product_id INTEGER NOT NULL, quantity INTEGER NOT NULL, price INTEGER NOT NULL,
    PRIMARY KEY (order_id, product_id)
)"""
WAREHOUSE_TABLES = """
CREATE TABLE products (
    id INTEGER PRIMARY KEY, name VARCHAR(40) NOT NULL, stock INTEGER NOT NULL, reserved_stock INTEGER NOT NULL
);
INSERT INTO products VALUES (1, 'teapot', 40, 0), (2, 'cup', 200, 0)"""
NAMES = {1: "teapots", 2: "cups"}
STOCK = {1: 40, 2: 200}


class Item(msgspec.Struct, frozen=True):
    """One line of an order; the price is in cents."""

    product: int
    quantity: int
    price: int


class Order(msgspec.Struct, frozen=True):
    """What a customer wants. `id` is the order's number and the transaction's name."""

    id: str
    customer: str
    items: tuple[Item, ...]
    card: str = "good"

    @property
    def total(self) -> int:
        return sum(item.quantity * item.price for item in self.items)


class World(msgspec.Struct, frozen=True):
    """Where everything is. `journal`: None, in the shop's database; else a URL of its own."""

    shop: str
    warehouse: str
    payments: str
    journal: str | None = None

    def coordinator(self, *, observer: Observer | None = None, settings: Settings | None = None) -> Coordinator:
        """A coordinator without recovery in the background: here recovery is what we want to watch."""
        return Coordinator(
            {"shop": self.shop, "warehouse": self.warehouse},
            journal=self.journal or "shop",
            recovery=False,
            observer=observer,
            settings=settings,
        )

    def set_up(self) -> None:
        """Create our tables and the shop's and the warehouse's."""
        with self.coordinator() as db:
            db.setup()


class OutOfStock(Exception):
    """The warehouse cannot reserve that many."""


def place_order(db: Coordinator, world: World, order: Order, *, deadline: float | None = None) -> None:
    """Stage the order in both databases, take the money, then decide. Whatever fails before that is undone."""

    def reserve(tx: Transaction) -> None:
        shop, warehouse = _marks(world.shop), _marks(world.warehouse)
        tx["shop"].execute(
            f"INSERT INTO orders (id, customer, status, total) VALUES ({shop}, {shop}, 'placed', {shop})",
            (order.id, order.customer, order.total),
        )
        for item in order.items:
            tx["shop"].execute(
                "INSERT INTO order_items (order_id, product_id, quantity, price) "
                f"VALUES ({shop}, {shop}, {shop}, {shop})",
                (order.id, item.product, item.quantity, item.price),
            )
            reserved = tx["warehouse"].execute(
                f"UPDATE products SET reserved_stock = reserved_stock + {warehouse} "
                f"WHERE id = {warehouse} AND stock - reserved_stock >= {warehouse}",
                (item.quantity, item.product, item.quantity),
            )
            if reserved.count != 1:
                raise OutOfStock(f"there are not {item.quantity} of product {item.product}")

    try:
        db.begin_distributed(order.id, reserve, deadline=deadline)
        payments.charge(world.payments, order.id, order.total, order.card)
        db.commit_distributed(order.id)
    except InDoubt:
        raise  # it may have been committed: nothing may be undone until the journal has told
    except Exception:
        db.rollback_distributed(order.id)
        payments.refund(world.payments, order.id)
        raise


def settle_payments(db: Coordinator, world: World) -> list[str]:
    """Housekeeping, by anybody at any time: who was charged for an order that was aborted gets the money back."""
    refunded = []
    for payment in payments.ledger(world.payments):
        if payment.charged and not payment.refunded and _aborted(db, payment.order):
            payments.refund(world.payments, payment.order)
            refunded.append(payment.order)
    return refunded


def _aborted(db: Coordinator, order: str) -> bool:
    try:
        return db.status(order).state.value == "aborted"
    except NoDoubtError:
        return False  # not known is not aborted


def _marks(url: str) -> str:
    """The driver's placeholder."""
    return "?" if parse_url(url).kind == "sqlite" else "%s"
