"""Prepare, and both ends of it; what PostgreSQL does there that surprises."""

from __future__ import annotations

import contextlib
from typing import Any

import psycopg
import pytest

from nodoubt.errors import InvariantViolated
from nodoubt.ports import BelowFloor, Conflict, Prepared, Refused, StatementFailed, Unclear, UnknownXid
from nodoubt.resources.postgres import PostgresResource
from nodoubt.script import do
from nodoubt.testing.proxy import TcpProxy
from nodoubt.xid import Xid, new_attempt

WRITE = "INSERT INTO t VALUES (1, 1)"


def code(world: Any, session: Any, sql: str) -> str:
    """The server's code for a message that it refuses."""
    error = world.error(do(session, "run", sql))
    assert isinstance(error, StatementFailed)
    return error.code


# ---- prepare ----------------------------------------------------------------------------------------


def test_prepare_writes_the_receipt_and_prepares_in_one_round_trip(world: Any, proxy: TcpProxy) -> None:
    session = world.seasoned(proxy.url_for(world.url))
    work = world.begun(session, world.work(branch=2, epoch=5), WRITE)
    before = proxy.round_trips
    world.drive(world.resource.prepare(session, work))
    assert proxy.round_trips == before + 1
    assert world.gids() == [work.xid.gid]
    assert world.receipts() == [], "a receipt is seen only once its branch has committed"
    assert session.usable
    world.drive(world.resource.detach(session))
    world.drive(world.resource.commit_prepared(session, Prepared(work.xid)))
    assert world.gids() == []
    assert world.receipts() == [(work.xid.attempt, 2, "commit", 5, False, 0)]
    assert world.look("SELECT * FROM t") == [(1, 1)]


def test_any_session_can_finish_a_prepared_branch_even_when_the_one_that_prepared_is_gone(world: Any) -> None:
    first = world.session()
    prepared = world.prepared(WRITE, session=first)
    first.kill()
    world.drive(world.resource.commit_prepared(world.session(), prepared))
    assert world.look("SELECT * FROM t") == [(1, 1)]


def test_a_prepared_branch_that_is_rolled_back_leaves_nothing(world: Any) -> None:
    prepared = world.prepared(WRITE)
    world.drive(world.resource.rollback_prepared(world.session(), prepared))
    assert (world.gids(), world.receipts(), world.look("SELECT * FROM t")) == ([], [], [])


def test_prepare_in_a_failed_or_absent_transaction_gives_no_error_but_the_tag_rollback(world: Any) -> None:
    """The trap: psycopg's tpc_prepare() returns silently. `_accepts` is what sees it (test_postgres_work, mutants)."""
    session = world.session()
    assert world.run(session, "PREPARE TRANSACTION 'absent'")[-1].tag == "ROLLBACK"
    world.run(session, "BEGIN")
    assert code(world, session, "SELECT 1/0") == "22012"
    assert world.run(session, "PREPARE TRANSACTION 'failed'")[-1].tag == "ROLLBACK"
    assert world.gids() == []
    with contextlib.closing(psycopg.connect(world.url)) as connection:
        xid = connection.xid(1, "gtrid", "bqual")
        connection.tpc_begin(xid)
        with pytest.raises(psycopg.Error):
            connection.execute("SELECT 1/0")
        connection.tpc_prepare()
    assert world.gids() == []


def test_a_receipt_that_is_fenced_keeps_the_branch_from_preparing(world: Any) -> None:
    session = world.session()
    work = world.begun(session, None, WRITE)
    world.drive(world.resource.fence(world.session(), work.xid))
    assert isinstance(world.error(world.resource.prepare(session, work)), Conflict)
    assert world.gids() == []
    assert session.usable


