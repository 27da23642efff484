"""The rules of receipts and of retention. Each test is followed by the same scene without its rule.

What a receipt is on each database, and how it is confirmed: `tests/postgres/test_postgres_recovery.py`,
`tests/mariadb/test_mariadb_recovery.py`, `tests/sqlite/test_sqlite_branches.py`. The floor: `tests/journals`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kit import Database
from nodoubt import Coordinator
from nodoubt.engine import ends, register, sweep
from nodoubt.engine.context import Context
from nodoubt.ports import BelowFloor, Unclear
from nodoubt.protocol import recovery
from nodoubt.protocol.records import Decision
from nodoubt.protocol.recovery import Known
from nodoubt.resources import mariadb, postgres
from nodoubt.resources.sqlite import receipts as sqlite_receipts
from nodoubt.script import Script, every
from nodoubt.testing.proxy import TcpProxy
from nodoubt.wiring import RandomIds
from nodoubt.xid import first_attempt_of
from rules.mutants import (
    ABORTED,
    COMMITTED,
    GIVE,
    IN_DOUBT,
    SHORT,
    at_once,
    context,
    coordinator,
    out_of_reach,
    staged,
    told,
)
from traps.scenes import MOVED, balances, databases

DAY_S = 24 * 3600.0


class Shifted:
    """A clock that can be set ahead: the process was stopped for so long."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def now(self) -> float:
        return time.time() + self.ahead_s

    def elapsed(self) -> float:
        return time.monotonic()


# ---- receipts are removed only after a forced end record ------------------------------------------


def the_end_cannot_be_recorded(request: Any, tmp_path: Path) -> tuple[int, list[int]]:
    """And its process dies. How many branches the next sweep takes for broken."""
    pair = databases("sqlite+postgres", request, tmp_path)
    with coordinator(pair, f"sqlite:///{tmp_path}/journal.db") as db:
        db.setup()
        assert at_once(db) == COMMITTED

        def away(*_: object) -> Script[None]:
            raise Unclear("the journal gives no answer")
            yield

        context(db).journal.end = away  # type: ignore[assignment, method-assign]
    with coordinator(pair, f"sqlite:///{tmp_path}/journal.db") as db:
        return db.recover(grace=0).quarantined, balances(pair)


def test_receipts_are_removed_only_after_a_forced_end_record(request: Any, tmp_path: Path) -> None:
    assert the_end_cannot_be_recorded(request, tmp_path) == (0, MOVED)


