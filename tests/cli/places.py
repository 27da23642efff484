"""Two databases, of which the first holds the journal, of each kind; and a row of it that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from click.testing import Result

from cli.conftest import nodoubt
from kit import QUICK, Database, make_database
from nodoubt import Coordinator, Settings, wiring
from nodoubt.engine.context import Context, using
from nodoubt.journals.dialects import Dialect
from nodoubt.ports import Session
from nodoubt.protocol.records import Decision, Mode, Unreadable, Verdict
from nodoubt.script import Script

NAMES = (
    "good-1",
    "bad",
    "good-2",
    "open",
)  # each with a table of its own: what is prepared locks a whole one in SQLite
TORN = '[{"number": 0'
TABLES = {"decisions": "branches", "names": "branches", "calls": "state"}


@dataclass(frozen=True)
class Place:
    """Two databases, of which the first holds the journal."""

    databases: Sequence[Database]

    @property
    def journal(self) -> Database:
        return self.databases[0]

    def nodoubt(self, *arguments: str) -> Result:
        options = [part for one in self.databases for part in ("-r", f"{one.name}={one.url}")]
        return nodoubt(*options, *arguments)

    def json(self, *arguments: str, code: int = 0) -> Any:
        result = self.nodoubt(*arguments, "--json")
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)

    def coordinator(self, settings: Settings = QUICK) -> Coordinator:
        return Coordinator({one.name: one.url for one in self.databases}, recovery=False, settings=settings)

    def stage(self, name: str, *, deadline: float | None = None) -> str:
        """Staged, with a row in both."""
        with self.coordinator() as db, db.begin_distributed(name, deadline=deadline) as tx:
            for one in self.databases:
                tx[one.name].execute(f"insert into {table_of(name)} values (1)")
            return tx.attempt

    def decide(self, *attempts: str) -> None:
        """COMMIT, by somebody who died before they carried it out."""

        def body(session: Session) -> Script[None]:
            stagings = yield from ctx.journal.staged(session, attempts)
            for one in stagings.values():
                assert not isinstance(one, Unreadable)
                commit = Decision(one.attempt, Verdict.COMMIT, Mode.STAGED, one.name, one.branches)
                yield from ctx.journal.insert(session, [commit])

        with wiring.onlooker({one.name: one.url for one in self.databases}, None) as (ctx, shell):
            shell.run(using(ctx.journal_pool, body))

    def table(self, name: str) -> str:
        return f"nodoubt.{name}" if self.journal.kind == "postgres" else f"nodoubt_{name}"

    def spoil(self, table: str, attempt: str, value: str = TORN) -> str:
        """What was there."""
        column, name = TABLES[table], self.table(table)
        ((before,),) = self.journal.query(f"select {column} from {name} where attempt = '{attempt}'")
        self.journal.query(f"update {name} set {column} = '{value}' where attempt = '{attempt}'")
        return str(before)

    def mend(self, table: str, attempt: str, value: str) -> None:
        sql = f"update {self.table(table)} set {TABLES[table]} = ? where attempt = ?"
        self.journal.query(sql, value, attempt)

    def rows(self, name: str) -> list[int]:
        """In each database."""
        return [int(one.query(f"select count(*) from {table_of(name)}")[0][0]) for one in self.databases]

    def prepared(self) -> int:
        return sum(len(one.prepared()) for one in self.databases)


def table_of(name: str) -> str:
    return f"t_{name.replace('-', '_')}"


def make_place(kind: str, request: Any, tmp_path: Path) -> Place:
    """Empty, but for a table to each name."""
    made = Place([make_database(kind, "a", request, tmp_path), make_database("sqlite", "b", request, tmp_path)])
    for one in made.databases:
        for name in NAMES:
            one.query(f"create table {table_of(name)} (n int primary key)")
    with made.coordinator() as db:
        db.setup()
    return made


def context(db: Coordinator) -> Context:
    return db._ctx


def dialect(db: Coordinator) -> Dialect:
    journal: Any = context(db).journal
    return cast(Dialect, journal.dialect)
