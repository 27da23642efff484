"""The command `nodoubt` and what hangs from it."""

from __future__ import annotations

import rich_click as click

from .. import __version__
from .asking import ls, show
from .benching import bench
from .deciding import commit, rollback, settle
from .desk import journal_option, resource_option
from .examining import doctor
from .recovering import recover
from .schema import schema
from .showing import demo

EPILOG = (
    "Exit codes: 0 fine, 1 failed, 2 usage, 3 something is in doubt or needs a human, 75 try again. "
    "NODOUBT_RESOURCES and NODOUBT_JOURNAL stand in for -r and --journal."
)


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@resource_option
@journal_option
@click.version_option(__version__, prog_name="nodoubt")
def root(resources: tuple[str, ...], journal: str | None) -> None:
    """Transactions over several databases that end one way everywhere.

    Start with `nodoubt demo`.
    """


for command in (demo, ls, show, commit, rollback, settle, recover, doctor, schema, bench):
    root.add_command(command)
