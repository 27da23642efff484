"""What lies outside of every database in a world: a service that charges and mails, and the steps that ask it to.

`charge` and `refund` go to the part of it that does what the contract asks of the outside: two requests of one key are
one, and a refund whose charge has not come refuses that charge for ever. `mail` and `recall` go to a part that honours
nothing: each request has its effect. What it says to each request stands in the step's own arguments, a `Plan`; what
becomes of the messages is the schedule's, as with every message of a process.

`Hands` runs these functions in a simulated process, instead of threads: each is one request, and whoever waits for it
is answered when its time is up, while the request may still be on its way.

Must not: know what the world checks, beyond telling `effects` what was begun and what has happened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from ...ports import SessionLost
from ...script import Outcome
from ...steps.registry import Compensation, IdempotencyKey, Options, Registry, Step
from ...steps.running import GaveNoAnswer, Job
from .driver import Answer, Answering
from .network import Link

if TYPE_CHECKING:
    from .machine import Reply
    from .process import Process
    from .world import World

NAME = "outside"
LATE_S = 3.0  # longer than anybody waits for a step


class Say(StrEnum):
    """What the service says to a request, and does."""

    DONE = "done"
    REFUSED = "refused"  # surely nothing happened
    BROKEN = "broken"  # an error, and nothing has happened, which the error does not say
    BROKEN_AFTER = "broken after"  # the same error, and it has happened
    LATE = "late"  # it has happened, and whoever asked has stopped waiting when the answer comes


class Plan(msgspec.Struct, frozen=True):
    """The arguments of a step: which use it is of its transaction's, and what will be said to its requests in turn.

    After that: "done". `poison`: its compensation never succeeds.
    """

    use: str
    action: tuple[Say, ...] = ()
    undo: tuple[Say, ...] = ()
    poison: bool = False

    def __str__(self) -> str:
        return self.use


class Declined(Exception):
    """Surely nothing happened."""


class Broken(Exception):
    """It says nothing of what has happened."""


# ---- the functions, as a program declares them: each stands for one request, which `Hands` sends


def _charge(plan: Plan, key: IdempotencyKey) -> str:
    raise NotImplementedError


def _refund(plan: Plan, key: IdempotencyKey) -> None:
    raise NotImplementedError


def _mail(plan: Plan) -> str:
    raise NotImplementedError


def _recall(plan: Plan) -> None:
    raise NotImplementedError


KNOWN = Registry()
CHARGE: Step[..., Any, str] = KNOWN.step(_charge, "charge", Options(tries_max=2, idempotent=True, refused=(Declined,)))
REFUND: Compensation[..., Any] = KNOWN.compensation(_refund, "refund", Options())
MAIL: Step[..., Any, str] = KNOWN.step(_mail, "mail", Options(refused=(Declined,)))
RECALL: Compensation[..., Any] = KNOWN.compensation(_recall, "recall", Options())
KEYED = frozenset({"charge", "refund"})
ACTIONS = frozenset({"charge", "mail"})


# ---- the service


@dataclass(slots=True)
class Account:
    """What has happened for one use of a step: effects, not requests."""

    keyed: bool
    done: int = 0
    undone: int = 0
    asked: int = 0
    asked_to_undo: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """`order`: the use it is for, whatever key it comes under. `of`: the key of the action."""

    order: tuple[str, str]  # attempt, use
    key: str
    of: str
    plan: Plan

    def __str__(self) -> str:
        return f"{self.plan.use} {self.key}"


@dataclass(slots=True)
class Service:
    """What it knows outlives everything."""

    world: World
    name: str = NAME
    accounts: dict[tuple[str, str], Account] = field(default_factory=dict)
    _answers: dict[str, Outcome[Any]] = field(default_factory=dict)  # by key, of requests that had an effect
    _charged: set[str] = field(default_factory=set)
    _shut: set[str] = field(default_factory=set)

    def receive(self, link: Link, verb: str, args: tuple[Any, ...], reply: Reply) -> None:
        """A request has arrived. As a server's, for the network."""
        request: Request = args[0]
        account = self.accounts.setdefault(request.order, Account(verb in KEYED))
        if account.keyed and request.key in self._answers:
            reply(self._answers[request.key])
            return
        say = self._say(verb, request, account)
        if say is Say.REFUSED or (verb in ACTIONS and account.keyed and request.of in self._shut):
            reply(self._kept(request, account, Outcome(None, Declined("no"))))
        elif say is Say.BROKEN:
            reply(Outcome(None, Broken("something went wrong")))
        else:
            answer = self._kept(request, account, self._done(verb, request, account))
            broken: Outcome[Any] = Outcome(None, Broken("something went wrong"))
            late_s = LATE_S if say is Say.LATE else 0.0
            self.world.kernel.after(late_s, reply, broken if say is Say.BROKEN_AFTER else answer)

    def hang_up(self, link: Link) -> None:
        """It does not mind."""

    def _say(self, verb: str, request: Request, account: Account) -> Say:
        plan = request.plan
        if verb in ACTIONS:
            turn, sayings = account.asked, plan.action
            account.asked += 1
        else:
            turn, sayings = account.asked_to_undo, plan.undo
            account.asked_to_undo += 1
            if plan.poison:
                return Say.BROKEN
        return sayings[turn] if turn < len(sayings) else Say.DONE

    def _done(self, verb: str, request: Request, account: Account) -> Outcome[Any]:
        if verb in ACTIONS:
            account.done += 1
            self._charged.add(request.of)
        elif not account.keyed or request.of in self._charged:
            account.undone += 1
        else:
            self._shut.add(request.of)
        self.world.trace.note(self.name, f"has {verb} {request.plan.use}: {account.done} done, {account.undone} undone")
        self.world.effects.happened(request.order, account)
        return Outcome(f"done {request.plan.use}" if verb in ACTIONS else None)

    def _kept(self, request: Request, account: Account, outcome: Outcome[Any]) -> Outcome[Any]:
        if account.keyed:
            self._answers[request.key] = outcome
        return outcome


