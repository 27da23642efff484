"""As `mutants`, of what stands on transactions: steps and their compensations (I19, I20), idempotency keys (I22)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec

from nodoubt.engine import readiness, register
from nodoubt.engine.context import Context
from nodoubt.idempotency.keys import Key
from nodoubt.idempotency.store import Claim
from nodoubt.idempotency.store import Row as KeyFound
from nodoubt.journals.memory import MemoryStore
from nodoubt.ports import Reply, Session, Work
from nodoubt.protocol import compensation
from nodoubt.protocol.compensation import following
from nodoubt.protocol.records import Call, CallState, Decision, Mode, Standing, Verdict
from nodoubt.resources.memory.server import Change, KeyRow, MemoryServer, Tables
from nodoubt.script import Script
from nodoubt.steps import calling, undoing, worker
from nodoubt.steps.registry import IdempotencyKey, StepContext
from nodoubt.testing.world import Focus, Layout, Variant, scripted
from nodoubt.testing.world.acts import Pay
from nodoubt.testing.world.calls import Use
from nodoubt.testing.world.keys import KeyStore
from nodoubt.testing.world.outside import Plan, Say

from .kept import KEPT
from .mutants import SOUND, Mutant, Patch, nothing

STEPS = Focus(steps=1.0)


def the_intent_is_not_forced(patch: Patch) -> Variant:
    """It is written as rows are that a later flush may cover, and the action begins."""
    forces = MemoryStore.forces
    patch.setattr(MemoryStore, "forces", lambda store, verb: verb != "intend" and forces(store, verb))
    return SOUND


def a_call_that_is_seen_is_believed(patch: Patch) -> Variant:
    """The answer to its change was lost, and the row shows it, flushed or not."""

    def believed(call: Call, **_: float) -> Call:
        return call

    patch.setattr(compensation, "once_more", believed)
    return SOUND


def undone_before_it_is_aborted(patch: Patch) -> Variant:
    """Whoever called it has not been heard of, so the abort is presumed, and the register not asked."""

    def presumed(ctx: Context, decision: Decision) -> Script[Decision]:
        yield from ()
        return decision

    def confirmed(ctx: Context, attempt: str) -> Script[Standing]:
        yield from ()
        return Standing(Decision(attempt, Verdict.ABORT, Mode.ONCE, "", ()), ended=False)

    patch.setattr(worker, "register", SimpleNamespace(decide=presumed, confirm=register.confirm))
    patch.setattr(undoing, "register", SimpleNamespace(confirm_one=confirmed))
    return SOUND


def undone_in_their_order(patch: Patch) -> Variant:
    """The first step first."""

    def lowest(calls: Sequence[Call]) -> Call | None:
        left = [call for call in calls if not call.closed and call.state is not CallState.PARKED]
        return min(left, key=lambda call: call.number, default=None)

    patch.setattr(undoing, "following", lowest)
    return SOUND


def called_again_whatever_it_declares(patch: Patch) -> Variant:
    """Nobody knows whether it happened, so it is done."""

    def again(ctx: Context, use: calling.Use, site: Any, known: Call) -> Script[Call | None]:
        if known.state is CallState.DONE:
            return None
        return (yield from calling._renewed(ctx, site, known))

    patch.setattr(calling, "_called_before", again)
    return SOUND


def another_key_for_each_try(patch: Patch) -> Variant:
    """Of the action."""
    context = calling._context

    def fresh(site: Any, record: Call, tries: int) -> StepContext:
        key = IdempotencyKey(f"{record.attempt}.{record.number}.{tries}")
        return replace(context(site, record, tries), key=key, action_key=key)

    patch.setattr(calling, "_context", fresh)
    return SOUND


def another_key_for_each_undo(patch: Patch) -> Variant:
    """Of the compensation."""
    context = undoing._context

    def fresh(call: Call, decision: Decision) -> StepContext:
        one = context(call, decision)
        return replace(one, key=IdempotencyKey(f"{one.key}.{call.tries}"))

    patch.setattr(undoing, "_context", fresh)
    return SOUND


def no_last_look(patch: Patch) -> Variant:
    """The intent stands, so the action begins, whatever was decided meanwhile."""

    def open_(ctx: Context, site: Any, record: Call, began: float) -> Script[Call]:
        yield from ()
        return record

    patch.setattr(calling, "_still_open", open_)
    return SOUND


def no_answer_is_no_harm(patch: Patch) -> Variant:
    """The block goes on after a step of which nobody knows whether it happened, and commits."""
    patch.setattr(calling, "_harmless", lambda *_: True)
    return SOUND


def a_commit_waits_for_no_step(patch: Patch) -> Variant:
    """Staged: neither whoever commits nor the register asks whether all were answered."""

    def ready(*_: object) -> Script[None]:
        yield from ()

    patch.setattr(readiness, "require", ready)
    patch.setattr(MemoryStore, "_require_ready", nothing)
    return SOUND


def told_before_it_is_recorded(patch: Patch) -> Variant:
    """What a step returned is told, and recorded some day."""

    def later(*_: object) -> Script[None]:
        yield from ()

    patch.setattr(calling, "_recorded", later)
    return SOUND


def tries_are_not_bounded(patch: Patch) -> Variant:
    """What fails is tried for ever."""
    patch.setattr(undoing, "_tries_max", lambda *_: sys.maxsize)
    return SOUND


def tries_are_bounded_by_who_looked(patch: Patch) -> Variant:
    """They are counted on the record as it was read, and others have claimed it since."""
    step = compensation.step

    def unbounded(call: Call, event: Any, **more: Any) -> Call:
        if isinstance(event, compensation.Claimed):
            event = replace(event, tries_max=None)
        return step(call, event, **more)

    patch.setattr(compensation, "step", unbounded)
    return SOUND


def what_is_parked_holds_up_the_rest(patch: Patch) -> Variant:
    """The steps before it wait for it."""

    def next_one(calls: Sequence[Call]) -> Call | None:
        return None if any(call.state is CallState.PARKED for call in calls) else following(calls)

    patch.setattr(undoing, "following", next_one)
    return SOUND


def a_key_is_not_claimed(patch: Patch) -> Variant:
    """It is looked at, and its row, where another is there already, is left out: ON CONFLICT DO NOTHING."""

    def taken(*_: object) -> Script[Claim]:
        yield from ()
        return Claim.TAKEN

    applied, insert = MemoryServer.applied, MemoryServer._key_insert

    def inserted(server: MemoryServer, connection: Any, text: str, within_s: float = 0.0) -> Reply:
        row = msgspec.json.decode(text, type=KeyRow)
        there = row.place in server.tables.keys or server.holder(("key row", *row.place), but=connection)
        return Reply("INSERT 0 0") if there else insert(server, connection, text, within_s)

    def without_those(server: MemoryServer, changes: Iterable[Change]) -> Tables:
        keys = server.tables.keys
        return applied(server, [one for one in changes if one.table != "keys" or one.key not in keys])

    patch.setattr(KeyStore, "claim", taken)
    patch.setattr(MemoryServer, "_key_insert", inserted)
    patch.setattr(MemoryServer, "applied", without_those)
    return SOUND


def a_key_that_is_seen_is_replayed(patch: Patch) -> Variant:
    """Flushed or not."""
    patch.setattr(KeyStore, "confirm", KeyStore.look)
    return SOUND


def a_key_is_replayed_whatever_is_asked(patch: Patch) -> Variant:
    """Nobody compares the payload."""
    look = KeyStore.look

    def equal(store: KeyStore, session: Session, key: Key) -> Script[KeyFound | None]:
        found = yield from look(store, session, key)
        return None if found is None else replace(found, payload=key.payload)

    patch.setattr(KeyStore, "look", equal)
    return SOUND


def a_key_s_row_is_not_in_its_transaction(patch: Patch) -> Variant:
    """It is written by itself, and then the work is done."""

    def claim(store: KeyStore, session: Session, work: Work, key: Key) -> Script[Claim]:
        found = yield from store.look(session, key)
        return Claim.TAKEN if found is None else Claim.DONE

    def apart(store: KeyStore, work: Work, key: Key, result: bytes, keep_s: float) -> tuple[str, ...]:
        return ()

    patch.setattr(KeyStore, "claim", claim)
    patch.setattr(KeyStore, "closing", apart)
    return SOUND


OUTSIDE_MUTANTS = [
    Mutant(
        "an intent is not forced", the_intent_is_not_forced, ["I19"],
        Focus(servers=("postgres", "postgres"), journal="a", steps=1.0),
    ),
    Mutant(
        "a call that is seen is believed", a_call_that_is_seen_is_believed, ["I19"],
        schedule=KEPT["a step's answer is recorded on a slow disk"],
    ),
    Mutant("a step is undone before it is aborted", undone_before_it_is_aborted, ["I19"], STEPS),
    Mutant("steps are undone in their order", undone_in_their_order, ["I19"], STEPS),
    Mutant("a step is called again whatever it declares", called_again_whatever_it_declares, ["I19"], STEPS),
    Mutant("another key for each try", another_key_for_each_try, ["I19"], STEPS),
    Mutant("another key for each undo", another_key_for_each_undo, ["I19"], STEPS),
    Mutant("no last look before a step", no_last_look, ["I19"], STEPS, 2000),
    Mutant(
        "a step without an answer is no harm", no_answer_is_no_harm, ["I19"],
        schedule=scripted(
            Layout(), {"p1": 0.0},
            Pay(
                process="p1", at_s=1.0, parts=(("a", "x", -1), ("b", "x", 1)),
                uses=(Use(plan=Plan("0", action=(Say.BROKEN_AFTER,)), keyed=False, swallowed=True),),
            ),
        ),
    ),
    Mutant("a commit waits for no step", a_commit_waits_for_no_step, ["I19"], Focus(steps=1.0, staged=1.0)),
    Mutant("a step's result is told before it is recorded", told_before_it_is_recorded, ["I19"], STEPS),
    Mutant("tries are not bounded", tries_are_not_bounded, ["I20"], STEPS),
    Mutant(
        "tries are bounded by who looked", tries_are_bounded_by_who_looked, ["I20"],
        schedule=KEPT["three sweeps that spare nothing undo one step"],
    ),
    Mutant("what is parked holds up the rest", what_is_parked_holds_up_the_rest, ["I20"], STEPS),
    Mutant("a key is not claimed", a_key_is_not_claimed, ["I22"], Focus(keys=1.0)),
    Mutant("a key's row is not in its transaction", a_key_s_row_is_not_in_its_transaction, ["I22"], Focus(keys=1.0)),
    Mutant("a key is replayed whatever is asked", a_key_is_replayed_whatever_is_asked, ["I22"], Focus(keys=1.0)),
    Mutant(
        "a key that is seen is replayed", a_key_that_is_seen_is_replayed, ["I22"],
        Focus(servers=("mariadb", "mariadb"), weights={"crash": 10, "slow disk": 10, "lose reply": 5}, keys=1.0), 2000,
    ),
]  # fmt: skip

OUTSIDE_NOTICED_WITH = {
    "steps are undone in their order": 2, "a step is called again whatever it declares": 44,
    "another key for each try": 1, "another key for each undo": 7, "no last look before a step": 38,
    "a commit waits for no step": 2, "tries are not bounded": 4,
    "what is parked holds up the rest": 26, "a key is replayed whatever is asked": 8,
    "a key that is seen is replayed": 15,
}  # fmt: skip
