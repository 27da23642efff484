"""One branch at work: begin, statements, whether it wrote, the end of a reader, the one-phase commit."""

from __future__ import annotations

from typing import Any

import pytest

from nodoubt.errors import BranchDoomed, InvariantViolated, UsageError
from nodoubt.ports import BelowFloor, Conflict, Prepared, Refused, Unclear
from nodoubt.protocol.records import Verdict
from nodoubt.resources.postgres import PostgresResource
from nodoubt.script import do
from nodoubt.testing.proxy import TcpProxy

WRITE = "INSERT INTO t VALUES (1, 1)"


def _row(verdict: str) -> str:
    return (
        "INSERT INTO nodoubt.receipts (attempt, branch, verdict, epoch, alone) "
        f"VALUES ('{'d' * 32}', 0, {verdict}, 0, true)"
    )


# ---- begin ------------------------------------------------------------------------------------------


def test_begin_is_one_round_trip_and_leaves_the_isolation_to_the_user(world: Any, proxy: TcpProxy) -> None:
    session = world.session(proxy.url_for(world.url))
    before = proxy.round_trips
    work = world.begun(session)
    assert proxy.round_trips == before + 1
    world.drive(world.resource.execute(session, work, "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", None))
    assert world.run(session, "SHOW transaction_isolation")[0].scalar() == "serializable"


def test_a_session_that_was_left_in_a_transaction_is_not_begun_on(world: Any) -> None:
    """BEGIN only warns there. Fails without the look at the warnings: the stranger's row commits with ours (I18)."""
    session = world.session()
    world.run(session, "BEGIN; INSERT INTO t VALUES (99, 99)")
    assert isinstance(world.error(world.resource.begin(session, world.work())), Unclear)
    assert not session.usable
    world.until(
        lambda: not world.look(f"SELECT 1 FROM pg_stat_activity WHERE pid = {session.connection_id}"), "its end"
    )
    assert world.look("SELECT * FROM t") == []


def test_rows_before_the_branch_are_committed_whatever_becomes_of_the_branch(world: Any, proxy: TcpProxy) -> None:
    session, work = world.session(proxy.url_for(world.url)), world.work()
    world.drive(world.resource.begin(session, work, before=("SELECT 1",)))  # what it keeps it now has
    world.drive(world.resource.rollback(session, work))
    before = proxy.round_trips
    world.drive(world.resource.begin(session, work, before=("INSERT INTO t VALUES (5, 5)", "UPDATE t SET v = 6")))
    assert proxy.round_trips == before + 1
    assert world.look("SELECT * FROM t") == [(5, 6)]
    world.drive(world.resource.execute(session, work, WRITE, None))
    world.drive(world.resource.rollback(session, work))
    assert world.look("SELECT * FROM t") == [(5, 6)]


def test_rows_before_the_branch_that_conflict_leave_nothing_open(world: Any) -> None:
    session, work = world.session(), world.work()
    row = _row("'abort'")
    world.look(row)
    error = world.error(world.resource.begin(session, work, before=(WRITE, row)))
    assert isinstance(error, Conflict)
    assert session.usable
    assert world.run(session, "SELECT current_setting('nodoubt.attempt', true)")[0].scalar() in (None, "")
    assert world.look("SELECT * FROM t") == []


def test_rows_before_the_branch_of_an_attempt_below_the_floor_are_told_apart(world: Any) -> None:
    row = (
        f"INSERT INTO nodoubt.receipts (attempt, branch, verdict, epoch, alone) VALUES ('{'a' * 32}', 0, NULL, 0, true)"
    )
    assert isinstance(world.error(world.resource.begin(world.session(), world.work(), before=(row,))), BelowFloor)


def test_another_failure_of_rows_before_the_branch_is_unclear(world: Any) -> None:
    """The error may have come after their commit: the message does not say where it stopped."""
    error = world.error(world.resource.begin(world.session(), world.work(), before=("SELECT 1/0",)))
    assert isinstance(error, Unclear)


