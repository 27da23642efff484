"""Every error nodoubt raises: one tree, so that one `except NoDoubtError` catches all of it.

Guarantees: `TransactionAborted` means that nothing happened and nothing of this attempt can happen
later; `InDoubt` is raised wherever that is not known (I5). A message says what happened, what state
the work is in, and what to do next. No message carries a password.

Must not: import anything of nodoubt. Everybody imports this module.
"""

from __future__ import annotations

from typing import Any, Literal

__all__ = [
    "BranchDoomed",
    "ClosedTransaction",
    "ConfirmationConflict",
    "DuplicateTransaction",
    "Heuristic",
    "InDoubt",
    "InvalidName",
    "InvariantViolated",
    "JournalRestored",
    "JournalUnavailable",
    "KeyInFlight",
    "KeyReused",
    "LineageBroken",
    "MissingExtra",
    "NoDoubtError",
    "NotAllowed",
    "NotAsked",
    "NotReady",
    "OutcomeConflict",
    "PoolExhausted",
    "ResourceRefused",
    "ResourceUnavailable",
    "SchemaMismatch",
    "StepInDoubt",
    "StepInFlight",
    "StepRefused",
    "StepTimedOut",
    "StillBeginning",
    "TransactionAborted",
    "TransactionDoomed",
    "UnknownTransaction",
    "UnreadableRecord",
    "UsageError",
    "invariant",
    "text_of",
]


class NoDoubtError(Exception):
    """The root of every error that nodoubt raises on purpose. A copy, or one from another process, is the same."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args), self.__dict__ or None


def _again(kind: type[NoDoubtError], args: tuple[Any, ...]) -> NoDoubtError:
    """Not by its own `__init__`: that makes the words, which are there already, and may take something else."""
    error = kind.__new__(kind, *args)
    super(NoDoubtError, error).__init__(*args)
    return error


class TransactionAborted(NoDoubtError):
    """Nothing of the transaction happened, and nothing of this attempt can happen later.

    `why` says what ended it. It is safe to run the work again under a new attempt.
    """

    def __init__(self, why: str, *, name: str | None = None, attempt: str | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.name = name
        self.attempt = attempt


class InDoubt(NoDoubtError):
    """The outcome is not known here. It is settled, or will be, in the journal; ask it by name or attempt.

    Never retry the work on the strength of this error: it may have been committed. `how_to_ask` is a
    command line that ends the doubt once the databases answer: `nodoubt settle`, in a program `settle(attempt)`.
    """

    def __init__(self, why: str, *, name: str | None, attempt: str) -> None:
        self.name = name
        self.attempt = attempt
        self.how_to_ask = f"nodoubt settle {attempt}"
        super().__init__(
            f"{why}. The outcome of {name or attempt!r} (attempt {attempt}) is not known here: do not repeat the "
            f"work. To find out, for good: {self.how_to_ask}"
        )


class Heuristic(NoDoubtError):
    """Somebody else ended a branch against the decision: atomicity is broken, a human must see it (I17)."""

    def __init__(self, message: str, *, attempt: str, branches: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.attempt = attempt
        self.branches = branches


class OutcomeConflict(NoDoubtError):
    """The transaction ended the other way already; the first outcome stands (I12)."""

    def __init__(self, name: str, *, stands: Literal["committed", "aborted"]) -> None:
        super().__init__(f"{name!r} was {stands} already; the first outcome stands and nothing was changed")
        self.name = name
        self.stands = stands


class DuplicateTransaction(NoDoubtError):
    """A transaction of this name is live, or ended and still reserved (I10)."""

    def __init__(self, name: str, *, state: str) -> None:
        super().__init__(
            f"the name {name!r} is taken by a transaction that is {state}: use another name, finish that one, or "
            "pass reuse=True once it has ended"
        )
        self.name = name
        self.state = state


class UnknownTransaction(NoDoubtError):
    """The journal knows no transaction of this name or attempt."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"no transaction {name!r} in the journal: it was never staged here, or it ended longer ago than the "
            "retention period"
        )
        self.name = name


class StillBeginning(NoDoubtError):
    """The name is known, but its begin has not finished, so it cannot be committed yet. Try again."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name!r} is still beginning: not all of its branches are prepared. Try again; if its process died, "
            "recovery aborts it after the grace period"
        )
        self.name = name


class NotReady(NoDoubtError):
    """It cannot be committed yet: somebody who was asked has not confirmed, or a step has not been answered.

    Nothing was changed. `missing`: who has not confirmed; `steps`: the steps without an answer.
    """

    def __init__(self, name: str, *, missing: tuple[str, ...] = (), steps: tuple[str, ...] = ()) -> None:
        reasons = []
        if missing:
            reasons.append(f"{', '.join(missing)} {'has' if len(missing) == 1 else 'have'} not confirmed")
        if steps:
            reasons.append(f"of {', '.join(steps)} nobody knows whether it has happened")
        what = "wait for them, call the step again if it may be repeated, or roll it back"
        super().__init__(f"{name!r} is not ready to commit: {'; '.join(reasons)}. Nothing was changed: {what}")
        self.name = name
        self.missing = missing
        self.steps = steps


class ConfirmationConflict(NoDoubtError):
    """Whoever was asked has said the contrary before; their first answer stands, and nothing was changed."""

    def __init__(self, name: str, who: str, *, stands: Literal["confirmed", "refused"], why: str = "") -> None:
        because = f" ({why})" if why else ""
        super().__init__(f"{who} has {stands} {name!r} already{because}; the first answer stands, nothing was changed")
        self.name = name
        self.who = who
        self.stands = stands


class NotAsked(NoDoubtError):
    """Somebody has confirmed or refused a transaction that did not ask them. Nothing was changed."""

    def __init__(self, name: str, who: str, asked: tuple[str, ...]) -> None:
        those = f"only {', '.join(asked)} can" if asked else "it was staged without confirmations="
        super().__init__(f"{name!r} does not wait for {who!r}: {those}. Nothing was changed")
        self.name = name
        self.who = who


class StepTimedOut(NoDoubtError, TimeoutError):
    """A step gave no answer in time: it may have happened, or happen yet. Its transaction can only be rolled back."""


class StepInDoubt(NoDoubtError):
    """Nobody knows whether the step happened: `StepInFlight`, ask again, or `TransactionDoomed`, roll it back."""


class StepInFlight(StepInDoubt):
    """Another call of the step, under the same key, may still be at work. Nothing was done here; call it again later.

    The transaction is as it was, and can be committed once the step is answered.
    """


class TransactionDoomed(StepInDoubt):
    """The step was called, and nobody knows whether it happened. It is not called again.

    Its transaction can only be rolled back, and then the step is compensated.
    """


class StepRefused(NoDoubtError):
    """The step was called before under this key, and its function refused. Call it under another key to try again."""


class KeyInFlight(NoDoubtError):
    """Another call has this idempotency key and is at work, prepared or in doubt. Nothing was done; ask again."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"the idempotency key {key!r} is in flight: another call that has it is at work, is staged, or was cut "
            "off and waits for recovery. Nothing was done here. Call again with the same key and payload: once that "
            "one has committed its result is returned, and if it was rolled back the work is done then"
        )
        self.key = key


