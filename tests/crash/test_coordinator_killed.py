"""kill -9 of the coordinator at P3 to P9, on every pair of databases, at once and staged.

After it: two sweeps, then everywhere or nowhere, nothing prepared, nothing locked, and what the caller was told is so.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from crash.nest import nest_of
from kit import QUICK, Database, make_database, until
from nodoubt import Coordinator, State, UnknownTransaction
from nodoubt.points import Point

PAIRS = [
    ("postgres", "postgres"),
    ("postgres", "mariadb"),
    ("postgres", "sqlite"),
    ("mariadb", "sqlite"),
    ("sqlite", "sqlite"),
]
# Where, by which notice, at which occurrence; what must come of it, at once and after having been staged.
POINTS = [
    ("P3", "prepare", 1, "aborted"),
    ("P3", "prepared", 1, "aborted"),
    ("P4", "all prepared", 1, "aborted"),
    ("P5", "deciding", 1, "aborted"),
    ("P6", "committed", 1, "committed"),
    ("P8", "commit", 1, "committed"),
    ("P7", "branch committed", 1, "committed"),
    ("P9", "every branch proved", 1, "committed"),
]
STAGED_POINTS = [
    ("P3", "prepare", 1, "aborted"),
    ("P3", "prepared", 1, "aborted"),
    ("P1", "begun", 1, "aborted"),
    ("P3", "prepare", 2, "aborted"),
    ("P3", "prepared", 2, "staged"),
    ("P4", "staged", 1, "staged"),
    ("P5", "deciding", 1, "staged"),
    ("P6", "committed", 1, "committed"),
    ("P8", "commit", 1, "committed"),
    ("P7", "branch committed", 1, "committed"),
    ("P9", "every branch proved", 1, "committed"),
]
JOURNALS = ["first", "own"]
CHILD = Path(__file__).with_name("child.py")


def killed_at(task: dict[str, Any], program: Path = CHILD) -> list[str]:
    """Run the child until it dies by its own hand; what it had told its caller."""
    code, written = nest_of(program).run(task)
    assert code == -signal.SIGKILL, f"it was to die at {task['kill']}: {written}"
    return written.split()


def recover(db: Coordinator, pair: list[Database]) -> None:
    """Two sweeps (I8). A server needs a moment to notice that a killed client is gone."""
    until(lambda: db.recover(grace=0).clean)
    report = db.recover(grace=0)
    assert report.clean, report


def outcome(db: Coordinator, pair: list[Database]) -> str:
    balances = (pair[0].balance(), pair[1].balance())
    assert balances in ((100, 100), (70, 130)), f"atomicity is broken: {balances}"
    if balances == (70, 130):
        return "committed"
    try:
        record = db.status("pay")
    except UnknownTransaction:
        return "aborted"
    return "staged" if record.state is State.PREPARED else "aborted"


CASES = [("once", *point) for point in POINTS] + [("staged", *point) for point in STAGED_POINTS]


@pytest.mark.parametrize("journal", JOURNALS)
@pytest.mark.parametrize("kinds", PAIRS, ids="+".join)
@pytest.mark.parametrize(("way", "point", "what", "count", "expected"), CASES)
def test_kill_9_of_the_coordinator_ends_one_way(
    way: str,
    point: str,
    what: str,
    count: int,
    expected: str,
    kinds: tuple[str, str],
    journal: str,
    request: Any,
    tmp_path: Path,
) -> None:
    if expected == "staged" and point == "P3" and journal == "own":
        expected = "aborted"  # without a branch in the journal's database the row comes after the last prepare
    pair = [make_database(kind, name, request, tmp_path) for kind, name in zip(kinds, "ab", strict=True)]
    urls = {d.name: d.url for d in pair}
    at = None if journal == "first" else f"sqlite:///{tmp_path}/journal.db"
    mode = ("sync", "async")[hash_of(kinds, point, what, way) % 2]
    with Coordinator(urls, journal=at, recovery=False) as db:
        db.setup()
    told = killed_at(
        {"urls": urls, "journal": at, "way": way, "mode": mode, "kill": str(Point(point, what, count=count))}
    )
    with Coordinator(urls, journal=at, settings=QUICK, recovery=False) as db:
        recover(db, pair)
        came = outcome(db, pair)
        assert came == expected, f"{mode}, {told}"
        if "committed" in told:
            assert came == "committed", "the caller was told so (I5)"
        if came == "staged":
            assert len([x for d in pair for x in d.prepared()]) == 2
            db.rollback_distributed("pay")
            assert outcome(db, pair) == "aborted"
        assert [d.prepared() for d in pair] == [[], []]
        assert not any(d.locked() for d in pair)
        assert db.quarantined() == []


def hash_of(*words: object) -> int:
    """The same in every process, unlike `hash`."""
    return sum(map(ord, repr(words)))
