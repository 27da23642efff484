"""One search by Spin: how a verifier is made, run and understood.

Guarantees: what is made lies in a folder that goes away; a search that met a limit has no result, whatever it has
found so far; a violation is named after the rule of the contract that it breaks.

Must not: know which models there are.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

HERE = Path(__file__).parent
MEMORY_MAX_MB = 8_000
RULES = {100: "the begin's promise", 101: "left until its deadline"}  # those in world.pml that are no I1 …
ENDLESS = "never ends"
SEEN = "seen"
STUCK = "somebody is stuck"
Line = tuple[str, str, int]  # model, process, number; model "" where several share that process
UNREACHED = r":(?P<line>\d+), state (?P<state>\d+),"
SOMETHING = r"^\s+state\s+(?P<state>\d+) .*?:(?P<line>\d+) => (?!else$|\.\(goto\)|-end-|\(1\))"


@dataclass(frozen=True)
class Run:
    """One search. `breaks`: the rules of which one must be found broken; () where nothing may be found."""

    model: str
    config: str  # the -D options
    kind: str = "sound"  # sound, mutant, witness, or limit: what the contract needs from outside, taken away
    what: str = ""  # the mutant's macro, or the claim
    breaks: tuple[str, ...] = ()
    claim: str = ""  # an LTL formula of the model; otherwise its assertions, and that nobody is stuck
    large: bool = False  # in the large configuration only
    depth_first: bool = True  # otherwise level by level, which finds the shortest way to a violation

    @property
    def name(self) -> str:
        return " ".join(part for part in (self.model, self.config, self.what) if part)

    @property
    def hash_bits(self) -> int:
        """The size of the table of states, as a power of two."""
        return 26 if self.large else 22

    @property
    def depth(self) -> int:
        """How deep the search may go; deeper is no result."""
        return 20_000_000 if self.large else 200_000

    @property
    def defines(self) -> tuple[str, ...]:
        macro = self.what if self.what.isupper() else ""
        names = [*self.config.split(), *([macro] if macro else []), *(["WITNESS"] if self.kind == "witness" else [])]
        return tuple(f"-D{name}" for name in names)


@dataclass(frozen=True)
class Result:
    """What a search has found. `broken`: the rule, "" if none; `trouble`: why there is no result."""

    run: Run
    states: int = 0
    depth: int = 0
    broken: str = ""
    trouble: str = ""
    lines: frozenset[Line] = frozenset()  # that can be executed
    executed: frozenset[Line] = frozenset()

    @property
    def as_expected(self) -> bool:
        if self.trouble:
            return False
        return self.broken in self.run.breaks if self.run.breaks else not self.broken

    @property
    def outcome(self) -> str:
        if self.trouble:
            return f"NO RESULT: {self.trouble}"
        if self.broken:
            return self.broken if self.run.kind == "witness" else f"broken: {self.broken}"
        return "holds"


class Builds:
    """Verifiers, made once for each set of options, in a folder that goes away with this."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="nodoubt-formal-")
        self._locks: dict[tuple[str, ...], threading.Lock] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def folder(self, run: Run) -> Path:
        """Where the verifier for this run is. Raises `RuntimeError` with what spin or cc said."""
        key = (run.model, *run.defines, *_options(run))
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
            number = list(self._locks).index(key)
        place = Path(self._folder.name) / str(number)
        with lock:
            if not (place / "pan").exists():
                place.mkdir(exist_ok=True)
                _call(place, "spin", "-a", *run.defines, str(HERE / f"{run.model}.pml"))
                _call(place, *_options(run), "-w", "-o", "pan", "pan.c")
        return place


def _options(run: Run) -> list[str]:
    """The compiler, and how it is to make the verifier."""
    # A small search takes less time than a compiler that optimizes: tcc takes a fiftieth of the time of gcc -O0.
    quick = ["tcc"] if shutil.which("tcc") else ["cc", "-O0"]
    options = [
        *(["cc", "-O2"] if run.large else quick),
        f"-DMEMLIM={MEMORY_MAX_MB}",
    ]
    if run.large:
        options.append("-DCOLLAPSE")  # saves memory, and takes a quarter more time
    if not run.depth_first:
        options.append("-DBFS")
    if not run.claim:
        return [*options, "-DSAFETY", "-DNOCLAIM"]
    return [*options, "-DNFAIR=3"] if run.kind != "witness" else [*options, "-DNOFAIR"]


