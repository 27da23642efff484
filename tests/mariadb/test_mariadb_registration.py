"""Checks, set-up, identity: what must hold before a database may take part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nodoubt.errors import ResourceRefused, ResourceUnavailable, SchemaMismatch
from nodoubt.ports import Identity, Refused, StatementFailed, require_none
from nodoubt.protocol.records import Epoch
from nodoubt.resources import mariadb as mariadb_resource
from nodoubt.resources.mariadb_settings import shortcomings
from nodoubt.schema import tables
from nodoubt.testing.servers import MariaDBServer
from nodoubt.xid import new_attempt, new_cluster

PATIENCE_S = 30.0
FINE = {
    "version": "10.11.19-MariaDB-0+deb12u1", "innodb_flush_log_at_trx_commit": "1", "innodb_flush_method": "O_DIRECT",
    "wsrep_on": "OFF", "read_only": "OFF", "innodb_read_only": "OFF", "log_bin": "OFF", "sync_binlog": "0",
    "innodb_doublewrite": "ON",
}  # fmt: skip


# -- check


def test_a_durable_server_passes_without_a_warning(world: Any) -> None:
    assert world.drive(world.resource.check(world.session())) == ()


@pytest.mark.parametrize("value", [0, 2, 3])
def test_a_server_that_does_not_flush_at_commit_is_refused(
    own_server: MariaDBServer, new_world: Callable[..., Any], value: int
) -> None:
    world = new_world(own_server.url())
    world.look(f"SET GLOBAL innodb_flush_log_at_trx_commit = {value}")
    try:
        with pytest.raises(ResourceRefused, match=f"innodb_flush_log_at_trx_commit is {value}.*set it to 1"):
            world.drive(world.resource.check(world.session()))
    finally:
        world.look("SET GLOBAL innodb_flush_log_at_trx_commit = 1")


def test_a_replica_is_refused(own_server: MariaDBServer, new_world: Callable[..., Any]) -> None:
    world = new_world(own_server.url())
    world.look("SET GLOBAL read_only = 1")
    try:
        with pytest.raises(ResourceRefused, match="read_only is ON"):
            world.drive(world.resource.check(world.session()))
    finally:
        world.look("SET GLOBAL read_only = 0")


def test_galera_is_refused(new_world: Callable[..., Any]) -> None:
    with MariaDBServer({"wsrep-on": "ON", "wsrep-provider": "none", "binlog-format": "ROW"}) as server:
        world = new_world(server.url())
        with pytest.raises(ResourceRefused, match="Galera does not support XA"):
            world.drive(world.resource.check(world.session()))


def test_what_may_lose_a_promise_is_warned_of(new_world: Callable[..., Any]) -> None:
    server = MariaDBServer({"log-bin": "binlog", "sync-binlog": 0, "innodb-doublewrite": 0})
    del server.settings["skip-log-bin"]
    with server:
        world = new_world(server.url())
        warnings = world.drive(world.resource.check(world.session()))
        assert [warning.split(" is ")[0] for warning in warnings] == ["sync_binlog", "innodb_doublewrite"]
        world.look("SET GLOBAL sync_binlog = 1")
        (warning,) = world.drive(world.resource.check(world.session()))
        assert "sync_binlog" not in warning


def test_branches_work_with_a_binary_log(new_world: Callable[..., Any]) -> None:
    """Each format: a savepoint, and the probe with it, then passes through the log's cache."""
    server = MariaDBServer({"log-bin": "binlog", "sync-binlog": 1, "server-id": 1})
    del server.settings["skip-log-bin"]
    with server:
        for number, form in enumerate(("MIXED", "ROW", "STATEMENT")):
            world = new_world(server.url()).setup()
            world.look(f"SET GLOBAL binlog_format = '{form}'; CREATE TABLE plain (x INT) ENGINE=MyISAM")
            prepared = world.prepared(f"INSERT INTO t VALUES ({number}, 1)")
            world.finish("commit", prepared)
            assert world.values() == [(number, 1)]
            session = world.session()
            work = world.begun(session, "INSERT INTO t VALUES (9, 9)", "INSERT INTO plain VALUES (1)")
            with pytest.raises(Refused):
                world.drive(world.resource.prepare(session, work))
            assert world.values() == [(number, 1)]


def test_tables_that_cannot_be_rolled_back_are_named(world: Any) -> None:
    world.look("".join(f"CREATE TABLE p{n} (x INT) ENGINE=MyISAM; " for n in range(7)) + "CREATE VIEW w AS SELECT 1")
    (warning,) = world.drive(world.resource.check(world.session()))
    assert "p0, p1, p2, p3, p4 and 2 more" in warning
    assert "ENGINE=InnoDB" in warning


