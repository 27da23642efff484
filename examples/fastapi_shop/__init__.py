"""A shop behind FastAPI, with orders in one database and stock in another: without nodoubt, and with it."""
