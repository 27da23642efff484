"""Every case of the table, on every way to a database."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from nodoubt import Reply, UsageError
from query import cases
from query.cases import CASES, OR_IGNORE, TABLES, Case
from query.tables import contents, fill
from query.ways import ENGINES, STAGED, URLS, Way

Ways = Callable[[str], Way]


def check(case: Case, way: Way) -> None:
    """Run the case; fail unless all that it says holds."""
    before = {table: list(rows) for table, rows in TABLES.items()}
    if contents(way.stranger) != before:
        fill(way.stranger)
    way.sent.clear()
    if case.refused is not None:
        with pytest.raises(UsageError) as refusal:
            way.run(*case.builds)
        assert re.search(case.refused, str(refusal.value)), f"another refusal: {refusal.value}"
        assert not way.sent, "it was refused only after something had been sent"
        assert contents(way.stranger) == before
        return
    if case.fails:
        with pytest.raises(Exception) as failure:  # noqa: PT011 — each driver has its own
            way.run(*case.builds)
        assert not isinstance(failure.value, (UsageError, AssertionError, TypeError)), failure.value
        assert contents(way.stranger) == before
        return
    result = way.run(*case.builds)
    if case.rows is not None:
        assert isinstance(result, Reply)
        assert list(result) == [dict(row) for row in case.rows]
    else:
        unknown = case in OR_IGNORE and way.kind == "mariadb" and way.name.endswith("engine")
        assert result == (-1 if unknown else case.count)
    assert contents(way.stranger) == case.after()


RUN = [case for case in CASES if case.refused is None]
CHANGING = [case for case in RUN if case.edited or case.gone or case.added]
REFUSED = [case for case in CASES if case.refused is not None]  # before it matters how it would be run
# An engine compiles and runs what a URL does: what is written there, and what is counted, is enough.
ON_ENGINES = [case for case in RUN if case in CHANGING or case in OR_IGNORE]
SYNC = [way for way in URLS if way.endswith(" sync")]


def on(ways: Sequence[str], cases: Sequence[Case]) -> list[Any]:
    return [
        pytest.param(case, way, id=f"{case.claim}-{way}")
        for case in cases
        for way in ways
        if way.partition(" ")[0] in case.only
    ]


@pytest.mark.parametrize(
    ("case", "way"), [*on(URLS, RUN), *on(ENGINES, ON_ENGINES), *on(STAGED, CHANGING), *on(SYNC, REFUSED)]
)
def test_a_case_holds(case: Case, way: str, ways: Ways, monkeypatch: pytest.MonkeyPatch) -> None:
    at = ways(way)
    schema = {"postgres": "public", "sqlite": "main", "mariadb": at.database.url.rpartition("/")[2]}[at.kind]
    monkeypatch.setattr(cases, "SCHEMA_TABLE", f"{schema}.people")
    check(case, at)


def test_every_claim_is_made_once() -> None:
    claims = [case.claim for case in CASES]
    assert len(set(claims)) == len(claims)
