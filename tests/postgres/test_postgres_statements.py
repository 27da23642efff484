"""What the text of a statement tells."""

from __future__ import annotations

import pytest

from nodoubt.resources.postgres_statements import shape


@pytest.mark.parametrize(
    ("text", "control"),
    [
        ("BEGIN", "BEGIN"),
        ("begin isolation level serializable", "BEGIN"),
        ("START TRANSACTION", "START TRANSACTION"),
        ("COMMIT", "COMMIT"),
        ("commit and chain", "COMMIT"),
        ("COMMIT PREPARED 'x'", "COMMIT"),
        ("END", "END"),
        ("ABORT", "ABORT"),
        ("ROLLBACK", "ROLLBACK"),
        ("ROLLBACK TO SAVEPOINT a", "ROLLBACK TO"),
        ("ROLLBACK PREPARED 'x'", "ROLLBACK PREPARED"),
        ("PREPARE TRANSACTION 'x'", "PREPARE TRANSACTION"),
        ("SAVEPOINT a", "SAVEPOINT"),
        ("RELEASE SAVEPOINT a", "RELEASE"),
        ("/* a /* nested */ comment */ COMMIT", "COMMIT"),
        ("-- a comment\nCOMMIT", "COMMIT"),
        ("  ;; COMMIT", "COMMIT"),
        ("SELECT 1; COMMIT; BEGIN", "COMMIT"),
        ("SELECT ';' ; COMMIT", "COMMIT"),
        ("SELECT $$;$$; COMMIT", "COMMIT"),
        ("SELECT $a$ $$ ; $a$; COMMIT", "COMMIT"),
        ("SELECT E'\\'; '; COMMIT", "COMMIT"),
        ("INSERT INTO t VALUES (1) /* ; */ ; ROLLBACK", "ROLLBACK"),
    ],
)
def test_transaction_control_is_seen_wherever_a_statement_begins(text: str, control: str) -> None:
    assert shape(text).control == control


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 'COMMIT'",
        "SELECT ';COMMIT'",
        "SELECT ''';COMMIT'",
        "SELECT $$; COMMIT $$",
        "SELECT $x$; COMMIT; $x$",
        "SELECT 1 -- ; COMMIT",
        "SELECT 1 /* ; COMMIT /* ; COMMIT */ ; COMMIT */",
        'SELECT ";COMMIT" FROM t',
        "SELECT E'a\\';COMMIT'",
        "SELECT a$b$ FROM t; SELECT b$b$ FROM t",
        "CREATE TABLE begin_x (a int)",
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END",
        "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN 1; END $$",
        "SELECT CASE WHEN true THEN 1 END",
        "PREPARE transactions AS SELECT 1",
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "",
        "'unterminated",
        "/* unterminated",
    ],
)
def test_what_only_looks_like_transaction_control_passes(text: str) -> None:
    assert shape(text).control == ""


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1",
        "  (SELECT 1) UNION (SELECT 2)",
        "WITH a AS (SELECT 1) SELECT * FROM a",
        "TABLE t",
        "VALUES (1)",
        "SHOW search_path",
        "SELECT clock_timestamp(), blocked FROM t",
        "INSERT INTO t VALUES (1)",
        "SET TRANSACTION READ ONLY; SELECT 1",
    ],
)
def test_plain_reads_and_writes_are_told_by_their_transaction_id(text: str) -> None:
    assert shape(text).plain


@pytest.mark.parametrize(
    "text",
    [
        "NOTIFY a",
        "SELECT pg_notify('a', 'b')",
        "SELECT \"pg_notify\"('a', 'b')",
        "SELECT U&\"pg\\005fnotify\"('a', 'b')",
        "LISTEN a",
        "SELECT pg_advisory_xact_lock(1)",
        "SELECT dblink_exec('x', 'y')",
        "LOCK TABLE t",
        "DO $$ BEGIN PERFORM 1; END $$",
        "CALL p()",
        "EXECUTE q",
        "COPY t TO PROGRAM 'x'",
        "SELECT 1; DO $$ BEGIN END $$",
    ],
)
def test_a_text_that_hints_at_more_is_not_plain(text: str) -> None:
    assert not shape(text).plain


@pytest.mark.parametrize(
    ("text", "stains"),
    [
        ("SET search_path = x", True),
        ("SET SESSION work_mem = '1MB'", True),
        ("SET LOCAL search_path = x", False),
        ("SET TRANSACTION READ ONLY", False),
        ("SET CONSTRAINTS ALL DEFERRED", False),
        ("RESET ALL", True),
        ("LISTEN a", True),
        ("CREATE TEMP TABLE x (a int)", True),
        ("create temporary table x (a int)", True),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", True),
        ("SELECT pg_advisory_lock(1)", True),
        ("SELECT set_config('a.b', 'c', false)", True),
        ("PREPARE q AS SELECT 1", True),
        ("UPDATE t SET template = 1", False),
        ("SELECT 1", False),
    ],
)
def test_what_stays_in_the_session_is_seen(text: str, stains: bool) -> None:
    assert shape(text).stains is stains
