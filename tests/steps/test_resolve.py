"""`resolve`: an operator's word, wherever it may count, and never against the register (I17)."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Any

import pytest

from kit import Database, make_database
from nodoubt import (
    Coordinator,
    NotReady,
    OutcomeConflict,
    ResourceUnavailable,
    State,
    UnknownTransaction,
    UsageError,
)
from nodoubt.protocol.records import Decision, Mode, Verdict
from nodoubt.testing.samples import LONG_AGO, abort, attempt_at
from rules.mutants import ABORTED, COMMITTED, at_once, coordinator, journal_says, out_of_reach, staged
from steps import app
from steps.conftest import Outside

WHO: dict[str, Any] = {"by": "ada", "because": "looked at the database"}


@pytest.fixture
def pair(request: Any, tmp_path: Path) -> list[Database]:
    return [make_database("sqlite", "a", request, tmp_path), make_database("postgres", "b", request, tmp_path)]


def balances(pair: list[Database]) -> list[int]:
    return [d.balance() for d in pair]


def trail(db: Coordinator, attempt: str) -> list[str]:
    return [f"{event.what}: {event.detail}" for event in db.events(attempt)]


@pytest.mark.parametrize(
    ("ending", "state", "moved"),
    [("commit", State.COMMITTED, [70, 130]), ("rollback", State.ABORTED, [100, 100])],
)
def test_what_is_undecided_is_decided_through_the_register(
    pair: list[Database], ending: Any, state: State, moved: list[int]
) -> None:
    with coordinator(pair) as db:
        db.setup()
        attempt = staged(db)
        result = db.resolve("pay", ending, **WHO)
        assert (result.state, result.complete) == (state, True) and balances(pair) == moved
        word = "commit" if ending == "commit" else "abort"
        assert f"resolved: as {word} by ada: looked at the database" in trail(db, attempt)
        assert db.resolve("pay", ending, **WHO).state is state, "repeating it changes nothing"
        with pytest.raises(OutcomeConflict):
            db.resolve(attempt, "rollback" if ending == "commit" else "commit", **WHO)
        assert balances(pair) == moved


def test_an_operator_cannot_commit_what_is_not_ready(
    pair: list[Database], outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = f"order-{secrets.token_hex(4)}"
    with coordinator(pair) as db:
        db.setup()
        staged(db, order, confirmations={"shipping"})
        db.call(order, app.charge, order, "good", undo=app.refund)
        with pytest.raises(NotReady, match="shipping"):
            db.resolve(order, "commit", **WHO)
        assert db.resolve(order, "rollback", **WHO).undoing == 0
    assert balances(pair) == [100, 100]
    assert (outside.of(order).charges, outside.of(order).refunds) == (1, 1)


def a_branch_was_rolled_back_against_the_decision(db: Coordinator, pair: list[Database]) -> str:
    db.setup()
    with out_of_reach("b"):
        assert at_once(db) == COMMITTED
    (gid,) = pair[1].prepared()
    pair[1].query(f"rollback prepared '{gid}'")
    assert db.recover(grace=0).quarantined == 1
    (entry,) = db.quarantined()
    return entry.attempt


def test_a_branch_that_somebody_ended_is_taken_over_and_the_record_may_end(pair: list[Database]) -> None:
    """Cleared without a word for its record, it would be quarantined again by the next sweep."""
    with coordinator(pair) as db:
        attempt = a_branch_was_rolled_back_against_the_decision(db, pair)
        with pytest.raises(OutcomeConflict):
            db.resolve(attempt, "rollback", **WHO)
        assert len(db.quarantined()) == 1, "nothing was changed"
        assert db.resolve(attempt, "commit", **WHO).state is State.COMMITTED
        assert db.quarantined() == [] and db.status(attempt).complete
        for _ in range(2):
            assert db.recover(grace=0).clean
        assert db.status(attempt).heuristic == ""
        assert "resolved: as commit by ada: looked at the database" in trail(db, attempt)


def test_the_other_branches_must_have_proved_themselves(request: Any, tmp_path: Path) -> None:
    """The operator speaks for the branch that was looked at, and for no other (I6)."""
    three = [make_database("sqlite", "a", request, tmp_path)]
    three += [make_database("postgres", name, request, tmp_path) for name in "bc"]
    with coordinator(three) as db:
        db.setup()
        with out_of_reach("b", "c"), db.transaction() as tx:
            for name in "abc":
                tx[name].execute("update accounts set balance = 7 where id = 0")
        (gid,) = three[1].prepared()
        three[1].query(f"rollback prepared '{gid}'")
        with out_of_reach_of_sweeps(db, "c"):
            db.recover(grace=0)
        (entry,) = db.quarantined()
        with pytest.raises(ResourceUnavailable, match="branch 2 on c has not proved itself"):
            db.resolve(entry.attempt, "commit", **WHO)
        assert len(db.quarantined()) == 1
        db.recover(grace=0)
        assert three[2].balance() == 7
        assert db.resolve(entry.attempt, "commit", **WHO).complete
        assert db.recover(grace=0).clean


class out_of_reach_of_sweeps:  # noqa: N801 - reads as a block
    """In the block a database is not swept."""

    def __init__(self, db: Coordinator, name: str) -> None:
        self.participant = db._ctx.participants[name]

    def __enter__(self) -> None:
        self.kept = self.participant.resource_id
        self.participant.resource_id = "away"

    def __exit__(self, *_: object) -> None:
        self.participant.resource_id = self.kept


def below_the_floor(db: Coordinator, pair: list[Database]) -> str:
    """A branch is prepared, and so old that the journal can't say any more what was decided for it."""
    db.setup()
    old = attempt_at(LONG_AGO)
    cluster = db._ctx.cluster
    pair[1].query(
        "begin; update accounts set balance = 7 where id = 0; "
        "insert into nodoubt.receipts (attempt, branch, verdict, epoch, alone) "
        f"values ('{old}', 0, 'commit', 1, false); "
        f"prepare transaction 'nd1.{cluster}.{old}.0'"
    )
    journal_says(db, lambda session: db._ctx.journal.insert(session, [abort(attempt_at(LONG_AGO + 60))]))
    journal_says(db, lambda session: db._ctx.journal.retire(session, LONG_AGO + 120, 10))
    assert db.recover(grace=0).quarantined == 1
    return old


