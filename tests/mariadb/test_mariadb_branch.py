"""One branch: begun, worked on, ended in one phase or prepared."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pymysql
import pytest

from nodoubt.errors import BranchDoomed, InvariantViolated, UsageError
from nodoubt.ports import BelowFloor, Conflict, Prepared, Refused, SessionLost, StatementFailed, Unclear
from nodoubt.resources import mariadb as module
from nodoubt.resources import mariadb_beginning as beginning
from nodoubt.resources.mariadb_failures import FAILURES, refusal
from nodoubt.script import do
from nodoubt.xid import XaXid

PATIENCE_S = 30.0


def is_clean(world: Any, session: Any) -> bool:
    """Whether the session is usable, in no transaction, and able to do another branch."""
    if not session.usable:
        return False
    row = world.run(session, "SELECT @@autocommit, @@in_transaction")[0].rows[0]
    work = world.begun(session, "SELECT 1")
    world.drive(world.resource.end_reader(session, work))
    return bool(row == (1, 0)) and session.usable


# -- begin and work


def test_a_branch_is_an_xa_branch_from_the_start(world: Any) -> None:
    """Catches: a plain transaction, which any DDL would commit behind our back."""
    session = world.session()
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)")
    with pytest.raises(Exception, match="ACTIVE"):
        world.execute(session, work, "CREATE TABLE other (x INT)")
    assert work.doomed is not None
    world.drive(world.resource.rollback(session, work))
    assert world.values() == []
    assert world.look("SHOW TABLES LIKE 'other'") == []


def test_the_xid_says_which_session_of_which_run_of_the_server_prepares(world: Any) -> None:
    session = world.session()
    work = world.begun(session)
    assert work.handle.xid == work.xid
    assert (work.handle.connection, work.handle.server_started) == (session.connection_id, session.server_started)


def test_a_session_that_is_not_clean_cannot_begin_and_goes_to_no_pool(world: Any) -> None:
    session = world.session()
    world.run(session, "START TRANSACTION; INSERT INTO t VALUES (1, 1)")
    with pytest.raises(Refused, match="1400"):
        world.drive(world.resource.begin(session, world.work()))
    assert not session.usable
    world.until_gone(session)
    assert world.values() == []


# -- rows before the branch

WRITE = "INSERT INTO t VALUES (5, 5)"
ROW = (
    "INSERT INTO nodoubt_receipts (attempt, branch, verdict, alone, epoch, confirms, at) VALUES ({}, 0, {}, 1, 0, 0, 0)"
)


def test_rows_before_the_branch_are_committed_in_its_message_whatever_becomes_of_the_branch(world: Any) -> None:
    """Lazy or not: the row must be there before the work."""
    session, work = world.session(), world.work()
    work.lazy = True
    sent = world.spy(session)
    world.drive(world.resource.begin(session, work, before=(WRITE, "UPDATE t SET v = 6")))
    assert len(sent) == 1 and work.opening == ()
    assert world.values() == [(5, 6)]
    world.execute(session, work, "INSERT INTO t VALUES (7, 7)")
    world.drive(world.resource.rollback(session, work))
    assert world.values() == [(5, 6)]
    assert is_clean(world, session)


def test_the_branch_behind_such_rows_can_be_prepared_and_committed(world: Any) -> None:
    session, work = world.session(), world.work()
    world.drive(world.resource.begin(session, work, before=(WRITE,)))
    world.execute(session, work, "INSERT INTO t VALUES (7, 7)")
    world.drive(world.resource.prepare(session, work))
    assert world.values() == [(5, 5)]
    world.finish("commit", Prepared(work.xid, handle=work.handle), session)
    assert world.values() == [(5, 5), (7, 7)]


@pytest.mark.parametrize(("verdict", "refused"), [("'abort'", Conflict), ("NULL", BelowFloor)])
@pytest.mark.parametrize("sql_mode", ["STRICT_ALL_TABLES", ""])
def test_a_row_before_the_branch_that_is_refused_leaves_none_of_them_and_no_branch(
    world: Any, sql_mode: str, verdict: str, refused: type[Exception]
) -> None:
    """InnoDB leaves the transaction open after either error, and would commit what went well."""
    row = ROW.format(f"'{'a' * 32}'", verdict)
    if refused is Conflict:
        world.look(row)
    session, work = world.session(), world.work()
    world.run(session, f"SET SESSION sql_mode = '{sql_mode}'")
    with pytest.raises(refused):
        world.drive(world.resource.begin(session, work, before=(WRITE, row)))
    assert not session.usable and work.handle is None
    world.until_gone(session)
    assert world.values() == []


def test_an_error_that_may_have_come_after_their_commit_is_unclear(world: Any) -> None:
    """XAER_DUPID has the meaning of a key that is taken, and then these rows stand."""
    session, work = world.session(), world.work()
    handle = XaXid(work.xid, session.connection_id, session.server_started)
    world.run(world.session(), f"XA START {handle.sql}")
    with pytest.raises(Unclear, match="1440"):
        world.drive(world.resource.begin(session, work, before=(WRITE,)))
    assert world.values() == [(5, 5)]
    with pytest.raises(Unclear, match="1146"):
        world.drive(world.resource.begin(world.session(), world.work(), before=("INSERT INTO nowhere VALUES (1)",)))


def test_rows_before_the_branch_are_written_as_the_journal_writes_them(world: Any) -> None:
    """Under REPEATABLE READ their look at what is not there would lock its gap; here a second look sees what is new."""
    holder, session = world.session(), world.session()
    world.run(holder, "SELECT GET_LOCK('pause', 0)")
    look = "SET @seen = (SELECT COUNT(*) FROM t)"
    before = (look, "SELECT GET_LOCK('pause', 30)", look, "INSERT INTO t VALUES (2, @seen)")
    call = world.start(world.resource.begin(session, world.work(), before=before))
    world.until_busy(session, "User lock")
    with contextlib.suppress(pymysql.err.OperationalError):  # where it waits for a gap
        world.look("SET innodb_lock_wait_timeout = 1; INSERT INTO t VALUES (1, 1)")
    world.run(holder, "DO RELEASE_LOCK('pause')")
    call.result(PATIENCE_S)
    assert world.values() == [(1, 1), (2, 1)]


def test_the_branch_behind_them_has_the_isolation_of_its_session(world: Any) -> None:
    session, work = world.session(), world.work()
    world.drive(world.resource.begin(session, work, before=(WRITE,)))
    for _ in range(2):
        assert world.execute(session, work, "SELECT COUNT(*) FROM t").scalar() == 1
        world.look("INSERT INTO t SELECT COUNT(*), 1 FROM t")


def test_no_rows_are_committed_in_a_session_that_is_not_clean(world: Any) -> None:
    """START TRANSACTION would commit what a stranger has left there."""
    session = world.session()
    world.run(session, "START TRANSACTION; INSERT INTO t VALUES (1, 1)")
    with pytest.raises(Unclear, match="1568"):
        world.drive(world.resource.begin(session, world.work(), before=(WRITE,)))
    assert not session.usable
    world.until_gone(session)
    assert world.values() == []


@pytest.mark.parametrize("setting", ["completion_type = 'CHAIN'", "autocommit = 0", "tx_read_only = 1"])
def test_rows_before_the_branch_are_committed_whatever_the_session_is_set_to(world: Any, setting: str) -> None:
    """A session may be the user's own, on loan."""
    session, work = world.session(), world.work()
    world.run(session, f"SET SESSION {setting}")
    world.drive(world.resource.begin(session, work, before=(WRITE,)))
    world.drive(world.resource.rollback(session, work))
    assert world.values() == [(5, 5)]


