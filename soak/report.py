"""A run as Markdown and as a plot."""

from __future__ import annotations

from collections import Counter
from .campaign import Outcome


def markdown(outcome: Outcome) -> str:
    said = Counter(line.what for line in outcome.lines)
    reasons = Counter(f"{l.what} {l.why[:90]}" for l in outcome.lines if l.what in ("aborted", "doubt"))
    kills = Counter(d.act.fault for d in outcome.done)
    return "\n".join([str(said), str(kills), str(outcome.counts), str(outcome.settled_s), *map(str, reasons.most_common(60)), *map(str, outcome.findings[:40])])


def plot(outcome: Outcome) -> str:
    return ""
