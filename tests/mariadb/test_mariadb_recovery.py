"""Phase two and recovery: other sessions, dead sessions, receipts, fences."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

import nodoubt.drivers.asyncmy
import nodoubt.drivers.mysql_wire
import nodoubt.drivers.pymysql
from nodoubt.errors import NoDoubtError
from nodoubt.ports import Prepared, Refused, SessionLost, StatementFailed, Unclear, UnknownXid
from nodoubt.protocol.records import Epoch, Verdict
from nodoubt.resources import mariadb as module
from nodoubt.resources.mariadb_finishing import STARTED_TOLERANCE_S
from nodoubt.script import do
from nodoubt.xid import XaXid, Xid, new_attempt, new_cluster

PATIENCE_S = 30.0


# -- XAER_NOTA


def test_a_branch_held_by_its_live_session_answers_nota_and_that_is_no_success(world: Any) -> None:
    """The preparing session lives, so everybody else is answered NOTA, as for a branch that is done (I7).

    Where its id says that it lives (in the same run of the server), it is not even asked for.
    """
    holder = world.session()
    prepared = world.prepared("INSERT INTO t VALUES (1, 1)", session=holder)
    stranger = world.session()
    stranger.server_started -= 3600
    for session, why in ((world.session(), "has not ended"), (stranger, "1397")):
        for verb in (world.resource.commit_prepared, world.resource.rollback_prepared):
            with pytest.raises(UnknownXid, match=why):
                world.drive(verb(session, prepared))
    assert [one.xid for one in world.listed()] == [prepared.xid]
    assert world.values() == []
    world.finish("commit", prepared, holder)


def test_a_branch_that_is_done_answers_the_same(world: Any) -> None:
    prepared = world.prepared("INSERT INTO t VALUES (1, 1)")
    world.finish("commit", prepared)
    for verb in (world.resource.commit_prepared, world.resource.rollback_prepared):
        with pytest.raises(UnknownXid, match="1397"):
            world.drive(verb(world.session(), prepared))
    assert world.listed() == []


def test_a_handle_is_found_when_it_is_not_known(world: Any) -> None:
    """The journal keeps xids; which session prepared a branch is part of its name on the server alone."""
    prepared = world.prepared("INSERT INTO t VALUES (1, 1)")
    world.finish("commit", msgspec.structs.replace(prepared, handle=None))
    assert world.values() == [(1, 1)]
    with pytest.raises(UnknownXid):
        world.drive(world.resource.commit_prepared(world.session(), msgspec.structs.replace(prepared, handle=None)))


def test_the_receipt_tells_held_from_done(world: Any) -> None:
    holder = world.session()
    prepared = world.prepared("INSERT INTO t VALUES (1, 1)", session=holder)
    asks = world.session()
    with pytest.raises(Unclear):  # blocked by the branch itself
        world.drive(world.resource.receipt(asks, prepared.xid))
    assert asks.usable
    world.finish("commit", prepared, holder)
    assert world.drive(world.resource.receipt(asks, prepared.xid)) is True


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is blocked by a branch gives up at once."""
    monkeypatch.setattr(module, "LOCK_WAIT_S", 0)


# -- ending the session that holds a branch


def held(world: Any, *, url: str | None = None) -> tuple[Any, Prepared]:
    holder = world.session(url)
    return holder, world.prepared("INSERT INTO t VALUES (1, 1)", session=holder)


def test_free_ends_the_idle_session_and_the_branch_can_be_finished(world: Any) -> None:
    holder, prepared = held(world)
    assert world.drive(world.resource.free(world.session(), prepared)) is True
    world.until_gone(holder)
    world.finish("commit", prepared)
    assert world.values() == [(1, 1)]


def test_free_ends_a_half_open_session_in_milliseconds(world: Any, cut: Callable[[str], Any]) -> None:
    """The client's machine died without a word: the server would hold the branch for wait_timeout, eight hours."""
    proxy = cut(world.url)
    holder, prepared = held(world, url=proxy.url)
    holder.kill()  # the proxy, a stranger to the client's death, keeps its end of the server's connection
    with pytest.raises(UnknownXid):
        world.drive(world.resource.commit_prepared(world.session(), prepared))
    began = time.monotonic()
    assert world.drive(world.resource.free(world.session(), prepared)) is True
    assert time.monotonic() - began < 5
    world.finish("commit", prepared)


