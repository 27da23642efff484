"""What a conformance suite says of a claim that has failed: what was promised, by which rule, what was done and seen.

The rules are the contract's invariants, by their numbers, as far as a resource or a journal by itself can break them.

Must not: judge, or change what is asked.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Generator, Iterable
from enum import Enum
from typing import Any

import msgspec

from ..errors import text_of
from ..ports import Prepared, Work
from ..script import Script
from ..xid import Xid

RULES = {
    "I1": "no transaction has one branch committed and another rolled back",
    "I2": "a branch has voted yes only by its database's own word, not by the absence of an error",
    "I3": "a decision is written once, and its compare-and-set is the only writer",
    "I4": "no COMMIT takes effect on a branch before the decision is durable",
    "I5": "a reply is honest: committed is durable, aborted can never happen, anything else is in doubt",
    "I6": "a commit record ends only with positive proof from each branch",
    "I7": "an unknown xid is never success: listed, retry; a receipt, done; neither, quarantine",
    "I9": "only well-formed xids of our own cluster are ever resolved",
    "I10": "a staged name has at most one live attempt",
    "I11": "after an abort a branch may still become prepared; it is never committed",
    "I13": "all of it holds with any number of recoverers and no lease",
    "I15": "what was restored, lost or cloned is found out by identities and epochs",
    "I16": "after a statement's error the branch cannot prepare",
    "I17": "what was broken from outside is stored and listed until a named operator clears it",
    "I18": "a caller who is cut short leaves no dirty session behind",
    "I19": "a step's intent is durable before its action; it is undone at most once",
}
ACTS_MAX = 30  # the last ones are told
_SHOWN_MAX = 100


class Suite:
    """The suites are known by it to pytest's plugin."""


class Act:
    """One script of the subject's."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.ended = "has not ended"


class Told:
    """A resource or a journal, as it is, whose scripts are noted as they run."""

    def __init__(self, subject: Any, acts: list[Act], sessions: list[Any]) -> None:
        self._subject, self._acts, self._sessions = subject, acts, sessions

    def __getattr__(self, verb: str) -> Any:
        found = getattr(self._subject, verb)
        return self._noting(verb, found) if inspect.ismethod(found) else found

    def _noting(self, verb: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            given = [shown(one, self._sessions) for one in args]
            on = f"{given.pop(0)}: " if given and given[0].startswith("session ") else ""
            given += [f"{name}={shown(one, self._sessions)}" for name, one in named.items()]
            script = method(*args, **named)
            return self._noted(script, f"{on}{verb}({', '.join(given)})") if isinstance(script, Generator) else script

        return call

    def _noted(self, script: Script[Any], what: str) -> Script[Any]:
        act = Act(what)
        self._acts.append(act)
        try:
            answer = yield from script
        except BaseException as error:
            act.ended = f"raised {type(error).__name__}: {_cut(text_of(error))}"
            raise
        act.ended = "done" if answer is None else f"answered {shown(answer, self._sessions)}"
        return answer


def shown(value: Any, sessions: Iterable[Any] = ()) -> str:
    """Short: sessions by their numbers, branches by the end of their attempt's id."""
    for number, session in enumerate(sessions, 1):
        if session is value:
            return f"session {number}"
    if isinstance(value, Work | Prepared):
        return shown(value.xid)
    if isinstance(value, Xid):
        return f"branch {value.branch} of …{value.attempt[-6:]}"
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, tuple | list):
        return _cut(f"[{', '.join(map(shown, value))}]")
    if isinstance(value, msgspec.Struct) and hasattr(value, "attempt"):
        return _cut(f"{type(value).__name__} of …{value.attempt[-6:]}")
    if isinstance(value, msgspec.Struct):
        fields = ((one.name, getattr(value, one.name), one.default) for one in msgspec.structs.fields(value))
        said = [f"{name}={shown(has)}" for name, has, default in fields if has != default]
        return _cut(f"{type(value).__name__}({', '.join(said)})")
    return _cut(re.sub(r"\b[0-9a-f]{26}(?=[0-9a-f]{6}\b)", "…", _repr(value)))


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}…"


def tell(claim: Callable[..., Any], which: str, given: Iterable[Any], error: BaseException) -> str:
    """Four paragraphs for whoever wrote the subject. `which`: the parameters of this run; `given`: its fixtures."""
    said = " ".join((inspect.getdoc(claim) or "").split())
    promise = claim.__name__.removeprefix("test_").replace("_", " ")
    lines = [f"promised:  {promise}{f'  [{which}]' if which else ''}"]
    lines += [f"by {rule:<7} {RULES[rule]}" for rule in re.findall(r"\bI\d+\b", said) if rule in RULES]
    why = re.sub(r"^(?:I\d+(?:, )?)+[.:]? ?", "", said)
    lines += [f"           {why}"] if why else []
    acts: list[Act] = next((one.acts for one in map(_bench_of, given) if one is not None), [])
    left = max(len(acts) - ACTS_MAX, 0)
    lines += ["", f"done:      {f'{left} before, then:' if left else ''}".rstrip()]
    width = min(max((len(act.what) for act in acts[left:]), default=0), _SHOWN_MAX)
    lines += [f"  {number:>3}  {act.what:<{width}}  {act.ended}" for number, act in enumerate(acts[left:], left + 1)]
    seen = text_of(error).strip().splitlines() or [type(error).__name__]
    head = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
    return "\n".join([*lines, "", f"seen:      {head}{seen[0]}", *(f"           {line}" for line in seen[1:])])


def _bench_of(fixture: Any) -> Any:
    """A bench, or that of a place; None for anything else."""
    bench = getattr(fixture, "__dict__", {}).get("bench", fixture)
    return bench if isinstance(getattr(bench, "__dict__", {}).get("acts"), list) else None
