"""The conformance suite on the databases of the fake coordinator."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nodoubt.journals.memory import AsyncMemorySession, MemorySession
from nodoubt.ports import Reply
from nodoubt.testing.bench import Bench, LoopBench, ThreadBench
from nodoubt.testing.memory import FakeDatabase, FakeResource, Scripted, World
from nodoubt.testing.resources import Place, ResourceSuite


class FakePlace(Place):
    """What was committed is what is seen."""

    endings = ("COMMIT", "rollback")

    def __init__(self, bench: Bench, world: World) -> None:
        super().__init__(bench)
        self.world = world
        world.scripted.append(Scripted("nowhere", "", LookupError("there is no such table")))
        world.scripted.append(Scripted("select", "", Reply()))

    def writing(self, number: int, *, apart: bool = False) -> str:
        return f"write {number}"

    def reading(self) -> str:
        return "select"

    def failing(self) -> str:
        return "write nowhere"

    def seen(self) -> set[int]:
        return {int(statement.text.split()[1]) for statement in self.world.committed}


@pytest.fixture(params=["sync", "async"])
def bare(request: pytest.FixtureRequest) -> Iterator[Place]:
    world = World()
    database = FakeDatabase("there", world)

    async def connect() -> AsyncMemorySession:
        return AsyncMemorySession(database)  # type: ignore[arg-type]  # it has the one verb of a store

    bench = (
        ThreadBench(FakeResource("there"), lambda: MemorySession(database))  # type: ignore[arg-type]
        if request.param == "sync"
        else LoopBench(FakeResource("there"), connect)
    )
    with bench:
        yield FakePlace(bench, world)


@pytest.fixture
def place(bare: Place) -> Place:
    bare.setup()
    return bare


class TestFake(ResourceSuite):
    """Every claim."""
