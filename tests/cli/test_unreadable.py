"""One row of the journal cannot be read: the others are carried out, and the one stays loud until it is mended.

With the real command, on a journal of each kind; the other database is a SQLite file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli import shop_steps
from cli.conftest import Shop, nodoubt
from cli.places import NAMES, Place, context, dialect, make_place
from kit import QUICK, Database
from nodoubt import Coordinator, State, UnreadableRecord
from nodoubt.engine import ends, register, start
from nodoubt.engine.context import using
from nodoubt.journals import sql
from nodoubt.journals.dialects import Dialect
from nodoubt.journals.sql import SqlJournal
from nodoubt.ports import START, Session, Spot, Unclear
from nodoubt.protocol.records import Mode, Unreadable
from nodoubt.script import Script
from nodoubt.testing.samples import LONG_AGO, abort, attempt_at
from nodoubt.testing.samples import decision as decided


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def place(request: Any, tmp_path: Path) -> Place:
    return make_place(request.param, request, tmp_path)


def three_commits_of_which_one_cannot_be_read(place: Place) -> tuple[dict[str, str], str]:
    """Their attempts, and what stood in the bad row. A fourth transaction is staged, and nobody has decided it."""
    attempts = {name: place.stage(name) for name in NAMES}
    place.decide(*(attempts[name] for name in NAMES[:3]))
    return attempts, place.spoil("decisions", attempts["bad"])


def test_one_decision_that_cannot_be_read_keeps_no_other_from_being_carried_out(place: Place) -> None:
    attempts, before = three_commits_of_which_one_cannot_be_read(place)
    report = place.json("recover", "--grace", "0", code=3)
    assert [place.rows(name) for name in NAMES] == [[1, 1], [0, 0], [1, 1], [0, 0]]
    assert place.prepared() == 4, "what cannot be read, and what is undecided, is left as it is"
    (row,) = report["unreadable"]
    assert (row["table"], row["attempt"], row["name"]) == ("decisions", attempts["bad"], "bad")
    assert "cannot be read" in row["why"] and "mend the row" in row["what_to_do"]
    assert (report["clean"], report["committed"], report["rolled_back"], report["trouble"]) == (False, 4, 0, {})

    again = place.nodoubt("recover", "--grace", "0")
    assert again.exit_code == 3 and "1 row of the journal cannot be read" in again.stdout
    assert attempts["bad"] in again.stdout and "mend the row" in again.output
    assert [place.rows(name) for name in NAMES] == [[1, 1], [0, 0], [1, 1], [0, 0]]

    place.journal.query(
        f"update {place.table('decisions')} set branches = ? where attempt = ?", before, attempts["bad"]
    )
    assert place.json("recover", "--grace", "0")["unreadable"] == []
    assert place.json("recover", "--grace", "0")["clean"] is True
    assert [place.rows(name) for name in NAMES] == [[1, 1], [1, 1], [1, 1], [0, 0]]
    assert place.json("ls")["unreadable"] == []


def test_what_cannot_be_read_is_listed_and_shown(place: Place) -> None:
    attempts, _ = three_commits_of_which_one_cannot_be_read(place)
    document = place.json("ls", code=3)
    states = {one["name"]: one["state"] for one in document["transactions"]}
    assert states == {"good-1": "committed", "bad": "unreadable", "good-2": "committed", "open": "prepared"}
    assert [one["attempt"] for one in document["unreadable"]] == [attempts["bad"]]
    (alone,) = place.json("ls", "--state", "unreadable", code=3)["transactions"]
    assert alone["status"] == "requires_manual_intervention"
    asked = [one["name"] for one in place.json("ls", "--state", "prepared", code=3)["transactions"]]
    assert sorted(asked) == ["bad", "open"], "nobody can say that it is not"
    names = [one["name"] for one in place.json("ls", "--state", "committed", "--limit", "2", code=3)["transactions"]]
    assert names == ["good-2", "bad", "good-1"], "what cannot be read takes the place of none that was asked for"
    assert place.nodoubt("ls", "--limit", "2").exit_code == 0, "ls tells of what it lists"
    listed = place.nodoubt("ls", "--limit", "3")
    assert listed.exit_code == 3 and attempts["bad"] in listed.stdout
    for which in ("bad", attempts["bad"]):
        shown = place.nodoubt("show", which)
        assert shown.exit_code == 3 and "unreadable" in shown.stdout and "cannot be read" in shown.stdout
    with place.coordinator() as db:
        assert (db.status("bad").state, db.status("bad").complete) == (State.UNREADABLE, False)
        assert [one.attempt for one in db.unreadable()] == [attempts["bad"]]


@pytest.mark.parametrize("attempt", ["z" * 32, "bytes"])
def test_a_name_whose_attempt_is_none_is_shown_as_what_cannot_be_read(place: Place, attempt: str) -> None:
    bad = place.stage("bad")
    octets = {"sqlite": f"cast(x'{'ff' * 32}' as text)", "mariadb": f"x'{'ff' * 32}'"}
    value = octets.get(place.journal.kind, f"'{'ÿ' * 32}'") if attempt == "bytes" else f"'{attempt}'"
    unchecked = "pragma ignore_check_constraints = on; " if place.journal.kind == "sqlite" else ""
    place.journal.query(f"{unchecked}update {place.table('names')} set attempt = {value} where attempt = '{bad}'")
    shown = place.nodoubt("show", "bad")
    assert shown.exit_code == 3 and "cannot be read" in shown.stdout, shown.output
    assert place.json("show", "bad", code=3)["transaction"]["state"] == "unreadable"


def test_the_doctor_advises_on_all_others_and_against_any_act_on_the_one(place: Place) -> None:
    options = [part for one in place.databases for part in ("-r", f"{one.name}={one.url}")]
    attempts, before = three_commits_of_which_one_cannot_be_read(place)
    result = nodoubt("doctor", *options, "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == document["exit_code"] == 3
    (finding,) = [one for one in document["databases"][0]["findings"] if one["rule"] == "unreadable"]
    assert finding["severity"] == "human" and attempts["bad"] in finding["about"]
    assert document["databases"][0]["journal"]["unreadable"] == 1
    told: dict[str, list[tuple[str, str]]] = {}
    for one in (prepared for database in document["databases"] for prepared in database["prepared"]):
        for name, attempt in attempts.items():
            if attempt in one["id"]:  # the server may have some of others
                told.setdefault(name, []).append((one["decision"], one["action"]["why"]))
    assert set(told) == set(NAMES), "a readable decision is told beside one that is not"
    assert {decision for decision, _ in told["good-1"] + told["good-2"]} == {"commit"}
    assert {decision for decision, _ in told["open"]} == {"none"}
    for decision, why in told["bad"]:
        assert decision == "unreadable"
        assert why.startswith("do not roll it back, do not commit it by hand: its decision stands, but")
    place.journal.query(
        f"update {place.table('decisions')} set branches = ? where attempt = ?", before, attempts["bad"]
    )
    mended = json.loads(nodoubt("doctor", *options, "--json").stdout)
    assert "cannot be read" not in json.dumps(mended)


def test_a_decision_that_cannot_be_read_is_neither_repeated_nor_contradicted(place: Place) -> None:
    attempts, _ = three_commits_of_which_one_cannot_be_read(place)
    for verb in ("commit", "rollback"):
        result = place.nodoubt(verb, "bad", "--yes")
        assert result.exit_code == 3 and "cannot be read" in result.output
    with place.coordinator() as db:
        for act in (db.commit_distributed, db.rollback_distributed):
            with pytest.raises(UnreadableRecord, match="Nothing was done on the strength of it"):
                act("bad")
        for ask in (lambda: db.settle(attempts["bad"]), lambda: db.wait("bad", timeout=5)):
            with pytest.raises(UnreadableRecord):
                ask()
        began = context(db).clock.elapsed()
        with pytest.raises(UnreadableRecord):
            db._shell.run(register.decide(context(db), abort(attempts["bad"], mode=Mode.STAGED)))
        assert context(db).clock.elapsed() - began < QUICK.decide_s / 2, "no wait makes it readable"
    assert place.rows("bad") == [0, 0] and place.prepared() == 8


# ---- names ----------------------------------------------------------------------------------------


def overdue(place: Place) -> dict[str, str]:
    """Three past their deadline, of which one cannot be read."""
    attempts = {name: place.stage(name, deadline=0.001) for name in NAMES[:3]}
    place.spoil("names", attempts["bad"])
    return attempts


def test_a_name_that_cannot_be_read_is_not_taken_for_none_and_the_others_are_cleaned_up(place: Place) -> None:
    attempts = overdue(place)
    reaped = place.json("reap", code=3)
    assert (reaped["reaped"], [one["attempt"] for one in reaped["unreadable"]]) == (2, [attempts["bad"]])
    report = place.json("recover", "--grace", "0", code=3)
    assert [(one["table"], one["attempt"]) for one in report["unreadable"]] == [("names", attempts["bad"])]
    assert place.prepared() == 2
    assert {one["name"]: one["state"] for one in place.json("ls", code=3)["transactions"]} == {
        "good-1": "aborted", "bad": "unreadable", "good-2": "aborted",
    }  # fmt: skip


class TakesItForNone(SqlJournal):
    """The mutant: a name that cannot be read is left out."""

    def staged(self, session: Session, attempts: Sequence[str]) -> Script[Any]:
        found = yield from super().staged(session, attempts)
        return {attempt: one for attempt, one in found.items() if not isinstance(one, Unreadable)}


def test_a_journal_that_left_it_out_would_have_it_aborted(place: Place) -> None:
    attempts = overdue(place)
    with place.coordinator() as db:
        sound: Any = context(db).journal
        context(db).journal = TakesItForNone(sound.dialect)
        db.recover(grace=0)
        assert place.prepared() == 0, "presumed abort, though it may have had all the time in the world"
        assert db.status(attempts["bad"]).state is State.UNREADABLE


# ---- steps ----------------------------------------------------------------------------------------


def test_a_step_that_cannot_be_read_keeps_no_other_from_being_undone(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unmailed = tmp_path / "unmailed"
    monkeypatch.setenv("UNMAILED", str(unmailed))
    attempts = {name: place.stage(name, deadline=3600) for name in NAMES[:3]}
    with place.coordinator() as db:
        for name in attempts:
            for number in range(2):
                db.call(name, shop_steps.mail, f"{name} {number}", undo=shop_steps.unmail, key=f"{number}")
    where = f"attempt = '{attempts['bad']}' and number = 0"
    calls = place.table("calls")
    spoilt = {"sqlite": "arguments = cast(x'ff' as text)", "postgres": "tries = 2147483647, begun_at = 'nan'"}
    change = spoilt.get(place.journal.kind, "state = 'nearly'")
    place.journal.query(f"update {calls} set {change} where {where}")
    for name in attempts:
        place.nodoubt("rollback", name, "--yes")
    report = place.json("recover", code=3)
    assert sorted(unmailed.read_text().split()) == ["0", "0", "1", "1", "good-1", "good-1", "good-2", "good-2"]
    assert [(one["table"], one["attempt"], one["number"]) for one in report["unreadable"]] == [
        ("calls", attempts["bad"], 0)
    ]
    assert report["clean"] is False
    (row,) = place.json("reap", code=3)["unreadable"]
    assert (row["table"], row["attempt"], row["number"]) == ("calls", attempts["bad"], 0)
    assert place.nodoubt("ls").exit_code == place.nodoubt("steps", "ls").exit_code == 3
    shown = place.nodoubt("show", "bad")
    assert shown.exit_code == 3 and "cannot be read" in shown.stdout


def test_whose_name_cannot_be_read_is_not_taken_for_dead_because_it_has_called_a_step(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNMAILED", str(tmp_path / "unmailed"))
    attempt = place.stage("bad", deadline=3600)
    with place.coordinator() as db:
        db.call("bad", shop_steps.mail, "ann", undo=shop_steps.unmail)
    place.spoil("names", attempt)
    report = place.json("recover", "--grace", "0", code=3)
    assert [(one["table"], one["attempt"]) for one in report["unreadable"]] == [("names", attempt)]
    assert place.prepared() == 2 and not (tmp_path / "unmailed").exists()


# ---- what is forgotten ----------------------------------------------------------------------------


def test_an_old_abort_that_cannot_be_read_stops_no_forgetting_and_is_told_for_good(place: Place) -> None:
    old = [attempt_at(LONG_AGO + number) for number in range(6)]
    records = [*map(abort, old[:3]), *(decided(attempt=attempt) for attempt in old[3:])]
    with place.coordinator() as db:
        ctx = context(db)
        db._shell.run(using(ctx.journal_pool, lambda session: ctx.journal.insert(session, records)))
        db._shell.run(using(ctx.journal_pool, lambda session: ctx.journal.end(session, old[3:])))
        before = place.spoil("decisions", old[1])
        cut = ctx.clock.now() - ctx.settings.retention_s
        place.journal.query(f"update {place.table('decisions')} set ended_at = {cut - 1} where ended_at is not null")
        assert db._shell.run(ends.retire(ctx)) == 5
        assert [one.attempt for one in db.unreadable()] == [old[1]]
        assert db.recover().unreadable == db.unreadable()
    assert place.nodoubt("show", old[1]).exit_code == place.nodoubt("recover").exit_code == 3
    place.mend("decisions", old[1], before)
    with place.coordinator() as db:
        assert db._shell.run(ends.retire(context(db))) == 1
        assert db.unreadable() == []
    assert place.nodoubt("ls").exit_code == place.nodoubt("recover").exit_code == 0


def test_the_receipt_that_an_unreadable_abort_may_need_is_kept_and_the_alarm_comes_when_it_is_mended(
    place: Place,
) -> None:
    """I17: somebody has committed the branch by hand, and by nothing but its receipt will that ever be known."""
    old = [attempt_at(LONG_AGO + number) for number in range(3)]
    with place.coordinator() as db:
        ctx = context(db)
        records = [abort(attempt, branches=()) for attempt in old]
        db._shell.run(using(ctx.journal_pool, lambda session: ctx.journal.insert(session, records)))
        before = place.spoil("decisions", old[1])
        place.databases[1].query(f"insert into nodoubt_receipts values ('{old[1]}', 1, 'commit', 1, 0, 0, {LONG_AGO})")
        assert db._shell.run(ends.retire(ctx)) == 2
        assert place.databases[1].query("select attempt from nodoubt_receipts") == [(old[1],)]
        assert db.quarantined() == []
        place.mend("decisions", old[1], before)
        assert db._shell.run(ends.retire(ctx)) == 0
        assert [(one.attempt, one.resource) for one in db.quarantined()] == [(old[1], "b")]


class Untold(SqlJournal):
    """One that can't say what cannot be read."""

    def unreadable(self, session: Session, after: Spot = START, *, old: bool = False) -> Script[Any]:
        yield from ()
        raise Unclear("no answer")


