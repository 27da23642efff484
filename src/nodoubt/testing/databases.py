"""Throw-away databases by kind: a SQLite file, or a fresh database on a server that this process shares.

    with throw_away({"shop": "sqlite", "stock": "postgres"}, "sqlite") as at:
        Coordinator(at.resources, journal=at.journal)

Guarantees: a server is started when somebody first asks for its kind, and ends with this process; a database is gone
when its block ends, with whatever was left prepared in it. A URL is taken as it is, and nothing of it is removed.

Must not: import a driver before SQL is to be run.
"""

from __future__ import annotations

import atexit
import secrets
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from ..ports import StatementFailed
from .servers import MariaDBServer, PostgresServer, Server, ServerError

_SERVERS: Mapping[str, type[Server]] = {
    "postgres": PostgresServer,
    "postgresql": PostgresServer,
    "mariadb": MariaDBServer,
}
KINDS = ("sqlite", *_SERVERS)

_started: dict[type[Server], Server] = {}
_lock = threading.Lock()


def shared_server(kind: str) -> Server:
    """This process's server of a kind, `postgres` or `mariadb`, running. Raises `ServerNotInstalled`."""
    which = _SERVERS[kind]
    with _lock:
        if which not in _started:
            _started[which] = which()
            atexit.register(_started[which].stop)
        server = _started[which].start()  # also again: somebody may have killed it
        server.thaw()
        return server


@dataclass(frozen=True, slots=True)
class Places:
    """URLs by resource's name, and what to give as `journal=`."""

    resources: dict[str, str]
    journal: str | None


@contextmanager
def throw_away(resources: Mapping[str, str], journal: str | None = None) -> Iterator[Places]:
    """Fresh databases for those that are given as a kind. `journal`: a resource's name, a kind, or a URL."""
    require_places(resources, journal)
    with ExitStack() as stack:
        made = {name: stack.enter_context(fresh(given)) for name, given in resources.items()}
        if journal is not None and journal not in resources:
            journal = stack.enter_context(fresh(journal))
        yield Places(made, journal)


def require_places(resources: Mapping[str, str], journal: str | None) -> None:
    """Raise `UsageError` for what is neither a kind nor a URL."""
    given = {f"the resource {name!r}": one for name, one in resources.items()}
    if journal is not None and journal not in resources:
        given["the journal"] = journal
    for what, one in given.items():
        if one not in KINDS and "://" not in one:
            raise UsageError(f"{what} is a kind of throw-away database ({', '.join(KINDS)}) or a URL, not {one!r}")


def run_sql(url: str, statements: str) -> None:
    """Run SQL on a database past any transaction of nodoubt's, to make its tables. Raises `UsageError` if it fails."""
    from .. import wiring

    with wiring.onlooker(url, None) as (ctx, _):
        pool = ctx.participants[wiring.ONLY].pool
        session = pool.acquire()
        try:
            session.run(statements)
        except StatementFailed as error:
            raise UsageError(f"the SQL is refused: {error}") from error
        finally:
            pool.release(session)


@contextmanager
def fresh(given: str) -> Iterator[str]:
    """The URL of a fresh database of that kind; a URL is given back as it is."""
    if "://" in given:
        yield given
        return
    if given not in KINDS:
        raise UsageError(f"a kind of throw-away database is one of {', '.join(KINDS)}, not {given!r}")
    if given == "sqlite":
        with tempfile.TemporaryDirectory(prefix="nodoubt-") as folder:
            yield f"sqlite:///{Path(folder).resolve()}/{secrets.token_hex(4)}.db"
    else:
        server = shared_server(given)
        name = f"t_{secrets.token_hex(8)}"
        try:
            yield server.url(name)
        finally:
            # What cannot be dropped, the server's end takes along.
            with suppress(ServerError):
                shared_server(given).drop(name)
