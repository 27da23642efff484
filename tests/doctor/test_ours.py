"""Our own tables, and what a killed coordinator leaves behind, as the doctor sees them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from msgspec.structs import replace

from crash.test_coordinator_killed import killed_at
from kit import QUICK, Database, make_database, until
from nodoubt import Coordinator, wiring
from nodoubt.doctor import examination, ours
from nodoubt.engine.context import using
from nodoubt.journals import sql
from nodoubt.journals.sql import SqlJournal
from nodoubt.ports import START, Session, Spot, Unclear
from nodoubt.protocol.records import Quarantined
from nodoubt.script import Script
from nodoubt.testing.servers import PostgresServer
from nodoubt.url import parse_url

from .conftest import Standby, Ward, doctor, looked


def options(databases: list[Database]) -> list[str]:
    return [part for one in databases for part in ("-r", f"{one.name}={one.url}")]


def rules(document: Any, name: str) -> list[str]:
    (one,) = [database for database in document["databases"] if database["name"] == name]
    return [finding["rule"] for finding in one["findings"] if finding["severity"] != "note"]


# ---- after a crash --------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [("postgres", "mariadb"), ("postgres", "sqlite")], ids="+".join)
def test_a_branch_that_a_killed_coordinator_left_is_shown_with_its_decision_and_who_should_finish_it(
    kinds: tuple[str, str], request: Any, tmp_path: Path
) -> None:
    pair = [make_database(kind, name, request, tmp_path) for kind, name in zip(kinds, "ab", strict=True)]
    urls = {one.name: one.url for one in pair}
    with Coordinator(urls, recovery=False) as db:
        db.setup()
    killed_at({"urls": urls, "journal": None, "way": "once", "mode": "sync", "kill": "P6.committed"})
    before = [one.prepared() for one in pair]
    assert before[0] == [] and len(before[1]) == 1
    young = prepared_of_ours(doctor(*options(pair), "--grace", "1h", code=0), "b", pair[1])
    assert (young["decision"], young["action"]["severity"]) == ("commit", "note")
    old = prepared_of_ours(doctor(*options(pair), "--grace", "0", code=3), "b", pair[1])
    assert (old["decision"], old["action"]["severity"]) == ("commit", "human")
    assert "COMMIT was decided by " in old["action"]["why"]
    assert old["action"]["who"].startswith("a running coordinator of cluster ")
    # The test server's password is our name, and no password is ever printed.
    assert [step.replace("***", "nodoubt") for step in old["action"]["do"]] == [
        "nodoubt recover -r a=URL -r b=URL --journal a"
    ]
    assert old["action"]["after_asking"] == []
    assert [one.prepared() for one in pair] == before
    assert (pair[0].balance(), pair[1].balance()) == (70, 100)

    alone = prepared_of_ours(doctor(pair[1].url, "--grace", "0", code=3), None, pair[1])
    assert alone["decision"] is None
    assert "only that cluster's journal can tell" in alone["action"]["why"]

    with Coordinator(urls, settings=QUICK, recovery=False) as db:
        until(lambda: db.recover(grace=0).clean and not any(one.prepared() for one in pair))
    assert (pair[0].balance(), pair[1].balance()) == (70, 130)
    doctor(*options(pair), "--grace", "0", code=0)


@pytest.mark.parametrize("order", ["abc", "cab"])
def test_a_standby_that_is_behind_does_not_speak_for_its_journal(order: str, request: Any, tmp_path: Path) -> None:
    """That it has no decision says nothing: whoever took it for the journal would roll half of a commit back."""
    with PostgresServer() as primary, Standby() as standby:
        pair = [Database("a", primary.url()), make_database("sqlite", "b", request, tmp_path)]
        pair[0].create()
        urls = {one.name: one.url for one in pair}
        with Coordinator(urls, recovery=False) as db:
            db.setup()
        standby.of(primary)
        killed_at({"urls": urls, "journal": None, "way": "once", "mode": "sync", "kill": "P6.committed"})
        third = Database("c", pair[0].url.replace(str(primary.port), str(standby.port)))
        named = sorted([*pair, third], key=lambda one: order.index(one.name))
        told = prepared_of_ours(doctor(*options(named), "--grace", "0", code=3), "b", pair[1])
        assert (told["decision"], "COMMIT was decided" in told["action"]["why"]) == ("commit", True)
        alone = prepared_of_ours(doctor(*options([third, pair[1]]), "--grace", "0", code=3), "b", pair[1])
        assert alone["decision"] is None
        assert "c is a standby" in alone["action"]["why"] and "ABORT" not in alone["action"]["why"]


def prepared_of_ours(document: Any, name: str | None, database: Database) -> Any:
    """The one of this test's own cluster: a server lists those of all its databases."""
    (one,) = [one for one in document["databases"] if name in (None, one["name"])]
    (prepared,) = [each for each in one["prepared"] if f"cluster {one['identity']['cluster']}" == each["coordinator"]]
    return prepared


