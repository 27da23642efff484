"""The README's words on SQLAlchemy run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from alchemy.world import engine_over
from kit import make_database
from nodoubt import Coordinator

README = Path(__file__).parents[2] / "README.md"


class Base(DeclarativeBase):
    """The reader's own models."""


class Stock(Base):
    __tablename__ = "stock"
    id: Mapped[int] = mapped_column(primary_key=True)
    left: Mapped[int]


class Invoice(Base):
    __tablename__ = "invoices"
    order_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


def test_the_readme_s_sqlalchemy_runs(request: Any, tmp_path: Path) -> None:
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "create_engine" in c)
    orders = make_database("postgres", "orders", request, tmp_path)
    billing = make_database("mariadb", "billing", request, tmp_path)
    orders.query('create table stock (id int primary key, "left" int); insert into stock values (7, 3)')
    billing.query("create table invoices (order_id int primary key)")
    engine = engine_over(orders, "psycopg")
    with Coordinator({"orders": engine, "billing": billing.url}, recovery=False) as db:
        db.setup()
    given = {"create_engine": lambda _: engine, "Coordinator": Coordinator, "Stock": Stock, "Invoice": Invoice}
    given |= {"update": sqlalchemy.update}
    exec(compile(code.replace("mariadb://app@db2/billing", billing.url), "README.md", "exec"), given)
    assert orders.query('select "left" from stock') == [(2,)] and billing.query("select * from invoices") == [(42,)]
    engine.dispose()
