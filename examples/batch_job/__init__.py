"""Customers move from one database to another, in chunks with a checkpoint; and the page's batch job beside it."""
