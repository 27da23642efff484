"""The acts: an order is placed, its process is killed at a bad moment, somebody else cleans up.

Each act says what must come of its order; `check` finds out from the databases whether it did.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

import msgspec

from ..engine.context import Settings
from ..engine.sweep import SweepReport
from ..errors import InDoubt, NoDoubtError
from ..points import AtPoint, Point
from . import processes
from .check import DATABASES as BOTH
from .check import Check, caught, check, settled
from .child import Job, Report
from .look import Moment, look
from .payments import PaymentFailed
from .stage import Stage
from .world import Item, Order, World, place_order, settle_payments

CHILD_S = 60.0
DEADLINE_S = 1.0
SWEEPS_MAX = 20
POINTS_MAX = 4  # the last of them, that a table is not pushed off the screen
SERVER_SETTINGS = Settings(apply_s=2.0)  # how long a commit waits for a server that has just been killed

TEAPOTS = (Item(1, 2, 3900), Item(2, 8, 450))
CUPS = (Item(2, 12, 450),)


class ChildSurvived(Exception):
    """A child was to be killed and was not: the demo would show nothing."""


@dataclass(slots=True)
class Play:
    """One world, what has been done in it, and what must come of it."""

    world: World
    stage: Stage
    places: dict[str, str]
    expected: dict[str, bool] = field(default_factory=dict)
    attempts: dict[str, str] = field(default_factory=dict)  # as the children told them
    checks: list[Check] = field(default_factory=list)
    killed: int = 0

    def order(self, items: tuple[Item, ...], *, committed: bool, card: str = "good") -> Order:
        """The act's order, and what must come of it."""
        name = f"order-{self.stage.number}"
        self.expected[name] = committed
        return Order(name, "Avery", items, card)

    def show(self, when: str, order: Order) -> Moment:
        """What each database holds of it."""
        told = self.attempts.get(order.id)
        moment = look(self.world, [told] if told else [])
        self.stage.moment(when, order.id, self.attempt(order, moment), moment, self.places)
        return moment

    def attempt(self, order: Order, moment: Moment) -> str:
        """The order's attempt: as its process has told it, or as the journal lists it."""
        listed = (moment.names or {}).get(order.id)
        return self.attempts.get(order.id) or ("" if listed is None else listed[0].attempt)

    def place_and_die(
        self,
        order: Order,
        point: str,
        *,
        prepared: Collection[str],
        hold: tuple[str, ...] = (),
        deadline: float | None = None,
    ) -> None:
        """A child places the order and is killed. `prepared`: where it must leave a prepared branch."""
        job = Job(self.world, order, point, hold, deadline)
        with processes.start("nodoubt.demo.child") as child:
            try:
                told, complaint = child.communicate(msgspec.json.encode(job), CHILD_S)
            finally:
                child.kill()
        reports = msgspec.json.decode(b"[" + b",".join(told.splitlines()) + b"]", type=list[Report])
        points = [report.point for report in reports]
        if child.returncode != -signal.SIGKILL:
            raise ChildSurvived(f"it ended with {child.returncode} after {points}: {complaint.decode()}")
        self.killed += 1
        self.attempts[order.id] = reports[0].attempt
        self.stage.deed(f"process {child.pid} got as far as: {', '.join(points[-POINTS_MAX:])}")
        self.stage.deed(f"kill -9 {child.pid}")
        moment = self.show("The process is dead. Now there is:", order)
        self.tell(caught(moment, order, reports[0].attempt, prepared=prepared))

    def recover(self) -> SweepReport:
        """Recovery by another process than the dead one: this one. Goes on while a server still lets go of the dead."""
        with self.world.coordinator() as db:
            report = total = db.recover(grace=0)
            for _ in range(SWEEPS_MAX):
                if not report.trouble:
                    break
                report = db.recover(grace=0)
                total = _added(total, report)
        what = [f"{total.committed} committed"] * bool(total.committed)
        what += [f"{total.rolled_back} rolled back"] * bool(total.rolled_back)
        what += [f"{total.left} left alone"] * bool(total.left)
        self.stage.deed(f"nodoubt recover: {', '.join(what) or 'nothing to do'}")
        return total

    def settle(self) -> None:
        """Give money back where the journal says that an order was aborted."""
        with self.world.coordinator() as db:
            refunded = settle_payments(db, self.world)
        if refunded:
            self.stage.deed(f"housekeeping: refunded {', '.join(refunded)}")

    def end(self, order: Order) -> None:
        """The end of an act: what there is, and whether it is what must be."""
        moment = self.show("Afterwards:", order)
        self.tell(settled(moment, order, self.attempt(order, moment), committed=self.expected[order.id]))

    def tell(self, one: Check) -> None:
        """A check of this moment."""
        self.stage.checks([one])
        self.checks.append(one)

    def check(self) -> list[Check]:
        """The sums."""
        return check(look(self.world), self.expected)


