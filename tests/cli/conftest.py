"""A shop and a warehouse on SQLite, and the command line pointed at them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from nodoubt import Coordinator, wiring
from nodoubt import __file__ as package
from nodoubt.cli.root import root
from nodoubt.engine.context import using
from nodoubt.ports import Session
from nodoubt.protocol.records import Quarantined
from nodoubt.script import Script

# For processes of their own: where this package is, however these tests have found it; and nothing that a developer's
# shell says about databases.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("NODOUBT_")}
ENVIRONMENT["PYTHONPATH"] = str(Path(package).parents[1])


@dataclass(frozen=True)
class Shop:
    """Two databases with our tables and one of the user's own."""

    folder: Path

    @property
    def urls(self) -> dict[str, str]:
        return {name: f"sqlite:///{self.folder / name}.db" for name in ("shop", "stock")}

    @property
    def options(self) -> list[str]:
        return [part for name, url in self.urls.items() for part in ("-r", f"{name}={url}")]

    def nodoubt(self, *arguments: str, **more: Any) -> Result:
        """The command, in this process."""
        return nodoubt(*self.options, *arguments, **more)

    def json(self, *arguments: str, code: int = 0) -> Any:
        """The command's document."""
        result = self.nodoubt(*arguments, "--json")
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)

    def start(self, *arguments: str, **more: Any) -> subprocess.Popen[str]:
        """The command, in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "nodoubt", *self.options, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
            **more,
        )

    def coordinator(self) -> Coordinator:
        return Coordinator(self.urls, recovery=False)

    def stage(self, name: str, *, deadline: float | None = None, metadata: dict[str, str] | None = None) -> str:
        """A staged transaction with a row in both; its attempt."""
        with self.coordinator() as db, db.begin_distributed(name, deadline=deadline, metadata=metadata) as tx:
            for database in self.urls:
                tx[database].execute("insert into notes values (?)", (name,))
            return tx.attempt

    def notes(self) -> dict[str, list[str]]:
        """What a stranger sees."""
        with wiring.onlooker(self.urls, None) as (ctx, _):
            found = {}
            for name, participant in ctx.participants.items():
                session = participant.pool.acquire()
                found[name] = [row[0] for row in session.run("select note from notes order by note")[0].rows]
                participant.pool.release(session)
            return found

    def quarantine(self, attempt: str, why: str = "somebody rolled it back") -> None:
        entry = Quarantined(attempt, 1, "stock", why, since=1_700_000_000.0)

        def body(session: Session) -> Script[None]:
            return ctx.journal.quarantine(session, entry)

        with wiring.onlooker(self.urls, None) as (ctx, shell):
            shell.run(using(ctx.journal_pool, body))


def nodoubt(*arguments: str, **more: Any) -> Result:
    """The command, in this process. A traceback would come out as an exception other than SystemExit."""
    result = CliRunner().invoke(root, list(arguments), prog_name="nodoubt", **more)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert "Traceback" not in result.output
    return result


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("NODOUBT_"):
            monkeypatch.delenv(name)


@pytest.fixture
def empty(tmp_path: Path) -> Shop:
    """Nothing is there yet, not even files."""
    return Shop(tmp_path)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """Set up, and empty."""
    made = Shop(tmp_path)
    with made.coordinator() as db:
        db.setup()
    with wiring.onlooker(made.urls, None) as (ctx, _):
        for participant in ctx.participants.values():
            session = participant.pool.acquire()
            session.run("create table notes (note text primary key)")
            participant.pool.release(session)
    return made
