"""The recovery table: exactly one row for each combination, and the rows that safety hangs on."""

from __future__ import annotations

import itertools

import pytest

from nodoubt.protocol.records import BranchRef, Decision, Mode, Staging, Standing, Verdict
from nodoubt.protocol.recovery import TABLE, Action, Age, Known, Seen, matching, what_is_known, what_to_do


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


OLD, ATTEMPT, YOUNG = "0" * 32, "5" * 32, "9" * 32
BRANCHES = (BranchRef(0, "a", "ida"), BranchRef(1, "b", "idb"))


def staging(deadline: float = 100.0, begin_by: float = 0.0) -> Staging:
    return Staging("pay", ATTEMPT, BRANCHES, 1, deadline, begin_by=begin_by)


def known(
    standing: Standing | None = None,
    staging: Staging | None = None,
    *,
    floor: str = OLD,
    now: float = 50.0,
    last_listed: bool | None = True,
) -> Known:
    return what_is_known(ATTEMPT, standing, staging, floor=floor, now=now, last_listed=last_listed)


@pytest.mark.parametrize("floor", [OLD, YOUNG])
@pytest.mark.parametrize("row", [None, staging(), staging(deadline=0.0)])
@pytest.mark.parametrize(
    ("verdict", "ended", "says"),
    [
        (Verdict.COMMIT, False, Known.COMMIT),
        (Verdict.COMMIT, True, Known.COMMIT_ENDED),
        (Verdict.ABORT, False, Known.ABORT),
        (Verdict.ABORT, True, Known.ABORT),
    ],
)
def test_a_decision_has_the_word_whatever_else_there_is(
    verdict: Verdict, ended: bool, says: Known, row: Staging | None, floor: str
) -> None:
    decision = Decision(ATTEMPT, verdict, Mode.STAGED, "pay", BRANCHES)
    assert known(Standing(decision, ended=ended), row, floor=floor) is says


def test_below_the_floor_nothing_is_known_whatever_is_staged() -> None:
    for row in (None, staging(), staging(deadline=0.0)):
        assert known(staging=row, floor=YOUNG) is Known.BELOW_FLOOR
    assert known(floor=ATTEMPT) is Known.NOTHING, "the floor itself is remembered"


@pytest.mark.parametrize("last_listed", [True, False, None])
def test_what_is_staged_is_due_at_its_deadline_and_not_before(last_listed: bool | None) -> None:
    for begin_by in (0.0, 200.0):
        assert known(staging=staging(begin_by=begin_by), now=100.0, last_listed=last_listed) is Known.STAGED_DUE
    assert known(staging=staging(), now=99.0, last_listed=True) is Known.STAGED


def test_only_a_listing_that_lacks_its_last_branch_shows_that_a_begin_is_not_complete() -> None:
    """Not its server's silence; nor before its work must be done, if its row went before that."""
    assert known(staging=staging(), last_listed=False) is Known.STAGED_PARTLY
    assert known(staging=staging(), last_listed=None) is Known.STAGED
    assert known(staging=staging(begin_by=51.0), last_listed=False) is Known.STAGED
    assert known(staging=staging(begin_by=50.0), last_listed=False) is Known.STAGED_PARTLY


def test_nothing_is_known_where_there_is_no_row() -> None:
    assert known() is Known.NOTHING
