"""One process of the soak: a coordinator with its share of the clients, or with a clerk.

`python -m soak.worker`, given a `Task` as JSON on its standard input, works until the file `closed` is there, or until
it is killed.

- A *client* draws transactions, does them at once or stages them, and notes what it was told. Told `InDoubt`, it may
  go on asking (`settle`) until it is answered. On asyncio some of its transactions are cancelled.
- Staged work is finished by its own client, or by a *clerk* in another process, or by nobody: then its deadline does,
  or at last a clerk.

Must not: note an answer that nobody gave, or do anything between an answer and its line.
"""

from __future__ import annotations

import asyncio
import random
import re
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import msgspec

from kit import Database, Face, FaceTransaction
from nodoubt import InDoubt, NoDoubtError, Notice, OutcomeConflict, Settings, State, TransactionAborted
from nodoubt.engine import register
from nodoubt.errors import Heuristic, InvariantViolated, LineageBroken, SchemaMismatch

from . import workload
from .clock import mend_sleep
from .history import ABORTED, ALARM, BEGUN, COMMITTED, DOUBT, HELLO, STAGED, Plan, Writer

# Short, so that what dies is noticed and taken back while others still work; none of them matters to safety (I14).
SETTINGS = Settings(
    connect_s=3, acquire_s=3, prepare_s=3, decide_s=4, apply_s=4, answer_s=4, grace_s=5, sweep_s=1, deadline_s=60,
    pool_size=8,
)  # fmt: skip
WORK_TIME_MAX_S = 6.0
DECIDED_SHARE = 0.2  # answered before phase two
CANCELLED_SHARE = 0.02
CANCELLED_WITHIN_S = 0.3
SETTLES_SHARE = 0.5
SETTLE_TRIES_MAX = 20
OWN_SHARE, CLERK_SHARE = 0.45, 0.5  # who finishes what is staged; the rest is abandoned
ABANDONED = "abandoned-"
ABANDONED_DEADLINE_S = 8.0
ABANDONED_MAX_S = 30.0  # then a clerk takes it: a clock that jumped may have set the deadline far away
CLERK_COMMITS_SHARE = 0.8
STALL_S = 0.2
ONE_BY_ONE, IGNORES_THE_FENCE = "one by one", "ignores the fence"  # mutants that the judge must find out
CLERK_SWEEPS_SHARE = 0.1
HASTY_GRACE_S = 0.05
PAUSE_S = 0.3
ALARMS = (Heuristic, InvariantViolated, LineageBroken, SchemaMismatch)


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What a process is told. `think_s`: a client's longest pause between two transactions."""

    name: str
    role: str  # clients or clerk
    mode: str  # sync or async
    clients: int
    urls: dict[str, str]
    journal: str
    history: str
    closed: str
    seed: str
    think_s: float
    mutant: str = ""
    stall_share: float = 0.0


class RolledBack(Exception):
    """The client's own wish."""


class Stalls:
    """An observer in whose way some of the notices stay for a moment, as in a process that is swapped out."""

    def __init__(self, dice: random.Random, share: float) -> None:
        self.dice, self.share = dice, share

    def notice(self, _: Notice) -> None:
        if self.dice.random() < self.share:
            time.sleep(STALL_S)


