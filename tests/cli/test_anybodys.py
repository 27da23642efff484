"""A row that may be anybody's, and the floor, below which nobody knows: while it cannot be read nothing is presumed.

With the real command, on a journal of each kind; the other database is a SQLite file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cli import shop_steps
from cli.conftest import nodoubt
from cli.places import NAMES, Place, context, make_place
from kit import QUICK, Database
from nodoubt import Coordinator, OutcomeConflict, State, TransactionAborted, UnreadableRecord
from nodoubt.engine import ends
from nodoubt.journals.sql import SqlJournal
from nodoubt.protocol.records import Unreadable
from nodoubt.script import Script


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def place(request: Any, tmp_path: Path) -> Place:
    return make_place(request.param, request, tmp_path)


def _other(attempt: str) -> str:
    return attempt[:-1] + "G"


def test_a_commit_whose_attempt_is_no_attempt_may_be_anybodys_so_nothing_is_aborted_for_having_none(
    place: Place,
) -> None:
    attempts = {name: place.stage(name) for name in NAMES}
    place.decide(attempts["bad"], attempts["good-1"])
    decisions, bad = place.table("decisions"), attempts["bad"]
    place.journal.query(f"update {decisions} set attempt = '{_other(bad)}' where attempt = '{bad}'")
    place.journal.query(f"update {place.table('names')} set deadline = 1.0 where name in ('bad', 'good-2')")

    swept = place.json("recover", "--grace", "0", code=3)
    assert place.rows("good-1") == [1, 1] and place.rows("bad") == [0, 0]
    assert place.prepared() == 6, "nothing that has no decision was touched, overdue or not"
    assert _other(bad) in json.dumps(swept["unreadable"]) and swept["presumed"] is False
    assert "nothing is aborted for having no decision" in " ".join(place.nodoubt("recover").stdout.split())
    assert place.nodoubt("reap").exit_code != 0 and place.prepared() == 6
    refused = place.nodoubt("rollback", "bad", "--yes")
    assert refused.exit_code == 3 and _other(bad) in refused.output and place.prepared() == 6

    place.journal.query(f"update {decisions} set attempt = '{bad}' where attempt = '{_other(bad)}'")
    place.nodoubt("recover", "--grace", "0")
    assert place.json("recover", "--grace", "0")["presumed"] is True
    assert place.rows("bad") == [1, 1] and place.rows("good-2") == [0, 0]


@pytest.mark.parametrize("column", ["attempt", "undecided"])
def test_a_name_whose_two_attempts_differ_may_be_anybodys(column: str, place: Place) -> None:
    attempts = {name: place.stage(name) for name in ("bad", "open")}
    names, bad = place.table("names"), attempts["bad"]
    place.journal.query(f"update {names} set {column} = '{_other(bad)}', deadline = 1.0 where name = 'bad'")
    swept = place.json("recover", "--grace", "0", code=3)
    assert place.prepared() == 4 and bad[:-1] in json.dumps(swept["unreadable"])
    place.journal.query(f"update {names} set {column} = '{bad}' where name = 'bad'")
    place.nodoubt("recover", "--grace", "0")
    assert place.nodoubt("recover", "--grace", "0").exit_code == 0
    assert place.prepared() == 2 and place.rows("bad") == [0, 0]


def calls_and_fails(place: Place) -> int:
    """At once, with one step called; how many steps were left to undo."""
    with place.coordinator() as db, pytest.raises(ZeroDivisionError) as failed, db.transaction() as tx:
        tx.call(shop_steps.mail, "ann", undo=shop_steps.unmail)
        tx["a"].execute("insert into t_open values (1)")
        raise ZeroDivisionError
    return sum("not undone yet" in note for note in getattr(failed.value, "__notes__", ()))


def spoilt(place: Place) -> str:
    """The attempt of a COMMIT that is nobody's now."""
    bad = place.stage("bad")
    place.decide(bad)
    place.journal.query(f"update {place.table('decisions')} set attempt = '{_other(bad)}' where attempt = '{bad}'")
    return bad


