"""What this process has staged a moment ago, for a commit by name that comes at once.

It has the answers to its own PREPAREs, so it need ask neither the journal for the name nor the databases for the
branches: a round trip for each. Whoever asks from elsewhere, or later, looks.

Guarantees: nothing older than `TRUSTED_S` is believed, and nothing twice. That nobody has decided meanwhile, or called
a step, is not believed at all: the decision is written once, and carries its conditions. What is committed, or told, is
the attempt that was staged here, never another life of its name. Only a stranger, or a database that was set back,
can have ended such a branch; the older it is, the likelier.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..protocol.records import Staging
from .attempt import Attempt
from .context import Context

TRUSTED_S = 1.0  # so long after its prepare was asked for, a branch is taken for prepared


@dataclass(frozen=True, slots=True)
class Recent:
    """One of them. `since`: when its branches were first asked to prepare, by `clock.elapsed`."""

    staging: Staging
    since: float


def remember(ctx: Context, attempt: Attempt, staging: Staging | None, since: float) -> None:
    """It is staged. One that depends on what others say, or that has called steps, is looked at where that is known."""
    if staging is None or staging.confirmations or attempt.calls:
        return
    with ctx.lock:
        ctx.recent.pop(staging.name, None)
        ctx.recent[staging.name] = Recent(staging, since)
        while _is_old(ctx, oldest := next(iter(ctx.recent.values()))) and oldest.staging is not staging:
            del ctx.recent[oldest.staging.name]


def forget(ctx: Context, name: str) -> None:
    """Its commit shall look."""
    with ctx.lock:
        ctx.recent.pop(name, None)


def take(ctx: Context, name: str, attempt: str | None) -> Staging | None:
    """What was staged under this name, or under it as this attempt, if that may be believed; forgotten with this."""
    with ctx.lock:
        found = ctx.recent.pop(name, None)
    if found is None or _is_old(ctx, found) or attempt not in (None, found.staging.attempt):
        return None
    staging: Staging = found.staging
    return staging


def _is_old(ctx: Context, found: Recent) -> bool:
    return ctx.clock.elapsed() - found.since >= TRUSTED_S
