"""What is asked of a database before it may take part, and what it keeps about itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nodoubt.errors import ResourceRefused, ResourceUnavailable, SchemaMismatch
from nodoubt.ports import Identity
from nodoubt.protocol.records import Epoch
from nodoubt.schema.tables import LOCK
from nodoubt.script import do
from nodoubt.testing.servers import PostgresServer
from nodoubt.xid import Xid


def test_a_sound_server_is_accepted_without_a_word(blank: Any) -> None:
    assert blank.drive(blank.resource.check(blank.session())) == ()


def test_what_cannot_be_made_durable_is_refused_with_the_line_to_change(new_world: Callable[[str], Any]) -> None:
    with PostgresServer({"max_prepared_transactions": 0, "fsync": False}) as server:
        world = new_world(server.url())
        with pytest.raises(ResourceRefused, match="set fsync = on in postgresql.conf"):
            world.drive(world.resource.check(world.session()))
        world.look("ALTER SYSTEM SET fsync = on")
        world.look("SELECT pg_reload_conf()")
        world.until(lambda: world.look("SHOW fsync") == [("on",)], "the reload")
        with pytest.raises(ResourceRefused, match="set max_prepared_transactions = 100 in postgresql.conf and restart"):
            world.drive(world.resource.check(world.session()))
        # And should it be switched off later, PREPARE itself says so.
        session = world.setup().session()
        work = world.begun(session, None, "INSERT INTO t VALUES (1, 1)")
        error = world.error(world.resource.prepare(session, work))
        assert "set max_prepared_transactions above 0" in str(error)
        assert error.retry is False
        assert world.look("SELECT * FROM t") == []


def test_a_connection_that_reads_no_text_is_refused_with_what_to_put_into_its_url(
    blank: Any, postgres: PostgresServer, new_world: Callable[[str], Any]
) -> None:
    name = blank.url.rpartition("/")[2] + "_ascii"
    blank.look(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'")
    world = new_world(blank.url.rpartition("/")[0] + f"/{name}")
    with pytest.raises(ResourceRefused, match=r"put \?client_encoding=utf8 into its URL"):
        world.drive(world.resource.check(world.session()))
    told = new_world(world.url + "?client_encoding=utf8")
    assert told.drive(told.resource.check(told.session())) == ()


def test_what_cannot_be_written_is_refused(blank: Any) -> None:
    database = blank.url.rpartition("/")[2]
    blank.look(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    with pytest.raises(ResourceRefused, match="default_transaction_read_only = off"):
        blank.drive(blank.resource.check(blank.session()))


def test_doubtful_settings_are_warned_of(new_world: Callable[[str], Any]) -> None:
    with PostgresServer({"full_page_writes": False, "synchronous_commit": "local"}) as server:
        world = new_world(server.url())
        world.look("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        world.look("SELECT pg_reload_conf()")
        world.until(lambda: world.look("SHOW synchronous_standby_names") == [("nobody",)], "the reload")
        torn, weak = world.drive(world.resource.check(world.session()))
        assert "full_page_writes is off" in torn
        assert "synchronous_commit is local" in weak


class _Pooler:
    """A session whose messages go to several server processes in turn, as a pooler by transaction hands them out."""

    usable = True
    connection_id = 1  # of the pooler's own making

    def __init__(self, *sessions: Any) -> None:
        self.sessions = list(sessions)

    def run(self, sql: str) -> Any:
        self.sessions.append(self.sessions.pop(0))
        return self.sessions[-1].run(sql)


def test_a_pooler_that_shares_sessions_is_refused_and_any_other_is_warned_of(blank: Any) -> None:
    one, two = blank.session(), blank.session()
    with pytest.raises(ResourceRefused, match="pooler shares sessions by transaction"):
        blank.drive(blank.resource.check(_Pooler(one, two)))
    (warning,) = blank.drive(blank.resource.check(_Pooler(one)))
    assert "connection pooler" in warning


def test_a_database_without_setup_has_no_identity(blank: Any) -> None:
    assert blank.drive(blank.resource.identity(blank.session())) is None
    blank.look(blank.resource.tables.script())
    assert blank.drive(blank.resource.identity(blank.session())) is None


def test_setup_stores_the_identity_once(blank: Any) -> None:
    session = blank.session()
    server = blank.drive(blank.resource.server(session))
    blank.drive(blank.resource.setup(session, "resource-1", "00000000000000c1"))
    stored = Identity("resource-1", "00000000000000c1", server, 0)
    assert blank.drive(blank.resource.identity(session)) == stored
    blank.drive(blank.resource.setup(session, "resource-2", "00000000000000c2"))
    assert blank.drive(blank.resource.identity(session)) == stored


def test_two_setups_at_a_time_both_succeed_and_the_first_one_stands(blank: Any) -> None:
    """Without the lock one of them fails on a duplicate schema."""
    holder, one, two = blank.session(), blank.session(), blank.session()
    blank.run(holder, f"BEGIN; SELECT pg_advisory_xact_lock({LOCK})")
    names = {session: f"resource-{session.connection_id}" for session in (one, two)}
    calls = [blank.start(blank.resource.setup(s, name, "00000000000000c1")) for s, name in names.items()]
    blank.until_waiting(one, "advisory")
    blank.until_waiting(two, "advisory")
    blank.run(holder, "COMMIT")
    for call in calls:
        call.result(20)
    assert blank.drive(blank.resource.identity(one)).resource_id in names.values()


def test_any_text_can_be_stored(blank: Any) -> None:
    odd = "a'b\"c\\d;-- \u00e4\u2603"
    session = blank.session()
    blank.drive(blank.resource.setup(session, odd, "00000000000000c1"))
    assert blank.drive(blank.resource.identity(session)).resource_id == odd


def test_a_role_that_may_not_create_can_use_what_an_administrator_has_made(blank: Any) -> None:
    blank.look("DO $$ BEGIN CREATE ROLE plain LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    url = blank.url.replace("postgres@", "plain@")
    session = blank.session(url)
    with pytest.raises(ResourceRefused, match="nodoubt schema sql"):
        blank.drive(blank.resource.setup(session, "resource-1", "00000000000000c1"))
    blank.look(blank.resource.tables.script())
    blank.look("GRANT USAGE ON SCHEMA nodoubt TO plain; GRANT ALL ON ALL TABLES IN SCHEMA nodoubt TO plain")
    blank.drive(blank.resource.setup(session, "resource-1", "00000000000000c1"))
    assert blank.drive(blank.resource.identity(session)).resource_id == "resource-1"
    assert blank.drive(blank.resource.server(session)) != ""


def test_a_role_without_the_control_file_still_works_without_the_servers_name(blank: Any) -> None:
    blank.look("DO $$ BEGIN CREATE ROLE plain LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    blank.look("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM public")
    assert blank.drive(blank.resource.server(blank.session(blank.url.replace("postgres@", "plain@")))) == ""


def test_a_schema_that_only_a_newer_release_may_work_on_is_refused(fresh: Any) -> None:
    world = fresh
    world.look(
        "INSERT INTO nodoubt.migrations (part, number, works_from, steps, steps_done) "
        "VALUES ('participant', 99, 99, 1, 1)"
    )
    with pytest.raises(SchemaMismatch, match="version 99"):
        world.drive(world.resource.identity(world.session()))


def test_a_witnessed_epoch_only_rises(world: Any) -> None:
    session = world.session()
    for epoch, stands in ((3, 3), (2, 3), (5, 5)):
        world.drive(world.resource.witness(session, Epoch(epoch, f"m{epoch}")))
        identity = world.drive(world.resource.identity(session))
        assert (identity.epoch, identity.mark) == (stands, f"m{stands}")


def test_an_epoch_in_a_receipt_counts_as_witnessed(world: Any) -> None:
    session = world.session()
    work = world.begun(session, world.work(epoch=7), "INSERT INTO t VALUES (1, 1)")
    world.drive(world.resource.commit_alone(session, work))
    assert world.drive(world.resource.identity(session)).epoch == 7


def test_witness_without_setup_is_refused(blank: Any) -> None:
    blank.look(blank.resource.tables.script())
    with pytest.raises(SchemaMismatch, match="setup"):
        blank.drive(blank.resource.witness(blank.session(), Epoch(1, "m1")))


def test_adopt_overwrites_everything(fresh: Any) -> None:
    world = fresh
    session = world.session()
    new = Identity("resource-9", "00000000000000c9", "elsewhere/1", 4, "m4")
    world.drive(world.resource.witness(session, Epoch(8, "m8")))
    work = world.begun(session, world.work(epoch=7), "INSERT INTO t VALUES (1, 1)")
    world.drive(world.resource.commit_alone(session, work))
    world.drive(world.resource.adopt(session, new))
    assert world.drive(world.resource.identity(session)) == new


def test_each_database_of_a_server_is_another_place(blank: Any, postgres: PostgresServer) -> None:
    here = blank.drive(blank.resource.server(blank.session()))
    there = blank.drive(blank.resource.server(blank.session(postgres.url())))
    assert here != there
    assert here.split("/")[0] == there.split("/")[0]


@pytest.mark.parametrize("what", ["check", "identity", "server", "prepared"])
def test_a_lost_session_makes_registration_unavailable_not_refused(world: Any, what: str) -> None:
    session = world.session()
    session.kill()
    arguments = ("00000000000000c1",) if what == "prepared" else ()
    with pytest.raises(ResourceUnavailable):
        world.drive(getattr(world.resource, what)(session, *arguments))


def test_our_tables_are_found_whatever_the_search_path(fresh: Any) -> None:
    world = fresh
    database = world.url.rpartition("/")[2]
    world.look(f"ALTER DATABASE {database} SET search_path = ''")
    session = world.session()
    assert world.drive(world.resource.identity(session)) is not None
    work = world.begun(session, None, "INSERT INTO public.t VALUES (1, 1)")
    world.drive(world.resource.prepare(session, work))
    (listed,) = world.drive(world.resource.prepared(session, work.xid.cluster))
    world.drive(world.resource.commit_prepared(session, listed))
    assert world.drive(world.resource.receipt(session, work.xid))
    assert world.drive(world.resource.fence(session, Xid(work.xid.cluster, "f" * 32, 0))).value == "abort"
    assert world.drive(world.resource.forget(session, [work.xid], older_than=0.0)) == 1


def test_standbys_are_refused(new_world: Callable[[str], Any]) -> None:
    with PostgresServer() as server:
        world = new_world(server.url())
        server.kill()
        (server.data / "standby.signal").touch()
        server.restart()
        with pytest.raises(ResourceRefused, match="standby"):
            world.drive(world.resource.check(world.session()))


def test_a_server_below_12_is_refused(blank: Any) -> None:
    """No such server is at hand: the answer to the question is exchanged on its way."""

    class Old:
        usable = True

        def __init__(self, session: Any) -> None:
            self.session, self.connection_id = session, session.connection_id

        def run(self, sql: str) -> Any:
            return self.session.run(sql.replace("pg_catalog.current_setting('server_version_num')", "'110022'"))

    with pytest.raises(ResourceRefused, match="below 12"):
        blank.drive(blank.resource.check(Old(blank.session())))


def test_the_schema_can_be_applied_over_itself(blank: Any) -> None:
    session = blank.session()
    for _ in range(2):
        blank.drive(do(session, "run", blank.resource.tables.script()))
    blank.drive(blank.resource.setup(session, "resource-1", "00000000000000c1"))
