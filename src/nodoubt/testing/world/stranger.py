"""A stranger with a session of his own: he commits or rolls back by hand what is prepared, whatever was decided (I17).

Must not: do more than any account with the right to it can do on a real server.
"""

from __future__ import annotations

from typing import Any

from ...errors import NoDoubtError
from ...ports import StatementFailed
from ...resources.memory.server import Locked, MemoryServer, Promise
from ...xid import Xid, parse_gid


def ended_by_hand(server: MemoryServer, cluster: str, *, commit: bool) -> Xid | None:
    """End the oldest branch of this cluster on that server; None where he cannot, or where there is none."""
    prepared = server.tables.prepared
    ours = {gid: xid for gid in prepared if (xid := parse_gid(gid)) is not None and xid.cluster == cluster}
    if not ours or server.full:
        return None
    gid = min(ours, key=lambda one: (prepared[one].at, one))
    connection = server.connect()
    try:
        for statement in _statements(server, ours[gid], prepared[gid], commit=commit):
            for wait in server.handle(connection, "send", (statement,)):
                if isinstance(wait, Locked):
                    return None
    except (StatementFailed, NoDoubtError):
        return None
    finally:
        server.disconnect(connection)
    return ours[gid]


def _statements(server: MemoryServer, xid: Xid, promise: Promise, *, commit: bool) -> list[tuple[Any, ...]]:
    verb = "commit" if commit else "rollback"
    if server.kind == "mariadb":
        held = [] if promise.holder is None else [("kill", promise.holder)]
        return [*held, (f"xa_{verb}", promise.handle)]
    if server.kind == "sqlite":
        return [(f"{verb}_prepared", xid, ())[: 3 if commit else 2]]
    return [(f"{verb}_prepared", xid.gid)]
