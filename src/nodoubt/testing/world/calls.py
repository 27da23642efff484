"""What processes do with steps in a world, as plain records: they call them in a block or by name, and undo them.

Whoever is told what a step returned passes it on to `effects`.

Must not: know what goes wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...engine.attempt import Attempt
from ...engine.context import plainly
from ...errors import NoDoubtError, StepInDoubt, UnknownTransaction
from ...script import Pause, Script
from ...steps import calling, mending
from ...steps.registry import Registry
from .driver import Cancelled
from .outside import CHARGE, MAIL, RECALL, REFUND, Declined, Plan

if TYPE_CHECKING:
    from .process import Process


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One use of a step. `keyed`: its service honours keys. `bare`: nothing undoes it.

    `first`: before the databases' work. `swallowed`: whatever it raises, its block goes on as if nothing had been.
    """

    plan: Plan
    keyed: bool = True
    bare: bool = False
    first: bool = False
    swallowed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A step is called in a staged transaction, by name; again, if nobody knows how it ended."""

    process: str
    at_s: float
    name: str
    use: Use
    tries: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Undo:
    """From now on, whatever dead processes have left of steps is undone."""

    process: str
    at_s: float
    every_s: float = 1.0
    until_s: float = 14.0
    blind: bool = False  # this process has the code of no compensation


@dataclass(frozen=True, slots=True, kw_only=True)
class Mend:
    """A human looks at what is parked, and has it tried again, or has seen to it."""

    process: str
    at_s: float
    skip: bool = False


def use_of(use: Use) -> calling.Use:
    """As the engine takes it."""
    step, undo = (CHARGE, REFUND) if use.keyed else (MAIL, RECALL)
    return calling.use(step, (), {"plan": use.plan}, undo=None if use.bare else undo, timeout_s=None, key=use.plan.use)


def within(process: Process, attempt: Attempt, use: Use) -> Script[None]:
    """The step is called in a block. Refused, the block goes on without it."""
    try:
        value = yield from process.db.call(attempt, use_of(use))
    except Declined as error:
        process.told(f"{use.plan} is refused: {error}")
    except Cancelled:
        raise
    except Exception as error:
        process.told(f"{use.plan}: {type(error).__name__}: {error}")
        if not use.swallowed:
            raise
    else:
        process.answered(attempt.id, use.plan.use, value)


def ask(process: Process, act: Ask) -> Script[None]:
    for _ in range(act.tries):
        listed = process.world.checker.listed(act.name)
        try:
            value = yield from process.db.call_named(act.name, use_of(act.use))
        except (StepInDoubt, OSError) as error:
            process.told(f"{act.use.plan}: {type(error).__name__}: {error}")
        except UnknownTransaction as error:
            process.told(str(error))
            process.world.checker.tell_unknown(act.name, asked_for=None, listed_before=listed)
            return
        except Exception as error:
            process.told(f"{act.use.plan}: {type(error).__name__}: {error}")
            if not isinstance(error, NoDoubtError):
                return
        else:
            if listed is not None and process.world.checker.listed(act.name) == listed:
                process.answered(listed, act.use.plan.use, value)
            return
        yield Pause(1.0)


def undo(process: Process, act: Undo) -> Script[None]:
    if act.blind:
        process.db.registry = Registry()
    while process.world.kernel.now < act.until_s:
        yield Pause(act.every_s)
        yield from process.db.undo_steps()


def mend(process: Process, act: Mend) -> Script[None]:
    ctx = process.ctx
    for call in (yield from plainly(mending.parked(ctx))):
        if act.skip:
            script = mending.skip(ctx, call.attempt, call.number, by="ada", because="it was done by hand")
        else:
            script = mending.retry(ctx, call.attempt, call.number, by="ada")
        mended = yield from plainly(script)
        process.told(f"step {call.number} of {call.attempt} is {mended.call.state} now")
