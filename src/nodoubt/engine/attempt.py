"""One attempt while it lives in this process: its branches, their sessions, and the work on them.

Guarantees: any error on a branch, cancellation included, dooms it (I16), for good but in one case: a statement's error
that lies wholly behind a savepoint which the server says it has rolled back to. A session is handed back exactly once,
and only clean; an attempt inherited by a fork, or used after its block, is refused.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ..errors import (
    BranchDoomed,
    ClosedTransaction,
    NoDoubtError,
    ResourceRefused,
    ResourceUnavailable,
    TransactionAborted,
    UsageError,
    text_of,
)
from ..ports import (
    BelowFloor,
    Bound,
    Conflict,
    Prepared,
    Refused,
    Reply,
    SavepointStep,
    Session,
    SessionLost,
    Unclear,
    Work,
)
from ..protocol.records import BranchRef, Mode, Staging
from ..script import Do, R, Script, every
from ..xid import BRANCHES_MAX, Xid
from . import start
from .context import Context, Participant, bounded

BEGIN_TRIES_MAX = 3
DEAD_WITHIN_S = 1.0  # a session that had died in the pool says so at once; one that is lost later was at work
_SAVEPOINT = re.compile(r"(?!nodoubt)[a-z_][a-z0-9_]{0,62}")


class Branch(msgspec.Struct):
    """One branch: at work on a session of its own, or, in a process that finishes it by name, only prepared."""

    number: int
    participant: Participant
    work: Work
    session: Session | None = None
    prepared: Prepared | None = None
    busy: bool = False
    savepoints: list[str] = msgspec.field(default_factory=list)  # those that stand, the newest last
    curable: bool = False  # it was a statement's error that doomed the branch, and a savepoint stands before it

    @property
    def ref(self) -> BranchRef:
        return BranchRef(self.number, self.participant.name, self.participant.resource_id)

    def let_go(self, *, kill: bool = False) -> None:
        """Hand the session back; `kill` when nobody knows what state it is in."""
        session, self.session = self.session, None
        if session is None:
            return
        if kill:
            session.kill()
        self.participant.pool.release(session)


class Attempt(msgspec.Struct):
    """One life of a name."""

    id: str
    name: str
    mode: Mode
    until: float | None = None  # on the clock's `elapsed`: the work must be done by then
    timeout_s: float | None = None
    early: Staging | None = None  # the directory row that goes before the work, in X's own session
    listed: bool = False  # that row has been sent: it may stand
    replace: Staging | None = None  # the row of an ended attempt, which may be replaced
    deadline: float = 0.0
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
    branches: dict[str, Branch] = msgspec.field(default_factory=dict)
    closed: bool = False
    pid: int = msgspec.field(default_factory=os.getpid)
    cause: BaseException | None = None  # what made it fail, for the caller's traceback
    confirmations: tuple[str, ...] = ()  # who must confirm before it may be committed
    calls: int = 0  # steps that were called, or may have been: then only the register can end it
    calling: int = 0  # those that run at this moment
    aborted: bool = False  # the register has said so: then its steps may be undone
    doomed: BaseException | None = None  # a step whose answer is not known, after which only a rollback is possible
    # A block may give its branches to threads: who has which branch, which comes next, whether it has ended.
    lock: threading.Lock = msgspec.field(default_factory=threading.Lock)

    @property
    def inherited(self) -> bool:
        """Whether this is a copy that a fork has made: the parent's sessions are not ours to use, or to close."""
        return self.pid != os.getpid()

    def forsake(self) -> None:
        """In the child of a fork: drop the handles without a word to the servers."""
        self.closed = True
        for branch in self.branches.values():
            branch.let_go()

    def close(self) -> None:
        """The block has ended: nobody begins anything any more. What is busy now is found to be."""
        with self.lock:
            self.closed = True

    def require_ours(self) -> None:
        """Before the lock is asked for: in the child of a fork, a thread of the parent's may hold it for ever."""
        if self.pid != os.getpid():
            raise ClosedTransaction("this transaction belongs to the parent process: begin another one here")

    def require_open(self) -> None:
        self.require_ours()
        if self.closed:
            raise ClosedTransaction(f"the block of {self.name or self.id!r} has ended; begin another transaction")