@pytest.mark.parametrize(("ending", "balance"), [("commit", 7), ("rollback", 100)])
def test_what_the_journal_can_never_tell_any_more_an_operator_may_end_either_way(
    pair: list[Database], ending: Any, balance: int
) -> None:
    with coordinator(pair) as db:
        old = below_the_floor(db, pair)
        db.resolve(old, ending, **WHO)
        assert pair[1].balance() == balance and pair[1].prepared() == [] and db.quarantined() == []
        assert db.recover(grace=0).clean


def test_the_operators_word_is_about_this_attempt_and_no_other(pair: list[Database]) -> None:
    """What else is quarantined stays so, and what else is prepared there is nobody's to end (I17)."""
    with coordinator(pair) as db:
        attempt = a_branch_was_rolled_back_against_the_decision(db, pair)
        with out_of_reach("b"):
            assert at_once(db) == COMMITTED
        (gid,) = pair[1].prepared()
        pair[1].query(f"rollback prepared '{gid}'")
        db.recover(grace=0)
        staged(db, "other")
        db.resolve(attempt, "commit", **WHO)
        (left,) = db.quarantined()
        assert left.attempt != attempt
        assert db.status("other").state is State.PREPARED and len(pair[1].prepared()) == 1
        assert db.commit_distributed("other").complete


def test_a_branch_that_no_decision_binds_is_not_ended_by_a_word_about_the_others(pair: list[Database]) -> None:
    with coordinator(pair) as db:
        db.setup()
        attempt = staged(db)
        journal = db._ctx.journal
        staging = journal_says(db, lambda session: journal.find(session, "pay"))
        row = Decision(attempt, Verdict.COMMIT, Mode.STAGED, "pay", staging.branches[:1], decided_at=time.time())
        journal_says(db, lambda session: journal.insert(session, [row]))
        assert db.recover(grace=0).quarantined == 1
        with pytest.raises(UsageError, match="no decision binds it"):
            db.resolve("pay", "commit", **WHO)
        assert [entry.branch for entry in db.quarantined()] == [1] and len(pair[1].prepared()) == 1


@pytest.mark.parametrize(("ending", "contrary", "balance"), [("commit", "rollback", 100), ("rollback", "commit", 7)])
def test_what_somebody_ends_the_other_way_at_that_moment_is_not_cleared_as_dealt_with(
    pair: list[Database], monkeypatch: pytest.MonkeyPatch, ending: Any, contrary: str, balance: int
) -> None:
    """The operator has spoken of a branch that was prepared, and has not heard of this (I17)."""
    with coordinator(pair) as db:
        old = below_the_floor(db, pair)
        resource: Any = db._ctx.participants["b"].resource
        verb = f"{ending}_prepared"
        sound = getattr(resource, verb)

        def overtaken(session: Any, prepared: Any) -> Any:
            for gid in pair[1].prepared():
                pair[1].query(f"{contrary} prepared '{gid}'")
            return sound(session, prepared)

        monkeypatch.setattr(resource, verb, overtaken)
        with pytest.raises(ResourceUnavailable, match="not ended"):
            db.resolve(old, ending, **WHO)
        assert [entry.attempt for entry in db.quarantined()] == [old] and pair[1].balance() == balance


def test_there_is_nothing_to_resolve_where_nothing_is_known_or_settle_would_tell(pair: list[Database]) -> None:
    with coordinator(pair) as db:
        db.setup()
        with pytest.raises(UnknownTransaction):
            db.resolve("nobody's", "commit", **WHO)
        with pytest.raises(UsageError, match="nodoubt settle"):
            db.resolve(attempt_at(LONG_AGO + 10**9), "commit", **WHO)
        for missing in ({"by": " ", "because": "x"}, {"by": "x", "because": ""}):
            with pytest.raises(UsageError, match="kept in the trail"):
                db.resolve("pay", "commit", **missing)
        with pytest.raises(UsageError, match="commit"):
            db.resolve("pay", "undo", **WHO)  # type: ignore[arg-type]
        assert at_once(db) in (COMMITTED, ABORTED)
