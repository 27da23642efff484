"""The processes of the bank: each works until the bank is closed, or until it is killed.

`python teller.py '{"role": …, "number": …, "urls": {…}, "journal": …, "answers": …, "closed": …, "seed": …}'`

- A *teller* moves money between random accounts: at once, in one, two or three databases, or staged.
- A *clerk* is another process that ends what tellers have staged: by name, mostly by a commit. Now and then it sweeps
  with next to no grace, so that live attempts are fenced under their coordinators' feet.

Both stall for a moment, now and then, at any point of the protocol, as a process does that is swapped out.

What a caller is told is written down and flushed before anything else is done: `committed` must be found in the
databases at the end, `aborted` must not. Anything else is a doubt, and may be either.

Each transfer leaves a row in every database it touches, in the same transaction, which says what the others are.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import msgspec

from kit import Database, Face, FaceTransaction
from nodoubt import InDoubt, NoDoubtError, Notice, OutcomeConflict, Settings, State
from nodoubt.engine import register

ACCOUNTS = 8
STAGED_SHARE = 0.15
ROLLED_BACK_SHARE = 0.2
AT_ONCE_PER_TELLER = 2
WORK_TIME_MAX_S = 2.0
HASTY_SHARE = 0.2
HASTY_GRACE_S = 0.05
STALL_S = 0.2
AFTER_ABORT_S = 0.02  # mostly a table that a staged branch has locked: others want the processor
# Short, so that what dies is noticed and taken back while the bank is open; none of them matters to safety (I14).
SETTINGS = Settings(connect_s=2, acquire_s=2, prepare_s=2, decide_s=3, apply_s=2, grace_s=2, sweep_s=0.5, deadline_s=5)


class Task(msgspec.Struct, frozen=True):
    """What a process is told."""

    role: str  # teller or clerk
    number: int
    urls: dict[str, str]
    journal: str
    answers: str
    closed: str  # when this file is there, the day is over
    seed: int
    stall_share: float
    mutant: str = ""


class Answer(msgspec.Struct, frozen=True):
    """One line: what a caller was told of one transfer. `said`: committed, aborted, staged or doubt."""

    transfer: str
    said: str
    why: str = ""


class Answers:
    """A file of them, each flushed before the next step."""

    def __init__(self, path: Path) -> None:
        self.stream = path.open("ab", buffering=0)

    def append(self, answer: Answer) -> None:
        self.stream.write(msgspec.json.encode(answer) + b"\n")
        os.fsync(self.stream.fileno())


class Stalls:
    """An observer in whose way some of the notices stay for a moment."""

    def __init__(self, dice: random.Random, share: float) -> None:
        self.dice, self.share = dice, share

    def notice(self, _: Notice) -> None:
        if self.dice.random() < self.share:
            time.sleep(STALL_S)


class Transfer:
    """Some money from here to there, perhaps by way of a third place."""

    def __init__(self, dice: random.Random, names: list[str]) -> None:
        self.id = uuid.UUID(int=dice.getrandbits(128)).hex + str(os.getpid())
        places = dice.choices([1, 2, 3], [1, 7, 2])[0]
        databases = dice.sample(names, places) if places > 1 else dice.choices(names) * 2
        amounts = [dice.randint(1, 9) for _ in databases[1:]]
        # In one order everywhere, so that two transfers rarely wait for each other in a circle that no server can see.
        self.moves = sorted(
            (name, dice.randrange(ACCOUNTS), amount)
            for name, amount in zip(databases, [-sum(amounts), *amounts], strict=True)
        )
        self.touched = sorted(set(databases))

    async def run(self, tx: FaceTransaction) -> None:
        for name, account, amount in self.moves:
            await tx.execute(name, "update accounts set balance = balance + ? where id = ?", amount, account)
        for name in self.touched:
            await tx.execute(name, "insert into transfers values (?, ?)", self.id, "+".join(self.touched))


class Process:
    """One process at its work."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.dice = random.Random(task.seed)
        self.databases = [Database(name, url) for name, url in task.urls.items()]
        self.answers = Answers(Path(task.answers))
        self.closed = Path(task.closed)
        self.stalls = Stalls(self.dice, task.stall_share)

    @property
    def open(self) -> bool:
        return not self.closed.exists()

    async def run(self) -> None:
        while self.open:
            mode = ("sync", "async")[self.task.number % 2]
            face = Face(
                mode, self.databases, journal=self.task.journal, settings=SETTINGS, recovery=True, observer=self.stalls
            )
            try:
                await face.open()
            except NoDoubtError:
                await asyncio.sleep(0.05)  # the journal's server is down: try again when it may be back
                continue
            try:
                if self.task.role == "clerk":
                    await self.clerk(face)
                else:
                    tasks = AT_ONCE_PER_TELLER if face.mode == "async" else 1
                    await asyncio.gather(*(self.teller(face) for _ in range(tasks)))
            finally:
                await face.close()

    # ---- tellers

    async def teller(self, db: Face) -> None:
        while self.open:
            transfer = Transfer(self.dice, list(db.databases))
            if self.task.mutant == "one by one":
                await self.one_by_one(transfer)
            elif self.dice.random() < STAGED_SHARE:
                await self.stage(db, transfer)
            elif not await self.at_once(db, transfer):
                await asyncio.sleep(AFTER_ABORT_S)

    async def at_once(self, db: Face, transfer: Transfer) -> bool:
        """Whether it was committed."""
        try:
            async with db.transaction(transfer.id, timeout=WORK_TIME_MAX_S) as tx:
                await transfer.run(tx)
        except InDoubt as error:
            self.answers.append(Answer(transfer.id, "doubt", str(error)))
        except Exception as error:
            # The block's own errors come out unchanged, after it was rolled back.
            self.answers.append(Answer(transfer.id, "aborted", f"{type(error).__name__}: {error}"))
        else:
            self.answers.append(Answer(transfer.id, "committed"))
            return True
        return False

    async def stage(self, db: Face, transfer: Transfer) -> None:
        try:
            async with db.staged(transfer.id, timeout=WORK_TIME_MAX_S) as tx:
                await transfer.run(tx)
        except InDoubt as error:
            self.answers.append(Answer(transfer.id, "doubt", str(error)))
        except Exception as error:
            self.answers.append(Answer(transfer.id, "aborted", f"{type(error).__name__}: {error}"))
        else:
            self.answers.append(Answer(transfer.id, "staged"))

    async def one_by_one(self, transfer: Transfer) -> None:
        """The mutant: what people do who have no two-phase commit. The pause is a slow network."""
        try:
            for name in transfer.touched:
                database = next(d for d in self.databases if d.name == name)
                for at, account, amount in transfer.moves:
                    if at == name:
                        database.query("update accounts set balance = balance + ? where id = ?", amount, account)
                database.query("insert into transfers values (?, ?)", transfer.id, "+".join(transfer.touched))
                await asyncio.sleep(STALL_S)
        except Exception as error:
            self.answers.append(Answer(transfer.id, "doubt", str(error)))
        else:
            self.answers.append(Answer(transfer.id, "committed"))

    # ---- clerks

    async def clerk(self, db: Face) -> None:
        while self.open:
            try:
                for record in await db.transactions(state=State.PREPARED):
                    await self.finish(db, record.name)
                if self.task.mutant or self.dice.random() < HASTY_SHARE:
                    await db.recover(grace=HASTY_GRACE_S)
            except NoDoubtError:
                pass  # the journal is away: nothing was asked of it, or nothing was answered
            await asyncio.sleep(0.02)

    async def finish(self, db: Face, name: str) -> None:
        commits = self.dice.random() >= ROLLED_BACK_SHARE
        try:
            await (db.commit_distributed if commits else db.rollback_distributed)(name)
        except OutcomeConflict as error:
            self.answers.append(Answer(name, error.stands, "told by the contrary verb"))
        except NoDoubtError as error:
            self.answers.append(Answer(name, "doubt", f"{type(error).__name__}: {error}"))
        else:
            self.answers.append(Answer(name, "committed" if commits else "aborted", "by name"))


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
    task_ = msgspec.convert(json.loads(sys.argv[1]), Task)
    if task_.mutant == "ignores the fence":
        ignore_the_fence()
    asyncio.run(Process(task_).run())
