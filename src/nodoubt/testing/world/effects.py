"""Looks at what happens outside of a world's databases, and stops it where the contract is broken: I19 and I20.

It sees the journal's calls, as they are shown and on disk, the service's own book, and every function that a process
begins. What it holds to:

- I19: an action begins with its intent on disk, not in an attempt whose decision stood when its caller came to the last
  look, and only once where its service does not honour keys; what it did is done once. A COMMIT appears when every step
  of its attempt was answered. What a caller is told a step returned is on disk. A compensation begins when the
  attempt's ABORT is on disk, and those of all later calls are over or parked. With a service that honours keys nothing
  is undone that was not done, or twice.
- I20: no compensation is begun more often than it may, or a human lets it; none is parked before.
- At the end: of what was committed each step that was answered has happened, and none is undone; of what was aborted
  each step is undone, or parked because its compensation never succeeds, and those before it are undone all the same.

Must not: change anything in the world.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...journals.memory_state import State
from ...ports import Notice
from ...protocol.records import ANSWERED, Call, CallState, Verdict
from ...steps.running import Job
from .outside import Account

if TYPE_CHECKING:
    from .checker import Violated
    from .process import Process
    from .world import World

Which = tuple[str, int]  # attempt, number


@dataclass(slots=True)
class Effects:
    """One world's."""

    world: World
    last: dict[Which, Call] = field(default_factory=dict)  # as each call was last on disk, whether or not it still is
    _begun: Counter[tuple[str, str]] = field(default_factory=Counter)  # actions, by attempt and use
    _undoing: Counter[Which] = field(default_factory=Counter)
    _retried: Counter[Which] = field(default_factory=Counter)  # by a human, who need not mind the order
    _poison: set[Which] = field(default_factory=set)
    _too_late: set[tuple[str, str, object]] = field(default_factory=set)  # calls whose last look will find a decision
    _calls: dict[Which, Call] = field(default_factory=dict)

    @property
    def used(self) -> bool:
        """Whether any step was ever called."""
        return bool(self.last)

    def _violated(self, number: str, why: str) -> Violated:
        return self.world.checker.violated(number, why)

    def _excused(self, attempt: str) -> bool:
        return bool(self.world.checker.deed(attempt).excused)

    @property
    def _shown(self) -> State:
        return self.world.journal_view(self.world.machines[self.world.journal_at].server.tables)

    @property
    def _durable(self) -> State:
        return self.world.journal_view(self.world.machines[self.world.journal_at].server.durable)

    # ---- what processes do

    def intended(self, process: Process, notice: Notice) -> None:
        """A caller has its intent on disk, and is about to look whether the attempt is still open."""
        which = process.name, notice.attempt, notice.fields.get("number")
        self._too_late.discard(which)
        if notice.attempt in self._durable.decisions:
            self._too_late.add(which)

    def begins(self, process: Process, job: Job) -> None:
        """A function is begun."""
        attempt, number = job.context.attempt, job.context.number
        if self._excused(attempt):
            return
        if job.function.kind == "step":
            self._action_begins(process, job, attempt, number)
        else:
            self._compensation_begins(job, attempt, number)

    def _action_begins(self, process: Process, job: Job, attempt: str, number: int) -> None:
        use = job.values["plan"].use
        if (attempt, number) not in self._durable.calls:
            raise self._violated("I19", f"{use} of {attempt} begins, and its intent is not on disk")
        if (process.name, attempt, number) in self._too_late and attempt in self._durable.decisions:
            raise self._violated("I19", f"{use} begins, and {attempt} had been decided before the last look")
        self._begun[attempt, use] += 1
        if self._begun[attempt, use] > 1 and not job.function.options.idempotent:
            raise self._violated("I19", f"{use} of {attempt} begins again, and its service would do it again")

    def _compensation_begins(self, job: Job, attempt: str, number: int) -> None:
        which = attempt, number
        row = self._durable.decisions.get(attempt)
        if row is None or row.decision.verdict is not Verdict.ABORT:
            stands = "nothing" if row is None else row.decision.verdict.value
            raise self._violated("I19", f"step {number} of {attempt} is being undone, and on disk stands {stands}")
        for call in self._shown.calls.values():
            later = call.attempt == attempt and call.number > number
            over = call.closed or call.state is CallState.PARKED or self._retried[call.attempt, call.number]
            if later and not over:
                raise self._violated(
                    "I19", f"step {number} of {attempt} is being undone before step {call.number}: {call.state}"
                )
        self._undoing[which] += 1
        if job.values["plan"].poison:
            self._poison.add(which)
        if self._undoing[which] > self.world.layout.settings.tries_max * (1 + self._retried[which]):
            raise self._violated("I20", f"step {number} of {attempt} is undone for the {self._undoing[which]}th time")

    def answered(self, attempt: str, use: str, value: object) -> None:
        """A caller was told what its step has returned."""
        if self._excused(attempt):
            return
        call = next((one for one in self._durable.calls.values() if (one.attempt, one.key) == (attempt, use)), None)
        if call is None or not call.result:
            raise self._violated("I19", f"{use} of {attempt} was told to have returned {value}, which is not on disk")

    def happened(self, order: tuple[str, str], account: Account) -> None:
        """The service has done something."""
        attempt, use = order
        if self._excused(attempt):
            return
        if account.done > 1:
            raise self._violated("I19", f"{use} of {attempt} was done {account.done} times")
        if account.keyed and account.undone > account.done:
            raise self._violated("I19", f"{use} of {attempt} was undone {account.undone} times, done {account.done}")

    # ---- after each step

    def look(self) -> None:
        """Look at the journal's calls, if they have changed."""
        shown = self._shown
        if not shown.calls and not self._calls:
            return
        machine = self.world.machines[self.world.journal_at]
        for which in sorted(self._calls.keys() - shown.calls.keys()):
            attempt, number = which
            over = self._calls[which].closed or attempt in shown.stand
            if machine.up and not over and not self._excused(attempt):
                raise self._violated("I19", f"step {number} of {attempt} was forgotten: {self._calls[which].state}")
        for which, call in shown.calls.items():
            before = self._calls.get(which)
            if before is not None and before.state is CallState.PARKED and call.state is CallState.DUE:
                self._retried[which] += 1
        self._calls = shown.calls
        self.last.update(self._durable.calls)
        for (attempt, number), call in shown.calls.items():
            row = shown.decisions.get(attempt)
            if row is None or row.decision.verdict is not Verdict.COMMIT or self._excused(attempt):
                continue
            if call.state not in ANSWERED:
                raise self._violated("I19", f"{attempt} is decided COMMIT, and its step {number} is {call.state}")

    # ---- at the end

    def rest(self) -> None:
        """Everything is up, and whatever can be undone has been."""
        journal = self._durable
        for (attempt, number), call in sorted(self.last.items()):
            if self._excused(attempt):
                continue
            row = journal.decisions.get(attempt)
            verdict = row.decision.verdict if row is not None else self.world.checker.deed(attempt).decided
            account = self.world.service.accounts.get((attempt, call.key), Account(keyed=True))
            what = f"step {number} of {attempt} is {call.state}, done {account.done} times, undone {account.undone}"
            if verdict is None and attempt < journal.floor and "clock jumped" in self.world.faults.came:
                continue  # a clock that is wrong by more than the retention: nobody can tell any more, loudly
            if verdict is None and not call.closed:
                raise self._violated("I19", f"nobody decides, and {what}")
            if verdict is Verdict.COMMIT:
                if account.done != (call.state is CallState.DONE) or account.undone:
                    raise self._violated("I19", f"it was committed, and {what}")
            else:
                self._undone(call, account, what)

    def _undone(self, call: Call, account: Account, what: str) -> None:
        which = call.attempt, call.number
        if call.state is CallState.PARKED:
            if call.tries < self.world.layout.settings.tries_max:
                raise self._violated("I20", f"it is parked for nothing, and {what}")
            return
        if not call.closed:
            held_up = any(one.state is CallState.PARKED for one in self.last.values() if one.attempt == call.attempt)
            raise self._violated("I20" if held_up or which in self._poison else "I19", f"it was aborted, and {what}")
        bare = call.state is CallState.NOTHING and not call.undo
        by_hand = call.state is CallState.SKIPPED
        if account.keyed and account.done != account.undone and not bare and not by_hand:
            raise self._violated("I19", f"it was aborted, and {what}")
