"""The tables. `python -m examples.fastapi_shop.models` creates them, in place of a project's migrations."""

import os

from sqlalchemy import CheckConstraint, Engine, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


class InOrders(DeclarativeBase):
    """What is in the orders' database."""


class InStock(DeclarativeBase):
    """What is in the warehouse's."""


class Order(InOrders):
    """Somebody wants something."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    product_id: Mapped[int]
    quantity: Mapped[int]


class Product(InStock):
    """What there is of it."""

    __tablename__ = "products"
    __table_args__ = (CheckConstraint("in_stock >= 0", name="never_below_zero"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    in_stock: Mapped[int]


def create(orders: Engine, stock: Engine) -> None:
    """The tables, and ten of product 7."""
    InOrders.metadata.create_all(orders)
    InStock.metadata.create_all(stock)
    with Session(stock) as session:
        session.add(Product(id=7, in_stock=10))
        session.commit()


if __name__ == "__main__":
    create(create_engine(os.environ["ORDERS_URL"]), create_engine(os.environ["STOCK_URL"]))
