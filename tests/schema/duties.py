"""What an account must be able to do, duty by duty: each fails by name where a right is missing.

A duty raises, or says what went wrong, so that whoever takes a right away sees which duty needs it.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from kit import QUICK, Database
from nodoubt import Coordinator, NoDoubtError, Settings, State, compensation, step, wiring
from nodoubt.doctor import examine
from nodoubt.engine import ends, start
from nodoubt.engine.context import using
from nodoubt.engine.survey import survey
from nodoubt.idempotency import claims
from nodoubt.jobs import board
from nodoubt.protocol.records import Quarantined
from nodoubt.steps.undoing import undo as undo_all
from nodoubt.url import parse_url
from nodoubt.xid import new_attempt

Places = Sequence[Database]  # a and b; the journal is in a
Duty = Callable[..., None]
SOON = replace(QUICK, decide_s=1)  # what is denied stays so
FORGETFUL = replace(SOON, retention_s=1e-9)
IMPATIENT = replace(SOON, decide_s=0.2)
RECOVERED_WITHIN_S = 20.0
PATIENCES = (1, 5, 25)
_numbers = itertools.count()
_patience = [1]  # how much longer than these settings say a coordinator may take to be told that something is denied


class Failed(Exception):
    """A duty that was not done."""


def coordinator(places: Places, settings: Settings = SOON) -> Coordinator:
    settings = replace(settings, decide_s=settings.decide_s * _patience[-1])
    return Coordinator({one.name: one.url for one in places}, recovery=False, settings=settings)


@contextlib.contextmanager
def patient(times: int) -> Iterator[None]:
    """On a loaded machine: an answer that did not come in time tells nothing of rights."""
    _patience.append(times)
    try:
        yield
    finally:
        _patience.pop()


def _move(tx: Any, account: int = 0) -> None:
    tx["a"].execute(f"update accounts set balance = balance - 1 where id = {account}")
    tx["b"].execute(f"update accounts set balance = balance + 1 where id = {account}")


def _name() -> str:
    return f"n{next(_numbers)}"


def begin(places: Places, by: Places | None = None) -> None:
    """Open twice: the second finds what the first has written. `by`: as whom."""
    for _ in range(2):
        with coordinator(by or places) as db:
            db.setup()


def commit_at_once(places: Places) -> None:
    with coordinator(places) as db, db.transaction() as tx:
        _move(tx)


def commit_in_one_database(places: Places) -> None:
    with coordinator(places) as db:
        for name in "ab":
            with db.transaction() as tx:
                tx[name].execute("update accounts set balance = balance where id = 0")
            _clean(db.status(tx.attempt).complete, "a receipt")


def settle(places: Places) -> None:
    """A doubt ends: one that committed in one database, and one that nobody will ever see again."""
    with coordinator(places) as db:
        with db.transaction() as tx:
            tx["b"].execute("update accounts set balance = balance where id = 0")
        _clean(db.settle(tx.attempt).state is State.COMMITTED, "a receipt")
        _clean(db.settle(new_attempt()).state is State.ABORTED, "a fence")


def take_keys(places: Places) -> None:
    """Once, and again, in each database; a repetition confirms what the first has written."""
    with coordinator(places) as db:
        for on in "ab":
            key = _name()
            for replayed in (False, True):
                with db.once(key, on=on) as once:
                    _clean(once.replayed is replayed, "a key")


def forget_keys(places: Places, by: Places | None = None) -> None:
    with coordinator(places) as db:
        for on in "ab":  # never repeated, so never confirmed
            with db.once(_name(), on=on, keep=1e-9):
                pass
    with coordinator(by or places) as db:
        db._shell.run(claims.expire(db._ctx))
    for place in places:
        table = "nodoubt.keys" if place.kind == "postgres" else "nodoubt_keys"
        left = place.query(f"select count(*) from {table} where confirms = 0 and scope = ''")[0][0]
        _clean(left == 0, f"denied: keys on {place.name}")


def work_on_a_job(places: Places) -> None:
    """Begun, left, gone on with and done; given up; and told of, all the while that the lease is renewed."""
    name = _name()
    with coordinator(places) as db:
        for items in ([1], [1, 2]):
            with db.job(name, quiet=True) as job:
                for chunk in job.chunks(items, 1):
                    with chunk as tx:
                        _move(tx)
                    db._shell.run(board.hold_all(db._ctx))
                if len(items) == 1:
                    job.pause()
            seen = db.progress(name)
            _clean((seen.done, seen.total) == (len(items), len(items)), "denied: the progress")
        db.forget_job(name)
        _clean(all(one.name != name for one in db.jobs()), "the list of jobs")


def forget_jobs(places: Places, by: Places | None = None) -> None:
    with coordinator(places) as db, db.job(_name(), quiet=True):
        pass
    with coordinator(by or places, FORGETFUL) as db:
        _clean(db._shell.run(board.expire(db._ctx)) > 0, "denied: nothing was forgotten")


def stage_and_decide(places: Places) -> None:
    name = _name()
    with coordinator(places) as db:
        with db.begin_distributed(name) as tx:
            _move(tx)
        _clean(db.commit_distributed(name).complete, "phase two")
        _clean(bool(db.transactions()) and bool(db.events(tx.attempt)), "the trail")
        with db.begin_distributed(name, reuse=True) as tx:
            _move(tx)
        db.rollback_distributed(name)


@step("duties.reserve")
def _reserve() -> str:
    return "reserved"


@compensation("duties.release")
def _release() -> None:
    return None


def call_and_confirm(places: Places) -> None:
    name = _name()
    with coordinator(places, IMPATIENT) as db:
        with db.begin_distributed(name, confirmations={"me"}) as tx:
            _move(tx)
        db.call(name, _reserve)
        db.confirm(name, "me")
        _clean(db.commit_distributed(name).complete, "phase two")


def undo(places: Places, by: Places | None = None) -> None:
    """What is aborted has its steps undone."""
    name = _name()
    with coordinator(places, IMPATIENT) as db:
        with db.begin_distributed(name) as tx:
            _move(tx)
        db.call(name, _reserve, undo=_release)
    with coordinator(by or places, IMPATIENT) as db:
        db.rollback_distributed(name)
        db._shell.run(undo_all(db._hand(grace_s=0), tx.attempt))
        _clean(all(call.closed for call in db.steps(tx.attempt)), "the step")


def recover(places: Places, by: Places | None = None) -> None:
    """What was abandoned, due, and decided but not carried out."""
    from rules.mutants import out_of_reach

    with coordinator(places) as db, db.begin_distributed(_name(), deadline=0.001) as tx:
        _move(tx)
    with coordinator(places) as db, out_of_reach("a", "b"):
        name = _name()
        with db.begin_distributed(name) as tx:
            _move(tx, account=1)
        db.commit_distributed(name)
    with coordinator(by or places) as db:
        _recovered(db)
    for place in places:
        _clean(not place.prepared(), f"branches on {place.name}")


def quarantine(places: Places, by: Places | None = None) -> None:
    with coordinator(by or places) as db:
        entry, journal = Quarantined(new_attempt(), 0, "a", "a test", 0.0), db._ctx.journal
        for _ in range(2):
            db._shell.run(using(db._ctx.journal_pool, lambda s: journal.quarantine(s, entry)))
        db.clear_quarantined(entry.attempt, 0, by="me")
        _clean(entry.attempt not in {one.attempt for one in db.quarantined()}, "clearing")


def forget(places: Places, by: Places | None = None) -> None:
    """Retention: everything that has ended goes, receipts and epochs too."""
    with coordinator(places) as db:
        for name in (_name(), _name()):
            with db.begin_distributed(name) as tx:
                _move(tx)
            db.commit_distributed(name)
        for name in "ab":
            with db.transaction() as tx:
                tx[name].execute("update accounts set balance = balance where id = 0")
    with coordinator(by or places, FORGETFUL) as db:
        db.recover(grace=0)
        db._shell.run(start.renew(db._ctx))
        gone = db._shell.run(ends.retire(db._ctx))
        _clean(gone > 0, "denied: nothing was forgotten")
    for place in places:
        table = "nodoubt.receipts" if place.kind == "postgres" else "nodoubt_receipts"
        _clean(place.query(f"select count(*) from {table} where alone")[0][0] == 0, f"receipts on {place.name}")


def look(places: Places, by: Places | None = None) -> None:
    """Ask what there is, and examine the databases; nothing is changed."""
    name = _name()
    with coordinator(places) as db:
        with db.begin_distributed(name) as tx:
            _move(tx)
        try:
            _ask(by or places, name, tx.attempt)
            _examine(by or places)
        finally:
            db.rollback_distributed(name)


def _ask(places: Places, name: str, attempt: str) -> None:
    urls = {one.name: one.url for one in places}
    with Coordinator(urls, recovery=False, read_only=True, settings=SOON) as db:
        _clean(db.status(name).state is State.PREPARED, "the state of a name")
        _clean(any(one.name == name for one in db.transactions()), "the list of names")
        _clean(bool(db.events(attempt)), "the trail")
        db.steps(name)
        db.jobs()
        db.confirmations(attempt)
        db.quarantined()
    with wiring.onlooker(urls, None, SOON) as (ctx, shell):
        journal, found = shell.run(survey(ctx))
    for error in (journal.error, *(one.error for one in found)):
        if error is not None:
            raise error


def _examine(places: Places) -> None:
    with wiring.patients({one.name: parse_url(one.url) for one in places}) as (patients, shell):
        seen = shell.run(examine(patients, wiring.SystemClock()))
    for one in seen:
        advice = [gap.advice for gap in one.gaps if "GRANT" in gap.advice or "schema sql" in gap.advice]
        _clean(one.error is None and one.broken is None and not advice, f"{one.name} denied: {one.error} {advice}")
        _clean(bool(one.prepared), f"{one.name} denied: the branch")
        _clean(one.identity is not None, f"{one.name} denied: who it is")
    _clean(seen[0].journal is not None, f"{seen[0].name} denied: the journal")


DUTIES: tuple[Duty, ...] = (
    begin,
    commit_at_once,
    commit_in_one_database,
    settle,
    take_keys,
    forget_keys,
    work_on_a_job,
    forget_jobs,
    stage_and_decide,
    call_and_confirm,
    undo,
    recover,
    quarantine,
    forget,
)


def _clean(done: bool, what: str) -> None:
    if not done:
        raise Failed(what)


def tidy(places: Places) -> None:
    """What a duty that failed has left: everything is decided and carried out."""
    with coordinator(places) as db:
        for one in db.transactions(state=State.PREPARED):
            db.rollback_distributed(one.name)
        _recovered(db)


def _recovered(db: Coordinator) -> None:
    """Again where a session has not ended yet that has prepared something: its server takes the time it needs."""
    deadline = time.monotonic() + RECOVERED_WITHIN_S
    while not (report := db.recover(grace=0)).clean:
        late = time.monotonic() >= deadline
        _clean("denied" not in str(report.trouble) and not late, f"what recovery leaves: {report.trouble}")


def missed(places: Places, duties: Sequence[Duty] = DUTIES, **by: Places) -> str:
    """The first duty that fails, and how; "" if none does."""
    for duty in duties:
        try:
            duty(places, **by)
        except (NoDoubtError, Failed) as error:
            return f"{duty.__name__}: {error}"
    return ""
