"""An order: its rows in the shop's database, what it takes in the warehouse's, and the customer's money outside.

    python -m examples.outside outside.db       # in another terminal: the world outside
    nodoubt explore examples/order_processing/matrix.py:sell

kills it at every point, and asks whether all of these agree.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from operator import attrgetter

import nodoubt
from nodoubt import Coordinator, IdempotencyKey, StepContext, sql

from examples.outside.client import Refused, post, undo

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """So many of a product, at so much each."""

    product: int
    quantity: int
    cents: int


@dataclass(frozen=True)
class Order:
    """What is ordered. `number` is the shopping cart's own: ordered again under it, it is an error, no second order."""

    number: int
    card: str
    items: tuple[Item, ...]

    @property
    def cents(self) -> int:
        return sum(one.quantity * one.cents for one in self.items)


class SoldOut(Exception):
    """There is not enough of a product."""


def process_order(db: Coordinator, order: Order) -> str:
    """Reserve, write down, charge; the payment's id. The charge comes after all that can still fail here.

    Raises `SoldOut`; `Refused`, where the card is. Whatever it raises but `InDoubt`: nothing is reserved, and what was
    paid is paid back.
    """
    with db.transaction(f"order-{order.number}") as tx:
        # In one order for all, so that no two of them wait for each other's products.
        for item in sorted(order.items, key=attrgetter("product")):
            reserve = tx["stock"].update_table("products").set({"reserved": sql("reserved + {n}", n=item.quantity)})
            enough = sql("stock - reserved >= {n}", n=item.quantity)
            if reserve.where({"id": item.product}).where(enough).execute() != 1:
                raise SoldOut(item.product)
        tx["shop"].insert_into("orders").values({"number": order.number, "cents": order.cents}).execute()
        lines = [{"number": order.number, "product": one.product, "quantity": one.quantity} for one in order.items]
        tx["shop"].insert_into("order_items").values(lines).execute()
        tx["shop"].insert_into("to_ship").values({"number": order.number}).execute()
        return tx.call(charge, order.number, order.card, order.cents, undo=refund)


@nodoubt.step(timeout=10, refused=(Refused,))
def charge(number: int, card: str, cents: int, key: IdempotencyKey) -> str:
    """Take the money."""
    payment: str = post("/payments", key, order=number, card=card, cents=cents)["id"]
    return payment


@nodoubt.compensation(timeout=10)
def refund(context: StepContext) -> None:
    """Give it back, by the key under which it was taken: the payment's id need not have come to us."""
    undo("/payments", context.key, of=context.action_key)


def ship(db: Coordinator) -> None:
    """Send what was ordered, and tell the customer: what a worker does, again and again.

    A parcel cannot be called back, so it waits for the commit: `to_ship` is a row of the order's own transaction. A
    worker that dies between the parcel and its row sends again, under the same key. What fails holds up no other order.
    """
    with db.transaction() as tx:
        waiting = [row["number"] for row in tx["shop"].select_from("to_ship").execute()]
    for number in waiting:
        try:
            post("/parcels", f"parcel-{number}", order=number)
            post("/letters", f"letter-{number}", order=number)
            with db.transaction() as tx:
                tx["shop"].delete_from("to_ship").where({"number": number}).execute()
        except Exception:
            log.exception("order %d is not shipped, and stays to be", number)
