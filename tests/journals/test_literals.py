"""What stands in a statement comes back from the server as it was: any text, any time; and ids that are times."""

from __future__ import annotations

import math
import re
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from journals.places import Place, query
from nodoubt.errors import UsageError
from nodoubt.journals import rows
from nodoubt.journals.attempts import FLOOR_LOWEST, next_attempt
from nodoubt.journals.dialects import TEXT_LENGTH_MAX, MariaDBDialect, PostgresDialect, SqliteDialect
from nodoubt.testing.bench import Bench
from nodoubt.testing.samples import NAMES, attempt_at
from nodoubt.xid import first_attempt_of, is_attempt, new_attempt

DIALECTS = (PostgresDialect(), MariaDBDialect("journal"), SqliteDialect())
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def style() -> str:
    return "sync"


@quick
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_any_text_comes_back_as_it_was(bench: Bench, text: str) -> None:
    dialect = bench.journal.dialect
    (row,) = query(bench, f"SELECT {dialect.text(text)}, {dialect.key(text)}").rows
    assert [rows.text(value) for value in row] == [text, text]


@quick
@given(seconds=st.one_of(st.floats(0, 1e11), st.floats(allow_nan=False, allow_infinity=False, width=32)))
def test_any_time_comes_back_as_it_was(bench: Bench, seconds: float) -> None:
    dialect = bench.journal.dialect
    table = dialect.table("events")
    query(bench, f"DELETE FROM {table}")
    query(
        bench,
        f"INSERT INTO {table} (attempt, at, what, detail) VALUES ('a', {dialect.seconds(seconds)}, '', '')",
    )
    assert float(query(bench, f"SELECT at FROM {table}").scalar()) == seconds


def test_the_servers_clock_is_in_seconds_since_the_epoch(place: Place, bench: Bench) -> None:
    assert abs(float(query(bench, f"SELECT {bench.journal.dialect.now}").scalar()) - time.time()) < 5


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.kind)
def test_no_text_leaves_its_literal(dialect: MariaDBDialect | PostgresDialect | SqliteDialect) -> None:
    for text in (*NAMES, "\0", "\ud800", "\\", "'", "';", "%s", "$1", "?", "a\nb", "--", "/*", '{"a": [1]}'):
        for literal in (dialect.text(text), dialect.key(text), dialect.free_text(text)):
            assert re.fullmatch(r"[a-zA-Z0-9_. ,()]*'[^'\\;%?$\x00-\x1f\x7f-\U0010ffff]*'[a-zA-Z0-9_. ,()']*", literal)
    assert len(dialect.free_text("x" * 10**6)) < 2 * TEXT_LENGTH_MAX + 100
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(UsageError):
            dialect.seconds(bad)
    for bad_id in ("", "'", "0" * 31, "0" * 31 + "G", "0" * 32 + "\n"):
        with pytest.raises(UsageError):
            dialect.attempt(bad_id)


def test_the_list_of_attempts_is_in_one_order_for_everybody() -> None:
    ids = [new_attempt() for _ in range(9)]
    assert PostgresDialect().attempts(ids) == PostgresDialect().attempts([*reversed(ids), ids[3]])
    assert PostgresDialect().attempts(ids).split(", ") == [f"'{one}'" for one in sorted(ids)]


def test_a_floor_is_not_above_what_a_clock_showing_that_time_makes() -> None:
    for seconds in (0.0, 1.0, 1.0005, time.time(), 4e9):
        floor = first_attempt_of(seconds)
        assert is_attempt(floor) and is_attempt(next_attempt(floor))
        assert floor <= attempt_at(seconds) < first_attempt_of(seconds + 0.002)
        assert first_attempt_of(seconds - 0.002) <= floor
    assert first_attempt_of(-1.0) == FLOOR_LOWEST
    assert first_attempt_of(1e30) <= "f" * 32
    before, after = time.time(), new_attempt()
    assert first_attempt_of(before - 0.002) < after < first_attempt_of(time.time() + 0.002)


def test_the_next_attempt_is_the_smallest_above() -> None:
    assert next_attempt("0" * 32) == "0" * 31 + "1"
    assert next_attempt("0" * 31 + "f") == "0" * 30 + "10"
    assert next_attempt("f" * 32) == "f" * 32
