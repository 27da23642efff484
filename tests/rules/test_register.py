"""The rules of the register, on whole transactions. Each test is followed by the same scene without its rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kit import Database, until
from nodoubt import Coordinator, State
from nodoubt.engine import register
from nodoubt.engine.context import Context, Participant
from nodoubt.engine.register import NotDecided
from nodoubt.journals.sql import SqlJournal
from nodoubt.ports import Refused, Unclear
from nodoubt.protocol.commit import CommitMachine, Phase
from nodoubt.protocol.events import AbortAsked, Undecided
from nodoubt.protocol.records import Decision, Mode, Standing, Unreadable, Verdict
from nodoubt.script import Do, Script
from nodoubt.testing.proxy import TcpProxy
from rules.mutants import (
    ABORTED,
    COMMITTED,
    SHORT,
    TAKE,
    at_once,
    change_rule,
    context,
    coordinator,
    out_of_reach,
    staged,
    told,
    watch,
)
from traps.scenes import MOVED, UNTOUCHED, balances, databases

DECISION = b"EXECUTE nodoubt_decision"


# ---- with a commit point, only its own local transaction may write COMMIT -------------------------


def the_commit_points_request_is_lost(request: Any, tmp_path: Path) -> tuple[str, list[int]]:
    pair = databases("postgres+sqlite", request, tmp_path)
    with TcpProxy.to(pair[0].url) as proxy:
        seen = [replace(pair[0], url=proxy.url_for(pair[0].url)), pair[1]]
        with coordinator(seen, settings=SHORT) as db:
            db.setup()
            watch(db, "P5", "deciding", lambda: proxy.cut_request(DECISION))
            answer = at_once(db)
    with coordinator(pair) as db:
        until(lambda: db.recover(grace=0).clean)
    return answer, balances(pair)


def test_with_a_commit_point_only_its_own_local_transaction_may_write_commit(request: Any, tmp_path: Path) -> None:
    assert the_commit_points_request_is_lost(request, tmp_path) == (ABORTED, UNTOUCHED)


def test_a_bare_commit_row_after_a_lost_reply_commits_the_others_while_the_local_work_is_gone(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_rule(monkeypatch, Phase.POINTING, Undecided, lambda machine, _: machine._decide())
    assert the_commit_points_request_is_lost(request, tmp_path) == (COMMITTED, [100, 130])


# ---- a COMMIT that ends in an error or no answer is ambiguous -------------------------------------


def the_decisions_reply_is_lost(request: Any, tmp_path: Path) -> tuple[str, bool]:
    """What was told, and whether COMMIT stands."""
    pair, own = databases("sqlite+sqlite", request, tmp_path), request.getfixturevalue("postgres").url()
    attempts: list[str] = []
    with TcpProxy.to(own) as proxy, coordinator(pair, proxy.url_for(own), settings=SHORT) as db:
        db.setup()
        proxy.cut_reply(DECISION)

        def verb() -> None:
            with db.transaction("pay") as tx:
                attempts.append(tx.attempt)
                tx["a"].execute(TAKE)
                tx["b"].execute(TAKE)

        answer = told(verb)
    with coordinator(pair, own) as db:
        return answer, db.status(attempts[0]).state is State.COMMITTED


def test_a_commit_without_an_answer_is_ambiguous_and_asked_for(request: Any, tmp_path: Path) -> None:
    assert the_decisions_reply_is_lost(request, tmp_path) == (COMMITTED, True)


def test_taking_no_answer_for_a_no_tells_a_lie(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decide(ctx: Context, decision: Decision) -> Script[Decision]:
        error = yield Do(ctx.register_batch, "submit", (decision,))
        if isinstance(error, Unclear):
            raise NotDecided(str(error))
        assert error is None
        return decision

    monkeypatch.setattr(register, "decide", decide)
    assert the_decisions_reply_is_lost(request, tmp_path) == (ABORTED, True)


# ---- everything that ends a transaction goes through the register ---------------------------------


def a_rollback_comes_as_a_commit_is_about_to_decide(request: Any, tmp_path: Path) -> tuple[str, str, list[int]]:
    pair = databases("postgres+sqlite", request, tmp_path)
    answers: list[str] = []
    with coordinator(pair) as db:
        db.setup()
        staged(db)
        with coordinator(pair) as rival:
            watch(db, "P5", "deciding", lambda: answers.append(told(lambda: rival.rollback_distributed("pay"))))
            answer = told(lambda: db.commit_distributed("pay"))
    return answer, answers[0], balances(pair)


def test_everything_that_ends_a_transaction_goes_through_the_register(request: Any, tmp_path: Path) -> None:
    # `told` says committed of a verb that got what it wanted.
    assert a_rollback_comes_as_a_commit_is_about_to_decide(request, tmp_path) == (ABORTED, COMMITTED, UNTOUCHED)


def test_a_rollback_that_does_not_ask_the_register_lets_a_commit_be_answered_that_is_not_there(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_rule(monkeypatch, Phase.STAGED, AbortAsked, CommitMachine._abort)
    assert a_rollback_comes_as_a_commit_is_about_to_decide(request, tmp_path) == (COMMITTED, COMMITTED, UNTOUCHED)


# ---- nothing is inferred from the shape of the branches -------------------------------------------


def two_of_three_are_prepared_when_recovery_comes(request: Any, tmp_path: Path) -> tuple[str, list[int]]:
    some = databases("postgres+postgres+postgres", request, tmp_path)
    own = f"sqlite:///{tmp_path}/journal.db"
    with coordinator(some, own) as db, coordinator(some, own) as rival:
        db.setup()
        rival.setup()  # finds all of it, and is ready
        third = context(db).participants["c"].resource

        def refuses(*_: object, **__: object) -> Script[None]:
            until(lambda: bool(some[0].prepared() and some[1].prepared()))
            rival.recover(grace=0)
            raise Refused("no room")
            yield

        third.prepare = refuses  # type: ignore[method-assign]

        def verb() -> None:
            with db.transaction() as tx:
                for database in some:
                    tx[database.name].execute(TAKE)

        answer = told(verb)
        until(lambda: rival.recover(grace=0).clean)
    return answer, balances(some)


def test_nothing_is_inferred_from_how_many_branches_are_prepared(request: Any, tmp_path: Path) -> None:
    assert two_of_three_are_prepared_when_recovery_comes(request, tmp_path) == (ABORTED, [100, 100, 100])


def test_a_recoverer_that_takes_two_prepared_branches_for_all_commits_half(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = register.decide

    def guess(ctx: Context, decision: Decision) -> Script[Decision]:
        if decision.reason.startswith("recovery") and len(decision.branches) > 1:
            return Decision(
                **{f: getattr(decision, f) for f in decision.__struct_fields__} | {"verdict": Verdict.COMMIT}
            )
            yield
        return (yield from sound(ctx, decision))

    monkeypatch.setattr("nodoubt.engine.sweep.register.decide", guess)
    assert two_of_three_are_prepared_when_recovery_comes(request, tmp_path) == (ABORTED, [70, 70, 100])


# ---- plain INSERT, never ON CONFLICT --------------------------------------------------------------


def an_abort_stands_when_the_commit_point_commits(
    kind: str, request: Any, tmp_path: Path, mutant: type[SqlJournal] | None = None
) -> tuple[str, list[int]]:
    pair = databases(f"{kind}+postgres", request, tmp_path)

    def fence() -> None:
        with coordinator(pair) as rival:
            assert rival.recover(grace=0).rolled_back == 1

    with coordinator(pair) as db:
        db.setup()
        if mutant is not None:
            context(db).journal = mutant(context(db).journal.dialect)  # type: ignore[attr-defined]
        watch(db, "P4", "all prepared", fence)
        answer = at_once(db)
    with coordinator(pair) as db:
        until(lambda: db.recover(grace=0).clean)
    return answer, balances(pair)


class OnConflict(SqlJournal):
    """The mutant: the absence of an error is taken for success."""

    def _decision_rows(self, decision: Decision) -> tuple[str, ...]:
        row, *more = super()._decision_rows(decision)
        if self.dialect.kind == "mariadb":
            return row.replace("INSERT INTO", "INSERT IGNORE INTO", 1), *more
        return f"{row} ON CONFLICT DO NOTHING", *more


@pytest.mark.parametrize("kind", ["mariadb", "postgres"])
def test_a_decision_is_a_plain_insert_that_an_abort_in_its_place_refuses(
    kind: str, request: Any, tmp_path: Path
) -> None:
    assert an_abort_stands_when_the_commit_point_commits(kind, request, tmp_path) == (ABORTED, UNTOUCHED)


@pytest.mark.parametrize("kind", ["mariadb"])
def test_an_insert_that_ignores_conflicts_commits_the_local_work_against_a_standing_abort(
    kind: str, request: Any, tmp_path: Path
) -> None:
    """PostgreSQL's resource would see the tag `INSERT 0 0`, and InnoDB has none."""
    answer, ended = an_abort_stands_when_the_commit_point_commits(kind, request, tmp_path, OnConflict)
    assert ended == [70, 100], answer


