"""`explore`: the example is sound, what is not is found, and nothing but throw-away databases is touched unasked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import ENVIRONMENT, nodoubt

EXAMPLES = Path(__file__).parents[2] / "examples"
ORDER = f"{EXAMPLES}/order.py:process_order"


def edited(tmp_path: Path, *changes: tuple[str, str]) -> str:
    """The example with a mistake in it."""
    source = (EXAMPLES / "order.py").read_text("utf-8")
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    file = tmp_path / "order_edited.py"
    file.write_text(source, "utf-8")
    return f"{file}:process_order"


def document(*arguments: str, code: int) -> Any:
    result = nodoubt("explore", *arguments, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def test_programs_get_every_point_with_what_came_of_it() -> None:
    found = document(ORDER, "--only", "P3.prepared@stock", "--only", "P6.committed", code=0)
    assert found["failed"] == 0 and found["exit_code"] == 0
    states = {one["point"]: one["states"] for one in found["points"]}
    assert len(states) == 3
    assert states[None] == states["P6.committed"] == ["committed"]
    assert states["P3.prepared@stock"] == ["aborted"]
    assert all(one["ending"] == "ended well" and one["meaning"] and not one["why"] for one in found["points"])


def test_people_get_a_table() -> None:
    result = nodoubt("explore", ORDER, "--only", "P8.commit@stock")
    assert result.exit_code == 0, result.output
    assert "before a prepared branch is told to commit" in result.output
    assert result.output.count("ended well") == 3 and "P7" not in result.output


def test_the_example_ends_well_wherever_it_is_killed() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "order.py")], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    assert done.stdout == "13 ways to die, and each of them ended well\n"


def test_work_that_can_be_cut_in_half_exits_with_1(tmp_path: Path) -> None:
    halves = edited(
        tmp_path,
        ('        taken = tx["stock"].', '    with db.transaction() as tx:\n        taken = tx["stock"].'),
        ("if crash.state is State.COMMITTED", "if State.COMMITTED in crash.states"),
        ("it was {crash.state}", "it was {crash.states}"),
    )
    found = document(halves, "--only", "P1.begun@stock", "--only", "P1.begun@shop", code=1)
    (one,) = (one for one in found["points"] if one["ending"] != "ended well")
    assert one["point"] == "P1.begun@stock" and one["ending"] == "check failed"
    assert "1 orders, 3 left" in one["why"]
    result = nodoubt("explore", halves, "--only", "P1.begun@stock")
    assert result.exit_code == 1 and "P1.begun@stock: check failed" in result.output


def test_what_recovery_cannot_resolve_exits_with_3(tmp_path: Path) -> None:
    raising = '            raise LookupError("there is none left")\n'
    lost = edited(
        tmp_path,
        (raising, raising + '    __import__("os").unlink(RESOURCES["stock"][10:])\n'),
        ('"stock": "sqlite"', f'"stock": "sqlite:///{tmp_path}/gone.db"'),
    )
    found = document(lost, "--yes", "--only", "P10.ended", code=3)
    assert {one["ending"] for one in found["points"]} == {"not resolved"}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["order.py"], "write FILE:FUNCTION"),
        (["nowhere.py:f"], "there is no file 'nowhere.py'"),
        ([f"{EXAMPLES}/order.py:place"], "has no function 'place'"),
        ([ORDER, "-r", "shop=oracle"], "a kind of throw-away database"),
        ([ORDER, "-r", "postgres"], "NAME=KIND"),
        ([ORDER, "--only", "P12"], "names no point"),
        ([ORDER, "-r", "shop=sqlite:///shop.db"], "there is no terminal to ask on"),
    ],
)
def test_what_cannot_be_explored_is_a_usage_error(arguments: list[str], why: str) -> None:
    result = nodoubt("explore", *arguments)
    assert result.exit_code == 2, result.output
    assert why in " ".join(result.output.split())


def test_a_file_that_cannot_be_loaded_is_its_writer_s_mistake(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found")
    result = nodoubt("explore", f"{tmp_path}/broken.py:f")
    assert result.exit_code == 2 and "cannot be loaded: ModuleNotFoundError" in " ".join(result.output.split())


def test_the_environment_s_databases_are_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NODOUBT_RESOURCES", f"shop=sqlite:///{tmp_path}/shop.db stock=sqlite:///{tmp_path}/stock.db")
    document(ORDER, "--only", "P6.committed", code=0)
    assert list(tmp_path.iterdir()) == []
