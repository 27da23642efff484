"""The simulated servers answer as the real ones do: each scene is played on both, and what is said is compared.

What a crash takes, and what is seen before it is flushed, is measured on real servers in tests/postgres, tests/mariadb
and tests/traps; the simulated ones are told so in `nodoubt.resources.memory`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nodoubt import wiring
from nodoubt.errors import NoDoubtError
from nodoubt.idempotency.keys import Key, key_of
from nodoubt.idempotency.store import store_of
from nodoubt.journals.memory import MemoryJournal, MemoryStore
from nodoubt.ports import Journal, Prepared, SavepointStep, SessionLost, Work
from nodoubt.protocol.records import Staging
from nodoubt.resources.memory.server import Locked, LockTimeout, MemoryServer
from nodoubt.script import Script, Watch, do, drive
from nodoubt.testing.world.keys import KeyStore
from nodoubt.testing.world.world import RESOURCES, SERVERS
from nodoubt.url import parse_url
from nodoubt.xid import Xid, new_attempt, new_cluster

KINDS = ("postgres", "mariadb", "sqlite")
PATIENCE_S = 20.0


class MemorySession:
    """A blocking session with a simulated server, alone with it: what would wait for a lock waits long enough."""

    def __init__(self, server: MemoryServer) -> None:
        self.server, self.usable = server, True
        self.connection = server.connect()
        self.connection_id, self.server_started = self.connection.number, server.started

    def send(self, *statements: tuple[Any, ...]) -> Any:
        return self._answer("send", statements)

    def run(self, sql: str) -> Any:
        return self._answer("run", (sql,))

    def execute(self, statement: str, params: Any) -> Any:
        return self._answer("execute", (statement, params))

    def apply(self, verb: str, *args: Any) -> Any:
        return self._answer("apply", (verb, *args))

    def _answer(self, verb: str, args: tuple[Any, ...]) -> Any:
        if self.connection.number not in self.server.connections:
            self.usable = False
            raise SessionLost("the session has ended")
        handling = self.server.handle(self.connection, verb, args)
        try:
            wait = next(handling)
            while True:
                wait = handling.throw(LockTimeout()) if isinstance(wait, Locked) else next(handling)
        except StopIteration as stop:
            return stop.value

    def close(self) -> None:
        self.kill()

    def kill(self) -> None:
        self.usable = False
        self.server.disconnect(self.connection)


class Bench:
    """One database, and what is said as its scripts run."""

    def __init__(
        self,
        resource: Any,
        store: Any,
        journal: Journal,
        connect: Callable[[], Any],
        statements: dict[str, tuple[str, Any]],
    ) -> None:
        self.resource, self.store, self.journal = resource, store, journal
        self._connect, self._statements = connect, statements
        self.cluster = new_cluster()
        self.said: list[str] = []
        self._threads = ThreadPoolExecutor(2)
        self._sessions: list[Any] = []

    def session(self) -> Any:
        session = self._connect()
        self._sessions.append(session)
        return session

    def drive(self, script: Script[Any]) -> Any:
        return drive(script, executor=self._threads, watch=Watch())

    def tell(self, what: str, script: Script[Any]) -> Any:
        """Run it, and note down what it says."""
        try:
            result = self.drive(script)
        except NoDoubtError as error:
            self.said.append(f"{what}: {type(error).__name__}")
        except Exception:
            self.said.append(f"{what}: the driver's own error")
        else:
            self.said.append(f"{what}: {_plain(result)}")
            return result
        return None

    def work(self) -> Work:
        return Work(Xid(self.cluster, new_attempt(), 0), 1)

    def begun(self, session: Any, *statements: str, work: Work | None = None) -> Work:
        work = work or self.work()
        self.tell("begin", self.resource.begin(session, work))
        for statement in statements:
            self.do(session, work, statement)
        return work

    def do(self, session: Any, work: Work, statement: str) -> None:
        self.tell(statement, self.execute(session, work, statement))

    def execute(self, session: Any, work: Work, statement: str) -> Script[Any]:
        sql, params = self._statements[statement]
        yield from self.resource.execute(session, work, sql, params)

    def prepare(self, session: Any, work: Work) -> Prepared:
        self.tell("prepare", self.resource.prepare(session, work))
        return Prepared(work.xid, handle=work.handle)

    def claims(self, key: Key) -> None:
        """Somebody else tries for the key, and leaves it."""
        session = self.session()
        work = self.begun(session)
        self.tell("claim", self.store.claim(session, work, key))
        self.tell("undo", self.resource.rollback(session, work))

    def listed(self) -> None:
        self.tell("listed", self.resource.prepared(self.session(), self.cluster))

    def finish(self, verb: str, prepared: Prepared) -> None:
        """From another session, over the moment in which one that was closed has not quite let go."""
        script = getattr(self.resource, f"{verb}_prepared")
        deadline, session = time.monotonic() + PATIENCE_S, self.session()
        while True:
            try:
                self.drive(script(session, prepared))
            except NoDoubtError as error:
                listed = self.drive(self.resource.prepared(self.session(), self.cluster))
                if any(one.xid == prepared.xid for one in listed) and time.monotonic() < deadline:
                    continue
                self.said.append(f"{verb}: {type(error).__name__}")
            else:
                self.said.append(f"{verb}: done")
            return

    def count(self) -> None:
        """How many rows can be seen."""
        session, work = self.session(), self.work()
        self.drive(self.resource.begin(session, work))
        sql, params = self._statements["read"]
        reply = self.drive(self.resource.execute(session, work, sql, params))
        self.said.append(f"rows: {reply.scalar()}")
        self.drive(self.resource.rollback(session, work))

    def end(self) -> None:
        for session in self._sessions:
            session.kill()
        session = self._connect()
        for prepared in self.drive(self.resource.prepared(session, self.cluster)):
            self.finish("rollback", prepared)
        session.kill()
        self._threads.shutdown()


def _plain(result: Any) -> str:
    """What any kind says in the same words."""
    if isinstance(result, tuple):
        return f"{len(result)} of ours"
    return "done" if result is None or hasattr(result, "rows") else str(result)


# ---- scenes -------------------------------------------------------------------------------------------------------


def two_phases(bench: Bench) -> None:
    session = bench.session()
    prepared = bench.prepare(session, bench.begun(session, "add"))
    bench.drive(bench.resource.detach(session))
    bench.listed()
    bench.count() if bench.resource.traits.kind != "sqlite" else None  # SQLite's table is locked, which is said below
    bench.tell("receipt", bench.resource.receipt(bench.session(), prepared.xid))
    bench.finish("commit", prepared)
    bench.tell("receipt", bench.resource.receipt(bench.session(), prepared.xid))
    bench.listed()
    bench.count()
    bench.finish("commit", prepared)
    bench.finish("rollback", prepared)
    bench.tell("forget", bench.resource.forget(bench.session(), [prepared.xid]))
    bench.tell("receipt", bench.resource.receipt(bench.session(), prepared.xid))


def rolled_back(bench: Bench) -> None:
    session = bench.session()
    prepared = bench.prepare(session, bench.begun(session, "add"))
    bench.drive(bench.resource.detach(session))
    bench.finish("rollback", prepared)
    bench.listed()
    bench.count()
    bench.tell("receipt", bench.resource.receipt(bench.session(), prepared.xid))
    bench.finish("rollback", prepared)


def an_error_dooms(bench: Bench) -> None:
    session = bench.session()
    work = bench.begun(session, "add", "fail", "add")
    bench.prepare(session, work)
    bench.tell("undo", bench.resource.rollback(session, work))
    bench.listed()
    bench.count()


def a_savepoint_cures(bench: Bench) -> None:
    session = bench.session()
    work = bench.begun(session, "add")
    bench.tell("set", bench.resource.savepoint(session, work, SavepointStep.SET, "s"))
    bench.do(session, work, "add more")
    bench.do(session, work, "fail")
    bench.tell("back", bench.resource.savepoint(session, work, SavepointStep.BACK, "s"))
    work.doomed = None  # as the engine does
    bench.prepare(session, work)
    bench.drive(bench.resource.detach(session))
    bench.finish("commit", Prepared(work.xid, handle=work.handle))
    bench.count()


def there_is_no_savepoint(bench: Bench) -> None:
    session = bench.session()
    work = bench.begun(session, "add")
    bench.tell("back", bench.resource.savepoint(session, work, SavepointStep.BACK, "s"))


def a_fence_first(bench: Bench) -> None:
    for verb in ("commit_alone", "prepare"):
        work = bench.work()
        bench.tell("fence", bench.resource.fence(bench.session(), work.xid))
        session = bench.session()
        bench.begun(session, "add", work=work)
        bench.tell(verb, getattr(bench.resource, verb)(session, work))
        bench.tell("fence", bench.resource.fence(bench.session(), work.xid))
        bench.listed()
    bench.count()


def a_fence_second(bench: Bench) -> None:
    session = bench.session()
    work = bench.begun(session, "add")
    bench.tell("commit_alone", bench.resource.commit_alone(session, work))
    bench.tell("fence", bench.resource.fence(bench.session(), work.xid))
    bench.tell("receipt", bench.resource.receipt(bench.session(), work.xid))
    bench.count()
    bench.tell("forget", bench.resource.forget(bench.session(), [], older_than=0.0))
    bench.tell("forget", bench.resource.forget(bench.session(), [], older_than=2.0**40))


def a_fence_of_what_is_prepared(bench: Bench) -> None:
    session = bench.session()
    prepared = bench.prepare(session, bench.begun(session, "add"))
    bench.drive(bench.resource.detach(session))
    bench.tell("fence", bench.resource.fence(bench.session(), prepared.xid))
    bench.finish("commit", prepared)
    bench.tell("fence", bench.resource.fence(bench.session(), prepared.xid))


def a_reader(bench: Bench) -> None:
    session = bench.session()
    work = bench.begun(session, "read")
    bench.tell("wrote", bench.resource.wrote(session, work))
    bench.tell("end", bench.resource.end_reader(session, work))
    again = bench.begun(session, "read", "add")
    bench.tell("wrote", bench.resource.wrote(session, again))
    bench.tell("undo", bench.resource.rollback(session, again))
    bench.said.append(f"usable: {session.usable}")
    bench.count()


def a_session_dies_at_work(bench: Bench) -> None:
    session = bench.session()
    work = bench.begun(session, "add")
    session.kill()
    bench.tell("prepare", bench.resource.prepare(session, work))
    bench.listed()
    bench.count()


def who_holds_it(bench: Bench) -> None:
    """While the session that prepared lives, MariaDB knows nobody else's end of it."""
    session, other = bench.session(), bench.session()
    prepared = bench.prepare(session, bench.begun(session, "add"))
    bench.listed()
    bench.tell("commit elsewhere", bench.resource.commit_prepared(other, prepared))
    bench.tell("free", bench.resource.free(bench.session(), prepared))
    bench.finish("commit", prepared)
    bench.count()


