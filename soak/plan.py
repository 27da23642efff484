"""The nemesis' plan: what breaks when, drawn from a seed before anything runs.

Guarantees: pure: the same seed, lanes and calm give the same plan, of which a shorter run has the beginning. A lane
does one thing after the other, and no two lanes of a kind share a target, so nothing is broken twice at once in the
same way. Each minute begins calm, which is what the throughput under faults is compared with.

Must not: touch anything.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import msgspec

MINUTE_S = 60.0
GAP_S = {"server": (5.0, 16.0), "process": (3.0, 9.0), "network": (4.0, 10.0), "clock": (5.0, 15.0)}
DOWN_S = (0.0, 4.0)
FROZEN_S = (1.0, 9.0)  # longer than any time that our settings allow for an answer, or shorter
FULL_S = (1.0, 4.0)
CUT_S = (1.0, 8.0)
MOVED_S = (3.0, 15.0)
DELAYS_S = (0.05, 1.5)
JUMPS_S = (1, 5, 30, 600, 3600, 86400)
# What a lost request or reply is aimed at, in the words of its server. All of it stands in plain text on the wire.
STATEMENTS = {
    "postgres": (
        "PREPARE TRANSACTION",
        "PREPARE TRANSACTION",
        "COMMIT PREPARED",
        "COMMIT PREPARED",
        "ROLLBACK PREPARED",
    ),
    "journal": (
        "PREPARE TRANSACTION",
        "COMMIT PREPARED",
        "EXECUTE nodoubt_decision",  # sessions keep these statements prepared
        "EXECUTE nodoubt_name",
        "COMMIT",
    ),
    "mariadb": ("XA PREPARE", "XA PREPARE", "XA COMMIT", "XA ROLLBACK", "nodoubt_decisions", "COMMIT"),
}
FAULTS: Mapping[str, Mapping[str, int]] = {
    "postgres": {"kill": 4, "kill a backend": 3, "freeze": 4, "restart": 1, "fill the disk": 2},
    "mariadb": {"kill": 4, "freeze": 4, "restart": 1, "fill the disk": 2},
    "process": {"kill": 2, "stop": 1},
    "process with files": {"kill": 4, "stop": 2, "fill the disk": 3},
    "network": {
        "sever": 3,
        "half open": 2,
        "cut off": 2,
        "lose a request": 4,
        "lose a reply": 6,
        "stall": 3,
        "delay": 4,
    },
    "clock": {"move the clock": 1},
}


class Act(msgspec.Struct, frozen=True):
    """One thing that breaks. `at_s`: since the clients began; `for_s`: until it is whole again."""

    at_s: float
    lane: str
    fault: str
    target: str
    for_s: float = 0.0
    pattern: str = ""  # of the statement that is struck
    times: int = 1
    seconds: float = 0.0  # of delay, or how far the clock moves
    number: int = 0  # which backend, which write: whatever has to be chosen on the spot


class Lane(msgspec.Struct, frozen=True):
    """What breaks one after the other. `kinds`: of each target, a key of `FAULTS`."""

    name: str
    pace: str  # a key of GAP_S
    kinds: Mapping[str, str]
    without: tuple[str, ...] = ()  # faults that this machine cannot make


def plan(seed: int, seconds: float, lanes: Sequence[Lane], *, calm_s: float) -> list[Act]:
    """All acts, in their order. `calm_s`: nothing begins in the first so many seconds of a minute."""
    acts = [act for lane in lanes for act in _lane(random.Random(f"{seed}/{lane.name}"), seconds, lane, calm_s)]
    return sorted(acts, key=lambda act: (act.at_s, act.lane))


def _lane(dice: random.Random, seconds: float, lane: Lane, calm_s: float) -> list[Act]:
    acts: list[Act] = []
    at_s = 0.0
    while True:
        at_s += dice.uniform(*GAP_S[lane.pace])
        if at_s % MINUTE_S < calm_s:
            at_s += calm_s - at_s % MINUTE_S
        act = _act(dice, round(at_s, 2), lane)
        if act is None or at_s + act.for_s > seconds:
            return acts
        acts.append(act)
        at_s += act.for_s


def _act(dice: random.Random, at_s: float, lane: Lane) -> Act | None:
    target = dice.choice(sorted(lane.kinds))
    kind = lane.kinds[target]
    family = FAULTS["network" if lane.pace == "network" else kind]
    faults = {fault: weight for fault, weight in family.items() if fault not in lane.without}
    if not faults:
        return None
    fault = dice.choices(list(faults), list(faults.values()))[0]
    act = Act(at_s, lane.name, fault, target, number=dice.randrange(1000))
    span = {
        "kill": DOWN_S, "freeze": FROZEN_S, "stop": FROZEN_S, "fill the disk": FULL_S, "half open": CUT_S,
        "cut off": CUT_S, "lose a request": CUT_S, "lose a reply": CUT_S, "stall": CUT_S, "delay": CUT_S,
        "move the clock": MOVED_S,
    }.get(fault)  # fmt: skip
    changes: dict[str, object] = {} if span is None else {"for_s": round(dice.uniform(*span), 2)}
    match fault:
        case "lose a request" | "lose a reply" | "stall" | "cut off":
            changes["pattern"] = dice.choice(STATEMENTS[kind])
            changes["times"] = dice.randint(1, 5)
        case "delay":
            changes["pattern"] = "update"
            changes["times"] = dice.randint(5, 50)
            changes["seconds"] = round(dice.uniform(*DELAYS_S), 2)
        case "move the clock":
            changes["seconds"] = float(dice.choice(JUMPS_S) * dice.choice([-1, 1]))
    return msgspec.structs.replace(act, **changes)
