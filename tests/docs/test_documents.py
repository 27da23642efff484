"""The documents say what the code does: the diagram is current, the README's examples run, the rooms exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nodoubt.protocol.diagram import inserted

ROOT = Path(__file__).parents[2]


def test_the_diagram_is_drawn_from_the_table() -> None:
    document = (ROOT / "ARCHITECTURE.md").read_text()
    assert inserted(document) == document, "run: python -m nodoubt.protocol.diagram ARCHITECTURE.md"


def test_every_file_that_a_document_names_exists() -> None:
    for name in ("README.md", "ARCHITECTURE.md", "TESTING.md"):
        for path in re.findall(r"\b(?:tests|src)/[\w./]*\w", (ROOT / name).read_text()):
            assert (ROOT / path).exists(), f"{name} names {path}"


def test_the_readme_s_examples_on_sqlite_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    first, verbs, _ = (example for example in examples if "sqlite:///shop.db" in example)
    monkeypatch.chdir(tmp_path)
    import apsw

    shop, stock = apsw.Connection("shop.db"), apsw.Connection("stock.db")
    shop.execute("create table orders (id integer primary key, total int)")
    stock.execute("create table products (id integer primary key, stock int); insert into products values (7, 3)")
    exec(compile(first, "README.md", "exec"), {})
    assert list(shop.execute("select * from orders")) == [(42, 99)]
    assert list(stock.execute("select * from products")) == [(7, 2)]
    exec(compile(verbs, "README.md", "exec"), {})
    assert list(shop.execute("select * from orders")) == [(42, 99), (43, 20), (44, 5)]
    assert list(stock.execute("select * from products")) == [(7, 0)]
    shop.close()
    stock.close()


class Bank:
    """What the README's steps talk to."""

    def __init__(self) -> None:
        self.charges: dict[str, int] = {}

    def charge(self, cents: int, *, idempotency_key: str) -> str:
        self.charges[idempotency_key] = cents
        return "payment-1"

    def refund(self, *, of: str, idempotency_key: str) -> None:
        raise AssertionError("it is committed")


def test_the_readme_s_steps_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "@nodoubt.step" in block]
    monkeypatch.chdir(tmp_path)
    import apsw

    from nodoubt import Coordinator

    shop, stock = apsw.Connection("shop.db"), apsw.Connection("stock.db")
    shop.execute("create table orders (id integer primary key, total int)")
    stock.execute("create table products (id integer primary key, stock int); insert into products values (7, 3)")
    with Coordinator({"shop": "sqlite:///shop.db", "stock": "sqlite:///stock.db"}) as db:
        db.setup()
    names = {"__name__": "readme", "bank": Bank()}
    exec(compile(code, "README.md", "exec"), names)
    assert list(shop.execute("select * from orders")) == [(42, 99)]
    assert list(stock.execute("select * from products")) == [(7, 2)]
    assert list(names["bank"].charges.values()) == [9900] and names["payment"] == "payment-1"  # type: ignore[attr-defined]
    shop.close()
    stock.close()
