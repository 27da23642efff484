"""The progress bar of a terminal. Anywhere else, nothing: a log is no place for one.

Guarantees: a bar that cannot be drawn is no error of the job's.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


def progress_bar() -> Progress | None:
    """A bar on standard error, if that is a terminal; not started yet."""
    if not sys.stderr.isatty():
        return None
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
        console=Console(stderr=True),
    )


class Bar:
    """One job's."""

    def __init__(self, name: str, *, quiet: bool) -> None:
        self._name = name
        self._progress = None if quiet else progress_bar()

    @property
    def drawn(self) -> bool:
        """Whether there is one."""
        return self._progress is not None

    def show(self, done: int, total: int | None, note: str) -> None:
        """So far it is; drawn for the first time, or anew."""
        if self._progress is None:
            return
        from rich.errors import LiveError

        try:
            if not self._progress.tasks:
                self._progress.add_task(self._name, note=note)
                self._progress.start()
            self._progress.update(self._progress.tasks[0].id, completed=done, total=total, note=note)
        except LiveError:  # somebody else draws on this terminal
            self._progress = None

    def end(self) -> None:
        """It stays as it was last."""
        if self._progress is not None:
            self._progress.stop()
