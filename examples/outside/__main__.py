"""The service: `python -m examples.outside FILE [PORT]`. It says where it listens, and ends with its standard input.

It does what such services do. Whatever comes under one `Idempotency-Key` is done once, and is answered as it was the
first time; with another body it is refused (422), and while the first is at work, put off (409). An effect is on disk
before it is answered, so that `kill -9` forgets none. What is undone before it was done is shut out: should it still
come, it is refused (410). Without a key, a request is one of its own: it charges again.

And it misbehaves when it is told to: see `client.misbehave`.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import sys
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PATHS = ("/payments", "/mailboxes", "/entries", "/teams", "/parcels", "/letters")
ONE_FOR_EACH = {"/mailboxes": "email", "/entries": "email"}
TEAMS = ("Engineering", "Sales")
TABLE = """
    create table if not exists done (
        key text primary key, path text, of text, body text, effect int, status int, answer text
    )
"""
Answer = tuple[int, Any]


class Lost(Exception):
    """It was done, and whoever asked is not told."""


class Book:
    """Everything that was asked and answered, on disk."""

    def __init__(self, file: str) -> None:
        self._disk = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        self._disk.execute("pragma synchronous = full")
        self._disk.execute(TABLE)
        self._lock = threading.Lock()

    def answer(self, path: str, key: str, of: str | None, what: Any) -> Answer:
        """Do it, unless that is done, and write it down: one statement, so there is no moment between the two."""
        with self._lock:
            known = self._ask("select path, of, body, status, answer from done where key = ?", key)
            if known:
                *where, body, status, answer = known[0]
                same = where == [path, of] and json.loads(body) == what
                return (status, json.loads(answer)) if same else (422, {"why": "its key was used for something else"})
            effect, status, told = self._done(path, key, what) if of is None else self._undone(of)
            self._disk.execute(
                "insert into done values (?, ?, ?, ?, ?, ?, ?)",
                (key, path, of, json.dumps(what), effect, status, json.dumps(told)),
            )
        return status, told

    def read(self, path: str) -> Answer:
        with self._lock:
            return 200, self._effects(path)

    def forget(self) -> Answer:
        with self._lock:
            self._disk.execute("delete from done")
        return 200, None

    def _done(self, path: str, key: str, what: Any) -> tuple[bool, int, Any]:
        if self._ask("select 1 from done where of = ?", key):
            return False, 410, {"why": "it was undone before it was done"}
        if what.get("card") == "stolen":
            return False, 402, {"why": "the card was declined"}
        if path == "/teams" and what["team"] not in TEAMS:
            return False, 422, {"why": f"there is no team {what['team']}"}
        unique = ONE_FOR_EACH.get(path)
        if unique and any(one["what"][unique] == what[unique] and not one["undone"] for one in self._effects(path)):
            return False, 422, {"why": f"{what[unique]} has one already"}
        return True, 200, {"id": f"{path[1:]}-{secrets.token_hex(4)}"}

    def _undone(self, of: str) -> tuple[bool, int, Any]:
        return bool(self._ask("select 1 from done where key = ? and effect", of)), 200, {}

    def _effects(self, path: str) -> list[dict[str, Any]]:
        rows = self._ask(
            "select key, body, (select count(*) from done undo where undo.of = done.key and undo.effect)"
            " from done where path = ? and of is null and effect order by rowid",
            path,
        )
        return [{"key": key, "what": json.loads(body), "undone": undone} for key, body, undone in rows]

    def _ask(self, sql: str, *values: str) -> list[Any]:
        return self._disk.execute(sql, values).fetchall()


class Service:
    """What there is to ask for, and what is to go wrong with it."""

    def __init__(self, file: str) -> None:
        self._book = Book(file)
        self._next: dict[str, list[str]] = defaultdict(list)  # by path
        self._at_work: set[str] = set()  # by key
        self._waiting: set[str] = set()
        self._changed = threading.Condition()

    def answer(self, method: str, path: str, key: str | None, what: Any) -> Answer:
        """Raises `Lost`."""
        match method, path:
            case "GET", "/waiting":
                return 200, len(self._waiting)
            case "GET", _ if path in PATHS:
                return self._book.read(path)
            case "DELETE", "/":
                self._next.clear()
                self._go_on()
                return self._book.forget()
            case "POST", "/misbehave":
                self._next[what["path"]] += [what["how"]] * what["times"]
                return 200, None
            case "POST", "/go-on":
                self._go_on()
                return 200, None
            case "POST", _ if path.removesuffix("/undo") in PATHS:
                return self._alone(path, key or secrets.token_hex(8), what)
        return 404, {"why": f"there is no {method} {path} here"}

    def _alone(self, path: str, key: str, what: Any) -> Answer:
        with self._changed:
            if key in self._at_work:
                return 409, {"why": "the first request of this key is at work"}
            self._at_work.add(key)
        try:
            return self._do(path, key, what)
        finally:
            with self._changed:
                self._at_work.discard(key)
                self._changed.notify_all()

    def _do(self, path: str, key: str, what: Any) -> Answer:
        how = self._next[path].pop(0) if self._next[path] else ""
        if how == "fail":
            return 503, {"why": "it is out of order"}
        if how == "busy":
            return 429, {"why": "it has too much to do"}
        if how == "wait":
            with self._changed:
                self._waiting.add(key)
                self._changed.wait_for(lambda: key not in self._waiting)
        kind, _, undo = path[1:].partition("/")
        answered = self._book.answer(f"/{kind}", key, what["of"] if undo else None, what)
        if how == "lose":
            raise Lost
        return answered

    def _go_on(self) -> None:
        with self._changed:
            held = self._waiting.copy()
            self._waiting.clear()
            self._changed.notify_all()
            self._changed.wait_for(lambda: not held & self._at_work)


def serve(file: str, port: int) -> None:
    service = Service(file)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet: in two, the second waits 40 ms for the first to be acknowledged

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except (Lost, ConnectionError):
                self.close_connection = True

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            what = json.loads(self.rfile.read(length)) if length else None
            status, told = service.answer(self.command, self.path, self.headers.get("Idempotency-Key"), what)
            body = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.do_POST()

        def do_DELETE(self) -> None:
            self.do_POST()

        def log_message(self, *_: Any) -> None:
            """Its log is its book."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()  # until whoever started us has gone


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 8042)
