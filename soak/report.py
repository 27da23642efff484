"""A run as Markdown: what it survived, what clients were told, how each fault struck, and what is wrong, if so."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from math import ceil

from benchmarks.report import grid

from .campaign import Outcome
from .history import ABORTED, BEGUN, COMMITTED, DOUBT, HELLO, STAGED, Line
from .nemesis import Done
from .plan import MINUTE_S
from .rig import SERVERS

FINDINGS_SHOWN_MAX = 50
AFTER_S = 4.0  # of a minute's calm, what is left to recover from
MOVED_MIN_S = 1.5  # a clock that was read this far from where it usually is
WANTED, ON_PURPOSE = "as the client had wished, or by a verb that aborts", "a constraint, broken on purpose"
# What an answer that is not `committed` was owed to; the first that matches.
CLASSES = {
    WANTED: r"^RolledBack|^by name|contrary verb|at the end",
    ON_PURPOSE: r"CheckViolation|UniqueViolation|CONSTRAINT|ConstraintError|IntegrityError|Duplicate entry",
    "a full disk": r"No space left|disk is full|FullError|DiskFull|could not (extend|write)|Errcode: 28|error: 28",
    "recovery, or who settled, was first": r"recovery:|settled|was aborted already|fenced",
    "a server that recovers from a crash": r"crash of another|recovery mode|starting up|shutting down|not yet acc",
    "no connection": r"cannot connect|no connection|refused",
    "a connection lost at work": r"lost|Lost|closed the connection|has ended|reset by|gone away|terminat",
    "no answer, or no turn, in time": r"TimeoutError|timeout|gave no answer|did not answer|within|busy for",
    "a lock": r"is locked|[Dd]eadlock|[Ll]ock",
}
ELSE = "something else"


def markdown(outcome: Outcome) -> str:
    """The whole report."""
    recovery = ", ".join(f"{seconds:g} s in cluster {name}" for name, seconds in outcome.settled_s.items())
    legend = (
        "Hits: statements, connections, writes or backends that were struck, where that is counted. Per second: while "
        f"the fault lasted, over all clusters, other faults included; calm are the seconds {AFTER_S:g} to "
        f"{outcome.rig.calm_s:g} of each minute. Failed: aborted or in doubt, without what was meant to be.\n"
    )
    parts = [
        f"# Soaked on {outcome.date}\n",
        "Written by `make soak`; not to be edited. TESTING.md says what is checked, and what this does not show.\n",
        f"- {_run(outcome)}",
        f"- **{_verdict(outcome)}**",
        f"- it survived {_kills(outcome)}",
        f"- {_told(outcome)}",
        f"- after healing, recovery took {recovery}",
        *(f"- without {fault!r}: this machine cannot make it" for fault in outcome.without),
        "\n![throughput](throughput.svg)\n",
        "## The nemesis\n",
        _faults(outcome),
        legend,
        "## Why it was not committed\n",
        _reasons(outcome.lines),
        _findings(outcome),
    ]
    return "\n".join(parts)


def _run(outcome: Outcome) -> str:
    who = f"{outcome.rig.clients} clients in {len(outcome.rig.roles)} processes"
    where = f"three PostgreSQL, a MariaDB, SQLite files; {len(outcome.rig.clusters)} clusters"
    return f"{outcome.seconds / 60:g} minutes, seed {outcome.seed}: {who}, {where}"


def _verdict(outcome: Outcome) -> str:
    if outcome.findings:
        return f"{len(outcome.findings)} findings"
    return "nothing is lost, nothing is in doubt, the sums are right"


def _kills(outcome: Outcome) -> str:
    roles = {role.name: "recoverers" if role.role == "recoverer" else "coordinators" for role in outcome.rig.roles}
    servers = dict.fromkeys(SERVERS, "PostgreSQL") | {"maria": "MariaDB"}
    kills = Counter((roles | servers)[done.act.target] for done in outcome.done if done.act.fault == "kill")
    kills["PostgreSQL backends"] = sum(done.hits or 0 for done in outcome.done if done.act.fault == "kill a backend")
    return f"{kills.total()} SIGKILLs: " + ", ".join(f"{number} of {what}" for what, number in sorted(kills.items()))


def _told(outcome: Outcome) -> str:
    counts = Counter(line.what for line in outcome.lines)
    usual = Counter(round(line.clock_s) for line in outcome.lines).most_common(1)
    moved = sum(abs(line.clock_s - usual[0][0]) > MOVED_MIN_S for line in outcome.lines)
    return (
        f"{counts[BEGUN]} transactions begun, {outcome.there} in the databases; told: {counts[COMMITTED]} committed, "
        f"{counts[ABORTED]} aborted, {counts[DOUBT]} in doubt, {counts[STAGED]} staged (several may be told how "
        f"that ended); {moved} of these lines were written under a moved clock, and "
        f"coordinators were opened {counts[HELLO]} times"
    )


def reason(line: Line) -> str:
    """The class of what an answer other than `committed` was owed to."""
    return next((name for name, pattern in CLASSES.items() if re.search(pattern, line.why)), ELSE)


def unwanted(line: Line) -> bool:
    """Whether this answer is a failure that a client had not asked for."""
    return line.what in (ABORTED, DOUBT) and reason(line) not in (WANTED, ON_PURPOSE)


def _faults(outcome: Outcome) -> str:
    committed = sorted(line.at for line in outcome.lines if line.what == COMMITTED)
    failed = sorted(line.at for line in outcome.lines if unwanted(line))
    rows = []
    for what, fault in sorted({(_kind(done), done.act.fault) for done in outcome.done}):
        done = [one for one in outcome.done if (_kind(one), one.act.fault) == (what, fault)]
        spans = [(one.began, max(one.ended, one.began + 1)) for one in done]
        hits = [one.hits for one in done if one.hits is not None]
        counts = (str(len(done)), str(sum(hits)) if hits else "")
        rows.append((what, fault, *counts, _rate(committed, spans), _rate(failed, spans)))
    calm = _calm(outcome)
    rows.append(("", "(calm)", str(len(calm)), "", _rate(committed, calm), _rate(failed, calm)))
    return grid(("what", "fault", "times", "hits", "committed per s", "failed per s"), rows)


def _kind(done: Done) -> str:
    if done.act.lane.startswith(("network", "clock")):
        return done.act.lane.split()[0]
    return {"maria": "MariaDB"}.get(done.act.target, "PostgreSQL" if done.act.target in SERVERS else "process")


def _calm(outcome: Outcome) -> list[tuple[float, float]]:
    starts = [outcome.began + MINUTE_S * number for number in range(ceil(outcome.seconds / MINUTE_S))]
    spans = [(start + AFTER_S, start + outcome.rig.calm_s) for start in starts]
    return [(first, last) for first, last in spans if first < last <= outcome.began + outcome.seconds]


def _rate(times: Sequence[float], spans: Iterable[tuple[float, float]]) -> str:
    """Events per second inside the spans; each span counts for itself. `times` in order."""
    inside = total = 0.0
    for first, last in spans:
        inside += bisect_left(times, last) - bisect_left(times, first)
        total += last - first
    return f"{inside / total:.1f}" if total else "-"


def _reasons(lines: Iterable[Line]) -> str:
    told = Counter((reason(line), line.what) for line in lines if line.what in (ABORTED, DOUBT))
    names = [*CLASSES, ELSE]
    rows = [(name, str(told[name, ABORTED]), str(told[name, DOUBT])) for name in names]
    return grid(("because of", "aborted", "in doubt"), rows)


def _findings(outcome: Outcome) -> str:
    if not outcome.findings:
        return ""
    rows = [(one.rule, one.what.replace("\n", " ").replace("|", "/")[:600]) for one in outcome.findings]
    return "## Findings\n\n" + grid(("rule", "what"), rows[:FINDINGS_SHOWN_MAX])
