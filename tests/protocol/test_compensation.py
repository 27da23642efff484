"""The compensation machine: every pair of state and event is decided, and no world breaks I19, whoever dies or stalls.

The world: a caller with its steps, workers, the register, and an outside that honours keys. Everything may happen in
any order: a request may arrive long after whoever sent it has died, and time is whatever makes a claim possible, so
that nothing here is owed to a lease.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import msgspec
import pytest

from nodoubt.protocol.compensation import (
    EVENTS,
    TABLE,
    Answered,
    Bare,
    Claimed,
    Declined,
    Edited,
    Event,
    Failed,
    GivenUp,
    NotNow,
    NotPossible,
    Overtaken,
    Renewed,
    Retried,
    Skipped,
    Unanswered,
    Undone,
    Unfit,
    following,
    once_more,
    pause_s,
    step,
)
from nodoubt.protocol.records import CLOSED, Call, CallState, Verdict

ATTEMPT = "0" * 32
EVER = float("inf")
TRIES_MAX = 2
SAMPLES: dict[type[Event], Event] = {
    Answered: Answered("1"),
    Declined: Declined("no"),
    Unanswered: Unanswered("?"),
    Overtaken: Overtaken("late"),
    Renewed: Renewed(9.0),
    Claimed: Claimed("c2", "w2", 9.0),
    Undone: Undone(),
    Failed: Failed("c1", "no", 9.0),
    GivenUp: GivenUp("c1", "no"),
    Unfit: Unfit("gone"),
    Bare: Bare(),
    Retried: Retried("ada"),
    Skipped: Skipped("ada", "done by hand"),
    Edited: Edited("ada", "a typo", '{"a":1}'),
}


def call(state: CallState = CallState.BEGUN, number: int = 0, **more: object) -> Call:
    return msgspec.structs.replace(Call(ATTEMPT, number, f"k{number}", "charge", "refund", state=state), **more)


# ---- the table ------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", list(CallState))
@pytest.mark.parametrize("kind", EVENTS)
def test_every_pair_of_state_and_event_is_decided(state: CallState, kind: type[Event]) -> None:
    before = call(state, claim="c1", until=5.0)
    if (state, kind) not in TABLE:
        with pytest.raises(NotPossible, match=state.value):
            step(before, SAMPLES[kind], at=9.0)
        return
    after = step(before, SAMPLES[kind], at=9.0)
    assert after is before or (after.version, after.changed_at) == (before.version + 1, 9.0)
    assert (after.attempt, after.number, after.key, after.step, after.undo) == (ATTEMPT, 0, "k0", "charge", "refund")


def test_what_is_closed_stays_as_it_ended() -> None:
    for state, kind in itertools.product(CLOSED, EVENTS):
        if (state, kind) in TABLE:
            assert step(call(state), SAMPLES[kind], at=9.0).state is state


@pytest.mark.parametrize("kind", [Claimed, Unfit, Skipped])
@pytest.mark.parametrize("state", [CallState.BEGUN, CallState.UNDOING])
def test_whoever_has_a_call_is_left_alone_until_its_time_is_up(state: CallState, kind: type[Event]) -> None:
    held = call(state, claim="c1", until=5.0)
    with pytest.raises(NotNow):
        step(held, SAMPLES[kind], at=4.9)
    assert step(held, SAMPLES[kind], at=5.0) is not held


def test_whoever_does_not_wait_for_that_has_it_at_once_and_at_no_later_time() -> None:
    """A time that is still to come would have whoever follows wait for it, however impatient."""
    held = call(CallState.UNDOING, claim="c1", until=70.0, changed_at=1.0)
    claimed = step(held, Claimed("c2", "w2", 80.0), at=2.0, patient=False)
    assert (claimed.claim, claimed.changed_at) == ("c2", 2.0)


def test_the_caller_itself_need_not_wait_for_its_own_action() -> None:
    claimed = step(call(until=5.0), Claimed("c1", "me", 9.0, mine=True), at=1.0)
    assert (claimed.state, claimed.tries, claimed.claim) == (CallState.UNDOING, 1, "c1")


def test_the_caller_waits_like_everybody_for_a_compensation_that_somebody_has() -> None:
    for state in (CallState.UNDOING, CallState.DUE):
        with pytest.raises(NotNow) as raised:
            step(call(state, claim="c1", worker="w1", until=5.0), Claimed("c2", "me", 9.0, mine=True), at=4.9)
        assert raised.value.until == 5.0


@pytest.mark.parametrize("kind", [Claimed, Unfit, Skipped])
@pytest.mark.parametrize("state", [CallState.DONE, CallState.DOUBT])
def test_an_action_that_is_over_has_nobody_to_wait_for(state: CallState, kind: type[Event]) -> None:
    """The time that its caller had asked for goes by unused."""
    assert step(call(state, until=5.0), SAMPLES[kind], at=1.0).state is not state


def test_of_an_error_no_more_is_kept_than_can_be_shown() -> None:
    assert step(call(), Unanswered("x" * 5000), at=1.0).error == "x" * 2000


def test_a_failure_counts_only_from_whoever_holds_the_claim() -> None:
    mine = call(CallState.UNDOING, claim="c2")
    assert step(mine, Failed("c1", "stale", 9.0), at=1.0) is mine is step(mine, GivenUp("c1", "stale"), at=1.0)
    assert step(mine, Failed("c2", "no", 9.0), at=1.0).state is CallState.DUE
    assert step(mine, GivenUp("c2", "no"), at=1.0).state is CallState.PARKED


def test_a_success_counts_from_whoever_reports_it_and_stands() -> None:
    for state in (CallState.UNDOING, CallState.DUE, CallState.PARKED):
        assert step(call(state, claim="c2"), Undone(), at=1.0).state is CallState.UNDONE
    done = call(CallState.UNDONE)
    assert step(done, Failed("c1", "stale", 9.0), at=1.0) is done


def test_a_try_that_nobody_reports_counts_too() -> None:
    """A compensation that kills its process must be parked as well, some day."""
    once = step(call(CallState.DONE), Claimed("c1", "w1", 5.0), at=1.0)
    assert step(once, Claimed("c2", "w2", 9.0), at=5.0).tries == 2


def test_a_try_more_than_it_may_have_is_no_claim_however_often_its_claimer_had_counted() -> None:
    due = call(CallState.DUE, tries=3)
    assert step(due, Claimed("c1", "w1", 5.0, tries_max=4), at=1.0).tries == 4
    with pytest.raises(NotPossible, match="due"):
        step(due, Claimed("c1", "w1", 5.0, tries_max=3), at=1.0)


def test_what_is_written_once_more_is_the_same_and_another_version() -> None:
    before = call(CallState.DONE, result="1", version=4, changed_at=1.0)
    again = once_more(before, at=2.0)
    assert (again.version, again.changed_at) == (5, 2.0)
    assert msgspec.structs.replace(again, version=4, changed_at=1.0) == before


def test_compensations_go_from_the_highest_down_and_pass_over_what_is_parked() -> None:
    calls = [call(CallState.DONE, n) for n in range(3)]
    assert following(calls) is calls[2]
    for state in (*CLOSED, CallState.PARKED):
        assert following([*calls[:2], call(state, 2)]) is calls[1]
    for state in (CallState.DUE, CallState.UNDOING, CallState.BEGUN, CallState.DOUBT):
        waiting = call(state, 2, until=EVER)
        assert following([*calls[:2], waiting]) is waiting, "the order holds while it is tried again"
    assert following([call(CallState.PARKED, 0), call(CallState.UNDONE, 1)]) is None


def test_pauses_double_up_to_a_bound_and_differ_by_chance() -> None:
    assert [pause_s(n, first_s=1, most_s=10, jitter=0) for n in (1, 2, 3, 4, 5, 10_000)] == [1, 2, 4, 8, 10, 10]
    assert pause_s(3, first_s=1, most_s=10, jitter=1) == 2


# ---- the world ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outside:
    """What the outside did for one call: it honours keys; a compensation that comes first shuts the action out."""

    acted: int = 0
    undone: int = 0
    shut: bool = False
    keys: frozenset[str] = frozenset()

    def act(self) -> Outside:
        return self if self.shut or self.acted else replace(self, acted=1)

    def undo(self, key: str) -> Outside:
        if key in self.keys:
            return self
        seen = self.keys | {key}
        return replace(self, undone=self.undone + 1, keys=seen) if self.acted else replace(self, shut=True, keys=seen)


@dataclass(frozen=True)
class Worker:
    """Where a worker is: idle, about to send, waiting, about to record; `claim` names its turn."""

    at: str = "idle"
    number: int = -1
    claim: str = ""
    version: int = -1


@dataclass(frozen=True)
class Rules:
    """The engine's part, which a mutant changes."""

    fenced: bool = True  # an intent is refused, and an action not begun, once the attempt is decided
    intent_first: bool = True
    confirmed: bool = True  # only an ABORT that stands makes a worker undo
    one_key: bool = True  # every try of a compensation has the same key
    follow: Callable[[list[Call]], Call | None] = following
    success_stands: bool = True


