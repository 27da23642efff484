"""What the doctor says: `nodoubt doctor --json` is a `Report`, field by field as it is written here.

    {"version": 1, "at": "2026-11-26T09:30:00.000Z", "exit_code": 3,
     "databases": [Examined, …],     # in the order in which they were named
     "findings": [Finding, …]}       # what concerns several of them

`version` changes only when a field changes its meaning or goes; new fields may come. Times of day are ISO 8601 in UTC,
spans end in `_s` or `_ms`; null is "not known", and why is among the `gaps`. `severity` is "human" (somebody must act:
exit code 3), "advice" (worth changing) or "note". With `--watch` there is one Report to a line.

Must not: decide anything.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from .facts import File, Gap, Identity, Lock, Replica, Server, Setting, Vacuum

VERSION = 1


class Severity(StrEnum):
    """How much it matters."""

    HUMAN = "human"  # somebody must act
    ADVICE = "advice"  # worth changing, not tonight
    NOTE = "note"  # good to know


class Change(msgspec.Struct, frozen=True):
    """One line to write, and where: a file, or "" for a statement or a command."""

    line: str
    where: str = ""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was found. `rule` is its stable name; `about`: ids of prepared transactions, or attempts."""

    rule: str = ""
    severity: Severity
    what: str
    why: str = ""
    changes: tuple[Change, ...] = ()
    about: tuple[str, ...] = ()


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """What to do about one prepared transaction. `who`: whose it is to end; `do`: in this order; `after_asking`: the
    statements that end it by hand, `where`: for foreign ones only, and only once whoever decides has been asked.
    """

    severity: Severity
    who: str
    why: str
    do: tuple[str, ...] = ()
    after_asking: tuple[str, ...] = ()
    where: str = ""


class PreparedReport(msgspec.Struct, frozen=True, kw_only=True):
    """One prepared transaction. `age_s` counts since its `since` ("prepare", or "begin" where no server tells better);
    `blocks`: so many sessions wait for it, and for those that do.
    """

    id: str
    kind: str
    system: str
    coordinator: str
    detail: str
    database: str | None
    owner: str | None
    age_s: float | None
    since: str
    at_least: bool
    session: int | None
    locks: tuple[Lock, ...]
    locks_left_out: int
    xids_held: int | None
    dead_rows: int | None
    blocks: int
    decision: str | None  # ours: as its journal said, if that was at hand
    action: Action


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """A session that waits, and who waits for it."""

    session: int
    waits_for: str
    since_s: float | None
    user: str | None
    application: str | None
    database: str | None
    statement: str | None
    waiting: tuple[Wait, ...] = ()


class Tree(msgspec.Struct, frozen=True, kw_only=True):
    """Who waits for prepared transactions, the same for each of these. `prepared`: their ids; none, if only `what` can
    be told of them.
    """

    prepared: tuple[str, ...]
    what: str
    waiting: tuple[Wait, ...]


class Ours(msgspec.Struct, frozen=True, kw_only=True):
    """A journal of ours, in numbers; what is wrong with it is among the findings."""

    cluster: str
    version: int
    epoch: int
    floor: str | None  # None: it cannot be read
    floor_at: str | None
    open_commits: int
    names_undecided: int
    quarantined: int
    unreadable: int  # rows that cannot be read


class Examined(msgspec.Struct, frozen=True, kw_only=True):
    """One database. `error`: why it could not be examined."""

    name: str
    url: str
    kind: str
    at: str | None
    took_ms: float
    messages: int
    error: str | None
    server: Server | None
    settings: dict[str, Setting]
    prepared_count: int
    prepared: tuple[PreparedReport, ...]
    waits: tuple[Tree, ...]
    vacuum: Vacuum | None
    history_length: int | None
    replicas: tuple[Replica, ...]
    file: File | None
    journal: Ours | None
    identity: Identity | None
    findings: tuple[Finding, ...]
    gaps: tuple[Gap, ...]
    cut: tuple[str, ...]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything."""

    version: int
    at: str | None
    exit_code: int
    databases: tuple[Examined, ...]
    findings: tuple[Finding, ...]
