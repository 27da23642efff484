"""What must be so before the snippets under a heading run, and what must be so after.

A stage is a generator: it furnishes the world, yields while the snippets run, and checks what came of them.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

from fastapi.testclient import TestClient
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

import nodoubt
from crash.test_coordinator_killed import killed_at
from docs.pages import ROOT, World
from kit import Database, until
from nodoubt import AsyncCoordinator
from nodoubt.contrib.asgi import IdempotencyKeys
from nodoubt.url import parse_url
from rules.mutants import coordinator
from traps.test_lineage import Backup, commit_and_leave, start_often

Make = Callable[[str, str], Database]  # a fresh database, by kind and name
Stage = Callable[[World, Make], Iterator[None]]
STAGES: dict[tuple[str, str], Stage] = {}


def stage(page: str, *headings: str) -> Callable[[Stage], Stage]:
    def register(made: Stage) -> Stage:
        STAGES.update({(page, heading): made for heading in headings})
        return made

    return register


# ---- furniture ------------------------------------------------------------------------------------


def file(world: World, name: str) -> Database:
    """Where `sqlite:///NAME.db` is, for who works in this directory."""
    return Database(name, f"sqlite:///{world.folder}/{name}.db")


def set_up(*databases: Database, journal: str | None = None) -> None:
    with coordinator(databases, journal) as db:
        db.setup()


def configure(world: World, *databases: Database, journal: str = "") -> None:
    lines = [f'"{one.name}" = "{one.url}"' for one in databases]
    own = f'journal = "{journal}"\n' if journal else ""
    (world.folder / "nodoubt.toml").write_text(f"{own}[resources]\n" + "\n".join(lines) + "\n")


def shop_and_stock(world: World) -> tuple[Database, Database]:
    """The SQLite files of the documents, with a product to be sold."""
    shop, stock = file(world, "shop"), file(world, "stock")
    shop.query("create table orders (id integer primary key, total int)")
    stock.query("create table products (id integer primary key, stock int)")
    stock.query("insert into products values (7, 3)")
    return shop, stock


def orders_and_billing(world: World, make: Make) -> tuple[Database, Database]:
    """The servers of the documents: app@db1/orders, app@db2/billing."""
    orders, billing = make("postgres", "orders"), make("mariadb", "billing")
    orders.query("create table orders (id int primary key)")
    billing.query("create table invoices (order_id int primary key)")
    world.places = {"db1/orders": orders, "db2/billing": billing}
    return orders, billing


def both(orders: Database, billing: Database) -> list[list[Any]]:
    return [orders.query("select id from orders"), billing.query("select order_id from invoices")]


def accounts(world: World) -> tuple[Database, Database]:
    """Set up under the names that a process uses which is killed."""
    a, b = (Database(name, file(world, place).url) for name, place in (("a", "shop"), ("b", "stock")))
    for one in (a, b):
        one.create()
    set_up(a, b)
    return a, b


def killed_after_its_decision(a: Database, b: Database) -> str:
    """The attempt: decided in a, prepared in b, and its process is gone."""
    task = {"urls": {"a": a.url, "b": b.url}, "way": "once", "mode": "sync", "kill": "P6.committed"}
    assert killed_at(task) == []
    (left,) = b.prepared()
    found = re.search(r"[0-9a-f]{32}", left)
    assert found and (a.balance(), b.balance()) == (70, 100)
    return found[0]


def staged(*databases: Database, journal: str | None = None) -> None:
    db = coordinator(databases, journal)
    with db, db.begin_distributed("order-42") as tx:
        for one in databases:
            tx[one.name].execute("update accounts set balance = 0 where id = 0")


class Base(DeclarativeBase):
    """The reader's own models."""


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


class Invoice(Base):
    __tablename__ = "invoices"
    order_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class Stock(Base):
    __tablename__ = "stock"
    id: Mapped[int] = mapped_column(primary_key=True)
    left: Mapped[int]


# ---- first steps ----------------------------------------------------------------------------------