def test_a_begin_without_an_answer_says_nothing_of_its_rows(world: Any, cut: Callable[[str], Any]) -> None:
    proxy = cut(world.url)
    session = world.session(proxy.url)
    proxy.deaf = True
    call = world.start(world.resource.begin(session, world.work(), before=(WRITE,)))
    world.until(world.values, "the row")
    proxy.sever()
    with pytest.raises((SessionLost, Unclear)):
        call.result(PATIENCE_S)
    assert not session.usable


# -- work


@pytest.mark.parametrize("statement", ["COMMIT", "XA END 'x'", "SET autocommit = 0", "SAVEPOINT a", "USE mysql"])
def test_transaction_control_is_refused_and_dooms(world: Any, statement: str) -> None:
    session = world.session()
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)")
    with pytest.raises(UsageError):
        world.execute(session, work, statement)
    with pytest.raises(Refused):
        world.drive(world.resource.prepare(session, work))
    world.drive(world.resource.rollback(session, work))
    assert world.values() == []
    assert is_clean(world, session)


def test_after_an_error_nothing_more_can_be_done_on_the_branch(world: Any) -> None:
    session = world.session()
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)")
    with pytest.raises(Exception, match="Duplicate"):
        world.execute(session, work, "INSERT INTO t VALUES (1, 1)")
    with pytest.raises(BranchDoomed):
        world.execute(session, work, "INSERT INTO t VALUES (2, 2)")


def test_a_swallowed_statement_error_dooms(world: Any) -> None:
    """A statement failed with half of the work done, and the user's code swallowed the error.

    Without the doom InnoDB would prepare, and commit, that half.
    """
    for end in (world.resource.prepare, world.resource.commit_alone):
        session = world.session()
        work = world.begun(session, "INSERT INTO t VALUES (1, 1)")
        with pytest.raises(Exception, match="Duplicate"):
            world.execute(session, work, "INSERT INTO t VALUES (1, 1)")
        with pytest.raises(Refused, match="failed"):
            world.drive(end(session, work))
        world.drive(world.resource.rollback(session, work))
        assert world.values() == []
        assert world.receipts() == []
        assert is_clean(world, session)


def test_a_swallowed_lock_timeout_dooms(world: Any) -> None:
    """1205 rolls back the statement alone and leaves the branch preparable with the rest of its work."""
    world.look("INSERT INTO t VALUES (1, 1), (2, 2)")
    blocker, session = world.session(), world.session()
    held = world.begun(blocker, "UPDATE t SET v = 9 WHERE id = 2")
    world.run(session, "SET SESSION innodb_lock_wait_timeout = 0")
    work = world.begun(session, "UPDATE t SET v = 9 WHERE id = 1")
    with pytest.raises(Exception, match="Lock wait timeout"):
        world.execute(session, work, "UPDATE t SET v = 9 WHERE id = 2")
    with pytest.raises(Refused):
        world.drive(world.resource.prepare(session, work))
    world.drive(world.resource.rollback(session, work))
    world.drive(world.resource.rollback(blocker, held))
    assert world.values() == [(1, 1), (2, 2)]


