"""`demo`: everything that nodoubt promises, on this machine, with processes that are really killed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import rich_click as click
from click.exceptions import Exit as Leave

from .desk import Desk, reported
from .outcome import Exit


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Who ends it by `kill`, or closes its terminal, leaves as little behind as Ctrl-C does.

    But for whoever ignores the signal, as under `nohup`.
    """
    numbers = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


@click.command()
@click.option("--servers", is_flag=True, help="On a real PostgreSQL and a real MariaDB, started for the occasion.")
def demo(servers: bool) -> None:
    """Watch orders survive `kill -9` at the worst moments.

    A shop, a warehouse and a payment service; a child process is killed between two prepares, before and after
    the decision, and half-way through the commits. It needs nothing, takes seconds, and leaves nothing behind.
    """
    from ..demo import run

    with reported(Desk(json=False), warnings=False), _terminated_as_interrupted():
        passed = run(servers=servers)
    if not passed:
        raise Leave(Exit.FAILED)
