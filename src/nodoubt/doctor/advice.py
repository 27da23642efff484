"""What to do about one prepared transaction: whose it is to end, why, and how to go about it.

Guarantees: for one of ours never a statement that ends it by hand, whatever was decided: recovery ends it, after it has
confirmed the decision that is only read here. For a foreign one such statements stand last, behind the question to
whoever decides; for what looks like another release's of ours there are none either.

Must not: ask anybody; have anything executed.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..amounts import span
from ..engine.apart import WHAT_TO_DO
from ..journals.attempts import begun_at
from ..protocol.records import Standing, Unreadable
from ..protocol.recovery import Action as Sweep
from ..protocol.recovery import Age, Known, Seen, what_is_known, what_to_do
from ..xid import Xid
from .facts import Facts, Journal, Prepared
from .origins import Kind
from .report import Action, Severity


@dataclass(frozen=True, slots=True)
class Place:
    """A journal that was read, and the name of the database that it is in. `behind`: this is a copy that follows it, so
    what is there was decided, and what is not may have been.
    """

    name: str
    journal: Journal
    behind: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One database's facts, and what of the others matters to them. `known_for_s`: how long ids have been seen here."""

    facts: Facts
    journals: Mapping[str, Place]  # by cluster
    listed: frozenset[Xid]  # branches of ours that are prepared anywhere
    reached: frozenset[str]  # resource ids of the participants that told all that is prepared there
    now: float
    grace_s: float
    expected: int  # transactions that may be prepared at the same time
    known_for_s: Mapping[str, float] = field(default_factory=dict)


def age_s(one: Prepared, case: Case) -> float | None:
    """At least how old it is: by the server, by how long it has been seen here, or by when an id of ours was made."""
    ages = [one.age_s, case.known_for_s.get(one.id)]
    if one.since == "begin" and one.origin.xid is not None:
        ages.append(max(case.now - begun_at(one.origin.xid.attempt), 0.0))
    return max((age for age in ages if age is not None), default=None)


def advise(one: Prepared, case: Case) -> Action:
    """The one action."""
    xid = one.origin.xid
    if xid is None:
        return _foreign(one, case)
    place = case.journals.get(xid.cluster)
    if place is None:
        return _elsewhere(one, xid, case, "only that cluster's journal can tell what was decided")
    if place.behind and xid.attempt not in place.journal.decided:
        why = f"{place.name} is a standby, so that it has no decision says nothing: only the journal itself can tell"
        return _elsewhere(one, xid, case, why)
    return _ours(one, xid, place, case)


def decision(one: Prepared, case: Case) -> str | None:
    """What its journal said, in a word or two; None where it was not asked."""
    xid = one.origin.xid
    place = None if xid is None else case.journals.get(xid.cluster)
    if xid is None or place is None:
        return None
    standing = place.journal.decided.get(xid.attempt)
    if standing is not None:
        return standing.decision.verdict.value
    if place.behind:
        return None
    if xid.attempt in place.journal.sealed:
        return "unreadable"
    floor = place.journal.floor
    return "below the floor" if floor is not None and xid.attempt < floor else "none"


# ---- ours -----------------------------------------------------------------------------------------


def _elsewhere(one: Prepared, xid: Xid, case: Case, why: str) -> Action:
    age = age_s(one, case)
    young = age is not None and age < case.grace_s
    return Action(
        severity=Severity.NOTE if young else Severity.HUMAN,
        who=f"a coordinator of cluster {xid.cluster}, or nodoubt recover with its journal",
        why=f"{why}. Ended by hand it may end otherwise than its other branches",
        do=(
            "name the databases of that cluster, its journal first: nodoubt doctor -r NAME=URL …",
            "then let it be finished: nodoubt recover -r NAME=URL …",
        ),
    )