def test_receipts_that_go_before_the_end_is_recorded_make_a_sound_commit_look_broken(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = ends._flush_some

    def receipts_first(ctx: Context) -> Script[None]:
        yield from every([ends._forget(ctx, participant, ctx.ended) for participant in ctx.participants.values()])
        yield from sound(ctx)

    monkeypatch.setattr(ends, "_flush_some", receipts_first)
    assert the_end_cannot_be_recorded(request, tmp_path) == (2, MOVED)


LOADED = 9  # transactions that end while others' ends are written


def turns_under_load(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often one sweep writes ends, while each time another transaction ends meanwhile."""
    turns = 0
    pair = databases("sqlite+sqlite", request, tmp_path)
    with coordinator(pair, f"sqlite:///{tmp_path}/journal.db") as db:
        db.setup()
        sound = ends._flush_some

        def meanwhile(ctx: Context) -> Script[None]:
            nonlocal turns
            turns += 1
            yield from sound(ctx)
            if turns <= LOADED:
                assert at_once(db) == COMMITTED

        assert at_once(db) == COMMITTED
        with monkeypatch.context() as patch:
            patch.setattr(ends, "_flush_some", meanwhile)
            db.recover()
    return turns


def test_whoever_writes_the_ends_gets_away_though_others_go_on_ending(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert turns_under_load(request, tmp_path, monkeypatch) == 1


def test_whoever_writes_until_there_are_none_stays_as_long_as_others_end(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def to_the_last(ctx: Context) -> Script[None]:
        while ctx.ended:
            yield from ends._flush_some(ctx)

    monkeypatch.setattr(ends, "flush", to_the_last)
    assert turns_under_load(request, tmp_path, monkeypatch) == LOADED + 1


# ---- what was not deleted with its end record goes below the floor, and no earlier ------------------


def receipts_of(db: Coordinator, some: list[Database]) -> list[int]:
    return [int(one.query("select count(*) from nodoubt_receipts")[0][0]) for one in some]


def the_receipts_are_left_behind(request: Any, tmp_path: Path) -> tuple[Coordinator, list[Database]]:
    """The process dies between the end record and the receipts: of a commit that has ended, and of one that has not."""
    pair = databases("sqlite+sqlite", request, tmp_path)
    db = coordinator(pair, f"sqlite:///{tmp_path}/journal.db").open()
    db.setup()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ends, "_forget", lambda *_: iter(()))
        assert at_once(db) == COMMITTED
        db._shell.run(ends.flush(context(db)))
    with out_of_reach("b"):
        assert at_once(db) == COMMITTED
    assert receipts_of(db, pair) == [2, 1]
    return db, pair


def test_receipts_left_behind_go_below_the_floor_and_those_of_an_open_commit_stay(request: Any, tmp_path: Path) -> None:
    db, pair = the_receipts_are_left_behind(request, tmp_path)
    forget_later(db)
    assert receipts_of(db, pair) == [1, 0]
    assert db.recover(grace=0).clean and db.quarantined() == []
    db.close()
    assert balances(pair) == [40, 160]


def test_receipts_of_two_phases_that_go_by_their_age_make_an_open_commit_look_broken(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant: any attempt that began so long ago has ended."""
    db, pair = the_receipts_are_left_behind(request, tmp_path)

    def by_age(_: Any, **__: Any) -> Script[str]:
        return "f" * 32
        yield

    monkeypatch.setattr(context(db).journal, "floor", by_age)
    forget_later(db)
    monkeypatch.undo()
    assert receipts_of(db, pair) == [0, 0]
    db.recover(grace=0)
    assert db.recover(grace=0).quarantined == 1
    db.close()


# ---- past the retention an absent receipt means unknown, never aborted ----------------------------


def the_reply_is_lost_and_asked_for_after_days(request: Any, tmp_path: Path) -> tuple[str, int]:
    (one,) = databases("postgres", request, tmp_path)
    clock = Shifted()
    with TcpProxy.to(one.url) as proxy:
        seen = [replace(one, url=proxy.url_for(one.url))]
        with coordinator(seen, settings=SHORT, clock=clock) as db:
            db.setup()
            resource = context(db).participants["a"].resource
            sound = resource.fence

            def days_later(session: Any, xid: Any) -> Script[Any]:
                clock.ahead_s = 8 * DAY_S
                one.query("delete from nodoubt.receipts")  # as the clean-up does, by then
                return (yield from sound(session, xid))

            resource.fence = days_later  # type: ignore[method-assign]

            def verb() -> None:
                with db.transaction() as tx:
                    tx["a"].execute(GIVE)
                    proxy.cut_reply(b"EXECUTE nodoubt_receipt")

            return told(verb), one.balance()


def test_past_the_retention_an_absent_receipt_means_unknown_never_aborted(request: Any, tmp_path: Path) -> None:
    assert the_reply_is_lost_and_asked_for_after_days(request, tmp_path) == (IN_DOUBT, 130)


def test_an_absent_receipt_taken_for_an_abort_at_any_age_tells_a_lie(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ends, "may_be_forgotten", lambda *_: False)
    assert the_reply_is_lost_and_asked_for_after_days(request, tmp_path) == (ABORTED, 130)


# ---- what is old is old by more clocks than one -----------------------------------------------------


def one_clock_runs_ahead(
    kind: str, request: Any, tmp_path: Path, mutate: Callable[[Context, Shifted], None] = lambda *_: None
) -> str:
    """Somebody else, whose clock shows the week after next, cleans up. What is told of a commit of just now."""
    (one,) = databases(kind, request, tmp_path)
    clock = Shifted()
    with coordinator([one], settings=SHORT) as db, coordinator([one], settings=SHORT, clock=clock) as other:
        db.setup()
        other.setup()
        with db.transaction() as tx:
            tx["a"].execute(GIVE)
        clock.ahead_s = 8 * DAY_S
        mutate(context(other), clock)
        other._shell.run(ends.retire(context(other)))
        return str(db.settle(tx.attempt).state)


KINDS = pytest.mark.parametrize("kind", ["postgres", "mariadb", "sqlite"])


@KINDS
def test_a_clean_up_whose_clock_alone_runs_ahead_forgets_nothing(kind: str, request: Any, tmp_path: Path) -> None:
    assert one_clock_runs_ahead(kind, request, tmp_path) == COMMITTED


@KINDS
def test_a_clean_up_that_goes_by_its_own_clock_makes_a_commit_look_aborted(
    kind: str, request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = one_clock_runs_ahead(kind, request, tmp_path, lambda ctx, clock: by_both_clocks(monkeypatch, ctx, clock))
    assert told == ABORTED


def somebody_lives_a_year_ahead(
    request: Any, tmp_path: Path, mutate: Callable[[Context, Shifted], None] = lambda *_: None
) -> str:
    """Its ids are of then, too: what it decides is the newest record. It cleans up; what are others told then?"""
    pair = databases("sqlite+postgres", request, tmp_path)
    clock = Shifted()
    with coordinator(pair) as db, coordinator(pair, clock=clock) as other:
        db.setup()
        other.setup()
        assert at_once(db) == COMMITTED
        clock.ahead_s = 366 * DAY_S
        context(other).ids = Ahead(clock)
        assert at_once(other) == COMMITTED and other.recover(grace=0).clean
        mutate(context(other), clock)
        other._shell.run(ends.retire(context(other)))
        return at_once(db)


class Ahead(RandomIds):
    def __init__(self, clock: Shifted) -> None:
        self._clock = clock

    def attempt(self) -> str:
        return first_attempt_of(self._clock.now())[:12] + super().attempt()[12:]


def test_a_clean_up_in_the_future_locks_nobody_out(request: Any, tmp_path: Path) -> None:
    assert somebody_lives_a_year_ahead(request, tmp_path) == COMMITTED


def test_a_clean_up_that_goes_by_its_own_clock_locks_out_all_who_live_today(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = somebody_lives_a_year_ahead(request, tmp_path, lambda ctx, clock: by_both_clocks(monkeypatch, ctx, clock))
    assert told == ABORTED


def the_clock_of_a_database_runs_behind(kind: str, request: Any, tmp_path: Path) -> str:
    """Its receipts are of last month, as it says, and a clean-up comes by. What is told of a commit of just now."""
    (one,) = databases(kind, request, tmp_path)
    with coordinator([one], f"sqlite:///{tmp_path}/journal.db", settings=SHORT) as db:
        db.setup()
        with db.transaction() as tx:
            tx["a"].execute(GIVE)
        past = "now() - interval '30 days'" if kind == "postgres" else f"{time.time() - 30 * DAY_S!r}"
        table = "nodoubt.receipts" if kind == "postgres" else "nodoubt_receipts"
        one.query(f"update {table} set at = {past}")
        db._shell.run(ends.retire(context(db)))
        return str(db.settle(tx.attempt).state)


@KINDS
def test_a_receipt_is_not_old_by_the_clock_of_its_database_alone(kind: str, request: Any, tmp_path: Path) -> None:
    assert the_clock_of_a_database_runs_behind(kind, request, tmp_path) == COMMITTED


@pytest.mark.parametrize(
    ("kind", "module"), [("postgres", postgres), ("mariadb", mariadb), ("sqlite", sqlite_receipts)]
)
def test_a_receipt_that_is_old_whatever_made_its_attempt_goes_and_its_commit_looks_aborted(
    kind: str, module: Any, request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "first_attempt_of", lambda _: "f" * 32)
    assert the_clock_of_a_database_runs_behind(kind, request, tmp_path) == ABORTED


# ---- below the floor the answer is unknown: quarantine, never ABORT -------------------------------


def a_branch_comes_back_whose_decision_is_forgotten(
    request: Any, tmp_path: Path, mutate: Callable[[], None] = lambda: None
) -> tuple[int, int, list[str]]:
    """Its database was set back within an epoch, so its lineage shows nothing. Quarantined, rolled back, and left."""
    pair = databases("sqlite+sqlite", request, tmp_path)
    with coordinator(pair) as db:
        db.setup()
        staged(db)
        backup = Path(pair[1].url.removeprefix("sqlite:///")).read_bytes()
        assert db.commit_distributed("pay").complete
        db.recover(grace=0)
        forget_the_decision(db, pair)
        for pool in (context(db).participants["b"].pool, context(db).participants["b"].reserve):
            pool.drop_idle()
        Path(pair[1].url.removeprefix("sqlite:///")).write_bytes(backup)
        assert balances(pair) == [70, 100]
        mutate()
        report = db.recover(grace=0)
        return report.quarantined, report.rolled_back, pair[1].prepared()


def forget_the_decision(db: Coordinator, pair: list[Database]) -> None:
    """The clean-up of some days later: the floor rises above the attempt, and its record goes."""
    staged(db, "newer")  # the floor never rises above the newest record
    db.rollback_distributed("newer")
    assert forget_later(db) == 2


def forget_later(db: Coordinator) -> int:
    """A clean-up of some days later; how many records it has forgotten."""
    ctx = context(db)
    clock = Shifted()
    clock.ahead_s = 8 * DAY_S
    ctx.clock, sound = clock, ctx.clock
    with pytest.MonkeyPatch.context() as patch:
        by_both_clocks(patch, ctx, clock)
        gone = db._shell.run(ends.retire(ctx))
    ctx.clock = sound
    return gone


def by_both_clocks(patch: pytest.MonkeyPatch, ctx: Context, clock: Shifted) -> None:
    """The journal's shows what ours does."""

    def shown(_: Any) -> Script[float]:
        return clock.now()
        yield

    patch.setattr(ctx.journal, "now", shown)


def test_below_the_floor_the_answer_is_unknown_quarantine_never_abort(request: Any, tmp_path: Path) -> None:
    quarantined, rolled_back, left = a_branch_comes_back_whose_decision_is_forgotten(request, tmp_path)
    assert (quarantined, rolled_back, len(left)) == (1, 0, 1)


def test_an_abort_presumed_below_the_floor_rolls_back_what_was_committed(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound_known, sound_decide = recovery.what_is_known, register.decide

    def known(*args: Any, **facts: Any) -> Known:
        found = sound_known(*args, **facts)
        return Known.NOTHING if found is Known.BELOW_FLOOR else found

    def decide(ctx: Context, decision: Decision) -> Script[Decision]:
        try:
            return (yield from sound_decide(ctx, decision))
        except BelowFloor:
            return decision

    def mutate() -> None:
        monkeypatch.setattr(sweep, "what_is_known", known)
        monkeypatch.setattr(register, "decide", decide)

    quarantined, rolled_back, left = a_branch_comes_back_whose_decision_is_forgotten(request, tmp_path, mutate)
    assert (quarantined, rolled_back, left) == (0, 1, [])
