"""What the traps share: coordinators that join others, parts of a coordinator exchanged for mutants, and the
end of a scene.

A mutant is the product with one rule taken out. It is put in place of a part of one coordinator's context; the test
that holds the rule and the test that shows the mutant broken stand side by side.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

from kit import QUICK, Database, Face, make_database, until
from nodoubt import Coordinator
from nodoubt.engine.context import Context

MOVED, UNTOUCHED = [70, 130], [100, 100]


def databases(kinds: str, request: Any, tmp_path: Path) -> list[Database]:
    """Fresh databases a, b, … of these kinds: "postgres+sqlite". The journal lives in the first one, unless told."""
    return [make_database(kind, name, request, tmp_path) for kind, name in zip(kinds.split("+"), "abc", strict=False)]


@contextlib.asynccontextmanager
async def joined(mode: str, some: Sequence[Database], **options: Any) -> AsyncIterator[Face]:
    """Another coordinator over databases that are set up already."""
    face = Face(mode, some, **options)
    await face.open()
    try:
        yield face
    finally:
        await face.close()


def context(db: Face | Coordinator) -> Context:
    """What the coordinator works with."""
    inner: Any = db.db if isinstance(db, Face) else db
    found: Context = inner._ctx
    return found


@contextlib.contextmanager
def resource_of(db: Face | Coordinator, name: str, mutant: type[Any], *args: Any) -> Iterator[Any]:
    """In the block, this coordinator takes `name` for a `mutant`."""
    participant = context(db).participants[name]
    sound = participant.resource
    changed: Any = mutant(name, *(args or ((sound.database,) if hasattr(sound, "database") else ())))
    participant.resource = changed
    try:
        yield changed
    finally:
        participant.resource = sound


@contextlib.contextmanager
def journal_of(db: Face, mutant: type[Any]) -> Iterator[Any]:
    """In the block, this coordinator's journal is a `mutant`."""
    ctx = context(db)
    sound: Any = ctx.journal
    changed: Any = mutant(sound.dialect)
    ctx.journal = changed
    try:
        yield changed
    finally:
        ctx.journal = sound


def balances(some: Sequence[Database]) -> list[int]:
    return [d.balance() for d in some]


def at_rest(some: Sequence[Database]) -> bool:
    """Nothing prepared, nothing locked."""
    return not any(d.prepared() or d.locked() for d in some)


def everywhere_or_nowhere(some: Sequence[Database]) -> bool:
    """Two sweeps, then the end of the scene: one outcome, nothing left. True if it was a commit."""
    with Coordinator({d.name: d.url for d in some}, settings=QUICK, recovery=False) as db:
        return recovered(db, some)


def recovered(db: Coordinator, some: Sequence[Database]) -> bool:
    """The same with a coordinator at hand. A server needs a moment to notice that a client is gone."""
    until(lambda: db.recover(grace=0).clean)
    report = db.recover(grace=0)
    assert report.clean, report
    ended = balances(some)
    assert ended in (MOVED, UNTOUCHED), f"atomicity is broken: {ended}"
    assert at_rest(some), [d.prepared() for d in some]
    assert db.quarantined() == []
    return ended == MOVED
