"""`steps`: what was called outside, what is being undone, and what waits for a human (I20).

Guarantees: nothing is run here; who changes something, and why, is kept in the trail; a parked step makes `ls` exit
with 3, as whatever needs a human does.
"""

from __future__ import annotations

import time
from typing import Any

import rich_click as click
from click.exceptions import Exit as Leave

from ..amounts import iso
from ..protocol.records import Call, CallState
from .apart import print_unreadable, unreadable_json
from .apps import app_option, import_apps
from .desk import Desk, desk_command
from .outcome import Exit
from .output import Cell
from .words import age

STYLES = {
    CallState.DONE: "green",
    CallState.UNDONE: "dim",
    CallState.NOTHING: "dim",
    CallState.SKIPPED: "dim",
    CallState.PARKED: "bold red",
}
by_option = click.option("--by", required=True, metavar="WHO", help="Who you are: kept in the trail.")
because_option = click.option("--because", required=True, metavar="WHY", help="Why: kept in the trail.")
number_argument = click.argument("number", type=click.IntRange(min=0))
name_argument = click.argument("name", metavar="NAME|ATTEMPT")


@click.group()
def steps() -> None:
    """Look after steps outside: retry, skip or mend a compensation that was parked."""


@steps.command()
@desk_command
def ls(desk: Desk) -> None:
    """List the steps whose compensation is parked: recovery has given up, and a human must look."""
    with desk.coordinator(read_only=True) as db:
        parked = db.parked_steps()
        apart = [one for one in db.unreadable() if one.table == "calls"]
    if desk.out.json:
        desk.out.document(
            {"parked": [call_json(call) for call in parked], "unreadable": [unreadable_json(one) for one in apart]}
        )
    elif parked or apart:
        print_parked(desk, parked)
        print_unreadable(desk, apart)
    else:
        desk.out.say("No step is parked.")
    if parked or apart:
        raise Leave(Exit.HUMAN)


@steps.command()
@desk_command
@name_argument
def show(desk: Desk, name: str) -> None:
    """Show the steps of one transaction, with their arguments and results."""
    with desk.coordinator(read_only=True) as db:
        calls = db.steps(name)
    if desk.out.json:
        desk.out.document({"steps": [call_json(call) for call in calls]})
        return
    if not calls:
        desk.out.say("It has called no steps.")
    for call in calls:
        print_call(desk, call)


@steps.command()
@desk_command
@name_argument
@number_argument
@by_option
def retry(desk: Desk, name: str, number: int, by: str) -> None:
    """Have a parked compensation tried again, from the start, by any recovery that has its code."""
    with desk.coordinator() as db:
        _tell(desk, db.retry_step(name, number, by=by).call, "is tried again by the next recovery that has its code")


@steps.command()
@desk_command
@name_argument
@number_argument
@by_option
@because_option
def skip(desk: Desk, name: str, number: int, by: str, because: str) -> None:
    """Take a compensation as done, because you have seen to it by hand."""
    with desk.coordinator() as db:
        _tell(desk, db.skip_step(name, number, by=by, because=because).call, "is not run any more")


@steps.command()
@desk_command
@name_argument
@number_argument
@click.option("--arguments", required=True, metavar="JSON", help="The arguments, all of them, as a JSON object.")
@by_option
@because_option
@app_option
def edit(desk: Desk, name: str, number: int, arguments: str, by: str, because: str, apps: tuple[str, ...]) -> None:
    """Mend the arguments of a parked step for its compensation; then retry it.

    With --app they are held against the compensation's types first.
    """
    import_apps(apps)
    with desk.coordinator() as db:
        mended = db.edit_step(name, number, arguments, by=by, because=because)
        fits = "fits its compensation" if mended.checked else "was not held against its compensation's types: see --app"
        _tell(desk, mended.call, f"has new arguments, which {fits}; now retry it" if mended.checked else fits)


def _tell(desk: Desk, call: Call, what: str) -> None:
    if desk.out.json:
        desk.out.document(call_json(call))
    else:
        desk.out.say(f"{call.undo or call.step} (#{call.number} of {call.attempt}) {what}.")


def print_parked(desk: Desk, parked: list[Call]) -> None:
    """What recovery has given up."""
    if not parked:
        return
    now = time.time()
    desk.out.table(
        "\nThese need a human: their compensation is parked (nodoubt steps retry|skip|edit)",
        ("attempt", "step", "undone by", "since", "why"),
        [
            (
                (call.attempt, "bold red"),
                f"#{call.number} {call.step}",
                call.undo,
                age(call.changed_at, now),
                call.error,
            )
            for call in parked
        ],
        cut=4,
    )


def print_call(desk: Desk, call: Call) -> None:
    """One step, field by field; those that are empty are left out."""
    now = time.time()
    rows: list[tuple[str, Cell]] = [
        ("step", f"#{call.number} {call.step}"),
        ("state", (call.state.value, STYLES.get(call.state, "yellow"))),
        ("key", call.key if call.key != call.step else ""),
        ("arguments", call.arguments),
        ("result", call.result),
        ("undone by", call.undo or "nothing: it has no compensation"),
        ("tries", str(call.tries) if call.tries else ""),
        ("why", call.error),
        ("by", call.worker),
        ("begun", age(call.begun_at, now)),
        ("changed", age(call.changed_at, now)),
    ]
    desk.out.fields([(name, value) for name, value in rows if value])
    desk.out.say("")


def call_json(call: Call) -> dict[str, Any]:
    """A step for programs."""
    return {
        "attempt": call.attempt,
        "number": call.number,
        "key": call.key,
        "step": call.step,
        "compensation": call.undo,
        "arguments": call.arguments,
        "state": call.state.value,
        "result": call.result,
        "error": call.error,
        "tries": call.tries,
        "worker": call.worker,
        "begun_at": iso(call.begun_at),
        "changed_at": iso(call.changed_at),
    }
