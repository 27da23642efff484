"""`commit` and `rollback`: an operator decides a staged transaction by name; `settle` ends a doubt.

Guarantees: asks before it decides, or is told `--yes`; what it decides is the very attempt that it has shown, even if
the name has been given to another since (I10).
"""

from __future__ import annotations

from collections.abc import Callable

import rich_click as click

from ..engine.questions import State
from ..engine.verbs import Result
from .asking import print_record
from .desk import Desk, desk_command, yes_option

attempt_option = click.option("--attempt", metavar="ID", help="The exact attempt, should the name be in use again.")


@click.command()
@desk_command
@click.argument("name")
@attempt_option
@yes_option
def commit(desk: Desk, name: str, attempt: str | None, yes: bool) -> None:
    """Commit a staged transaction everywhere. Repeating it tells the first outcome."""
    _decide(desk, name, attempt, yes, State.COMMITTED)


@click.command()
@desk_command
@click.argument("name")
@attempt_option
@yes_option
def rollback(desk: Desk, name: str, attempt: str | None, yes: bool) -> None:
    """Roll a staged transaction back everywhere. Repeating it tells the first outcome."""
    _decide(desk, name, attempt, yes, State.ABORTED)


@click.command()
@desk_command
@click.argument("attempt")
@yes_option
def settle(desk: Desk, attempt: str, yes: bool) -> None:
    """Find out, for good, how an attempt in doubt ended. One that has not ended is aborted."""
    if not yes:
        desk.require_terminal()
        desk.ask(f"If {attempt} is still under way somewhere, this aborts it.")
    with desk.coordinator() as db:
        tell(desk, db.settle(attempt))


def _decide(desk: Desk, name: str, attempt: str | None, yes: bool, wanted: State) -> None:
    if not yes:
        desk.require_terminal()
    with desk.coordinator() as db:
        if not yes:
            record = db.status(attempt or name)
            attempt = record.attempt
            if not desk.out.json:
                print_record(desk, record)
            verb = "Commit" if wanted is State.COMMITTED else "Roll back"
            desk.ask(f"{verb} {name!r} on {', '.join(record.branches)}? This is final.")
        decide: Callable[..., Result] = db.commit_distributed if wanted is State.COMMITTED else db.rollback_distributed
        tell(desk, decide(name, attempt=attempt))


def tell(desk: Desk, result: Result) -> None:
    """How a transaction ended."""
    if desk.out.json:
        desk.out.document(
            {
                "name": result.name,
                "attempt": result.attempt,
                "state": result.state.value,
                "complete": result.complete,
                "undoing": result.undoing,
            }
        )
        return
    done = "every branch has confirmed it" if result.complete else "recovery will finish the branches that are not yet"
    words = "committed" if result.state is State.COMMITTED else "rolled back"
    desk.out.say((f"{result.name or result.attempt} is {words}; {done}.", "green" if result.complete else "yellow"))
    if result.undoing:
        left = f"{result.undoing} of its steps {'is' if result.undoing == 1 else 'are'} not undone yet"
        desk.out.say((f"{left}: nodoubt recover --app MODULE undoes them.", "yellow"))
