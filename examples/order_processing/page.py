"""The reference page's `processOrder`, line by line, for the same matrix. It is here to be seen failing.

    nodoubt explore examples/order_processing/page.py:sell

One thing is better than on the page: `payment` is known where it is to be refunded. There, it is declared inside of
`try`, and the `catch` block ends with `ReferenceError: paymentResult is not defined`.
"""

from __future__ import annotations

from nodoubt import Coordinator, sql
from nodoubt.testing import Crash

from examples.order_processing import matrix
from examples.order_processing.matrix import ITEMS, JOURNAL, RESOURCES, TABLES, before
from examples.outside.client import post, undo

__all__ = ["JOURNAL", "RESOURCES", "TABLES", "before", "check", "sell"]


def sell(db: Coordinator) -> None:
    """Stage, charge, commit, fulfil; and in between hope."""
    order_id, payment = "order_7_1764198000000", None
    try:
        with db.begin_distributed(order_id) as tx:
            tx["shop"].insert_into("orders").values({"number": 42, "cents": 2000}).execute()
            for item in ITEMS:
                more = sql("reserved + {n}", n=item.quantity)
                tx["stock"].update_table("products").set({"reserved": more}).where({"id": item.product}).execute()
                line = {"number": 42, "product": item.product, "quantity": item.quantity}
                tx["shop"].insert_into("order_items").values(line).execute()
        payment = post("/payments", order_id, order=42, cents=2000)["id"]
        db.commit_distributed(order_id)
        post("/parcels", f"parcel-{order_id}", order=42)
        post("/letters", f"letter-{order_id}", order=42)
    except Exception:
        db.rollback_distributed(order_id)
        if payment:
            undo("/payments", f"refund-{order_id}", of=order_id)


def check(db: Coordinator, crash: Crash) -> None:
    """What was left prepared is rolled back, as at its deadline: whoever looks then does not know of the payment."""
    for one in db.transactions(state="prepared"):
        db.rollback_distributed(one.name)
    matrix.check(db, crash)
