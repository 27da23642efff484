"""Benches: they run scripts, one after the other or at the same time, with blocking calls or on asyncio.

A test that takes a `Bench` is one body for both styles, and can have one script wait inside a server while it does
something else.

Guarantees: sessions that a bench has opened are closed when it ends; a script that gives no answer fails its test.

Must not: know a driver: whoever makes a bench says how to connect.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, TypeVar

from ..ports import Session
from ..script import Effect, Script, Watch, adrive, drive
from .telling import Act, Told

R = TypeVar("R")

ANSWER_WITHIN_S = 30.0
AT_ONCE_MAX = 16


class Bench(ABC):
    """Runs the scripts of one journal or resource, its subject, over any number of its sessions."""

    def __init__(self, subject: Any) -> None:
        self.subject = subject
        self._main: Session | None = None
        self.sessions: list[Any] = []  # all that were opened
        self.acts: list[Act] = []  # what was done, for whoever reads why a claim has failed
        self.executor = ThreadPoolExecutor(AT_ONCE_MAX, thread_name_prefix="bench")

    @property
    def told(self) -> Any:
        """The subject, as it is; what is asked of it is noted."""
        return Told(self.subject, self.acts, self.sessions)

    @property
    def journal(self) -> Any:
        """The subject, where it is a journal."""
        return self.told

    @journal.setter
    def journal(self, journal: Any) -> None:
        self.subject = journal

    @abstractmethod
    def session(self) -> Session:
        """A new session; the bench closes it."""

    @abstractmethod
    def start(self, script: Script[R]) -> Future[R]:
        """Run a script at the same time as others."""

    def run(self, script: Script[R]) -> R:
        """Run a script to its end."""
        return self.start(script).result(ANSWER_WITHIN_S)

    @property
    def main(self) -> Session:
        """The session for whatever needs no other."""
        if self._main is None or not self._main.usable:
            self._main = self.session()
        return self._main

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(self, *_: object) -> None: ...

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        """`bench.insert(…)`: the subject's verb, on the main session."""
        if verb.startswith("_"):
            raise AttributeError(verb)
        method = getattr(self.told, verb)
        return lambda *args, **named: self.run(method(self.main, *args, **named))


class ThreadBench(Bench):
    """Blocking calls, in threads."""

    def __init__(self, subject: Any, connect: Callable[[], Session]) -> None:
        super().__init__(subject)
        self._connect = connect

    def session(self) -> Session:
        session = self._connect()
        self.sessions.append(session)
        return session

    def start(self, script: Script[R]) -> Future[R]:
        return self.executor.submit(drive, script, executor=self.executor, watch=Watch())

    def __exit__(self, *_: object) -> None:
        for session in self.sessions:
            session.close()
        self.executor.shutdown()


class LoopBench(Bench):
    """On asyncio, in a loop that runs in a thread of its own."""

    def __init__(self, subject: Any, connect: Callable[[], Awaitable[Any]]) -> None:
        super().__init__(subject)
        self._connect = connect
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="bench-loop", daemon=True)
        self._thread.start()

    def session(self) -> Session:
        session: Any = self._submit(self._connect()).result(ANSWER_WITHIN_S)
        self.sessions.append(session)
        return session  # type: ignore[no-any-return]

    def start(self, script: Script[R]) -> Future[R]:
        return self._submit(adrive(script))

    def _submit(self, awaitable: Awaitable[R]) -> Future[R]:
        async def wait() -> R:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(wait(), self._loop)

    def __exit__(self, *_: object) -> None:
        async def close() -> None:
            for session in self.sessions:
                await session.close()

        self._submit(close()).result(ANSWER_WITHIN_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.executor.shutdown()


def cut_short(script: Script[Any], effects: int) -> Script[bool]:
    """Run a script's first effects, and no more: its process dies there. True if it ended before."""
    send: Callable[[Any], Effect] = script.send
    result: Any = None
    try:
        for _ in range(effects):
            effect = send(result)
            try:
                result = yield effect
                send = script.send
            except Exception as error:
                result, send = error, script.throw
        send(result)
    except StopIteration:
        return True
    finally:
        script.close()
    return False


def outcomes(futures: Sequence[Future[R]]) -> list[R | Exception]:
    """How each of them ended."""
    ended: list[R | Exception] = []
    for future in futures:
        try:
            ended.append(future.result(ANSWER_WITHIN_S))
        except Exception as error:
            ended.append(error)
    return ended