def _added(total: SweepReport, more: SweepReport) -> SweepReport:
    return SweepReport(
        prepared=total.prepared,
        committed=total.committed + more.committed,
        rolled_back=total.rolled_back + more.rolled_back,
        left=more.left,
        ended=total.ended + more.ended,
        quarantined=total.quarantined + more.quarantined,
        trouble=more.trouble,
    )


# ---- the journal in the shop's database -----------------------------------------------------------


def good_order(play: Play) -> None:
    """Nothing goes wrong."""
    stage = play.stage
    stage.act("A good order")
    order = play.order(TEAPOTS, committed=True)
    stage.say("Stage the order in the shop and the warehouse, take the money, commit both.")
    with play.world.coordinator() as db:
        place_order(db, play.world, order)
    play.end(order)


def declined_card(play: Play) -> None:
    """The caller itself changes its mind."""
    stage = play.stage
    stage.act("The card is declined")
    order = play.order(CUPS, committed=False, card="stolen")
    stage.say("Both databases are prepared when the payment service says no. The order is rolled back by its name.")
    with play.world.coordinator() as db:
        try:
            place_order(db, play.world, order)
        except PaymentFailed as error:
            stage.deed(f"PaymentFailed: {error}")
    play.end(order)


def between_two_prepares(play: Play) -> None:
    """One branch is prepared, the other never will be."""
    stage = play.stage
    stage.act("Killed between two prepares")
    order = play.order(CUPS, committed=False)
    stage.say("The warehouse has promised that it can commit; the shop has not been asked yet.")
    play.place_and_die(order, "P3.prepared@warehouse", prepared=["warehouse"])
    stage.say(
        "The warehouse holds the cups for a process that no longer exists. Recovery writes ABORT into the journal "
        "first, so that the order can never be committed by anybody, and then rolls the branch back."
    )
    play.recover()
    play.end(order)


def paid_but_undecided(play: Play) -> None:
    """Staged and paid; somebody else decides later."""
    stage = play.stage
    stage.act("Killed after the payment, before the decision")
    order = play.order(TEAPOTS, committed=True)
    stage.say("Everything is prepared and the money is taken; the process dies with the word COMMIT on its lips.")
    play.place_and_die(order, "P5.deciding", prepared=BOTH)
    play.recover()
    stage.say(
        "Recovery leaves it alone: a staged order waits for its owner until its deadline. Any process that knows its "
        "name may decide. This one commits it, as a retry of the same job would:"
    )
    with play.world.coordinator() as db:
        result = db.commit_distributed(order.id)
        stage.deed(f"commit_distributed({order.id!r}): {result.state.value}")
        again = db.commit_distributed(order.id)
        stage.deed(f"and once more, because retries happen: {again.state.value}, nothing done twice")
    play.end(order)


def paid_and_forgotten(play: Play) -> None:
    """Staged and paid; nobody comes back."""
    stage = play.stage
    stage.act("Killed at the same point, and nobody comes back")
    order = play.order(CUPS, committed=False)
    stage.say(f"The same death, but the order was staged with a deadline of {DEADLINE_S:g} s.")
    play.place_and_die(order, "P5.deciding", prepared=BOTH, deadline=DEADLINE_S)
    with play.world.coordinator() as db:
        deadline = db.status(order.id).deadline or 0.0
    time.sleep(max(deadline - time.time(), 0) + 0.01)
    stage.say("Its deadline passes. Recovery aborts it; then the books show money for an order that is not to be.")
    play.recover()
    play.settle()
    play.end(order)


def at_the_decision(play: Play) -> None:
    """The decision rides in the shop's own commit; the warehouse has not heard of it."""
    stage = play.stage
    stage.act("Killed right after the decision")
    order = play.order(CUPS, committed=True)
    stage.say(
        "The journal is in the shop's database: the decision becomes durable with the shop's own commit, by the same "
        "flush."
    )
    play.place_and_die(order, "P6.committed", prepared=["warehouse"])
    stage.say(
        "Half of it is committed: the shop shows the order, the warehouse still holds the cups. The decision stands in "
        "the journal, so there is nothing to guess: whoever comes next commits the rest."
    )
    play.recover()
    play.end(order)


