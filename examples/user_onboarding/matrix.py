"""Everywhere that `onboard` can die, and what must be so after it.

`nodoubt explore` kills `hire`, or `misplace`, at every point, on fresh databases; recovers; and calls `check`.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from nodoubt import Coordinator, State
from nodoubt.testing import Crash

from examples.outside.client import Refused, done, forget
from examples.user_onboarding.onboarding import Person, onboard

RESOURCES = {"people": "sqlite", "audit": "sqlite"}
TABLES = {
    "people": "create table users (email varchar(80) primary key, name varchar(80) not null)",
    "audit": "create table audit_log (what varchar(80) not null, email varchar(80) not null)",
}
REQUEST = "onboard-avery"
AVERY = Person("avery@company.com", "Avery Johnson", "Engineering")
PATHS = ("/mailboxes", "/entries", "/teams")


def hire(db: Coordinator) -> None:
    """All goes well, if nobody dies."""
    onboard(db, REQUEST, AVERY)


def misplace(db: Coordinator) -> None:
    """There is no such team, which comes out last: a mailbox and an entry are there by then, and must go."""
    with suppress(Refused):
        onboard(db, REQUEST, Person(AVERY.email, AVERY.name, "Astrology"))


def before(_: Coordinator) -> None:
    """Nothing has happened outside."""
    forget()


def check(db: Coordinator, crash: Crash) -> None:
    """What was left prepared is rolled back, as at its deadline. Then they are there everywhere, or nowhere."""
    for one in db.transactions(state="prepared"):
        db.rollback_distributed(one.name)
        db.recover(grace=0)  # the steps' process is dead: nobody waits to see whether it still is at work
    require(db, there=crash.state is State.COMMITTED)


def require(db: Coordinator, *, there: bool) -> None:
    """Databases and outside agree, nothing has happened twice, and nothing is left to do."""
    found = seen(db)
    assert found == dict.fromkeys(found, 1 if there else 0), f"there: {there}, but {found}"
    twice = [one for path in PATHS for one in done(path) if one["undone"] > 1]
    assert not twice, f"undone more than once: {twice}"
    assert not db.parked_steps(), "a human must look"
    assert not db.undo_steps(grace=0).waiting, "steps are left to undo"


def seen(db: Coordinator) -> dict[str, Any]:
    """How often they are in each place."""
    with db.transaction() as tx:
        users = tx["people"].execute("select count(*) from users").scalar()
        lines = tx["audit"].execute("select count(*) from audit_log").scalar()
    return {"users": users, "audit": lines} | {path: sum(1 - one["undone"] for one in done(path)) for path in PATHS}
