"""The rules of staged transactions. Each test is followed by the same scene without its rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kit import Database, until
from nodoubt import (
    Coordinator,
    DuplicateTransaction,
    Heuristic,
    OutcomeConflict,
    ResourceUnavailable,
    State,
    StillBeginning,
    TransactionAborted,
    UnknownTransaction,
)
from nodoubt.engine import phases, verbs
from nodoubt.engine.attempt import Attempt
from nodoubt.engine.context import Context, using
from nodoubt.ports import Prepared, Refused, Unclear
from nodoubt.protocol.commands import Fence, Prepare, Ready
from nodoubt.protocol.commit import CommitMachine, Phase, Standing
from nodoubt.protocol.events import Listed, NotListed, StageAsked, Undecided, Voted
from nodoubt.protocol.records import Staging
from nodoubt.resources.postgres import PostgresResource
from nodoubt.script import Script
from nodoubt.testing.proxy import TcpProxy
from nodoubt.testing.servers import PostgresServer
from rules.mutants import (
    ABORTED,
    COMMITTED,
    IN_DOUBT,
    SHORT,
    change_rule,
    context,
    coordinator,
    out_of_reach,
    staged,
    told,
    watch,
)
from traps.scenes import MOVED, UNTOUCHED, at_rest, balances, databases

STILL = "still beginning"


# A commit by name also looks whether the branches other than X are prepared. That is a second line, behind several of
# the rules here: to show that a rule holds by itself, its mutant is run without it.
def one_line_of_defence(patch: pytest.MonkeyPatch) -> None:
    """Only X is looked for."""

    def only_x(ctx: Context, staging: Any, branches: Any, _: Any) -> Script[bool]:
        if staging.last is None or (yield from verbs._is_listed(ctx, branches[staging.last])):
            return True
        raise StillBeginning(staging.name)

    patch.setattr(verbs, "_all_listed", only_x)


def asked(verb: Callable[[], Any]) -> str:
    """As `told`, with the answer of a begin that is at work, and of none."""
    try:
        return told(verb)
    except StillBeginning:
        return STILL
    except UnknownTransaction:
        return "unknown"


def a_commit_comes_while_the_last_but_one_prepares(journal: str, request: Any, tmp_path: Path) -> tuple[str, list[int]]:
    """And that prepare fails. `journal`: a, with X there, or one of its own, and no X."""
    pair = databases("sqlite+postgres", request, tmp_path)
    at = f"sqlite:///{tmp_path}/journal.db" if journal == "own" else None
    answers: list[str] = []
    with coordinator(pair, at) as db:
        db.setup()
        with coordinator(pair, at) as rival:

            def refuses(*_: object, **__: object) -> Script[None]:
                # By then the branch in a is prepared, if anything lets it.
                deadline(lambda: bool(pair[0].prepared()))
                answers.append(asked(lambda: rival.commit_distributed("pay")))
                raise Refused("a deferred constraint does not hold")
                yield

            context(db).participants["b"].resource.prepare = refuses  # type: ignore[method-assign]
            assert asked(lambda: staged(db)) == ABORTED
        db.recover(grace=0)
        db.recover(grace=0)
    return answers[0], balances(pair)


def deadline(condition: Callable[[], bool], seconds: float = 0.3) -> None:
    """Give it the chance."""
    try:
        until(condition, seconds)
    except AssertionError:
        return


# ---- X prepares last ------------------------------------------------------------------------------


def test_x_prepares_when_all_others_have(request: Any, tmp_path: Path) -> None:
    assert a_commit_comes_while_the_last_but_one_prepares("a", request, tmp_path) == ("unknown", UNTOUCHED)


def test_x_prepared_with_the_others_is_committed_without_them(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask_all(machine: CommitMachine, _: StageAsked) -> Ready:
        for number in machine.plan.writers:
            machine.branches[number] = Standing.ASKED
            machine.pending.add(number)
        machine.phase = Phase.VOTING
        row = machine.plan.staging
        return Ready(commands=tuple(Prepare(n, row if n == machine.point else None) for n in machine.plan.writers))

    one_line_of_defence(monkeypatch)
    change_rule(monkeypatch, Phase.WORKING, StageAsked, ask_all)
    change_rule(monkeypatch, Phase.VOTING, Voted, CommitMachine._count_vote)
    answer, ended = a_commit_comes_while_the_last_but_one_prepares("a", request, tmp_path)
    assert (answer, ended) == (COMMITTED, [70, 100])


# ---- without an X the row comes after all prepares ------------------------------------------------


def test_without_an_x_the_name_is_listed_when_all_branches_have_prepared(request: Any, tmp_path: Path) -> None:
    assert a_commit_comes_while_the_last_but_one_prepares("own", request, tmp_path) == ("unknown", UNTOUCHED)


def test_a_name_listed_before_its_branches_are_prepared_is_committed_by_half(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = verbs._plan

    def listed_first(ctx: Context, *known: Any) -> Any:
        plan = sound(ctx, *known)
        ctx_journal: Any = ctx.journal
        shell_of[id(ctx)]._shell.run(using(ctx.journal_pool, lambda session: ctx_journal.stage(session, plan.staging)))
        return plan

    def already(*_: object) -> Script[Listed]:
        return Listed()
        yield

    shell_of: dict[int, Coordinator] = {}
    opened = Coordinator.open

    def noted(self: Coordinator) -> Coordinator:
        shell_of[id(context(self))] = self
        return opened(self)

    one_line_of_defence(monkeypatch)
    monkeypatch.setattr(Coordinator, "open", noted)
    monkeypatch.setattr(verbs, "_plan", listed_first)
    monkeypatch.setattr(phases, "_list", already)
    answer, ended = a_commit_comes_while_the_last_but_one_prepares("own", request, tmp_path)
    assert ended == [70, 100], answer


# ---- a commit requires X to be listed as prepared -------------------------------------------------


def a_commit_comes_before_x_has_prepared(request: Any, tmp_path: Path) -> tuple[str, list[int]]:
    """And then X cannot."""
    pair = databases("postgres+sqlite", request, tmp_path)
    answers: list[str] = []
    with coordinator(pair) as db:
        db.setup()
        with coordinator(pair) as rival:

            def refuses(*_: object, **__: object) -> Script[None]:
                answers.append(asked(lambda: rival.commit_distributed("pay")))
                raise Refused("a deferred constraint does not hold")
                yield

            context(db).participants["a"].resource.prepare = refuses  # type: ignore[method-assign]
            assert asked(lambda: staged(db)) in (ABORTED, COMMITTED)
        db.recover(grace=0)
    return answers[0], balances(pair)


def test_a_commit_requires_x_to_be_listed_as_prepared(request: Any, tmp_path: Path) -> None:
    assert a_commit_comes_before_x_has_prepared(request, tmp_path) == (STILL, UNTOUCHED)


def test_a_commit_that_believes_the_row_alone_commits_the_others_without_x(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def believe(*_: object) -> Script[bool]:
        return True
        yield

    monkeypatch.setattr(verbs, "_all_listed", believe)
    answer, ended = a_commit_comes_before_x_has_prepared(request, tmp_path)
    assert (answer, ended) == (COMMITTED, [100, 130])


def test_a_commit_that_is_always_told_that_x_is_listed_commits_the_others_without_x(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X is asked for in the very question for the name: another line than that for the others."""
    monkeypatch.setattr(PostgresResource, "traits", replace(PostgresResource.traits, listed_sql="true"))
    answer, ended = a_commit_comes_before_x_has_prepared(request, tmp_path)
    assert (answer, ended) == (COMMITTED, [100, 130])


