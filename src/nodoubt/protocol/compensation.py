"""The machine for steps and their compensations: one call of a step, from its intent to the end of what undoes it.

A call is a record in the journal, and everybody who has to do with it is another process: the caller, any number of
workers, a human. So the machine is a function of the record: `step(call, event, at=…) -> Call`, and whoever asks for a
change writes it by compare-and-set on `version`. `TABLE` has a rule for every pair of state and event that can occur.

Guarantees (I19, I20): an action's end is recorded only on a call that nobody has begun to undo; a compensation is
claimed by one at a time, in a word that differs each time; its success stands, whoever reports it, while a failure
counts only from whoever holds the claim; tries are counted as they begin, so that one which kills its worker counts.
`following` takes the calls of one attempt from the highest down, and passes over what is parked.

What it cannot guarantee: that a worker whose time is up has stopped. Two may then run one compensation, both under the
call's one key, and the outside must honour that key.

Must not: do anything. No clock, no randomness, no I/O. It does not know whether the attempt was aborted: that is the
register's word, and whoever claims must have it, confirmed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from .records import Call, CallState

ERROR_LENGTH_MAX = 2000


@dataclass(frozen=True, slots=True)
class Answered:
    """The action ended well."""

    result: str


@dataclass(frozen=True, slots=True)
class Declined:
    """The function said, by an error it declares for that, that surely nothing happened."""

    why: str


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A time-out, a cancellation, or an error that says nothing: the action may have happened."""

    why: str


@dataclass(frozen=True, slots=True)
class Overtaken:
    """Before it acted, the caller has seen that the attempt is decided: it will not act."""

    why: str


@dataclass(frozen=True, slots=True)
class Renewed:
    """The caller is about to act, or to act again, and needs time until then."""

    until: float


@dataclass(frozen=True, slots=True)
class Claimed:
    """A worker takes the compensation. `mine`: it is the caller itself, whose action is over.

    `tries_max`: it is not begun more often. Held here, against the call as it is when it is claimed: whoever counted
    before may have been overtaken by others since (I20).
    """

    claim: str
    worker: str
    until: float
    mine: bool = False
    tries_max: int | None = None


@dataclass(frozen=True, slots=True)
class Undone:
    """The compensation ended well."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The compensation failed, or gave no answer. Not before `until` again."""

    claim: str
    why: str
    until: float


@dataclass(frozen=True, slots=True)
class GivenUp:
    """It has failed as often as it may."""

    claim: str
    why: str


@dataclass(frozen=True, slots=True)
class Unfit:
    """It cannot be run: no such function any more, arguments that it does not take, or tries that nobody survived."""

    why: str


@dataclass(frozen=True, slots=True)
class Bare:
    """The attempt was aborted, and the call has no compensation."""


@dataclass(frozen=True, slots=True)
class Retried:
    """A human wants it tried again, from the start."""

    by: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A human has seen to it, or will: it is not run any more."""

    by: str
    because: str


@dataclass(frozen=True, slots=True)
class Edited:
    """A human has mended the arguments."""

    by: str
    because: str
    arguments: str


Event = (
    Answered
    | Declined
    | Unanswered
    | Overtaken
    | Renewed
    | Claimed
    | Undone
    | Failed
    | GivenUp
    | Unfit
    | Bare
    | Retried
    | Skipped
    | Edited
)
EVENTS: tuple[type[Event], ...] = (
    Answered, Declined, Unanswered, Overtaken, Renewed, Claimed, Undone, Failed, GivenUp, Unfit, Bare, Retried, Skipped,
    Edited,
)  # fmt: skip


class NotNow(Exception):
    """The call is somebody else's until `until`."""

    def __init__(self, call: Call) -> None:
        super().__init__(f"{call.step} #{call.number} is {call.state.value}, and {call.worker or 'its caller'} has it")
        self.until = call.until


class NotPossible(Exception):
    """An event that has no meaning in this state: nothing is changed."""

    def __init__(self, call: Call, event: Event) -> None:
        super().__init__(f"{call.step} #{call.number} is {call.state.value}: {_WORDS[type(event)]} is not possible")
        self.call = call
        self.state = call.state


