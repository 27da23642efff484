"""The documents say what the code does: the diagram is current, the README's examples run, the rooms exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.conftest import ENVIRONMENT
from nodoubt.points import KNOWN
from nodoubt.protocol.diagram import inserted
from nodoubt.testing.nursery import Address

ROOT = Path(__file__).parents[2]


def test_the_diagram_is_drawn_from_the_table() -> None:
    document = (ROOT / "ARCHITECTURE.md").read_text()
    assert inserted(document) == document, "run: python -m nodoubt.protocol.diagram ARCHITECTURE.md"


def test_every_file_that_a_document_names_exists() -> None:
    for name in ("README.md", "ARCHITECTURE.md", "TESTING.md", "docs/testing-your-code.md"):
        for path in re.findall(r"\b(?:tests|src|examples)/[\w./]*\w", (ROOT / name).read_text()):
            assert (ROOT / path).exists(), f"{name} names {path}"


def test_the_readme_s_examples_on_sqlite_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    first, verbs = (example for example in examples if "sqlite:///shop.db" in example)
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


def test_the_readme_s_example_of_a_test_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = (
        c for c in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL) if "crash_" in c
    )
    monkeypatch.setenv("NODOUBT_POINT", "P7.branch-committed@stock")  # all of them take their time
    order, _ = Address.parse(f"{ROOT}/examples/order.py:process_order").load()
    given = {name: getattr(order, name) for name in ("process_order", "TABLES", "check")}
    exec(compile(code, "README.md", "exec"), given)
    given["test_an_order_is_all_or_nothing_whatever_dies"]()


TESTING_PAGE = ROOT / "docs" / "testing-your-code.md"


def test_the_page_on_testing_is_made_of_tests_that_pass(tmp_path: Path) -> None:
    """Each of its examples begins with the name of its file."""
    examples = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", TESTING_PAGE.read_text(), re.DOTALL)
    assert len(examples) == TESTING_PAGE.read_text().count("```python") == 4
    for name, code in examples:
        (tmp_path / name).write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "5 passed" in done.stdout and done.returncode == 0, done.stdout + done.stderr


def test_the_page_on_testing_lists_every_point() -> None:
    listed = re.findall(r"^\| `(P\d+)\.([a-z-]+)` \| (.*) \|$", TESTING_PAGE.read_text(), re.MULTILINE)
    assert {(number, what.replace("-", " ")): meaning for number, what, meaning in listed} == KNOWN
