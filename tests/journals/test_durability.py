"""What survives a crash of the server: kill -9 while it holds rows in memory that its clients can see already.

PostgreSQL's WAL writer is stopped first: else it would flush by itself in a fifth of a second, and every mutant would
pass. MariaDB leaves its log to the kernel, which survives a kill -9; there the test reads how far the log is flushed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import pytest

from journals.places import Place, query
from kit import stop_walwriter
from nodoubt.journals.attempts import FLOOR_LOWEST
from nodoubt.journals.dialects import PostgresDialect
from nodoubt.journals.sql import SqlJournal
from nodoubt.ports import Session
from nodoubt.protocol.records import Confirmation, Readiness, Standing, Unreadable
from nodoubt.script import Script
from nodoubt.testing.bench import Bench
from nodoubt.testing.samples import decision, staging
from nodoubt.testing.servers import MariaDBServer, PostgresServer
from nodoubt.xid import first_attempt_of, new_attempt, new_mark


class Crashing:
    """A server of its own, with a journal, that flushes only what it is asked to flush."""

    def __init__(self, server: PostgresServer) -> None:
        self.server, self.place = server, Place("postgres", "sync", server.url())
        with self.place.bench() as bench:
            bench.setup("c" * 16)

    def after_a_crash(self, work: Callable[[Bench], Any], journal: SqlJournal | None = None) -> Bench:
        """A bench on the restarted server, after this work and a kill -9."""
        with self.place.bench(journal) as bench:
            stop_walwriter(self.server.url())
            work(bench)
            self.server.kill()
        self.server.restart()
        return self.place.bench()


@pytest.fixture(scope="module")
def crashing() -> Iterator[Crashing]:
    with PostgresServer({"checkpoint_timeout": "1h", "autovacuum": False}) as server:
        yield Crashing(server)


def unflushed(bench: Bench, *statements: str) -> None:
    """Commit these so that everybody can see them, and the disk does not know of them."""
    query(bench, ";\n".join((bench.journal.dialect.begin_unforced, *statements, "COMMIT")), bench.session())


class LooksOnly(SqlJournal):
    """Acts on a plain read."""

    def confirm(self, session: Session, attempts: Sequence[str]) -> Script[dict[str, Standing | Unreadable]]:
        return self.look(session, attempts)


class ForcesNothing(SqlJournal):
    """A forced transaction that changes nothing flushes nothing."""

    def confirm(self, session: Session, attempts: Sequence[str]) -> Script[dict[str, Standing | Unreadable]]:
        found = yield from self.look(session, attempts)
        yield from self._write(session, "SELECT 1")
        return found


@pytest.mark.parametrize("mutant", [LooksOnly, ForcesNothing])
def test_a_confirmed_decision_survives_the_crash_that_its_unflushed_commit_would_not(
    crashing: Crashing, mutant: type[SqlJournal]
) -> None:
    def confirmed(bench: Bench) -> None:
        unflushed(bench, *bench.journal.decision_rows(one))
        assert bench.confirm([one.attempt])[one.attempt].decision == one

    one = decision()
    with crashing.after_a_crash(confirmed) as bench:
        assert set(bench.look([one.attempt])) == {one.attempt}
    one = decision()
    with crashing.after_a_crash(confirmed, mutant(crashing.place.dialect())) as bench:
        assert bench.look([one.attempt]) == {}, "the mutant is not caught"


def test_whatever_was_answered_survives_the_crash(crashing: Crashing) -> None:
    one, ended, row = decision(), decision(), staging(f"order-{new_attempt()}")

    def work(bench: Bench) -> None:
        session = bench.session()
        query(bench, "SET synchronous_commit = off", session)  # as a role or a database may have it
        journal = bench.journal
        bench.run(journal.insert(session, [one]))
        bench.run(journal.insert(session, [ended]))
        bench.run(journal.stage(session, row))
        bench.run(journal.raise_epoch(session, new_mark()))
        bench.run(journal.end(session, [ended.attempt]))

    with crashing.place.bench() as bench:
        epoch = bench.epoch()
    with crashing.after_a_crash(work) as bench:
        assert {s.decision.attempt: s.ended for s in bench.look([one.attempt, ended.attempt]).values()} == {
            one.attempt: False,
            ended.attempt: True,
        }
        assert bench.find(row.name) == row
        assert bench.epoch().number == epoch.number + 1 and bench.minted(bench.epoch().mark)


def test_without_its_own_setting_an_answered_decision_is_lost(crashing: Crashing) -> None:
    """The mutant: begin as the session happens to be."""
    one = decision()
    weak = PostgresDialect()
    weak.begin_forced = "BEGIN"

    def work(bench: Bench) -> None:
        query(bench, "SET synchronous_commit = off", bench.main)
        bench.insert([one])

    with crashing.after_a_crash(work, SqlJournal(weak)) as bench:
        assert bench.look([one.attempt]) == {}


@pytest.mark.parametrize(("kind", "style"), [("postgres", "sync")])
def test_a_forced_transaction_is_never_weaker_than_what_the_server_asks_of_itself(bench: Bench) -> None:
    session = bench.session()
    for asked, given in (
        ("off", "on"), ("local", "on"), ("remote_write", "on"), ("on", "on"), ("remote_apply", "remote_apply"),
    ):  # fmt: skip
        query(bench, f"SET synchronous_commit = {asked}", session)
        query(bench, bench.journal.dialect.begin_forced, session)
        assert query(bench, "SHOW synchronous_commit", session).scalar() == given
        query(bench, "COMMIT", session)
        assert query(bench, "SHOW synchronous_commit", session).scalar() == asked


class EndsWhatIsOpen(SqlJournal):
    """An end that stands already is left as it is; and seen."""

    def end(self, session: Session, attempts: Sequence[str]) -> Script[None]:
        table, which = self.dialect.table("decisions"), f"attempt IN ({self.dialect.attempts(attempts)})"
        yield from self._write(session, f"UPDATE {table} SET ended_at = 1 WHERE {which} AND ended_at IS NULL")


class TellsAnAnswerAsItIsSeen(SqlJournal):
    """That somebody has confirmed is repeated, whoever may forget it. A floor likewise."""

    def _flush(self, only_if: str = "") -> str:
        return "SELECT 1"


ENDED_BY_SOMEBODY = "UPDATE {0} SET ended_at = 5 WHERE attempt = '{1}'"


@pytest.mark.parametrize("mutant", [None, EndsWhatIsOpen])
def test_an_end_that_was_there_before_but_not_flushed_survives_the_crash(
    crashing: Crashing, mutant: type[SqlJournal] | None
) -> None:
    """Receipts are deleted on the strength of it; and two who have proved the same branches end the same record."""
    one = decision()

    def ended(bench: Bench) -> None:
        bench.insert([one])
        unflushed(bench, ENDED_BY_SOMEBODY.format(bench.journal.dialect.table("decisions"), one.attempt))
        bench.run(bench.journal.end(bench.main, [one.attempt]))

    journal = None if mutant is None else mutant(crashing.place.dialect())
    with crashing.after_a_crash(ended, journal) as bench:
        assert bench.look([one.attempt])[one.attempt].ended is (mutant is None)


def test_an_answer_that_is_told_again_survives_the_crash(crashing: Crashing) -> None:
    """(Its mutant is MariaDB's: on PostgreSQL the lock of a row is in the log, and flushes all before it.)"""
    row = msgspec.structs.replace(staging(f"order-{new_attempt()}"), confirmations=("shipping",))

    def told_again(bench: Bench) -> None:
        bench.run(bench.journal.stage(bench.main, row))
        said = Confirmation(row.attempt, "shipping", Readiness.CONFIRMED, "", 1.0)
        unflushed(bench, *bench.journal._answer_rows(said))
        again = bench.run(bench.journal.answer(bench.main, row.attempt, "shipping", said.answer, why="", at=2.0))
        assert again == said

    with crashing.after_a_crash(told_again) as bench:
        (stands,) = bench.run(bench.journal.confirmations(bench.main, row.attempt))
        assert stands.answer is Readiness.CONFIRMED


@pytest.mark.parametrize("mutant", [None, TellsAnAnswerAsItIsSeen])
def test_a_floor_by_which_receipts_are_deleted_survives_the_crash(
    crashing: Crashing, mutant: type[SqlJournal] | None
) -> None:
    floor = first_attempt_of(1000)

    def seen(bench: Bench) -> None:
        table = bench.journal.dialect.table("journal")
        unflushed(bench, f"UPDATE {table} SET value = '{floor}' WHERE item = 'floor'")
        assert bench.run(bench.journal.floor(bench.main, flushed=True)) == floor

    journal = None if mutant is None else mutant(crashing.place.dialect())
    with crashing.after_a_crash(seen, journal) as bench:
        assert (bench.run(bench.journal.floor(bench.main)) == floor) is (mutant is None)
        query(bench, f"UPDATE nodoubt.journal SET value = '{FLOOR_LOWEST}' WHERE item = 'floor'")


# ---- MariaDB --------------------------------------------------------------------------------------

TRIES_MAX = 5


def test_on_mariadb_a_confirm_flushes_the_log_beyond_its_row() -> None:
    with MariaDBServer({"innodb-flush-log-at-timeout": 2700}) as server:
        place = Place("mariadb", "sync", server.url())
        with place.bench() as bench:
            bench.setup("c" * 16)
            assert all(flushes(bench) for _ in range(TRIES_MAX))
        for mutant in (LooksOnly, ForcesNothing):
            with place.bench(mutant(place.dialect())) as bench:
                # The server flushes now and then by itself.
                assert not all(flushes(bench) for _ in range(TRIES_MAX)), "the mutant is not caught"


def flushes(bench: Bench) -> bool:
    """Whether the row of a decision that was only visible is flushed once it is confirmed."""
    one = decision()

    def confirm() -> None:
        assert set(bench.confirm([one.attempt])) == {one.attempt}

    return is_flushed(bench, bench.journal.decision_rows(one), confirm)


def is_flushed(bench: Bench, rows: Sequence[str], act: Callable[[], None]) -> bool:
    """Whether these rows, which were only visible, are flushed by this act."""

    def lsn(which: str) -> int:
        return int(query(bench, f"SHOW GLOBAL STATUS LIKE 'Innodb_lsn_{which}'").rows[0][1])

    query(bench, "SET GLOBAL innodb_flush_log_at_trx_commit = 0")
    unflushed(bench, *rows)
    written = lsn("current")
    query(bench, "SET GLOBAL innodb_flush_log_at_trx_commit = 1")
    act()
    return lsn("flushed") >= written


def ends(bench: Bench) -> bool:
    """Whether an end that another process has written, and not flushed, is flushed by ours."""
    one = decision()
    bench.insert([one])
    row = ENDED_BY_SOMEBODY.format(bench.journal.dialect.table("decisions"), one.attempt)
    return is_flushed(bench, [row], lambda: bench.run(bench.journal.end(bench.main, [one.attempt])))


def answers(bench: Bench) -> bool:
    """The same of an answer that is told again."""
    row = msgspec.structs.replace(staging(f"order-{new_attempt()}"), confirmations=("shipping",))
    bench.run(bench.journal.stage(bench.main, row))
    said = Confirmation(row.attempt, "shipping", Readiness.CONFIRMED, "", 1.0)

    def again() -> None:
        bench.run(bench.journal.answer(bench.main, row.attempt, "shipping", said.answer, why="", at=2.0))

    return is_flushed(bench, bench.journal._answer_rows(said), again)


@pytest.mark.parametrize(("flushed", "mutant"), [(ends, EndsWhatIsOpen), (answers, TellsAnAnswerAsItIsSeen)])
def test_on_mariadb_what_stood_before_is_flushed_by_whoever_goes_by_it(
    flushed: Callable[[Bench], bool], mutant: type[SqlJournal]
) -> None:
    """There each commit is visible before it is flushed: nobody need have been careless."""
    with MariaDBServer({"innodb-flush-log-at-timeout": 2700}) as server:
        place = Place("mariadb", "sync", server.url())
        with place.bench() as bench:
            bench.setup("c" * 16)
            assert all(flushed(bench) for _ in range(TRIES_MAX))
        with place.bench(mutant(place.dialect())) as bench:
            assert not all(flushed(bench) for _ in range(TRIES_MAX)), "the mutant is not caught"
