"""The demo passes, and its checks are worth something: each fails when its database has been tampered with."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nodoubt import wiring
from nodoubt.demo import acts, payments, performance
from nodoubt.demo.check import caught, check, settled
from nodoubt.demo.look import look
from nodoubt.demo.world import Item, Order, World, place_order

from .conftest import ENVIRONMENT, nodoubt

ORDER = Order("order-1", "Avery", (Item(1, 2, 3900), Item(2, 8, 450)))
GONE = Order("order-2", "Avery", (Item(2, 1, 450),))


def run_demo(*options: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "nodoubt", "demo", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, **variables},
    )


def require_passed(demo: subprocess.Popen[str], checks: int, killed: int) -> None:
    shown, complaint = demo.communicate(timeout=170)
    assert demo.returncode == 0, shown + complaint
    last = shown.splitlines()[-1]
    assert last.startswith(f"PASSED {checks} of {checks} checks: "), last
    assert f"{killed} processes killed with SIGKILL" in last
    assert "WRONG" not in shown
    assert not complaint


def test_the_demo_passes_and_leaves_nothing_behind(tmp_path: Path) -> None:
    require_passed(run_demo(TMPDIR=str(tmp_path)), checks=32, killed=7)
    assert not list(tmp_path.iterdir())


@pytest.mark.timeout(240)
def test_the_demo_passes_on_real_servers_that_are_killed_too() -> None:
    require_passed(run_demo("--servers"), checks=34, killed=8)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_interrupted_leaves_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    demo = run_demo(TMPDIR=str(tmp_path))
    assert demo.stdout is not None
    assert any(line.startswith(" 3.") for line in demo.stdout)
    demo.send_signal(number)
    _, complaint = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert "Traceback" not in complaint
    assert not list(tmp_path.iterdir())


def test_a_demo_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the demo's process inherits it
    try:
        demo = run_demo(TMPDIR=str(tmp_path))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert demo.stdout is not None
    assert any(line.startswith(" 3.") for line in demo.stdout)
    demo.send_signal(signal.SIGHUP)
    said, _ = demo.communicate(timeout=60)
    assert demo.returncode == 0
    assert "PASSED 32 of 32 checks" in said


def test_a_demo_with_a_wrong_sum_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the exit code a demo that shows a broken transaction would look fine to a script."""

    def tamper(play: acts.Play) -> None:
        write(play.world, "warehouse", "update products set reserved_stock = reserved_stock + 1")

    monkeypatch.setattr(acts, "SHARED_JOURNAL", (acts.good_order, tamper))
    monkeypatch.setattr(acts, "OWN_JOURNAL", ())
    result = nodoubt("demo")
    assert result.exit_code == 1
    assert "WRONG  the warehouse has reserved what the shop has sold" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("FAILED 1 of ")


def test_a_child_that_outlives_its_fate_fails_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    def harmless(play: acts.Play) -> None:
        play.stage.act("Nobody dies")
        play.place_and_die(play.order(acts.CUPS, committed=True), "P3.prepare@nowhere", prepared=())

    monkeypatch.setattr(acts, "SHARED_JOURNAL", (harmless,))
    result = nodoubt("demo")
    assert result.exit_code == 1
    assert "ChildSurvived" in result.stderr


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """One good order has been placed, and one was declined."""
    with payments.service(tmp_path / "payments") as till:
        made = World(f"sqlite:///{tmp_path}/shop.db", f"sqlite:///{tmp_path}/warehouse.db", till)
        performance.furnish(made)
        with made.coordinator() as db:
            place_order(db, made, ORDER)
            with pytest.raises(payments.PaymentFailed):
                place_order(db, made, Order(GONE.id, GONE.customer, GONE.items, "stolen"))
        yield made


def write(world: World, database: str, sql: str) -> None:
    with wiring.onlooker({"shop": world.shop, "warehouse": world.warehouse}, None) as (ctx, _):
        pool = ctx.participants[database].pool
        session = pool.acquire()
        session.run(sql)
        pool.release(session)


def stage_only(world: World) -> str:
    with world.coordinator() as db, db.begin_distributed("order-3") as tx:
        tx["shop"].execute("insert into orders values ('order-3', 'x', 'placed', 1)")
        tx["warehouse"].execute("update products set reserved_stock = reserved_stock + 1 where id = 1")
        return tx.attempt


EXPECTED = {ORDER.id: True, GONE.id: False}


def test_an_untouched_world_passes(world: World) -> None:
    moment = look(world)
    assert [one for one in check(moment, EXPECTED) if not one.holds] == []
    attempt = (moment.names or {})[ORDER.id][0].attempt
    assert settled(moment, ORDER, attempt, committed=True).holds
    assert not settled(moment, ORDER, attempt, committed=False).holds


@pytest.mark.parametrize(
    ("tamper", "claim"),
    [
        (lambda w: write(w, "shop", "delete from orders"), "are in the shop, and no other"),
        (lambda w: write(w, "shop", "insert into orders values ('order-2', 'x', 'placed', 450)"), "are in the shop"),
        (
            lambda w: write(w, "shop", "insert into orders values ('order-9', 'x', 'placed', 0)"),
            "the journal's commits",
        ),
        (stage_only, "nothing is prepared, undecided"),
        (lambda w: write(w, "shop", "delete from order_items where product_id = 2"), "add up to its total"),
        (lambda w: write(w, "shop", "delete from orders"), "no line is without its order"),
        (lambda w: write(w, "warehouse", "update products set reserved_stock = 0"), "what the shop has sold"),
        (lambda w: write(w, "warehouse", "update products set stock = stock - 1"), "the stock itself"),
        (lambda w: write(w, "warehouse", "delete from products where id = 2"), "the stock itself"),
        (lambda w: payments.refund(w.payments, "order-1"), "was paid once, in full"),
        (lambda w: payments.charge(w.payments, "order-7", 5, "good"), "has the money back"),
    ],
)
def test_every_sum_notices_what_is_wrong(world: World, tamper: Callable[[World], object], claim: str) -> None:
    tamper(world)
    (one,) = [one for one in check(look(world), EXPECTED) if claim in one.claim]
    assert not one.holds


def test_a_process_that_died_elsewhere_is_told(world: World) -> None:
    """Else an act could claim a half-done commit that its child, too quick or too slow, was not caught in."""
    attempt = stage_only(world)
    moment = look(world, [attempt])
    assert caught(moment, ORDER, attempt, prepared=["shop", "warehouse"]).holds
    assert not caught(moment, ORDER, attempt, prepared=["shop"]).holds
    assert not caught(moment, ORDER, "0" * 32, prepared=["shop"]).holds


def test_a_database_that_cannot_be_asked_fails(world: World) -> None:
    down = World(world.shop, "postgresql://me@127.0.0.1:1/warehouse", world.payments)
    assert not all(one.holds for one in check(look(down), EXPECTED))


def test_payments_happen_once_per_order(tmp_path: Path) -> None:
    with payments.service(tmp_path / "payments") as till:
        for _ in range(2):
            payments.charge(till, "order-1", 100, "good")
        payments.refund(till, "order-1")
        payments.refund(till, "order-1")
        payments.refund(till, "order-2")  # overtakes its charge
        with pytest.raises(payments.PaymentFailed, match="cancelled"):
            payments.charge(till, "order-2", 100, "good")
        with pytest.raises(payments.PaymentFailed, match="already"):
            payments.charge(till, "order-1", 200, "good")
        first, second = payments.ledger(till)
    assert (first.charged, first.refunded) == (100, 100)
    assert (second.charged, second.voided) == (0, True)
