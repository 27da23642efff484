"""`jobs`: which long jobs there are, and how far they are.

Guarantees: only `forget` changes anything, and asks first; it refuses while somebody is at work on the job.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import rich_click as click
from click.exceptions import Exit as Leave

from ..amounts import iso
from ..jobs.bar import Bar
from ..jobs.records import JobRecord, JobState
from .asking import Duration
from .desk import Desk, desk_command, yes_option
from .outcome import Exit
from .output import Cell
from .words import age, moment, printable

if TYPE_CHECKING:
    from ..coordinator import Coordinator

STYLES = {
    JobState.RUNNING: "cyan",
    JobState.STOPPED: "yellow",
    JobState.ABANDONED: "bold red",
    JobState.DONE: "green",
    JobState.UNREADABLE: "bold red",
}
EVERY_LEAST_S, EVERY_S = 0.05, 1.0
name_argument = click.argument("name", metavar="NAME")


@click.group()
def jobs() -> None:
    """Look after long jobs: how far they are, who works on them."""


@jobs.command()
@desk_command
def ls(desk: Desk) -> None:
    """List the jobs, those first that changed last. Exits with 3 if one of them cannot be read."""
    with desk.coordinator(read_only=True) as db:
        found = db.jobs()
    if desk.out.json:
        desk.out.document({"jobs": [job_json(one) for one in found]})
    elif found:
        _print_all(desk, found)
    else:
        desk.out.say("No jobs.")
    if any(one.state is JobState.UNREADABLE for one in found):
        raise Leave(Exit.HUMAN)


def _print_all(desk: Desk, found: list[JobRecord]) -> None:
    now = time.time()
    desk.out.table(
        "",
        ("job", "state", "done", "changed", "by", "note"),
        [(one.name, _state(one), _done(one), age(one.changed_at, now), one.worker, one.note) for one in found],
        cut=5,
    )


@jobs.command()
@desk_command
@name_argument
@click.option("--watch", is_flag=True, help="Go on until nobody is at work on it; with --json one document to a line.")
@click.option("--every", type=Duration(), metavar="TIME", help="With --watch: time between looks [1s].")
def show(desk: Desk, name: str, watch: bool, every: float | None) -> None:
    """Show how far a job is. With --watch, exits with 0 when it is done, and with 1 when it was left before."""
    every = EVERY_S if every is None else every
    if every < EVERY_LEAST_S:
        raise click.UsageError(f"--every is at least {EVERY_LEAST_S:g}s")
    with desk.coordinator(read_only=True) as db:
        record = _watched(desk, db, name, every) if watch else db.progress(name)
    if not watch and desk.out.json:
        desk.out.document(job_json(record))
    elif not desk.out.json:
        _print(desk, record)
    if watch and record.state is not JobState.DONE:
        raise Leave(Exit.FAILED)


def _watched(desk: Desk, db: Coordinator, name: str, every_s: float) -> JobRecord:
    """A bar on a terminal; elsewhere a line for each change."""
    bar, last = Bar(printable(name), quiet=desk.out.json), None
    try:
        while True:
            record = db.progress(name)
            if record != last and desk.out.json:
                desk.out.line(job_json(record))
            elif record != last and not bar.drawn:
                desk.out.say(f"{moment(record.changed_at)}  {record.state}  {_done(record)}  {record.note}".rstrip())
            bar.show(record.done, record.total, printable(record.note))
            if record.state is not JobState.RUNNING:
                return record
            last = record
            time.sleep(every_s)
    finally:
        bar.end()


@jobs.command()
@desk_command
@name_argument
@yes_option
def forget(desk: Desk, name: str, yes: bool) -> None:
    """Give a job up: its name is free, and whoever begins it again begins at the beginning."""
    with desk.coordinator() as db:
        record = db.progress(name)
        if not yes:
            desk.require_terminal()
            desk.ask(f"{name} is {record.state}, {_done(record)} done; that stands, but its checkpoint will be gone.")
        db.forget_job(name)
    if desk.out.json:
        desk.out.document({"forgotten": job_json(record)})
    else:
        desk.out.say(f"{name} is forgotten.")


def _print(desk: Desk, record: JobRecord) -> None:
    now = time.time()
    rows: list[tuple[str, Cell]] = [
        ("job", record.name),
        ("state", _state(record)),
        ("done", _done(record)),
        ("checkpoint", "" if record.checkpoint is None else str(record.checkpoint)),
        ("note", record.note),
        ("by", record.worker),
        ("begun", f"{moment(record.begun_at)} ({age(record.begun_at, now)})"),
        ("changed", f"{moment(record.changed_at)} ({age(record.changed_at, now)})"),
    ]
    desk.out.fields([(name, value) for name, value in rows if value])


def _state(record: JobRecord) -> Cell:
    return record.state.value, STYLES[record.state]


def _done(record: JobRecord) -> str:
    if not record.total:
        return str(record.done)
    return f"{record.done} of {record.total} ({100 * record.done // record.total} %)"


def job_json(record: JobRecord) -> dict[str, Any]:
    """A job for programs."""
    return {
        "name": record.name,
        "state": record.state.value,
        "done": record.done,
        "total": record.total,
        "checkpoint": record.checkpoint,
        "note": record.note,
        "worker": record.worker,
        "begun_at": iso(record.begun_at),
        "changed_at": iso(record.changed_at),
    }
