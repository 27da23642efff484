"""One contender, in a process of its own, so that its CPU time and its memory are its own: see task.py.

Clients are tasks (or threads): each begins its next transaction as soon as its last has ended. Each has rows of its
own, so nobody waits for a lock: what is measured is the commit.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from nodoubt.testing.tracing import DONE, mark

from . import contenders
from .contenders import AsyncContender, Contender
from .task import Order, Ready, Round, Task


class Ledger:
    """Hands out transactions until the time is up or the count is reached, and keeps how long each took."""

    def __init__(self, order: Order, clients: int) -> None:
        self._began, self._usage = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        self._until = self._began + order.seconds if order.seconds else float("inf")
        self._numbers = itertools.count()
        self._count = order.count
        self._latencies_s: list[list[float]] = [[] for _ in range(clients)]

    def transactions(self, client: int) -> Iterator[None]:
        """One turn of the loop is one transaction; the clock runs while the body does."""
        mine = self._latencies_s[client]
        while (began := time.perf_counter()) < self._until and (not self._count or next(self._numbers) < self._count):
            yield
            mine.append(time.perf_counter() - began)

    def round(self) -> Round:
        """What it was, from the beginning until now. CPU time is the process's own."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        ordered = sorted(itertools.chain(*self._latencies_s))
        return Round(
            transactions=len(ordered),
            seconds=time.perf_counter() - self._began,
            p50_ms=ordered[len(ordered) // 2] * 1e3,
            p99_ms=ordered[len(ordered) * 99 // 100] * 1e3,
            user_s=usage.ru_utime - self._usage.ru_utime,
            system_s=usage.ru_stime - self._usage.ru_stime,
            fewest=min(map(len, self._latencies_s)),
            most=max(map(len, self._latencies_s)),
        )


@contextmanager
def marked(order: Order) -> Iterator[None]:
    """Between the two marks of a trace, if there is one."""
    if order.marks:
        mark(Path(order.marks), "begin")
    yield
    if order.marks:
        mark(Path(order.marks), "end")
        mark(Path(order.marks), DONE)


def say(message: Ready | Round) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def hear() -> Order | None:
    line = sys.stdin.readline()
    return msgspec.json.decode(line, type=Order) if line else None


# ---- asyncio --------------------------------------------------------------------------------------


async def run_async(contender: AsyncContender, clients: int) -> None:
    await contender.open()
    say(Ready(pid=os.getpid()))
    while (order := await asyncio.to_thread(hear)) is not None:
        with marked(order), sampled(order):
            ledger = Ledger(order, clients)
            await _work_async(contender, clients, ledger)
            if order.settle:
                await contender.settle()
            done = ledger.round()
        say(done)
    await contender.close()


async def _work_async(contender: AsyncContender, clients: int, ledger: Ledger) -> None:
    async def client(number: int) -> None:
        for _ in ledger.transactions(number):
            await contender.transact(number)

    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(client(number))


# ---- threads --------------------------------------------------------------------------------------


def run_threads(contender: Contender, clients: int) -> None:
    contender.open()
    say(Ready(pid=os.getpid()))
    while (order := hear()) is not None:
        with marked(order), sampled(order):
            ledger = Ledger(order, clients)
            _work_threads(contender, clients, ledger)
            if order.settle:
                contender.settle()
            done = ledger.round()
        say(done)
    contender.close()


def _work_threads(contender: Contender, clients: int, ledger: Ledger) -> None:
    failures: list[BaseException] = []

    def client(number: int) -> None:
        try:
            for _ in ledger.transactions(number):
                contender.transact(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@contextmanager
def sampled(order: Order) -> Iterator[None]:
    """Under the sampler, if a profile was asked for."""
    if not order.profile:
        yield
        return
    from .sampler import Sampler

    with Sampler() as sampler:
        yield
    Path(order.profile).write_bytes(msgspec.json.encode(sampler.stacks()))


def main(task: Task) -> None:
    contender = contenders.make(task)
    if isinstance(contender, Contender):
        run_threads(contender, task.clients)
        return
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if task.uvloop:
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(run_async(contender, task.clients))


if __name__ == "__main__":
    main(msgspec.json.decode(sys.argv[1], type=Task))
