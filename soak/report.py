"""A run as Markdown: what it survived, what clients were told, how each fault has struck, and what is wrong, if anything."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence

from benchmarks.report import grid

from .campaign import Outcome
from .history import ABORTED, BEGUN, COMMITTED, DOUBT, HELLO, STAGED, Line
from .nemesis import Done
from .plan import CALM_S, MINUTE_S
from .world import CLIENTS, ROLES
from .worker import SETTINGS

FINDINGS_SHOWN_MAX = 50
AFTER_S = 4.0  # of a minute's calm, what is left to recover from
MOVED_MIN_S = 0.5
WANTED = "as the client had wished, or by a verb that aborts"
# What an answer that is not `committed` was owed to; the first that matches.
CLASSES = {
    WANTED: r"^RolledBack|^by name|contrary verb|at the end",
    "a constraint, on purpose": r"CheckViolation|UniqueViolation|CONSTRAINT|ConstraintError|IntegrityError|Duplicate entry",
    "a full disk": r"No space left|disk is full|FullError|DiskFull|could not (extend|write)|Errcode: 28|error: 28",
    "recovery, or a settling client, was first": r"recovery:|settled|was aborted already|fenced",
    "a server that recovers from a crash": r"crash of another|recovery mode|starting up|shutting down|not yet accepting",
    "no connection": r"cannot connect|no connection|refused",
    "a connection lost at work": r"lost|Lost|closed the connection|has ended|reset by|gone away|terminat",
    "no answer, or no turn, in time": r"TimeoutError|timeout|gave no answer|did not answer|within|busy for",
    "a lock": r"is locked|[Dd]eadlock|[Ll]ock",
}


def markdown(outcome: Outcome) -> str:
    """The whole report."""
    counts = Counter(line.what for line in outcome.lines)
    kills = Counter(_what_was_hit(done) for done in outcome.done if done.act.fault in ("kill", "kill a backend"))
    parts = [
        f"# Soaked on {outcome.date}\n",
        "Written by `make soak`; not to be edited. TESTING.md says what is checked, and what this does not show.\n",
        f"- {outcome.seconds / 60:g} minutes, seed {outcome.seed}, {CLIENTS} clients in {len(ROLES)} processes, three "
        "PostgreSQL, a MariaDB, SQLite files, three clusters",
        f"- **{_verdict(outcome)}**",
        f"- it survived {kills.total()} kills: " + ", ".join(f"{n} of {what}" for what, n in sorted(kills.items())),
        f"- {counts[BEGUN]} transactions begun; {outcome.counts['transactions in the databases']} are in the databases; "
        f"told: {counts[COMMITTED]} committed, {counts[ABORTED]} aborted, {counts[DOUBT]} doubts, {counts[STAGED]} staged; "
        "a staged one may be told several times",
        f"- coordinators were opened {counts[HELLO]} times; {_moved(outcome.lines)} lines were written under a moved clock",
        "- after healing, recovery took " + ", ".join(f"{s:g} s in cluster {c}" for c, s in outcome.settled_s.items()),
        *(f"- without {fault!r}: this machine cannot make it" for fault in outcome.without),
        "",
        "![throughput](throughput.svg)\n",
        "## The nemesis\n",
        _faults(outcome),
        "Hits: statements, connections, writes or backends that were struck, where that is counted. Per second: while the "
        f"fault lasted, over all clusters, other faults included; calm are the seconds {AFTER_S:g} to {CALM_S:g} of each "
        "minute. Failed: aborted or in doubt, without what was meant to be.\n",
        "## Why it was not committed\n",
        _reasons(outcome.lines),
        _findings(outcome),
    ]
    return "\n".join(parts)


def _verdict(outcome: Outcome) -> str:
    if outcome.findings:
        return f"{len(outcome.findings)} findings"
    return "nothing is lost, nothing is in doubt, the sums are right"


def _what_was_hit(done: Done) -> str:
    name = done.act.target
    if done.act.fault == "kill a backend":
        return "a PostgreSQL backend"
    role = next((role.role for role in ROLES if role.name == name), "")
    return {"": "MariaDB" if name == "maria" else "PostgreSQL", "clients": "coordinators", "clerk": "clerks"}.get(
        role, "recoverers"
    )


def _moved(lines: Sequence[Line]) -> int:
    """How many lines were written while the wall clock was elsewhere than at most times."""
    if not lines:
        return 0
    usual = Counter(round(line.clock_s) for line in lines).most_common(1)[0][0]
    return sum(abs(line.clock_s - usual) > 1 + MOVED_MIN_S for line in lines)


def reason(line: Line) -> str:
    """The class of what an answer other than `committed` was owed to."""
    return next((name for name, pattern in CLASSES.items() if re.search(pattern, line.why)), "something else")


def unwanted(line: Line) -> bool:
    """Whether this answer is a failure that a client had not asked for."""
    return line.what in (ABORTED, DOUBT) and reason(line) not in (WANTED, "a constraint, on purpose")


def _faults(outcome: Outcome) -> str:
    committed = sorted(line.at for line in outcome.lines if line.what == COMMITTED)
    failed = sorted(line.at for line in outcome.lines if unwanted(line))
    rows = []
    for fault in sorted({(_kind(done), done.act.fault) for done in outcome.done}):
        done = [one for one in outcome.done if (_kind(one), one.act.fault) == fault]
        spans = [(one.began, max(one.ended, one.began + 1)) for one in done]
        hits = [one.hits for one in done if one.hits is not None]
        rows.append((
            fault[0], fault[1], str(len(done)), str(sum(hits)) if hits else "", _rate(committed, spans), _rate(failed, spans),
        ))  # fmt: skip
    calm = _calm(outcome)
    rows.append(("", "(calm)", str(len(calm)), "", _rate(committed, calm), _rate(failed, calm)))
    return grid(("what", "fault", "times", "hits", "committed per s", "failed per s"), rows)


def _kind(done: Done) -> str:
    if done.act.lane.startswith(("network", "clock")):
        return done.act.lane.split()[0]
    return "MariaDB" if done.act.target == "maria" else "PostgreSQL" if done.act.target.startswith("pg") else "process"


def _calm(outcome: Outcome) -> list[tuple[float, float]]:
    minutes = int(outcome.seconds / MINUTE_S + 0.99)
    ends = outcome.began + outcome.seconds
    spans = [(outcome.began + MINUTE_S * n + AFTER_S, outcome.began + MINUTE_S * n + CALM_S) for n in range(minutes)]
    return [(first, last) for first, last in spans if last <= ends]


def _rate(times: Sequence[float], spans: Iterable[tuple[float, float]]) -> str:
    """Events per second inside the spans; each span counts for itself. `times` in order."""
    inside = total = 0.0
    for first, last in spans:
        inside += bisect_left(times, last) - bisect_left(times, first)
        total += last - first
    return f"{inside / total:.1f}" if total else "-"


def _reasons(lines: Iterable[Line]) -> str:
    told = Counter((reason(line), line.what) for line in lines if line.what in (ABORTED, DOUBT))
    names = [*CLASSES, "something else"]
    rows = [(name, str(told[name, ABORTED]), str(told[name, DOUBT])) for name in names]
    return grid(("because of", "aborted", "in doubt"), rows)


def _findings(outcome: Outcome) -> str:
    if not outcome.findings:
        return ""
    rows = [(one.rule, one.what.replace("\n", " ").replace("|", "/")[:600]) for one in outcome.findings]
    return "## Findings\n\n" + grid(("rule", "what"), rows[:FINDINGS_SHOWN_MAX])
