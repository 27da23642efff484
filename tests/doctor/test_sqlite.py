"""SQLite: looked at without a trace, whatever lies beside the file, and what a file tells."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from nodoubt import Coordinator
from nodoubt.doctor.facts import Facts
from nodoubt.drivers import sqlite_onlooker
from nodoubt.drivers.sqlite_connection import Connection
from nodoubt.url import parse_url

from .conftest import doctor, looked

PROGRAM = """
import apsw, os, sys
path, mode, how = sys.argv[1:]
file = apsw.Connection(path)
file.execute(f"pragma journal_mode = {mode}; create table t (x); insert into t values (1)").fetchall()
if how == "crash":
    file.execute("insert into t values (2)").fetchall()
    os._exit(0)
if how == "hot":
    file.execute("pragma cache_size = 2; begin immediate")
    file.execute("with recursive n(i) as (select 1 union all select i + 1 from n where i < 300) "
                 "insert into t select randomblob(3000) from n").fetchall()
    os._exit(0)
if how in ("live", "writing"):
    if how == "writing":
        file.execute("begin immediate; insert into t values (2)").fetchall()
    print("up", flush=True)
    sys.stdin.read()
    os._exit(0)
file.close()
"""


class Left:
    """A file as some program has left it, or has it open."""

    def __init__(self, folder: Path, mode: str, how: str) -> None:
        self.folder, self.path = folder, folder / "shop.db"
        self.url = f"sqlite:///{self.path}"
        keeps = how in ("live", "writing")
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(self.path), mode, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        if keeps:
            assert self.process.stdout is not None and self.process.stdout.readline() == b"up\n"
        else:
            assert self.process.wait(60) == 0

    def everything(self) -> dict[str, tuple[int, int, str]]:
        """All that lies in the folder: sizes, times of change, contents."""
        return {
            one.name: (one.stat().st_size, one.stat().st_mtime_ns, hashlib.sha256(one.read_bytes()).hexdigest())
            for one in self.folder.iterdir()
        }

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def left(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Left]:
    one = Left(tmp_path, *request.param)
    yield one
    one.close()


def look(left: Left) -> Facts:
    (facts,) = looked(left.url)
    return facts


READABLE = [(mode, how) for mode in ("wal", "delete") for how in ("close", "crash", "live", "writing")]
READABLE += [("wal", "hot"), ("truncate", "close")]


@pytest.mark.parametrize("left", READABLE, indirect=True, ids="-".join)
def test_a_file_is_looked_at_and_nothing_changes_nor_stays_behind(left: Left, request: Any) -> None:
    before = left.everything()
    facts = look(left)
    assert left.everything() == before
    assert facts.error is None
    assert facts.file is not None
    assert facts.file.journal_mode == request.node.callspec.params["left"][0].replace("truncate", "delete")


@pytest.mark.parametrize("left", [("wal", "close"), ("wal", "crash")], indirect=True, ids="-".join)
def test_a_mutant_that_only_asks_for_mode_ro_leaves_files_or_writes_into_them(left: Left) -> None:
    before = left.everything()
    apsw.Connection(f"file:{left.path}?mode=ro", flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI).execute(
        "select * from t"
    ).fetchall()
    assert left.everything() != before


@pytest.mark.parametrize("left", [("wal", "crash"), ("wal", "live")], indirect=True, ids="-".join)
def test_what_is_in_the_log_alone_is_seen(left: Left) -> None:
    session = sqlite_onlooker.connect(parse_url(left.url))
    assert session.call(lambda connection: connection.query("select x from t"))[0] == (1,)
    session.close()


@pytest.mark.parametrize("left", [("delete", "hot")], indirect=True, ids="-".join)
def test_a_journal_that_a_crash_has_left_is_not_rolled_back_but_told(left: Left) -> None:
    before = left.everything()
    facts = look(left)
    assert left.everything() == before
    assert facts.error is not None and "a crash has left a journal" in facts.error


@pytest.mark.parametrize("left", [("wal", "crash")], indirect=True, ids="-".join)
def test_a_log_that_has_lost_its_index_is_not_read_but_told(left: Left) -> None:
    os.unlink(f"{left.path}-shm")
    before = left.everything()
    facts = look(left)
    assert left.everything() == before
    assert facts.error is not None and "without its index" in facts.error


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    (facts,) = looked(f"sqlite:///{tmp_path}/none.db")
    assert facts.error is not None and "there is no file" in facts.error
    assert not list(tmp_path.iterdir())


def test_what_is_no_database_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "shop.db").write_text("a text, and not a short one: " * 200)
    (facts,) = looked(f"sqlite:///{tmp_path}/shop.db")
    assert facts.error is not None and "not a database" in facts.error


@pytest.mark.parametrize("left", [("wal", "close")], indirect=True, ids="-".join)
def test_a_file_that_is_written_while_it_is_looked_at_is_to_be_asked_again(left: Left) -> None:
    """It was taken for one that nobody has open: what was read may be half of what was written."""
    session = sqlite_onlooker.connect(parse_url(left.url))

    def settled() -> bool:
        return bool(session.call(lambda connection: connection.settled()))

    assert settled()
    again = PROGRAM.replace("create table t (x);", "")
    subprocess.run([sys.executable, "-c", again, left.path, "wal", "close"], check=True)
    assert not settled()
    session.close()


# ---- what a file tells ----------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path: Path) -> dict[str, str]:
    """Two files that take part, a staged transaction prepared in both."""
    urls = {name: f"sqlite:///{tmp_path / name}.db" for name in ("shop", "stock")}
    with Coordinator(urls, recovery=False) as db:
        db.setup()
        for name in urls:
            with db.transaction() as tx:
                tx[name].execute("select 1")
    for url in urls.values():
        with_file(url, "create table notes (note text primary key); insert into notes values ('a')")
    with Coordinator(urls, recovery=False) as db, db.begin_distributed("order-7") as tx:
        for name in urls:
            tx[name].execute("insert into notes values ('order-7')")
    return urls


def with_file(url: str, sql: str) -> None:
    file = apsw.Connection(parse_url(url).database)
    file.execute(sql).fetchall()
    file.close()


def test_what_is_prepared_in_a_file_is_told_with_its_locks_and_decision(shop: dict[str, str]) -> None:
    document = doctor(*[part for name, url in shop.items() for part in ("-r", f"{name}={url}")], code=0)
    here, there = document["databases"]
    for one in (here, there):
        (prepared,) = one["prepared"]
        assert (prepared["kind"], prepared["decision"]) == ("nodoubt", "none")
        assert prepared["locks"][0]["what"] == "notes"
        assert "'order-7'" in prepared["action"]["who"]
        assert prepared["action"]["severity"] == "note"
    assert here["journal"]["names_undecided"] == 1
    assert there["journal"] is None and there["identity"]["cluster"] == here["journal"]["cluster"]


def test_a_table_that_has_lost_its_guards_needs_a_human(shop: dict[str, str]) -> None:
    with_file(shop["stock"], "drop trigger nodoubt_guard_insert_notes")
    (one,) = doctor(shop["stock"], code=3)["databases"]
    (finding,) = [finding for finding in one["findings"] if finding["rule"] == "sqlite-guards"]
    assert finding["what"].startswith("notes:")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("'ndrd' || x'02' || substr(record, 6)", "version 2, this release reads version 1"),
        ("x'00'", "does not begin like one"),
    ],
)
def test_a_record_that_this_release_cannot_read_needs_a_human(shop: dict[str, str], change: str, why: str) -> None:
    with_file(shop["shop"], f"update nodoubt_prepared set record = cast({change} as blob)")
    (one,) = doctor(shop["shop"], code=3)["databases"]
    assert why in one["prepared"][0]["action"]["why"]


@pytest.mark.parametrize("left", [("wal", "writing"), ("delete", "writing")], indirect=True, ids="-".join)
def test_whoever_has_the_file_locked_is_named(left: Left) -> None:
    (one,) = doctor(left.url, code=0)["databases"]
    assert f"process {left.process.pid}" in one["file"]["writers"]
    assert [finding["rule"] for finding in one["findings"]] == ["sqlite-writer"]


@pytest.mark.parametrize("left", [("wal", "live")], indirect=True, ids="-".join)
def test_wal_under_a_library_that_can_corrupt_it_needs_a_human(left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "library", (3, 51, 2))
    (one,) = doctor(left.url, code=3)["databases"]
    (finding,) = [finding for finding in one["findings"] if finding["rule"] == "settings"]
    assert "SQLite 3.51.2 can corrupt a WAL file" in finding["what"]
    assert finding["changes"] == [{"line": "PRAGMA journal_mode = DELETE", "where": ""}]
