"""Who has a key: look whether it is done, else begin the work and claim it there. And the expiry of old keys.

Guarantees: an attempt is only handed out once its branch holds the key; a result only once its row is flushed (I5).
Whatever else comes of it, nothing was done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..engine import start, verbs
from ..engine.attempt import Attempt, open_branch
from ..engine.context import Context, Participant, asked, bounded, log, plainly, told
from ..errors import KeyInFlight, KeyReused, NoDoubtError, UsageError
from ..ports import Session, Work
from ..script import Script
from ..url import KINDS
from .keys import Key
from .store import Claim, Row, Store, store_of

TRIES_MAX = 5  # of one call, each time its key's row came or went between two looks
FORGET_BATCHES_MAX = 1000  # per database and clean-up

Beginning = Callable[[], Script[Attempt]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One call: the key, the database that keeps it, and for how long."""

    key: Key
    on: str
    keep_s: float

    @property
    def here(self) -> tuple[str, str, str]:
        """What it is known by in this process."""
        return self.on, self.key.scope, self.key.key


def place_of(ctx: Context, on: str | None) -> str:
    """The database that keeps the key: every caller must come to the same one."""
    if on is not None:
        return ctx.participant(on).name
    if ctx.single:
        return next(iter(ctx.participants))
    with_journal = next((one.name for one in ctx.participants.values() if one.holds_journal), None)
    if with_journal is None:
        raise UsageError(
            "say which database keeps it, the same one in every program: on=…, one of "
            f"{', '.join(ctx.participants)}. (It would be the one with the journal, but that is none of these.)"
        )
    return with_journal


def take(ctx: Context, wanted: Wanted, beginning: Beginning) -> Script[Attempt | Row]:
    """An attempt that holds the key, or the row of the one that is done.

    Raises `KeyInFlight`, `KeyReused`, and what beginning the work raises. `drop` must follow an attempt's end.
    """
    taken: Attempt | Row | None = None
    ours = False
    try:
        with ctx.lock:
            # The quickest answer; on SQLite also the only one before the other's transaction has let go of the file.
            ours = wanted.here not in ctx.keys_at_work
            ctx.keys_at_work.add(wanted.here)
        if not ours:
            raise KeyInFlight(wanted.key.key)
        participant = ctx.participant(wanted.on)
        yield from start.admit(ctx, participant)
        for _ in range(TRIES_MAX):
            taken = yield from plainly(_done(ctx, participant, wanted.key))
            if taken is None:
                taken = yield from _claimed(ctx, participant, wanted, beginning)
            if taken is not None:
                return taken
        raise KeyInFlight(wanted.key.key)
    finally:
        if ours and not isinstance(taken, Attempt):
            drop(ctx, wanted)


def drop(ctx: Context, wanted: Wanted) -> None:
    """The call is over in this process; what the database says counts from now on."""
    with ctx.lock:
        ctx.keys_at_work.discard(wanted.here)


def _keeps_keys(participant: Participant) -> bool:
    """Fakes, and resources of kinds that are not ours, have no table to keep them in."""
    resource = participant.resource
    return getattr(resource, "keeps_keys", resource.traits.kind in KINDS.values())


def store_for(participant: Participant) -> Store:
    """The table of keys of this database. Raises `UsageError` where there is none.

    A simulated database knows no SQL, and brings a store of its own.
    """
    own: Store | None = getattr(participant.resource, "key_store", None)
    if own is not None:
        return own
    if not _keeps_keys(participant):
        raise UsageError(
            f"{participant.name} keeps no idempotency keys: PostgreSQL, MariaDB and SQLite do, and a fake coordinator "
            "is none of them"
        )
    return store_of(participant.resource.traits.kind, getattr(participant.resource, "database", ""))


def _done(ctx: Context, participant: Participant, key: Key) -> Script[Row | None]:
    store = store_for(participant)

    def look(session: Session) -> Script[Row | None]:
        return store.look(session, key)

    def confirm(session: Session) -> Script[Row | None]:
        return store.confirm(session, key)

    row = yield from told(ctx, participant.pool, look)
    if row is None:
        return None
    if row.pending:
        raise KeyInFlight(key.key)
    if row.payload != key.payload:
        raise KeyReused(key.key)
    return (yield from asked(ctx, participant.pool, confirm))


def _claimed(ctx: Context, participant: Participant, wanted: Wanted, beginning: Beginning) -> Script[Attempt | None]:
    """An attempt whose branch has the key; None if somebody else's was done meanwhile."""
    store = store_for(participant)
    outcome, attempt = yield from holding(
        ctx, wanted.on, beginning, lambda session, work: store.claim(session, work, wanted.key)
    )
    if outcome is Claim.IN_FLIGHT:
        raise KeyInFlight(wanted.key.key)
    return attempt


def holding(
    ctx: Context, on: str, beginning: Beginning, claim: Callable[[Session, Work], Script[Claim]]
) -> Script[tuple[Claim, Attempt | None]]:
    """How the claim has ended; if it was taken, with the attempt whose branch `on` it was made in."""
    attempt = yield from beginning()
    outcome: Claim | None = None
    try:
        branch = yield from open_branch(ctx, attempt, on)
        assert branch.session is not None
        script = claim(branch.session, branch.work)
        outcome = yield from plainly(bounded(script, ctx.settings.prepare_s, ctx.clock))
    finally:
        if outcome is not Claim.TAKEN:
            yield from verbs.abandon(ctx, attempt)
    if outcome is not Claim.TAKEN:
        return outcome, None
    branch.work.wrote = True  # what it ends with is a row
    return outcome, attempt


def close(ctx: Context, attempt: Attempt, wanted: Wanted, result: bytes) -> None:
    """The work is done: its branch will end with the key's row."""
    branch = attempt.branches[wanted.on]
    # A staged transaction may commit as late as its deadline, and its key is kept from then on.
    keep_s = wanted.keep_s + max(attempt.deadline - ctx.clock.now(), 0.0)
    branch.work.closing = store_for(branch.participant).closing(branch.work, wanted.key, result, keep_s)


def expire(ctx: Context) -> Script[int]:
    """Forget the keys that were kept long enough, in batches. What is away is left for the next time."""
    gone = 0
    for participant in ctx.participants.values():
        if participant.barred or not _keeps_keys(participant):
            continue
        store, now = store_for(participant), ctx.clock.now()

        def some_of_them(session: Session, store: Store = store, now: float = now) -> Script[int]:
            return store.forget(session, now)

        for _ in range(FORGET_BATCHES_MAX):
            try:
                some = yield from asked(ctx, participant.reserve, some_of_them)
            except NoDoubtError as error:
                log.warning("old idempotency keys on %s are kept for now: %s", participant.name, error)
                break
            gone += some
            if some == 0:
                break
    return gone