def deadlocked(world: Any) -> tuple[Any, Any, Any, Any]:
    """(loser's session and work, winner's session and work): 1213 has made the loser rollback-only."""
    world.look("INSERT INTO t VALUES (1, 1), (2, 2), (3, 3)")
    # The one that has changed less is chosen to lose.
    winner, loser = world.session(), world.session()
    strong = world.begun(winner, "UPDATE t SET v = 9 WHERE id IN (1, 3)", "INSERT INTO t VALUES (10, 1), (11, 1)")
    weak = world.begun(loser, "UPDATE t SET v = 8 WHERE id = 2")
    call = world.start(world.resource.execute(winner, strong, "UPDATE t SET v = 9 WHERE id = 2", None))
    world.until_busy(winner)
    with pytest.raises(Exception, match="Deadlock"):
        world.execute(loser, weak, "UPDATE t SET v = 8 WHERE id = 1")
    call.result(PATIENCE_S)
    return loser, weak, winner, strong


def test_a_deadlocked_branch_is_refused_and_its_session_is_clean_after_rollback(world: Any) -> None:
    loser, weak, winner, strong = deadlocked(world)
    with pytest.raises(Refused):
        world.drive(world.resource.prepare(loser, weak))
    world.drive(world.resource.rollback(loser, weak))
    assert is_clean(world, loser)
    world.drive(world.resource.commit_alone(winner, strong))
    assert world.values() == [(1, 9), (2, 9), (3, 9), (10, 1), (11, 1)]


def test_a_deadlock_is_refused_by_the_server_too(world: Any) -> None:
    """The branch is ROLLBACK ONLY: even without the doom nothing could be prepared."""
    loser, weak, _, _ = deadlocked(world)
    weak.doomed = None
    with pytest.raises(Refused, match="ROLLBACK ONLY"):
        world.drive(world.resource.prepare(loser, weak))
    assert is_clean(world, loser)


def test_xa_end_of_a_deadlocked_branch_is_an_error_and_rollback_works_all_the_same(world: Any) -> None:
    loser, weak, _, _ = deadlocked(world)
    with pytest.raises(StatementFailed) as caught:
        world.run(loser, f"XA END {weak.handle.sql}")
    assert caught.value.code == "1399"  # other releases: 1614, XA_RBDEADLOCK
    world.drive(world.resource.rollback(loser, weak))
    assert is_clean(world, loser)


def test_several_statements_in_one_text_doom(world: Any) -> None:
    session = world.session()
    work = world.begun(session)
    with pytest.raises(UsageError, match="held 2 statements"):
        world.execute(session, work, "INSERT INTO t VALUES (1, 1); INSERT INTO t VALUES (2, 2)")
    with pytest.raises(Refused):
        world.drive(world.resource.commit_alone(session, work))
    world.drive(world.resource.rollback(session, work))
    assert world.values() == []


def test_a_cancelled_statement_dooms_and_nothing_of_it_stays(world: Any) -> None:
    session = world.session()
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)")
    call = world.start(world.resource.execute(session, work, "SELECT SLEEP(60)", None))
    world.until_busy(session)
    if world.style == "async":
        call.cancel()
        world.until(lambda: work.doomed is not None, "the cancelled statement to doom the branch")
    else:
        session.kill()
        with pytest.raises(Exception):  # noqa: B017, PT011 - the driver's own
            call.result(PATIENCE_S)
    assert work.doomed is not None
    assert not session.usable
    world.drive(world.resource.rollback(session, work))  # never raises
    world.look(f"KILL {session.connection_id}")  # the server would notice after its SLEEP
    world.until_gone(session)
    assert world.values() == []


# -- readers


@pytest.mark.parametrize(
    "statements",
    [
        (),
        ("SELECT * FROM t",),
        ("SELECT v, COUNT(*) FROM t GROUP BY v ORDER BY 2", "SELECT * FROM t UNION SELECT 1, 2 ORDER BY 1"),
        ("SHOW TABLES", "EXPLAIN SELECT * FROM t"),
    ],
)
def test_a_branch_that_only_read_is_known_to_have_written_nothing(world: Any, statements: tuple[str, ...]) -> None:
    world.look("INSERT INTO t VALUES (1, 1), (2, 2)")
    session = world.session()
    work = world.begun(session, *statements)
    assert world.drive(world.resource.wrote(session, work)) is False
    world.drive(world.resource.end_reader(session, work))
    assert is_clean(world, session)
    assert world.receipts() == []


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO t VALUES (1, 1)",
        "UPDATE t SET v = 1 WHERE id = 77",
        "SELECT writes()",
        "SELECT NEXTVAL(numbers)",
        "SELECT * FROM t FOR UPDATE",
        "SELECT * FROM t LOCK IN SHARE MODE",
        "CALL writer()",
        "/*! INSERT INTO t VALUES (1, 1) */",
        "DO 1",
    ],
)
def test_a_branch_that_may_have_written_is_not(world: Any, statement: str) -> None:
    """Catches: a SELECT taken for reading by its looks alone, while a function in it writes."""
    world.look(
        "CREATE FUNCTION writes() RETURNS INT MODIFIES SQL DATA BEGIN INSERT INTO t VALUES (5, 5); RETURN 1; END; "
        "CREATE PROCEDURE writer() INSERT INTO t VALUES (6, 6); CREATE SEQUENCE numbers NOCACHE"
    )
    for statements in ((statement,), ("SELECT 1", statement), ("SELECT 1", statement, "SELECT 1")):
        session = world.session()
        work = world.begun(session, *statements)
        assert world.drive(world.resource.wrote(session, work)) is True
        world.drive(world.resource.rollback(session, work))


