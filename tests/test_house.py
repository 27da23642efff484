"""The house holds: what importing nodoubt pulls in, and the bounds of the style, measured.

The import rules between rooms are import-linter's, in pyproject.toml.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

import nodoubt

SOURCE = Path(nodoubt.__file__).parent
ROOT = Path(__file__).parent.parent
MODULES = sorted(SOURCE.rglob("*.py"))
MODULE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
DRIVERS = {"aiomysql", "apsw", "asyncmy", "asyncpg", "psycopg", "psycopg_binary", "pymysql", "sqlite3"}
DRIVERS |= {"sqlalchemy", "greenlet", "nodoubt.alchemy"}
SERVERS_AND_FACES = {"click", "nodoubt.testing", "rich", "rich_click"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def imported_by(statement: str) -> set[str]:
    program = f"import sys\n{statement}\nprint(*sys.modules)"
    path = [str(SOURCE.parent)]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{program}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(done.stdout.split())


def test_importing_nodoubt_pulls_in_no_driver_and_no_face() -> None:
    assert imported_by("import nodoubt") & (DRIVERS | SERVERS_AND_FACES) == set()


@pytest.mark.parametrize("module", ["servers", "proxy"])
def test_importing_the_test_servers_pulls_in_no_driver(module: str) -> None:
    assert imported_by(f"import nodoubt.testing.{module}") & DRIVERS == set()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_has_a_docstring_and_at_most_600_lines(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), f"{name_of(path)} has no docstring"
    assert len(text.splitlines()) <= MODULE_LINES_MAX


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_function_has_at_most_70_lines(path: Path) -> None:
    lengths = {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in functions(ast.parse(path.read_text("utf-8")))}
    assert {name: length for name, length in lengths.items() if length > FUNCTION_LINES_MAX} == {}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_is_left_to_be_done(path: Path) -> None:
    left = re.findall(r"\b(?:TODO|FIXME|XXX)\b", path.read_text("utf-8"))
    assert left == []


def test_no_room_is_called_helper_utils_or_manager() -> None:
    assert [name_of(path) for path in MODULES if re.search(r"helper|utils?\b|manager", name_of(path))] == []


def test_every_dependency_has_a_floor_and_a_tested_version_that_is_not_below_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    tested = {plain(line.split("==")[0]): version(line.split("==")[1]) for line in lines if "==" in line}
    for one in wanted:
        if one.startswith("nodoubt["):
            continue
        name, _, floor = one.partition(">=")
        assert floor, f"{one} has no floor"
        assert tested[plain(re.sub(r"\[.*\]", "", name))] >= version(floor), f"{one} is not tested"


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def test_nothing_names_the_address_of_a_package_registry() -> None:
    for path in (ROOT / "constraints.txt", ROOT / "pyproject.toml", ROOT / "Makefile"):
        assert not re.search(r"index-url|find-links|file://|https?://\S*pypi", path.read_text("utf-8"))


def test_no_file_of_the_package_is_left_out_of_the_wheel() -> None:
    # The wheel takes the whole directory except what .gitignore names: a data file could silently be missing in it.
    patterns = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text("utf-8").splitlines() if line]
    files = [path.relative_to(SOURCE) for path in SOURCE.rglob("*") if path.is_file()]
    caches = re.compile(r"(^|/)(\.|__pycache__)")
    parts = {part for path in files if not caches.search(str(path)) for part in path.parts}
    assert "py.typed" in parts
    assert [part for part in parts if any(fnmatch(part, pattern) for pattern in patterns)] == []
