"""How databases are looked at: all at the same time, then what their journals say of the branches that were found.

Guarantees: a database that cannot be reached, or does not answer in time, keeps none of the others from being examined;
nothing is written; the number of messages does not grow with the number of prepared transactions (it does with that
of our own, by a few for every 150).

Must not: judge, or act on what is read here: another process may have ended it a moment later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ..engine.context import bounded, using
from ..errors import NoDoubtError
from ..ports import START, Clock, Journal, Pool, Reply, Resource, Session, SessionLost, Spot, StatementFailed
from ..script import Script, do, every
from . import facts as f
from . import mariadb, ours, postgres, sqlite
from .seen import Seen

ANSWER_S = 10.0  # for one database, all its messages together


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
    """Look at them all, and at what is ours in this order: so no start, and no commit, in between is an alarm.

    What is prepared, and what the journals say was witnessed; then what participants have witnessed; then the journals'
    epochs and decisions; then, where a record has ended, once more whether its branch is prepared.
    """
    room = _Room(clock, answer_s)
    looks = yield from every([_examined(room, one) for one in patients])
    found = [facts for facts, _ in (outcome.get() for outcome in looks)]
    tables = [names for _, names in (outcome.get() for outcome in looks)]
    found = yield from _each(_identified(room, *each) for each in zip(patients, found, tables, strict=True))
    every_one = tuple(found)
    found = yield from _each(_told(room, *each, every_one) for each in zip(patients, found, strict=True))
    gone = {key for facts in found if facts.journal is not None for key in ours.ended(facts.journal)}
    found = yield from _each(_still_there(room, *each, gone) for each in zip(patients, found, strict=True))
    return tuple(found)


def _each(scripts: Iterable[Script[f.Facts]]) -> Script[list[f.Facts]]:
    return [outcome.get() for outcome in (yield from every(list(scripts)))]


@dataclass(frozen=True, slots=True)
class _Room:
    """Where they are examined: the clock, and how long each may take to answer."""

    clock: Clock
    answer_s: float

    def answered(
        self, patient: Patient, failed: f.Facts, body: Callable[[Session], Script[f.Facts]]
    ) -> Script[f.Facts]:
        """What the body finds; or `failed`, with why it could not be found."""

        def careful(session: Session) -> Script[f.Facts]:
            counting: Any = _Counting(session)
            try:
                found = yield from body(counting)
                if patient.kind == "sqlite":
                    yield from _settled(session)
            except BaseException:
                session.kill()  # after an error its transaction is not one to ask more questions in
                raise
            return msgspec.structs.replace(found, messages=found.messages + counting.messages)

        try:
            return (yield from bounded(using(patient.pool, careful), self.answer_s, self.clock))
        except (NoDoubtError, StatementFailed, SessionLost) as error:
            return msgspec.structs.replace(failed, error=" ".join(str(error).split()) or type(error).__name__)


def _settled(session: Any) -> Script[None]:
    """How a file is to be opened depends on the moment, so the next look opens it anew."""
    settled = yield from do(session, "call", lambda connection: connection.settled())
    session.usable = False
    if not settled:
        raise SessionLost("the file was opened and written while it was looked at: ask again")


# ---- the database ---------------------------------------------------------------------------------


def _examined(room: _Room, patient: Patient) -> Script[tuple[f.Facts, frozenset[str]]]:
    """The facts, and which of our tables are there and may be read."""
    began, at = room.clock.elapsed(), room.clock.now()
    empty = f.Facts(name=patient.name, url=patient.url, kind=patient.kind, at=at)
    tables: set[str] = set()

    def body(session: Session) -> Script[f.Facts]:
        seen = yield from _LOOKS[patient.kind](session, room.clock, patient.database)
        facts = ours.hidden(_facts(empty, seen), seen.ours)
        if not ours.unreadable(seen.ours):
            tables.update(seen.ours)
        if "journal" in tables:
            facts = yield from ours.readable(facts, ours.journal_of(facts, patient.journal, session))
        return facts

    facts = yield from _looked_through(room, patient, (yield from room.answered(patient, empty, body)))
    return msgspec.structs.replace(facts, took_s=room.clock.elapsed() - began), frozenset(tables)


def _looked_through(room: _Room, patient: Patient, facts: f.Facts) -> Script[f.Facts]:
    """With the rows of its journal that cannot be read. A question takes as many pages as half of its time allows."""
    spot: Spot | None = START if facts.journal is not None else None

    def body(session: Session) -> Script[f.Facts]:
        nonlocal spot
        found, at, until = facts, spot, room.clock.elapsed() + room.answer_s / 2
        spot = None  # from an error on there is no answer to be had
        while at is not None and room.clock.elapsed() < until:
            found, at = yield from ours.looked_through(found, patient.journal, session, at)
        spot = at
        return found

    while spot is not None:
        facts = yield from room.answered(patient, msgspec.structs.replace(facts, journal=None), body)
    return facts


def _facts(empty: f.Facts, seen: Seen) -> f.Facts:
    return msgspec.structs.replace(
        empty,
        server=seen.server,
        settings=seen.settings,
        flaws=tuple(
            f.Flaw(what=o.what, advice=o.advice, refused=o.refused, line=o.line, where=o.where) for o in seen.flaws
        ),
        prepared=tuple(seen.prepared),
        prepared_count=seen.prepared_count,
        listed=seen.listed,
        waiting=tuple(seen.waiting),
        vacuum=seen.vacuum,
        history_length=seen.history_length,
        replicas=tuple(seen.replicas),
        file=seen.file,
        gaps=tuple(seen.gaps),
        cut=tuple(seen.cut),
    )


# ---- what is ours in it ---------------------------------------------------------------------------


def _identified(room: _Room, patient: Patient, facts: f.Facts, tables: frozenset[str]) -> Script[f.Facts]:
    if facts.error is not None or not ours.takes_part(tables):
        return facts

    def body(session: Session) -> Script[f.Facts]:
        return ours.readable(facts, ours.identity_of(facts, patient.resource, session))

    return (yield from room.answered(patient, facts, body))


def _told(room: _Room, patient: Patient, facts: f.Facts, every_one: Sequence[f.Facts]) -> Script[f.Facts]:
    """With what its journal says of the participants and branches of its cluster, in whichever database."""
    journal = facts.journal
    if journal is None:
        return facts
    xids = [one.origin.xid for other in every_one for one in other.prepared if one.origin.xid is not None]
    attempts = sorted({xid.attempt for xid in xids if xid.cluster == journal.cluster})
    known = [one.identity for one in every_one if one.identity is not None]
    marks = [one.mark for one in known if one.cluster == journal.cluster and one.mark]

    def body(session: Session) -> Script[f.Facts]:
        return ours.told(facts, patient.journal, session, attempts, marks)

    # A journal that has not told what was decided must not look like one that has decided nothing.
    return (yield from room.answered(patient, msgspec.structs.replace(facts, journal=None), body))


def _still_there(room: _Room, patient: Patient, facts: f.Facts, ended: set[tuple[str, str]]) -> Script[f.Facts]:
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
        left = tuple(one for one in facts.prepared if one.id in listed or not may_be_gone(one))
        count = facts.prepared_count - len(facts.prepared) + len(left)
        return msgspec.structs.replace(facts, prepared=left, prepared_count=count)

    return (yield from room.answered(patient, facts, body))