# ---- who asks it


class Line(Link):
    """A connection for one request. It has no session at its other end."""

    def __init__(self, process: Process) -> None:
        self.network, self.process = process.world.network, process
        self.machine: Any = process.world.service
        self.usable, self.killed, self.ended, self.broken, self.hung_up = True, False, False, False, False
        self.arrived_at, self.busy, self.connection_id = 0.0, 0, 0


class Hands(Answering):
    """See the module: `steps.running.Runner`, in a simulated process."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def start(self, verb: str, args: tuple[Any, ...], answer: Answer) -> Callable[[], None]:
        assert verb == "run", verb
        job: Job = args[0]
        process, waiting = self._process, [answer]  # emptied by whoever ends the wait
        process.world.effects.begins(process, job)

        def answered(outcome: Outcome[Any]) -> None:
            if waiting:
                late.cancel()
                waiting.pop()(_as_a_function_says_it(outcome))

        def too_late() -> None:
            if waiting:
                waiting.pop()(Outcome(None, job.silent()))

        def leave() -> None:
            late.cancel()
            waiting.clear()

        context, plan = job.context, job.values["plan"]
        request = Request((context.attempt, plan.use), str(context.key), str(context.action_key), plan)
        late = process.after(job.within_s, too_late)
        Line(process).start(job.function.name, (request,), answered)
        return leave

    def timed_out(self, seconds: float) -> Exception:
        return GaveNoAnswer(f"no answer within {seconds:.3g} s")


def _as_a_function_says_it(outcome: Outcome[Any]) -> Outcome[Any]:
    if isinstance(outcome.error, SessionLost):
        return Outcome(None, ConnectionError(str(outcome.error)))
    return outcome
