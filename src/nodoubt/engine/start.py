"""Admission: a coordinator's start, `setup`, and the checks of lineage (I15).

Guarantees: a database is used only after it has proved that it can keep a promise (`check`), that it belongs to this
journal and no other, that it is the server it was when it was set up, and that neither it nor the journal has
been set back: each start begins an epoch of the journal, under a random mark, and has every participant witness it.

What it cannot see: a clone that answers with the same server identity, and a restore within one epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..errors import (
    JournalRestored,
    LineageBroken,
    NoDoubtError,
    ResourceUnavailable,
    SchemaMismatch,
    UnreadableRecord,
    UsageError,
)
from ..ports import Identity, Prepared, Session, Unclear
from ..protocol.records import Epoch, Unreadable
from ..script import Script, every
from . import questions
from .context import Context, Participant, asked, log, told, using

_SET_BACK = (
    "the journal was restored from a backup and may have forgotten decisions. Nothing is resolved until an operator "
    "has looked"
)


def migrate(ctx: Context) -> Script[None]:
    """Make our tables, wherever there are some, those of this release. Nothing else does.

    Not bounded by `answer_s`: a large table takes its time.
    """
    journal = yield from told(ctx, ctx.journal_pool, ctx.journal.tables.version)
    there, behind = list[Participant](), list[Participant]()
    shut = ctx.journal.tables.shuts_out(journal)
    for participant in ctx.participants.values():
        tables = participant.resource.tables
        version = yield from told(ctx, participant.reserve, tables.version)
        shut |= tables.shuts_out(version)
        there += [participant] if version is not None else []
        behind += [participant] if version is not None and version.stands < tables.known else []
    if shut:
        yield from _require_nobody_is_stranded(ctx, behind)
    if journal is not None:
        yield from using(ctx.journal_pool, ctx.journal.tables.migrate)
    outcomes = yield from every([using(one.pool, one.resource.tables.migrate) for one in there])
    for outcome in outcomes:
        outcome.get()


def _require_nobody_is_stranded(ctx: Context, behind: Sequence[Participant]) -> Script[None]:
    """Where older coordinators are about to be shut out, no branch may be prepared on what is to be migrated.

    A prepared branch keeps its receipts' table from being migrated. Half of the databases would then refuse the old
    release, which could end it, and the other half the new one.
    """

    def its(session: Session) -> Script[str]:
        return ctx.journal.cluster(session, judged=False)

    cluster = yield from told(ctx, ctx.journal_pool, its)
    for one in behind:

        def look(session: Session, one: Participant = one) -> Script[tuple[Prepared, ...]]:
            return one.resource.prepared(session, cluster)

        listed = yield from told(ctx, one.reserve, look)
        if listed:
            raise ResourceUnavailable(
                f"{one.name} lists {len(listed)} prepared branches, and the migration shuts out the coordinators that "
                "could end them: nothing was changed. End those first (nodoubt ls, nodoubt recover), with the release "
                "that began them, and stop its coordinators"
            )


def setup(ctx: Context) -> Script[None]:
    """Create our tables in the journal's database and in every participant; mint the cluster id once. Idempotent."""

    def journal(session: Session) -> Script[str]:
        yield from ctx.journal.setup(session, ctx.ids.cluster())
        return (yield from ctx.journal.cluster(session))

    cluster = yield from questions.ask(ctx, journal, changes=True)

    def of_this_journal(participant: Participant) -> Script[None]:
        def body(session: Session) -> Script[None]:
            if (yield from participant.resource.tables.version(session)) is not None:
                identity = yield from participant.resource.identity(session)
                if identity is not None:
                    _require_same_journal(participant, identity, cluster)

        return told(ctx, participant.reserve, body)

    # All of them before any: a database that is bound to this journal is bound for good, and where another refuses,
    # this is the wrong one.
    outcomes = yield from every([of_this_journal(participant) for participant in ctx.participants.values()])
    for outcome in outcomes:
        outcome.get()

    def one(participant: Participant) -> Script[None]:
        def body(session: Session) -> Script[None]:
            yield from participant.resource.check(session)
            yield from participant.resource.setup(session, ctx.ids.attempt(), cluster)
            identity = yield from _identity(participant, session)
            _require_same_journal(participant, identity, cluster)

        return asked(ctx, participant.reserve, body)

    outcomes = yield from every([one(participant) for participant in ctx.participants.values()])
    for outcome in outcomes:
        outcome.get()


