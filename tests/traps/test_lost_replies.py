"""A reply, a request or a whole connection that is lost at the worst statement: the caller is told nothing but
the truth (I5).

A proxy stands between the coordinator and one server. `cut_reply`: done, and nobody was told. `cut_request`: never
arrived. `stall`: arrives after everybody has given up, and must find the door shut. `half_open`: done, the client is
gone, and the server does not know it. `delay_reply`: the answer comes too late to be waited for.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kit import Face, opened, until
from nodoubt import Coordinator, InDoubt, OutcomeConflict, Settings, State, TransactionAborted, UnknownTransaction
from nodoubt.testing.proxy import TcpProxy
from traps.scenes import MOVED, UNTOUCHED, at_rest, balances, databases, recovered

pytestmark = pytest.mark.anyio
SHORT = Settings(connect_s=5, acquire_s=5, prepare_s=0.5, decide_s=5, apply_s=1, grace_s=5, sweep_s=60)
IMPATIENT = Settings(connect_s=2, acquire_s=1, prepare_s=1, decide_s=0.5, apply_s=0.5, grace_s=5, sweep_s=60)

DECISION, RECEIPT = b"EXECUTE nodoubt_decision", b"EXECUTE nodoubt_receipt"  # a PostgreSQL session keeps them prepared
COMMITTED, ABORTED = "committed", "aborted"


@dataclass(frozen=True)
class Loss:
    """What is lost, on the way to which database, and what the caller must be told then."""

    kinds: str
    way: str
    at: str  # "a", "b", or "journal": a PostgreSQL of its own
    fault: str
    pattern: bytes
    told: str
    journal: str = "a"

    def __str__(self) -> str:
        return f"{self.kinds}-{self.way}-{self.fault}-{self.pattern.decode().strip()}-{self.at}"


ONCE, STAGE, NAMED = "once", "begin", "commit"
LOSSES = [
    # PREPARE, of the branch that is not the commit point
    Loss("sqlite+postgres", ONCE, "b", "cut_reply", b"PREPARE TRANSACTION", ABORTED),
    Loss("sqlite+postgres", ONCE, "b", "cut_request", b"PREPARE TRANSACTION", ABORTED),
    Loss("sqlite+postgres", ONCE, "b", "delay_reply", b"PREPARE TRANSACTION", ABORTED),
    Loss("sqlite+postgres", ONCE, "b", "stall", b"PREPARE TRANSACTION", ABORTED),
    Loss("sqlite+mariadb", ONCE, "b", "cut_reply", b"XA PREPARE", ABORTED),
    Loss("sqlite+mariadb", ONCE, "b", "cut_request", b"XA PREPARE", ABORTED),
    Loss("sqlite+mariadb", ONCE, "b", "half_open", b"XA PREPARE", ABORTED),
    Loss("sqlite+mariadb", ONCE, "b", "stall", b"XA PREPARE", ABORTED),
    # PREPARE of a staged branch, and of X, behind whose row it comes
    Loss("sqlite+postgres", STAGE, "b", "cut_reply", b"PREPARE TRANSACTION", ABORTED),
    Loss("sqlite+postgres", STAGE, "b", "cut_request", b"PREPARE TRANSACTION", ABORTED),
    Loss("postgres+sqlite", STAGE, "a", "cut_reply", b"PREPARE TRANSACTION", ABORTED),
    Loss("postgres+sqlite", STAGE, "a", "stall", b"PREPARE TRANSACTION", ABORTED),
    Loss("mariadb+sqlite", STAGE, "a", "cut_reply", b"XA PREPARE", ABORTED),
    Loss("mariadb+sqlite", STAGE, "a", "half_open", b"XA PREPARE", ABORTED),
    # the decision, in the commit point's own COMMIT
    Loss("postgres+sqlite", ONCE, "a", "cut_reply", DECISION, COMMITTED),
    Loss("postgres+sqlite", ONCE, "a", "cut_request", DECISION, ABORTED),
    Loss("postgres+mariadb", ONCE, "a", "stall", DECISION, ABORTED),
    Loss("postgres+mariadb", ONCE, "a", "delay_reply", DECISION, COMMITTED),
    Loss("mariadb+sqlite", ONCE, "a", "cut_reply", b"ONE PHASE", COMMITTED),
    Loss("mariadb+sqlite", ONCE, "a", "cut_request", b"ONE PHASE", ABORTED),
    # the decision, in a journal of its own
    Loss("sqlite+sqlite", ONCE, "journal", "cut_reply", DECISION, COMMITTED, journal="postgres"),
    Loss("sqlite+sqlite", ONCE, "journal", "cut_request", DECISION, COMMITTED, journal="postgres"),
    Loss("sqlite+mariadb", NAMED, "journal", "cut_reply", DECISION, COMMITTED, journal="postgres"),
    # the decision of a staged transaction, with its riders
    Loss("postgres+sqlite", NAMED, "a", "cut_reply", DECISION, COMMITTED),
    Loss("postgres+sqlite", NAMED, "a", "cut_request", DECISION, COMMITTED),
    # phase two
    Loss("sqlite+postgres", ONCE, "b", "cut_reply", b"COMMIT PREPARED", COMMITTED),
    Loss("sqlite+postgres", ONCE, "b", "cut_request", b"COMMIT PREPARED", COMMITTED),
    Loss("sqlite+postgres", ONCE, "b", "stall", b"COMMIT PREPARED", COMMITTED),
    Loss("postgres+sqlite", NAMED, "a", "cut_reply", b"COMMIT PREPARED", COMMITTED),
    Loss("postgres+sqlite", NAMED, "a", "cut_request", b"COMMIT PREPARED", COMMITTED),
    Loss("sqlite+mariadb", ONCE, "b", "cut_reply", b"XA COMMIT", COMMITTED),
    Loss("sqlite+mariadb", ONCE, "b", "half_open", b"XA COMMIT", COMMITTED),
    Loss("sqlite+mariadb", NAMED, "b", "cut_reply", b"XA COMMIT", COMMITTED),
    Loss("sqlite+mariadb", NAMED, "b", "cut_request", b"XA COMMIT", COMMITTED),
]


async def told_by(db: Face, loss: Loss, arm: Any) -> str:
    """Do it, with the fault armed at the last moment before the verb in question."""
    try:
        if loss.way == ONCE:
            block = db.transaction("pay")
            tx = await block.__aenter__()
            await tx.move("a", "b", 30)
            arm()
            await block.__aexit__(None, None, None)
            return COMMITTED
        block = db.staged("pay")
        tx = await block.__aenter__()
        await tx.move("a", "b", 30)
        if loss.way == STAGE:
            arm()
        await block.__aexit__(None, None, None)
        if loss.way == NAMED:
            arm()
        await db.commit_distributed("pay")
        return COMMITTED
    except (TransactionAborted, OutcomeConflict):
        return ABORTED
    except InDoubt:
        return "in doubt"


@pytest.mark.parametrize("loss", LOSSES, ids=str)
async def test_what_the_caller_is_told_is_what_comes_of_it(loss: Loss, request: Any, tmp_path: Path) -> None:
    mode = ("sync", "async")[LOSSES.index(loss) % 2]
    await lose(loss, mode, request, tmp_path)


@pytest.mark.parametrize(
    "loss", [one for one in LOSSES if one.pattern in (DECISION, b"COMMIT PREPARED") and one.way == ONCE], ids=str
)
async def test_and_the_other_way_round(loss: Loss, request: Any, tmp_path: Path) -> None:
    """The decision and its first carrying out, once more in the other style."""
    mode = ("async", "sync")[LOSSES.index(loss) % 2]
    await lose(loss, mode, request, tmp_path)


async def lose(loss: Loss, mode: str, request: Any, tmp_path: Path) -> None:
    pair = databases(loss.kinds, request, tmp_path)
    own = request.getfixturevalue("postgres").url() if loss.journal == "postgres" else None
    target = own or next(d.url for d in pair if d.name == loss.at)
    with TcpProxy.to(target) as proxy:
        seen = [replace(d, url=proxy.url_for(d.url)) if d.name == loss.at else d for d in pair]
        journal = proxy.url_for(own) if own else None
        async with opened(mode, seen, journal=journal, settings=SHORT) as db:
            faults = []
            told = await told_by(db, loss, lambda: faults.append(getattr(proxy, loss.fault)(loss.pattern)))
            assert told == loss.told
            faults[0].wait_hit()
            # What was held arrives now, when everybody has given up on it.
            faults[0].release()
        proxy.heal()
    with Coordinator({d.name: d.url for d in pair}, journal=own, settings=SHORT, recovery=False) as db2:
        assert recovered(db2, pair) is (loss.told == COMMITTED)
        if loss.way != ONCE and loss.told == COMMITTED:
            assert db2.status("pay").state is State.COMMITTED
        elif loss.way != ONCE:
            # Before its row is listed, an aborted begin leaves no trace.
            with contextlib.suppress(UnknownTransaction):
                assert db2.status("pay").state is State.ABORTED


# ---- and nobody can be asked ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kinds", "at", "fault", "pattern", "came"),
    [
        ("sqlite+sqlite", "journal", "cut_reply", DECISION, COMMITTED),
        ("postgres+sqlite", "a", "cut_reply", DECISION, COMMITTED),
        ("postgres+sqlite", "a", "cut_request", DECISION, ABORTED),
        ("mariadb+sqlite", "a", "cut_reply", b"ONE PHASE", COMMITTED),
        ("postgres", "a", "cut_reply", RECEIPT, COMMITTED),
        ("postgres", "a", "cut_request", RECEIPT, ABORTED),
        ("mariadb", "a", "cut_reply", b"ONE PHASE", COMMITTED),
    ],
)
async def test_when_nobody_can_tell_the_caller_is_told_so_and_how_to_ask(
    kinds: str, at: str, fault: str, pattern: bytes, came: str, mode: str, request: Any, tmp_path: Path
) -> None:
    """The server is out of reach from the lost reply on: InDoubt, never Aborted, and the outcome comes to
    light later.
    """
    some = databases(kinds, request, tmp_path)
    own = request.getfixturevalue("postgres").url() if at == "journal" else None
    with TcpProxy.to(own or some[0].url) as proxy:
        seen = [replace(d, url=proxy.url_for(d.url)) if d.name == at else d for d in some]
        async with opened(mode, seen, journal=proxy.url_for(own) if own else None, settings=IMPATIENT) as db:
            block = db.transaction("pay")
            tx = await block.__aenter__()
            await tx.move("a", some[-1].name, 30, account=0)
            getattr(proxy, fault)(pattern, isolate=True)
            with pytest.raises(InDoubt) as caught:
                await block.__aexit__(None, None, None)
            assert caught.value.attempt == tx.handle.attempt and tx.handle.attempt in caught.value.how_to_ask
    with Coordinator({d.name: d.url for d in some}, journal=own, settings=SHORT, recovery=False) as db2:
        until(lambda: db2.recover(grace=0).clean)
        for _ in range(2):
            assert (db2.settle(caught.value.attempt).state is State.COMMITTED) is (came == COMMITTED)
        assert (db2.status(caught.value.attempt).state is State.COMMITTED) is (came == COMMITTED)
    if len(some) > 1:
        assert balances(some) == (MOVED if came == COMMITTED else UNTOUCHED)
    assert at_rest(some)
