"""What was seen of a database: facts, without a judgement.

Times of day are seconds since the epoch, spans are in seconds; None is "not known", and why is among the `gaps`.
Nothing here is unbounded: what was cut off is named in `cut`.

Must not: know how it was found out.
"""

from __future__ import annotations

import msgspec

from ..protocol.records import Quarantined, Staging, Standing, Unreadable
from .origins import Origin, XaId

PREPARED_MAX = 1000  # prepared transactions that are looked at, the oldest first where their ages are known
LOCKS_MAX = 5000  # lines of locks that they hold, together
LOCKS_EACH_MAX = 20  # of them, per transaction
WAITING_MAX = 200  # sessions that wait
STATEMENT_MAX = 120  # characters of what a session is doing
OPEN_MAX = 100  # decisions that have not ended
UNDECIDED_MAX = 100  # names without a decision
QUARANTINED_MAX = 100
REPLICAS_MAX = 50
TABLES_MAX = 100  # that a transaction can't roll back


class Gap(msgspec.Struct, frozen=True):
    """What could not be seen, and what would let it be seen. `blind`: what is stuck may stand there alone."""

    what: str
    advice: str
    blind: bool = False


class Setting(msgspec.Struct, frozen=True):
    """A server's setting. `place`: file and line that it was read from, where the server tells."""

    value: str
    place: str = ""


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """Who answers. `skew_s`: how far its clock is ahead of this machine's, give or take `skew_within_s`."""

    version: str
    user: str = ""
    database: str = ""
    standby: bool = False
    skew_s: float | None = None
    skew_within_s: float = 0.0


class Lock(msgspec.Struct, frozen=True):
    """What a prepared transaction has locked, and how."""

    what: str
    mode: str


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A prepared transaction. `age_s` is counted `since` its "prepare" or, where the server tells no better, since its
    "begin"; `at_least`: it may be older.

    `raw`: its id, where that is no UTF-8, as which it is told. `locks` are what can be told; rows that are locked are
    on no list of PostgreSQL's. `session`: the one that has it still (MariaDB). `xids_held`: so many transaction ids
    VACUUM cannot pass because of it; `dead_rows`: those in the tables it has locked, as the server estimates them.
    """

    id: str
    raw: bytes | None = None
    origin: Origin
    xa: XaId | None = None
    database: str | None = None
    owner: str | None = None
    age_s: float | None = None
    since: str = "prepare"
    at_least: bool = False
    session: int | None = None
    locks: tuple[Lock, ...] = ()
    locks_left_out: int = 0
    xids_held: int | None = None
    dead_rows: int | None = None
    unreadable: str = ""  # why what was stored for it cannot be used (SQLite)


class Blocker(msgspec.Struct, frozen=True):
    """Who is waited for. `session`: a session; `prepared`: a prepared transaction; neither: in words, `name`."""

    session: int | None = None
    prepared: str | None = None
    name: str = ""


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A session that waits. `behind`: whom for."""

    session: int
    behind: tuple[Blocker, ...]
    waits_for: str = ""  # what it wants to lock
    since_s: float | None = None
    user: str | None = None
    application: str | None = None
    database: str | None = None
    statement: str | None = None


class Vacuum(msgspec.Struct, frozen=True, kw_only=True):
    """How far PostgreSQL's VACUUM is behind, in transaction ids. `others`: what else holds it back, by name."""

    freeze_max_age: int
    oldest_database: str
    oldest_database_age: int
    others: dict[str, int] = {}


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who follows the log: a standby, a subscriber, a replica; or a slot that waits for one."""

    name: str
    kind: str  # standby, physical slot, logical slot, replica
    state: str = ""
    synchronous: bool | None = None


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A SQLite file. `writers`: who has it locked for writing, in words; `unguarded`: tables that a prepared branch
    has locked and that have lost the triggers which keep others out.
    """

    journal_mode: str
    library: str
    wal_bytes: int | None = None
    writers: str = ""
    unguarded: tuple[str, ...] = ()


class Registered(msgspec.Struct, frozen=True):
    """A participant, as the journal knows it."""

    resource_id: str
    name: str
    server: str
    epoch: int


class Journal(msgspec.Struct, frozen=True, kw_only=True):
    """A journal of ours. `decided` and `staged`: by attempt, what it says of our branches that were found prepared,
    read plainly: advice, never grounds to act. `names`: those without a decision, the oldest first. `strange_marks`: of
    epochs that participants have witnessed and this journal has never had. `unreadable`: its rows that cannot be read,
    of all that is not over; `sealed`: by attempt, those on which a branch that was found prepared hangs; `strays`:
    those that may be anybody's: while there are any nothing is presumed. `floor`: None, if it cannot be read.
    """

    cluster: str
    version: int
    epoch: int
    floor: str | None
    open_commits: tuple[Standing, ...] = ()
    names: tuple[Staging, ...] = ()
    quarantined: tuple[Quarantined, ...] = ()
    registered: tuple[Registered, ...] = ()
    strange_marks: tuple[str, ...] = ()
    decided: dict[str, Standing] = {}
    staged: dict[str, Staging] = {}
    unreadable: tuple[Unreadable, ...] = ()
    sealed: dict[str, Unreadable] = {}
    strays: tuple[Unreadable, ...] = ()


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What a participant of ours says about itself. `server`: where it was set up; `server_now`: where it is."""

    resource_id: str
    cluster: str
    epoch: int
    mark: str = ""
    server: str
    server_now: str


class Flaw(msgspec.Struct, frozen=True, kw_only=True):
    """A setting that does not let a promise be kept: see `ports.Shortcoming`."""

    what: str
    advice: str
    refused: bool
    line: str = ""
    where: str = ""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """One database. `error`: why it could not be examined; then most of the rest is missing."""

    name: str
    url: str  # without its password
    kind: str
    at: float = 0.0  # by this machine's clock
    took_s: float = 0.0
    messages: int = 0  # sent to the server: round trips, but for those of the connection itself
    error: str | None = None
    server: Server | None = None
    settings: dict[str, Setting] = {}
    flaws: tuple[Flaw, ...] = ()
    prepared: tuple[Prepared, ...] = ()
    prepared_count: int = 0  # all of them, those that were left out too
    listed: bool = True  # whether it told at all what is prepared
    waiting: tuple[Waiting, ...] = ()
    vacuum: Vacuum | None = None
    history_length: int | None = None  # InnoDB's: changes that it cannot purge yet
    replicas: tuple[Replica, ...] = ()
    file: File | None = None
    journal: Journal | None = None
    identity: Identity | None = None
    broken: str | None = None  # why our tables, which are there, cannot be used
    gaps: tuple[Gap, ...] = ()
    cut: tuple[str, ...] = ()

    @property
    def follows(self) -> bool:
        """Whether it copies another: what it lacks may be there."""
        read_only = self.kind == "mariadb" and self.settings.get("read_only", Setting("OFF")).value != "OFF"
        return read_only or (self.server is not None and self.server.standby)

    @property
    def lists_all(self) -> bool:
        """Whether what is not among the prepared is not prepared."""
        return self.listed and not self.follows and self.prepared_count <= len(self.prepared)
