"""The rules: what is wrong, or worth knowing, about a server, its settings, and our own tables in it.

Each rule is a function of one `Case` (or, in `ACROSS`, of all of them) and gives any number of findings; its name in
the table is theirs in `--json`. Prepared transactions themselves are `advice`.

Must not: ask anybody. A rule that lacks a fact says nothing: the gap is named where the fact was missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from ..amounts import quantity, span
from ..engine.apart import WHAT_TO_DO
from ..engine.start import elsewhere, set_back
from ..ports import Identity as Participant
from ..protocol.records import BranchRef, Standing
from ..resources.mariadb_settings import CNF
from ..xid import is_attempt
from .advice import Case
from .facts import Facts, Journal, Prepared
from .origins import Kind
from .report import Change, Finding, Severity
from .waits import count, longest_s, trees

SLOTS_NEARLY_FULL = 0.8
WAIT_LONG_S = 30.0
VACUUM_SHARE = 0.5  # of autovacuum_freeze_max_age
XIDS_IN_ALL = 1 << 31
XIDS_LEFT_LEAST = 40_000_000  # where PostgreSQL itself begins to warn
HISTORY_LONG = 1_000_000
IDLE_LONG_S = 3600
OPEN_LONG_S = 3600.0  # a COMMIT whose end is not recorded: sweeps end it within seconds
SKEW_MAX_S = 2.0
NAMED_MAX = 5
_DYNAMIC = frozenset(
    {
        "binlog_format", "debug_no_sync", "innodb_flush_log_at_trx_commit", "read_only", "rpl_semi_sync_master_enabled",
        "super_read_only", "sync_binlog", "wait_timeout",
    }
)  # fmt: skip

Rule = Callable[[Case], Iterable[Finding]]


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:NAMED_MAX])) + (" …" if len(names) > NAMED_MAX else "")


def _setting(facts: Facts, name: str) -> str | None:
    setting = facts.settings.get(name)
    return None if setting is None else setting.value


def _number(facts: Facts, name: str) -> int | None:
    value = _setting(facts, name)
    return int(value) if value is not None and value.lstrip("-").isdigit() else None


def _where(facts: Facts, line: str, default: str) -> str:
    """The file and line that the setting stands in now, if the server tells."""
    setting = facts.settings.get(line.partition(" =")[0])
    return setting.place if setting is not None and setting.place else default


def _at_once(line: str) -> tuple[Change, ...]:
    """MariaDB reads my.cnf at its start; what it lets be changed while it runs is changed so, too."""
    name, _, value = line.partition(" = ")
    return (Change(f"SET GLOBAL {name} = {value};"),) if name in _DYNAMIC else ()


def _cnf(line: str) -> tuple[Change, ...]:
    return Change(line, CNF), *_at_once(line)


# ---- settings and rights --------------------------------------------------------------------------


def _settings(case: Case) -> Iterator[Finding]:
    for flaw in case.facts.flaws:
        change = Change(flaw.line, _where(case.facts, flaw.line, flaw.where))
        yield Finding(
            severity=Severity.HUMAN if flaw.refused else Severity.ADVICE,
            what=flaw.what,
            why=flaw.advice,
            changes=(change, *_at_once(flaw.line)) if flaw.line else (),
        )


def _slots(case: Case) -> Iterator[Finding]:
    """PostgreSQL's places for prepared transactions: taken for good by what is left behind."""
    facts, most = case.facts, _number(case.facts, "max_prepared_transactions")
    if not most:
        return
    wanted = max(case.expected, 2 * facts.prepared_count)
    change = Change(
        f"max_prepared_transactions = {max(wanted, 2 * most)}",
        _where(facts, "max_prepared_transactions", "postgresql.conf") + ", then restart the server",
    )
    if facts.prepared_count >= most * SLOTS_NEARLY_FULL:
        full = facts.prepared_count >= most
        yield Finding(
            severity=Severity.HUMAN if full else Severity.ADVICE,
            what=f"{facts.prepared_count} of {most} places for prepared transactions are taken",
            why="the next PREPARE fails" if full else "when none is left, PREPARE fails",
            changes=(change,),
        )
    elif case.expected > most:
        yield Finding(
            severity=Severity.ADVICE,
            what=f"max_prepared_transactions is {most}, and {case.expected} may be prepared at the same time",
            why="pool size times coordinators, and what is staged besides (--expect N says how many)",
            changes=(Change(f"max_prepared_transactions = {case.expected}", change.where),),
        )


