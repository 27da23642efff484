"""The page on idempotency keys says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import apsw
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "idempotency.md"


def test_its_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    apsw.Connection("shop.db").execute("create table orders (customer int, paid int)")
    billing = apsw.Connection("billing.db")
    billing.execute("create table charges (customer int, cents int)")
    exec(compile(code, "idempotency.md", "exec"), {})
    assert list(billing.execute("select * from charges")) == [(7, 990)]
    billing.close()


def test_every_file_that_it_names_exists() -> None:
    root = PAGE.parents[1]
    text = PAGE.read_text()
    for path in re.findall(r"\btests/[\w/]*\w", text):
        assert (root / path).exists()
    for name in re.findall(r"`(test_\w+\.py)`", text):
        assert (root / "tests/idempotency" / name).exists()