class KeyReused(NoDoubtError):
    """This idempotency key was used before with another payload. Its result stands, and nothing was changed."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"the idempotency key {key!r} was used before with another payload; what was done then stands, and nothing "
            "was changed. Use a new key for new work, or repeat the first call exactly"
        )
        self.key = key


class JobTaken(NoDoubtError):
    """Somebody else is at work on this job, or a chunk of it is not decided yet. Nothing was done; try again later."""

    def __init__(self, job: str, why: str) -> None:
        super().__init__(
            f"the job {job!r} cannot be worked on now: {why}. Nothing was done. Try again, or wait here: "
            "job(…, patience=seconds). If you know that its worker is dead: job(…, takeover=True)"
        )
        self.job = job


class JobLost(NoDoubtError):
    """Another worker has taken this job over. What was committed stands; the chunk at hand was rolled back. Stop here.

    `committed`: that chunk, too, had been committed before this was noticed.
    """

    def __init__(self, job: str, *, committed: bool = False) -> None:
        chunk = "was committed, with its checkpoint, and stands" if committed else "was rolled back"
        super().__init__(
            f"another worker has taken the job {job!r} over. The chunk at hand {chunk}; what was committed before "
            "stands, and the other goes on from there. This one must stop: nodoubt jobs show tells who has it"
        )
        self.job = job
        self.committed = committed


class UnknownJob(NoDoubtError):
    """Nobody has begun a job of this name, or it was done and is forgotten since."""

    def __init__(self, job: str) -> None:
        super().__init__(f"there is no job {job!r}: it was never begun, or was done and is forgotten since")
        self.job = job


class InvalidName(NoDoubtError, ValueError):
    """A transaction name that is empty, too long, or holds control characters. No work was done."""


class ClosedTransaction(NoDoubtError):
    """The handle was used after its block had ended."""


class BranchDoomed(NoDoubtError):
    """An earlier statement on this branch failed, so it can only be rolled back (I16)."""


class UsageError(NoDoubtError, ValueError):
    """A wrong argument or setting, found before any work was done. The message says what to write instead."""


class ResourceRefused(NoDoubtError):
    """The database cannot, or must not, take part; the message names the setting to change."""


class ResourceUnavailable(NoDoubtError):
    """The database could not be reached, or did not answer in time, before anything was decided."""


class PoolExhausted(ResourceUnavailable):
    """No connection became free within the time allowed."""


class JournalUnavailable(NoDoubtError):
    """The journal could not be reached before anything was decided; nothing can have been committed."""


class SchemaMismatch(NoDoubtError):
    """Our tables are missing, or of a version this release does not know."""


class UnreadableRecord(SchemaMismatch):
    """A row of ours that was asked for cannot be read. What it says is not guessed at: a human must look."""


class LineageBroken(NoDoubtError):
    """A journal or participant was restored, cloned or exchanged: nothing of it is resolved by itself (I15)."""


class JournalRestored(LineageBroken):
    """The journal was set back: it may have forgotten decisions, so nothing at all is resolved by it (I15)."""


class NotAllowed(NoDoubtError):
    """The caller may not do this."""


class MissingExtra(NoDoubtError, ImportError):
    """A driver, or SQLAlchemy, is not installed; the message names the extra that brings it."""

    def __init__(self, need: str, extra: str) -> None:
        super().__init__(f"{need} needs what is not installed: pip install 'nodoubt[{extra}]'")
        self.extra = extra


class InvariantViolated(NoDoubtError, AssertionError):
    """A rule of the contract did not hold. This is a bug in nodoubt; the work was stopped rather than guessed."""


def text_of(error: BaseException) -> str:
    """What an error says, or its kind, if that is nothing (`CancelledError`).

    Anybody's may come to us, and one that cannot say it must not keep us from ours.
    """
    try:
        return str(error) or type(error).__name__
    except Exception as worse:
        return f"<no text: its __str__ raises {type(worse).__name__}>"


def invariant(condition: object, number: str, message: str, *facts: object) -> None:
    """Stop unless `condition` holds. `number` is the invariant's in PROTOCOL.md. Survives `python -O`.

    `facts` are what goes into the places of the message (`{}`), which is made only if it is needed.
    """
    if not condition:
        raise InvariantViolated(f"{number} violated: {message.format(*facts) if facts else message}")
