"""Where everything that a command has to say goes: tables for people, one JSON document for programs.

Guarantees: with `--json`, standard output holds JSON and nothing else; notes, warnings, questions and errors go to
standard error. No password of a database in use is printed. On a terminal wide cells are cut; in a pipe nothing is.

Must not: know transactions.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from .words import masked, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

PIPE_WIDTH = 100_000  # columns: a pipe has no edge at which to cut
CUT_LEAST = 12  # a cell that gives way keeps so many columns
SHORT_MAX = 9  # columns so narrow are never cut: ages, counts
CELL_MARGIN = 3

Cell = str | tuple[str, str]  # text, or text with a style


@dataclass(frozen=True, slots=True)
class Branching:
    """A line, and what hangs from it."""

    cell: Cell
    branches: tuple[Branching, ...] = ()


class Output:
    """One command's voice."""

    def __init__(self, *, json: bool, secrets: Sequence[str] = ()) -> None:
        self.json = json
        self._secrets = tuple(secrets)

    # ---- for programs

    def document(self, value: dict[str, Any]) -> None:
        """The one JSON document of a command."""
        print(msgspec.json.format(self._encoded(value), indent=2).decode())

    def line(self, value: dict[str, Any]) -> None:
        """One of a stream of JSON documents, on a line of its own, at once."""
        print(self._encoded(value).decode(), flush=True)

    def _encoded(self, value: dict[str, Any]) -> bytes:
        # Masked inside the strings, before they are encoded: a password may hold what JSON escapes.
        return msgspec.json.encode(self._clean(value))

    def _clean(self, value: Any) -> Any:
        match value:
            case str():
                return masked(value, self._secrets)
            case dict():
                return {key: self._clean(one) for key, one in value.items()}
            case list() | tuple():
                return [self._clean(one) for one in value]
            case _:
                return value

    # ---- for people

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, cut: int = 0) -> None:
        """A table; the column `cut` gives way where the terminal is too narrow."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        console = self._console()
        texts = [[self._text(cell) for cell in row] for row in rows]
        table = Table(title=title or None, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
        widths = [max([len(name), *(row[n].cell_len for row in texts)]) for n, name in enumerate(columns)]
        left = console.width - (sum(widths) - widths[cut]) - CELL_MARGIN * len(columns)
        for number, column in enumerate(columns):
            most = max(left, CUT_LEAST) if number == cut else None
            least = widths[number] if widths[number] <= SHORT_MAX else None
            table.add_column(column, no_wrap=True, overflow="ellipsis", max_width=most, min_width=least)
        for row in texts:
            table.add_row(*row)
        console.print(table)

    def fields(self, rows: Sequence[tuple[str, Cell]]) -> None:
        """Names with values, one to a line; long values wrap."""
        from rich.table import Table

        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in rows:
            grid.add_row(name, self._text(value))
        self._console().print(grid)

    def indented(self, text: Cell, by: int) -> None:
        """A sentence of the result, moved in; its further lines, too."""
        from rich.padding import Padding

        if not self.json:
            self._console().print(Padding(self._text(text), (0, 0, 0, by), expand=False))

    def tree(self, tree: Branching) -> None:
        """What hangs from what."""
        from rich.tree import Tree

        def grow(under: Tree, branches: Sequence[Branching]) -> None:
            for one in branches:
                grow(under.add(self._text(one.cell)), one.branches)

        root = Tree(self._text(tree.cell), guide_style="dim")
        grow(root, tree.branches)
        self._console().print(root)

    def say(self, text: Cell) -> None:
        """A sentence of the result."""
        if not self.json:
            self._console().print(self._text(text))

    def note(self, text: Cell) -> None:
        """A sentence beside the result."""
        self._console(error=True).print(self._text(text))

    def error(self, message: str) -> None:
        """What went wrong."""
        self.note((f"nodoubt: {message}", "red"))

    def _text(self, cell: Cell) -> Text:
        from rich.text import Text

        text, style = (cell, "") if isinstance(cell, str) else cell
        return Text(printable(masked(text, self._secrets)), style=style)

    def _console(self, *, error: bool = False) -> Console:
        from rich.console import Console

        stream = sys.stderr if error else sys.stdout
        return Console(
            file=stream, width=None if stream.isatty() else PIPE_WIDTH, highlight=False, markup=False, emoji=False
        )


class Warnings(logging.Handler):
    """The library's warnings as sentences on standard error: the library itself never configures logging."""

    def __init__(self, output: Callable[[], Output]) -> None:
        super().__init__(logging.WARNING)
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        loud = record.levelno >= logging.ERROR
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {record.exc_info[1]}"
        self._output().note((f"{'error' if loud else 'warning'}: {text}", "red" if loud else "yellow"))
