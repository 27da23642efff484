"""`nodoubt demo`: orders in two databases survive `kill -9` at the worst moments, in front of your eyes.

    shop       orders, order_items; the journal        a SQLite file, or PostgreSQL (`--servers`)
    warehouse  products, with stock and reserved_stock  another SQLite file, or MariaDB
    payments   another company's service                a process of its own that speaks HTTP

Guarantees: the processes and servers are real and are really killed; what is shown is read from the databases on fresh
connections at that moment; it passes only if the sums over all databases agree. Everything is in a temporary folder.

Must not: be imported by anything but the command line.
"""

from __future__ import annotations

__all__ = ["run"]


def run(*, servers: bool = False) -> bool:
    """Perform the demo on standard output; whether every check has passed."""
    from .performance import perform_all

    return perform_all(servers=servers)
