"""The world outside: a payment service in a process of its own, over HTTP. And how to talk to it.

`python outside.py FILE` serves on 127.0.0.1 and prints its port. It forces each effect to its file before it answers,
does everything once per idempotency key, and refuses a charge whose refund has come before it. It counts what it did,
so that whoever sends another key for the same thing is found out.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ANSWER_S = 30.0


@dataclass
class Account:
    """What happened to one charge, by the key it came or was to come under."""

    key: str
    order: str = ""
    charges: int = 0  # effects, not requests
    refunds: int = 0
    shut: bool = False  # refunded before it was charged: it never will be
    asked: int = 0  # requests of any kind

    @property
    def balance(self) -> int:
        return self.charges - self.refunds


class Declined(Exception):
    """The service said no: nothing was taken."""


# ---- those who pay --------------------------------------------------------------------------------


def ask(url: str, verb: str, **what: Any) -> Any:
    connection = HTTPConnection("127.0.0.1", int(url.rpartition(":")[2]), timeout=ANSWER_S)
    try:
        connection.request("POST", f"/{verb}", json.dumps(what), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        told = json.load(answer)
    finally:
        connection.close()
    if answer.status != 200:
        raise Declined(told["why"])
    return told


def ledger(url: str) -> list[Account]:
    return [Account(**one) for one in ask(url, "ledger")]


@contextlib.contextmanager
def service(file: Path) -> Iterator[str]:
    """A running service; gives its URL."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


# ---- the service ----------------------------------------------------------------------------------


class Book:
    def __init__(self, file: Path) -> None:
        self._file = file.open("a", encoding="utf-8")
        self._lock = threading.Lock()
        self.accounts: dict[str, Account] = {}
        self.answers: dict[str, tuple[int, Any]] = {}  # by idempotency key: asked again, it is answered the same

    def charge(self, key: str, order: str, card: str) -> tuple[int, Any]:
        with self._lock:
            account = self._account(key)
            if key in self.answers:
                return self.answers[key]
            if account.shut:
                return self._answer(key, 409, {"why": "it was refunded before it was charged"})
            if card != "good":
                return self._answer(key, 402, {"why": "the card was declined"})
            account.charges += 1
            account.order = order
            return self._answer(key, 200, {"payment": f"p-{order}"})

    def refund(self, key: str, of: str) -> tuple[int, Any]:
        with self._lock:
            account = self._account(of)
            if key in self.answers:
                return self.answers[key]
            if account.charges:
                account.refunds += 1
            else:
                account.shut = True
            return self._answer(key, 200, {})

    def ledger(self) -> tuple[int, Any]:
        with self._lock:
            return 200, [asdict(account) for account in self.accounts.values()]

    def _account(self, key: str) -> Account:
        account = self.accounts.setdefault(key, Account(key))
        account.asked += 1
        return account

    def _answer(self, key: str, status: int, told: Any) -> tuple[int, Any]:
        self._file.write(json.dumps([key, status, told]) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.answers[key] = status, told
        return status, told


def serve(file: str) -> None:
    book = Book(Path(file))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            what = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = getattr(book, self.path[1:])(**what)
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Its log is its book."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()  # until whoever started us has gone


if __name__ == "__main__":
    serve(sys.argv[1])
