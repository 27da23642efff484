"""The reference page's `onboardNewUser`, line by line, for the same matrix.

    nodoubt explore examples/user_onboarding/page.py:hire

is here to be seen failing.
"""

from __future__ import annotations

from contextlib import suppress

from nodoubt import Coordinator

from examples.outside.client import done, post, undo
from examples.user_onboarding.matrix import AVERY, PATHS, RESOURCES, TABLES, before, check
from examples.user_onboarding.onboarding import Person

__all__ = ["RESOURCES", "TABLES", "before", "check", "hire", "misplace"]
REQUEST = "onboard_avery@company.com_1764198000000"


def hire(db: Coordinator) -> None:
    """All goes well, if nobody dies."""
    onboard(db, AVERY)


def misplace(db: Coordinator) -> None:
    """There is no such team."""
    with suppress(Exception):
        onboard(db, Person(AVERY.email, AVERY.name, "Astrology"))


def onboard(db: Coordinator, person: Person) -> None:
    """Stage, provision, commit; and clean up by hand."""
    try:
        with db.begin_distributed(REQUEST) as tx:
            tx["people"].insert_into("users").values({"email": person.email, "name": person.name}).execute()
            tx["audit"].insert_into("audit_log").values({"what": "onboarded", "email": person.email}).execute()
        post("/mailboxes", "", email=person.email)
        post("/entries", "", email=person.email, name=person.name)
        post("/teams", "", email=person.email, team=person.team)
        db.commit_distributed(REQUEST)
    except Exception:
        db.rollback_distributed(REQUEST)
        clean_up(person.email)
        raise


def clean_up(email: str) -> None:
    """Whatever there is under that address goes, whoever's it is: an address is all that it is told."""
    for path in PATHS:
        for one in done(path):
            if one["what"]["email"] == email and not one["undone"]:
                undo(path, "", of=one["key"])