def test_a_row_of_the_protocol_that_writes_nothing_is_a_bug_that_shouts(world: Any) -> None:
    """Fails without `require_rows`: a decision would count as written because nothing failed (I4)."""
    nothing = "INSERT INTO t SELECT 1, 1 WHERE false"
    with pytest.raises(InvariantViolated, match="I4"):
        world.drive(world.resource.begin(world.session(), world.work(), before=(nothing,)))
    session = world.session()
    with pytest.raises(InvariantViolated, match="I4"):
        world.drive(world.resource.commit_alone(session, world.begun(session), riders=(nothing,)))


def test_rows_before_the_branch_are_not_forced_in_our_own_session_but_are_behind_a_pooler(world: Any) -> None:
    """Behind a pooler the next command may be flushed by another server process, which survives what these rows don't.

    Fails without the comparison of process ids.
    """
    session = world.session()
    level = "INSERT INTO t VALUES (1, CASE current_setting('synchronous_commit') WHEN 'off' THEN 0 ELSE 1 END)"
    world.drive(world.resource.begin(session, world.work(), before=(level,)))
    assert world.look("SELECT v FROM t") == [(0,)]
    world.look("TRUNCATE t")
    behind = world.session()
    behind.connection_id = 1  # what a pooler tells at connect is of its own making
    world.drive(world.resource.begin(behind, world.work(), before=(level,)))
    assert world.look("SELECT v FROM t") == [(1,)]


@pytest.mark.parametrize("before", [(), (WRITE,)])
def test_a_begin_without_an_answer_is_unclear(world: Any, proxy: TcpProxy, before: tuple[str, ...]) -> None:
    session = world.session(proxy.url_for(world.url))
    fault = proxy.cut_reply(after=b"BEGIN")
    error = world.error(world.resource.begin(session, world.work(), before=before))
    fault.wait_hit()
    assert isinstance(error, Unclear)
    assert world.look("SELECT count(*) FROM t") == [(len(before),)]


# ---- statements -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["COMMIT", "ROLLBACK", "SAVEPOINT a", "BEGIN", "SELECT 1; COMMIT; BEGIN", "PREPARE TRANSACTION 'x'"]
)
def test_transaction_control_is_refused_and_dooms_the_branch(world: Any, text: str) -> None:
    """Doomed, because a user who swallows the refusal of a ROLLBACK must not see the work committed."""
    session = world.session()
    work = world.begun(session, None, WRITE)
    with pytest.raises(UsageError, match="not for a branch"):
        world.drive(world.resource.execute(session, work, text, None))
    assert isinstance(work.doomed, UsageError)
    error = world.error(world.resource.commit_alone(session, work))
    assert isinstance(error, Refused)
    assert session.usable
    assert world.look("SELECT * FROM t") == []


def test_any_error_dooms_the_branch(world: Any) -> None:
    """I16. Fails without the check at the end: the user may have gone round the failed transaction with a new one."""
    session = world.session()
    work = world.begun(session, None, WRITE)
    with pytest.raises(Exception, match="division by zero") as caught:
        world.drive(world.resource.execute(session, work, "SELECT 1/0", None))
    assert type(caught.value).__module__.startswith(("psycopg", "asyncpg"))
    assert work.doomed is caught.value
    with pytest.raises(BranchDoomed):
        world.drive(world.resource.execute(session, work, "SELECT 1", None))
    world.run(
        session, f"ROLLBACK; BEGIN; SET LOCAL nodoubt.attempt = '{work.xid.attempt}.0'; INSERT INTO t VALUES (2, 2)"
    )
    for end in (world.resource.prepare, world.resource.commit_alone, world.resource.end_reader):
        error = world.error(end(session, work))
        assert isinstance(error, Refused)
        assert "earlier statement failed" in str(error)
    assert world.look("SELECT * FROM t") == []
    assert world.gids() == []


