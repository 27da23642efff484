"""`recover`: one sweep of recovery, or one after the other until it is told to stop.

Guarantees: any number of these may run at the same time, beside any number of coordinators (I13). With `--watch` an
outage, of the journal too, is told and outlived; Ctrl-C and SIGTERM let a sweep that has begun finish.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import rich_click as click
from click.exceptions import Exit as Leave

from ..amounts import iso, span
from ..engine.sweep import SweepReport
from ..errors import NoDoubtError
from ..protocol.records import Call, Quarantined
from .apart import print_unreadable, unreadable_json
from .apps import app_option, import_apps
from .asking import Duration, held_json, print_quarantined
from .desk import Desk, desk_command
from .outcome import Exit, code_of
from .steps import call_json, print_parked
from .words import moment

if TYPE_CHECKING:
    from ..coordinator import Coordinator

EVERY_LEAST_S = 0.05


@click.command()
@desk_command
@click.option("--watch", is_flag=True, help="Go on until Ctrl-C; with --json one document to a line.")
@click.option(
    "--every", type=Duration(), metavar="TIME", help="With --watch: time between sweeps [the setting sweep, 10s]."
)
@click.option(
    "--grace",
    type=Duration(),
    metavar="TIME",
    help="Leave undecided branches alone that are younger [the setting grace, 60s]. 0 aborts whatever is being "
    "prepared at this moment.",
)
@app_option
def recover(desk: Desk, watch: bool, every: float | None, grace: float | None, apps: tuple[str, ...]) -> None:
    """Finish what crashed processes left behind: commit what was decided, abort what never was.

    With --app, undo the steps of what was aborted, too: that takes the application's code.
    """
    every = desk.config.settings.sweep_s if every is None else every
    if every < EVERY_LEAST_S:
        raise click.UsageError(f"--every is at least {EVERY_LEAST_S:g}s")
    import_apps(apps)
    if watch:
        _watch(desk, every, grace)
        return
    with desk.coordinator() as db:
        report, held, parked = db.recover(grace=grace), db.quarantined(), db.parked_steps()
    if desk.out.json:
        desk.out.document(report_json(report, held, parked))
    else:
        _print_report(desk, report)
        print_quarantined(desk, held)
        print_parked(desk, parked)
        print_unreadable(desk, report.unreadable)
    if held or parked or report.quarantined or report.unreadable:
        raise Leave(Exit.HUMAN)
    if report.trouble:
        raise Leave(Exit.AGAIN)


def _watch(desk: Desk, every_s: float, grace_s: float | None) -> None:
    with told_to_stop() as stop:
        if not desk.out.json:
            desk.out.note(f"Sweeping every {span(every_s)} until Ctrl-C.")
        while not stop.is_set():
            try:
                with desk.coordinator() as db:
                    _sweep_on(desk, db, every_s, grace_s, stop)
            except NoDoubtError as error:
                # Only what waiting can mend: a journal that is down must not end its recoverer.
                if code_of(error) is not Exit.AGAIN:
                    raise
                _tell_trouble(desk, error)
                stop.wait(every_s)
    desk.out.note("Stopped.")


def _sweep_on(desk: Desk, db: Coordinator, every_s: float, grace_s: float | None, stop: threading.Event) -> None:
    seen: frozenset[tuple[object, ...]] = frozenset()
    while not stop.is_set():
        report, held, parked = db.recover(grace=grace_s), db.quarantined(), db.parked_steps()
        if desk.out.json:
            desk.out.line(report_json(report, held, parked))
        else:
            if _did_something(report):
                _print_report(desk, report, at=time.time())
            now: frozenset[tuple[object, ...]] = frozenset(
                [(one.attempt, one.branch) for one in held]
                + [(c.attempt, -1 - c.number) for c in parked]
                + [one.key for one in report.unreadable]
            )
            if now - seen:
                print_quarantined(desk, held)
                print_parked(desk, parked)
                print_unreadable(desk, report.unreadable)
            seen = now
        stop.wait(every_s)


@contextmanager
def told_to_stop() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set; a second Ctrl-C interrupts as usual."""
    stop = threading.Event()

    def on_signal(number: int, _: object) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell_trouble(desk: Desk, error: NoDoubtError) -> None:
    if desk.out.json:
        desk.out.line(report_json(SweepReport(trouble={"journal": str(error)}), [], []))
    else:
        desk.out.note((f"{moment(time.time())}  {error}", "yellow"))