@stage("index.md", "nodoubt")
@stage("guarantees.md", "What the caller has to do")
def an_order(world: World, make: Make) -> Iterator[None]:
    shop, stock = shop_and_stock(world)
    set_up(shop, stock)
    yield
    assert shop.query("select * from orders") == [(42, 99)]
    assert stock.query("select * from products") == [(7, 2)]
    assert world.names.get("placed", True) is True


@stage("README.md", "A first transaction")
def an_order_and_a_staged_one(world: World, make: Make) -> Iterator[None]:
    shop, stock = shop_and_stock(world)
    orders, billing = orders_and_billing(world, make)
    set_up(orders, billing)
    yield
    assert shop.query("select * from orders") == [(42, 99)]
    assert stock.query("select * from products") == [(7, 2)]
    assert both(orders, billing) == [[(42,)], [(42,)]]


class Bank:
    """What the steps of the documents talk to."""

    def __init__(self) -> None:
        self.charges: list[int] = []

    def charge(self, cents: int, *, idempotency_key: str) -> str:
        self.charges.append(cents)
        return "payment-1"

    def refund(self, *, of: str, idempotency_key: str) -> None:
        raise AssertionError("it is committed")


@stage("steps.md", "Steps outside, and readiness")
def called(world: World, make: Make) -> Iterator[None]:
    shop, stock = shop_and_stock(world)
    set_up(shop, stock)
    bank = Bank()
    world.names |= {"bank": bank, "__name__": "steps_of_the_page"}
    yield
    assert shop.query("select * from orders") == [(42, 99)]
    assert stock.query("select * from products") == [(7, 2)]
    assert bank.charges == [9900] and world.names["payment"] == "payment-1"


@stage("query-verbs.md", "The query verbs")
def verbs(world: World, make: Make) -> Iterator[None]:
    shop, stock = shop_and_stock(world)
    set_up(shop, stock)
    yield
    assert shop.query("select * from orders") == [(43, 20), (44, 5)]
    assert stock.query("select * from products") == [(7, 1)]


@stage(
    "first-transaction.md",
    "asyncio",
    "asyncio, over asyncpg",
    "Threads",
    "SQLAlchemy Core",
    "ORM",
    "Staged now, decided later",
)
def one_order_each(world: World, make: Make) -> Iterator[None]:
    """Every snippet with a coordinator does the same work."""
    orders, billing = orders_and_billing(world, make)

    def after(text: str) -> None:
        if "Coordinator" in text:
            assert both(orders, billing) == [[(42,)], [(42,)]], text
            orders.query("delete from orders")
            billing.query("delete from invoices")

    world.after = after
    yield
    assert both(orders, billing) == [[], []]


@stage("sqlalchemy.md", "SQLAlchemy and FastAPI")
def sold(world: World, make: Make) -> Iterator[None]:
    orders, billing = orders_and_billing(world, make)
    orders.query('create table stock (id int primary key, "left" int); insert into stock values (7, 3)')
    set_up(orders, billing)
    world.names |= {"Stock": Stock, "Invoice": Invoice}
    yield
    assert orders.query('select "left" from stock') == [(2,)]
    assert billing.query("select * from invoices") == [(42,)]


@stage("sqlalchemy.md", "A FastAPI program, made atomic")
def the_diff(world: World, make: Make) -> Iterator[None]:
    """That it is the program's, and what the program does: tests/examples."""
    yield
    assert world.told == [(ROOT / "examples/fastapi_shop/change.diff").read_text()]


@stage("coming-from.md", "SQLAlchemy's two-phase sessions")
def two_sessions(world: World, make: Make) -> Iterator[None]:
    orders, billing = orders_and_billing(world, make)
    set_up(orders, billing)
    world.names |= {"Order": Order, "Invoice": Invoice}
    yield
    assert both(orders, billing) == [[(42,)], [(42,)]]


