"""What the tests of the workflow examples share: the world outside as a process, the printed matrix, mutants."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from nodoubt import Coordinator
from nodoubt.cli.root import root
from nodoubt.testing import explore, run_sql
from nodoubt.testing.crashes import Ending
from nodoubt.testing.databases import throw_away
from nodoubt.testing.nursery import Address

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
# For processes of their own. What a developer's shell says about databases is not for them.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("NODOUBT_")}
ENVIRONMENT["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, sys.path)])


class Service:
    """`python -m examples.outside`, which can be killed, and comes back with its book and at its address."""

    def __init__(self, book: Path) -> None:
        self._book, self.url = book, ""
        self.start()

    def start(self) -> None:
        port = self.url.rpartition(":")[2] or "0"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "examples.outside", str(self._book), port],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
        )  # fmt: skip
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


def explored(example: str, points: Collection[str] = ()) -> None:
    """`nodoubt explore` ends well at every point, or at these, and prints what the example's README says it prints.

    `NODOUBT_RATCHET=write` writes that anew.
    """
    only = [part for point in points for part in ("--only", point)]
    command = " ".join(["nodoubt explore", f"examples/{example}", *only])
    page = EXAMPLES / Path(example).with_name("README.md")
    run = CliRunner(env={"COLUMNS": "160"}).invoke(root, ["explore", str(EXAMPLES / example), *only])
    assert run.exit_code == 0, run.output
    text = "".join(f"{line.rstrip()}\n" for line in run.stdout.splitlines() if line.strip())
    told = page.read_text("utf-8")
    before, opened, rest = told.partition(f"```text\n$ {command}\n")
    assert opened, f"{page} does not show `{command}`"
    shown, closed, after = rest.partition("```\n")
    if os.environ.get("NODOUBT_RATCHET") == "write":
        page.write_text(before + opened + text + closed + after, "utf-8")
        return
    # Branches go on at the same time: in which order they come to a point is theirs.
    assert sorted(shown.splitlines()) == sorted(text.splitlines()), f"NODOUBT_RATCHET=write pytest writes {page} anew"


def mutant(folder: Path, example: str, program: str, changes: list[tuple[str, str]]) -> Path:
    """An example with a mistake in it, in a package of its own; the path of its matrix."""
    package = folder / f"mutant_{example}_{secrets.token_hex(4)}"
    package.mkdir()
    for name in ("__init__.py", program, "matrix.py"):
        source = (EXAMPLES / example / name).read_text("utf-8").replace(f"examples.{example}", package.name)
        for old, new in changes if name == program else ():
            assert old in source, f"{program} has no {old!r}"
            source = source.replace(old, new)
        (package / name).write_text(source, "utf-8")
    return package / "matrix.py"


def badly(matrix: Path, work: str, points: Collection[str]) -> dict[str, str]:
    """Where the check of that matrix has failed, of those points, and why."""
    address = Address.parse(f"{matrix}:{work}")
    module, _ = address.load()
    found = explore(
        address, resources=module.RESOURCES, journal=getattr(module, "JOURNAL", None), tables=module.TABLES,
        before=module.before, check=module.check, points=points,
    )  # fmt: skip
    assert all(one.ending in (Ending.WELL, Ending.CHECK) for one in found.outcomes), found
    return {one.name: one.why for one in found.failed}


@dataclass(frozen=True)
class Place:
    """The databases of one test, with an example's tables."""

    urls: dict[str, str]
    journal: str | None

    def open(self, **options: Any) -> Coordinator:
        return Coordinator(self.urls, journal=self.journal, recovery=False, **options)

    def live(self, work: str) -> subprocess.Popen[str]:
        """A process that runs it. Killing it is left to whoever asks."""
        task = json.dumps({"work": work, "urls": self.urls, "journal": self.journal})
        return self._start(str(ROOT / "tests/examples/life.py"), task)

    def recover(self, app: str, *options: str) -> subprocess.Popen[str]:
        """A worker: `nodoubt recover --app`."""
        flags = [part for name, url in self.urls.items() for part in ("-r", f"{name}={url}")]
        flags += ["--journal", self.journal] if self.journal else []
        return self._start("-m", "nodoubt", *flags, "recover", "--app", app, *options)

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
        )


@contextlib.contextmanager
def furnished(matrix: Any, kinds: Sequence[str]) -> Iterator[Place]:
    """Fresh databases of these kinds, with the tables of a matrix."""
    journal = getattr(matrix, "JOURNAL", None) if "sqlite" in kinds else None
    with throw_away(dict(zip(matrix.RESOURCES, kinds, strict=True)), journal) as at:
        for name, statements in matrix.TABLES.items():
            run_sql(at.resources[name], statements)
        place = Place(at.resources, at.journal)
        with place.open() as db:
            db.setup()
        yield place


def killed(process: subprocess.Popen[str]) -> None:
    """Dead, by SIGKILL, while it was still at work."""
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, f"it had ended before: {errors}"
