"""What a sweep saw, and what has become of it since: true alarms are told, and false ones are not raised.

Each scene was found in `formal/` before it was seen on a database, and is a mutant there. Each test is followed by the
same scene without its rule.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kit import Database, stop_walwriter, until
from nodoubt import Coordinator, State
from nodoubt.engine import branches, ends, phases, register, sweep
from nodoubt.ports import Unclear
from nodoubt.protocol.events import Undecided
from nodoubt.protocol.records import Decision, Mode, Verdict
from nodoubt.protocol.recovery import Action, Known, Seen
from nodoubt.script import Script
from nodoubt.testing.servers import PostgresServer
from rules.mutants import IN_DOUBT, at_once, context, coordinator, journal_says, staged, watch
from rules.test_receipts_and_retention import DAY_S, Shifted, by_both_clocks, forget_later
from rules.test_recovery import instead
from traps.scenes import MOVED, UNTOUCHED, balances, databases


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer({"checkpoint_timeout": "1h"}) as one:
        yield one


@contextlib.contextmanager
def before_its_first(db: Coordinator, verb: str, act: Callable[[], None]) -> Iterator[None]:
    """In the block, `act` runs before this coordinator first asks its journal for that."""
    journal: Any = context(db).journal
    sound = getattr(journal, verb)
    done: list[bool] = []

    def script(*args: Any, **options: Any) -> Any:
        if not done:
            done.append(True)
            act()
        return (yield from sound(*args, **options))

    setattr(journal, verb, script)
    try:
        yield
    finally:
        delattr(journal, verb)


# ---- a stranger's COMMIT against an ABORT is told (I17) -------------------------------------------


def it_rolls_back_itself(db: Coordinator, pair: list[Database]) -> None:
    commit_by_hand(pair)
    assert not db.rollback_distributed("pay").complete


def it_dies_with_its_decision(db: Coordinator, pair: list[Database]) -> None:
    """What is left is a sweep's."""
    decide(db, Verdict.ABORT)
    commit_by_hand(pair)
    assert db.recover(grace=0).rolled_back == 1


def it_dies_as_all_others_are_rolled_back(db: Coordinator, pair: list[Database]) -> None:
    """So that nothing is prepared any more, and no sweep has anything to ask. It is found before it is forgotten."""
    decide(db, Verdict.ABORT)
    roll_back_by_hand(pair[1])
    commit_by_hand(pair)
    assert db.recover(grace=0).clean
    staged(db, "newer")  # the floor never rises above the newest record
    db.rollback_distributed("newer")
    forget_later(db)


def it_meets_a_sweep(db: Coordinator, pair: list[Database]) -> None:
    """Which has seen the branch prepared, and comes to roll it back."""
    decide(db, Verdict.ABORT)
    with before_its_first(db, "staged", lambda: commit_by_hand(pair)):
        report = db.recover(grace=0)
    assert (report.prepared, report.rolled_back, report.quarantined) == (2, 1, 1)


def it_was_at_once(db: Coordinator, pair: list[Database]) -> None:
    """Nothing lists its branches, and whoever aborts it sees b only."""
    db.rollback_distributed("pay")

    def undecided(*_: object) -> Script[Undecided]:
        return Undecided("the journal is away")
        yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases, "_commit_here", undecided)
        patch.setattr(phases, "_decide", undecided)
        patch.setattr(phases, "_fence", undecided)
        assert at_once(db) == IN_DOUBT
    commit_by_hand(pair)
    db.recover(grace=0)


def it_dies_undecided(db: Coordinator, pair: list[Database]) -> None:
    """By its deadline nothing of it is prepared any more."""
    roll_back_by_hand(pair[1])
    commit_by_hand(pair)
    db.recover(grace=0)


ENDINGS = [
    it_rolls_back_itself,
    it_dies_with_its_decision,
    it_dies_as_all_others_are_rolled_back,
    it_dies_undecided,
    it_meets_a_sweep,
    it_was_at_once,
]
Ending = Callable[[Coordinator, list[Any]], None]


def commit_by_hand(pair: list[Database]) -> None:
    (gid,) = pair[0].prepared()
    pair[0].query(f"commit prepared '{gid}'")


def roll_back_by_hand(one: Database) -> None:
    one.query("delete from nodoubt_locks")
    one.query("delete from nodoubt_prepared")


