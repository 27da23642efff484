"""The documents say what the code does: the diagram is current, what they name exists. Snippets: test_pages.py."""

from __future__ import annotations

import re
from pathlib import Path

from nodoubt.protocol.diagram import inserted

ROOT = Path(__file__).parents[2]


def test_the_diagram_is_drawn_from_the_table() -> None:
    document = (ROOT / "ARCHITECTURE.md").read_text()
    assert inserted(document) == document, "run: python -m nodoubt.protocol.diagram ARCHITECTURE.md"


def test_every_file_that_a_document_names_exists() -> None:
    for document in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        for path in re.findall(r"\b(?:tests|src|docs|examples|benchmarks)/[\w./-]*\w", document.read_text()):
            assert (ROOT / path).exists(), f"{document.name} names {path}"