def start(ctx: Context) -> Script[None]:
    """Begin an epoch and admit every participant that can be reached; the others are admitted at their first use.

    Raises `SchemaMismatch`, `LineageBroken`, `ResourceRefused`; what is merely unreachable is a warning.
    """
    ctx.cluster = yield from questions.ask(ctx, ctx.journal.cluster)
    outcomes = yield from every([verify(ctx, p) for p in ctx.participants.values()])
    reached: list[tuple[Participant, Identity]] = []
    for participant, outcome in zip(ctx.participants.values(), outcomes, strict=True):
        if not _is_outage(outcome.error):
            reached.append((participant, outcome.get()))
        else:
            log.warning("%s cannot be reached yet: %s", participant.name, outcome.error)
    _require_distinct(reached)
    mark = ctx.ids.mark()
    ctx.epoch = yield from questions.ask(ctx, lambda session: ctx.journal.raise_epoch(session, mark), changes=True)
    for outcome_ in (yield from every([_witness(ctx, p, identity) for p, identity in reached])):
        outcome_.get()


def renew(ctx: Context) -> Script[None]:
    """Begin a new epoch while open. A restore of a backup that was taken in the epoch of today goes unnoticed."""
    try:
        yield from start(ctx)
    except NoDoubtError as error:
        log.warning("no new epoch was begun: %s", error)


def look(ctx: Context) -> Script[None]:
    """Find out who is who, and change nothing. A participant that is away, or not what it was, is a warning."""
    ctx.cluster = yield from questions.ask(ctx, ctx.journal.cluster)
    outcomes = yield from every([verify(ctx, p) for p in ctx.participants.values()])
    for participant, outcome in zip(ctx.participants.values(), outcomes, strict=True):
        if outcome.error is None:
            participant.resource_id = outcome.get().resource_id
        elif isinstance(outcome.error, NoDoubtError):
            log.warning("%s: %s", participant.name, outcome.error)
            participant.barred = str(outcome.error) if isinstance(outcome.error, LineageBroken) else ""
        else:
            outcome.get()


def _is_outage(error: BaseException | None) -> bool:
    """Whether this is the one kind of trouble that waiting can mend."""
    return isinstance(error, (ResourceUnavailable, Unclear))


def admit(ctx: Context, participant: Participant) -> Script[None]:
    """Admit a participant that was out of reach at the start, or whose lineage was in question."""
    if participant.resource_id and not participant.barred:
        return
    identity = yield from verify(ctx, participant)
    _require_distinct(
        [(p, Identity(p.resource_id, "", "", 0)) for p in ctx.participants.values() if p.resource_id]
        + [(participant, identity)]
    )
    yield from _witness(ctx, participant, identity)


def verify(ctx: Context, participant: Participant) -> Script[Identity]:
    """The participant's identity, if it may take part; changes nothing."""
    resource = participant.resource

    def body(session: Session) -> Script[Identity]:
        warnings = yield from resource.check(session)
        for warning in set(warnings) - set(participant.warnings):
            log.warning("%s: %s", participant.name, warning)
        participant.warnings = warnings
        identity = yield from _identity(participant, session)
        server = yield from resource.server(session)
        _require_same_journal(participant, identity, ctx.cluster)
        _raise(elsewhere(participant.name, identity, server))
        return identity

    return (yield from _with_lineage(ctx, participant, lambda: told(ctx, participant.reserve, body)))


