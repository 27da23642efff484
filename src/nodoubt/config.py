"""Configuration: what flags say, else the environment, else a file, else the defaults. One model for all of it.

    journal = "orders"                      # a resource's name, or a URL of its own

    [resources]
    orders = "postgresql://app@db1/orders"
    billing = { url = "mariadb://app@db2/billing", password_env = "BILLING_PASSWORD" }
    stock = { url = "mariadb://app@db3/stock", password_file = "/run/secrets/stock" }

    [settings]
    grace = "2m"

The file is the one that is named (`path`, `--config`, NODOUBT_CONFIG), else `nodoubt.toml` in the working directory,
else the table `[tool.nodoubt]` of its `pyproject.toml`. In the environment: NODOUBT_RESOURCES
("orders=postgresql://…", with blanks between them), NODOUBT_JOURNAL, and each setting in capitals, NODOUBT_GRACE. Each
key is taken as a whole from the first place that has it: resources that are flags replace those of the file.

Guarantees: what is wrong is told before anything is opened, all of it at once, with file, line and key, and with what
is allowed; every value knows where it came from; no password is in any text of this module, nor in `Config`'s repr.
Nothing is expanded inside a URL: `${…}` is an error, not a password.

Must not: connect.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from .engine.context import TIME_MAX_S, Settings
from .errors import UsageError
from .url import Url, parse_url
from .wiring import NAMES, ONLY, is_name

log = logging.getLogger("nodoubt")

FILE, PROJECT = "nodoubt.toml", "pyproject.toml"
FILE_VARIABLE, RESOURCES_VARIABLE, JOURNAL_VARIABLE = "NODOUBT_CONFIG", "NODOUBT_RESOURCES", "NODOUBT_JOURNAL"
PREFIX = "NODOUBT_"
SECRETS = ("password_env", "password_file")
SECRET_SIZE_MAX = 64 * 1024

# The settings, by their names in a configuration: `grace` is `Settings.grace_s`, a time.
SETTINGS: Mapping[str, str] = {one.name.removesuffix("_s"): one.name for one in fields(Settings)}
_SECTIONS = ("resources", "journal", "settings")

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[smhdw]?)(?:\s*\d+(?:\.\d+)?[smhdw])*")
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhdw]?)")


def seconds_of(text: str) -> float:
    """`90`, `90s`, `5m`, `1h30m`, `2d` in seconds. Raises `ValueError`."""
    if not _DURATION.fullmatch(text.strip()):
        raise ValueError(f"{_shown(text)} is not a time: write 30s, 5m, 1h30m or 2d")
    return sum(float(number) * _UNITS[unit or "s"] for number, unit in _PART.findall(text))


def written(seconds: float) -> str:
    """The same the other way round: `1h30m`."""
    left, parts = seconds, []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if left >= size:
            parts.append(f"{int(left // size)}{unit}")
            left %= size
    return "".join(parts) + (f"{left:g}s" if left or not parts else "")


# ---- what is known in the end ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from: `kind` is flag, environment, file or default; `name` the flag, variable or file."""

    kind: str
    name: str = ""
    line: int | None = None

    def __str__(self) -> str:
        if self.kind == "default":
            return "default"
        return self.name + (f" line {self.line}" if self.line is not None else "")


DEFAULT = Origin("default")


@dataclass(frozen=True, slots=True)
class Database:
    """One database, its password filled in; `secret` says where that came from, if not out of the URL."""

    url: Url
    secret: str = ""

    def __str__(self) -> str:
        return str(self.url) + (f" (password from {self.secret})" if self.secret else "")