@stage("coming-from.md", "Bun's `beginDistributed`")
def one_database(world: World, make: Make) -> Iterator[None]:
    orders, _ = orders_and_billing(world, make)
    set_up(orders)
    yield
    assert orders.query("select id from orders") == [(42,)]


@stage("idempotency.md", "Idempotency keys", "ASGI", "WSGI")
def charged_once(world: World, make: Make) -> Iterator[None]:
    """What is asked for twice happens once, over the header too."""
    shop, billing = file(world, "shop"), file(world, "billing")
    shop.query("create table orders (customer int, paid int)")
    billing.query("create table charges (customer int, cents int)")
    set_up(shop, billing)
    yield
    if world.heading == "ASGI":
        with TestClient(world.names["app"]) as client:
            told = [client.post("/charges", headers={"Idempotency-Key": '"k"'}) for _ in range(2)]
        assert [one.json() for one in told] == [{"charged": 990}] * 2
    if world.heading == "WSGI":
        environ = {"REQUEST_METHOD": "POST", "HTTP_IDEMPOTENCY_KEY": "k", "REMOTE_USER": "me"}
        for _ in range(2):
            assert world.names["app"](environ | {"wsgi.input": io.BytesIO()}, lambda *_: None) == [b"charged"]
        world.names["db"].close()
    assert billing.query("select * from charges") == [(7, 990)]


@stage("idempotency.md", "After the commit")
def told_afterwards(world: World, make: Make) -> Iterator[None]:
    """The mail is sent once, and tells of what stands."""
    billing = file(world, "billing")
    billing.query("create table charges (customer int, cents int)")
    set_up(billing)
    db, seen = AsyncCoordinator({"billing": billing.url}), list[Any]()

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        async with db:
            yield

    async def send_mail() -> None:
        seen.append(billing.query("select * from charges"))

    world.names |= {"Starlette": Starlette, "JSONResponse": JSONResponse, "Route": Route, "db": db}
    world.names |= {"IdempotencyKeys": IdempotencyKeys, "lifespan": lifespan, "send_mail": send_mail}
    yield
    with TestClient(world.names["app"]) as client:
        told = [client.post("/charges", headers={"Idempotency-Key": '"k"'}) for _ in range(2)]
    assert [one.json() for one in told] == [{"charged": 990}] * 2 and seen == [[(7, 990)]]


@stage("jobs.md", "Long jobs", "One transaction for each chunk, or one for all", "Two workers, and one that was asleep")
def worked_off(world: World, make: Make) -> Iterator[None]:
    """A thousand orders, and an index of them that is filled, or emptied, chunk by chunk."""
    shop, search = file(world, "shop"), file(world, "search")
    shop.query("create table orders (id integer primary key, indexed int not null default 0)")
    numbers = "with recursive n (x) as (values (1) union all select x + 1 from n where x < 1000)"
    shop.query(f"insert into orders (id) {numbers} select x from n")
    search.query("create table entries (order_id integer primary key)")
    configure(world, shop, search)
    shell = world.heading.startswith("Two workers")
    if shell:
        with coordinator([shop, search]) as db:
            db.setup()
            with db.job("index-orders", quiet=True) as job:
                for chunk in job.chunks(range(1000), 400):
                    with chunk:
                        pass
    yield
    if shell:
        assert "1000 of 1000 (100 %)" in world.told[0] and '"done": 1000' in world.told[1]
        assert "is forgotten" in world.told[2]
    elif world.heading == "Long jobs":
        assert shop.query("select sum(indexed) from orders") == [(1000,)]
        assert search.query("select count(*) from entries") == [(0,)]  # the second snippet has emptied it again
    else:
        assert search.query("select count(*) from entries") == [(1000,)]


@stage("operations.md", "A job does not come to its end")
def left(world: World, make: Make) -> Iterator[None]:
    shop, stock = shop_and_stock(world)
    configure(world, shop, stock)
    with coordinator([shop, stock]) as db:
        db.setup()
        with db.job("index-orders", quiet=True) as job:
            job.pause("the disk is full")
    yield
    assert all("the disk is full" in told for told in world.told)


