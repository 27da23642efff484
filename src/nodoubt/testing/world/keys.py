"""Idempotency keys in a world: what asks its servers for them, a block that carries one, and what is held of it (I22).

`KeyStore` is to the servers in memory what `idempotency.store` is to real ones; who claims, confirms, replays and
expires is the product's own (`idempotency.claims`, `idempotency.once`).

Held: one effect for each key, on every server; whoever is told what an earlier call has returned finds that effect on
disk, was asked for the same, and is told what that very call had returned.

Must not: know what goes wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from ...engine import attempt as attempts
from ...engine.attempt import Attempt
from ...engine.context import plainly
from ...engine.verbs import Result
from ...errors import KeyInFlight, KeyReused
from ...idempotency import once
from ...idempotency.keys import Key
from ...idempotency.store import Claim, Row
from ...ports import Refused, Reply, Session, SessionLost, StatementFailed, Unclear, Work
from ...resources.memory.server import KeyRow
from ...script import Pause, Script, do
from .checker import LEDGER

if TYPE_CHECKING:
    from .acts import Parts
    from .machine import Machine
    from .process import Process
    from .process import Work as BlockWork
    from .world import World

STAGED_S = 6.0
ONCE = f"{LEDGER}once "  # the user's own row for each key, which every effect of that key adds one to


class KeyStore:
    """`idempotency.store.Store`, over servers in memory."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def look(self, session: Session, key: Key) -> Script[Row | None]:
        return _row((yield from self._own(session, ("key_row", key.scope, key.key))))

    def confirm(self, session: Session, key: Key) -> Script[Row | None]:
        return _row((yield from self._own(session, ("key_confirm", key.scope, key.key))))

    def claim(self, session: Session, work: Work, key: Key) -> Script[Claim]:
        """As its namesakes do, each in its own way: none of them waits."""
        if self._kind == "postgres":
            lock, look = ("key_lock", key.scope, key.key), ("key_row", key.scope, key.key)
            locked, row = yield from self._ask(session, lock, look)
            if not locked.scalar():
                return Claim.IN_FLIGHT
            return Claim.DONE if row.rows else Claim.TAKEN
        if self._kind == "mariadb":
            try:
                yield from self._ask(session, ("key_insert", _text(work, key, b""), 0.0))
            except StatementFailed as error:
                if error.code not in ("1205", "1062"):
                    raise
                return Claim.IN_FLIGHT if error.code == "1205" else Claim.DONE
            return Claim.TAKEN
        there = yield from self.look(session, key)
        if there is None:
            return Claim.TAKEN
        return Claim.IN_FLIGHT if there.pending else Claim.DONE

    def closing(self, work: Work, key: Key, result: bytes, keep_s: float) -> tuple[str, ...]:
        return (_text(work, key, result),)

    def _ask(self, session: Session, *statements: tuple[Any, ...]) -> Script[Any]:
        try:
            return (yield from do(session, "send", *statements))
        except SessionLost as error:
            raise Unclear(f"the table of idempotency keys did not answer: {error}") from error

    def _own(self, session: Session, statement: tuple[Any, ...]) -> Script[Reply]:
        try:
            (reply,) = yield from self._ask(session, statement)
        except StatementFailed as error:
            raise Refused(f"the table of idempotency keys could not do it now: {error}", retry=True) from error
        return reply  # type: ignore[no-any-return]


def _text(work: Work, key: Key, result: bytes) -> str:
    row = KeyRow(key.scope, key.key, key.payload, result.decode(), work.xid.gid)
    return msgspec.json.encode(row).decode()


def _row(reply: Reply) -> Row | None:
    if not reply.rows:
        return None
    payload, result, pending = reply.rows[0]
    return Row(payload, str(result).encode(), bool(pending))


# ---- what processes do


