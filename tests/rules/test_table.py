"""The table of rules names tests that exist, and every test of the rules stands in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TEXT = (HERE / "README.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(\w+/test_\w+\.py)(?:::(test_\w+))?`", TEXT)))


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_what_the_table_names_exists(path: str, name: str) -> None:
    text = (HERE.parent / path).read_text(encoding="utf-8")
    assert not name or re.search(rf"def {name}\b", text), f"{path} has no {name}"


def test_every_test_of_a_rule_stands_in_the_table() -> None:
    missing = [
        name
        for path in HERE.glob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        if name not in TEXT and path.name != Path(__file__).name
    ]
    assert missing == []
