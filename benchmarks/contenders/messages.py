"""What nodoubt says to the servers, said by a loop that does nothing else: what its contract costs, whatever runs it.

A transaction of nodoubt's is listened to, and its messages are sent again, over the same sessions of ours, with another
attempt, name and row: every row, proof and lock of it, and no engine, pool or journal. It is no coordinator: it does
not look at an answer, and never ends a record.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from nodoubt.drivers import asyncmy, psycopg, psycopg_async
from nodoubt.url import Url, parse_url
from nodoubt.xid import new_attempt

from ..overhearing import Said, in_steps, listening, place_of
from ..task import ROWS_PER_CLIENT, Task
from . import AsyncContender, Connections, Contender, ThreadConnections
from .ours import AtOnce

LISTENED_AFTER = 20  # transactions, by when each session has prepared what it will
JOURNAL_CONNECTIONS_MAX = 4  # as nodoubt has them, where the journal's sessions are not the branches' own
CONNECT = {"postgres": psycopg_async.connect, "mariadb": asyncmy.connect}
_ATTEMPT = re.compile(r"nd1\.[0-9a-f]{16}\.([0-9a-f]{32})")
_NAME = re.compile(r"bench-[0-9a-f]+-\d+")
_HEX = re.compile(r"x'([0-9a-f]+)'")


@dataclass(frozen=True, slots=True)
class Line:
    """One of the sessions that were heard. `number`: the server's, of that session; `told`: what it has prepared."""

    url: Url
    number: int
    told: Sequence[str]
    many: int  # how many sessions whoever says it again has in its place


@dataclass(frozen=True, slots=True)
class Message:
    """One that was heard. `line`: which session's."""

    line: int
    verb: str
    args: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Heard:
    """One transaction. What was under way at the same time stands in one step."""

    lines: Sequence[Line]
    steps: Sequence[Sequence[Message]]
    attempt: str
    name: str  # "" where it was not staged

    @classmethod
    async def of(cls, task: Task) -> Self:
        """Run it, and listen."""
        with listening() as ear:
            ours = AtOnce(replace(task, clients=1))
            await ours.open()
            for _ in range(LISTENED_AFTER):
                await ours.transact(0)
            before = ear.take()
            await ours.transact(0)
            transaction = ear.take()
            places = {id(said.session): place_of(said.session) for said in transaction}
            await ours.close()
        return cls._made_of(task, before, transaction, places)

    @classmethod
    def _made_of(
        cls, task: Task, before: Sequence[Said], transaction: Sequence[Said], places: dict[int, tuple[int, str]]
    ) -> Self:
        sessions = list({id(said.session): said.session for said in transaction}.values())
        numbers = {id(session): number for number, session in enumerate(sessions)}
        urls = {(url.port, url.database): url for url in map(parse_url, task.urls)}
        lines: list[Line] = []
        for session in sessions:
            works = any(said.verb.startswith("execute") for said in transaction if said.session is session)
            many = task.connections if works else min(task.connections, JOURNAL_CONNECTIONS_MAX)
            told = [said.args[0] for said in before if said.session is session and "PREPARE nodoubt_" in said.sql]
            lines.append(Line(urls[places[id(session)]], session.connection_id, told, many))
        whole = " ".join(said.sql for said in transaction)
        [attempt] = set(_ATTEMPT.findall(whole))
        whole += " ".join(bytes.fromhex(digits).decode(errors="replace") for digits in _HEX.findall(whole))
        steps = [
            [Message(numbers[id(said.session)], said.verb, said.args) for said in step]
            for step in in_steps(transaction)
        ]
        return cls(lines, steps, attempt, next(iter(_NAME.findall(whole)), ""))

    def anew(self, name: str) -> dict[str, str]:
        """What stands in the place of what, in another transaction."""
        new = {self.attempt: new_attempt()}
        if self.name:
            new[self.name] = name
        return new | {old.encode().hex(): other.encode().hex() for old, other in new.items()}

    def send(self, message: Message, session: Any, new: dict[str, str], client: int) -> Any:
        """Say it again, over this session; whatever that returns."""
        heard_from = self.lines[message.line].number

        def said(sql: str) -> str:
            for old, other in new.items():
                sql = sql.replace(old, other)
            # Who says it stands in an XA name, and before what counts as forced by this session.
            return sql.replace(f".{heard_from}.", f".{session.connection_id}.").replace(
                f"({heard_from})", f"({session.connection_id})"
            )

        def row(params: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(client * ROWS_PER_CLIENT + one for one in params)

        method = getattr(session, message.verb)
        match message.verb, message.args:
            case "run", [sql]:
                return method(said(sql))
            case "run_each", [statements]:
                return method([said(one) for one in statements])
            case "execute", [statement, params]:
                return method(statement, row(params))
            case _, [statements, statement, params]:
                return method([said(one) for one in statements], statement, row(params))
        raise AssertionError(f"{message.verb} is no verb of a session")


class Messages(AsyncContender):
    """What nodoubt sends at the same time is sent at the same time here."""

    async def open(self) -> None:
        self.heard = await Heard.of(self.task)
        self.free: list[Connections] = []
        for line in self.heard.lines:
            free = Connections(line.many)
            for _ in range(line.many):
                session: Any = await CONNECT[line.url.kind](line.url)
                for sql in line.told:
                    await session.run(sql)
                free.free.append(session)
            self.free.append(free)

    async def transact(self, client: int) -> None:
        heard, new = self.heard, self.heard.anew(self.name())
        sessions = [await free.take() for free in self.free]
        for step in heard.steps:
            calls = [heard.send(message, sessions[message.line], new, client) for message in step]
            if len(calls) == 1:
                await calls[0]
            else:
                await asyncio.gather(*calls)
        for free, session in zip(self.free, sessions, strict=True):
            free.put_back(session)

    async def close(self) -> None:
        for free in self.free:
            for session in free.free:
                await session.close()


class MessagesInThreads(Contender):
    """PostgreSQL, from threads: one message after the other."""

    def open(self) -> None:
        self.heard = asyncio.run(Heard.of(self.task))
        self.free: list[ThreadConnections] = []
        for line in self.heard.lines:
            free = ThreadConnections()
            for _ in range(line.many):
                session = psycopg.connect(line.url)
                for sql in line.told:
                    session.run(sql)
                free.put(session)
            self.free.append(free)

    def transact(self, client: int) -> None:
        heard, new = self.heard, self.heard.anew(self.name())
        sessions = [free.get() for free in self.free]
        for step in heard.steps:
            for message in step:
                heard.send(message, sessions[message.line], new, client)
        for free, session in zip(self.free, sessions, strict=True):
            free.put(session)

    def close(self) -> None:
        for free in self.free:
            for session in free.free:
                session.close()
