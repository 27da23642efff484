"""What a stranger sees at this moment: every database asked afresh, on connections of its own.

Guarantees: changes nothing, and asks the databases themselves: what was committed by plain SELECTs, what is prepared by
each server's own list, what was decided by the journal's rows. A server that is down is told, not guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import wiring
from ..engine.context import Context, using
from ..engine.survey import survey
from ..errors import NoDoubtError
from ..ports import Reply, Session, readable
from ..protocol.records import Staging, Standing
from ..script import Script, do
from . import payments
from .payments import Payment
from .world import World

NAMES_MAX = 500


@dataclass(slots=True)
class Moment:
    """Everything there is. None: that database could not be asked."""

    orders: dict[str, tuple[str, int]] | None = None  # status and total
    items: list[tuple[str, int, int, int]] | None = None  # order, product, quantity, price
    products: dict[int, tuple[int, int]] | None = None  # stock, reserved
    names: dict[str, tuple[Staging, Standing | None]] | None = None  # the journal's directory with what was decided
    verdicts: dict[str, Standing] = field(default_factory=dict)  # of the attempts that were asked for
    parked: int = 0  # in quarantine
    prepared: dict[str, set[str]] = field(default_factory=dict)  # by database: attempts with a prepared branch there
    payments: dict[str, Payment] = field(default_factory=dict)


def look(world: World, attempts: Sequence[str] = ()) -> Moment:
    """See everything; `attempts`: look their decisions up too, whether or not the journal lists their names."""
    with wiring.onlooker({"shop": world.shop, "warehouse": world.warehouse}, world.journal or "shop") as (ctx, shell):
        moment = shell.run(_look(ctx, attempts))
    moment.payments = {payment.order: payment for payment in payments.ledger(world.payments)}
    return moment


def _look(ctx: Context, attempts: Sequence[str]) -> Script[Moment]:
    moment = Moment()
    _, found = yield from survey(ctx)
    for one in found:
        if one.error is None:
            moment.prepared[one.name] = {prepared.xid.attempt for prepared in one.prepared}
    orders = yield from _rows(ctx, "shop", "SELECT id, status, total FROM orders")
    if orders is not None:
        moment.orders = {order: (status, int(total)) for order, status, total in orders}
    items = yield from _rows(ctx, "shop", "SELECT order_id, product_id, quantity, price FROM order_items")
    if items is not None:
        moment.items = [(order, int(product), int(count), int(price)) for order, product, count, price in items]
    products = yield from _rows(ctx, "warehouse", "SELECT id, stock, reserved_stock FROM products")
    if products is not None:
        moment.products = {int(one): (int(stock), int(reserved)) for one, stock, reserved in products}
    try:
        listed = yield from using(ctx.journal_pool, lambda session: ctx.journal.list_staged(session, "", NAMES_MAX))
        moment.names = {one.name: (readable(one), readable(standing)) for one, standing in listed}
        if attempts:
            seen = yield from using(ctx.journal_pool, lambda session: ctx.journal.look(session, attempts))
            moment.verdicts = {attempt: readable(one) for attempt, one in seen.items()}
        moment.parked = len((yield from using(ctx.journal_pool, ctx.journal.quarantined)))
    except NoDoubtError:
        moment.names = None
    return moment


def _rows(ctx: Context, database: str, sql: str) -> Script[list[tuple[Any, ...]] | None]:
    def body(session: Session) -> Script[tuple[Reply, ...]]:
        return do(session, "run", sql)

    try:
        (reply,) = yield from using(ctx.participants[database].pool, body)
    except NoDoubtError:
        return None
    return [tuple(row) for row in reply.rows]
