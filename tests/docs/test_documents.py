"""The documents say what the code does: the diagram is current, what they name exists. Snippets: test_pages.py."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from cli.conftest import ENVIRONMENT
from nodoubt.points import KNOWN
from nodoubt.protocol.diagram import inserted

ROOT = Path(__file__).parents[2]


def test_the_diagram_is_drawn_from_the_table() -> None:
    document = (ROOT / "ARCHITECTURE.md").read_text()
    assert inserted(document) == document, "run: python -m nodoubt.protocol.diagram ARCHITECTURE.md"


def test_every_file_that_a_document_names_exists() -> None:
    for document in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        for path in re.findall(r"\b(?:tests|src|docs|examples|benchmarks)/[\w./-]*\w", document.read_text()):
            assert (ROOT / path).exists(), f"{document.name} names {path}"


COSTS = {
    "one database": ("postgres", "first", ("once",)),
    "PostgreSQL + PostgreSQL, at once": ("postgres+postgres", "first", ("once",)),
    "PostgreSQL + MariaDB, at once": ("postgres+mariadb", "first", ("once",)),
    "three PostgreSQL, at once": ("postgres+postgres+postgres", "first", ("once",)),
    "PostgreSQL + PostgreSQL, the journal elsewhere": ("postgres+postgres", "own postgres", ("once",)),
    "one PostgreSQL, staged, then committed": ("postgres", "first", ("begin", "commit")),
    "PostgreSQL + PostgreSQL, staged, then committed": ("postgres+postgres", "first", ("begin", "commit")),
    "one MariaDB, staged, then committed": ("mariadb", "first", ("begin", "commit")),
}


def test_the_page_on_cost_says_what_is_counted() -> None:
    """The forced writes it says are the contract's: `cost/test_forced_writes.py`."""
    ratchet = (ROOT / "tests" / "cost" / "round_trips.txt").read_text()
    page = (ROOT / "docs" / "performance.md").read_text()
    table = {
        row[0]: row[3] for row in re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|", page, re.MULTILINE)
    }
    for title, (shape, journal, ways) in COSTS.items():
        for mode in ("sync", "async"):
            counted = [
                re.search(rf"^{re.escape(shape)} +{journal} +{way} +{mode} +(\d+) =", ratchet, re.MULTILINE)
                for way in ways
            ]
            assert table[title] == " + ".join(found[1] for found in counted if found), (title, mode)


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
    listed = re.findall(r"^\| `([PS]\d+)\.([a-z-]+)` \| (.*) \|$", TESTING_PAGE.read_text(), re.MULTILINE)
    assert {(number, what.replace("-", " ")): meaning for number, what, meaning in listed} == KNOWN
