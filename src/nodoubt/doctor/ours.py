"""Our own tables in a database: what a journal, and what a participant, says.

Must not: write, or be acted on: what is read plainly may not be flushed yet.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from ..engine.apart import Apart, split
from ..engine.context import chunks
from ..errors import NoDoubtError, SchemaMismatch, UnreadableRecord
from ..journals.sql import ATTEMPTS_PER_STATEMENT
from ..ports import Journal, Resource, Session, Spot, StatementFailed
from ..protocol.records import Staging, Standing, Unreadable
from ..script import Script
from . import facts as f

_PARTICIPANT_TABLES = frozenset({"identity", "receipts"})
# What is read here. Of another table, a newer release's or a user's in our schema, nothing hangs on who may read it.
READ = (
    "calls", "confirmations", "decisions", "epochs", "identity", "journal", "migrations", "names", "quarantine",
    "receipts", "resources",
)  # fmt: skip
_DENIED = frozenset({"42501", "1044", "1142", "1143"})


def hidden(facts: f.Facts, tables: dict[str, bool]) -> f.Facts:
    """With a gap for those of our tables that may not be read."""
    names = unreadable(tables)
    return _with_gap(facts, f"our own tables: {', '.join(names)}", names) if names else facts


def unreadable(tables: dict[str, bool]) -> list[str]:
    """Those that would be read here, and may not be."""
    return sorted(name for name, readable in tables.items() if name in READ and not readable)


def takes_part(tables: Iterable[str]) -> bool:
    """Whether there is what a participant has."""
    return not _PARTICIPANT_TABLES.isdisjoint(tables)


def readable(facts: f.Facts, reading: Script[f.Facts]) -> Script[f.Facts]:
    """What the script finds; or, where our tables may not be read or are of another version, that."""
    try:
        return (yield from reading)
    except (NoDoubtError, StatementFailed) as error:
        if _code(error) in _DENIED:
            return _with_gap(facts, f"our own tables ({error})")
        if isinstance(error, SchemaMismatch):
            return msgspec.structs.replace(facts, broken=str(error))
        raise


def _with_gap(facts: f.Facts, what: str, tables: Sequence[str] = READ) -> f.Facts:
    user = facts.server.user if facts.server is not None else "?"
    advice = f"run what this prints: nodoubt schema sql --dialect {facts.kind} --role look --to {shlex.quote(user)}"
    if facts.kind == "postgres":
        role = '"' + user.replace('"', '""') + '"'
        named = ", ".join(f"nodoubt.{table}" for table in tables)
        advice = f"GRANT USAGE ON SCHEMA nodoubt TO {role}; GRANT SELECT ON {named} TO {role};"
    return msgspec.structs.replace(facts, gaps=(*facts.gaps, f.Gap(what, advice, blind=True)))


def _code(error: BaseException) -> str:
    """The server's own code, wherever it was wrapped."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, StatementFailed):
            return cause.code
        cause = cause.__cause__
    return ""


# ---- a journal ------------------------------------------------------------------------------------


