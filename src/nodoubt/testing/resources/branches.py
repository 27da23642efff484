"""Claims about branches: work, promises, both ends of them, and receipts.

Must not: know SQL, or a driver.
"""

from __future__ import annotations

import time

import pytest

from ...errors import NoDoubtError
from ...ports import Prepared, SavepointStep, Unclear, UnknownXid
from ...protocol.records import Verdict
from ...xid import new_attempt, new_cluster
from ..bench import outcomes
from .place import Place

ENDS = ("commit_prepared", "rollback_prepared")


class BranchClaims:
    """Each takes a place that is set up and holds nothing."""

    # ---- work

    def test_work_is_seen_when_it_is_committed_and_not_before(self, place: Place) -> None:
        """I4."""
        session = place.session()
        work = place.begun(session, 1, 2)
        assert place.seen() == set()
        place.run(place.resource.commit_alone(session, work))
        assert place.seen() == {1, 2}
        assert place.listed() == {}

    def test_work_that_is_rolled_back_leaves_nothing_and_a_session_that_is_clean_or_gone(self, place: Place) -> None:
        """I18."""
        session = place.session()
        work = place.begun(session, 1)
        place.run(place.resource.rollback(session, work))
        assert place.seen() == set()
        again = session if session.usable else place.session()
        place.run(place.resource.commit_alone(again, place.begun(again, 2)))
        assert place.seen() == {2}

    def test_work_whose_session_dies_leaves_nothing(self, place: Place) -> None:
        """I1."""
        session = place.session()
        work = place.begun(session, 1)
        session.kill()
        place.until(lambda: place.run(place.resource.fence(place.bench.main, work.xid)), "the end of the session")
        assert place.seen() == set() and place.listed() == {}

    def test_a_branch_that_wrote_is_known_to_have_written(self, place: Place) -> None:
        """I1."""
        session = place.session()
        work = place.begun(session, 1)
        assert place.run(place.resource.wrote(session, work)) is True
        place.run(place.resource.rollback(session, work))

    def test_a_branch_that_only_read_ends_without_a_trace(self, place: Place) -> None:
        session = place.session()
        work = place.begun(session)
        place.execute(session, work, place.reading())
        place.run(place.resource.wrote(session, work))
        place.run(place.resource.end_reader(session, work))
        assert place.seen() == set() and place.listed() == {}
        assert place.receipt(work.xid) is False

    def test_a_statement_that_fails_says_so_and_the_branch_can_be_rolled_back(self, place: Place) -> None:
        """I16."""
        session = place.session()
        work = place.begun(session, 1)
        with place.refused(f"{place.failing()!r} was executed, which is no statement", Exception):
            place.execute(session, work, place.failing())
        place.run(place.resource.rollback(session, work))
        assert place.seen() == set()

    @pytest.mark.parametrize("verb", ["prepare", "commit_alone"])
    def test_a_branch_of_which_a_statement_failed_can_only_be_rolled_back(self, place: Place, verb: str) -> None:
        """I16, I2."""
        session = place.session()
        work = place.begun(session, 1)
        with place.refused(f"{place.failing()!r} was executed, which is no statement", Exception):
            place.execute(session, work, place.failing())
        with place.refused(f"a statement of the branch had failed, {verb} was asked for"):
            place.run(getattr(place.resource, verb)(session, work))
        assert place.listed() == {} and place.seen() == set()

    def test_the_user_cannot_end_the_transaction(self, place: Place) -> None:
        """I4."""
        for ending in place.endings:
            session = place.session()
            work = place.begun(session, 1)
            with place.refused(f"{ending!r} was executed within a branch", Exception):
                place.execute(session, work, ending)
            place.run(place.resource.rollback(session, work))
            assert place.seen() == set(), ending

    def test_what_came_after_a_savepoint_can_be_undone_alone(self, place: Place) -> None:
        """I16."""
        session = place.session()
        work = place.begun(session, 1)
        for step, number in ((SavepointStep.SET, 2), (SavepointStep.BACK, 3)):
            place.run(place.resource.savepoint(session, work, step, "here"))
            place.execute(session, work, place.writing(number))
        place.run(place.resource.commit_alone(session, work))
        assert place.seen() == {1, 3}

    # ---- promises

    def test_a_promise_is_listed_and_nothing_of_it_is_seen(self, place: Place) -> None:
        """I2, I4."""
        before = time.monotonic()
        prepared = place.prepared(1)
        assert set(place.listed()) == {prepared.xid}
        one = place.listed()[prepared.xid]
        assert one.age_s is None or -1 <= one.age_s <= time.monotonic() - before + 1
        assert place.seen() == set()
        place.finish("rollback_prepared", prepared)

    def test_a_promise_is_kept_by_any_session_with_what_the_list_tells(self, place: Place) -> None:
        """I13."""
        for number, verb, seen in ((1, "commit_prepared", {1}), (2, "rollback_prepared", {1})):
            xid = place.prepared(number).xid
            place.finish(verb, place.listed()[xid], place.session())
            assert place.seen() == seen
            assert place.listed() == {}
            assert place.receipt(xid) is (verb == "commit_prepared")

    def test_a_promise_outlives_the_death_of_the_session_that_gave_it(self, place: Place) -> None:
        """I2."""
        session = place.session()
        work = place.begun(session, 1)
        place.run(place.resource.prepare(session, work))
        session.kill()
        prepared = place.listed()[work.xid]
        place.finish("commit_prepared", prepared)
        assert place.seen() == {1}

    def test_several_promises_stand_beside_each_other(self, place: Place) -> None:
        """I1."""
        attempt = new_attempt()
        one = place.prepared(1, work=place.work(attempt=attempt, branch=0))
        other = place.prepared(2, work=place.work(attempt=attempt, branch=1), apart=True)
        assert set(place.listed()) == {one.xid, other.xid}
        for xid in (one.xid, other.xid):
            (only,) = place.run(place.resource.prepared(place.bench.main, place.cluster, xid))
            assert only.xid == xid
        place.finish("commit_prepared", other)
        assert place.run(place.resource.prepared(place.bench.main, place.cluster, other.xid)) == ()
        assert place.seen() == {2} and set(place.listed()) == {one.xid}
        place.finish("rollback_prepared", one)
        assert place.seen() == {2}

    def test_only_branches_of_the_cluster_that_is_asked_for_are_listed(self, place: Place) -> None:
        """I9."""
        stranger = new_cluster()
        prepared = place.prepared(1, work=place.work(cluster=stranger))
        ours, theirs = place.listed(), place.listed(stranger)
        place.finish("rollback_prepared", theirs[prepared.xid])
        assert ours == {} and set(theirs) == {prepared.xid}

    @pytest.mark.parametrize("end", ENDS)
    def test_an_unknown_xid_is_never_success(self, place: Place, end: str) -> None:
        """I7: neither one that was never prepared, nor one that has ended."""
        ended = place.prepared(1)
        place.finish(end, ended)
        for unknown in (ended, Prepared(place.work().xid)):
            for _ in range(2):
                with place.refused(f"{end} was asked for a branch that is not prepared", UnknownXid):
                    place.run(getattr(place.resource, end)(place.bench.main, unknown))

    def test_of_many_who_keep_one_promise_at_the_same_time_none_breaks_it(self, place: Place) -> None:
        """I13, I7."""
        prepared = place.prepared(1)
        sessions = [place.session() for _ in range(3)]
        scripts = [place.resource.commit_prepared(session, prepared) for session in sessions]
        ended = outcomes([place.bench.start(script) for script in scripts])
        assert all(one is None or isinstance(one, NoDoubtError) for one in ended)
        if prepared.xid in place.listed():
            place.finish("commit_prepared", prepared)
        assert place.seen() == {1}
        assert place.receipt(prepared.xid) is True

    # ---- receipts and fences

    def test_a_commit_leaves_a_receipt_and_a_fence_comes_too_late(self, place: Place) -> None:
        """I7, I5."""
        session = place.session()
        alone = place.begun(session, 1)
        place.run(place.resource.commit_alone(session, alone))
        prepared = place.prepared(2)
        place.finish("commit_prepared", prepared)
        for xid in (alone.xid, prepared.xid):
            assert place.receipt(xid) is True
            assert place.run(place.resource.fence(place.bench.main, xid)) is Verdict.COMMIT
            assert place.receipt(xid) is True

    def test_where_nothing_was_committed_there_is_no_receipt(self, place: Place) -> None:
        """I7."""
        prepared = place.prepared(1)
        assert place.receipt(place.work().xid) is False
        assert place.receipt(prepared.xid) is not True
        place.finish("rollback_prepared", prepared)
        assert place.receipt(prepared.xid) is False

    @pytest.mark.parametrize("end", ["commit_alone", "prepare"])
    def test_a_fence_stays_and_what_comes_after_it_cannot_happen(self, place: Place, end: str) -> None:
        """I5, I11."""
        session, work = place.session(), place.work()
        for _ in range(2):
            assert place.run(place.resource.fence(place.bench.main, work.xid)) is Verdict.ABORT
        place.begun(session, 1, work=work)
        with place.refused(f"a fence had answered ABORT, {end} was asked for after it"):
            place.run(getattr(place.resource, end)(session, work))
            if end == "prepare":  # where the receipt is written by phase two, it is phase two that must not happen
                place.run(place.resource.detach(session))
                place.run(place.resource.commit_prepared(place.bench.main, Prepared(work.xid, handle=work.handle)))
        assert place.seen() == set()
        assert place.receipt(work.xid) is False
        for prepared in place.listed().values():
            place.finish("rollback_prepared", prepared)

    def test_a_fence_never_says_abort_of_a_promise_that_is_then_kept(self, place: Place) -> None:
        """I5."""
        prepared = place.prepared(1)
        try:
            assert place.run(place.resource.fence(place.bench.main, prepared.xid)) is Verdict.ABORT
        except Unclear:
            place.finish("commit_prepared", prepared)
            assert place.seen() == {1}
            return
        with place.refused("a fence had answered ABORT of a branch that is prepared, its commit was asked for"):
            place.run(place.resource.commit_prepared(place.bench.main, prepared))
        assert place.seen() == set()
        place.finish("rollback_prepared", prepared)

    def test_the_receipts_that_may_go_are_forgotten_and_no_others(self, place: Place) -> None:
        """I6."""
        attempt = new_attempt()
        xids = []
        for number in (0, 1):
            prepared = place.prepared(number, work=place.work(attempt=attempt, branch=number))
            place.finish("commit_prepared", prepared)
            xids.append(prepared.xid)
        place.run(place.resource.forget(place.bench.main, xids[:1]))
        assert [place.receipt(xid) for xid in xids] == [False, True]
        place.run(place.resource.forget(place.bench.main, [], below=attempt))
        assert place.receipt(xids[1]) is True
        place.run(place.resource.forget(place.bench.main, [], below=new_attempt()))
        assert place.receipt(xids[1]) is False

    def test_the_receipt_of_a_commit_in_one_phase_is_kept_for_as_long_as_is_asked(self, place: Place) -> None:
        """I6."""
        session = place.session()
        work = place.begun(session, 1)
        place.run(place.resource.commit_alone(session, work))
        now = time.time()
        place.run(place.resource.forget(place.bench.main, [], older_than=now - 3600, below="f" * 32))
        assert place.receipt(work.xid) is True
        place.run(place.resource.forget(place.bench.main, [], older_than=now + 3600))
        assert place.receipt(work.xid) is False

    def test_no_session_has_to_be_ended_for_a_promise_that_nobody_holds(self, place: Place) -> None:
        prepared = place.prepared(1)
        place.until(lambda: place.run(place.resource.free(place.bench.main, prepared)) is False, "it to be let go")
        place.finish("commit_prepared", prepared)
        assert place.seen() == {1}