def test_an_account_that_may_not_list_branches_is_refused(world: Any) -> None:
    """MySQL asks for XA_RECOVER_ADMIN."""
    session = world.session()
    run = session.run

    def denied(sql: str) -> Any:
        if "XA RECOVER" in sql:
            return _raise(StatementFailed("1401", "XAER_RMERR"), later=world.style == "async")
        return run(sql)

    session.run = denied
    with pytest.raises(ResourceRefused, match="XA_RECOVER_ADMIN"):
        world.drive(world.resource.check(session))


def _raise(error: Exception, *, later: bool) -> Any:
    if not later:
        raise error

    async def answer() -> None:
        raise error

    return answer()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"version": "10.4.34-MariaDB"}, "10.5"),
        ({"version": "5.5.5-10.4.34-MariaDB"}, "10.5"),
        ({"version": "8.0.28"}, "8.0.29"),
        ({"version": "5.7.44-log"}, "8.0.29"),
        ({"innodb_flush_method": "nosync"}, "innodb_flush_method"),
        ({"debug_no_sync": "ON"}, "debug_no_sync"),
        ({"innodb_read_only": "ON"}, "innodb_read_only"),
        ({"super_read_only": "ON"}, "super_read_only"),
        ({"read_only": "NO_LOCK"}, "read_only"),
    ],
)
def test_settings_that_break_a_promise_are_refused_by_name(changed: dict[str, str], named: str) -> None:
    with pytest.raises(ResourceRefused, match=named):
        require_none(shortcomings(FINE | changed), "maria")


@pytest.mark.parametrize("version", ["10.5.0-MariaDB", "5.5.5-10.6.1-MariaDB-log", "11.4.2-MariaDB", "8.0.29", "8.4.3"])
def test_the_versions_that_keep_prepared_branches_pass(version: str) -> None:
    assert not any(one.refused for one in shortcomings(FINE | {"version": version}))


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"binlog_storage_engine": "innodb"}, "binlog_storage_engine"), ({"version": "8.4.3"}, "MySQL")],
)
def test_settings_that_no_test_server_has_are_warned_of(changed: dict[str, str], named: str) -> None:
    (warning,) = map(str, shortcomings(FINE | changed))
    assert named in warning


# -- tables and identity


def test_setup_stores_the_identity_once(blank: Any) -> None:
    first, cluster = new_attempt(), new_cluster()
    assert blank.drive(blank.resource.identity(blank.session())) is None
    blank.drive(blank.resource.setup(blank.session(), first, cluster))
    stored = blank.drive(blank.resource.identity(blank.session()))
    assert stored == Identity(first, cluster, blank.drive(blank.resource.server(blank.session())), 0)
    blank.drive(blank.resource.setup(blank.session(), new_attempt(), new_cluster()))
    assert blank.drive(blank.resource.identity(blank.session())) == stored


def test_of_many_setups_at_a_time_one_identity_stays(blank: Any) -> None:
    calls = [
        blank.start(blank.resource.setup(session, new_attempt(), new_cluster()))
        for session in [blank.session() for _ in range(5)]
    ]
    for call in calls:
        call.result(PATIENCE_S)
    assert blank.look("SELECT COUNT(*) FROM nodoubt_identity") == [(1,)]
    assert blank.drive(blank.resource.identity(blank.session())) is not None


def test_a_setup_that_cannot_get_its_turn_changes_nothing(blank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "LOCK_WAIT_S", 0)
    blocker = blank.session()
    blank.run(blocker, f"SELECT GET_LOCK({blank.resource.tables._lock}, 0)")
    with pytest.raises(ResourceUnavailable, match="somebody else is migrating"):
        blank.drive(blank.resource.setup(blank.session(), new_attempt(), new_cluster()))
    assert blank.look("SHOW TABLES") == []


def test_setup_lets_go_of_its_lock(blank: Any) -> None:
    session = blank.session()
    blank.drive(blank.resource.setup(session, new_attempt(), new_cluster()))
    assert blank.run(session, f"SELECT IS_FREE_LOCK({blank.resource.tables._lock})")[0].scalar() == 1


def test_an_account_that_may_not_create_tables_is_refused_by_name(blank: Any) -> None:
    blank.look(f"CREATE OR REPLACE USER meek@'%' IDENTIFIED BY 'x'; GRANT SELECT ON {blank.database}.* TO meek@'%'")
    session = blank.session(blank.url.replace("nodoubt:nodoubt@", "meek:x@"))
    with pytest.raises(ResourceRefused, match="may not create"):
        blank.drive(blank.resource.setup(session, new_attempt(), new_cluster()))


