"""The rules of ending a doubt, each with the scene that breaks without it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kit import Database, Face, opened, until
from nodoubt import InDoubt, OutcomeConflict, ResourceUnavailable, State, UnreadableRecord, UsageError
from nodoubt.engine import ends, phases, register, settle
from nodoubt.engine.context import Context
from nodoubt.ports import Session, Unclear
from nodoubt.protocol.events import Event, Undecided
from nodoubt.protocol.records import Decision, Mode, Verdict
from nodoubt.script import Script
from nodoubt.testing.proxy import Fault, TcpProxy
from nodoubt.xid import Xid, new_attempt
from rules.mutants import GIVE, SHORT, at_once, context, coordinator, journal_says, out_of_reach, staged
from traps.scenes import MOVED, UNTOUCHED, at_rest, balances, databases, joined, recovered

pytestmark = pytest.mark.anyio
RECEIPTS = {"postgres": b"EXECUTE nodoubt_receipt", "mariadb": b"ONE PHASE"}


def never_told(patch: pytest.MonkeyPatch) -> None:
    """Whoever has lost the reply to a one-phase commit cannot find out: the process dies, its database stays away."""

    def away(_: Context, __: Any) -> Script[Event]:
        return Undecided("nobody answers")
        yield

    patch.setattr(phases, "_settle", away)


# ---- a commit that is still on its way can no longer happen ---------------------------------------


@contextlib.contextmanager
def on_its_way(one: Database) -> Iterator[tuple[str, Fault]]:
    """A one-phase commit whose request is held somewhere in the network, and whose caller has given up on it."""
    with TcpProxy.to(one.url) as proxy, pytest.MonkeyPatch.context() as patch:
        never_told(patch)
        with coordinator([replace(one, url=proxy.url_for(one.url))], settings=SHORT) as theirs:
            with pytest.raises(InDoubt) as caught, theirs.transaction() as tx:
                tx["a"].execute(GIVE)
                fault = proxy.stall(RECEIPTS[one.kind])
            yield caught.value.attempt, fault


@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
async def test_settled_as_aborted_a_commit_that_arrives_later_is_shut_out(
    kind: str, mode: str, request: Any, tmp_path: Path
) -> None:
    (one,) = databases(kind, request, tmp_path)
    with coordinator([one]) as db:
        db.setup()
        async with joined(mode, [one]) as asked:
            with on_its_way(one) as (attempt, held):
                settled = await asked.settle(attempt)
                assert (settled.state, settled.complete) == (State.ABORTED, True)
                assert (await asked.settle(attempt)).state is State.ABORTED
                assert (await asked.status(attempt)).state is State.ABORTED
                held.release()
                until(lambda: not one.locked())
    assert one.balance() == 100


async def test_settled_by_a_look_it_is_told_aborted_and_commits_a_moment_later(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant: no fence."""
    (one,) = databases("postgres", request, tmp_path)
    with coordinator([one]) as db:
        db.setup()
        resource = context(db).participants["a"].resource

        def looks(session: Session, xid: Xid) -> Script[Verdict]:
            return Verdict.COMMIT if (yield from resource.receipt(session, xid)) else Verdict.ABORT

        monkeypatch.setattr(resource, "fence", looks)
        with on_its_way(one) as (attempt, held):
            assert db.settle(attempt).state is State.ABORTED
            held.release()
            until(lambda: one.balance() == 130)


# ---- a commit that took place is found by its receipt ---------------------------------------------


@pytest.mark.parametrize("kind", ["postgres", "mariadb", "sqlite"])
async def test_a_one_phase_commit_is_found_by_its_receipt(kind: str, mode: str, request: Any, tmp_path: Path) -> None:
    some = databases(f"sqlite+{kind}", request, tmp_path)
    async with opened(mode, some) as db:
        async with db.transaction() as tx:
            await tx.execute("a", "select balance from accounts where id = 0")  # the writer is branch 1
            await tx.execute("b", GIVE)
        for _ in range(2):
            settled = await db.settle(tx.handle.attempt)
            assert (settled.state, settled.complete) == (State.COMMITTED, True)
        assert (await db.status(tx.handle.attempt)).state is State.COMMITTED