def _standbys(case: Case) -> Iterator[Finding]:
    names = _setting(case.facts, "synchronous_standby_names")
    standbys = [one for one in case.facts.replicas if one.kind == "standby"]
    if names is None:
        return
    if not names and any(one.kind in ("standby", "physical slot") for one in case.facts.replicas):
        yield Finding(
            severity=Severity.ADVICE,
            what="standbys follow this server, and none of them is synchronous",
            why="the promotion of one can lose a promise that was given: a branch prepared here, or a decision",
            changes=(Change("synchronous_standby_names = 'ANY 1 (NAME, NAME)'", "postgresql.conf, then reload"),),
        )
    if names and not any(one.synchronous is None for one in standbys) and not any(one.synchronous for one in standbys):
        yield Finding(
            severity=Severity.HUMAN,
            what=f"synchronous_standby_names is {names!r}, and no such standby follows",
            why="every forced commit and prepare waits for it: bring it back, or take its name out",
        )


def _logical(case: Case) -> Iterator[Finding]:
    slots = [one.name for one in case.facts.replicas if one.kind == "logical slot"]
    if slots and case.facts.prepared_count:
        yield Finding(
            severity=Severity.NOTE,
            what=f"logical replication reads from here: {', '.join(slots)}",
            why="as long as a transaction stays prepared, the log is kept for every such slot from where it began, and "
            "what it did is not replicated before COMMIT PREPARED",
        )


def _replicas(case: Case) -> Iterator[Finding]:
    """MariaDB's: asynchronous unless the plug-in for semi-synchronous replication is on."""
    on = {_setting(case.facts, f"rpl_semi_sync_{name}_enabled") for name in ("master", "source")}
    if any(one.kind == "replica" for one in case.facts.replicas) and "ON" not in on:
        yield Finding(
            severity=Severity.ADVICE,
            what="replicas follow this server, asynchronously",
            why="the promotion of one can lose a promise that was given: a branch prepared here, or a decision",
            changes=_cnf("rpl_semi_sync_master_enabled = ON"),
        )


def _binlog(case: Case) -> Iterator[Finding]:
    if _setting(case.facts, "log_bin") == "ON" and _setting(case.facts, "binlog_format") == "STATEMENT":
        yield Finding(
            severity=Severity.ADVICE,
            what="binlog_format is STATEMENT",
            why="it refuses writes in READ COMMITTED (1665), which a journal of nodoubt's makes: it cannot live here",
            changes=_cnf("binlog_format = ROW"),
        )


def _rollback_on_timeout(case: Case) -> Iterator[Finding]:
    foreign = any(one.origin.kind is not Kind.NODOUBT for one in case.facts.prepared)
    if foreign and _setting(case.facts, "innodb_rollback_on_timeout") == "OFF":
        yield Finding(
            severity=Severity.NOTE,
            what="innodb_rollback_on_timeout is OFF, and other programs use XA here",
            why="after a lock time-out (1205) one that goes on prepares half of its work; nodoubt's branches do not",
            changes=(Change("innodb_rollback_on_timeout = ON", f"{CNF}, then restart the server"),),
        )


def _wait_timeout(case: Case) -> Iterator[Finding]:
    limit = _number(case.facts, "wait_timeout")
    if case.facts.prepared_count and limit is not None and limit > IDLE_LONG_S:
        yield Finding(
            severity=Severity.NOTE,
            what=f"wait_timeout is {limit} s",
            why="so long a client whose machine has gone can hold a prepared branch, which nobody else can end "
            "meanwhile (KILL ends the session; nodoubt's recovery does that by itself)",
            changes=_cnf("wait_timeout = 600"),
        )


# ---- what prepared transactions do to others ------------------------------------------------------