def test_rows_written_earlier_on_the_same_session_are_not_counted(world: Any) -> None:
    session = world.session()
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)")
    world.drive(world.resource.commit_alone(session, work))
    work = world.begun(session, "SELECT * FROM t")
    assert world.drive(world.resource.wrote(session, work)) is False


def test_a_statement_that_passed_by_us_counts_as_a_write(world: Any) -> None:
    """An adaptor that works on the session itself counts its statements; what they did is not known."""
    session = world.session()
    work = world.begun(session)
    work.statements = 1
    assert world.drive(world.resource.wrote(session, work)) is True


def test_a_reader_whose_session_died_is_refused(world: Any) -> None:
    session = world.session()
    work = world.begun(session, "SELECT * FROM t")
    world.look(f"KILL {session.connection_id}")
    world.until_gone(session)
    with pytest.raises(Refused):
        world.drive(world.resource.end_reader(session, work))


# -- one phase


def test_a_branch_alone_commits_with_a_receipt(world: Any) -> None:
    session = world.session()
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)", work=world.work(branch=3, epoch=7))
    world.drive(world.resource.commit_alone(session, work))
    assert world.values() == [(1, 1)]
    assert world.receipts() == [(work.xid.attempt, 3, "commit", 1, 7, 0)]
    assert is_clean(world, session)


def riders(world: Any, *keys: int | str) -> tuple[str, ...]:
    return tuple(f"INSERT INTO decisions VALUES ({key})" for key in keys)


@pytest.fixture
def register(world: Any) -> Any:
    """A stand-in for the journal's table, in the same database."""
    world.look("CREATE TABLE decisions (id INT NOT NULL PRIMARY KEY)")
    return world


def test_riders_commit_with_the_branch_and_take_the_receipts_place(register: Any) -> None:
    session = register.session()
    work = register.begun(session, "INSERT INTO t VALUES (1, 1)")
    register.drive(register.resource.commit_alone(session, work, riders=riders(register, 1, 2)))
    assert register.values() == [(1, 1)]
    assert register.look("SELECT id FROM decisions ORDER BY id") == [(1,), (2,)]
    assert register.receipts() == []


def test_a_rider_that_conflicts_undoes_the_branch(world: Any) -> None:
    """Somebody has decided ABORT meanwhile. InnoDB leaves the transaction committable after the 1062."""
    world.look("CREATE TABLE IF NOT EXISTS decisions (id INT NOT NULL PRIMARY KEY); INSERT INTO decisions VALUES (2)")
    session = world.session()
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)")
    with pytest.raises(Conflict):
        world.drive(world.resource.commit_alone(session, work, riders=riders(world, 1, 2)))
    assert world.look("SELECT id FROM decisions ORDER BY id") == [(2,)]
    assert is_clean(world, session)
    assert world.values() == []


def test_a_rider_below_the_floor_undoes_the_branch(register: Any) -> None:
    session = register.session()
    work = register.begun(session, "INSERT INTO t VALUES (1, 1)")
    with pytest.raises(BelowFloor):
        register.drive(register.resource.commit_alone(session, work, riders=riders(register, 1, "NULL")))
    assert register.values() == []
    assert register.look("SELECT id FROM decisions") == []
    assert is_clean(register, session)


def test_a_fenced_branch_cannot_commit(world: Any) -> None:
    session = world.session()
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)")
    world.drive(world.resource.fence(world.session(), work.xid))
    with pytest.raises(Conflict):
        world.drive(world.resource.commit_alone(session, work))
    assert world.values() == []
    assert is_clean(world, session)


def test_a_lost_reply_to_the_commit_is_unclear_and_the_receipt_tells(world: Any, cut: Callable[[str], Any]) -> None:
    proxy = cut(world.url)
    session = world.session(proxy.url)
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)")
    proxy.deaf = True
    call = world.start(world.resource.commit_alone(session, work))
    world.until(world.receipts, "the receipt")
    proxy.sever()
    with pytest.raises(Unclear):
        call.result(PATIENCE_S)
    assert not session.usable
    assert world.drive(world.resource.receipt(world.session(), work.xid)) is True


@pytest.mark.parametrize("end", ["commit_alone", "prepare"])
def test_a_session_that_left_the_branch_cannot_promise_for_it(world: Any, end: str) -> None:
    """The branch ended behind our back, and a plain transaction is under way. XA END of our own xid is the proof."""
    session = world.session()
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)")
    world.run(session, f"XA END {work.handle.sql}; XA ROLLBACK {work.handle.sql}; START TRANSACTION")
    world.run(session, "INSERT INTO t VALUES (2, 2)")
    with pytest.raises((Refused, Unclear)):
        world.drive(getattr(world.resource, end)(session, work))
    assert not session.usable
    world.until_gone(session)
    assert world.values() == []
    assert world.receipts() == []


# -- prepare


def test_a_prepared_branch_is_listed_and_holds_a_receipt_that_nobody_sees(world: Any) -> None:
    session = world.session()
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)", work=world.work(branch=2, epoch=5))
    world.drive(world.resource.prepare(session, work))
    assert world.listed() == [Prepared(work.xid, None, work.handle)]
    assert world.receipts() == []
    world.finish("commit", Prepared(work.xid, handle=work.handle), session)
    assert world.receipts() == [(work.xid.attempt, 2, "commit", 0, 5, 0)]
    assert world.values() == [(1, 1)]


