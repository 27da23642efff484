"""`ls` and `show`: what the journal knows of transactions, and what needs a human. Neither changes anything.

Guarantees: whatever is quarantined is shown by every listing, and makes it exit with 3 (I17); so does a database whose
lineage is in question (I15), and a row of what is listed that cannot be read. A listing looks at no more than it lists.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import rich_click as click
from click.exceptions import Exit as Leave

from ..amounts import iso
from ..config import seconds_of
from ..coordinator import LIST_MAX
from ..engine.questions import CLEANED_UP, MANUAL, State, TransactionRecord
from ..errors import UnknownTransaction, UnreadableRecord
from ..protocol.records import Call, Confirmation, Event, Quarantined
from ..xid import is_attempt
from .apart import print_unreadable, unreadable_json
from .desk import Desk, desk_command
from .outcome import Exit
from .output import Cell
from .steps import call_json, print_call, print_parked
from .words import age, moment

R = TypeVar("R")
LIST_DEFAULT = 100
STATE_STYLES = {State.PREPARED: "yellow", State.COMMITTED: "green", State.ABORTED: "dim", State.BEGINNING: "cyan"}
HUMAN_STYLE = "bold red"
STATES = (*(state.value for state in State), CLEANED_UP, MANUAL)


class Duration(click.ParamType[float]):
    """30s, 5m, 1h30m, 2d; seconds where there is no unit."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            return seconds_of(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command()
@desk_command
@click.option("--state", type=click.Choice(STATES), help="Only those in this state.")
@click.option("--older-than", type=Duration(), metavar="TIME", help="Only those begun longer ago, as 30s, 5m, 1h, 2d.")
@click.option("--limit", type=click.IntRange(1, LIST_MAX), default=LIST_DEFAULT, show_default=True, metavar="N")
def ls(desk: Desk, state: str | None, older_than: float | None, limit: int) -> None:
    """List staged transactions, newest first, and whatever needs a human."""
    with desk.coordinator(read_only=True) as db:
        records = db.transactions(state=state, older_than=older_than, limit=limit)
        held, parked, barred = db.quarantined(), db.parked_steps(), db.barred
    apart = [row for one in records for row in one.unreadable]
    if desk.out.json:
        desk.out.document(
            {
                "transactions": [record_json(one) for one in records],
                "quarantined": [held_json(one) for one in held],
                "parked": [call_json(one) for one in parked],
                "unreadable": [unreadable_json(one) for one in apart],
            }
        )
    else:
        _print_list(desk, records)
        print_quarantined(desk, held)
        print_parked(desk, parked)
        print_unreadable(desk, apart)
    if held or parked or barred or apart:
        raise Leave(Exit.HUMAN)


def _print_list(desk: Desk, records: list[TransactionRecord]) -> None:
    if not records:
        desk.out.say("No transactions.")
        return
    now = time.time()
    desk.out.table(
        "",
        ("name", "state", "begun", "deadline", "on"),
        [
            (
                one.name or one.attempt,
                state_cell(one, now),
                age(one.created_at, now),
                age(one.deadline, now) if one.state is State.PREPARED else "",
                ", ".join(one.branches),
            )
            for one in records
        ],
    )


@click.command()
@desk_command
@click.argument("name", metavar="NAME|ATTEMPT")
def show(desk: Desk, name: str) -> None:
    """Show one transaction: what was decided, its branches, its trail, and what needs a human."""
    with desk.coordinator(read_only=True) as db:
        record: TransactionRecord | None = None
        held = db.quarantined()
        try:
            record = db.status(name)
        except UnknownTransaction:
            # What recovery has parked may be all that is left of an attempt.
            if not is_attempt(name) or not any(one.attempt == name for one in held):
                raise
        attempt = name if record is None else record.attempt
        held = [one for one in held if one.attempt == attempt]
        trail, apart = db.events(attempt), list[str]()
        calls, said = _or_why(db.steps, attempt, apart), _or_why(db.confirmations, attempt, apart)
    if desk.out.json:
        desk.out.document(
            {
                "transaction": None if record is None else record_json(record),
                "events": [event_json(one) for one in trail],
                "quarantined": [held_json(one) for one in held],
                "confirmations": [said_json(one) for one in said],
                "steps": [call_json(one) for one in calls],
                "unreadable": apart,
            }
        )
    else:
        _print_one(desk, record, trail, said, calls)
        print_quarantined(desk, held)
        for why in apart:
            desk.out.say((f"\n{why}", HUMAN_STYLE))
    if held or apart or (record is not None and record.heuristic):
        raise Leave(Exit.HUMAN)


