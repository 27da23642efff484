"""kill -9 in the middle of ORM work on users' own engines; recovery on those engines, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alchemy.world import engine_over
from crash.test_coordinator_killed import killed_at, outcome, recover
from kit import QUICK, Database, make_database
from nodoubt import Coordinator
from nodoubt.points import Point

POINTS = [
    ("once", "P3", "prepare", "aborted"),
    ("once", "P3", "prepared", "aborted"),
    ("once", "P5", "deciding", "aborted"),
    ("once", "P8", "commit", "committed"),
    ("staged", "P3", "prepared", "aborted"),
    ("staged", "P8", "commit", "committed"),
]
DRIVERS = [
    ("sync", ("postgres", "psycopg"), ("mariadb", "pymysql")),
    ("async", ("mariadb", "asyncmy"), ("postgres", "asyncpg")),
    ("async", ("postgres", "psycopg"), ("mariadb", "aiomysql")),
]
RECOVERING = {"postgres": "psycopg", "mariadb": "pymysql"}


@pytest.mark.parametrize("drivers", DRIVERS, ids=lambda drivers: f"{drivers[1][1]}+{drivers[2][1]}")
@pytest.mark.parametrize(("way", "point", "what", "expected"), POINTS)
def test_kill_9_in_orm_work_ends_one_way(
    way: str, point: str, what: str, expected: str, drivers: Any, request: Any, tmp_path: Path
) -> None:
    mode, *places = drivers
    pair = [make_database(kind, name, request, tmp_path) for name, (kind, _) in zip("ab", places, strict=True)]
    with Coordinator(engines(pair), recovery=False) as db:
        db.setup()
    task = {
        "urls": {d.name: d.url for d in pair},
        "drivers": {name: driver for name, (_, driver) in zip("ab", places, strict=True)},
        "mode": mode,
        "way": way,
        "kill": str(Point(point, what)),
    }
    told = killed_at(task, Path(__file__).with_name("child.py"))
    with Coordinator(engines(pair), settings=QUICK, recovery=False) as db:
        recover(db, pair)
        assert outcome(db, pair) == expected, told
    assert not any(d.prepared() or d.locked() for d in pair)
    assert len({len(d.query("select id from accounts where id = 7")) for d in pair}) == 1


def engines(pair: list[Database]) -> dict[str, Any]:
    return {d.name: engine_over(d, RECOVERING[d.kind]) for d in pair}
