"""The tables of the cases: made, filled and read by a stranger, with no verb of ours."""

from __future__ import annotations

from typing import Any

import apsw
import psycopg
import pymysql
from pymysql.constants import CLIENT

from kit import Database
from nodoubt.url import parse_url
from query.cases import ODD_COLUMNS, TABLES, Row


def quoted(name: str, kind: str) -> str:
    mark = "`" if kind == "mariadb" else '"'
    return mark + name.replace(mark, mark * 2) + mark


TEXT = {"postgres": "text", "mariadb": "text character set utf8mb4 collate utf8mb4_nopad_bin", "sqlite": "text"}
BLOB = {"postgres": "bytea", "mariadb": "blob", "sqlite": "blob"}


class Stranger:
    """A plain connection, kept, that runs statements as they are: their percent and question marks are their own."""

    def __init__(self, database: Database) -> None:
        url = parse_url(database.url)
        self.kind = url.kind
        self._connection: Any
        if url.kind == "postgres":
            self._connection = psycopg.connect(url.secret(), autocommit=True)
        elif url.kind == "mariadb":
            self._connection = pymysql.connect(
                host=url.host,
                port=url.port or 0,
                user=url.user,
                password=url.password,
                database=url.database,
                autocommit=True,
                client_flag=CLIENT.MULTI_STATEMENTS,
            )
        else:
            self._connection = apsw.Connection(url.database)
            self._connection.set_busy_timeout(5000)

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        if self.kind == "postgres":
            cursor = self._connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []
        if self.kind == "mariadb":
            with self._connection.cursor() as cursor:
                cursor.execute(sql)
                rows = list(cursor.fetchall())
                while cursor.nextset():
                    pass
                return rows
        return list(self._connection.execute(sql))

    def quoted(self, name: str) -> str:
        mark = "`" if self.kind == "mariadb" else '"'
        return mark + name.replace(mark, mark * 2) + mark

    def close(self) -> None:
        self._connection.close()


def create(stranger: Stranger) -> None:
    odd = ", ".join(f"{stranger.quoted(name)} varchar(40)" for name in ODD_COLUMNS)
    stranger.run(
        "create table people (id integer primary key, name varchar(20) not null unique, age integer check (age >= 0), "
        "status varchar(20));"
        "create table notes (id integer primary key, person integer not null, body varchar(10), "
        "foreign key (person) references people (id));"
        f"create table {stranger.quoted('select')} (id integer primary key, {odd});"
        f"create table stored (id integer primary key, t {TEXT[stranger.kind]}, n integer, b {BLOB[stranger.kind]})"
    )
    fill(stranger)


def fill(stranger: Stranger) -> None:
    """What the cases start with."""
    statements = [f"delete from {stranger.quoted(table)}" for table in reversed(list(TABLES))]
    for table, rows in TABLES.items():
        for row in rows:
            values = ", ".join("null" if value is None else repr(value) for value in row.values())
            columns = ", ".join(map(stranger.quoted, row))
            statements.append(f"insert into {stranger.quoted(table)} ({columns}) values ({values})")
    stranger.run("; ".join(statements))


def contents(stranger: Stranger) -> dict[str, list[Row]]:
    return {table: _rows(stranger, table, list(rows[0])) for table, rows in TABLES.items()}


def _rows(stranger: Stranger, table: str, columns: list[str]) -> list[Row]:
    named = ", ".join(map(stranger.quoted, columns))
    found = stranger.run(f"select {named} from {stranger.quoted(table)} order by id")
    return [dict(zip(columns, row, strict=True)) for row in found]