# ---- X not listed: after the grace anyone may fence it --------------------------------------------


@pytest.mark.parametrize("kinds", ["postgres+sqlite", "postgres"])
def test_a_begin_that_died_before_x_prepared_is_fenced_after_the_grace_and_not_before(
    kinds: str, request: Any, tmp_path: Path
) -> None:
    """Its name, too, is let go, also where no branch of it is prepared anywhere. (What is done at which age is the
    table's: `tests/protocol/test_recovery_table.py`.)"""
    some = databases(kinds, request, tmp_path)
    with coordinator(some) as db:
        db.setup()
        with coordinator(some) as rival:
            states: list[State] = []

            def recovery_comes() -> None:
                assert rival.recover(grace=3600).left == len(some) - 1
                states.append(rival.status("pay").state)
                # A row that went before its work is left alone for as long as that may take.
                until(lambda: bool(rival.recover(grace=0)) and rival.status("pay").state is not State.BEGINNING)
                states.append(rival.status("pay").state)

            def begin() -> None:
                with db.begin_distributed("pay", timeout=1.5) as tx:
                    for database in some:
                        tx[database.name].execute("update accounts set balance = balance - 30 where id = 0")

            watch(db, "P3", "prepare", recovery_comes, branch=0)
            asked(begin)
            assert states == [State.BEGINNING, State.ABORTED]
        db.recover(grace=0)
    assert balances(some) == [100] * len(some) and at_rest(some)