@stage("README.md", "Once")
def charged(world: World, make: Make) -> Iterator[None]:
    shop, billing = file(world, "shop"), file(world, "billing")
    billing.query("create table charges (customer int, cents int)")
    with coordinator([shop, billing]) as db:
        db.setup()
        world.names["db"] = db
        yield
    assert billing.query("select * from charges") == [(7, 990)] and world.names["answer"] == {"charged": 990}


# ---- at hand --------------------------------------------------------------------------------------


@stage("doctor.md", "The doctor")
def two_patients(world: World, make: Make) -> Iterator[None]:
    orders_and_billing(world, make)
    yield
    assert all("PostgreSQL" in one or '"kind": "postgres"' in one for one in world.told), world.told


@stage("configuration.md", "Configuration")
def configured(world: World, make: Make) -> Iterator[None]:
    orders, billing = orders_and_billing(world, make)
    set_up(orders, billing)
    (world.folder / "secrets").mkdir(mode=0o700)
    secret = world.folder / "secrets/billing"
    secret.write_text(parse_url(billing.url).password)
    secret.chmod(0o600)
    world.environment["ORDERS_PASSWORD"] = "hunter22"  # which this server does not ask for
    yield
    assert "5m" in world.told[1] and "$ORDERS_PASSWORD" in world.told[0]
    assert not any("hunter22" in one for one in world.told)


@stage("schema.md", "Our tables, and rights", "Rights")
def tables(world: World, make: Make) -> Iterator[None]:
    orders, billing = orders_and_billing(world, make)
    configure(world, orders, billing)
    yield
    assert "GRANT" in world.told[-1] or "include_object" in world.names["options"]


# ---- operations -----------------------------------------------------------------------------------


@stage("operations.md", "VACUUM is blocked, or rows are locked and nobody is connected")
def vacuum(world: World, make: Make) -> Iterator[None]:
    orders, billing = make("postgres", "orders"), file(world, "billing")
    billing.create()
    world.places = {"db1/orders": orders}
    set_up(orders, billing)
    staged(orders, billing)
    configure(world, orders, billing)
    assert orders.locked()
    yield
    assert "order-42" in world.told[0] and "order-42" in world.told[1]
    assert not orders.locked() and orders.balance() == 100


@stage("operations.md", "A branch is stuck")
def stuck(world: World, make: Make) -> Iterator[None]:
    a, b = accounts(world)
    killed_after_its_decision(a, b)
    configure(world, a, b)
    yield
    assert (a.balance(), b.balance()) == (70, 130) and b.prepared() == []
    assert "committed" in world.told[0] and "Sweeping" in world.told[1]


@stage("operations.md", "A name stays prepared")
def undecided(world: World, make: Make) -> Iterator[None]:
    a, b = accounts(world)
    staged(a, b)
    configure(world, a, b)
    yield
    assert (a.balance(), b.balance()) == (0, 0) and "order-42" in world.told[0]


@stage("operations.md", "InDoubt")
def in_doubt(world: World, make: Make) -> Iterator[None]:
    """Its process was killed in the moment of the decision: nobody was told."""
    a, b = accounts(world)
    world.attempt = killed_after_its_decision(a, b)
    configure(world, a, b)
    yield
    assert "committed" in world.told[0]


@stage("operations.md", "Something needs a human: heuristic, quarantined")
def heuristic(world: World, make: Make) -> Iterator[None]:
    """A branch that was to be committed is rolled back by hand, on the server."""
    a, b = file(world, "a"), make("postgres", "b")
    a.create()
    set_up(a, b)
    world.attempt = killed_after_its_decision(a, b)
    b.query(f"rollback prepared '{b.prepared()[0]}'")
    with coordinator([a, b]) as db:
        until(lambda: bool(db.recover(grace=0) and db.quarantined()))
    configure(world, a, b)
    yield
    assert world.attempt in world.told[0] and "need a human" not in world.told[-1]


