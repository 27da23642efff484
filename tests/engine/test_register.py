"""The register's way through what a journal can answer: what may be told of a decision, and what must not be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from kit import QUICK
from nodoubt import Coordinator, NoDoubtError
from nodoubt.engine import register
from nodoubt.engine.register import NotDecided
from nodoubt.ports import BelowFloor, Conflict, Refused, Unclear
from nodoubt.protocol.records import Decision, Mode, Verdict
from nodoubt.script import Script
from nodoubt.xid import new_attempt
from rules.mutants import context

LOST, WRITTEN = Unclear("no answer"), Unclear("no answer, but it was done")


class Answers:
    """The journal, whose first answers to `insert` and `confirm` are these; then its own."""

    def __init__(self, journal: Any, insert: Iterable[NoDoubtError], confirm: Iterable[NoDoubtError]) -> None:
        self.journal = journal
        self.answers = {"insert": iter(insert), "confirm": iter(confirm)}

    def __getattr__(self, verb: str) -> Any:
        sound = getattr(self.journal, verb)
        if verb not in self.answers:
            return sound

        def answer(*args: Any) -> Script[Any]:
            error = next(self.answers[verb], None)
            if error is not None and error is not WRITTEN:
                raise error
            found = yield from sound(*args)
            if error is not None:
                raise error
            return found

        return answer


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Coordinator]:
    settings = replace(QUICK, decide_s=0.5)
    with Coordinator(f"sqlite:///{tmp_path}/a.db", settings=settings, recovery=False) as db:
        db.setup()
        yield db


def run(db: Coordinator, script: Script[Any]) -> Any:
    """The script, with what it raises in its own words, not in those for callers."""

    def caught() -> Script[Any]:
        try:
            return (yield from script)
        except NoDoubtError as error:
            return error

    found = db._shell.run(caught())
    if isinstance(found, NoDoubtError):
        raise found
    return found


def decision(verdict: Verdict = Verdict.COMMIT) -> Decision:
    return Decision(new_attempt(), verdict, Mode.ONCE, "", ())


def decide(
    db: Coordinator, wanted: Decision, insert: Iterable[NoDoubtError] = (), confirm: Iterable[NoDoubtError] = ()
) -> Decision:
    ctx = context(db)
    sound, ctx.journal = ctx.journal, Answers(ctx.journal, insert, confirm)
    try:
        found: Decision = run(db, register.decide(ctx, wanted))
        return found
    finally:
        ctx.journal = sound


def stands(db: Coordinator, attempt: str) -> Verdict | None:
    standing = run(db, register.confirm_one(context(db), attempt))
    return None if standing is None else standing.decision.verdict


@pytest.mark.parametrize("refusal", [Refused("read only"), BelowFloor("too old")])
def test_what_is_refused_at_once_is_surely_not_decided(db: Coordinator, refusal: Refused) -> None:
    wanted = decision()
    with pytest.raises(BelowFloor if isinstance(refusal, BelowFloor) else NotDecided):
        decide(db, wanted, [refusal])
    assert stands(db, wanted.attempt) is None


@pytest.mark.parametrize("refusal", [Refused("read only"), Refused("full", retry=True), BelowFloor("too old")])
def test_after_a_try_that_had_no_answer_no_refusal_says_that_it_is_not_decided(
    db: Coordinator, refusal: Refused
) -> None:
    """The first may be written yet, or has been, carried out and forgotten."""
    with pytest.raises(Unclear):
        decide(db, decision(), [LOST, *repeat(refusal, 99)])


def test_a_decision_that_was_written_and_not_answered_stands(db: Coordinator) -> None:
    wanted = decision()
    assert decide(db, wanted, [WRITTEN, *repeat(Refused("full", retry=True), 99)]) == wanted
    assert stands(db, wanted.attempt) is Verdict.COMMIT


def test_what_may_succeed_later_is_tried_again(db: Coordinator) -> None:
    wanted = decision()
    assert decide(db, wanted, [Refused("a deadlock", retry=True)]) == wanted
    assert stands(db, wanted.attempt) is Verdict.COMMIT


def test_a_decision_that_is_there_and_cannot_be_confirmed_is_not_taken_for_none(db: Coordinator) -> None:
    """Somebody has decided, and nobody can say what: neither "not decided" nor our own wish."""
    other = decision(Verdict.ABORT)
    assert decide(db, other) == other
    wanted = Decision(other.attempt, Verdict.COMMIT, Mode.ONCE, "", ())
    with pytest.raises(Unclear):
        decide(db, wanted, confirm=repeat(LOST))
    assert decide(db, wanted, confirm=[LOST]).verdict is Verdict.ABORT


def test_a_conflict_whose_decision_a_crash_has_forgotten_is_no_refusal(db: Coordinator) -> None:
    """It was seen and is gone: whoever is asked again writes it."""
    wanted = decision()
    assert decide(db, wanted, [Conflict("stands already")]) == wanted
    assert stands(db, wanted.attempt) is Verdict.COMMIT


def test_what_cannot_be_confirmed_for_long_is_an_error_and_for_a_moment_is_asked_again(db: Coordinator) -> None:
    wanted = decide(db, decision())
    ctx = context(db)
    sound = ctx.journal
    ctx.journal = Answers(sound, (), [LOST])
    assert stands(db, wanted.attempt) is Verdict.COMMIT
    ctx.journal = Answers(sound, (), repeat(LOST))
    with pytest.raises(Unclear, match="could not be read"):
        stands(db, wanted.attempt)


def test_one_decision_that_stands_keeps_none_of_its_neighbours_from_being_written(db: Coordinator) -> None:
    """Together they are refused; each is answered for itself, in its own place, whoever writes them."""
    for place in range(5):
        some = [decision() for _ in range(5)]
        old = decide(db, Decision(some[place].attempt, Verdict.ABORT, Mode.ONCE, "", ()))
        answers = run(db, register.write(context(db), some))
        assert [isinstance(answer, Conflict) for answer in answers] == [number == place for number in range(5)]
        assert [stands(db, one.attempt) for one in some] == [
            Verdict.ABORT if one.attempt == old.attempt else Verdict.COMMIT for one in some
        ]


def test_decisions_for_many_are_those_that_stand(db: Coordinator) -> None:
    some = [decision() for _ in range(3)]
    old = decide(db, Decision(some[1].attempt, Verdict.ABORT, Mode.ONCE, "", ()))
    assert run(db, register.decide_all(context(db), some)) == [some[0], old, some[2]]
    assert run(db, register.decide_all(context(db), [])) == []
