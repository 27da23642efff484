"""Each rule taken out of a resource must be caught by the claim that is named after it, on every database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest

from nodoubt.ports import Identity, Prepared, Refused, SavepointStep, Session, UnknownXid, Work
from nodoubt.protocol.records import Epoch, Verdict
from nodoubt.script import Script, do
from nodoubt.testing.resources import Place, ResourceSuite
from nodoubt.xid import Xid

SUITE = ResourceSuite()
Claim = Callable[[Place], None]
# What a claim fails with: an assertion, the lack of a refusal, a refusal where none was due, or nothing listed.
FAILED = (AssertionError, pytest.fail.Exception, Refused, KeyError)


class Mutant:
    """A resource as it is, but for one rule."""

    def __init__(self, sound: Any) -> None:
        self.sound = sound

    def __getattr__(self, verb: str) -> Any:
        return getattr(self.sound, verb)


class TakesUnknownForDone(Mutant):
    """The server does not know the branch any more, so it must have been committed."""

    def commit_prepared(self, session: Session, prepared: Prepared, **more: Any) -> Script[None]:
        try:
            yield from self.sound.commit_prepared(session, prepared, **more)
        except UnknownXid:
            return


class PromisesNothing(Mutant):
    """Takes the absence of an error for a vote."""

    def prepare(self, session: Session, work: Work, **_: Any) -> Script[None]:
        yield from self.sound.rollback(session, work)


class CommitsAtOnce(Mutant):
    """A promise that is already kept."""

    def prepare(self, session: Session, work: Work, **_: Any) -> Script[None]:
        yield from self.sound.commit_alone(session, work)


class CannotTakeBack(Mutant):
    """Rolls back by forgetting to."""

    def rollback(self, session: Session, work: Work) -> Script[None]:
        yield from self.sound.commit_alone(session, work)


class ListsStrangers(Mutant):
    """Whatever is prepared is ours."""

    clusters: ClassVar[set[str]] = set()

    def begin(self, session: Session, work: Work, **more: Any) -> Script[None]:
        self.clusters.add(work.xid.cluster)
        yield from self.sound.begin(session, work, **more)

    def prepared(self, session: Session, cluster: str, xid: Xid | None = None) -> Script[tuple[Prepared, ...]]:
        found: list[Prepared] = []
        for one in sorted({*self.clusters, cluster}):
            found += yield from self.sound.prepared(session, one, xid)
        return tuple(found)


class FindsWhatWasCommitted(Mutant):
    """Asked for one branch, it says what the caller hopes for."""

    def prepared(self, session: Session, cluster: str, xid: Xid | None = None) -> Script[tuple[Prepared, ...]]:
        found: tuple[Prepared, ...] = yield from self.sound.prepared(session, cluster)
        return found if xid is None else (Prepared(xid),)


class NeverLeaves(Mutant):
    """Once a participant, always one."""

    def leave(self, session: Session) -> Script[None]:
        yield from ()


class BelievesInReceipts(Mutant):
    """No receipt is one that has been cleaned away."""

    def receipt(self, session: Session, xid: Xid) -> Script[bool]:
        yield from ()
        return True


class FencesByLooking(Mutant):
    """Nothing was committed when somebody looked; but what is on its way may be."""

    def fence(self, session: Session, xid: Xid) -> Script[Verdict]:
        there = yield from self.sound.receipt(session, xid)
        return Verdict.COMMIT if there else Verdict.ABORT


class FencesWhatIsDone(Mutant):
    """The marker overwrites the receipt."""

    def fence(self, session: Session, xid: Xid) -> Script[Verdict]:
        yield from self.sound.forget(session, [xid])
        verdict: Verdict = yield from self.sound.fence(session, xid)
        return verdict


class CommitsWithoutAReceipt(Mutant):
    """The receipt goes as soon as it has come."""

    def commit_prepared(self, session: Session, prepared: Prepared, **more: Any) -> Script[None]:
        yield from self.sound.commit_prepared(session, prepared, **more)
        yield from self.sound.forget(session, [prepared.xid])


class NeverForgets(Mutant):
    """Receipts for good."""

    def forget(self, session: Session, xids: Sequence[Xid], **_: Any) -> Script[int]:
        yield from ()
        return 0


class ForgetsTooMuch(Mutant):
    """Everything from before now may go, whatever was asked for."""

    def forget(self, session: Session, xids: Sequence[Xid], **_: Any) -> Script[int]:
        gone: int = yield from self.sound.forget(session, xids, older_than=2e10, below="f" * 32)
        return gone


class ReadersAll(Mutant):
    """Nobody writes."""

    def wrote(self, session: Session, work: Work) -> Script[bool]:
        yield from ()
        return False


class ForgivesErrors(Mutant):
    """As psql's ON_ERROR_ROLLBACK: a statement that fails is undone alone, and the branch goes on without it."""

    def execute(self, session: Session, work: Work, statement: str, params: Any) -> Script[Any]:
        yield from self.sound.savepoint(session, work, SavepointStep.SET, "s")
        try:
            return (yield from self.sound.execute(session, work, statement, params))
        except Exception:
            work.doomed = None
            yield from self.sound.savepoint(session, work, SavepointStep.BACK, "s")
            raise


