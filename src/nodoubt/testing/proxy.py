"""A TCP proxy that loses replies, requests and whole connections at a chosen statement.

    with TcpProxy.to(server.url()) as proxy:
        fault = proxy.cut_reply(after=b"COMMIT PREPARED")
        …                                   # the client works over proxy.url_for(url), and gets no answer
        fault.wait_hit()                    # the server has done it and answered; the answer is lost

Guarantees: a fault strikes at the first request, sent after it was armed, that contains its pattern, on whichever
connection; `wait_hit` returns when it has fully struck. Before a reply is cut it has arrived whole (by the server's
protocol, if `kind` is known), so the statement *was* done. A stalled link keeps both its ends open and
moves nothing, not even the news that the other end is gone: what was held arrives late, as from a slow network.

A pattern is found where its text passes: in plain text only, and for a prepared statement when it is prepared,
not each time it runs.

Must not: import a driver, or know more of a protocol than where a reply ends.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum
from types import TracebackType
from typing import Self

from ..errors import UsageError
from ..url import parse_url

__all__ = ["Fault", "TcpProxy"]

CHUNK_BYTES = 65536
BUFFER_BYTES_MAX = 1 << 20
PATTERN_BYTES_MAX = 4096
CONNECT_TIME_MAX_S = 10.0
HIT_TIME_MAX_S = 30.0
JOIN_TIME_MAX_S = 10.0
SERVER_MORE_RESULTS_EXISTS = 0x0008
MARIADB_OK, MARIADB_EOF, MARIADB_ERROR = 0x00, 0xFE, 0xFF
MARIADB_EOF_BYTES_MAX = 8  # a longer packet that begins like an EOF is a row with a very long first column
DEFAULT_PORTS = {"postgres": 5432, "mariadb": 3306}


class _Action(Enum):
    CUT_REQUEST = "cut request"
    CUT_REPLY = "cut reply"
    HALF_OPEN = "half open"
    DELAY_REPLY = "delay reply"
    STALL = "stall"


class Fault:
    """One armed fault. It strikes `times` times, then requests pass it by."""

    def __init__(
        self,
        proxy: TcpProxy,
        action: _Action,
        pattern: bytes,
        times: int | None,
        seconds: float | None = None,
        *,
        isolate: bool = False,
    ) -> None:
        if not 0 < len(pattern) <= PATTERN_BYTES_MAX:
            raise UsageError(f"a pattern has 1 to {PATTERN_BYTES_MAX} bytes: part of the statement to strike at")
        self._proxy = proxy
        self._action = action
        self._pattern = pattern.lower()
        self._left = times
        self._seconds = seconds
        self._isolate = isolate
        self._struck = threading.Semaphore(0)
        self._released = threading.Event()
        self.hits = 0

    def __repr__(self) -> str:
        return f"<Fault {self._action.value} at {self._pattern!r}, {self.hits} hits>"

    def wait_hit(self, timeout_s: float = HIT_TIME_MAX_S) -> None:
        """Wait until it has struck once more than this was called before. Raises TimeoutError."""
        if not self._struck.acquire(timeout=timeout_s):
            raise TimeoutError(f"no request met {self!r} within {timeout_s:g} s")

    def release(self) -> None:
        """Let go of what it holds (a stall, a delayed reply), and of whatever it would hold later."""
        self._released.set()
        self._proxy._wake_all()

    def cancel(self) -> None:
        """Strike no more. What it holds stays held until `release()`."""
        self._left = 0

    def _takes(self, before: bytes, request: bytes) -> bool:
        """Whether the pattern *ends* in this request: what lies wholly before it has passed already."""
        begun = before[len(before) - len(self._pattern) + 1 :] if len(before) >= len(self._pattern) else before
        if self._left == 0 or self._pattern not in begun + request:
            return False
        if self._left is not None:
            self._left -= 1
        return True

    def _strike(self) -> None:
        with self._proxy._lock:
            self.hits += 1
        self._struck.release()


class TcpProxy:
    """Relays every connection on `port` to a server, and breaks them as told."""

    def __init__(self, host: str, port: int, *, kind: str = "") -> None:
        #: How to know a whole reply: "postgres", "mariadb", or "" for whatever comes in one piece.
        self._reply_ended = _REPLY_ENDED[kind]
        self.target = (host, port)
        self.host = "127.0.0.1"
        self.port = 0
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._links: set[_Link] = set()
        self._faults: list[Fault] = []
        self._orphans: list[socket.socket] = []
        self._isolated = False
        #: Bursts of requests that were followed by a reply, over all connections.
        self.round_trips = 0
        self.bytes_to_server = 0
        self.bytes_to_client = 0

    @classmethod
    def to(cls, url: str) -> Self:
        """A proxy for this URL's server."""
        at = parse_url(url)
        return cls(at.host, at.port or DEFAULT_PORTS[at.kind], kind=at.kind)

    def url_for(self, url: str) -> str:
        """The same database, through this proxy."""
        at = parse_url(url)
        if (at.host, at.port or DEFAULT_PORTS.get(at.kind)) != self.target:
            raise UsageError(f"{at} is not on {self.target[0]}:{self.target[1]}, where this proxy leads")
        return replace(at, host=self.host, port=self.port).secret()

    # -- faults

    def cut_request(self, pattern: bytes, *, times: int | None = 1, isolate: bool = False) -> Fault:
        """Reset both sides instead of forwarding: the server never sees the request.

        With `isolate`, nothing more reaches the server on any connection, old or new, until `heal()`; the client
        learns of the loss only when that holds.
        """
        return self._arm(_Action.CUT_REQUEST, pattern, times, isolate=isolate)

    def cut_reply(self, after: bytes, *, times: int | None = 1, isolate: bool = False) -> Fault:
        """Forward the request, wait for the whole reply, drop it and reset both sides. `isolate` as above."""
        return self._arm(_Action.CUT_REPLY, after, times, isolate=isolate)

    def delay_reply(self, pattern: bytes, seconds: float | None = None, *, times: int | None = 1) -> Fault:
        """Forward the request, but hold the reply (and the connection) for so long, or until `release()`."""
        return self._arm(_Action.DELAY_REPLY, pattern, times, seconds)

    def stall(self, pattern: bytes, *, times: int | None = 1) -> Fault:
        """Hold the request; move nothing more on its connection, in either direction, until `release()`.

        A request that is released after its client has gone still reaches the server: late.
        """
        return self._arm(_Action.STALL, pattern, times)

    def half_open(self, after: bytes | None = None, *, times: int | None = 1) -> Fault | None:
        """The client dies and the server is not told: its side stays connected, and idle, until `heal()`.

        With `after`: once the reply to that request has arrived (and is dropped). Without: all connections, now.
        """
        if after is not None:
            return self._arm(_Action.HALF_OPEN, after, times)
        self._order("half open")
        return None

    def sever(self) -> None:
        """Reset every connection, now."""
        self._order("sever")

    def heal(self) -> None:
        """Disarm all faults, release what is held, let new connections in, and close the server's half-open sides."""
        with self._lock:
            self._isolated = False
            faults, self._faults = self._faults, []
            orphans, self._orphans = self._orphans, []
        for fault in faults:
            fault.cancel()
            fault.release()
        for orphan in orphans:
            _reset(orphan)

    # -- life and counts

    @property
    def connections(self) -> int:
        """How many are open now."""
        with self._lock:
            return len(self._links)

    def reset_counts(self) -> None:
        """Count from zero again."""
        with self._lock:
            self.round_trips = self.bytes_to_server = self.bytes_to_client = 0

    def start(self) -> Self:
        """Listen on a free port."""
        self._listener = socket.create_server((self.host, 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        self._run(self._accept, self._listener)
        return self

    def stop(self) -> None:
        """Reset everything and stop listening."""
        if self._listener is None:
            return
        # On Linux this wakes a thread that blocks in accept(); close() alone does not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._listener = None
        self.heal()
        self._order("sever")
        for thread in self._threads:
            thread.join(JOIN_TIME_MAX_S)
        # A link that was just being made half-open has added its socket by now.
        self.heal()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    # -- the parts

    def _arm(
        self, action: _Action, pattern: bytes, times: int | None, seconds: float | None = None, *, isolate: bool = False
    ) -> Fault:
        fault = Fault(self, action, pattern, times, seconds, isolate=isolate)
        with self._lock:
            self._faults.append(fault)
        return fault

    def _struck_by(self, before: bytes, request: bytes) -> Fault | None:
        with self._lock:
            return next((fault for fault in self._faults if fault._takes(before, request)), None)

    def _order(self, order: str) -> None:
        """Have every link do this, and wait until each has."""
        with self._lock:
            links = list(self._links)
        for link in links:
            link.order(order)
        for link in links:
            link.ended.wait(JOIN_TIME_MAX_S)

    def _isolate(self) -> None:
        """Nobody gets through any more. A link obeys before it relays another byte, so there is nothing to wait for."""
        with self._lock:
            self._isolated = True
            links = list(self._links)
        for link in links:
            link.order("sever")

    def _wake_all(self) -> None:
        with self._lock:
            links = list(self._links)
        for link in links:
            link.wake()

    def _run(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True, name=f"proxy-{self.port}")
        self._threads = [one for one in self._threads if one.is_alive()]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self._run(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self.target, CONNECT_TIME_MAX_S)
        except OSError:
            _reset(client)
            return
        link = _Link(self, client, server)
        with self._lock:
            if self._listener is None or self._isolated:
                link.close()
                return
            self._links.add(link)
        try:
            link.run()
        finally:
            with self._lock:
                self._links.discard(link)
            link.close()

    def _count(self, *, to_server: int = 0, to_client: int = 0, round_trips: int = 0) -> None:
        with self._lock:
            self.bytes_to_server += to_server
            self.bytes_to_client += to_client
            self.round_trips += round_trips

    def _adopt(self, orphan: socket.socket) -> None:
        with self._lock:
            self._orphans.append(orphan)


class _Side:
    """One socket of a link, with what waits to be sent to it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        self.socket = sock
        self.outgoing = bytearray()
        self.ended = False  # it sends no more
        self.lost = False  # and not because it said so
        self.told = False  # it was told that the other side sends no more

    def receive(self) -> bytes:
        """What has come; b"" and `ended` when nothing will come any more."""
        try:
            data = self.socket.recv(CHUNK_BYTES)
        except (BlockingIOError, InterruptedError):
            return b""
        except OSError:
            self.ended = self.lost = True
            return b""
        self.ended = not data
        return data

    def flush(self) -> None:
        """Send what can be sent now. A side that takes nothing any more swallows it."""
        try:
            del self.outgoing[: self.socket.send(self.outgoing)]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.outgoing.clear()
            self.ended = self.lost = True


def _has_room(source: _Side, sink: _Side) -> bool:
    return not source.ended and len(sink.outgoing) < BUFFER_BYTES_MAX


class _Link:
    """One connection through the proxy. All but `order` and `wake` runs in the link's own thread."""

    def __init__(self, proxy: TcpProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = _Side(client)
        self._server = _Side(server)
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_writer.setblocking(False)
        self._order = ""
        self._tail = b""  # the end of the requests so far: a pattern may span two pieces
        self._asked = False
        self._answering: Fault | None = None  # struck, and waiting for the whole reply
        self._reply = bytearray()
        self._holding: Fault | None = None  # nothing moves until it is released
        self._hold_until: float | None = None
        self._held_request = b""
        self._held_reply = b""
        self._done = False
        self.ended = threading.Event()

    def order(self, order: str) -> None:
        """Be broken, from any thread."""
        self._order = order
        self.wake()

    def wake(self) -> None:
        """Look at orders and releases again, from any thread."""
        # Full means that a wake-up is pending; closed, that the link is at its end.
        with contextlib.suppress(OSError):
            self._wake_writer.send(b"!")

    def close(self) -> None:
        """Reset what is still open; an orderly end has been passed on by now."""
        for sock in (self._client.socket, self._server.socket, self._wake_reader, self._wake_writer):
            _reset(sock)
        self.ended.set()

    def run(self) -> None:
        """Relay until both sides have ended, or a fault ends the link."""
        while not self._done:
            self._wait()
            if self._order:
                self._break(keep_server=self._order == "half open")
            elif self._holding is None or self._let_go(self._holding):
                self._relay()

    def _wait(self) -> None:
        timeout = None if self._hold_until is None else max(0.0, self._hold_until - time.monotonic())
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_reader, selectors.EVENT_READ)
            if self._holding is None:
                for side, other in ((self._client, self._server), (self._server, self._client)):
                    events = selectors.EVENT_WRITE if side.outgoing else 0
                    if _has_room(side, other):
                        events |= selectors.EVENT_READ
                    if events:
                        selector.register(side.socket, events)
            for key, _ in selector.select(timeout):
                if key.fileobj is self._wake_reader:
                    self._wake_reader.recv(CHUNK_BYTES)

    def _relay(self) -> None:
        if _has_room(self._server, self._client) and (reply := self._server.receive()):
            self._on_reply(reply)
        moving = not self._done and self._holding is None
        if moving and _has_room(self._client, self._server) and (request := self._client.receive()):
            self._on_request(request)
        if self._done:
            return
        for side, other in ((self._client, self._server), (self._server, self._client)):
            if side.outgoing:
                side.flush()
            # A lost server resets its client. A lost client is an orderly end to the server: a reset could
            # overtake the request that was sent before it, and late requests are to arrive.
            passed_on = side.told or (other is self._server and other.lost)
            if other.ended and not passed_on and not side.outgoing and self._holding is None:
                side.told = True
                with contextlib.suppress(OSError):
                    side.socket.shutdown(socket.SHUT_WR)
        # When only the client has ended, the server may still be at work on what it was sent: see it to its end.
        self._done = self._server.ended and not self._client.outgoing and self._holding is None

    def _on_request(self, request: bytes) -> None:
        lowered = request.lower()
        fault = self._proxy._struck_by(self._tail, lowered) if self._answering is None else None
        self._tail = (self._tail + lowered)[-PATTERN_BYTES_MAX:]
        if fault is None:
            self._forward(request)
        elif fault._action is _Action.CUT_REQUEST:
            self._part(fault)
            fault._strike()
        elif fault._action is _Action.STALL:
            self._held_request = request
            self._hold(fault)
        else:
            self._answering = fault
            self._reply.clear()
            self._forward(request)

    def _forward(self, request: bytes) -> None:
        self._server.outgoing += request
        self._asked = True
        self._proxy._count(to_server=len(request))

    def _on_reply(self, reply: bytes) -> None:
        self._proxy._count(to_client=len(reply), round_trips=int(self._asked))
        self._asked = False
        fault = self._answering
        if fault is None:
            self._client.outgoing += reply
            return
        self._reply += reply
        if not self._proxy._reply_ended(bytes(self._reply)):
            return
        self._answering = None
        if fault._action is _Action.DELAY_REPLY:
            self._held_reply = bytes(self._reply)
            self._hold(fault)
        else:
            self._part(fault)
            fault._strike()

    def _hold(self, fault: Fault) -> None:
        self._holding = fault
        if fault._seconds is not None:
            self._hold_until = time.monotonic() + fault._seconds
        if fault._released.is_set():  # before there was anything to let go of: nobody else wakes this link for it
            self.wake()
        fault._strike()

    def _let_go(self, fault: Fault) -> bool:
        due = self._hold_until is not None and time.monotonic() >= self._hold_until
        if not due and not fault._released.is_set():
            return False
        self._holding, self._hold_until = None, None
        if self._held_request:
            self._forward(self._held_request)
            self._held_request = b""
        self._client.outgoing += self._held_reply
        self._held_reply = b""
        return True

    def _part(self, fault: Fault) -> None:
        if fault._isolate:
            self._proxy._isolate()
        self._break(keep_server=fault._action is _Action.HALF_OPEN)

    def _break(self, *, keep_server: bool) -> None:
        """Reset the client's side, and the server's or leave it open with nobody behind it."""
        self._done = True
        _reset(self._client.socket)
        if keep_server:
            self._proxy._adopt(self._server.socket.dup())
            self._server.socket.close()
        else:
            _reset(self._server.socket)


def _reset(sock: socket.socket) -> None:
    """Close with a RST: the other end's next call fails, instead of reading an orderly end."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        sock.close()


# ---- when a reply is whole ------------------------------------------------------------------------


def _any_reply_ended(reply: bytes) -> bool:
    return bool(reply)


def _postgres_reply_ended(reply: bytes) -> bool:
    """ReadyForQuery: the server has done everything up to the end of the message or the Sync."""
    return reply[-6:-1] == b"Z\x00\x00\x00\x05"


def _mariadb_reply_ended(reply: bytes) -> bool:
    """The last result's last packet: each statement of one message has a result, and all but the last say "more".

    A result is one OK packet, or a packet with the number of columns, the columns, EOF, the rows, EOF.
    """
    at, part = 0, "head"
    while at + 4 < len(reply):
        length = int.from_bytes(reply[at : at + 3], "little")
        packet = reply[at + 4 : at + 4 + length]
        at += 4 + length
        if len(packet) < length:
            return False
        kind, is_eof = packet[0], packet[0] == MARIADB_EOF and length <= MARIADB_EOF_BYTES_MAX
        if kind == MARIADB_ERROR:  # which also ends the message
            return True
        status = b""
        match part:
            case "head" if kind == MARIADB_OK:
                status = _ok_status(packet)
            case "head":
                part = "columns"
            case "columns" if is_eof:
                part = "rows"
            case "rows" if is_eof:
                status, part = packet[3:5], "head"
        if status and not int.from_bytes(status, "little") & SERVER_MORE_RESULTS_EXISTS:
            return True
    return False


def _ok_status(packet: bytes) -> bytes:
    """The status of an OK packet: behind two integers of variable length."""
    at = 1
    for _ in range(2):
        at += {0xFC: 3, 0xFD: 4, 0xFE: 9}.get(packet[at], 1)
    return packet[at : at + 2]


_REPLY_ENDED: Mapping[str, Callable[[bytes], bool]] = {
    "": _any_reply_ended,
    "postgres": _postgres_reply_ended,
    "mariadb": _mariadb_reply_ended,
}
