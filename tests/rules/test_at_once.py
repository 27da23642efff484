"""The rules of a transaction that commits as its block ends. Each test is followed by the same scene without
its rule.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kit import until
from nodoubt import State, TransactionAborted, UnknownTransaction
from nodoubt.ports import Refused
from nodoubt.protocol.commit import CommitMachine, Phase, Standing
from nodoubt.protocol.events import Vote, Voted
from nodoubt.protocol.records import Verdict
from nodoubt.resources.mariadb import MariaDBResource
from nodoubt.resources.postgres import PostgresResource
from nodoubt.script import Script, do
from nodoubt.testing.proxy import TcpProxy
from rules.mutants import (
    ABORTED,
    COMMITTED,
    GIVE,
    SHORT,
    at_once,
    change_rule,
    context,
    coordinator,
    told,
    watch,
    work,
)
from traps.scenes import MOVED, UNTOUCHED, at_rest, balances, databases


def refuses(*_: object, **__: object) -> Script[None]:
    """A prepare or commit that fails, as a deferred constraint does."""
    raise Refused("a deferred constraint does not hold")
    yield


# ---- a reading branch drops out only if it surely wrote nothing -----------------------------------

PAY = """create function pay() returns int language sql as
$$ update accounts set balance = balance - 30 where id = 0 returning balance $$"""


class ReadsByTheFirstWord(PostgresResource):
    """The mutant: a SELECT has written nothing."""

    def wrote(self, session: Any, work: Any) -> Script[bool]:
        return False
        yield


def a_select_writes_and_the_other_branch_refuses(
    resource: type[PostgresResource], request: Any, tmp_path: Path
) -> tuple[str, list[int]]:
    pair = databases("postgres+sqlite", request, tmp_path)
    pair[0].query(PAY)
    with coordinator(pair, f"sqlite:///{tmp_path}/journal.db") as db:
        db.setup()
        context(db).participants["a"].resource = resource("a")
        other = context(db).participants["b"].resource
        other.prepare = other.commit_alone = refuses  # type: ignore[method-assign]

        def verb() -> None:
            with db.transaction() as tx:
                tx["a"].execute("select pay()")
                assert tx._attempt is not None
                tx._attempt.branches["a"].work.wrote = False  # what its text says
                tx["b"].execute(GIVE)

        answer = told(verb)
    return answer, balances(pair)


def test_a_reading_branch_drops_out_only_if_it_surely_wrote_nothing(request: Any, tmp_path: Path) -> None:
    scene = a_select_writes_and_the_other_branch_refuses(PostgresResource, request, tmp_path)
    assert scene == (ABORTED, UNTOUCHED)


def test_a_branch_taken_for_a_reader_by_its_text_commits_before_the_decision(request: Any, tmp_path: Path) -> None:
    scene = a_select_writes_and_the_other_branch_refuses(ReadsByTheFirstWord, request, tmp_path)
    assert scene == (ABORTED, [70, 100])


# ---- the receipt is written last, after that test -------------------------------------------------


class EarlyReceipt(PostgresResource):
    """The mutant: the receipt goes in with the branch's first message."""

    def begin(self, session: Any, work: Any, *, before: Any = ()) -> Script[None]:
        yield from super().begin(session, work, before=before)
        yield from do(session, "run", super()._receipt_row(work, alone=False))

    def _receipt_row(self, work: Any, *, alone: bool) -> str:
        return "SELECT 1"

    def wrote(self, session: Any, work: Any) -> Script[bool]:
        (reply,) = yield from do(session, "run", "SELECT pg_catalog.txid_current_if_assigned() IS NOT NULL")
        return bool(reply.scalar())


def decisions_of_a_transaction_that_only_reads(
    resource: type[PostgresResource], request: Any, tmp_path: Path
) -> tuple[int, int]:
    """How many decisions and receipts it leaves behind."""
    pair = databases("postgres+postgres", request, tmp_path)
    with coordinator(pair) as db:
        db.setup()
        for name in ("a", "b"):
            context(db).participants[name].resource = resource(name)
        with contextlib.suppress(TransactionAborted), db.transaction() as tx:
            for name in ("a", "b"):
                tx[name].execute("select balance from accounts")
        decided = int(pair[0].query("select count(*) from nodoubt.decisions")[0][0])
        return decided, sum(int(d.query("select count(*) from nodoubt.receipts")[0][0]) for d in pair)


