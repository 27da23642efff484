"""The payment service: another company's process, outside of every transaction. And how to talk to it.

`python -m nodoubt.demo.payments FILE` serves HTTP on 127.0.0.1, prints its port, and ends when its standard input does.
It writes each charge and refund to its own file, forced, before it answers, and does each once per order: asked again
it gives the first answer. A refund that comes before its charge leaves a note that refuses the charge.

Must not: know the shop, the warehouse, or nodoubt.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http import HTTPStatus
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from . import processes

ANSWER_S = 10.0
Verb = Callable[..., tuple[int, object]]


class PaymentFailed(Exception):
    """The service said no: nothing was taken."""


@dataclass(slots=True)
class Payment:
    """What the service knows of one order, in cents."""

    order: str
    charged: int = 0
    refunded: int = 0
    voided: bool = False  # refunded before it was charged: it never will be


# ---- those who pay --------------------------------------------------------------------------------


def charge(url: str, order: str, amount: int, card: str) -> None:
    """Take the money, once per order. Raises `PaymentFailed`."""
    _ask(url, "charge", {"order": order, "amount": amount, "card": card})


def refund(url: str, order: str) -> None:
    """Give back what was taken for the order, once; nothing was: nothing will be."""
    _ask(url, "refund", {"order": order})


def ledger(url: str) -> list[Payment]:
    """Every order that the service has heard of."""
    return [Payment(**payment) for payment in _ask(url, "ledger", {})]


def _ask(url: str, verb: str, what: dict[str, Any]) -> Any:
    connection = HTTPConnection("127.0.0.1", int(url.rpartition(":")[2]), timeout=ANSWER_S)
    try:
        connection.request("POST", f"/{verb}", json.dumps(what), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        told = json.load(answer)
    finally:
        connection.close()
    if answer.status != HTTPStatus.OK:
        raise PaymentFailed(told["why"])
    return told


@contextmanager
def service(file: Path) -> Iterator[str]:
    """A running service; gives its URL."""
    with processes.start(__name__, str(file)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


# ---- the service ----------------------------------------------------------------------------------


class Book:
    """The payments, in a file that only grows."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("a", encoding="utf-8")
        self._lock = threading.Lock()
        self.payments: dict[str, Payment] = {}

    def charge(self, order: str, amount: int, card: str) -> tuple[int, object]:
        with self._lock:
            known = self.payments.get(order)
            if known is not None and known.voided:
                return 409, {"why": f"{order} was cancelled before it was paid"}
            if known is not None and known.charged != amount:
                return 409, {"why": f"{order} was charged {known.charged} already, not {amount}"}
            if known is not None:
                return 200, asdict(known)
            if card != "good":
                return 402, {"why": "the card was declined"}
            return self._write(Payment(order, charged=amount))

    def refund(self, order: str) -> tuple[int, object]:
        with self._lock:
            known = self.payments.get(order)
            if known is None:
                return self._write(Payment(order, voided=True))
            if known.refunded or known.voided:
                return 200, asdict(known)
            return self._write(Payment(order, known.charged, known.charged))

    def ledger(self) -> tuple[int, object]:
        with self._lock:
            return 200, [asdict(payment) for payment in self.payments.values()]

    def _write(self, payment: Payment) -> tuple[int, object]:
        self._file.write(json.dumps(asdict(payment)) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.payments[payment.order] = payment
        return 200, asdict(payment)


def _handler(book: Book) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            what = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            verbs: dict[str, Verb] = {"/charge": book.charge, "/refund": book.refund, "/ledger": book.ledger}
            status, answer = verbs[self.path](**what)
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Its log is its book."""

    return Handler


def _serve(file: str) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(Book(Path(file))))
    print(server.server_address[1], flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()  # until whoever started us has gone


if __name__ == "__main__":
    _serve(sys.argv[1])
