"""The batch job: killed at every point it moves everybody, once; and what becomes of the page's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from examples.batch_job import job, original

from kit import QUICK, make_database
from nodoubt import Coordinator, NoDoubtError, State
from nodoubt.testing import Crash, crash_points
from nodoubt.testing.crashes import Exploration

README = Path(job.__file__).with_name("README.md")
# On servers, where a life costs more: in the second of the two chunks, and between it and the end.
POINTS = [
    "P3.prepared@shop#2",
    "P5.deciding@legacy#4",
    "P6.committed#4",
    "P7.branch-committed@shop#2",
]


def test_killed_at_every_point_it_moves_everybody_once_and_the_readme_shows_where() -> None:
    """`NODOUBT_RATCHET=write` writes the matrix anew."""
    explored = crash_points(job.migrate, resources=job.RESOURCES, tables=job.TABLES, check=check_as_shown)
    text = README.read_text()
    before, _, rest = text.partition("<!-- matrix: begin -->\n")
    after = rest[rest.index("<!-- matrix: end -->") :]
    shown = f"{before}<!-- matrix: begin -->\n{matrix(explored)}{after}"
    if os.environ.get("NODOUBT_RATCHET") == "write":
        README.write_text(shown)
    assert text == shown, "run this test with NODOUBT_RATCHET=write"


def moved_in(crash: Crash) -> int:
    """Of its transactions the third and the fourth are the chunks."""
    return job.SIZE * sum(state is State.COMMITTED for state in crash.states[2:4])


def check_as_shown(db: Coordinator, crash: Crash) -> None:
    """What the matrix says to have moved has, and the rest is where it was."""
    moved = moved_in(crash)
    assert job.everybody(db) == (job.CUSTOMERS - moved, moved)
    job.check(db, crash)


def matrix(explored: Exploration) -> str:
    lines = ["| killed at | what is so there | its transactions | have moved |", "| --- | --- | --- | --- |"]
    for one in explored.outcomes:
        meaning = "it runs to its end" if one.crash.point is None else one.crash.point.meaning
        signs = "".join("C" if state is State.COMMITTED else "A" for state in one.crash.states)
        lines.append(f"| `{one.name}` | {meaning} | {signs} | {moved_in(one.crash)} |")
    return "\n".join([*lines, ""])


def test_on_servers_too() -> None:
    resources = {"legacy": "postgres", "shop": "mariadb"}
    crash_points(job.migrate, resources=resources, tables=job.TABLES, check=job.check, points=POINTS)


ITEMS = list(range(1, 7))


@pytest.mark.parametrize("kind", ["postgres", "mariadb", "sqlite"])
def test_the_page_s_job_is_never_told_done_although_its_items_are(kind: str, request: Any, tmp_path: Path) -> None:
    """On PostgreSQL it ends as 'initializing'; on MariaDB it waits for its own lock; on SQLite it is refused."""
    only = make_database(kind, "only", request, tmp_path)
    for statement in (original.TABLE, original.DONE):
        only.query(statement)
    with Coordinator(only.url, settings=QUICK, recovery=False) as db:
        db.setup()
        page = original.BatchJobOrchestrator(db, "data_migration_2024", timeout=1)
        if kind == "postgres":
            page.execute_job(ITEMS, 3)
        else:
            with pytest.raises(NoDoubtError):
                page.execute_job(ITEMS, 3)
    rows = only.query("select status, processed_items from batch_jobs")
    done = [item for (item,) in only.query("select item from done order by item")]
    if kind == "postgres":
        assert rows == [("initializing", 0)] and done == ITEMS
    else:
        assert rows == [] and done == ITEMS[:3], "half of the items are done, and nothing tells of it"


def test_begun_again_the_page_s_job_does_its_items_again(tmp_path: Path, request: Any) -> None:
    """It never reads its progress, and its name is a new one each time: there is no recovery from a checkpoint."""
    only = make_database("postgres", "only", request, tmp_path)
    for statement in (original.TABLE, original.DONE):
        only.query(statement)
    with Coordinator(only.url, settings=QUICK, recovery=False) as db:
        db.setup()
        for _ in range(2):
            original.BatchJobOrchestrator(db, "data_migration_2024", timeout=1).execute_job(ITEMS, 3)
    assert len(only.query("select item from done")) == 2 * len(ITEMS)
