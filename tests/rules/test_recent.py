"""What a process has staged a moment ago it commits without a question: the rules of that, each with its mutant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kit import Database
from nodoubt import Heuristic, NotReady, OutcomeConflict, State
from nodoubt.engine import phases, questions, recent
from nodoubt.engine.context import Context
from rules.mutants import COMMITTED, context, coordinator, staged, told
from traps.scenes import MOVED, UNTOUCHED, at_rest, balances, databases


@pytest.fixture
def pair(request: Any, tmp_path: Path) -> list[Database]:
    return databases("postgres+sqlite", request, tmp_path)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a loaded machine a moment is long."""
    monkeypatch.setattr(recent, "TRUSTED_S", 600.0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the journal is asked for by name."""
    names: list[str] = []
    sound = questions.known

    def known(ctx: Context, name: str) -> Any:
        names.append(name)
        return (yield from sound(ctx, name))

    monkeypatch.setattr(questions, "known", known)
    return names


def test_a_commit_that_follows_its_begin_asks_for_nothing(pair: list[Database], asked: list[str]) -> None:
    with coordinator(pair) as db:
        db.setup()
        staged(db)
        asked.clear()
        db.commit_distributed("pay")
        assert asked == []
        assert db.commit_distributed("pay").state is State.COMMITTED  # a second one does (I12)
        assert asked == ["pay"]
    assert balances(pair) == MOVED and at_rest(pair)


def test_a_commit_of_another_attempt_of_the_name_asks_for_it(pair: list[Database], asked: list[str]) -> None:
    with coordinator(pair) as db:
        db.setup()
        first = staged(db)
        db.rollback_distributed("pay")
        staged(db, reuse=True)
        asked.clear()
        with pytest.raises(OutcomeConflict):
            db.commit_distributed("pay", attempt=first)
        assert asked == [first]


def test_what_was_staged_with_conditions_is_asked_for(pair: list[Database], asked: list[str]) -> None:
    with coordinator(pair) as db:
        db.setup()
        staged(db, confirmations=["warehouse"])
        asked.clear()
        with pytest.raises(NotReady):
            db.commit_distributed("pay")
        assert asked == ["pay"]


def test_no_more_is_remembered_than_what_was_staged_a_moment_ago(
    pair: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    with coordinator(pair) as db:
        db.setup()
        for name in ("one", "two"):
            staged(db, name)
            db.rollback_distributed(name)
        assert list(context(db).recent) == ["one", "two"]
        monkeypatch.setattr(recent, "TRUSTED_S", 0.0)
        staged(db, "three")
        assert list(context(db).recent) == ["three"]


# ---- only a moment --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trusted_s", "answer", "ended"), [(0.0, "heuristic", UNTOUCHED), (600.0, COMMITTED, [70, 100])]
)
def test_what_was_staged_longer_ago_is_looked_for(
    trusted_s: float, answer: str, ended: list[int], request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger has ended a branch since. The mutant: what was staged here is staged, however long ago that was."""
    monkeypatch.setattr(recent, "TRUSTED_S", trusted_s)
    pair = databases("sqlite+postgres", request, tmp_path)
    with coordinator(pair) as db:
        db.setup()
        staged(db)
        (gid,) = pair[1].prepared()
        pair[1].query(f"rollback prepared '{gid}'")
        if answer == COMMITTED:
            assert told(lambda: db.commit_distributed("pay")) == COMMITTED
        else:
            with pytest.raises(Heuristic, match="Nothing was decided"):
                db.commit_distributed("pay")
            db.rollback_distributed("pay")
    assert balances(pair) == ended


# ---- who else has decided meanwhile ---------------------------------------------------------------


def the_name_is_another_attempts_by_now(pair: list[Database]) -> tuple[State, list[int]]:
    """Somebody else has committed it and staged the next one, and knows of that; what is that when it is committed?"""
    with coordinator(pair) as db:
        db.setup()
        with coordinator(pair) as other:
            staged(db)
            other.commit_distributed("pay")
            staged(other, reuse=True)
            assert told(lambda: db.commit_distributed("pay")) == COMMITTED
            return other.status("pay").state, balances(pair)


def test_who_finds_another_decision_asks_for_the_name_anew(pair: list[Database]) -> None:
    assert the_name_is_another_attempts_by_now(pair) == (State.COMMITTED, [40, 160])


def test_who_takes_it_for_his_own_tells_of_the_attempt_before(
    pair: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases.Course, "overtaken", property(lambda _: False, lambda *_: None))
    assert the_name_is_another_attempts_by_now(pair)[0] is State.PREPARED
    with coordinator(pair) as db:
        db.rollback_distributed("pay")


@pytest.mark.parametrize("contrary", [True, False])
def test_what_somebody_else_has_decided_is_told(contrary: bool, pair: list[Database]) -> None:
    with coordinator(pair) as db:
        db.setup()
        with coordinator(pair) as other:
            staged(db)
            if contrary:
                other.rollback_distributed("pay")
                with pytest.raises(OutcomeConflict):
                    db.commit_distributed("pay")
            else:
                other.commit_distributed("pay")
                assert db.commit_distributed("pay").state is State.COMMITTED
    assert balances(pair) == (UNTOUCHED if contrary else MOVED) and at_rest(pair)
