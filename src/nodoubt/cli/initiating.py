"""`init`: writes a commented nodoubt.toml after asking a few questions.

Guarantees: nothing is overwritten without asking; a file that holds a password can be read by its owner alone; what is
written has been read back. A database is connected to only if that is wanted, and nothing is changed there.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import rich_click as click

from .. import wiring
from ..config import FILE, SETTINGS, Config, Database, load, secret_of, written
from ..engine.context import Settings, using
from ..errors import NoDoubtError, UsageError
from ..ports import Session
from ..script import Script
from ..url import Url, parse_url
from .desk import Desk, desk_command, yes_option

DEFAULT_URL = "sqlite:///nodoubt.db"
KEEPERS = ("none", "env", "file", "here")
# What a setting is for, in the words of the file that is written.
WORDS = {
    "pool_size": "connections to each database, for work",
    "reserve_size": "connections to each database for phase two and recovery alone",
    "connect": "to open a connection",
    "acquire": "to wait for a connection to become free",
    "prepare": "for a database to prepare its branch",
    "decide": "for the journal to take a decision",
    "apply": "to wait for the commit of every branch; the caller is told then that recovery finishes it",
    "linger": "a MariaDB session that has prepared staged work is kept for so long, for a commit that comes at once",
    "begin": "for staged work that has no time limit of its own",
    "answer": "for a database to answer one question, recovery's too",
    "grace": "recovery may abort an undecided branch that is older; not below prepare",
    "sweep": "between two sweeps of recovery",
    "deadline": "what is staged and not decided by then is aborted",
    "retention": "for so long it is remembered how a transaction ended",
    "step": "for a step, or what undoes it, without a timeout of its own",
    "retry_first": "between two tries of a compensation; twice as long each time",
    "retry_most": "but never longer than this",
    "tries_max": "of a compensation; then it is parked for a human",
    "unclaimed": "a compensation that no worker has the code for is parked after so long",
    "job_lease": "a job whose worker has not been heard of for so long may be taken over",
    "held_warn": "staged work that holds its locks for longer is warned of",
    "open_warn": "more undecided names than this are warned of",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A database as it will be written. `url` has its password, if that is known; `keeper`: who else keeps it."""

    name: str
    url: Url
    keeper: str = "none"
    place: str = ""  # the variable, or the file

    @property
    def holds_secret(self) -> bool:
        return self.keeper == "here" and bool(self.url.password)


@click.command()
@click.argument("path", metavar="[FILE]", default=FILE, type=click.Path(path_type=Path, dir_okay=False))
@desk_command
@click.option("--check/--no-check", default=None, help="Connect to each database, and change nothing [ask].")
@yes_option
def init(desk: Desk, path: Path, check: bool | None, yes: bool) -> None:
    """Write a configuration after asking a few questions. What holds now is the default."""
    if yes and path.exists():
        raise click.UsageError(f"there is {path} already, and nothing was written: move it away, or leave --yes out")
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask on: --yes takes the defaults")
    holds = desk.config
    entries = _defaults(holds) if yes else _asked_for(holds)
    journal = _journal(holds, entries, yes=yes)
    if check is None:
        check = not yes and click.confirm("Connect to each of them now?", default=True, err=True)
    if check:
        for entry in entries:
            _check(desk, entry)
    if path.exists():
        desk.ask(f"{path} will be overwritten.")
    secret = any(entry.holds_secret for entry in (*entries, journal) if isinstance(entry, Entry))
    _write(path, text(entries, journal), secret=secret)
    _read_back(desk, path, secret=secret)


# ---- questions ------------------------------------------------------------------------------------


def _defaults(holds: Config) -> list[Entry]:
    if not holds.resources:
        return [Entry(wiring.ONLY, parse_url(DEFAULT_URL))]
    return [_entry(name, one.url, one.secret) for name, one in holds.resources.items()]


def _entry(name: str, url: Url, secret: str) -> Entry:
    """As it was configured before."""
    if secret.startswith("$"):
        return Entry(name, url, "env", secret[1:])
    if secret:
        return Entry(name, url, "file", secret)
    return Entry(name, url, "here" if url.password else "none")


def _asked_for(holds: Config) -> list[Entry]:
    left, entries = _defaults(holds), list[Entry]()
    while left or click.confirm("Another database?", default=False, err=True):
        default = left.pop(0) if left else None
        entries.append(_ask_for_one(default, [entry.name for entry in entries]))
    return entries


def _ask_for_one(default: Entry | None, taken: list[str]) -> Entry:
    def name_of(text: str) -> str:
        if text in taken:
            raise click.BadParameter(f"there is a {text!r} already")
        if not wiring.is_name(text):
            raise click.BadParameter(wiring.NAMES)
        return text

    def url_of(text: str) -> Url:
        try:
            return parse_url(text)
        except UsageError as error:
            raise click.BadParameter(str(error)) from None

    name = click.prompt("Name of a database", default=default.name if default else None, value_proc=name_of, err=True)
    shown = None if default is None else str(replace(default.url, password=""))
    url = click.prompt("  its URL", default=shown, value_proc=url_of, err=True)
    if default is not None and not url.password and replace(default.url, password="") == url:
        url = default.url
    if url.kind == "sqlite":
        return Entry(name, url)
    keeper = click.prompt(
        "  its password: none, in a variable of the environment, in a file of its own, or here",
        type=click.Choice(KEEPERS),
        default=default.keeper if default else "here" if url.password else "env",
        err=True,
    )
    if keeper == "env":
        usual = f"{re.sub(r'[^A-Z0-9]', '_', name.upper())}_PASSWORD"
        variable = default.place if default and default.keeper == "env" else usual
        return Entry(name, url, keeper, click.prompt("  the variable", default=variable, err=True))
    if keeper == "file":
        place = default.place if default and default.keeper == "file" else f"/run/secrets/{name}"
        return Entry(name, url, keeper, click.prompt("  the file", default=place, err=True))
    if keeper == "here" and not url.password:
        url = replace(url, password=click.prompt("  the password", hide_input=True, err=True))
    return Entry(name, url if keeper == "here" else replace(url, password=""), keeper)


