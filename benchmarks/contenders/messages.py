"""What nodoubt says to the servers, said by a loop that does nothing else: what its contract costs, whatever runs it.

A transaction of nodoubt's is listened to, and its messages are sent again, over the same sessions of ours, with another
attempt, name and row: every row, proof and lock of it, and no engine, pool or journal. It is no coordinator: it does
not look at an answer, and never ends a record.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nodoubt.drivers import asyncmy, psycopg_async
from nodoubt.url import Url, parse_url
from nodoubt.xid import new_attempt

from ..overhearing import Said, in_steps, listening, place_of
from ..task import ROWS_PER_CLIENT, Task
from . import AsyncContender, Connections
from .ours import AtOnce

LISTENED_AFTER = 20  # transactions, by when each session has prepared what it will
JOURNAL_CONNECTIONS_MAX = 4  # as nodoubt has them, where the journal's sessions are not the branches' own
CONNECT = {"postgres": psycopg_async.connect, "mariadb": asyncmy.connect}
_ATTEMPT = re.compile(r"nd1\.[0-9a-f]{16}\.([0-9a-f]{32})")
_NAME = re.compile(r"bench-[0-9a-f]+-\d+")
_HEX = re.compile(r"x'([0-9a-f]+)'")
Message = tuple[int, str, tuple[Any, ...]]  # which of the sessions, verb, arguments


class Messages(AsyncContender):
    """What nodoubt sends at the same time is sent at the same time here."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.lines: list[Line] = []
        self.steps: list[list[Message]] = []
        self.attempt = self.staged_as = ""

    async def open(self) -> None:
        before, transaction, places = await self._listen()
        sessions = list({id(said.session): said.session for said in transaction}.values())
        numbers = {id(session): number for number, session in enumerate(sessions)}
        self.steps = [
            [(numbers[id(said.session)], said.verb, said.args) for said in step] for step in in_steps(transaction)
        ]
        whole = " ".join(said.sql for said in transaction)
        [self.attempt] = set(_ATTEMPT.findall(whole))
        whole += " ".join(bytes.fromhex(digits).decode(errors="replace") for digits in _HEX.findall(whole))
        self.staged_as = next(iter(_NAME.findall(whole)), "")
        urls = {(url.port, url.database): url for url in map(parse_url, self.task.urls)}
        for session in sessions:
            of_session = [said for said in transaction if said.session is session]
            works = any(said.verb.startswith("execute") for said in of_session)
            many = self.task.connections if works else min(self.task.connections, JOURNAL_CONNECTIONS_MAX)
            told = [said.args[0] for said in before if said.session is session and "PREPARE nodoubt_" in said.sql]
            line = Line(urls[places[id(session)]], many, session.connection_id)
            self.lines.append(line)
            await line.open(told)

    async def _listen(self) -> tuple[list[Said], list[Said], dict[int, tuple[int, str]]]:
        """What its sessions were told before, one transaction, and where those sessions are."""
        with listening() as ear:
            ours = AtOnce(replace(self.task, clients=1))
            await ours.open()
            for _ in range(LISTENED_AFTER):
                await ours.transact(0)
            before = ear.take()
            await ours.transact(0)
            transaction = ear.take()
            places = {id(said.session): place_of(said.session) for said in transaction}
            await ours.close()
        return before, transaction, places

    async def transact(self, client: int) -> None:
        new = {self.attempt: new_attempt()}
        if self.staged_as:
            new[self.staged_as] = self.name()
        new |= {old.encode().hex(): other.encode().hex() for old, other in new.items()}
        sessions = [await line.take() for line in self.lines]
        for step in self.steps:
            calls = [
                self._call(sessions[number], self.lines[number].heard_from, verb, args, new, client)
                for number, verb, args in step
            ]
            if len(calls) == 1:
                await calls[0]
            else:
                await asyncio.gather(*calls)
        for line, session in zip(self.lines, sessions, strict=True):
            line.put_back(session)

    def _call(
        self, session: Any, heard_from: int, verb: str, args: tuple[Any, ...], new: Mapping[str, str], client: int
    ) -> Awaitable[Any]:
        def said(sql: str) -> str:
            for old, other in new.items():
                sql = sql.replace(old, other)
            # Who says it stands in an XA name, and before what counts as forced by this session.
            return sql.replace(f".{heard_from}.", f".{session.connection_id}.").replace(
                f"({heard_from})", f"({session.connection_id})"
            )

        def row(params: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(client * ROWS_PER_CLIENT + one for one in params)

        method: Callable[..., Awaitable[Any]] = getattr(session, verb)
        match verb, args:
            case "run", [sql]:
                return method(said(sql))
            case "run_each", [statements]:
                return method([said(one) for one in statements])
            case "execute", [statement, params]:
                return method(statement, row(params))
            case _, [statements, statement, params]:
                return method([said(one) for one in statements], statement, row(params))
        raise AssertionError(f"{verb} is no verb of a session")

    async def close(self) -> None:
        for line in self.lines:
            for session in line.free:
                await session.close()


class Line(Connections):
    """So many sessions to one database. `heard_from`: the server's number of the one that was heard."""

    def __init__(self, url: Url, many: int, heard_from: int) -> None:
        super().__init__(many)
        self.url, self.many, self.heard_from = url, many, heard_from

    async def open(self, told: Sequence[str]) -> None:
        for _ in range(self.many):
            session: Any = await CONNECT[self.url.kind](self.url)
            for sql in told:
                await session.run(sql)
            self.free.append(session)