class LetsTheUserCommit(Mutant):
    """Sends whatever it is given, past the resource."""

    def execute(self, session: Session, work: Work, statement: str, params: Any) -> Script[Any]:
        if statement.upper() == "COMMIT":
            yield from self.sound.commit_alone(session, work)
            return None
        return (yield from self.sound.execute(session, work, statement, params))


class KeepsWhatCameAfterASavepoint(Mutant):
    """Releases where it should go back."""

    def savepoint(self, session: Session, work: Work, step: SavepointStep, name: str) -> Script[None]:
        step = SavepointStep.RELEASE if step is SavepointStep.BACK else step
        yield from self.sound.savepoint(session, work, step, name)


class NewIdentityAtEachSetup(Mutant):
    """Whoever came last owns it."""

    def setup(self, session: Session, resource_id: str, cluster: str) -> Script[None]:
        yield from self.sound.setup(session, resource_id, cluster)
        server = yield from self.sound.server(session)
        yield from self.sound.adopt(session, Identity(resource_id, cluster, server, 0))


class BelievesTheLastEpoch(Mutant):
    """Takes an older epoch for a newer one."""

    def witness(self, session: Session, epoch: Epoch) -> Script[None]:
        found = yield from self.sound.identity(session)
        yield from self.sound.adopt(
            session, Identity(found.resource_id, found.cluster, found.server, epoch.number, epoch.mark)
        )


class DiesWithItsSession(Mutant):
    """The promise is the session's."""

    def prepare(self, session: Session, work: Work, **_: Any) -> Script[None]:
        yield from ()

    def detach(self, session: Session) -> Script[None]:
        yield from do(session, "close")


def unknown(place: Place) -> None:
    SUITE.test_an_unknown_xid_is_never_success(place, "commit_prepared")


def fence_before_prepare(place: Place) -> None:
    SUITE.test_a_fence_stays_and_what_comes_after_it_cannot_happen(place, "prepare")


def fence_before_commit(place: Place) -> None:
    SUITE.test_a_fence_stays_and_what_comes_after_it_cannot_happen(place, "commit_alone")


def failed_before_prepare(place: Place) -> None:
    SUITE.test_a_branch_of_which_a_statement_failed_can_only_be_rolled_back(place, "prepare")


def failed_before_commit(place: Place) -> None:
    SUITE.test_a_branch_of_which_a_statement_failed_can_only_be_rolled_back(place, "commit_alone")


CAUGHT: Sequence[tuple[type[Mutant], Claim]] = (
    (TakesUnknownForDone, unknown),
    (PromisesNothing, SUITE.test_a_promise_is_listed_and_nothing_of_it_is_seen),
    (CommitsAtOnce, SUITE.test_a_promise_is_listed_and_nothing_of_it_is_seen),
    (CannotTakeBack, SUITE.test_work_that_is_rolled_back_leaves_nothing_and_a_session_that_is_clean_or_gone),
    (ListsStrangers, SUITE.test_only_branches_of_the_cluster_that_is_asked_for_are_listed),
    (FindsWhatWasCommitted, SUITE.test_several_promises_stand_beside_each_other),
    (NeverLeaves, SUITE.test_what_leaves_has_no_identity_and_keeps_its_receipts),
    (BelievesInReceipts, SUITE.test_where_nothing_was_committed_there_is_no_receipt),
    (FencesByLooking, fence_before_prepare),
    (FencesByLooking, fence_before_commit),
    (FencesWhatIsDone, SUITE.test_a_commit_leaves_a_receipt_and_a_fence_comes_too_late),
    (CommitsWithoutAReceipt, SUITE.test_a_promise_is_kept_by_any_session_with_what_the_list_tells),
    (NeverForgets, SUITE.test_the_receipts_that_may_go_are_forgotten_and_no_others),
    (ForgetsTooMuch, SUITE.test_the_receipts_that_may_go_are_forgotten_and_no_others),
    (ForgetsTooMuch, SUITE.test_the_receipt_of_a_commit_in_one_phase_is_kept_for_as_long_as_is_asked),
    (ReadersAll, SUITE.test_a_branch_that_wrote_is_known_to_have_written),
    (ForgivesErrors, failed_before_prepare),
    (ForgivesErrors, failed_before_commit),
    (LetsTheUserCommit, SUITE.test_the_user_cannot_end_the_transaction),
    (KeepsWhatCameAfterASavepoint, SUITE.test_what_came_after_a_savepoint_can_be_undone_alone),
    (NewIdentityAtEachSetup, SUITE.test_the_first_identity_stays_and_so_does_everything_else),
    (BelievesTheLastEpoch, SUITE.test_an_epoch_is_witnessed_once_and_never_an_older_one),
    (DiesWithItsSession, SUITE.test_a_promise_outlives_the_death_of_the_session_that_gave_it),
)


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "mariadb"])
@pytest.mark.parametrize("style", ["sync"])
@pytest.mark.parametrize(("mutant", "claim"), CAUGHT)
def test_a_resource_without_the_rule_is_caught(
    mutant: type[Mutant], claim: Claim, place_of: Callable[[Any], Place]
) -> None:
    place = place_of(mutant)
    with pytest.raises(FAILED):
        claim(place)