def lineage_holds(ctx: Context, participant: Participant) -> Script[None]:
    """The same check of lineage for a sweep. Raises `LineageBroken`."""

    def body(session: Session) -> Script[Identity]:
        return _identity(participant, session)

    yield from _with_lineage(ctx, participant, lambda: told(ctx, participant.reserve, body))


@dataclass(slots=True)
class Lineage:
    """What a look at every participant has shown. `restored`: by this journal nothing may be decided (I15).

    `silent`: those of the troubled that gave no answer.
    """

    reached: int = 0
    restored: bool = False
    trouble: dict[str, str] = field(default_factory=dict)
    silent: frozenset[str] = frozenset()


def lineage(ctx: Context) -> Script[Lineage]:
    """The check of a sweep, for those that look at no branches: the reaper, and whoever undoes steps."""
    found = Lineage()

    def one(participant: Participant) -> Script[None]:
        yield from admit(ctx, participant)
        yield from lineage_holds(ctx, participant)

    outcomes = yield from every([one(participant) for participant in ctx.participants.values()])
    for participant, outcome in zip(ctx.participants.values(), outcomes, strict=True):
        if outcome.error is None:
            found.reached += 1
            continue
        found.restored |= isinstance(outcome.error, JournalRestored)
        if isinstance(outcome.error, LineageBroken):
            participant.barred = str(outcome.error)
        if _is_outage(outcome.error):
            found.silent |= {participant.name}
        found.trouble[participant.name] = str(outcome.error)
    return found


def _identity(participant: Participant, session: Session) -> Script[Identity]:
    identity = yield from participant.resource.identity(session)
    if identity is None:
        raise SchemaMismatch(f"{participant.name} has no tables of ours: call setup() or run nodoubt schema apply")
    return identity


def _with_lineage(ctx: Context, participant: Participant, reading: Callable[[], Script[Identity]]) -> Script[Identity]:
    """The identity, read between the two halves of what the journal says: a start in the middle is no restore.

    What the participant should have witnessed is read before it, the epoch after it. Where the journal does not have
    what it shows, what it should have witnessed is read once more: the journal forgets an epoch once all have shown it
    a later one. If that has happened in between, the participant is read again.
    """
    registered = yield from told(ctx, ctx.journal_pool, ctx.journal.registered)
    while True:
        identity = yield from reading()

        def journal(session: Session, mark: str = identity.mark) -> Script[tuple[int, bool]]:
            epoch = yield from ctx.journal.epoch(session)
            minted = not mark or (yield from ctx.journal.minted(session, mark))
            return epoch.number, minted

        number, minted = yield from told(ctx, ctx.journal_pool, journal)
        before, known = registered, registered.get(identity.resource_id)
        if not minted:
            registered = yield from told(ctx, ctx.journal_pool, ctx.journal.registered)
        if registered.get(identity.resource_id) == before.get(identity.resource_id):
            break
    witnessed = None if known is None else _witnessed(participant.name, known)
    _raise(set_back(participant.name, identity, number, witnessed, minted=minted))
    return identity


def _witnessed(name: str, known: tuple[str, Identity] | Unreadable) -> int:
    """The epoch that it has shown to the journal."""
    if isinstance(known, Unreadable):
        raise UnreadableRecord(
            f"{name} takes no part: its row in the journal ({known.which}) {known.why}. There stands what it has "
            "witnessed: without that nobody can tell whether it was set back (I15). Mend the row; or, if it is surely "
            f"what it was, have it written anew: nodoubt schema apply --adopt {name}"
        )
    return known[1].epoch


def elsewhere(name: str, identity: Identity, server: str) -> LineageBroken | None:
    """What is wrong if the tables were set up on another server than the one that answers."""
    if not server or not identity.server or server == identity.server:
        return None
    return LineageBroken(
        f"{name} says it is {server}, but its tables were set up on {identity.server}: it is a clone or was restored. "
        f"Nothing of it is resolved until an operator has looked; then run: nodoubt schema apply --adopt {name}"
    )


