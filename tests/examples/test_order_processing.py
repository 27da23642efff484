"""No charge without an order, no order without its charge, one effect of each: whatever dies, wherever, and when."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from examples.order_processing import matrix, page
from examples.order_processing.matrix import ITEMS, require
from examples.order_processing.orders import Item, Order, SoldOut, process_order, ship
from examples.outside.client import Refused, done, go_on, misbehave, standing, waiting

from kit import until
from nodoubt import CallState, Settings
from nodoubt.testing import crash_points, explore
from workflows import Place, badly, explored, furnished, killed, mutant

pytestmark = pytest.mark.usefixtures("outside")

PROGRAM = "examples.order_processing.orders"
ON_SERVERS = {"shop": "postgres", "stock": "mariadb"}
WHOLE = {"orders": 1, "items": 2, "reserved": 3, "paid": 2000, "parcels": 1, "letters": 1}
# Every point that an order which fails does not share with one that does not.
GOING_BACK = {
    "lose_the_answer": ["P6.aborted", "S5.undoing", "S6.undone", "S7.undo-recorded"],
    "decline": ["P6.aborted"],
}


@pytest.fixture(params=[("sqlite", "sqlite"), ("postgres", "mariadb")], ids="+".join)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with furnished(matrix, request.param) as at:
        yield at


@pytest.fixture
def files() -> Iterator[Place]:
    with furnished(matrix, ("sqlite", "sqlite")) as at:
        yield at


# ---- killed at every point ------------------------------------------------------------------------


@pytest.mark.parametrize("work", ["sell", *GOING_BACK])
def test_killed_at_every_point_it_ends_well_and_the_readme_shows_where(work: str) -> None:
    explored(f"order_processing/matrix.py:{work}", GOING_BACK.get(work, ()))


@pytest.mark.parametrize("work", [matrix.sell, matrix.lose_the_answer, matrix.decline])
def test_killed_at_every_point_on_servers_it_ends_well(work: Any) -> None:
    points = GOING_BACK.get(work.__name__)
    crash_points(
        work, resources=ON_SERVERS, tables=matrix.TABLES, before=matrix.before, check=matrix.check, points=points
    )


# ---- what is taken out is missed ------------------------------------------------------------------

CHARGE = "tx.call(charge, order.number, order.card, order.cents, undo=refund)"
DIRECTLY = 'charge(order.number, order.card, order.cents, IdempotencyKey(f"charge-{order.number}"))'


@pytest.mark.parametrize(
    ("work", "change", "point"),
    [
        ("sell", ('post("/payments", key,', 'post("/payments", "",'), "S3.answered"),
        ("lose_the_answer", ('undo("/payments", context.key,', 'undo("/payments", "",'), "S6.undone"),
        ("sell", (CHARGE, DIRECTLY), "P4.all-prepared"),
        ("sell", (", undo=refund)", ")"), "P4.all-prepared"),
    ],
    ids=["a charge without a key", "a refund without a key", "a charge outside of the step", "no refund"],
)
def test_with_a_mistake_in_it_an_order_and_its_money_come_apart(
    work: str, change: tuple[str, str], point: str, tmp_path: Path
) -> None:
    failed = badly(mutant(tmp_path, "order_processing", "orders.py", [change]), work, [point])
    assert list(failed) == [point] and "ordered: False" in failed[point]


def test_the_page_s_own_keeps_money_without_an_order_and_orders_without_a_parcel() -> None:
    found = explore(
        page.sell, resources=page.RESOURCES, journal=page.JOURNAL, tables=page.TABLES, before=page.before,
        check=page.check, points=["P4.staged", "P5.deciding", "P6.committed"],
    )  # fmt: skip
    assert {one.name: one.why.partition(", but ")[2] for one in found.failed} == {
        "P5.deciding": str(dict.fromkeys(WHOLE, 0) | {"paid": 2000}),
        "P6.committed": str(WHOLE | {"parcels": 0, "letters": 0}),
    }


# ---- while the bank is at it ----------------------------------------------------------------------


def test_a_refund_that_overtakes_its_charge_stops_it(place: Place) -> None:
    """The process dies while its request is on the way; the refund is there first."""
    misbehave("/payments", "wait")
    process = place.live("examples.order_processing.matrix:sell")
    until(lambda: waiting() == 1, 30)
    killed(process)
    with place.open() as db:
        until(lambda: db.recover(grace=0).clean and not db.undo_steps(grace=0).waiting)
        go_on()
        require(db, WHOLE, there=False)
    assert done("/payments") == [], "it was not even charged"


def test_a_worker_that_is_killed_in_a_refund_is_followed_by_another_and_the_refund_happens_once(place: Place) -> None:
    """The bank still has the first one's request when the second asks; then it does both, which are one."""
    misbehave("/payments", "wait")
    caller = place.live("examples.order_processing.matrix:sell")
    until(lambda: waiting() == 1, 30)
    killed(caller)
    go_on()
    assert len(standing("/payments")) == 1

    misbehave("/payments/undo", "wait")
    worker = place.recover(PROGRAM, "--grace", "0")
    until(lambda: waiting() == 1, 30)
    killed(worker)
    with place.open(settings=Settings(retry_first_s=0.2, retry_most_s=0.2)) as db:
        assert db.undo_steps(grace=0).failed >= 1, "it is put off: the first is at work"
        go_on()
        until(lambda: db.recover(grace=0).clean and not db.undo_steps(grace=0).waiting)
        require(db, WHOLE, there=False)
    assert [one["undone"] for one in done("/payments")] == [1]


