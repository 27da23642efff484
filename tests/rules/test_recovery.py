"""The rules of recovery. Each test is followed by the same scene without its rule.

Rules of recovery that are traps as well stand in `tests/traps`: what is confirmed before it is carried out, the fence
behind every presumed abort, unknown xids, and any number of recoverers.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kit import QUICK, until
from nodoubt import Coordinator, Settings, State
from nodoubt.engine import sweep
from nodoubt.ports import Prepared, Unclear
from nodoubt.protocol import recovery
from nodoubt.protocol.recovery import Action, Age, Known, Row, Seen
from nodoubt.resources.postgres import PostgresResource
from nodoubt.script import Script
from nodoubt.testing.proxy import TcpProxy
from nodoubt.xid import Xid, new_attempt, parse_gid
from rules.mutants import (
    ABORTED,
    COMMITTED,
    SHORT,
    TAKE,
    at_once,
    context,
    coordinator,
    out_of_reach,
    staged,
    told,
    watch,
)
from traps.scenes import MOVED, UNTOUCHED, at_rest, balances, databases

STRANGER = "0123456789abcdef"


def instead(patch: pytest.MonkeyPatch, known: Known, action: Action, *, seen: Seen | None = None) -> None:
    """In the table: this action for what is known so."""
    sound = recovery.what_to_do

    def what_to_do(known_: Known, seen_: Seen, age: Age) -> Row:
        row = sound(known_, seen_, age)
        return replace(row, action=action) if known_ is known and seen in (None, seen_) else row

    patch.setattr(sweep, "what_to_do", what_to_do)


# ---- only well-formed xids of our own cluster are ever resolved (I9) ------------------------------


class AnyCluster(PostgresResource):
    """The mutant: what looks like ours is ours."""

    def prepared(self, session: Any, cluster: str, xid: Xid | None = None) -> Script[tuple[Prepared, ...]]:
        (reply,) = yield from self._ask(
            session, "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
        )
        parsed = [parse_gid(gid) for (gid,) in reply.rows]
        return tuple(Prepared(xid, 1e6) for xid in parsed if xid is not None)


def strangers_are_prepared(resource: type[PostgresResource], request: Any, tmp_path: Path) -> list[str]:
    """Another cluster's branch, and three that are nobody's we know. What a sweep without any grace has left
    of them.
    """
    (one,) = databases("postgres", request, tmp_path)
    names = [
        f"nd1.{STRANGER}.{new_attempt()}.0",
        f"nd1.{STRANGER}.{new_attempt()}.007",
        "nd1.order-7",
        "order-7",
    ]
    with coordinator([one]) as db:
        db.setup()
        for number, name in enumerate(names):
            one.query(f"begin; insert into accounts values ({10 + number}, 0); prepare transaction '{name}'")
        changed: Any = resource("a")
        context(db).participants["a"].resource = changed
        for _ in range(2):
            db.recover(grace=0)
        left = [name for name in names if name in one.prepared()]
    for name in left:
        one.query(f"rollback prepared '{name}'")
    return [name[:3] + name[-4:] for name in left]


ALL = ["nd1af.0", "nd1.007", "nd1er-7", "orer-7"]


def test_only_well_formed_xids_of_our_own_cluster_are_ever_resolved(request: Any, tmp_path: Path) -> None:
    assert len(strangers_are_prepared(PostgresResource, request, tmp_path)) == len(ALL)


def test_a_sweep_that_looks_at_the_form_alone_rolls_back_a_strangers_branch(request: Any, tmp_path: Path) -> None:
    assert len(strangers_are_prepared(AnyCluster, request, tmp_path)) == len(ALL) - 1


# ---- staged, complete and before its deadline: leave ----------------------------------------------


def a_sweep_comes_before_the_deadline(request: Any, tmp_path: Path) -> State:
    pair = databases("sqlite+sqlite", request, tmp_path)
    with coordinator(pair) as db:
        db.setup()
        staged(db)
        db.recover(grace=0)
        state = db.status("pay").state
        if state is State.PREPARED:
            assert db.commit_distributed("pay").complete
            assert balances(pair) == MOVED
        return state


def test_what_is_staged_and_complete_is_left_until_its_deadline(request: Any, tmp_path: Path) -> None:
    """However old its branches are. After it: `tests/integration/test_transactions.py`."""
    assert a_sweep_comes_before_the_deadline(request, tmp_path) is State.PREPARED


def test_a_sweep_that_knows_no_deadlines_aborts_what_somebody_is_about_to_commit(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead(monkeypatch, Known.STAGED, Action.FENCE)
    assert a_sweep_comes_before_the_deadline(request, tmp_path) is State.ABORTED


def the_database_of_the_last_branch_gives_no_answer(request: Any, tmp_path: Path) -> tuple[State, int]:
    """What a sweep makes of a transaction that is staged and complete, and what it has left."""
    pair = databases("postgres+sqlite", request, tmp_path)
    with coordinator(pair) as db, coordinator(pair) as rival:
        db.setup()
        staged(db)
        rival.setup()

        def silent(*_: object) -> Script[tuple[Prepared, ...]]:
            raise Unclear("no answer")
            yield

        away: Any = context(rival).participants["a"].resource
        away.prepared = silent
        report = rival.recover(grace=0)
        assert set(report.trouble) == {"a"}
        return db.status("pay").state, report.left


def test_what_is_staged_is_left_while_the_database_of_its_last_branch_gives_no_answer(
    request: Any, tmp_path: Path
) -> None:
    assert the_database_of_the_last_branch_gives_no_answer(request, tmp_path) == (State.PREPARED, 1)


def test_a_sweep_that_takes_silence_for_a_branch_that_is_not_prepared_aborts_what_is_complete(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = sweep._last_listed
    monkeypatch.setattr(sweep, "_last_listed", lambda *args: bool(sound(*args)))
    assert the_database_of_the_last_branch_gives_no_answer(request, tmp_path) == (State.ABORTED, 0)


def test_a_sweep_admits_who_was_away_at_the_start(request: Any, tmp_path: Path) -> None:
    """Nobody but the sweep may ever ask for it; a clone that has come in its place is refused."""
    pair = databases("postgres+sqlite", request, tmp_path)
    with coordinator(pair) as db:
        db.setup()
        with out_of_reach("b"):
            assert at_once(db) == COMMITTED
        away = context(db).participants["b"]
        identity, away.resource_id = away.resource_id, ""
        assert db.recover(grace=0).clean
        assert away.resource_id == identity
    assert balances(pair) == MOVED and at_rest(pair)


# ---- a missing branch is looked for twice before the alarm ----------------------------------------


def another_recoverer_ends_the_record_while_we_look(request: Any, tmp_path: Path) -> int:
    """How many branches the slower one takes for broken."""
    pair, own = databases("sqlite+postgres", request, tmp_path), f"sqlite:///{tmp_path}/journal.db"
    with coordinator(pair, own) as db:
        db.setup()
        assert at_once(db) == COMMITTED
        context(db).ended.clear()  # its process dies before it has recorded the end
    with coordinator(pair, own) as db, coordinator(pair, own) as faster:
        journal: Any = context(db).journal
        sound = journal.open_commits

        def read_and_wait(*args: Any) -> Script[Any]:
            found = yield from sound(*args)
            assert faster.recover(grace=0).ended == 1  # the record has ended, the receipts are gone
            return found

        journal.open_commits = read_and_wait
        return db.recover(grace=0).quarantined


def test_a_missing_branch_is_looked_for_again_after_its_record(request: Any, tmp_path: Path) -> None:
    assert another_recoverer_ends_the_record_while_we_look(request, tmp_path) == 0


def test_a_recoverer_that_does_not_read_the_record_again_cries_wolf(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = recovery.what_to_do
    monkeypatch.setattr(sweep, "what_to_do", lambda known, seen, age: sound(
        Known.COMMIT if seen in (Seen.ABSENT, Seen.ABSENT_STILL) else known,
        Seen.ABSENT_STILL if seen is Seen.ABSENT else seen,
        age,
    ))  # fmt: skip
    assert another_recoverer_ends_the_record_while_we_look(request, tmp_path) > 0


# ---- an end against the decision is quarantined, loudly (I17) -------------------------------------


def test_a_branch_that_somebody_rolled_back_against_the_decision_is_quarantined_until_an_operator_clears_it(
    request: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair = databases("sqlite+postgres", request, tmp_path)
    with coordinator(pair) as db:
        db.setup()
        with out_of_reach("b"):
            assert at_once(db) == COMMITTED
        (gid,) = pair[1].prepared()
        pair[1].query(f"rollback prepared '{gid}'")
        for _ in range(2):
            report = db.recover(grace=0)
            assert report.quarantined == 1 and not report.clean
        assert "QUARANTINED" in caplog.text
        (entry,) = db.quarantined()
        assert entry.resource == "b" and "heuristic" in entry.why
        assert db.status(entry.attempt).heuristic
        db.clear_quarantined(entry.attempt, entry.branch, by="ada")
        assert db.quarantined() == []


# ---- a commit record ends only when every branch has proved itself (I6) ---------------------------


def a_resource_is_away_while_its_commit_is_swept(request: Any, tmp_path: Path) -> tuple[int, list[int]]:
    """How many branches are quarantined when it is back, and what came of it."""
    pair = databases("sqlite+postgres", request, tmp_path)
    with TcpProxy.to(pair[1].url) as proxy:
        seen = [pair[0], replace(pair[1], url=proxy.url_for(pair[1].url))]
        brief = replace(QUICK, connect_s=1, acquire_s=1)
        with coordinator(seen, settings=brief) as db:
            db.setup()
            with out_of_reach("b"):
                assert at_once(db) == COMMITTED
            proxy.stop()
            assert list(db.recover(grace=0).trouble)[:1] == ["b"]
    with coordinator(pair) as db:
        quarantined = db.recover(grace=0).quarantined
        db.recover(grace=0)
        return quarantined, balances(pair)


def test_a_commit_record_ends_only_when_every_branch_has_proved_itself(request: Any, tmp_path: Path) -> None:
    assert a_resource_is_away_while_its_commit_is_swept(request, tmp_path) == (0, MOVED)


def test_a_record_that_ends_without_the_branch_that_is_away_is_never_carried_out_there(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = sweep._not_yet_proved

    def among_the_reached(run: Any, decisions: Any, unproved: set[str]) -> Any:
        return sound(run, decisions, set())

    monkeypatch.setattr(sweep, "_not_yet_proved", among_the_reached)
    quarantined, ended = a_resource_is_away_while_its_commit_is_swept(request, tmp_path)
    assert quarantined == 1 and ended == [70, 100]


# ---- sweeps never stop (I11) ----------------------------------------------------------------------


def a_prepare_arrives_after_its_attempt_was_aborted_and_swept(request: Any, tmp_path: Path) -> bool:
    """Whether anything is left prepared in the end."""
    pair = databases("postgres+sqlite", request, tmp_path)
    with TcpProxy.to(pair[0].url) as proxy:
        seen = [replace(pair[0], url=proxy.url_for(pair[0].url)), pair[1]]
        with coordinator(pair) as sweeper:
            sweeper.setup()
            with coordinator(seen, settings=SHORT) as db:
                late: list[Any] = []
                watch(db, "P3", "prepare", lambda: late.append(proxy.stall(b"PREPARE TRANSACTION")), branch=0)
                assert told(lambda: staged(db)) == ABORTED
                for _ in range(3):
                    assert sweeper.recover(grace=0).clean
                late[0].release()
                until(lambda: bool(pair[0].prepared()))
                sweeper.recover(grace=0)
                sweeper.recover(grace=0)
    left = pair[0].prepared()
    for gid in left:
        pair[0].query(f"rollback prepared '{gid}'")
    assert balances(pair) == UNTOUCHED
    return bool(left)


def test_sweeps_never_stop_a_late_prepare_is_rolled_back(request: Any, tmp_path: Path) -> None:
    assert not a_prepare_arrives_after_its_attempt_was_aborted_and_swept(request, tmp_path)


def test_a_sweeper_that_is_done_with_what_it_has_aborted_leaves_an_orphan(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead(monkeypatch, Known.ABORT, Action.LEAVE)
    assert a_prepare_arrives_after_its_attempt_was_aborted_and_swept(request, tmp_path)


# ---- connections for phase two are reserved -------------------------------------------------------

CROWDED = Settings(
    pool_size=2, reserve_size=1, connect_s=5, acquire_s=1, prepare_s=5, decide_s=5, apply_s=2, grace_s=5, sweep_s=60
)


def callers_wait_for_the_locks_of_a_prepared_branch(
    request: Any, tmp_path: Path, mutate: Callable[[Coordinator], None] = lambda _: None
) -> bool:
    """As many as the pool has sessions. Whether the one who would release them gets through."""
    pair = databases("postgres+sqlite", request, tmp_path)
    with coordinator(pair, settings=CROWDED) as db:
        db.setup()
        mutate(db)
        staged(db)

        def wait() -> None:
            with contextlib.suppress(Exception), db.transaction() as tx:
                tx["a"].execute(TAKE)

        waiting = [threading.Thread(target=wait, daemon=True) for _ in range(2)]
        for thread in waiting:
            thread.start()
        until(lambda: len(pair[0].query("select 1 from pg_locks where not granted")) == 2)
        try:
            return db.commit_distributed("pay").complete
        except Exception:
            return False
        finally:
            pair[0].query(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where datname = current_database() and pid <> pg_backend_pid()"
            )
            for thread in waiting:
                thread.join()


def test_connections_for_phase_two_are_reserved(request: Any, tmp_path: Path) -> None:
    assert callers_wait_for_the_locks_of_a_prepared_branch(request, tmp_path)


def test_one_pool_for_all_is_used_up_by_those_who_wait_for_its_own_commit(request: Any, tmp_path: Path) -> None:
    def one_pool(db: Coordinator) -> None:
        for participant in context(db).participants.values():
            participant.reserve = participant.pool
        context(db).journal_pool = context(db).participants["a"].pool

    assert not callers_wait_for_the_locks_of_a_prepared_branch(request, tmp_path, one_pool)


# ---- each branch is carried out where it belongs --------------------------------------------------


def test_a_branch_that_two_databases_of_a_server_list_is_carried_out_where_it_belongs(
    request: Any, tmp_path: Path
) -> None:
    """XA RECOVER lists the whole server: the decision's list of branches tells whose receipt counts."""
    pair, own = databases("mariadb+mariadb", request, tmp_path), f"sqlite:///{tmp_path}/journal.db"
    with coordinator(pair, own) as db:
        db.setup()
        with out_of_reach("a", "b"):
            assert at_once(db) == COMMITTED
        report = db.recover(grace=0)
        assert (report.committed, report.ended, report.quarantined) == (2, 1, 0)
    assert balances(pair) == MOVED and at_rest(pair)


def test_a_branch_that_its_commit_does_not_list_is_quarantined(request: Any, tmp_path: Path) -> None:
    """It is of our cluster and of a committed attempt, and nobody decided about it."""
    pair = databases("sqlite+postgres", request, tmp_path)
    with coordinator(pair) as db:
        db.setup()
        with out_of_reach("b"):
            assert at_once(db) == COMMITTED
        (gid,) = pair[1].prepared()
        stray = f"{gid[:-1]}7"
        pair[1].query(f"begin; insert into accounts values (9, 9); prepare transaction '{stray}'")
        report = db.recover(grace=0)
        assert report.quarantined == 1 and report.committed == 1
        assert pair[1].prepared() == [stray]
        pair[1].query(f"rollback prepared '{stray}'")
    assert balances(pair) == MOVED
