"""Each rule of the keys, and the harm that is done without it. The rules themselves: `test_once`, `test_killed`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kit import QUICK, Database, make_database, stop_walwriter
from nodoubt import Coordinator, KeyInFlight, KeyReused, ResourceUnavailable
from nodoubt.idempotency import claims, keys, store
from nodoubt.idempotency.keys import Key
from nodoubt.idempotency.store import MariaDBStore, PostgresStore, SqliteStore, Store
from nodoubt.ports import Session
from nodoubt.resources.sqlite import failures, two_phase
from nodoubt.script import Script
from nodoubt.testing.servers import PostgresServer
from nodoubt.xid import Xid

SHORT = replace(QUICK, prepare_s=0.5)
ADD = "update accounts set balance = balance + 5 where id = 0"


def coordinator(some: list[Database], **options: Any) -> Coordinator:
    options.setdefault("settings", SHORT)
    return Coordinator({one.name: one.url for one in some}, recovery=False, **options)


def databases(kind: str, request: Any, tmp_path: Path) -> list[Database]:
    return [make_database(one, name, request, tmp_path) for one, name in (("sqlite", "a"), (kind, "b"))]


class AtWork(Exception):
    """The second call has come as far as its work."""


def second_call(some: list[Database]) -> str:
    """While the first is staged: whether the second is told so, or gets to work, or is told that it is done."""
    with coordinator(some) as db:
        db.setup()
    with coordinator(some) as db, coordinator(some) as other:
        with db.once("k", on="b", staged="order") as once:
            once["b"].execute(ADD)
        try:
            with other.once("k", on="b") as again:
                if not again.replayed:
                    raise AtWork
            return "told that it is done"
        except KeyInFlight:
            return "told that it is in flight"
        except Exception as error:
            return type(error).__name__
        finally:
            db.rollback_distributed("order")


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "mariadb"])
def test_what_is_prepared_is_told_as_in_flight(kind: str, request: Any, tmp_path: Path) -> None:
    assert second_call(databases(kind, request, tmp_path)) == "told that it is in flight"


def test_mutant_without_the_lock_a_second_call_on_postgresql_works_in_vain(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And then waits, at its end, for the row of the first."""
    monkeypatch.setattr(PostgresStore, "claim", _claim_without_lock)
    assert second_call(databases("postgres", request, tmp_path)) == AtWork.__name__


def _claim_without_lock(self: PostgresStore, session: Session, work: Any, key: Key) -> Script[store.Claim]:
    row = yield from self.look(session, key)
    return store.Claim.TAKEN if row is None else store.Claim.DONE


def test_mutant_with_a_lock_wait_a_second_call_on_mariadb_hangs(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MariaDBStore, "no_wait", "")
    assert second_call(databases("mariadb", request, tmp_path)) == ResourceUnavailable.__name__


