"""kill -9 of who has a key, and of the server that keeps it. Before recovery nobody else gets what may yet happen;
after it the key is done if the effect is there, and free if it is not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crash.test_coordinator_killed import hash_of, killed_at, recover
from kit import QUICK, Database, make_database, until
from nodoubt import Coordinator, KeyInFlight, NoDoubtError, ResourceUnavailable
from nodoubt.testing.servers import MariaDBServer, PostgresServer

CHILD = Path(__file__).with_name("child.py")
FREE, IN_FLIGHT, DONE = "free", "in flight", "done"

# Where; what the others are told before recovery of a key on a, which has the journal, and on b; and after it.
POINTS = [
    ("once", "P2.work#2", FREE, FREE, FREE),
    ("once", "P3.prepared", FREE, IN_FLIGHT, FREE),
    ("once", "P6.committed", DONE, IN_FLIGHT, DONE),
    ("staged", "P4.staged", IN_FLIGHT, IN_FLIGHT, IN_FLIGHT),
    ("staged", "P6.committed", "", IN_FLIGHT, DONE),  # on a PostgreSQL has committed, SQLite has not
]
PAIRS = [("postgres", "mariadb"), ("mariadb", "sqlite"), ("sqlite", "postgres")]


class Free(Exception):
    """Leaves the block without an effect."""


def told(db: Coordinator, on: str) -> str:
    """What another caller of this key is told."""
    try:
        with db.once("pay", {"amount": 30}, on=on) as once:
            if once.replayed:
                assert once.value == "paid"
                return DONE
            raise Free
    except KeyInFlight:
        return IN_FLIGHT
    except Free:
        return FREE


@pytest.mark.parametrize(("on", "kinds"), [("b", pair) for pair in PAIRS] + [("a", PAIRS[0])])
@pytest.mark.parametrize(("way", "kill", "on_a", "on_b", "after"), POINTS)
def test_kill_9_never_lets_a_second_effect_through(
    way: str,
    kill: str,
    on_a: str,
    on_b: str,
    after: str,
    kinds: tuple[str, str],
    on: str,
    request: Any,
    tmp_path: Path,
) -> None:
    pair = [make_database(kind, name, request, tmp_path) for kind, name in zip(kinds, "ab", strict=True)]
    urls = {one.name: one.url for one in pair}
    with Coordinator(urls, recovery=False) as db:
        db.setup()
    options = {"staged": "order"} if way == "staged" else {}
    mode = ("sync", "async")[hash_of(kinds, kill, on) % 2]
    killed_at({"urls": urls, "on": on, "mode": mode, "kill": kill, "options": options}, CHILD)
    with Coordinator(urls, settings=QUICK, recovery=False) as db:
        before = {"a": on_a, "b": on_b}[on]
        if before:
            # A server needs a moment to notice that a killed client is gone.
            until(lambda: told(db, on) == before)
        recover(db, pair)
        assert told(db, on) == after
        if after == IN_FLIGHT:
            db.rollback_distributed("order")
            assert told(db, on) == FREE
        moved = after == DONE
        assert [one.balance() for one in pair] == ([70, 130] if moved else [100, 100])
        with db.once("pay", {"amount": 30}, on=on) as once:
            assert once.replayed is moved
            if not moved:
                once["a"].execute("update accounts set balance = balance - 30 where id = 0")
                once["b"].execute("update accounts set balance = balance + 30 where id = 0")
        assert [one.balance() for one in pair] == [70, 130]
        assert not any(one.prepared() or one.locked() for one in pair)


@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
def test_a_key_in_doubt_is_in_flight_after_its_server_was_killed(kind: str, request: Any, tmp_path: Path) -> None:
    """The advisory lock, and the row's lock, are part of what was prepared."""
    server: PostgresServer | MariaDBServer = request.getfixturevalue(kind)
    pair = [make_database(one, name, request, tmp_path) for one, name in (("sqlite", "a"), (kind, "b"))]
    urls = {one.name: one.url for one in pair}
    with Coordinator(urls, settings=QUICK, recovery=False) as db:
        db.setup()
        with db.once("pay", {"amount": 30}, on="b", staged="order") as once:
            once["b"].execute("update accounts set balance = balance + 30 where id = 0")
            once.value = "paid"
        server.kill()
        with pytest.raises(ResourceUnavailable):
            told(db, "b")
        server.restart()
        until(lambda: _reached(db))
        assert told(db, "b") == IN_FLIGHT
        db.commit_distributed("order")
        until(lambda: db.recover(grace=0).clean)
        assert told(db, "b") == DONE
    assert pair[1].balance() == 130


def _reached(db: Coordinator) -> bool:
    try:
        told(db, "b")
    except NoDoubtError:
        return False
    return True


def test_a_second_process_waits_for_a_file_that_the_first_has_locked_and_is_then_told(tmp_path: Path) -> None:
    """SQLite can't tell what the other is at; the wait is bounded, and nothing was done."""
    only = Database("a", f"sqlite:///{tmp_path}/a.db")
    only.create()
    with Coordinator(only.url, recovery=False) as db:
        db.setup()
    with Coordinator(only.url, recovery=False) as db, Coordinator(only.url, recovery=False) as other:
        with db.once("pay", {"amount": 30}) as once:
            once.value = "paid"
            with pytest.raises(ResourceUnavailable, match="locked for writing by"):
                told(other, "db")
        assert told(other, "db") == DONE
