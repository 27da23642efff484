"""The number that a confirmation counts up: whatever stands there, a page is confirmed, and so ended."""

from __future__ import annotations

from typing import Any

import pytest

from journals.places import Place, query
from journals.test_mutants import OtherBench
from nodoubt.journals import rows
from nodoubt.journals.sql import SqlJournal
from nodoubt.ports import Refused, Session, Unclear
from nodoubt.script import Script
from nodoubt.testing.bench import Bench
from nodoubt.testing.samples import decision

GREATEST, LEAST = (1 << 63) - 1, -(1 << 63)
KINDS = [("sqlite", "sync"), ("postgres", "sync"), ("mariadb", "sync")]


class CountsOn(SqlJournal):
    """The mutant: one more, though there may be no greater number."""

    def _write(self, session: Session, *statements: str, forced: bool = True) -> Script[Any]:
        every = [one.replace(rows.changed("confirms"), "confirms = confirms + 1") for one in statements]
        return super()._write(session, *every, forced=forced)


def confirmed_and_ended(place: Place, bench: Bench, number: int) -> None:
    """A page of three, of which one has this number."""
    page = [decision() for _ in range(3)]
    bench.insert(page)
    table, attempts = place.dialect().table("decisions"), [one.attempt for one in page]
    query(bench, f"UPDATE {table} SET confirms = {number} WHERE attempt = '{attempts[1]}'")

    def numbers() -> list[int]:
        found = query(bench, f"SELECT confirms FROM {table} WHERE attempt IN {tuple(attempts)} ORDER BY attempt")
        return [int(confirms) for (confirms,) in found.rows]

    before = numbers()
    assert [one.decision for one in bench.confirm(attempts).values()] == page
    seen = numbers()
    assert all(one != other for one, other in zip(before, seen, strict=True)), (
        "a row that is not changed is not flushed"
    )
    bench.end(attempts)
    assert all(one != other for one, other in zip(seen, numbers(), strict=True))
    assert all(one.ended for one in bench.look(attempts).values())


@pytest.mark.parametrize(("kind", "style"), KINDS)
@pytest.mark.parametrize("number", [GREATEST, GREATEST - 1, LEAST, rows.CHANGES_MAX, -1])
def test_whatever_number_one_row_has_its_page_is_confirmed_and_ended(place: Place, bench: Bench, number: int) -> None:
    confirmed_and_ended(place, bench, number)


@pytest.mark.parametrize(("kind", "style"), KINDS)
def test_counting_on_would_hold_up_the_others_of_the_page(place: Place, other_bench: OtherBench) -> None:
    with pytest.raises((Refused, Unclear)):
        confirmed_and_ended(place, other_bench(CountsOn(place.dialect())), GREATEST)