def _ours(one: Prepared, xid: Xid, place: Place, case: Case) -> Action:
    journal = place.journal
    if xid.attempt in journal.sealed:
        return _sealed(xid, journal.sealed[xid.attempt])
    standing, staging = journal.decided.get(xid.attempt), journal.staged.get(xid.attempt)
    if standing is None and journal.strays:
        return _left_alone(xid, journal.strays[0])
    floor, last_listed = journal.floor or "", _last_listed(xid, journal, case)  # without one there is a stray
    known = what_is_known(xid.attempt, standing, staging, floor=floor, now=case.now, last_listed=last_listed)
    age = age_s(one, case)
    old = age is not None and age >= case.grace_s
    row = what_to_do(known, Seen.PREPARED, Age.OLD if old else Age.YOUNG)
    if row.action is Sweep.LOOK_AGAIN:
        row = what_to_do(known, Seen.PREPARED_STILL, Age.OLD if old else Age.YOUNG)
    who = f"a running coordinator of cluster {xid.cluster}, or: nodoubt recover"
    recover = (f"nodoubt recover {_databases(place)}",)
    if one.unreadable:
        why = f"{one.unreadable}: recovery can roll it back, but not commit it"
        return Action(severity=Severity.HUMAN, who=who, why=why, do=(f"nodoubt show {xid.attempt}",))
    match row.action:
        case Sweep.COMMIT | Sweep.ROLLBACK:
            assert standing is not None
            return _decided(one, standing, who, recover, case)
        case Sweep.QUARANTINE:
            why = f"{known.value}: {row.why}. Recovery does not touch it, and says so"
            return Action(severity=Severity.HUMAN, who="a human", why=why, do=(f"nodoubt show {xid.attempt}", *recover))
        case Sweep.FENCE:
            why = f"{known.value}, {row.why}: recovery asks the journal for ABORT and carries out what it answers"
            return Action(severity=Severity.HUMAN, who=who, why=why + _bound(one), do=recover)
    if known is Known.STAGED and staging is not None:
        left = span(max(staging.deadline - case.now, 0))
        return Action(
            severity=Severity.NOTE,
            who=f"whoever decides {staging.name!r}, staged by {staging.owner or 'unknown'}",
            why=f"it is staged, and waits for its decision; in {left} recovery rolls it back",
            do=tuple(f"nodoubt {verb} {_argument(staging.name)}" for verb in ("commit", "rollback")),
        )
    why = f"{known.value}, {row.why}: it is younger than the grace of {span(case.grace_s)}"
    return Action(severity=Severity.NOTE, who=who, why=why, do=("look again",))


def _sealed(xid: Xid, row: Unreadable) -> Action:
    what = "its decision stands" if row.table == "decisions" else "it is staged, and may yet be decided"
    return Action(
        severity=Severity.HUMAN,
        who="a human, who mends the row; then recovery",
        why=f"do not roll it back, do not commit it by hand: {what}, but the row in the journal cannot be read, and "
        f"recovery leaves it alone until it can. {row.which} {row.why}",
        do=(f"nodoubt show {xid.attempt}", WHAT_TO_DO),
    )


def _left_alone(xid: Xid, row: Unreadable) -> Action:
    return Action(
        severity=Severity.HUMAN,
        who="a human, who mends the row; then recovery",
        why="do not roll it back: it has no decision, as read, and is left alone while that row of the journal may be "
        f"anybody's, or what was forgotten is not known. {row.which} {row.why}",
        do=(f"nodoubt show {xid.attempt}", WHAT_TO_DO),
    )


def _decided(one: Prepared, standing: Standing, who: str, recover: tuple[str, ...], case: Case) -> Action:
    decided = standing.decision
    late = case.now - decided.decided_at >= case.grace_s
    by = f" by {decided.owner}" if decided.owner else ""
    why = f"{decided.verdict.value.upper()} was decided{by}, as read: recovery confirms it and carries it out"
    if late:
        why += ". Nobody has for longer than the grace: no coordinator and no recoverer seems to run"
    return Action(severity=Severity.HUMAN if late else Severity.NOTE, who=who, why=why + _bound(one), do=recover)


def _last_listed(xid: Xid, journal: Journal, case: Case) -> bool | None:
    """As in a sweep: whether the branch that prepares last is listed, if its database was examined at all."""
    staging = journal.staged.get(xid.attempt)
    last = None if staging is None else next((ref for ref in staging.branches if ref.number == staging.last), None)
    if last is None or last.resource_id not in case.reached:
        return None
    return Xid(xid.cluster, xid.attempt, last.number) in case.listed


def _bound(one: Prepared) -> str:
    if one.session is None:
        return ""
    return f". Session {one.session} has it still, and until that ends nobody else can finish it; recovery ends it"


def _databases(place: Place) -> str:
    names = sorted(one.name for one in place.journal.registered) or ["NAME"]
    return " ".join(f"-r {shlex.quote(f'{name}=URL')}" for name in names) + f" --journal {shlex.quote(place.name)}"


def _argument(name: str) -> str:
    """A transaction's name as a shell takes it for that, and for nothing else: names are anybody's."""
    return ("-- " if name.startswith("-") else "") + shlex.quote(name)


# ---- foreign --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Guide:
    """Whom to ask, why, what to try first. `by_hand`: how it can be ended by hand, if all else fails."""

    who: str
    why: str
    do: tuple[str, ...] = ()
    by_hand: tuple[str, ...] = ("COMMIT", "ROLLBACK")