def receipts_below_the_floor(bench: Bench) -> None:
    session = bench.session()
    prepared = bench.prepare(session, bench.begun(session, "add"))
    bench.drive(bench.resource.detach(session))
    bench.finish("commit", prepared)
    other = bench.session()
    bench.tell("not below itself", bench.resource.forget(other, [], below=prepared.xid.attempt))
    bench.tell("below the last", bench.resource.forget(other, [], below="f" * 32))


def keys_in_flight_and_done(bench: Bench) -> None:
    key = key_of("key-1", {"cents": 990}, "")
    bench.tell("look", bench.store.look(bench.session(), key))
    first = bench.session()
    work = bench.begun(first)
    bench.tell("claim", bench.store.claim(first, work, key))
    bench.do(first, work, "add")
    if bench.resource.traits.kind != "sqlite":  # whose file is locked: nobody else begins
        bench.claims(key)
    work.closing = bench.store.closing(work, key, b'"p-1"', 3600.0)
    prepared = bench.prepare(first, work)
    bench.drive(bench.resource.detach(first))
    bench.tell("look", bench.store.look(bench.session(), key))
    bench.claims(key)
    bench.finish("commit", prepared)
    bench.claims(key)
    bench.tell("look", bench.store.look(bench.session(), key))
    bench.tell("confirm", bench.store.confirm(bench.session(), key))
    bench.count()


