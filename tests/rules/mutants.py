"""How a rule is taken out of the product for one test, and scenes that several rules are shown in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from kit import QUICK, Database, Watching
from nodoubt import Coordinator, InDoubt, JournalUnavailable, Notice, OutcomeConflict, Settings, TransactionAborted
from nodoubt.engine import phases
from nodoubt.engine.branches import End, Ending
from nodoubt.engine.context import Context, using
from nodoubt.protocol.commit import TABLE, CommitMachine, Phase, Rule
from nodoubt.protocol.events import Event
from nodoubt.script import Script

SHORT = Settings(connect_s=5, acquire_s=5, prepare_s=0.5, decide_s=2, apply_s=0.5, grace_s=5, sweep_s=60)
COMMITTED, ABORTED, IN_DOUBT = "committed", "aborted", "in doubt"
TAKE, GIVE = (
    "update accounts set balance = balance - 30 where id = 0",
    "update accounts set balance = balance + 30 where id = 0",
)


def change_rule(
    patch: pytest.MonkeyPatch, phase: Phase, event: type[Event], act: Callable[[CommitMachine, Any], Any]
) -> None:
    """In the machine's table: this instead, whatever it leads to."""
    patch.setitem(TABLE, (phase, event), Rule(act, frozenset(Phase)))


def coordinator(some: Sequence[Database], journal: str | None = None, **options: Any) -> Coordinator:
    options.setdefault("settings", QUICK)
    return Coordinator({d.name: d.url for d in some}, journal=journal, recovery=False, **options)


def context(db: Coordinator) -> Context:
    return db._ctx


def watch(db: Coordinator, point: str, what: str, act: Callable[[], object], *, branch: int | None = None) -> None:
    """At the first notice of this point (of this branch), and no other, `act`."""
    done: list[Notice] = []

    def notice(notice: Notice) -> None:
        if done or (notice.point, notice.what) != (point, what) or branch not in (None, notice.branch):
            return
        done.append(notice)
        act()

    context(db).observer = Watching(notice)


def work(tx: Any) -> None:
    """30 from a to b."""
    tx["a"].execute(TAKE)
    tx["b"].execute(GIVE)


def told(verb: Callable[[], Any]) -> str:
    """What the caller is told."""
    try:
        verb()
    except (TransactionAborted, JournalUnavailable, OutcomeConflict):
        return ABORTED
    except InDoubt:
        return IN_DOUBT
    return COMMITTED


def at_once(db: Coordinator) -> str:
    def verb() -> None:
        with db.transaction("pay") as tx:
            work(tx)

    return told(verb)


def staged(db: Coordinator, name: str = "pay", **options: Any) -> str:
    with db.begin_distributed(name, **options) as tx:
        work(tx)
    return str(tx.attempt)


@contextlib.contextmanager
def out_of_reach(*names: str) -> Iterator[None]:
    """In the block, whoever decides does not get around to carrying it out on these resources."""
    carry_out = vars(phases)["carry_out"]

    def some(ctx: Context, participant: Any, *args: Any, **more: Any) -> Script[Ending]:
        if participant.name in names:
            return Ending(End.OPEN, "out of reach")
            yield
        ending: Ending = yield from carry_out(ctx, participant, *args, **more)
        return ending

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases, "carry_out", some)
        yield


def journal_says(db: Coordinator, body: Callable[[Any], Script[Any]]) -> Any:
    """Run a script on the journal."""
    return db._shell.run(using(context(db).journal_pool, body))