def test_a_session_is_never_usable_while_it_holds_a_prepared_branch(world: Any) -> None:
    """Back in a pool it would poison it, and hold the branch."""
    session = world.session()
    prepared = world.prepared("INSERT INTO t VALUES (1, 1)", session=session)
    assert not session.usable
    with pytest.raises(StatementFailed) as caught:
        world.run(session, "SELECT * FROM t")
    assert caught.value.code == "1399"
    world.finish("rollback", prepared, session)


@pytest.mark.parametrize(("verb", "rows"), [("commit", [(1, 1)]), ("rollback", [])])
def test_the_preparing_session_may_finish_the_branch_and_is_clean_then(
    world: Any, verb: str, rows: list[tuple[int, int]]
) -> None:
    session = world.session()
    prepared = world.prepared("INSERT INTO t VALUES (1, 1)", session=session)
    world.finish(verb, prepared, session)
    assert session.usable
    assert world.values() == rows
    assert is_clean(world, session)
    # Truly clean: the same session carries the next branch, and the next, all the way.
    for number in (2, 3):
        again = world.prepared(f"INSERT INTO t VALUES ({number}, 1)", session=session)
        world.finish("commit", again, session)
    assert world.values() == [*rows, (2, 1), (3, 1)]
    assert world.listed() == []


def test_another_session_finishes_once_the_preparing_one_is_closed(world: Any) -> None:
    prepared = world.prepared("INSERT INTO t VALUES (1, 1)")
    other = world.session()
    world.finish("commit", prepared, other)
    assert world.values() == [(1, 1)]
    assert is_clean(world, other)


def test_a_fenced_branch_cannot_prepare(world: Any) -> None:
    session = world.session()
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)")
    world.drive(world.resource.fence(world.session(), work.xid))
    with pytest.raises(Conflict):
        world.drive(world.resource.prepare(session, work))
    assert world.listed() == []
    assert is_clean(world, session)


def test_a_lost_reply_to_prepare_is_unclear(world: Any, cut: Callable[[str], Any]) -> None:
    proxy = cut(world.url)
    session = world.session(proxy.url)
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)")
    proxy.deaf = True
    call = world.start(world.resource.prepare(session, work))
    world.until(world.listed, "the branch to be prepared")
    proxy.sever()
    with pytest.raises(Unclear):
        call.result(PATIENCE_S)
    assert not session.usable
    world.until_gone(session)
    world.finish("rollback", Prepared(work.xid, handle=work.handle))


def test_prepare_is_one_message(world: Any) -> None:
    """The receipt, the proofs and the promise: one round trip, which the first error ends."""
    session = world.session()
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)")
    sent = world.spy(session)
    world.drive(world.resource.prepare(session, work))
    (message,) = sent
    assert message.split("; ")[-2:] == [f"XA END {work.handle.sql}", f"XA PREPARE {work.handle.sql}"]
    world.finish("rollback", Prepared(work.xid, handle=work.handle), session)


def test_rows_cannot_ride_in_a_prepared_branch(world: Any) -> None:
    session = world.session()
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)")
    with pytest.raises(InvariantViolated):
        world.drive(world.resource.prepare(session, work, riders=("DO 1",)))
    prepared = Prepared(work.xid, handle=work.handle)
    for more in ({"before": ("DO 1",)}, {"riders": ("DO 1",)}):
        with pytest.raises(InvariantViolated):
            world.drive(world.resource.commit_prepared(session, prepared, **more))


# -- rollback


def test_rollback_undoes_and_leaves_a_clean_session(world: Any) -> None:
    session = world.session()
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)")
    world.drive(world.resource.rollback(session, work))
    assert world.values() == []
    assert is_clean(world, session)
    world.drive(world.resource.rollback(session, work))  # twice does no harm
    assert is_clean(world, session)


def test_rollback_on_a_dead_session_is_quiet(world: Any) -> None:
    session = world.session()
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)")
    world.look(f"KILL {session.connection_id}")
    world.until_gone(session)
    world.drive(world.resource.rollback(session, work))
    assert not session.usable
    assert world.values() == []


def test_a_session_that_will_not_roll_back_is_ended(world: Any) -> None:
    session = world.session()
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)")
    world.run(session, f"XA END {work.handle.sql}; XA ROLLBACK {work.handle.sql}; START TRANSACTION")
    world.run(session, "INSERT INTO t VALUES (2, 2)")
    world.drive(world.resource.rollback(session, work))
    assert not session.usable
    world.until_gone(session)
    assert world.values() == []


@pytest.mark.parametrize("statement", ["SET @a = 1", "CREATE TEMPORARY TABLE s (x INT)", "PREPARE p FROM 'SELECT 1'"])
def test_a_session_that_was_changed_serves_nobody_else(world: Any, statement: str) -> None:
    """Catches: variables and temporary tables of one user's transaction seen by another's."""
    for end in ("commit_alone", "rollback", "commit_prepared"):
        session = world.session()
        work = world.begun(session, statement, "INSERT IGNORE INTO t VALUES (1, 1)")
        if end == "commit_prepared":
            world.drive(world.resource.prepare(session, work))
            world.finish("commit", Prepared(work.xid, handle=work.handle), session)
        else:
            world.drive(getattr(world.resource, end)(session, work))
        assert not session.usable


# -- tables that can't be rolled back