def step(call: Call, event: Event, *, at: float, patient: bool = True) -> Call:
    """The call after the event; the very same object if the event changes nothing. `patient`: what waits, waits.

    Raises `NotPossible` where the table has no rule or the tries are used up, `NotNow` where somebody has the call for
    a while yet.
    """
    rule = TABLE.get((call.state, type(event)))
    worn_out = isinstance(event, Claimed) and event.tries_max is not None and call.tries >= event.tries_max
    if rule is None or worn_out:
        raise NotPossible(call, event)
    caller = isinstance(event, Claimed) and event.mine and rule.caller_may
    if rule.waits and patient and at < call.until and not caller:
        raise NotNow(call)
    if rule.holder_only and getattr(event, "claim", "") != call.claim:
        return call  # it was given to somebody else since, whose word counts
    changes: dict[str, Any] = {name: getattr(event, of) for name, of in rule.take.items()} | dict(rule.put)
    changes["state"] = rule.to or call.state
    changes["tries"] = changes.get("tries", call.tries) + isinstance(event, Claimed)
    changes["error"] = changes.get("error", call.error)[:ERROR_LENGTH_MAX]
    if all(getattr(call, name) == value for name, value in changes.items()):
        return call
    return msgspec.structs.replace(call, **changes, version=call.version + 1, changed_at=at)


def once_more(call: Call, *, at: float) -> Call:
    """The same call, to be written again: what was seen of it is on disk when that has been answered."""
    return msgspec.structs.replace(call, version=call.version + 1, changed_at=at)


def following(calls: Sequence[Call]) -> Call | None:
    """Of one aborted attempt, the call whose compensation is to run next, or is running; None: none is left.

    The highest that is neither closed nor parked. Whether its time has come, a claim will tell.
    """
    left = [call for call in calls if not call.closed and call.state is not CallState.PARKED]
    return max(left, key=lambda call: call.number, default=None)


def pause_s(tries: int, *, first_s: float, most_s: float, jitter: float) -> float:
    """How long to wait after so many tries: twice as long each time, and by chance (`jitter`, 0 to 1) up to half less.

    Many that failed together would otherwise come back together.
    """
    doublings = min(max(tries - 1, 0), 60)  # a float's exponent has an end
    return min(most_s, first_s * 2.0**doublings) * (1 - jitter / 2)


# ---- the rules ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What an event does in a state. `take`: fields of the call from fields of the event; `put`: from here."""

    to: CallState | None = None  # None: it stays
    take: Mapping[str, str] = field(default_factory=dict)
    put: Mapping[str, object] = field(default_factory=dict)
    waits: bool = False  # until the time of whoever has the call is up
    caller_may: bool = False  # but not the caller itself, whose action is over
    holder_only: bool = False  # from anybody else it changes nothing


_S = CallState
_FREE = {"claim": ""}
_ERROR = {"error": "why"}
_CLAIM = {"claim": "claim", "worker": "worker", "until": "until"}
_HUMAN = {"error": "because", "worker": "by"}

_DONE = Rule(to=_S.DONE, take={"result": "result"})
# The compensation has been begun, so the state is its own by now; but what the action returned may help it.
_LATE = Rule(take={"result": "result"})
_RENEW = Rule(to=_S.BEGUN, take={"until": "until"})
_CLAIM_NOW = Rule(to=_S.UNDOING, take=_CLAIM)
_CLAIM_IN_TIME = Rule(to=_S.UNDOING, take=_CLAIM, waits=True)
# Its action may be on its way: to wait saves the outside a race. Whoever does not wait breaks nothing (see above).
_CLAIM_BEGUN = Rule(to=_S.UNDOING, take=_CLAIM, waits=True, caller_may=True)
_UNDO = Rule(to=_S.UNDONE, put={"claim": "", "error": ""})
_FAIL = Rule(to=_S.DUE, take={"error": "why", "until": "until"}, put=_FREE, holder_only=True)
_GIVE_UP = Rule(to=_S.PARKED, take=_ERROR, put=_FREE, holder_only=True)
_PARK = Rule(to=_S.PARKED, take=_ERROR, put=_FREE)
_PARK_IN_TIME = Rule(to=_S.PARKED, take=_ERROR, put=_FREE, waits=True)
_CLOSE = Rule(to=_S.NOTHING)
_RETRY = Rule(to=_S.DUE, take={"worker": "by"}, put={"tries": 0, "until": 0.0})
_SKIP = Rule(to=_S.SKIPPED, take=_HUMAN, put=_FREE)
_SKIP_IN_TIME = Rule(to=_S.SKIPPED, take=_HUMAN, put=_FREE, waits=True)
_EDIT = Rule(take={"arguments": "arguments", **_HUMAN})
_STAY = Rule()

