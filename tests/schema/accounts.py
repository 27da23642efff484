"""Databases whose coordinators have an account of their own, with exactly the rights that were granted to it.

`Guarded` is a `kit.Database`: a coordinator connects as the account; a stranger, who looks and prepares the scene, as
the administrator.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from kit import Database
from nodoubt.schema import Grant, Part, Role, grants, quoted, statements
from nodoubt.url import parse_url

PASSWORD = "meek"


@dataclass(frozen=True)
class Guarded(Database):
    """`url` is the account's; `admin` the same database as its owner sees it."""

    admin: Database
    account: str

    def query(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        return self.admin.query(sql, *params)

    @property
    def to(self) -> str:
        return quoted(self.kind, self.account)

    def grant(self, granted: Iterable[Grant]) -> None:
        for line in statements(self.kind, granted, self.account).splitlines():
            if not line.startswith("-- "):
                self.query(line)

    def revoke(self, one: Grant) -> None:
        self.query(f"REVOKE {one.right}{f' ON {one.on}' if one.on else ''} FROM {self.to}")

    def rights(self, role: Role, *parts: Part) -> tuple[Grant, ...]:
        return grants(self.kind, role, parts, parse_url(self.url).database)


def guarded(database: Database) -> Guarded:
    """The database, for an account that may do nothing yet but use the table `accounts`."""
    account = f"meek_{secrets.token_hex(4)}"
    url = replace(parse_url(database.url), user=account, password=PASSWORD)
    made = Guarded(database.name, url.secret(), database, account)
    if made.kind == "postgres":
        made.query(f"CREATE ROLE {made.to} LOGIN PASSWORD '{PASSWORD}'")
        made.query(f"GRANT SELECT, INSERT, UPDATE ON accounts TO {made.to}")
    else:
        made.query(f"CREATE USER {made.to} IDENTIFIED BY '{PASSWORD}'")
        made.query(f"GRANT SELECT, INSERT, UPDATE ON `{url.database}`.accounts TO {made.to}")
    return made


def another(database: Guarded) -> Guarded:
    """A second account, for the same database."""
    return guarded(replace(database.admin, name=database.name))


def dropped(database: Guarded) -> None:
    """The account goes, and with it its rights."""
    if database.kind == "postgres":
        database.query(f"DROP OWNED BY {database.to}")
    database.query(f"DROP {'ROLE' if database.kind == 'postgres' else 'USER'} {database.to}")
