"""The progress bar of a terminal. Anywhere else, nothing: a log is no place for one.

Guarantees: a bar that cannot be drawn is no error of the job's.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


log = logging.getLogger("nodoubt")


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
        # Redirected, what is printed there goes through the bar to standard error: right on a terminal, not for a file.
        redirect_stdout=sys.stdout.isatty(),
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
        if (progress := self._progress) is None:
            return
        try:
            if not progress.tasks:
                progress.add_task(self._name, note=note)
                progress.start()
            progress.update(progress.tasks[0].id, completed=done, total=total, note=note)
        except Exception as error:  # somebody else draws on this terminal, or it has gone
            log.debug("no progress bar: %s", error)
            self.end()

    def end(self) -> None:
        """It stays as it was last."""
        progress, self._progress = self._progress, None
        if progress is not None:
            with suppress(Exception):  # as above; what it has not drawn yet is lost
                progress.stop()
