"""The command `nodoubt` and what hangs from it."""

from __future__ import annotations

import rich_click as click

from .. import __version__
from .asking import ls, show
from .benching import bench
from .configuring import config
from .deciding import commit, rollback, settle
from .desk import config_option, journal_option, resource_option, set_option
from .examining import doctor
from .exploring import explore
from .initiating import init
from .jobs import jobs
from .leaving import drop
from .recovering import recover
from .resolving import reap, resolve
from .schema import schema
from .showing import demo
from .steps import steps

EPILOG = (
    "Exit codes: 0 fine, 1 failed, 2 usage, 3 something is in doubt or needs a human, 75 try again. "
    "Databases and settings: flags, else NODOUBT_RESOURCES, NODOUBT_JOURNAL and the like, else nodoubt.toml; "
    "nodoubt config show tells what holds."
)


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@resource_option
@journal_option
@config_option
@set_option
@click.version_option(__version__, prog_name="nodoubt")
def root(resources: tuple[str, ...], journal: str | None, file: str | None, sets: tuple[str, ...]) -> None:
    """Transactions over several databases that end one way everywhere.

    Start with `nodoubt demo`; `nodoubt init` writes a configuration.
    """


COMMANDS = (
    demo, init, config, ls, show, commit, rollback, settle, resolve, recover, reap, steps, jobs, doctor, schema, drop,
    explore, bench,
)  # fmt: skip
for command in COMMANDS:
    root.add_command(command)