class Process:
    """Its whole life."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.dice = random.Random(task.seed)
        self.databases = [Database(name, url) for name, url in task.urls.items()]
        self.numbered = {name for name, url in task.urls.items() if "+asyncpg" in url}
        self.history = Writer(Path(task.history), task.name)
        self.closed = Path(task.closed)

    @property
    def open(self) -> bool:
        return not self.closed.exists()

    async def run(self) -> None:
        while self.open:
            face = Face(
                self.task.mode, self.databases, journal=self.task.journal, settings=SETTINGS, recovery=True,
                observer=Stalls(self.dice, self.task.stall_share),
            )  # fmt: skip
            try:
                await face.open()
            except NoDoubtError as error:
                self.look_for_alarm(error)
                await asyncio.sleep(PAUSE_S)  # the journal's server is down: try again when it may be back
                continue
            self.history.append(HELLO)
            try:
                await self.work(face)
            finally:
                await face.close()

    async def work(self, db: Face) -> None:
        if self.task.role == "clerk":
            await self.clerk(db)
        elif self.task.mode == "async":
            await asyncio.gather(*(self.client(db, number) for number in range(self.task.clients)))
        else:
            threads = [
                threading.Thread(target=lambda number=number: asyncio.run(self.client(db, number)))
                for number in range(self.task.clients)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def look_for_alarm(self, error: BaseException, tx: str = "") -> None:
        """What no nemesis of ours explains is noted as such."""
        if isinstance(error, ALARMS):
            self.history.append(ALARM, tx, why=f"{type(error).__name__}: {error}")

    # ---- clients

    async def client(self, db: Face, number: int) -> None:
        dice = random.Random(f"{self.task.seed}/{number}")
        while self.open:
            plan = workload.draw(dice)
            tx = uuid.UUID(int=dice.getrandbits(128)).hex
            if self.task.mutant == ONE_BY_ONE:
                await self.one_by_one(tx, plan)
            elif plan.how == "once":
                await self.at_once(db, tx, plan, dice)
            else:
                await self.staged(db, tx, plan, dice)
            await asyncio.sleep(dice.uniform(0, self.task.think_s))

    async def at_once(self, db: Face, tx: str, plan: Plan, dice: random.Random) -> None:
        self.history.append(BEGUN, tx, plan=plan)
        cancelled = self.task.mode == "async" and dice.random() < CANCELLED_SHARE
        scope = asyncio.timeout(dice.uniform(0, CANCELLED_WITHIN_S) if cancelled else None)
        try:
            async with scope:
                wait = "decided" if dice.random() < DECIDED_SHARE else "applied"
                async with db.transaction(tx, timeout=WORK_TIME_MAX_S, wait=wait) as handle:
                    await self.do(handle, tx, plan)
        except InDoubt as error:
            self.told(DOUBT, tx, error)
            await self.settle(db, tx, error.attempt, dice)
        except Exception as error:
            # The block's own errors come out unchanged, after it was rolled back; who cancels is told nothing.
            self.told(DOUBT if scope.expired() else ABORTED, tx, error)
        else:
            self.history.append(COMMITTED, tx)

    async def staged(self, db: Face, tx: str, plan: Plan, dice: random.Random) -> None:
        finisher = dice.choices(["own", "clerk", "nobody"], [OWN_SHARE, CLERK_SHARE, 1 - OWN_SHARE - CLERK_SHARE])[0]
        tx, deadline_s = (ABANDONED + tx, ABANDONED_DEADLINE_S) if finisher == "nobody" else (tx, None)
        self.history.append(BEGUN, tx, plan=plan)
        try:
            async with db.staged(tx, timeout=WORK_TIME_MAX_S, deadline=deadline_s) as handle:
                await self.do(handle, tx, plan)
        except InDoubt as error:
            self.told(DOUBT, tx, error)
        except Exception as error:
            self.told(ABORTED, tx, error)
        else:
            self.history.append(STAGED, tx)
            if finisher == "own":
                await asyncio.sleep(dice.uniform(0, PAUSE_S))
                await self.finish(db, tx, commits=dice.random() < CLERK_COMMITS_SHARE)

    async def do(self, handle: FaceTransaction, tx: str, plan: Plan) -> None:
        for database, sql, params in workload.statements(tx, plan):
            answer = handle.handle[database].execute(self.placed(database, sql), params)
            if self.task.mode == "async":
                await answer
        if plan.fate == "rollback":
            raise RolledBack("as it was meant to be")

    def placed(self, database: str, sql: str) -> str:
        """`?` as the driver there wants it."""
        if database in self.numbered:
            numbers = iter(range(1, 10))
            return re.sub(r"\?", lambda _: f"${next(numbers)}", sql)
        return sql if database == "s" else sql.replace("?", "%s")

    def told(self, what: str, tx: str, error: BaseException) -> None:
        self.history.append(what, tx, why=f"{type(error).__name__}: {error}")
        self.look_for_alarm(error, tx)

    async def settle(self, db: Face, tx: str, attempt: str, dice: random.Random) -> None:
        """Some go on asking until they are answered."""
        if dice.random() > SETTLES_SHARE:
            return
        for _ in range(SETTLE_TRIES_MAX):
            await asyncio.sleep(PAUSE_S)
            try:
                result = await db.settle(attempt)
            except NoDoubtError as error:
                self.look_for_alarm(error, tx)
            else:
                self.history.append(COMMITTED if result.state is State.COMMITTED else ABORTED, tx, why="settled")
                return
            if not self.open:
                return

    async def finish(self, db: Face, tx: str, *, commits: bool) -> None:
        try:
            await (db.commit_distributed if commits else db.rollback_distributed)(tx)
        except OutcomeConflict as error:
            self.history.append(error.stands, tx, why="by the contrary verb")
        except NoDoubtError as error:
            self.told(ABORTED if isinstance(error, TransactionAborted) else DOUBT, tx, error)
        else:
            self.history.append(COMMITTED if commits else ABORTED, tx, why="by name")

    async def one_by_one(self, tx: str, plan: Plan) -> None:
        """The mutant: what people do who have no two-phase commit. The pause is a slow network."""
        plan = msgspec.structs.replace(plan, fate="commit")
        self.history.append(BEGUN, tx, plan=plan)
        try:
            for database, sql, params in workload.statements(tx, plan):
                next(one for one in self.databases if one.name == database).query(sql, *params)
                await asyncio.sleep(STALL_S)
        except Exception as error:
            self.told(DOUBT, tx, error)
        else:
            self.history.append(COMMITTED, tx)

    # ---- clerks

    async def clerk(self, db: Face) -> None:
        seen: dict[str, float] = {}
        while self.open:
            try:
                names = [record.name for record in await db.transactions(state=State.PREPARED)]
                seen = {name: seen.get(name, time.monotonic()) for name in names}
                for name in names:
                    patient = name.startswith(ABANDONED) and time.monotonic() - seen[name] < ABANDONED_MAX_S
                    if not patient:
                        await self.finish(db, name, commits=self.dice.random() < CLERK_COMMITS_SHARE)
                if self.task.mutant or self.dice.random() < CLERK_SWEEPS_SHARE:
                    # With next to no grace, so that live attempts are fenced under their coordinators' feet.
                    await db.recover(grace=HASTY_GRACE_S)
            except NoDoubtError as error:
                self.look_for_alarm(error)
            await asyncio.sleep(PAUSE_S)


def ignore_the_fence() -> None:
    """The mutant: recovery that takes its own word for the register's."""
    plain = register.decide

    def decide(ctx: Any, decision: Any) -> Any:
        if decision.reason.startswith("recovery:"):
            return decision
            yield
        return (yield from plain(ctx, decision))

    register.decide = decide


if __name__ == "__main__":
    mend_sleep()
    task_ = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    if task_.mutant == IGNORES_THE_FENCE:
        ignore_the_fence()
    asyncio.run(Process(task_).run())
