"""How the three databases differ where the journal is concerned: names, literals, locks, beginnings, error codes.

Guarantees: text that is not plain reaches a server as hexadecimal digits, so nothing is ever escaped; every
table and function is qualified, so no search path and no second database can stand in for ours; an error code
that is not listed is LOST, or, on PostgreSQL, of a class that says so: neither done nor surely not done.

Must not: do I/O, or know the journal's scripts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from .. import kept
from ..errors import UsageError
from ..ports import Failure
from ..xid import is_attempt

FLOOR_WAIT_S = 1  # a clean-up, for the transactions that hold the floor; it comes again
TEXT_LENGTH_MAX = 8192  # of what people and programs say: reasons, owners, details. MariaDB's TEXT ends at 64 KiB


# ---- what their error codes mean ------------------------------------------------------------------
#
# Of statements whose message ends in a COMMIT. A code may only be in a table if the server can't give it for a COMMIT
# that has, or may have, taken effect; what is in none is LOST.

POSTGRES_CODES: Mapping[str, Failure] = {
    "23505": Failure.DUPLICATE,  # unique_violation
    "23502": Failure.NO_FLOOR,  # not_null_violation: the floor gave no attempt
    "40001": Failure.TRANSIENT,  # serialization_failure
    "40P01": Failure.TRANSIENT,  # deadlock_detected
    "55P03": Failure.TRANSIENT,  # lock_not_available
    "57014": Failure.TRANSIENT,  # query_canceled; a COMMIT that is cancelled while it waits only warns
    "53100": Failure.FULL,  # disk_full
    "53200": Failure.FULL,  # out_of_memory
}
# Here an error means that nothing was committed, but for those in which the server, or the way to it, is failing.
POSTGRES_LOST_CLASSES = frozenset({"08", "57", "58", "F0", "XX"})

MARIADB_CODES: Mapping[str, Failure] = {
    "1062": Failure.DUPLICATE,  # ER_DUP_ENTRY
    "1586": Failure.DUPLICATE,  # ER_DUP_ENTRY_WITH_KEY_NAME
    "1048": Failure.NO_FLOOR,  # ER_BAD_NULL_ERROR: the floor gave no attempt
    "1020": Failure.TRANSIENT,  # ER_CHECKREAD: changed since it was read
    "1205": Failure.TRANSIENT,  # ER_LOCK_WAIT_TIMEOUT; the transaction lives on, so roll back
    "1213": Failure.TRANSIENT,  # ER_LOCK_DEADLOCK
    "1114": Failure.FULL,  # ER_RECORD_FILE_FULL
    "1044": Failure.REFUSED,  # ER_DBACCESS_DENIED_ERROR
    "1049": Failure.REFUSED,  # ER_BAD_DB_ERROR
    "1054": Failure.REFUSED,  # ER_BAD_FIELD_ERROR
    "1064": Failure.REFUSED,  # ER_PARSE_ERROR
    "1142": Failure.REFUSED,  # ER_TABLEACCESS_DENIED_ERROR
    "1143": Failure.REFUSED,  # ER_COLUMNACCESS_DENIED_ERROR
    "1146": Failure.REFUSED,  # ER_NO_SUCH_TABLE
    "1153": Failure.REFUSED,  # ER_NET_PACKET_TOO_LARGE
    "1227": Failure.REFUSED,  # ER_SPECIFIC_ACCESS_DENIED_ERROR
    "1290": Failure.REFUSED,  # ER_OPTION_PREVENTS_STATEMENT: read-only
    "1399": Failure.REFUSED,  # ER_XAER_RMFAIL: the session is in somebody's XA transaction
    "1406": Failure.REFUSED,  # ER_DATA_TOO_LONG
    "1568": Failure.REFUSED,  # ER_CANT_CHANGE_TX_CHARACTERISTICS: the session is in a transaction already
    "1665": Failure.REFUSED,  # ER_BINLOG_STMT_MODE_AND_ROW_ENGINE: binlog_format=STATEMENT
    "4025": Failure.REFUSED,  # ER_CONSTRAINT_FAILED
    "3819": Failure.REFUSED,  # ER_CHECK_CONSTRAINT_VIOLATED: the same on MySQL
    "1792": Failure.REFUSED,  # ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION
}

# SQLITE_IOERR, SQLITE_FULL and SQLITE_NOMEM are not here: a COMMIT that ends so may have written the frame that a
# later recovery of the write-ahead log takes for committed.
SQLITE_CODES: Mapping[str, Failure] = {
    "2067": Failure.DUPLICATE,  # SQLITE_CONSTRAINT_UNIQUE
    "1555": Failure.DUPLICATE,  # SQLITE_CONSTRAINT_PRIMARYKEY
    "1299": Failure.NO_FLOOR,  # SQLITE_CONSTRAINT_NOTNULL: the floor gave no attempt
    "1": Failure.REFUSED,  # SQLITE_ERROR: no such table, or a transaction within a transaction
    "3": Failure.REFUSED,  # SQLITE_PERM
    "5": Failure.TRANSIENT,  # SQLITE_BUSY; of a COMMIT too, which leaves the transaction open
    "6": Failure.TRANSIENT,  # SQLITE_LOCKED
    "8": Failure.REFUSED,  # SQLITE_READONLY
    "14": Failure.REFUSED,  # SQLITE_CANTOPEN
    "17": Failure.TRANSIENT,  # SQLITE_SCHEMA
    "18": Failure.REFUSED,  # SQLITE_TOOBIG
    "19": Failure.REFUSED,  # SQLITE_CONSTRAINT, of any other kind
    "26": Failure.REFUSED,  # SQLITE_NOTADB
}


# The columns that hold none but numbers: our tables there are STRICT. All others are text.
SQLITE_NUMBERS = frozenset(
    {
        "at", "begin_by", "begun_at", "branch", "calls", "changed_at", "created_at", "deadline", "decided_at", "done",
        "ended_at", "epoch", "held_until", "last_branch", "number", "point", "since", "total", "tries", "version",
    }
)  # fmt: skip


class Dialect:
    """What every database has in common, and the names of what each has in its own way."""

    kind: str
    prefix: str  # goes in front of each table
    database = ""  # whose tables they are, where that must be said
    begin_forced: str  # begins a transaction whose COMMIT is durable before it is answered
    begin_unforced: str  # the same where nothing is lost if it is lost
    commit_tag: str  # what the server answers to a COMMIT that committed
    share_lock: str  # locks what a SELECT returns against change
    row_lock: str  # locks what a SELECT returns for this transaction alone
    by_attempt = ""  # behind the table of decisions: goes by this index, however many are asked for
    by_undecided = ""  # behind that of names, likewise
    by_unfinished = ""  # behind that of calls, likewise
    is_open: str  # a condition: the COMMIT has not ended; served by an index
    open_key: str  # the attempt, under the name that this index is ordered by
    now: str  # the server's clock, in seconds since the epoch
    find_text: str  # find_text(where, what) > 0: the text occurs
    encoding_sql: str  # asks how the database stores text; "" where a column says so itself
    encoding: str  # the answer under which every text can be stored
    codes: Mapping[str, Failure]
    no_table: frozenset[str]  # the codes of a SELECT from a table that is not there

    def table(self, name: str) -> str:
        """The qualified name of one of our tables."""
        return f"{self.prefix}{name}"

    def key(self, text: str) -> str:
        """A literal for a column that is compared byte by byte."""
        return self.text(text)

    def reading(self, column: str, name: str) -> str:
        """A column in a SELECT, as `rows` reads it."""
        return column

    def raw(self, text: str) -> str:
        """A literal for a key as it stood in a row: what is a lone surrogate in it was a byte that is no text."""
        return self.key(text)

    def no_attempt(self, column: str) -> str:
        """A condition: what stands there, if anything does, is no attempt's id."""
        raise NotImplementedError

    def text(self, text: str) -> str:
        """A literal for any text: as it stands, or from its hexadecimal digits. U+0000, which PostgreSQL can't store,
        is replaced.
        """
        raise NotImplementedError

    @property
    def nothing(self) -> str:
        """The empty text. Never as two quotes: under a sql_mode of MariaDB's those are NULL, which equals nothing."""
        return self.text("")

    def free_text(self, text: str) -> str:
        """A literal for what people and programs say: cut to size rather than refused."""
        return self.text(text[:TEXT_LENGTH_MAX])

    def attempt(self, attempt: str) -> str:
        """A literal for an attempt id. The check is what keeps anything else out of our statements."""
        if not is_attempt(attempt):
            raise UsageError(f"not an attempt id: {attempt!r}")
        return f"'{attempt}'"

    def attempts(self, attempts: Sequence[str]) -> str:
        """The list in `IN (…)`, in order: rows that several transactions lock are locked in one order."""
        return ", ".join(self.attempt(one) for one in sorted(set(attempts)))

    def seconds(self, seconds: float) -> str:
        """A literal for a time."""
        if not math.isfinite(seconds):
            raise UsageError(f"not a time: {seconds!r}")
        text = repr(float(seconds))
        return text if "e" in text else f"{text}e0"  # with an exponent it is a double, not a decimal, everywhere

    def upsert(self, table: str, keys: Sequence[str], row: Mapping[str, str], changes: Mapping[str, str]) -> str:
        """Insert the row, or change the one that stands; expressions over `new` and `old`. Never for a decision."""
        return (
            f"INSERT INTO {self.table(table)} AS standing ({', '.join(row)}) VALUES ({', '.join(row.values())}) "
            f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {_assignments(changes)}"
        )

    def new(self, column: str) -> str:
        """In `changes`: what was to be inserted."""
        return f"excluded.{column}"

    def old(self, column: str) -> str:
        """In `changes`: what stands."""
        return f"standing.{column}"

    def failure(self, code: str) -> Failure:
        """What an error code means."""
        return self.codes.get(code, Failure.LOST)

    def hold_floor(self) -> tuple[str, ...]:
        """What must run before `read_floor` so that the floor stays where it is until the transaction ends."""
        return ()

    def read_floor(self, select: str) -> str:
        """The SELECT from the floor's row, as an expression that holds it, or finds it held."""
        return f"({select}{self.share_lock})"

    def lock_floor(self) -> tuple[str, ...]:
        """Waits until nobody holds the floor, not for long, and then keeps everybody from it.

        Those who come meanwhile wait behind it. So it must be fair: under load there is always somebody who holds the
        floor; and short: one COMMIT that hangs must not hold up all the others.
        """
        return (f"SELECT value FROM {self.table('journal')} WHERE item = {self.key('floor')}",)