def test_free_touches_no_session_of_another_run_of_the_server(world: Any) -> None:
    """After a restart the same id is a stranger's: killing it would end an innocent's work."""
    holder, prepared = held(world)
    asks = world.session()
    for seconds in (-3600, STARTED_TOLERANCE_S + 1):
        asks.server_started = prepared.handle.server_started + seconds
        assert world.drive(world.resource.free(asks, prepared)) is False
    assert world.run(holder, "SELECT 1")[0].scalar() == 1
    world.finish("rollback", prepared, holder)


def test_the_start_of_the_server_may_look_a_second_off(world: Any) -> None:
    """It is computed from two clocks that show whole seconds."""
    holder, prepared = held(world)
    asks = world.session()
    asks.server_started += 1
    assert world.drive(world.resource.free(asks, prepared)) is True
    world.until_gone(holder)


def test_free_touches_no_session_that_no_longer_holds_the_branch(world: Any) -> None:
    """The coordinator lives and has just finished; its session serves somebody else by now."""
    holder, prepared = held(world)
    world.finish("commit", prepared, holder)
    work = world.begun(holder, "INSERT INTO t VALUES (2, 2)")
    assert world.drive(world.resource.free(world.session(), prepared)) is False
    world.drive(world.resource.commit_alone(holder, work))
    assert world.values() == [(1, 1), (2, 2)]


def test_free_touches_no_session_of_another_account(world: Any) -> None:
    world.look(f"CREATE OR REPLACE USER other@'%' IDENTIFIED BY 'other'; GRANT ALL ON {world.database}.* TO other@'%'")
    holder, prepared = held(world, url=world.url.replace("nodoubt:nodoubt@", "other:other@"))
    assert world.drive(world.resource.free(world.session(), prepared)) is False
    assert world.run(holder, "SELECT 1")[0].scalar() == 1
    world.finish("rollback", prepared, holder)


def test_free_needs_no_privilege_for_sessions_of_its_own_account(world: Any) -> None:
    world.look(f"CREATE OR REPLACE USER plain@'%' IDENTIFIED BY 'plain'; GRANT ALL ON {world.database}.* TO plain@'%'")
    url = world.url.replace("nodoubt:nodoubt@", "plain:plain@")
    holder, prepared = held(world, url=url)
    assert world.drive(world.resource.free(world.session(url), prepared)) is True
    world.until_gone(holder)
    world.finish("commit", prepared)


def test_free_leaves_a_busy_session_alone(world: Any) -> None:
    """Busy with the branch: its coordinator is finishing it this very moment."""
    holder, prepared = held(world)
    call = world.start(do(holder, "run", "DO SLEEP(60)"))
    world.until_busy(holder)
    assert world.drive(world.resource.free(world.session(), prepared)) is False
    holder.kill()
    world.look(f"KILL {holder.connection_id}")
    assert call.exception(PATIENCE_S) is not None
    world.until_gone(holder)


def test_free_does_not_end_itself(world: Any) -> None:
    holder, prepared = held(world)
    assert world.drive(world.resource.free(holder, prepared)) is False
    world.finish("commit", prepared, holder)


def test_free_finds_nothing_to_end_once_the_session_is_gone(world: Any) -> None:
    prepared = world.prepared("INSERT INTO t VALUES (1, 1)")
    assert world.drive(world.resource.free(world.session(), prepared)) is False
    world.finish("commit", prepared)


def test_a_session_that_resets_what_it_prepared_is_the_trap_we_never_step_in(world: Any) -> None:
    """COM_RESET_CONNECTION makes XA COMMIT elsewhere answer OK and commit nothing. So no driver of ours sends it."""
    for driver in (nodoubt.drivers.asyncmy, nodoubt.drivers.pymysql, nodoubt.drivers.mysql_wire, module):
        code = "\n".join(line.split("#")[0] for line in _code_of(driver).splitlines())
        assert "reset" not in code.lower()
        assert "change_user" not in code.lower()
        assert ".ping(" not in code  # asyncmy's reconnects


