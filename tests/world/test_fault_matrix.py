"""Every cell of the contract's fault matrix, at once and staged, for each flavour of database."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash import test_coordinator_killed, test_server_killed
from nodoubt.engine.attempt import Attempt
from nodoubt.testing.world import matrix
from nodoubt.testing.world.matrix import Cell
from traps import test_lost_replies, test_stalled_writers

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
    points = {(way, f"P{number}") for way in matrix.WAYS for number in range(3, 10)}
    coordinators = {(way, point) for way, point, *_ in test_coordinator_killed.CASES}
    servers = {(case.way, case.point) for case in test_server_killed.CASES}
    for fault, killed in (("kill coordinator", coordinators), ("kill participant", servers)):
        assert {(way, point) for way, point, kind in matrix.REAL if kind == fault} == points
        assert points <= killed, points - killed


def test_every_loss_that_the_page_names_is_one_on_real_servers() -> None:
    points = {
        b"PREPARE TRANSACTION": "P3", b"XA PREPARE": "P3", test_lost_replies.DECISION: "P5", b"ONE PHASE": "P5",
        b"COMMIT PREPARED": "P8", b"XA COMMIT": "P8",
    }  # fmt: skip
    faults = {
        "cut_request": "lost request",
        "cut_reply": "lost reply",
        "delay_reply": "delayed reply",
        "stall": "timeout",
    }
    lost = {
        ("once" if loss.way == "once" else "staged", points[loss.pattern], faults.get(loss.fault, loss.fault))
        for loss in test_lost_replies.LOSSES
        if loss.pattern in points
    }
    assert {cell for cell, test in matrix.REAL.items() if "test_lost_replies" in test} <= lost
    assert {cell for cell in lost if cell[2] in matrix.FAULTS} <= matrix.REAL.keys(), "the page keeps one to itself"


def test_every_stall_that_the_page_names_is_at_that_point_on_real_servers() -> None:
    stalls = {
        "test_a_writer_that_stalls": {(way, point) for way, _, point, *_ in test_stalled_writers.STALLS},
        "test_a_commit_that_stalls": {("once", stop.partition(".")[0]) for stop in test_stalled_writers.AFTER},
    }
    for test, points in stalls.items():
        named = {(way, point) for (way, point, _), real in matrix.REAL.items() if f"::{test}" in real}
        assert named and named <= points


def test_a_handle_that_outlives_its_block_is_noticed_at_every_point_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: nobody asks whether the block has ended."""
    monkeypatch.setattr(Attempt, "require_open", lambda _: None)
    again = [cell for cell in matrix.cells() if (cell.fault, cell.flavour) == ("called twice", "postgres")]
    unnoticed = {str(cell) for cell in again if matrix.result.__wrapped__(cell).violated == ""}
    assert unnoticed == {f"{point} called twice {way} postgres" for point in ("P1", "P2") for way in matrix.WAYS}


def test_a_cell_that_comes_out_otherwise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell("P8", "lost reply", "once", "postgres")
    monkeypatch.setattr(matrix, "allowed", lambda _: frozenset({matrix.Came.ABORTED}))
    assert "is not what" in matrix.result.__wrapped__(cell).violated