def _assignments(changes: Mapping[str, str]) -> str:
    return ", ".join(f"{column} = {value}" for column, value in changes.items())


def _hex(text: str) -> str:
    # A lone surrogate comes from a program's broken output; names that hold one were refused long before.
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").hex()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


class PostgresDialect(Dialect):
    """PostgreSQL: tables in the schema `nodoubt`."""

    kind = "postgres"
    prefix = "nodoubt."
    # Explicit in every transaction, since a role or a database may have set less; never weaker than what the server
    # asks of itself. READ COMMITTED, so that a statement sees what was committed while it waited for a lock.
    begin_forced = (
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;\n"
        "SELECT pg_catalog.set_config('synchronous_commit', CASE pg_catalog.current_setting('synchronous_commit')"
        " WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)"
    )
    begin_unforced = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;\nSET LOCAL synchronous_commit = off"
    commit_tag = "COMMIT"
    share_lock = " FOR SHARE"
    row_lock = " FOR UPDATE"
    is_open = "verdict = 'commit' AND ended_at IS NULL"
    open_key = "attempt"
    # As a double, which PostgreSQL 14 no longer makes it: an operator on two types that are not the very same may be
    # anybody's, in a schema of the search_path, and would run with the rights of whoever decides.
    now = "extract(epoch FROM pg_catalog.clock_timestamp())::float8"
    find_text = "pg_catalog.strpos"
    encoding_sql = "SELECT pg_catalog.getdatabaseencoding()"
    encoding = "UTF8"
    codes = POSTGRES_CODES
    no_table = frozenset({"42P01", "3F000"})

    def no_attempt(self, column: str) -> str:
        digits = f"pg_catalog.translate({column}, '0123456789abcdef', '')"
        return f"(pg_catalog.length({column}) <> 32 OR {digits} <> '')"

    def text(self, text: str) -> str:
        return kept.literal(text)

    def seconds(self, seconds: float) -> str:
        return f"{super().seconds(seconds)}::float8"

    def hold_floor(self) -> tuple[str, ...]:
        # Not the row, in which each commit would leave the list of all who share it: under 64 clients a few hours of
        # that make the server vacuum every table there is (multixact members), and whoever waits to change the row
        # is passed by newcomers. A table's lock is written nowhere, and its waiters queue.
        return (f"LOCK TABLE {self.table('journal')} IN ROW SHARE MODE",)

    def read_floor(self, select: str) -> str:
        # With the table held, a fresh snapshot shows the floor of now. One that is older than the lock does not: there
        # the row is locked, which fails if it has changed since (40001).
        fresh = "pg_catalog.current_setting('transaction_isolation') IN ('read committed', 'read uncommitted')"
        return f"(CASE WHEN {fresh} THEN ({select}) ELSE ({select}{self.share_lock}) END)"

    def lock_floor(self) -> tuple[str, ...]:
        bound = f"SET LOCAL lock_timeout = '{FLOOR_WAIT_S}s'"
        return bound, f"LOCK TABLE {self.table('journal')} IN EXCLUSIVE MODE"

    def failure(self, code: str) -> Failure:
        default = Failure.LOST if code[:2] in POSTGRES_LOST_CLASSES else Failure.REFUSED
        return self.codes.get(code, default)


