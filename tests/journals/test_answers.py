"""What a server's answer means: tags, warnings, error codes. From sessions that say what a test wants, and real ones.

Each check fails here when it is taken out: the tag, the warning, the explicit ROLLBACK, the one message, the count of
what was confirmed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import nodoubt.drivers.sqlite
from journals.places import MakePlace, Place, query
from nodoubt.errors import InvariantViolated, ResourceRefused, SchemaMismatch
from nodoubt.journals.dialects import (
    MARIADB_CODES,
    POSTGRES_CODES,
    SQLITE_CODES,
    Dialect,
    MariaDBDialect,
    PostgresDialect,
    SqliteDialect,
)
from nodoubt.journals.sql import SqlJournal
from nodoubt.ports import BelowFloor, Conflict, Failure, Refused, Reply, Session, SessionLost, StatementFailed, Unclear
from nodoubt.protocol.records import Decision, Epoch
from nodoubt.script import Script, Watch, do, drive
from nodoubt.testing.bench import Bench, outcomes
from nodoubt.testing.processes import wait_for
from nodoubt.testing.samples import NOW, abort, attempt_at, decision, staging
from nodoubt.testing.servers import PostgresServer
from nodoubt.url import parse_url
from nodoubt.xid import new_attempt

DIALECTS = (PostgresDialect(), MariaDBDialect("journal"), SqliteDialect())


class Told:
    """A session that answers what it is told to, and keeps what it was sent."""

    connection_id = 0
    server_started = 0

    def __init__(self, *answers: Sequence[Reply] | Exception, warnings: Sequence[str] = ()) -> None:
        self.answers, self.warnings = list(answers), list(warnings)
        self.sent: list[str] = []
        self.usable = True

    def run(self, sql: str) -> tuple[Reply, ...]:
        self.sent.append(sql)
        answer = self.answers.pop(0) if self.answers else ()
        if isinstance(answer, Exception):
            raise answer
        return tuple(answer)

    def kill(self) -> None:
        self.usable = False


def told(script: Callable[[SqlJournal, Any], Script[Any]], session: Told, dialect: Dialect) -> Any:
    with ThreadPoolExecutor(1) as executor:
        return drive(script(SqlJournal(dialect), session), executor=executor, watch=Watch())


def insert(journal: SqlJournal, session: Any) -> Script[None]:
    return journal.insert(session, [decision()])


def replies(*tags: str) -> tuple[Reply, ...]:
    return tuple(Reply(tag=tag) for tag in tags)


# ---- the server's own word ------------------------------------------------------------------------


def test_success_is_the_servers_own_word() -> None:
    told(insert, Told(replies("BEGIN", "SELECT 1", "INSERT 0 1", "COMMIT")), PostgresDialect())
    told(insert, Told(replies("PRAGMA", "BEGIN", "INSERT", "COMMIT")), SqliteDialect())
    told(insert, Told(replies("", "", "", "")), MariaDBDialect("journal"))
    for dialect in (PostgresDialect(), SqliteDialect()):
        for silent in ((), replies(""), replies("BEGIN", "INSERT 0 1")):
            with pytest.raises(Unclear):
                told(insert, Told(silent), dialect)


def test_a_commit_that_is_answered_with_rollback_was_surely_not_done() -> None:
    with pytest.raises(Refused) as refused:
        told(insert, Told(replies("BEGIN", "SELECT 1", "INSERT 0 1", "ROLLBACK")), PostgresDialect())
    assert refused.value.retry
    with pytest.raises(Refused):
        told(lambda j, s: j.confirm(s, [new_attempt()]), Told(replies("SELECT 0", "UPDATE 0", "ROLLBACK")), DIALECTS[0])


def test_a_commit_that_no_standby_waited_for_is_unclear() -> None:
    done = replies("BEGIN", "SELECT 1", "INSERT 0 1", "COMMIT")
    told(insert, Told(done, warnings=["GetNewTransactionId: database must be vacuumed"]), PostgresDialect())
    # The routine is what no language changes; the text is in the server's.
    for warning in ("SyncRepWaitForLSN: canceling wait", "SyncRepWaitForLSN: storniere Warten"):
        with pytest.raises(Unclear, match="not durably"):
            told(insert, Told(done, warnings=[warning]), PostgresDialect())


def test_fewer_rows_confirmed_than_returned_are_none_confirmed() -> None:
    one = decision()
    row = (one.attempt, "commit", "once", "", "[]", None, "", "", 0.0, 0)
    for count, believed in ((2, True), (1, True), (-1, True), (0, False)):
        session = Told((Reply(rows=(row,), columns=("attempt",)), Reply(count=count), Reply(tag="COMMIT")))
        if believed:
            assert set(told(lambda j, s: j.confirm(s, [one.attempt]), session, PostgresDialect())) == {one.attempt}
        else:
            with pytest.raises(Unclear):
                told(lambda j, s: j.confirm(s, [one.attempt]), session, PostgresDialect())


# ---- no stalled client sits on a lock -------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.kind)
def test_every_transaction_is_one_message_that_begins_and_commits(dialect: Dialect) -> None:
    scripts: list[Callable[[SqlJournal, Any], Script[Any]]] = [
        insert,
        lambda j, s: j.insert(s, [decision(), abort()]),
        lambda j, s: j.confirm(s, [new_attempt(), new_attempt()]),
        lambda j, s: j.end(s, [new_attempt()]),
        lambda j, s: j.stage(s, staging("order"), replace=staging("order")),
    ]
    for script in scripts:
        answer = [Reply(count=1)] * 9 + [Reply(tag=dialect.commit_tag)]
        session = Told(answer)
        told(script, session, dialect)
        (message,) = session.sent
        assert message.startswith(dialect.begin_forced) and message.endswith("; COMMIT")


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.kind)
def test_after_any_error_the_session_is_rolled_back_or_ended(dialect: Dialect) -> None:
    session = Told(StatementFailed("1062", "duplicate"))
    with pytest.raises((Refused, Unclear)):
        told(insert, session, dialect)
    assert session.sent[1:] == ["ROLLBACK"] and session.usable
    session = Told(StatementFailed("1062", "duplicate"), StatementFailed("1", "no transaction is active"))
    with pytest.raises((Refused, Unclear)):
        told(insert, session, dialect)
    assert not session.usable


def test_an_error_stays_what_it_was_when_the_rollback_behind_it_gets_no_answer() -> None:
    for rolled_back in (SessionLost("gone"), StatementFailed("XX000", "odd")):
        with pytest.raises(Conflict):
            told(insert, Told(StatementFailed("23505", "duplicate"), rolled_back), PostgresDialect())


class TakesItsWord(SqlJournal):
    """Looks at the tag of COMMIT, and not at what was written."""

    def insert(self, session: Session, decisions: Sequence[Decision]) -> Script[None]:
        statements = [row for one in decisions for row in self.decision_rows(one)]
        yield from self._write(session, *statements)


SWALLOWED = [
    (
        "postgres",
        "CREATE RULE swallow AS ON INSERT TO nodoubt.decisions DO INSTEAD NOTHING",
        "DROP RULE swallow ON nodoubt.decisions",
    ),
    (
        "sqlite",
        "CREATE TRIGGER swallow BEFORE INSERT ON nodoubt_decisions BEGIN SELECT RAISE(IGNORE); END",
        "DROP TRIGGER swallow",
    ),
]


@pytest.mark.parametrize(("kind", "swallow", "drop"), SWALLOWED, ids=["postgres", "sqlite"])
def test_a_decision_that_was_swallowed_is_not_taken_for_written(
    bench: Bench, other_bench: Any, place: Place, swallow: str, drop: str
) -> None:
    one = decision()
    query(bench, swallow)
    try:
        session = bench.main
        with pytest.raises(InvariantViolated, match="I4 violated: a row of the protocol wrote nothing"):
            bench.insert([one])
        assert not session.usable  # what it has prepared may follow a rule that is not there any more
        other_bench(TakesItsWord(place.dialect())).insert([one])
        assert bench.confirm([one.attempt]) == {}
    finally:
        query(bench, drop)
    bench.insert([one])
    assert set(bench.confirm([one.attempt])) == {one.attempt}


# ---- the tables of error codes --------------------------------------------------------------------

MEANS: dict[Failure, tuple[type[Exception], bool | None]] = {
    Failure.DUPLICATE: (Conflict, False),
    Failure.NO_FLOOR: (BelowFloor, False),
    Failure.TRANSIENT: (Refused, True),
    Failure.FULL: (Refused, True),
    Failure.REFUSED: (Refused, False),
}
ROWS = [
    (dialect, code, failure)
    for dialect, codes in zip(DIALECTS, (POSTGRES_CODES, MARIADB_CODES, SQLITE_CODES), strict=True)
    for code, failure in codes.items()
]


@pytest.mark.parametrize(("dialect", "code", "failure"), ROWS, ids=lambda value: getattr(value, "kind", str(value)))
def test_each_code_of_the_table_is_raised_as_what_it_means(dialect: Dialect, code: str, failure: Failure) -> None:
    expected, retry = MEANS[failure]
    # `insert` asks, after NO_FLOOR, whether a decision stands, and what the floor is.
    asked = (Reply(rows=((0,),), columns=("count",)),), (Reply(rows=(("0" * 32, "floor"),), columns=("value", "item")),)
    session = Told(StatementFailed(code, "said the server"), (), *asked)
    with pytest.raises(expected, match="said the server") as raised:
        told(insert, session, dialect)
    assert type(raised.value) is expected
    assert getattr(raised.value, "retry", None) is retry


UNKNOWN = [
    *((PostgresDialect(), code) for code in ("XX000", "XX001", "58030", "57P01", "57P02", "08006", "08P01", "F0000")),
    *((MariaDBDialect("journal"), code) for code in ("1180", "1317", "1053", "1030", "1026", "1021", "9999")),
    *((SqliteDialect(), code) for code in ("10", "1034", "4618", "13", "7", "11", "9", "odd")),
]


@pytest.mark.parametrize(("dialect", "code"), UNKNOWN, ids=lambda value: getattr(value, "kind", str(value)))
def test_a_code_that_may_come_after_a_commit_took_effect_is_unclear(dialect: Dialect, code: str) -> None:
    with pytest.raises(Unclear):
        told(insert, Told(StatementFailed(code, "said the server")), dialect)


def test_extended_codes_of_sqlite_mean_what_their_primary_code_means() -> None:
    for code, failure in (("517", Failure.TRANSIENT), ("261", Failure.TRANSIENT), ("1032", Failure.REFUSED)):
        assert SqliteDialect().failure(code) is failure
    assert SqliteDialect().failure("2067") is Failure.DUPLICATE  # not 19


# ---- real servers say these things ----------------------------------------------------------------


@pytest.fixture
def kind() -> str:
    return "postgres"


@pytest.fixture
def style() -> str:
    return "sync"


def test_postgres_cancelled_timed_out_and_read_only(place: Place, bench: Bench) -> None:
    one = decision()
    holder, session = bench.session(), bench.session()
    query(bench, "; ".join((bench.journal.dialect.begin_forced, *bench.journal.decision_rows(one))), holder)
    for setting, code in (("lock_timeout = 50", "55P03"), ("statement_timeout = 50", "57014")):
        query(bench, f"SET {setting}", session)
        with pytest.raises(Refused, match=code) as refused:
            bench.run(bench.journal.insert(session, [abort(one.attempt)]))
        assert refused.value.retry and session.usable
        query(bench, "RESET ALL", session)
    query(bench, "ROLLBACK", holder)
    # A role's default of read-only is overruled: our own BEGIN says READ WRITE.
    query(bench, "SET default_transaction_read_only = on; SET default_transaction_isolation = serializable", session)
    bench.run(bench.journal.insert(session, [abort(one.attempt)]))


def test_postgres_a_deadlock_is_a_refusal_to_be_tried_again(place: Place, bench: Bench) -> None:
    first, second = decision(), decision()
    bench.insert([first, second])
    table = bench.journal.dialect.table("decisions")
    holder = bench.session()
    take = f"UPDATE {table} SET confirms = confirms WHERE attempt = '{{}}'"
    query(bench, f"SET deadlock_timeout = '5s'; BEGIN; {take.format(second.attempt)}", holder)
    session = bench.session()
    query(bench, "SET deadlock_timeout = '300ms'", session)
    confirm = bench.start(bench.journal.confirm(session, [first.attempt, second.attempt]))
    waits = f"SELECT count(*) FROM pg_stat_activity WHERE pid = {session.connection_id} AND wait_event_type = 'Lock'"
    wait_for(lambda: bool(query(bench, waits).scalar()), "the confirm to wait for the second row")
    # Each looks for a circle once, after its time: the confirm, or, if it looked too early, the other.
    closing = bench.start(_ignoring_errors(holder, f"{take.format(first.attempt)}; COMMIT"))
    (ended,) = outcomes([confirm])
    if isinstance(ended, Exception):
        assert isinstance(ended, Refused) and ended.retry and "40P01" in str(ended)
    else:
        assert set(ended) == {first.attempt, second.attempt}
    closing.result(30)


def _ignoring_errors(session: Any, sql: str) -> Script[None]:
    try:
        yield from do(session, "run", sql)
    except StatementFailed:
        yield from do(session, "run", "ROLLBACK")


def test_postgres_a_commit_that_no_standby_has_is_unclear() -> None:
    with PostgresServer() as server:
        url = server.url()
        with Place("postgres", "sync", url).bench() as bench:
            bench.setup("c" * 16)
            query(bench, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
            query(bench, "SELECT pg_reload_conf()")
            wait_for(lambda: query(bench, "SHOW synchronous_standby_names").scalar() == "nobody", "the reload")
        for style in ("sync", "async"):
            with Place("postgres", style, url).bench() as bench:
                a_cancelled_wait_for_a_standby_is_unclear(bench)


def a_cancelled_wait_for_a_standby_is_unclear(bench: Bench) -> None:
    session, one = bench.session(), decision()
    future = bench.start(bench.journal.insert(session, [one]))
    where = f"pid = {session.connection_id} AND wait_event = 'SyncRep'"
    waits = f"SELECT count(*) FROM pg_stat_activity WHERE {where}"
    wait_for(lambda: bool(query(bench, waits).scalar()), "the wait for a standby")
    query(bench, f"SELECT pg_cancel_backend({session.connection_id})")
    with pytest.raises(Unclear, match="not durably"):
        future.result(30)
    assert set(bench.look([one.attempt])) == {one.attempt}  # it stands here, and may not elsewhere


@pytest.mark.parametrize("kind", ["mariadb"])
def test_mariadb_a_lock_not_granted_leaves_nothing_behind(place: Place, bench: Bench) -> None:
    taken, fresh = sorted((decision(), decision()), key=lambda one: one.attempt, reverse=True)
    holder, session = bench.session(), bench.session()
    query(bench, "; ".join((bench.journal.dialect.begin_forced, *bench.journal.decision_rows(taken))), holder)
    query(bench, "SET SESSION innodb_lock_wait_timeout = 0", session)
    # 1205 ends the statement, and leaves the row before it in a transaction that could still be committed.
    with pytest.raises(Refused, match="1205") as refused:
        bench.run(bench.journal.insert(session, [fresh, abort(taken.attempt)]))
    assert refused.value.retry
    query(bench, "COMMIT", session)
    query(bench, "ROLLBACK", holder)
    assert bench.look([fresh.attempt, taken.attempt]) == {}


@pytest.mark.parametrize("kind", ["mariadb"])
def test_mariadb_a_session_in_somebodys_transaction_is_refused_and_commits_nothing_of_it(bench: Bench) -> None:
    query(bench, "CREATE TABLE IF NOT EXISTS theirs (id INT PRIMARY KEY) ENGINE=InnoDB")
    for begin, code in (("START TRANSACTION", "1568"), ("XA START 'theirs'", "1568|1399")):
        session = bench.session()
        query(bench, f"{begin}; INSERT INTO theirs VALUES (1)", session)
        with pytest.raises(Refused, match=code):
            bench.run(bench.journal.insert(session, [decision()]))
        session.kill()
        assert query(bench, "SELECT count(*) FROM theirs").scalar() == 0


@pytest.mark.parametrize("kind", ["mariadb"])
@pytest.mark.parametrize(
    "sql_mode", ["", "ANSI_QUOTES", "NO_BACKSLASH_ESCAPES", "ORACLE", "ANSI", "PAD_CHAR_TO_FULL_LENGTH"]
)
def test_mariadb_below_the_floor_nothing_is_written_in_any_sql_mode(bench: Bench, sql_mode: str) -> None:
    session = bench.session()
    query(bench, f"SET SESSION sql_mode = '{sql_mode}'", session)
    journal = bench.journal.dialect.table("journal")
    query(bench, f"UPDATE {journal} SET value = '{attempt_at(NOW)}' WHERE item = 'floor'")
    late, one = decision(attempt=attempt_at(1.0)), decision(name="'\\\"`", reason="\\'")
    with pytest.raises(StatementFailed) as refused:
        rows = (*bench.journal.decision_rows(late), "COMMIT")
        query(bench, "; ".join(("START TRANSACTION", *rows)), session)
    assert refused.value.code == "1048"
    query(bench, "ROLLBACK", session)
    with pytest.raises(BelowFloor):
        bench.run(bench.journal.insert(session, [late]))
    bench.run(bench.journal.insert(session, [one]))
    found = bench.run(bench.journal.confirm(session, [one.attempt]))
    assert found[one.attempt].decision == one
    table = bench.journal.dialect.table("decisions")
    assert query(bench, f"SELECT count(*) FROM {table} WHERE length(attempt) <> 32").scalar() == 0


@pytest.mark.parametrize("kind", ["mariadb"])
def test_mariadb_why_a_decision_is_a_statement_of_its_own(bench: Bench) -> None:
    """An INSERT of several rows stores '' where a lax sql_mode meets NULL; only the CHECK is then left to refuse it."""
    session = bench.session()
    query(bench, "SET SESSION sql_mode = ''", session)
    table = bench.journal.dialect.table("decisions")
    columns = "(attempt, verdict, mode, name, branches, owner, reason, decided_at)"
    row = "(NULL, 'commit', 'once', '', '[]', '', '', 0)"
    with pytest.raises(StatementFailed) as refused:
        query(bench, f"INSERT INTO {table} {columns} VALUES {row}, {row}", session)
    assert refused.value.code == "4025"


@pytest.mark.parametrize("kind", ["sqlite"])
def test_sqlite_a_busy_file_is_a_refusal_to_be_tried_again(place: Place, bench: Bench) -> None:
    holder = bench.session()
    query(bench, "BEGIN IMMEDIATE", holder)
    session = nodoubt.drivers.sqlite.connect(parse_url(place.url), lock_wait_s=0.0)
    with pytest.raises(Refused) as refused:
        bench.run(bench.journal.insert(session, [decision()]))
    session.close()
    assert refused.value.retry


@pytest.mark.parametrize("kind", ["sqlite"])
def test_sqlite_every_forced_transaction_says_how_durable_it_is(bench: Bench) -> None:
    session = bench.session()
    query(bench, "PRAGMA main.synchronous = OFF", session)
    bench.run(bench.journal.insert(session, [decision()]))
    assert query(bench, "PRAGMA main.synchronous", session).scalar() == 3  # EXTRA


# ---- where a journal can't be ---------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "statement"), [("sqlite", "PRAGMA encoding = 'UTF-16'; CREATE TABLE t (x)")])
def test_sqlite_a_file_in_utf16_is_refused(bare: Bench, statement: str) -> None:
    query(bare, statement)
    with pytest.raises(ResourceRefused, match="UTF-16"):
        bare.setup("c" * 16)


def test_postgres_a_database_that_cannot_hold_every_name_is_refused(postgres: PostgresServer) -> None:
    with Place("postgres", "sync", postgres.url()).bench() as admin:
        query(admin, "CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    with (
        Place("postgres", "sync", postgres.url("latin")).bench() as bench,
        pytest.raises(ResourceRefused, match="LATIN1"),
    ):
        bench.setup("c" * 16)


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "mariadb"])
def test_a_setup_that_died_between_the_tables_and_their_first_rows_is_finished_by_the_next(bare: Bench) -> None:
    bare.setup("c" * 16)
    query(bare, f"DELETE FROM {bare.journal.dialect.table('journal')}")
    with pytest.raises(SchemaMismatch, match="run nodoubt schema apply"):
        bare.cluster()
    bare.setup("d" * 16)
    assert bare.cluster() == "d" * 16
    assert bare.epoch() == Epoch()


# ---- every table and function is qualified --------------------------------------------------------


def test_mariadb_the_journal_is_found_from_any_database_and_under_any_name(make_place: MakePlace) -> None:
    place = make_place("mariadb", "sync")
    name = "we`ird-db 1"
    with place.bench(SqlJournal(MariaDBDialect(name))) as bench:
        query(bench, f"CREATE DATABASE `{name.replace('`', '``')}`")
        try:
            bench.setup("c" * 16)
            one, row = decision(), staging("order")
            bench.insert([one])
            bench.stage(row)
            assert set(bench.confirm([one.attempt])) == {one.attempt} and bench.find("order") == row
            assert query(bench, "SHOW TABLES").rows == ()
        finally:
            query(bench, f"DROP DATABASE `{name.replace('`', '``')}`")


def test_postgres_no_search_path_stands_in_for_what_is_ours(bench: Bench) -> None:
    session, one = bench.session(), decision(name="order é")
    query(
        bench,
        "CREATE SCHEMA evil; CREATE TABLE evil.decisions (attempt text); CREATE TABLE evil.journal (item text);"
        "CREATE FUNCTION evil.decode(text, text) RETURNS bytea LANGUAGE sql AS 'SELECT ''evil''::bytea';"
        "CREATE FUNCTION evil.convert_from(bytea, name) RETURNS text LANGUAGE sql AS 'SELECT ''evil'''",
    )
    query(bench, "SET search_path = evil, pg_catalog", session)
    bench.run(bench.journal.insert(session, [one]))
    assert bench.run(bench.journal.confirm(session, [one.attempt]))[one.attempt].decision == one
