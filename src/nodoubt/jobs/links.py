"""The chain of checkpoints: each is written by the transaction whose effects it tells of, and replaces the one before.

Guarantees: a link commits only if the one that it began from was the last, so no chunk is done twice and none is left
out (I22), whoever was asleep for however long, at whatever isolation, and with no clock in it; the first is written
under an id that nobody else knows yet.

Must not: trust a lease, or what the journal says of progress.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..engine.attempt import Attempt
from ..engine.context import Context, Participant, asked, plainly, told
from ..errors import UsageError
from ..idempotency import claims
from ..idempotency.claims import Beginning
from ..idempotency.keys import Key, as_json
from ..idempotency.store import Claim, Row, Store
from ..journals import rows
from ..ports import Session, Work
from ..script import Script
from .records import Link, number_of_items

CHECKPOINT_BYTES_MAX = 4096  # where to go on from, not what was found
KEPT_S = 100 * 365.25 * 86400.0  # until it is dropped: a job may be begun again at any time
_SCOPE = "\x1fjob "  # which no user's scope can begin with: those hold no control characters


def encoded(checkpoint: Any) -> bytes:
    """Raises `UsageError` for what is no JSON, or too long."""
    text = as_json("a checkpoint", checkpoint)
    if len(text) > CHECKPOINT_BYTES_MAX:
        raise UsageError(
            f"this checkpoint has {len(text)} bytes, more than {CHECKPOINT_BYTES_MAX}: it says where to go on from, "
            "such as the last id; keep what was found in a table of your own"
        )
    return text


def decoded(text: bytes) -> Any:
    """What `encoded` was given, as JSON has it: no tuple, no date."""
    return msgspec.json.decode(text)


def key_of(run: str, number: int) -> Key:
    """A link's row among the idempotency keys."""
    return Key(_SCOPE + run, f"{number:012}", "")


def last(ctx: Context, keeper: Participant, run: str) -> Script[tuple[Link, bool] | None]:
    """The last link, and whether it is only prepared: a plain read. The next link's commit flushes what it follows."""
    store = claims.store_for(keeper)

    def look(session: Session) -> Script[tuple[str, Row] | None]:
        return store.last(session, key_of(run, 0).scope)

    found = yield from plainly(told(ctx, keeper.pool, look))
    if found is None:
        return None
    number, row = found
    return link_of(keeper.name, run, number, row.result), row.pending


def link_of(keeper: str, run: str, number: str, value: bytes) -> Link:
    """A link from the key of its row, and from what is kept there. Raises `SchemaMismatch`."""
    try:
        link = Link(int(number), *msgspec.json.decode(value, type=tuple[Any, int, bool]))
        if link.number < 1 or key_of(run, link.number).key != number:
            raise ValueError(f"{number[:40]!r} is no number of a checkpoint")
        number_of_items(link.done)
    except rows.UNREADABLE as error:
        what = f"the last checkpoint of a job (run {run}), among the idempotency keys of {keeper},"
        raise rows.unreadable(what, error) from error
    return link


def value_of(link: Link) -> bytes:
    """What is kept of a link, beside its number."""
    return msgspec.json.encode([link.checkpoint, link.done, link.finished])


def take(
    ctx: Context, keeper: Participant, run: str, before: Link, beginning: Beginning
) -> Script[tuple[Claim, Attempt | None]]:
    """An attempt that may write the link after `before`, if that is still the last one."""
    store = claims.store_for(keeper)

    def claim(session: Session, work: Work) -> Script[Claim]:
        return _claim(store, session, work, run, before)

    return claims.holding(ctx, keeper.name, beginning, claim)


def _claim(store: Store, session: Session, work: Work, run: str, before: Link) -> Script[Claim]:
    """First the key of the new link: whoever is at work on it, or prepared, holds that, and we do not wait for them."""
    outcome = yield from store.claim(session, work, key_of(run, before.number + 1))
    if outcome is not Claim.TAKEN or before.number == 0:
        return outcome
    last = yield from store.take_over(session, key_of(run, before.number))
    return Claim.TAKEN if last else Claim.DONE


def close(attempt: Attempt, keeper: Participant, run: str, before: Link, after: Link) -> None:
    """The attempt will end with the link."""
    store, work = claims.store_for(keeper), attempt.branches[keeper.name].work
    row = store.closing(work, key_of(run, after.number), value_of(after), KEPT_S)
    work.closing = (*store.leave_behind(key_of(run, before.number)), *row)


def drop(ctx: Context, keeper: Participant, run: str, link: Link) -> Script[None]:
    """Nobody asks for this chain any more: the journal knows that the job is done, or has never known of this run.

    Whoever was asleep finds that the link they began from is not the last one. A crash just before leaves a row.
    """
    store = claims.store_for(keeper)
    yield from asked(ctx, keeper.reserve, lambda session: store.drop(session, key_of(run, link.number)))
