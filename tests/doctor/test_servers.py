"""On real servers: what twenty foreign transactions of five kinds, one of ours and a blocked chain of three look like,
to a role that may not write; and that looking leaves no trace.
"""

from __future__ import annotations

import asyncio
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from kit import until
from nodoubt import wiring
from nodoubt.doctor import examine
from nodoubt.doctor import facts as f
from nodoubt.doctor import mariadb as mariadb_facts
from nodoubt.doctor import postgres as postgres_facts
from nodoubt.doctor.origins import Kind, XaId
from nodoubt.drivers import psycopg as psycopg_session
from nodoubt.drivers import pymysql as pymysql_session
from nodoubt.ports import StatementFailed
from nodoubt.script import Watch, adrive, drive
from nodoubt.testing.servers import PostgresServer
from nodoubt.url import parse_url
from nodoubt.xid import XaXid, Xid, new_attempt, new_cluster

from .conftest import EACH, GIDS, XAS, Standby, Ward, doctor, fill, looked, ours

READS = re.compile(
    r"(SELECT|WITH (?:held|ours) AS (?:MATERIALIZED )?\(SELECT|SHOW|SET|BEGIN READ ONLY|XA RECOVER|ROLLBACK)\b",
    re.IGNORECASE,
)
MESSAGES_MAX = {"postgres": 3, "mariadb": 4}  # to a database that has never seen us


def text(one: str | XaId) -> str:
    return one.text if isinstance(one, XaId) else one


def kinds_of(ward: Ward) -> dict[Kind, Any]:
    return GIDS if ward.url.startswith("postgresql") else XAS


def filled(ward: Ward) -> dict[str, Kind]:
    """Twenty foreign ones and one of ours; the chain waits for the first."""
    made = fill(ward, kinds_of(ward))
    mine = ours(ward)
    ward.prepare(mine, 99)
    ward.block()
    return made | {text(mine): Kind.NODOUBT}


# ---- each is named rightly, nothing is changed ----------------------------------------------------


def test_twenty_foreign_ones_of_five_kinds_and_ours_are_each_named_rightly_and_nothing_is_changed(ward: Ward) -> None:
    made = filled(ward)
    before = ward.listed(), ward.rows()
    began = time.perf_counter()
    document = doctor(ward.look_url)
    print(f"{time.perf_counter() - began:.3f} s in all")
    assert (ward.listed(), ward.rows()) == before
    (one,) = document["databases"]
    print(f"{one['took_ms']} ms, {one['messages']} messages")
    assert {prepared["id"]: prepared["kind"] for prepared in one["prepared"] if prepared["id"] in made} == made
    assert len(made) == 5 * EACH + 1
    for prepared in one["prepared"]:
        if prepared["id"] in made:
            foreign = made[prepared["id"]] is not Kind.NODOUBT
            assert bool(prepared["action"]["after_asking"]) == foreign
            assert prepared["action"]["who"] and prepared["action"]["why"]


def test_the_number_of_messages_does_not_grow_with_what_is_prepared(ward: Ward) -> None:
    (empty,) = looked(ward.look_url)
    filled(ward)
    (full,) = looked(ward.look_url)
    assert len(full.prepared) >= 5 * EACH + 1
    assert empty.messages == full.messages <= MESSAGES_MAX[full.kind]


def test_postgresql_itself_says_that_it_was_only_read(pg: Ward, postgres: PostgresServer) -> None:
    """By its own log of what the role has sent; the driver's first SET is among it."""
    filled(pg)
    role = parse_url(pg.look_url).user
    start = (postgres.directory / "log").stat().st_size
    (facts,) = looked(pg.look_url)
    until(lambda: "pg_prepared_xacts" in logged(postgres, start))
    sent = re.findall(r"statement: (.*?)(?=\n\d{4}-\d\d-\d\d |\Z)", logged(postgres, start), re.DOTALL)
    statements = [part.strip() for message in sent for part in message.split(";") if part.strip()]
    assert len(sent) == facts.messages + 1, role
    assert [one for one in statements if not READS.match(one)] == []
    assert any("pg_prepared_xacts" in one for one in statements)


def logged(server: PostgresServer, start: int) -> str:
    return (server.directory / "log").read_bytes()[start:].decode()


