"""The sums that must agree when all is over: computed from what the databases hold, not from what the demo has done.

Guarantees: pure; a moment in which any database could not be asked fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ..protocol.records import Verdict
from .look import Moment
from .payments import Payment
from .world import STOCK, Order

DATABASES = ("shop", "warehouse")


@dataclass(frozen=True, slots=True)
class Check:
    """One claim, and whether it holds."""

    claim: str
    holds: bool
    detail: str = ""


def caught(moment: Moment, order: Order, attempt: str, *, prepared: Collection[str]) -> Check:
    """That the process died where the act says: these databases hold a prepared branch, the others hold none."""
    found = {name for name, attempts in moment.prepared.items() if attempt in attempts}
    where = " and ".join(sorted(prepared))
    claim = f"the process of {order.id} was caught in the act: prepared in {where}" + (
        "" if len(prepared) > 1 else " alone"
    )
    return Check(claim, found == set(prepared), f"prepared in {_(sorted(found))}")


def settled(moment: Moment, order: Order, attempt: str, *, committed: bool) -> Check:
    """That one order has ended the one way, everywhere where it alone can be told apart."""
    wrong = []
    if (order.id in (moment.orders or {})) is not committed or moment.orders is None:
        wrong.append("the shop")
    standing = moment.verdicts.get(attempt) or (moment.names or {}).get(order.id, (None, None))[1]
    if standing is None or (standing.decision.verdict is Verdict.COMMIT) is not committed:
        wrong.append("the journal")
    wrong += [f"{name}, which holds a branch" for name in DATABASES if attempt in moment.prepared.get(name, {attempt})]
    payment = moment.payments.get(order.id, Payment(order.id))
    if payment.charged - payment.refunded != (order.total if committed else 0):
        wrong.append("the payment service")
    what = "committed everywhere, and paid" if committed else "aborted everywhere, and nobody has paid for it"
    return Check(f"{order.id} is {what}", not wrong, f"not so says {_(wrong)}" if wrong else "")


def check(moment: Moment, expected: Mapping[str, bool]) -> list[Check]:
    """Every claim about the end of a demo. `expected`: each order's number, and whether it must be committed."""
    if moment.orders is None or moment.items is None or moment.products is None or moment.names is None:
        return [Check("every database answers", False)]
    return [
        _outcomes(moment.orders, expected),
        _journal_agrees(moment, moment.orders),
        _nothing_open(moment),
        _items_complete(moment.orders, moment.items),
        _reserved(moment.items, moment.products),
        _stock(moment.products),
        _charged(moment, moment.orders),
        _refunded(moment, moment.orders),
    ]


def _outcomes(orders: Mapping[str, tuple[str, int]], expected: Mapping[str, bool]) -> Check:
    wanted = {order for order, committed in expected.items() if committed}
    wrong = sorted(wanted ^ set(orders))
    claim = f"of {len(expected)} orders, the {len(wanted)} whose commit was decided are in the shop, and no other"
    return Check(claim, not wrong, _(wrong))


def _journal_agrees(moment: Moment, orders: Mapping[str, tuple[str, int]]) -> Check:
    committed = {
        name
        for name, (_staging, standing) in (moment.names or {}).items()
        if standing is not None and standing.decision.verdict is Verdict.COMMIT
    }
    return Check("the journal's commits are the shop's orders", committed == set(orders), _(committed ^ set(orders)))


def _nothing_open(moment: Moment) -> Check:
    left = [f"{name}: {len(attempts)} prepared" for name, attempts in sorted(moment.prepared.items()) if attempts]
    left += [f"{name} could not list what is prepared" for name in DATABASES if name not in moment.prepared]
    for name, (_staging, standing) in sorted((moment.names or {}).items()):
        if standing is None:
            left.append(f"{name} is undecided")
        elif standing.decision.verdict is Verdict.COMMIT and not standing.ended:
            left.append(f"{name} has not ended")
    if moment.parked:
        left.append(f"{moment.parked} in quarantine")
    return Check("nothing is prepared, undecided or parked any more", not left, _(left))


def _items_complete(orders: Mapping[str, tuple[str, int]], items: list[tuple[str, int, int, int]]) -> Check:
    sums: Counter[str] = Counter()
    for order, _product, quantity, price in items:
        sums[order] += quantity * price
    wrong = sorted({*orders, *sums} - {o for o, (_status, total) in orders.items() if sums[o] == total})
    return Check("every order's lines add up to its total, and no line is without its order", not wrong, _(wrong))


def _reserved(items: list[tuple[str, int, int, int]], products: Mapping[int, tuple[int, int]]) -> Check:
    ordered: Counter[int] = Counter()
    for _order, product, quantity, _price in items:
        ordered[product] += quantity
    wrong = [
        f"product {product}: {reserved} reserved, {ordered[product]} ordered"
        for product, (_stock, reserved) in products.items()
        if reserved != ordered[product]
    ]
    total = sum(ordered.values())
    return Check(f"the warehouse has reserved what the shop has sold: {total} pieces", not wrong, _(wrong))


def _stock(products: Mapping[int, tuple[int, int]]) -> Check:
    wrong = [f"product {p}: {stock} in stock" for p, (stock, _reserved) in products.items() if stock != STOCK.get(p)]
    missing = sorted(set(STOCK) - set(products))
    return Check("the stock itself is untouched", not wrong and not missing, _(wrong))


def _charged(moment: Moment, orders: Mapping[str, tuple[str, int]]) -> Check:
    wrong = []
    for order, (_status, total) in orders.items():
        payment = moment.payments.get(order)
        if payment is None or payment.charged != total or payment.refunded:
            wrong.append(order)
    total = sum(total for _status, total in orders.values())
    return Check(f"each order in the shop was paid once, in full: {euros(total)}", not wrong, _(wrong))


def _refunded(moment: Moment, orders: Mapping[str, tuple[str, int]]) -> Check:
    others = [payment for order, payment in moment.payments.items() if order not in orders]
    wrong = [payment.order for payment in others if payment.refunded != payment.charged]
    back = sum(payment.refunded for payment in others)
    return Check(f"whoever paid for an order that was aborted has the money back: {euros(back)}", not wrong, _(wrong))


def euros(cents: int) -> str:
    """An amount for people."""
    return f"{cents // 100}.{cents % 100:02d} EUR"


def _(wrong: object) -> str:
    return ", ".join(map(str, wrong)) if isinstance(wrong, (list, set)) else ""
