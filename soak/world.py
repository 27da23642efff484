"""What the soak runs on: servers, databases, proxies, clocks and processes, all started here and gone at the end.

Each cluster has its databases `p1` to `p3` on the three PostgreSQL servers, `m` on MariaDB, and a file `s`.

Guarantees: nothing outlives the block, not even what is stopped or frozen.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from kit import Database
from nodoubt import Coordinator, Settings
from nodoubt.testing.proxy import TcpProxy
from nodoubt.testing.servers import MariaDBServer, PostgresServer, Server, Setting
from nodoubt.url import parse_url

from . import clock, workload
from .rig import JOURNALS, PLACES, SERVERS, Rig, Role
from .worker import SETTINGS, Task

ROOT = Path(__file__).parent.parent
END_TIME_MAX_S = 180.0
PATIENT = Settings(answer_s=60)
LOG_LINES_MAX = 100_000


class World:
    """All of it. `clocks`: whether they can be moved; `under`: where the servers' directories go."""

    def __init__(self, folder: Path, seed: int, rig: Rig, *, clocks: bool, under: Path | None = None) -> None:
        self.folder, self.seed, self.rig = folder, seed, rig
        self.closed = folder / "closed"
        self.clocks: dict[str, clock.Clock] = {}
        self._readable: Path | None = None
        if clocks:
            names = [*SERVERS, *(role.name for role in rig.roles)]
            # The servers' accounts read theirs, and may not be able to look into `folder`.
            self._readable = Path(tempfile.mkdtemp(prefix="nodoubt-clocks-", dir=under))
            self._readable.chmod(0o755)
            self.clocks = {name: clock.Clock(self._readable / name) for name in names}
        self.servers: dict[str, Server] = {
            name: MariaDBServer(_MARIADB, under=under, variables=self._clock(name))
            if name == "maria"
            else PostgresServer(_POSTGRES, under=under, variables=self._clock(name))
            for name in SERVERS
        }
        self.proxies: dict[str, TcpProxy] = {}
        self.databases: dict[str, list[Database]] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.failed: list[str] = []  # processes that ended by themselves, and badly
        self.down: set[str] = set()  # processes that are meant to be down
        self._starts = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        try:
            with ThreadPoolExecutor(len(SERVERS)) as at_once:
                list(at_once.map(Server.start, self.servers.values()))
                for name in self.servers:
                    self.proxies[name] = TcpProxy.to(self.stranger(name).url).start()
                list(at_once.map(self._found, self.rig.clusters))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        for proxy in self.proxies.values():
            proxy.stop()
        for name, server in self.servers.items():
            (self.folder / f"{name}.log").write_text(server.log(LOG_LINES_MAX))
            server.stop()
        if self._readable is not None:
            shutil.rmtree(self._readable)

    def _clock(self, name: str) -> Mapping[str, str]:
        return self.clocks[name].variables if name in self.clocks else {}

    def _found(self, cluster: str) -> None:
        """Its databases with their tables, and ours."""
        self.databases[cluster] = [
            Database(name, f"sqlite:///{self.folder}/{cluster}-s.db")
            if name == "s"
            else Database(name, self.servers[PLACES[name]].url(f"soak_{cluster}"))
            for name in workload.DATABASES
        ]
        for database in self.databases[cluster]:
            if database.kind == "sqlite":
                database.query("pragma journal_mode = wal")
            for statement in workload.TABLES:
                database.query(statement)
        with self.coordinator(cluster) as db:
            db.setup()

    def journal(self, cluster: str) -> Database:
        """The database that holds it."""
        where = JOURNALS[cluster]
        for database in self.databases[cluster]:
            if database.name == where:
                return database
        return Database("journal", f"sqlite:///{self.folder}/{cluster}-journal.db")

    def stranger(self, server: str) -> Database:
        """A server, as somebody sees it who has nothing to do with us."""
        return Database(server, self.servers[server].url("soak" if server == "maria" else "postgres"))

    def coordinator(self, cluster: str) -> Coordinator:
        """One of our own, past the proxies, under the true time, and patient."""
        return Coordinator(self._urls(cluster), journal=self._where(cluster), settings=PATIENT, recovery=False)

    def _where(self, cluster: str) -> str:
        return self.journal(cluster).url if JOURNALS[cluster] == "apart" else JOURNALS[cluster]

    def _urls(self, cluster: str, role: Role | None = None) -> dict[str, str]:
        urls = {}
        for database in self.databases[cluster]:
            url = database.url
            if role is not None and role.proxied and database.name in PLACES:
                url = self.proxies[PLACES[database.name]].url_for(url)
            if role is not None and role.driver and parse_url(url).kind == "postgres":
                url = url.replace("postgresql://", f"postgresql+{role.driver}://")
            urls[database.name] = url
        return urls

    # ---- processes

    def start_all(self) -> None:
        for role in self.rig.roles:
            self.start(role.name)

    def start(self, name: str) -> None:
        """Start it, for the first time or again."""
        role = next(one for one in self.rig.roles if one.name == name)
        with self._lock:
            self._starts += 1
            number = self._starts
        urls, where = self._urls(role.cluster, role), self._where(role.cluster)
        variables = {
            **os.environ,
            **self._clock(name),
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "src"))),
        }
        given = b""
        if role.role == "recoverer":
            arguments = ["soak.clock", "recover", "--watch", "--every", "1s", "--grace", f"{SETTINGS.grace_s:g}s"]
            variables["NODOUBT_RESOURCES"] = " ".join(f"{one}={url}" for one, url in urls.items())
            variables["NODOUBT_JOURNAL"] = where
        else:
            arguments = ["soak.worker"]
            given = msgspec.json.encode(self._task(role, number, urls, where))
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.PIPE, stdout=log, stderr=log, env=variables, cwd=self.folder,
            )  # fmt: skip
        assert process.stdin is not None
        with process.stdin as stream:
            stream.write(given)
        self.processes[name] = process

    def _task(self, role: Role, number: int, urls: dict[str, str], where: str) -> Task:
        return Task(
            name=role.name,
            role=role.role,
            mode=role.mode,
            clients=role.clients,
            urls=urls,
            journal=where,
            history=str(self.folder / f"{role.name}.history"),
            closed=str(self.closed),
            seed=f"{self.seed}/{role.name}/{number}",
            think_s=self.rig.think_s,
            mutant=self.rig.mutant,
            stall_share=self.rig.stall_share,
        )

    def look_after(self) -> None:
        """A process or server that has ended by itself is noted, and started again."""
        for name, process in list(self.processes.items()):
            if name not in self.down and process.poll() is not None and self.processes[name] is process:
                self.failed.append(f"{name} ended by itself with {process.returncode}: {self.log_of(name)}")
                self.start(name)

    def log_of(self, name: str) -> str:
        """The end of what it has said."""
        text = (self.folder / f"{name}.log").read_text(errors="replace")
        return text[-2000:]

    def close(self) -> None:
        """The clients' day is over; all processes end in order."""
        self.closed.touch()
        for role in self.rig.roles:
            if role.role == "recoverer":
                self.processes[role.name].send_signal(signal.SIGTERM)
        deadline = time.monotonic() + END_TIME_MAX_S
        for name, process in self.processes.items():
            try:
                process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                self.failed.append(f"{name} did not end within {END_TIME_MAX_S:g} s: {self.log_of(name)}")
                process.kill()
                continue
            # A recoverer that has only just been started again has no ear for SIGTERM yet.
            if process.returncode not in (0, -signal.SIGTERM):
                self.failed.append(f"{name} ended with {process.returncode}: {self.log_of(name)}")


_POSTGRES: dict[str, Setting] = {
    "max_connections": 300,
    "max_prepared_transactions": 300,
    "shared_buffers": "64MB",
    "autovacuum": True,
    "restart_after_crash": True,
}
_MARIADB: dict[str, Setting] = {"max-connections": 300, "innodb-buffer-pool-size": "64M"}
