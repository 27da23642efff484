"""The bank: 8 accounts on each of three databases, transfers from several processes, and a nemesis.

`python bank.py` (with src and tests on PYTHONPATH) runs it for NODOUBT_BANK_S seconds, 60 if that is not set, and
prints what happened. The nemesis kills tellers and clerks (SIGKILL; they are started again) and both servers, and stops
processes for longer than any grace. NODOUBT_BANK_SEED settles when, and which database holds the journal. At the end
everything is started again, swept until it is clean, and audited:

- the sum over all accounts is what it was (I23);
- a transfer is in all the databases it touches, or in none;
- what was answered `committed` is there, and what was answered `aborted` is not (I5);
- nothing is prepared, nothing is locked, nothing is in quarantine.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from crash.teller import ACCOUNTS, SETTINGS, Answer, Task
from kit import Database
from nodoubt import Coordinator, NoDoubtError, OutcomeConflict, State
from nodoubt.testing.processes import wait_for
from nodoubt.testing.servers import MariaDBServer, PostgresServer, Server

BALANCE = 1000
SECONDS_DEFAULT = 60.0
TELLERS = 3
CLERKS = 1
KILL_PROCESS_EVERY_S = (0.3, 2.5)
KILL_SERVER_EVERY_S = (1.5, 6.0)
STALL_SHARE = 0.01
STOPPED_SHARE = 0.2
STOPPED_S = SETTINGS.grace_s + 0.5
JOURNALS = ["p", "p", "m", "s"]
OPENING_TIME_MAX_S = 60.0
SETTLE_TIME_MAX_S = 60.0
END_TIME_MAX_S = 60.0
WRONG_SHOWN_MAX = 10


@dataclass
class Audit:
    """What was found at the end. `wrong` is empty, or the bank has lost money or told a lie."""

    seconds: float
    seed: int
    journal: str
    said: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    there: int = 0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        said = self.said
        reasons = ", ".join(f"{number} {reason}" for reason, number in self.reasons.most_common())
        kills = ", ".join(f"{number} {what}" for what, number in sorted(self.kills.items()))
        return (
            f"bank: {self.seconds:g} s, seed {self.seed}, journal in {self.journal}\n"
            f"  answers: {said['committed']} committed, {said['aborted']} aborted, {said['staged']} staged, "
            f"{said['doubt']} in doubt\n"
            f"  in the databases: {self.there} transfers\n"
            f"  killed or stopped: {kills}\n"
            f"  aborted or in doubt because of: {reasons}\n"
            f"  audit: {'fine' if not self.wrong else '; '.join(self.wrong[:WRONG_SHOWN_MAX])}"
        )


class Bank:
    """The parent of all of it."""

    def __init__(
        self, directory: Path, seconds: float, seed: int, *, stall_share: float = STALL_SHARE, mutant: str = ""
    ) -> None:
        self.directory, self.seconds, self.stall_share, self.mutant = directory, seconds, stall_share, mutant
        self.closed = directory / "closed"
        self.dice = random.Random(seed)
        self.audit = Audit(seconds, seed, self.dice.choice(JOURNALS))
        # MariaDB not in memory: there it maps its log, and a SIGKILL takes nothing from it that was not flushed.
        self.servers: dict[str, Server] = {"postgres": PostgresServer(), "mariadb": MariaDBServer(under="/var/tmp")}
        self.databases: list[Database] = []
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.started = 0

    def run(self) -> Audit:
        """Open, work, close, audit."""
        try:
            for server in self.servers.values():
                server.start()
            self._found()
            self._work()
            self._settle()
            self._examine()
        finally:
            for process in self.processes.values():
                process.kill()
                process.wait()
            for server in self.servers.values():
                server.stop()
        return self.audit

    def _found(self) -> None:
        self.databases = [
            Database("p", self.servers["postgres"].url()),
            Database("m", self.servers["mariadb"].url()),
            Database("s", f"sqlite:///{self.directory}/s.db"),
        ]
        self.databases[2].query("pragma journal_mode = wal")
        for database in self.databases:
            database.create(ACCOUNTS, BALANCE)
            database.query("create table transfers (id varchar(80) primary key, touched varchar(20) not null)")
        with self._coordinator() as db:
            db.setup()

    def _coordinator(self) -> Coordinator:
        urls = {d.name: d.url for d in self.databases}
        return Coordinator(urls, journal=self.audit.journal, settings=SETTINGS, recovery=False)

    # ---- the working day

    def _work(self) -> None:
        roles = ["teller"] * TELLERS + ["clerk"] * CLERKS
        for number, role in enumerate(roles):
            self._start(f"{role} {number}")
        # The day begins when all tellers are at work, however long this machine takes to start them.
        wait_for(self._all_at_work, "the tellers to begin", OPENING_TIME_MAX_S)
        over = threading.Event()
        plans = [(KILL_PROCESS_EVERY_S, self._kill_process), (KILL_SERVER_EVERY_S, self._kill_server)]
        killers = [threading.Thread(target=self._now_and_then, args=(over, n, *plan)) for n, plan in enumerate(plans)]
        for killer in killers:
            killer.start()
        over.wait(self.seconds)
        over.set()
        for killer in killers:
            killer.join()
        self.closed.touch()
        deadline = time.monotonic() + END_TIME_MAX_S
        for name, process in self.processes.items():
            process.wait(max(deadline - time.monotonic(), 1))
            if process.returncode != 0:
                self.audit.wrong.append(
                    f"{name} ended with {process.returncode}: {self._path(name, 'err').read_text()}"
                )

    def _all_at_work(self) -> bool:
        dead = [name for name, process in self.processes.items() if process.poll() is not None]
        assert not dead, f"{dead}: {self._path(dead[0], 'err').read_text()}"
        paths = [self._path(name, "answers") for name in self.processes if name.startswith("teller")]
        return all(path.exists() and path.stat().st_size for path in paths)

    def _path(self, name: str, kind: str) -> Path:
        return self.directory / f"{name.replace(' ', '-')}.{kind}"

    def _start(self, name: str) -> None:
        role, number = name.split()
        self.started += 1
        seed = self.audit.seed * 1_000_003 + self.started
        task = Task(
            role, int(number), {d.name: d.url for d in self.databases}, self.audit.journal,
            str(self._path(name, "answers")), str(self.closed), seed, self.stall_share, self.mutant,
        )  # fmt: skip
        here = Path(__file__).parent
        path = os.pathsep.join([str(here.parent), *sys.path])
        with self._path(name, "err").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, str(here / "teller.py"), json.dumps(msgspec.to_builtins(task))],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": path},
            )  # fmt: skip

    def _now_and_then(
        self, over: threading.Event, stream: int, pause_s: tuple[float, float], kill: Callable[[random.Random], None]
    ) -> None:
        """Kill until the day is over, with random numbers of its own: two threads draw."""
        dice = random.Random(self.audit.seed * 7 + stream)
        while not over.wait(dice.uniform(*pause_s)):
            kill(dice)

    def _kill_process(self, dice: random.Random) -> None:
        name = dice.choice(sorted(self.processes))
        process = self.processes[name]
        if dice.random() < STOPPED_SHARE:
            process.send_signal(signal.SIGSTOP)
            time.sleep(STOPPED_S)
            process.send_signal(signal.SIGCONT)
            self.audit.kills[f"{name.split()[0]} (stopped)"] += 1
            return
        process.kill()
        process.wait()
        self.audit.kills[name.split()[0]] += 1
        self._start(name)

    def _kill_server(self, dice: random.Random) -> None:
        name = dice.choice(sorted(self.servers))
        self.servers[name].kill()
        self.servers[name].restart()
        self.audit.kills[name] += 1

    # ---- after closing time

    def _settle(self) -> None:
        """All is up: finish by name what is staged, sweep until nothing is left to do."""
        deadline = time.monotonic() + SETTLE_TIME_MAX_S
        with self._coordinator() as db:
            while True:
                try:
                    for record in db.transactions(state=State.PREPARED):
                        self._finish(db, record.name)
                    left = db.recover(grace=0)
                    # What is in quarantine stays there: the audit will say so.
                    if not left.trouble and left.prepared <= left.quarantined:
                        return
                    trouble = str(left)
                except NoDoubtError as error:
                    trouble = f"{type(error).__name__}: {error}"
                if time.monotonic() > deadline:
                    self.audit.wrong.append(f"it does not come to rest: {trouble}")
                    return

    def _finish(self, db: Coordinator, name: str) -> None:
        commits = self.dice.random() < 0.5
        said = "committed" if commits else "aborted"
        try:
            (db.commit_distributed if commits else db.rollback_distributed)(name)
        except OutcomeConflict as error:
            said = error.stands
        self._append(Answer(name, said, "at closing time"))

    def _append(self, answer: Answer) -> None:
        with (self.directory / "bank.answers").open("ab") as stream:
            stream.write(msgspec.json.encode(answer) + b"\n")

    def _examine(self) -> None:
        wrong = self.audit.wrong
        total = sum(d.total() for d in self.databases)
        expected = len(self.databases) * ACCOUNTS * BALANCE
        if total != expected:
            wrong.append(f"the sum is {total}, not {expected}")
        rows: dict[str, dict[str, str]] = {
            d.name: {str(i): str(t) for i, t in d.query("select id, touched from transfers")} for d in self.databases
        }
        found = {transfer: touched for database in rows.values() for transfer, touched in database.items()}
        self.audit.there = len(found)
        for transfer, touched in found.items():
            where = [name for name, database in rows.items() if transfer in database]
            if sorted(where) != touched.split("+"):
                wrong.append(f"{transfer} touched {touched}, and is in {'+'.join(where)}")
        self._compare(found)
        for database in self.databases:
            if database.prepared() or database.locked():
                wrong.append(f"{database.name}: prepared {database.prepared()}, locked {database.locked()}")
        with self._coordinator() as db:
            wrong += [f"quarantined: {entry}" for entry in db.quarantined()]

    def _compare(self, found: dict[str, str]) -> None:
        """What callers were told, with what is there."""
        for path in sorted(self.directory.glob("*.answers")):
            for line in path.read_bytes().splitlines():
                try:
                    answer = msgspec.json.decode(line, type=Answer)
                except msgspec.DecodeError:
                    continue  # its process was killed while it wrote this: nobody has been told
                self.audit.said[answer.said] += 1
                if answer.said in ("aborted", "doubt"):
                    self.audit.reasons[answer.why.split(":")[0]] += 1
                if answer.said == "committed" and answer.transfer not in found:
                    self.audit.wrong.append(
                        f"{path.stem} was told that {answer.transfer} is committed; it is not there"
                    )
                if answer.said == "aborted" and answer.transfer in found:
                    self.audit.wrong.append(
                        f"{path.stem} was told that {answer.transfer} is aborted ({answer.why}); it is there"
                    )


def main() -> None:
    seconds = float(os.environ.get("NODOUBT_BANK_S", SECONDS_DEFAULT))
    seed = int(os.environ.get("NODOUBT_BANK_SEED", time.time_ns() % 1_000_000))
    with tempfile.TemporaryDirectory(prefix="nodoubt-bank-", ignore_cleanup_errors=True) as directory:
        audit = Bank(Path(directory), seconds, seed).run()
    sys.stdout.write(f"{audit}\n")
    sys.exit(bool(audit.wrong))


if __name__ == "__main__":
    main()
