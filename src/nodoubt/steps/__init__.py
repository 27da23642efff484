"""Steps: actions outside of every database, called in a transaction, and compensated if it is aborted (I19, I20).

    @nodoubt.compensation
    def refund_card(order_id: int, key: IdempotencyKey) -> None: …

    @nodoubt.step
    def charge_card(order_id: int, amount: int, key: IdempotencyKey) -> str: …

    with db.transaction("order-42") as tx:
        tx["shop"].execute(…)
        tx.call(charge_card, 42, 99, undo=refund_card)

`registry` knows the functions, `encoding` turns arguments and results into JSON and back, `running` runs a function
with a time limit, `calling` is the script of a call, `undoing` that of its compensation, `worker` finishes what dead
processes left, `mending` is what a human may do about a call.

What is guaranteed: the intent is durable before the action starts, and its result before it is told; an action whose
attempt has been decided by then does not start; a compensation runs only where the register says ABORT, from the last
call to the first, and until it has succeeded, is parked, or is skipped by a human. Every try of an action has one
idempotency key, and so has every try of its compensation.

What the outside must do: take two requests of one key for one; cope with a compensation whose action never happened,
and then refuse that action should it still come. Without it, a process that stalls between its last look and its
request, or a worker that is taken for dead, can have an effect that nobody undoes, or undo one twice.

Must not: decide anything. The register does.
"""

from .registry import REGISTRY, Compensation, IdempotencyKey, Registry, Step, StepContext, compensation, step

__all__ = [
    "REGISTRY",
    "Compensation",
    "IdempotencyKey",
    "Registry",
    "Step",
    "StepContext",
    "compensation",
    "step",
]