def _journal(holds: Config, entries: list[Entry], *, yes: bool) -> str | Entry:
    """A resource's name, or a database of its own."""
    names = [entry.name for entry in entries]
    before = holds.journal
    default: str | Entry = before if isinstance(before, str) and before in names else names[0]
    if isinstance(before, Database):
        default = _entry("journal", before.url, before.secret)
    if yes:
        return default

    def journal_of(text: str) -> str:
        if text not in names:
            try:
                parse_url(text)
            except UsageError:
                raise click.BadParameter(f"one of {', '.join(names)}, or a URL") from None
        return text

    shown = default if isinstance(default, str) else str(replace(default.url, password=""))
    given = click.prompt(
        "Whose database keeps the journal (or a URL of its own)", default=shown, value_proc=journal_of, err=True
    )
    if given == shown:
        return default
    if given in names:
        return str(given)
    url = parse_url(given)
    return Entry("journal", url, "here" if url.password else "none")


def _check(desk: Desk, entry: Entry) -> None:
    """What the database says of itself. Reads only."""
    url = entry.url
    if url.kind == "sqlite" and not Path(url.database).exists():
        desk.out.note(f"{entry.name}: there is no file {url.database} yet; nodoubt schema apply makes it")
        return
    if entry.keeper == "env":
        url = replace(url, password=os.environ.get(entry.place, url.password))
    elif entry.keeper == "file" and not url.password:
        url = replace(url, password=secret_of(Path(entry.place))[0])
    with wiring.onlooker({entry.name: url.secret()}, None, desk.config.settings) as (ctx, shell):
        participant = ctx.participants[entry.name]

        def body(session: Session) -> Script[tuple[str, ...]]:
            return participant.resource.check(session)

        try:
            warnings = shell.run(using(participant.pool, body))
        except NoDoubtError as error:
            desk.out.note((f"{entry.name}: {error}", "red"))
            return
    desk.out.note((f"{entry.name}: can take part", "green"))
    for warning in warnings:
        desk.out.note((f"{entry.name}: {warning}", "yellow"))


# ---- the file -------------------------------------------------------------------------------------


def text(entries: list[Entry], journal: str | Entry) -> str:
    """The file: what was chosen, and every setting as a comment with its default."""
    lines = [
        "# What nodoubt works with. Flags and NODOUBT_… variables override it: nodoubt config show tells what holds.",
        "",
        "# Whose database keeps the decisions: a resource's name, or a URL of a database of its own. A database has",
        "# one journal, ever: a change of this is refused.",
        f"journal = {_quoted(journal) if isinstance(journal, str) else _value(journal)}",
        "",
        "# The databases that take part, by the names that your program uses. A password is best kept elsewhere:",
        '#   orders = { url = "postgresql://app@db1/orders", password_env = "ORDERS_PASSWORD" }',
        '#   orders = { url = "postgresql://app@db1/orders", password_file = "/run/secrets/orders" }',
        "[resources]",
        *(f"{_key(entry.name)} = {_value(entry)}" for entry in entries),
        "",
        "# Times as 30s, 5m, 1h30m, 2d. None of them matters to safety: they choose who tries, and when.",
        "[settings]",
    ]
    defaults = Settings()
    for key, name in SETTINGS.items():
        value = getattr(defaults, name)
        shown = f'"{written(value)}"' if name.endswith("_s") else str(value)
        lines.append(f"# {f'{key} = {shown}':<24} # {WORDS.get(key, '')}".rstrip(" #"))
    return "\n".join(lines) + "\n"


def _value(entry: Entry) -> str:
    if entry.keeper in ("here", "none"):
        return _quoted(entry.url.secret())
    url = _quoted(replace(entry.url, password="").secret())
    return f"{{ url = {url}, password_{entry.keeper} = {_quoted(entry.place)} }}"


def _quoted(text: str) -> str:
    """A TOML string: JSON's escapes are TOML's."""
    return msgspec.json.encode(text).decode().replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quoted(name)


def _write(path: Path, content: str, *, secret: bool) -> None:
    """Whole or not at all. The mode is set before the content is there."""
    overwrite = path.exists()
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if secret else 0o666)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            os.replace(beside, path)
        else:
            os.link(beside, path)  # fails where somebody has made one meanwhile
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        beside.unlink(missing_ok=True)


def _read_back(desk: Desk, path: Path, *, secret: bool) -> None:
    wanting = ""
    try:
        load(path)
    except UsageError as error:
        wanting = str(error)
    if desk.out.json:
        desk.out.document({"file": str(path), "holds_secret": secret, "wanting": wanting})
        return
    desk.out.say((f"{path} is written{', for you alone to read' if secret else ''}.", "green"))
    if wanting:
        desk.out.say((f"Before it can be used: {wanting}", "yellow"))
    else:
        desk.out.say("Next: nodoubt schema apply")


__all__: list[Any] = ["init", "text"]