@dataclass(frozen=True, slots=True)
class Config:
    """What holds. `journal`: a resource's name, a database of its own, or None, which is the first resource's."""

    resources: dict[str, Database] = field(default_factory=dict)
    journal: str | Database | None = None
    settings: Settings = field(default_factory=Settings)
    origins: Mapping[str, Origin] = field(default_factory=dict)  # by key: resources.orders, journal, settings.grace
    file: Path | None = None
    warnings: tuple[str, ...] = ()

    def urls(self) -> dict[str, str]:
        """The resources as a coordinator takes them, with their passwords: not to be printed."""
        return {name: one.url.secret() for name, one in self.resources.items()}

    def journal_url(self) -> str | None:
        """Likewise."""
        return self.journal.url.secret() if isinstance(self.journal, Database) else self.journal

    def passwords(self) -> tuple[str, ...]:
        """What must never be printed."""
        own = [self.journal] if isinstance(self.journal, Database) else []
        return tuple({secret for one in (*self.resources.values(), *own) for secret in one.url.secrets()})


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    flags: Mapping[str, Any] | None = None,
    flag_names: Mapping[str, str] | None = None,
    environ: Mapping[str, str] = os.environ,
    databases: bool = True,
) -> Config:
    """Read it all. `flags`: values by key (`resources`, `journal`, a setting); `flag_names`: what they are called.

    Not `databases`: the settings alone; what is wrong with the others is not looked at. Raises `UsageError`.
    """
    problems: list[str] = []
    file = _find(path, environ)
    layers = [
        _flags(flags or {}, flag_names or {}, problems),
        _environment(environ),
        {} if file is None else _contents(file, problems),
    ]
    given: dict[str, _Given] = {}
    for layer in reversed(layers):
        given.update(layer)
    reading = _Reading(problems, environ)
    resources = reading.resources(given.get("resources") if databases else None)
    journal = reading.journal(given.get("journal") if databases else None)
    settings = reading.settings(given)
    if problems:
        raise UsageError("\n  ".join(problems if len(problems) == 1 else [f"{len(problems)} mistakes:", *problems]))
    return Config(
        resources,
        journal,
        settings,
        reading.origins,
        None if file is None else file.path,
        (*_typing_errors(environ), *reading.warnings),
    )


def for_program(path: str | os.PathLike[str] | None, overrides: Mapping[str, Any]) -> Config:
    """What a coordinator is made from. Raises `UsageError` where no database is named."""
    flags = dict(overrides)
    if isinstance(flags.get("resources"), str):
        flags["resources"] = [flags["resources"]]
    config = load(path, flags=flags, flag_names={key: f"{key}=" for key in flags})
    if not config.resources:
        raise UsageError(
            f"no configuration names a database: write {FILE} (nodoubt init asks a few questions), set "
            f"{RESOURCES_VARIABLE}, or name the file"
        )
    for warning in config.warnings:
        log.warning("%s", warning)
    return config


# ---- the places -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Given:
    """A value as it was written, and where. `file`: where its lines can be looked up."""

    value: Any
    origin: Origin
    file: _File | None = None

    def at(self, *path: str) -> str:
        """Where, in words, a part of it stands."""
        if self.file is None:
            return f"{self.origin}, {path[1]}" if path[:1] == ("resources",) and len(path) > 1 else f"{self.origin}"
        return f"{Origin('file', self.file.name, self.file.line(path))}, {'.'.join(path)}"

    def origin_of(self, *path: str) -> Origin:
        """Likewise, for `Config.origins`."""
        return self.origin if self.file is None else Origin("file", self.file.name, self.file.line(path))


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    table: Mapping[str, Any]
    lines: Mapping[tuple[str, ...], int]  # on which each key begins
    under: tuple[str, ...] = ()  # the table that is ours, in pyproject.toml

    @property
    def name(self) -> str:
        return os.path.relpath(self.path) if self.path.is_relative_to(Path.cwd()) else str(self.path)

    def line(self, path: tuple[str, ...]) -> int | None:
        """The line of the key, or of the nearest table around it."""
        while path and (*self.under, *path) not in self.lines:
            path = path[:-1]
        return self.lines.get((*self.under, *path))


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """The line on which each key of a TOML document begins; the reader of the standard library tells none.

    A statement ends with the first line up to which it can be read as a document of its own: half of one never can.
    """
    lines, found = text.split("\n"), dict[tuple[str, ...], int]()
    table: tuple[str, ...] = ()
    begun = 0
    for number in range(1, len(lines) + 1):
        statement = "\n".join(lines[begun:number])
        try:
            keys = list(_paths(tomllib.loads(statement)))
        except tomllib.TOMLDecodeError:
            continue
        if statement.lstrip().startswith("["):
            table = keys[-1]
            keys = [path for path in keys if path not in found]
            found.update(dict.fromkeys(keys, begun + 1))
        else:
            found.update({(*table, *path): begun + 1 for path in keys if (*table, *path) not in found})
        begun = number
    return found