def test_deferred_constraints_are_checked_at_prepare(fresh: Any) -> None:
    """So that nothing is left to fail at the commit."""
    fresh.look("CREATE TABLE d (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    session = fresh.session()
    work = fresh.begun(session, None, "INSERT INTO d VALUES (1), (1)")
    error = fresh.error(fresh.resource.prepare(session, work))
    assert type(error) is Refused
    assert "d_a_key" in str(error)
    assert fresh.gids() == []
    assert session.usable


@pytest.mark.parametrize(
    ("statements", "cause"),
    [
        (["CREATE TEMP TABLE x (a int)"], "temporary objects"),
        (["SELECT * FROM pg_temp.left_behind"], "temporary objects"),
        (["NOTIFY somebody"], "NOTIFY"),
        (["SELECT pg_notify('somebody', 'x')"], "NOTIFY"),
        (["LISTEN somebody"], "LISTEN"),
        (["DECLARE c CURSOR WITH HOLD FOR SELECT 1"], "WITH HOLD"),
        (["SELECT pg_export_snapshot()"], "exported snapshots"),
        (["SELECT pg_advisory_lock(1)", "SELECT pg_advisory_xact_lock(1)"], "same object"),
    ],
)
def test_what_cannot_be_prepared_is_refused_with_its_cause(world: Any, statements: list[str], cause: str) -> None:
    session = world.session()
    world.run(session, "CREATE TEMP TABLE left_behind (a int)")
    work = world.begun(session, None, WRITE, *statements)
    error = world.error(world.resource.prepare(session, work))
    assert type(error) is Refused
    assert cause in str(error)
    assert "leave it out" in str(error)
    assert not error.retry
    assert world.gids() == []
    assert world.look("SELECT * FROM t") == []


def test_a_prepare_whose_reply_is_lost_is_unclear_and_the_branch_is_listed(world: Any, proxy: TcpProxy) -> None:
    session = world.session(proxy.url_for(world.url))
    work = world.begun(session, None, WRITE)
    fault = proxy.cut_reply(after=b"PREPARE TRANSACTION")
    error = world.error(world.resource.prepare(session, work))
    fault.wait_hit()
    assert isinstance(error, Unclear)
    assert not session.usable
    (listed,) = world.drive(world.resource.prepared(world.session(), work.xid.cluster))
    assert listed.xid == work.xid


def test_a_prepare_whose_request_is_lost_is_unclear_and_the_branch_is_rolled_back(world: Any, proxy: TcpProxy) -> None:
    session = world.session(proxy.url_for(world.url))
    work = world.begun(session, None, WRITE)
    fault = proxy.cut_request(b"PREPARE TRANSACTION")
    error = world.error(world.resource.prepare(session, work))
    fault.wait_hit()
    assert isinstance(error, Unclear)
    assert world.drive(world.resource.prepared(world.session(), work.xid.cluster)) == ()
    world.until(lambda: world.look("SELECT count(*) FROM t") == [(0,)], "the rollback")


def test_a_session_ended_by_the_server_in_the_middle_of_prepare_is_unclear(fresh: Any) -> None:
    fresh.look("CREATE TABLE parent (a int PRIMARY KEY); INSERT INTO parent VALUES (1)")
    fresh.look("CREATE TABLE child (a int REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")
    holder, session = fresh.session(), fresh.session()
    fresh.run(holder, "BEGIN; DELETE FROM parent")
    work = fresh.begun(session, None, "INSERT INTO child VALUES (1)")
    call = fresh.start(fresh.resource.prepare(session, work))
    fresh.until_waiting(session, "%")
    fresh.look(f"SELECT pg_terminate_backend({session.connection_id})")
    assert isinstance(call.exception(20), Unclear)
    assert fresh.gids() == []


def test_a_prepare_cancelled_in_the_middle_leaves_no_dirty_session(synced: Any) -> None:
    """The engine shields this; should it be cut off all the same, the session must not go back to a pool (I18)."""
    session = synced.session()
    work = synced.begun(session, None, WRITE)
    call = synced.start(synced.resource.prepare(session, work))
    synced.until_waiting(session, "SyncRep")
    if synced.style == "async":
        call.cancel()
    else:
        session.kill()
    synced.until(lambda: not session.usable, "the session to be given up")


def test_rows_cannot_ride_in_a_prepare_here(world: Any) -> None:
    session = world.session()
    work = world.begun(session, None, WRITE)
    with pytest.raises(InvariantViolated):
        world.drive(world.resource.prepare(session, work, riders=("SELECT 1",)))
    with pytest.raises(InvariantViolated):
        world.drive(world.resource.commit_prepared(session, Prepared(work.xid), riders=("SELECT 1",)))


def test_a_session_with_something_left_in_it_is_not_handed_on_after_prepare(world: Any) -> None:
    session = world.session()
    world.prepared(WRITE, "SET work_mem = '1MB'", session=session)
    assert not session.usable


# ---- phase two --------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["commit_prepared", "rollback_prepared"])
def test_an_unknown_xid_is_never_success(world: Any, end: str) -> None:
    """I7."""
    session = world.session()
    prepared = world.prepared(WRITE)
    world.drive(getattr(world.resource, end)(session, prepared))
    for _ in range(2):
        assert isinstance(world.error(getattr(world.resource, end)(session, prepared)), UnknownXid)
        assert session.usable


@pytest.mark.parametrize("end", ["commit_prepared", "rollback_prepared"])
def test_phase_two_in_a_session_left_in_a_transaction_is_refused_and_leaves_it_clean(world: Any, end: str) -> None:
    session, prepared = world.session(), world.prepared(WRITE)
    world.run(session, "BEGIN")
    error = world.error(getattr(world.resource, end)(session, prepared))
    assert type(error) is Refused
    assert "25001" in str(error)
    world.drive(getattr(world.resource, end)(session, prepared))
    assert world.gids() == []


def test_a_branch_that_somebody_else_is_finishing_is_to_be_tried_again(synced: Any) -> None:
    work = synced.work()
    synced.look(f"BEGIN; INSERT INTO t VALUES (1, 1); PREPARE TRANSACTION '{work.xid.gid}'")
    one, two = synced.session(), synced.session()
    call = synced.start(synced.resource.commit_prepared(one, Prepared(work.xid)))
    synced.until_waiting(one, "SyncRep")
    error = synced.error(synced.resource.commit_prepared(two, Prepared(work.xid)))
    assert type(error) is Refused
    assert error.retry
    (listed,) = synced.drive(synced.resource.prepared(two, work.xid.cluster))
    assert listed.xid == work.xid, "listed: not ended yet (I7)"
    synced.look(f"SELECT pg_cancel_backend({one.connection_id})")
    assert isinstance(call.exception(20), Unclear)


@pytest.mark.parametrize("end", ["commit_prepared", "rollback_prepared"])
def test_a_phase_two_without_an_answer_is_unclear(world: Any, proxy: TcpProxy, end: str) -> None:
    prepared = world.prepared(WRITE)
    fault = proxy.cut_reply(after=b" PREPARED '")
    error = world.error(getattr(world.resource, end)(world.session(proxy.url_for(world.url)), prepared))
    fault.wait_hit()
    assert isinstance(error, Unclear)
    assert world.gids() == []


def test_rows_before_a_commit_are_committed_first_and_a_conflict_stops_it(world: Any) -> None:
    session, prepared = world.session(), world.prepared(WRITE)
    row = (
        "INSERT INTO nodoubt.receipts (attempt, branch, verdict, epoch, alone) "
        f"VALUES ('{'e' * 32}', 0, 'commit', 0, true)"
    )
    below = row.replace("'commit'", "NULL")
    assert isinstance(world.error(world.resource.commit_prepared(session, prepared, before=(below,))), BelowFloor)
    world.look(row)
    assert isinstance(world.error(world.resource.commit_prepared(session, prepared, before=(row,))), Conflict)
    assert world.gids() == [prepared.xid.gid]
    assert session.usable
    world.look("DELETE FROM nodoubt.receipts")
    world.drive(world.resource.commit_prepared(session, prepared, before=(row, "INSERT INTO t VALUES (2, 2)")))
    assert world.gids() == []
    assert world.look("SELECT id FROM t ORDER BY 1") == [(1,), (2,)]


def test_rows_travel_with_the_commit_that_flushes_them_where_the_driver_can(world: Any, proxy: TcpProxy) -> None:
    session = world.session(proxy.url_for(world.url))
    first, prepared = world.prepared("INSERT INTO t VALUES (0, 0)"), world.prepared(WRITE)
    world.drive(world.resource.commit_prepared(session, first, before=("DELETE FROM t WHERE id = 9",)))
    before = proxy.round_trips
    world.drive(world.resource.commit_prepared(session, prepared, before=("INSERT INTO t VALUES (2, 2)",)))
    assert proxy.round_trips - before == (2 if world.style == "asyncpg" else 1)
    assert world.look("SELECT id FROM t ORDER BY 1") == [(0,), (1,), (2,)]
    assert world.run(session, "SHOW synchronous_commit")[0].scalar() == "on"


@pytest.mark.parametrize("default", ["default_transaction_isolation=serializable", "default_transaction_read_only=on"])
def test_rows_before_the_first_commit_of_a_session_go_whatever_its_transactions_are_by_default(
    world: Any, default: str
) -> None:
    """In a pipeline what comes before BEGIN is in its transaction, where a SELECT settles what BEGIN would set."""
    session, prepared = world.session(), world.prepared(WRITE)
    world.run(session, f"SET {default}")  # as the server, the database or the role may have it
    world.drive(world.resource.commit_prepared(session, prepared, before=("INSERT INTO t VALUES (2, 2)",)))
    assert world.look("SELECT id FROM t ORDER BY 1") == [(1,), (2,)]
    assert world.run(session, "SHOW synchronous_commit")[0].scalar() == "on"


def test_without_an_answer_to_both_nobody_knows(world: Any, proxy: TcpProxy) -> None:
    prepared = world.prepared(WRITE)
    fault = proxy.cut_reply(after=b"COMMIT PREPARED '")
    script = world.resource.commit_prepared(
        world.session(proxy.url_for(world.url)), prepared, before=("INSERT INTO t VALUES (2, 2)",)
    )
    assert isinstance(world.error(script), Unclear)
    fault.wait_hit()
    assert world.gids() == []
    assert world.look("SELECT id FROM t ORDER BY 1") == [(1,), (2,)]


def test_a_mutant_that_sends_both_whatever_becomes_of_the_first_commits_against_a_decision_that_stands(
    world: Any,
) -> None:
    """As a pipeline does with a Sync behind each of its statements."""

    class Mutant(PostgresResource):
        def commit_prepared(self, session: Any, prepared: Prepared, *, before: Any = (), riders: Any = ()) -> Any:
            failed: Refused | None = None
            try:
                yield from self._commit_unforced(session, before)
            except Refused as error:
                failed = error
            yield from self._phase_two(session, "COMMIT PREPARED", prepared.xid)
            if failed is not None:
                raise failed

    session, prepared = world.session(), world.prepared(WRITE)
    refused = (
        f"INSERT INTO nodoubt.receipts (attempt, branch, verdict, epoch, alone) VALUES ('{'e' * 32}', 0, NULL, 0, true)"
    )
    assert isinstance(world.error(world.resource.commit_prepared(session, prepared, before=(refused,))), BelowFloor)
    assert world.gids() == [prepared.xid.gid]
    assert isinstance(world.error(Mutant("pg").commit_prepared(session, prepared, before=(refused,))), BelowFloor)
    assert world.look("SELECT id FROM t") == [(1,)], "refused, and committed"


def test_rows_before_an_unknown_xid_stand_and_the_answer_is_no_success(world: Any) -> None:
    xid = Xid("00000000000000c1", new_attempt(), 0)
    before = ("INSERT INTO t VALUES (2, 2)",)
    error = world.error(world.resource.commit_prepared(world.session(), Prepared(xid), before=before))
    assert isinstance(error, UnknownXid)
    assert world.look("SELECT id FROM t") == [(2,)]


def test_the_first_phase_two_of_a_session_asks_for_durability_once(world: Any, proxy: TcpProxy) -> None:
    """COMMIT PREPARED stands outside any transaction, so the level is the session's. Fails without `_FORCED` there."""
    world.look("ALTER ROLE postgres SET synchronous_commit = off")
    try:
        session = world.session(proxy.url_for(world.url))
    finally:
        world.look("ALTER ROLE postgres RESET synchronous_commit")
    assert world.run(session, "SHOW synchronous_commit")[0].scalar() == "off"
    one, two = world.prepared("INSERT INTO t VALUES (1, 1)"), world.prepared("INSERT INTO t VALUES (2, 2)")
    trips = []
    for prepared in (one, two):
        before = proxy.round_trips
        world.drive(world.resource.commit_prepared(session, prepared))
        trips.append(proxy.round_trips - before)
    assert trips == [2, 1]
    assert world.run(session, "SHOW synchronous_commit")[0].scalar() == "on"


def test_an_answer_other_than_the_tag_is_unclear(world: Any) -> None:
    """Fails without `_accepts` in phase two."""

    class Elsewhere:
        usable, forced, connection_id = True, True, 1

        def __init__(self, session: Any) -> None:
            self.session = session

        def run(self, _: str) -> Any:
            return self.session.run("SELECT 1")

    prepared = world.prepared(WRITE)
    for end in (world.resource.commit_prepared, world.resource.rollback_prepared):
        assert isinstance(world.error(end(Elsewhere(world.session()), prepared)), Unclear)
    assert world.gids() == [prepared.xid.gid]


# ---- listing ----------------------------------------------------------------------------------------


def test_only_well_formed_branches_of_our_cluster_in_this_database_are_listed(fresh: Any, postgres: Any) -> None:
    """I9."""
    fresh.look("CREATE TABLE u (a int)")
    ours = Xid("00000000000000c1", new_attempt(), 1)
    foreign = [
        Xid("00000000000000c2", new_attempt(), 0).gid,
        ours.gid + "x",
        ours.gid.replace("nd1.", "nd2."),
        ours.gid[:-1] + "01",
        "citus_0_1_2_3",
        "nd1.",
    ]
    for number, gid in enumerate([*foreign, ours.gid]):
        fresh.look(f"BEGIN; INSERT INTO u VALUES ({number}); PREPARE TRANSACTION '{gid}'")
    elsewhere = postgres.url()
    other = Xid("00000000000000c1", new_attempt(), 2)
    fresh.look(f"BEGIN; CREATE TABLE u (a int); PREPARE TRANSACTION '{other.gid}'", elsewhere)
    (listed,) = fresh.drive(fresh.resource.prepared(fresh.session(), "00000000000000c1"))
    fresh.look(f"ROLLBACK PREPARED '{other.gid}'", elsewhere)
    assert listed.xid == ours
    assert listed.age_s is not None
    assert 0 <= listed.age_s < 60


def test_nobody_holds_a_prepared_branch_here(world: Any) -> None:
    assert world.drive(world.resource.free(world.session(), world.prepared(WRITE))) is False


# ---- facts ------------------------------------------------------------------------------------------


def test_a_retried_commit_of_a_reused_gid_commits_the_next_one_so_ours_are_never_reused(world: Any) -> None:
    session = world.session()
    for number in (1, 2):
        world.run(session, f"BEGIN; INSERT INTO t VALUES ({number}, 0); PREPARE TRANSACTION 'order-7'")
        if number == 1:
            world.run(session, "COMMIT PREPARED 'order-7'")
    world.run(session, "COMMIT PREPARED 'order-7'")  # a retry of the first commit, whose reply was lost
    assert world.look("SELECT id FROM t ORDER BY 1") == [(1,), (2,)]
    assert world.work().xid.gid != world.work().xid.gid


def test_a_gid_has_at_most_199_bytes_and_cannot_be_a_parameter(world: Any) -> None:
    session = world.session()
    world.run(session, "BEGIN; INSERT INTO t VALUES (1, 1)")
    assert code(world, session, f"PREPARE TRANSACTION '{'x' * 200}'") == "22023"
    world.run(session, "ROLLBACK")
    error: Any = world.error(do(session, "execute", "PREPARE TRANSACTION %s", ["x"]))
    assert error.sqlstate == "42601"
    longest = Xid("f" * 16, "f" * 32, 255).gid
    assert len(longest) <= 199


def test_a_read_only_branch_that_prepares_takes_a_transaction_id(world: Any) -> None:
    """Why a reader is not prepared."""
    session = world.session()
    world.run(session, "BEGIN; SELECT 1; PREPARE TRANSACTION 'reader'")
    ((transaction,),) = world.look("SELECT transaction::text FROM pg_prepared_xacts WHERE gid = 'reader'")
    assert int(transaction) > 0
    world.run(session, "ROLLBACK PREPARED 'reader'")


def test_two_commit_prepared_in_one_message_do_not_work(world: Any) -> None:
    """Why phase two sends one at a time."""
    one, two = world.prepared("INSERT INTO t VALUES (1, 1)"), world.prepared("INSERT INTO t VALUES (2, 2)")
    both = f"COMMIT PREPARED '{one.xid.gid}'; COMMIT PREPARED '{two.xid.gid}'"
    assert code(world, world.session(), both) == "25001"
    assert len(world.gids()) == 2


def test_a_whole_branch_fits_in_one_message(world: Any) -> None:
    session = world.session()
    tags = [r.tag for r in world.run(session, "BEGIN; INSERT INTO t VALUES (1, 1); PREPARE TRANSACTION 'whole'")]
    assert tags == ["BEGIN", "INSERT 0 1", "PREPARE TRANSACTION"]
    world.run(session, "ROLLBACK PREPARED 'whole'")


def test_a_prepared_branch_keeps_its_locks(world: Any) -> None:
    world.look("INSERT INTO t VALUES (9, 9)")
    prepared = world.prepared("UPDATE t SET v = 0 WHERE id = 9")
    assert code(world, world.session(), "SET lock_timeout = '20ms'; UPDATE t SET v = 1 WHERE id = 9") == "55P03"
    world.drive(world.resource.commit_prepared(world.session(), prepared))
    assert world.look("SELECT v FROM t") == [(0,)]


def test_a_prepared_branch_holds_back_vacuum(fresh: Any) -> None:
    fresh.look("INSERT INTO t SELECT n, n FROM generate_series(1, 100) n")
    prepared = fresh.prepared("INSERT INTO t VALUES (1000, 0)")
    fresh.look("DELETE FROM t")
    fresh.look("VACUUM t")
    assert fresh.look("SELECT pg_relation_size('t') > 0") == [(True,)]
    fresh.drive(fresh.resource.rollback_prepared(fresh.session(), prepared))
    fresh.look("VACUUM t")
    assert fresh.look("SELECT pg_relation_size('t') > 0") == [(False,)]


def test_a_mutant_that_takes_any_tag_believes_a_prepare_that_rolled_back(world: Any) -> None:
    """The trap in one line; `_accepts` is the check that the server itself does not make."""

    class Mutant(PostgresResource):
        def _proof(self, work: Any) -> str:
            return ""

        def _receipt_row(self, work: Any, *, alone: bool) -> str:
            return ""

        def _accepts(self, tag: str, wanted: str) -> bool:
            return True

    session = world.session()
    work = world.begun(session, None, WRITE)
    world.run(session, "ROLLBACK")
    world.drive(Mutant("pg").prepare(session, work))
    assert world.gids() == [], "it said prepared, and there is nothing"
    assert isinstance(world.error(world.resource.commit_prepared(session, Prepared(work.xid))), UnknownXid)