def test_where_nobody_says_what_cannot_be_read_receipts_are_kept_and_all_else_goes_on(place: Place) -> None:
    """I17. And a listing does not ask."""
    old = [attempt_at(LONG_AGO + number) for number in range(3)]
    place.stage("good-1")
    with place.coordinator() as db:
        ctx = context(db)
        records = [abort(attempt, branches=()) for attempt in old]
        db._shell.run(using(ctx.journal_pool, lambda session: ctx.journal.insert(session, records)))
        place.databases[1].query(f"insert into nodoubt_receipts values ('{old[1]}', 1, 'abort', 1, 0, 0, {LONG_AGO})")
        sound, ctx.journal = ctx.journal, Untold(dialect(db))
        assert db._shell.run(ends.retire(ctx)) == 3
        assert place.databases[1].query("select attempt from nodoubt_receipts") == [(old[1],)]
        assert [one.name for one in db.transactions()] == ["good-1"]
        ctx.journal = sound
        assert db._shell.run(ends.retire(ctx)) == 0
        assert place.databases[1].query("select attempt from nodoubt_receipts") == []


class Slow(SqlJournal):
    """Takes its time for each page."""

    def unreadable(self, session: Session, after: Spot = START, *, old: bool = False) -> Script[Any]:
        yield from self._read(session, "SELECT pg_catalog.pg_sleep(0.2)")
        return (yield from super().unreadable(session, after, old=old))