def _blocked(case: Case) -> Iterator[Finding]:
    for tree in trees(case.facts.waiting):
        number, longest = count(tree.waiting), longest_s(tree.waiting)
        long = longest is not None and longest >= WAIT_LONG_S
        waits = "1 session waits" if number == 1 else f"{number} sessions wait"
        whom = tree.what or (
            tree.prepared[0] if len(tree.prepared) == 1 else f"{len(tree.prepared)} prepared transactions"
        )
        yield Finding(
            severity=Severity.HUMAN if long else Severity.ADVICE,
            what=f"{waits} behind {whom}" + ("" if longest is None else f", the first for {span(longest)}"),
            why="they go on when it has ended, not before",
            about=tree.prepared,
        )


def _oldest(facts: Facts) -> Prepared | None:
    """The one that holds VACUUM back the furthest."""
    return max(facts.prepared, key=lambda one: one.xids_held or 0, default=None)


def _vacuum(case: Case) -> Iterator[Finding]:
    vacuum, oldest = case.facts.vacuum, _oldest(case.facts)
    if vacuum is None or oldest is None:
        return
    xids = oldest.xids_held or 0
    if xids >= vacuum.freeze_max_age * VACUUM_SHARE:
        late = xids >= vacuum.freeze_max_age
        yield Finding(
            severity=Severity.HUMAN if late else Severity.ADVICE,
            what=f"{oldest.id} holds VACUUM back by {quantity(xids)} transaction ids, in every database of the server",
            why=f"at autovacuum_freeze_max_age ({quantity(vacuum.freeze_max_age)}) autovacuum begins to freeze every "
            f"table, and cannot get past it; dead rows pile up until it ends ({quantity(oldest.dead_rows or 0)} in the "
            "tables that it has locked)",
            about=(oldest.id,),
        )


def _vacuum_elsewhere(case: Case) -> Iterator[Finding]:
    vacuum, oldest = case.facts.vacuum, _oldest(case.facts)
    if vacuum is None or oldest is None:
        return
    others = {name: age for name, age in vacuum.others.items() if age > (oldest.xids_held or 0)}
    if others:
        name = max(others, key=lambda other: others[other])
        yield Finding(
            severity=Severity.NOTE,
            what=f"{name} holds VACUUM back further than any prepared transaction: {quantity(others[name])} ids",
            why="to end what is prepared will not be enough",
        )


def _wraparound(case: Case) -> Iterator[Finding]:
    vacuum = case.facts.vacuum
    if vacuum is None:
        return
    left = XIDS_IN_ALL - vacuum.oldest_database_age
    if left < XIDS_LEFT_LEAST:
        yield Finding(
            severity=Severity.HUMAN,
            what=f"{quantity(left)} transaction ids are left before the server refuses every write",
            why=f"database {vacuum.oldest_database} must be vacuumed; what is prepared or otherwise holds it back must "
            "end first",
            changes=(Change("VACUUM (FREEZE)", f"in {vacuum.oldest_database}"),),
        )


def _history(case: Case) -> Iterator[Finding]:
    length = case.facts.history_length
    if length is not None and length >= HISTORY_LONG:
        yield Finding(
            severity=Severity.ADVICE,
            what=f"InnoDB's history list is {quantity(length)} long: so many old versions it cannot purge",
            why="every read has to pass them by; a branch that stays prepared keeps them, and so does an open snapshot",
        )


# ---- SQLite ---------------------------------------------------------------------------------------


def _unguarded(case: Case) -> Iterator[Finding]:
    file = case.facts.file
    if file is not None and file.unguarded:
        yield Finding(
            severity=Severity.HUMAN,
            what=f"{', '.join(file.unguarded)}: locked by a prepared branch, and without the triggers that keep others "
            "out",
            why="whoever writes there now makes it impossible to commit that branch: stop the writers until it ends",
        )


def _locked_file(case: Case) -> Iterator[Finding]:
    file = case.facts.file
    if file is not None and file.writers:
        yield Finding(
            severity=Severity.NOTE,
            what=f"locked for writing by {file.writers}",
            why="nobody else can write, nor prepare, until that ends",
        )


# ---- our own tables -------------------------------------------------------------------------------


def _broken(case: Case) -> Iterator[Finding]:
    if case.facts.broken is not None:
        yield Finding(
            severity=Severity.HUMAN,
            what="nodoubt's tables cannot be used by this release",
            why=case.facts.broken,
            changes=(Change("nodoubt schema status"),),
        )


