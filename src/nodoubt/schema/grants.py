"""Least privilege: exactly which rights on our tables an account needs, as data, and as statements for whoever grants.

- `app`: a coordinator at work, recovery and retention included.
- `recovery`: a coordinator that only recovers. On PostgreSQL that is the same: only the role that prepared a branch may
  end it.
- `setup`: what `app` lacks to store who a database is, in tables that an administrator has made. Once.
- `look`: whoever only asks: `ls`, `show`, `schema status`, and `doctor`, which also wants to see others' sessions.

The verdict of a decision, or what a receipt says, can be changed by none of them. What the work itself needs, on the
user's own tables, is the user's; what an operator may do once in a while (`migrate`, `adopt`, `drop`) is for whoever
owns the tables. Each right is needed: a test takes away one after the other.

Must not: grant anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from .files import Part, shipped


class Role(StrEnum):
    """What an account is for."""

    APP = "app"
    RECOVERY = "recovery"
    SETUP = "setup"
    LOOK = "look"


@dataclass(frozen=True, slots=True)
class Grant:
    """One right. `column`: of this column only; `on`: a table, or a schema, as it stands in GRANT; "": of a role.

    `since`: the migration that made the table, where a database may be without it; `brings`: what it brings.
    """

    privilege: str
    on: str
    column: str = ""
    since: int = 0
    brings: str = ""

    @property
    def right(self) -> str:
        """As it stands before ON."""
        return f"{self.privilege} ({self.column})" if self.column else self.privilege


Rights = Mapping[str, Sequence[str]]  # of a table: SELECT, or UPDATE.column

# What changes in a call's life; whose step it is, and what undoes it, does not.
CHANGES = (
    "arguments", "state", "result", "error", "tries", "held_until", "claim", "worker", "changed_at", "version",
    "unfinished",
)  # fmt: skip

# What changes while a job is worked on; where its checkpoints are does not.
WORKED = ("state", "done", "total", "checkpoint", "note", "worker", "claim", "held_until", "changed_at")

_APP: Mapping[Part, Rights] = MappingProxyType(
    {
        Part.PARTICIPANT: {
            "migrations": ("SELECT",),
            "identity": ("SELECT", "UPDATE.epoch", "UPDATE.mark"),
            "receipts": ("SELECT", "INSERT", "UPDATE.confirms", "DELETE"),
            "keys": ("SELECT", "INSERT", "UPDATE.confirms", "DELETE"),
        },
        Part.JOURNAL: {
            "migrations": ("SELECT",),
            "journal": ("SELECT", "UPDATE.value", "UPDATE.counter"),
            "epochs": ("SELECT", "INSERT", "DELETE"),
            "decisions": ("SELECT", "INSERT", "UPDATE.confirms", "UPDATE.ended_at", "DELETE"),
            "names": ("SELECT", "INSERT", "UPDATE.undecided", "UPDATE.calls", "DELETE"),
            "confirmations": ("SELECT", "INSERT", "UPDATE.answer", "UPDATE.why", "UPDATE.at", "DELETE"),
            "calls": ("SELECT", "INSERT", *(f"UPDATE.{column}" for column in CHANGES), "DELETE"),
            "jobs": ("SELECT", "INSERT", *(f"UPDATE.{column}" for column in WORKED), "DELETE"),
            "resources": ("SELECT", "INSERT", "UPDATE.name", "UPDATE.cluster", "UPDATE.server", "UPDATE.epoch"),
            "quarantine": ("SELECT", "INSERT", "UPDATE.resource", "UPDATE.why", "UPDATE.since", "UPDATE.cleared_by"),
            "events": ("SELECT", "INSERT", "DELETE"),
        },
    }
)
# Recovery takes no part in work: it stages no name, calls no step, answers for nobody, settles no one-phase commit,
# takes no key, and works on no job.
_NOT_RECOVERY: Mapping[Part, Rights] = MappingProxyType(
    {
        Part.PARTICIPANT: {"receipts": ("INSERT",), "keys": ("INSERT", "UPDATE.confirms")},
        Part.JOURNAL: {
            "names": ("INSERT", "UPDATE.calls"),
            "confirmations": ("INSERT", "UPDATE.answer", "UPDATE.why", "UPDATE.at"),
            "calls": ("INSERT",),
            "jobs": ("INSERT", *(f"UPDATE.{column}" for column in WORKED)),
        },
    }
)
_NOT_LOOK = ("keys",)  # nobody who only looks needs to read what callers were told
_SETUP: Mapping[Part, Rights] = MappingProxyType(
    {Part.PARTICIPANT: {"identity": ("INSERT",)}, Part.JOURNAL: {"journal": ("INSERT", "UPDATE.item")}}
)

# What a server shows to nobody else: sessions, and who waits for whom.
_OTHERS = {"postgres": Grant("pg_monitor", ""), "mariadb": Grant("PROCESS", "*.*")}

# Tables that a right to some columns is not enough for. PostgreSQL: LOCK TABLE, by which the floor is held. MariaDB:
# INSERT … ON DUPLICATE KEY UPDATE wants to be allowed to change whatever it inserts.
_WHOLE = {"postgres": ("journal",), "mariadb": ("resources", "quarantine")}


def grants(kind: str, role: Role, parts: Iterable[Part], database: str = "") -> tuple[Grant, ...]:
    """Every right that an account of this role needs, in one database; last, those on what may not be there yet."""
    found: dict[Grant, None] = {}
    if kind == "postgres":
        found[Grant("USAGE", "SCHEMA nodoubt")] = None
    for part in parts:
        later = {table: one for one in shipped(part, kind).migrations if one.brings for table in one.tables}
        for table, rights in _rights(kind, role, part):
            since = (later[table].number, later[table].brings) if table in later else (0, "")
            for right in rights:
                privilege, _, column = right.partition(".")
                found[Grant(privilege, _named(kind, table, database), column, *since)] = None
    if role is Role.LOOK:
        found[_OTHERS[kind]] = None
    return tuple(sorted(found, key=lambda one: one.since))


def _rights(kind: str, role: Role, part: Part) -> Iterable[tuple[str, Sequence[str]]]:
    without = _NOT_RECOVERY[part] if role is Role.RECOVERY and kind != "postgres" else {}
    more = _SETUP[part] if role is Role.SETUP else {}
    for table, rights in _APP[part].items():
        if role is Role.LOOK:
            if table not in _NOT_LOOK:
                yield table, ("SELECT",)
            continue
        wanted = [one for one in rights if one not in without.get(table, ())]
        wanted += [one for one in more.get(table, ()) if one not in wanted]
        if table in _WHOLE[kind]:
            wanted = [*(one for one in wanted if not one.startswith("UPDATE.")), "UPDATE"]
        yield table, wanted


def _named(kind: str, table: str, database: str) -> str:
    if kind == "postgres":
        return f"nodoubt.{table}"
    name = database.replace("`", "``")
    return f"`{name}`.nodoubt_{table}"


def statements(kind: str, granted: Iterable[Grant], account: str) -> str:
    """As GRANT statements, one for each table; before those that may fail, what to do first."""
    by_object: dict[str, dict[str, list[str]]] = {}
    later: dict[str, str] = {}
    for one in granted:
        by_object.setdefault(one.on, {}).setdefault(one.privilege, []).append(one.column)
        if one.since:
            later[one.on] = (
                f"-- Only with migration {one.since}: run nodoubt schema apply first, or leave this out. "
                f"Without it, all but {one.brings} works."
            )
    lines = []
    for on, privileges in by_object.items():
        if on in later:
            lines.append(later[on])
        rights = ", ".join(_right(privilege, columns) for privilege, columns in privileges.items())
        lines.append(f"GRANT {rights}{f' ON {on}' if on else ''} TO {quoted(kind, account)};")
    return "\n".join(lines) + "\n"


def _right(privilege: str, columns: Sequence[str]) -> str:
    return privilege if "" in columns else f"{privilege} ({', '.join(columns)})"


def quoted(kind: str, account: str) -> str:
    """A role of PostgreSQL, or an account of MariaDB, `user` or `user@host`."""
    if kind == "postgres":
        name = account.replace('"', '""')
        return f'"{name}"'
    user, _, host = account.rpartition("@") if "@" in account else (account, "", "%")
    return "@".join("'" + part.replace("\\", "\\\\").replace("'", "''") + "'" for part in (user, host))
