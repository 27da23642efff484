"""Every heading of the page that nodoubt began from has its counterpart, with code and a test that exist."""

from __future__ import annotations

import re
from pathlib import Path

from docs.pages import ROOT

PAGE = ROOT / "docs" / "reference-page.md"

# In the order of the page, which is not part of this repository.
HEADINGS = [
    "Distributed Transactions",
    "Overview",
    "When to Use",
    "API",
    "Examples",
    "User Onboarding Workflow",
    "E-commerce Order Processing",
    "Batch Job Orchestration",
    "Idempotency and Retry Safety",
    "Failure Handling",
    "Best Practices",
    "Transaction Design",
    "Error Handling and Recovery",
    "Monitoring and Observability",
    "Operational Procedures",
    "FAQ",
    "Is this the same as XA or Sagas?",
    "What happens if the process crashes before commit?",
    "Patterns",
    "Coordinator Pattern",
    "Outbox Pattern",
    "Sequence Outline",
    "Idempotency Keys",
    "Timeouts and Compensation",
    "Recovery after Crash",
    "Auditing and Tracing",
    "Security and Access Control",
    "Testing Strategies",
    "Anti-patterns",
    "Extended Examples",
    "Multi-service User Provisioning",
    "Rollback with compensation",
    "Operational Guidance",
    "Checklist",
]
NOT_YET = ["Outbox Pattern"]
_LINK = re.compile(r"\[`?([^]`]+)`?\]\(([^)#]+)(?:#[\w-]+)?\)")


def rows(text: str) -> list[list[str]]:
    """The table's cells, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_each_of_its_headings_is_there_in_its_order() -> None:
    assert [heading for heading, *_ in rows(PAGE.read_text())] == HEADINGS


def wrong(text: str) -> list[str]:
    """What is missing behind the rows and the links."""
    found = []
    for heading, here, code, test in rows(text):
        yet = heading in NOT_YET
        if not here or yet is not here.startswith("not here yet") or bool(code) is yet or bool(test) is yet:
            found.append(f"{heading}: say what is here, where its code is, and which test holds it")
        for name, target in _LINK.findall(here + code + test):
            file = (PAGE.parent / target).resolve()
            if not file.exists():
                found.append(f"{heading}: there is no {target}")
            elif name.startswith("test_") and not name.endswith(".py") and not _defines(file, name):
                found.append(f"{heading}: {target} has no {name}")
        if not yet and not re.search(r"\[`test_\w+(\.py)?`\]\(\.\./tests/", test):
            found.append(f"{heading}: name a test")
    return found


def _defines(file: Path, name: str) -> bool:
    return re.search(rf"^(async )?def {name}\b", file.read_text(), re.MULTILINE) is not None


def test_nothing_is_in_its_place_without_code_and_a_test() -> None:
    assert wrong(PAGE.read_text()) == []


def test_what_does_not_exist_is_noticed() -> None:
    """The mutants of this file."""
    text = PAGE.read_text()
    for before, after in (
        ("../src/nodoubt/xid.py", "../src/nodoubt/xids.py"),
        ("test_each_right_is_needed", "test_each_right_is_granted"),
        ("[`engine/reaper.py`](../src/nodoubt/engine/reaper.py)", ""),
        ("not here yet: a table", "a table"),
        ("jobs.md)", "job.md)"),
    ):
        assert before in text
        assert wrong(text.replace(before, after, 1))
