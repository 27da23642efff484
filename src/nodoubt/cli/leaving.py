"""`drop`: a database takes part no more, for good.

Guarantees: asks for the name to be typed, or is told `--yes`; refuses while anything of it is open or prepared.
"""

from __future__ import annotations

import rich_click as click

from .desk import Desk, desk_command, yes_option


@click.command()
@desk_command
@click.argument("name", metavar="NAME|ID")
@click.option(
    "--gone", is_flag=True, help="It does not exist any more: it need not be looked at for prepared branches."
)
@yes_option
def drop(desk: Desk, name: str, gone: bool, yes: bool) -> None:
    """Forget a database for good: it takes part no more. Its data stay.

    Take it out of every configuration, and stop or restart what works with it, before. It is looked at for prepared
    branches, so name it once more with -r, unless it is gone.
    """
    if not yes:
        desk.require_terminal()
        desk.ask_to_type(
            f"{name} will be forgotten for good. "
            + (
                "If it is not gone, and holds a prepared branch, nobody will ever end it. "
                if gone
                else "A coordinator that still works with it could leave a branch there that nobody ends. "
            )
            + "Receipts of what committed there are of no more use.",
            name,
        )
    db = desk.coordinator(without=name if gone else None)
    try:
        dropped = db.drop(name, gone=gone)
    finally:
        db.close()
    if desk.out.json:
        desk.out.document({"name": dropped.name, "resource_id": dropped.resource_id, "looked_at": dropped.looked_at})
        return
    desk.out.say((f"{dropped.name} ({dropped.resource_id}) is forgotten.", "green"))
    if dropped.looked_at:
        desk.out.say("Its tables of ours are of no more use; schema sql shows their names.")
