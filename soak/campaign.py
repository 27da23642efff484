"""One run: start everything, let the nemesis loose, heal, settle, judge."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from nodoubt.testing.processes import wait_for

from . import checker, clock, final, history
from .checker import Finding
from .history import HELLO, Line
from .nemesis import Done, Nemesis
from .plan import Lane, plan
from .world import JOURNALS, ROLES, SERVERS, World

OPENING_TIME_MAX_S = 120.0
LOOK_AFTER_S = 1.0


class Outcome(msgspec.Struct):
    """All that a report tells of a run. Times are seconds since the clients began."""

    seed: int
    seconds: float
    date: str
    without: tuple[str, ...]
    lines: list[Line]
    done: list[Done]
    findings: list[Finding]
    began: float
    settled_s: dict[str, float]
    counts: dict[str, int]


def without() -> dict[str, str]:
    """The faults that this machine cannot make, and what they need."""
    missing = {}
    if shutil.which("strace") is None:
        missing["fill the disk"] = "strace: apt-get install strace"
    if clock.library() is None:
        missing["move the clock"] = "libfaketime: apt-get install libfaketime"
    return missing


def lanes(missing: tuple[str, ...]) -> list[Lane]:
    """Two things that break among the servers, two among the processes, two in the network, and a clock, at any time."""
    kinds = {name: "mariadb" if name == "maria" else "postgres" for name in SERVERS}
    # Whose journal is a file writes to it all the time.
    processes = {role.name: "process with files" if role.cluster == "s" else "process" for role in ROLES}
    odd, even = ({name: processes[name] for name in list(processes)[first::2]} for first in (0, 1))
    clocks = dict.fromkeys((*SERVERS, *processes), "clock")
    return [
        Lane("server 1", "server", {name: kinds[name] for name in ("pg1", "pg3")}, missing),
        Lane("server 2", "server", {name: kinds[name] for name in ("pg2", "maria")}, missing),
        Lane("process 1", "process", odd, missing),
        Lane("process 2", "process", even, missing),
        Lane("network 1", "network", {"pg1": "journal", "maria": "mariadb"}, missing),
        Lane("network 2", "network", {name: kinds[name] for name in ("pg2", "pg3")}, missing),
        Lane("clock", "clock", clocks, missing),
    ]


def run(
    folder: Path, seconds: float, seed: int, *, think_s: float, under: Path | None, say: Callable[[str], None]
) -> Outcome:
    """The whole of it. Raises only if it could not begin."""
    missing = without()
    for fault, need in missing.items():
        say(f"without {fault!r}, which needs {need}")
    acts = plan(seed, seconds, lanes(tuple(missing)))
    (folder / "plan.jsonl").write_bytes(b"".join(msgspec.json.encode(act) + b"\n" for act in acts))
    with World(folder, seed, think_s=think_s, clocks="move the clock" not in missing, under=under) as world:
        world.start_all()
        wait_for(lambda: _at_work(world), "all processes to begin", OPENING_TIME_MAX_S)
        say(f"{len(ROLES)} processes are at work; {len(acts)} faults in {seconds:g} s, seed {seed}")
        began = time.monotonic()
        nemesis = Nemesis(world, acts, folder / "nemesis.jsonl")
        nemesis.start()
        over = threading.Event()
        while time.monotonic() - began < seconds:
            over.wait(LOOK_AFTER_S)
            world.look_after()
        nemesis.heal()
        world.close()
        say("healed; settling")
        return _judge(world, nemesis, began, seconds, tuple(missing), say)


def _at_work(world: World) -> bool:
    world.look_after()
    if world.failed:
        raise RuntimeError(world.failed[0])
    wanted = [role.name for role in ROLES if role.role != "recoverer"]
    return all((path := world.folder / f"{name}.history").exists() and path.stat().st_size for name in wanted)


def _judge(
    world: World, nemesis: Nemesis, began: float, seconds: float, missing: tuple[str, ...], say: Callable[[str], None]
) -> Outcome:
    found = [Finding("rest", one) for one in (*world.failed, *nemesis.errors)]
    settled: dict[str, float] = {}
    finals = {}
    for cluster in JOURNALS:
        start = time.monotonic()
        left = final.settle(world, cluster)
        settled[cluster] = round(time.monotonic() - start, 1)
        finals[cluster] = final.look(world, cluster, left)
    found += [Finding("rest", one) for one in (*final.servers_left(world), *final.doctor(world))]
    say("settled; judging")
    lines = list(history.read(world.folder))
    for cluster, end in finals.items():
        own = [line for line in lines if line.who.startswith(f"{cluster}-")]
        found += [Finding(one.rule, f"cluster {cluster}: {one.what}") for one in checker.check(own, end)]
    for cluster in JOURNALS if found else ():
        final.keep_decisions(world, cluster)
    there = {tx for end in finals.values() for tx in checker.ids(end)}
    counts = {
        "transactions begun": sum(line.what == history.BEGUN for line in lines),
        "transactions in the databases": len(there),
        "starts of processes": sum(line.what == HELLO for line in lines),
    }
    date = time.strftime("%Y-%m-%d")
    return Outcome(world.seed, seconds, date, missing, lines, nemesis.done, sorted(found), began, settled, counts)