NO_DIGIT = f"CONVERT(x'{_hex('[^0-9a-f]')}' USING latin1)"


class MariaDBDialect(Dialect):
    """MariaDB and MySQL: tables in the journal's own database, whichever database the session is in."""

    kind = "mariadb"
    # READ COMMITTED, here too for fresh statements, and because REPEATABLE READ locks the gaps of what is not found:
    # asking for an attempt without a decision would stop every insert behind it. For the next transaction only.
    begin_forced = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE;\nSTART TRANSACTION"
    begin_unforced = begin_forced  # what is flushed at a commit is the server's setting, not the transaction's
    commit_tag = ""
    share_lock = " LOCK IN SHARE MODE"
    row_lock = " FOR UPDATE"
    # MariaDB walks the whole table, and locks it, for a fifth of its rows; and beyond 200 values it only guesses.
    by_attempt = " FORCE INDEX (PRIMARY)"
    by_undecided = " FORCE INDEX (nodoubt_names_undecided)"
    by_unfinished = " FORCE INDEX (nodoubt_calls_unfinished)"
    is_open = "open_commit IS NOT NULL"
    open_key = "open_commit"
    now = "(UNIX_TIMESTAMP(NOW(6)) + 0e0)"
    find_text = "INSTR"
    encoding_sql = ""
    encoding = ""
    codes = MARIADB_CODES
    no_table = frozenset({"1049", "1146"})

    def __init__(self, database: str) -> None:
        name = database.replace("`", "``")
        self.database = database
        self.prefix = f"`{name}`.nodoubt_"

    def text(self, text: str) -> str:
        # Never as it stands: a session's character set and sql_mode, which are the user's, would have a say in it.
        return f"CONVERT(x'{_hex(text)}' USING utf8mb4)"

    def key(self, text: str) -> str:
        return f"x'{_hex(text)}'"

    def no_attempt(self, column: str) -> str:
        # As a text: MySQL refuses a regular expression on bytes. In a character set in which any bytes are one. Nor is
        # the pattern written as it stands: in a session's character set its brackets may be letters.
        text = f"CONVERT({column} USING latin1) COLLATE latin1_bin"
        return f"(LENGTH({column}) <> 32 OR {text} REGEXP {NO_DIGIT})"

    def raw(self, text: str) -> str:
        return f"x'{_bytes(text).hex()}'"

    def upsert(self, table: str, keys: Sequence[str], row: Mapping[str, str], changes: Mapping[str, str]) -> str:
        # Assignments run from left to right here, and a later one sees what an earlier one has set.
        return (
            f"INSERT INTO {self.table(table)} ({', '.join(row)}) VALUES ({', '.join(row.values())}) "
            f"ON DUPLICATE KEY UPDATE {_assignments(changes)}"
        )

    def new(self, column: str) -> str:
        return f"VALUES({column})"

    def old(self, column: str) -> str:
        return column

    def lock_floor(self) -> tuple[str, ...]:
        # Row locks queue here. The comment is MariaDB's alone: MySQL can't be told how long to wait in a statement.
        return (f"{super().lock_floor()[0]} FOR UPDATE /*M! WAIT {FLOOR_WAIT_S} */",)