def test_the_receipt_is_written_last_so_that_a_reader_stays_one(request: Any, tmp_path: Path) -> None:
    assert decisions_of_a_transaction_that_only_reads(PostgresResource, request, tmp_path) == (0, 0)


def test_a_receipt_that_is_written_early_makes_every_branch_a_writer(request: Any, tmp_path: Path) -> None:
    assert decisions_of_a_transaction_that_only_reads(EarlyReceipt, request, tmp_path) != (0, 0)


# ---- XA START always: in a plain transaction a DDL commits the work -------------------------------


class PlainTransactions(MariaDBResource):
    """The mutant: XA only where it has to be."""

    def begin(self, session: Any, work: Any, *, before: Any = ()) -> Script[None]:
        work.lazy = False
        yield from super().begin(session, work, before=before)
        yield from do(session, "run", f"XA END {work.handle.sql}; XA ROLLBACK {work.handle.sql}; START TRANSACTION")


def a_ddl_comes_before_the_work_is_given_up(resource: type[MariaDBResource], request: Any, tmp_path: Path) -> list[int]:
    pair = databases("mariadb+sqlite", request, tmp_path)
    with coordinator(pair) as db:
        db.setup()
        sound: Any = context(db).participants["a"].resource
        context(db).participants["a"].resource = resource("a", sound.database)
        with pytest.raises(KeyError), db.transaction() as tx:
            work(tx)
            with contextlib.suppress(Exception):
                tx["a"].execute("create table more (id int primary key)")
            raise KeyError("given up")
        return balances(pair)


def test_a_ddl_on_mariadb_is_refused_within_xa_and_ends_nothing(request: Any, tmp_path: Path) -> None:
    assert a_ddl_comes_before_the_work_is_given_up(MariaDBResource, request, tmp_path) == UNTOUCHED


def test_in_a_plain_transaction_a_ddl_commits_the_work_of_an_aborted_one(request: Any, tmp_path: Path) -> None:
    assert a_ddl_comes_before_the_work_is_given_up(PlainTransactions, request, tmp_path) == [70, 100]


# ---- a lost reply to a one-phase commit is settled by a fence -------------------------------------


class Looks(PostgresResource):
    """The mutant: no receipt, so it was aborted."""

    def fence(self, session: Any, xid: Any) -> Script[Verdict]:
        return Verdict.COMMIT if (yield from self.receipt(session, xid)) else Verdict.ABORT


def a_one_phase_commit_arrives_late(resource: type[PostgresResource], request: Any, tmp_path: Path) -> tuple[str, int]:
    (one,) = databases("postgres", request, tmp_path)
    with TcpProxy.to(one.url) as proxy, coordinator([replace(one, url=proxy.url_for(one.url))], settings=SHORT) as db:
        db.setup()
        context(db).participants["a"].resource = resource("a")
        late = []

        def verb() -> None:
            with db.transaction() as tx:
                tx["a"].execute(GIVE)
                late.append(proxy.stall(b"EXECUTE nodoubt_receipt"))

        answer = told(verb)
        late[0].release()
        until(lambda: not one.query("select 1 from pg_stat_activity where state = 'idle in transaction'"))
        until(lambda: not one.locked())
    return answer, one.balance()


def test_a_lost_reply_to_a_one_phase_commit_is_settled_by_a_fence(request: Any, tmp_path: Path) -> None:
    assert a_one_phase_commit_arrives_late(PostgresResource, request, tmp_path) == (ABORTED, 100)


def test_settled_by_a_look_it_is_told_aborted_and_commits_a_moment_later(request: Any, tmp_path: Path) -> None:
    assert a_one_phase_commit_arrives_late(Looks, request, tmp_path) == (ABORTED, 130)


# ---- no COMMIT takes effect on a branch before the decision (I4) ----------------------------------


def recovery_comes_between_two_branch_commits(request: Any, tmp_path: Path) -> tuple[str, list[int]]:
    pair, own = databases("postgres+postgres", request, tmp_path), f"sqlite:///{tmp_path}/journal.db"
    with coordinator(pair, own) as db:
        db.setup()
        with coordinator(pair, own) as rival:
            resource = context(db).participants["b"].resource
            sound = resource.commit_prepared

            def swept_first(session: Any, prepared: Any, **rows: Any) -> Script[None]:
                until(lambda: not pair[0].prepared())
                rival.recover(grace=0)
                return (yield from sound(session, prepared, **rows))

            resource.commit_prepared = swept_first  # type: ignore[method-assign]
            answer = at_once(db)
    return answer, balances(pair)


