"""What clients do: transfers between accounts, and appends to lists, over one to three databases.

Every transaction leaves its id in each database that it touches, in a table of transfers or at the end of a list, in
the same local transaction as its other work: where the id is, the work was committed.

An append takes its place from the row in `heads`, whose lock is held until the branch ends. So lists have no gaps, and
two transactions that meet in two lists stand in the same order in both.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from .history import Leg, Plan

ACCOUNTS = 400
LISTS = 120
BALANCE = 1_000_000
OVERDRAFT = 1_000_000_000
DATABASES = ("m", "p1", "p2", "p3", "s")  # in this order everywhere, or two transactions would wait for each other
TABLES = (
    "create table accounts (id int primary key, balance bigint not null, check (balance >= 0))",
    "create table transfers (tx varchar(64) primary key, account int not null, amount bigint not null)",
    "create table heads (k int primary key, n bigint not null)",
    "create table lists (k int not null, at bigint not null, tx varchar(64) not null, primary key (k, at))",
    "insert into accounts values " + ",".join(f"({number}, {BALANCE})" for number in range(ACCOUNTS)),
    "insert into heads values " + ",".join(f"({number}, 0)" for number in range(LISTS)),
)
# Which databases meet, and how often: P is one of the three PostgreSQL servers.
SHAPES = {"P": 2, "PP": 8, "PPP": 3, "mP": 5, "Ps": 2, "ms": 1, "mPs": 1, "m": 1, "s": 1}
FATES = {"commit": 85, "rollback": 7, "overdraft": 4, "duplicate": 4}
STAGED_SHARE = 0.25
STAGED_SHARE_OF_FILES = 0.08  # a file's tables are locked while one is staged on them
CROSSED_SHARE = 0.02  # the other way round: circles of waiting that no server can see

Statement = tuple[str, str, tuple[Any, ...]]  # the database, SQL with ? for its parameters, those


def draw(dice: random.Random) -> Plan:
    """A transaction."""
    shape = dice.choices(list(SHAPES), list(SHAPES.values()))[0]
    servers = dice.sample(["p1", "p2", "p3"], shape.count("P"))
    names = sorted([*servers, *(name for name in shape if name != "P")])
    fate = dice.choices(list(FATES), list(FATES.values()))[0]
    kind = dice.choice(["bank", "list"]) if fate in ("commit", "rollback") else "bank"
    if kind == "bank":
        amounts = [dice.randint(1, 99) for _ in names[1:]]
        legs = [
            Leg(name, dice.randrange(ACCOUNTS), amount)
            for name, amount in zip(names, [-sum(amounts), *amounts], strict=True)
        ]
    else:
        legs = [Leg(name, dice.randrange(LISTS)) for name in names]
    if dice.random() < CROSSED_SHARE:
        legs.reverse()
    staged = dice.random() < (STAGED_SHARE_OF_FILES if "s" in shape else STAGED_SHARE)
    return Plan(kind, "staged" if staged else "once", fate, tuple(legs))


def statements(tx: str, plan: Plan) -> Iterator[Statement]:
    """What the transaction executes, in this order."""
    for leg in plan.legs:
        if plan.kind == "list":
            yield leg.database, "update heads set n = n + 1 where k = ?", (leg.key,)
            append = "insert into lists (k, at, tx) select k, n, ? from heads where k = ?"
            yield leg.database, append, (tx, leg.key)
        else:
            yield leg.database, "update accounts set balance = balance + ? where id = ?", (leg.amount, leg.key)
            yield leg.database, "insert into transfers values (?, ?, ?)", (tx, leg.key, leg.amount)
    last = plan.legs[-1]
    if plan.fate == "overdraft":
        yield last.database, "update accounts set balance = balance - ? where id = ?", (OVERDRAFT, last.key)
    elif plan.fate == "duplicate":
        yield last.database, "insert into transfers values (?, ?, ?)", (tx, last.key, last.amount)