def test_tables_that_only_a_newer_release_may_work_on_are_refused(world: Any) -> None:
    world.look(
        "INSERT INTO nodoubt_migrations (part, number, works_from, steps, steps_done) "
        "VALUES ('participant', 2, 2, 1, 1)"
    )
    with pytest.raises(SchemaMismatch, match="version 2"):
        world.drive(world.resource.identity(world.session()))


def test_our_tables_are_found_from_any_database(world: Any, mariadb: MariaDBServer) -> None:
    session = world.session(mariadb.url())
    assert world.drive(world.resource.identity(session)) is not None


def test_a_database_of_an_odd_name_works(mariadb: MariaDBServer, new_world: Callable[..., Any]) -> None:
    first = new_world(mariadb.url())
    first.look("CREATE DATABASE IF NOT EXISTS `ünï ``x-1`")
    world = new_world(first.url.rpartition("/")[0] + "/%C3%BCn%C3%AF%20%60x-1")
    world.look("DROP TABLE IF EXISTS t, nodoubt_migrations, nodoubt_identity, nodoubt_receipts")
    world.setup()
    session = world.session()
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)")
    world.drive(world.resource.commit_alone(session, work))
    assert world.values() == [(1, 1)]
    assert world.drive(world.resource.check(session)) == ()


def test_the_schema_that_is_shown_is_the_one_that_is_used(blank: Any) -> None:
    sql = blank.resource.tables.script()
    assert f"`{blank.database}`.nodoubt_receipts" in sql
    assert "{" not in sql
    blank.look(sql)
    blank.drive(blank.resource.setup(blank.session(), new_attempt(), new_cluster()))


# -- epochs


def test_an_epoch_witnessed_is_never_lowered(world: Any) -> None:
    for epoch, stored in ((3, 3), (2, 3), (5, 5)):
        world.drive(world.resource.witness(world.session(), Epoch(epoch, f"m{epoch}")))
        identity = world.drive(world.resource.identity(world.session()))
        assert (identity.epoch, identity.mark) == (stored, f"m{stored}")


def test_a_receipt_witnesses_its_epoch(world: Any) -> None:
    world.drive(world.resource.witness(world.session(), Epoch(3, "m3")))
    session = world.session()
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)", work=world.work(epoch=9))
    world.drive(world.resource.commit_alone(session, work))
    assert world.drive(world.resource.identity(world.session())).epoch == 9


def test_adopt_overwrites_even_to_an_older_epoch(world: Any) -> None:
    session = world.session()
    work = world.begun(session, "INSERT INTO t VALUES (1, 1)", work=world.work(epoch=9))
    world.drive(world.resource.commit_alone(session, work))
    new = Identity(new_attempt(), new_cluster(), "somewhere else's \\ ünd", 4, "m4")
    world.drive(world.resource.adopt(world.session(), new))
    assert world.drive(world.resource.identity(world.session())) == new
    assert world.values() == [(1, 1)]


def test_adopt_goes_through_many_receipts_in_batches(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mariadb_resource, "BATCH_MAX", 2)
    world.look("INSERT INTO nodoubt_receipts SELECT LPAD(HEX(seq), 32, '0'), 0, 'commit', 1, seq, 0, 0 FROM seq_1_to_9")
    stored = world.drive(world.resource.identity(world.session()))
    assert stored.epoch == 9
    world.drive(world.resource.adopt(world.session(), Identity(stored.resource_id, stored.cluster, "", 4)))
    assert world.look("SELECT MAX(epoch), COUNT(*) FROM nodoubt_receipts") == [(4, 9)]


def test_the_server_says_the_same_of_itself_and_another_of_another(
    world: Any, own_server: MariaDBServer, new_world: Callable[..., Any]
) -> None:
    told = {world.drive(world.resource.server(world.session())) for _ in range(2)}
    assert len(told) == 1
    assert told.pop().endswith(f"/{world.database}")
    other = new_world(own_server.url())
    assert other.drive(other.resource.server(other.session())).split("/")[0] not in told


def test_a_receipt_costs_little_to_find_the_highest_epoch(world: Any) -> None:
    """Catches: a walk over all receipts at each sweep, for their highest epoch."""
    world.drive(world.resource.fence(world.session(), world.work().xid))
    (row, *_) = world.look("EXPLAIN SELECT MAX(epoch) FROM nodoubt_receipts")
    assert "optimized away" in row[-1]
