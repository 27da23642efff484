"""What can happen to a row of ours in each kind of database, by hand or by a bug."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from journals.places import Place, query
from nodoubt.testing.bench import Bench

# A literal for a column, by table and way. Those with bytes are for the databases that keep any bytes as text.
JSON = {"torn": "'[{\"number\": 0'", "of another release": '\'[{"wholly": "new"}]\''}
WAYS: dict[str, dict[str, tuple[str, str]]] = {
    "decisions": {
        **{f"branches {way}": ("branches", value) for way, value in JSON.items()},
        "mode unknown": ("mode", "'thrice'"),
        "point of no branch": ("point", "-7"),
        "ended at no time": ("ended_at", "-1"),
    },
    "names": {
        **{f"branches {way}": ("branches", value) for way, value in JSON.items()},
        "metadata torn": ("metadata", "'{\"a\": '"),
        "confirmations torn": ("confirmations", "'[1'"),
        "last branch is none": ("last_branch", "70000"),
    },
    "calls": {"state unknown": ("state", "'nearly'")},
    "confirmations": {"answer unknown": ("answer", "'perhaps'")},
    "quarantine": {"branch is none": ("branch", "-1")},
    "resources": {},
}
BYTES: dict[str, dict[str, str]] = {
    "sqlite": {
        "decisions": "reason", "names": "owner", "calls": "arguments", "confirmations": "why", "quarantine": "why",
        "resources": "name",
    },
    "mariadb": {"decisions": "name", "names": "name", "calls": "call_key"},
    "postgres": {},
}  # fmt: skip
NUMBERS = {
    "decisions": "decided_at", "names": "deadline", "calls": "changed_at", "confirmations": "at", "quarantine": "since",
}  # fmt: skip
INFINITE = {"sqlite": "9e999", "postgres": "'infinity'"}
DISOWNED = {"decisions": "attempt", "names": "undecided", "calls": "unfinished"}
UNSURE = ("verdict", "ended_at")  # of a decision: then it is in no index of what is not over
KEYS = {"resources": "resource_id"}


class SqlDamage:
    """For the tables of one place."""

    def __init__(self, place: Place, bench: Bench) -> None:
        self._place, self._bench = place, bench
        self._kept: list[tuple[str, str, str]] = []

    def ways(self, table: str, *, found: bool = False) -> Sequence[str]:
        return [way for way, (column, _) in self._ways(table).items() if not found or column not in UNSURE]

    def _ways(self, table: str) -> dict[str, tuple[str, str]]:
        kind, ways = self._place.kind, dict(WAYS[table])
        if table in BYTES[kind]:
            text = "CAST(x'ff00' AS TEXT)" if kind == "sqlite" else "CONCAT(x'ff00', attempt)"
            ways["no UTF-8"] = (BYTES[kind][table], text)
        if table in NUMBERS and kind in INFINITE:
            ways["no time"] = (NUMBERS[table], INFINITE[kind])
        if table == "decisions":
            ways["verdict unknown"] = ("verdict", "'maybe'")
        return ways

    def spoil(self, table: str, key: str, way: str) -> None:
        column, value = self._ways(table)[way]
        name, which = self._place.dialect().table(table), f"{KEYS.get(table, 'attempt')} = '{key}'"
        self._keep(name, which)
        self._bare(f"UPDATE {name} SET {column} = {value} WHERE {which}", column == "verdict", name, column)

    def _keep(self, name: str, which: str) -> None:
        copy = f"{name.rpartition('.')[0] or 'main'}.kept_{len(self._kept)}"
        self._run(f"DROP TABLE IF EXISTS {copy}", f"CREATE TABLE {copy} AS SELECT * FROM {name} WHERE {which}")
        self._kept.append((name, copy, which))

    def disown(self, table: str, key: str) -> None:
        column, other = DISOWNED[table], f"{key[:-1]}G"
        name, which = self._place.dialect().table(table), f"attempt IN ('{key}', '{other}')"
        self._keep(name, which)
        self._run(f"UPDATE {name} SET {column} = '{other}' WHERE {which}")

    def _bare(self, statement: str, checked: bool, table: str, column: str) -> None:
        """Without the CHECKs and the NOT NULL that would refuse it: somebody has got past them."""
        match self._place.kind:
            case "sqlite":
                on, off = "PRAGMA ignore_check_constraints = ON", "PRAGMA ignore_check_constraints = OFF"
                self._run(on, statement, off)
            case "mariadb":
                self._run("SET check_constraint_checks = 0", statement, "SET check_constraint_checks = 1")
            case _ if checked:
                drop = f"ALTER TABLE {table} DROP CONSTRAINT decisions_verdict_check"
                add = f"{drop.replace('DROP', 'ADD')} CHECK (verdict IN ('commit', 'abort')) NOT VALID"
                self._run(drop, statement, add)  # which from now on refuses each change of that row
            case _:
                self._run(statement)

    def mend(self) -> None:
        for name, copy, which in reversed(self._kept):
            columns = query(self._bench, f"SELECT * FROM {copy}").columns
            listed = ", ".join(column for column in columns if column != "open_commit")
            self._run(
                f"DELETE FROM {name} WHERE {which}",
                f"INSERT INTO {name} ({listed}) SELECT {listed} FROM {copy}",
                f"DROP TABLE {copy}",
            )
        self._kept.clear()

    def _run(self, *statements: str) -> Any:
        for statement in statements:
            query(self._bench, statement)
