"""The whole evening: worlds are built, the acts are played, the sums are told, everything is taken down.

Guarantees: leaves nothing behind: no file, no process, not even after Ctrl-C.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from .. import wiring
from . import acts, payments
from .acts import Play
from .check import Check
from .stage import Stage
from .world import SHOP_TABLES, WAREHOUSE_TABLES, World

Database = Callable[[str], str]  # the URL of a fresh database


@dataclass(frozen=True, slots=True)
class House:
    """What the worlds are built on: how to get a database for each part, and what it is called."""

    shop: Database
    warehouse: Database
    journal: Database
    shop_kind: str
    warehouse_kind: str
    kill: Callable[[], None] | None = None  # the server with shop and journal
    restart: Callable[[], None] | None = None

    @property
    def places(self) -> dict[str, str]:
        return {"shop": self.shop_kind, "warehouse": self.warehouse_kind, "journal": "with shop"}


def perform_all(*, servers: bool) -> bool:
    """Play everything; whether every check has passed."""
    stage, began = Stage(), time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nodoubt-demo-")))
        house = stack.enter_context(_servers(stage)) if servers else _files(folder)
        till = stack.enter_context(payments.service(folder / "payments.jsonl"))
        _introduce(stage, house)
        world = World(house.shop("shop"), house.warehouse("warehouse"), till)
        furnish(world)
        first = Play(world, stage, house.places)
        checks = acts.perform(first, _with_server_act(house))
        other = stack.enter_context(payments.service(folder / "payments2.jsonl"))
        world = World(house.shop("shop2"), house.warehouse("warehouse2"), other, house.journal("journal"))
        furnish(world)
        second = Play(world, stage, {**house.places, "journal": house.shop_kind})
        checks += acts.perform(second, acts.OWN_JOURNAL)
    return _verdict(stage, checks, [first, second], time.monotonic() - began)


def furnish(world: World) -> None:
    """Create our tables, the shop's and the warehouse's, and fill the shelves."""
    world.set_up()
    with wiring.onlooker({"shop": world.shop, "warehouse": world.warehouse}, None) as (ctx, _):
        for name, statements in (("shop", SHOP_TABLES), ("warehouse", WAREHOUSE_TABLES)):
            session = ctx.participants[name].pool.acquire()
            session.run(statements)
            ctx.participants[name].pool.release(session)


def _with_server_act(house: House) -> list[Callable[[Play], None]]:
    kill, restart = house.kill, house.restart
    if kill is None or restart is None:
        return list(acts.SHARED_JOURNAL)
    return [*acts.SHARED_JOURNAL, lambda play: acts.server_dies(play, kill, restart)]


def _files(folder: Path) -> House:
    def database(name: str) -> str:
        return f"sqlite:///{folder / name}.db"

    return House(database, database, database, "SQLite", "SQLite")


@contextmanager
def _servers(stage: Stage) -> Iterator[House]:
    from ..testing.servers import MariaDBServer, PostgresServer

    stage.say("Starting a PostgreSQL and a MariaDB ...", style="dim")
    with PostgresServer() as postgres, MariaDBServer() as mariadb:
        yield House(
            postgres.url,
            mariadb.url,
            postgres.url,
            "PostgreSQL",
            "MariaDB",
            kill=postgres.kill,
            restart=postgres.restart,
        )


def _introduce(stage: Stage, house: House) -> None:
    stage.say("nodoubt demo", style="bold")
    stage.say(
        f"\nA shop ({house.shop_kind}), a warehouse ({house.warehouse_kind}), and a payment service in a process of "
        "its own. An order must be in the shop and in the warehouse, or in neither, and its payment must fit.\n"
        "Orders are placed by child processes that are really killed (SIGKILL) at bad moments. What the tables show is "
        "read from the databases on fresh connections, as any stranger sees it."
    )


def _verdict(stage: Stage, checks: Sequence[Check], plays: Sequence[Play], took_s: float) -> bool:
    failed = [one for one in checks if not one.holds]
    killed = sum(play.killed for play in plays)
    orders = sum(len(play.expected) for play in plays)
    story = f"{orders} orders, {killed} processes killed with SIGKILL, {took_s:.0f} seconds."
    stage.say("")
    if failed:
        stage.say(f"FAILED {len(failed)} of {len(checks)} checks: {story}", style="bold red")
    else:
        stage.say(f"PASSED {len(checks)} of {len(checks)} checks: {story}", style="bold green")
    return not failed
