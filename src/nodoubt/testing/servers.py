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
import functools
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from ..errors import NoDoubtError
from .processes import Guard, ProcessError, continue_tree, kill_tree, stop_tree, wait_for

__all__ = ["MariaDBServer", "PostgresServer", "Server", "ServerError", "ServerNotInstalled", "Setting"]

START_TIME_MAX_S = 60.0
SHUTDOWN_TIME_MAX_S = 60.0
COMMAND_TIME_MAX_S = 120.0
PORT_ATTEMPTS_MAX = 20
PORT_LOWEST = 15000
LOG_TAIL_LINES = 40
MEMORY_FILES = Path("/dev/shm")  # noqa: S108 - used through mkdtemp only
MEMORY_FREE_MIN_BYTES = 8 << 30
POSTMASTER_STATUS_LINE = 7  # of postmaster.pid, from 0

Setting = str | int | bool | None


class ServerError(NoDoubtError):
    """A test server did not start, stop or answer; the message ends with its log."""


class ServerNotInstalled(ServerError):
    """The server's programs are not on this machine; the message says what to install."""

    def __init__(self, program: str, looked_in: str) -> None:
        super().__init__(
            f"{program} is not installed (looked in {looked_in}). On Debian or Ubuntu: "
            "apt-get install postgresql-15 mariadb-server"
        )


class Server(ABC):
    """One server with a data directory of its own. Use `PostgresServer` or `MariaDBServer`."""

    defaults: ClassVar[Mapping[str, Setting]]
    accounts: ClassVar[tuple[str, ...]]  # who may run it when we are root, best first
    kind: ClassVar[str]
    in_memory: ClassVar[bool] = True  # may live there, if there is plenty

    def __init__(self, settings: Mapping[str, Setting] | None = None, *, under: str | Path | None = None) -> None:
        self._under = None if under is None else Path(under)
        #: Read at each start: change it and `restart()` to run with other settings.
        self.settings: dict[str, Setting] = {**self.defaults, **(settings or {})}
        self.host = "127.0.0.1"
        self.port = 0
        self._directory: Path | None = None
        self._guard: Guard | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
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
        self._directory = _fresh_directory(self.kind, self._account(), self._under or _place(in_memory=self.in_memory))
        self._guard = Guard(self._directory)
        try:
            _copy(_template(type(self)), self.data)
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
        return self._url(name)

    # -- what the kinds differ in

    _shutdown_signal: ClassVar[signal.Signals]

    @classmethod
    @abstractmethod
    def _make_template(cls, directory: Path, account: pwd.struct_passwd | None) -> None:
        """Initialise a data directory that servers can start from copies of."""

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _ready(self) -> bool: ...

    @abstractmethod
    def _create(self, database: str) -> None: ...

    @abstractmethod
    def _url(self, database: str) -> str: ...

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
            self.port = _free_port()
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
            self._process = _spawn(self._command(), self._account(), self.data, stream.fileno())
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
        initdb = _postgres_program("initdb")
        _run(
            [initdb, "-D", str(directory), "-U", cls.user, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
            account,
            directory.parent,
        )
        with (directory / "postgresql.conf").open("a", encoding="utf-8") as conf:
            conf.write("\ninclude 'settings.conf'\n")

    def _command(self) -> list[str]:
        listen: dict[str, Setting] = {"listen_addresses": self.host, "port": self.port, "unix_socket_directories": ""}
        lines = [f"{name} = {_postgres_value(value)}\n" for name, value in {**self.settings, **listen}.items()]
        (self.data / "settings.conf").write_text("".join(lines), encoding="utf-8")
        return [_postgres_program("postgres"), "-D", str(self.data)]

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
        where = ["-h", self.host, "-p", str(self.port), "-U", self.user, "-d", "postgres"]
        statement = f'CREATE DATABASE "{database}"'
        psql = _postgres_program("psql")
        done = _command([psql, "-X", "-q", "-v", "VERBOSITY=sqlstate", *where, "-c", statement], self._account())
        if done.returncode != 0 and "42P04" not in done.stderr:  # 42P04: it exists
            raise self._failure(f"creating database {database!r} failed: {done.stderr.strip()}")

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
        program = _mariadb_program("mariadb-install-db")
        _run(
            [program, "--no-defaults", f"--datadir={directory}", "--auth-root-authentication-method=normal",
             "--skip-test-db", "--skip-name-resolve", f"--extra-file={extra}", "--innodb-log-file-size=16M"],
            account,
            directory.parent,
        )  # fmt: skip

    def _command(self) -> list[str]:
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
            _mariadb_program("mariadbd"), "--no-defaults", f"--datadir={self.data}", f"--bind-address={self.host}",
            f"--port={self.port}", "--socket=server.sock", "--pid-file=server.pid",
            f"--tmpdir={self.data.parent}",  # a starting server removes what looks like a temporary table, anybody's
            *options,
        ]  # fmt: skip

    def _ready(self) -> bool:
        return "ready for connections" in self._log_text(self._log_start)

    def _create(self, database: str) -> None:
        client = _mariadb_program("mariadb")
        where = ["--protocol=tcp", f"--host={self.host}", f"--port={self.port}", f"--user={self.user}", "--skip-ssl"]
        statement = f"CREATE DATABASE IF NOT EXISTS `{database}`"
        done = _command([client, "--no-defaults", *where, "-e", statement], self._account(), MYSQL_PWD=self.password)
        if done.returncode != 0:
            raise self._failure(f"creating database {database!r} failed: {done.stderr.strip()}")