@dataclass(frozen=True)
class World:
    rules: Rules
    wanted: int  # how many steps the caller calls
    register: Verdict | None = None
    calls: tuple[Call, ...] = ()
    outside: tuple[Outside, ...] = ()
    caller: str = "idle"
    on_its_way: frozenset[tuple[str, int, str]] = frozenset()  # requests that were sent and have not arrived
    workers: tuple[Worker, ...] = (Worker(), Worker())
    crashes: int = 1  # that may still happen
    late_intent: frozenset[int] = frozenset()  # calls whose intent was written after the decision

    def called(self, number: int) -> Call | None:
        return next((one for one in self.calls if one.number == number), None)

    def with_call(self, after: Call) -> World:
        others = tuple(one for one in self.calls if one.number != after.number)
        return replace(self, calls=tuple(sorted((*others, after), key=lambda one: one.number)))

    def with_outside(self, number: int, after: Outside) -> World:
        return replace(self, outside=(*self.outside[:number], after, *self.outside[number + 1 :]))

    def with_worker(self, index: int, after: Worker) -> World:
        return replace(self, workers=(*self.workers[:index], after, *self.workers[index + 1 :]))

    def check(self) -> None:
        for number, one in enumerate(self.outside):
            assert one.undone <= one.acted <= 1, f"I19: #{number} acted {one.acted}, undone {one.undone}"
            assert not (one.undone and self.register is Verdict.COMMIT), "undone although it was committed"
            if one.acted:
                assert self.called(number) is not None, "I19: an action without a durable intent"

    def moves(self) -> Iterator[World]:
        yield from self._caller()
        yield from self._arrivals()
        for index in range(len(self.workers)):
            yield from self._worker(index)
        if self.register is None:
            yield replace(self, register=Verdict.ABORT)  # somebody thinks that the caller is dead, rightly or not

    # ---- the caller: an intent, a look, an action, its record; then the next, then the decision

    def _caller(self) -> Iterator[World]:
        number = len(self.outside) - 1
        own = self.called(number)
        if self.caller not in ("dead", "over") and self.crashes:
            yield replace(self, caller="dead", crashes=self.crashes - 1)
        match self.caller:
            case "idle" if number + 1 < self.wanted:
                decided = self.register is not None and self.rules.fenced
                yield (
                    replace(self, caller="over")
                    if decided
                    else replace(
                        self,
                        caller="intending" if self.rules.intent_first else "acting",
                        outside=(*self.outside, Outside()),
                    )
                )
            case "idle":
                done = all(one.state is CallState.DONE for one in self.calls)
                for verdict in (Verdict.COMMIT, Verdict.ABORT) if done else (Verdict.ABORT,):
                    yield replace(self, caller="over", register=self.register or verdict)
            case "intending":  # it has seen no decision; there may be one by now
                late = {number} if self.register is not None else set()
                yield replace(
                    self.with_call(call(number=number)), caller="looking", late_intent=self.late_intent | late
                )
            case "looking" if self.register is not None and self.rules.fenced:
                assert own is not None
                yield replace(self._taken(own, Overtaken("late")), caller="over")
            case "looking":
                yield replace(self, caller="acting")
            case "acting":
                assert number not in self.late_intent, "I19: a compensation that overtook its action did not stop it"
                yield replace(self, caller="waiting", on_its_way=self.on_its_way | {("act", number, "")})
            case "waiting":
                # It gives up now, or the answer has come.
                yield replace(self._recorded(number, Unanswered("?")), caller="idle")
                if self.outside[number].acted:
                    yield replace(self._recorded(number, Answered("1")), caller="idle")

    def _recorded(self, number: int, event: Event) -> World:
        own = self.called(number) or call(number=number)
        return self._taken(own, event)

    def _taken(self, own: Call, event: Event) -> World:
        try:
            return self.with_call(step(own, event, at=EVER))
        except NotPossible:
            return self

    # ---- what was sent arrives, or never does

    def _arrivals(self) -> Iterator[World]:
        for kind, number, key in self.on_its_way:
            left = replace(self, on_its_way=self.on_its_way - {(kind, number, key)})
            one = self.outside[number]
            yield left.with_outside(number, one.act() if kind == "act" else one.undo(key))

    # ---- workers

    def _worker(self, index: int) -> Iterator[World]:
        one = self.workers[index]
        if one.at not in ("idle", "dead") and self.crashes:
            yield replace(self.with_worker(index, Worker("dead")), crashes=self.crashes - 1)
        match one.at:
            case "idle":
                if self.register is not Verdict.ABORT and self.rules.confirmed:
                    return
                chosen = self.rules.follow(list(self.calls))
                if chosen is not None:
                    yield self.with_worker(index, Worker("claiming", chosen.number, version=chosen.version))
            case "claiming":
                now = self.called(one.number)
                assert now is not None
                if now.version != one.version:
                    yield self.with_worker(index, Worker())
                    return
                above = {c.number for c in self.calls if c.number > now.number and following([c]) is not None}
                assert above <= self.late_intent, "compensations run in reverse order"
                if now.tries >= TRIES_MAX:
                    yield self._reported(one, Unfit("tried too often")).with_worker(index, Worker())
                    return
                claimed = step(now, Claimed(f"{index}.{now.version}", f"w{index}", 0.0), at=EVER)
                yield self.with_call(claimed).with_worker(index, Worker("sending", now.number, claimed.claim))
            case "sending":
                key = "undo" if self.rules.one_key else one.claim
                sent = replace(self, on_its_way=self.on_its_way | {("undo", one.number, key)})
                yield sent.with_worker(index, replace(one, at="waiting"))
            case "waiting":
                yield self._reported(one, Failed(one.claim, "?", 0.0)).with_worker(index, Worker())
                if self.outside[one.number].keys:
                    yield self._reported(one, Undone()).with_worker(index, Worker())

    def _reported(self, one: Worker, event: Event) -> World:
        now = self.called(one.number)
        assert now is not None
        if isinstance(event, Failed) and not self.rules.success_stands:
            after = self.with_call(msgspec.structs.replace(now, state=CallState.DUE, version=now.version + 1))
        else:
            after = self._taken(now, event)
        stands = after.called(one.number)
        assert stands is not None
        assert stands.closed or not now.closed, "a success was taken back"
        return after


