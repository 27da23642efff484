"""What others have put on our tables is found, said, and refused where it could swallow or alter a row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from doctor.conftest import doctor
from kit import QUICK, Database, make_database, opened
from nodoubt import Coordinator, JournalUnavailable, ResourceRefused
from nodoubt.journals import sql as journals_sql
from nodoubt.resources import postgres as resources_postgres
from schema.accounts import Guarded, dropped, guarded

RULE = "create rule swallow as on insert to nodoubt.decisions do instead nothing"
FUNCTION = "create function public.swallow() returns trigger language plpgsql as 'begin return null; end'"
TRIGGER = "create trigger swallow {when} on nodoubt.{table} for each {each} execute function public.swallow()"


def trigger(when: str, table: str = "receipts", each: str = "row") -> list[str]:
    return [FUNCTION, TRIGGER.format(when=when, table=table, each=each)]


@pytest.fixture
def home(kind: str, request: Any, tmp_path: Path) -> Database:
    one = make_database(kind, "home", request, tmp_path)
    with Coordinator({"home": one.url}, recovery=False) as db:
        db.setup()
    return one


def told(one: Database, code: int) -> list[dict[str, Any]]:
    """What the doctor finds at our tables."""
    (found,) = doctor(one.url, code=code)["databases"]
    return [each for each in found["findings"] if each["severity"] != "note"]


REFUSED = [
    ("postgres", [RULE], "rule 'swallow' on nodoubt.decisions"),
    ("postgres", trigger("before insert"), "trigger 'swallow' on nodoubt.receipts"),
    ("postgres", trigger("before update", "identity"), "trigger 'swallow' on nodoubt.identity"),
    (
        "mariadb",
        ["create trigger swallow before insert on nodoubt_decisions for each row set new.owner = ''"],
        "trigger 'swallow' on nodoubt_decisions",
    ),
    (
        "sqlite",
        ["create trigger swallow before insert on Nodoubt_Receipts begin select raise(ignore); end"],
        "trigger 'swallow' on nodoubt_receipts",
    ),
]


@pytest.mark.parametrize(("kind", "made", "words"), REFUSED, ids=[f"{row[0]}-{row[2]}" for row in REFUSED])
@pytest.mark.anyio
async def test_what_could_swallow_a_row_of_ours_keeps_a_coordinator_from_starting_until_it_is_dropped(
    home: Database, mode: str, made: list[str], words: str
) -> None:
    for statement in made:
        home.query(statement)
    (finding,) = told(home, 3)
    assert finding["severity"] == "human"
    # The test server's password is our name, and no password is ever printed.
    assert finding["what"].replace("***", "nodoubt").lower() == words.lower()
    assert "can swallow or alter a row" in finding["why"]
    with pytest.raises(ResourceRefused, match="swallow") as refused:
        async with opened(mode, [home]):
            pass
    assert str(refused.value).startswith("home cannot take part: ") or home.kind == "sqlite"
    (change,) = finding["changes"]
    home.query(change["line"].rstrip(";").replace("***", "nodoubt"))
    assert told(home, 0) == []
    async with opened(mode, [home]) as face, face.transaction() as tx:
        await tx.execute("home", "update accounts set balance = balance - 1 where id = 0")
    assert home.balance() == 99


AFTERWARDS = [
    ("postgres", trigger("after insert")),
    ("postgres", trigger("before insert", each="statement")[:1] + trigger("after delete", each="statement")[1:]),
    ("mariadb", ["create trigger swallow after insert on nodoubt_decisions for each row set @seen = new.owner"]),
]


@pytest.mark.parametrize(("kind", "made"), AFTERWARDS)
def test_what_only_comes_after_a_row_is_advice(home: Database, made: list[str]) -> None:
    """As the triggers of pg_repack or pt-online-schema-change: who is on call must be able to start a coordinator."""
    for statement in made:
        home.query(statement)
    (finding,) = told(home, 0)
    assert (finding["severity"], "runs inside each of our transactions" in finding["why"]) == ("advice", True)
    with Coordinator({"home": home.url}, recovery=False) as db, db.transaction() as tx:
        tx.execute("update accounts set balance = 0 where id = 0")


@pytest.mark.parametrize("kind", ["postgres"])
@pytest.mark.parametrize(
    "made",
    [
        [*trigger("before insert"), "alter table nodoubt.receipts disable trigger swallow"],
        [*trigger("before truncate", each="statement")],
        [RULE, "alter table nodoubt.decisions disable rule swallow"],
    ],
)
def test_what_never_fires_is_not_mentioned(home: Database, made: list[str]) -> None:
    for statement in made:
        home.query(statement)
    assert told(home, 0) == []


@pytest.mark.parametrize("kind", ["mariadb", "sqlite"])
def test_triggers_on_others_tables_are_none_of_our_business(home: Database, kind: str) -> None:
    body = {"mariadb": "for each row set new.balance = 0", "sqlite": "begin select 1; end"}[kind]
    home.query(f"create trigger theirs before update on accounts {body}")
    assert told(home, 0) == []


@pytest.mark.parametrize("kind", ["mariadb"])
def test_a_table_of_the_user_s_whose_name_begins_as_ours_do_is_the_user_s(home: Database) -> None:
    home.query("create table nodoubt_notes (id int)")
    home.query("create trigger theirs before insert on nodoubt_notes for each row set new.id = 1")
    assert told(home, 0) == []


@pytest.fixture
def account(home: Database) -> Iterator[Guarded]:
    made = guarded(home)
    yield made
    dropped(made)


@pytest.mark.parametrize("kind", ["postgres"])
def test_row_level_security_is_refused_to_whom_it_hides_rows_from(home: Database, account: Guarded) -> None:
    for statement in ("grant usage on schema nodoubt", "grant all on all tables in schema nodoubt"):
        home.query(f"{statement} to {account.to}")
    home.query("alter table nodoubt.decisions enable row level security")
    (finding,) = told(home, 0)
    assert finding["severity"] == "advice"
    assert "this role passes by it, others do not" in finding["why"]
    with Coordinator({"home": home.url}, recovery=False):
        pass
    (finding,) = told(account, 3)
    assert (finding["severity"], finding["what"]) == ("human", "row level security is enabled on nodoubt.decisions")
    with pytest.raises(ResourceRefused, match="row level security is enabled on nodoubt.decisions"):
        Coordinator({"home": account.url}, recovery=False).open()
    home.query(finding["changes"][0]["line"])
    assert told(account, 0) == []


@pytest.mark.parametrize("kind", ["mariadb"])
def test_an_account_that_is_shown_no_triggers_is_told_so(home: Database, account: Guarded) -> None:
    home.query(f"grant select on *.* to {account.to}")
    home.query("create trigger swallow before insert on nodoubt_decisions for each row set new.owner = ''")

    def gaps() -> list[str]:
        (found,) = doctor(account.url)["databases"]
        return [gap["what"] for gap in found["gaps"] if "triggers on our own tables" in gap["what"]]

    assert len(gaps()) == 1 and told(account, 0) == []
    name = home.query("select database()")[0][0]
    for on in (f"`{name}`.*", "*.*"):
        home.query(f"grant trigger on {on} to {account.to}")
        assert gaps() == []
        assert [finding["what"].replace("***", "nodoubt") for finding in told(account, 3)] == [
            "trigger 'swallow' on nodoubt_decisions"
        ]
        home.query(f"revoke trigger on {on} from {account.to}")


# ---- a journal of its own, and what happens without the look --------------------------------------


@pytest.mark.parametrize("kind", ["postgres"])
def test_a_journal_of_its_own_is_looked_at_too(home: Database, tmp_path: Path) -> None:
    file = f"sqlite:///{tmp_path}/a.db"
    with Coordinator({"a": file}, journal=home.url, recovery=False) as db:
        db.setup()
    home.query(RULE)
    with pytest.raises(ResourceRefused, match="rule 'swallow' on nodoubt.decisions"):
        Coordinator({"a": file}, journal=home.url, recovery=False).open()


@pytest.mark.parametrize("kind", ["postgres"])
def test_a_mutant_that_does_not_look_commits_one_branch_without_a_decision(
    home: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any
) -> None:
    """COMMIT PREPARED follows the rows in the same message: that they were swallowed is told too late."""
    for room in (journals_sql, resources_postgres):
        monkeypatch.setattr(room, "meddlers", lambda *_: [])
    other = make_database("sqlite", "other", request, tmp_path)
    with Coordinator({"home": home.url, "other": other.url}, recovery=False) as db:
        db.setup()
        home.query(RULE)
    urls, settings = {"home": home.url, "other": other.url}, replace(QUICK, decide_s=1)
    with Coordinator(urls, settings=settings, recovery=False) as db:
        with db.begin_distributed("order-7") as tx:
            tx["home"].execute("update accounts set balance = 0 where id = 0")
            tx["other"].execute("update accounts set balance = 0 where id = 0")
        with pytest.raises(JournalUnavailable, match="stays prepared, undecided"):  # which is not so
            db.commit_distributed("order-7")
        assert (home.balance(), other.balance()) == (0, 100)
        assert home.query("select count(*) from nodoubt.decisions") == [(0,)]
        assert home.prepared() == [] and len(other.prepared()) == 1


# ---- the key by which a row is write-once, and tables that a crash empties --------------------------


def copied(table: str, name: str) -> list[str]:
    """As somebody does who brings a table back out of a backup beside it: the rows, and not the keys."""
    return [
        f"create table {table}_copy as select * from {table}",
        f"drop table {table}",
        f"alter table {table}_copy rename to {name}",
    ]


KEYLESS = [
    ("postgres", ["alter table nodoubt.decisions drop constraint decisions_pkey"], "nodoubt.decisions"),
    ("postgres", copied("nodoubt.receipts", "receipts"), "nodoubt.receipts"),
    ("mariadb", copied("nodoubt_decisions", "nodoubt_decisions"), "nodoubt_decisions"),
    ("mariadb", ["alter table nodoubt_receipts drop primary key"], "nodoubt_receipts"),
    ("sqlite", copied("nodoubt_decisions", "nodoubt_decisions"), "nodoubt_decisions"),
    ("sqlite", copied("nodoubt_receipts", "nodoubt_receipts"), "nodoubt_receipts"),
]


@pytest.mark.parametrize(("kind", "made", "table"), KEYLESS, ids=[f"{row[0]}-{row[2]}" for row in KEYLESS])
@pytest.mark.anyio
async def test_a_table_that_has_lost_its_primary_key_keeps_a_coordinator_from_starting(
    home: Database, mode: str, made: list[str], table: str
) -> None:
    """As a restore leaves it that died before the constraints."""
    for statement in made:
        home.query(statement)
    (finding,) = told(home, 3)
    what = finding["what"].replace("***", "nodoubt")
    assert (finding["severity"], what) == ("human", f"{table} has no primary key")
    with pytest.raises(ResourceRefused, match=f"{table} has no primary key"):
        async with opened(mode, [home]):
            pass


@pytest.mark.parametrize("kind", ["postgres"])
def test_a_mutant_that_does_not_look_for_the_key_commits_beside_an_abort(
    home: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody's ABORT is under way when the commit is decided. With the key one of the two would wait, and fail."""
    for room in (journals_sql, resources_postgres):
        monkeypatch.setattr(room, "meddlers", lambda *_: [])
    home.query("alter table nodoubt.decisions drop constraint decisions_pkey")
    fence = (
        "insert into nodoubt.decisions (attempt, verdict, mode, name, branches, owner, reason, decided_at) select "
        "attempt, 'abort', 'staged', name, branches, owner, '', created_at from nodoubt.names"
    )
    with Coordinator({"home": home.url}, settings=QUICK, recovery=False) as db, psycopg.connect(home.url) as other:
        with db.begin_distributed("order-7") as tx:
            tx["home"].execute("update accounts set balance = 0 where id = 0")
        other.execute(fence.encode())
        db.commit_distributed("order-7")
        other.commit()
    assert sorted(home.query("select verdict from nodoubt.decisions")) == [("abort",), ("commit",)]


