"""An application's steps, as a worker imports them. What is to go wrong is said by `MISCHIEF`, or by the environment.

Each function exists in two kinds, ordinary and `async`: every coordinator runs both.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import nodoubt
from nodoubt import IdempotencyKey, StepContext
from steps.outside import Declined, ask

MISCHIEF: dict[str, Callable[[], Any]] = {}
SEEN: list[tuple[str, StepContext]] = []  # of this process


def here(point: str) -> None:
    """A point at which a test may do something, or have this process killed."""
    if os.environ.get("KILL_AT") == point:
        os.kill(os.getpid(), signal.SIGKILL)
    if point in MISCHIEF:
        MISCHIEF[point]()


def url() -> str:
    return os.environ["OUTSIDE_URL"]


@nodoubt.step(refused=(Declined,))
def charge(order: str, card: str, key: IdempotencyKey) -> str:
    here("charge: before")
    payment: str = ask(url(), "charge", key=key, order=order, card=card)["payment"]
    here("charge: after")
    return payment


@nodoubt.compensation
def refund(order: str, context: StepContext) -> None:
    SEEN.append((order, context))
    here("refund: before")
    ask(url(), "refund", key=context.key, of=context.action_key)
    here("refund: after")


@nodoubt.step(refused=(Declined,))
async def acharge(order: str, card: str, key: IdempotencyKey) -> str:
    return await asyncio.to_thread(charge, order, card, key)


@nodoubt.compensation
async def arefund(order: str, context: StepContext) -> None:
    await asyncio.to_thread(refund, order, context)


@nodoubt.step(idempotent=True, tries=1)
def charge_idempotently(order: str, card: str, key: IdempotencyKey) -> str:
    return charge(order, card, key)
