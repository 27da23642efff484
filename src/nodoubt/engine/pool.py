"""Bounded pools of sessions, for threads and for asyncio, first come first served.

Guarantees: never more than `size` sessions; a session that is not `usable` (cut off in the middle of a call, left
holding a prepared branch, closed) never comes back into the pool (I18); one that has been idle is asked whether it
still lives before it is handed out; a pool takes from the one beside it only what is idle and waited for by nobody, and
never waits there; after a fork the child starts with an empty pool and never touches, or closes, a session of its
parent's.

Must not: send anything to reset a session (it would halve throughput, and on MariaDB can make a commit a lie).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Self

from ..errors import ClosedTransaction, NoDoubtError, PoolExhausted, ResourceUnavailable
from ..ports import Session, SessionLost, StatementFailed
from ..script import Do, within

CHECK_AFTER_IDLE_S = 5.0
CHECK_WITHIN_S = 2.0
PARENTS: list[object] = []  # sessions inherited by a fork: kept, so that no finalizer closes the parent's socket
POOLS: weakref.WeakSet[Any] = weakref.WeakSet()  # all that must forget, in the child of a fork


def _forget_parents() -> None:
    for pool in list(POOLS):
        pool.forget()


os.register_at_fork(after_in_child=_forget_parents)


class _Pool:
    """What is the same for both: who has which session, and what may be lent. Nothing here waits, or raises.

    The lock is for threads; one event loop never finds it taken.
    """

    def __init__(self, name: str, *, size: int, acquire_s: float, beside: Self | None) -> None:
        """`beside`: where all sessions of this pool are busy, one that is idle there will do."""
        self.name, self.size, self.acquire_s = name, size, acquire_s
        self._beside = beside
        self._start()
        POOLS.add(self)

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[tuple[Any, float]] = []
        self._waiting: deque[Any] = deque()
        self._ours: set[Any] = set()
        self._borrowed: set[Any] = set()
        self._count = 0
        self._closed = False

    def forget(self) -> None:
        """In the child of a fork: leave the parent's sessions alone."""
        PARENTS.extend(session for session, _ in self._idle)
        self._start()

    def _borrow(self) -> Any:
        if self._beside is None or self._count < self.size:
            return None
        session = self._beside.spare()
        if session is not None:
            with self._lock:
                self._borrowed.add(session)
        return session

    def spare(self) -> Any:
        """A session that is idle, was at work just now, and that nobody waits for; it is released here. Or None."""
        with self._lock:
            if self._closed or self._waiting or not self._idle or self._count >= self.size:
                return None
            session, idle_since = self._idle[-1]
            if time.monotonic() - idle_since > CHECK_AFTER_IDLE_S:
                return None
            self._idle.pop()
            self._count += 1
            self._ours.add(session)
            return session

    def _take_free_place(self) -> bool:
        """Whether there was one that nobody waits for. Raises `ClosedTransaction`."""
        if self._closed:
            raise self._shut()
        free = self._count < self.size and not self._waiting
        self._count += free
        return free

    @property
    def crowded(self) -> bool:
        """Whether somebody waits for a session."""
        return bool(self._waiting)

    def _leave_place(self) -> None:
        raise NotImplementedError

    def release(self, session: Any) -> None:
        """Take a session back. Never raises, never waits."""
        lender, keep = None, False
        with self._lock:
            if session in self._borrowed:
                self._borrowed.discard(session)
                lender = self._beside
            elif session in self._ours:
                self._ours.discard(session)
                keep = session.usable and not self._closed
                if keep:
                    self._idle.append((session, time.monotonic()))
            else:
                PARENTS.append(session)
                return
        if lender is not None:
            lender.release(session)
            return
        if not keep:
            session.kill()
        self._leave_place()

    def _all_idle(self) -> list[Any]:
        """Those that nobody has, which are from now on in nobody's pool."""
        with self._lock:
            idle, self._idle = self._idle, []
        return [session for session, _ in idle]

    def drop_idle(self) -> None:
        """End the idle sessions: the server they belonged to has gone."""
        for session in self._all_idle():
            session.kill()
        if self._beside is not None:
            self._beside.drop_idle()

    def kill(self) -> None:
        """Nothing to cut off: waiting is bounded by `acquire_s`, connecting by the driver."""

    def timed_out(self, seconds: float) -> Exception:
        return PoolExhausted(f"no connection to {self.name} within {seconds:.3g} s")

    def _exhausted(self) -> PoolExhausted:
        return PoolExhausted(
            f"all {self.size} connections to {self.name} were busy for {self.acquire_s:g} s: raise pool_size or "
            "shorten transactions; nothing was done"
        )

    def _shut(self) -> ClosedTransaction:
        return ClosedTransaction(f"the coordinator is closed: no sessions of {self.name}")

    def _unreachable(self, error: Exception) -> ResourceUnavailable:
        return ResourceUnavailable(f"{self.name} cannot be reached: {error}; nothing was done")


