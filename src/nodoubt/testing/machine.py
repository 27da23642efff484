"""What the test servers need of the machine: their programs, an account, a place for their data, a port.

Guarantees: a missing program is an error that says what to install; a port lies outside the range of outgoing
connections; whoever we are, the server's programs run as somebody who may run them.

Must not: know how a server is started or asked. Linux only.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import random
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from ..errors import NoDoubtError

COMMAND_TIME_MAX_S = 120.0
PORT_ATTEMPTS_MAX = 20
PORT_LOWEST = 15000
MEMORY_FILES = Path("/dev/shm")  # noqa: S108 - used through mkdtemp only
MEMORY_FREE_MIN_BYTES = 8 << 30


class ServerError(NoDoubtError):
    """A test server did not start, stop or answer; the message ends with its log."""


class ServerNotInstalled(ServerError):
    """The server's programs are not on this machine; the message says what to install."""

    def __init__(self, program: str, looked_in: str) -> None:
        super().__init__(
            f"{program} is not installed (looked in {looked_in}). On Debian or Ubuntu: "
            "apt-get install postgresql-15 mariadb-server"
        )


# ---- programs -------------------------------------------------------------------------------------


@functools.cache
def postgres_program(name: str) -> str:
    """The newest server's program, not Debian's wrapper of the same name (a Perl script, and 60 ms per call)."""

    def version(path: Path) -> tuple[int, ...]:
        return tuple(int(part) for part in path.parent.parent.name.split(".") if part.isdigit())

    places = [*Path("/usr/lib/postgresql").glob("*/bin/postgres"), *Path("/usr").glob("pgsql-*/bin/postgres")]
    for server in sorted(places, key=version, reverse=True):
        if (server.parent / name).exists():
            return str(server.parent / name)
    if found := shutil.which(name):
        return found
    raise ServerNotInstalled(f"PostgreSQL's {name}", "/usr/lib/postgresql/*/bin, PATH")


@functools.cache
def mariadb_program(name: str) -> str:
    search = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/bin", "/usr/local/sbin"))
    if found := shutil.which(name, path=search):
        return found
    raise ServerNotInstalled(f"MariaDB's {name}", "PATH, /usr/sbin")


def environment(**more: str) -> dict[str, str]:
    """Ours, without what would point PostgreSQL's or MariaDB's programs at another server, user or language."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "MYSQL", "MARIADB", "LC_"))}
    return {**kept, "LC_ALL": "C.UTF-8", "TZ": "UTC", **more}


def _who(account: pwd.struct_passwd | None) -> tuple[int | None, int | None, list[int] | None]:
    return (None, None, None) if account is None else (account.pw_uid, account.pw_gid, [])


def command(
    arguments: list[str], account: pwd.struct_passwd | None, directory: Path = Path("/"), **variables: str
) -> subprocess.CompletedProcess[str]:
    user, group, groups = _who(account)
    return subprocess.run(
        arguments, user=user, group=group, extra_groups=groups, cwd=directory, env=environment(**variables),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=COMMAND_TIME_MAX_S,
        check=False,
    )  # fmt: skip


def run_checked(arguments: list[str], account: pwd.struct_passwd | None, directory: Path) -> None:
    done = command(arguments, account, directory)
    if done.returncode != 0:
        raise ServerError(f"{arguments[0]} failed ({done.returncode}):\n{done.stdout}\n{done.stderr}")


def spawn(
    arguments: list[str], account: pwd.struct_passwd | None, directory: Path, log: int, **variables: str
) -> subprocess.Popen[bytes]:
    user, group, groups = _who(account)
    return subprocess.Popen(
        arguments, user=user, group=group, extra_groups=groups, cwd=directory, env=environment(**variables),
        stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip


# ---- places and ports -----------------------------------------------------------------------------


def fresh_directory(kind: str, account: pwd.struct_passwd | None, under: Path) -> Path:
    directory = Path(tempfile.mkdtemp(prefix=f"nodoubt-{kind.lower()}-", dir=under))
    if account is not None:
        os.chown(directory, account.pw_uid, account.pw_gid)
    return directory


def place(*, in_memory: bool) -> Path:
    """Where directories go by themselves: into memory if there is plenty, unless TMPDIR says where they shall go."""
    if not in_memory or "TMPDIR" in os.environ or not os.access(MEMORY_FILES, os.W_OK | os.X_OK):
        return Path(tempfile.gettempdir())
    room = os.statvfs(MEMORY_FILES)
    memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(memory["MemAvailable"].split()[0]) * 1024
    plenty = min(room.f_bavail * room.f_frsize, available) >= MEMORY_FREE_MIN_BYTES
    return MEMORY_FILES if plenty else Path(tempfile.gettempdir())


def copy_tree(source: Path, target: Path) -> None:
    """Copy a tree with its owners and modes (PostgreSQL refuses a data directory that others may read)."""
    run_checked(["cp", "-a", "--sparse=never", str(source), str(target)], None, Path("/"))


def free_port() -> int:
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
