"""The numbered files, and what is made of the record: without a database."""

from __future__ import annotations

import re

import pytest

from nodoubt import SchemaMismatch
from nodoubt.ports import Version
from nodoubt.schema import GATES, Part, SchemaError, judge, pending, read, shipped
from nodoubt.schema.files import split
from nodoubt.schema.tables import Row, version_of
from schema.releases import LATER, REFUSED, WORK_ON, schema_of

EVERY = list(GATES)
WITHOUT = "-- Without it: all but jobs.\n"
FIRST = "-- Older coordinators: there are none.\nCREATE TABLE t (x int);\n"


@pytest.mark.parametrize(("part", "kind"), EVERY)
def test_what_is_shipped_can_be_read_and_qualifies_every_table(part: Part, kind: str) -> None:
    """An unqualified name would be looked for wherever the session happens to be."""
    schema = shipped(part, kind)
    assert [one.number for one in schema.migrations] == list(range(1, schema.known + 1))
    ours = {"postgres": r"nodoubt\.\w+", "mariadb": r"\{database\}\.nodoubt_\w+", "sqlite": r"main\.nodoubt_\w+"}[kind]
    for statement in (*split(schema.record_sql()), *schema.migrations[0].statements):
        named = re.search(r"(?:TABLE|SCHEMA)(?: IF NOT EXISTS)? (\S+)", statement)
        if named is not None:
            assert re.fullmatch(f"{ours}|nodoubt", named[1]), statement


@pytest.mark.parametrize(("part", "kind"), EVERY)
def test_a_migration_tells_which_tables_it_makes(part: Part, kind: str) -> None:
    for one in shipped(part, kind).migrations:
        assert len(one.tables) == sum("CREATE TABLE" in statement for statement in one.statements)
        assert (one.brings in one.tables) is bool(one.brings)


@pytest.mark.parametrize(("part", "kind"), EVERY)
def test_the_gate_is_one_of_the_tables(part: Part, kind: str) -> None:
    (first, *_) = shipped(part, kind).migrations
    assert f"CREATE TABLE IF NOT EXISTS {GATES[part, kind]} (" in first.sql


def test_who_may_work_on_is_what_the_newest_migration_that_refuses_says() -> None:
    grows = f"{WORK_ON}ALTER TABLE nodoubt.names ADD COLUMN x int;"
    breaks = f"{REFUSED}ALTER TABLE nodoubt.decisions RENAME TO decisions_3;"
    again = f"{REFUSED}ALTER TABLE nodoubt.decisions_3 RENAME TO decisions_5;"
    schema = read(Part.JOURNAL, "postgres", [FIRST, grows, breaks, grows, again])
    assert [one.works_from for one in schema.migrations] == [1, 1, 3, 3, 5]
    assert [one.refuses_older for one in schema.migrations] == [False, False, True, False, True]


def test_what_is_needed_is_the_newest_migration_that_not_only_a_part_needs() -> None:
    brings = f"{WORK_ON}{WITHOUT}CREATE TABLE nodoubt.jobs (x int);"
    grows = f"{WORK_ON}ALTER TABLE nodoubt.names ADD COLUMN x int;"
    for texts, needed in (([FIRST], 1), ([FIRST, brings], 1), ([FIRST, brings, grows], 3), ([FIRST, grows, brings], 2)):
        assert read(Part.JOURNAL, "postgres", texts).needed == needed
    for kind in ("postgres", "mariadb", "sqlite"):
        assert (shipped(Part.JOURNAL, kind).needed, shipped(Part.JOURNAL, kind).known) == (1, 2)


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        (["CREATE TABLE t (x int);"], "must have one line"),
        ([f"{WORK_ON}CREATE TABLE t (x int);"], "must have one line"),
        ([FIRST, FIRST], "must have one line"),
        ([FIRST, f"{WORK_ON}{REFUSED}SELECT 1;"], "must have one line"),
        ([f"{FIRST}\n{WITHOUT}"], "cannot be done without"),
        ([FIRST, f"{REFUSED}{WITHOUT}ALTER TABLE nodoubt.decisions RENAME TO x;"], "cannot be done without"),
        ([FIRST, f"{REFUSED}ALTER TABLE nodoubt.names ADD COLUMN x int;"], "its first statement must be ALTER TABLE"),
        (
            [FIRST, f"{REFUSED}CREATE TABLE x (y int); ALTER TABLE nodoubt.decisions RENAME TO decisions_2;"],
            "its first statement must be ALTER TABLE nodoubt.decisions RENAME TO",
        ),
        (
            [
                FIRST,
                f"{REFUSED}ALTER TABLE nodoubt.decisions RENAME TO decisions_2;",
                f"{REFUSED}ALTER TABLE nodoubt.decisions RENAME TO decisions_3;",
            ],
            r"must be ALTER TABLE nodoubt.decisions_2 RENAME TO",
        ),
    ],
)
def test_a_file_that_leaves_open_what_becomes_of_older_coordinators_is_an_error(texts: list[str], why: str) -> None:
    """Whoever refuses them without shutting their gate first would let them commit in the meantime."""
    with pytest.raises(SchemaError, match=why):
        read(Part.JOURNAL, "postgres", texts)


