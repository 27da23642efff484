"""The documents' snippets, as a reader meets them: in order, by heading; and a world for them to run in.

A page's Python runs as it stands, `await` at the top included. So does each line of its shell, and it must exit with 0,
or as the comment behind it says ("exits with 3"). Only where a database is, and the id of an attempt, is put in.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from cli.conftest import ENVIRONMENT
from kit import Database, until
from nodoubt.cli.root import root

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^(?:(#+) ([^\n]*)|```(\w*)\n(.*?)^```)$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    """One fenced block, and the heading that it stands under."""

    page: str
    heading: str
    language: str
    text: str


def snippets(page: Path) -> list[Snippet]:
    found, heading = [], ""
    for marks, title, language, text in _FENCE.findall(page.read_text()):
        if marks:
            heading = title
        else:
            found.append(Snippet(page.name, heading, language, text))
    return found


@dataclass
class World:
    """A working directory, and where the documents' databases really are."""

    folder: Path
    heading: str = ""  # that of the snippets which run here
    places: Mapping[str, Database] = field(default_factory=dict)  # "app@db1/orders" is that database
    databases: Mapping[str, Database] = field(default_factory=dict)  # "-- on shop", above SQL
    names: dict[str, Any] = field(default_factory=dict)  # what Python snippets find, and leave to the next
    attempt: str = ""
    cluster: str = ""
    told: list[str] = field(default_factory=list)  # what each command has printed
    rows: list[Any] = field(default_factory=list)  # what each SQL snippet has answered
    environment: dict[str, str] = field(default_factory=dict)
    after: Callable[[str], None] = lambda _: None  # called with each snippet that has run

    def put_in(self, text: str, *, password: bool = True) -> str:
        for place, database in self.places.items():
            there = database.url.partition("://")[2]
            there = there if password else re.sub(r":\w+@", "@", there)
            text = re.sub(rf"\b\w+@{re.escape(place)}", there, text)
        text = re.sub(r"\bATTEMPT\b", self.attempt or "ATTEMPT", text)
        return re.sub(r"\bCLUSTER\b", self.cluster or "CLUSTER", text)

    def run(self, snippet: Snippet) -> None:
        text = self.put_in(snippet.text, password=snippet.language != "toml")  # a file keeps it elsewhere
        match snippet.language:
            case "python":
                self._python(text, f"{snippet.page}, {snippet.heading}")
            case "sh":
                for line in text.splitlines():
                    self._shell(line)
            case "sql":
                first, _, statement = text.partition("\n")
                self.rows.append(self.databases[first.removeprefix("-- on ")].query(statement))
            case "diff":
                self.told.append(text)
            case "toml":
                (self.folder / "nodoubt.toml").write_text(text)
            case _:
                raise AssertionError(f"nobody runs {snippet.language!r}")
        self.after(text)

    def _python(self, text: str, where: str) -> None:
        code = compile(text, where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        if code.co_flags & inspect.CO_COROUTINE:

            async def main() -> None:
                await eval(code, self.names)

            asyncio.run(main())
        else:
            exec(code, self.names)

    def _shell(self, line: str) -> None:
        command, _, comment = line.partition("  #")
        program, *arguments = shlex.split(command)
        assert program == "nodoubt", line
        expected = re.search(r"exits with (\d+)", comment)
        if any(one.startswith("--watch") for one in arguments):
            self._watch(arguments)
            return
        done = CliRunner().invoke(root, arguments, prog_name="nodoubt")
        assert done.exit_code == (int(expected[1]) if expected else 0), f"{line}\n{done.output}"
        self.told.append(done.output)

    def _watch(self, arguments: list[str]) -> None:
        """What goes on until Ctrl-C: it is given what it waits for, one look, and then Ctrl-C."""
        seen = self.folder / "watched"
        with seen.open("w") as out:
            child = subprocess.Popen(
                [sys.executable, "-m", "nodoubt", *arguments], stdout=out, stderr=out, cwd=self.folder, env=ENVIRONMENT
            )
            try:
                until(lambda: seen.stat().st_size > 0, 60)
                child.send_signal(signal.SIGINT)
                assert child.wait(60) in (0, 3), seen.read_text()
            finally:
                child.kill()
        self.told.append(seen.read_text())


__all__ = ["PAGES", "ROOT", "Snippet", "World", "snippets"]
