"""After the nemesis: recovery until nothing is in doubt, and then a look at everything, as a stranger has it.

Guarantees: bounded; what has not come to rest by then is told, and is a finding.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from kit import Database
from nodoubt import Coordinator, NoDoubtError, OutcomeConflict, State

from . import workload
from .checker import Content, Final
from .history import COMMITTED, Writer
from .rig import SERVERS
from .world import World

PAUSE_S = 0.2
OPEN = {
    "commits": "select attempt from {0}decisions where verdict = 'commit' and ended_at is null",
    # One that was staged while somebody presumed its abort can keep the mark: the decision is what counts.
    "undecided names": "select name from {0}names as n where undecided is not null and not exists "
    "(select 1 from {0}decisions as d where d.attempt = n.attempt)",
    "unfinished steps": "select attempt from {0}calls where unfinished is not null",
    "quarantined branches": "select attempt from {0}quarantine where cleared_by = ''",
}
# Under the name that the decision has, and under the one that the directory has for its attempt: whoever presumes an
# abort does not know the name. Neither table forgets anything in a run: the retention is a week, the farthest that a
# clock jumps is a day.
DECIDED = (
    "select name, verdict from {0}decisions where name <> '' union "
    "select n.name, d.verdict from {0}names as n join {0}decisions as d on d.attempt = n.attempt"
)


def settle(world: World, cluster: str) -> list[str]:
    """Finish by name what is staged, and sweep until nothing is left to do; what remains, in words."""
    answers = Writer(world.folder / f"{cluster}-closing.history", f"{cluster}-closing")
    deadline = time.monotonic() + world.rig.settle_s
    try:
        with world.coordinator(cluster) as db:
            while left := _sweep(db, answers) or _open(world, cluster) or _prepared(world, cluster):
                if time.monotonic() > deadline:
                    return [f"recovery does not come to an end: {one}" for one in left]
                time.sleep(PAUSE_S)
            return [f"{name} is barred: {why}" for name, why in db.barred.items()]
    except NoDoubtError as error:
        return [f"recovery could not begin: {type(error).__name__}: {error}"]


def _sweep(db: Coordinator, answers: Writer) -> list[str]:
    """One round; [] if it found nothing amiss."""
    try:
        for record in db.transactions(state=State.PREPARED):
            try:
                db.commit_distributed(record.name)
            except OutcomeConflict as error:
                answers.append(error.stands, record.name, why="at the end")
            else:
                answers.append(COMMITTED, record.name, why="at the end")
        report = db.recover(grace=0)
        return [] if report.clean else [str(report)]
    except NoDoubtError as error:
        return [f"{type(error).__name__}: {error}"]


def _prepared(world: World, cluster: str) -> list[str]:
    return [f"prepared in {one.name}: {one.prepared()}" for one in world.databases[cluster] if one.prepared()]


def _open(world: World, cluster: str) -> list[str]:
    """What the journal has not done with."""
    rows = {what: [text for (text,) in _ask(world, cluster, sql)] for what, sql in OPEN.items()}
    return [f"{what} in the journal: {', '.join(found[:10])}" for what, found in rows.items() if found]


def decided(world: World, cluster: str) -> list[tuple[str, str]]:
    """By name, what the journal has decided: of each staged transaction, and of most others."""
    return [(name, verdict) for name, verdict in _ask(world, cluster, DECIDED)]


def _ask(world: World, cluster: str, sql: str) -> list[tuple[str, ...]]:
    """Rows of text from the journal. MariaDB keeps names as bytes, which no collation takes for each other."""
    journal = world.journal(cluster)
    found = journal.query(sql.format(_prefix(journal)))
    return [tuple(one.decode() if isinstance(one, bytes) else str(one) for one in row) for row in found]


def _prefix(journal: Database) -> str:
    return "nodoubt." if journal.kind == "postgres" else "nodoubt_"


def look(world: World, cluster: str, left: list[str]) -> Final:
    """The state of one cluster."""
    databases = {database.name: _content(database) for database in world.databases[cluster]}
    return Final(databases, workload.BALANCE, decided(world, cluster), (*left, *_open(world, cluster)))


def _content(database: Database) -> Content:
    return Content(
        accounts={int(key): int(value) for key, value in database.query("select id, balance from accounts")},
        transfers=[(str(t), int(k), int(a)) for t, k, a in database.query("select tx, account, amount from transfers")],
        heads={int(key): int(n) for key, n in database.query("select k, n from heads")},
        appends=[(int(key), int(at), str(tx)) for key, at, tx in database.query("select k, at, tx from lists")],
        prepared=tuple(database.prepared()),
        locked=database.locked(),
    )


def keep_decisions(world: World, cluster: str) -> None:
    """The journal's decisions, for whoever has to find out what went wrong: the databases go with the run."""
    journal = world.journal(cluster)
    columns = "name, attempt, verdict, mode, branches, point, owner, reason, decided_at, ended_at, confirms"
    with (world.folder / f"{cluster}-decisions.jsonl").open("w") as stream:
        for row in journal.query(f"select {columns} from {_prefix(journal)}decisions order by decided_at"):
            stream.write(json.dumps(row, default=str) + "\n")


def servers_left(world: World) -> list[str]:
    """What the servers still list as prepared, whoever's it is."""
    left = []
    for name in SERVERS:
        sql = "xa recover" if name == "maria" else "select gid from pg_prepared_xacts"
        left += [f"{name} lists {row} as prepared" for row in world.stranger(name).query(sql)]
    return left


def doctor(world: World) -> list[str]:
    """What `nodoubt doctor` says that a human must see; what it cannot examine is tried again for a while."""
    urls = [database.url for cluster in world.databases.values() for database in cluster]
    deadline = time.monotonic() + world.rig.settle_s
    while True:
        done = subprocess.run(
            [sys.executable, "-m", "nodoubt", "doctor", "--json", *urls], capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent / "src")},
        )  # fmt: skip
        try:
            report = json.loads(done.stdout)
        except ValueError:
            return [f"the doctor gave no report ({done.returncode}): {done.stdout[-500:]} {done.stderr[-500:]}"]
        errors = [f"could not be examined: {one['error']}" for one in report["databases"] if one["error"]]
        if not errors or time.monotonic() > deadline:
            break
    found = [*report["findings"], *(finding for one in report["databases"] for finding in one["findings"])]
    return [f"the doctor: {one['rule']}: {one['what']}" for one in found if one["severity"] == "human"] + errors
