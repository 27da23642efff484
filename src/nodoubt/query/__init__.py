"""The reference page's query verbs, thin over SQLAlchemy Core, on names alone.

    tx["shop"].insert_into("orders").values({"id": 42, "total": 99}).execute()
    tx["stock"].update_table("products").set({"stock": sql("stock - {n}", n=1)}).where({"id": 7}).execute()
    rows = tx["shop"].select_from("orders").where("total", ">=", 50).order_by("id").execute()

The same chain has the same effect on PostgreSQL, MariaDB and SQLite, or it is refused, or its docstring says what
differs. Nothing is sent before `execute()`. SQLAlchemy is imported by the first verb, not before.
"""

from .fragments import Fragment, Kind, sql
from .verbs import Runner, Verbs

__all__ = ["Fragment", "Kind", "Runner", "Verbs", "sql"]
