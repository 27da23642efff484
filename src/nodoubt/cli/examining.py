"""`doctor`: what is prepared in any database, whose it is, what it holds up, and the safe next action.

Guarantees: nothing is changed, and nothing that is advised is executed. A database that cannot be reached keeps none of
the others from being examined. Exit codes: 0 fine, 3 something needs a human, 1 one of them, or our tables in it, could
not be examined. With `--watch` what stays prepared from look to look grows old, even where no server tells its age;
Ctrl-C ends it with the exit code of the last look.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import rich_click as click
from click.exceptions import Exit as Leave

from .. import wiring
from ..config import seconds_of
from ..errors import UsageError
from ..url import Url, parse_url
from .asking import Duration
from .charts import print_report
from .desk import Desk, desk_command
from .output import Output
from .recovering import EVERY_LEAST_S, told_to_stop

if TYPE_CHECKING:
    from ..doctor import Patient, Report
    from ..engine.shell import ThreadShell


WATCH_EVERY_S = 10.0


class Watchable(click.RichCommand):
    """Lets `--watch` stand without its time: click would take the next argument, a URL, for it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        told = list(args)
        for number, one in enumerate(args):
            if one == "--watch" and not _is_time("".join(args[number + 1 : number + 2])):
                told[number] = f"--watch={WATCH_EVERY_S:g}"
        return super().parse_args(ctx, told)


def _is_time(text: str) -> bool:
    try:
        return bool(text) and seconds_of(text) >= 0
    except ValueError:
        return False


@click.command(cls=Watchable)
@click.argument("urls", nargs=-1, metavar="[URL]…")
@desk_command
@click.option("--watch", type=Duration(), metavar="[TIME]", help="Look again every so often [10s] until Ctrl-C.")
@click.option(
    "--grace",
    type=Duration(),
    metavar="TIME",
    help="What has been prepared for less may be at work [the setting grace, 60s].",
)
@click.option(
    "--expect",
    type=click.IntRange(1),
    metavar="N",
    help="So many may be prepared at once on a server: pool size times coordinators, and what is staged [the setting "
    "pool_size, 10].",
)
def doctor(desk: Desk, urls: tuple[str, ...], watch: float | None, grace: float | None, expect: int | None) -> None:
    """Examine databases, ours or anybody's, and change nothing.

    Lists every prepared transaction with whose it is, what it locks, who waits for it, and what to do about it; checks
    settings, rights, clocks and our own tables. Name the databases as URLs, or in the configuration.
    """
    if watch is not None and watch < EVERY_LEAST_S:
        raise click.UsageError(f"--watch is at least {EVERY_LEAST_S:g}s")
    named = _named(desk, urls)
    grace = desk.settings.grace_s if grace is None else grace
    expect = desk.settings.pool_size if expect is None else expect
    desk.out = Output(json=desk.out.json, secrets=[secret for url in named.values() for secret in url.secrets()])
    with wiring.patients(named) as (patients, shell):
        if watch is None:
            report = _report(patients, shell, grace, expect)
            _tell(desk, report)
            code = report.exit_code
        else:
            code = _watch(desk, patients, shell, watch, grace, expect)
    if code:
        raise Leave(code)


def _named(desk: Desk, urls: tuple[str, ...]) -> dict[str, Url]:
    """URLs under the names of their databases, then those with -r; the configuration's where neither was given."""
    found: dict[str, Url] = {}
    for number, text in enumerate(urls, 1):
        try:
            url = parse_url(text)
        except UsageError as error:
            raise click.UsageError(f"database {number}: {error}") from None
        found[_free(_base(url), found)] = url
    if not urls or desk.named:
        wanted = desk.databases
        for name, url in wanted.urls.items():
            found[_free(name, found)] = url
        if wanted.own_journal is not None:
            found[_free("journal", found)] = wanted.own_journal
    return found


def _base(url: Url) -> str:
    return os.path.basename(url.database) if url.kind == "sqlite" else url.database


def _free(name: str, taken: Mapping[str, Any]) -> str:
    number = 2
    free = name
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free


def _report(
    patients: list[Patient],
    shell: ThreadShell,
    grace_s: float,
    expect: int,
    known_for_s: Mapping[str, Mapping[str, float]] | None = None,
) -> Report:
    from ..doctor import diagnose, examine

    clock = wiring.SystemClock()
    found = shell.run(examine(patients, clock))
    return diagnose(found, now=clock.now(), grace_s=grace_s, expected=expect, known_for_s=known_for_s)


def _tell(desk: Desk, report: Report) -> None:
    if desk.out.json:
        desk.out.document(msgspec.to_builtins(report))
    else:
        print_report(desk.out, report)


def _watch(desk: Desk, patients: list[Patient], shell: ThreadShell, every_s: float, grace_s: float, expect: int) -> int:
    """Until told to stop; the exit code of the last look."""
    clock = wiring.SystemClock()
    since: dict[str, dict[str, float]] = {}
    code = 0
    with told_to_stop() as stop:
        while not stop.is_set():
            now = clock.elapsed()
            known = {name: {key: now - at for key, at in ids.items()} for name, ids in since.items()}
            report = _report(patients, shell, grace_s, expect, known)
            for one in report.databases:
                if one.error is None:
                    before = since.get(one.name, {})
                    since[one.name] = {prepared.id: before.get(prepared.id, now) for prepared in one.prepared}
            code = report.exit_code
            if desk.out.json:
                desk.out.line(msgspec.to_builtins(report))
            else:
                print_report(desk.out, report)
            stop.wait(every_s)
    desk.out.note("Stopped.")
    return code
