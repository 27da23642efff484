"""Which databases a command is about: options, else the environment.

Guarantees: found out before anything is opened; what is missing or malformed is a usage error that shows how to write
it and quotes no URL.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import rich_click as click

from ..errors import SchemaMismatch, UsageError
from ..url import Url, parse_url
from ..wiring import ONLY

RESOURCES_VARIABLE = "NODOUBT_RESOURCES"
JOURNAL_VARIABLE = "NODOUBT_JOURNAL"

HOW = f"""\
Say which databases:
  nodoubt -r orders=postgresql://me@host/orders \\
          -r stock=mariadb://me@host/stock \\
          --journal orders COMMAND
or in the environment:
  {RESOURCES_VARIABLE}="orders=postgresql://me@host/orders
      stock=mariadb://me@host/stock"
  {JOURNAL_VARIABLE}=orders
The journal is one of the resources (if not said, the first), or a URL of
its own."""


@dataclass(frozen=True, slots=True)
class Databases:
    """Names with URLs, and where the journal is: what `Coordinator` takes."""

    resources: dict[str, str]
    journal: str | None

    @property
    def urls(self) -> dict[str, Url]:
        """The resources, parsed."""
        return {name: parse_url(url) for name, url in self.resources.items()}

    @property
    def own_journal(self) -> Url | None:
        """Where the journal is, if in a database of its own."""
        return parse_url(self.journal) if self.journal is not None and self.journal not in self.resources else None

    @property
    def all_urls(self) -> tuple[Url, ...]:
        """Every database there is."""
        return (*self.urls.values(), *([self.own_journal] if self.own_journal is not None else []))

    @property
    def passwords(self) -> tuple[str, ...]:
        """What must never be printed."""
        return tuple({url.password for url in self.all_urls if url.password})

    def require_files(self) -> None:
        """SQLite creates what it opens. Asking must not: raises `SchemaMismatch` if one is missing."""
        for url in self.all_urls:
            if url.kind == "sqlite" and not os.path.exists(url.database):
                raise SchemaMismatch(f"there is no file {url.database}; nodoubt schema apply would create it")


def databases(resources: Sequence[str], journal: str | None) -> Databases:
    """What the options say, else what the environment says. Raises `click.UsageError`."""
    given = tuple(resources) or tuple(os.environ.get(RESOURCES_VARIABLE, "").split())
    journal = journal or os.environ.get(JOURNAL_VARIABLE, "").strip() or None
    if not given:
        raise click.UsageError(f"no database was given. {HOW}")
    found: dict[str, str] = {}
    for number, text in enumerate(given, 1):
        name, url = _split(text)
        if not name and len(given) > 1:
            raise click.UsageError(f"resource {number} has no name: with several, write each as NAME=URL. {HOW}")
        name = name or ONLY
        if name in found:
            raise click.UsageError(f"two resources are called {name!r}")
        _require_url(url, f"the resource {name!r}")
        found[name] = url
    if journal is not None and journal not in found:
        _require_url(journal, f"the journal (the resources are {', '.join(found)})")
    return Databases(found, journal)


def _split(text: str) -> tuple[str, str]:
    """NAME=URL, or a bare URL, in which a `=` may stand too."""
    name, separator, url = text.partition("=")
    if separator and "://" not in name:
        return name, url
    return "", text


def _require_url(url: str, of_what: str) -> None:
    try:
        parse_url(url)
    except UsageError as error:
        raise click.UsageError(f"{of_what}: {error}") from None
