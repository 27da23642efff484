"""The verbs of a coordinator that reach beyond the databases: steps, confirmations, the reaper, an operator's word.

`Coordinator` and `AsyncCoordinator` inherit them. Wiring and delegation, no logic but that of `run_distributed`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from .engine import ends, questions, readiness, reaper, resolve, settle, sweep, verbs
from .engine.apart import tell
from .engine.context import Context, check_number, log
from .engine.phases import Course, to_end
from .engine.questions import State
from .engine.reaper import ReapReport
from .engine.shell import AsyncShell, ThreadShell
from .engine.sweep import SweepReport
from .engine.verbs import Result, Wait
from .errors import InDoubt, NoDoubtError, UsageError
from .jobs import board
from .protocol.records import Call, Confirmation, Readiness, Unreadable, Verdict
from .script import Script
from .steps import REGISTRY, Compensation, Step, calling, mending, undoing, worker
from .steps.mending import Mended
from .steps.running import BLOCKING, LOOPING, Runner
from .steps.undoing import Hand, Undoing
from .transaction import AsyncTransaction, Transaction, done

R = TypeVar("R")
Ending = Literal["commit", "rollback"]
EARLY_MAX = 0.2  # by how much less than was asked for a coordinator waits between two sweeps
VERDICTS: dict[str, Verdict] = {"commit": Verdict.COMMIT, "rollback": Verdict.ABORT}


class Scripts:
    """What both kinds share."""

    _ctx: Context
    _runs: ThreadShell | AsyncShell
    _runner: Runner
    _not_ready: NoDoubtError | None
    _recovery: bool
    _unminded: bool
    if TYPE_CHECKING:  # the coordinator's own
        begin_distributed: Any
        commit_distributed: Any

    def _ready(self) -> Context:
        raise NotImplementedError

    def _writable(self) -> Context:
        raise NotImplementedError

    def _now_and_then(self) -> Script[None]:
        raise NotImplementedError

    def _turn(self) -> Script[None]:
        raise NotImplementedError

    def _begin_behind(self) -> None:
        """Recovery, if it was asked for. Coordinators that begin together do not stay in step, to meet at each row."""
        if self._recovery:
            interval_s = self._ctx.settings.sweep_s * (1 - EARLY_MAX * self._ctx.chance())
            self._runs.loop("recovery", self._turn, interval_s)
            self._runs.loop("steps", self._steps_turn, interval_s)
        self._unminded = False

    def _finish_script(
        self, name: str, wanted: Verdict, attempt: str | None, wait: Wait, why: str = "it was asked to roll back"
    ) -> Script[Result]:
        ctx = self._writable()
        found = yield from verbs.finish_named(ctx, name, wanted, attempt=attempt, why=why)
        if not isinstance(found, Course):
            return found
        if wait == "applied":
            result = yield from verbs.complete_named(ctx, found, wanted)
            return (yield from self._undone(found.attempt.calls, result))
        self._runs.behind(self._to_end(found))
        return verbs.named_result(found, wanted)

    def _to_end(self, course: Course) -> Script[None]:
        yield from to_end(self._ctx, course)
        if course.attempt.calls and course.attempt.aborted:
            yield from undoing.undo_quietly(self._hand(), course.attempt.id)

    def _hand(self, grace_s: float | None = None) -> Hand:
        return Hand(self._ctx, REGISTRY, self._runner, grace_s=grace_s)

    def _undone(self, calls: int, result: Result) -> Script[Result]:
        """Whoever rolls back also undoes, as far as that can be done now."""
        if not calls or result.state is not State.ABORTED:
            return result
        left = yield from undoing.undo_quietly(self._hand(), result.attempt)
        return Result(result.name, result.attempt, result.state, result.complete, left)

    def _refuse_script(self, name: str, who: str, why: str, attempt: str | None) -> Script[Result]:
        ctx = self._writable()
        staging = yield from readiness.answer(ctx, name, who, Readiness.REFUSED, attempt=attempt, why=why)
        reason = f"refused by {who}" + (f": {why}" if why else "")
        return (yield from self._finish_script(name, Verdict.ABORT, staging.attempt, "applied", reason))

    def _confirm_script(self, name: str, who: str, attempt: str | None) -> Script[None]:
        yield from readiness.answer(self._writable(), name, who, Readiness.CONFIRMED, attempt=attempt)

    def _resolve_script(self, name: str, ending: Ending, by: str, because: str) -> Script[Result]:
        ctx = self._writable()
        if ending not in VERDICTS:
            raise UsageError(f'a transaction is resolved as "commit" or "rollback", not as {ending!r}')
        result = yield from resolve.resolve(ctx, name, VERDICTS[ending], by=by, because=because)
        return (yield from self._undone(1, result))

    def _reap_script(self) -> Script[ReapReport]:
        ctx = self._writable()
        report = yield from reaper.reap(ctx)
        met = {one.key for one in report.unreadable}
        steps = yield from self._undo_script()
        report.unreadable += [one for one in steps.unreadable if one.key not in met]
        return report

    def _undo_script(self, grace_s: float | None = None) -> Script[Undoing]:
        self._writable()
        if grace_s is not None:
            grace_s = check_number("grace", grace_s)
        return worker.turn(self._hand(grace_s))

    def _steps_turn(self) -> Script[None]:
        """Behind, and apart from the sweeps: a compensation that hangs must not keep a prepared branch waiting."""
        if self._not_ready is not None:
            return
        try:
            yield from self._undo_script()
        except NoDoubtError as error:
            log.warning("no steps were undone in this turn: %s", error)

    def _sweep_script(self, grace_s: float | None) -> Script[SweepReport]:
        ctx = self._writable()
        if grace_s is not None:
            grace_s = check_number("grace", grace_s)
        waiting = yield from ends.flush_or_keep(ctx)
        reaped = yield from reaper.reap(ctx)
        patience_s = ctx.settings.grace_s if grace_s is None else grace_s
        report = yield from sweep.sweep(ctx, grace_s=patience_s, reaped=reaped)
        report.reaped = reaped.reaped
        report.prepared, report.rolled_back = (
            count + reaped.rolled_back for count in (report.prepared, report.rolled_back)
        )
        report.trouble = reaped.trouble | report.trouble
        if waiting and ctx.ended:
            report.trouble.setdefault("journal", waiting)
        try:
            report.steps = yield from self._undo_script(grace_s)
        except NoDoubtError as error:
            report.trouble["steps"] = str(error)
        yield from self._now_and_then()
        report.unreadable = yield from self._apart(report)
        return report

    def _unreadable_script(self) -> Script[list[Unreadable]]:
        """Of the journal's own tables, and of the jobs."""
        found = yield from questions.unreadable(self._ready())
        return found + (yield from board.unreadable(self._ctx))

    def _apart(self, report: SweepReport) -> Script[list[Unreadable]]:
        """What cannot be read: what each part has met, and what none of them looks at."""
        found = {one.key: one for one in report.unreadable}
        if report.steps is not None:
            found |= {one.key: one for one in report.steps.unreadable}
        try:
            rest = yield from self._unreadable_script()
        except NoDoubtError as error:
            report.trouble.setdefault("journal", str(error))
            return list(found.values())
        rest = [one for one in rest if one.key not in found]
        tell(self._ctx, rest)
        return [*found.values(), *rest]

    def _settle_script(self, attempt: str) -> Script[Result]:
        result = yield from settle.settle(self._writable(), attempt)
        return (yield from self._undone(1, result))

    def _give_up_script(self, name: str, attempt: str) -> Script[Result]:
        return self._finish_script(name, Verdict.ABORT, attempt, "applied", "its external operation failed")


