"""The rules of registration and lineage. Each test is followed by the same scene without its rule.

Epochs, and the databases that were set back: `tests/traps/test_lineage.py`. What each server is refused for:
`tests/postgres/test_postgres_registration.py`, `tests/mariadb/test_mariadb_registration.py`,
`tests/sqlite/test_sqlite_branches.py`.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from kit import Database
from nodoubt import LineageBroken, ResourceRefused
from nodoubt.engine import start
from nodoubt.engine.context import Context
from nodoubt.resources.sqlite import SqliteResource
from nodoubt.script import Script
from nodoubt.xid import new_cluster
from rules.mutants import COMMITTED, at_once, context, coordinator, journal_says, out_of_reach, staged
from traps.scenes import MOVED, UNTOUCHED, balances, databases

REFUSED = "refused"


# ---- setup mints the cluster id inside the journal, and every xid carries it ----------------------


def recovered_after_a_second_setup(request: Any, tmp_path: Path) -> list[int]:
    """A branch is prepared, and decided, when somebody runs setup again."""
    pair = databases("sqlite+sqlite", request, tmp_path)
    with coordinator(pair) as db:
        db.setup()
        with out_of_reach("b"):
            assert at_once(db) == COMMITTED
    try:
        with coordinator(pair) as db:
            db.setup()
            db.recover(grace=0)
            db.recover(grace=0)
    except LineageBroken:
        return balances(pair)
    return balances(pair)


def test_setup_mints_the_cluster_id_once_and_every_xid_carries_it(request: Any, tmp_path: Path) -> None:
    assert recovered_after_a_second_setup(request, tmp_path) == MOVED


def test_a_cluster_id_that_each_setup_makes_anew_loses_sight_of_what_is_prepared(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = start.setup

    def setup(ctx: Context) -> Script[None]:
        yield from sound(ctx)
        table, key = ctx.journal.dialect.table("journal"), ctx.journal.dialect.key  # type: ignore[attr-defined]
        new = f"UPDATE {table} SET value = {key(new_cluster())} WHERE item = {key('cluster')}"
        yield from start.asked(ctx, ctx.journal_pool, lambda session: ctx.journal._write(session, new))  # type: ignore[attr-defined]

    monkeypatch.setattr(start, "setup", setup)
    monkeypatch.setattr(start, "_require_same_journal", lambda *_: None)
    assert recovered_after_a_second_setup(request, tmp_path) == [70, 100]


# ---- one register per resource, ever --------------------------------------------------------------


def recovered_with_another_journal(request: Any, tmp_path: Path) -> str | list[int]:
    """`journal=` was changed while a decided branch was left to recovery."""
    pair = databases("sqlite+sqlite", request, tmp_path)
    one, other = (f"sqlite:///{tmp_path}/{name}.db" for name in ("one", "other"))
    with coordinator(pair, one) as db:
        db.setup()
        with out_of_reach("b"):
            assert at_once(db) == COMMITTED
    try:
        with coordinator(pair, other) as db:
            db.setup()
            assert db.recover(grace=0).clean
            assert db.recover(grace=0).clean, "and says that all is well"
    except LineageBroken:
        return REFUSED
    return balances(pair)


def test_another_journal_is_refused_one_register_per_resource_ever(request: Any, tmp_path: Path) -> None:
    assert recovered_with_another_journal(request, tmp_path) == REFUSED


def test_with_another_journal_a_committed_branch_is_never_found(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its epochs would give it away as well: both lines are out."""
    monkeypatch.setattr(start, "_require_same_journal", lambda *_: None)
    monkeypatch.setattr(start, "_with_lineage", lambda *given: given[-1]())
    assert recovered_with_another_journal(request, tmp_path) == [70, 100]


# ---- a clone with the same ids is refused ---------------------------------------------------------


class NamelessServer(SqliteResource):
    """The mutant: it can't tell a file from its copy."""

    def server(self, session: Any) -> Script[str]:
        return ""
        yield


def committed_in_a_clone(resource: type[SqliteResource], request: Any, tmp_path: Path) -> str | list[int]:
    """Staged, copied with all its ids, and committed by a coordinator that was pointed at the copy."""
    pair = databases("sqlite+sqlite", request, tmp_path)
    with coordinator(pair) as db:
        db.setup()
        staged(db)
    shutil.copy(pair[1].url.removeprefix("sqlite:///"), tmp_path / "clone.db")
    clone = [pair[0], Database("b", f"sqlite:///{tmp_path}/clone.db")]
    db = coordinator(clone)
    context(db).participants["b"].resource = resource("b")
    try:
        with db:
            assert db.commit_distributed("pay").complete
    except LineageBroken:
        return REFUSED
    with contextlib.suppress(LineageBroken), coordinator(pair) as db:  # by then the original looks like the copy
        db.recover(grace=0)
        db.recover(grace=0)
    return balances(pair)


def test_a_clone_with_the_same_ids_is_refused(request: Any, tmp_path: Path) -> None:
    assert committed_in_a_clone(SqliteResource, request, tmp_path) == REFUSED


def test_a_clone_taken_for_the_database_itself_gets_its_commit_instead(request: Any, tmp_path: Path) -> None:
    assert committed_in_a_clone(NamelessServer, request, tmp_path) == [70, 100]


# ---- a resource with open records can't be dropped ------------------------------------------------


def test_a_resource_with_open_records_cannot_be_dropped(request: Any, tmp_path: Path) -> None:
    """Its mutant is the journal's: `DropsAnything` in `tests/journals/test_mutants.py`."""
    pair = databases("sqlite+sqlite", request, tmp_path)
    with coordinator(pair) as db:
        db.setup()
        with out_of_reach("b"):
            assert at_once(db) == COMMITTED
        journal: Any = context(db).journal
        dropped = context(db).participants["b"].resource_id
        with pytest.raises(ResourceRefused, match="not ended"):
            journal_says(db, lambda session: journal.unregister(session, dropped))
        assert db.recover(grace=0).clean and db.recover(grace=0).clean
        journal_says(db, lambda session: journal.unregister(session, dropped))
        assert dropped not in journal_says(db, journal.registered)
    assert balances(pair) == MOVED != UNTOUCHED