def keys_that_were_rolled_back_or_ended_alone(bench: Bench) -> None:
    key = key_of("key-2", None, "")
    for verb in ("rollback", "alone"):
        session = bench.session()
        work = bench.begun(session)
        bench.tell("claim", bench.store.claim(session, work, key))
        bench.do(session, work, "add")
        work.closing = bench.store.closing(work, key, b"null", 3600.0)
        if verb == "alone":
            bench.tell(verb, bench.resource.commit_alone(session, work))
        else:
            prepared = bench.prepare(session, work)
            bench.drive(bench.resource.detach(session))
            bench.finish(verb, prepared)
        bench.tell("look", bench.store.look(bench.session(), key))
        bench.claims(key)


def a_name_goes_before_its_branch(bench: Bench) -> None:
    if not bench.resource.traits.rows_at_begin:
        return
    first, second = bench.work(), bench.work()
    for work in (first, second):
        session = bench.session()
        rows = bench.journal.staging_rows(Staging("order", work.xid.attempt, (), None, time.time() + 3600))
        bench.tell("begin", bench.resource.begin(session, work, before=rows))
        bench.said.append(f"usable: {session.usable}")
        found: Any = bench.drive(bench.journal.find(bench.session(), "order"))
        bench.said.append(f"the first one's: {found.attempt == first.xid.attempt}")
        if work is first:
            bench.do(session, work, "add")
            bench.tell("undo", bench.resource.rollback(session, work))
    bench.listed()
    bench.count()