def journal_of(facts: f.Facts, journal: Journal, session: Session) -> Script[f.Facts]:
    """What stands in it, but for its epoch: see `epoch_of`."""
    cluster = yield from journal.cluster(session)
    version = yield from journal.tables.version(session)
    assert version is not None  # or there would be no cluster
    try:
        floor: str | None = yield from journal.floor(session)
    except UnreadableRecord:
        floor = None  # `looked_through` tells of it
    strays = yield from journal.ownerless(session)
    commits = yield from journal.open_commits(session, "", f.OPEN_MAX + 1)
    names = yield from journal.undecided(session, "", f.UNDECIDED_MAX + 1)
    held = yield from journal.quarantined(session, f.QUARANTINED_MAX + 1)
    registered = yield from journal.registered(session)
    apart: Apart = {}
    lists: tuple[tuple[str, Sequence[Any], int], ...] = (
        ("decisions that have not ended", commits, f.OPEN_MAX),
        ("names without a decision", names, f.UNDECIDED_MAX),
        ("what is quarantined", held, f.QUARANTINED_MAX),
    )
    cut = tuple(f"{what}: the first {most}" for what, rows, most in lists if len(rows) > most)
    found = f.Journal(
        cluster=cluster,
        version=version.stands,
        epoch=0,
        floor=floor,
        open_commits=tuple(split(commits[: f.OPEN_MAX], apart)),
        names=tuple(split(names[: f.UNDECIDED_MAX], apart)),
        quarantined=tuple(split(held[: f.QUARANTINED_MAX], apart)),
        registered=tuple(
            f.Registered(one.resource_id, name, one.server, one.epoch)
            for name, one in split(registered.values(), apart)
        ),
        unreadable=tuple(apart.values()),
        strays=tuple(strays),
    )
    return msgspec.structs.replace(facts, journal=found, cut=(*facts.cut, *cut))


def looked_through(
    facts: f.Facts, journal: Journal, session: Session, spot: Spot
) -> Script[tuple[f.Facts, Spot | None]]:
    """With a page of the rows of the journal that cannot be read; and where the next one goes on, None: nowhere."""
    assert facts.journal is not None
    found, after = yield from journal.unreadable(session, spot)
    apart = {one.key: one for one in (*facts.journal.unreadable, *found)}
    journal_facts = msgspec.structs.replace(facts.journal, unreadable=tuple(apart.values()))
    return msgspec.structs.replace(facts, journal=journal_facts), after


def told(
    facts: f.Facts, journal: Journal, session: Session, attempts: Sequence[str], marks: Iterable[str]
) -> Script[f.Facts]:
    """With its epoch, which of the participants' marks it has never given out, and what it has decided of attempts.

    Read after the participants: one that shows a later epoch than is read here has not just been started.
    """
    assert facts.journal is not None
    epoch = yield from journal.epoch(session)
    strange: tuple[str, ...] = ()
    for mark in sorted(set(marks)):
        minted = yield from journal.minted(session, mark)
        strange += () if minted else (mark,)
    apart: Apart = {}
    seen: dict[str, Standing | Unreadable] = (yield from journal.look(session, attempts)) if attempts else {}
    decided = {one.attempt: one for one in split(seen.values(), apart)}
    staged: dict[str, Staging] = {}
    for some in chunks(attempts, ATTEMPTS_PER_STATEMENT):
        names = yield from journal.staged(session, some)
        staged.update((one.attempt, one) for one in split(names.values(), apart))
    known = {one.key: one for one in facts.journal.unreadable}
    found = msgspec.structs.replace(
        facts.journal,
        epoch=epoch.number,
        strange_marks=strange,
        decided=decided,
        staged=staged,
        unreadable=tuple((known | apart).values()),
        # What is decided and can be read is carried out, whatever its name's row says; else the decision speaks first.
        sealed={
            one.attempt: one
            for one in sorted(apart.values(), key=lambda one: one.table == "decisions")
            if one.attempt not in decided
        },
    )
    return msgspec.structs.replace(facts, journal=found)


def ended(journal: f.Journal) -> set[tuple[str, str]]:
    """The attempts, with their cluster, of which every branch had proved itself when the journal was read."""
    return {(journal.cluster, attempt) for attempt, standing in journal.decided.items() if standing.ended}


# ---- a participant --------------------------------------------------------------------------------


def identity_of(facts: f.Facts, resource: Resource, session: Session) -> Script[f.Facts]:
    """What it says about itself, and what its server says it is."""
    stored = yield from resource.identity(session)
    if stored is None:
        return facts
    server = yield from resource.server(session)
    found = f.Identity(
        resource_id=stored.resource_id,
        cluster=stored.cluster,
        epoch=stored.epoch,
        mark=stored.mark,
        server=stored.server,
        server_now=server,
    )
    return msgspec.structs.replace(facts, identity=found)