def test_what_was_never_decided_is_aborted_by_recovery_and_the_doctor_says_so(request: Any, tmp_path: Path) -> None:
    pair = [make_database("postgres", "a", request, tmp_path), make_database("sqlite", "b", request, tmp_path)]
    urls = {one.name: one.url for one in pair}
    at = f"sqlite:///{tmp_path}/journal.db"
    with Coordinator(urls, journal=at, recovery=False) as db:
        db.setup()
    killed_at({"urls": urls, "journal": at, "way": "once", "mode": "sync", "kill": "P4.all-prepared"})
    arguments = [*options(pair), "--journal", at]
    undecided = prepared_of_ours(doctor(*arguments, "--grace", "0", code=3), "a", pair[0])
    assert undecided["decision"] == "none"
    assert "presumed abort, with the register as the fence" in undecided["action"]["why"]
    assert prepared_of_ours(doctor(*arguments, code=0), "a", pair[0])["action"]["severity"] == "note"
    with Coordinator(urls, journal=at, settings=QUICK, recovery=False) as db:
        until(lambda: db.recover(grace=0).clean)
    doctor(*arguments, "--grace", "0", code=0)


# ---- our tables -----------------------------------------------------------------------------------


@pytest.fixture(params=["postgres", "mariadb", "sqlite"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """A database of each kind that is its own journal."""
    one = make_database(request.param, "home", request, tmp_path)
    with Coordinator({"home": one.url}, recovery=False) as db:
        db.setup()
    return one


def table(one: Database, name: str) -> str:
    return f"nodoubt.{name}" if one.kind == "postgres" else f"nodoubt_{name}"


def test_a_sound_journal_is_told_in_numbers(home: Database) -> None:
    document = doctor("-r", f"home={home.url}", code=0)
    assert rules(document, "home") == []
    (one,) = document["databases"]
    assert (one["journal"]["version"], one["journal"]["epoch"], one["journal"]["open_commits"]) == (2, 1, 0)
    assert one["journal"]["cluster"] == one["identity"]["cluster"]
    assert one["journal"]["floor_at"] is None


def test_what_is_quarantined_needs_a_human(home: Database) -> None:
    entry = Quarantined("0" * 32, 1, "home", "somebody rolled it back", since=1_700_000_000.0)

    def body(session: Session) -> Script[None]:
        return ctx.journal.quarantine(session, entry)

    with wiring.onlooker({"home": home.url}, None) as (ctx, shell):
        shell.run(using(ctx.journal_pool, body))
    document = doctor("-r", f"home={home.url}", code=3)
    assert rules(document, "home") == ["quarantined"]
    assert document["databases"][0]["journal"]["quarantined"] == 1


def migrated(home: Database, part: str, works_from: int) -> None:
    """By a release to come, to version 9."""
    row = f"('{part}', 9, {works_from}, 1, 1)"
    home.query(f"insert into {table(home, 'migrations')} (part, number, works_from, steps, steps_done) values {row}")


def test_tables_that_only_a_newer_release_knows_are_told_and_not_read(home: Database) -> None:
    migrated(home, "participant", works_from=9)
    document = doctor("-r", f"home={home.url}", code=3)
    assert rules(document, "home") == ["schema"]
    assert "migrated to version 9" in document["databases"][0]["findings"][0]["why"]


def test_a_journal_that_only_a_newer_release_knows_is_told_and_not_read(home: Database) -> None:
    migrated(home, "journal", works_from=9)
    document = doctor("-r", f"home={home.url}", code=3)
    assert rules(document, "home") == ["schema"]
    assert document["databases"][0]["journal"] is None


def test_newer_tables_on_which_this_release_may_work_are_read(home: Database) -> None:
    for part in ("participant", "journal"):
        migrated(home, part, works_from=1)
    document = doctor("-r", f"home={home.url}", code=0)
    assert document["databases"][0]["journal"]["version"] == 9


def test_a_database_that_was_set_back_is_not_what_it_was(home: Database) -> None:
    home.query(f"update {table(home, 'identity')} set epoch = 0")
    assert "lineage" in rules(doctor("-r", f"home={home.url}", code=3), "home")


def test_a_journal_that_does_not_tell_what_was_decided_is_not_one_that_has_decided_nothing(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make_database("sqlite", "home", request, tmp_path)
    with Coordinator({"home": one.url}, recovery=False) as db:
        db.setup()
        with db.begin_distributed("order-7", deadline=0.001) as tx:
            tx.execute("insert into accounts values (10, 1)")

    def silent(*_: Any, **__: Any) -> Any:
        raise Unclear("no answer")
        yield

    assert doctor(one.url, "--grace", "0", code=3)["databases"][0]["prepared"][0]["decision"] == "none"
    monkeypatch.setattr(SqlJournal, "look", silent)
    (told,) = doctor(one.url, "--grace", "1h", code=1)["databases"]
    assert (told["error"], told["prepared"][0]["decision"]) == ("no answer", None)
    assert "only that cluster's journal can tell" in told["prepared"][0]["action"]["why"]


@pytest.fixture
def just_ended(home: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A branch that is listed, and committed everywhere before the journal is asked about it."""
    sound, told = SqlJournal.look, ["once"]

    def look(journal: SqlJournal, session: Session, attempts: Any) -> Any:
        if told:
            told.clear()
            with Coordinator({"home": home.url}, recovery=False) as db:
                db.commit_distributed("order-7")
        return (yield from sound(journal, session, attempts))

    with Coordinator({"home": home.url}, recovery=False) as db, db.begin_distributed("order-7") as tx:
        tx.execute("insert into accounts values (10, 1)")
    monkeypatch.setattr(SqlJournal, "look", look)
    yield home
    assert home.prepared() == []


def test_what_is_committed_while_it_is_looked_at_is_no_alarm(just_ended: Database) -> None:
    (one,) = doctor(just_ended.url, code=0)["databases"]
    assert not any(f"cluster {one['identity']['cluster']}" == each["coordinator"] for each in one["prepared"])


def test_a_mutant_that_does_not_list_again_takes_it_for_a_restored_one(
    just_ended: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trusting(room: Any, patient: Any, facts: Any, *_: Any) -> Any:
        return facts
        yield

    monkeypatch.setattr(examination, "_still_there", trusting)
    told = prepared_of_ours(doctor(just_ended.url, code=3), None, just_ended)
    assert "so it was restored" in told["action"]["why"]


def starts_at(verb: str, home: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator starts just before this step, once."""
    sound, left = getattr(ours, verb), ["once"]

    def starting(*args: Any) -> Any:
        if left:
            left.clear()
            with Coordinator({"home": home.url}, recovery=False):
                pass
        return (yield from sound(*args))

    monkeypatch.setattr(ours, verb, starting)


@pytest.mark.parametrize("verb", ["journal_of", "identity_of", "told"])
def test_a_coordinator_that_starts_while_it_is_looked_at_is_no_alarm(
    home: Database, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start raises the epoch, the participant's too: read in the wrong order, one of them looks set back."""
    starts_at(verb, home, monkeypatch)
    document = doctor("-r", f"home={home.url}", code=0)
    assert rules(document, "home") == []
    assert document["databases"][0]["journal"]["epoch"] == 2


def test_a_mutant_that_reads_the_epoch_before_the_participants_takes_a_start_for_a_restore(
    home: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound_journal, sound_told = ours.journal_of, ours.told

    def early(facts: Any, journal: Any, session: Any) -> Any:
        found: Any = yield from sound_journal(facts, journal, session)
        epoch = yield from journal.epoch(session)
        return replace(found, journal=replace(found.journal, epoch=epoch.number))

    def keeping(facts: Any, *args: Any) -> Any:
        found: Any = yield from sound_told(facts, *args)
        return replace(found, journal=replace(found.journal, epoch=facts.journal.epoch))

    monkeypatch.setattr(ours, "journal_of", early)
    monkeypatch.setattr(ours, "told", keeping)
    starts_at("identity_of", home, monkeypatch)
    assert "lineage" in rules(doctor("-r", f"home={home.url}", code=3), "home")


def test_a_role_that_may_not_read_our_tables_is_told_what_to_grant(postgres: PostgresServer) -> None:
    url = postgres.url()
    with Coordinator({"home": url}, recovery=False) as db:
        db.setup()
    role = f"look_{parse_url(url).database}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"create role {role} login".encode())
        try:
            (facts,) = looked(url.replace(f"{postgres.user}@", f"{role}@"))
            assert (facts.journal, facts.identity, facts.broken) == (None, None, None)
            (gap,) = [one for one in facts.gaps if "our own tables" in one.what]
            assert "GRANT USAGE ON SCHEMA nodoubt" in gap.advice
            doctor(url.replace(f"{postgres.user}@", f"{role}@"), code=1)
            connection.execute(gap.advice.encode())
            (facts,) = looked(url.replace(f"{postgres.user}@", f"{role}@"))
            assert facts.journal is not None and facts.identity is not None
            may = "select has_table_privilege(%s, 'nodoubt.keys', 'select')"
            assert connection.execute(may, (role,)).fetchone() == (False,)  # what callers were told
            doctor(url.replace(f"{postgres.user}@", f"{role}@"), code=0)
        finally:
            connection.execute(f"drop owned by {role}; drop role {role}".encode())


QUARANTINED = "('11111111111111111111111111111111', 0, 'home', 'somebody ended it', 0, '')"


def test_a_table_that_is_not_read_here_hides_nothing(pg: Ward) -> None:
    """One that a newer release has brought, which the account has not been granted yet."""
    with Coordinator({"home": pg.url}, recovery=False) as db:
        db.setup()
    role = f'"{parse_url(pg.look_url).user}"'
    pg.query(f"grant usage on schema nodoubt to {role}")
    pg.query(f"grant select on all tables in schema nodoubt to {role}")
    pg.query(f"revoke all on nodoubt.jobs, nodoubt.events from {role}")
    pg.query("create table nodoubt.later (id int)")
    pg.query(f"insert into nodoubt.quarantine values {QUARANTINED}")
    (found,) = doctor(pg.look_url, code=3)["databases"]
    assert found["journal"]["quarantined"] == 1


def test_a_journal_is_found_among_any_number_of_tables_of_the_users(maria: Ward) -> None:
    """A name may begin as ours do, and the server lists them in an order of its own."""
    with Coordinator({"home": maria.url}, recovery=False) as db:
        db.setup()
    for number in range(30):
        maria.query(f"create table nodoubt_a{number} (id int)")
    maria.query(f"insert into nodoubt_quarantine values {QUARANTINED}")
    (found,) = doctor(maria.url, code=3)["databases"]
    assert found["journal"]["quarantined"] == 1


@pytest.mark.parametrize("mode", ["ANSI_QUOTES", "ORACLE", "NO_BACKSLASH_ESCAPES", "EMPTY_STRING_IS_NULL"])
def test_a_server_of_any_sql_mode_is_examined(maria: Ward, mode: str) -> None:
    with Coordinator({"home": maria.url}, recovery=False) as db:
        db.setup()
    ((before,),) = maria.query("select @@global.sql_mode")
    maria.query(f"set global sql_mode = '{mode}'")
    try:
        (found,) = doctor(maria.url, code=0)["databases"]
    finally:
        maria.query(f"set global sql_mode = '{before}'")
    assert (found["error"], found["journal"]["version"], found["identity"]["epoch"]) == (None, 2, 1)


def test_an_account_to_which_mariadb_shows_no_table_of_ours_is_told_that_there_may_be_some(maria: Ward) -> None:
    with Coordinator({"home": maria.url}, recovery=False) as db:
        db.setup()
    parsed = parse_url(maria.look_url)

    def gaps() -> list[str]:
        (found,) = doctor(maria.look_url, code=0)["databases"]
        return [gap["what"].replace("***", "nodoubt") for gap in found["gaps"] if "if there are any" in gap["what"]]

    assert gaps() == []  # it may read the whole database
    maria.query(f"revoke select on `{parsed.database}`.* from '{parsed.user}'@'%'")
    maria.query(f"grant select on `{parsed.database}`.t to '{parsed.user}'@'%'")
    assert len(gaps()) == 1


def test_the_number_of_messages_does_not_grow_with_what_is_prepared_of_ours(home: Database) -> None:
    def messages() -> int:
        (facts,) = looked(home.url)
        return facts.messages

    urls = {"home": home.url}
    counts = []
    with Coordinator(urls, recovery=False) as db:
        for number in range(3):
            with db.begin_distributed(f"order-{number}") as tx:
                # A second branch may not write the same table of a file; it is the number of decisions that counts.
                write = f"insert into accounts values ({10 + number}, 1)"
                tx["home"].execute("select 1" if home.kind == "sqlite" and number else write)
            counts.append(messages())
        assert len(set(counts)) == 1
        for number in range(3):
            db.rollback_distributed(f"order-{number}")


# ---- what cannot be read --------------------------------------------------------------------------


class Slow(SqlJournal):
    """Takes its time for each page."""

    def unreadable(self, session: Session, after: Spot = START, *, old: bool = False) -> Script[Any]:
        yield from self._read(session, "SELECT pg_catalog.pg_sleep(0.2)")
        return (yield from super().unreadable(session, after, old=old))


def test_a_journal_is_looked_through_for_what_cannot_be_read_in_as_many_questions_as_it_takes(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, other = (make_database(kind, name, request, tmp_path) for kind, name in (("postgres", "a"), ("sqlite", "b")))
    attempts = []
    with Coordinator({"a": home.url, "b": other.url}, recovery=False) as db:
        db.setup()
        for number, name in enumerate(("one", "two", "three")):
            with db.begin_distributed(name) as tx:
                tx["a"].execute(f"insert into accounts values ({10 + number}, 0)")
                attempts.append(tx.attempt)
    home.query(f"update nodoubt.names set branches = '[' where attempt in ('{attempts[0]}', '{attempts[2]}')")
    monkeypatch.setattr(sql, "LOOK_MAX", 1)
    with wiring.patients({"a": parse_url(home.url)}) as ((patient,), shell):
        journal: Any = patient.journal
        slow = dataclasses.replace(patient, journal=Slow(journal.dialect))
        (facts,) = shell.run(examination.examine([slow], wiring.SystemClock(), answer_s=1))
    assert facts.error is None and facts.journal is not None
    assert {one.attempt for one in facts.journal.unreadable} == {attempts[0], attempts[2]}
