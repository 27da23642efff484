"""`--app MODULE`: the application whose steps and compensations a command is to have at hand.

Guarantees: imported from the working directory as well; what cannot be imported is a usage error that says why.
"""

from __future__ import annotations

import importlib
import os
import sys

import rich_click as click

app_option = click.option(
    "--app",
    "apps",
    multiple=True,
    metavar="MODULE",
    help="Import this module, which declares steps and compensations; repeat it for several.",
)


def import_apps(apps: tuple[str, ...]) -> None:
    """Import them. Raises `click.UsageError`."""
    if apps and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for app in apps:
        try:
            importlib.import_module(app)
        except Exception as error:
            raise click.UsageError(f"--app {app} can't be imported: {type(error).__name__}: {error}") from error