SCENES = [
    two_phases, rolled_back, an_error_dooms, a_savepoint_cures, there_is_no_savepoint, a_fence_first, a_fence_second,
    a_fence_of_what_is_prepared, a_reader, a_session_dies_at_work, who_holds_it, receipts_below_the_floor,
    keys_in_flight_and_done, keys_that_were_rolled_back_or_ended_alone,
    a_name_goes_before_its_branch,
]  # fmt: skip
REAL = {
    "add": ("insert into t (n) values (1)", None),
    "add more": ("insert into t (n) values (2)", None),
    "read": ("select count(*) from t", None),
    "fail": ("insert into missing values (1)", None),
}
SIMULATED = {
    "add": ("add", ("n", 1)), "add more": ("add", ("n", 1)), "read": ("read", ("n",)), "fail": ("fail", ()),
}  # fmt: skip


def simulated(kind: str) -> Bench:
    server = SERVERS[kind](kind, now=time.time, guest=MemoryStore())
    return Bench(RESOURCES[kind](kind), KeyStore(kind), MemoryJournal(), lambda: MemorySession(server), SIMULATED)


def real(kind: str, request: pytest.FixtureRequest, folder: Path) -> Bench:
    url = parse_url(f"sqlite:///{folder}/t.db" if kind == "sqlite" else request.getfixturevalue(kind).url())
    connect: Any = wiring._driver(url)
    options = {"lock_wait_s": 0.2} if kind == "sqlite" else {}
    resource = wiring.resource_of(kind, url)
    store = store_of(kind, getattr(resource, "database", ""))
    return Bench(resource, store, wiring.journal_of(url), lambda: connect(url, **options), REAL)


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Bench, Bench]]:
    """The real one, and the simulated one."""
    benches = real(request.param, request, tmp_path), simulated(request.param)
    for bench in benches:
        bench.drive(bench.resource.setup(bench.session(), new_attempt(), bench.cluster))
        bench.drive(bench.journal.setup(bench.session(), bench.cluster))
    benches[0].drive(do(benches[0].session(), "run", "create table t (n int not null)"))
    yield benches
    for bench in benches:
        bench.end()


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_a_simulated_server_says_what_the_real_one_says(
    scene: Callable[[Bench], None], pair: tuple[Bench, Bench]
) -> None:
    for bench in pair:
        scene(bench)
    assert pair[0].said == pair[1].said
