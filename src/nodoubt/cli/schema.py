"""`schema apply | status | sql`: our tables in the user's databases.

Guarantees: `status` and `sql` change nothing. `apply` creates what is missing and migrates what is older than this
release. It asks before a migration that shuts out coordinators of the release before, and `--adopt` asks before it
overwrites who a cloned or restored database says it is (I15).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import rich_click as click
from click.exceptions import Exit as Leave

from .. import wiring
from ..engine.survey import JournalSurvey, Survey, Tables, survey
from ..schema import Part, Role, grants, shipped, statements
from ..schema import Tables as SchemaTables
from ..url import Url
from .desk import Desk, desk_command, yes_option
from .outcome import Exit, code_of, worst
from .output import Cell

DIALECTS = ("postgres", "mariadb", "sqlite")
PLACEHOLDER = "DATABASE"  # MariaDB qualifies every table: put the name of yours there
STATUS_COLUMNS = ("database", "where", "tables", "version", "epoch", "prepared", "cluster")


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
    """Create our tables where they are missing, and migrate those of an older release. Safe to repeat."""
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
    _ask_to_shut_out(desk, yes)
    db = desk.coordinator(create=True)
    try:
        if adopt is not None:
            db.adopt(adopt)
        db.setup(migrate=True)
    finally:
        db.close()
    journal, found = _surveyed(desk)
    if desk.out.json:
        desk.out.document({"adopted": adopt, **status_json(desk, journal, found)})
    else:
        _print_status(desk, journal, found)


def _ask_to_shut_out(desk: Desk, yes: bool) -> None:
    """Some migrations end what older coordinators have under way."""
    journal, found = _surveyed(desk)
    shut = ["the journal"] * journal.shuts_out + [one.name for one in found if one.shuts_out]
    if shut and not yes:
        desk.require_terminal()
        desk.ask(
            f"The migration of {', '.join(shut)} shuts out coordinators of the release before: what they have under "
            "way is aborted, and what they have staged is left for a newer one. Stop them, or update them, first."
        )


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
    wanted = desk.databases
    with wiring.onlooker(wanted.resources, wanted.journal, desk.config.settings) as (ctx, shell):
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
            ("version", _version(journal)),
        ]
    )
    rows: list[tuple[Cell, ...]] = [
        (
            one.name,
            str(urls[one.name]),
            _tables_cell(one),
            _version(one),
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


def _version(one: JournalSurvey | Survey) -> str:
    if one.version is None:
        return ""
    words = str(one.version.stands)
    if one.version.stands != one.known:
        words += f", this release knows {one.known}"
    return words + (", a migration has begun" if one.version.unfinished else "")


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
            "version": None if journal.version is None else journal.version.stands,
            "known": journal.known,
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
                "version": None if one.version is None else one.version.stands,
                "known": one.known,
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
@click.option("--after", type=click.IntRange(0), default=0, metavar="N", help="Only the migrations after this one.")
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    help="Instead of the tables, exactly the rights that an account needs: at work, to recover only, to set up, "
    "or to look (ls, show, doctor).",
)
@click.option(
    "--to", metavar="ACCOUNT", help="With --role: whom they are granted to [the user of each URL, or the role]."
)
def sql(desk: Desk, dialect: str | None, after: int, role: str | None, to: str | None) -> None:
    """Print the statements that create our tables, or grant the rights to them, for whoever must apply them by hand."""
    if dialect is None and not desk.given:
        raise click.UsageError("name a --dialect, or the databases with -r NAME=URL")
    if to is not None and role is None:
        raise click.UsageError("--to goes with --role")
    if role is not None:
        printed = (
            _rights_at_hand(desk, Role(role), to) if dialect is None else _rights_anywhere(dialect, Role(role), to)
        )
    else:
        places = _places(desk) if dialect is None else [("", _placeholder(dialect), part) for part in Part]
        printed = [_tables_of(*place, after) for place in places]
    if desk.out.json:
        desk.out.document({"schema": printed})
        return
    for one in printed:
        of = f" {one['name']}" if one["name"] else ""
        click.echo(f"-- nodoubt:{of} ({one['kind']}), {one['part']}\n\n{one['sql']}")


Place = tuple[str, Url, Part]


def _placeholder(dialect: str) -> Url:
    return Url(dialect, dialect, database=PLACEHOLDER)


def _places(desk: Desk) -> list[Place]:
    return [
        (*_journal_place(desk), Part.JOURNAL),
        *((name, url, Part.PARTICIPANT) for name, url in desk.databases.urls.items()),
    ]


def _journal_place(desk: Desk) -> tuple[str, Url]:
    wanted = desk.databases
    if wanted.own_journal is not None:
        return "", wanted.own_journal
    name = wanted.journal or next(iter(wanted.resources))
    return name, wanted.urls[name]


def _tables_of(name: str, url: Url, part: Part, after: int) -> dict[str, str]:
    tables = SchemaTables(shipped(part, url.kind), whose=name, database=url.database)
    return {"name": name, "kind": url.kind, "part": part.value, "sql": tables.script(after=after)}


def _rights_at_hand(desk: Desk, role: Role, to: str | None) -> list[dict[str, str]]:
    """For each database what an account needs there, be it one part or both."""
    parts: dict[tuple[str, Url], list[Part]] = {}
    for name, url, part in _places(desk):
        parts.setdefault((name, url), []).append(part)
    return [_rights_of(name, url, its, role, to or url.user) for (name, url), its in parts.items()]


def _rights_anywhere(dialect: str, role: Role, to: str | None) -> list[dict[str, str]]:
    url = _placeholder(dialect)
    return [_rights_of("", url, its, role, to) for its in ([Part.PARTICIPANT], [Part.JOURNAL, Part.PARTICIPANT])]


def _rights_of(name: str, url: Url, parts: Sequence[Part], role: Role, to: str | None) -> dict[str, str]:
    if url.kind == "sqlite":
        raise click.UsageError("SQLite knows no accounts: who may write the file and its directory may do all of it")
    sql = statements(url.kind, grants(url.kind, role, parts, url.database), to or role.value)
    return {"name": name, "kind": url.kind, "part": f"{' and '.join(parts)}, for the role {role}", "sql": sql}