def test_mariadb_itself_says_that_it_was_only_read(maria: Ward) -> None:
    filled(maria)
    user = parse_url(maria.look_url).user
    maria.query(f"grant process on *.* to '{user}'@'%'")
    maria.query("set global log_output = 'TABLE'")
    maria.query("set global general_log = 1")
    try:
        looked(maria.look_url)
    finally:
        maria.query("set global general_log = 0")
    log = "select argument from mysql.general_log where command_type = 'Query'"
    rows = maria.query(f"{log} and user_host like '{user}%'")
    statements = [row[0].decode() if isinstance(row[0], bytes) else row[0] for row in rows]
    assert [one for one in statements if not READS.match(one.strip())] == []
    assert any(one.strip() == "XA RECOVER" for one in statements)
    assert any("INNODB_LOCK_WAITS" in one for one in statements)


def write_on_the_doctors_session(ward: Ward) -> None:
    """With all the rights there are: it is the session that is read-only, not the account."""
    with wiring.patients({"db": parse_url(ward.url)}) as (patients, shell):
        shell.run(examine(patients, wiring.SystemClock()))
        session = patients[0].pool.acquire()
        try:
            schema = "public." if patients[0].kind == "postgres" else ""  # no name of the user's is looked up there
            session.run(f"update {schema}t set v = 7 where id = 150")
        finally:
            patients[0].pool.release(session)


def test_the_session_could_not_write_if_it_were_told_to(ward: Ward) -> None:
    with pytest.raises(StatementFailed, match=r"read-only transaction|READ ONLY"):
        write_on_the_doctors_session(ward)
    assert ward.query("select v from t where id = 150")[0][0] == 150


def test_a_mutant_that_leaves_the_session_as_it_is_could_write(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_facts, "_read_only_for_good", lambda _: "SELECT 1")
    monkeypatch.setattr(mariadb_facts, "_READ_ONLY", "SELECT 1")
    write_on_the_doctors_session(ward)
    assert ward.query("select v from t where id = 150")[0][0] == 7


# ---- what it locks, who waits ---------------------------------------------------------------------


def chain(waiting: list[dict[str, Any]]) -> list[int]:
    """The sessions of a chain, from the root on."""
    found = []
    while waiting:
        (one,) = waiting
        found.append(one["session"])
        waiting = one["waiting"]
    return found


def test_on_postgresql_the_chain_hangs_from_the_very_one_that_blocks_it(pg: Ward) -> None:
    filled(pg)
    (one,) = doctor(pg.url)["databases"]
    (tree,) = one["waits"]
    first = text(GIDS[Kind.SQLALCHEMY](0))
    assert tree["prepared"] == [first]
    assert chain(tree["waiting"]) == pg.numbers
    assert tree["waiting"][0]["statement"] == "update t set v = 0 where id = 1"
    assert re.fullmatch(r"a row of transaction \d+ \(ShareLock\)", tree["waiting"][0]["waits_for"])
    by_id = {prepared["id"]: prepared for prepared in one["prepared"]}
    assert by_id[first]["blocks"] == 3
    assert by_id[first]["locks"] == [{"what": "public.t", "mode": "RowExclusiveLock"}]
    (blocked,) = [finding for finding in one["findings"] if finding["rule"] == "blocked"]
    assert blocked["about"] == [first]


def test_on_mariadb_the_chain_hangs_from_a_prepared_branch_that_has_no_name(maria: Ward) -> None:
    filled(maria)
    (one,) = doctor(maria.url)["databases"]
    (tree,) = one["waits"]
    assert tree["prepared"] == []
    assert "a prepared branch, InnoDB's transaction" in tree["what"]
    assert chain(tree["waiting"]) == maria.numbers
    assert tree["waiting"][0]["waits_for"].endswith(".t (X RECORD)")


def test_on_mariadb_the_only_branch_there_is_is_surely_the_one_that_is_waited_for(maria: Ward) -> None:
    branch = XAS[Kind.NAME](1)
    maria.prepare(branch, 1)
    maria.block()
    (one,) = doctor(maria.url)["databases"]
    (tree,) = one["waits"]
    assert tree["prepared"] == [branch.text]
    (prepared,) = one["prepared"]
    assert (prepared["blocks"], prepared["at_least"], prepared["since"]) == (3, False, "begin")
    assert prepared["locks"] == [{"what": "1 rows, 1 changes", "mode": ""}]


