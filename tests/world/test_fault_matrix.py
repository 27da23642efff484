"""Every cell of the contract's fault matrix, at once and staged, for each flavour of database."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodoubt.testing.world import matrix
from nodoubt.testing.world.matrix import Cell

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("cell", list(matrix.cells()), ids=str)
def test_cell(cell: Cell) -> None:
    assert matrix.result(cell).violated == ""


def test_the_page_is_current() -> None:
    page = ROOT / "docs" / "fault-matrix.md"
    command = "python -m nodoubt.testing.world.matrix docs/fault-matrix.md"
    assert page.read_text("utf-8") == matrix.page(), f"write it anew: {command}"


@pytest.mark.parametrize("test", sorted(set(matrix.REAL.values())))
def test_the_tests_on_real_servers_that_it_names_exist(test: str) -> None:
    path, _, name = test.partition("::")
    assert f"def {name}(" in (ROOT / path).read_text("utf-8")


def test_every_point_at_which_something_is_prepared_or_decided_is_killed_on_real_servers_too() -> None:
    points = {f"P{number}" for number in range(3, 10)}
    for fault in ("kill coordinator", "kill participant"):
        assert {point for point, kind in matrix.REAL if kind == fault} == points


def test_a_cell_that_comes_out_otherwise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell("P8", "lost reply", "once", "postgres")
    monkeypatch.setattr(matrix, "allowed", lambda _: frozenset({matrix.Came.ABORTED}))
    assert "is not what" in matrix.result.__wrapped__(cell).violated
