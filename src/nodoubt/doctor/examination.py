"""How databases are looked at: all at the same time, then what their journals say of the branches that were found.

Guarantees: a database that cannot be reached, or does not answer in time, keeps none of the others from being examined;
nothing is written; the number of messages does not grow with the number of prepared transactions (it does with that
of our own, by one for every 500).

Must not: judge, or act on what is read here: another process may have ended it a moment later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ..engine.context import bounded, chunks, using
from ..errors import NoDoubtError, SchemaMismatch
from ..journals.sql import ATTEMPTS_PER_STATEMENT, SCHEMA_VERSION
from ..ports import Clock, Journal, Pool, Reply, Resource, Session, SessionLost, StatementFailed
from ..protocol.records import Standing
from ..script import Script, do, every
from . import facts as f
from . import mariadb, postgres, sqlite
from .seen import Seen

ANSWER_S = 10.0  # for one database, all its messages together

_PARTICIPANT_TABLES = frozenset({"identity", "receipts"})
_DENIED = frozenset({"42501", "1044", "1142", "1143"})


_LOOKS: dict[str, Callable[[Session, Clock, str], Script[Seen]]] = {
    "postgres": lambda session, clock, _: postgres.look(session, clock),
    "mariadb": mariadb.look,
    "sqlite": lambda session, _, __: sqlite.look(session),
}
_LISTED: dict[str, Callable[[Session], Script[frozenset[str]]]] = {
    "postgres": postgres.listed,
    "mariadb": mariadb.listed,
    "sqlite": sqlite.listed,
}


@dataclass(frozen=True, slots=True)
class Patient:
    """A database to look at: its sessions, which must not write, and the scripts that read our tables in it."""

    name: str
    url: str  # without its password
    kind: str
    database: str
    pool: Pool
    resource: Resource
    journal: Journal


class _Counting:
    """A session that counts its messages."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.messages = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, sql: str) -> tuple[Reply, ...]:
        """As the session's; the async twin's awaitable passes through."""
        self.messages += 1
        return self._session.run(sql)

    def call(self, *args: Any) -> Any:
        """As the session's, where it has one."""
        self.messages += 1
        return self._session.call(*args)  # type: ignore[attr-defined]


def examine(patients: Sequence[Patient], clock: Clock, *, answer_s: float = ANSWER_S) -> Script[tuple[f.Facts, ...]]:
    """Look at them all."""
    first = yield from every([_examined(one, clock, answer_s) for one in patients])
    found = [outcome.get() for outcome in first]
    pairs = list(zip(patients, found, strict=True))
    second = yield from every([_told(one, facts, found, clock, answer_s) for one, facts in pairs])
    found = [outcome.get() for outcome in second]
    ended = {xid for facts in found if facts.journal is not None for xid in _ended(facts.journal)}
    pairs = list(zip(patients, found, strict=True))
    third = yield from every([_still_there(one, facts, ended, clock, answer_s) for one, facts in pairs])
    return tuple(outcome.get() for outcome in third)


def _examined(patient: Patient, clock: Clock, answer_s: float) -> Script[f.Facts]:
    began, at = clock.elapsed(), clock.now()
    empty = f.Facts(name=patient.name, url=patient.url, kind=patient.kind, at=at)

    def body(session: Session) -> Script[f.Facts]:
        return _look(patient, session, clock, empty)

    facts = yield from _answered(patient, body, empty, clock, answer_s)
    return msgspec.structs.replace(facts, took_s=clock.elapsed() - began)


def _answered(
    patient: Patient, body: Callable[[Session], Script[f.Facts]], empty: f.Facts, clock: Clock, answer_s: float
) -> Script[f.Facts]:
    """What the body finds, or why it could not be found."""
    try:
        return (yield from bounded(using(patient.pool, body), answer_s, clock))
    except (NoDoubtError, StatementFailed, SessionLost) as error:
        return msgspec.structs.replace(empty, error=" ".join(str(error).split()) or type(error).__name__)


def _look(patient: Patient, session: Session, clock: Clock, empty: f.Facts) -> Script[f.Facts]:
    counting = _Counting(session)
    counted: Any = counting
    try:
        seen = yield from _LOOKS[patient.kind](counted, clock, patient.database)
        ours = yield from _ours(patient, counted, seen)
        if patient.kind == "sqlite":
            yield from _settled(session)
    except BaseException:
        session.kill()  # after an error its transaction is not one to ask more questions in
        raise
    return f.Facts(
        name=patient.name,
        url=patient.url,
        kind=patient.kind,
        at=empty.at,
        messages=counting.messages,
        server=seen.server,
        settings=seen.settings,
        flaws=tuple(
            f.Flaw(what=o.what, advice=o.advice, refused=o.refused, line=o.line, where=o.where) for o in seen.flaws
        ),
        prepared=tuple(seen.prepared),
        prepared_count=seen.prepared_count,
        waiting=tuple(seen.waiting),
        vacuum=seen.vacuum,
        history_length=seen.history_length,
        replicas=tuple(seen.replicas),
        file=seen.file,
        gaps=tuple(seen.gaps),
        cut=tuple(seen.cut),
        **ours,
    )


def _settled(session: Any) -> Script[None]:
    """How a file is to be opened depends on the moment, so the next look opens it anew."""
    settled = yield from do(session, "call", lambda connection: connection.settled())
    session.usable = False
    if not settled:
        raise SessionLost("the file was opened and written while it was looked at: ask again")


# ---- our own tables -------------------------------------------------------------------------------