def _lineage(case: Case) -> Iterator[Finding]:
    identity = case.facts.identity
    if identity is None:
        return
    stored = Participant(identity.resource_id, identity.cluster, identity.server, identity.epoch)
    name, place = case.facts.name, case.journals.get(identity.cluster)
    errors = [elsewhere(name, stored, identity.server_now)]
    if place is not None and not place.behind and not case.facts.follows:
        journal = place.journal
        known = {one.resource_id: one.epoch for one in journal.registered}.get(identity.resource_id)
        minted = identity.mark not in journal.strange_marks
        errors.append(set_back(name, stored, journal.epoch, known, minted=minted))
    for error in errors:
        if error is not None:
            yield Finding(severity=Severity.HUMAN, what=f"{name} is not what it was", why=str(error))


def _strange_journal(case: Case) -> Iterator[Finding]:
    """A participant whose journal is not at hand, and a journal beside it that is another's."""
    identity = case.facts.identity
    if identity is not None and identity.cluster not in case.journals:
        yield Finding(
            severity=Severity.NOTE,
            what=f"it belongs to the journal of cluster {identity.cluster}, which was not examined",
            why="without that journal nothing can be told of its decisions: name its database, too",
        )


def _quarantined(case: Case) -> Iterator[Finding]:
    journal = case.facts.journal
    for one in journal.quarantined if journal is not None else ():
        yield Finding(
            severity=Severity.HUMAN,
            what=f"branch {one.branch} of {one.attempt} on {one.resource} is quarantined",
            why=one.why,
            changes=(Change(f"nodoubt show {one.attempt}"),),
            about=(one.attempt,),
        )


def _unreadable(case: Case) -> Iterator[Finding]:
    """Rows of the journal that nobody can read: each holds up what hangs on it, and recovery leaves that alone."""
    journal = case.facts.journal
    for one in journal.unreadable if journal is not None else ():
        yield Finding(
            severity=Severity.HUMAN,
            what=f"a row of the journal cannot be read: {one.which}",
            why=f"it {one.why}. Recovery leaves alone what hangs on it, and carries out the others: {WHAT_TO_DO}",
            changes=(Change(f"nodoubt show {one.printable}"),) if is_attempt(one.attempt) else (),
            about=(one.printable,) if one.attempt else (),
        )


def _open(case: Case) -> Iterator[Finding]:
    """COMMIT decisions whose end is not recorded: each keeps what came after it from being forgotten."""
    journal = case.facts.journal
    if journal is None:
        return
    late = [one for one in journal.open_commits if case.now - one.decision.decided_at >= OPEN_LONG_S]
    if not late:
        return
    oldest = min(late, key=lambda one: one.decision.attempt)
    missing = sorted({f"{ref.resource} ({ref.resource_id})" for ref in _missing(late, case)})
    why = "all participants were examined: no recovery runs, or one cannot prove its branch"
    if missing:
        why = f"not examined: {', '.join(missing)}. If one of them is gone for good, these records never end"
    decisions = "1 COMMIT decision has" if len(late) == 1 else f"{len(late)} COMMIT decisions have"
    yield Finding(
        severity=Severity.HUMAN,
        what=f"{decisions} not ended; retention's floor cannot pass the oldest, of "
        f"{span(case.now - oldest.decision.decided_at)} ago",
        why=why,
        changes=(Change(f"nodoubt show {oldest.decision.attempt}"), Change("nodoubt recover")),
        about=tuple(one.decision.attempt for one in late),
    )


def _missing(late: Sequence[Standing], case: Case) -> Iterator[BranchRef]:
    for standing in late:
        for ref in standing.decision.branches:
            if ref.resource_id not in case.reached and ref.number != standing.decision.point:
                yield ref


def _begins(case: Case) -> Iterator[Finding]:
    """Names that were begun and have nothing prepared: their begin has failed, or is at work."""
    journal = case.facts.journal
    if journal is None or case.facts.follows:
        return
    listed = {xid.attempt for xid in case.listed}
    dead = [
        one
        for one in journal.names
        if one.attempt not in listed
        and case.now - max(one.created_at, one.begin_by) >= case.grace_s
        and {ref.resource_id for ref in one.branches} <= case.reached
    ]
    if dead:
        yield Finding(
            severity=Severity.HUMAN,
            what=f"begun, and nothing prepared: {_some([one.name for one in dead])}",
            why=f"their begin died before its last prepare; {_rolled_back(journal)}",
            changes=() if journal.strays else (Change("nodoubt recover"),),
            about=tuple(one.attempt for one in dead),
        )


