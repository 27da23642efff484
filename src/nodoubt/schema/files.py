"""The numbered files: read, checked, and taken apart into statements.

Guarantees: a file that says nothing of older coordinators, or that refuses them without shutting their gate, is an
error wherever it is read, not a surprise in production.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files
from types import MappingProxyType

PACKAGE = "nodoubt.schema"
DATABASE = "{database}"  # in MariaDB's files: the quoted name of the database, for a session may be in another

_OLDER = re.compile(r"^-- Older coordinators: (there are none|work on|are refused)\.$", re.MULTILINE)
_WITHOUT = re.compile(r"^-- Without it: all but (\w+)\.$", re.MULTILINE)
_TABLE = re.compile(r"^CREATE TABLE IF NOT EXISTS \S*nodoubt[._](\w+)", re.MULTILINE)
_MAKES = re.compile(r"CREATE (?:TABLE|INDEX) IF NOT EXISTS ")
_COMMENT = re.compile(r"(^|\s)--(?:[ \t].*)?$", re.MULTILINE)


class Part(StrEnum):
    """Whose tables."""

    JOURNAL = "journal"
    PARTICIPANT = "participant"


# The table through which every commit of a coordinator goes. Nothing is decided, staged, confirmed or recovered without
# the decisions; each prepare and each one-phase commit writes a receipt, or, on SQLite, has read the locks as it began.
GATES: Mapping[tuple[Part, str], str] = MappingProxyType(
    {
        (Part.JOURNAL, "postgres"): "nodoubt.decisions",
        (Part.JOURNAL, "mariadb"): f"{DATABASE}.nodoubt_decisions",
        (Part.JOURNAL, "sqlite"): "main.nodoubt_decisions",
        (Part.PARTICIPANT, "postgres"): "nodoubt.receipts",
        (Part.PARTICIPANT, "mariadb"): f"{DATABASE}.nodoubt_receipts",
        (Part.PARTICIPANT, "sqlite"): "main.nodoubt_locks",
    }
)
RECORDS: Mapping[str, str] = MappingProxyType(
    {
        "postgres": "nodoubt.migrations",
        "mariadb": f"{DATABASE}.nodoubt_migrations",
        "sqlite": "main.nodoubt_migrations",
    }
)


class SchemaError(Exception):
    """A file of ours is not as it must be: a bug in this release."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file. `works_from`: what a coordinator must know at least to work on the tables that it leaves.

    `brings`: what alone needs it; without it the rest works. "": everything needs it.
    """

    number: int
    works_from: int
    sql: str
    statements: tuple[str, ...]
    brings: str = ""

    @property
    def tables(self) -> tuple[str, ...]:
        """Those it makes, without what goes in front of each on this kind of database."""
        return tuple(_TABLE.findall(self.sql))

    @property
    def repeatable(self) -> bool:
        """Whether it may be run again where it, or a part of it, was run before."""
        return all(_MAKES.match(statement) for statement in self.statements)

    @property
    def refuses_older(self) -> bool:
        """Whether coordinators of the release before are shut out."""
        return self.works_from == self.number > 1


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of one part on one kind of database."""

    part: Part
    kind: str
    migrations: tuple[Migration, ...]

    @property
    def known(self) -> int:
        """The newest version that this release knows."""
        return self.migrations[-1].number

    @property
    def needed(self) -> int:
        """The oldest version on which this release works, but for what later migrations bring."""
        return max(one.number for one in self.migrations if not one.brings)

    @property
    def record(self) -> str:
        """The table that says what was applied."""
        return RECORDS[self.kind]

    def record_sql(self) -> str:
        """The statements that make the record, where it is missing."""
        return _text(f"{self.kind}/record.sql")


@cache
def shipped(part: Part, kind: str) -> Schema:
    """What this release brings."""
    folder = files(PACKAGE) / kind / part
    names = sorted(one.name for one in folder.iterdir() if one.name.endswith(".sql"))
    expected = [f"{number:04}.sql" for number in range(1, len(names) + 1)]
    if not names or names != expected:
        raise SchemaError(f"{kind}/{part} holds {names}: the files are numbered from 0001.sql on, without a gap")
    return read(part, kind, [_text(f"{kind}/{part}/{name}") for name in names])


def read(part: Part, kind: str, texts: Sequence[str]) -> Schema:
    """The schema of these files, in their order. Raises `SchemaError`."""
    gate, works_from = GATES[part, kind], 1
    found: list[Migration] = []
    for number, text in enumerate(texts, 1):
        where = f"migration {number} of {part} on {kind}"
        said = _OLDER.findall(text)
        if len(said) != 1 or (said[0] == "there are none") is not (number == 1):
            raise SchemaError(f"{where} must have one line '-- Older coordinators: work on.' or '… are refused.'")
        statements, brings = split(text), "".join(_WITHOUT.findall(text))
        if brings and said[0] != "work on":
            raise SchemaError(f"{where} cannot be done without: it is the first, or refuses older coordinators")
        if said[0] == "are refused":
            gate, works_from = _shut(gate, statements[0], where), number
        found.append(Migration(number, works_from, text, statements, brings))
    return Schema(part, kind, tuple(found))


def _shut(gate: str, first: str, where: str) -> str:
    """The gate's new name. First: what follows may already be wrong for a coordinator that still comes through."""
    renamed = re.fullmatch(rf"ALTER TABLE {re.escape(gate)}\s+RENAME TO (\S+)", first)
    if renamed is None:
        raise SchemaError(
            f"{where} refuses older coordinators, so its first statement must be ALTER TABLE {gate} RENAME TO …: until "
            "then they can commit"
        )
    folder, _, _ = gate.rpartition(".")
    return f"{folder}.{renamed[1].rpartition('.')[2]}"


def split(text: str) -> tuple[str, ...]:
    """The statements of a file. Ours hold neither `--` nor `;` but where a comment begins and a statement ends."""
    return tuple(part.strip() for part in _COMMENT.sub("", text).split(";") if part.strip())


def _text(path: str) -> str:
    return (files(PACKAGE) / path).read_text(encoding="utf-8")