def explore(first: World) -> int:
    """Every order of everything. Returns how many states there are."""
    todo, seen = [first], {first}
    while todo:
        world = todo.pop()
        world.check()
        moved = False
        for after in world.moves():
            moved = True
            if after not in seen:
                seen.add(after)
                todo.append(after)
        if not moved:
            at_rest(world)
    return len(seen)


def at_rest(world: World) -> None:
    """Nothing can happen any more: what was aborted is undone, or parked, unless every worker is dead."""
    if world.register is not Verdict.ABORT:
        return
    for number, one in enumerate(world.outside):
        record = world.called(number)
        if record is not None and record.closed:
            assert one.undone == one.acted, f"#{number} is {record.state.value}: acted {one.acted}, undone {one.undone}"
        elif record is not None:
            parked = record.state is CallState.PARKED
            assert parked or all(w.at == "dead" for w in world.workers), f"#{number} is left {record.state.value}"


SMALL = World(Rules(), wanted=1)
LARGER = World(Rules(), wanted=2, workers=(Worker(),), crashes=1)


def test_no_order_of_anything_breaks_i19() -> None:
    sizes = [explore(SMALL), explore(LARGER)]
    sys.stdout.write(f"compensation: {sizes} states\n")


def in_order(calls: list[Call]) -> Call | None:
    return min((c for c in calls if not c.closed), key=lambda c: c.number, default=None)


MUTANTS = {
    "the intent after the action": (Rules(intent_first=False), "an action without a durable intent"),
    "no fence": (Rules(fenced=False), "did not stop it"),
    "undone although committed": (Rules(confirmed=False), "undone although it was committed"),
    "another key for each try": (Rules(one_key=False), "I19: #. acted 1, undone 2"),
    "in order instead of reverse": (Rules(follow=in_order), "reverse order"),
    "a stale failure takes a success back": (Rules(success_stands=False), "taken back"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_explorer_catches_each_mutant(name: str) -> None:
    rules, why = MUTANTS[name]
    with pytest.raises(AssertionError, match=why):
        for world in (SMALL, LARGER):
            explore(replace(world, rules=rules))