@pytest.fixture
def plain(world: Any) -> Any:
    """Tables that are not transactional, and a trigger that writes to one of them."""
    world.look(
        "CREATE TABLE my (x INT) ENGINE=MyISAM; CREATE TABLE ar (x INT) ENGINE=Aria; "
        "CREATE TABLE me (x INT) ENGINE=MEMORY; CREATE TABLE seen (x INT PRIMARY KEY); "
        "CREATE TRIGGER watch AFTER INSERT ON seen FOR EACH ROW INSERT INTO my VALUES (NEW.x)"
    )
    return world


WRITERS = (
    "INSERT INTO my VALUES (1)",
    "INSERT INTO ar VALUES (1)",
    "INSERT INTO me VALUES (1)",
    "INSERT INTO seen VALUES (1)",
)


@pytest.mark.parametrize("end", ["prepare", "commit_alone"])
@pytest.mark.parametrize("statement", WRITERS)
def test_a_write_that_cannot_be_rolled_back_is_found_before_anything_is_promised(
    plain: Any, statement: str, end: str
) -> None:
    """Triggers included. What is in the plain table stays, and the error says so.

    Nothing was checked before, so that only the probe in the last message can find it.
    """
    session = plain.session()
    work = plain.begun(session, "INSERT INTO t VALUES (1, 1)", statement)
    with pytest.raises(Refused, match="stay as they were written"):
        plain.drive(getattr(plain.resource, end)(session, work))
    assert plain.values() == []
    assert plain.listed() == []
    assert is_clean(plain, session)


@pytest.mark.parametrize("statement", [*WRITERS[:3], "update `my` set x = 2", "DELETE FROM {database}.ar"])
def test_a_plain_statement_that_writes_to_a_known_plain_table_is_not_even_run(plain: Any, statement: str) -> None:
    plain.drive(plain.resource.check(plain.session()))
    session = plain.session()
    work = plain.begun(session)
    with pytest.raises(UsageError, match="ENGINE=InnoDB"):
        plain.execute(session, work, statement.format(database=plain.database))
    assert work.doomed is not None
    assert plain.look("SELECT COUNT(*) FROM my") == [(0,)]


@pytest.mark.parametrize("statement", ["SELECT * FROM my", "SELECT * FROM me JOIN t"])
def test_reading_a_plain_table_is_allowed(plain: Any, statement: str) -> None:
    plain.drive(plain.resource.check(plain.session()))
    session = plain.session()
    work = plain.begun(session, statement, "INSERT INTO t VALUES (1, 1)")
    plain.drive(plain.resource.commit_alone(session, work))
    assert plain.values() == [(1, 1)]


def test_an_aria_table_cannot_even_be_read_in_a_writing_branch(plain: Any) -> None:
    """The server takes no savepoint then, so that reading and writing it look alike; the error says what to do."""
    session = plain.session()
    work = plain.begun(session, "SELECT * FROM ar", "INSERT INTO t VALUES (1, 1)")
    with pytest.raises(Refused, match="read or wrote an Aria table.*ENGINE=InnoDB"):
        plain.drive(plain.resource.commit_alone(session, work))
    assert is_clean(plain, session)
    reader = plain.begun(session, "SELECT * FROM ar")
    assert plain.drive(plain.resource.wrote(session, reader)) is False
    plain.drive(plain.resource.end_reader(session, reader))


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT v, COUNT(*), GROUP_CONCAT(REPEAT('x', 1000)) FROM t GROUP BY v ORDER BY 2",
        "SELECT COUNT(*) FROM information_schema.COLUMNS",
        "SELECT SQL_BUFFER_RESULT * FROM t",
        "SHOW TABLE STATUS",
        "INSERT INTO t SELECT id + 10, v FROM (SELECT DISTINCT * FROM t) AS u",
    ],
)
def test_the_servers_own_temporary_tables_are_no_reason_to_refuse(world: Any, statement: str) -> None:
    """They are Aria's, too, once they grow beyond memory."""
    session = world.session()
    world.run(session, "SET SESSION tmp_memory_table_size = 0")
    work = world.begun(session, "INSERT INTO t VALUES (1, 1), (2, 1)", statement)
    world.drive(world.resource.commit_alone(session, work))


@pytest.mark.parametrize("end", ["commit_alone", "prepare"])
def test_a_warning_of_the_users_last_statement_is_no_refusal(world: Any, end: str) -> None:
    """Catches: the probe reading the warnings of the statement before it."""
    world.look("CREATE TABLE short (x VARCHAR(2))")
    session = world.session()
    world.run(session, "SET SESSION sql_mode = ''")
    work = world.begun(session, "INSERT INTO short VALUES ('long')")
    handle = work.handle
    world.drive(getattr(world.resource, end)(session, work))
    if end == "prepare":
        world.finish("commit", Prepared(work.xid, handle=handle), session)
    assert world.look("SELECT x FROM short") == [("lo",)]


@pytest.mark.parametrize("statement", ["CREATE TEMPORARY TABLE s SELECT 1 AS x", "CALL temporary()"])
def test_temporary_tables_are_allowed(world: Any, statement: str) -> None:
    world.look("CREATE PROCEDURE temporary() BEGIN CREATE TEMPORARY TABLE s (x INT); DROP TEMPORARY TABLE s; END")
    session = world.session()
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)", statement)
    world.drive(world.resource.prepare(session, work))
    world.finish("commit", Prepared(work.xid, handle=work.handle), session)
    assert world.values() == [(1, 1)]


# -- the table of errors


