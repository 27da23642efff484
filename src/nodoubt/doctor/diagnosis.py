"""From facts to a report: every prepared transaction with its one action, every rule asked of every database.

Guarantees: pure: the same facts at the same time give the same report; what could not be examined stands in it, too.

Must not: ask anybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from ..amounts import iso
from ..journals.attempts import FLOOR_LOWEST, begun_at
from .advice import Case, Place, advise, decision
from .facts import Facts, Journal, Prepared
from .origins import SYSTEMS
from .report import (
    VERSION,
    Examined,
    Finding,
    Ours,
    PreparedReport,
    Report,
    Severity,
    Tree,
)
from .rules import ACROSS, RULES
from .waits import count, trees

EXIT_FINE, EXIT_FAILED, EXIT_HUMAN = 0, 1, 3

_ORDER = (Severity.HUMAN, Severity.ADVICE, Severity.NOTE)


def diagnose(
    found: Sequence[Facts],
    *,
    now: float,
    grace_s: float,
    expected: int,
    known_for_s: Mapping[str, Mapping[str, float]] | None = None,
) -> Report:
    """The report. `known_for_s`: by database, how long this process has known ids (with --watch)."""
    known = known_for_s or {}
    journals = _journals(found)
    xids = (one.origin.xid for facts in found for one in facts.prepared)
    listed = frozenset(xid for xid in xids if xid is not None)
    reached = frozenset(facts.identity.resource_id for facts in found if facts.identity is not None and facts.lists_all)
    cases = [
        Case(
            facts=facts,
            journals=journals,
            listed=listed,
            reached=reached,
            now=now,
            grace_s=grace_s,
            expected=expected,
            known_for_s=known.get(facts.name, {}),
        )
        for facts in found
    ]
    databases = tuple(_examined(case) for case in cases)
    across = _named((name, rule(cases)) for name, rule in ACROSS.items())
    return Report(
        version=VERSION,
        at=iso(now),
        exit_code=_exit_code(databases, across),
        databases=databases,
        findings=across,
    )


def _journals(found: Sequence[Facts]) -> dict[str, Place]:
    """By cluster, the one that speaks for it: not a standby, where the journal itself was examined, too."""
    best: dict[str, Place] = {}
    for facts in found:
        if facts.journal is not None:
            place = Place(facts.name, facts.journal, behind=facts.follows)
            other = best.setdefault(facts.journal.cluster, place)
            if (other.behind, -other.journal.epoch) > (place.behind, -place.journal.epoch):
                best[facts.journal.cluster] = place
    return best


def _examined(case: Case) -> Examined:
    facts = case.facts
    grown = trees(facts.waiting)
    findings = () if facts.error is not None else _named((name, rule(case)) for name, rule in RULES.items())
    return Examined(
        name=facts.name,
        url=facts.url,
        kind=facts.kind,
        at=iso(facts.at),
        took_ms=round(facts.took_s * 1000, 1),
        messages=facts.messages,
        error=facts.error,
        server=facts.server,
        settings=facts.settings,
        prepared_count=facts.prepared_count,
        prepared=tuple(_prepared(one, case, grown) for one in facts.prepared),
        waits=grown,
        vacuum=facts.vacuum,
        history_length=facts.history_length,
        replicas=facts.replicas,
        file=facts.file,
        journal=None if facts.journal is None else _ours(facts.journal),
        identity=facts.identity,
        findings=findings,
        gaps=facts.gaps,
        cut=facts.cut,
    )


def _prepared(one: Prepared, case: Case, grown: Sequence[Tree]) -> PreparedReport:
    return PreparedReport(
        id=one.id,
        kind=one.origin.kind,
        system=SYSTEMS[one.origin.kind],
        coordinator=one.origin.coordinator,
        detail=one.origin.detail,
        database=one.database,
        owner=one.owner,
        age_s=one.age_s,
        since=one.since,
        at_least=one.at_least,
        session=one.session,
        locks=one.locks,
        locks_left_out=one.locks_left_out,
        xids_held=one.xids_held,
        dead_rows=one.dead_rows,
        blocks=sum(count(tree.waiting) for tree in grown if one.id in tree.prepared),
        decision=decision(one, case),
        action=advise(one, case),
    )


def _ours(journal: Journal) -> Ours:
    return Ours(
        cluster=journal.cluster,
        version=journal.version,
        epoch=journal.epoch,
        floor=journal.floor,
        floor_at=None if journal.floor in (None, FLOOR_LOWEST) else iso(begun_at(journal.floor)),
        open_commits=len(journal.open_commits),
        names_undecided=len(journal.names),
        quarantined=len(journal.quarantined),
        unreadable=len(journal.unreadable),
    )


def _named(found: Iterable[tuple[str, Iterable[Finding]]]) -> tuple[Finding, ...]:
    """With the names of their rules, those first that matter most."""
    named = [msgspec.structs.replace(finding, rule=name) for name, findings in found for finding in findings]
    return tuple(sorted(named, key=lambda finding: _ORDER.index(finding.severity)))


def _exit_code(databases: Sequence[Examined], across: Sequence[Finding]) -> int:
    """3 before 1: what needs a human must not hide behind what could not be reached."""
    severities = {finding.severity for one in databases for finding in one.findings}
    severities |= {finding.severity for finding in across}
    severities |= {prepared.action.severity for one in databases for prepared in one.prepared}
    if Severity.HUMAN in severities:
        return EXIT_HUMAN
    blind = any(one.error is not None or any(gap.blind for gap in one.gaps) for one in databases)
    return EXIT_FAILED if blind else EXIT_FINE