@stage("operations.md", "A row cannot be read")
def unreadable(world: World, make: Make) -> Iterator[None]:
    """A newer release has written what branches are, and was rolled back."""
    shop, stock = shop_and_stock(world)
    set_up(shop, stock)
    with coordinator([shop, stock]) as db, db.begin_distributed("order-42") as tx:
        tx["shop"].execute("insert into orders (id, total) values (42, 99)")
    shop.query("update nodoubt_names set branches = '[{\"anew\": 0}]'")
    configure(world, shop, stock)
    yield
    assert all("cannot be read" in one for one in world.told)


@nodoubt.step()
def mail(order: int) -> None:
    """Sent."""


@nodoubt.compensation(tries=1)
def call_back(order: int) -> None:
    raise RuntimeError("mails cannot be called back")


@stage("operations.md", "A step is parked")
def parked(world: World, make: Make) -> Iterator[None]:
    shop, stock = shop_and_stock(world)
    set_up(shop, stock)
    with coordinator([shop, stock]) as db:
        with db.begin_distributed("order-42") as tx:
            tx["shop"].execute("insert into orders (id, total) values (42, 99)")
        for key in ("first", "second"):
            db.call("order-42", mail, 42, undo=call_back, key=key)
        db.rollback_distributed("order-42")
    configure(world, shop, stock)
    yield
    assert "cannot be called back" in world.told[0] and "cannot be called back" in world.told[1]
    assert "No step is parked" in world.told[-1]


@stage("operations.md", "A database was restored from a backup, or cloned", "The journal was restored from a backup")
def set_back(world: World, make: Make) -> Iterator[None]:
    """To before the newest epoch. The journal is in the shop's."""
    shop, stock = shop_and_stock(world)
    set_up(shop, stock)
    backup = Backup((shop if "journal" in world.heading else stock).url)
    start_often([shop, stock])
    backup.restore()
    configure(world, shop, stock)
    yield
    set_up(shop, stock)


@stage("operations.md", "The journal is unreachable")
def unreachable(world: World, make: Make) -> Iterator[None]:
    shop, stock = shop_and_stock(world)
    configure(world, shop, stock, journal="mariadb://app@127.0.0.1:1/journal")
    yield


@stage("operations.md", "The journal is gone")
def journal_gone(world: World, make: Make) -> Iterator[None]:
    """In the middle of a phase two: one branch has committed, the other is prepared."""
    shop, stock = make("postgres", "a"), make("postgres", "b")
    own = file(world, "journal").url
    set_up(shop, stock, journal=own)
    with coordinator([shop, stock], own) as db:
        commit_and_leave(db)
    _, world.cluster, world.attempt, _ = stock.prepared()[0].split(".")
    world.databases = {"shop": shop, "stock": stock}
    for tail in ("", "-wal", "-shm"):
        (world.folder / f"journal.db{tail}").unlink(missing_ok=True)
    configure(world, replace(shop, name="shop"), replace(stock, name="stock"), journal=own)
    yield
    assert len(world.rows[0]) == 1
    assert (shop.balance(), stock.balance(), stock.prepared()) == (70, 130, [])
    staged(shop, stock, journal=own)


@stage("operations.md", "A database leaves for good")
def leaving(world: World, make: Make) -> Iterator[None]:
    shop, stock = shop_and_stock(world)
    old = file(world, "old-stock")
    old.create()
    set_up(shop, stock, old)
    (world.folder / "old-stock.db").unlink()
    configure(world, shop, stock)
    yield
    assert stock.query("select * from products") == [(7, 3)]
    with coordinator([shop]) as db:
        assert db.transactions() == []


@stage("operations.md", "A program does not start: SchemaMismatch")
def no_tables(world: World, make: Make) -> Iterator[None]:
    shop, stock = shop_and_stock(world)
    configure(world, shop, stock)
    yield
    set_up(shop, stock)


__all__ = ["STAGES", "Make"]
