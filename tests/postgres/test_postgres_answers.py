"""Every row of the table of error codes, provoked on a real server."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from nodoubt.ports import BelowFloor, Conflict, Prepared, Refused, StatementFailed, UnknownXid
from nodoubt.resources.postgres_answers import FAILURES, refusal
from nodoubt.script import do
from nodoubt.testing.servers import PostgresServer
from nodoubt.xid import Xid, new_attempt

WRITE = "INSERT INTO t VALUES (1, 1)"
COLUMNS = "nodoubt.receipts (attempt, branch, verdict, epoch, alone)"


def cause_code(error: Any) -> str:
    cause = error.__cause__
    assert isinstance(cause, StatementFailed)
    return cause.code


def stranger(world: Any) -> Prepared:
    return Prepared(Xid("00000000000000c1", new_attempt(), 0))


def at_commit(world: Any, *statements: str, riders: tuple[str, ...] = ()) -> Any:
    session = world.session()
    work = world.begun(session, None, *statements)
    return world.error(world.resource.commit_alone(session, work, riders=riders))


def unknown(world: Any) -> Any:
    return world.error(world.resource.commit_prepared(world.session(), stranger(world)))


def held(world: Any) -> Any:
    """A second session while the first one is still at it: it waits for a lock on the way to the end."""
    world.look("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    prepared = world.prepared(WRITE)
    world.look("SELECT pg_reload_conf()")
    one = world.session()
    try:
        world.until(lambda: world.look("SHOW synchronous_standby_names") == [("nobody",)], "the reload")
        call = world.start(world.resource.commit_prepared(one, prepared))
        world.until_waiting(one, "SyncRep")
        return world.error(world.resource.commit_prepared(world.session(), prepared))
    finally:
        world.look("ALTER SYSTEM RESET synchronous_standby_names")
        world.look("SELECT pg_reload_conf()")
        world.look(f"SELECT pg_cancel_backend({one.connection_id})")
        call.exception(20)


def duplicate_gid(world: Any) -> Any:
    session = world.session()
    work = world.begun(session, None, WRITE)
    world.look(f"BEGIN; INSERT INTO t VALUES (2, 2); PREPARE TRANSACTION '{work.xid.gid}'")
    return world.error(world.resource.prepare(session, work))


def duplicate_row(world: Any) -> Any:
    session = world.session()
    work = world.begun(session, None, WRITE)
    world.look(f"INSERT INTO {COLUMNS} VALUES ('{work.xid.attempt}', 0, 'abort', 0, true)")
    return world.error(world.resource.commit_alone(session, work))


def write_skew(world: Any) -> Any:
    world.look("INSERT INTO t VALUES (1, 0), (2, 0)")
    session, other = world.session(), world.session()
    work = world.begun(session, None, "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", "SELECT sum(v) FROM t")
    world.run(other, "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT sum(v) FROM t; UPDATE t SET v = 1 WHERE id = 2")
    world.drive(world.resource.execute(session, work, "UPDATE t SET v = 1 WHERE id = 1", None))
    world.run(other, "COMMIT")
    return world.error(world.resource.commit_alone(session, work))


def deadlock(world: Any) -> Any:
    world.look("INSERT INTO t VALUES (1, 0), (2, 0)")
    session, other = world.session(), world.session()
    work = world.begun(session, None, "SET LOCAL deadlock_timeout = '10ms'", "UPDATE t SET v = 1 WHERE id = 1")
    world.run(other, "BEGIN; SET LOCAL deadlock_timeout = '60s'; UPDATE t SET v = 2 WHERE id = 2")
    blocked = world.start(do(other, "run", "UPDATE t SET v = 2 WHERE id = 1; COMMIT"))
    world.until_waiting(other)
    error = world.error(world.resource.commit_alone(session, work, riders=("UPDATE t SET v = 1 WHERE id = 2",)))
    blocked.result(20)
    return error


def lock_timeout(world: Any) -> Any:
    world.look("INSERT INTO t VALUES (9, 0)")
    holder = world.session()
    world.run(holder, "BEGIN; UPDATE t SET v = 1")
    return at_commit(world, "SET LOCAL lock_timeout = '10ms'", riders=("UPDATE t SET v = 2",))


def statement_timeout(world: Any) -> Any:
    return at_commit(world, "SET LOCAL statement_timeout = '10ms'", riders=("SELECT pg_sleep(60)",))


def below_floor(world: Any) -> Any:
    return at_commit(world, WRITE, riders=(f"INSERT INTO {COLUMNS} VALUES ('{'a' * 32}', 0, NULL, 0, true)",))


def ended_behind_our_back(world: Any) -> Any:
    session = world.session()
    work = world.begun(session, None, WRITE)
    world.run(session, "COMMIT; BEGIN")
    return world.error(world.resource.commit_alone(session, work))


def other_database(world: Any) -> Any:
    prepared = world.prepared(WRITE)
    elsewhere = world.session(world.url.rpartition("/")[0] + "/postgres")
    return world.error(world.resource.commit_prepared(elsewhere, prepared))


def other_role(world: Any) -> Any:
    world.look("DO $$ BEGIN CREATE ROLE plain LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    prepared = world.prepared(WRITE)
    session = world.session(world.url.replace("postgres@", "plain@"))
    return world.error(world.resource.commit_prepared(session, prepared))


def inside_a_transaction(world: Any) -> Any:
    session = world.session()
    world.run(session, "BEGIN")
    return world.error(world.resource.commit_prepared(session, stranger(world)))


def read_only(world: Any) -> Any:
    return at_commit(world, "SET TRANSACTION READ ONLY", "SELECT 1")


def failed_before(world: Any) -> Any:
    session = world.session()
    work = world.begun(session, None, WRITE)
    world.error(do(session, "run", "SELECT 1/0"))
    return world.error(world.resource.commit_alone(session, work))


RETRY, FINAL = True, False
PROVOKED: dict[str, tuple[Callable[[Any], Any], type[Refused], bool]] = {
    "42704": (unknown, UnknownXid, FINAL),
    "55000": (held, Refused, RETRY),
    "42710": (duplicate_gid, Refused, FINAL),
    "23505": (duplicate_row, Conflict, FINAL),
    "40001": (write_skew, Refused, RETRY),
    "40P01": (deadlock, Refused, RETRY),
    "55P03": (lock_timeout, Refused, RETRY),
    "57014": (statement_timeout, Refused, RETRY),
    "23502": (below_floor, BelowFloor, FINAL),
    "22P02": (ended_behind_our_back, Refused, FINAL),
    "0A000": (other_database, Refused, FINAL),
    "42501": (other_role, Refused, FINAL),
    "25001": (inside_a_transaction, Refused, FINAL),
    "25006": (read_only, Refused, FINAL),
    "25P02": (failed_before, Refused, FINAL),
}
ON_A_SERVER_OF_THEIR_OWN = {"53200", "53100"}


def test_every_row_of_the_table_is_provoked() -> None:
    assert set(PROVOKED) | ON_A_SERVER_OF_THEIR_OWN == set(FAILURES)


@pytest.mark.parametrize("code", PROVOKED)
def test_a_code_is_told_for_what_it_is(world: Any, code: str) -> None:
    provoke, kind, retry = PROVOKED[code]
    error = provoke(world)
    assert type(error) is kind
    assert error.retry is retry
    assert cause_code(error) == code
    for session in world.sessions:
        assert session.usable, "an error that the server told leaves the session clean"


def test_a_full_table_of_prepared_transactions_can_be_tried_again(new_world: Callable[[str], Any]) -> None:
    with PostgresServer({"max_prepared_transactions": 1}) as server:
        world = new_world(server.url()).setup()
        first = world.prepared("INSERT INTO t VALUES (1, 1)")
        session = world.session()
        work = world.begun(session, None, "INSERT INTO t VALUES (2, 2)")
        error = world.error(world.resource.prepare(session, work))
        assert type(error) is Refused
        assert error.retry
        assert cause_code(error) == "53200"
        assert "max_prepared_transactions" in str(error)
        world.drive(world.resource.commit_prepared(session, first))
        world.drive(world.resource.prepare(session, world.begun(session, None, "INSERT INTO t VALUES (2, 2)")))


def test_a_full_disk_can_be_tried_again(world: Any) -> None:
    """The code is the server's for ENOSPC: a rider writes to a device that is always full."""
    session = world.session()
    work = world.begun(session, None, WRITE)
    assert os.path.exists("/dev/full")
    error = world.error(world.resource.commit_alone(session, work, riders=("COPY t TO '/dev/full'",)))
    assert type(error) is Refused
    assert error.retry
    assert cause_code(error) == "53100"
    assert world.look("SELECT * FROM t") == []


@pytest.mark.parametrize("code", ["XX000", "58P01", "42P01"])
def test_a_code_that_is_not_in_the_table_is_a_refusal_and_in_phase_two_to_be_tried_again(code: str) -> None:
    assert refusal(StatementFailed(code, "x"), "doing").retry is False
    assert refusal(StatementFailed(code, "x"), "doing", retry=True).retry is True


@pytest.mark.parametrize("code", ["23505", "23502", "22P02"])
def test_the_users_own_tables_and_values_do_not_speak_for_the_register(code: str) -> None:
    assert type(refusal(StatementFailed(code, "x"), "doing")) is Refused