@pytest.mark.parametrize("kind", ["postgres"])
def test_a_table_that_a_crash_would_empty_keeps_a_coordinator_from_starting_until_it_is_logged(home: Database) -> None:
    home.query("alter table nodoubt.decisions set unlogged")
    (finding,) = told(home, 3)
    assert (finding["severity"], finding["what"]) == ("human", "nodoubt.decisions is unlogged")
    with pytest.raises(ResourceRefused, match="nodoubt.decisions is unlogged"):
        Coordinator({"home": home.url}, recovery=False).open()
    home.query(finding["changes"][0]["line"])
    assert told(home, 0) == []
    with Coordinator({"home": home.url}, recovery=False):
        pass


@pytest.mark.parametrize("kind", ["postgres"])
def test_a_role_whose_names_without_a_schema_are_ours_is_advised_of_it(home: Database) -> None:
    home.query("create schema other")
    name = home.query("select current_database()")[0][0]
    home.query(f'alter database "{name}" set search_path = other, nodoubt')
    assert told(home, 0) == []
    home.query(f'alter database "{name}" set search_path = nodoubt, public')
    (finding,) = told(home, 0)
    assert (finding["severity"], "is the first in search_path" in finding["what"]) == ("advice", True)
    assert [change["line"] for change in finding["changes"]] == ['ALTER ROLE "postgres" SET search_path = public;']
    with Coordinator({"home": home.url}, recovery=False):
        pass