def _call(place: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return done.stdout


def search(builds: Builds, run: Run, *, depth: int | None = None) -> Result:
    """One search, to its end or to the first violation; no deeper than `depth`, if that is given."""
    place = builds.folder(run)
    # Searches that share a verifier must not share the trail it writes.
    with tempfile.TemporaryDirectory(dir=place) as alone:
        command = ["../pan", *_limits(run, depth or run.depth), *_claim(run)]
        done = subprocess.run(command, cwd=alone, capture_output=True, text=True, check=False)
    text = done.stdout
    # From a hundred million on pan writes 1.2345678e+08.
    counts = [re.search(what, text) for what in (r"(\S+) states, stored", r"depth reached (\d+)", r"errors: (\d+)")]
    if None in counts or done.returncode != 0:
        return Result(run, trouble=f"pan ended with {done.returncode}: {text[-500:]}{done.stderr[-500:]}")
    states, deep, errors = (int(float(found[1])) for found in counts if found is not None)
    if errors:
        return Result(run, states, deep, broken=_broken(run, text))
    if "max search depth too small" in text or "Search not completed" in text or "out of memory" in text:
        return Result(run, states, deep, trouble="the search met a limit")
    if run.claim:
        return Result(run, states, deep)
    lines, executed = _lines(run.model, _call(place, "./pan", "-d"), text)
    return Result(run, states, deep, lines=lines, executed=executed)


def _limits(run: Run, depth: int) -> list[str]:
    return [f"-m{depth}", f"-w{run.hash_bits}"]


def _claim(run: Run) -> list[str]:
    if not run.claim:
        return []
    # -a: cycles; -f: under weak fairness, where nobody who could go on is passed over for ever.
    return ["-N", run.claim] if run.kind == "witness" else ["-N", run.claim, "-a", "-f"]


def _broken(run: Run, text: str) -> str:
    """Which rule: `rule` in world.pml leaves its number in the text of the assertion."""
    if run.kind == "witness":
        return SEEN
    if "acceptance cycle" in text:
        return ENDLESS
    if "pan:1: invalid end state" in text:
        return STUCK
    number = re.search(r"\|\|\((\d+)==0\)\)", text)
    assert number is not None, text
    return RULES.get(int(number[1]), f"I{number[1]}")


def _lines(model: str, known: str, found: str) -> tuple[frozenset[Line], frozenset[Line]]:
    """All lines with something to execute, and those of them where the search has executed something.

    `known`: what `pan -d` says; `found`: what the search said. A line that stands in several places of a process counts
    as executed if one of them was.
    """
    own = set(re.findall(r"proctype (\w+)", (HERE / f"{model}.pml").read_text(encoding="utf-8")))
    never = {(process, state) for process, state, _ in _places(found, r"^unreached in proctype (\S+)", UNREACHED)}
    every = [
        ((model if process in own else "", process, line), (process, state) not in never)
        for process, state, line in _places(known, r"^proctype (\S+)", SOMETHING)
    ]
    return frozenset(line for line, _ in every), frozenset(line for line, executed in every if executed)


def _places(text: str, heading: str, place: str) -> Iterator[tuple[str, int, int]]:
    """(process, state, line)."""
    process = ""
    for one in text.splitlines():
        named, found = re.search(heading, one), re.search(place, one)
        if named is not None:
            process = named[1]
        elif found is not None:
            yield process, int(found["state"]), int(found["line"])


def never_executed(results: Iterable[Result]) -> list[Line]:
    """What no sound configuration of any model has executed."""
    known, reached = set[Line](), set[Line]()
    for result in results:
        known |= result.lines
        reached |= result.executed
    return sorted(known - reached)


def trace(builds: Builds, run: Run) -> str:
    """The run that breaks it, step by step, as Spin tells it."""
    place = builds.folder(run)
    _call(place, "./pan", *_limits(run, run.depth), *_claim(run))
    model = str(HERE / f"{run.model}.pml")
    return _call(place, "spin", "-t", "-p", "-g", *run.defines, "-k", f"{run.model}.pml.trail", model)