def _did_something(report: SweepReport) -> bool:
    steps = report.steps
    undone = steps is not None and (steps.undone or steps.failed or steps.parked)
    did = report.committed or report.rolled_back or report.ended or report.quarantined or report.reaped
    return bool(report.trouble or did or undone)


def _print_report(desk: Desk, report: SweepReport, at: float | None = None) -> None:
    counts = [
        (report.committed, "committed"),
        (report.rolled_back, "rolled back"),
        (report.left, "left alone"),
        (report.quarantined, "quarantined"),
    ]
    told = [f"{count} {what}" for count, what in counts if count]
    line = f"{report.prepared} prepared {'branch' if report.prepared == 1 else 'branches'} found"
    line += f": {', '.join(told)}" if told else ""
    if report.ended:
        line += f"; {report.ended} {'transaction' if report.ended == 1 else 'transactions'} proved complete"
    prefix = "" if at is None else f"{moment(at)}  "
    desk.out.say((f"{prefix}{line}.", "green" if report.clean else "yellow"))
    if report.left:
        desk.out.say(
            "Left alone: staged and before their deadline, or younger than the grace (--grace). MariaDB does not tell "
            "how old a branch is: there it is as old as this process has known it, so use --watch."
        )
    if report.reaped:
        overdue = "transaction" if report.reaped == 1 else "transactions"
        desk.out.say((f"{prefix}{report.reaped} overdue {overdue} aborted.", "yellow"))
    _print_steps(desk, report, prefix)
    if report.unreadable:
        rows, it = ("row", "it") if len(report.unreadable) == 1 else ("rows", "them")
        desk.out.say(
            (
                f"{prefix}{len(report.unreadable)} {rows} of the journal cannot be read; what hangs on {it} was left.",
                "red",
            )
        )
    if not report.presumed:
        it = "One of them may be anybody's: until it is mended nothing is aborted for having no decision, however old."
        desk.out.say((f"{prefix}{it}", "red"))
    for what, why in report.trouble.items():
        desk.out.say((f"{prefix}{what}: {why}", "red"))


def _print_steps(desk: Desk, report: SweepReport, prefix: str) -> None:
    steps = report.steps
    if steps is None:
        return
    counts = [
        (steps.undone, "undone"),
        (steps.failed, "failed, to be tried again"),
        (steps.parked, "parked"),
        (steps.waiting, "waiting"),
    ]
    told = [f"{count} {what}" for count, what in counts if count]
    if told:
        clean = not (steps.failed or steps.parked or steps.waiting)
        desk.out.say((f"{prefix}Steps: {', '.join(told)}.", "green" if clean else "yellow"))
    for name, count in steps.without_code.items():
        desk.out.say((f"{prefix}{count} wait for the code of {name}: name its module with --app.", "yellow"))


def report_json(report: SweepReport, held: list[Quarantined], parked: list[Call]) -> dict[str, Any]:
    """A sweep for programs."""
    steps = report.steps
    return {
        "at": iso(time.time()),
        "clean": report.clean,
        "prepared": report.prepared,
        "committed": report.committed,
        "rolled_back": report.rolled_back,
        "left": report.left,
        "presumed": report.presumed,
        "ended": report.ended,
        "reaped": report.reaped,
        "steps": None
        if steps is None
        else {
            "undone": steps.undone,
            "failed": steps.failed,
            "parked": steps.parked,
            "waiting": steps.waiting,
            "without_code": dict(steps.without_code),
        },
        "trouble": dict(report.trouble),
        "quarantined": [held_json(one) for one in held],
        "parked": [call_json(one) for one in parked],
        "unreadable": [unreadable_json(one) for one in report.unreadable],
    }
