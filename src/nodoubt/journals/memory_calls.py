"""Steps and confirmations in the journal in memory: the rules of `calls`, without a server.

Must not: be used where they have to outlive the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ..ports import BelowFloor, Conflict, Session
from ..protocol.records import ANSWERED, Call, CallState, Confirmation, Readiness, Staging, Unreadable
from ..script import Script
from . import trail

if TYPE_CHECKING:
    from .memory_state import State


class CallStore:
    """The transactions of a store that are about calls and confirmations."""

    state: State

    def _require_above_floor(self, attempt: str) -> None:
        raise NotImplementedError

    def _require_ready(self, attempt: str, gated: bool) -> None:
        asked, calls = self._confirmations(attempt), self._calls([attempt])
        ready = all(one.answer is Readiness.CONFIRMED for one in asked) and all(c.state in ANSWERED for c in calls)
        if not ready or ((asked or calls) and not gated):
            raise BelowFloor("somebody has not confirmed, or a step has not been answered")

    def _undecided(self, after: str, limit: int) -> list[Staging]:
        raise NotImplementedError

    def _overdue(self, before: float, after: str, limit: int) -> list[Staging]:
        refused = {c.attempt for c in self.state.confirmations.values() if c.answer is Readiness.REFUSED}
        found = self._undecided(after, len(self.state.names))
        return [one for one in found if one.deadline <= before or one.attempt in refused][:limit]

    def _answer(self, attempt: str, who: str, answer: Readiness, why: str, at: float) -> Confirmation | None:
        state = self.state
        standing = state.confirmations.get((attempt, who))
        if standing is None:
            return None
        if standing.answer is Readiness.ASKED and attempt not in state.decisions:
            said = Confirmation(attempt, who, answer, why, at)
            state.confirmations[attempt, who] = said
            state.events.append(trail.of_answer(said))
        else:
            state.flushes += 1
        return state.confirmations[attempt, who]

    def _confirmations(self, attempt: str) -> list[Confirmation]:
        return [one for (of, _), one in sorted(self.state.confirmations.items()) if of == attempt]

    def _intend(self, call: Call) -> None:
        state = self.state
        if call.attempt in state.decisions:
            raise Conflict("the attempt has been decided already")
        self._require_above_floor(call.attempt)
        others = [one for one in state.calls.values() if one.attempt == call.attempt]
        if any(call.number == one.number or call.key == one.key for one in others):
            raise Conflict("the number or the key is taken")
        state.calls[call.attempt, call.number] = call
        for name, one in state.names.items():
            if one.attempt == call.attempt:
                state.names[name] = msgspec.structs.replace(one, calls=one.calls + 1)
        state.events.append(trail.of_call(call))

    def _advance(self, before: Call, after: Call) -> bool:
        state, key = self.state, (before.attempt, before.number)
        if key not in state.calls or state.calls[key].version != before.version:
            return False
        state.calls[key] = after
        event = trail.of_change(before, after)
        state.events += [] if event is None else [event]
        return True

    def _hold(self, attempts: Sequence[str], until: float) -> None:
        for key, call in self.state.calls.items():
            if call.attempt in attempts and self.state.unfinished(call) and call.until < until:
                self.state.calls[key] = msgspec.structs.replace(call, until=until)

    def _calls(self, attempts: Sequence[str]) -> list[Call]:
        return [call for (attempt, _), call in sorted(self.state.calls.items()) if attempt in attempts]

    def _unfinished_calls(self, after: str, limit: int) -> list[str]:
        open_ = {c.attempt for c in self.state.calls.values() if self.state.unfinished(c) and c.attempt > after}
        left = {c.attempt for c in self._calls(sorted(open_)) if c.state is not CallState.PARKED and not c.closed}
        return sorted(left)[:limit]

    def _parked_calls(self) -> list[Call]:
        calls = [call for _, call in sorted(self.state.calls.items())]
        return [call for call in calls if call.state is CallState.PARKED and self.state.unfinished(call)]


class CallJournal:
    """The scripts of a journal that are about calls and confirmations."""

    def _apply(self, session: Session, verb: str, *args: Any) -> Script[Any]:
        raise NotImplementedError

    def overdue(self, session: Session, before: float, after: str, limit: int) -> Script[list[Staging | Unreadable]]:
        return self._apply(session, "overdue", before, after, limit)

    def answer(
        self, session: Session, attempt: str, who: str, answer: Readiness, *, why: str, at: float
    ) -> Script[Confirmation | Unreadable | None]:
        return self._apply(session, "answer", attempt, who, answer, why, at)

    def confirmations(self, session: Session, attempt: str) -> Script[list[Confirmation | Unreadable]]:
        return self._apply(session, "confirmations", attempt)

    def now(self, session: Session) -> Script[float]:
        return self._apply(session, "clock")

    def intend(self, session: Session, call: Call) -> Script[None]:
        return self._apply(session, "intend", call)

    def advance(self, session: Session, before: Call, after: Call) -> Script[bool]:
        return self._apply(session, "advance", before, after)

    def hold(self, session: Session, attempts: Sequence[str], until: float) -> Script[None]:
        return self._apply(session, "hold", tuple(attempts), until)

    def calls(self, session: Session, attempts: Sequence[str]) -> Script[list[Call | Unreadable]]:
        return self._apply(session, "calls", tuple(attempts))

    def unfinished_calls(self, session: Session, after: str, limit: int) -> Script[list[str | Unreadable]]:
        return self._apply(session, "unfinished_calls", after, limit)

    def parked_calls(self, session: Session) -> Script[list[Call | Unreadable]]:
        return self._apply(session, "parked_calls")