@pytest.mark.parametrize("place", ["postgres"], indirect=True)
def test_each_page_of_what_cannot_be_read_has_its_own_time_to_answer(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = [place.stage(name) for name in NAMES]
    place.spoil("names", attempts[0])
    place.spoil("names", attempts[3])
    monkeypatch.setattr(sql, "LOOK_MAX", 1)
    with place.coordinator(replace(QUICK, answer_s=1)) as db:
        context(db).journal = Slow(dialect(db))
        assert {one.attempt for one in db.unreadable()} == {attempts[0], attempts[3]}


class Noted(SqlJournal):
    """Notes from where on each batch was asked for."""

    def __init__(self, dialect: Dialect) -> None:
        super().__init__(dialect)
        self.afters: list[tuple[str, str]] = []

    def aborted(self, session: Session, older_than: float, limit: int, after: str = "") -> Script[Any]:
        self.afters.append(("aborted", after))
        return super().aborted(session, older_than, limit, after)

    def retire(self, session: Session, older_than: float, limit: int, after: str = "") -> Script[Any]:
        self.afters.append(("retire", after))
        return super().retire(session, older_than, limit, after)


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_what_cannot_be_read_is_not_read_again_for_each_batch(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ends, "ENDED_MAX", 2)
    old = [attempt_at(LONG_AGO + number) for number in range(6)]
    with place.coordinator() as db:
        ctx = context(db)
        ctx.journal = journal = Noted(dialect(db))
        records = [abort(attempt, branches=()) for attempt in old]
        db._shell.run(using(ctx.journal_pool, lambda session: journal.insert(session, records)))
        place.spoil("decisions", old[0])
        assert db._shell.run(ends.retire(ctx)) == 5
        assert journal.afters == [(what, after) for after in ("", old[2], old[4]) for what in ("aborted", "retire")]
        assert [one.attempt for one in db.unreadable()] == [old[0]]


def test_a_database_that_an_unreadable_decision_may_list_is_not_dropped(place: Place) -> None:
    with place.coordinator() as db:
        ctx = context(db)
        one = decided()
        db._shell.run(using(ctx.journal_pool, lambda session: ctx.journal.insert(session, [one])))
    place.spoil("decisions", one.attempt)
    refused = place.nodoubt("drop", "b", "--yes")
    assert refused.exit_code == 1 and "nothing was dropped" in refused.output and one.attempt in refused.output
    place.mend("decisions", one.attempt, "[]")
    assert place.nodoubt("drop", "b", "--yes").exit_code == 0


def test_nor_is_one_that_is_gone_while_a_decision_says_neither_commit_nor_abort(place: Place) -> None:
    with place.coordinator() as db:
        ctx = context(db)
        one = decided()
        db._shell.run(using(ctx.journal_pool, lambda session: ctx.journal.insert(session, [one])))
    decisions = place.table("decisions")
    unchecked = {
        "sqlite": "pragma ignore_check_constraints = on; ",
        "mariadb": "set statement check_constraint_checks = off for ",
        "postgres": f"alter table {decisions} drop constraint decisions_verdict_check; ",
    }[place.journal.kind]
    place.journal.query(f"{unchecked}update {decisions} set verdict = 'maybe' where attempt = '{one.attempt}'")
    for options in (("--gone",), ()):
        refused = place.nodoubt("drop", "b", "--yes", *options)
        said = " ".join(refused.output.split())
        assert refused.exit_code == 1 and one.attempt in said and "cannot be read (verdict: " in said, said
        assert place.nodoubt("recover").exit_code == 0, "b takes part as before"
    place.journal.query(f"update {decisions} set verdict = 'abort' where attempt = '{one.attempt}'")
    assert place.nodoubt("drop", "b", "--yes", "--gone").exit_code == 0


# ---- the register of databases ---------------------------------------------------------------------


def test_a_database_whose_row_cannot_be_read_takes_no_part_and_is_named_with_what_to_do(shop: Shop) -> None:
    """I15. What it has witnessed is in that row: without it nobody can tell whether it was set back."""
    home = Database("shop", shop.urls["shop"])
    ((stock,),) = home.query("select resource_id from nodoubt_resources where name = 'stock'")
    for column in ("name", "cluster", "server"):
        home.query(f"update nodoubt_resources set {column} = cast(x'ff' as text) where resource_id = '{stock}'")
        told = (f"resources: '{stock}'", f"cannot be read ({column}: ", "nodoubt schema apply --adopt stock")
        for command in (("recover",), ("reap",), ("commit", "order-1", "--yes")):
            refused = shop.nodoubt(*command)
            said = " ".join(refused.output.split())
            assert refused.exit_code == 3 and all(one in said for one in told), said
        with shop.coordinator() as db, pytest.raises(UnreadableRecord, match="set back") as raised:
            db.begin_distributed("order-1").__enter__()
        assert all(one in str(raised.value) for one in told)
        with Coordinator({"shop": home.url}, recovery=False) as alone:
            assert [one.table for one in alone.recover().unreadable] == ["resources"], "it keeps no other from its work"
        assert shop.nodoubt("schema", "apply", "--adopt", "stock", "--yes").exit_code == 0
        assert shop.nodoubt("recover").exit_code == 0


def test_who_takes_it_for_one_that_has_witnessed_nothing_does_not_see_that_it_was_set_back(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant. Its file is put back as it was an epoch ago."""
    file, before = shop.folder / "stock.db", (shop.folder / "stock.db").read_bytes()
    assert shop.nodoubt("recover").exit_code == 0  # which begins an epoch
    file.write_bytes(before)
    assert shop.nodoubt("recover").exit_code == 3
    Database("shop", shop.urls["shop"]).query("update nodoubt_resources set server = cast(x'ff' as text)")
    assert shop.nodoubt("recover").exit_code == 3
    monkeypatch.setattr(start, "_witnessed", lambda *_: None)
    assert shop.nodoubt("recover").exit_code == 0


# ---- every column ---------------------------------------------------------------------------------

COLUMNS = {
    "decisions": ("mode", "name", "branches", "owner", "reason", "decided_at"),
    "names": ("name", "branches", "owner", "metadata", "confirmations", "deadline", "created_at", "begin_by"),
    "calls": (
        "call_key", "step", "compensation", "arguments", "state", "result", "error", "held_until", "claim", "worker",
        "begun_at", "changed_at",
    ),
    "confirmations": ("who", "answer", "why", "at"),
    "quarantine": ("resource", "why", "since"),
    "resources": ("name", "cluster", "server"),
}  # fmt: skip
NUMBERS = {"decided_at", "deadline", "created_at", "begin_by", "held_until", "begun_at", "changed_at", "at", "since"}


@pytest.mark.parametrize("table", COLUMNS)
def test_whichever_column_holds_no_text_or_no_number_it_is_told_and_nothing_breaks(shop: Shop, table: str) -> None:
    """In SQLite, which keeps any bytes as a text, and infinity as a number."""
    with shop.coordinator() as db:
        with db.begin_distributed("order-1", confirmations=["ann"]) as tx:
            for name in shop.urls:
                tx[name].execute("insert into notes values (1)")
        db.call("order-1", shop_steps.mail, "nobody", undo=shop_steps.unmail)
        attempt = db.status("order-1").attempt
    if table in ("decisions", "calls"):
        shop.nodoubt("rollback", "order-1", "--yes")
    shop.quarantine(attempt)
    home = Database("shop", shop.urls["shop"])
    ((stock,),) = home.query("select resource_id from nodoubt_resources where name = 'stock'")
    which = f"resource_id = '{stock}'" if table == "resources" else f"attempt = '{attempt}'"
    for column in COLUMNS[table]:
        ((before,),) = home.query(f"select {column} from nodoubt_{table} where {which}")
        value = "9e999" if column in NUMBERS else "cast(x'ff00fe' as text)"
        home.query(f"create table kept as select * from nodoubt_{table} where {which}")
        home.query(f"update nodoubt_{table} set {column} = {value} where {which}")
        told = {}
        for command in ("recover --grace 0", "ls", f"show {attempt}", "steps ls", f"steps show {attempt}"):
            said = told[command.partition(" ")[0]] = shop.nodoubt(*command.split())
            assert "this is a bug in nodoubt" not in said.output, (column, command)
        told["doctor"] = nodoubt("doctor", *shop.options)
        over = table == "decisions"  # an ABORT that is carried out: nothing asks for it but who asks for it
        for command in ("show",) if over else ("recover", "ls", "doctor"):
            shown = " ".join(told[command].output.split())
            assert told[command].exit_code == 3 and f"cannot be read ({column}: " in shown, (column, command, shown)
        home.query(f"delete from nodoubt_{table} where {which}")
        home.query(f"insert into nodoubt_{table} select * from kept")
        home.query("drop table kept")
        assert home.query(f"select {column} from nodoubt_{table} where {which}") == [(before,)]
    assert "cannot be read" not in shop.nodoubt("ls").output


def test_a_time_that_no_clock_shows_and_a_branch_that_is_not_listed_cannot_be_read(place: Place) -> None:
    late, stray = place.stage("good-1"), place.stage("bad")
    names = place.table("names")
    place.journal.query(f"update {names} set created_at = 1e12 where attempt = '{late}'")
    place.journal.query(f"update {names} set last_branch = 7 where attempt = '{stray}'")
    listed = place.json("ls", code=3)
    assert sorted(one["state"] for one in listed["transactions"]) == ["unreadable"] * 2
    for verb in ("commit", "rollback"):
        assert place.nodoubt(verb, "bad", "--yes").exit_code == 3
    assert place.prepared() == 4