_GUIDES: dict[Kind, _Guide] = {
    Kind.LIKE_OURS: _Guide(
        "the release of nodoubt that writes such ids, or whoever imitates them",
        "if a newer release has prepared it, only that release's journal can tell what was decided; this one never "
        "touches it. Ended by hand it may end otherwise than its other branches",
        ("install the newest release that works with this database, and ask it: nodoubt doctor",),
        by_hand=(),
    ),
    Kind.SQLALCHEMY: _Guide(
        "the program that uses SQLAlchemy's two-phase transactions",
        "SQLAlchemy keeps no decision: once that program is gone, only its owner can tell, from the data, whether the "
        "other half was committed. Each connection has an id of its own, so the other half has another",
        ("look for one of the same time in that program's other databases",),
    ),
    Kind.CITUS: _Guide(
        "the Citus node that began it",
        "its pg_dist_transaction tells what was decided, and its maintenance daemon ends it by that, every "
        "citus.recover_2pc_interval",
        ("on that node: SELECT recover_prepared_transactions();",),
    ),
    Kind.PGDOG: _Guide(
        "the PgDog instance that began it",
        "its own write-ahead log tells what was decided, and it ends it when it starts again with that log",
        ("start that instance again, with the directory of its log",),
    ),
    Kind.NPGSQL: _Guide(
        "the program that uses Npgsql with System.Transactions, and its distributed transaction coordinator",
        "that coordinator (MSDTC on Windows) has the decision under the GUID in the id",
    ),
    Kind.SUBSCRIPTION: _Guide(
        "the subscription's apply worker",
        "the publisher has prepared it and not decided yet; what it decides comes the same way, and if it was ended by "
        "hand, replication stops there",
        ("look for it on the publisher", "SELECT subname, subenabled FROM pg_subscription WHERE oid = …"),
        by_hand=("ROLLBACK",),
    ),
    Kind.NARAYANA: _Guide(
        "Narayana's recovery manager (JBoss, WildFly, Quarkus) on the node that is named",
        "its object store tells what was decided; started again with that store and the same node identifier it "
        "recovers by itself",
        ("start that server again, with its object store and this data source",),
    ),
    Kind.ATOMIKOS: _Guide(
        "the Atomikos transaction manager that made the id",
        "its transaction log tells what was decided; started again with that log and the same unique name it recovers "
        "by itself",
        ("start that program again, with its log and this resource",),
    ),
    Kind.BITRONIX: _Guide(
        "the Bitronix transaction manager on the server that is named",
        "its journal tells what was decided; started again with that journal and the same server id it recovers by "
        "itself",
        ("start that program again, with its journal and this resource",),
    ),
    Kind.GERONIMO: _Guide(
        "the Geronimo or TomEE server that made the id",
        "its transaction log tells what was decided; started again with that log it recovers by itself",
        ("start that server again, with its log and this resource",),
    ),
    Kind.XA_TEXT: _Guide(
        "the program that prepared it, through psycopg's tpc_ methods or a Java transaction manager over pgjdbc",
        "its transaction manager has the decision; by XA's rules each database that took part has the same global id",
        ("look for the same global id in the other databases",),
    ),
    Kind.NAME: _Guide(
        "the program that prepared it",
        "its name says nothing of who decides; what is prepared may be half of something that was committed elsewhere",
        ("look for the same name in the other databases",),
    ),
    Kind.UNKNOWN: _Guide(
        "whoever prepared it",
        "its id is of no shape that is known here",
        ("look for the same id in the other databases",),
    ),
}


def _foreign(one: Prepared, case: Case) -> Action:
    guide = _GUIDES[one.origin.kind]
    age = age_s(one, case)
    if age is None:
        severity, when = Severity.ADVICE, ". How old it is the server does not tell: look again in a minute"
    elif age < case.grace_s:
        severity, when = Severity.NOTE, ". It is young: its coordinator may be at work on it"
    else:
        severity, when = Severity.HUMAN, ""
    who = guide.who + (f": {one.origin.coordinator}" if one.origin.coordinator else "")
    if one.owner:
        who += f" (role {one.owner})"
    return Action(
        severity=severity,
        who=who,
        why=guide.why + when,
        do=guide.do,
        after_asking=_by_hand(one, case.facts.kind, guide.by_hand),
        where=f"in database {one.database}, as {one.owner} or a superuser" if one.database and one.owner else "",
    )


def _by_hand(one: Prepared, kind: str, verbs: tuple[str, ...]) -> tuple[str, ...]:
    if one.xa is not None:
        return tuple(f"XA {verb} {one.xa.sql};" for verb in verbs)
    if kind != "postgres":
        return ()
    named = literal(one.id) if one.raw is None else _bytes_literal(one.raw)
    return tuple(f"{verb} PREPARED {named};" for verb in verbs)


def _bytes_literal(gid: bytes) -> str:
    """For the database that it was prepared in, whose encoding takes it."""
    return "E'" + "".join(f"\\x{byte:02x}" for byte in gid) + "'"


def literal(gid: str) -> str:
    """A gid as it stands in a statement of PostgreSQL's."""
    if gid.isascii() and gid.isprintable():
        return "'" + gid.replace("'", "''") + "'" if "\\" not in gid else "E'" + _escaped(gid) + "'"
    return "E'" + _escaped(gid) + "'"


def _escaped(gid: str) -> str:
    return "".join(c if c.isascii() and c.isprintable() and c not in "'\\" else f"\\U{ord(c):08X}" for c in gid)