TABLE: dict[tuple[CallState, type[Event]], Rule] = {
    (_S.BEGUN, Answered): _DONE,
    (_S.BEGUN, Declined): Rule(to=_S.REFUSED, take=_ERROR),
    (_S.BEGUN, Unanswered): Rule(to=_S.DOUBT, take=_ERROR),
    (_S.BEGUN, Overtaken): Rule(to=_S.NOTHING, take=_ERROR),
    (_S.BEGUN, Renewed): _RENEW,
    (_S.BEGUN, Claimed): _CLAIM_BEGUN,
    (_S.BEGUN, Unfit): _PARK_IN_TIME,
    (_S.BEGUN, Bare): _CLOSE,
    (_S.BEGUN, Skipped): _SKIP_IN_TIME,
    (_S.DONE, Claimed): _CLAIM_NOW,
    (_S.DONE, Unfit): _PARK,
    (_S.DONE, Bare): _CLOSE,
    (_S.DONE, Skipped): _SKIP,
    (_S.DONE, Edited): _EDIT,
    (_S.DOUBT, Renewed): _RENEW,  # a step that may be repeated is called again
    (_S.DOUBT, Claimed): _CLAIM_NOW,
    (_S.DOUBT, Unfit): _PARK,
    (_S.DOUBT, Bare): _CLOSE,
    (_S.DOUBT, Skipped): _SKIP,
    (_S.DOUBT, Edited): _EDIT,
    (_S.UNDOING, Answered): _LATE,
    (_S.UNDOING, Claimed): _CLAIM_IN_TIME,
    (_S.UNDOING, Undone): _UNDO,
    (_S.UNDOING, Failed): _FAIL,
    (_S.UNDOING, GivenUp): _GIVE_UP,
    (_S.UNDOING, Unfit): _PARK_IN_TIME,
    (_S.UNDOING, Skipped): _SKIP_IN_TIME,
    (_S.DUE, Answered): _LATE,
    (_S.DUE, Claimed): _CLAIM_IN_TIME,
    (_S.DUE, Undone): _UNDO,  # by a worker that had been given up
    (_S.DUE, Failed): _STAY,
    (_S.DUE, GivenUp): _STAY,
    (_S.DUE, Unfit): _PARK,
    (_S.DUE, Retried): _RETRY,
    (_S.DUE, Skipped): _SKIP,
    (_S.DUE, Edited): _EDIT,
    (_S.PARKED, Answered): _LATE,
    (_S.PARKED, Undone): _UNDO,
    (_S.PARKED, Failed): _STAY,
    (_S.PARKED, GivenUp): _STAY,
    (_S.PARKED, Retried): _RETRY,
    (_S.PARKED, Skipped): _SKIP,
    (_S.PARKED, Edited): _EDIT,
    (_S.UNDONE, Answered): _LATE,
    (_S.UNDONE, Undone): _STAY,
    (_S.UNDONE, Failed): _STAY,
    (_S.UNDONE, GivenUp): _STAY,
    (_S.SKIPPED, Answered): _LATE,
    (_S.SKIPPED, Undone): _STAY,
    (_S.SKIPPED, Failed): _STAY,
    (_S.SKIPPED, GivenUp): _STAY,
    (_S.SKIPPED, Skipped): _STAY,
}

_WORDS: dict[type[Event], str] = {
    Answered: "an answer",
    Declined: "a refusal",
    Unanswered: "a lost answer",
    Overtaken: "to give up before acting",
    Renewed: "to act",
    Claimed: "to undo it",
    Undone: "a compensation's end",
    Failed: "a compensation's failure",
    GivenUp: "to give up",
    Unfit: "to park it",
    Bare: "to close it",
    Retried: "to try it again",
    Skipped: "to skip it",
    Edited: "to change its arguments",
}