def test_nor_does_who_has_just_aborted_undo_its_steps_or_whoever_settles_it(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I19. The COMMIT may be its own, from before its reply was lost; or a step be missing that comes first."""
    monkeypatch.setenv("UNMAILED", str(unmailed := tmp_path / "unmailed"))
    bad = spoilt(place)
    assert calls_and_fails(place) == 1
    ((attempt,),) = place.journal.query(f"select attempt from {place.table('decisions')} where verdict = 'abort'")
    attempt = attempt if isinstance(attempt, str) else bytes(attempt).decode()
    for command in (("settle", attempt, "--yes"), ("recover", "--app", "cli.shop_steps")):
        place.nodoubt(*command)
        assert not unmailed.exists(), command
    place.journal.query(f"update {place.table('decisions')} set attempt = '{bad}' where attempt = '{_other(bad)}'")
    assert place.nodoubt("recover", "--app", "cli.shop_steps").exit_code == 0
    assert unmailed.read_text() == "ann\n"


def rolled_back_where_it_failed_to_begin(place: Place) -> None:
    """A named begin of this process has failed, and another has committed it since: that row is nobody's now."""
    bad = spoilt(place)
    decisions, count = place.table("decisions"), f"select count(*) from {place.table('decisions')}"
    with place.coordinator() as db:
        ctx = context(db)
        ctx.remember_failed_begin("bad", bad, harmless=False)
        ctx.remember_failed_begin("another", another := ctx.ids.attempt(), harmless=False)
        for name in ("bad", "another"):
            with pytest.raises(UnreadableRecord, match=_other(bad)):
                db.rollback_distributed(name)
        assert int(place.journal.query(count)[0][0]) == 1
        place.journal.query(f"update {decisions} set attempt = '{bad}' where attempt = '{_other(bad)}'")
        with pytest.raises(OutcomeConflict):
            db.rollback_distributed("bad")
        told = db.rollback_distributed("another")
        assert (told.attempt, told.state) == (another, State.ABORTED)
    assert place.prepared() == 2, "and what was committed is to be carried out"


def test_a_begin_that_has_failed_is_not_aborted_while_a_row_may_be_anybodys(place: Place) -> None:
    """I3."""
    rolled_back_where_it_failed_to_begin(place)


def test_who_aborts_it_all_the_same_is_caught(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> Script[list[Unreadable]]:
        return []
        yield

    monkeypatch.setattr(SqlJournal, "ownerless", none)
    with pytest.raises((pytest.fail.Exception, AssertionError)):
        rolled_back_where_it_failed_to_begin(place)


def test_who_undoes_all_the_same_is_caught(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> Script[list[Unreadable]]:
        return []
        yield

    monkeypatch.setenv("UNMAILED", str(unmailed := tmp_path / "unmailed"))
    monkeypatch.setattr(SqlJournal, "ownerless", none)
    spoilt(place)
    assert calls_and_fails(place) == 0 and unmailed.exists()


def test_a_floor_that_cannot_be_read_permits_nothing_and_what_is_decided_is_carried_out(place: Place) -> None:
    attempts = {name: place.stage(name) for name in NAMES[:3]}
    place.decide(attempts["good-1"])
    floor = f"update {place.table('journal')} set value = ? where item = 'floor'"
    place.journal.query(floor, "")

    swept = place.json("recover", "--grace", "0", code=3)
    assert place.rows("good-1") == [1, 1] and place.prepared() == 4
    (told,) = swept["unreadable"]
    assert (told["table"], told["name"]) == ("journal", "floor") and "cannot be read (value: " in told["why"]
    assert swept["presumed"] is False and swept["trouble"] == {}
    for verb in ("commit", "rollback"):
        refused = place.nodoubt(verb, "bad", "--yes")
        assert refused.exit_code == 3 and "journal: 'floor'" in refused.output, refused.output
        assert not re.search("reached|try again", refused.output), refused.output
    assert place.prepared() == 4
    with place.coordinator() as db, pytest.raises(UnreadableRecord, match="'bad' stays prepared, undecided: journal"):
        db.commit_distributed("bad")
    options = [part for one in place.databases for part in ("-r", f"{one.name}={one.url}")]
    examined = nodoubt("doctor", *options)
    assert examined.exit_code == 3 and "a row of the journal cannot be read: journal: 'floor'" in examined.output
    output = " ".join(examined.output.split())
    assert "the floor cannot be read" in output and "nothing forgotten yet" not in output
    assert "left alone" in output and "recovery rolls" not in output and "nodoubt commit" not in output
    with place.coordinator() as db:
        assert db._shell.run(ends.retire(context(db))) == 0
        with (
            pytest.raises(TransactionAborted, match="rolled back everywhere.*journal: 'floor'"),
            db.transaction() as tx,
        ):
            for one in place.databases:
                tx[one.name].execute("insert into t_open values (1)")
    assert place.rows("open") == [0, 0] and place.prepared() == 4

    place.journal.query(floor, "0" * 32)
    assert place.nodoubt("commit", "bad", "--yes").exit_code == 0 and place.rows("bad") == [1, 1]
    assert place.json("recover", "--grace", "0")["presumed"] is True


def test_with_the_journal_elsewhere_a_floor_that_cannot_be_read_aborts_and_says_why(tmp_path: Path) -> None:
    urls = {name: f"sqlite:///{tmp_path}/{name}.db" for name in "abj"}
    for name, url in urls.items():
        Database(name, url).query("create table t (n int primary key)")
    journal = Database("j", urls.pop("j"))
    with Coordinator(urls, journal=journal.url, recovery=False, settings=QUICK) as db:
        db.setup()
        journal.query("update nodoubt_journal set value = '' where item = 'floor'")
        began = context(db).clock.elapsed()
        with pytest.raises(TransactionAborted, match="journal: 'floor'"), db.transaction() as tx:
            for name in urls:
                tx[name].execute("insert into t values (1)")
        assert context(db).clock.elapsed() - began < QUICK.decide_s / 2, "no wait makes it readable"
        assert all(Database(name, url).prepared() == [] for name, url in urls.items())


def test_who_takes_such_a_row_for_nobodys_writes_a_second_decision(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> Script[list[Unreadable]]:
        return []
        yield

    monkeypatch.setattr(SqlJournal, "ownerless", none)
    bad = place.stage("bad")
    place.decide(bad)
    decisions = place.table("decisions")
    place.journal.query(f"update {place.table('names')} set deadline = 1.0")
    place.journal.query(f"update {decisions} set attempt = '{_other(bad)}' where attempt = '{bad}'")
    place.nodoubt("recover", "--grace", "0")
    found = place.journal.query(f"select verdict from {decisions} order by verdict")
    assert [str(verdict) for (verdict,) in found] == ["abort", "commit"] and place.prepared() == 0
