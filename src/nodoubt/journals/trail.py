"""The trail of an attempt: one line for what was staged, decided, ended or quarantined.

Guarantees: a line is written in the transaction that does what it tells, so the trail never tells what did not happen
and costs no flush of its own. A transaction at once that commits leaves none: its decision says it all.

Must not: be acted on.
"""

from __future__ import annotations

from ..protocol.records import Call, CallState, Confirmation, Decision, Event, Mode, Quarantined, Staging, Verdict

ENDED = "ended"


def of_staging(staging: Staging) -> Event:
    """A name was listed."""
    where = ", ".join(ref.resource for ref in staging.branches)
    return Event(staging.attempt, staging.created_at, "staged", f"by {staging.owner or 'unknown'}, on {where}")


def of_decision(decision: Decision) -> Event | None:
    """A decision was written."""
    if decision.mode is Mode.ONCE and decision.verdict is Verdict.COMMIT:
        return None
    why = f": {decision.reason}" if decision.reason else ""
    what = f"decided {decision.verdict.value}"
    return Event(decision.attempt, decision.decided_at, what, f"by {decision.owner or 'unknown'}{why}")


def of_quarantine(entry: Quarantined) -> Event:
    """A branch was quarantined."""
    return Event(entry.attempt, entry.since, "quarantined", f"branch {entry.branch} on {entry.resource}: {entry.why}")


def of_call(call: Call) -> Event:
    """A step was called, or came a state further. What it was called with is in its own row, and not here."""
    who = f" by {call.worker}" if call.worker else ""
    why = f": {call.error}" if call.error else ""
    name = call.undo if call.state in _COMPENSATION else call.step
    return Event(call.attempt, call.changed_at, f"step {call.state.value}", f"#{call.number} {name}{who}{why}")


def of_change(before: Call, after: Call) -> Event | None:
    """What of a call's change a human wants to read: not that somebody who has it takes longer."""
    changed = after.state is not before.state or after.arguments != before.arguments or after.tries != before.tries
    return of_call(after) if changed else None


def of_answer(said: Confirmation) -> Event:
    """Somebody who was asked has said whether they are ready."""
    why = f": {said.why}" if said.why else ""
    return Event(said.attempt, said.at, said.answer.value, f"by {said.who}{why}")


_COMPENSATION = {CallState.UNDOING, CallState.DUE, CallState.PARKED, CallState.UNDONE, CallState.SKIPPED}
