"""Takes compiled statements apart: names, placeholders, words of SQL's, and what must not be there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from nodoubt.query import Kind

DIALECTS: dict[str, Any] = {
    name: sa.create_engine(name + "://").dialect
    for name in (
        "postgresql+psycopg",
        "postgresql+asyncpg",
        "mariadb+pymysql",
        "mariadb+asyncmy",
        "mysql+pymysql",
        "sqlite",
    )
}
KIND_OF: dict[str, Kind] = {
    name: "postgres" if name.startswith("p") else "sqlite" if name == "sqlite" else "mariadb" for name in DIALECTS
}

# All that a verb writes by itself. What comes from outside can be a name in quotes, or a placeholder.
WORDS = {
    "SELECT", "DISTINCT", "FROM", "WHERE", "ORDER", "BY", "DESC", "ASC", "LIMIT", "OFFSET", "ALL", "FOR", "UPDATE",
    "INSERT", "INTO", "VALUES", "SET", "DELETE", "RETURNING", "ON", "CONFLICT", "DO", "NOTHING", "DUPLICATE", "KEY",
    "AND", "OR", "NOT", "IN", "IS", "NULL", "LIKE", "ILIKE", "ESCAPE", "BETWEEN", "AS", "lower", "true", "false",
    "INTEGER", "BIGINT",
}  # fmt: skip
NUMBERS = {"0", "1", "18446744073709551615"}
QUOTES = {"postgres": '"', "sqlite": '"`', "mariadb": "`"}  # SQLite's RETURNING has names in backticks
ESCAPES = {"postgres": r"'\'", "sqlite": r"'\'", "mariadb": r"'\\'"}  # a backslash, as each of them writes it

_PLACEHOLDER = {
    "pyformat": r"%\((?P<named>param_\d+(?:_\d+)?)\)s",
    "format": r"(?P<next>%s)",
    "qmark": r"(?P<next>\?)",
    "numeric_dollar": r"\$(?P<number>\d+)",
}
_SIGNS = r"\s|::|<>|!=|<=|>=|[=<>(),.*]"


@dataclass(frozen=True)
class Compiled:
    """A statement, taken apart."""

    text: str
    names: list[str]
    values: list[Any]
    strangers: list[str]  # what no verb of ours writes


def compiled(statement: Any, dialect_name: str) -> Compiled:
    dialect = DIALECTS[dialect_name]
    done = statement.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
    quoted = "|".join(rf"{mark}(?:[^{mark}]|{mark}{mark})*{mark}" for mark in QUOTES[KIND_OF[dialect_name]])
    token = re.compile(
        rf"(?P<name>{quoted})|(?P<string>{re.escape(ESCAPES[KIND_OF[dialect_name]])})|{_PLACEHOLDER[dialect.paramstyle]}"
        rf"|(?P<word>[A-Za-z]+)|(?P<digits>\d+)|(?P<sign>{_SIGNS})|(?P<stranger>(?s:.))"
    )
    text, names, values, strangers = str(done), list[str](), list[Any](), list[str]()
    positions = list(done.positiontup or ())
    for found in token.finditer(text):
        groups = {name: value for name, value in found.groupdict().items() if value is not None}
        if "name" in groups:
            name = groups["name"][1:-1].replace(groups["name"][0] * 2, groups["name"][0])
            names.append(name.replace("%%", "%") if dialect.paramstyle.endswith("format") else name)
        elif "named" in groups:
            values.append(done.params[groups["named"]])
        elif "next" in groups:
            values.append(done.params[positions.pop(0)] if positions else "no value")
        elif "number" in groups:
            values.append(done.params[positions[int(groups["number"]) - 1]])
        elif (
            ("word" in groups and groups["word"] not in WORDS)
            or ("digits" in groups and groups["digits"] not in NUMBERS)
            or "stranger" in groups
        ):
            strangers.append(found[0])
    if "next" in token.pattern and positions:
        strangers.append(f"values without a place: {positions}")
    return Compiled(text, names, values, strangers)
