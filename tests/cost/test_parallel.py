"""Prepares, and phase two, are asked of all branches at the same time: the phase takes as long as its slowest branch.

No clock proves it. A proxy in front of each database holds back its reply; both must come to be held at the same time,
before either is let go. Were the branches asked in turn, the second would never be asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kit import Database, make_database, opened
from nodoubt import Settings
from nodoubt import script as scripts
from nodoubt.script import Every
from nodoubt.testing.proxy import Fault, TcpProxy

PATIENT = Settings(prepare_s=60, decide_s=60, apply_s=60)
HELD_TIME_MAX_S = 20.0
SEQUENTIAL_TIME_MAX_S = 1.0
PREPARE = {"postgres": b"PREPARE TRANSACTION", "mariadb": b"XA PREPARE"}
COMMIT = {"postgres": b"COMMIT PREPARED", "mariadb": b"XA COMMIT"}
ROLLBACK = {"postgres": b"ROLLBACK PREPARED", "mariadb": b"XA ROLLBACK"}
PAIRS = [("postgres", "postgres"), ("postgres", "mariadb")]


class World:
    """Two databases behind proxies, and the journal in a file: both branches take part in both phases."""

    def __init__(self, stack: contextlib.ExitStack, plain: list[Database], tmp_path: Path) -> None:
        self.plain = plain
        self.proxies = [stack.enter_context(TcpProxy.to(d.url)) for d in plain]
        self.databases = [Database(d.name, p.url_for(d.url)) for d, p in zip(plain, self.proxies, strict=True)]
        self.journal = f"sqlite:///{tmp_path}/journal.db"

    def hold(self, patterns: dict[str, bytes]) -> list[Fault]:
        """From now on, hold back every reply to it."""
        return [p.delay_reply(patterns[d.kind], times=None) for p, d in zip(self.proxies, self.plain, strict=True)]

    @contextlib.contextmanager
    def at_work(self, mode: str, way: str, ready: Callable[[], None]) -> Iterator[None]:
        """The transaction runs in a thread meanwhile. `ready` is called between its work and its end."""
        failures: list[BaseException] = []

        async def main() -> None:
            async with opened(mode, self.databases, journal=self.journal, settings=PATIENT) as db:
                if way == "once":
                    async with db.transaction() as tx:
                        await tx.move("a", "b", 30)
                        ready()
                    return
                async with db.staged("pay") as tx:
                    await tx.move("a", "b", 30)
                    if way == "begin":
                        ready()
                if way == "begin":
                    return
                ready()
                await (db.commit_distributed if way == "commit" else db.rollback_distributed)("pay")

        def run() -> None:
            try:
                asyncio.run(main())
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            for proxy in self.proxies:
                proxy.heal()
            thread.join(HELD_TIME_MAX_S)
        assert not thread.is_alive()
        assert failures == []


@pytest.fixture(params=PAIRS, ids="+".join)
def world(request: Any, tmp_path: Path) -> Iterator[World]:
    plain = [make_database(kind, name, request, tmp_path) for kind, name in zip(request.param, "ab", strict=True)]
    with contextlib.ExitStack() as stack:
        yield World(stack, plain, tmp_path)


CASES = [
    ("once", PREPARE),
    ("once", COMMIT),
    ("begin", PREPARE),
    ("commit", COMMIT),
    ("rollback", ROLLBACK),
]


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize(("way", "patterns"), CASES, ids=lambda c: c if isinstance(c, str) else c["postgres"].decode())
def test_all_branches_are_asked_at_the_same_time(way: str, patterns: dict[str, bytes], mode: str, world: World) -> None:
    faults: list[Fault] = []
    armed = threading.Event()

    def ready() -> None:
        faults.extend(world.hold(patterns))
        armed.set()

    with world.at_work(mode, way, ready):
        assert armed.wait(HELD_TIME_MAX_S)
        for fault in faults:
            fault.wait_hit(HELD_TIME_MAX_S)  # and is held still: nobody has let go of it
    assert [d.balance() for d in world.plain] == ([70, 130] if way in ("once", "commit") else [100, 100])


def test_mutant_that_asks_one_after_the_other_is_caught(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = scripts._perform

    def in_turn(effect: Any, executor: Any, watch: Any) -> Any:
        if isinstance(effect, Every):
            return tuple(scripts._outcome(one, executor, watch) for one in effect.scripts)
        return plain(effect, executor, watch)

    monkeypatch.setattr(scripts, "_perform", in_turn)
    faults: list[Fault] = []
    armed = threading.Event()

    def ready() -> None:
        faults.extend(world.hold(PREPARE))
        armed.set()

    with world.at_work("sync", "once", ready):
        assert armed.wait(HELD_TIME_MAX_S)
        faults[0].wait_hit(HELD_TIME_MAX_S)
        with pytest.raises(TimeoutError):
            faults[1].wait_hit(SEQUENTIAL_TIME_MAX_S)
