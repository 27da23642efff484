"""`resolve` and `reap`: an operator's word, and the deadline's.

Guarantees: resolving asks for the transaction's name to be typed, or is told `--yes`; who, and why, is kept in the
trail; neither passes by the register.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

import rich_click as click
from click.exceptions import Exit as Leave

from ..engine.reaper import ReapReport
from ..engine.verbs import Result
from ..errors import UnknownTransaction
from .apart import print_unreadable, unreadable_json
from .apps import app_option, import_apps
from .asking import print_record
from .deciding import tell
from .desk import Desk, desk_command, yes_option
from .outcome import Exit
from .steps import because_option, by_option, name_argument

if TYPE_CHECKING:
    from ..coordinator import Coordinator


@click.command()
@desk_command
@name_argument
@click.option(
    "--as", "ending", required=True, type=click.Choice(["commit", "rollback"]), help="How it ends, or has ended."
)
@by_option
@because_option
@yes_option
def resolve(desk: Desk, name: str, ending: str, by: str, because: str, yes: bool) -> None:
    """End a transaction, or what is quarantined of it, as an operator says.

    What is undecided is decided, as commit or rollback do. Where a decision stands you can only agree with it: what is
    left is carried out, and a branch that somebody else ended is taken over in your name. Never against the register.
    """
    if not yes:
        desk.require_terminal()
    with desk.coordinator() as db:
        if not yes:
            _ask(desk, db, name, ending)
        result: Result = db.resolve(name, cast(Literal["commit", "rollback"], ending), by=by, because=because)
        tell(desk, result)


def _ask(desk: Desk, db: Coordinator, name: str, ending: str) -> None:
    """Typed out: at 3 a.m. a `y` is pressed too soon."""
    if not desk.out.json:
        try:
            print_record(desk, db.status(name))
        except UnknownTransaction:
            desk.out.note("The journal has no record of it.")
    desk.out.note(f"To resolve it as {ending}, which is final, type its name: {name}")
    if click.prompt("Name", err=True, default="", show_default=False) != name:
        desk.out.note("That is another name. Nothing was changed.")
        raise Leave(Exit.FAILED)


@click.command()
@desk_command
@app_option
def reap(desk: Desk, apps: tuple[str, ...]) -> None:
    """Abort what is staged past its deadline, or refused; roll it back, and undo its steps. Recovery does it, too."""
    import_apps(apps)
    with desk.coordinator() as db:
        report = db.reap()
    if desk.out.json:
        desk.out.document(
            {
                "reaped": report.reaped,
                "rolled_back": report.rolled_back,
                "trouble": dict(report.trouble),
                "unreadable": [unreadable_json(one) for one in report.unreadable],
            }
        )
    else:
        _print(desk, report)
        print_unreadable(desk, report.unreadable)
    if report.unreadable:
        raise Leave(Exit.HUMAN)
    if report.trouble:
        raise Leave(Exit.AGAIN)


def _print(desk: Desk, report: ReapReport) -> None:
    what = "transaction" if report.reaped == 1 else "transactions"
    branches = "branch" if report.rolled_back == 1 else "branches"
    desk.out.say(f"{report.reaped} overdue {what} aborted, {report.rolled_back} {branches} rolled back.")
    for where, why in report.trouble.items():
        desk.out.say((f"{where}: {why}", "red"))