async def test_asking_the_register_before_the_receipts_has_it_say_aborted_of_what_was_committed(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant: the other order."""
    (one,) = databases("postgres", request, tmp_path)
    sound = settle._fence

    def register_first(ctx: Context, participant: Any, attempt: str, numbers: int) -> Script[Any]:
        wanted = Decision(attempt, Verdict.ABORT, Mode.ONCE, "", ())
        yield from register.decide(ctx, wanted)
        return (yield from sound(ctx, participant, attempt, numbers))

    monkeypatch.setattr(settle, "_fence", register_first)
    with coordinator([one]) as db:
        db.setup()
        with db.transaction() as tx:
            tx["a"].execute(GIVE)
        assert db.settle(tx.attempt).state is State.COMMITTED
        assert db.settle(tx.attempt).state is State.ABORTED, "the mutant is not caught"
    assert one.balance() == 130


def settled_while_the_database_is_silent(request: Any, tmp_path: Path) -> State:
    """A commit in one phase took place there; its receipt can neither be fenced nor is it told what is prepared."""
    pair = databases("sqlite+postgres", request, tmp_path)
    with coordinator(pair) as db:
        db.setup()
        with db.transaction() as tx:
            tx["b"].execute(GIVE)

        def silent(*_: object) -> Script[Any]:
            raise Unclear("no answer")
            yield

        with pytest.MonkeyPatch.context() as patch:
            for verb in ("fence", "prepared"):
                patch.setattr(context(db).participants["b"].resource, verb, silent)
            with contextlib.suppress(ResourceUnavailable):
                return db.settle(tx.attempt).state
        return db.settle(tx.attempt).state


def test_the_silence_of_a_database_is_no_branch_that_is_prepared_there(request: Any, tmp_path: Path) -> None:
    assert settled_while_the_database_is_silent(request, tmp_path) is State.COMMITTED


def test_taking_silence_for_a_prepared_branch_says_aborted_of_what_was_committed(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepared(*_: object) -> Script[bool]:
        return True
        yield

    monkeypatch.setattr(settle, "_is_prepared", prepared)
    assert settled_while_the_database_is_silent(request, tmp_path) is State.ABORTED


def test_nothing_is_settled_while_a_decision_may_be_anybodys(request: Any, tmp_path: Path) -> None:
    """It is this one's COMMIT, which nobody has carried out yet, under an attempt that is none."""
    pair, own = databases("sqlite+sqlite", request, tmp_path), f"sqlite:///{tmp_path}/journal.db"
    with coordinator(pair, own) as db:
        db.setup()
        with out_of_reach("a", "b"), db.transaction() as tx:
            tx["a"].execute(GIVE)
            tx["b"].execute(GIVE)
        right, wrong = tx.attempt, f"{tx.attempt[:-1]}G"
        rename = "update nodoubt_decisions set attempt = ? where attempt = ?"
        Database("", own).query(rename, wrong, right)
        with pytest.raises(UnreadableRecord):
            db.settle(right)
        Database("", own).query(rename, right, wrong)
        until(lambda: db.recover(grace=0).clean)
    assert balances(pair) == [130, 130] and at_rest(pair)


# ---- several branches: the register has the word --------------------------------------------------


@pytest.mark.parametrize("kinds", ["postgres+mariadb", "mariadb+sqlite", "sqlite+postgres"])
async def test_prepared_branches_without_a_decision_are_aborted_and_a_late_coordinator_obeys(
    kinds: str, mode: str, request: Any, tmp_path: Path
) -> None:
    """Settled from elsewhere at the last moment before the decision."""
    some = databases(kinds, request, tmp_path)
    own = f"sqlite:///{tmp_path}/journal.db"
    settled: list[Any] = []
    with coordinator(some, own) as db:
        db.setup()

        class Asks:
            def notice(self, notice: Any) -> None:
                if notice.point == "P5" and not settled:
                    settled.append(None)
                    settled[0] = db.settle(notice.attempt)

        face = Face(mode, some, journal=own, observer=Asks())
        await face.open()
        with pytest.raises(Exception, match="rolled back everywhere"):
            async with face.transaction() as tx:
                await tx.move("a", "b", 30)
        await face.close()
        assert (settled[0].state, settled[0].complete) == (State.ABORTED, False)
        assert db.settle(settled[0].attempt).state is State.ABORTED
        assert not recovered(db, some)


async def test_a_decided_commit_is_told_before_it_is_carried_out(mode: str, request: Any, tmp_path: Path) -> None:
    some = databases("postgres+sqlite", request, tmp_path)
    async with opened(mode, some) as db:
        with out_of_reach("b"):
            async with db.transaction() as tx:
                await tx.move("a", "b", 30)
        settled = await db.settle(tx.handle.attempt)
        assert (settled.state, settled.complete) == (State.COMMITTED, False)
        assert (await db.recover(grace=0)).clean
        assert (await db.settle(tx.handle.attempt)).complete
    assert balances(some) == MOVED and at_rest(some)


# ---- what cannot be told is not told --------------------------------------------------------------


def test_a_database_that_is_not_here_may_have_committed(request: Any, tmp_path: Path) -> None:
    some = databases("sqlite+sqlite", request, tmp_path)
    with coordinator(some) as db:
        db.setup()
        with db.transaction() as tx:
            tx["b"].execute(GIVE)
    with coordinator(some) as db, pytest.raises(UsageError, match="takes an attempt"):
        db.settle("order-1")
    with coordinator(some[:1]) as only, pytest.raises(UsageError, match="does not know b"):
        only.settle(tx.attempt)
    with coordinator(some) as db:
        assert db.settle(tx.attempt).state is State.COMMITTED


def test_without_all_databases_it_says_aborted_of_what_was_committed_elsewhere(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant: asks those it knows."""
    some = databases("sqlite+sqlite", request, tmp_path)
    with coordinator(some) as db:
        db.setup()
        with db.transaction() as tx:
            tx["b"].execute(GIVE)

    def two(_: Context) -> Script[int]:
        return 2
        yield

    monkeypatch.setattr(settle, "_require_everybody", two)
    with coordinator(some[:1]) as only:
        assert only.settle(tx.attempt).state is State.ABORTED, "the mutant is not caught"
    assert some[1].balance() == 130


def test_what_is_so_old_that_its_receipt_may_be_gone_stays_in_doubt(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = databases("sqlite", request, tmp_path)
    old = f"{0x018F00000000:012x}{new_attempt()[12:]}"
    with coordinator([one]) as db:
        db.setup()
        with pytest.raises(InDoubt, match="so old"):
            db.settle(old)
        monkeypatch.setattr(ends, "may_be_forgotten", lambda *_: False)
        assert db.settle(old).state is State.ABORTED, "the mutant: an absent receipt is an abort at any age"


def test_what_is_staged_is_decided_by_its_name(request: Any, tmp_path: Path) -> None:
    some = databases("sqlite+sqlite", request, tmp_path)
    with coordinator(some) as db:
        db.setup()
        attempt = staged(db)
        with pytest.raises(UsageError, match="staged and undecided"):
            db.settle(attempt)
        assert db.commit_distributed("pay").complete
        assert db.settle(attempt).state is State.COMMITTED
        with pytest.raises(OutcomeConflict):
            db.rollback_distributed("pay")
    assert balances(some) == MOVED


def test_an_attempt_that_nobody_ever_began_is_aborted_and_can_never_begin(request: Any, tmp_path: Path) -> None:
    some = databases("sqlite+sqlite", request, tmp_path)
    with coordinator(some) as db:
        db.setup()
        attempt = new_attempt()
        assert db.settle(attempt).state is State.ABORTED
        patched = iter([attempt])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(context(db).ids, "attempt", lambda: next(patched), raising=True)
            assert at_once(db) == "aborted"
        assert journal_says(db, lambda s: context(db).journal.look(s, [attempt]))[attempt].decision.reason == "settled"
    assert balances(some) == UNTOUCHED and at_rest(some)