def _code_of(driver: Any) -> str:
    """The source without its docstring."""
    source = Path(driver.__file__).read_text(encoding="utf-8")
    return source.split('"""', 2)[2]


# -- listing


def test_only_well_formed_xids_of_our_cluster_are_listed(world: Any) -> None:
    """Catches: a stranger's branch taken for ours (I9). Some of these are not even text."""
    ours = world.prepared("INSERT INTO t VALUES (1, 1)")
    gtrid, foreign = ours.xid.gtrid, Xid(new_cluster(), new_attempt(), 0)
    strangers = [
        "X'FF00C3', X'80', 7",
        f"'{gtrid}', '0.1.2', 7",
        f"'{gtrid}', 'x.1.2', {0x6E6462}",
        f"'{gtrid}', X'FF', {0x6E6462}",
        f"'{gtrid}0', '0.1.2', {0x6E6462}",
        XaXid(foreign, 1, 2).sql,
        "'a', 'b', 1",
    ]
    for number, xid in enumerate(strangers, start=10):
        session = world.session()
        world.run(session, f"XA START {xid}; INSERT INTO t VALUES ({number}, 1); XA END {xid}; XA PREPARE {xid}")
        world.close_session(session)
        world.until_gone(session)
    assert world.listed() == [ours]
    for xid in strangers:
        world.until(lambda xid=xid: _rolled_back(world, xid), f"the end of {xid}")


def _rolled_back(world: Any, xid: str) -> bool:
    try:
        world.run(world.session(), f"XA ROLLBACK {xid}")
    except StatementFailed:
        return False
    return True


def test_a_listing_shows_the_branches_of_all_databases_of_the_server(world: Any, mariadb: Any) -> None:
    """XA RECOVER knows no databases: whose a branch is only the decision's list of branches can tell."""
    prepared = world.prepared("INSERT INTO t VALUES (1, 1)")
    assert [one.xid for one in world.listed(mariadb.url())] == [prepared.xid]
    other = module.MariaDBResource("other", "elsewhere")
    world.drive(other.rollback_prepared(world.session(), prepared))
    assert world.listed() == []


def test_a_listing_tells_no_age(world: Any) -> None:
    world.prepared("INSERT INTO t VALUES (1, 1)")
    assert [one.age_s for one in world.listed()] == [None]


def test_any_account_can_finish_any_branch(world: Any) -> None:
    """A fact to warn of: an account of its own per cluster keeps nobody out, but shows who did it."""
    prepared = world.prepared("INSERT INTO t VALUES (1, 1)")
    world.look("CREATE OR REPLACE USER nobody@'%' IDENTIFIED BY 'x'")
    url = world.url.replace("nodoubt:nodoubt@", "nobody:x@")
    session = world.session(url.rpartition("/")[0] + "/information_schema")
    with pytest.raises(Unclear, match="before or after"):  # it may not look at the receipt, so nobody knows
        world.drive(world.resource.commit_prepared(session, prepared))
    assert world.values() == [(1, 1)]


# -- other answers of phase two


def test_a_read_only_branch_prepared_by_somebody_commits_as_rolled_back(world: Any) -> None:
    """1402 is no heuristic: there was nothing to commit. Ours is never empty, for it holds its receipt."""
    session = world.session()
    xid = XaXid(world.work().xid, session.connection_id, session.server_started)
    world.run(session, f"XA START {xid.sql}; SELECT * FROM t; XA END {xid.sql}; XA PREPARE {xid.sql}")
    world.close_session(session)
    world.until_gone(session)
    with pytest.raises(Refused, match="1402"):
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                world.drive(world.resource.commit_prepared(world.session(), Prepared(xid.xid, handle=xid)))
            except UnknownXid:
                assert time.monotonic() < deadline