def test_every_row_of_the_table_has_been_provoked() -> None:
    """These codes came from a real server, here or in the neighbouring files."""
    provoked = {
        "1397", "1440", "1062", "1205", "1213", "1317", "1048", "1399", "1400", "1398", "1402", "1178",
        "1242", "1290", "1142", "1146", "1969", "1114", "1305",
    }  # fmt: skip
    not_provoked = {
        "1613",  # XA_RBTIMEOUT: defined, never sent by InnoDB
        "1614",  # XA_RBDEADLOCK: MariaDB 10.11 answers 1399 in its place
        "1020",  # innodb_snapshot_isolation, from MariaDB 10.6.18 on; off by default until 11.6
        "1021", "1206", "1836",  # a full disk, a full lock table, a server started on a read-only disk
    }  # fmt: skip
    assert provoked | not_provoked == set(FAILURES)
    assert not provoked & not_provoked


@pytest.mark.parametrize(
    ("code", "statement", "setting"),
    [
        ("1114", "INSERT INTO tiny SELECT REPEAT('x', 8000) FROM seq_1_to_100", "max_heap_table_size = 16384"),
        ("1969", "SELECT SLEEP(60) FROM t", "max_statement_time = 0.01"),
        ("1146", "SELECT * FROM nowhere", "sql_mode = ''"),
        ("1399", "COMMIT", "sql_mode = ''"),
        ("1398", "XA START ''", "sql_mode = ''"),
        ("1305", "ROLLBACK TO SAVEPOINT nowhere", "sql_mode = ''"),
    ],
)
def test_what_a_server_answers_is_classified(world: Any, code: str, statement: str, setting: str) -> None:
    session = world.session()
    world.look("INSERT INTO t VALUES (1, 1)")
    world.run(session, f"SET SESSION {setting}; CREATE TEMPORARY TABLE tiny (x VARCHAR(8000)) ENGINE=MEMORY")
    if code in ("1399", "1305"):
        world.begun(session)
    with pytest.raises(StatementFailed) as caught:
        world.run(session, statement)
    assert caught.value.code == code
    assert code in FAILURES


def test_a_second_branch_of_the_same_xid_is_a_conflict(world: Any) -> None:
    session = world.session()
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)")
    other = world.session()
    other.connection_id = session.connection_id  # part of the xid, so that only a test can make two alike
    twin = world.work()
    twin.xid = work.xid
    with pytest.raises(Conflict, match="1440"):
        world.drive(world.resource.begin(other, twin))
    assert not other.usable


def test_an_account_without_rights_on_our_tables_is_refused(world: Any, mariadb: Any) -> None:
    world.look(
        f"CREATE OR REPLACE USER poor@'%' IDENTIFIED BY 'poor'; "
        f"GRANT SELECT, INSERT ON {world.database}.t TO poor@'%'; "
        f"GRANT SELECT ON {world.database}.nodoubt_identity TO poor@'%'"
    )
    session = world.session(world.url.replace("nodoubt:nodoubt@", "poor:poor@"))
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)")
    with pytest.raises(Refused, match="1142"):
        world.drive(world.resource.prepare(session, work))
    assert is_clean(world, session)


def test_an_error_that_is_in_no_table_is_refused_only_if_the_branch_was_rolled_back(world: Any) -> None:
    """A commit that failed with an unknown error and can't be rolled back any more may have happened: unclear."""
    session = world.session()
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)")
    run = session.run

    def fails(sql: str) -> Any:
        if "ONE PHASE" in sql:
            answer = run(sql)
            if world.style == "async":

                async def late() -> Any:
                    await answer
                    raise StatementFailed("1180", "Got error 28 during COMMIT")

                return late()
            raise StatementFailed("1180", "Got error 28 during COMMIT")
        return run(sql)

    session.run = fails
    with pytest.raises(Unclear):
        world.drive(world.resource.commit_alone(session, work))
    assert not session.usable
    assert world.values() == [(1, 1)]


def test_a_statement_on_a_lost_session_dooms(world: Any) -> None:
    session = world.session()
    work = world.begun(session)
    world.look(f"KILL {session.connection_id}")
    world.until_gone(session)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the driver's own, whichever it is
        world.execute(session, work, "INSERT INTO t VALUES (1, 1)")
    assert work.doomed is caught.value
    assert session.lost(caught.value) or isinstance(caught.value, SessionLost)


def test_the_lock_wait_of_a_branch_is_the_users_own(world: Any) -> None:
    """Our own short wait for receipts is taken back each time."""
    session = world.session()
    before = world.run(session, "SELECT @@innodb_lock_wait_timeout")[0].scalar()
    world.drive(world.resource.fence(session, world.work().xid))
    world.drive(world.resource.receipt(session, world.work().xid))
    assert world.run(session, "SELECT @@innodb_lock_wait_timeout")[0].scalar() == before != module.LOCK_WAIT_S


def test_detach_closes_the_session(world: Any) -> None:
    session = world.session()
    world.prepared("INSERT INTO t VALUES (1, 1)", session=session)
    world.drive(world.resource.detach(session))
    world.until_gone(session)
    with pytest.raises(SessionLost):
        world.drive(do(session, "run", "SELECT 1"))


# -- each check taken out


def _writes_to_a_plain_table(world: Any) -> None:
    world.look("CREATE TABLE my (x INT) ENGINE=MyISAM")
    session = world.session()
    work = world.begun(session, "INSERT INTO my VALUES (1)")
    with pytest.raises(Refused):
        world.drive(world.resource.prepare(session, work))