def test_a_cancelled_statement_dooms_the_branch_and_its_session(world: Any) -> None:
    if world.style == "sync":
        session = world.session()
        work = world.begun(session, None, WRITE)
        call = world.start(world.resource.execute(session, work, "SELECT pg_sleep(60)", None))
        world.until_waiting(session, "PgSleep")
        session.kill()  # what the clock of the blocking shell does
        assert call.exception(20) is not None
    else:
        session = world.session()
        work = world.begun(session, None, WRITE)
        call = world.start(world.resource.execute(session, work, "SELECT pg_sleep(60)", None))
        world.until_waiting(session, "PgSleep")
        call.cancel()
    world.until(lambda: work.doomed is not None, "the branch to be doomed")
    assert not session.usable
    world.drive(world.resource.rollback(session, work))
    world.until(
        lambda: not world.look(f"SELECT 1 FROM pg_stat_activity WHERE pid = {session.connection_id}"), "its end"
    )
    assert world.look("SELECT * FROM t") == []


@pytest.mark.parametrize(
    "statement",
    [
        WRITE,
        "UPDATE t SET v = 2 WHERE id = 9",
        "DELETE FROM t WHERE id = 9",
        "MERGE INTO t USING (VALUES (1)) x (id) ON t.id = x.id WHEN NOT MATCHED THEN INSERT VALUES (1, 1)",
        "CREATE TABLE u (a int)",
        "CREATE TABLE u AS SELECT 1",
        "NOTIFY somebody",
        "SELECT pg_notify('somebody', 'x')",
        "LISTEN somebody",
        "DO $$ BEGIN END $$",
        "SELECT pg_advisory_xact_lock(1)",
    ],
)
def test_what_surely_or_possibly_wrote_is_known_without_asking(world: Any, statement: str) -> None:
    session = world.session()
    world.look("INSERT INTO t VALUES (9, 9)")
    assert world.begun(session, None, statement).wrote


@pytest.mark.parametrize(
    ("statement", "wrote"),
    [
        ("SELECT * FROM t", False),
        ("WITH a AS (SELECT 1) SELECT * FROM a", False),
        ("UPDATE t SET v = 2 WHERE id = -1", False),
        ("INSERT INTO t SELECT 1, 1 WHERE false", False),
        ("SHOW search_path", False),
        ("SET LOCAL work_mem = '1MB'", False),
        ("SELECT count(*) FROM t WHERE false", False),
        ("WITH a AS (INSERT INTO t VALUES (1, 1) RETURNING id) SELECT * FROM a", True),
        ("SELECT * FROM t FOR UPDATE", True),
        ("SELECT txid_current()", True),
        ("SELECT 1 AS a INTO u", True),
        ("EXPLAIN ANALYZE INSERT INTO t VALUES (1, 1)", True),
    ],
)
def test_the_server_is_asked_where_the_tag_does_not_tell(world: Any, statement: str, wrote: bool) -> None:
    world.look("INSERT INTO t VALUES (9, 9)")
    session = world.session()
    work = world.begun(session, None, statement)
    assert not work.wrote
    assert world.drive(world.resource.wrote(session, work)) is wrote


def test_a_branch_without_statements_surely_wrote_nothing(world: Any) -> None:
    session = world.session()
    assert world.drive(world.resource.wrote(session, world.begun(session))) is False


@pytest.mark.parametrize(
    ("function", "hidden"),
    [
        ("CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN NOTIFY a; END $$", True),
        ("CREATE FUNCTION f() RETURNS void LANGUAGE sql AS $$ SELECT pg_notify('a', 'b') $$", True),
        ("CREATE FUNCTION f() RETURNS void LANGUAGE sql BEGIN ATOMIC SELECT pg_notify('a', 'b'); END", True),
        ("CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'NOT' || 'IFY a'; END $$", True),
        ("CREATE FUNCTION f(text, text) RETURNS void LANGUAGE internal AS 'pg_notify'", True),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $$ SELECT 1 $$", False),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; END", False),
        ("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NOTIFY a; RETURN NEW; END $$", False),
        ("CREATE FOREIGN DATA WRAPPER elsewhere", True),
    ],
)
def test_a_database_that_could_write_unseen_has_no_sure_readers(fresh: Any, function: str, hidden: bool) -> None:
    """A view, an operator or a policy can call what the text does not name; PostgreSQL tells of no pending NOTIFY."""
    fresh.look(function)
    session = fresh.session()
    work = fresh.begun(session, None, "SELECT * FROM t")
    assert fresh.drive(fresh.resource.wrote(session, work)) is hidden