def set_back(name: str, identity: Identity, epoch: int, witnessed: int | None, *, minted: bool) -> LineageBroken | None:
    """What is wrong if the journal, whose `epoch` this is, or the participant is older than the other has seen.

    `witnessed`: the epoch that the participant has shown to the journal; None: never. `minted`: the journal has had the
    very epoch that the participant has witnessed.
    """
    if identity.epoch > epoch:
        return JournalRestored(
            f"{name} has witnessed epoch {identity.epoch}, but the journal shows {epoch}: {_SET_BACK}"
        )
    if witnessed is not None and witnessed > identity.epoch:
        return LineageBroken(
            f"{name} shows epoch {identity.epoch}, but has witnessed {witnessed}: it was restored from a backup. "
            f"Nothing of it is resolved until an operator has looked; then run: nodoubt schema apply --adopt {name}"
        )
    if not minted:
        return JournalRestored(
            f"{name} has witnessed an epoch that the journal has never had, although it has had one of its number "
            f"since: {_SET_BACK}"
        )
    return None


def _raise(error: LineageBroken | None) -> None:
    if error is not None:
        raise error


def _witness(ctx: Context, participant: Participant, identity: Identity) -> Script[None]:
    """The participant stores the epoch first, then the journal that it has: a crash between is no restore."""

    def there(session: Session) -> Script[None]:
        return participant.resource.witness(session, ctx.epoch)

    def here(epoch: int) -> Callable[[Session], Script[None]]:
        seen = Identity(identity.resource_id, identity.cluster, identity.server, epoch)
        return lambda session: ctx.journal.register(session, participant.name, seen)

    if not identity.mark:
        # What it is about to witness must not be forgotten by a journal that has never heard of it.
        yield from asked(ctx, ctx.journal_pool, here(0))
    yield from asked(ctx, participant.reserve, there)
    yield from asked(ctx, ctx.journal_pool, here(ctx.epoch.number))
    participant.resource_id, participant.barred = identity.resource_id, ""


def adopt(ctx: Context, name: str) -> Script[None]:
    """An operator has looked at a clone or a restored database and takes it as it is now."""
    participant = ctx.participant(name)

    def journal(session: Session) -> Script[tuple[str, Epoch]]:
        return (yield from ctx.journal.cluster(session)), (yield from ctx.journal.epoch(session))

    cluster, epoch = yield from asked(ctx, ctx.journal_pool, journal)

    def look(session: Session) -> Script[Identity]:
        old = yield from participant.resource.identity(session)
        server = yield from participant.resource.server(session)
        resource_id = old.resource_id if old else ctx.ids.attempt()
        return Identity(resource_id, cluster, server, epoch.number, epoch.mark)

    identity = yield from asked(ctx, participant.reserve, look)

    def here(session: Session) -> Script[None]:
        return ctx.journal.register(session, name, identity)

    def there(session: Session) -> Script[None]:
        return participant.resource.adopt(session, identity)

    # In this order a crash between the two leaves a database that is refused, until it is adopted once more.
    yield from asked(ctx, ctx.journal_pool, here)
    yield from asked(ctx, participant.reserve, there)


def _require_same_journal(participant: Participant, identity: Identity, cluster: str) -> None:
    if identity.cluster != cluster:
        raise LineageBroken(
            f"{participant.name} belongs to the journal of cluster {identity.cluster}, not to this one ({cluster}): "
            "a database has one journal, ever. Name that journal in journal=, or use another database"
        )


def _require_distinct(reached: list[tuple[Participant, Identity]]) -> None:
    seen: dict[str, str] = {}
    for participant, identity in reached:
        other = seen.setdefault(identity.resource_id, participant.name)
        if other != participant.name:
            raise UsageError(f"{other!r} and {participant.name!r} are one and the same database: name it once")