def decide(db: Coordinator, verdict: Verdict) -> None:
    """Written, and nothing carried out."""
    journal = context(db).journal
    staging = journal_says(db, lambda session: journal.find(session, "pay"))
    row = Decision(staging.attempt, verdict, Mode.STAGED, "pay", staging.branches, decided_at=time.time())
    journal_says(db, lambda session: journal.insert(session, [row]))


def a_stranger_commits_what_is_aborted(ending: Ending, request: Any, tmp_path: Path) -> list[tuple[str, str]]:
    """The alarms."""
    pair = databases("postgres+sqlite", request, tmp_path)
    with coordinator(pair, f"sqlite:///{tmp_path}/journal.db" if ending is it_was_at_once else "b") as db:
        db.setup()
        staged(db, deadline=0.001 if ending is it_dies_undecided else None)
        ending(db, pair)
        assert balances(pair) == [70, 100], "atomicity is broken"
        return [(entry.resource, entry.why) for entry in db.quarantined()]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_stranger_s_commit_against_an_abort_is_told(ending: Ending, request: Any, tmp_path: Path) -> None:
    assert a_stranger_commits_what_is_aborted(ending, request, tmp_path) == [("a", branches.COMMITTED_AGAINST)]


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_abort_that_takes_unlisted_for_rolled_back_keeps_silent(
    ending: Ending, request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody_looks(*_: object) -> Script[bool]:
        return False
        yield

    for module in (branches, sweep, ends):
        monkeypatch.setattr(module, "alarm_if_committed", nobody_looks)
    if ending in (it_rolls_back_itself, it_meets_a_sweep):
        with pytest.raises(AssertionError):  # it says that all is complete, or counts it as rolled back
            a_stranger_commits_what_is_aborted(ending, request, tmp_path)
    else:
        assert a_stranger_commits_what_is_aborted(ending, request, tmp_path) == []


def the_clean_up_comes_while_its_database_is_silent(request: Any, tmp_path: Path) -> list[str]:
    """Whose commit against an ABORT is told once it answers again."""
    pair = databases("postgres+sqlite", request, tmp_path)
    with coordinator(pair, "b") as db:
        db.setup()
        staged(db)
        decide(db, Verdict.ABORT)
        roll_back_by_hand(pair[1])
        commit_by_hand(pair)
        staged(db, "newer")
        db.rollback_distributed("newer")

        def silent(*_: object) -> Script[bool]:
            raise Unclear("no answer")
            yield

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(context(db).participants["a"].resource, "receipt", silent)
            forget_later(db)
        forget_later(db)
        return [entry.resource for entry in db.quarantined()]


def test_no_abort_is_forgotten_while_a_database_does_not_tell_whether_it_was_kept(request: Any, tmp_path: Path) -> None:
    assert the_clean_up_comes_while_its_database_is_silent(request, tmp_path) == ["a"]


def test_a_clean_up_that_takes_silence_for_no_receipt_forgets_what_somebody_broke(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = ends._aborts_were_kept

    def whatever(*args: Any) -> Script[bool]:
        yield from sound(*args)
        return True

    monkeypatch.setattr(ends, "_aborts_were_kept", whatever)
    assert the_clean_up_comes_while_its_database_is_silent(request, tmp_path) == []


# ---- the names are younger than the listing -------------------------------------------------------


def it_is_staged_between_the_listing_and_the_names(request: Any, tmp_path: Path) -> State:
    pair = databases("sqlite+sqlite", request, tmp_path)
    with coordinator(pair) as db, coordinator(pair) as rival:
        db.setup()
        rival.setup()

        def it_is_staged() -> None:
            staged(db)

        with before_its_first(rival, "undecided", it_is_staged):
            assert rival.recover(grace=0).clean
        return db.status("pay").state


def test_what_is_staged_between_the_listing_and_the_names_is_left(request: Any, tmp_path: Path) -> None:
    assert it_is_staged_between_the_listing_and_the_names(request, tmp_path) is State.PREPARED


def test_a_sweep_that_does_not_list_again_takes_what_is_just_staged_for_a_begin_that_died(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*_: object) -> Script[set[str]]:
        return set()
        yield

    monkeypatch.setattr(sweep, "_prepared_by_now", nothing)
    assert it_is_staged_between_the_listing_and_the_names(request, tmp_path) is State.ABORTED


# ---- below the floor: the listing may be older than the end ---------------------------------------


def the_clean_up_overtakes_a_sweep(request: Any, tmp_path: Path) -> int:
    """How many branches the sweep takes for broken."""
    pair = databases("sqlite+sqlite", request, tmp_path)
    with coordinator(pair) as db:
        db.setup()
    with coordinator(pair) as db, coordinator(pair) as rival:
        staged(db, deadline=0.001)

        def commit_and_forget() -> None:
            """All of it while the sweeper stands still between the floor and the register."""
            assert rival.commit_distributed("pay").complete
            rival.recover(grace=0)
            clock = Shifted()
            clock.ahead_s = 8 * DAY_S
            context(rival).clock = clock
            with pytest.MonkeyPatch.context() as patch:
                by_both_clocks(patch, context(rival), clock)
                assert rival._shell.run(ends.retire(context(rival))) == 1

        with before_its_first(db, "insert", commit_and_forget):
            # By itself: the reaper that goes before it would find what is due first.
            db._shell.run(sweep.sweep(context(db), grace_s=0))
        assert balances(pair) == MOVED
        return len(db.quarantined())


def test_a_sweep_that_the_clean_up_overtakes_looks_again_before_the_alarm(request: Any, tmp_path: Path) -> None:
    assert the_clean_up_overtakes_a_sweep(request, tmp_path) == 0


def test_a_sweep_that_the_clean_up_overtakes_and_that_does_not_look_again_cries_wolf(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead(monkeypatch, Known.BELOW_FLOOR, Action.QUARANTINE)
    assert the_clean_up_overtakes_a_sweep(request, tmp_path) == 2


# ---- how old a branch is, it was when the listing began -------------------------------------------


def a_sweep_stalls_while_a_begin_completes(request: Any, tmp_path: Path) -> State:
    pair = databases("sqlite+sqlite", request, tmp_path)
    grace_s = 1.0
    listed, go_on = threading.Event(), threading.Event()
    with coordinator(pair) as db:
        db.setup()
    with coordinator(pair) as db, coordinator(pair) as sweeper:

        def stall() -> None:
            listed.set()
            assert go_on.wait(20)

        thread = threading.Thread(target=lambda: sweeper.recover(grace=grace_s))

        def sweep_lists() -> None:
            """Branch b is prepared, X not yet: that is what this sweep sees, and then it stands still."""
            thread.start()
            assert listed.wait(20)

        watch(db, "P3", "prepared", sweep_lists, branch=1)
        with before_its_first(sweeper, "confirm", stall):  # which follows the listing
            staged(db)
            began = time.monotonic()
            assert db.status("pay").state is State.PREPARED
            until(lambda: time.monotonic() > began + grace_s)
            go_on.set()
            thread.join(20)
        return db.status("pay").state


def test_a_sweep_that_stalls_leaves_what_is_staged_and_complete_until_its_deadline(
    request: Any, tmp_path: Path
) -> None:
    assert a_sweep_stalls_while_a_begin_completes(request, tmp_path) is State.PREPARED


def test_a_sweep_that_takes_the_age_when_its_turn_comes_aborts_what_somebody_is_about_to_commit(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = sweep._settle

    def late(run: Any, *facts: Any) -> Script[None]:
        for one in facts[-1]:
            one.age_s = run.ctx.clock.elapsed() - run.ctx.first_seen[one.prepared.xid]
        return sound(run, *facts)

    monkeypatch.setattr(sweep, "_settle", late)
    assert a_sweep_stalls_while_a_begin_completes(request, tmp_path) is State.ABORTED


# ---- a COMMIT that its server has forgotten, and an ABORT since, are no heuristic ------------------


def a_crash_forgets_a_commit_and_it_is_aborted(server: PostgresServer, request: Any, tmp_path: Path) -> int:
    """How many branches the sweep that has seen it takes for broken."""
    pair, url = databases("sqlite+sqlite", request, tmp_path), server.url()
    with coordinator(pair, url) as db:
        db.setup()
    with coordinator(pair, url) as db, coordinator(pair, url) as sweeper:
        staged(db)
        journal: Any = context(sweeper).journal
        open_commits = journal.open_commits
        turns: list[int] = []

        def opened(session: Any, after: str, limit: int) -> Any:
            if not turns:
                show_unflushed(db, url)
            found = yield from open_commits(session, after, limit)
            if not turns:
                turns.append(len(found))
                server.kill()
                server.restart()
                with coordinator(pair, url) as other:
                    assert other.rollback_distributed("pay").state is State.ABORTED
            return found

        journal.open_commits = opened
        sweeper.recover(grace=60)
    assert turns == [1], "the sweep has not seen the decision"
    assert balances(pair) == UNTOUCHED
    with coordinator(pair, url) as db:
        quarantined = db.quarantined()
        for entry in quarantined:
            db.clear_quarantined(entry.attempt, entry.branch, by="ada")
        return len(quarantined)


def show_unflushed(db: Coordinator, url: str) -> None:
    """COMMIT, visible to everybody, known to no disk."""
    journal: Any = context(db).journal
    staging = journal_says(db, lambda session: journal.find(session, "pay"))
    row = Decision(staging.attempt, Verdict.COMMIT, Mode.STAGED, "pay", staging.branches)
    stop_walwriter(url)
    with psycopg.connect(url, autocommit=True) as raw:
        raw.execute("set synchronous_commit = off")
        with raw.transaction():
            for statement in journal.decision_rows(row):
                raw.execute(statement)


def test_a_commit_that_a_crash_forgot_and_that_was_then_aborted_raises_no_false_alarm(
    server: PostgresServer, request: Any, tmp_path: Path
) -> None:
    assert a_crash_forgets_a_commit_and_it_is_aborted(server, request, tmp_path) == 0


def test_a_recoverer_that_goes_by_what_it_saw_first_cries_wolf(
    server: PostgresServer, request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = sweep._look_at_records

    def as_seen(run: Any, missing: Any, seen: Any, unproved: set[str]) -> Script[Any]:
        standings = yield from register.confirm(run.ctx, [one.xid.attempt for one in missing])
        for one in missing:
            if one.xid.attempt in standings and seen is Seen.ABSENT_STILL:
                yield from sweep._quarantine(run, one.xid, one.participant.name, "heuristic")
        if seen is Seen.ABSENT:
            return missing
        return (yield from sound(run, missing, seen, unproved))

    monkeypatch.setattr(sweep, "_look_at_records", as_seen)
    assert a_crash_forgets_a_commit_and_it_is_aborted(server, request, tmp_path) == 2


# ---- a COMMIT that its server has forgotten is no proof of a branch (I6) --------------------------


def a_crash_forgets_a_commit_and_it_is_decided_again(server: PostgresServer, request: Any, tmp_path: Path) -> int:
    """By somebody who had seen both prepared, before a stranger rolled them back. How many alarms there are."""
    pair, url = databases("sqlite+sqlite", request, tmp_path), server.url()
    with coordinator(pair, url) as db:
        db.setup()
    with coordinator(pair, url) as db, coordinator(pair, url) as sweeper:
        staged(db)
        journal: Any = context(sweeper).journal
        open_commits, confirm = journal.open_commits, journal.confirm
        seen: list[int] = []

        def opened(session: Any, after: str, limit: int) -> Any:
            if not seen:
                show_unflushed(db, url)
            found = yield from open_commits(session, after, limit)
            if not seen:
                server.kill()
                server.restart()
                roll_back_by_hand(pair[0])
                roll_back_by_hand(pair[1])
            seen.append(len(found))
            return found

        def confirmed(session: Any, attempts: Any) -> Any:
            found = yield from confirm(session, attempts)
            if seen == [1] and not found:
                seen.append(0)  # both have been looked for, and the record: now it is decided
                with coordinator(pair, url) as other:
                    decide(other, Verdict.COMMIT)
            return found

        journal.open_commits, journal.confirm = opened, confirmed
        sweeper.recover(grace=60)
    assert seen[:2] == [1, 0], "the sweep has not seen the decision, or not that it was gone"
    assert balances(pair) == UNTOUCHED, "a commit that was decided has been undone, and must be told"
    with coordinator(pair, url) as db:
        db.recover(grace=0)
        return len(db.quarantined())


def test_no_record_ends_on_the_strength_of_a_decision_that_was_forgotten(
    server: PostgresServer, request: Any, tmp_path: Path
) -> None:
    assert a_crash_forgets_a_commit_and_it_is_decided_again(server, request, tmp_path) == 2


def test_a_record_that_is_gone_taken_for_one_that_has_ended_hides_what_is_gone(
    server: PostgresServer, request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = sweep._look_at_records

    def gone_is_ended(run: Any, missing: Any, seen: Any, unproved: set[str]) -> Script[Any]:
        standings = yield from register.confirm(run.ctx, [one.xid.attempt for one in missing])
        return (yield from sound(run, [one for one in missing if one.xid.attempt in standings], seen, unproved))

    monkeypatch.setattr(sweep, "_look_at_records", gone_is_ended)
    assert a_crash_forgets_a_commit_and_it_is_decided_again(server, request, tmp_path) == 0
