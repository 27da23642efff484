"""Every snippet of README.md and docs/ runs, on the databases that it names, and does what its page says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from docs.pages import PAGES, ROOT, Snippet, World, snippets
from docs.stages import STAGES
from kit import Database, make_database

# Pages with tests of their own, which run their snippets or generate them.
ELSEWHERE = {"testing-your-code.md", "own-databases.md", "fault-matrix.md"}
NOT_RUN = {"text", "", "mermaid"}  # pictures, and what is printed

_by_heading: dict[tuple[str, str], list[Snippet]] = defaultdict(list)
for _page in PAGES:
    for _one in snippets(_page) if _page.name not in ELSEWHERE else ():
        if _one.language not in NOT_RUN:
            _by_heading[_one.page, _one.heading].append(_one)


@pytest.mark.parametrize(("page", "heading"), _by_heading, ids=lambda one: re.sub(r"\W+", "-", one))
def test_the_snippets_under_this_heading_run(
    page: str, heading: str, request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (page, heading) in STAGES, f"{page} has snippets under {heading!r}: write a stage for them in stages.py"
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("NODOUBT_")]:
        monkeypatch.delenv(name)

    def make(kind: str, name: str) -> Database:
        return make_database(kind, name, request, tmp_path)

    world = World(tmp_path, heading)
    with contextmanager(STAGES[page, heading])(world, make):
        for name, value in world.environment.items():
            monkeypatch.setenv(name, value)
        for snippet in _by_heading[page, heading]:
            world.run(snippet)


def test_every_stage_has_its_snippets() -> None:
    """A heading that was renamed would leave its snippets' checks behind."""
    assert not set(STAGES) - set(_by_heading)


def test_a_snippet_that_fails_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutants of this file: a snippet whose work fails, and commands that exit otherwise than the page says."""
    monkeypatch.chdir(tmp_path)
    for language, text in (
        ("python", "assert 1 == 2"),
        ("python", "import asyncio\nawait asyncio.sleep(0)\nassert 1 == 2"),
        ("sh", "nodoubt ls"),
        ("sh", "nodoubt config show  # exits with 3"),
        ("sh", "rm -rf nodoubt"),
        ("perl", "1"),
    ):
        with pytest.raises(AssertionError):
            World(tmp_path).run(Snippet("page.md", "heading", language, text))


def test_the_site_has_every_page_and_is_built_without_a_complaint(tmp_path: Path) -> None:
    """Links between pages and to their headings are part of it."""
    configuration = (ROOT / "zensical.toml").read_text()
    listed = re.findall(r'"([\w-]+\.md)"', configuration)
    assert sorted(listed) == sorted(page.name for page in (ROOT / "docs").glob("*.md")), "each page once, in nav"
    assert tomllib.loads(configuration)["project"]["docs_dir"] == "docs"
    (tmp_path / "zensical.toml").write_text(configuration)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert all((tmp_path / "site" / name.removesuffix(".md") / "index.html").exists() for name in listed[1:])