class Outside(Scripts):
    """The verbs, from threads."""

    _shell: ThreadShell
    _runner = BLOCKING

    def call(
        self,
        name: str,
        step: Step[..., Any, R],
        *args: Any,
        undo: Compensation[..., Any] | None = None,
        timeout: float | None = None,
        key: str | None = None,
        attempt: str | None = None,
        **named: Any,
    ) -> R:
        """Call a step in a staged transaction, by name, from any process; as `Transaction.call`.

        Called again under its `key` (after a crash, say), a step that was answered is not done again: its result is
        returned. One that is declared idempotent is done again, but is `StepInFlight` while the other call may be at
        work; any other was perhaps done, so that this is `TransactionDoomed`. Both are `StepInDoubt`.
        """
        use = calling.use(step, args, named, undo=undo, timeout_s=timeout, key=key)
        return cast(R, self._shell.run(calling.call_named(self._writable(), name, attempt, self._runner, use)))

    def confirm(self, name: str, who: str, *, attempt: str | None = None) -> None:
        """Say, for good, that `who` is ready for a staged transaction to be committed. Repeating it changes nothing.

        Raises `UnknownTransaction`, `NotAsked`, `ConfirmationConflict` (they have refused), `OutcomeConflict` (it was
        aborted), `JournalUnavailable` (say it again).
        """
        self._shell.run(self._confirm_script(name, who, attempt))

    def refuse(self, name: str, who: str, why: str = "", *, attempt: str | None = None) -> Result:
        """Say, for good, that it must not be committed, and roll it back.

        Raises as `confirm`; `ConfirmationConflict` if they have confirmed, `OutcomeConflict` if it was committed.
        """
        return self._shell.shielded(self._refuse_script(name, who, why, attempt))

    def wait_ready(self, name: str, *, timeout: float | None = None, attempt: str | None = None) -> list[Confirmation]:
        """Wait until all who were asked have confirmed. Raises `TransactionAborted` (somebody refused, or it was rolled
        back), `TimeoutError` (it says who is missing), `UnknownTransaction`.
        """
        return self._shell.run(readiness.wait(self._ready(), name, attempt=attempt, timeout_s=timeout))

    def confirmations(self, attempt: str) -> list[Confirmation]:
        """What everybody who was asked about an attempt has said."""
        return self._shell.run(readiness.confirmations(self._ready(), attempt))

    def run_distributed(
        self,
        name: str,
        work: Callable[[Transaction], Any],
        external: Step[..., Any, R],
        compensate: Compensation[..., Any],
        *args: Any,
        timeout: float | None = None,
        deadline: float | None = None,
        metadata: dict[str, str] | None = None,
        reuse: bool = False,
        **named: Any,
    ) -> R:
        """Stage `work`, do `external` outside, commit; if anything fails, roll back and `compensate`.

        The page's robust pattern; and where it differs, because the page's is not robust there:

        - It never compensates what may be committed. The page sets `dbCommitted` when the commit has been answered: if
          that answer is lost, it rolls back (which fails, for it is committed) and refunds an order that stands. Here
          only an ABORT in the register leads to a compensation; without an answer this raises `InDoubt`.
        - It compensates even if this process dies. On the page the compensation is a closure: killed between the charge
          and the commit, nobody refunds. Here the intent is durable before `external` starts, and recovery, anywhere,
          runs the compensation; so both are declared functions, and `args` are stored.
        - It does not compensate what never began. The page does where the database work has failed, when the external
          operation was never tried.
        - It hides no error. The page logs that a rollback or a compensation failed, and throws the first error as if it
          were the only one. Here that comes out unchanged, with what is still to be done as a note on it.
        - It does not give a compensation up. The page tries it once. Here it is tried again, with pauses, under one
          idempotency key, then parked: listed, and retried or skipped by a human.
        - It rolls back its own attempt, and nobody else's who has taken the name meanwhile.

        Raises what `external` raises, and as `begin_distributed`, `call` and `commit_distributed`.
        """
        use = calling.use(external, args, named, undo=compensate, timeout_s=None, key=None)
        staging = self.begin_distributed(name, timeout=timeout, deadline=deadline, metadata=metadata, reuse=reuse)
        with staging as tx:
            done(work(tx))
        attempt: str = tx.attempt
        committing = False
        try:
            result = self._shell.run(calling.call_named(self._writable(), name, attempt, self._runner, use))
            committing = True
            self.commit_distributed(name, attempt=attempt)
        except BaseException as error:
            if committing and isinstance(error, InDoubt):
                raise  # it may stand: only the register can tell, and recovery asks it
            try:
                _note(error, self._shell.shielded(self._give_up_script(name, attempt)))
            except NoDoubtError as failure:
                _note_failure(error, failure)
            raise
        return cast(R, result)

    def steps(self, name: str) -> list[Call]:
        """The steps that were called in a transaction, by name or attempt."""
        return self._shell.run(mending.steps(self._ready(), name))

    def parked_steps(self) -> list[Call]:
        """Every step whose compensation waits for a human (I20). One whose row cannot be read: `unreadable`."""
        return self._shell.run(mending.parked(self._ready()))

    def retry_step(self, name: str, number: int, *, by: str) -> Mended:
        """Have a compensation tried again from the start. Raises `UsageError` where that has no meaning."""
        return self._shell.run(mending.retry(self._writable(), name, number, by=by))

    def skip_step(self, name: str, number: int, *, by: str, because: str) -> Mended:
        """Take a compensation as done: a human has seen to it."""
        return self._shell.run(mending.skip(self._writable(), name, number, by=by, because=because))

    def edit_step(self, name: str, number: int, arguments: str, *, by: str, because: str) -> Mended:
        """Mend a step's arguments (a JSON object) for its compensation. It stays parked until it is retried."""
        script = mending.edit(self._writable(), REGISTRY, name, number, arguments, by=by, because=because)
        return self._shell.run(script)

    def undo_steps(self, *, grace: float | None = None) -> Undoing:
        """One turn of what also runs behind: undo the steps of what was aborted, or whose process has died.

        `grace`: whoever is at work on one is left alone for so many seconds, and not for as long as they have asked.
        """
        return self._shell.run(self._undo_script(grace))

    def reap(self) -> ReapReport:
        """Abort what is staged past its deadline, or refused, now; roll it back, and undo its steps."""
        return self._shell.run(self._reap_script())

    def resolve(self, name: str, ending: Ending, *, by: str, because: str) -> Result:
        """A named operator ends a transaction, or a quarantined branch of it. Never against what the register says.

        Raises as `commit_distributed` and `rollback_distributed`.
        """
        return self._shell.shielded(self._resolve_script(name, ending, by, because))