def _paths(table: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterable[tuple[str, ...]]:
    for key, value in table.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from _paths(value, (*above, key))


def _find(path: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> _File | None:
    named = os.fspath(path) if path is not None else environ.get(FILE_VARIABLE, "").strip()
    if named:
        return _read(Path(named).absolute(), "" if path is not None else f" ({FILE_VARIABLE})")
    if Path(FILE).is_file():
        return _read(Path(FILE).absolute(), "")
    if Path(PROJECT).is_file():
        try:
            tools = tomllib.loads(Path(PROJECT).read_text("utf-8")).get("tool")
        except (OSError, ValueError):
            return None  # whoever it belongs to will say so
        if isinstance(tools, dict) and "nodoubt" in tools:
            return _read(Path(PROJECT).absolute(), "")
    return None


def _read(path: Path, why: str) -> _File:
    try:
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
        table: Any = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"{path}{why} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}{why} is not UTF-8, which TOML is always written in") from None
    except ValueError as error:  # of tomllib's, or a number of too many digits
        raise UsageError(f"{path}{why} is not TOML: {error}") from None
    under = ("tool", "nodoubt") if path.name == PROJECT else ()
    for key in under:
        table = table.get(key, {}) if isinstance(table, dict) else {}
    return _File(path, table if isinstance(table, dict) else {}, key_lines(text), under)


def _contents(file: _File, problems: list[str]) -> dict[str, _Given]:
    """The keys of a file, the settings among them, each with its place."""
    found: dict[str, _Given] = {}

    def given(value: Any, *path: str) -> _Given:
        return _Given(value, Origin("file", file.name, file.line(path)), file)

    for key, value in file.table.items():
        if key not in _SECTIONS:
            known = "settings." + key if key in SETTINGS else ""
            problems.append(f"{given(value, key).at(key)}: {_unknown(key, _SECTIONS, known)}")
        elif key != "settings":
            found[key] = given(value, key)
        elif not isinstance(value, dict):
            problems.append(
                f'{given(value, key).at(key)}: this is a table: write [settings], and below it grace = "2m"'
            )
    settings = file.table.get("settings")
    for key, value in settings.items() if isinstance(settings, dict) else ():
        if key in SETTINGS:
            found[key] = given(value, "settings", key)
        else:
            problems.append(f"{given(value, 'settings', key).at('settings', key)}: {_unknown(key, SETTINGS)}")
    return found


def _environment(environ: Mapping[str, str]) -> dict[str, _Given]:
    names = {key: PREFIX + key.upper() for key in ("resources", "journal", *SETTINGS)}
    return {
        key: _Given(environ[name].strip(), Origin("environment", name))
        for key, name in names.items()
        if environ.get(name, "").strip()
    }


def _typing_errors(environ: Mapping[str, str]) -> Iterable[str]:
    """Variables that are nearly ours. Any other may be somebody's, so none is an error."""
    known = [FILE_VARIABLE, *(PREFIX + key.upper() for key in ("resources", "journal", *SETTINGS))]
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known:
            for close in difflib.get_close_matches(name, known, 1, 0.9):
                yield f"{name} is not known; did you mean {close}?"


def _flags(flags: Mapping[str, Any], names: Mapping[str, str], problems: list[str]) -> dict[str, _Given]:
    found = {}
    for key, value in flags.items():
        name = names.get(key, key)
        if key in ("resources", "journal", *SETTINGS):
            found[key] = _Given(value, Origin("flag", name))
        else:
            problems.append(f"{name}: {_unknown(key, ('resources', 'journal', *SETTINGS))}")
    return found


def _unknown(key: str, known: Iterable[str], elsewhere: str = "") -> str:
    close = [elsewhere] if elsewhere else difflib.get_close_matches(key, list(known), 1)
    advice = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
    return f"there is no key {key!r}; {advice}"


# ---- what the values mean -------------------------------------------------------------------------


class _Reading:
    """Goes through what was given, collects what is wrong with it, and remembers where each value came from."""

    def __init__(self, problems: list[str], environ: Mapping[str, str]) -> None:
        self.problems = problems
        self.warnings: list[str] = []
        self.origins: dict[str, Origin] = {}
        self.named: tuple[str, ...] = ()  # the resources, sound or not
        self._environ = environ

    # -- databases

    def resources(self, given: _Given | None) -> dict[str, Database]:
        if given is None:
            return {}
        table = given.value
        if given.file is None and isinstance(table, str | Sequence):
            table = self._pairs(given, table.split() if isinstance(table, str) else table)
        if not isinstance(table, Mapping):
            self._wrong(
                given, ("resources",), 'this is a table: write [resources], and below it orders = "postgresql://…"'
            )
            return {}
        found = {}
        self.named = tuple(map(str, table))
        for name, value in table.items():
            path = ("resources", str(name))
            if not is_name(name):
                self._wrong(given, path, f"a resource's name is {NAMES}")
                continue
            database = self._database(given, path, value)
            if database is not None:
                found[name] = database
                self.origins[f"resources.{name}"] = given.origin_of(*path)
        return found

    def _pairs(self, given: _Given, words: Sequence[str]) -> dict[str, str]:
        """`orders=postgresql://…`, `stock=mariadb://…`, or one bare URL."""
        found: dict[str, str] = {}
        for number, word in enumerate(words, 1):
            name, separator, url = word.partition("=")
            if not separator or "://" in name:  # a URL may hold a `=`
                if len(words) > 1:
                    self._wrong(given, (), f"resource {number} has no name: with several, write each as NAME=URL")
                    continue
                name, url = ONLY, word
            if name in found:
                self._wrong(given, (), f"two resources are called {name!r}")
            found[name] = url
        return found

    def journal(self, given: _Given | None) -> str | Database | None:
        """After the resources."""
        if given is None:
            self.origins["journal"] = DEFAULT
            return None
        self.origins["journal"] = given.origin
        if isinstance(given.value, str) and (given.value in self.named or "://" not in given.value):
            if given.value not in self.named:
                there = ", ".join(self.named) or "there are none"
                self._wrong(given, ("journal",), f"{_shown(given.value)} is neither a URL nor a resource: {there}")
            return given.value
        return self._database(given, ("journal",), given.value)

    def _database(self, given: _Given, path: tuple[str, ...], value: Any) -> Database | None:
        """A URL, or a table with one and with where its password is. None: it is wrong."""
        table = {"url": value} if isinstance(value, str) else value
        if not isinstance(table, Mapping):
            self._wrong(given, path, 'write a URL, or { url = "…", password_env = "…" }')
            return None
        before = len(self.problems)
        for key, one in table.items():
            if key not in ("url", *SECRETS):
                self._wrong(given, (*path, key), _unknown(key, ("url", *SECRETS)))
            elif not isinstance(one, str) or not one:
                self._wrong(given, (*path, key), f"this is text, not {_kind(one)}")
        if "url" not in table:
            self._wrong(given, path, 'the URL is missing: url = "postgresql://…"')
        if len(self.problems) > before:
            return None
        where = path if isinstance(value, str) else (*path, "url")
        if "${" in table["url"]:
            self._wrong(given, where, "${…} is not expanded in a URL: leave the password out, and write password_env")
            return None
        try:
            url = parse_url(table["url"])
        except UsageError as error:
            self._wrong(given, where, str(error))
            return None
        return self._with_password(given, path, url, {key: table[key] for key in SECRETS if key in table})

    def _with_password(
        self, given: _Given, path: tuple[str, ...], url: Url, secrets: Mapping[str, str]
    ) -> Database | None:
        if not secrets:
            if url.password:
                self._warn_of_readers(given, path)
            return Database(url)
        if len(secrets) > 1 or url.password:
            self._wrong(
                given, path, f"one password is enough: {', '.join(['the URL'] * bool(url.password) + [*secrets])}"
            )
            return None
        if url.kind == "sqlite":
            self._wrong(given, path, "SQLite knows no passwords: who may read the file may read it")
            return None
        ((key, place),) = secrets.items()
        password, why = self._variable(place) if key == "password_env" else secret_of(self._relative(given, place))
        if why:
            self._wrong(given, (*path, key), why)
            return None
        return Database(replace(url, password=password), f"${place}" if key == "password_env" else place)

    def _variable(self, name: str) -> tuple[str, str]:
        password = self._environ.get(name, "")
        return password, "" if password else f"the environment has no {name}, or it is empty"

    def _relative(self, given: _Given, place: str) -> Path:
        return Path(place) if given.file is None else given.file.path.parent / place

    def _warn_of_readers(self, given: _Given, path: tuple[str, ...]) -> None:
        if given.file is not None and given.file.path.stat().st_mode & stat.S_IROTH:
            self.warnings.append(
                f"{given.at(*path)}: a password stands in a file that everybody on this machine may read: chmod 600, "
                "or password_env"
            )

    # -- settings

    def settings(self, given: Mapping[str, _Given]) -> Settings:
        values: dict[str, Any] = {}
        for key, name in SETTINGS.items():
            if key not in given:
                self.origins[f"settings.{key}"] = DEFAULT
                continue
            one = given[key]
            self.origins[f"settings.{key}"] = one.origin
            try:
                values[name] = _seconds(one.value) if name.endswith("_s") else _count(one.value)
            except (ValueError, TypeError) as error:
                self._wrong(one, ("settings", key), str(error))
        defaults = Settings()
        grace, prepare = (values.get(name, getattr(defaults, name)) for name in ("grace_s", "prepare_s"))
        if grace < prepare:
            where = given.get("grace") or given["prepare"]
            self._wrong(
                where,
                ("settings", "grace" if "grace" in given else "prepare"),
                f"grace ({written(grace)}, {self.origins['settings.grace']}) must not be below prepare "
                f"({written(prepare)}, {self.origins['settings.prepare']}): recovery would abort what still prepares",
            )
        return defaults if self.problems else Settings(**values)

    def _wrong(self, given: _Given, path: tuple[str, ...], why: str) -> None:
        self.problems.append(f"{given.at(*path)}: {why}")


def _seconds(value: Any) -> float:
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise TypeError(f'a time is "30s", "5m", "1h30m", "2d" or a number of seconds, not {_kind(value)}')
    seconds = seconds_of(value) if isinstance(value, str) else value
    if not 0 < seconds <= TIME_MAX_S:
        raise ValueError(f"{str(value)[:40]} is not a time above zero, and at most {written(TIME_MAX_S)}")
    return float(seconds)


def _shown(value: Any) -> str:
    """What stands where it should not may be a URL, and hold a password."""
    return "this text" if any(sign in str(value) for sign in ("://", "@")) else repr(value)


def _count(value: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{_shown(value)} is not a whole number from 1 on")
    return value


def _kind(value: Any) -> str:
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "an empty text",
        list: "a list",
        dict: "a table",
    }
    return names.get(type(value), type(value).__name__)


def secret_of(path: Path) -> tuple[str, str]:
    """The password in a file; else "", and why."""
    try:
        with path.open("rb") as file:
            readers = os.fstat(file.fileno()).st_mode & stat.S_IROTH
            content = file.read(SECRET_SIZE_MAX)
    except OSError as error:
        return "", f"{path} cannot be read: {error.strerror}"
    if readers:
        return "", f"everybody on this machine may read {path}: chmod o-r it, or mount it with mode 0400"
    try:
        password = content.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        return "", f"{path} is not UTF-8"
    if not password or not password.isprintable():
        return "", f"{path} must hold the password and nothing else, on one line"
    return password, ""
