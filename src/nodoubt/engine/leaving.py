"""A database that takes part no more, for good: what must hold before it is forgotten, and in which order it goes.

Guarantees: a resource with open records is not dropped, nor one that lists a prepared branch, nor one that could not
be looked at, unless an operator says that it is gone. The database forgets first who it was, so that nobody who begins
from then on takes part with it; only then does the journal forget it. A crash between the two leaves a database that
has to be dropped once more, or set up anew; the other way round the journal would look restored (I15).

Must not: be run while a coordinator is at work with the database. What such a one holds in memory nobody else can see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import ResourceRefused, ResourceUnavailable, UsageError
from ..ports import Identity, Prepared, Session, Unclear, readable
from ..script import Script
from . import questions
from .apart import WHAT_TO_DO
from .context import Context, Participant, asked, told


@dataclass(frozen=True, slots=True)
class Dropped:
    """A resource that the journal has forgotten. `looked_at`: it was reached, and has forgotten who it was."""

    name: str
    resource_id: str
    looked_at: bool


def drop(ctx: Context, name: str, *, gone: bool = False) -> Script[Dropped]:
    """Forget a resource, by its name or id. `gone`: it does not exist any more, so it need not be looked at.

    Raises `UsageError`, `ResourceRefused` (it is still needed), `ResourceUnavailable`, `JournalUnavailable`.
    """
    cluster = yield from questions.ask(ctx, ctx.journal.cluster)
    yield from _require_all_readable(ctx)
    resource_id, registered = yield from _registered(ctx, name)
    participant = yield from _present(ctx, registered, resource_id, gone=gone)
    before: Identity | None = None
    if participant is not None:
        yield from _require_nothing_prepared(ctx, participant, cluster)
        before = yield from told(ctx, participant.reserve, participant.resource.identity)
    if participant is not None and before is not None:
        yield from asked(ctx, participant.reserve, participant.resource.leave)
    try:
        if participant is not None:
            # Once more: somebody may have prepared between our look and its leave.
            yield from _require_nothing_prepared(ctx, participant, cluster)
        yield from questions.ask(ctx, _forgetting(ctx, resource_id), changes=True)
    except ResourceRefused:
        # Surely not forgotten. Where nobody knows, it must not become again who it was: it is dropped once more.
        if participant is not None and before is not None:
            yield from asked(ctx, participant.reserve, _adopting(participant, before))
        raise
    return Dropped(registered, resource_id, participant is not None)


def _require_all_readable(ctx: Context) -> Script[None]:
    """A decision or a name that cannot be read may list the resource: nobody can say that it is not needed."""
    found = yield from questions.unreadable(ctx)
    may_list = [one for one in found if one.table in ("decisions", "names")]
    if may_list:
        raise ResourceRefused(
            f"nothing was dropped: {len(may_list)} rows of the journal cannot be read, and may need it. The first is "
            f"{may_list[0].which}: {WHAT_TO_DO}"
        )


def _registered(ctx: Context, name: str) -> Script[tuple[str, str]]:
    """Its id, and the name it was registered under last."""
    known = {one: readable(row) for one, row in (yield from questions.ask(ctx, ctx.journal.registered)).items()}
    found = [(one, called) for one, (called, _) in known.items() if name in (one, called)]
    if not found:
        there = ", ".join(sorted(f"{called} ({one})" for one, (called, _) in known.items())) or "none"
        raise UsageError(f"the journal knows no resource {name!r}; there are: {there}")
    if len(found) > 1:
        ids = ", ".join(sorted(one for one, _ in found))
        raise UsageError(f"more than one database was registered as {name!r}: name one of them by its id: {ids}")
    return found[0]


def _present(ctx: Context, name: str, resource_id: str, *, gone: bool) -> Script[Participant | None]:
    """The participant, if it can be looked at; None if it need not be."""
    participant = ctx.participants.get(name)
    if participant is None:
        if not gone:
            raise UsageError(
                f"{name} is not among this coordinator's databases, so it can't be looked at for what it holds "
                "prepared: give its URL, or say that it is gone"
            )
        return None
    if participant.holds_journal:
        raise ResourceRefused(f"{name} holds the journal, and can't be dropped from it")
    try:
        identity = yield from told(ctx, participant.reserve, participant.resource.identity)
    except (ResourceUnavailable, Unclear) as error:
        if gone:
            return None
        raise ResourceUnavailable(
            f"{name} can't be looked at for what it holds prepared, so nothing was changed. Try again, or, if it does "
            f"not exist any more, say that it is gone: {error}"
        ) from error
    if identity is not None and identity.resource_id != resource_id:
        raise UsageError(
            f"the database that is now called {name} is another ({identity.resource_id}) than the one that the journal "
            f"knows as {resource_id}: call it by the name that it was registered under, or leave it out and say that "
            "the other is gone"
        )
    return participant


def _require_nothing_prepared(ctx: Context, participant: Participant, cluster: str) -> Script[None]:
    def look(session: Session) -> Script[tuple[Prepared, ...]]:
        return participant.resource.prepared(session, cluster)

    listed = yield from told(ctx, participant.reserve, look)
    if listed:
        raise ResourceRefused(
            f"{participant.name} was not dropped: {len(listed)} branches are prepared there, and would be left for "
            "ever. End them first: nodoubt ls, nodoubt recover"
        )


def _forgetting(ctx: Context, resource_id: str) -> Callable[[Session], Script[None]]:
    return lambda session: ctx.journal.unregister(session, resource_id)


def _adopting(participant: Participant, identity: Identity) -> Callable[[Session], Script[None]]:
    return lambda session: participant.resource.adopt(session, identity)


__all__ = ["Dropped", "drop"]