def test_mutant_without_a_look_at_the_branch_a_prepared_key_on_sqlite_is_taken_for_done(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is rolled back afterwards: somebody was told of an effect that never was."""
    monkeypatch.setattr(SqliteStore, "pending", "0")
    assert second_call(databases("sqlite", request, tmp_path)) == "told that it is done"


def after_a_rollback(some: list[Database]) -> bool:
    """Whether the key of a staged transaction that was rolled back counts as done."""
    with coordinator(some) as db:
        db.setup()
        with db.once("k", on="b", staged="order") as once:
            once["b"].execute(ADD)
        db.rollback_distributed("order")
        with db.once("k", on="b") as again:
            return bool(again.replayed)


def test_a_rollback_frees_the_key_on_sqlite(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not after_a_rollback(databases("sqlite", request, tmp_path))


def test_mutant_a_rollback_that_keeps_the_row_on_sqlite_tells_of_an_effect_that_never_was(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keeps_the_row(connection: Any, xid: Xid) -> None:
        failures.lock(connection, "rollback")
        two_phase._released(connection, xid.gid)
        failures.commit(connection, "rollback")

    monkeypatch.setattr(two_phase, "rollback_prepared", keeps_the_row)
    assert after_a_rollback(databases("sqlite", request, tmp_path))


def forgotten_while_prepared(some: list[Database]) -> bool:
    """Whether the key of a transaction that is still prepared can be forgotten."""
    with coordinator(some) as db:
        db.setup()
        with db.once("k", on="b", staged="order", keep=1e-6, deadline=1e-6) as once:
            once["b"].execute(ADD)
        gone = db._shell.run(claims.expire(db._ctx))
        db.rollback_distributed("order")
        return bool(gone)


def test_a_key_is_not_forgotten_while_it_is_prepared(request: Any, tmp_path: Path) -> None:
    assert not forgotten_while_prepared(databases("sqlite", request, tmp_path))


def test_mutant_expiry_that_looks_at_the_clock_alone_forgets_a_key_in_flight(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SqliteStore, "pending", "0")
    assert forgotten_while_prepared(databases("sqlite", request, tmp_path))


def staged_long_ago(some: list[Database]) -> bool:
    """Whether a key is still there right after its transaction was committed, later than it was to be kept."""
    with coordinator(some) as db:
        db.setup()
        with db.once("k", on="b", staged="order", keep=1e-6, deadline=3600) as once:
            once["b"].execute(ADD)
        db.commit_distributed("order")
        db._shell.run(claims.expire(db._ctx))
        with db.once("k", on="b") as again:
            return bool(again.replayed)


def test_a_staged_key_is_kept_from_the_deadline_on(request: Any, tmp_path: Path) -> None:
    assert staged_long_ago(databases("sqlite", request, tmp_path))


def test_mutant_a_key_kept_from_its_work_on_is_gone_when_it_commits(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = claims.close

    def from_now(ctx: Any, attempt: Any, *rest: Any) -> None:
        deadline, attempt.deadline = attempt.deadline, 0.0
        close(ctx, attempt, *rest)
        attempt.deadline = deadline

    monkeypatch.setattr(claims, "close", from_now)
    assert not staged_long_ago(databases("sqlite", request, tmp_path))


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "mariadb"])
def test_mutant_a_key_that_does_not_ride_with_the_effect_lets_it_happen_twice(
    kind: str, request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "mariadb":  # there the claim is the row; what rides renews it
        monkeypatch.setattr(MariaDBStore, "claim", _claim_without_lock)
    monkeypatch.setattr(claims, "close", lambda *_: None)
    some = databases(kind, request, tmp_path)
    with coordinator(some) as db:
        db.setup()
        for _ in range(2):
            with db.once("k", on="b") as once:
                once["b"].execute(ADD)
    assert some[1].balance() == 110


def test_mutant_without_the_payloads_digest_another_request_gets_the_first_ones_result(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = databases("sqlite", request, tmp_path)
    with coordinator(some) as db:
        db.setup()
        with db.once("k", {"amount": 5}):
            pass
        with pytest.raises(KeyReused), db.once("k", {"amount": 500}):
            pass
        same = keys.digest({"amount": 5})
        monkeypatch.setattr(keys, "digest", lambda _: same)
        with db.once("k", {"amount": 500}) as again:
            assert again.replayed


# ---- a row that is seen need not be flushed -------------------------------------------------------


def replayed_and_kept() -> tuple[bool, bool]:
    """A row that everybody sees and the disk does not know of; whether a repetition is told it, and it is there after
    a crash of the server.
    """
    with PostgresServer({"checkpoint_timeout": "1h", "autovacuum": False}) as server:
        only = Database("a", server.url())
        with coordinator([only]) as db:
            db.setup()
            stop_walwriter(only.url)
            with psycopg.connect(only.url, autocommit=True) as stranger:
                stranger.execute("set synchronous_commit = off")
                stranger.execute(
                    "insert into nodoubt.keys values ('', 'k', %s, '\"done\"', 'x', 0, 4102444800)",
                    (keys.digest(None),),
                )
                with db.once("k") as once:
                    replayed = once.replayed
                server.kill()
        server.restart()
        return replayed, bool(only.query("select 1 from nodoubt.keys"))


def test_what_was_told_as_done_is_so_after_a_crash() -> None:
    assert replayed_and_kept() == (True, True)


def test_mutant_a_replay_by_a_plain_read_is_forgotten_in_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "confirm", Store.look)
    assert replayed_and_kept() == (True, False)