def test_statements_end_where_no_comment_is() -> None:
    text = "-- a; b\n--\nCREATE TABLE a ( -- the; first\n    x int\n);\n\n-- c\nDROP TABLE b;\n"
    assert [" ".join(one.split()) for one in split(text)] == ["CREATE TABLE a ( x int )", "DROP TABLE b"]


@pytest.mark.parametrize(
    ("rows", "version"),
    [
        ([], None),
        ([Row(1, 1, 5, 5)], Version(1, 1)),
        ([Row(1, 1, 5, 5), Row(2, 1, 3, 3)], Version(2, 1)),
        ([Row(1, 1, 5, 5), Row(2, 1, 3, 0)], Version(1, 1, unfinished=True)),
        ([Row(1, 1, 5, 5), Row(2, 2, 3, 1)], Version(1, 2, unfinished=True)),
        ([Row(1, 1, 5, 5), Row(2, 2, 3, 3), Row(3, 2, 1, 1)], Version(3, 2)),
        ([Row(1, 1, 5, 2)], Version(0, 1, unfinished=True)),
    ],
)
def test_what_the_record_s_rows_say(rows: list[Row], version: Version | None) -> None:
    """Whom a migration refuses counts from its beginning, what it makes from its end."""
    assert version_of(rows) == version
    assert version_of(reversed(rows)) == version


@pytest.mark.parametrize(
    ("version", "known", "told"),
    [
        (None, 1, "are missing: run nodoubt schema apply"),
        (Version(1, 1), 1, ""),
        (Version(2, 1), 1, ""),
        (Version(1, 1, unfinished=True), 1, ""),
        (Version(2, 1, unfinished=True), 1, ""),
        (Version(2, 2), 1, "know version 2 may work; this release knows 1"),
        (Version(1, 2, unfinished=True), 1, "know version 2 may work; this release knows 1"),
        (Version(3, 2), 1, "migrated to version 3, on which only coordinators that know version 2"),
        (Version(3, 2), 2, ""),
        (Version(1, 1), 2, "of version 1; this release needs 2: run nodoubt schema apply"),
        (Version(1, 2, unfinished=True), 2, "a migration has begun that was not finished"),
        (Version(0, 1, unfinished=True), 1, "a migration has begun that was not finished"),
    ],
)
def test_who_may_work_on_which_tables(version: Version | None, known: int, told: str) -> None:
    schema = schema_of(Part.JOURNAL, "sqlite", known)
    if not told:
        judge(version, schema, "the journal")
        return
    with pytest.raises(SchemaMismatch, match=told):
        judge(version, schema, "the journal")


def test_what_is_pending_is_what_has_not_finished() -> None:
    schema = schema_of(Part.JOURNAL, "sqlite", 3)
    for version, numbers in ((None, [1, 2, 3]), (Version(1, 1), [2, 3]), (Version(1, 2, unfinished=True), [2, 3])):
        assert [one.number for one in pending(version, schema)] == numbers
    assert pending(Version(4, 1), schema) == ()


def test_the_releases_of_these_tests_cover_every_part_and_kind() -> None:
    assert set(LATER) == set(EVERY)
