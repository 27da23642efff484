"""The trail of an attempt: one line for what was staged, decided, ended or quarantined.

Guarantees: what a row of the journal tells (a name, its decision, the end of it) is told from that row and written
nowhere else; every other line is stored by the transaction that does what it tells. So the trail never tells what did
not happen, and costs no flush of its own. Where a name's row goes before its decision does, its line is stored then.
A transaction at once that commits leaves none: its decision says it all.

Lines that are stored come in the order in which they were; the others among them by their times. Each time is by the
clock of whoever did it, so where clocks differ a line may stand as far off as they do.

Must not: be acted on.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from ..protocol.records import (
    Call,
    CallState,
    Confirmation,
    Decision,
    Event,
    Mode,
    Quarantined,
    Staging,
    Standing,
    Unreadable,
    Verdict,
)

STAGED = "staged"  # an attempt is so once


def told(
    found: Sequence[Event | Unreadable],
    staging: Staging | Unreadable | None,
    standing: Standing | Unreadable | None,
    ended_at: float | None,
) -> list[Event]:
    """The whole trail. What an earlier release has stored of a row is not told again from it, nor as the row went.

    What cannot be read is told as that, before all else.
    """
    apart = [one for one in (*found, staging, standing) if isinstance(one, Unreadable)]
    stored = [one for one in found if not isinstance(one, Unreadable)]
    first = next((number for number, event in enumerate(stored) if event.what == STAGED), None)
    stored = [event for number, event in enumerate(stored) if event.what != STAGED or number == first]
    derived = [of_staging(staging)] if isinstance(staging, Staging) else []
    if isinstance(standing, Standing):
        derived += _of_standing(standing.decision, ended_at)
    there = {event.what for event in stored}
    told = heapq.merge((one for one in derived if one.what not in there), stored, key=lambda event: event.at)
    return [*(Event(one.printable, 0.0, "unreadable", f"{one.which} {one.why}") for one in apart), *told]


def _of_standing(decision: Decision, ended_at: float | None) -> list[Event]:
    if decision.mode is Mode.ONCE and decision.verdict is Verdict.COMMIT:
        return []
    found = [of_decision(decision)]
    if ended_at is not None and decision.mode is Mode.STAGED:
        found.append(Event(decision.attempt, ended_at, "ended"))
    return found


def of_staging(staging: Staging) -> Event:
    """A name was listed."""
    where = ", ".join(ref.resource for ref in staging.branches)
    return Event(staging.attempt, staging.created_at, STAGED, f"by {staging.owner or 'unknown'}, on {where}")


def of_decision(decision: Decision) -> Event:
    """A decision was written."""
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
