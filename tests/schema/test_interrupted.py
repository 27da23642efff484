"""Migrations that a crash cuts short, that two begin at once, and what breaks without the rules."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest

from kit import Database, make_database, until
from nodoubt import Coordinator, NoDoubtError, ResourceRefused, ResourceUnavailable, SchemaMismatch
from nodoubt import __file__ as package
from nodoubt.drivers.pymysql import PyMySQLSession
from nodoubt.engine import start
from nodoubt.schema import Migration, Part, Schema, Tables, read, shipped, tables
from nodoubt.schema.tables import Row
from nodoubt.testing.servers import MariaDBServer
from nodoubt.url import parse_url
from schema.releases import BROKEN, EXPANDED, Releases, Scene, coordinator, migrate, scene_of, schema_of

JOURNAL = Releases(journal=EXPANDED)


@pytest.fixture
def scene(kind: str, request: Any, tmp_path: Path) -> Scene:
    return scene_of(kind, request, tmp_path)


def record(scene: Scene, part: Part = Part.JOURNAL) -> list[tuple[int, int, int, int]]:
    """As a stranger reads it."""
    table = {"postgres": "nodoubt.migrations"}.get(scene.kind, "nodoubt_migrations")
    url = scene.journal if "://" in scene.journal else scene.pair[0].url
    rows = Database("journal", url).query(
        f"select number, works_from, steps, steps_done from {table} where part = '{part}' order by number"
    )
    return [tuple(map(int, row)) for row in rows]  # type: ignore[misc]


# ---- killed in the middle -------------------------------------------------------------------------


def killed(scene: Scene, releases: Releases, step: int, when: str, *, first: bool = False) -> None:
    """Another process migrates, or, the first, makes our tables, and is killed there."""
    here = Path(__file__).parent
    task = {
        "urls": {one.name: one.url for one in scene.pair},
        "journal": scene.journal,
        "journal_release": releases.journal,
        "participants_release": releases.participants,
        "step": step,
        "when": when,
        "first": first,
    }
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(package).parents[1]), str(here.parent)])}
    child = subprocess.run(
        [sys.executable, str(here / "child.py"), json.dumps(task)],
        capture_output=True, text=True, timeout=60, env=environment, check=False,
    )  # fmt: skip
    assert child.returncode == -signal.SIGKILL, child.stderr


@pytest.mark.parametrize("kind", ["mariadb"])
@pytest.mark.parametrize(
    ("step", "when"), [(1, "before"), (1, "between"), (2, "between"), (2, "after"), (3, "between"), (3, "after")]
)
def test_a_migration_that_was_killed_is_finished_by_the_next(scene: Scene, step: int, when: str) -> None:
    """Each CREATE and ALTER has committed by itself there. Meanwhile older coordinators work on."""
    killed(scene, JOURNAL, step, when)
    done = step if when == "after" else step - 1
    assert record(scene)[1:] == [(2, 1, 3, done)]
    if done < 3:
        with pytest.raises(SchemaMismatch, match="a migration has begun that was not finished.*schema apply"):
            begin(scene, JOURNAL)
    begin(scene, Releases())
    migrate(scene, JOURNAL)
    assert record(scene)[1:] == [(2, 1, 3, 3)]
    assert scene.pair[0].query("select note from nodoubt_notes") == [("moved",)]
    begin(scene, JOURNAL)


@pytest.mark.parametrize("kind", ["mariadb"])
@pytest.mark.parametrize(("step", "when"), [(1, "before"), (1, "between"), (3, "after")])
def test_a_first_setup_that_was_killed_is_finished_by_the_next(
    kind: str, request: Any, tmp_path: Path, step: int, when: str
) -> None:
    """Nobody can have worked on half of the first tables, so `setup` needs no leave to go on."""
    scene = Scene([make_database(kind, name, request, tmp_path) for name in "ab"], "a")
    killed(scene, Releases(), step, when, first=True)
    ((number, _, steps, done),) = record(scene)
    assert number == 1 and done < steps
    with pytest.raises(SchemaMismatch, match="a migration has begun that was not finished"):
        begin(scene, Releases())
    with coordinator(scene, Releases()) as db:
        db.setup()
    begin(scene, Releases())


def begin(scene: Scene, releases: Releases) -> None:
    """A coordinator of that release, at work."""
    with coordinator(scene, releases) as db, db.transaction() as tx:
        for name in "ab":
            tx[name].execute("update accounts set balance = balance")


@pytest.mark.parametrize("kind", ["mariadb"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_whom_a_migration_refuses_is_refused_from_its_first_step_on(scene: Scene, when: str) -> None:
    migrate(scene, JOURNAL)
    killed(scene, Releases(journal=BROKEN), 1, when)
    for release in (EXPANDED, BROKEN):
        with pytest.raises(SchemaMismatch):
            begin(scene, Releases(journal=release))
    migrate(scene, Releases(journal=BROKEN))
    begin(scene, Releases(journal=BROKEN))


def met_by_a_kill(server: MariaDBServer, scene: Scene, apply: Callable[[], None]) -> bool:
    """Kill the server while it makes the index; False if that was too late."""
    met: list[NoDoubtError] = []

    def applying() -> None:
        try:
            apply()
        except NoDoubtError as error:
            met.append(error)

    thread = threading.Thread(target=applying)

    def busy() -> bool:
        others = "select 1 from information_schema.processlist where info like '%slow%' and id <> connection_id()"
        return bool(scene.pair[0].query(others)) or not thread.is_alive()

    thread.start()
    until(busy)
    if thread.is_alive():
        server.kill()
    thread.join()
    return bool(met)


def test_a_server_that_is_killed_in_the_middle_of_a_step_comes_back_to_be_migrated() -> None:
    """Wherever the kill meets the ALTER. The index takes long enough to be met."""
    with MariaDBServer() as server:
        scene = Scene([Database(name, server.url()) for name in "ab"], "a")
        for one in scene.pair:
            one.create()
        with coordinator(scene, Releases()) as db:
            db.setup()
        scene.pair[0].query(
            "insert into nodoubt_decisions (attempt, verdict, mode, name, branches, owner, reason, decided_at) select "
            "lpad(hex(seq), 32, '0'), 'abort', 'once', seq, '', '', repeat(md5(seq), 20), 0 from seq_1_to_60000"
        )
        first, *_ = shipped(Part.JOURNAL, "mariadb").migrations
        index = "CREATE INDEX slow ON {database}.nodoubt_decisions (reason(500), name, owner(50))"
        slow = read(Part.JOURNAL, "mariadb", [first.sql, f"-- Older coordinators: work on.\n{index};"])

        def apply() -> None:
            db = coordinator(scene, Releases())
            journal: Any = db._ctx.journal
            journal.tables.schema = slow
            with contextlib.closing(db):
                db._shell.run(start.migrate(db._ctx))

        while not met_by_a_kill(server, scene, apply):
            scene.pair[0].query("drop index slow on nodoubt_decisions")
            scene.pair[0].query("delete from nodoubt_migrations where number = 2")
        server.restart()
        apply()
        assert record(scene)[1:] == [(2, 1, 1, 1)]
        keys = scene.pair[0].query("show index from nodoubt_decisions where key_name = 'slow'")
        assert len(keys) == 3
        begin(scene, Releases())


@pytest.mark.parametrize("kind", ["mariadb"])
def test_without_the_notes_of_its_steps_nobody_can_finish_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: whoever comes next begins anew."""
    killed(scene, JOURNAL, 2, "after")
    sound = Tables._by_steps

    def anew(self: Tables, session: Any, migration: Migration, row: Row | None) -> Any:
        return sound(self, session, migration, None if row is None else replace(row, steps_done=0))

    monkeypatch.setattr(Tables, "_by_steps", anew)
    with pytest.raises(ResourceRefused, match="our tables can't be made"):
        migrate(scene, JOURNAL)