def _or_why(asked: Callable[[str], list[R]], attempt: str, apart: list[str]) -> list[R]:
    """What is there of it; where that cannot be read the rest is shown all the same, with why. Nothing is there of what
    is no attempt: the row that says so cannot be read.
    """
    if not is_attempt(attempt):
        return []
    try:
        return asked(attempt)
    except UnreadableRecord as error:
        apart.append(str(error))
        return []


def _print_one(
    desk: Desk, record: TransactionRecord | None, trail: list[Event], said: list[Confirmation], calls: list[Call]
) -> None:
    if record is None:
        desk.out.say("The journal has no record of this attempt.")
    else:
        print_record(desk, record)
    if said:
        answers: list[list[Cell]] = [[one.who, one.answer.value, one.why] for one in said]
        desk.out.table("\nConfirmations", ("who", "says", "why"), answers, cut=2)
    if calls:
        desk.out.say("\nSteps")
    for call in calls:
        print_call(desk, call)
    if trail:
        rows: list[list[Cell]] = [[moment(one.at) if one.at else "", one.what, one.detail] for one in trail]
        desk.out.table("\nTrail", ("at", "what", "detail"), rows, cut=2)


def print_record(desk: Desk, record: TransactionRecord) -> None:
    """A transaction, field by field; those that are empty are left out."""
    now = time.time()
    rows: list[tuple[str, Cell]] = [
        ("name", record.name),
        ("attempt", record.attempt),
        ("state", state_cell(record, now)),
        ("why", record.heuristic if record.state is State.UNREADABLE else record.reason),
        ("on", ", ".join(record.branches)),
        ("begun", _when(record.created_at, now)),
        ("deadline", _when(record.deadline, now) if record.state is State.PREPARED else ""),
        ("decided", _when(record.decided_at, now)),
        ("by", record.owner),
        *((f"  {key}", value) for key, value in record.metadata),
    ]
    desk.out.fields([(name, value) for name, value in rows if value])


def print_quarantined(desk: Desk, held: list[Quarantined]) -> None:
    """What recovery must not resolve by itself."""
    if not held:
        return
    now = time.time()
    desk.out.table(
        "\nThese need a human: recovery must not resolve them by itself",
        ("attempt", "branch", "since", "why"),
        [((one.attempt, HUMAN_STYLE), f"{one.branch} on {one.resource}", age(one.since, now), one.why) for one in held],
        cut=3,
    )


def _when(at: float | None, now: float) -> str:
    return "" if at is None else f"{moment(at)} ({age(at, now)})"


def state_cell(record: TransactionRecord, now: float) -> Cell:
    """The state in words and colour."""
    if record.heuristic:
        return f"{record.state.value}, needs a human", HUMAN_STYLE
    words = record.status.replace("_", " ")
    if record.state is State.COMMITTED and not record.complete:
        words += ", still being carried out"
    if record.state is State.PREPARED and record.deadline is not None and record.deadline <= now:
        words += ", past its deadline"
    return words, STATE_STYLES[record.state]


def record_json(record: TransactionRecord) -> dict[str, Any]:
    """A transaction for programs."""
    return {
        "name": record.name,
        "attempt": record.attempt,
        "mode": str(record.mode),
        "state": record.state.value,
        "status": record.status,
        "complete": record.complete,
        "branches": list(record.branches),
        "created_at": iso(record.created_at),
        "deadline": iso(record.deadline),
        "decided_at": iso(record.decided_at),
        "reason": record.reason,
        "owner": record.owner,
        "metadata": dict(record.metadata),
        "heuristic": record.heuristic,
    }


def held_json(entry: Quarantined) -> dict[str, Any]:
    """A quarantined branch for programs."""
    return {
        "attempt": entry.attempt,
        "branch": entry.branch,
        "resource": entry.resource,
        "why": entry.why,
        "since": iso(entry.since),
    }


def said_json(one: Confirmation) -> dict[str, Any]:
    """A confirmation for programs."""
    return {"who": one.who, "says": one.answer.value, "why": one.why}


def event_json(event: Event) -> dict[str, Any]:
    """A line of the trail for programs."""
    return {"at": iso(event.at), "what": event.what, "detail": event.detail}