def test_a_session_with_work_of_its_own_cannot_finish_a_branch(world: Any) -> None:
    """XAER_OUTSIDE or RMFAIL is a refusal: surely nothing was done."""
    prepared = world.prepared("INSERT INTO t VALUES (1, 1)")
    session = world.session()
    world.run(session, "START TRANSACTION; SELECT * FROM t")
    with pytest.raises(Refused):
        world.drive(world.resource.commit_prepared(session, prepared))
    assert [one.xid for one in world.listed()] == [prepared.xid]


def test_a_lost_reply_to_phase_two_is_unclear(world: Any, cut: Callable[[str], Any]) -> None:
    prepared = world.prepared("INSERT INTO t VALUES (1, 1)")
    proxy = cut(world.url)
    session = world.session(proxy.url)
    proxy.deaf = True
    call = world.start(world.resource.commit_prepared(session, prepared))
    world.until(world.values, "the commit")
    proxy.sever()
    with pytest.raises(Unclear):
        call.result(PATIENCE_S)


def test_an_unknown_error_of_phase_two_is_unclear(world: Any) -> None:
    prepared = world.prepared("INSERT INTO t VALUES (1, 1)")
    session = _failing(world, "1180", "Got error 28 during COMMIT")
    with pytest.raises(Unclear):
        world.drive(world.resource.commit_prepared(session, prepared))


class _Failing:
    """A session whose server answers with an error that no test can provoke."""

    usable, connection_id, server_started = True, 0, 0

    def __init__(self, failure: StatementFailed, *, later: bool) -> None:
        self._failure, self._later = failure, later

    def run(self, sql: str) -> Any:
        if not self._later:
            raise self._failure

        async def answer() -> None:
            raise self._failure

        return answer()

    def kill(self) -> None:
        self.usable = False


def _failing(world: Any, code: str, message: str) -> Any:
    return _Failing(StatementFailed(code, message), later=world.style == "async")


# -- receipts


def test_a_receipt_counts_only_once_its_own_row_was_written_again_by_force(world: Any) -> None:
    """A plain SELECT shows rows that a crash can still forget."""
    session = world.session()
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)")
    world.drive(world.resource.commit_alone(session, work))
    for confirms in (1, 2):
        assert world.drive(world.resource.receipt(world.session(), work.xid)) is True
        assert [row[-1] for row in world.receipts()] == [confirms]


def test_an_absent_receipt_is_absent_and_a_fence_is_no_receipt(world: Any) -> None:
    xid = world.work().xid
    assert world.drive(world.resource.receipt(world.session(), xid)) is False
    world.drive(world.resource.fence(world.session(), xid))
    assert world.drive(world.resource.receipt(world.session(), xid)) is False


def test_a_receipt_is_sought_in_a_new_snapshot(world: Any) -> None:
    """On a session that has looked before, and in a server where every transaction reads an old snapshot."""
    session = world.session()
    xid = world.work().xid
    assert world.drive(world.resource.receipt(session, xid)) is False
    other = world.session()
    twin = world.work()
    twin.xid = xid
    work = world.begun(other, "INSERT INTO t VALUES (1, 1)", work=twin)
    world.drive(world.resource.commit_alone(other, work))
    assert world.drive(world.resource.receipt(session, xid)) is True


def test_a_session_without_autocommit_still_confirms_by_force(world: Any) -> None:
    """A user's procedure may have left it so; an UPDATE that relied on autocommit would be rolled back in silence."""
    session = world.session()
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)")
    world.drive(world.resource.commit_alone(session, work))
    world.run(session, "SET SESSION autocommit = 0")
    assert world.drive(world.resource.receipt(session, work.xid)) is True
    world.close_session(session)
    assert [row[-1] for row in world.receipts()] == [1]


