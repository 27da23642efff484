"""The trail of an attempt: one line for what was staged, decided, ended or quarantined.

Guarantees: a line is written in the transaction that does what it tells, so the trail never tells what did not happen
and costs no flush of its own. A transaction at once that commits leaves none: its decision says it all.

Must not: be acted on.
"""

from __future__ import annotations

from ..protocol.records import Decision, Event, Mode, Quarantined, Staging, Verdict

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
