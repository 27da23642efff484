"""A shop: the order in one database, what is left of the product in another."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, PositiveInt
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from .models import Order, Product

ORDERS_URL, STOCK_URL = os.environ["ORDERS_URL"], os.environ["STOCK_URL"]
Orders = sessionmaker(create_engine(ORDERS_URL))
Stock = sessionmaker(create_engine(STOCK_URL))


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """While the program runs."""
    yield


app = FastAPI(title="A shop", lifespan=lifespan)


class Wanted(BaseModel):
    """What is asked for."""

    product_id: int
    quantity: PositiveInt


class Placed(BaseModel):
    """What is answered."""

    order_id: int
    in_stock: int


@app.post("/orders", status_code=201)
def place_order(wanted: Wanted) -> Placed:
    """Take an order, and what it asks for out of the stock."""
    with Orders() as orders, Stock() as stock:
        order = Order(product_id=wanted.product_id, quantity=wanted.quantity)
        orders.add(order)
        orders.flush()
        product = stock.get(Product, wanted.product_id, with_for_update=True)
        if product is None or product.in_stock < wanted.quantity:
            raise HTTPException(409, "there is not enough of it")
        product.in_stock -= wanted.quantity
        placed = Placed(order_id=order.id, in_stock=product.in_stock)
        orders.commit()
        stock.commit()
    return placed