def test_a_session_without_autocommit_that_can_finish_no_branch_is_not_asked_again(world: Any) -> None:
    """It would be the next to be taken from its pool, and the branch would be held for as long as it were idle."""
    prepared, session = world.prepared("INSERT INTO t VALUES (1, 1)"), world.session()
    world.look("CREATE OR REPLACE PROCEDURE leaves_it_off() SET SESSION autocommit = 0")
    work = world.begun(session, "CALL leaves_it_off()", "INSERT INTO t VALUES (2, 2)")
    world.drive(world.resource.commit_alone(session, work))
    with pytest.raises(Refused, match="1400"):
        world.drive(world.resource.commit_prepared(session, prepared))
    assert not session.usable
    world.finish("commit", prepared)
    assert world.values() == [(1, 1), (2, 2)]


def test_receipt_and_fence_on_a_dead_session_are_unclear(world: Any) -> None:
    session = world.session()
    world.look(f"KILL {session.connection_id}")
    world.until_gone(session)
    for verb in (world.resource.receipt, world.resource.fence):
        with pytest.raises(Unclear):
            world.drive(verb(session, world.work().xid))
    with pytest.raises(Unclear):
        world.drive(world.resource.prepared(session, world.cluster))


# -- fences


def test_a_fence_stands_where_no_receipt_is(world: Any) -> None:
    work = world.work(branch=4)
    assert world.drive(world.resource.fence(world.session(), work.xid)) is Verdict.ABORT
    assert world.receipts() == [(work.xid.attempt, 4, "abort", 1, 0, 0)]
    # Repeated, it confirms what stands (I12).
    assert world.drive(world.resource.fence(world.session(), work.xid)) is Verdict.ABORT
    assert world.receipts() == [(work.xid.attempt, 4, "abort", 1, 0, 1)]


def test_a_fence_gives_way_to_a_receipt_and_confirms_it(world: Any) -> None:
    """Put by REPLACE or ON DUPLICATE KEY it would overturn a commit."""
    session = world.session()
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)")
    world.drive(world.resource.commit_alone(session, work))
    asks = world.session()
    assert world.drive(world.resource.fence(asks, work.xid)) is Verdict.COMMIT
    assert [row[2:] for row in world.receipts()] == [("commit", 1, 1, 1)]
    # The INSERT that failed has left no transaction open.
    assert world.run(asks, "SELECT @@in_transaction")[0].scalar() == 0


def test_a_fence_blocked_by_the_branch_itself_is_unclear(world: Any) -> None:
    """The receipt is written but not committed: neither outcome may be told."""
    holder = world.session()
    prepared = world.prepared("INSERT INTO t VALUES (1, 1)", session=holder)
    asks = world.session()
    with pytest.raises(Unclear, match="1205"):
        world.drive(world.resource.fence(asks, prepared.xid))
    assert asks.usable
    assert world.run(asks, "SELECT @@in_transaction")[0].scalar() == 0
    world.finish("commit", prepared, holder)
    assert world.drive(world.resource.fence(asks, prepared.xid)) is Verdict.COMMIT