# ---- programs -------------------------------------------------------------------------------------


@functools.cache
def _postgres_program(name: str) -> str:
    """The newest server's program, not Debian's wrapper of the same name (a Perl script, and 60 ms per call)."""

    def version(path: Path) -> tuple[int, ...]:
        return tuple(int(part) for part in path.parent.parent.name.split(".") if part.isdigit())

    places = [*Path("/usr/lib/postgresql").glob("*/bin/postgres"), *Path("/usr").glob("pgsql-*/bin/postgres")]
    for place in sorted(places, key=version, reverse=True):
        if (place.parent / name).exists():
            return str(place.parent / name)
    if found := shutil.which(name):
        return found
    raise ServerNotInstalled(f"PostgreSQL's {name}", "/usr/lib/postgresql/*/bin, PATH")


@functools.cache
def _mariadb_program(name: str) -> str:
    search = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/bin", "/usr/local/sbin"))
    if found := shutil.which(name, path=search):
        return found
    raise ServerNotInstalled(f"MariaDB's {name}", "PATH, /usr/sbin")


def _postgres_value(value: Setting) -> str:
    text = ("on" if value else "off") if isinstance(value, bool) else "" if value is None else str(value)
    return "'" + text.replace("'", "''") + "'"


def _environment(**more: str) -> dict[str, str]:
    """Ours, without what would point PostgreSQL's or MariaDB's programs at another server, user or language."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "MYSQL", "MARIADB", "LC_"))}
    return {**kept, "LC_ALL": "C.UTF-8", "TZ": "UTC", **more}


def _who(account: pwd.struct_passwd | None) -> tuple[int | None, int | None, list[int] | None]:
    return (None, None, None) if account is None else (account.pw_uid, account.pw_gid, [])


def _command(
    arguments: list[str], account: pwd.struct_passwd | None, directory: Path = Path("/"), **environment: str
) -> subprocess.CompletedProcess[str]:
    user, group, groups = _who(account)
    return subprocess.run(
        arguments, user=user, group=group, extra_groups=groups, cwd=directory, env=_environment(**environment),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=COMMAND_TIME_MAX_S,
        check=False,
    )  # fmt: skip


def _run(arguments: list[str], account: pwd.struct_passwd | None, directory: Path) -> None:
    done = _command(arguments, account, directory)
    if done.returncode != 0:
        raise ServerError(f"{arguments[0]} failed ({done.returncode}):\n{done.stdout}\n{done.stderr}")


def _spawn(
    arguments: list[str], account: pwd.struct_passwd | None, directory: Path, log: int
) -> subprocess.Popen[bytes]:
    user, group, groups = _who(account)
    return subprocess.Popen(
        arguments, user=user, group=group, extra_groups=groups, cwd=directory, env=_environment(),
        stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip


# ---- directories and ports ------------------------------------------------------------------------

_templates: dict[type[Server], Path] = {}
_templates_lock = threading.Lock()


def _template(kind: type[Server]) -> Path:
    """A data directory initialised once per process, to copy from: initialising takes a second, a copy a tenth."""
    with _templates_lock:
        if kind not in _templates:
            account = kind._account()
            directory = _fresh_directory(f"{kind.kind}-template", account, _place(in_memory=kind.in_memory))
            guard = Guard(directory)
            atexit.register(guard.close)
            kind._make_template(directory / "data", account)
            _templates[kind] = directory / "data"
        return _templates[kind]


def _fresh_directory(kind: str, account: pwd.struct_passwd | None, under: Path) -> Path:
    directory = Path(tempfile.mkdtemp(prefix=f"nodoubt-{kind.lower()}-", dir=under))
    if account is not None:
        os.chown(directory, account.pw_uid, account.pw_gid)
    return directory


def _place(*, in_memory: bool) -> Path:
    """Where directories go by themselves: into memory if there is plenty, unless TMPDIR says where they shall go."""
    if not in_memory or "TMPDIR" in os.environ or not os.access(MEMORY_FILES, os.W_OK | os.X_OK):
        return Path(tempfile.gettempdir())
    room = os.statvfs(MEMORY_FILES)
    memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(memory["MemAvailable"].split()[0]) * 1024
    plenty = min(room.f_bavail * room.f_frsize, available) >= MEMORY_FREE_MIN_BYTES
    return MEMORY_FILES if plenty else Path(tempfile.gettempdir())


def _copy(source: Path, target: Path) -> None:
    """Copy a tree with its owners and modes (PostgreSQL refuses a data directory that others may read)."""
    _run(["cp", "-a", "--sparse=never", str(source), str(target)], None, Path("/"))


def _free_port() -> int:
    """A port that nothing listens on now, below the range that the kernel gives to outgoing connections.

    Within that range, a client's connection could come to sit on the port of a killed server, and its restart fail.
    """
    try:
        highest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        highest = 32768
    if highest <= PORT_LOWEST:
        highest = 65536
    for _ in range(PORT_ATTEMPTS_MAX):
        port = random.randrange(PORT_LOWEST, highest)  # noqa: S311 - spreads tests over ports, keeps no secret
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise ServerError(f"found no free port in {PORT_ATTEMPTS_MAX} attempts")
