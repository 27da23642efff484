"""The recovery table: exactly one row for each combination, and the rows that safety hangs on."""

from __future__ import annotations

import itertools

import pytest

from nodoubt.protocol.recovery import TABLE, Action, Age, Known, Seen, matching, what_to_do


@pytest.mark.parametrize(("known", "seen", "age"), list(itertools.product(Known, Seen, Age)))
def test_exactly_one_row_matches(known: Known, seen: Seen, age: Age) -> None:
    assert len(matching(known, seen, age)) == 1


def test_no_row_is_unreachable() -> None:
    used = {matching(*c)[0] for c in itertools.product(Known, Seen, Age)}
    assert used == set(TABLE)


def test_commit_is_carried_out_only_where_it_was_decided_and_is_open() -> None:
    for known, seen, age in itertools.product(Known, Seen, Age):
        if what_to_do(known, seen, age).action is Action.COMMIT:
            assert known is Known.COMMIT and seen in (Seen.PREPARED, Seen.PREPARED_STILL)


def test_nothing_is_rolled_back_without_an_abort_that_stands() -> None:
    for known, seen, age in itertools.product(Known, Seen, Age):
        if what_to_do(known, seen, age).action is Action.ROLLBACK:
            assert known is Known.ABORT


def test_unknown_is_never_aborted_below_the_floor() -> None:
    for seen, age in itertools.product(Seen, Age):
        assert what_to_do(Known.BELOW_FLOOR, seen, age).action not in (Action.ROLLBACK, Action.FENCE, Action.COMMIT)


def test_a_missing_branch_of_a_commit_is_looked_for_twice_before_the_alarm() -> None:
    assert what_to_do(Known.COMMIT, Seen.ABSENT, Age.OLD).action is Action.LOOK_AGAIN
    assert what_to_do(Known.COMMIT, Seen.ABSENT_STILL, Age.OLD).action is Action.QUARANTINE


def test_a_branch_that_is_young_is_left_to_its_coordinator() -> None:
    assert what_to_do(Known.NOTHING, Seen.PREPARED, Age.YOUNG).action is Action.LEAVE
    assert what_to_do(Known.NOTHING, Seen.PREPARED, Age.OLD).action is Action.FENCE
