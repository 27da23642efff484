"""Which databases a command is about: what the configuration says, in the form that coordinators take.

Guarantees: found out before anything is opened; where none is named, the usage error shows how to name them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import rich_click as click

from ..config import FILE, JOURNAL_VARIABLE, RESOURCES_VARIABLE, Config
from ..errors import SchemaMismatch
from ..url import Url, parse_url

HOW = f"""\
Say which databases, in {FILE} (nodoubt init writes one):
  journal = "orders"
  [resources]
  orders = "postgresql://me@host/orders"
  stock = "mariadb://me@host/stock"
or
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

    def without(self, name: str | None) -> Databases:
        """The others. The one that holds the journal stays."""
        journal = self.journal or next(iter(self.resources))
        if name not in self.resources or name == journal:
            return self
        return Databases({one: url for one, url in self.resources.items() if one != name}, journal)

    def require_files(self) -> None:
        """SQLite creates what it opens. Asking must not: raises `SchemaMismatch` if one is missing."""
        for url in self.all_urls:
            if url.kind == "sqlite" and not os.path.exists(url.database):
                raise SchemaMismatch(f"there is no file {url.database}; nodoubt schema apply would create it")


def databases(config: Config) -> Databases:
    """Those of the configuration. Raises `click.UsageError` where there are none."""
    if not config.resources:
        raise click.UsageError(f"no database was given. {HOW}")
    return Databases(config.urls(), config.journal_url())
