"""Rows of the journal that cannot be read, as every command that meets them tells of them."""

from __future__ import annotations

from typing import Any

from ..engine.apart import WHAT_TO_DO
from ..protocol.records import Unreadable
from .desk import Desk


def print_unreadable(desk: Desk, apart: list[Unreadable]) -> None:
    """Rows of the journal that nobody can read, and what to do about them."""
    if not apart:
        return
    desk.out.table(
        "\nThese rows of the journal cannot be read, and need a human",
        ("attempt", "row", "why"),
        [((one.printable or "?", "bold red"), _row(one), one.why) for one in apart],
        cut=2,
    )
    desk.out.say(f"For each: {WHAT_TO_DO}.")


def _row(one: Unreadable) -> str:
    number = "" if one.number is None else f"#{one.number}"
    return " ".join(filter(None, (one.table, number, one.name)))


def unreadable_json(one: Unreadable) -> dict[str, Any]:
    """A row that cannot be read, for programs."""
    return {
        "table": one.table,
        "attempt": one.printable,
        "name": one.name,
        "number": one.number,
        "why": one.why,
        "what_to_do": WHAT_TO_DO,
    }
