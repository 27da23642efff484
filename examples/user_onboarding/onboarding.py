"""Somebody new: an account and a line in the audit log, and outside a mailbox, a directory entry and a place in a team.

The databases are prepared first, then the outside is asked, step by step, and then all is committed. What has no
answer is asked again: `onboard`, called again under the same name, by any process, goes on where the last one died. It
goes back only where the outside says no, or where the deadline passes.

    python -m examples.outside outside.db       # in another terminal: the world outside
    nodoubt explore examples/user_onboarding/matrix.py:hire

kills it at every point, and asks whether all of these agree.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import nodoubt
from nodoubt import Coordinator, DuplicateTransaction, IdempotencyKey, StepContext

from examples.outside.client import Refused, post, undo

WITHIN_S = 4 * 3600  # what is not done by then is undone, by whichever process looks


@dataclass(frozen=True)
class Person:
    """Who begins."""

    email: str
    name: str
    team: str


def onboard(db: Coordinator, request: str, person: Person) -> None:
    """See that they are there, everywhere, or, raising `Refused`, nowhere.

    `request` is who asked for it, or the form: calling again under it goes on, or does nothing. Any other error leaves
    it as it is, to be called again.
    """
    with suppress(DuplicateTransaction), db.begin_distributed(request, deadline=WITHIN_S) as tx:
        tx["people"].insert_into("users").values({"email": person.email, "name": person.name}).execute()
        tx["audit"].insert_into("audit_log").values({"what": "onboarded", "email": person.email}).execute()
    try:
        db.call(request, open_mailbox, person.email, undo=close_mailbox)
        db.call(request, enter, person.email, person.name, undo=strike_out)
        db.call(request, join_team, person.email, person.team, undo=leave_team)
    except Refused:
        db.rollback_distributed(request)
        raise
    db.commit_distributed(request)


# ---- the outside ----------------------------------------------------------------------------------


@nodoubt.step(idempotent=True, refused=(Refused,))
def open_mailbox(email: str, key: IdempotencyKey) -> None:
    """Provision a mailbox."""
    post("/mailboxes", key, email=email)


@nodoubt.compensation
def close_mailbox(context: StepContext) -> None:
    """The one that this very step has opened, and no other of that address."""
    undo("/mailboxes", context.key, of=context.action_key)


@nodoubt.step(idempotent=True, refused=(Refused,))
def enter(email: str, name: str, key: IdempotencyKey) -> None:
    """List them in the directory."""
    post("/entries", key, email=email, name=name)


@nodoubt.compensation
def strike_out(context: StepContext) -> None:
    """Take them out of the directory."""
    undo("/entries", context.key, of=context.action_key)


@nodoubt.step(idempotent=True, refused=(Refused,))
def join_team(email: str, team: str, key: IdempotencyKey) -> None:
    """Assign them to a team."""
    post("/teams", key, email=email, team=team)


@nodoubt.compensation
def leave_team(context: StepContext) -> None:
    """Take them out of it."""
    undo("/teams", context.key, of=context.action_key)