def test_a_notify_has_no_transaction_id(world: Any) -> None:
    """Why hints count."""
    session = world.session()
    work = world.begun(session, None, "SELECT pg_notify('somebody', 'x')")
    assert world.run(session, "SELECT txid_current_if_assigned()")[0].scalar() is None
    assert world.drive(world.resource.wrote(session, work)) is True


def test_a_session_lost_before_the_end_of_the_work_is_a_refusal(world: Any) -> None:
    session = world.session()
    work = world.begun(session, None, "SELECT 1")
    session.kill()
    error = world.error(world.resource.wrote(session, work))
    assert isinstance(error, Refused)
    assert error.retry


@pytest.mark.parametrize(
    ("statement", "kept"),
    [("SET work_mem = '1MB'", False), ("SELECT pg_advisory_lock(7)", False), ("SET LOCAL work_mem = '1MB'", True)],
)
@pytest.mark.parametrize("end", ["commit_alone", "end_reader", "rollback"])
def test_a_session_with_something_left_in_it_is_not_handed_on(world: Any, statement: str, kept: bool, end: str) -> None:
    """There is no reset between two transactions: the next user would run with this one's settings and locks."""
    session = world.session()
    work = world.begun(session, None, statement)
    world.drive(getattr(world.resource, end)(session, work))
    assert session.usable is kept


# ---- the end of a reader ----------------------------------------------------------------------------


def test_a_reader_ends_with_a_plain_commit_and_no_receipt(world: Any) -> None:
    session = world.session()
    work = world.begun(session, None, "SELECT 1")
    world.drive(world.resource.end_reader(session, work))
    assert world.receipts() == []
    assert session.usable
    assert world.run(session, "SELECT current_setting('nodoubt.attempt', true)")[0].scalar() == ""


