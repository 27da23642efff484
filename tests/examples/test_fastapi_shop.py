"""A program of two databases, written without nodoubt, becomes atomic by fewer than ten changed lines."""

from __future__ import annotations

import difflib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kit import QUICK, Database, until
from nodoubt import Coordinator
from nodoubt.cli.root import root

SHOP = Path(__file__).parents[2] / "examples/fastapi_shop"
SHOPPER = Path(__file__).with_name("shopper.py")
DRIVERS = {"postgresql": "postgresql+psycopg", "mariadb": "mariadb+pymysql", "sqlite": "sqlite"}
# Where the changed program is killed, and what must come of it.
POINTS = [
    ("P4.all-prepared", "nothing"),
    ("P6.committed", "an order"),  # between the two commits: one is done, the other has not begun
    ("P7.branch-committed", "an order"),
]
NOTHING, AN_ORDER, BROKEN = (0, 10), (1, 8), (1, 10)  # orders, and how many of product 7 are left


def test_fewer_than_ten_lines_change() -> None:
    """`NODOUBT_RATCHET=write` writes the diff anew."""
    before, after = ((SHOP / f"{name}.py").read_text().splitlines(keepends=True) for name in ("before", "after"))
    found = list(difflib.unified_diff(before, after, "before.py", "after.py"))
    if os.environ.get("NODOUBT_RATCHET") == "write":
        (SHOP / "change.diff").write_text("".join(found))
    assert "".join(found) == (SHOP / "change.diff").read_text(), "run this test with NODOUBT_RATCHET=write"
    changed = [line for line in found if line[0] in "+-" and line[:3] not in ("+++", "---")]
    assert 0 < len(changed) < 10, "".join(changed)


@dataclass(frozen=True)
class Shop:
    """The two databases, and lives of the program on them."""

    orders: Database
    stock: Database

    @property
    def urls(self) -> dict[str, str]:
        return {one.name: one.url for one in (self.orders, self.stock)}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SHOP.parents[1]), *sys.path])}
        for name, url in self.urls.items():
            scheme, _, rest = url.partition("://")
            environment[f"{name.upper()}_URL"] = f"{DRIVERS[scheme]}://{rest}"
        return subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, timeout=60, env=environment, check=False
        )

    def live(self, which: str, kill: str | None = None) -> list[str]:
        """What the customer was told, in one life of the program."""
        done = self.run(str(SHOPPER), which, json.dumps(kill))
        assert done.returncode == (-signal.SIGKILL if kill else 0), done.stdout + done.stderr
        return done.stdout.split()

    def recover(self) -> None:
        with Coordinator(self.urls, recovery=False, settings=QUICK) as db:
            until(lambda: db.recover(grace=0).clean)  # a server needs a moment to notice that its client is gone
            assert db.recover(grace=0).clean

    def state(self) -> tuple[int, int]:
        orders, in_stock = (
            one.query(f"select {what}")[0][0]
            for one, what in ((self.orders, "count(*) from orders"), (self.stock, "in_stock from products"))
        )
        return orders, in_stock


@pytest.fixture(params=["sqlite+sqlite", "postgres+mariadb"], scope="module")
def furnished(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """With the program's tables, made by its own models, and nodoubt's, made as a deployment makes them."""
    folder = tmp_path_factory.mktemp("shop")
    databases = [
        Database(name, f"sqlite:///{folder}/{name}.db" if kind == "sqlite" else request.getfixturevalue(kind).url())
        for name, kind in zip(("orders", "stock"), request.param.split("+"), strict=True)
    ]
    shop = Shop(*databases)
    done = shop.run("-m", "examples.fastapi_shop.models")
    assert done.returncode == 0, done.stderr
    flags = [part for name, url in shop.urls.items() for part in ("-r", f"{name}={url}")]
    applied = CliRunner().invoke(root, ["schema", "apply", *flags])
    assert applied.exit_code == 0, applied.output
    return shop


@pytest.fixture
def shop(furnished: Shop) -> Iterator[Shop]:
    """Ten of product 7, and no order."""
    furnished.orders.query("delete from orders")
    furnished.stock.query("update products set in_stock = 10")
    assert furnished.state() == NOTHING
    yield furnished
    assert [furnished.orders.prepared(), furnished.stock.prepared()] == [[], []]


@pytest.mark.parametrize("which", ["before", "after"])
def test_undisturbed_both_do_the_same(shop: Shop, which: str) -> None:
    assert shop.live(which) == ["201", "409"]
    assert shop.state() == AN_ORDER


def test_killed_between_its_commits_the_program_without_breaks(shop: Shop) -> None:
    assert shop.live("before", "the second commit") == []
    assert shop.state() == BROKEN


@pytest.mark.parametrize(("point", "expected"), POINTS)
def test_killed_there_the_changed_program_does_not(shop: Shop, point: str, expected: str) -> None:
    assert shop.live("after", point) == []
    shop.recover()
    assert shop.state() == {"nothing": NOTHING, "an order": AN_ORDER}[expected]
