"""Restored, cloned and exchanged databases: quarantined or refused, never presumed aborted (I15).

Backups are taken as people take them: a copy of the file while nobody writes, a copy of a server's data
directory. In each
scene a transaction was committed after the backup, and one of its branches is still prepared: a journal that
has forgotten
the decision would have it aborted, and a database that has forgotten its commit would have it committed twice.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit import QUICK, Database, Face, make_database
from nodoubt import Coordinator, LineageBroken, State, TransactionAborted, UsageError
from nodoubt.engine import ends, start, sweep
from nodoubt.engine.branches import End, Ending
from nodoubt.journals.sql import SqlJournal
from nodoubt.life import SELDOM
from nodoubt.testing.servers import PostgresServer
from nodoubt.url import parse_url
from rules.mutants import out_of_reach, staged
from traps.scenes import MOVED, UNTOUCHED, at_rest, balances, context, databases
from traps.steps import at_step, every_step

pytestmark = pytest.mark.anyio


def coordinator(some: list[Database], journal: str | None = None, **options: Any) -> Coordinator:
    return Coordinator({d.name: d.url for d in some}, journal=journal, settings=QUICK, recovery=False, **options)


def path_of(url: str) -> Path:
    return Path(parse_url(url).database)


class Backup:
    """Of a SQLite file, in use or not: put back into the same file, so that even its inode is the same."""

    def __init__(self, url: str) -> None:
        self.path = path_of(url)
        copy = self.path.with_suffix(".backup")
        Database("", url).query(f"vacuum into '{copy}'")
        self.bytes = copy.read_bytes()
        copy.unlink()

    def restore(self) -> None:
        self.path.write_bytes(self.bytes)
        for tail in ("-wal", "-shm", "-journal"):
            Path(f"{self.path}{tail}").unlink(missing_ok=True)


def start_often(some: list[Database], journal: str | None = None) -> None:
    """Each start of a coordinator raises the epoch."""
    for _ in range(2):
        with coordinator(some, journal):
            pass


def let_go_of_the_journal(db: Coordinator) -> None:
    for session, _ in context(db).journal_pool._idle:  # type: ignore[attr-defined]
        session.close()
    context(db).journal_pool.drop_idle()


def commit_and_leave(db: Coordinator, name: str = "order") -> None:
    """Stage 30 from a to b, commit it, and have the branch in b left to recovery: its server gives no answer."""
    with db.begin_distributed(name) as tx:
        tx["a"].execute("update accounts set balance = balance - 30 where id = 0")
        tx["b"].execute("update accounts set balance = balance + 30 where id = 0")
    with pytest.MonkeyPatch.context() as patch:

        def only_a(ctx: Any, participant: Any, *args: Any, **more: Any) -> Any:
            if participant.name == "b":
                return Ending(End.OPEN, "out of reach")
                yield
            return (yield from carry_out(ctx, participant, *args, **more))

        from nodoubt.engine import phases

        carry_out = vars(phases)["carry_out"]
        patch.setattr(phases, "carry_out", only_a)
        assert not db.commit_distributed(name).complete


@pytest.fixture(params=["postgres+sqlite", "sqlite+mariadb"])
def pair(request: Any, tmp_path: Path) -> list[Database]:
    return databases(request.param, request, tmp_path)


# ---- the journal was set back ---------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/journal.db"


@pytest.fixture
def set_back(pair: list[Database], own: str) -> None:
    """The journal forgets a commit of which one branch is still prepared."""
    with coordinator(pair, own) as db:
        db.setup()
    backup = Backup(own)
    start_often(pair, own)
    with coordinator(pair, own) as db:
        for database in pair:  # in one phase each: their receipts stay, and carry an epoch that will be forgotten
            with db.transaction() as tx:
                tx[database.name].execute("update accounts set balance = balance where id = 1")
        commit_and_leave(db)
    assert balances(pair) == [70, 100]
    backup.restore()


@pytest.mark.usefixtures("set_back")
def test_a_journal_that_was_set_back_is_refused_and_nothing_is_presumed_aborted(pair: list[Database], own: str) -> None:
    for _ in range(3):
        with pytest.raises(LineageBroken, match=r"journal.*restored"):
            coordinator(pair, own).open()
    assert len(pair[1].prepared()) == 1


def test_a_coordinator_that_was_open_while_its_journal_was_set_back_sweeps_nothing(
    pair: list[Database], own: str
) -> None:
    with coordinator(pair, own) as db:
        db.setup()
    backup = Backup(own)
    start_often(pair, own)
    with coordinator(pair, own) as db:
        commit_and_leave(db)
        let_go_of_the_journal(db)
        backup.restore()
        for _ in range(2):
            report = db.recover(grace=0)
            assert set(report.trouble) == {"a", "b"} and not report.rolled_back
        assert len(pair[1].prepared()) == 1


def what_one_database_shows_of_the_journal(pair: list[Database], own: str, listed: bool) -> tuple[set[str], list[int]]:
    """b has witnessed nothing that the journal has forgotten, and holds a branch of the commit that it has; a has.

    `listed`: the journal still has its name, overdue and undecided. Who is in trouble, and what came of it.
    """
    with coordinator(pair, own) as db:
        db.setup()
        with db.transaction() as tx:
            tx["a"].execute("update accounts set balance = balance where id = 1")
        backups = [Backup(own)]
        staged(db, deadline=0.001)
        backups.append(Backup(own))
        with out_of_reach("b"):
            assert not db.commit_distributed("pay").complete
        start_often(pair[:1], own)
        let_go_of_the_journal(db)
        backups[listed].restore()
        return set(db.recover(grace=0).trouble), balances(pair)


@pytest.mark.parametrize("listed", [False, True])
def test_what_one_database_shows_of_the_journal_holds_for_all_others(
    pair: list[Database], own: str, listed: bool
) -> None:
    assert what_one_database_shows_of_the_journal(pair, own, listed) == ({"a"}, [70, 100])
    assert len(pair[1].prepared()) == 1, "the commit that was forgotten can still be carried out"


def test_a_sweep_that_bars_only_who_shows_it_aborts_half_of_a_commit(
    pair: list[Database], own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant: that a journal was set back is taken for the trouble of one database."""
    monkeypatch.setattr(sweep, "JournalRestored", ZeroDivisionError)
    assert what_one_database_shows_of_the_journal(pair, own, listed=False) == ({"a"}, [70, 100])
    assert pair[1].prepared() == []


