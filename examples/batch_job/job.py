"""Customers move from an old database to a new one, three at a time: none is lost, none comes twice, whoever dies.

    nodoubt explore examples/batch_job/job.py:migrate

kills it at every point of the protocol, on fresh databases, recovers, and asks `check`, which lets it go on.
"""

from __future__ import annotations

from nodoubt import Coordinator, JobState
from nodoubt.testing import Crash
from sqlalchemy import Integer, String, column, delete, insert, select, table

NAME = "move-customers"
CUSTOMERS = 6
SIZE = 3

RESOURCES = {"legacy": "sqlite", "shop": "sqlite"}
TABLE = "create table customers (id int primary key, name varchar(40) not null)"
ROWS = ", ".join(f"({number}, 'customer {number}')" for number in range(1, CUSTOMERS + 1))
TABLES = {"legacy": f"{TABLE}; insert into customers values {ROWS}", "shop": TABLE}

Customers = table("customers", column("id", Integer), column("name", String))


def migrate(db: Coordinator, *, takeover: bool = False) -> None:
    """Begin the job, or go on with it; if it was done before, there is nothing to do.

    `takeover`: whoever starts it knows that no other worker lives. Without it, and where one has just died, it is
    refused (`JobTaken`) until that one has not been heard of for a while.
    """
    with db.job(NAME, total=CUSTOMERS, takeover=takeover) as job:
        while job.done < CUSTOMERS:
            with job.chunk(timeout=60) as chunk:
                some = select(Customers).where(Customers.c.id > (job.checkpoint or 0)).order_by(Customers.c.id)
                rows = list(chunk["legacy"].execute(some.limit(SIZE)))
                last = rows[-1]["id"]
                # One transaction: what is done in either database, and how far the job has come.
                chunk["shop"].execute(insert(Customers), rows)
                chunk["legacy"].execute(delete(Customers).where(Customers.c.id <= last))
                chunk.checkpoint(last, done=len(rows))


def check(db: Coordinator, crash: Crash) -> None:
    """Whole chunks have moved, and as many as the checkpoint says; and whoever goes on moves the rest."""
    left, moved = everybody(db)
    told = next((one.done for one in db.jobs()), 0)
    seen = f"{left} are left, {moved} have moved, progress tells of {told}; the transactions: {crash.states}"
    assert left + moved == CUSTOMERS, seen
    assert moved % SIZE == 0, seen
    assert told in (moved, moved - SIZE), seen
    migrate(db, takeover=True)
    assert everybody(db) == (0, CUSTOMERS)
    assert db.progress(NAME).state is JobState.DONE


def everybody(db: Coordinator) -> tuple[int, int]:
    """How many customers there are in either database."""
    with db.transaction() as tx:
        left, moved = (tx[name].execute("select count(*) from customers").scalar() for name in ("legacy", "shop"))
    return left, moved
