"""No account without its mailbox, no mailbox without its account: whatever dies, however often it is called again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from examples.outside.client import Refused, done, go_on, misbehave, post, standing, waiting
from examples.user_onboarding import matrix, page
from examples.user_onboarding.matrix import AVERY, REQUEST, require
from examples.user_onboarding.onboarding import Person, onboard

from kit import until
from nodoubt import CallState, Coordinator, Settings, State, StepInFlight, TransactionAborted, TransactionDoomed
from nodoubt.testing import Crash, crash_points, explore
from workflows import Place, Service, badly, explored, furnished, killed, mutant

pytestmark = pytest.mark.usefixtures("outside")

ON_SERVERS = {"people": "postgres", "audit": "mariadb"}
# Whoever calls again while a step may still be under way is told so, for as long as these say.
HASTY = Settings(prepare_s=4, grace_s=4, step_s=4)
# Every point that an onboarding which fails does not share with one that does not.
GOING_BACK = [
    "P6.aborted",
    *(f"{point}{count}" for count in ("", "#2") for point in ("S5.undoing", "S6.undone", "S7.undo-recorded")),
]
HIRING: dict[str, Any] = {"tables": matrix.TABLES, "before": matrix.before}


@pytest.fixture(params=[("sqlite", "sqlite"), ("postgres", "mariadb")], ids="+".join)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with furnished(matrix, request.param) as at:
        yield at


@pytest.fixture
def files() -> Iterator[Place]:
    with furnished(matrix, ("sqlite", "sqlite")) as at:
        yield at


# ---- killed at every point ------------------------------------------------------------------------


@pytest.mark.parametrize(("work", "points"), [("hire", ()), ("misplace", GOING_BACK)])
def test_killed_at_every_point_it_ends_well_and_the_readme_shows_where(work: str, points: list[str]) -> None:
    explored(f"user_onboarding/matrix.py:{work}", points)


@pytest.mark.parametrize(("work", "points"), [(matrix.hire, None), (matrix.misplace, GOING_BACK)])
def test_killed_at_every_point_on_servers_it_ends_well(work: Any, points: list[str] | None) -> None:
    crash_points(work, resources=ON_SERVERS, check=matrix.check, points=points, **HIRING)


# ---- called again ---------------------------------------------------------------------------------


def check_again(db: Coordinator, _: Crash) -> None:
    """As whoever started it would, who knows nothing of its death but that there was no answer."""

    def again() -> bool:
        try:
            onboard(db, REQUEST, AVERY)
        except StepInFlight:
            return False
        return True

    until(again, 60)
    require(db, there=True)


@pytest.mark.parametrize(
    ("kinds", "points"),
    [
        (matrix.RESOURCES, ["P2.work@audit", "P4.staged", "S1.calling#2", "S3.answered#2", "P10.ended"]),
        (ON_SERVERS, ["P3.prepared@people", "S4.recorded#2", "P5.deciding@people", "P6.committed"]),
    ],
    ids=["sqlite", "servers"],
)
def test_killed_and_called_again_it_goes_on_and_does_nothing_twice(kinds: dict[str, str], points: list[str]) -> None:
    crash_points(matrix.hire, resources=kinds, check=check_again, points=points, settings=HASTY, **HIRING)


# ---- what is taken out is missed ------------------------------------------------------------------

STEP = "db.call(request, open_mailbox, person.email, undo=close_mailbox)"


@pytest.mark.parametrize(
    ("work", "change", "point"),
    [
        ("hire", ('post("/mailboxes", key,', 'post("/mailboxes", "",'), "S3.answered"),
        ("misplace", ('undo("/mailboxes", context.key,', 'undo("/mailboxes", "",'), "S6.undone#2"),
        ("hire", (STEP, 'post("/mailboxes", request, email=person.email)'), "P5.deciding@people"),
        ("hire", (", undo=close_mailbox)", ")"), "P5.deciding@people"),
    ],
    ids=["a mailbox without a key", "closed without a key", "a mailbox outside of the step", "never closed"],
)
def test_with_a_mistake_in_it_mailboxes_and_accounts_come_apart(
    work: str, change: tuple[str, str], point: str, tmp_path: Path
) -> None:
    failed = badly(mutant(tmp_path, "user_onboarding", "onboarding.py", [change]), work, [point])
    assert list(failed) == [point] and "there: False" in failed[point]


def test_the_page_s_own_leaves_what_nobody_cleans_up() -> None:
    found = explore(page.hire, resources=page.RESOURCES, check=page.check, points=["P5.deciding@people"], **HIRING)
    assert [one.name for one in found.failed] == ["P5.deciding@people"]
    found = explore(page.misplace, resources=page.RESOURCES, check=page.check, points=["P6.aborted"], **HIRING)
    assert [one.name for one in found.failed] == ["P6.aborted"]


def test_the_page_s_own_takes_the_mailbox_of_whoever_had_the_address_before(files: Place) -> None:
    """And ours does not: it undoes what its own steps have done, by their keys."""
    post("/mailboxes", "long ago", email=AVERY.email)
    with files.open() as db:
        with pytest.raises(Refused, match="one already"):
            onboard(db, REQUEST, AVERY)
        require_only_the_old_one(db)
        with pytest.raises(Refused, match="one already"):
            page.onboard(db, AVERY)
        assert standing("/mailboxes") == []


def require_only_the_old_one(db: Coordinator) -> None:
    assert [one["key"] for one in done("/mailboxes") if not one["undone"]] == ["long ago"]
    assert matrix.seen(db) == {"users": 0, "audit": 0, "/mailboxes": 1, "/entries": 0, "/teams": 0}


# ---- while the outside is at it -------------------------------------------------------------------


def test_what_is_taken_back_before_it_arrives_is_shut_out(place: Place) -> None:
    """The process dies while its request is on the way; its deadline passes; the request is served after that."""
    misbehave("/entries", "wait")
    process = place.live("examples.user_onboarding.matrix:hire")
    until(lambda: waiting() == 1, 30)
    killed(process)
    with place.open() as db:
        assert db.rollback_distributed(REQUEST).state is State.ABORTED
        until(lambda: db.recover(grace=0).clean and not db.undo_steps(grace=0).waiting)
        go_on()
        require(db, there=False)
        with pytest.raises(TransactionAborted):
            onboard(db, REQUEST, AVERY)
    assert done("/entries") == [] and standing("/mailboxes") == []


def test_a_refusal_that_is_heard_at_the_second_try_alone_stays_until_it_is_rolled_back(files: Place) -> None:
    misbehave("/teams", "lose")
    with files.open(settings=Settings(retry_first_s=0.01)) as db:
        with pytest.raises(TransactionDoomed, match="can only be rolled back"):
            onboard(db, REQUEST, Person(AVERY.email, AVERY.name, "Astrology"))
        assert db.status(REQUEST).state is State.PREPARED
        db.rollback_distributed(REQUEST)
        require(db, there=False)


def test_the_death_of_the_service_itself_changes_nothing(files: Place, service: Service) -> None:
    """It has done it and not said so, and is gone; it comes back, and is asked again under the same key."""
    misbehave("/entries", "lose", times=3)  # as often as the step is tried
    with files.open(settings=Settings(retry_first_s=0.01, retry_most_s=0.01)) as db:
        with pytest.raises(httpx2.RemoteProtocolError):
            onboard(db, REQUEST, AVERY)
        service.kill()
        with pytest.raises(httpx2.ConnectError):
            onboard(db, REQUEST, AVERY)
        assert db.status(REQUEST).state is State.PREPARED
        service.start()
        onboard(db, REQUEST, AVERY)
        require(db, there=True)


# ---- poison ---------------------------------------------------------------------------------------


def test_a_mailbox_that_cannot_be_closed_is_parked_and_holds_up_nobody(place: Place) -> None:
    misbehave("/mailboxes/undo", "fail", times=2)
    eager = Settings(retry_first_s=0.001, retry_most_s=0.001, tries_max=2)
    with place.open(settings=eager) as db:
        with pytest.raises(Refused):
            onboard(db, REQUEST, Person("blake@company.com", "Blake", "Astrology"))
        until(lambda: not db.undo_steps().waiting)
        assert [one.state for one in db.steps(REQUEST)] == [CallState.PARKED, CallState.UNDONE, CallState.REFUSED]
        onboard(db, "another", AVERY)
        assert [one["email"] for one in standing("/mailboxes")] == ["blake@company.com", AVERY.email]
        assert [one["email"] for one in standing("/entries")] == [AVERY.email]

        db.skip_step(REQUEST, 0, by="ann", because="closed by hand")
        assert db.parked_steps() == []
