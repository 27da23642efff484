"""Carries the plan out, lane by lane, and writes down what it has really done, when, and whether it has struck.

Guarantees: after `heal` everything runs, moves, has room and tells the true time. A server that a fault has ended (as a
full disk may) is started again.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from nodoubt.testing.processes import descendants
from nodoubt.testing.proxy import Fault
from nodoubt.testing.servers import PostgresServer, ServerError

from .plan import Act
from .world import World

SEEN_AFTER_S = 2.5  # libfaketime looks every second
DETACH_TIME_MAX_S = 20.0
ATTACH_TIME_MAX_S = 5.0
WRITES = "pwrite64,pwritev,fallocate"  # what databases write with; sockets, logs and histories are written otherwise
EVERY = (1, 1, 2, 5)  # of a thread's writes fail: all, or each so-manieth
ENDING_TIME_MAX_S = 5.0  # a server that a full disk ends writes its last words first


class Done(msgspec.Struct, frozen=True):
    """What became of an act. Times: this machine's monotonic clock. `hits`: how often it struck, if that is counted."""

    act: Act
    began: float
    ended: float
    hits: int | None = None
    note: str = ""


class Nemesis:
    """All lanes."""

    def __init__(self, world: World, acts: Sequence[Act], log: Path, say: Callable[[str], None]) -> None:
        self.world, self.say = world, say
        self.done: list[Done] = []
        self.errors: list[str] = []
        self._log = log.open("ab", buffering=0)
        self._filled: set[str] = set()  # servers that have had a full disk since they were started
        self._over = threading.Event()
        self._lock = threading.Lock()
        lanes: dict[str, list[Act]] = defaultdict(list)
        for act in acts:
            lanes[act.lane].append(act)
        self._threads = [threading.Thread(target=self._run, args=(lane,), name=name) for name, lane in lanes.items()]
        self._began = 0.0

    def start(self) -> None:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()

    def heal(self) -> None:
        """Stop, let each lane mend what it has broken, and see that nothing is left broken."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        for proxy in self.world.proxies.values():
            proxy.heal()
        for clock in self.world.clocks.values():
            clock.set(0)
        for name in self.world.servers:
            self._raise_again(name)

    def _run(self, acts: Sequence[Act]) -> None:
        for act in acts:
            if self._over.wait(max(0.0, self._began + act.at_s - time.monotonic())):
                return
            began = time.monotonic()
            try:
                hits, note = self._do(act)
            except Exception as error:
                self.errors.append(f"the nemesis failed at {act}: {type(error).__name__}: {error}")
                hits, note = None, f"failed: {error}"
            self._tell(Done(act, began, time.monotonic(), hits, note))

    def _tell(self, done: Done) -> None:
        with self._lock:
            self.done.append(done)
            self._log.write(msgspec.json.encode(done) + b"\n")
        act = done.act
        more = " ".join(part for part in (act.pattern, f"{act.seconds:+g}s" if act.seconds else "") if part)
        hits = "" if done.hits is None else f" ({done.hits} hits)"
        when = f"{done.began - self._began:7.1f}s  {act.fault:<16} {act.target:<12} {done.ended - done.began:5.1f}s"
        self.say(f"{when}  {more}{hits} {done.note}")

    def _do(self, act: Act) -> tuple[int | None, str]:
        if act.fault == "move the clock":
            return self._move_clock(act)
        if act.lane.startswith("network"):
            return self._break_network(act)
        if act.target in self.world.servers:
            return self._break_server(act)
        return self._break_process(act)

    def _wait(self, act: Act) -> None:
        self._over.wait(act.for_s)

    # ---- servers

    def _break_server(self, act: Act) -> tuple[int | None, str]:
        server = self.world.servers[act.target]
        self._raise_again(act.target)
        match act.fault:
            case "kill":
                server.kill()
                self._wait(act)
                server.restart()
            case "kill a backend":
                assert isinstance(server, PostgresServer)
                backends = [pid for pid in descendants(server.pid) if _serves_a_client(pid)]
                if not backends:
                    return 0, "nobody is connected"
                try:
                    os.kill(backends[act.number % len(backends)], signal.SIGKILL)
                except ProcessLookupError:
                    return 0, "it had just left"
                return 1, ""
            case "freeze":
                server.freeze()
                self._wait(act)
                server.thaw()
            case "restart":
                try:
                    server.restart()
                except ServerError:  # on a busy machine it may take too long to shut down
                    server.kill()
                    server.restart()
                    self._filled.discard(act.target)
                    return None, "it would not shut down, and was killed"
            case "fill the disk":
                hits = self._fill_disk(act, server.pid)
                deadline = time.monotonic() + ENDING_TIME_MAX_S
                while hits and server.running and time.monotonic() < deadline and not self._over.wait(0.1):
                    pass
                ended = not server.running
                if hits:
                    self._filled.add(act.target)
                self._raise_again(act.target)
                return hits, "it ended by that" if ended else ""
        if act.fault in ("kill", "restart"):
            self._filled.discard(act.target)
        return None, ""

    def _raise_again(self, name: str) -> None:
        """Start a server that has ended. Only a full disk may have done that: it may take its time to die of it."""
        server = self.world.servers[name]
        if server.running:
            return
        if name not in self._filled:
            self.errors.append(f"{name} had ended by itself: {server.log()}")
        server.kill()
        server.restart()
        self._filled.discard(name)

    # ---- processes

    def _break_process(self, act: Act) -> tuple[int | None, str]:
        process = self.world.processes[act.target]
        if process.poll() is not None:
            return 0, "it was not running"
        match act.fault:
            case "kill":
                self.world.down.add(act.target)
                process.kill()
                process.wait()
                self._wait(act)
                self.world.start(act.target)
                self.world.down.discard(act.target)
            case "stop":
                process.send_signal(signal.SIGSTOP)
                self._wait(act)
                process.send_signal(signal.SIGCONT)
            case "fill the disk":
                return self._fill_disk(act, process.pid), ""
        return None, ""

    def _fill_disk(self, act: Act, pid: int) -> int:
        """ENOSPC for the writes of all its processes, as strace makes it; how many there were."""
        out = self.world.folder / f"strace-{act.lane.replace(' ', '-')}"
        every = EVERY[act.number % len(EVERY)]
        pids = [argument for one in (pid, *descendants(pid)) for argument in ("-p", str(one))]
        inject = f"inject={WRITES}:error=ENOSPC:when={every}+{every}"
        with out.with_suffix(".log").open("wb") as log:
            strace = subprocess.Popen(
                ["strace", "-f", "-qq", "-e", f"trace={WRITES}", "-e", inject, "-e", "signal=none", "-o", out, *pids],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            self._wait(act)
        finally:
            strace.send_signal(signal.SIGINT)  # it lets go of all of them, and they go on
            try:
                strace.wait(DETACH_TIME_MAX_S)
            except subprocess.TimeoutExpired:
                strace.kill()
                strace.wait()
        return len(re.findall(rb"\(INJECTED\)", out.read_bytes()))

    # ---- the network

    def _break_network(self, act: Act) -> tuple[int | None, str]:
        proxy = self.world.proxies[act.target]
        pattern = act.pattern.encode()
        fault: Fault | None = None
        match act.fault:
            case "sever":
                number = proxy.connections
                proxy.sever()
                return number, ""
            case "half open":
                number = proxy.connections
                proxy.half_open()
                self._wait(act)
                proxy.heal()
                return number, ""
            case "cut off":
                fault = proxy.cut_request(pattern, isolate=True)
            case "lose a request":
                fault = proxy.cut_request(pattern, times=act.times)
            case "lose a reply":
                fault = proxy.cut_reply(pattern, times=act.times)
            case "stall":
                fault = proxy.stall(pattern, times=act.times)
            case "delay":
                fault = proxy.delay_reply(pattern, act.seconds, times=act.times)
        self._wait(act)
        proxy.heal()
        return None if fault is None else fault.hits, ""

    # ---- clocks

    def _move_clock(self, act: Act) -> tuple[int | None, str]:
        clock = self.world.clocks[act.target]
        clock.set(int(act.seconds))
        self._over.wait(SEEN_AFTER_S)
        note = self._shown(act.target) if act.target in self.world.servers else ""
        self._over.wait(act.for_s - SEEN_AFTER_S)
        clock.set(0)
        return None, note

    def _shown(self, name: str) -> str:
        """What a server says that the time is."""
        sql = "select unix_timestamp(now(6))" if name == "maria" else "select extract(epoch from clock_timestamp())"
        try:
            shown = self.world.stranger(name).query(sql)[0][0]
        except Exception as error:
            return f"not asked: {type(error).__name__}"
        return f"it shows {float(shown) - time.time():+.0f} s"


def _serves_a_client(pid: int) -> bool:
    """Whether it is a backend with a client, by the title that PostgreSQL gives it."""
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return title.startswith(b"postgres: postgres ")