@pytest.mark.parametrize("kind", ["mariadb"])
@pytest.mark.parametrize("turns", [1, 99], ids=["for a moment", "for good"])
def test_a_step_whose_note_is_held_up_is_noted_by_the_next(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, impatient: None, turns: int
) -> None:
    """A backup has locked the record while the ALTER ran. The step is done: nobody may say that it never began."""
    monkeypatch.setattr(tables, "TABLE_TRIES_MAX", 2)
    sound = PyMySQLSession.run
    backup = stranger(scene.pair[0])
    held = 0

    def run(self: PyMySQLSession, sql: str) -> Any:
        nonlocal held
        if "nodoubt_migrations SET" in sql and held < turns:
            held += 1
            if held == 1:
                # Behind the ALTER, before its note.
                step, _, _ = sql.partition("UPDATE")
                if "ALTER" in step:
                    sound(self, step.rstrip("; "))
                    sql = sql.removeprefix(step)
                backup.cursor().execute("begin")
                backup.cursor().execute("select * from nodoubt_migrations for update")
            try:
                return sound(self, sql)
            finally:
                if held == turns:
                    backup.rollback()
        return sound(self, sql)

    with monkeypatch.context() as patched:
        patched.setattr(PyMySQLSession, "run", run)
        with contextlib.suppress(ResourceUnavailable):
            migrate(scene, JOURNAL)
    backup.rollback()
    backup.close()
    migrate(scene, JOURNAL)
    assert record(scene)[1:] == [(2, 1, 3, 3)]
    assert scene.pair[0].query("select note from nodoubt_notes") == [("moved",)]