def test_on_postgresql_a_whole_table_is_waited_for_behind_everybody_who_has_touched_it(pg: Ward) -> None:
    for number in range(3):
        pg.prepare(f"order-{number}", number + 1)
    session = pg.sessions.new()
    pg.numbers.append(session.info.backend_pid)
    pg.sessions.waiting(session, "alter table t add column x int")
    until(lambda: pg.waiting() == 1)
    (facts,) = looked(pg.url)
    (waiting,) = facts.waiting
    assert {blocker.prepared for blocker in waiting.behind} == {"order-0", "order-1", "order-2"}
    assert waiting.waits_for == "public.t (AccessExclusiveLock)"


def test_on_postgresql_after_a_crash_the_locks_are_still_told(new_pg: PostgresServer) -> None:
    """A prepared transaction has another place among the locks then."""
    url = new_pg.url()
    with psycopg.connect(url, autocommit=True) as one:
        one.execute("create table t (id int primary key); insert into t values (1)")
        one.execute("begin")
        one.execute("delete from t where id = 1")
        one.execute("prepare transaction 'order-7'")
    new_pg.kill()
    new_pg.restart()
    (facts,) = looked(url)
    (prepared,) = facts.prepared
    assert prepared.locks == (f.Lock("public.t", "RowExclusiveLock"),)


@pytest.fixture(scope="module")
def new_pg() -> Any:
    with PostgresServer() as server:
        yield server


def test_in_another_database_of_the_server_a_table_is_known_by_its_number(pg: Ward, postgres: PostgresServer) -> None:
    pg.prepare("order-7", 1)
    (facts,) = looked(postgres.url())
    (prepared,) = [one for one in facts.prepared if one.id == "order-7"]
    name = parse_url(pg.url).database
    assert prepared.database == name
    assert re.fullmatch(rf"relation \d+ of database {name}", prepared.locks[0].what)


def test_ages_and_owners_are_told_where_the_server_tells_them(pg: Ward) -> None:
    pg.prepare("order-7", 1)
    (facts,) = looked(pg.url)
    (prepared,) = facts.prepared
    assert (prepared.owner, prepared.since, prepared.at_least) == (parse_url(pg.url).user, "prepare", False)
    assert prepared.age_s is not None and prepared.age_s >= 0
    assert prepared.xids_held is not None and prepared.xids_held >= 1
    assert facts.vacuum is not None and facts.vacuum.freeze_max_age == 200_000_000


def test_mariadb_tells_how_long_branches_have_run_at_least(maria: Ward) -> None:
    for number in range(2):
        maria.prepare(XAS[Kind.NAME](number), number + 1)
    (facts,) = looked(maria.url)
    assert [(one.since, one.at_least) for one in facts.prepared] == [("begin", True)] * 2
    assert all(one.age_s is not None for one in facts.prepared)
    assert all(one.owner is None and one.database is None for one in facts.prepared)
    assert any("XA RECOVER tells the id alone" in gap.what for gap in facts.gaps)


def test_a_session_that_still_has_its_branch_is_named_if_it_is_ours_or_the_only_one(maria: Ward) -> None:
    session = maria.sessions.new()
    with session.cursor() as cursor:
        for statement in (
            "xa start 'order-7'",
            "update t set v = 1 where id = 1",
            "xa end 'order-7'",
            "xa prepare 'order-7'",
        ):
            cursor.execute(statement)
        (facts,) = looked(maria.url)
        (prepared,) = facts.prepared
        assert prepared.session == session.thread_id()
        maria.prepare(XAS[Kind.NAME](1), 2)
        (facts,) = looked(maria.url)
        assert {one.session for one in facts.prepared} == {None}
    session.close()


