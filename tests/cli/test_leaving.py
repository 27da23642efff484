"""`drop`: who is asked, and what is told."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from .conftest import ENVIRONMENT, Shop, nodoubt
from .test_asking import read_all


def known(shop: Shop) -> set[str]:
    """By a status, which changes nothing: what still says that it takes part."""
    return {one["name"] for one in shop.json("schema", "status", code=1)["databases"] if one["resource_id"]}


def test_a_database_is_forgotten_and_the_others_work_on(shop: Shop) -> None:
    stock = shop.json("schema", "status")["databases"][1]["resource_id"]
    assert shop.json("drop", "stock", "--yes") == {"name": "stock", "resource_id": stock, "looked_at": True}
    assert known(shop) == {"shop"}
    assert nodoubt("-r", f"shop={shop.urls['shop']}", "ls").exit_code == 0
    again = shop.nodoubt("drop", "stock", "--yes")
    assert again.exit_code == 2 and "there are: shop" in again.stderr


def test_while_it_is_needed_it_is_not_dropped(shop: Shop) -> None:
    shop.stage("order-1")
    result = shop.nodoubt("drop", "stock", "--yes")
    assert result.exit_code == 1 and "nodoubt recover" in result.stderr
    assert shop.json("schema", "status")["ok"] is True
    assert shop.nodoubt("drop", "shop", "--yes").exit_code == 1


def test_what_is_gone_need_not_be_there(shop: Shop) -> None:
    (shop.folder / "stock.db").unlink()
    away = shop.nodoubt("drop", "stock", "--yes")
    assert away.exit_code == 1 and "there is no file" in away.stderr
    assert shop.json("drop", "stock", "--gone", "--yes")["looked_at"] is False
    assert not (shop.folder / "stock.db").exists()


def test_without_a_terminal_nothing_is_dropped_unless_told_so(shop: Shop) -> None:
    result = shop.nodoubt("drop", "stock", input="stock\n")
    assert result.exit_code == 2 and "--yes" in result.stderr
    assert shop.json("schema", "status")["ok"] is True


@pytest.mark.parametrize(("typed", "code"), [("stock", 0), ("y", 1), ("", 1), ("shop", 1)])
def test_the_name_must_be_typed(shop: Shop, typed: str, code: int) -> None:
    ours, its = pty.openpty()
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", "nodoubt", *shop.options, "drop", "stock"],
            stdin=its, stdout=its, stderr=its, env=ENVIRONMENT,
        )  # fmt: skip
        os.close(its)
        os.write(ours, f"{typed}\n".encode())
        seen = read_all(ours)
        assert child.wait(60) == code, seen
    finally:
        os.close(ours)
    assert ("Nothing was changed" in seen) is (code == 1)
    assert ("forgotten for good" in " ".join(seen.split())) is True