class ThreadPool(_Pool):
    """Sessions for threads."""

    def __init__(
        self,
        name: str,
        connect: Callable[[], Session],
        *,
        size: int,
        acquire_s: float,
        call: Callable[[Do], Any] | None = None,
        beside: ThreadPool | None = None,
    ) -> None:
        """`call`: makes a call that is cut off after its `within_s`; see `shell.ThreadShell.call`."""
        super().__init__(name, size=size, acquire_s=acquire_s, beside=beside)
        self._connect = connect
        self._call = call or (lambda do: getattr(do.target, do.verb)(*do.args))

    def acquire(self) -> Session:
        """A live session. Raises `PoolExhausted` or `ResourceUnavailable`."""
        borrowed: Session | None = self._borrow()
        if borrowed is not None:
            return borrowed
        self._take_place()
        try:
            while True:
                with self._lock:
                    session, idle_since = self._idle.pop() if self._idle else (None, 0.0)
                if session is None:
                    session = self._open()
                elif time.monotonic() - idle_since > CHECK_AFTER_IDLE_S and not self._alive(session):
                    session.kill()
                    continue
                with self._lock:
                    self._ours.add(session)
                return session
        except BaseException:
            self._leave_place()
            raise

    def _take_place(self) -> None:
        until = time.monotonic() + self.acquire_s
        with self._lock:
            if self._take_free_place():
                return
            turn = threading.Lock()  # taken until it is our turn; an Event would wake us twice
            turn.acquire()
            self._waiting.append(turn)
        try:
            if turn.acquire(timeout=max(until - time.monotonic(), 0)):
                return  # the place was handed over, counted
        except BaseException:
            # Ctrl-C: a turn left in the queue would be handed a place that nobody ever gives back.
            if self._handed_over(turn):
                self._leave_place()
            raise
        if not self._handed_over(turn):
            raise self._exhausted()

    def _handed_over(self, turn: threading.Lock) -> bool:
        """Whether a place was, to one that waits no longer; if not, none will be."""
        with self._lock:
            if turn not in self._waiting:
                return True
            self._waiting.remove(turn)
            return False

    def _leave_place(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._count -= 1

    def _open(self) -> Session:
        try:
            return self._connect()
        except NoDoubtError:
            raise
        except Exception as error:
            raise self._unreachable(error) from error

    def _alive(self, session: Session) -> bool:
        try:
            self._call(Do(session, "run", ("SELECT 1",), CHECK_WITHIN_S))
        except (StatementFailed, SessionLost):
            return False
        return session.usable

    def close(self) -> None:
        """End the idle sessions in good order; the others end as they come back."""
        self._closed = True
        for session in self._all_idle():
            session.close()


class AsyncPool(_Pool):
    """Sessions for one event loop. The same rules; `acquire` and `close` are coroutines."""

    def __init__(
        self,
        name: str,
        connect: Callable[[], Awaitable[Any]],
        *,
        size: int,
        acquire_s: float,
        beside: AsyncPool | None = None,
    ) -> None:
        super().__init__(name, size=size, acquire_s=acquire_s, beside=beside)
        self._connect = connect

    async def acquire(self) -> Any:
        borrowed = self._borrow()
        if borrowed is not None:
            return borrowed
        if not self._take_free_place():
            await self._wait_for_place()
        try:
            while True:
                session, idle_since = self._idle.pop() if self._idle else (None, 0.0)
                if session is None:
                    session = await self._open()
                elif time.monotonic() - idle_since > CHECK_AFTER_IDLE_S and not await self._alive(session):
                    continue
                self._ours.add(session)
                return session
        except BaseException:
            self._leave_place()
            raise

    async def _wait_for_place(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await within(turn, self.acquire_s)
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._leave_place()  # the place came just as we gave up
            else:
                with contextlib.suppress(ValueError):  # released in the same tick, it has been taken out already
                    self._waiting.remove(turn)
            if not isinstance(error, TimeoutError):
                raise
            raise self._exhausted() from None

    def _leave_place(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._count -= 1

    async def _open(self) -> Any:
        try:
            return await self._connect()
        except NoDoubtError:
            raise
        except Exception as error:
            raise self._unreachable(error) from error

    async def _alive(self, session: Any) -> bool:
        try:
            async with asyncio.timeout(CHECK_WITHIN_S):
                await session.run("SELECT 1")
        except BaseException as error:
            session.kill()
            if not isinstance(error, (StatementFailed, SessionLost, TimeoutError)):
                raise
            return False
        return bool(session.usable)

    async def close(self) -> None:
        self._closed = True
        for session in self._all_idle():
            await session.close()