def test_a_reader_whose_reads_cannot_stand_is_refused(world: Any) -> None:
    """A serializable transaction can fail at its COMMIT although it wrote nothing."""
    world.look("INSERT INTO t VALUES (1, 0), (2, 0)")
    reader, one, two = world.session(), world.session(), world.session()
    serializable = "BEGIN ISOLATION LEVEL SERIALIZABLE"
    world.run(two, f"{serializable}; SELECT sum(v) FROM t; INSERT INTO t VALUES (3, 1)")
    world.run(one, f"{serializable}; SELECT * FROM t WHERE id = 3; UPDATE t SET v = 10 WHERE id = 1; COMMIT")
    work = world.begun(reader, None, "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
    call = world.start(world.resource.execute(reader, work, "SELECT * FROM t", None))
    error = call.exception(20) or world.start(world.resource.end_reader(reader, work)).exception(20)
    assert error is None or isinstance(error, Refused) or "serialize" in str(error)


def test_a_reader_that_was_committed_behind_our_back_is_refused(world: Any) -> None:
    """Its work would have been committed before any decision. Fails without the proof in `end_reader`."""
    session = world.session()
    work = world.begun(session)
    world.run(session, "INSERT INTO t VALUES (1, 1); COMMIT; BEGIN")
    assert world.drive(world.resource.wrote(session, work)) is False
    error = world.error(world.resource.end_reader(session, work))
    assert isinstance(error, Refused)
    assert "not open any more" in str(error)


# ---- rollback ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["open", "failed", "ended", "lost"])
def test_after_a_rollback_the_session_is_clean_or_unusable(world: Any, state: str) -> None:
    session = world.session()
    work = world.begun(session, None, WRITE)
    if state == "failed":
        world.start(do(session, "execute", "SELECT 1/0", None)).exception(20)
    elif state == "ended":
        world.run(session, "ROLLBACK")
    elif state == "lost":
        session.kill()
    world.drive(world.resource.rollback(session, work))
    assert session.usable is (state != "lost")
    if session.usable:
        world.begun(session, None, "SELECT 1")
        assert session.warnings == []
    assert world.look("SELECT * FROM t") == []


# ---- one phase --------------------------------------------------------------------------------------


def test_a_one_phase_commit_leaves_the_receipt_in_one_round_trip(world: Any, proxy: TcpProxy) -> None:
    session = world.seasoned(proxy.url_for(world.url))
    work = world.begun(session, world.work(branch=3, epoch=9), WRITE)
    before = proxy.round_trips
    world.drive(world.resource.commit_alone(session, work))
    assert proxy.round_trips == before + 1
    assert world.receipts() == [(work.xid.attempt, 3, "commit", 9, True, 0)]
    assert world.look("SELECT * FROM t") == [(1, 1)]
    assert session.usable


def test_riders_take_the_receipts_place(world: Any) -> None:
    session = world.session()
    work = world.begun(session, None, WRITE)
    world.drive(world.resource.commit_alone(session, work, riders=("INSERT INTO t VALUES (7, 7)",)))
    assert world.receipts() == []
    assert world.look("SELECT id FROM t ORDER BY 1") == [(1,), (7,)]


def test_a_rider_that_conflicts_means_that_nothing_happened(world: Any) -> None:
    world.look(_row("'abort'"))
    session = world.session()
    work = world.begun(session, None, WRITE)
    error = world.error(world.resource.commit_alone(session, work, riders=(_row("'commit'"),)))
    assert isinstance(error, Conflict)
    assert world.look("SELECT * FROM t") == []
    assert session.usable


def test_a_rider_below_the_floor_means_that_nothing_happened(world: Any) -> None:
    session = world.session()
    work = world.begun(session, None, WRITE)
    error = world.error(world.resource.commit_alone(session, work, riders=(_row("NULL"),)))
    assert isinstance(error, BelowFloor)
    assert world.look("SELECT * FROM t") == []


def test_on_conflict_do_nothing_would_commit_against_a_standing_abort(world: Any) -> None:
    """The fact behind the plain INSERT. The first half is the mutant, the second half is ours."""
    world.look(_row("'abort'"))
    raw = world.session()
    replies = world.run(raw, f"BEGIN; {WRITE}; {_row(chr(39) + 'commit' + chr(39))} ON CONFLICT DO NOTHING; COMMIT")
    assert replies[-1].tag == "COMMIT"
    assert world.look("SELECT id FROM t") == [(1,)]
    session = world.session()
    work = world.begun(session, None, "INSERT INTO t VALUES (2, 2)")
    assert isinstance(world.error(world.resource.commit_alone(session, work, riders=(_row("'commit'"),))), Conflict)
    assert world.look("SELECT id FROM t") == [(1,)]


def test_a_duplicate_key_of_the_users_own_is_not_taken_for_a_decision(fresh: Any) -> None:
    """A deferred constraint fails at COMMIT with the code of a conflict. Fails without the schema in the error."""
    fresh.look("CREATE TABLE d (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    session = fresh.session()
    work = fresh.begun(session, None, "INSERT INTO d VALUES (1), (1)")
    error = fresh.error(fresh.resource.commit_alone(session, work))
    assert type(error) is Refused
    assert session.usable
    assert fresh.receipts() == []


def test_commit_of_a_failed_transaction_answers_rollback_without_an_error(world: Any) -> None:
    session = world.session()
    world.run(session, "BEGIN")
    world.start(do(session, "run", "SELECT 1/0")).exception(20)
    assert [reply.tag for reply in world.run(session, "COMMIT")] == ["ROLLBACK"]


class _NoProof(PostgresResource):
    """Mutant: the message that ends a branch holds nothing but the command. What is left is the look at the tag."""

    def _proof(self, work: Any) -> str:
        return ""

    def _receipt_row(self, work: Any, *, alone: bool) -> str:
        return ""


class _NoProofAnyTag(_NoProof):
    """Mutant: and not even that."""

    def _accepts(self, tag: str, wanted: str) -> bool:
        return True


@pytest.mark.parametrize("end", ["commit_alone", "prepare", "end_reader"])
def test_without_a_look_at_the_tag_a_failed_transaction_passes_for_done(world: Any, end: str) -> None:
    for mutant, passes in ((_NoProof("pg"), False), (_NoProofAnyTag("pg"), True)):
        session = world.session()
        work = world.begun(session, None, WRITE)
        world.start(do(session, "run", "SELECT 1/0")).exception(20)  # past `execute`, so that nothing is doomed
        error = world.start(getattr(mutant, end)(session, work)).exception(20)
        assert (error is None) is passes
        assert error is None or (isinstance(error, Refused) and "ROLLBACK" in str(error))
        assert world.look("SELECT * FROM t") == []
        assert world.gids() == []


BEHIND_OUR_BACK = ["COMMIT; BEGIN", "ROLLBACK; BEGIN", "COMMIT", "COMMIT AND CHAIN", "ROLLBACK; BEGIN; RESET ALL"]


@pytest.mark.parametrize("end", ["commit_alone", "prepare", "end_reader"])
@pytest.mark.parametrize("behind", BEHIND_OUR_BACK)
def test_work_that_was_ended_behind_our_back_cannot_be_prepared_or_committed(world: Any, end: str, behind: str) -> None:
    """Fails without the proof; the next test shows what happens then."""
    session = world.session()
    work = world.begun(session, None, WRITE)
    world.run(session, behind)
    world.start(do(session, "run", "INSERT INTO t VALUES (2, 2)")).exception(20)
    error = world.error(getattr(world.resource, end)(session, work))
    assert type(error) is Refused
    assert "not open any more" in str(error)
    assert session.usable
    assert world.gids() == []
    assert world.receipts() == []


def test_without_the_proof_what_was_ended_behind_our_back_is_prepared_by_half(world: Any) -> None:
    class Mutant(PostgresResource):
        def _proof(self, work: Any) -> str:
            return ""

    session = world.session()
    work = world.begun(session, None, WRITE)
    world.run(session, "COMMIT; BEGIN")
    world.drive(Mutant("pg").prepare(session, work))
    world.drive(world.resource.rollback_prepared(session, Prepared(work.xid)))
    assert world.look("SELECT * FROM t") == [(1, 1)], "rolled back, and half of it stands"


def test_a_user_who_resets_the_mark_only_harms_himself(world: Any) -> None:
    session = world.session()
    work = world.begun(session, None, WRITE, "RESET ALL")
    assert type(world.error(world.resource.commit_alone(session, work))) is Refused
    assert world.look("SELECT * FROM t") == []


@pytest.mark.parametrize(
    ("role", "user", "expected"),
    [
        ("off", None, "on"),
        ("on", "SET LOCAL synchronous_commit = off", "on"),
        ("on", "SET synchronous_commit = off", "on"),
        ("local", None, "on"),
        ("remote_apply", None, "remote_apply"),
        ("off", "SET LOCAL synchronous_commit = remote_apply", "remote_apply"),
    ],
)
@pytest.mark.parametrize("end", ["commit_alone", "prepare"])
def test_durability_is_our_own_and_never_weakened(fresh: Any, end: str, role: str, user: str, expected: str) -> None:
    """A trigger at the very end of the transaction, after the receipt, writes down the level that it ends with.

    Fails without the set_config in the proof. Afterwards the session keeps the level for its COMMIT PREPARED.
    """
    fresh.look(
        "CREATE TABLE level (v text); "
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO level VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$; "
        "CREATE CONSTRAINT TRIGGER last AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION note()"
    )
    database = fresh.url.rpartition("/")[2]
    fresh.look(f"ALTER DATABASE {database} SET synchronous_commit = {role}")
    session = fresh.session()
    work = fresh.begun(session, None, *([user] if user else []), WRITE)
    fresh.drive(getattr(fresh.resource, end)(session, work))
    assert fresh.run(session, "SHOW synchronous_commit")[0].scalar() == expected
    if end == "prepare":
        fresh.drive(fresh.resource.commit_prepared(session, Prepared(work.xid)))
    assert fresh.look("SELECT v FROM level") == [(expected,)]


def test_a_commit_whose_reply_is_lost_is_unclear_and_the_fence_settles_it(world: Any, proxy: TcpProxy) -> None:
    session = world.seasoned(proxy.url_for(world.url))
    work = world.begun(session, None, WRITE)
    fault = proxy.cut_reply(after=b"COMMIT")
    error = world.error(world.resource.commit_alone(session, work))
    fault.wait_hit()
    assert isinstance(error, Unclear)
    assert not session.usable
    assert world.drive(world.resource.fence(world.session(), work.xid)) is Verdict.COMMIT
    assert world.look("SELECT * FROM t") == [(1, 1)]


def test_a_commit_whose_request_is_lost_is_unclear_and_the_fence_settles_it(world: Any, proxy: TcpProxy) -> None:
    session = world.seasoned(proxy.url_for(world.url))
    work = world.begun(session, None, WRITE)
    fault = proxy.cut_request(b"COMMIT")
    error = world.error(world.resource.commit_alone(session, work))
    fault.wait_hit()
    assert isinstance(error, Unclear)
    assert world.drive(world.resource.fence(world.session(), work.xid)) is Verdict.ABORT
    assert world.look("SELECT * FROM t") == []


def waiting_at_commit(world: Any, *statements: str) -> tuple[Any, Any, Any, Any]:
    """A one-phase commit that waits in the server for a lock that `holder` has: holder, session, work, call."""
    world.look(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END $$; "
        "CREATE CONSTRAINT TRIGGER last AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION wait()"
    )
    holder = world.session()
    world.run(holder, "BEGIN; SELECT pg_advisory_xact_lock(4711)")
    session = world.session()
    work = world.begun(session, None, *statements, WRITE)
    call = world.start(world.resource.commit_alone(session, work))
    world.until_waiting(session, "advisory")
    return holder, session, work, call


def test_a_commit_cut_off_while_it_waits_can_still_happen_and_the_fence_says_that_it_cannot_tell(fresh: Any) -> None:
    """A server that does not look whether its client is still there (before 14) commits when its wait is over."""
    holder, session, work, call = waiting_at_commit(fresh, "SET LOCAL client_connection_check_interval = 0")
    session.kill()
    assert isinstance(call.exception(20), Unclear)
    assert isinstance(fresh.error(fresh.resource.fence(fresh.session(), work.xid)), Unclear)
    fresh.run(holder, "COMMIT")
    fresh.until(fresh.receipts, "the late commit")
    assert fresh.drive(fresh.resource.fence(fresh.session(), work.xid)) is Verdict.COMMIT


def test_a_server_that_waits_notices_that_its_client_has_gone(fresh: Any) -> None:
    """It gives the work up, and with it the locks, without being served first. Fails without CHECK_CLIENT."""
    _, session, work, call = waiting_at_commit(fresh)
    session.kill()
    assert isinstance(call.exception(20), Unclear)
    fresh.until_gone(session)
    assert fresh.drive(fresh.resource.fence(fresh.session(), work.xid)) is Verdict.ABORT


@pytest.mark.parametrize("end", ["commit_alone", "prepare", "commit_prepared", "receipt", "fence"])
def test_a_standby_that_did_not_answer_makes_the_end_unclear(synced: Any, end: str) -> None:
    """The wait was cancelled: done here, and a failover may forget it. The server says so in a WARNING only.

    Fails without `require_durable`, because the tag is right; and without our own level, because nobody waits then.
    """
    session, work = synced.session(), synced.work()
    if end in ("receipt", "fence"):
        if end == "receipt":
            columns = "(attempt, branch, verdict, epoch, alone)"
            synced.look(f"INSERT INTO nodoubt.receipts {columns} VALUES ('{work.xid.attempt}', 0, 'commit', 0, false)")
        call = synced.start(getattr(synced.resource, end)(session, work.xid))
    elif end == "commit_prepared":
        synced.look(f"BEGIN; INSERT INTO t VALUES (1, 1); PREPARE TRANSACTION '{work.xid.gid}'")
        call = synced.start(synced.resource.commit_prepared(session, Prepared(work.xid)))
    else:
        synced.begun(session, work, WRITE)
        call = synced.start(getattr(synced.resource, end)(session, work))
    synced.until_waiting(session, "SyncRep")
    synced.look(f"SELECT pg_cancel_backend({session.connection_id})")
    error = call.exception(20)
    assert isinstance(error, Unclear)
    assert "standby" in str(error)
