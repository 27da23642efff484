"""A doctor's report for people: what is prepared, who waits, and what to do, the urgent first.

Guarantees: everything that needs a human is printed, with its reason; where many transactions want the same, it is said
once. Whole lists are in `--json`.

Must not: judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ..amounts import quantity, span
from ..doctor.report import Action, Examined, Finding, PreparedReport, Report, Severity, Tree, Wait
from .output import Branching, Cell, Output

STYLES = {Severity.HUMAN: "bold red", Severity.ADVICE: "yellow", Severity.NOTE: "dim"}
TITLES = {
    Severity.HUMAN: "Needs a human",
    Severity.ADVICE: "Worth changing",
    Severity.NOTE: "Good to know",
}
NAMED_MAX = 5  # transactions that are named where several want the same
_COLUMNS = ("prepared", "whose", "age", "database", "owner", "has locked", "waiting", "holds back")


def print_report(out: Output, report: Report) -> None:
    """All of it."""
    report = msgspec.convert(_on_one_line(msgspec.to_builtins(report)), Report)
    for one in report.databases:
        _print_database(out, one)
    _print_findings(out, report.findings, ())
    if report.exit_code == 0:
        out.say(("\nNothing needs a human.", "green"))


def _on_one_line(value: Any) -> Any:
    """With line breaks written out: ids and names are anybody's, and one could go on as advice of ours."""
    match value:
        case str():
            return value.replace("\n", "\\n")
        case dict():
            return {_on_one_line(key): _on_one_line(one) for key, one in value.items()}
        case list() | tuple():
            return [_on_one_line(one) for one in value]
        case _:
            return value


def _print_database(out: Output, one: Examined) -> None:
    out.say((f"\n{one.name}  {one.url}", "bold"))
    if one.error is not None:
        out.indented((f"could not be examined: {one.error}", "red"), 2)
        return
    for line in _about(one):
        out.indented((line, "dim"), 2)
    if one.prepared:
        _print_table(out, one)
    for tree in one.waits:
        out.tree(_drawn(tree))
    _print_findings(out, one.findings, one.prepared)
    if one.gaps or one.cut:
        out.say(("\nNot seen", "bold"))
        for gap in one.gaps:
            out.indented((f"· {gap.what}", "dim"), 2)
            out.indented((f"→ {gap.advice}", "cyan"), 4)
        for cut in one.cut:
            out.indented((f"· cut: {cut}", "dim"), 2)


