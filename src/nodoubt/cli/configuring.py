"""`config show`: what holds, and where each value came from.

Guarantees: no password is printed, only where it comes from. Nothing is opened.
"""

from __future__ import annotations

from typing import Any

import rich_click as click

from ..config import DEFAULT, SETTINGS, Config, Origin, written
from .desk import Desk, desk_command
from .output import Cell


@click.group()
def config() -> None:
    """The configuration: flags, else the environment, else nodoubt.toml, else the defaults."""


@config.command()
@desk_command
def show(desk: Desk) -> None:
    """Show every value that holds, and where it came from."""
    holds = desk.config
    rows = [(key, value, holds.origins.get(key, DEFAULT)) for key, value in _values(holds)]
    if desk.out.json:
        desk.out.document(
            {
                "file": None if holds.file is None else str(holds.file),
                "values": {key: {"value": value, "from": _origin(origin)} for key, value, origin in rows},
                "warnings": list(holds.warnings),
            }
        )
        return
    cells: list[tuple[Cell, ...]] = [
        (key, value, (str(origin), "dim" if origin.kind == "default" else "")) for key, value, origin in rows
    ]
    desk.out.say(f"file: {holds.file or 'none'}")
    desk.out.table("", ("key", "value", "from"), cells, cut=1)


def _values(holds: Config) -> list[tuple[str, str]]:
    first = next(iter(holds.resources), None)
    journal = str(holds.journal) if holds.journal is not None else f"{first}, the first" if first else "none"
    found = [(f"resources.{name}", str(one)) for name, one in holds.resources.items()]
    found.append(("journal", journal))
    for key, name in SETTINGS.items():
        value = getattr(holds.settings, name)
        found.append((f"settings.{key}", written(value) if name.endswith("_s") else str(value)))
    return found


def _origin(origin: Origin) -> dict[str, Any]:
    return {"kind": origin.kind, "name": origin.name, "line": origin.line}
