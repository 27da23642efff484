"""What is told from the text of a statement."""

from __future__ import annotations

import pytest

from nodoubt.errors import UsageError
from nodoubt.resources import mariadb_text as text


@pytest.mark.parametrize(
    ("statement", "verb"),
    [
        ("select 1", "SELECT"),
        ("  (( SELECT 1))", "SELECT"),
        ("/* update */ select 1", "SELECT"),
        ("-- update\n# delete\nselect 1", "SELECT"),
        ("/*! COMMIT */", ""),  # the server runs what is inside; we don't pretend to know
        ("/*M!100100 COMMIT */", ""),
        ("", ""),
        ("42", ""),
    ],
)
def test_the_verb_is_the_first_word_after_blanks_brackets_and_comments(statement: str, verb: str) -> None:
    assert text.verb(statement) == verb


@pytest.mark.parametrize(
    "statement",
    [
        "begin", "START TRANSACTION", "commit work", "ROLLBACK", "rollback to savepoint a", "SAVEPOINT a",
        "release savepoint a", "XA END 'x'", "lock tables t write", "UNLOCK TABLES", "use mysql", "SET autocommit = 0",
        "set @@session.autocommit=0", "SET @a = 1, autocommit=1", "/* x */ COMMIT",
    ],
)  # fmt: skip
def test_transaction_control_is_refused(statement: str) -> None:
    with pytest.raises(UsageError, match="begins and ends the transaction"):
        text.refuse_control(statement)


@pytest.mark.parametrize(
    "statement", ["select 'commit'", "insert into begin_log values (1)", "SET @a = 1", "call xa()"]
)
def test_other_statements_are_not(statement: str) -> None:
    text.refuse_control(statement)


@pytest.mark.parametrize(
    ("statement", "reads"),
    [
        ("select 1", True),
        ("WITH a AS (SELECT 1) SELECT * FROM a", True),
        ("show tables", True),
        ("explain select 1", True),
        ("select * from t FOR  UPDATE", False),
        ("select * from t for share", False),
        ("select * from t LOCK IN SHARE MODE", False),
        ("analyze update t set v = 1", False),
        ("insert into t values (1, 1)", False),
        ("call p()", False),
        ("do 1", False),
        ("/*! select 1 */", False),
        ("", False),
    ],
)
def test_only_what_surely_looks_like_reading_does(statement: str, reads: bool) -> None:
    assert text.only_reads(statement) is reads


@pytest.mark.parametrize(
    ("statement", "target"),
    [
        ("insert into a values (1)", ("", "a")),
        ("INSERT IGNORE INTO `A``b` (x) values (1)", ("", "a`b")),
        ("insert a values (1)", ("", "a")),
        ("replace delayed into s.a values (1)", ("s", "a")),
        ("update low_priority ignore `s` . `a` set x = 1", ("s", "a")),
        ("/* c */ delete quick from a where x", ("", "a")),
        ("select * from a", ("", "")),
        ("call p()", ("", "")),
    ],
)
def test_the_table_that_a_plain_statement_writes(statement: str, target: tuple[str, str]) -> None:
    assert text.written_table(statement) == target