_rows_go_first = test_rows_before_the_branch_are_committed_in_its_message_whatever_becomes_of_the_branch


def _a_row_is_refused(world: Any) -> None:
    test_a_row_before_the_branch_that_is_refused_leaves_none_of_them_and_no_branch(world, "", "'abort'", Conflict)


MUTANTS: dict[str, tuple[str, str, Callable[[Any], None]]] = {
    "plain transaction": (
        'f"XA START {handle.sql}"',
        '"START TRANSACTION"',
        test_a_branch_is_an_xa_branch_from_the_start,
    ),
    "no doom": (
        "if work.doomed is not None:\n            raise Refused(",
        "if False:\n            raise Refused(",
        test_a_swallowed_statement_error_dooms,
    ),
    "doom not noted": (
        "            work.doomed = error\n",
        "",
        test_a_swallowed_statement_error_dooms,
    ),
    "no refusal of savepoints": (
        "            text.refuse_control(statement)\n",
        "",
        lambda world: test_transaction_control_is_refused_and_dooms(world, "SAVEPOINT a"),
    ),
    "reading by its looks": (
        "return writes is None or writes != notes.writes",
        "return False",
        lambda world: test_a_branch_that_may_have_written_is_not(world, "SELECT writes()"),
    ),
    "no rollback after a conflict": (
        "if not (yield from self._undo(session, work)):",
        "if False:",
        test_a_rider_that_conflicts_undoes_the_branch,
    ),
    "a refusal without proof": (
        "if not (yield from self._undo(session, work)):",
        "if (yield from self._undo(session, work)) is None:",
        test_an_error_that_is_in_no_table_is_refused_only_if_the_branch_was_rolled_back,
    ),
    "no proof of the branch": (
        'f"XA END {_handle(work).sql}", promise)',
        '"DO 1", "COMMIT")',
        lambda world: test_a_session_that_left_the_branch_cannot_promise_for_it(world, "commit_alone"),
    ),
    "usable while prepared": (
        "        session.usable = False\n",
        "",
        test_a_session_is_never_usable_while_it_holds_a_prepared_branch,
    ),
    "changed sessions handed on": (
        "session.usable = notes is None or not notes.stained",
        "session.usable = True",
        lambda world: test_a_session_that_was_changed_serves_nobody_else(world, "SET @a = 1"),
    ),
    "no probe": (
        "probe = self._probe if notes.probe else ()",
        "probe = ()",
        _writes_to_a_plain_table,
    ),
    "warnings of before": (
        '    "SELECT 1 FROM {identity} LIMIT 0",\n',
        "",
        lambda world: test_a_warning_of_the_users_last_statement_is_no_refusal(world, "prepare"),
    ),
    "an unknown session goes on": (
        "                session.kill()  # whatever it is in, it is not clean\n",
        "",
        test_a_session_that_is_not_clean_cannot_begin_and_goes_to_no_pool,
    ),
    "rows that wait for the first statement": (
        "if work.lazy and not before and",
        "if work.lazy and",
        _rows_go_first,
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_check_taken_out_is_noticed(mutant: Callable[[str, str], Any], name: str) -> None:
    old, new, claim = MUTANTS[name]
    with pytest.raises((AssertionError, pytest.fail.Exception, Refused, Unclear)):
        claim(mutant(old, new))


BEGINNINGS: dict[str, tuple[str, Any, Callable[[Any], None]]] = {
    "rows that are not committed first": ("COMMIT_ROWS", "DO 1", _rows_go_first),
    "rows that are part of the branch": (
        "message",
        lambda handle, before: [f"XA START {handle.sql}", *before],
        _rows_go_first,
    ),
    "rows that are committed one by one": ("BEGIN_ROWS", beginning.BEGIN_ROWS[:1], _a_row_is_refused),
    "a refusal where the rows may stand": (
        "failure",
        lambda error, name, _: refusal(error, name),
        test_an_error_that_may_have_come_after_their_commit_is_unclear,
    ),
    "a stranger's work committed with the rows": (
        "BEGIN_ROWS",
        beginning.BEGIN_ROWS[1:],
        test_no_rows_are_committed_in_a_session_that_is_not_clean,
    ),
    "rows that lock gaps": (
        "BEGIN_ROWS",
        (beginning.BEGIN_ROWS[0].replace("READ COMMITTED", "REPEATABLE READ"), beginning.BEGIN_ROWS[1]),
        test_rows_before_the_branch_are_written_as_the_journal_writes_them,
    ),
    "the rows' isolation for the branch": (
        "BEGIN_ROWS",
        (beginning.BEGIN_ROWS[0].replace("SET", "SET SESSION"), beginning.BEGIN_ROWS[1]),
        test_the_branch_behind_them_has_the_isolation_of_its_session,
    ),
    "a COMMIT that chains": (
        "COMMIT_ROWS",
        "COMMIT",
        lambda world: test_rows_before_the_branch_are_committed_whatever_the_session_is_set_to(
            world, "completion_type = 'CHAIN'"
        ),
    ),
}


@pytest.mark.parametrize("name", BEGINNINGS)
def test_a_check_of_how_rows_go_first_taken_out_is_noticed(
    world: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attribute, mutant, claim = BEGINNINGS[name]
    monkeypatch.setattr(beginning, attribute, mutant)
    with pytest.raises((AssertionError, pytest.fail.Exception, Refused, Unclear)):
        claim(world)