def _ours(patient: Patient, session: Session, seen: Seen) -> Script[dict[str, Any]]:
    """The fields of `Facts` about our tables; empty where there are none."""
    there = frozenset(seen.ours)
    hidden = sorted(name for name, readable in seen.ours.items() if not readable)
    if hidden:
        seen.gaps.append(f.Gap(f"our own tables: {', '.join(hidden)}", _grant(patient, seen)))
        return {}
    found: dict[str, Any] = {}
    try:
        if there & _PARTICIPANT_TABLES:
            found["identity"] = yield from _identity(patient, session)
        if "journal" in there:
            found["journal"] = yield from _journal(patient, session, seen)
    except (NoDoubtError, StatementFailed) as error:
        if _code(error) in _DENIED:
            seen.gaps.append(f.Gap(f"our own tables ({error})", _grant(patient, seen)))
        elif isinstance(error, SchemaMismatch):
            found["broken"] = str(error)
        else:
            raise
    return found


def _identity(patient: Patient, session: Session) -> Script[f.Identity | None]:
    identity = yield from patient.resource.identity(session)
    if identity is None:
        return None
    server = yield from patient.resource.server(session)
    return f.Identity(
        resource_id=identity.resource_id,
        cluster=identity.cluster,
        epoch=identity.epoch,
        server=identity.server,
        server_now=server,
    )


def _journal(patient: Patient, session: Session, seen: Seen) -> Script[f.Journal]:
    journal = patient.journal
    cluster = yield from journal.cluster(session)
    epoch = yield from journal.epoch(session)
    floor = yield from journal.floor(session)
    commits = yield from journal.open_commits(session, "", f.OPEN_MAX + 1)
    names = yield from journal.undecided(session, "", f.UNDECIDED_MAX + 1)
    held = yield from journal.quarantined(session, f.QUARANTINED_MAX + 1)
    registered = yield from journal.registered(session)
    for what, rows, most in (
        ("decisions that have not ended", commits, f.OPEN_MAX),
        ("names without a decision", names, f.UNDECIDED_MAX),
        ("what is quarantined", held, f.QUARANTINED_MAX),
    ):
        if len(rows) > most:
            seen.cut.append(f"{what}: the first {most}")
    return f.Journal(
        cluster=cluster,
        version=SCHEMA_VERSION,
        epoch=epoch,
        floor=floor,
        open_commits=tuple(commits[: f.OPEN_MAX]),
        names=tuple(names[: f.UNDECIDED_MAX]),
        quarantined=tuple(held[: f.QUARANTINED_MAX]),
        registered=tuple(f.Registered(key, name, one.server, one.epoch) for key, (name, one) in registered.items()),
    )


def _grant(patient: Patient, seen: Seen) -> str:
    user = seen.server.user if seen.server is not None else "?"
    if patient.kind == "postgres":
        role = '"' + user.replace('"', '""') + '"'
        return f"GRANT USAGE ON SCHEMA nodoubt TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA nodoubt TO {role};"
    return f"GRANT SELECT on the tables nodoubt_* to {user}"


def _code(error: BaseException) -> str:
    """The server's own code, wherever it was wrapped."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, StatementFailed):
            return cause.code
        cause = cause.__cause__
    return ""


# ---- what was decided -----------------------------------------------------------------------------


def _told(
    patient: Patient, facts: f.Facts, every_one: Sequence[f.Facts], clock: Clock, answer_s: float
) -> Script[f.Facts]:
    """With what its journal says of those branches of its cluster that were found, in whichever database."""
    journal = facts.journal
    if journal is None:
        return facts
    xids = [one.origin.xid for other in every_one for one in other.prepared if one.origin.xid is not None]
    attempts = sorted({xid.attempt for xid in xids if xid.cluster == journal.cluster})
    if not attempts:
        return facts

    def body(session: Session) -> Script[f.Facts]:
        counting = _Counting(session)
        counted: Any = counting
        decided: dict[str, Standing] = yield from patient.journal.look(counted, attempts)
        staged = {}
        for some in chunks(attempts, ATTEMPTS_PER_STATEMENT):
            staged.update((yield from patient.journal.staged(counted, some)))
        return msgspec.structs.replace(
            facts,
            journal=msgspec.structs.replace(journal, decided=decided, staged=staged),
            messages=facts.messages + counting.messages,
        )

    # A journal that has not told what was decided must not look like one that has decided nothing.
    silent = msgspec.structs.replace(facts, journal=None)
    return (yield from _answered(patient, body, silent, clock, answer_s))


# ---- what has ended meanwhile ---------------------------------------------------------------------


def _ended(journal: f.Journal) -> set[tuple[str, str]]:
    """The attempts, with their cluster, of which every branch had proved itself when the journal was read."""
    return {(journal.cluster, attempt) for attempt, standing in journal.decided.items() if standing.ended}


def _still_there(
    patient: Patient, facts: f.Facts, ended: set[tuple[str, str]], clock: Clock, answer_s: float
) -> Script[f.Facts]:
    """Without those that were prepared when they were listed, and committed by the time the journal was asked.

    Listed again after that, a branch whose record has ended was restored (I15), and that is an alarm.
    """

    def may_be_gone(one: f.Prepared) -> bool:
        xid = one.origin.xid
        return xid is not None and (xid.cluster, xid.attempt) in ended

    if not any(map(may_be_gone, facts.prepared)):
        return facts

    def body(session: Session) -> Script[f.Facts]:
        listed = yield from _LISTED[patient.kind](session)
        if patient.kind == "sqlite":
            session.usable = False
        left = tuple(one for one in facts.prepared if one.id in listed or not may_be_gone(one))
        count = facts.prepared_count - len(facts.prepared) + len(left)
        return msgspec.structs.replace(facts, prepared=left, prepared_count=count, messages=facts.messages + 1)

    return (yield from _answered(patient, body, facts, clock, answer_s))