class SqliteDialect(Dialect):
    """SQLite: tables in the session's main file."""

    kind = "sqlite"
    prefix = "main.nodoubt_"
    # The pragma says FULL in WAL, and in the other modes syncs the directory as well, without which a power cut
    # brings the journal file back and undoes the commit. Inside a transaction it fails: we are not in somebody's.
    begin_forced = "PRAGMA main.synchronous = EXTRA;\nBEGIN IMMEDIATE"
    begin_unforced = begin_forced
    commit_tag = "COMMIT"  # by the driver: no transaction is open any more
    share_lock = ""  # one writer at a time: nothing changes between BEGIN IMMEDIATE and COMMIT but by us
    row_lock = ""
    is_open = "verdict = 'commit' AND ended_at IS NULL"
    open_key = "attempt"
    now = "((julianday('now') - 2440587.5) * 86400.0)"
    find_text = "instr"
    encoding_sql = "PRAGMA main.encoding"
    encoding = "UTF-8"
    codes = SQLITE_CODES
    no_table = frozenset({"1"})

    def reading(self, column: str, name: str) -> str:
        # As bytes: a text need not be UTF-8 here, and the driver fails at one that is not.
        return column if name in SQLITE_NUMBERS else f"CAST({column} AS BLOB)"

    def no_attempt(self, column: str) -> str:
        # Of its bytes, too: what counts characters, or compares them with a pattern, ends at a NUL.
        length = f"length({column}) <> 32 OR length(CAST({column} AS BLOB)) <> 32"
        return f"(typeof({column}) <> 'text' OR {length} OR {column} GLOB '*[^0-9a-f]*')"

    def raw(self, text: str) -> str:
        return f"'{text}'" if kept.plain(text) else f"CAST(x'{_bytes(text).hex()}' AS TEXT)"

    def text(self, text: str) -> str:
        return f"'{text}'" if kept.plain(text) else f"CAST(x'{_hex(text)}' AS TEXT)"

    def failure(self, code: str) -> Failure:
        if code in self.codes:
            return self.codes[code]
        primary = str(int(code) & 0xFF) if code.isdigit() else code
        return self.codes.get(primary, Failure.LOST)