def _about(one: Examined) -> list[str]:
    parts = []
    if one.server is not None:
        parts.append(one.server.version + (f" as {one.server.user}" if one.server.user else ""))
    parts.append("nothing prepared" if not one.prepared_count else f"{one.prepared_count} prepared")
    if one.history_length is not None:
        parts.append(f"history list {quantity(one.history_length)}")
    if one.replicas:
        kinds = [replica.kind for replica in one.replicas]
        parts.append(", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds))))
    if one.file is not None:
        parts.append(f"journal mode {one.file.journal_mode}")
    parts.append(f"{one.messages} messages, {one.took_ms:.0f} ms")
    lines = [" · ".join(parts)]
    if one.journal is not None:
        journal = one.journal
        floor = f"floor at {journal.floor_at}" if journal.floor_at else "nothing forgotten yet"
        if journal.floor is None:
            floor = "the floor cannot be read"
        lines.append(
            f"holds the journal of cluster {journal.cluster}: version {journal.version}, epoch {journal.epoch}, "
            f"{journal.open_commits} open commits, {journal.names_undecided} names undecided, {floor}"
        )
    if one.identity is not None:
        lines.append(f"takes part in cluster {one.identity.cluster} as {one.identity.resource_id}")
    if one.journal is None and one.identity is None:
        lines.append("has no tables of nodoubt's, or none that may be read")
    return lines


def _print_table(out: Output, one: Examined) -> None:
    """Without the columns that this kind of server can't fill, or that say what everybody knows."""
    here = "" if one.server is None else one.server.database
    rows = [_row(prepared) for prepared in one.prepared]
    told = [n for n in range(len(_COLUMNS)) if any(row[n] not in ("", "?", here) for row in rows)]
    out.table("", [_COLUMNS[n] for n in told], [[row[n] for n in told] for row in rows], cut=0)


def _row(one: PreparedReport) -> list[Cell]:
    locks = one.locks[0].what if one.locks else ""
    more = len(one.locks) + one.locks_left_out - 1
    whose = one.system + (f" ({one.decision})" if one.decision else "")
    return [
        (one.id, STYLES[one.action.severity]),
        whose,
        _age(one),
        one.database or "?",
        one.owner or "?",
        locks + (f" and {more} more" if more > 0 else ""),
        str(one.blocks) if one.blocks else "",
        "" if one.xids_held is None else f"{quantity(one.xids_held)} ids",
    ]


def _age(one: PreparedReport) -> str:
    if one.age_s is None:
        return "?"
    return f"{'≥ ' if one.at_least else ''}{span(one.age_s)}"


# ---- who waits ------------------------------------------------------------------------------------


def _drawn(tree: Tree) -> Branching:
    root = tree.what or f"{_names(tree.prepared)}  (prepared)"
    return Branching((f"\n{root}", "bold"), tuple(map(_waits, tree.waiting)))


def _names(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - NAMED_MAX} more" if len(ids) > NAMED_MAX else ""
    return ", ".join(ids[:NAMED_MAX]) + more


def _waits(one: Wait) -> Branching:
    who = "@".join(part for part in (one.user, one.database) if part)
    text = f"session {one.session}" + (f" {who}" if who else "") + (f", {one.application}" if one.application else "")
    waits = "waits" if one.since_s is None else f"has waited {span(one.since_s)}"
    text += f" {waits} for {one.waits_for}"
    if one.statement:
        text += f": {one.statement}"
    return Branching(text, tuple(map(_waits, one.waiting)))


# ---- what to do -----------------------------------------------------------------------------------


def _print_findings(out: Output, findings: Sequence[Finding], prepared: Sequence[PreparedReport]) -> None:
    for severity in Severity:
        groups = _grouped([one for one in prepared if one.action.severity is severity])
        some = [one for one in findings if one.severity is severity]
        if not groups and not some:
            continue
        out.say((f"\n{TITLES[severity]}", STYLES[severity]))
        for action, alike in groups:
            _print_action(out, action, alike)
        for finding in some:
            _print_finding(out, finding)


def _grouped(prepared: Sequence[PreparedReport]) -> list[tuple[Action, list[PreparedReport]]]:
    """Those that want the same together: the same but for the statements, which name each."""
    groups: dict[object, list[PreparedReport]] = {}
    for one in prepared:
        action = one.action
        groups.setdefault((one.system, action.who, action.why, action.do, action.where), []).append(one)
    return [(alike[0].action, alike) for alike in groups.values()]


def _print_action(out: Output, action: Action, alike: Sequence[PreparedReport]) -> None:
    number = f"{len(alike)} of {alike[0].system}: " if len(alike) > 1 else f"{alike[0].system}: "
    out.indented(f"· {number}{_names([one.id for one in alike])}", 2)
    out.indented((f"{action.why}.", ""), 4)
    out.indented(f"whose it is to end: {action.who}", 4)
    for step in action.do:
        out.indented((f"→ {step}", "cyan"), 4)
    if action.after_asking:
        each = "" if len(alike) == 1 else " (so for each; --json has all)"
        where = f"{action.where}, " if action.where else ""
        out.indented((f"only after having asked, {where}one of these{each}:", "dim"), 4)
        for statement in action.after_asking:
            out.indented((statement, "dim"), 6)


def _print_finding(out: Output, finding: Finding) -> None:
    out.indented(f"· {finding.what}", 2)
    if finding.why:
        out.indented(finding.why, 4)
    for change in finding.changes:
        out.indented((f"→ {change.line}" + (f"    ({change.where})" if change.where else ""), "cyan"), 4)