def left_s(ctx: Context, attempt: Attempt) -> float:
    """The seconds left for work. Raises `TransactionAborted` when they are used up."""
    if attempt.until is None:
        return ctx.settings.deadline_s
    left = attempt.until - ctx.clock.elapsed()
    if left <= 0:
        raise _too_late(attempt)
    return left


def _is_late(ctx: Context, attempt: Attempt) -> bool:
    return attempt.until is not None and ctx.clock.elapsed() >= attempt.until


def _too_late(attempt: Attempt, where: str = "") -> TransactionAborted:
    return TransactionAborted(
        f"the timeout of {attempt.timeout_s:g} s had passed before the work was done{where}; nothing happened",
        name=attempt.name,
        attempt=attempt.id,
    )


def open_branch(ctx: Context, attempt: Attempt, name: str) -> Script[Branch]:
    """Begin the branch on that resource, once."""
    attempt.require_ours()
    with attempt.lock:
        attempt.require_open()
        if name in attempt.branches:
            return attempt.branches[name]
        branch = _claim(ctx, attempt, name)
        branch.busy = True
    try:
        yield from _open(ctx, attempt, branch)
    finally:
        branch.busy = False
    return branch


def _take(ctx: Context, attempt: Attempt, name: str, *, lazy: bool = False) -> Script[Branch]:
    """The branch, begun, and busy with what the caller does: who lets go of it says that it is not busy any more.

    `lazy`: it may begin with its first statement, which follows at once.
    """
    attempt.require_ours()
    with attempt.lock:
        attempt.require_open()
        branch = attempt.branches.get(name)
        new = branch is None
        if branch is None:
            branch = _claim(ctx, attempt, name)
        elif branch.busy:
            raise UsageError(f"a branch takes one statement at a time: await the one on {name} first")
        branch.busy = True
    try:
        if new:
            branch.work.lazy = lazy
            yield from _open(ctx, attempt, branch)
        if branch.session is None and branch.work.doomed is None:
            raise ClosedTransaction(f"the branch on {name} has ended")
    except BaseException:
        branch.busy = False
        raise
    return branch


def _open(ctx: Context, attempt: Attempt, branch: Branch) -> Script[None]:
    """Begin it; a session that proves dead before anything began is exchanged."""
    try:
        yield from start.admit(ctx, branch.participant)
        yield from _begin(ctx, attempt, branch)
    except BaseException as error:
        # Swallowed by the user, it would leave a transaction that commits without this branch (I16).
        branch.work.doomed = error
        raise
    ctx.notice("P1", attempt.id, "begun", branch.number, resource=branch.participant.name)


def _claim(ctx: Context, attempt: Attempt, name: str) -> Branch:
    """Under the lock, and before anything is awaited: neither two threads nor two tasks begin the same branch."""
    participant = ctx.participant(name)
    if len(attempt.branches) >= BRANCHES_MAX:
        raise UsageError(f"a transaction has at most {BRANCHES_MAX} branches")
    work = Work(
        Xid(ctx.cluster, attempt.id, len(attempt.branches)),
        ctx.epoch.number,
        alone=ctx.single,
        staged=attempt.mode is Mode.STAGED,
    )
    branch = attempt.branches[name] = Branch(work.xid.branch, participant, work)
    return branch


