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
from .history import Line
from .nemesis import Done, Nemesis
from .plan import plan
from .rig import Rig
from .world import World

OPENING_TIME_MAX_S = 300.0
LOOK_AFTER_S = 1.0


class Outcome(msgspec.Struct):
    """All that a report tells of a run. Times are seconds since the clients began."""

    seed: int
    seconds: float
    rig: Rig
    date: str
    without: tuple[str, ...]
    lines: list[Line]  # in the order of their times
    done: list[Done]
    findings: list[Finding]
    began: float
    settled_s: dict[str, float]
    there: int  # transactions in the databases


def without() -> dict[str, str]:
    """The faults that this machine cannot make, and what they need."""
    missing = {}
    if shutil.which("strace") is None:
        missing["fill the disk"] = "strace: apt-get install strace"
    if clock.library() is None:
        missing["move the clock"] = "libfaketime: apt-get install libfaketime"
    return missing


def run(
    folder: Path, seconds: float, seed: int, rig: Rig, *, under: Path | None, say: Callable[[str], None]
) -> Outcome:
    """The whole of it. Raises only if it could not begin."""
    missing = without()
    for fault, need in missing.items():
        say(f"without {fault!r}, which needs {need}")
    acts = plan(seed, seconds, rig.all_lanes(tuple(missing)), calm_s=rig.calm_s)
    (folder / "plan.jsonl").write_bytes(b"".join(msgspec.json.encode(act) + b"\n" for act in acts))
    with World(folder, seed, rig, clocks="move the clock" not in missing, under=under) as world:
        world.start_all()
        wait_for(lambda: _at_work(world), "all processes to begin", OPENING_TIME_MAX_S)
        say(f"{len(rig.roles)} processes are at work; {len(acts)} faults in {seconds:g} s, seed {seed}")
        began = time.monotonic()
        nemesis = Nemesis(world, acts, folder / "nemesis.jsonl", say)
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
    wanted = [role.name for role in world.rig.roles if role.role != "recoverer"]
    return all((path := world.folder / f"{name}.history").exists() and path.stat().st_size for name in wanted)


def _judge(
    world: World, nemesis: Nemesis, began: float, seconds: float, missing: tuple[str, ...], say: Callable[[str], None]
) -> Outcome:
    found = [Finding("rest", one) for one in (*world.failed, *nemesis.errors)]
    settled: dict[str, float] = {}
    finals = {}
    for cluster in world.rig.clusters:
        start = time.monotonic()
        left = final.settle(world, cluster)
        settled[cluster] = round(time.monotonic() - start, 1)
        finals[cluster] = final.look(world, cluster, left)
    found += [Finding("rest", one) for one in (*final.servers_left(world), *final.doctor(world))]
    say("settled; judging")
    lines = sorted(history.read(world.folder), key=lambda line: line.at)
    for cluster, end in finals.items():
        own = [line for line in lines if line.who.startswith(f"{cluster}-")]
        found += [Finding(one.rule, f"cluster {cluster}: {one.what}") for one in checker.check(own, end)]
    for cluster in world.rig.clusters if found else ():
        final.keep_decisions(world, cluster)
    there = sum(len(checker.ids(end)) for end in finals.values())
    date = time.strftime("%Y-%m-%d")
    return Outcome(
        world.seed, seconds, world.rig, date, missing, lines, nemesis.done, sorted(found), began, settled, there
    )  # fmt: skip
