"""The contenders: each runs one transaction, the same work on the same rows, in its own way.

Those "by hand" are what a careful user writes without a coordinator: the servers' own two-phase commit, in parallel on
all branches, connections of their own from a plain queue, no reset, no log. Die between the two phases, and nobody
knows what was decided. `local` commits on each database by itself: what atomicity costs is measured from there.
"""

from __future__ import annotations

import asyncio
import importlib
import secrets
import threading
from abc import ABC, abstractmethod
from collections import deque
from typing import Any

from ..task import ROWS_PER_CLIENT, Task


class _Contender:
    def __init__(self, task: Task) -> None:
        self.task = task
        self._run, self._last = secrets.token_hex(4), 0

    def name(self) -> str:
        """A name for a transaction that no other has, in whichever process."""
        self._last += 1
        return f"bench-{self._run}-{self._last}"

    def rows(self, client: int) -> range:
        """The rows that this client updates on each branch, one a statement."""
        first = client * ROWS_PER_CLIENT
        return range(first, first + self.task.statements)


class AsyncContender(_Contender, ABC):
    """On asyncio."""

    @abstractmethod
    async def open(self) -> None: ...

    @abstractmethod
    async def transact(self, client: int) -> None:
        """One transaction, from its begin to its last commit."""

    async def settle(self) -> None:
        """Do what the transactions have left to be done behind them."""

    async def close(self) -> None:
        """Leave the servers in good order. What ends with the process need not be ended here."""


class Connections:
    """One database's, in a plain list, for tasks."""

    def __init__(self, many: int) -> None:
        self.free: list[Any] = []
        # First come, first served. A queue would give a connection back to whoever has just let go of it, and let the
        # others wait until the round is over.
        self.places = asyncio.Semaphore(many)

    async def take(self) -> Any:
        await self.places.acquire()
        return self.free.pop()

    def put_back(self, connection: Any) -> None:
        self.free.append(connection)
        self.places.release()


class ThreadConnections:
    """One database's, for threads. First come, first served, too: who waits is handed the very connection."""

    def __init__(self) -> None:
        self.free: list[Any] = []
        self._lock = threading.Lock()
        self._waiting: deque[tuple[threading.Lock, list[Any]]] = deque()

    def get(self) -> Any:
        with self._lock:
            if self.free:
                return self.free.pop()
            turn, handed = threading.Lock(), list[Any]()
            turn.acquire()
            self._waiting.append((turn, handed))
        turn.acquire()
        return handed.pop()

    def put(self, connection: Any) -> None:
        with self._lock:
            if self._waiting:
                turn, handed = self._waiting.popleft()
                handed.append(connection)
                turn.release()
            else:
                self.free.append(connection)


class Contender(_Contender, ABC):
    """In threads. The same verbs."""

    @abstractmethod
    def open(self) -> None: ...

    @abstractmethod
    def transact(self, client: int) -> None: ...

    def settle(self) -> None: ...

    def close(self) -> None: ...


#: Where each is: imported only in its own process, so that none carries another's drivers.
PLACES = {
    "nodoubt": "ours:AtOnce",
    "nodoubt, in turn": "ours:InTurn",
    "nodoubt, wait=decided": "ours:Decided",
    "nodoubt, committed elsewhere": "ours:CommittedElsewhere",
    "nodoubt, threads": "ours:Threads",
    "nodoubt, nothing decided": "ours:NothingDecided",
    "nodoubt, one sweep": "ours:Sweep",
    "nodoubt's messages, no engine": "messages:Messages",
    "nodoubt's messages, no engine, threads": "messages:MessagesInThreads",
    "by hand": "by_hand:ByHand",
    "by hand, merged": "by_hand:Merged",
    "by hand, merged, decision in a branch": "by_hand:DecisionInBranch",
    "by hand, closed after prepare": "by_hand:Closing",
    "by hand, psycopg pipelined": "by_hand:Pipelined",
    "by hand, threads": "threads:InTurn",
    "by hand, threads, in parallel": "threads:InParallel",
    "nodoubt's rows, no engine": "threads:RowsAlone",
    "SQLAlchemy twophase": "alchemy:TwoPhase",
    "SQLAlchemy twophase, objects": "alchemy:Objects",
    "local": "by_hand:Local",
    "local, threads": "threads:Local",
}
BUN = "Bun"


def make(task: Task) -> AsyncContender | Contender:
    """The task's contender. KeyError if there is none of that name."""
    module, _, name = PLACES[task.contender].partition(":")
    contender = getattr(importlib.import_module(f".{module}", __package__), name)(task)
    assert isinstance(contender, (AsyncContender, Contender))
    return contender
