"""Real database servers for tests: started in a moment, killed for real, gone with the process that started them.

    with PostgresServer() as server:
        url = server.url()      # a fresh database
        …
        server.kill()           # SIGKILL to every process of it: a crash
        server.restart()        # same data, same port: crash recovery

Guarantees: what a server acknowledged as flushed before `kill` is there after `restart`, because durability
is left on (fsync, innodb_flush_log_at_trx_commit=1). Ports lie below the range for outgoing connections, so
that no client can sit on the port of a server that is down. Nothing is left behind: neither processes nor
directories, even if the process that started the server is killed.

Must not: need a database driver (databases are made with the clients that come with the servers), touch
a server it has not started, or be used for data that anybody wants to keep. Linux only.

Where the machine has memory to spare, PostgreSQL's directories are in it (/dev/shm): what a SIGKILL takes is what the
server had not written yet, there as on a disk, and a hundred databases' worth of small files is made, flushed and
removed ten times as fast. The flushes are still asked for, and can be counted; to have them cost what they cost, say
`under="/var/tmp"`. MariaDB's are on disk: in memory it maps its log, and then a SIGKILL loses nothing at all
(measured: of six acknowledged XA ROLLBACKs six were forgotten on disk, none in memory).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pwd
import secrets
import signal
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from .machine import (
    MEMORY_FILES,
    PORT_ATTEMPTS_MAX,
    ServerError,
    ServerNotInstalled,
    command,
    copy_tree,
    free_port,
    fresh_directory,
    mariadb_program,
    place,
    postgres_program,
    run_checked,
    spawn,
)
from .processes import Guard, ProcessError, continue_tree, kill_tree, stop_tree, wait_for

__all__ = ["MariaDBServer", "PostgresServer", "Server", "ServerError", "ServerNotInstalled", "Setting"]

START_TIME_MAX_S = 60.0
SHUTDOWN_TIME_MAX_S = 60.0
LOG_TAIL_LINES = 40
POSTMASTER_STATUS_LINE = 7  # of postmaster.pid, from 0

Setting = str | int | bool | None


class Server(ABC):
    """One server with a data directory of its own. Use `PostgresServer` or `MariaDBServer`."""

    defaults: ClassVar[Mapping[str, Setting]]
    accounts: ClassVar[tuple[str, ...]]  # who may run it when we are root, best first
    kind: ClassVar[str]
    in_memory: ClassVar[bool] = True  # may live there, if there is plenty

    def __init__(
        self,
        settings: Mapping[str, Setting] | None = None,
        *,
        under: str | Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """`under`: where its directory goes. `variables`: more for the server's own environment."""
        self._under = None if under is None else Path(under)
        self._variables = dict(variables or {})
        #: Read at each start: change it and `restart()` to run with other settings.
        self.settings: dict[str, Setting] = {**self.defaults, **(settings or {})}
        self.host = "127.0.0.1"
        self.port = 0
        self._directory: Path | None = None
        self._guard: Guard | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._fresh: set[str] = set()
        #: Between `freeze()` and `thaw()`.
        self.frozen = False

    # -- life

    def start(self) -> Self:
        """Start it, on a new data directory if there is none yet. Does nothing if it runs."""
        if self.running:
            return self
        if self._directory is not None:
            self._launch()
            return self
        self._directory = fresh_directory(self.kind, self._account(), self._under or place(in_memory=self.in_memory))
        self._guard = Guard(self._directory)
        try:
            copy_tree(_template(type(self)), self.data)
            self._launch_on_free_port()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End it at once and remove its data. Does nothing if it was never started."""
        if self.running:
            self._end_for_good()
        if self._guard is not None:
            self._guard.close()
        self._directory, self._guard, self._process = None, None, None
        self._fresh.clear()

    def kill(self) -> None:
        """SIGKILL every process of the server at once. The data stay; `restart()` recovers them."""
        if self._process is not None:
            kill_tree(self._process.pid)
            self._reap()

    def restart(self) -> None:
        """Start it again on the same data and port: after an orderly shutdown, unless it was killed before."""
        if self._directory is None:
            raise ServerError(f"this {self.kind} server was never started, so it cannot be restarted")
        if self._process is not None and self.running:
            self.thaw()
            os.kill(self._process.pid, self._shutdown_signal)
            try:
                self._process.wait(SHUTDOWN_TIME_MAX_S)
            except subprocess.TimeoutExpired:
                raise self._failure("it did not shut down") from None
            self._reap()
        self._launch()

    def freeze(self) -> None:
        """SIGSTOP every process: connections stay open, new ones are accepted by the kernel, nothing answers."""
        self.frozen = True
        stop_tree(self.pid)

    def thaw(self) -> None:
        """Go on after `freeze()`. Does nothing if it was not frozen."""
        if self.frozen:
            continue_tree(self.pid)
            self.frozen = False

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    # -- what it is

    @property
    def running(self) -> bool:
        """Whether its main process lives (a frozen one does)."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its main process."""
        if self._process is None or not self.running:
            raise self._failure("it is not running")
        return self._process.pid

    @property
    def directory(self) -> Path:
        """Holds data and log; removed by `stop()`."""
        if self._directory is None:
            raise ServerError(f"this {self.kind} server was never started")
        return self._directory

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.directory / "data"

    def log(self, lines: int = LOG_TAIL_LINES) -> str:
        """The last lines of its log."""
        if self._directory is None:
            return ""
        return "\n".join(self._log_text(0).splitlines()[-lines:])

    def url(self, database: str | None = None) -> str:
        """The URL of a fresh database with a name of its own, or of the named one, made if it is missing."""
        name = f"t_{secrets.token_hex(8)}" if database is None else database
        if not name.replace("_", "").isalnum() or not name.isascii():
            raise ServerError(f"a test database's name is ASCII letters, digits and underscores, not {name!r}")
        self._create(name)
        if database is None:
            self._fresh.add(name)
        return self._url(name)

    def drop(self, database: str) -> None:
        """Drop a database, with whatever is prepared in it. Does nothing if it is not there."""
        self._roll_back(self._prepared(database))
        self._drop(database)
        self._fresh.discard(database)

    def drop_fresh(self) -> None:
        """Drop every database that `url()` has named, whoever is still connected. Nothing may be prepared in them."""
        if self._fresh:
            self._drop(*sorted(self._fresh))
            self._fresh.clear()

    def roll_back_prepared(self) -> int:
        """Roll back every prepared transaction on the server, whoever left it; how many there were.

        A branch that is left behind holds its locks and its snapshot, and is listed to everybody on the server.
        """
        found = self._prepared()
        if found:
            self.restart()  # a live session may hold its branch, and nobody else can end it then
            self._roll_back(found)
        return len(found)

    # -- what the kinds differ in

    _shutdown_signal: ClassVar[signal.Signals]

    @classmethod
    @abstractmethod
    def _make_template(cls, directory: Path, account: pwd.struct_passwd | None) -> None:
        """Initialise a data directory that servers can start from copies of."""

    @abstractmethod
    def _argv(self) -> list[str]: ...

    @abstractmethod
    def _ready(self) -> bool: ...

    @abstractmethod
    def _create(self, database: str) -> None: ...

    @abstractmethod
    def _url(self, database: str) -> str: ...

    @abstractmethod
    def _drop(self, *databases: str) -> None: ...

    @abstractmethod
    def _prepared(self, database: str = "") -> list[tuple[str, str]]:
        """Database ("" if that does not matter) and name, as it stands in a statement, of what is prepared.

        `database`: in that one only, where the server can tell; where it can't, none.
        """

    @abstractmethod
    def _roll_back(self, prepared: list[tuple[str, str]]) -> None: ...

    def _end_for_good(self) -> None:
        self.kill()

    # -- the parts

    @classmethod
    def _account(cls) -> pwd.struct_passwd | None:
        """Whom to run it as: None is ourselves. PostgreSQL refuses root, so root lends it a lesser account."""
        if os.geteuid() != 0:
            return None
        for name in cls.accounts:
            with contextlib.suppress(KeyError):
                return pwd.getpwnam(name)
        raise ServerError(f"running as root, but none of the accounts {', '.join(cls.accounts)} exists")

    def _launch_on_free_port(self) -> None:
        for attempt in range(PORT_ATTEMPTS_MAX):
            self.port = free_port()
            try:
                self._launch()
                return
            except ServerError:
                # Somebody else took the port between our look and the server's bind.
                taken = "ddress already in use" in self._log_text(self._log_start)
                if not taken or attempt == PORT_ATTEMPTS_MAX - 1:
                    raise

    def _launch(self) -> None:
        log = self.directory / "log"
        with log.open("ab") as stream:
            self._log_start = stream.tell()
            self._process = spawn(self._argv(), self._account(), self.data, stream.fileno(), **self._variables)
        if self._guard is not None:
            self._guard.watch(self._process.pid)
        try:
            wait_for(lambda: not self.running or self._ready(), "the server to be ready", START_TIME_MAX_S)
        except ProcessError:
            failure = self._failure("it was not ready in time")
            self.kill()
            raise failure from None
        if not self.running:
            raise self._failure("it ended while starting")

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait()
        self.frozen = False
        if self._guard is not None:
            self._guard.watch(0)

    def _failure(self, what: str) -> ServerError:
        log = self.log() or "(none)"
        return ServerError(f"the {self.kind} test server on port {self.port}: {what}. The end of its log:\n{log}")

    def _log_text(self, start: int) -> str:
        try:
            with (self.directory / "log").open("rb") as stream:
                stream.seek(start)
                return stream.read().decode(errors="replace")
        except FileNotFoundError:
            return ""


