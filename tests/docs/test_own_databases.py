"""The page for who writes a resource or a journal, followed by somebody who has the wheel, pytest, and no checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from docs.pages import ROOT

PAGE = ROOT / "docs" / "own-databases.md"
FILES: dict[str, str] = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text(), re.DOTALL))
FENCE = '        if self.receipt(xid).exists():\n            raise Conflict(f"the branch {xid.gid} is fenced")\n'
FORCED = "            if not self.reads(verb):\n                self.force(folder)\n"


def run(*command: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """As somebody else: nothing of our environment says where the checkout is."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON", "NODOUBT_"))}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=mine, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment in which nodoubt is the wheel. What it depends on is borrowed from ours, where it is an old one
    at most: a path in a .pth file, whose own .pth files (the checkout's) nobody reads.
    """
    home = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", home, ROOT, cwd=home)
    run(sys.executable, "-m", "venv", "--without-pip", home / "venv", cwd=home)
    python = home / "venv" / "bin" / "python"
    (wheel,) = home.glob("*.whl")
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=home)
    (packages,) = home.glob("venv/lib/*/site-packages")
    (packages / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    where = run(python, "-c", "import nodoubt; print(nodoubt.__file__)", cwd=home).stdout
    assert where.startswith(str(packages))
    return python


def followed(python: Path, where: Path, *options: str, **instead: str) -> str:
    """What pytest says of the page's files; `instead`: a file's other text."""
    for name, text in FILES.items():
        (where / name).write_text(f"# {name}\n" + instead.get(name.removesuffix(".py"), text))
    # What is forced is forced to memory here: no suite can see it, and the disk is everybody's.
    base = Path("/dev/shm") / f"nodoubt-{os.getpid()}" if Path("/dev/shm").is_dir() else where / "base"
    done = run(
        python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", base, *options, cwd=where, check=False
    )
    return done.stdout + done.stderr


def test_the_examples_pass_where_only_the_wheel_is_installed(python: Path, tmp_path: Path) -> None:
    assert sorted(FILES) == ["folder.py", "ledger.py", "test_folder.py", "test_ledger.py", "test_together.py"]
    assert PAGE.read_text().count("```python") == len(FILES)
    said = followed(python, tmp_path)
    assert re.search(r"^2\d\d passed in", said, re.MULTILINE), said


def test_a_promise_that_is_broken_is_told_as_the_page_shows(python: Path, tmp_path: Path) -> None:
    """A folder that looks for no fence."""
    broken = FILES["folder.py"].replace(FENCE, "")
    assert broken != FILES["folder.py"]
    said = followed(python, tmp_path, "test_folder.py", "-k", "fence_stays and prepare and threads", folder=broken)
    told = re.search(r"^-+ the claim -+\n(promised:.*?)\n=", said, re.MULTILINE | re.DOTALL)
    shown = re.search(r"```text\n(promised:.*?)\n```", PAGE.read_text(), re.DOTALL)
    assert told and shown and "1 failed" in said, said
    assert without_ids(told[1]).strip() == without_ids(shown[1]).strip()


def without_ids(text: str) -> str:
    return re.sub(r"…[0-9a-f]{6}|'[0-9a-f]{16}'", "…", text)


def test_a_journal_that_forgets_is_found_out(python: Path, tmp_path: Path) -> None:
    """A ledger that answers before it has written."""
    broken = FILES["ledger.py"].replace(FORCED, "")
    assert broken != FILES["ledger.py"]
    said = followed(python, tmp_path, "test_ledger.py", "-k", "the_first_decision_stands and threads", ledger=broken)
    assert "by I3      a decision is written once" in said and "1 failed" in said, said