def test_a_reaper_that_bars_only_who_shows_it_aborts_half_of_a_commit(
    pair: list[Database], own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = start.lineage

    def lineage(ctx: Any) -> Any:
        found = yield from sound(ctx)
        found.restored = False
        return found

    monkeypatch.setattr(start, "lineage", lineage)
    assert what_one_database_shows_of_the_journal(pair, own, listed=True) == ({"a"}, [70, 100])
    assert pair[1].prepared() == []


@pytest.mark.usefixtures("set_back")
def test_without_the_lineage_a_journal_that_was_set_back_aborts_half_of_a_commit(
    pair: list[Database], own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant: epochs are written and never compared."""
    monkeypatch.setattr(start, "_with_lineage", lambda _ctx, _participant, reading: reading())
    with coordinator(pair, own) as db:
        assert db.recover(grace=0).rolled_back == 1
    assert balances(pair) == [70, 100] and pair[1].prepared() == [], "the mutant is not caught"


@pytest.mark.usefixtures("set_back")
def test_after_an_operator_has_adopted_every_database_it_opens(pair: list[Database], own: str) -> None:
    """Also where receipts of one-phase commits carry the epochs that the journal has forgotten."""
    for database in pair:
        with pytest.raises(LineageBroken):
            coordinator(pair, own).open()
        hands = coordinator(pair, own)
        hands.adopt(database.name)
        hands.close()
    with coordinator(pair, own) as db:
        with db.transaction() as tx:
            tx["a"].execute("update accounts set balance = balance where id = 1")
        # What the operator has taken as it is now has no decision: what is prepared there is aborted.
        db.recover(grace=0)
        assert db.recover(grace=0).clean
    assert balances(pair) == [70, 100] and at_rest(pair)


@pytest.fixture
def caught_up(pair: list[Database], own: str, set_back: None, request: Any, tmp_path: Path) -> None:
    """The restored journal's numbers have caught up, in work on another database: they show nothing any more."""
    third = [make_database("sqlite", "c", request, tmp_path)]
    with coordinator(third, own) as db:
        db.setup()
    start_often(third, own)
    start_often(third, own)
    with coordinator(third, own) as db:
        number = context(db).epoch.number
    for database in pair:
        table = "nodoubt.identity" if database.kind == "postgres" else "nodoubt_identity"
        assert database.query(f"select epoch from {table}")[0][0] < number


@pytest.mark.usefixtures("caught_up")
def test_a_restored_journal_whose_numbers_have_caught_up_is_refused_all_the_same(
    pair: list[Database], own: str
) -> None:
    for _ in range(2):
        with pytest.raises(LineageBroken, match=r"never had.*journal was restored"):
            coordinator(pair, own).open()
    assert len(pair[1].prepared()) == 1
    with coordinator(pair, own, read_only=True) as db:  # and whoever comes to look can look
        assert db.transactions() == []


@pytest.mark.usefixtures("caught_up")
def test_without_marks_a_restored_journal_that_has_caught_up_aborts_half_of_a_commit(
    pair: list[Database], own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant: epochs are compared by their numbers alone."""

    def anything(*_: Any) -> Any:
        return True
        yield

    monkeypatch.setattr(SqlJournal, "minted", anything)
    with coordinator(pair, own) as db:
        assert db.recover(grace=0).rolled_back == 1
    assert balances(pair) == [70, 100] and pair[1].prepared() == [], "the mutant is not caught"


def set_back_while_open(pair: list[Database], own: str) -> Backup:
    """A coordinator that stays open for a long time; a backup of its journal; later a commit half carried out."""
    with coordinator(pair, own) as db:
        db.setup()
        backup = Backup(own)
        for _ in range(SELDOM):
            assert db.recover(grace=0).clean
        commit_and_leave(db)
    return backup


def test_a_backup_from_before_the_newest_epoch_is_found_out_however_long_nobody_has_started(
    pair: list[Database], own: str
) -> None:
    """One coordinator, open since before the backup: only what it does now and then can tell."""
    set_back_while_open(pair, own).restore()
    with pytest.raises(LineageBroken, match=r"journal.*restored"):
        coordinator(pair, own).open()
    assert len(pair[1].prepared()) == 1


def test_without_new_epochs_a_coordinator_that_is_never_restarted_makes_restores_invisible(
    pair: list[Database], own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant: an epoch begins at a start, and never else."""
    monkeypatch.setattr(start, "renew", lambda _ctx: iter(()))
    set_back_while_open(pair, own).restore()
    with coordinator(pair, own) as db:
        assert db.recover(grace=0).rolled_back == 1
    assert balances(pair) == [70, 100] and pair[1].prepared() == [], "the mutant is not caught"


# ---- a participant was set back -------------------------------------------------------------------


@pytest.fixture
def files(request: Any, tmp_path: Path) -> list[Database]:
    return databases("postgres+sqlite", request, tmp_path)


def test_a_participant_that_was_set_back_is_refused_until_it_is_adopted(files: list[Database]) -> None:
    with coordinator(files) as db:
        db.setup()
        with db.begin_distributed("order") as tx:
            tx["a"].execute("update accounts set balance = balance - 30 where id = 0")
            tx["b"].execute("update accounts set balance = balance + 30 where id = 0")
    backup = Backup(files[1].url)
    start_often(files)
    with coordinator(files) as db:
        assert db.commit_distributed("order").complete
        assert balances(files) == MOVED
    backup.restore()
    assert balances(files) == [70, 100] and len(files[1].prepared()) == 1
    with pytest.raises(LineageBroken, match=r"b .*restored"):
        coordinator(files).open()
    hands = coordinator(files)
    hands.adopt("b")
    hands.close()
    with coordinator(files) as db:
        # Its record has ended: whether the branch may be committed again is for a human to say.
        report = db.recover(grace=0)
        assert report.quarantined == 1 and not report.committed and not report.rolled_back
        assert [entry.resource for entry in db.quarantined()] == ["b"]
        assert db.status("order").heuristic
    assert len(files[1].prepared()) == 1


def test_a_coordinator_that_is_open_sees_that_a_participant_was_set_back(files: list[Database]) -> None:
    with coordinator(files) as db:
        db.setup()
    backup = Backup(files[1].url)
    start_often(files)
    with coordinator(files) as db:
        for pool in (context(db).participants["b"].pool, context(db).participants["b"].reserve):
            pool.drop_idle()
        backup.restore()
        report = db.recover(grace=0)
        assert set(report.trouble) == {"b"} and "restored" in report.trouble["b"]
        with pytest.raises(TransactionAborted, match="restored"), db.transaction() as tx:
            tx["a"].execute("update accounts set balance = balance - 1 where id = 0")
            with pytest.raises(LineageBroken):  # swallowed, and still the other branch is not committed alone
                tx["b"].execute("update accounts set balance = balance + 1 where id = 0")
    assert balances(files) == UNTOUCHED


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as one:
        yield one


def test_a_branch_that_a_base_backup_brings_back_is_not_committed_twice(
    server: PostgresServer, request: Any, tmp_path: Path
) -> None:
    """Same system identifier, same timeline; within one epoch, even: only that its record has ended tells."""
    some = [make_database("sqlite", "a", request, tmp_path), Database("b", server.url())]
    some[1].create()
    copy = tmp_path / "backup"
    with coordinator(some) as db:
        db.setup()
        with db.begin_distributed("order") as tx:
            tx["a"].execute("update accounts set balance = balance - 30 where id = 0")
            tx["b"].execute("update accounts set balance = balance + 30 where id = 0")
        server.kill()
        subprocess.run(["cp", "-a", str(server.data), str(copy)], check=True)
        server.restart()
        assert db.commit_distributed("order").complete
        assert db.recover(grace=0).clean
    assert balances(some) == MOVED
    server.kill()
    shutil.rmtree(server.data)
    subprocess.run(["cp", "-a", str(copy), str(server.data)], check=True)
    server.restart()
    assert balances(some) == [70, 100] and len(some[1].prepared()) == 1
    with coordinator(some) as db:
        report = db.recover(grace=0)
        assert report.quarantined == 1 and not report.committed and not report.rolled_back
        assert db.status("order").state is State.COMMITTED and db.status("order").heuristic
    assert len(some[1].prepared()) == 1


# ---- another one ----------------------------------------------------------------------------------


def test_another_journal_is_refused(pair: list[Database], own: str, tmp_path: Path) -> None:
    """One register per resource, ever: two could decide differently."""
    with coordinator(pair, own) as db:
        db.setup()
    other = coordinator(pair, f"sqlite:///{tmp_path}/other.db")
    with other, pytest.raises(LineageBroken, match="one journal, ever"):
        other.setup()
    for journal in ("a", f"sqlite:///{tmp_path}/other.db"):
        wrong = coordinator(pair, journal)
        with pytest.raises(LineageBroken), wrong:
            wrong.setup()
    with coordinator(pair, own) as db:
        assert db.recover(grace=0).clean


def test_a_clone_is_refused_until_it_is_adopted(files: list[Database], tmp_path: Path) -> None:
    """Two files with one identity: what is prepared in the copy is committed, or not, in the original."""
    with coordinator(files) as db:
        db.setup()
    shutil.copy(path_of(files[1].url), tmp_path / "clone.db")
    clone = [files[0], Database("b", f"sqlite:///{tmp_path}/clone.db")]
    with pytest.raises(LineageBroken, match="clone"):
        coordinator(clone).open()
    hands = coordinator(clone)
    hands.adopt("b")
    hands.close()
    with coordinator(clone) as db, db.transaction() as tx:
        tx["a"].execute("update accounts set balance = balance - 30 where id = 0")
        tx["b"].execute("update accounts set balance = balance + 30 where id = 0")
    assert balances(clone) == MOVED and files[1].balance() == 100


@pytest.mark.parametrize("kind", ["postgres", "mariadb", "sqlite"])
def test_one_database_under_two_names_is_refused(kind: str, request: Any, tmp_path: Path) -> None:
    """Its two branches would wait for each other's locks, and each be taken for the other."""
    one = make_database(kind, "a", request, tmp_path)
    two = [one, Database("b", one.url.replace("127.0.0.1", "localhost"))]
    with coordinator([one]) as db:
        db.setup()
    with pytest.raises(UsageError, match="one and the same database"):
        coordinator(two).open()


# ---- and nothing of this is a false alarm ---------------------------------------------------------


async def starts_in_the_middle_of_a_start(mode: str, pair: list[Database]) -> None:
    """Before each step of one's start and first sweep another starts, and forgets what is old.

    Epochs rise in the middle of every look, and those that nobody shows any more are gone.
    """
    with coordinator(pair) as db:
        db.setup()

    def another_starts() -> None:
        with coordinator(pair) as rival:
            assert rival.recover(grace=0).clean
            rival._shell.run(ends.retire(rival._ctx))

    for at in every_step():
        face = Face(mode, pair)
        with at_step(face, at, another_starts) as steps:
            await face.open()
            report = await face.recover(grace=0)
        await face.close()
        assert report.clean, (at, steps.trail)
        if not steps.acted:
            break


async def test_coordinators_that_start_and_sweep_at_the_same_time_take_nobody_for_restored(
    request: Any, tmp_path: Path
) -> None:
    await starts_in_the_middle_of_a_start("async", databases("postgres+sqlite", request, tmp_path))


async def test_a_database_that_is_read_before_what_it_should_have_witnessed_looks_restored(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant: the other order. Between the two looks somebody may start."""
    sound = start._with_lineage

    def read_first(ctx: Any, participant: Any, reading: Any) -> Any:
        identity = yield from reading()

        def known() -> Any:
            return identity
            yield

        return (yield from sound(ctx, participant, known))

    monkeypatch.setattr(start, "_with_lineage", read_first)
    with pytest.raises((LineageBroken, AssertionError), match="restored"):
        await starts_in_the_middle_of_a_start("sync", databases("postgres+sqlite", request, tmp_path))
