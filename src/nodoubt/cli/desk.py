"""What every command stands on: its configuration, its output, and how its errors become exit codes.

Guarantees: an error of nodoubt's, or any other, ends in a sentence on standard error, with `--json` also in a document
on standard output, and in the exit code that `outcome` gives it. `NODOUBT_TRACEBACK=1` shows where a bug is.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn

import rich_click as click
from click import get_current_context
from click.exceptions import Abort, ClickException
from click.exceptions import Exit as Leave

from ..config import Config, load
from ..engine.context import Settings
from ..errors import NoDoubtError
from ..ports import Refused, SessionLost, StatementFailed, Unclear
from .databases import Databases, databases
from .outcome import Exit, code_of
from .output import Output, Warnings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..coordinator import Coordinator

TRACEBACK_VARIABLE = "NODOUBT_TRACEBACK"

resource_option = click.option(
    "-r",
    "--resource",
    "resources",
    multiple=True,
    metavar="NAME=URL",
    help="A database; repeat it for several. A bare URL is enough for one.",
)
journal_option = click.option(
    "--journal", metavar="NAME|URL", help="Where the journal is: a resource's name (default: the first), or a URL."
)
config_option = click.option(
    "--config", "file", metavar="FILE", help="The configuration [NODOUBT_CONFIG, ./nodoubt.toml, ./pyproject.toml]."
)
set_option = click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="A setting of the configuration, such as grace=2m."
)
json_option = click.option("--json", "json", is_flag=True, help="One JSON document for programs.")
yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")


class Desk:
    """One run of one command. The configuration is read when it is first asked for."""

    def __init__(
        self,
        resources: tuple[str, ...] = (),
        journal: str | None = None,
        file: str | None = None,
        sets: tuple[str, ...] = (),
        *,
        json: bool,
    ) -> None:
        self._resources, self._journal, self._file, self._sets = resources, journal, file, sets
        self._config: Config | None = None
        self.out = Output(json=json)

    @property
    def config(self) -> Config:
        """What flags, environment and file say."""
        if self._config is None:
            self._config = self._load()
            self.out = Output(json=self.out.json, secrets=self._config.passwords())
            for warning in self._config.warnings:
                self.out.note((f"warning: {warning}", "yellow"))
        return self._config

    @property
    def settings(self) -> Settings:
        """The settings alone, for a command that may be about other databases than those of the configuration.

        It must not fail because a password of one of those is missing here.
        """
        return self._load(databases=False).settings if self._config is None else self._config.settings

    def _load(self, *, databases: bool = True) -> Config:
        flags: dict[str, Any] = {}
        names = {"resources": "-r", "journal": "--journal"}
        for one in self._sets:
            key, separator, value = one.partition("=")
            if not separator:
                raise click.UsageError(f"--set {one}: write KEY=VALUE, such as grace=2m")
            flags[key.strip()], names[key.strip()] = value.strip(), f"--set {key.strip()}"
        flags |= {"resources": self._resources} if self._resources else {}
        flags |= {"journal": self._journal} if self._journal else {}
        return load(self._file, flags=flags, flag_names=names, databases=databases)

    @property
    def given(self) -> bool:
        """Whether databases were named at all."""
        return bool(self.config.resources)

    @property
    def named(self) -> bool:
        """Whether they were named by options, not by the environment, or by a file that happens to lie here."""
        return bool(self._resources or self._journal or self._file)

    @property
    def databases(self) -> Databases:
        return databases(self.config)

    def coordinator(self, *, create: bool = False, read_only: bool = False, without: str | None = None) -> Coordinator:
        """A coordinator that does nothing by itself: commands come and go, recovery belongs to those that stay.

        `create`: SQLite files that are not there may be made. `read_only`: for commands that only ask. `without`: a
        database that is not to be touched.
        """
        from ..coordinator import Coordinator

        wanted = self.databases.without(without)
        if not create:
            wanted.require_files()
        return Coordinator(
            wanted.resources,
            journal=wanted.journal,
            settings=self.config.settings,
            recovery=False,
            read_only=read_only,
        )

    def require_terminal(self) -> None:
        """Without --yes somebody must be there to ask; found out before anything is opened or shown."""
        if not sys.stdin.isatty():
            raise click.UsageError("this changes databases, and there is no terminal to ask on: add --yes")

    def ask(self, question: str) -> None:
        """Go on only if a human says so."""
        self.out.note(question)
        if not click.confirm("Go on?", err=True):
            self.out.note("Nothing was changed.")
            raise Leave(Exit.FAILED)

    def ask_to_type(self, question: str, word: str) -> None:
        """Go on only if a human types this word: for what can't be undone."""
        self.out.note(question)
        if click.prompt(f"Type {word} to go on", default="", show_default=False, err=True) != word:
            self.out.note("Nothing was changed.")
            raise Leave(Exit.FAILED)

    def fail(self, error: Exception) -> NoReturn:
        """Say what went wrong and end."""
        code, message = code_of(error), _sentence(error)
        if self.out.json:
            self.out.document({"error": {"type": _kind(error), "message": message, "exit_code": int(code)}})
        self.out.error(message)
        if os.environ.get(TRACEBACK_VARIABLE):
            raise error
        raise Leave(code)


def desk_command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `-r`, `--journal`, `--config`, `--set`, `--json`, and a `Desk` as its first argument."""

    @resource_option
    @journal_option
    @config_option
    @set_option
    @json_option
    @wraps(function)
    def command(
        resources: tuple[str, ...],
        journal: str | None,
        file: str | None,
        sets: tuple[str, ...],
        json: bool,
        **arguments: Any,
    ) -> None:
        before = get_current_context().find_root().params
        desk = Desk(
            resources or before.get("resources", ()),
            journal or before.get("journal"),
            file or before.get("file"),
            (*before.get("sets", ()), *sets),
            json=json,
        )
        with reported(desk):
            function(desk, **arguments)

    return command


@contextmanager
def reported(desk: Desk, *, warnings: bool = True) -> Iterator[None]:
    """Turn what goes wrong into a sentence and an exit code. `warnings`: tell the library's too."""
    # The secrets are known once the command has asked for its databases; until then there is nothing to log.
    handler = Warnings(lambda: desk.out) if warnings else logging.NullHandler()
    logger = logging.getLogger("nodoubt")
    logger.addHandler(handler)
    try:
        yield
    except (ClickException, Leave, Abort, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        # Not 1: a commit that was interrupted may have been decided, and is then carried out.
        desk.out.error("interrupted. What was decided by then stands; nodoubt show tells")
        raise Leave(Exit.INTERRUPTED) from None
    except Exception as error:
        desk.fail(error)
    finally:
        logger.removeHandler(handler)


def _sentence(error: Exception) -> str:
    if isinstance(error, (NoDoubtError, TimeoutError)):
        return str(error) or type(error).__name__
    return f"{type(error).__name__}: {error} (this is a bug in nodoubt; {TRACEBACK_VARIABLE}=1 shows where)"


def _kind(error: Exception) -> str:
    """The public name of an error."""
    if isinstance(error, (Unclear, SessionLost)):
        return "NoAnswer"
    return "Refused" if isinstance(error, (Refused, StatementFailed)) else type(error).__name__
