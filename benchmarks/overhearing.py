"""What nodoubt's sessions say, listened to from inside its process: each message and its answer.

Must not: change what is said, or when, by more than a look at the clock.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from nodoubt.drivers.mysql_async import AsyncMySQLSession
from nodoubt.drivers.psycopg_async import AsyncPsycopgSession

#: The verbs that are each one message and its answer.
SAYING: tuple[tuple[type, tuple[str, ...]], ...] = (
    (AsyncPsycopgSession, ("run", "run_each", "execute", "execute_after")),
    (AsyncMySQLSession, ("run", "execute_after")),  # `execute` is one of the second
)


@dataclass(frozen=True, slots=True)
class Said:
    """One message and its answer, in one session."""

    session: Any
    verb: str
    args: tuple[Any, ...]
    sent_s: float
    answered_s: float

    @property
    def sql(self) -> str:
        """The text of it: the user's statement first, and ours before it behind."""
        match self.verb:
            case "run_each":
                return "; ".join(self.args[0])
            case "execute_after":
                return "; ".join((self.args[1], *self.args[0]))
            case _:
                return str(self.args[0])


@dataclass(slots=True)
class Ear:
    """What was said since it was last emptied, as it was answered."""

    heard: list[Said] = field(default_factory=list)

    def take(self) -> list[Said]:
        """All of it, in the order in which it was sent; the ear is empty again."""
        heard, self.heard = self.heard, []
        return sorted(heard, key=lambda said: said.sent_s)


@contextmanager
def listening() -> Iterator[Ear]:
    """Every session of this process is listened to."""
    ear = Ear()
    plain = {(kind, verb): getattr(kind, verb) for kind, verbs in SAYING for verb in verbs}
    for (kind, verb), method in plain.items():
        setattr(kind, verb, _heard(ear, verb, method))
    try:
        yield ear
    finally:
        for (kind, verb), method in plain.items():
            setattr(kind, verb, method)


def _heard(ear: Ear, verb: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def call(session: Any, *args: Any) -> Any:
        sent = time.perf_counter()
        try:
            return await method(session, *args)
        finally:
            ear.heard.append(Said(session, verb, args, sent, time.perf_counter()))

    return call


def place_of(session: Any) -> tuple[int, str]:
    """Its server's port, and its database: as long as it is open."""
    if isinstance(session, AsyncPsycopgSession):
        return int(session.connection.info.port), str(session.connection.info.dbname)
    database = session._connection._db
    return int(session._connection._port), database.decode() if isinstance(database, bytes) else str(database)


def in_steps(transaction: Sequence[Said]) -> list[list[Said]]:
    """Those that were under way at the same time stand together; a step begins when all before it are answered."""
    steps: list[list[Said]] = []
    answered = 0.0
    for said in transaction:
        if not steps or said.sent_s >= answered:
            steps.append([])
        steps[-1].append(said)
        answered = max(answered, said.answered_s)
    return steps