def _begin(ctx: Context, attempt: Attempt, branch: Branch) -> Script[None]:
    participant = branch.participant
    before: tuple[str, ...] = ()
    if attempt.early is not None:
        before = ctx.journal.staging_rows(attempt.early, replace=attempt.replace)
        branch.work.wrote = True  # the row says that it will be prepared
    for tries_left in reversed(range(BEGIN_TRIES_MAX)):
        branch.session = yield Do(participant.pool, "acquire")
        try:
            # The block may have ended while we waited, and nobody will look at this branch again.
            attempt.require_open()
            within_s = min(left_s(ctx, attempt), ctx.settings.prepare_s)
            script = participant.resource.begin(branch.session, branch.work, before=before)
            attempt.listed = bool(before)
            yield from bounded(script, within_s, ctx.clock)
            attempt.require_open()
            return
        except (SessionLost, Unclear) as error:
            # A server that restarted leaves dead sessions in the pool. Nothing has begun; with a row that may have
            # been written the begin must fail instead, and fence itself.
            branch.let_go(kill=True)
            attempt.require_open()
            participant.pool.drop_idle()
            if tries_left == 0 or before:
                raise ResourceUnavailable(f"{participant.name} did not begin, nothing was decided: {error}") from error
            if _is_late(ctx, attempt):
                raise _too_late(attempt, f" ({error})") from error
        except Refused as error:
            branch.let_go(kill=True)
            if isinstance(error, (Conflict, BelowFloor)):
                raise
            raise _not_begun(branch, error) from error
        except BaseException:
            branch.let_go(kill=True)
            raise


def execute(ctx: Context, attempt: Attempt, name: str, statement: str, params: Any) -> Script[Reply]:
    """The user's statement on that branch. The driver's own errors come out unchanged; any error dooms the branch."""
    branch = yield from _take(ctx, attempt, name, lazy=True)
    try:
        _refuse_doomed(branch)
        ctx.notice("P2", attempt.id, "work", branch.number, resource=name)
        branch.work.statements += 1
        return (yield from _at_work(ctx, attempt, branch, _execute(ctx, attempt, branch, statement, params)))
    finally:
        branch.busy = False


def savepoint(ctx: Context, attempt: Attempt, name: str, step: SavepointStep, savepoint: str) -> Script[None]:
    """Set a savepoint of that branch, release it, or roll back to it (which releases it, too).

    To roll back is the one cure of a doomed branch, and only of a statement's error that came after the savepoint.
    Whatever goes wrong here dooms the branch for good.
    """
    branch = yield from _take(ctx, attempt, name)
    try:
        yield from _savepoint(ctx, attempt, branch, step, savepoint)
    finally:
        branch.busy = False


def _savepoint(ctx: Context, attempt: Attempt, branch: Branch, step: SavepointStep, savepoint: str) -> Script[None]:
    name, work, savepoint = branch.participant.name, branch.work, savepoint.lower()  # as two of the three servers do
    if step is not SavepointStep.BACK or not branch.curable:
        _refuse_doomed(branch)
    known = savepoint in branch.savepoints
    try:
        if known is (step is SavepointStep.SET):
            raise UsageError(f"there is {'a' if known else 'no'} savepoint {savepoint!r} on {name} at this point")
        if not _SAVEPOINT.fullmatch(savepoint):
            raise UsageError(f"{savepoint!r} is no name for a savepoint; SQLAlchemy's begin_nested() chooses good ones")
        ctx.notice("P2", attempt.id, "savepoint", branch.number, resource=name)
        assert branch.session is not None
        script = branch.participant.resource.savepoint(branch.session, work, step, savepoint)
        yield from _at_work(ctx, attempt, branch, script)
    except BaseException as error:
        work.doomed, branch.curable = work.doomed or error, False
        raise
    if step is SavepointStep.SET:
        branch.savepoints.append(savepoint)
        return
    # No savepoint is set while the branch is doomed, so all that stand are older than what has doomed it.
    del branch.savepoints[branch.savepoints.index(savepoint) :]
    if step is SavepointStep.BACK and branch.curable:  # not, if somebody has asked for a rollback meanwhile
        work.doomed, branch.curable = None, False


def doom(ctx: Context, attempt: Attempt, name: str, why: BaseException) -> None:
    """The user wants that branch rolled back: from now on nothing else is possible, and no savepoint cures it."""
    attempt.require_ours()
    with attempt.lock:
        attempt.require_open()
        branch = attempt.branches.get(name) or _claim(ctx, attempt, name)
    branch.work.doomed, branch.curable = branch.work.doomed or why, False


def require_sound(attempt: Attempt, name: str) -> None:
    """Raise `ClosedTransaction` after the block, `BranchDoomed` if that branch is."""
    attempt.require_open()
    if name in attempt.branches:
        _refuse_doomed(attempt.branches[name])