# ---- what was prepared and is not any more --------------------------------------------------------


def a_stranger_ends_a_branch_before_the_commit(request: Any, tmp_path: Path) -> tuple[str, list[int]]:
    """Of a name that was staged elsewhere."""
    pair = databases("sqlite+postgres", request, tmp_path)
    with coordinator(pair) as other:
        other.setup()
        staged(other)
    with coordinator(pair) as db:
        (gid,) = pair[1].prepared()
        pair[1].query(f"rollback prepared '{gid}'")
        try:
            answer = asked(lambda: db.commit_distributed("pay"))
        except Heuristic:
            answer = "heuristic"
            assert db.rollback_distributed("pay").state is State.ABORTED
        return answer, balances(pair)


def test_a_branch_that_is_not_prepared_any_more_stops_its_commit(request: Any, tmp_path: Path) -> None:
    assert a_stranger_ends_a_branch_before_the_commit(request, tmp_path) == ("heuristic", UNTOUCHED)


def test_a_commit_that_does_not_look_for_its_branches_commits_what_is_left(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_line_of_defence(monkeypatch)
    assert a_stranger_ends_a_branch_before_the_commit(request, tmp_path) == (COMMITTED, [70, 100])


# ---- a begin that fails fences its own attempt ----------------------------------------------------


def x_prepares_when_its_begin_has_given_up(request: Any, tmp_path: Path) -> tuple[str, list[int]]:
    pair = databases("postgres+sqlite", request, tmp_path)
    with TcpProxy.to(pair[0].url) as proxy:
        seen = [replace(pair[0], url=proxy.url_for(pair[0].url)), pair[1]]
        with coordinator(seen, settings=SHORT) as db:
            db.setup()
            late: list[Any] = []
            watch(db, "P3", "prepare", lambda: late.append(proxy.stall(b"PREPARE TRANSACTION")), branch=0)
            assert asked(lambda: staged(db)) == ABORTED
            late[0].release()
            until(lambda: len(pair[0].prepared()) == 1)
        with coordinator(pair, settings=SHORT) as other:
            answer = asked(lambda: other.commit_distributed("pay"))
            other.recover(grace=0)
    return answer, balances(pair)


def test_a_begin_that_fails_fences_its_own_attempt(request: Any, tmp_path: Path) -> None:
    """Its late prepare, and its late row, can't come alive (I11)."""
    assert x_prepares_when_its_begin_has_given_up(request, tmp_path) == (ABORTED, UNTOUCHED)


def test_a_begin_that_fails_without_a_fence_is_committed_by_half(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def just_give_up(machine: CommitMachine, event: Voted) -> Ready:
        machine._note_vote(event)
        machine.why = event.why
        machine.branches[event.branch] = Standing.GONE
        return machine._abort()

    one_line_of_defence(monkeypatch)
    change_rule(monkeypatch, Phase.LAST, Voted, just_give_up)
    change_rule(monkeypatch, Phase.LISTING, NotListed, lambda machine, _: machine._abort())
    assert x_prepares_when_its_begin_has_given_up(request, tmp_path) == (COMMITTED, [70, 100])


# ---- quiet where the begin failed, unknown elsewhere ----------------------------------------------


def a_failed_begin_is_rolled_back(request: Any, tmp_path: Path) -> tuple[str, str]:
    """In the process where it failed, and in another."""
    pair = databases("sqlite+sqlite", request, tmp_path)

    def fail(db: Coordinator) -> None:
        with db.begin_distributed("pay"):
            raise KeyError("mine")

    with coordinator(pair) as db:
        db.setup()
        with pytest.raises(KeyError):
            fail(db)
        here = asked(lambda: db.rollback_distributed("pay"))
    with coordinator(pair) as other:
        return here, asked(lambda: other.rollback_distributed("pay"))


def test_a_commit_is_told_where_the_begin_failed_that_there_is_nothing(request: Any, tmp_path: Path) -> None:
    """What quiets a rollback must not have a commit answered as if it had ended well."""
    pair = databases("sqlite+sqlite", request, tmp_path)
    with coordinator(pair) as db:
        db.setup()
        with pytest.raises(KeyError), db.begin_distributed("pay"):
            raise KeyError("mine")
        with pytest.raises(UnknownTransaction):
            db.commit_distributed("pay")


def test_a_begin_that_failed_here_and_was_committed_elsewhere_keeps_its_name(request: Any, tmp_path: Path) -> None:
    """This process has lost the answer to its last prepare; another has seen it staged, and committed it."""
    pair = databases("sqlite+sqlite", request, tmp_path)
    with coordinator(pair) as db:
        db.setup()
        attempt = staged(db)
        with coordinator(pair) as other:
            other.commit_distributed("pay")
        context(db).remember_failed_begin("pay", attempt, harmless=False)
        with pytest.raises(OutcomeConflict):
            db.rollback_distributed("pay")
        with pytest.raises(DuplicateTransaction):
            staged(db)
    assert balances(pair) == MOVED


def test_a_rollback_is_quiet_where_the_begin_failed_and_the_name_unknown_elsewhere(
    request: Any, tmp_path: Path
) -> None:
    assert a_failed_begin_is_rolled_back(request, tmp_path) == (COMMITTED, "unknown")


def a_begin_finds_its_server_gone(kind: str, request: Any, tmp_path: Path) -> str:
    """It is the only one, and no session to it was open: so nothing was sent. What the rollback answers."""
    (some,) = databases(kind, request, tmp_path)
    with TcpProxy.to(some.url) as proxy:
        db = coordinator([replace(some, url=proxy.url_for(some.url))], settings=replace(SHORT, decide_s=0.3))
        db.open()
        db.setup()
        context(db).drop_idle()
    try:
        with pytest.raises(ResourceUnavailable), db.begin_distributed("pay"):
            pass
        return asked(lambda: db.rollback_distributed("pay"))
    finally:
        db.close()


@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
def test_a_rollback_is_quiet_where_nothing_of_the_begin_was_sent(kind: str, request: Any, tmp_path: Path) -> None:
    assert a_begin_finds_its_server_gone(kind, request, tmp_path) == COMMITTED


def test_a_begin_that_fences_what_it_never_sent_asks_a_server_that_is_gone(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Attempt, "listed", property(lambda attempt: attempt.early is not None, lambda *_: None))
    assert (
        a_begin_finds_its_server_gone("postgres", request, tmp_path) == ABORTED
    )  # which is how `told` hears "the journal is away"


def test_without_its_memory_an_except_block_that_rolls_back_hides_the_error(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Context, "remember_failed_begin", lambda *_: None)
    assert a_failed_begin_is_rolled_back(request, tmp_path) == ("unknown", "unknown")


# ---- an ended name stays reserved -----------------------------------------------------------------


def an_old_retry_comes_after_the_name_was_used_again(request: Any, tmp_path: Path) -> State:
    """What the next transaction of the name is then."""
    pair = databases("sqlite+sqlite", request, tmp_path)
    with coordinator(pair) as db:
        db.setup()
        staged(db)
        db.commit_distributed("pay")
        return a_late_commit_after_the_name_was_used_again(db)


def a_late_commit_after_the_name_was_used_again(db: Coordinator) -> State:
    """What the next transaction of the name is then; with `reuse` it was begun by somebody who knows."""
    try:
        staged(db)
    except DuplicateTransaction:
        staged(db, reuse=True)
        return db.status("pay").state
    db.commit_distributed("pay")  # of the first, which nobody can tell from another
    return db.status("pay").state


def test_an_ended_name_stays_reserved(request: Any, tmp_path: Path) -> None:
    """An exact retry, with its attempt: `tests/traps/test_races.py`."""
    assert an_old_retry_comes_after_the_name_was_used_again(request, tmp_path) is State.PREPARED


def work_fails_under_a_name(kinds: str, request: Any, tmp_path: Path) -> str:
    """Twice here; then it is begun elsewhere."""
    some = databases(kinds, request, tmp_path)
    with coordinator(some) as db:
        db.setup()
        for _ in range(2):
            with pytest.raises(KeyError), db.begin_distributed("pay"):
                raise KeyError
    return begun_elsewhere(some)


def begun_elsewhere(some: list[Database]) -> str:
    with coordinator(some) as other:
        try:
            with other.begin_distributed("pay"):
                pass
        except DuplicateTransaction:
            return "reserved"
        return other.status("pay").state.value


KINDS = ["postgres", "mariadb", "sqlite", "postgres+sqlite", "mariadb+sqlite"]


@pytest.mark.parametrize("kinds", KINDS)
def test_the_name_of_work_that_failed_is_free_here_and_elsewhere(kinds: str, request: Any, tmp_path: Path) -> None:
    assert work_fails_under_a_name(kinds, request, tmp_path) == "prepared"


@pytest.mark.parametrize("kinds", ["postgres", "mariadb"])
def test_a_begin_whose_abort_keeps_its_name_reserves_it_elsewhere(
    kinds: str, request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = verbs._abort
    monkeypatch.setattr(verbs, "_abort", lambda *arguments, **_: sound(*arguments, frees_name=False))
    assert work_fails_under_a_name(kinds, request, tmp_path) == "reserved"


def the_last_prepare_is_refused_under_a_name(kinds: str, request: Any, tmp_path: Path) -> str:
    """The row of the name has reached the journal by then."""
    some = databases(kinds, request, tmp_path)
    with coordinator(some) as db:
        db.setup()
        place = context(db).participants[some[0].name]

        def refuse(*_: Any, **__: Any) -> Script[None]:
            raise Refused("not this one")
            yield

        sound, place.resource.prepare = place.resource.prepare, refuse  # type: ignore[method-assign]
        with pytest.raises(TransactionAborted):
            begun(db, some)
        place.resource.prepare = sound  # type: ignore[method-assign]
    return begun_elsewhere(some)


@pytest.mark.parametrize("kinds", ["postgres", "mariadb", "postgres+sqlite", "mariadb+sqlite"])
def test_the_name_of_a_begin_that_was_refused_is_free_elsewhere(kinds: str, request: Any, tmp_path: Path) -> None:
    assert the_last_prepare_is_refused_under_a_name(kinds, request, tmp_path) == "prepared"


@pytest.mark.parametrize("kinds", ["postgres", "mariadb", "mariadb+sqlite"])
def test_a_begin_whose_fence_keeps_its_name_reserves_it_elsewhere(
    kinds: str, request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = phases._fence

    def keeps(ctx: Context, course: Any, fence: Fence) -> Script[Any]:
        return sound(ctx, course, Fence(fence.why))

    monkeypatch.setattr(phases, "_fence", keeps)
    assert the_last_prepare_is_refused_under_a_name(kinds, request, tmp_path) == "reserved"


def others_see_it_staged(kinds: str, request: Any, tmp_path: Path, *, doubt: bool = False) -> tuple[str, str, str]:
    """Its own begin never hears that: the answer of the last message is lost. Whoever has seen it commits by its name,
    when the next has begun under it. `doubt`: nor is the fence answered, and it is rolled back.

    What was seen, what has become of the next begin, and of the commit.
    """
    kinds, _, journal = kinds.partition(" ")
    some = databases(kinds, request, tmp_path)
    at = f"sqlite:///{tmp_path}/journal.db" if journal else None
    seen: list[State] = []
    with coordinator(some, at) as founder:
        founder.setup()
    with coordinator(some, at) as db, coordinator(some, at) as other, coordinator(some, at) as third:
        ctx = context(db)
        target, verb = (ctx.journal, "stage") if journal else (ctx.participants["a"].resource, "prepare")
        sound = getattr(target, verb)

        def no_answer(*arguments: Any, **options: Any) -> Script[None]:
            yield from sound(*arguments, **options)
            seen.append(other.status("pay").state)
            raise Unclear("no answer")

        def nor_here(*_: Any) -> Script[Any]:
            yield from ()
            return Undecided("no answer")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(target, verb, no_answer)
            if doubt:
                patch.setattr(phases, "_fence", nor_here)
            assert asked(lambda: begun(db, some)) == (IN_DOUBT if doubt else ABORTED)
        if doubt:
            assert db.rollback_distributed("pay").state is State.ABORTED
        third.recover(grace=0)
        try:
            begun(third, some)
            then = "begun"
        except DuplicateTransaction:
            then = "reserved"
        return seen[0].value, then, asked(lambda: other.commit_distributed("pay"))


def begun(db: Coordinator, some: Sequence[Database]) -> None:
    with db.begin_distributed("pay") as tx:
        for one in some:
            at: Any = tx if len(some) == 1 else tx[one.name]
            at.execute("update accounts set balance = balance + 1 where id = 0")


SEEN = [*KINDS, "postgres+sqlite elsewhere"]


@pytest.mark.parametrize("kinds", SEEN)
def test_a_name_that_others_can_have_seen_staged_stays_reserved(kinds: str, request: Any, tmp_path: Path) -> None:
    assert others_see_it_staged(kinds, request, tmp_path) == ("prepared", "reserved", ABORTED)


@pytest.mark.parametrize("kinds", SEEN)
def test_a_name_that_is_free_though_others_saw_it_staged_is_committed_by_who_means_another(
    kinds: str, request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = CommitMachine._fence_own_begin
    monkeypatch.setattr(CommitMachine, "_fence_own_begin", lambda machine, **_: sound(machine, may_be_staged=False))
    assert others_see_it_staged(kinds, request, tmp_path) == ("prepared", "begun", COMMITTED)


@pytest.mark.parametrize("kinds", ["postgres", "mariadb", "postgres+sqlite"])
def test_a_name_in_doubt_that_is_rolled_back_stays_reserved(kinds: str, request: Any, tmp_path: Path) -> None:
    assert others_see_it_staged(kinds, request, tmp_path, doubt=True) == ("prepared", "reserved", ABORTED)


@pytest.mark.parametrize("kinds", ["postgres", "mariadb", "postgres+sqlite"])
def test_a_name_in_doubt_that_its_rollback_frees_is_committed_by_who_means_another(
    kinds: str, request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = verbs._abort
    monkeypatch.setattr(verbs, "_abort", lambda *arguments, **_: sound(*arguments, frees_name=True))
    assert others_see_it_staged(kinds, request, tmp_path, doubt=True) == ("prepared", "begun", COMMITTED)


def a_commit_comes_after_the_name_was_rolled_back_and_used_again(request: Any, tmp_path: Path) -> State:
    """What the next transaction of the name is then: the commit means the first."""
    pair = databases("sqlite+sqlite", request, tmp_path)
    with coordinator(pair) as db:
        db.setup()
        staged(db)
        db.rollback_distributed("pay")
    with coordinator(pair) as other:
        return a_late_commit_after_the_name_was_used_again(other)


def test_a_name_that_was_staged_and_rolled_back_stays_reserved(request: Any, tmp_path: Path) -> None:
    assert a_commit_comes_after_the_name_was_rolled_back_and_used_again(request, tmp_path) is State.PREPARED


def test_a_name_that_every_abort_frees_is_committed_by_who_means_another(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = phases._fence

    def frees(ctx: Context, course: Any, fence: Fence) -> Script[Any]:
        return sound(ctx, course, Fence(fence.why, frees_name=True))

    monkeypatch.setattr(phases, "_fence", frees)
    outcome = a_commit_comes_after_the_name_was_rolled_back_and_used_again(request, tmp_path)
    assert outcome is State.COMMITTED


def test_a_name_that_is_free_as_it_ends_is_committed_by_an_old_retry(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = verbs._require_free

    def free(ctx: Context, name: str, reuse: bool) -> Script[Staging | None]:
        return (yield from sound(ctx, name, True))

    monkeypatch.setattr(verbs, "_require_free", free)
    assert an_old_retry_comes_after_the_name_was_used_again(request, tmp_path) is State.COMMITTED


# ---- rows ride only within one server session -----------------------------------------------------


class OnAnotherSession(PostgresResource):
    """The mutant: the rows in one session, the command that should make them durable in another, after a crash."""

    fresh: Callable[[], Any]

    def commit_prepared(
        self, session: Any, prepared: Prepared, *, before: Sequence[str] = (), riders: Sequence[str] = ()
    ) -> Script[None]:
        if before:
            yield from self._commit_unforced(session, before)
            return (yield from super().commit_prepared(self.fresh(), prepared))
        return (yield from super().commit_prepared(session, prepared))


def the_server_crashes_between_the_rows_and_their_command(
    resource: type[PostgresResource], request: Any, tmp_path: Path
) -> list[int]:
    """One backend's crash restarts the server, and takes what was not flushed with it."""
    with PostgresServer({"checkpoint_timeout": "1h", "wal_writer_delay": "10s"}) as server:
        pair = [Database("a", server.url()), *databases("sqlite+sqlite", request, tmp_path)[1:]]
        pair[0].create()
        with coordinator(pair) as db:
            db.setup()
            staged(db, deadline=0.001)
            changed: Any = resource("a")
            context(db).participants["a"].resource = changed
            ride = changed._commit_unforced

            def and_crash(session: Any, rows: Sequence[str]) -> Script[None]:
                yield from ride(session, rows)
                server.kill()
                server.restart()

            changed._commit_unforced = and_crash
            changed.fresh = context(db).participants["a"].pool._connect  # type: ignore[attr-defined]
            with out_of_reach("b"):
                assert asked(lambda: db.commit_distributed("pay")) in (COMMITTED, IN_DOUBT)
        with coordinator(pair) as db:
            db.recover(grace=0)
            db.recover(grace=0)
        return balances(pair)


def test_a_row_rides_only_within_one_server_session(request: Any, tmp_path: Path) -> None:
    assert the_server_crashes_between_the_rows_and_their_command(PostgresResource, request, tmp_path) == MOVED


def test_a_row_that_another_session_was_to_make_durable_is_gone(request: Any, tmp_path: Path) -> None:
    ended = the_server_crashes_between_the_rows_and_their_command(OnAnotherSession, request, tmp_path)
    assert ended == [70, 100]