# ---- poison ---------------------------------------------------------------------------------------


def test_a_refund_that_never_succeeds_is_parked_and_holds_up_nobody(place: Place) -> None:
    eager = Settings(retry_first_s=0.001, retry_most_s=0.001, tries_max=2)
    misbehave("/payments", "lose")
    misbehave("/payments/undo", "fail", times=2)
    with place.open(settings=eager) as db:
        with pytest.raises(Exception, match="disconnected"):
            process_order(db, Order(13, "good", ITEMS))
        until(lambda: not db.undo_steps().waiting)
        (parked,) = db.parked_steps()
        assert (parked.state, parked.tries) == (CallState.PARKED, 2) and "503" in parked.error
        process_order(db, Order(42, "good", ITEMS))
        ship(db)
        assert [one["order"] for one in standing("/payments")] == [13, 42], "thirteen's money is still there"
        assert [one["order"] for one in standing("/parcels")] == [42]

        db.retry_step(parked.attempt, parked.number, by="ann")  # the bank has said that it is mended
        until(lambda: not db.undo_steps().waiting)
        assert [one["order"] for one in standing("/payments")] == [42] and db.parked_steps() == []


# ---- what else a shop must not do -----------------------------------------------------------------


def test_what_is_ordered_twice_under_one_number_is_charged_once(files: Place) -> None:
    order = Order(42, "good", ITEMS)
    with files.open() as db:
        process_order(db, order)
        with pytest.raises(Exception, match="UNIQUE"):
            process_order(db, order)
        ship(db)
        require(db, WHOLE, there=True)


def test_a_parcel_that_cannot_be_sent_holds_up_no_other_and_is_sent_later(files: Place) -> None:
    with files.open() as db:
        for number in (41, 42):
            process_order(db, Order(number, "good", (Item(7, 1, 990),)))
        misbehave("/parcels", "fail")
        ship(db)
        assert [one["order"] for one in standing("/parcels")] == [42]
        ship(db)
    assert [one["order"] for one in standing("/parcels")] == [42, 41]
    assert [one["order"] for one in standing("/letters")] == [42, 41]


def test_what_is_sold_out_is_neither_reserved_nor_charged(files: Place) -> None:
    with files.open() as db:
        with pytest.raises(SoldOut):
            process_order(db, Order(42, "good", (Item(7, 5, 990), Item(8, 6, 20))))
        require(db, WHOLE, there=False)
    assert done("/payments") == []


def test_a_refused_card_is_told_as_such(files: Place) -> None:
    with files.open() as db:
        with pytest.raises(Refused, match="declined"):
            process_order(db, Order(42, "stolen", ITEMS))
        require(db, WHOLE, there=False)
