"""What a look at every database shows, for people who must decide something: who it is, and what it holds prepared.

Guarantees: changes nothing, not even an epoch; a database that is down, not set up or not what it was keeps none of the
others from being looked at.

Must not: be acted on. What is listed here may be decided by somebody else a moment later.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ..errors import NoDoubtError, SchemaMismatch
from ..ports import Identity, Prepared, Session, SessionLost, Version
from ..protocol.records import Epoch
from ..script import Script, every
from . import start
from .context import Context, Participant, using


class Tables(StrEnum):
    """Whether our tables are there."""

    READY = "ready"
    MISMATCH = "mismatch"  # missing, or of a version that this release does not know
    UNKNOWN = "unknown"


@dataclass(slots=True)
class JournalSurvey:
    """The journal. `error`: why it cannot be used now."""

    known: int  # the version of our tables that this release knows
    version: Version | None = None
    shuts_out: bool = False  # a migration that is pending refuses coordinators that are at work now
    tables: Tables = Tables.UNKNOWN
    cluster: str = ""
    epoch: int | None = None
    error: Exception | None = None


@dataclass(slots=True)
class Survey:
    """One participant. `error`: why it cannot take part now, LineageBroken included."""

    name: str
    holds_journal: bool
    known: int  # as the journal's
    version: Version | None = None
    shuts_out: bool = False
    tables: Tables = Tables.UNKNOWN
    identity: Identity | None = None
    server: str = ""
    warnings: tuple[str, ...] = ()
    prepared: tuple[Prepared, ...] = ()
    error: Exception | None = None


def survey(ctx: Context) -> Script[tuple[JournalSurvey, list[Survey]]]:
    """Look at the journal, then at every participant at the same time."""
    journal = JournalSurvey(ctx.journal.tables.known)

    def read(session: Session) -> Script[tuple[str, Epoch]]:
        journal.version = yield from ctx.journal.tables.version(session)
        journal.shuts_out = ctx.journal.tables.shuts_out(journal.version)
        cluster = yield from ctx.journal.cluster(session)
        return cluster, (yield from ctx.journal.epoch(session))

    try:
        journal.cluster, epoch = yield from using(ctx.journal_pool, read)
        journal.epoch = epoch.number
        journal.tables = Tables.READY
    except NoDoubtError as error:
        journal.error = error
        if isinstance(error, SchemaMismatch):
            journal.tables = Tables.MISMATCH
    ctx.cluster = journal.cluster
    participants = list(ctx.participants.values())
    outcomes = yield from every([_one(ctx, participant, journal) for participant in participants])
    return journal, [outcome.get() for outcome in outcomes]


def _one(ctx: Context, participant: Participant, journal: JournalSurvey) -> Script[Survey]:
    found = Survey(participant.name, participant.holds_journal, participant.resource.tables.known)
    resource = participant.resource

    def look(session: Session) -> Script[None]:
        found.server = yield from resource.server(session)
        found.version = yield from resource.tables.version(session)
        found.shuts_out = resource.tables.shuts_out(found.version)
        found.identity = yield from resource.identity(session)
        if found.identity is None:
            raise SchemaMismatch(f"{participant.name} has no tables of ours: run nodoubt schema apply")
        found.tables = Tables.READY
        found.prepared = yield from resource.prepared(session, found.identity.cluster)
        found.warnings = yield from resource.check(session)

    try:
        yield from using(participant.pool, look)
        if journal.epoch is not None:
            yield from start.verify(ctx, participant)
    except (NoDoubtError, SessionLost) as error:
        found.error = error
        if isinstance(error, SchemaMismatch):
            found.tables = Tables.MISMATCH
    return found
