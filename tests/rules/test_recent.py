"""What a process has staged a moment ago it commits without a question: the rules of that, each with its mutant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from kit import Database, opened
from nodoubt import Coordinator, Heuristic, NotReady, OutcomeConflict, Result, State
from nodoubt.engine import phases, questions, recent, register, verbs
from nodoubt.engine.context import Context
from nodoubt.engine.phases import Course
from nodoubt.ports import Unclear
from rules.mutants import COMMITTED, context, coordinator, staged, told
from traps.scenes import MOVED, UNTOUCHED, at_rest, balances, databases, joined


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


def the_name_is_another_attempts_by_now(
    pair: list[Database], lost: bool, patch: pytest.MonkeyPatch
) -> tuple[bool, State]:
    """Committed by another process, or here and the answer is lost; then the name begins another life.

    Whether the commit is told of the attempt that was staged here, and what is the other one then.
    """
    with coordinator(pair) as db:
        db.setup()
        with coordinator(pair) as other:
            first = staged(db)

            def and_then_another() -> None:
                other.recover(grace=0)
                staged(other, reuse=True)

            if lost:
                lose_the_answer(db, patch, and_then_another)
            else:
                other.commit_distributed("pay")
                and_then_another()
            told_of = db.commit_distributed("pay").attempt
            state = other.status("pay").state
            if state is State.PREPARED:
                other.rollback_distributed("pay")
            return told_of == first, state


def lose_the_answer(db: Coordinator, patch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """That to the commit of the branch beside the journal, which carries the decision."""
    resource: Any = context(db).participants["a"].resource
    sound = resource.commit_prepared
    done: list[bool] = []

    def commit_prepared(session: Any, prepared: Any, **more: Any) -> Any:
        yield from sound(session, prepared, **more)
        if not done:
            done.append(True)
            act()
            raise Unclear("the answer was lost")

    patch.setattr(resource, "commit_prepared", commit_prepared)


@pytest.mark.parametrize("lost", [False, True])
def test_a_name_that_was_staged_here_is_no_other_life_of_it(
    lost: bool, pair: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert the_name_is_another_attempts_by_now(pair, lost, monkeypatch) == (True, State.PREPARED)
    assert balances(pair) == MOVED and at_rest(pair)


def test_who_asks_for_the_name_once_more_commits_two(pair: list[Database], monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: where the decision was not plainly ours, the name is asked for anew."""
    sound = verbs.finish_named

    def once_more(ctx: Context, name: str, wanted: Any, **more: Any) -> Any:
        course = yield from sound(ctx, name, wanted, **more)
        if isinstance(course, Course) and course.attempt.cause is not None:
            yield from phases.to_end(ctx, course)
            return (yield from sound(ctx, name, wanted, **more))
        return course

    monkeypatch.setattr(verbs, "finish_named", once_more)
    assert the_name_is_another_attempts_by_now(pair, True, monkeypatch) == (False, State.COMMITTED)


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


# ---- who else has ended it meanwhile --------------------------------------------------------------


async def ended_elsewhere(mode: str, some: Sequence[Database], journal: str) -> Result:
    """Staged here; committed by another process, and its record ended, so that the receipts are gone. Then, here."""
    async with opened(mode, some, journal=journal) as db, joined(mode, some, journal=journal) as other:
        async with db.staged("pay") as tx:
            await tx.move("a", "b", 30)
        await other.commit_distributed("pay")
        await other.recover(grace=0)
        result: Result = await db.commit_distributed("pay")
        assert (await db.recover(grace=0)).clean
        return result


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("kinds", "journal"),
    [("postgres+sqlite", "a"), ("sqlite+mariadb", "a"), ("mariadb+postgres", "a"), ("postgres+mariadb+sqlite", "c")],
)
async def test_what_somebody_else_has_ended_is_complete(
    mode: str, kinds: str, journal: str, request: Any, tmp_path: Path
) -> None:
    """Nothing is left of it by which a branch could prove itself, but that its record has ended."""
    some = databases(kinds, request, tmp_path)
    result = await ended_elsewhere(mode, some, journal)
    assert (result.state, result.complete) == (State.COMMITTED, True)
    assert balances(some)[:2] == MOVED and at_rest(some)


def a_stranger_has_ended_it(some: Sequence[Database]) -> tuple[bool, int]:
    """Whether the commit is called complete, and what is quarantined for it."""
    with coordinator(some) as db:
        db.setup()
        staged(db)
        (gid,) = some[1].prepared()
        some[1].query(f"rollback prepared '{gid}'")
        complete = db.commit_distributed("pay").complete
        db.recover(grace=0)
        return complete, len(db.quarantined())


def test_a_branch_without_a_proof_whose_record_is_open_is_not_complete(request: Any, tmp_path: Path) -> None:
    assert a_stranger_has_ended_it(databases("sqlite+postgres", request, tmp_path)) == (False, 1)


def test_who_takes_a_commit_that_stands_for_one_that_has_ended_hides_the_harm(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant: it is committed, so whoever has no branch of it any more has committed that."""

    def stands(ctx: Context, attempt: str) -> Any:
        return attempt in (yield from register.confirm(ctx, [attempt]))

    monkeypatch.setattr(phases, "_has_ended", stands)
    assert a_stranger_has_ended_it(databases("sqlite+postgres", request, tmp_path)) == (True, 0)