class AsyncOutside(Scripts):
    """The verbs, on asyncio."""

    _shell: AsyncShell
    _runner = LOOPING

    async def call(
        self,
        name: str,
        step: Step[..., Any, R],
        *args: Any,
        undo: Compensation[..., Any] | None = None,
        timeout: float | None = None,
        key: str | None = None,
        attempt: str | None = None,
        **named: Any,
    ) -> R:
        """As `Coordinator.call`."""
        use = calling.use(step, args, named, undo=undo, timeout_s=timeout, key=key)
        return cast(R, await self._shell.run(calling.call_named(self._writable(), name, attempt, self._runner, use)))

    async def confirm(self, name: str, who: str, *, attempt: str | None = None) -> None:
        """As `Coordinator.confirm`."""
        await self._shell.run(self._confirm_script(name, who, attempt))

    async def refuse(self, name: str, who: str, why: str = "", *, attempt: str | None = None) -> Result:
        """As `Coordinator.refuse`."""
        return await self._shell.shielded(self._refuse_script(name, who, why, attempt))

    async def wait_ready(
        self, name: str, *, timeout: float | None = None, attempt: str | None = None
    ) -> list[Confirmation]:
        """As `Coordinator.wait_ready`."""
        return await self._shell.run(readiness.wait(self._ready(), name, attempt=attempt, timeout_s=timeout))

    async def confirmations(self, attempt: str) -> list[Confirmation]:
        """As `Coordinator.confirmations`."""
        return await self._shell.run(readiness.confirmations(self._ready(), attempt))

    async def run_distributed(
        self,
        name: str,
        work: Callable[[AsyncTransaction], Awaitable[Any]],
        external: Step[..., Any, R],
        compensate: Compensation[..., Any],
        *args: Any,
        timeout: float | None = None,
        deadline: float | None = None,
        metadata: dict[str, str] | None = None,
        reuse: bool = False,
        **named: Any,
    ) -> R:
        """As `Coordinator.run_distributed`."""
        use = calling.use(external, args, named, undo=compensate, timeout_s=None, key=None)
        staging = self.begin_distributed(name, timeout=timeout, deadline=deadline, metadata=metadata, reuse=reuse)
        async with staging as tx:
            await work(tx)
        attempt: str = tx.attempt
        committing = False
        try:
            result = await self._shell.run(calling.call_named(self._writable(), name, attempt, self._runner, use))
            committing = True
            await self.commit_distributed(name, attempt=attempt)
        except BaseException as error:
            if committing and isinstance(error, InDoubt):
                raise  # it may stand: only the register can tell, and recovery asks it
            try:
                _note(error, await self._shell.shielded(self._give_up_script(name, attempt)))
            except NoDoubtError as failure:
                _note_failure(error, failure)
            raise
        return cast(R, result)

    async def steps(self, name: str) -> list[Call]:
        """As `Coordinator.steps`."""
        return await self._shell.run(mending.steps(self._ready(), name))

    async def parked_steps(self) -> list[Call]:
        """As `Coordinator.parked_steps`."""
        return await self._shell.run(mending.parked(self._ready()))

    async def retry_step(self, name: str, number: int, *, by: str) -> Mended:
        """As `Coordinator.retry_step`."""
        return await self._shell.run(mending.retry(self._writable(), name, number, by=by))

    async def skip_step(self, name: str, number: int, *, by: str, because: str) -> Mended:
        """As `Coordinator.skip_step`."""
        return await self._shell.run(mending.skip(self._writable(), name, number, by=by, because=because))

    async def edit_step(self, name: str, number: int, arguments: str, *, by: str, because: str) -> Mended:
        """As `Coordinator.edit_step`."""
        script = mending.edit(self._writable(), REGISTRY, name, number, arguments, by=by, because=because)
        return await self._shell.run(script)

    async def undo_steps(self, *, grace: float | None = None) -> Undoing:
        """As `Coordinator.undo_steps`."""
        return await self._shell.run(self._undo_script(grace))

    async def reap(self) -> ReapReport:
        """As `Coordinator.reap`."""
        return await self._shell.run(self._reap_script())

    async def resolve(self, name: str, ending: Ending, *, by: str, because: str) -> Result:
        """As `Coordinator.resolve`."""
        return await self._shell.shielded(self._resolve_script(name, ending, by, because))


def _note(error: BaseException, result: Result) -> None:
    if result.undoing:
        left = f"{result.undoing} steps of {result.name!r} are not undone yet"
        error.add_note(f"nodoubt: {left}: see nodoubt steps show {result.attempt}")


def _note_failure(error: BaseException, failure: NoDoubtError) -> None:
    error.add_note(f"nodoubt: rolling back failed too, recovery will finish it: {failure}")
