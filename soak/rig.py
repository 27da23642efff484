"""Who works, and what breaks: the whole of it, or a small part for a test.

Three clusters share the servers: one with its journal in PostgreSQL, one in MariaDB, one in a SQLite file of its own.
The first letter of a process' name is its cluster's.
"""

from __future__ import annotations

from dataclasses import dataclass

from .plan import Lane

SERVERS = ("pg1", "pg2", "pg3", "maria")
KINDS = {"pg1": "postgres", "pg2": "postgres", "pg3": "postgres", "maria": "mariadb"}
PLACES = {"p1": "pg1", "p2": "pg2", "p3": "pg3", "m": "maria"}  # which server a database is on; `s` is a file
JOURNALS = {"p": "p1", "m": "m", "s": "apart"}  # by cluster


@dataclass(frozen=True)
class Role:
    """One process. `role`: clients, clerk or recoverer; `proxied`: it speaks to its servers through our proxies."""

    name: str
    role: str
    mode: str = "sync"
    clients: int = 0
    proxied: bool = False
    driver: str = ""

    @property
    def cluster(self) -> str:
        return self.name[0]


@dataclass(frozen=True)
class Rig:
    """`think_s`: a client's longest pause between two transactions. `calm_s`: of each minute. `mutant`, and how often
    who reaches a point of the protocol is held there (`stall_share`): see `worker`.
    """

    roles: tuple[Role, ...]
    lanes: tuple[str, ...] = ("server", "process", "network", "clock")
    think_s: float = 1.0
    calm_s: float = 12.0
    settle_s: float = 180.0  # for recovery to come to an end after all is whole again
    mutant: str = ""
    stall_share: float = 0.0

    @property
    def clusters(self) -> tuple[str, ...]:
        return tuple(sorted({role.cluster for role in self.roles}))

    @property
    def clients(self) -> int:
        return sum(role.clients for role in self.roles)

    def all_lanes(self, without: tuple[str, ...] = ()) -> list[Lane]:
        """Up to two servers, two processes, two networks and a clock are broken at any time.

        `without`: faults that this machine cannot make.
        """
        # Whose journal is a file writes to it all the time.
        kinds = {role.name: "process with files" if role.cluster == "s" else "process" for role in self.roles}
        odd, even = ({name: kinds[name] for name in list(kinds)[first::2]} for first in (0, 1))
        lanes = [
            Lane("server 1", "server", {name: KINDS[name] for name in ("pg1", "pg3")}, without),
            Lane("server 2", "server", {name: KINDS[name] for name in ("pg2", "maria")}, without),
            Lane("process 1", "process", odd, without),
            Lane("process 2", "process", even, without),
            Lane("network 1", "network", {"pg1": "journal", "maria": "mariadb"}, without),
            Lane("network 2", "network", {name: KINDS[name] for name in ("pg2", "pg3")}, without),
            Lane("clock", "clock", dict.fromkeys((*SERVERS, *kinds), "clock"), without),
        ]
        return [lane for lane in lanes if lane.pace in self.lanes and lane.kinds]


WHOLE = Rig((
    Role("p-async-1", "clients", "async", 25),
    Role("p-async-2", "clients", "async", 25, proxied=True),
    Role("p-sync", "clients", "sync", 10),
    Role("p-clerk", "clerk", "async", proxied=True),
    Role("p-recoverer", "recoverer"),
    Role("m-async", "clients", "async", 15, driver="asyncpg"),
    Role("m-sync", "clients", "sync", 8, proxied=True),
    Role("m-clerk", "clerk", "sync"),
    Role("m-recoverer", "recoverer", proxied=True),
    Role("s-async", "clients", "async", 10, proxied=True),
    Role("s-sync", "clients", "sync", 7),
    Role("s-clerk", "clerk", "async"),
    Role("s-recoverer", "recoverer"),
))  # fmt: skip
SMALL = Rig(
    (
        Role("p-async", "clients", "async", 8, proxied=True),
        Role("p-sync", "clients", "sync", 4),
        Role("p-clerk", "clerk", "async"),
        Role("p-recoverer", "recoverer"),
        Role("m-async", "clients", "async", 4, driver="asyncpg"),
        Role("s-sync", "clients", "sync", 4, proxied=True),
    ),
    think_s=0.3,
    calm_s=1.0,
    stall_share=0.01,
)