def test_of_two_fences_at_a_time_both_tell_the_same(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_WAIT_S", 5)
    for _ in range(10):
        xid = world.work().xid
        calls = [world.start(world.resource.fence(world.session(), xid)) for _ in range(3)]
        assert {call.result(PATIENCE_S) for call in calls} == {Verdict.ABORT}


def test_a_fence_and_a_commit_at_a_time_agree(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_WAIT_S", 5)
    for number in range(10):
        session, asks = world.session(), world.session()
        work = world.begun(session, f"INSERT INTO t VALUES ({number}, 1)")
        commit = world.start(world.resource.commit_alone(session, work))
        fence = world.start(world.resource.fence(asks, work.xid))
        committed = commit.exception(PATIENCE_S) is None
        assert committed is (fence.result(PATIENCE_S) is Verdict.COMMIT)
        assert committed is ((number, 1) in world.values())


def test_a_fence_whose_reply_is_lost_is_unclear_and_stands(world: Any, cut: Callable[[str], Any]) -> None:
    proxy = cut(world.url)
    session = world.session(proxy.url)
    xid = world.work().xid
    proxy.deaf = True
    call = world.start(world.resource.fence(session, xid))
    world.until(world.receipts, "the fence")
    proxy.sever()
    with pytest.raises(Unclear):
        call.result(PATIENCE_S)
    assert world.drive(world.resource.fence(world.session(), xid)) is Verdict.ABORT


# -- forgetting


def test_forget_removes_the_receipts_named_and_no_others(world: Any) -> None:
    works = [world.work(branch=branch) for branch in range(4)]
    session = world.session()
    for work in works:
        world.begun(session, "DO 1", work=work)
        world.drive(world.resource.commit_alone(session, work))
    gone = world.drive(world.resource.forget(session, [works[1].xid, works[3].xid, world.work().xid]))
    assert gone == 2
    assert [row[:2] for row in world.receipts()] == sorted((work.xid.attempt, work.xid.branch) for work in works[::2])


def test_forget_by_age_spares_what_is_young_or_of_two_phases(world: Any) -> None:
    """A two-phase receipt goes only after its end record, however old it is (I6)."""
    session = world.session()
    alone, fenced, two = world.work(), world.work(), world.work()
    world.begun(session, "DO 1", work=alone)
    world.drive(world.resource.commit_alone(session, alone))
    world.drive(world.resource.fence(session, fenced.xid))
    world.begun(session, "DO 1", work=two)
    world.drive(world.resource.prepare(session, two))
    world.finish("commit", Prepared(two.xid, handle=two.handle), session)
    assert world.drive(world.resource.forget(session, (), older_than=time.time() - 60)) == 0
    assert world.drive(world.resource.forget(session, (), older_than=time.time() + 60)) == 2
    assert [row[0] for row in world.receipts()] == [two.xid.attempt]
    assert world.drive(world.resource.forget(session, (), below=two.xid.attempt)) == 0
    world.drive(world.resource.fence(session, world.work().xid))
    assert world.drive(world.resource.forget(session, (), below="f" * 32)) == 1, "below the journal's floor nobody asks"
    assert two.xid.attempt not in [row[0] for row in world.receipts()] and len(world.receipts()) == 1


def test_forget_by_age_goes_in_batches_the_oldest_first(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_MAX", 2)
    session = world.session()
    xids = [world.work().xid for _ in range(5)]
    for xid in xids:
        world.drive(world.resource.fence(session, xid))
    later = time.time() + 60
    left = sorted(xid.attempt for xid in xids)
    for gone in (2, 2, 1, 0):
        assert world.drive(world.resource.forget(session, (), older_than=later)) == gone
        left = left[gone:]
        assert [row[0] for row in world.receipts()] == left
    for xid in xids:
        world.drive(world.resource.fence(session, xid))
    assert world.drive(world.resource.forget(session, xids)) == 5


def test_a_prepared_branch_holds_up_nobody_elses_receipt(world: Any) -> None:
    """A branch in doubt for days must stop neither clean-up, nor fences, nor an operator who adopts a restore."""
    session = world.session()
    before, after = world.work(epoch=9), world.work(epoch=9)
    world.begun(session, "DO 1", work=before)
    world.drive(world.resource.commit_alone(session, before))
    holder = world.session()
    prepared = world.prepared("INSERT INTO t VALUES (1, 1)", session=holder)
    assert world.drive(world.resource.receipt(session, after.xid)) is False
    world.begun(session, "DO 1", work=after)
    world.drive(world.resource.commit_alone(session, after))
    assert world.drive(world.resource.fence(session, world.work().xid)) is Verdict.ABORT
    identity = replace(world.drive(world.resource.identity(session)), epoch=2)
    world.drive(world.resource.adopt(session, identity))
    assert world.drive(world.resource.identity(session)).epoch == 2
    assert world.drive(world.resource.forget(session, (), older_than=time.time() + 60)) == 3
    world.finish("commit", prepared, holder)


def test_our_statements_read_no_more_than_their_rows(world: Any) -> None:
    """Catches: a comparison that can't use the key, which would lock every receipt there is."""
    world.look("INSERT INTO nodoubt_receipts SELECT LPAD(HEX(seq), 32, '0'), 0, 'commit', 1, 1, 0, 0 FROM seq_1_to_500")
    session = world.session()
    sent = world.spy(session)
    world.drive(world.resource.receipt(session, world.work().xid))
    world.drive(world.resource.forget(session, [world.work().xid, world.work().xid]))
    changes = [part for sql in sent for part in sql.split("; ") if part.startswith(("UPDATE", "DELETE"))]
    assert len(changes) == 3
    for change in changes:
        assert all(int(row["rows"]) == 1 for row in world.run(world.session(), f"EXPLAIN {change}")[0])


# -- what our statements refuse


def test_missing_tables_are_a_refusal_not_a_crash(blank: Any) -> None:
    session = blank.session()
    for script in (
        blank.resource.witness(session, Epoch(1, "m1")),
        blank.resource.forget(session, [blank.work().xid]),
    ):
        with pytest.raises(NoDoubtError):
            blank.drive(script)
    for script in (blank.resource.receipt(session, blank.work().xid), blank.resource.fence(session, blank.work().xid)):
        with pytest.raises(Unclear):
            blank.drive(script)
    assert session.usable


# -- each check taken out

MUTANTS: dict[str, tuple[str, str, Callable[[Any], None]]] = {
    "NOTA is done": (
        '            why = f"XA {verb} of',
        '            if error.code in ("1397", "1242"):\n                return\n            why = f"XA {verb} of',
        test_a_branch_held_by_its_live_session_answers_nota_and_that_is_no_success,
    ),
    "any error is a refusal": (
        "if FAILURES.get(error.code) in (Failure.UNKNOWN_XID, Failure.REFUSED) and not finishing.is_of_look(error):",
        "if True:",
        test_an_unknown_error_of_phase_two_is_unclear,
    ),
    "strangers are ours": (
        "if one is not None and one.xid.cluster == cluster",
        "if one is not None",
        test_only_well_formed_xids_of_our_cluster_are_listed,
    ),
    "the server's run is not asked for": (
        "if not finishing.same_run(handle, session) or ",
        "if ",
        test_free_touches_no_session_of_another_run_of_the_server,
    ),
    "whether it is held is not asked for": (
        "if not held or holder.rows",
        "if holder.rows",
        test_free_touches_no_session_that_no_longer_holds_the_branch,
    ),
    "whose it is is not asked for": (
        'holder.rows != (("Sleep", 1),)',
        'holder.rows not in ((("Sleep", 1),), (("Sleep", 0),))',
        test_free_touches_no_session_of_another_account,
    ),
    "whether it is idle is not asked for": (
        'holder.rows != (("Sleep", 1),)',
        "not holder.rows",
        test_free_leaves_a_busy_session_alone,
    ),
    "a plain look": (
        'f"UPDATE {self._receipts} SET confirms = confirms + 1 {where}"',
        'f"SELECT 1 FROM {self._receipts} {where}"',
        test_a_receipt_counts_only_once_its_own_row_was_written_again_by_force,
    ),
    "a fence taken for a receipt": (
        "(yield from self._confirm(session, xid)) is Verdict.COMMIT",
        "(yield from self._confirm(session, xid)) is not None",
        test_an_absent_receipt_is_absent_and_a_fence_is_no_receipt,
    ),
    "a fence that overturns": (
        "yield from self._forced(session, marker)",
        'yield from self._forced(session, marker.replace("INSERT", "REPLACE", 1))',
        test_a_fence_gives_way_to_a_receipt_and_confirms_it,
    ),
    "relying on autocommit": (
        '            "START TRANSACTION",\n            *statements,\n            "COMMIT",\n',
        '            "DO 1",\n            *statements,\n            "DO 1",\n',
        test_a_session_without_autocommit_still_confirms_by_force,
    ),
    "two-phase receipts age": (
        " AND alone = 1",
        "",
        test_forget_by_age_spares_what_is_young_or_of_two_phases,
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_check_taken_out_is_noticed(mutant: Callable[[str, str], Any], name: str) -> None:
    old, new, claim = MUTANTS[name]
    with pytest.raises((AssertionError, pytest.fail.Exception, NoDoubtError, SessionLost)):
        claim(mutant(old, new))
