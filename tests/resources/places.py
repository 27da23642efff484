"""Our three databases as places for the conformance suite of resources."""

from __future__ import annotations

from journals.places import Place as Home
from kit import Database
from nodoubt.ports import Session
from nodoubt.script import do
from nodoubt.testing.bench import Bench
from nodoubt.testing.resources import Place
from nodoubt.url import parse_url
from nodoubt.wiring import resource_of

TABLES = {
    "postgres": ("nodoubt.receipts", "nodoubt.identity"),
    "mariadb": ("nodoubt_receipts", "nodoubt_identity"),
}


class SqlPlace(Place):
    """Numbers are rows of two tables. SQLite locks tables, so what is to be apart is in the other."""

    endings = ("COMMIT", "rollback", "/* so */ BEGIN")

    def __init__(self, bench: Bench, home: Home) -> None:
        super().__init__(bench)
        self.database = Database("there", home.url)

    def writing(self, number: int, *, apart: bool = False) -> str:
        return f"INSERT INTO {'others' if apart else 'numbers'} VALUES ({number})"

    def reading(self) -> str:
        return "SELECT count(*) FROM numbers"

    def failing(self) -> str:
        return "INSERT INTO nowhere VALUES (1)"

    def seen(self) -> set[int]:
        return {row[0] for row in self.database.query("SELECT n FROM numbers UNION ALL SELECT n FROM others")}

    def clean(self) -> None:
        """What a test that failed has left would be in the way of the next."""
        for session in self.bench.sessions:
            session.kill()
        self.resource = resource_of("there", parse_url(self.database.url))  # a mutant cleans nothing up
        for one in self.listed().values():
            self.finish("rollback_prepared", one)


def make_tables(home: Home) -> None:
    database = Database("there", home.url)
    for table in ("numbers", "others"):
        database.query(f"CREATE TABLE {table} (n int PRIMARY KEY)")


def empty(bench: Bench, kind: str) -> None:
    """As if it had never seen us, but with our tables."""
    session: Session = bench.main
    for table in ("numbers", "others", *TABLES.get(kind, ())):
        bench.run(do(session, "run", f"DELETE FROM {table}"))
