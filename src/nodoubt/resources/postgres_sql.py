"""What PostgreSQL is told where a branch ends: texts, and no I/O.

Guarantees: no search path can put something else in the place of what they name; values are literals that need no
quoting rules.

Must not: hold a user's statement; those are in `postgres_statements`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..kept import Kept
from ..ports import Session, Work
from ..protocol.records import Verdict
from ..xid import Xid
from .postgres_answers import PROOF_TEXT

LOCK_TIMEOUT_MS = 1000  # how long recovery waits for a branch that is still under way
FORGET_ROWS_MAX = 10_000


FORCED_LEVEL = (
    "CASE pg_catalog.current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END"
)
# For the session, not for the transaction: a COMMIT PREPARED stands outside any transaction.
FORCED = f"SELECT pg_catalog.set_config('synchronous_commit', {FORCED_LEVEL}, false)"
PROOF = Kept(
    "proof",
    1,
    lambda marked: (
        f"{FORCED}, (CASE WHEN pg_catalog.current_setting('nodoubt.attempt', true) = {marked} "
        f"THEN '1' ELSE '{PROOF_TEXT}' END)::pg_catalog.int4"
    ),
)
RECEIPT = Kept(
    "receipt",
    5,
    lambda attempt, branch, verdict, epoch, alone: (
        "INSERT INTO nodoubt.receipts "
        f"(attempt, branch, verdict, epoch, alone) VALUES ({attempt}, {branch}, {verdict}, {epoch}, {alone})"
    ),
)
UNFORCED = Kept(
    "unforced",
    1,
    lambda process: (
        "SELECT pg_catalog.set_config('synchronous_commit', CASE pg_catalog.pg_backend_pid() "
        f"WHEN {process} THEN 'off' ELSE {FORCED_LEVEL} END, true)"
    ),
)
# The function, not the view over it: that joins two catalogues, and is planned for longer than it runs.
_PREPARED = (
    "SELECT gid, extract(epoch FROM pg_catalog.clock_timestamp() - prepared)::float8 "
    "FROM pg_catalog.pg_prepared_xact() AS p WHERE dbid = "
    "(SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) AND "
)
LISTED = (
    "EXISTS (SELECT FROM pg_catalog.pg_prepared_xact() AS p WHERE p.gid = "
    "'nd1.{cluster}.' || {attempt} || '.' || {branch}::text AND p.dbid = "
    "(SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()))"
)
PREPARED = f"{_PREPARED} gid LIKE 'nd1.%' ORDER BY prepared"
IS_PREPARED = Kept("is_prepared", 1, lambda gid: f"{_PREPARED} gid = {gid}")
BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
WAIT_BRIEFLY = f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_MS}ms'"

# Writes without a transaction id can hide in foreign tables and in functions that notify. A function is taken to be
# able to if it says so, builds statements as text, or is written in a language we can't read; one in C is not.
WROTE = """SELECT pg_catalog.txid_current_if_assigned() IS NOT NULL
 OR EXISTS (SELECT FROM pg_catalog.pg_foreign_data_wrapper)
 OR EXISTS (SELECT FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang
  WHERE p.oid >= 16384::oid
  AND p.prorettype NOT IN ('trigger'::pg_catalog.regtype::oid, 'event_trigger'::pg_catalog.regtype::oid)
  AND (l.lanname = 'internal' AND p.prosrc = 'pg_notify'
   OR l.lanname IN ('sql', 'plpgsql')
    AND CASE p.prosrc WHEN '' THEN pg_catalog.pg_get_functiondef(p.oid) ELSE p.prosrc END
     ~* 'notify|execute|advisory|dblink'
   OR l.lanname NOT IN ('internal', 'c', 'sql', 'plpgsql')))"""


def receipt_row(xid: Xid, verdict: Verdict, *, epoch: int, alone: bool) -> str:
    """A plain INSERT: never ON CONFLICT, which would commit the work against a fence that stands."""
    return RECEIPT(f"'{xid.attempt}'", str(xid.branch), f"'{verdict.value}'", str(int(epoch)), str(alone).lower())


def those_receipts(xids: Sequence[Xid]) -> Iterator[str]:
    """Deletes them, by the number of the branch: a list of pairs is planned pair by pair, for longer than it runs."""
    attempts: dict[int, list[str]] = {}
    for xid in xids:
        attempts.setdefault(xid.branch, []).append(f"'{xid.attempt}'")
    for branch, some in attempts.items():
        yield f"DELETE FROM nodoubt.receipts WHERE branch = {branch} AND attempt IN ({', '.join(some)})"


def some_receipts(where: str) -> str:
    """Deletes a batch of them, and waits for nobody."""
    return (
        "DELETE FROM nodoubt.receipts WHERE ctid = ANY (ARRAY(SELECT ctid FROM nodoubt.receipts "
        f"WHERE {where} LIMIT {FORGET_ROWS_MAX} FOR UPDATE SKIP LOCKED))"
    )


def unforced(session: Session, rows: Sequence[str]) -> list[str]:
    """A transaction that commits the rows without a flush, for a command of the same server session to flush them.

    Behind a pooler the next message may go to another session, whose flush survives a crash that these rows don't:
    there they are forced.
    """
    return [BEGIN, UNFORCED(str(int(session.connection_id))), *rows, "COMMIT"]


def mark(work: Work) -> str:
    return f"{work.xid.attempt}.{work.xid.branch}"