class PostgresServer(Server):
    """PostgreSQL with trust authentication on 127.0.0.1 and no Unix socket. `settings` are those of postgresql.conf."""

    kind = "PostgreSQL"
    accounts = ("postgres", "nobody")
    defaults: ClassVar[Mapping[str, Setting]] = {
        "max_prepared_transactions": 200,
        "max_connections": 200,
        "fsync": True,
        "shared_buffers": "16MB",
        "logging_collector": False,
        "log_min_messages": "warning",
        "autovacuum": False,  # its workers come and go at any time, and would make some test depend on luck
    }
    user = "postgres"
    _shutdown_signal = signal.SIGINT  # "fast": sessions are ended, then a checkpoint

    def _url(self, database: str) -> str:
        return f"postgresql://{self.user}@{self.host}:{self.port}/{database}"

    @classmethod
    def _make_template(cls, directory: Path, account: pwd.struct_passwd | None) -> None:
        initdb = postgres_program("initdb")
        run_checked(
            [initdb, "-D", str(directory), "-U", cls.user, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
            account,
            directory.parent,
        )
        with (directory / "postgresql.conf").open("a", encoding="utf-8") as conf:
            conf.write("\ninclude 'settings.conf'\n")

    def _argv(self) -> list[str]:
        listen: dict[str, Setting] = {"listen_addresses": self.host, "port": self.port, "unix_socket_directories": ""}
        lines = [f"{name} = {_postgres_value(value)}\n" for name, value in {**self.settings, **listen}.items()]
        (self.data / "settings.conf").write_text("".join(lines), encoding="utf-8")
        return [postgres_program("postgres"), "-D", str(self.data)]

    def _ready(self) -> bool:
        # The postmaster's own file says so: no connection is made, and no other server can answer in its place.
        # After a crash the old file still stands until the new postmaster writes its own number on line 1.
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        if len(lines) <= POSTMASTER_STATUS_LINE or lines[0] != str(self.pid):
            return False
        return lines[POSTMASTER_STATUS_LINE].strip() == "ready"

    def _create(self, database: str) -> None:
        done = self._psql("postgres", f'CREATE DATABASE "{database}"')
        if done.returncode != 0 and "42P04" not in done.stderr:  # 42P04: it exists
            raise self._failure(f"creating database {database!r} failed: {done.stderr.strip()}")

    def _drop(self, *databases: str) -> None:
        done = self._psql("postgres", *(f'DROP DATABASE IF EXISTS "{one}" WITH (FORCE)' for one in databases))
        if done.returncode != 0:
            raise self._failure(f"dropping {', '.join(databases)} failed: {done.stderr.strip()}")

    def _prepared(self, database: str = "") -> list[tuple[str, str]]:
        only = f" WHERE database = '{database}'" if database else ""
        done = self._psql("postgres", f"SELECT database, quote_literal(gid) FROM pg_prepared_xacts{only}")
        if done.returncode != 0:
            raise self._failure(f"listing what is prepared failed: {done.stderr.strip()}")
        return [(where, gid) for where, _, gid in (line.partition("\t") for line in done.stdout.splitlines())]

    def _roll_back(self, prepared: list[tuple[str, str]]) -> None:
        for database, gid in prepared:
            done = self._psql(database, f"ROLLBACK PREPARED {gid}")
            if done.returncode != 0:
                raise self._failure(f"rolling back {gid} failed: {done.stderr.strip()}")

    def _psql(self, database: str, *statements: str) -> subprocess.CompletedProcess[str]:
        """Run the statements, each by itself, up to the first that fails.

        A server that is just restarting itself, after a crash of one backend, is waited for.
        """
        arguments = ["-X", "-q", "-A", "-t", "-F", "\t", "-v", "VERBOSITY=sqlstate", "-v", "ON_ERROR_STOP=1"]
        arguments += [part for statement in statements for part in ("-c", statement)]
        where = ["-h", self.host, "-p", str(self.port), "-U", self.user, "-d", database]
        deadline = time.monotonic() + START_TIME_MAX_S
        while True:
            done = command([postgres_program("psql"), *arguments, *where], None)
            restarting = "database system is" in done.stderr and self.running
            if not restarting or time.monotonic() > deadline:
                return done

    def _end_for_good(self) -> None:
        # "Immediate": no checkpoint, but the System V segment is given back, which a killed postmaster leaves behind.
        self.thaw()
        os.kill(self.pid, signal.SIGQUIT)
        try:
            wait_for(lambda: not self.running, "PostgreSQL to quit")
        except ProcessError:
            self.kill()
        self._reap()


class MariaDBServer(Server):
    """MariaDB, user `nodoubt` with all privileges, without TLS or binlog. `settings` are mariadbd's options.

    A setting of None is an option without a value, such as `skip-log-bin`.
    """

    kind = "MariaDB"
    accounts = ("mysql", "nobody")
    in_memory = False  # see the module
    defaults: ClassVar[Mapping[str, Setting]] = {
        "skip-log-bin": None,
        "skip-ssl": None,
        "skip-name-resolve": None,
        "innodb-flush-log-at-trx-commit": 1,
        "innodb-buffer-pool-size": "32M",
        "innodb-log-file-size": "16M",
        "max-connections": 200,
        "character-set-server": "utf8mb4",
    }
    user = "nodoubt"
    password = "nodoubt"  # noqa: S105 - of a server that listens on the loopback and lives as long as its test
    _shutdown_signal = signal.SIGTERM

    def _url(self, database: str) -> str:
        return f"mariadb://{self.user}:{self.password}@{self.host}:{self.port}/{database}"

    @classmethod
    def _make_template(cls, directory: Path, account: pwd.struct_passwd | None) -> None:
        # The server bootstraps without its privilege tables, and creates accounts only once they are loaded.
        extra = directory.parent / "accounts.sql"
        extra.write_text(
            "FLUSH PRIVILEGES;\n"
            f"CREATE USER '{cls.user}'@'%' IDENTIFIED BY '{cls.password}';\n"
            f"GRANT ALL PRIVILEGES ON *.* TO '{cls.user}'@'%' WITH GRANT OPTION;\n",
            encoding="utf-8",
        )
        extra.chmod(0o644)
        program = mariadb_program("mariadb-install-db")
        # It is a shell's script, and takes a path with a space for two: from where it stands there is none.
        run_checked(
            [program, "--no-defaults", f"--datadir=./{directory.name}", "--auth-root-authentication-method=normal",
             "--skip-test-db", "--skip-name-resolve", f"--extra-file=./{extra.name}", "--innodb-log-file-size=16M",
             "--tmpdir=."],  # within its own directory: two at a time remove each other's temporary tables
            account,
            directory.parent,
        )  # fmt: skip

    def _argv(self) -> list[str]:
        options = [
            f"--{name}" if value is None else f"--{name}={int(value) if isinstance(value, bool) else value}"
            for name, value in self.settings.items()
        ]
        if MEMORY_FILES.exists() and os.stat(self.data).st_dev == os.stat(MEMORY_FILES).st_dev:
            raise ServerError(
                f"a MariaDB in {MEMORY_FILES} maps its log and loses nothing when it is killed, so a crash test proves "
                f"nothing there: put it on a disk (under=..., or TMPDIR), not in {self.directory}"
            )
        return [
            mariadb_program("mariadbd"), "--no-defaults", f"--datadir={self.data}", f"--bind-address={self.host}",
            f"--port={self.port}", "--socket=server.sock", "--pid-file=server.pid",
            f"--tmpdir={self.data.parent}",  # a starting server removes what looks like a temporary table, anybody's
            *options,
        ]  # fmt: skip

    def _ready(self) -> bool:
        return "ready for connections" in self._log_text(self._log_start)

    def _create(self, database: str) -> None:
        self._client(f"CREATE DATABASE IF NOT EXISTS `{database}`")

    def _drop(self, *databases: str) -> None:
        # A prepared branch that somebody has left on one of its tables keeps it; the server's end takes both.
        drops = (f"DROP DATABASE IF EXISTS `{one}`" for one in databases)
        self._client("; ".join(("SET lock_wait_timeout = 1", *drops)))

    def _prepared(self, database: str = "") -> list[tuple[str, str]]:
        if database:
            return []
        return [("", line.split("\t")[-1]) for line in self._client("XA RECOVER FORMAT='SQL'").splitlines()]

    def _roll_back(self, prepared: list[tuple[str, str]]) -> None:
        if prepared:
            self._client("".join(f"XA ROLLBACK {xid};" for _, xid in prepared))

    def _client(self, statements: str) -> str:
        client = mariadb_program("mariadb")
        where = ["--protocol=tcp", f"--host={self.host}", f"--port={self.port}", f"--user={self.user}", "--skip-ssl"]
        arguments = [client, "--no-defaults", *where, "--batch", "--skip-column-names", "-e", statements]
        done = command(arguments, None, MYSQL_PWD=self.password)
        if done.returncode != 0:
            raise self._failure(f"{statements!r} failed: {done.stderr.strip()}")
        return done.stdout


def _postgres_value(value: Setting) -> str:
    text = ("on" if value else "off") if isinstance(value, bool) else "" if value is None else str(value)
    return "'" + text.replace("'", "''") + "'"


_templates: dict[type[Server], Path] = {}
_templates_lock = threading.Lock()


def _template(kind: type[Server]) -> Path:
    """A data directory initialised once per process, to copy from: initialising takes a second, a copy a tenth."""
    with _templates_lock:
        if kind not in _templates:
            account = kind._account()
            directory = fresh_directory(f"{kind.kind}-template", account, place(in_memory=kind.in_memory))
            guard = Guard(directory)
            atexit.register(guard.close)
            kind._make_template(directory / "data", account)
            _templates[kind] = directory / "data"
        return _templates[kind]