def test_a_session_of_ours_that_still_has_its_branch_is_told_among_others(maria: Ward) -> None:
    session = pymysql_session.connect(parse_url(maria.url))
    handle = XaXid(Xid(new_cluster(), new_attempt(), 0), session.connection_id, session.server_started)
    maria.prepare(XAS[Kind.NAME](1), 2)
    session.run(f"xa start {handle.sql}; update t set v = 1 where id = 1; xa end {handle.sql}; xa prepare {handle.sql}")
    (facts,) = looked(maria.url)
    found = {one.origin.kind: one for one in facts.prepared}
    assert found[Kind.NODOUBT].session == session.connection_id
    assert (found[Kind.NODOUBT].at_least, found[Kind.NAME].at_least) == (False, True)
    session.close()
    until(lambda: {one.session for one in looked(maria.url)[0].prepared} == {None})


# ---- in between, and behind -----------------------------------------------------------------------


class Pooler:
    """A session whose messages go to several server processes in turn, as a pooler by transaction hands them out."""

    usable = True

    def __init__(self, connection_id: int, *sessions: Any) -> None:
        self.connection_id, self.sessions = connection_id, list(sessions)

    def run(self, sql: str) -> Any:
        self.sessions.append(self.sessions.pop(0))
        return self.sessions[-1].run(sql)


def left_read_only(pg: Ward) -> tuple[list[str], list[str]]:
    """What the doctor says behind a pooler, and what each of its server sessions is left with."""
    sessions = [psycopg_session.connect(parse_url(pg.url)) for _ in range(2)]
    pooler: Any = Pooler(sessions[1].connection_id + 1_000_000, *sessions)
    with ThreadPoolExecutor(1) as threads:
        seen = drive(postgres_facts.look(pooler, wiring.SystemClock()), executor=threads, watch=Watch())
    left = [session.run("show default_transaction_read_only")[0].scalar() for session in sessions]
    for session in sessions:
        session.close()
    return [flaw.what for flaw in seen.flaws], left


def test_behind_a_pooler_no_session_is_left_read_only_for_whoever_comes_next(pg: Ward) -> None:
    flaws, left = left_read_only(pg)
    assert any("a pooler shares sessions by transaction" in one for one in flaws)
    assert any("a connection pooler stands between us and the server" in one for one in flaws)
    assert left == ["off", "off"]


