"""`schema apply | status | sql`: our tables in the user's databases.

Guarantees: `status` and `sql` change nothing. `apply` creates what is missing and never alters what stands; only
`--adopt`, which asks, overwrites anything: who a cloned or restored database says it is (I15).
"""

from __future__ import annotations

from typing import Any

import rich_click as click
from click.exceptions import Exit as Leave

from .. import wiring
from ..engine.survey import JournalSurvey, Survey, Tables, survey
from ..url import Url
from .desk import Desk, desk_command, yes_option
from .outcome import Exit, code_of, worst
from .output import Cell

DIALECTS = ("postgres", "mariadb", "sqlite")
PLACEHOLDER = "DATABASE"  # MariaDB qualifies every table: put the name of yours there
STATUS_COLUMNS = ("database", "where", "tables", "epoch", "prepared", "cluster")


@click.group()
def schema() -> None:
    """Our tables: create them, look at them, print them."""


@schema.command()
@desk_command
@click.option(
    "--adopt",
    metavar="NAME",
    help="Take this database as it is now, although it is a clone or was restored. Only after you have looked.",
)
@yes_option
def apply(desk: Desk, adopt: str | None, yes: bool) -> None:
    """Create our tables where they are missing. Safe to repeat."""
    known = desk.databases.resources
    if adopt is not None and adopt not in known:
        raise click.UsageError(f"--adopt {adopt!r}: there is no such resource; there are {', '.join(known)}")
    if adopt is not None and not yes:
        desk.require_terminal()
        desk.ask(
            f"{adopt} will be taken as it is now. If it was restored from a backup, transactions that were committed "
            "in it since then are lost, and branches that it shows as prepared may have been committed elsewhere. "
            "A clone that is adopted beside its original lets one branch be committed twice."
        )
    db = desk.coordinator(create=True)
    try:
        if adopt is not None:
            db.adopt(adopt)
        db.setup()
    finally:
        db.close()
    journal, found = _surveyed(desk)
    if desk.out.json:
        desk.out.document({"adopted": adopt, **status_json(desk, journal, found)})
    else:
        _print_status(desk, journal, found)


@schema.command()
@desk_command
def status(desk: Desk) -> None:
    """Show for each database whether our tables are there, who it is, and what it holds prepared. Changes nothing."""
    desk.databases.require_files()
    journal, found = _surveyed(desk)
    if desk.out.json:
        desk.out.document(status_json(desk, journal, found))
    else:
        _print_status(desk, journal, found)
    errors = [journal.error, *(one.error for one in found)]
    code = worst(*(code_of(error) for error in errors if error is not None))
    if code is not Exit.FINE:
        raise Leave(code)


def _surveyed(desk: Desk) -> tuple[JournalSurvey, list[Survey]]:
    with wiring.onlooker(desk.databases.resources, desk.databases.journal) as (ctx, shell):
        return shell.run(survey(ctx))


def _print_status(desk: Desk, journal: JournalSurvey, found: list[Survey]) -> None:
    urls = desk.databases.urls
    own = desk.databases.own_journal
    place = next((one.name for one in found if one.holds_journal), f"a database of its own: {own}")
    desk.out.fields(
        [
            ("journal", f"in {place}"),
            ("cluster", journal.cluster or "?"),
            ("epoch", "?" if journal.epoch is None else str(journal.epoch)),
            ("tables", _tables_cell(journal)),
        ]
    )
    rows: list[tuple[Cell, ...]] = [
        (
            one.name,
            str(urls[one.name]),
            _tables_cell(one),
            "" if one.identity is None else str(one.identity.epoch),
            "" if one.identity is None else str(len(one.prepared)),
            "" if one.identity is None else one.identity.cluster,
        )
        for one in found
    ]
    desk.out.table("", STATUS_COLUMNS, rows, cut=1)
    for name, error in [("journal", journal.error), *((one.name, one.error) for one in found)]:
        if error is not None:
            desk.out.say((f"{name}: {error}", "red"))
    for one in found:
        for warning in one.warnings:
            desk.out.say((f"{one.name}: {warning}", "yellow"))


def _tables_cell(one: JournalSurvey | Survey) -> Cell:
    if one.tables is Tables.READY and one.error is not None:
        return "ready, but see below", "red"
    return one.tables.value, "green" if one.tables is Tables.READY else "red"


def status_json(desk: Desk, journal: JournalSurvey, found: list[Survey]) -> dict[str, Any]:
    """The status for programs."""
    urls = desk.databases.urls
    return {
        "ok": journal.error is None and all(one.error is None for one in found),
        "journal": {
            "in": next((one.name for one in found if one.holds_journal), None),
            "tables": journal.tables.value,
            "cluster": journal.cluster,
            "epoch": journal.epoch,
            "error": _text(journal.error),
        },
        "databases": [
            {
                "name": one.name,
                "url": str(urls[one.name]),
                "kind": urls[one.name].kind,
                "holds_journal": one.holds_journal,
                "tables": one.tables.value,
                "resource_id": None if one.identity is None else one.identity.resource_id,
                "cluster": None if one.identity is None else one.identity.cluster,
                "epoch": None if one.identity is None else one.identity.epoch,
                "server": one.server,
                "prepared": [prepared.xid.gid for prepared in one.prepared],
                "warnings": list(one.warnings),
                "error": _text(one.error),
            }
            for one in found
        ],
    }


def _text(error: Exception | None) -> str | None:
    return None if error is None else str(error)


@schema.command()
@desk_command
@click.option("--dialect", type=click.Choice(DIALECTS), help="Print for this kind of database.")
def sql(desk: Desk, dialect: str | None) -> None:
    """Print the statements that create our tables, for whoever must apply them by hand."""
    if dialect is None and not desk.given:
        raise click.UsageError("name a --dialect, or the databases with -r NAME=URL")
    parts = _parts(desk) if dialect is None else _parts_of_dialect(dialect)
    if desk.out.json:
        desk.out.document({"schema": parts})
        return
    for part in parts:
        of = f" {part['name']}" if part["name"] else ""
        click.echo(f"-- nodoubt:{of} ({part['kind']}), as {part['role']}\n\n{part['sql'].strip().rstrip(';')};\n")


def _parts_of_dialect(dialect: str) -> list[dict[str, str]]:
    url = Url(dialect, dialect, database=PLACEHOLDER)
    return [
        _part("", dialect, "journal", wiring.journal_of(url).schema_sql()),
        _part("", dialect, "participant", wiring.resource_of(dialect, url).schema_sql()),
    ]


def _parts(desk: Desk) -> list[dict[str, str]]:
    wanted = desk.databases
    at = wanted.journal if wanted.journal in wanted.resources else next(iter(wanted.resources))
    own = wanted.own_journal
    url, name = (wanted.urls[at], at) if own is None else (own, "")
    return [
        _part(name, url.kind, "journal", wiring.journal_of(url).schema_sql()),
        *(
            _part(name, url.kind, "participant", wiring.resource_of(name, url).schema_sql())
            for name, url in wanted.urls.items()
        ),
    ]


def _part(name: str, kind: str, role: str, sql: str) -> dict[str, str]:
    return {"name": name, "kind": kind, "role": role, "sql": sql}