# ---- the decision lists every branch with its resource's identity ---------------------------------


def carried_out_by_a_coordinator_with_other_names(
    request: Any, tmp_path: Path, mutate: Callable[[Coordinator], None]
) -> tuple[int, list[int]]:
    """How many it quarantined, and what came of it."""
    pair, own = databases("sqlite+sqlite", request, tmp_path), f"sqlite:///{tmp_path}/journal.db"
    with coordinator(pair, own) as db:
        db.setup()
        with out_of_reach("a", "b"):
            assert at_once(db) == COMMITTED
    swapped = [Database("a", pair[1].url), Database("b", pair[0].url)]
    with coordinator(swapped, own) as db:
        mutate(db)
        return db.recover(grace=0).quarantined, balances(pair)


def test_the_decision_lists_every_branch_with_its_resources_identity(request: Any, tmp_path: Path) -> None:
    """Names are each coordinator's own."""
    assert carried_out_by_a_coordinator_with_other_names(request, tmp_path, lambda _: None) == (0, MOVED)


def test_going_by_names_looks_for_a_branch_in_the_wrong_database(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_name(db: Coordinator) -> None:
        ids = {p.resource_id: p.name for p in context(db).participants.values()}
        swapped = {"a": "b", "b": "a"}  # the names under which the decision lists them

        def look_up(ctx: Context, resource_id: str) -> Participant | None:
            return ctx.participants[swapped[ids[resource_id]]]

        monkeypatch.setattr(Context, "by_id", look_up)

    quarantined, ended = carried_out_by_a_coordinator_with_other_names(request, tmp_path, by_name)
    assert quarantined or ended != MOVED


# ---- no row: start over ---------------------------------------------------------------------------


def an_abort_is_seen_and_then_forgotten_by_its_server(
    request: Any, tmp_path: Path, journal: type[SqlJournal] = SqlJournal
) -> tuple[str, list[int]]:
    """It was visible, and not flushed, when the server crashed; then a commit by name comes to confirm it."""
    pair = databases("postgres+sqlite", request, tmp_path)
    with coordinator(pair) as beginner:
        beginner.setup()
        attempt = staged(beginner)
    with coordinator(pair) as db:
        changed: Any = journal(context(db).journal.dialect)  # type: ignore[attr-defined]
        context(db).journal = changed
        lost = Standing(Decision(attempt, Verdict.ABORT, Mode.STAGED, "pay", ()), ended=False)
        sound = changed.known
        seen: list[Standing] = []

        def known(session: Any, name: str, **_: Any) -> Script[Any]:
            found = yield from sound(session, name)
            if seen or found is None:
                return found
            seen.append(lost)
            return found[0], lost, False

        changed.known = known
        answer = told(lambda: db.commit_distributed("pay"))
    return answer, balances(pair)


class Believes(SqlJournal):
    """The mutant: what was seen once stands."""

    def confirm(self, session: Any, attempts: Any) -> Script[dict[str, Standing | Unreadable]]:
        return {
            attempt: Standing(Decision(attempt, Verdict.ABORT, Mode.STAGED, "pay", ()), ended=False)
            for attempt in attempts
        }
        yield


def test_a_decision_that_was_seen_and_is_gone_is_asked_for_again(request: Any, tmp_path: Path) -> None:
    assert an_abort_is_seen_and_then_forgotten_by_its_server(request, tmp_path) == (COMMITTED, MOVED)


def test_believing_what_was_seen_tells_of_an_abort_that_nobody_decided(request: Any, tmp_path: Path) -> None:
    answer = an_abort_is_seen_and_then_forgotten_by_its_server(request, tmp_path, Believes)
    assert answer == (ABORTED, UNTOUCHED)