def stranger(one: Database) -> Any:
    """A session of somebody else's."""
    url = parse_url(one.url)
    return pymysql.connect(
        host=url.host, port=url.port or 0, user=url.user, password=url.password, database=url.database,
        autocommit=True, ssl_disabled=True,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["postgres"])
def test_whoever_sits_on_the_lock_of_those_who_migrate_keeps_them_waiting_for_so_long_only(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    """Any account of the database may take it, and keep it."""
    monkeypatch.setattr(tables, "LOCK_WAIT_S", 1)
    with psycopg.connect(scene.pair[0].url, autocommit=True) as other:
        other.execute("select pg_advisory_lock(%s)", (tables.LOCK,))
        ended: list[BaseException | None] = []
        thread = threading.Thread(target=lambda: ended.extend(at_once(scene, JOURNAL, 1)))
        thread.start()
        thread.join(20)
        waited = thread.is_alive()
    thread.join()
    assert not waited
    assert isinstance(ended[0], ResourceUnavailable) and "somebody else is migrating" in str(ended[0])
    migrate(scene, JOURNAL)


def by_hand(one: Database, *, until: int = sys.maxsize) -> None:
    """What `nodoubt schema sql` prints, statement by statement, as a client runs it that stops at the first error."""
    url = parse_url(one.url)
    scripts = [Tables(shipped(part, one.kind), whose="it", database=url.database).script() for part in Part]
    statements = [text for script in scripts for text in script.split(";\n") if text.strip()]
    with psycopg.connect(one.url, autocommit=True) if one.kind == "postgres" else stranger(one) as session:
        for statement in statements[:until]:
            session.cursor().execute(statement)


@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
@pytest.mark.parametrize("until", [6, 18, 22, sys.maxsize])
def test_what_is_run_by_hand_may_be_run_again_wherever_it_has_stopped(
    kind: str, request: Any, tmp_path: Path, until: int
) -> None:
    """Somebody who is not sure runs it once more, and the participant's tables come after all of the journal's."""
    one = make_database(kind, "a", request, tmp_path)
    by_hand(one, until=until)
    by_hand(one)
    with Coordinator({"a": one.url}, recovery=False) as db:
        db.setup()
        with db.transaction() as tx:
            tx.execute("update accounts set balance = 0 where id = 0")
        assert list(db.jobs()) == []


@pytest.mark.parametrize("kind", ["mariadb"])
def test_what_is_run_by_hand_finishes_what_a_killed_setup_has_begun(kind: str, request: Any, tmp_path: Path) -> None:
    """An administrator sets up, and dies; the account of the coordinator may not go on."""
    scene = Scene([make_database(kind, name, request, tmp_path) for name in "ab"], "a")
    killed(scene, Releases(), 3, "after", first=True)
    for one in scene.pair:
        by_hand(one)
    assert all(steps == done for _, _, steps, done in record(scene))
    with Coordinator({one.name: one.url for one in scene.pair}, recovery=False) as db:
        db.setup()


# ---- two at a time --------------------------------------------------------------------------------


def at_once(scene: Scene, releases: Releases, count: int) -> list[BaseException | None]:
    """So many migrate at the same time; how each ended."""
    ended: list[BaseException | None] = []
    ready = threading.Barrier(count)

    def one() -> None:
        ready.wait()
        try:
            migrate(scene, releases)
        except BaseException as error:
            ended.append(error)
        else:
            ended.append(None)

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ended


def test_of_several_who_migrate_one_does_it_and_the_others_find_it_done(scene: Scene) -> None:
    assert at_once(scene, JOURNAL, 4) == [None] * 4
    assert [row[0] for row in record(scene)] == [1, 2]


@pytest.mark.parametrize("kind", ["mariadb"])
def test_without_the_lock_two_meet_in_the_middle(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: everybody is given the lock."""
    sound = Tables._run
    meeting = threading.Barrier(2)

    def unlocked(self: Tables, session: Any, message: str) -> Any:
        if "GET_LOCK" in message:
            message = "SELECT 1"
        if "RELEASE_LOCK" in message:
            message = "SELECT 1"
        if message.startswith(f"SET SESSION lock_wait_timeout = {tables.TABLE_WAIT_S}"):
            meeting.wait(20)
        return sound(self, session, message)

    monkeypatch.setattr(Tables, "_run", unlocked)
    assert at_once(scene, JOURNAL, 2) != [None, None]


# ---- what breaks without the rules ----------------------------------------------------------------


BREAKING = pytest.mark.parametrize(
    "releases", [Releases(journal=BROKEN), Releases(participants=BROKEN)], ids=["journal", "participants"]
)


def ungated(part: Part, kind: str, release: int) -> Schema:
    """The mutant: a migration that refuses older coordinators, and lets them through until they begin anew."""
    schema = schema_of(part, kind, release)
    if release < BROKEN:
        return schema
    *before, last = schema.migrations
    nothing = "SELECT 1"
    return Schema(part, kind, (*before, Migration(last.number, last.works_from, nothing, (nothing,))))


def told_after(scene: Scene, releases: Releases) -> str:
    """What an older coordinator that was open when somebody migrated is told at its next commit."""
    with coordinator(scene, Releases()) as old:
        migrate(scene, releases)
        try:
            with old.transaction() as tx:
                for name in "ab":
                    tx[name].execute("update accounts set balance = 0 where id = 0")
        except NoDoubtError as error:
            return str(error)
    return "committed"


@BREAKING
def test_without_a_gate_an_older_coordinator_commits_on_tables_that_it_does_not_understand(
    scene: Scene, releases: Releases, monkeypatch: pytest.MonkeyPatch
) -> None:
    import schema.releases

    monkeypatch.setattr(schema.releases, "schema_of", ungated)
    assert told_after(scene, releases) == "committed"


@BREAKING
def test_with_it_nothing_of_an_older_coordinator_is_committed(scene: Scene, releases: Releases) -> None:
    assert "nodoubt schema status" in told_after(scene, releases)
    assert scene.balances() == [100, 100]


@pytest.mark.parametrize("kind", ["postgres"])
def test_whoever_does_not_look_for_prepared_branches_first_strands_them(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant migrates what it can: then neither release may end what is staged."""
    both = Releases(journal=BROKEN, participants=BROKEN)
    monkeypatch.setattr(start, "_require_nobody_is_stranded", lambda *_: iter(()))
    monkeypatch.setattr(tables, "TABLE_TRIES_MAX", 1)
    with coordinator(scene, Releases()) as old, old.begin_distributed("later") as tx:
        tx["b"].execute("update accounts set balance = 0 where id = 0")
    with pytest.raises(NoDoubtError, match="hold our tables"):
        migrate(scene, both)
    for releases in (Releases(), both):
        with coordinator(scene, releases) as db, pytest.raises(SchemaMismatch):
            db.commit_distributed("later")
    with pytest.raises(NoDoubtError, match="hold our tables"):
        migrate(scene, both)