def test_a_mutant_that_does_not_ask_whose_session_it_is_leaves_one_read_only(
    pg: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = postgres_facts._read_only_for_good
    monkeypatch.setattr(postgres_facts, "_read_only_for_good", lambda number: sound(number).partition(" WHERE ")[0])
    assert "on" in left_read_only(pg)[1]


def test_a_standby_is_told_to_list_nothing() -> None:
    with Standby() as server:
        url = server.url()
        with psycopg.connect(url, autocommit=True) as one:
            one.execute("create table t (id int)")
            one.execute("begin")
            one.execute("insert into t values (1)")
            one.execute("prepare transaction 'order-7'")
        (facts,) = looked(url)
        assert len(facts.prepared) == 1
        (server.data / "standby.signal").touch()
        server.restart()
        (told,) = doctor(url, code=3)["databases"]
        assert (told["server"]["standby"], told["prepared"]) == (True, [])
        assert any("a standby lists none" in gap["what"] for gap in told["gaps"])
        (finding,) = [each for each in told["findings"] if each["rule"] == "settings"]
        assert finding["why"] == "connect to the primary"


# ---- rights ---------------------------------------------------------------------------------------


def test_what_a_role_may_not_see_on_postgresql_is_named_and_gone_once_it_may(pg: Ward) -> None:
    pg.prepare("order-7", 1)
    pg.block()
    role = parse_url(pg.look_url).user
    (facts,) = looked(pg.look_url)
    (gap,) = facts.gaps
    assert gap.advice == f'GRANT pg_monitor TO "{role}";'
    assert [one.statement for one in facts.waiting] == [None, None, None]
    assert len(facts.prepared) == 1  # seen all the same, and so is who waits for whom
    assert [{blocker.session for blocker in one.behind} for one in facts.waiting][1:] == [{n} for n in pg.numbers[:2]]
    pg.query(gap.advice)
    (facts,) = looked(pg.look_url)
    assert facts.gaps == ()
    assert facts.waiting[0].statement == "update t set v = 0 where id = 1"


def test_what_an_account_may_not_see_on_mariadb_is_named_and_gone_once_it_may(maria: Ward) -> None:
    maria.prepare(XAS[Kind.NAME](1), 1)
    maria.block()
    (facts,) = looked(maria.look_url)
    gap = facts.gaps[0]
    assert gap.advice.startswith("GRANT PROCESS ON *.* TO 'look_")
    assert (facts.waiting, facts.prepared[0].age_s) == ((), None)
    maria.query(gap.advice.rstrip(";"))
    (facts,) = looked(maria.look_url)
    assert not any("PROCESS" in one.advice for one in facts.gaps)
    assert [one.session for one in facts.waiting] == maria.numbers
    assert facts.prepared[0].age_s is not None


# ---- sync and async, ids that need quoting --------------------------------------------------------


def test_asked_over_the_async_drivers_a_server_tells_the_same(ward: Ward) -> None:
    ward.prepare(kinds_of(ward)[Kind.NAME](1), 1)
    ward.block()
    url = parse_url(ward.url)
    clock = wiring.SystemClock()

    async def over_async() -> Any:
        if url.kind == "postgres":
            from nodoubt.drivers import psycopg_async

            session: Any = await psycopg_async.connect(url)
            seen = await adrive(postgres_facts.look(session, clock))
        else:
            from nodoubt.drivers import asyncmy

            session = await asyncmy.connect(url)
            seen = await adrive(mariadb_facts.look(session, clock, url.database))
        await session.close()
        return seen

    (facts,) = looked(ward.url)
    seen = asyncio.run(over_async())
    assert [one.id for one in seen.prepared] == [one.id for one in facts.prepared]
    assert [one.locks for one in seen.prepared] == [one.locks for one in facts.prepared]
    assert [(one.session, one.behind, one.waits_for, one.statement) for one in seen.waiting] == [
        (one.session, one.behind, one.waits_for, one.statement) for one in facts.waiting
    ]
    assert seen.settings == facts.settings
    assert [flaw.what for flaw in seen.flaws] == [flaw.what for flaw in facts.flaws]


@pytest.mark.parametrize("gid", ["it's", "back\\slash", "ü\tand; drop table t --", "E'"])
def test_what_is_printed_for_a_strange_gid_ends_that_very_one(pg: Ward, gid: str) -> None:
    pg.prepare(gid, 1)
    (one,) = doctor(pg.url)["databases"]
    (prepared,) = one["prepared"]
    assert prepared["id"] == gid
    pg.query(prepared["action"]["after_asking"][1])
    assert pg.listed() == []


def test_an_id_of_another_encoding_hides_no_other_and_is_ended_by_what_is_printed_for_it(
    pg: Ward, postgres: PostgresServer
) -> None:
    """Those of all databases are listed in each, as they were stored: one program could blind all who look."""
    pg.prepare("plain", 1)
    name = "ascii_" + new_cluster()
    elsewhere = postgres.url("postgres").rpartition("/")[0] + f"/{name}"
    pg.query(f"create database {name} template template0 encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C'")
    with psycopg.connect(elsewhere, autocommit=True) as connection:
        connection.execute("create table t (x int)")
        connection.execute(b"begin; insert into t values (1); prepare transaction 'caf\xe9\\ \xff'")
        told = [doctor(url)["databases"][0]["prepared"] for url in (pg.url, elsewhere)]
        assert all({one["id"] for one in each} >= {"plain", r"caf\xe9\ \xff"} for each in told)
        (strange,) = (one for one in told[0] if one["database"] == name)
        assert strange["kind"] == Kind.UNKNOWN
        connection.execute(strange["action"]["after_asking"][1].encode())
        left = connection.execute("select 1 from pg_prepared_xacts where database = current_database()")
        assert left.rowcount == 0
    pg.query(f"drop database {name}")


@pytest.mark.parametrize("xa", [XaId(1, b"it's", b""), XaId(77, bytes(range(64)), bytes(range(64, 128)))])
def test_what_is_printed_for_a_strange_xa_id_ends_that_very_one(maria: Ward, xa: XaId) -> None:
    maria.prepare(xa, 1)
    (one,) = doctor(maria.url)["databases"]
    (prepared,) = one["prepared"]
    maria.query(prepared["action"]["after_asking"][1].rstrip(";"))
    assert maria.listed() == []
