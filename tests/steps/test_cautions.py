"""Warnings of what works and should not be done: each cause is told once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kit import Database, make_database
from nodoubt import Coordinator, Settings
from nodoubt.engine import cautions


@pytest.fixture
def pair(request: Any, tmp_path: Path) -> list[Database]:
    return [make_database("postgres", name, request, tmp_path) for name in "ab"]


def coordinator(pair: list[Database], **settings: Any) -> Coordinator:
    made = Coordinator({d.name: d.url for d in pair}, settings=Settings(**settings), recovery=False).open()
    made.setup()
    return made


def stage(db: Coordinator, name: str, number: int, on: str = "ab", **options: Any) -> None:
    with db.begin_distributed(name, **options) as tx:
        for database in on:
            tx[database].execute("insert into accounts values (%s, 0)", (10 + number,))


def told(caplog: pytest.LogCaptureFixture, words: str) -> int:
    return sum(words in record.getMessage() for record in caplog.records)


def look(db: Coordinator) -> None:
    db._shell.run(cautions.look(db._ctx))


def test_locks_that_are_held_for_long_are_told_once_for_each(
    pair: list[Database], caplog: pytest.LogCaptureFixture
) -> None:
    db = coordinator(pair, held_warn_s=0.000001)
    try:
        for number in range(2):
            stage(db, f"n{number}", number)
        for _ in range(3):
            look(db)
        assert told(caplog, "holds its locks on a, b") == 2
        for number in range(2):
            db.rollback_distributed(f"n{number}")
    finally:
        db.close()


def test_too_many_that_are_open_are_told_once_and_again_when_they_come_back(
    pair: list[Database], caplog: pytest.LogCaptureFixture
) -> None:
    db = coordinator(pair, open_warn=2)
    try:
        for turn in (1, 2):
            for number in range(3):
                stage(db, f"t{turn}-{number}", number)
                for _ in range(2):
                    look(db)
            assert told(caplog, "more than 2 staged transactions") == turn
            for number in range(3):
                db.rollback_distributed(f"t{turn}-{number}")
            look(db)
    finally:
        db.close()


def test_two_phases_for_one_branch_are_told_unless_there_is_something_to_wait_for(
    pair: list[Database], caplog: pytest.LogCaptureFixture
) -> None:
    db = coordinator(pair)
    try:
        stage(db, "both", 0)
        stage(db, "asked", 1, "a", confirmations={"shipping"})
        db.confirm("asked", "shipping")
        for name in ("both", "asked"):
            db.commit_distributed(name)
        assert told(caplog, "one branch only") == 0
        for number in (2, 3):
            stage(db, f"alone-{number}", number, "a")
            db.commit_distributed(f"alone-{number}")
        assert told(caplog, "one branch only") == 1
    finally:
        db.close()


def test_with_one_database_there_is_nothing_else_to_stage_on(
    pair: list[Database], caplog: pytest.LogCaptureFixture
) -> None:
    db = coordinator(pair[:1])
    try:
        stage(db, "one", 0, "a")
        db.commit_distributed("one")
        assert told(caplog, "one branch only") == 0
    finally:
        db.close()
