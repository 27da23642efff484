"""What the models have found in the engine, shown on the engine itself: see formal/README.md, "Findings".

Each test says what the contract demands and is expected to fail. Once the engine is mended, strict xfail turns it red:
then the mark goes, the test moves to the rules it belongs to, and so does the model's macro.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kit import until
from nodoubt import Coordinator, Heuristic, State
from nodoubt.engine import ends
from nodoubt.engine.context import using
from nodoubt.protocol.records import Decision, Mode, Verdict
from nodoubt.testing.servers import PostgresServer
from rules.mutants import coordinator, staged, watch
from rules.test_receipts_and_retention import DAY_S, Shifted
from traps.scenes import MOVED, UNTOUCHED, balances, context, databases


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


# ---- a stranger's COMMIT against an ABORT is silent (I17) -----------------------------------------


def test_a_stranger_s_commit_against_the_decision_is_told(request: Any, tmp_path: Path) -> None:
    pair = databases("postgres+sqlite", request, tmp_path)
    with coordinator(pair, "b") as db:
        db.setup()
        staged(db)
        (gid,) = pair[0].prepared()
        pair[0].query(f"commit prepared '{gid}'")
        with contextlib.suppress(Heuristic):
            db.rollback_distributed("pay")
        db.recover(grace=0)
        assert balances(pair) == [70, 100], "atomicity is broken"
        assert db.quarantined() != []


# ---- below the floor, what has been committed meanwhile is quarantined (I17) ----------------------


def test_a_sweep_that_the_clean_up_overtakes_raises_no_false_alarm(request: Any, tmp_path: Path) -> None:
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
            assert rival._shell.run(ends.retire(context(rival))) == 1

        with before_its_first(db, "insert", commit_and_forget):
            db.recover(grace=0)
        assert balances(pair) == MOVED
        assert db.quarantined() == []


# ---- age is taken when the branch is settled, not when it was listed ------------------------------


def test_a_sweep_that_stalls_leaves_what_is_staged_and_complete_until_its_deadline(
    request: Any, tmp_path: Path
) -> None:
    pair = databases("sqlite+sqlite", request, tmp_path)
    grace_s = 1.0
    listed, go_on = threading.Event(), threading.Event()
    with coordinator(pair) as db:
        db.setup()
    with coordinator(pair) as db, coordinator(pair) as sweeper:

        def stall() -> None:
            listed.set()
            assert go_on.wait(20)

        def sweep() -> None:
            sweeper.recover(grace=grace_s)

        thread = threading.Thread(target=sweep)

        def sweep_lists() -> None:
            """Branch b is prepared, X not yet: that is what this sweep sees, and then it stands still."""
            thread.start()
            assert listed.wait(20)

        watch(db, "P3", "prepared", sweep_lists, branch=1)
        with before_its_first(sweeper, "confirm", stall):  # which follows the listing
            attempt = staged(db)
            began = time.monotonic()
            assert db.status("pay").state is State.PREPARED, attempt
            until(lambda: time.monotonic() > began + grace_s)
            go_on.set()
            thread.join(20)
        assert db.status("pay").state is State.PREPARED
        assert db.commit_distributed("pay").state is State.COMMITTED


# ---- a COMMIT that its server has forgotten, and an ABORT since, look like a heuristic (I17) ------


def test_a_decision_that_a_crash_forgot_and_was_then_aborted_raises_no_false_alarm(
    server: PostgresServer, request: Any, tmp_path: Path
) -> None:
    pair, url = databases("sqlite+sqlite", request, tmp_path), server.url()
    with coordinator(pair, url) as db:
        db.setup()
    with coordinator(pair, url) as db, coordinator(pair, url) as sweeper:
        attempt = staged(db)
        journal: Any = context(sweeper).journal
        open_commits = journal.open_commits
        turns: list[int] = []

        def opened(session: Any, after: str, limit: int) -> Any:
            if not turns:
                show_unflushed(db, attempt, url)
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
        assert db.quarantined() == []


# ---- a COMMIT that its server has forgotten is taken for proof of a branch (I6) -------------------


def test_no_record_ends_on_the_strength_of_a_decision_that_was_forgotten(
    server: PostgresServer, request: Any, tmp_path: Path
) -> None:
    pair, url = databases("sqlite+sqlite", request, tmp_path), server.url()
    with coordinator(pair, url) as db:
        db.setup()
    with coordinator(pair, url) as db, coordinator(pair, url) as sweeper:
        attempt = staged(db)
        journal: Any = context(sweeper).journal
        open_commits, confirm = journal.open_commits, journal.confirm
        seen: list[int] = []

        def opened(session: Any, after: str, limit: int) -> Any:
            if not seen:
                show_unflushed(db, attempt, url)
            found = yield from open_commits(session, after, limit)
            if not seen:
                # Its server forgets it, and a stranger ends the branch on a.
                server.kill()
                server.restart()
                pair[0].query("delete from nodoubt_locks")
                pair[0].query("delete from nodoubt_prepared")
            seen.append(len(found))
            return found

        def confirmed(session: Any, attempts: Any) -> Any:
            found = yield from confirm(session, attempts)
            if seen == [1] and not found:
                # a has been looked for; now it is decided again, by somebody who gets no further than b.
                seen.append(0)
                decide(url, pair, attempt)
            return found

        journal.open_commits, journal.confirm = opened, confirmed
        sweeper.recover(grace=60)
    assert balances(pair) == [100, 130], "atomicity is broken, and must be told"
    with coordinator(pair, url) as db:
        db.recover(grace=0)
        assert db.quarantined() != []


def decide(url: str, pair: list[Any], attempt: str) -> None:
    """COMMIT, forced; then a recoverer that knows b only."""
    with coordinator(pair[1:], url) as recoverer:
        ctx = context(recoverer)
        journal: Any = ctx.journal
        staging = recoverer._shell.run(using(ctx.journal_pool, lambda session: journal.find(session, "pay")))
        row = Decision(attempt, Verdict.COMMIT, Mode.STAGED, "pay", staging.branches)
        recoverer._shell.run(using(ctx.journal_pool, lambda session: journal.insert(session, [row])))
        recoverer.recover(grace=0)


def show_unflushed(db: Coordinator, attempt: str, url: str) -> None:
    """COMMIT, visible to everybody, known to no disk."""
    ctx = context(db)
    journal: Any = ctx.journal
    staging = db._shell.run(using(ctx.journal_pool, lambda session: journal.find(session, "pay")))
    row = Decision(attempt, Verdict.COMMIT, Mode.STAGED, "pay", staging.branches)
    with psycopg.connect(url, autocommit=True) as raw:
        (walwriter,) = raw.execute("select pid from pg_stat_activity where backend_type = 'walwriter'").fetchone() or ()
        os.kill(int(walwriter), signal.SIGSTOP)
        raw.execute("set synchronous_commit = off")
        with raw.transaction():
            for statement in journal.decision_rows(row):
                raw.execute(statement)