def test_no_commit_takes_effect_on_a_branch_before_the_decision(request: Any, tmp_path: Path) -> None:
    assert recovery_comes_between_two_branch_commits(request, tmp_path) == (COMMITTED, MOVED)


def test_branches_that_commit_before_the_decision_are_aborted_by_half(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_rule(monkeypatch, Phase.VOTING, Voted, CommitMachine._count_vote)
    monkeypatch.setattr(CommitMachine, "_decide", CommitMachine._carry_out)
    answer, ended = recovery_comes_between_two_branch_commits(request, tmp_path)
    assert ended == [70, 100], answer


# ---- COMMIT is decided only if every branch proved itself prepared (I2) ---------------------------


def a_prepare_never_arrives(request: Any, tmp_path: Path) -> tuple[str, list[int]]:
    pair = databases("sqlite+postgres", request, tmp_path)
    with TcpProxy.to(pair[1].url) as proxy:
        seen = [pair[0], replace(pair[1], url=proxy.url_for(pair[1].url))]
        with coordinator(seen, settings=SHORT) as db:
            db.setup()
            watch(db, "P3", "prepare", lambda: proxy.cut_request(b"PREPARE TRANSACTION"))
            answer = at_once(db)
    return answer, balances(pair)


def test_commit_is_decided_only_if_every_branch_proved_itself_prepared(request: Any, tmp_path: Path) -> None:
    assert a_prepare_never_arrives(request, tmp_path) == (ABORTED, UNTOUCHED)


def test_a_branch_without_an_answer_taken_for_prepared_is_committed_without_it(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def believe(machine: CommitMachine, event: Voted) -> Any:
        machine.pending.discard(event.branch)
        machine.branches[event.branch] = Standing.GONE if event.vote is Vote.READ_ONLY else Standing.PREPARED
        return machine._all_voted()

    change_rule(monkeypatch, Phase.VOTING, Voted, believe)
    assert a_prepare_never_arrives(request, tmp_path) == (COMMITTED, [70, 100])


# ---- no record is written at begin ----------------------------------------------------------------


def test_no_record_is_written_at_begin_so_a_name_is_a_label_and_no_lock(request: Any, tmp_path: Path) -> None:
    """Two at a time, and nothing to find before they end. (That an abort is only presumed behind a fence:
    `tests/traps/test_stalled_writers.py`.)"""
    pair = databases("postgres+postgres", request, tmp_path)
    with coordinator(pair) as db:
        db.setup()
        with db.transaction("pay") as one, db.transaction("pay") as other:
            one["a"].execute("update accounts set balance = balance - 30 where id = 0")
            other["b"].execute("update accounts set balance = balance + 30 where id = 0")
            for attempt in (one.attempt, other.attempt):
                with pytest.raises(UnknownTransaction):
                    db.status(attempt)
        assert balances(pair) == MOVED
        for attempt in (one.attempt, other.attempt):
            assert db.status(attempt).state is State.COMMITTED
    assert at_rest(pair)


def test_an_answer_waits_for_phase_two_unless_it_is_told_not_to(request: Any, tmp_path: Path) -> None:
    """`wait`: applied, decided. Where phase two takes too long: `tests/traps/test_held_sessions.py`."""
    pair = databases("sqlite+postgres", request, tmp_path)
    with coordinator(pair) as db:
        db.setup()
        for wait, moved in (("applied", 130), ("decided", 130)):
            hold = pair[1].balance()
            resource = context(db).participants["b"].resource
            sound = resource.commit_prepared

            def slow(session: Any, prepared: Any, hold: int = hold, sound: Any = sound, **rows: Any) -> Script[None]:
                assert pair[1].balance() == hold
                yield from sound(session, prepared, **rows)

            resource.commit_prepared = slow  # type: ignore[method-assign]
            with db.transaction(wait=wait) as tx:  # type: ignore[arg-type]
                work(tx)
            resource.commit_prepared = sound  # type: ignore[method-assign]
            assert tx.result is not None and tx.result.complete is (wait == "applied")
            if wait == "applied":
                assert pair[1].balance() == moved
    assert balances(pair) == [40, 160]
