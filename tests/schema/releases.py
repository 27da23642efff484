"""Releases that there never were: the code of today, with the first tables, and two kinds of others after them.

Release 1 is the first migration alone. Release 2 adds to the tables, so that coordinators of release 1 work on.
Release 3 changes what they mean, so that older coordinators are refused: it renames the tables that are their gates,
and knows them by their new names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit import QUICK, Database, Face, make_database
from nodoubt import Coordinator
from nodoubt.engine import start
from nodoubt.engine.context import Context
from nodoubt.schema import Part, Schema, read, shipped

SHIPPED, EXPANDED, BROKEN = 1, 2, 3

WORK_ON, REFUSED = "-- Older coordinators: work on.\n", "-- Older coordinators: are refused.\n"
_LATER: dict[tuple[Part, str], tuple[str, str]] = {
    (Part.JOURNAL, "postgres"): (
        """
        ALTER TABLE nodoubt.decisions ADD COLUMN note text;
        CREATE TABLE nodoubt.notes (note text PRIMARY KEY);
        INSERT INTO nodoubt.notes VALUES ('moved');
        """,
        """
        ALTER TABLE nodoubt.decisions RENAME TO decisions_3;
        ALTER TABLE nodoubt.decisions_3 DROP COLUMN note;
        """,
    ),
    (Part.JOURNAL, "mariadb"): (
        """
        ALTER TABLE {database}.nodoubt_decisions ADD COLUMN note TEXT;
        CREATE TABLE {database}.nodoubt_notes (note VARCHAR(32) PRIMARY KEY);
        INSERT INTO {database}.nodoubt_notes VALUES ('moved');
        """,
        """
        ALTER TABLE {database}.nodoubt_decisions RENAME TO {database}.nodoubt_decisions_3;
        ALTER TABLE {database}.nodoubt_decisions_3 DROP COLUMN note;
        """,
    ),
    (Part.JOURNAL, "sqlite"): (
        """
        ALTER TABLE main.nodoubt_decisions ADD COLUMN note TEXT;
        CREATE TABLE main.nodoubt_notes (note TEXT PRIMARY KEY);
        INSERT INTO main.nodoubt_notes VALUES ('moved');
        """,
        """
        ALTER TABLE main.nodoubt_decisions RENAME TO nodoubt_decisions_3;
        ALTER TABLE main.nodoubt_decisions_3 DROP COLUMN note;
        """,
    ),
    (Part.PARTICIPANT, "postgres"): (
        """
        ALTER TABLE nodoubt.receipts ADD COLUMN note text;
        ALTER TABLE nodoubt.identity ADD COLUMN note text;
        """,
        "ALTER TABLE nodoubt.receipts RENAME TO receipts_3;",
    ),
    (Part.PARTICIPANT, "mariadb"): (
        """
        ALTER TABLE {database}.nodoubt_receipts ADD COLUMN note TEXT;
        ALTER TABLE {database}.nodoubt_identity ADD COLUMN note TEXT;
        """,
        "ALTER TABLE {database}.nodoubt_receipts RENAME TO {database}.nodoubt_receipts_3;",
    ),
    (Part.PARTICIPANT, "sqlite"): (
        """
        ALTER TABLE main.nodoubt_receipts ADD COLUMN note TEXT;
        ALTER TABLE main.nodoubt_identity ADD COLUMN note TEXT;
        """,
        "ALTER TABLE main.nodoubt_locks RENAME TO nodoubt_locks_3;",
    ),
}
LATER = {of: (f"{WORK_ON}{grows}", f"{REFUSED}{breaks}") for of, (grows, breaks) in _LATER.items()}


@dataclass(frozen=True)
class Releases:
    """Which release's tables the journal has, and the participants."""

    journal: int = SHIPPED
    participants: int = SHIPPED


@dataclass(frozen=True)
class Scene:
    """Databases a and b, and where their journal is."""

    pair: list[Database]
    journal: str

    @property
    def kind(self) -> str:
        return self.pair[0].kind

    def balances(self) -> list[int]:
        return [one.balance() for one in self.pair]

    def settled(self) -> bool:
        return not any(one.prepared() or one.locked() for one in self.pair)


_GATES = {"postgres": "nodoubt.receipts", "mariadb": "nodoubt_receipts", "sqlite": "nodoubt_locks"}


def schema_of(part: Part, kind: str, release: int) -> Schema:
    """The tables as that release knows them."""
    first, *_ = shipped(part, kind).migrations
    return read(part, kind, [first.sql, *LATER[part, kind]][:release])


def make(db: Coordinator | Face, releases: Releases) -> Any:
    """Make a coordinator that has not been opened one of another release; the same coordinator."""
    inner: Any = db.db if isinstance(db, Face) else db
    ctx: Context = inner._ctx
    its: Any = ctx.journal
    its.tables.schema = schema_of(Part.JOURNAL, its.dialect.kind, releases.journal)
    if releases.journal >= BROKEN:
        table = its.dialect.table
        its.dialect.table = lambda name: table("decisions_3" if name == "decisions" else name)
    for participant in ctx.participants.values():
        resource: Any = participant.resource
        kind = resource.traits.kind
        resource.tables.schema = schema_of(Part.PARTICIPANT, kind, releases.participants)
        if releases.participants >= BROKEN:
            for pool in (participant.pool, participant.reserve):
                _rename(pool, _GATES[kind])
    return db


def _rename(pool: Any, gate: str) -> None:
    """Whatever is said of the gate is said of its new name."""
    connect = pool._connect

    def renamed(session: Any) -> Any:
        ours: Any = getattr(session, "connection", None)
        speaker = ours if hasattr(ours, "many") else session
        for verb in ("run", "query", "many"):
            if hasattr(speaker, verb):
                setattr(speaker, verb, _renamed(getattr(speaker, verb), gate))
        return session

    async def arrives(session: Any) -> Any:
        return renamed(await session)

    def connecting() -> Any:
        session = connect()
        return arrives(session) if inspect.isawaitable(session) else renamed(session)

    pool._connect = connecting


def _renamed(verb: Callable[..., Any], gate: str) -> Callable[..., Any]:
    after = f"{gate}_3"  # one verb may call another, by when it has been said
    return lambda sql, *more: verb(sql if "ALTER TABLE" in sql or after in sql else sql.replace(gate, after), *more)


def coordinator(scene: Scene, releases: Releases) -> Coordinator:
    """A coordinator of that release, not open."""
    db = Coordinator({d.name: d.url for d in scene.pair}, journal=scene.journal, settings=QUICK, recovery=False)
    made: Coordinator = make(db, releases)
    return made


def migrate(scene: Scene, releases: Releases) -> None:
    """What `nodoubt schema apply` of that release does first."""
    db = coordinator(scene, releases)
    try:
        db._shell.run(start.migrate(db._ctx))
    finally:
        db.close()


def scene_of(kind: str, request: Any, tmp_path: Path) -> Scene:
    """Databases a and b, set up by release 1. Work locks SQLite's files: there the journal has one of its own."""
    some = [make_database(kind, name, request, tmp_path) for name in "ab"]
    scene = Scene(some, f"sqlite:///{tmp_path}/journal.db" if kind == "sqlite" else "a")
    with coordinator(scene, Releases()) as db:
        db.setup()
    return scene