def _refuse_doomed(branch: Branch) -> None:
    doomed, name = branch.work.doomed, branch.participant.name
    if isinstance(doomed, BranchDoomed):
        raise BranchDoomed(str(doomed)) from doomed
    if doomed is not None:
        raise BranchDoomed(
            f"an earlier statement on {name} failed, so this transaction can only be rolled back: {text_of(doomed)}"
        ) from doomed


def _at_work(ctx: Context, attempt: Attempt, branch: Branch, call: Script[R]) -> Script[R]:
    """One call on the branch's session. However it fails, it dooms the branch."""
    work, name = branch.work, branch.participant.name
    limit_s = left_s(ctx, attempt)
    try:
        if attempt.until is None:
            return (yield from call)
        return (yield from bounded(call, limit_s, ctx.clock))
    except SessionLost as error:
        work.doomed = error
        if _is_late(ctx, attempt):
            raise _too_late(attempt, f" ({name}: {text_of(error)})") from error
        raise TransactionAborted(
            f"{name} was lost in the middle of a statement, so the transaction is rolled back: {text_of(error)}",
            name=attempt.name,
            attempt=attempt.id,
        ) from error
    except BaseException as error:
        work.doomed = work.doomed or error
        branch.curable = bool(branch.savepoints) and _is_answer(branch, error)
        raise


def _is_answer(branch: Branch, error: BaseException) -> bool:
    """Whether this is a statement's own error, from a session that is still there: no refusal of ours, no interrupt."""
    session = branch.session
    return (
        isinstance(error, Exception)
        and not isinstance(error, (NoDoubtError, SessionLost))
        and session is not None
        and session.usable
        and not session.lost(error)
    )


def _execute(ctx: Context, attempt: Attempt, branch: Branch, statement: str, params: Any) -> Script[Reply]:
    """The statement, with the branch's begin before it where that is still to be done."""
    resource, work = branch.participant.resource, branch.work
    assert branch.session is not None
    _require_values(params)
    sent = ctx.clock.elapsed()
    try:
        return (yield from resource.execute(branch.session, work, statement, params))
    except SessionLost:
        if not work.opening or ctx.clock.elapsed() - sent > DEAD_WITHIN_S or _is_late(ctx, attempt):
            raise
    except Refused as error:
        if not work.opening:
            raise
        raise _not_begun(branch, error) from error
    # As in `_begin`: the session had died in the pool, or dies now, with all that was sent.
    branch.let_go(kill=True)
    attempt.require_open()
    left_s(ctx, attempt)
    branch.participant.pool.drop_idle()
    work.lazy, work.opening, work.doomed = False, (), None
    yield from _begin(ctx, attempt, branch)
    return (yield from resource.execute(branch.session, work, statement, params))


def _require_values(params: Any) -> None:
    """Before anything is sent: each driver reads a lone text, number or set in a way of its own."""
    if params is None or isinstance(params, (tuple, list, Mapping, Bound)):
        return
    if isinstance(params, (str, bytes, bytearray, memoryview)) or not isinstance(params, Sequence):
        raise UsageError(
            f"the values of a statement are a tuple, a list or a mapping, not a {type(params).__name__}: for one value "
            "write (value,)"
        )


def _not_begun(branch: Branch, error: Refused) -> NoDoubtError:
    kind = ResourceUnavailable if error.retry else ResourceRefused
    return kind(f"{branch.participant.name} did not begin, and nothing was done: {error}")


def undo(branch: Branch) -> Script[None]:
    """Roll back work that was never asked to prepare; the session is clean, or gone."""
    if branch.session is None:
        return
    clean = False
    try:
        if branch.session.usable and not branch.busy:
            yield from branch.participant.resource.rollback(branch.session, branch.work)
            clean = True
    finally:
        branch.let_go(kill=not clean)


def undo_all(ctx: Context, attempt: Attempt) -> Script[None]:
    """Give the work up. Errors are noted, not raised: a session that cannot be rolled back is ended instead."""
    scripts = [bounded(undo(branch), ctx.settings.prepare_s, ctx.clock) for branch in attempt.branches.values()]
    yield from every(scripts)