@dataclass(frozen=True, slots=True, kw_only=True)
class Once:
    """A transaction for this key; again while another is at work on it, or if its end is not known.

    `name`: it is staged under this name, and its key in flight until somebody has decided it.
    """

    process: str
    at_s: float
    key: str
    on: str
    parts: Parts
    payload: int = 0
    fails: bool = False
    tries: int = 3
    name: str = ""


def script_of(process: Process, act: Once, work: BlockWork) -> Script[Result | None]:
    """One call: its result; None if it was done before. `work`: the payment's."""
    ctx = process.ctx
    wanted = once.wanted_of(ctx, act.key, act.payload, scope="", on=act.on, keep=None)
    deadline = STAGED_S if act.name else None
    beginning = once.beginning_of(ctx, timeout=None, staged=act.name or None, deadline=deadline)
    block = once._Once(ctx, process.shell, wanted, beginning, "applied", Any)

    def carrying(process: Process, attempt: Attempt) -> Script[None]:
        process.world.keys.asked[attempt.id] = act.payload
        yield from work(process, attempt)
        for server in sorted({act.on, *(part[0] for part in act.parts)}):
            process.world.checker.wrote(attempt.id, server, 0)
            yield from attempts.execute(ctx, attempt, server, "add", (ONCE + act.key, 1))
            if server not in {part[0] for part in act.parts}:
                yield from attempts.execute(ctx, attempt, server, "add", (LEDGER + attempt.id, 1))
        block.value = attempt.id
        block._carry(attempt)

    yield from plainly(block._begin())
    if block.replayed:
        process.replayed(act, block.value)
        return None
    try:
        return (yield from process.db.block(process, block._begun(), carrying, "applied"))
    finally:
        block._drop()


def again(process: Process, act: Once, call: Any) -> Script[None]:
    """The call, as often as it may be tried. `call`: makes the script of one, which tells its own outcome."""
    for _ in range(act.tries):
        try:
            over = yield from call()
        except KeyReused as error:
            process.told(str(error))
            process.world.keys.refused(act)
            return
        except KeyInFlight as error:
            process.told(str(error))
            over = False
        if over:
            return
        yield Pause(1.0)


# ---- what is held of it


@dataclass(slots=True)
class KeyChecker:
    """One world's. `asked`: with which payload each attempt was begun."""

    world: World
    asked: dict[str, int] = field(default_factory=dict)
    replays: int = 0

    def look(self) -> None:
        """At every server, as it is shown."""
        if not self.asked or self.world.restored:
            return
        for machine in self.world.machines.values():
            for place, number in machine.server.tables.rows.items():
                if number > 1 + self._by_hand(machine) and place.startswith(ONCE):
                    key = place.removeprefix(ONCE)
                    raise self.world.checker.violated("I22", f"{key} had {number} effects on {machine.name}")

    def _by_hand(self, machine: Machine) -> int:
        """How many of them have their effect here, and a branch elsewhere that a stranger has ended, key and all."""
        deeds, rows = self.world.checker.deeds, machine.server.tables.rows
        ours = [deeds[attempt] for attempt in self.asked if attempt in deeds]
        return sum(1 for deed in ours if deed.by_hand and rows.get(LEDGER + deed.attempt))

    def replayed(self, act: Once, attempt: str) -> None:
        """A caller was told that this attempt had done it."""
        self.replays += 1
        if self.world.restored:
            return
        server = self.world.machines[act.on].server
        if not server.durable.rows.get(LEDGER + attempt) or not server.durable.rows.get(ONCE + act.key):
            raise self.world.checker.violated("I22", f"{act.key} was told done by {attempt}, which is not on disk")
        if self.asked[attempt] != act.payload:
            raise self.world.checker.violated("I22", f"{act.key} was replayed for another payload")

    def refused(self, act: Once) -> None:
        """A caller was told that the key was used for something else."""
        if set(self.asked.values()) <= {act.payload} and not self.world.restored:
            raise self.world.checker.violated("I22", f"{act.key} was refused, and nobody asked for anything else")
