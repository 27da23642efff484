"""`explore`: a function of the user's is killed at every point of the protocol, on throw-away databases.

The file says what is needed: RESOURCES (or `-r`), and where wanted TABLES, JOURNAL, `before(db)` and
`check(db, crash)`, as `nodoubt.testing.crash_points` takes them.

Guarantees: NODOUBT_RESOURCES is not looked at: nobody explores in production because a shell was set up for it. Where
URLs are given, it asks first, unless told `--yes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import rich_click as click
from click import get_current_context
from click.exceptions import Exit as Leave

from ..errors import UsageError
from .desk import Desk, journal_option, json_option, reported, resource_option, yes_option
from .outcome import Exit, worst
from .output import Cell

if TYPE_CHECKING:
    from types import ModuleType

    from ..testing.crashes import Exploration, Outcome

COLUMNS = ("killed at", "what is so there", "it", "and")


@click.command()
@click.argument("function", metavar="FILE:FUNCTION")
@click.option("--only", "points", multiple=True, metavar="POINT", help="This point alone; repeat it for several.")
@resource_option
@journal_option
@json_option
@yes_option
def explore(
    function: str, points: tuple[str, ...], resources: tuple[str, ...], journal: str | None, json: bool, yes: bool
) -> None:
    """Kill FUNCTION(db) at every point of the protocol, recover, and call check(db, crash).

    The databases are RESOURCES in FILE: a name, and the kind of a throw-away one (sqlite, postgres, mariadb), fresh for
    each run; -r NAME=KIND puts another in its place.
    """
    before = get_current_context().find_root().params
    desk = Desk((), None, json=json)
    with reported(desk):
        found = _explored(
            desk, function, resources or before["resources"], journal or before["journal"], points, yes=yes
        )
        if desk.out.json:
            desk.out.document(_document(found))
        else:
            _print(desk, found)
        code = _code(found)
    if code is not Exit.FINE:
        raise Leave(code)


def _explored(
    desk: Desk, function: str, given: tuple[str, ...], journal: str | None, points: tuple[str, ...], *, yes: bool
) -> Exploration:
    from ..testing.crashes import explore
    from ..testing.nursery import Address

    address = Address.parse(function)
    module, _ = address.load()
    resources = _resources(module, given)
    journal = journal or getattr(module, "JOURNAL", None)
    urls = [name for name, one in resources.items() if "://" in one]
    if urls and not yes:
        desk.require_terminal()
        desk.ask(f"This runs {address.function} again and again on {', '.join(urls)}, and kills it each time.")
    return explore(
        address,
        resources=resources,
        journal=journal,
        tables=getattr(module, "TABLES", None),
        before=_function(module, "before"),
        check=_function(module, "check"),
        points=points or None,
    )


def _resources(module: ModuleType, given: tuple[str, ...]) -> dict[str, str]:
    """Those of the file, with what the options say in their place."""
    found: Any = getattr(module, "RESOURCES", {})
    if not isinstance(found, Mapping):
        raise UsageError('RESOURCES is a dict of names with kinds, like {"shop": "sqlite", "stock": "postgres"}')
    resources = dict(found)
    for text in given:
        name, separator, one = text.partition("=")
        if not separator:
            raise UsageError("write each resource as NAME=KIND or NAME=URL")
        resources[name] = one
    if not resources:
        raise UsageError('the file has no RESOURCES: write RESOURCES = {"shop": "sqlite", …} in it, or -r NAME=KIND')
    return resources


def _function(module: ModuleType, name: str) -> Callable[..., object] | None:
    found = getattr(module, name, None)
    return found if callable(found) else None


def _code(found: Exploration) -> Exit:
    from ..testing.crashes import Ending

    human = (Ending.DOUBT, Ending.BROKEN)
    return worst(*(Exit.HUMAN if one.ending in human else Exit.FAILED for one in found.failed))


def _document(found: Exploration) -> dict[str, Any]:
    return {
        "function": found.work,
        "points": [
            {
                "point": None if one.crash.point is None else one.name,
                "meaning": _meaning(one),
                "states": [state.value for state in one.crash.states],
                "ending": one.ending.value,
                "why": one.why,
            }
            for one in found.outcomes
        ],
        "failed": len(found.failed),
        "exit_code": int(_code(found)),
    }


def _meaning(one: Outcome) -> str:
    return "the work runs to its end" if one.crash.point is None else one.crash.point.meaning


def _print(desk: Desk, found: Exploration) -> None:
    rows: list[list[Cell]] = []
    for one in found.outcomes:
        style = "red" if one in found.failed else "green"
        states = ", ".join(one.crash.states) or "had not begun"
        rows.append([one.name, _meaning(one), states, (one.ending.value, style)])
    desk.out.table(found.work, COLUMNS, rows, cut=1)
    for one in found.failed:
        desk.out.say((f"{one.name}: {one.ending}", "bold red"))
        desk.out.indented(one.why, 2)
    verdict = f"{len(found.failed)} of {len(found.outcomes)} ended badly" if found.failed else "Each of them ended well"
    desk.out.say((verdict + ".", "bold red" if found.failed else "green"))
