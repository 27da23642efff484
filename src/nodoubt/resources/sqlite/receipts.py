"""Receipts, the file's identity, and our tables: short transactions of our own, each begun and committed here.

Guarantees: what is answered was flushed by this very transaction (PROTOCOL, "Nobody acts on a plain read").
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ...errors import SchemaMismatch
from ...ports import Conflict, Identity, StatementFailed, Unclear
from ...protocol.records import Epoch, Verdict
from ...xid import Xid, first_attempt_of
from .face import Connection
from .failures import commit, lock, refusal, undo

FORGET_MAX = 1000  # receipts deleted by age in one transaction

_CONFIRM = """
    UPDATE main.nodoubt_receipts SET confirms = confirms + 1 WHERE attempt = ? AND branch = ? RETURNING verdict"""


@contextmanager
def _forced(connection: Connection, what: str) -> Iterator[None]:
    """A write transaction: committed as the block ends, rolled back if it raises."""
    lock(connection, what)
    try:
        yield
        commit(connection, what)
    except StatementFailed as error:
        undo(connection)
        raise refusal(error, what) from error
    except BaseException:
        undo(connection)
        raise


# ---- receipts -------------------------------------------------------------------------------------


def write_receipt(connection: Connection, xid: Xid, epoch: int, *, alone: bool) -> None:
    """In the transaction that is open. A plain INSERT: where a fence stands, it fails and takes the branch with it."""
    try:
        connection.query(
            "INSERT INTO main.nodoubt_receipts (attempt, branch, verdict, epoch, alone, at) "
            "VALUES (?, ?, 'commit', ?, ?, unixepoch('subsec'))",
            (xid.attempt, xid.branch, epoch, int(alone)),
        )
    except StatementFailed as error:
        raise refusal(error, f"receipt of {xid.gid}") from error


def refuse_fenced(connection: Connection, xid: Xid) -> None:
    """In the transaction that prepares. The receipt comes with phase two, where a fence would stop a decided commit for
    ever; and once the branch is prepared, nobody fences it.
    """
    if connection.query(
        "SELECT 1 FROM main.nodoubt_receipts WHERE (attempt, branch) = (?, ?)", (xid.attempt, xid.branch)
    ):
        raise Conflict(f"{xid.gid} has been settled meanwhile: it can only be rolled back")


def receipt(connection: Connection, xid: Xid) -> bool:
    """Whether the branch committed, confirmed by a forced UPDATE of the receipt itself."""
    what = f"receipt of {xid.gid}"
    lock(connection, what)
    try:
        rows = connection.query(_CONFIRM, (xid.attempt, xid.branch))
        if not rows:
            undo(connection)  # nothing was found, so there is nothing to flush
            return False
        commit(connection, what)
    except StatementFailed as error:
        undo(connection)
        raise refusal(error, what) from error
    except BaseException:
        undo(connection)
        raise
    return bool(rows[0][0] == Verdict.COMMIT)


def fence(connection: Connection, xid: Xid) -> Verdict:
    """Settle a one-phase commit: our ABORT marker stands, or what stood there before us does."""
    with _forced(connection, f"fence of {xid.gid}"):
        if connection.query("SELECT 1 FROM main.nodoubt_prepared WHERE xid = ?", (xid.gid,)):
            raise Unclear(f"{xid.gid} is prepared: its decision settles it, not a fence")
        try:
            connection.query(
                "INSERT INTO main.nodoubt_receipts (attempt, branch, verdict, epoch, alone, at) "
                "SELECT ?, ?, 'abort', (SELECT epoch FROM main.nodoubt_identity), 1, unixepoch('subsec')",
                (xid.attempt, xid.branch),
            )
            return Verdict.ABORT
        except StatementFailed as error:
            if not isinstance(refusal(error, ""), Conflict):
                raise
        return Verdict(connection.query(_CONFIRM, (xid.attempt, xid.branch))[0][0])


def forget(connection: Connection, xids: Sequence[Xid], older_than: float | None, below: str) -> int:
    """Delete these receipts, and at most FORGET_MAX each of one-phase ones from before `older_than`, and of two-phase
    ones `below` the floor.
    """
    with _forced(connection, "clean-up of receipts"):
        before = connection.total_changes()
        connection.many(
            "DELETE FROM main.nodoubt_receipts WHERE attempt = ? AND branch = ?", [(x.attempt, x.branch) for x in xids]
        )
        if older_than is not None:
            connection.query(
                "DELETE FROM main.nodoubt_receipts WHERE (attempt, branch) IN (SELECT attempt, branch "
                "FROM main.nodoubt_receipts WHERE alone = 1 AND at < ? AND attempt < ? LIMIT ?)",
                (older_than, first_attempt_of(older_than), FORGET_MAX),
            )
        if below:
            connection.query(
                "DELETE FROM main.nodoubt_receipts WHERE (attempt, branch) IN (SELECT attempt, branch "
                "FROM main.nodoubt_receipts WHERE alone = 0 AND attempt < ? LIMIT ?)",
                (below, FORGET_MAX),
            )
        return connection.total_changes() - before


# ---- identity -------------------------------------------------------------------------------------


def setup(connection: Connection, resource_id: str, cluster: str) -> None:
    """The identity is stored once: what stands is kept."""
    with _forced(connection, "setup"):
        connection.query(
            "INSERT INTO main.nodoubt_identity (one, resource_id, cluster, server, epoch, mark) "
            "SELECT 1, ?, ?, ?, 0, '' WHERE NOT EXISTS (SELECT 1 FROM main.nodoubt_identity)",
            (resource_id, cluster, server(connection)),
        )


def identity(connection: Connection) -> Identity | None:
    """What is stored; the epoch is the highest that identity, receipts or prepared branches have seen."""
    rows = connection.query(
        "SELECT resource_id, cluster, server, max(epoch, (SELECT coalesce(max(epoch), 0) FROM main.nodoubt_receipts), "
        "(SELECT coalesce(max(epoch), 0) FROM main.nodoubt_prepared)), mark FROM main.nodoubt_identity"
    )
    return Identity(*rows[0]) if rows else None


def witness(connection: Connection, epoch: Epoch) -> None:
    """Never lowers it."""
    with _forced(connection, "witness of an epoch"):
        change = "UPDATE main.nodoubt_identity SET epoch = max(epoch, ?1), mark = iif(epoch < ?1, ?2, mark) RETURNING 1"
        if not connection.query(change, (epoch.number, epoch.mark)):
            raise SchemaMismatch(f"{connection.path} has no identity; create it with setup()")


def adopt(connection: Connection, new: Identity) -> None:
    """Overwrite the identity: a human takes responsibility.

    What has witnessed a later epoch is set back with it, or `identity` would show that one for ever.
    """
    with _forced(connection, "adoption"):
        for table in ("nodoubt_receipts", "nodoubt_prepared"):
            connection.query(f"UPDATE main.{table} SET epoch = ? WHERE epoch > ?", (new.epoch, new.epoch))
        connection.query(
            "INSERT OR REPLACE INTO main.nodoubt_identity (one, resource_id, cluster, server, epoch, mark) "
            "VALUES (1, ?, ?, ?, ?, ?)",
            (new.resource_id, new.cluster, new.server, new.epoch, new.mark),
        )


def leave(connection: Connection) -> None:
    """It takes part no more."""
    with _forced(connection, "leave"):
        connection.query("DELETE FROM main.nodoubt_identity")


def server(connection: Connection) -> str:
    """What tells this file from a copy of it. Not st_dev, which may be another after a reboot."""
    return f"inode:{os.stat(connection.path).st_ino}"