SHARED_JOURNAL: tuple[Callable[[Play], None], ...] = (
    good_order,
    declined_card,
    between_two_prepares,
    paid_but_undecided,
    paid_and_forgotten,
    at_the_decision,
)


# ---- the journal in a database of its own ---------------------------------------------------------


def two_prepares_at_once(play: Play) -> None:
    """Both prepare at the same time; one of them wins by a hair."""
    stage = play.stage
    stage.act("A journal of its own: killed while two branches prepare at once")
    order = play.order(CUPS, committed=False)
    stage.say(
        "Now the journal is a database of its own, so that no branch carries the decision. Both branches prepare at "
        "the same time. The shop's is done, the warehouse's is held back by a hair when the process dies."
    )
    play.place_and_die(order, "P3.prepared@shop", hold=("warehouse",), prepared=["shop"])
    play.recover()
    play.end(order)


def decided_nothing_committed(play: Play) -> None:
    """The decision is durable, and nobody has been told."""
    stage = play.stage
    stage.act("Killed after the decision, before any branch commits")
    order = play.order(TEAPOTS, committed=True)
    stage.say("COMMIT is written to the journal's disk. Neither database has heard of it.")
    play.place_and_die(order, "P6.committed", prepared=BOTH)
    stage.say(
        "No customer can see the order yet, and yet it is committed: the journal's word is what counts. "
        "Two recoveries run one after the other; the second finds nothing left."
    )
    play.recover()
    play.recover()
    play.end(order)


def half_way_through_phase_two(play: Play) -> None:
    """One branch has committed, the other has not."""
    stage = play.stage
    stage.act("Killed between two commits")
    order = play.order(CUPS, committed=True)
    stage.say("The warehouse has committed. The shop was just about to.")
    play.place_and_die(order, "P7.branch-committed@warehouse", hold=("shop",), prepared=["shop"])
    stage.say(
        "A reader of both databases sees half an order now; without the decision in the journal nobody could tell "
        "which half is right. Recovery can: it was decided."
    )
    play.recover()
    play.end(order)


OWN_JOURNAL: tuple[Callable[[Play], None], ...] = (
    two_prepares_at_once,
    decided_nothing_committed,
    half_way_through_phase_two,
)


# ---- a server dies --------------------------------------------------------------------------------


def server_dies(play: Play, kill: Callable[[], None], restart: Callable[[], None]) -> None:
    """The server with the shop and the journal is killed: while the order is prepared, and right after the decision."""
    stage = play.stage
    stage.act("The PostgreSQL server itself is killed, twice")
    order = play.order(TEAPOTS, committed=True)
    stage.say("An order is staged and paid, and its process is killed, as before.")
    play.place_and_die(order, "P5.deciding", prepared=BOTH)
    with play.world.coordinator() as db:
        kill()
        stage.deed("kill -9 to every process of the server that holds the shop and the journal")
        try:
            db.commit_distributed(order.id)
        except NoDoubtError as error:
            stage.deed(f"commit_distributed({order.id!r}): {str(error).splitlines()[0]}")
        play.show("The server is down. Now there is:", order)
    stage.say("Without the journal nobody can decide, and nobody has: it says so, and guesses nothing.")
    restart()
    stage.deed("PostgreSQL is started again and does its crash recovery")
    play.show("The promise has survived:", order)
    stage.say("Commit again; this time the server is killed in the instant in which the decision is durable.")
    with play.world.coordinator(observer=AtPoint(Point.parse("P6.committed"), kill), settings=SERVER_SETTINGS) as db:
        try:
            result = db.commit_distributed(order.id)
            stage.deed(f"commit_distributed({order.id!r}): {result.state.value}; and kill -9 to PostgreSQL")
        except InDoubt as error:
            stage.deed(f"InDoubt: {error}")
    play.show("The server is down again:", order)
    restart()
    stage.deed("PostgreSQL is started again")
    play.recover()
    play.end(order)


def perform(play: Play, acts: Iterable[Callable[[Play], None]]) -> list[Check]:
    """Play the acts in one world; then the sums."""
    for act in acts:
        act(play)
    play.stage.say("")
    play.stage.say("The sums, from what the databases hold now:", style="bold")
    checks = play.check()
    play.stage.checks(checks)
    return play.checks + checks