def _due(case: Case) -> Iterator[Finding]:
    journal = case.facts.journal
    if journal is None or case.facts.follows:
        return
    due = [one for one in journal.names if case.now - one.deadline >= case.grace_s]
    if due:
        yield Finding(
            severity=Severity.HUMAN,
            what=f"staged, and past the deadline: {_some([one.name for one in due])}",
            why=f"nobody decided in time; {_rolled_back(journal)}",
            changes=() if journal.strays else (Change("nodoubt recover"),),
            about=tuple(one.attempt for one in due),
        )


def _rolled_back(journal: Journal) -> str:
    if journal.strays:
        return f"they are left alone until it can be read: {journal.strays[0].which}"
    return "recovery rolls them back, and no recovery runs"


RULES: dict[str, Rule] = {
    "settings": _settings,
    "slots": _slots,
    "standbys": _standbys,
    "logical-slots": _logical,
    "replicas": _replicas,
    "binlog-format": _binlog,
    "rollback-on-timeout": _rollback_on_timeout,
    "wait-timeout": _wait_timeout,
    "blocked": _blocked,
    "vacuum": _vacuum,
    "vacuum-elsewhere": _vacuum_elsewhere,
    "wraparound": _wraparound,
    "history": _history,
    "sqlite-guards": _unguarded,
    "sqlite-writer": _locked_file,
    "schema": _broken,
    "lineage": _lineage,
    "journal-elsewhere": _strange_journal,
    "quarantined": _quarantined,
    "unreadable": _unreadable,
    "open-commits": _open,
    "failed-begins": _begins,
    "past-deadline": _due,
}


# ---- across databases -----------------------------------------------------------------------------


def _skew(cases: Sequence[Case]) -> Iterator[Finding]:
    """Clocks choose when to try, never what is true (I14): a skew makes graces and deadlines come early, or late."""
    clocks = [("this machine", 0.0, 0.0)] + [
        (case.facts.name, case.facts.server.skew_s, case.facts.server.skew_within_s)
        for case in cases
        if case.facts.server is not None and case.facts.server.skew_s is not None
    ]
    slowest, fastest = min(clocks, key=lambda one: one[1]), max(clocks, key=lambda one: one[1])
    apart = fastest[1] - slowest[1]
    if apart - fastest[2] - slowest[2] > SKEW_MAX_S:
        told = ", ".join(f"{name} {skew:+.1f} s" for name, skew, _ in clocks[1:])
        yield Finding(
            severity=Severity.ADVICE,
            what=f"the clock of {fastest[0]} is {apart:.1f} s ahead of that of {slowest[0]} ({told})",
            why="no promise hangs on clocks, but graces and deadlines come early or late by as much: let NTP set them",
            changes=(Change("timedatectl set-ntp true", f"on {fastest[0]} and {slowest[0]}"),),
        )


def _twins(cases: Sequence[Case]) -> Iterator[Finding]:
    """Several databases that say they hold one and the same journal, and are no standbys of one another."""
    holders: dict[str, dict[str, Case]] = {}
    for case in cases:
        if case.facts.journal is not None and not case.facts.follows:
            holders.setdefault(case.facts.journal.cluster, {}).setdefault(case.facts.url, case)
    for cluster, by_url in holders.items():
        if len(by_url) > 1:
            epochs = {case.facts.journal.epoch for case in by_url.values() if case.facts.journal is not None}
            names = " and ".join(case.facts.name for case in by_url.values())
            yield Finding(
                severity=Severity.HUMAN if len(epochs) > 1 else Severity.ADVICE,
                what=f"{names} each say that they hold the journal of cluster {cluster}",
                why="unless they are one and the same by two names, one is a clone or was restored: whoever works with "
                "it may decide otherwise than the other has. What is said here of branches is what "
                f"{cases[0].journals[cluster].name} says",
            )


ACROSS: dict[str, Callable[[Sequence[Case]], Iterable[Finding]]] = {"clock-skew": _skew, "journal-twice": _twins}
