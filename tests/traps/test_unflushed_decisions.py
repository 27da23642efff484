"""A journal's server that crashes after it has shown a decision and before it has flushed it, while a
recoverer has read it.

The decision is committed with `synchronous_commit=off`, by hand, and the WAL writer is stopped, so that nothing
flushes it but what we do. A recoverer that knows only one of the two branches carries it out there; then the server
is killed. If the recoverer had acted on what it saw, the other branch would be aborted now. The register's own half,
on MariaDB too, is in `tests/journals/test_durability.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kit import QUICK, Database, stop_walwriter
from nodoubt import Coordinator, OutcomeConflict, State
from nodoubt.engine.context import using
from nodoubt.journals.sql import SqlJournal
from nodoubt.ports import Session
from nodoubt.protocol.records import Decision, Mode, Standing, Unreadable, Verdict
from nodoubt.script import Script
from nodoubt.testing.servers import PostgresServer
from traps.scenes import MOVED, at_rest, balances, context, databases


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer({"checkpoint_timeout": "1h"}) as one:
        yield one


class LooksOnly(SqlJournal):
    """The mutant: acts on a plain read."""

    def confirm(self, session: Session, attempts: Sequence[str]) -> Script[dict[str, Standing | Unreadable]]:
        return self.look(session, attempts)


def coordinator(some: list[Database], journal: str) -> Coordinator:
    return Coordinator({d.name: d.url for d in some}, journal=journal, settings=QUICK, recovery=False)


def stage(db: Coordinator) -> str:
    """Move 30 from a to b, due at once."""
    with db.begin_distributed("order", deadline=0.001) as tx:
        tx["a"].execute("update accounts set balance = balance - 30 where id = 0")
        tx["b"].execute("update accounts set balance = balance + 30 where id = 0")
    return tx.attempt


def show_unflushed(db: Coordinator, attempt: str, url: str) -> None:
    """COMMIT, visible to everybody, known to no disk."""
    ctx = context(db)
    journal: Any = ctx.journal
    staging = db._shell.run(using(ctx.journal_pool, lambda session: journal.find(session, "order")))
    row = Decision(attempt, Verdict.COMMIT, Mode.STAGED, "order", staging.branches)
    stop_walwriter(url)
    with psycopg.connect(url, autocommit=True) as raw:
        raw.execute("set synchronous_commit = off")
        with raw.transaction():
            for statement in journal.decision_rows(row):
                raw.execute(statement)


def crash_after_one_branch(server: PostgresServer, pair: list[Database], url: str, journal: Any) -> str:
    """The recoverer knows b only; it commits that branch, and the journal's server is killed."""
    with coordinator(pair, url) as db, coordinator(pair[1:], url) as recoverer:
        if journal is not None:
            context(recoverer).journal = journal(context(recoverer).journal.dialect)  # type: ignore[attr-defined]
        attempt = stage(db)
        show_unflushed(db, attempt, url)
        report = recoverer.recover(grace=0)
        assert report.committed == 1 and balances(pair) == [100, 130]
        server.kill()
    server.restart()
    return attempt


def test_what_a_recoverer_has_acted_on_survives_the_crash(server: PostgresServer, request: Any, tmp_path: Path) -> None:
    pair, url = databases("sqlite+sqlite", request, tmp_path), server.url()
    with coordinator(pair, url) as db:
        db.setup()
    crash_after_one_branch(server, pair, url, None)
    with coordinator(pair, url) as db:
        assert db.recover(grace=0).clean and db.recover(grace=0).clean
        assert db.commit_distributed("order").state is State.COMMITTED
        assert db.quarantined() == []
    assert balances(pair) == MOVED and at_rest(pair)


def test_a_recoverer_that_acts_on_a_plain_look_commits_half(
    server: PostgresServer, request: Any, tmp_path: Path
) -> None:
    """The mutant: the row is gone with the crash, the transaction is due, and its other branch is aborted."""
    pair, url = databases("sqlite+sqlite", request, tmp_path), server.url()
    with coordinator(pair, url) as db:
        db.setup()
    crash_after_one_branch(server, pair, url, LooksOnly)
    with coordinator(pair, url) as db:
        assert db.status("order").state is State.PREPARED, "the decision is gone"
        assert db.recover(grace=0).reaped == 1
        assert balances(pair) == [100, 130], "the mutant is not caught"
        with pytest.raises(OutcomeConflict):
            db.commit_distributed("order")
