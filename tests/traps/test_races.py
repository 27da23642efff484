"""Verbs that race: commit with rollback, recoverers with a late coordinator, an old retry with a name that lives again.

First every interleaving at the grain of one call, one after the other: before each step of the first verb the second
one runs as a whole. Then the same with threads that start at once, as it comes. `tests/journals/test_races.py` holds
the register itself to this.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest

from kit import QUICK, Database, Face, opened, until
from nodoubt import (
    Coordinator,
    DuplicateTransaction,
    OutcomeConflict,
    Settings,
    State,
    TransactionAborted,
    UnknownTransaction,
    wiring,
)
from nodoubt.engine.context import using
from nodoubt.engine.sweep import SweepReport
from nodoubt.protocol.records import Decision, Mode, Verdict
from nodoubt.testing.proxy import TcpProxy
from nodoubt.xid import new_attempt
from traps.scenes import at_rest, balances, context, databases, joined
from traps.steps import at_step, every_step

pytestmark = pytest.mark.anyio

ROUNDS = 20
MOMENT = 12  # digits of an attempt's id: its millisecond; what follows is its nonce
GIVES_UP = Settings(connect_s=5, acquire_s=5, prepare_s=5, decide_s=5, apply_s=0.5, grace_s=5, sweep_s=60)
OTHERS = (
    "select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() "
    "and backend_type = 'client backend'"
)
PAIRS = [("postgres+mariadb", "sync"), ("postgres+sqlite", "async"), ("mariadb+sqlite", "sync")]


class Rival:
    """A second coordinator, in this process, with threads; what its verb was answered."""

    def __init__(self, pair: list[Database], *, setup: bool = False, **options: Any) -> None:
        self.db = Coordinator({d.name: d.url for d in pair}, settings=QUICK, recovery=False, **options).open()
        if setup:
            self.db.setup()
        self.answer: object = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.db.close()

    def does(self, verb: Callable[[], Any]) -> Callable[[], None]:
        def act() -> None:
            self.answer = answered(verb)

        return act

    def rolls_back(self, name: str, **options: Any) -> Callable[[], None]:
        return self.does(lambda: self.db.rollback_distributed(name, **options))

    def commits(self, name: str, **options: Any) -> Callable[[], None]:
        return self.does(lambda: self.db.commit_distributed(name, **options))

    def sweeps(self) -> Callable[[], None]:
        return self.does(lambda: self.db.recover(grace=0))

    def decides(self, name: str, attempt: str) -> None:
        """Decide COMMIT and do nothing more: the process that did so has died."""
        ctx = context(self.db)
        staging = self.run(lambda session: ctx.journal.find(session, name))
        row = Decision(attempt, Verdict.COMMIT, Mode.STAGED, name, staging.branches)
        self.run(lambda session: ctx.journal.insert(session, [row]))

    def run(self, body: Callable[[Any], Any]) -> Any:
        return self.db._shell.run(using(context(self.db).journal_pool, body))


def answered(verb: Callable[[], Any]) -> object:
    """The state that a verb reports, or how it conflicts. Any other error comes out: a race is no excuse for one."""
    try:
        result = verb()
    except OutcomeConflict as conflict:
        return f"it was {conflict.stands}"
    return getattr(result, "state", result)


async def stage(db: Face, name: str, **options: Any) -> str:
    async with db.staged(name, **options) as tx:
        await tx.move("a", "b", 1)
    attempt: str = tx.handle.attempt
    return attempt


async def asked(call: Any) -> object:
    """As `answered`."""
    try:
        return getattr(result := await call, "state", result)
    except OutcomeConflict as conflict:
        return f"it was {conflict.stands}"


async def left_clean(db: Face, pair: list[Database], moved: int) -> None:
    assert (await db.recover(grace=0)).clean
    report = await db.recover(grace=0)
    assert report.clean and not report.prepared
    assert await db.quarantined() == []
    assert balances(pair) == [100 - moved, 100 + moved] and at_rest(pair)


WON = {
    # What the first verb and its rival are answered, and whether that means that the money has moved.
    (State.COMMITTED, "it was committed"): True,
    ("it was aborted", State.ABORTED): False,
    ("it was committed", State.COMMITTED): True,
    (State.ABORTED, "it was aborted"): False,
}


# ---- one step after the other ---------------------------------------------------------------------


@pytest.mark.parametrize(("kinds", "mode", "first"), [*((*pair, "commit") for pair in PAIRS), (*PAIRS[0], "rollback")])
async def test_commit_races_rollback_at_every_step(
    kinds: str, mode: str, first: str, request: Any, tmp_path: Path
) -> None:
    """Exactly one wins; the loser is told so by OutcomeConflict, whatever it was in the middle of (I12)."""
    pair = databases(kinds, request, tmp_path)
    moved, outcomes = 0, set()
    async with opened(mode, pair) as db:
        with Rival(pair) as rival:
            for at in every_step():
                name = f"order-{at}"
                await stage(db, name)
                finish = db.commit_distributed if first == "commit" else db.rollback_distributed
                rivals = rival.rolls_back if first == "commit" else rival.commits
                with at_step(db, at, rivals(name)) as steps:
                    answer = await asked(finish(name))
                moved += answer in (State.COMMITTED, "it was committed")
                if not steps.acted:
                    break
                assert (answer, rival.answer) in WON, f"{answer}, {rival.answer} at step {at} of {steps.trail}"
                assert balances(pair) == [100 - moved, 100 + moved], f"step {at} of {steps.trail}"
                outcomes.add(answer)
        assert len(outcomes) == 2, "each of them has won at some step"
        await left_clean(db, pair, moved)


@pytest.mark.parametrize(("kinds", "mode"), PAIRS)
async def test_a_sweep_that_aborts_what_is_due_races_its_commit_at_every_step(
    kinds: str, mode: str, request: Any, tmp_path: Path
) -> None:
    pair = databases(kinds, request, tmp_path)
    moved, outcomes = 0, set()
    async with opened(mode, pair) as db:
        with Rival(pair) as rival:
            for at in every_step():
                name = f"order-{at}"
                await stage(db, name, deadline=0.001)
                with at_step(db, at, rival.sweeps()) as steps:
                    answer = await asked(db.commit_distributed(name))
                assert answer in (State.COMMITTED, "it was aborted"), f"step {at} of {steps.trail}"
                moved += answer is State.COMMITTED
                assert balances(pair) == [100 - moved, 100 + moved], f"step {at} of {steps.trail}"
                outcomes.add(answer)
                if not steps.acted:
                    break
        assert len(outcomes) == 2
        await left_clean(db, pair, moved)


@pytest.mark.parametrize("journal", ["a", "own"])
@pytest.mark.parametrize(("kinds", "mode"), PAIRS[:2])
async def test_a_sweep_without_any_grace_races_a_transaction_at_every_step_of_its_end(
    kinds: str, mode: str, journal: str, request: Any, tmp_path: Path
) -> None:
    """The caller is told what happened, though every grace is broken (I14)."""
    pair = databases(kinds, request, tmp_path)
    at_url = f"sqlite:///{tmp_path}/journal.db" if journal == "own" else None
    moved, outcomes = 0, set()
    async with opened(mode, pair, journal=at_url) as db:
        with Rival(pair, journal=at_url) as rival:
            for at in every_step():
                block = db.transaction()
                tx = await block.__aenter__()
                await tx.move("a", "b", 1)
                with at_step(db, at, rival.sweeps()) as steps:
                    try:
                        await block.__aexit__(None, None, None)
                        answer = State.COMMITTED
                    except TransactionAborted:
                        answer = State.ABORTED
                moved += answer is State.COMMITTED
                assert balances(pair) == [100 - moved, 100 + moved], f"step {at} of {steps.trail}: {answer}"
                outcomes.add(answer)
                if not steps.acted:
                    break
        assert len(outcomes) == 2
        await left_clean(db, pair, moved)


@pytest.mark.parametrize(
    ("kinds", "mode", "rivals"),
    [(*PAIRS[0], "sweep"), (*PAIRS[1], "sweep"), (*PAIRS[2], "commit"), (*PAIRS[0], "rollback")],
)
async def test_two_recoverers_or_one_and_a_late_coordinator_carry_out_one_decision(
    kinds: str, mode: str, rivals: str, request: Any, tmp_path: Path
) -> None:
    """A commit was decided, and its process died. No mixture of helpers makes them see a heuristic (I7, I13)."""
    pair = databases(kinds, request, tmp_path)
    moved = 0
    async with opened(mode, pair) as db:
        with Rival(pair) as rival:
            for at in every_step():
                name = f"order-{at}"
                attempt = await stage(db, name)
                rival.decides(name, attempt)
                act = {"sweep": rival.sweeps(), "commit": rival.commits(name), "rollback": rival.rolls_back(name)}
                with at_step(db, at, act[rivals]) as steps:
                    report = await db.recover(grace=0)
                moved += 1
                assert not report.quarantined, f"step {at} of {steps.trail}"
                await db.recover(grace=0)
                assert balances(pair) == [100 - moved, 100 + moved], f"step {at} of {steps.trail}"
                assert (await db.status(name)).complete
                if not steps.acted:
                    break
                if rivals == "commit":
                    assert rival.answer is State.COMMITTED
                elif rivals == "rollback":
                    assert rival.answer == "it was committed"
        await left_clean(db, pair, moved)


# ---- all at once, as it comes ---------------------------------------------------------------------


@pytest.mark.parametrize("kinds", ["postgres+mariadb", "mariadb+sqlite"])
def test_a_commit_a_rollback_and_two_recoverers_who_start_at_once_agree(
    kinds: str, request: Any, tmp_path: Path
) -> None:
    pair = databases(kinds, request, tmp_path)
    with Rival(pair, setup=True) as one, Rival(pair) as other, Rival(pair) as third, Rival(pair) as fourth:
        moved = 0
        for turn in range(ROUNDS):
            name = f"order-{turn}"
            with one.db.begin_distributed(name, deadline=0.001 if turn % 2 else None) as tx:
                for database, sign in zip(pair, "-+", strict=True):
                    tx[database.name].execute(f"update accounts set balance = balance {sign} 1 where id = 0")
            start = threading.Barrier(4)
            acts = [one.commits(name), other.rolls_back(name), third.sweeps(), fourth.sweeps()]
            threads = [threading.Thread(target=together, args=(start, act)) for act in acts]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            committed = one.answer is State.COMMITTED
            assert (one.answer, other.answer) in (
                (State.COMMITTED, "it was committed"),
                ("it was aborted", State.ABORTED),
            ), (turn, one.answer, other.answer)
            moved += committed
            for recoverer in (third, fourth):
                assert isinstance(recoverer.answer, SweepReport) and not recoverer.answer.quarantined
            assert recovered_to(one.db, pair, moved)


def together(start: threading.Barrier, act: Callable[[], None]) -> None:
    start.wait()
    act()


def recovered_to(db: Coordinator, pair: list[Database], moved: int) -> bool:
    until(lambda: db.recover(grace=0).clean)
    return balances(pair) == [100 - moved, 100 + moved] and at_rest(pair) and db.quarantined() == []


# ---- a name that lives again ----------------------------------------------------------------------


@pytest.mark.parametrize(("kinds", "mode", "first"), [(*PAIRS[0], "commit"), (*PAIRS[1], "rollback")])
async def test_an_old_retry_does_not_touch_the_next_transaction_of_its_name(
    kinds: str, mode: str, first: str, request: Any, tmp_path: Path
) -> None:
    """I10. Without the attempt an ended name is not to be had; with it, a retry is exact."""
    pair = databases(kinds, request, tmp_path)
    async with opened(mode, pair) as db:
        old = await stage(db, "order-7")
        await (db.commit_distributed if first == "commit" else db.rollback_distributed)("order-7")
        moved = int(first == "commit")
        with pytest.raises(DuplicateTransaction):
            await stage(db, "order-7")
        new = await stage(db, "order-7", reuse=True)
        assert new != old
        with Rival(pair) as retry:
            late = retry.commits("order-7", attempt=old), retry.rolls_back("order-7", attempt=old)
            stands = [State.COMMITTED, "it was committed"] if moved else ["it was aborted", State.ABORTED]
            for retried, answer in zip(late, stands, strict=True):
                retried()
                assert retry.answer == answer, "the first outcome (I12)"
                assert (await db.status("order-7")).state is State.PREPARED
                assert balances(pair) == [100 - moved, 100 + moved]
            with pytest.raises(UnknownTransaction):
                retry.db.commit_distributed("order-8", attempt=old)
        assert (await db.commit_distributed("order-7", attempt=new)).state is State.COMMITTED
        await left_clean(db, pair, moved + 1)


# ---- two lives of a name in one millisecond -------------------------------------------------------


async def the_rollback_of_a_first_life_comes_when_the_second_is_committed(
    nonce: Callable[[], str], mode: str, request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[Database]:
    """The first fails as it begins: b never hears its PREPARE, and hears its ROLLBACK PREPARED when all have given up.

    The second begins in another process, whose clock then shows the millisecond that the first one's did.
    """
    pair = databases("postgres+postgres", request, tmp_path)
    with TcpProxy.to(pair[1].url) as proxy:
        seen = [pair[0], replace(pair[1], url=proxy.url_for(pair[1].url))]
        async with opened(mode, seen, settings=GIVES_UP) as db:
            moment = new_attempt()[:MOMENT]
            monkeypatch.setattr(wiring, "new_attempt", lambda: moment + nonce())
            block = db.staged("order-7")
            tx = await block.__aenter__()
            await tx.move("a", "b", 1)
            proxy.cut_request(b"PREPARE TRANSACTION")
            late = proxy.stall(b"ROLLBACK PREPARED")
            with pytest.raises(TransactionAborted):
                await block.__aexit__(None, None, None)
            late.wait_hit()
        async with joined(mode, pair) as db:
            second = await stage(db, "order-7")
        with Rival(pair) as dies:
            dies.decides("order-7", second)
        late.release()
        until(lambda: not pair[1].query(OTHERS))  # b has heard it, and that its client is gone
    with Rival(pair) as recoverer:
        recoverer.db.recover(grace=0)
    assert at_rest(pair)
    return pair


async def test_a_late_verb_of_a_name_s_first_life_does_not_touch_the_second_of_the_same_millisecond(
    mode: str, request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = await the_rollback_of_a_first_life_comes_when_the_second_is_committed(
        lambda: new_attempt()[MOMENT:], mode, request, tmp_path, monkeypatch
    )
    assert balances(pair) == [99, 101]


@pytest.mark.parametrize("mode", ["async"])
async def test_without_its_nonce_it_rolls_back_half_of_what_is_committed(
    mode: str, request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = await the_rollback_of_a_first_life_comes_when_the_second_is_committed(
        lambda: "7" + "0" * 19, mode, request, tmp_path, monkeypatch
    )
    assert balances(pair) == [99, 100]
