"""A simulated server, or file, with the machine under it: up or down, frozen, full; messages that wait for a lock.

Guarantees: a message that has arrived is carried out whether or not its client still lives; a crash ends every
message in the middle of it; who waits for a lock waits no longer than the message says.

Must not: know what is in a message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...errors import NoDoubtError
from ...ports import SessionLost, StatementFailed
from ...resources.memory import MemoryMariaDB
from ...resources.memory.server import Connection, Handling, Locked, LockTimeout, MemoryServer, Tables
from ...script import Outcome
from .faults import CrashServer, When
from .kernel import Event
from .stranger import ended_by_hand

if TYPE_CHECKING:
    from .network import Link
    from .world import World

FLUSH_S = 0.002
Reply = Callable[[Outcome[Any]], None]


class _Job:
    """One message that the server is in the middle of."""

    __slots__ = ("crash", "handling", "link", "number", "reply", "timer", "waits")

    def __init__(self, link: Link, handling: Handling, reply: Reply, number: int, crash: CrashServer | None) -> None:
        self.link, self.handling, self.reply, self.number, self.crash = link, handling, reply, number, crash
        self.waits: Locked | None = None
        self.timer: Event | None = None


class Machine:
    """One of the world's servers. The checker looks after each message that has changed something."""

    def __init__(self, world: World, server: MemoryServer) -> None:
        self.world, self.server = world, server
        self.up = True
        self.frozen_until = 0.0
        self.flush_s = FLUSH_S
        self.links: list[Link] = []
        self._jobs: list[_Job] = []
        self.arrived = 0

    @property
    def name(self) -> str:
        return self.server.name

    def accept(self) -> Connection:
        return self.server.connect()

    def _link_lives(self, link: Link) -> bool:
        return self.up and link.connection.number in self.server.connections

    # ---- messages

    def receive(self, link: Link, verb: str, args: tuple[Any, ...], reply: Reply) -> None:
        """A message has arrived."""
        kernel = self.world.kernel
        if self.up and self.frozen_until > kernel.now:
            kernel.at(self.frozen_until, self.receive, link, verb, args, reply)
            return
        if not self._link_lives(link):
            self._refuse(link, reply)
            return
        self.arrived += 1
        crash = self.world.faults.on_server(self.name, self.arrived)
        if crash is not None and crash.when is When.BEFORE:
            self._refuse(link, reply)
            self.crash(crash)
            return
        job = _Job(link, self.server.handle(link.connection, verb, args), reply, self.arrived, crash)
        self._jobs.append(job)
        self._go(job)

    def _refuse(self, link: Link, reply: Reply) -> None:
        link.broken = True
        reply(Outcome(None, SessionLost(f"the connection to {self.name} was lost")))

    def _go(self, job: _Job, *, lock_timeout: bool = False) -> None:
        """Go on with a message until it is done, or has to wait."""
        if job not in self._jobs:
            return
        try:
            wait = job.handling.throw(LockTimeout()) if lock_timeout else next(job.handling)
        except StopIteration as stop:
            self._finish(job, Outcome(stop.value))
        except (StatementFailed, NoDoubtError) as error:
            self._finish(job, Outcome(None, error))
        else:
            if isinstance(wait, Locked):
                self._wait(job, wait)
                return
            self.world.look()
            if job.crash is not None and job.crash.when is When.DURING:
                self.world.kernel.after(job.crash.writing_s, self._die_writing, job)
            else:
                self.world.kernel.after(self.flush_s, self._go, job)
        self._wake()

    def _die_writing(self, job: _Job) -> None:
        if job in self._jobs and job.crash is not None:
            self.crash(job.crash)

    def _finish(self, job: _Job, outcome: Outcome[Any]) -> None:
        self._jobs.remove(job)
        self.world.look()
        if job.link.hung_up:
            self.world.kernel.after(0.0, self.hang_up, job.link)
        if job.crash is not None:
            # Answered in the very moment of the crash: the reply may be the last thing that leaves the machine.
            if job.crash.when is When.DONE:
                job.reply(outcome)
            else:
                self._refuse(job.link, job.reply)
            self.crash(job.crash)
            return
        job.reply(outcome)

    def _wait(self, job: _Job, wait: Locked) -> None:
        if job.timer is None:
            job.timer = self.world.kernel.after(wait.within_s, self._give_up_waiting, job)
        job.waits = wait

    def _give_up_waiting(self, job: _Job) -> None:
        job.timer = None
        if job.waits is not None:
            job.waits = None
            self._go(job, lock_timeout=True)

    def _wake(self) -> None:
        """Some lock may be free now: first come, first served."""
        for job in list(self._jobs):
            if job.waits is not None and not self.server.holder(job.waits.key, but=job.link.connection):
                job.waits = None
                if job.timer is not None:
                    job.timer.cancel()
                    job.timer = None
                self._go(job)

    def hang_up(self, link: Link) -> None:
        """The client's end of the connection has arrived, or its absence was noticed."""
        if not self._link_lives(link):
            return
        if self.frozen_until > self.world.kernel.now:
            self.world.kernel.at(self.frozen_until, self.hang_up, link)
            return
        if any(job.link is link for job in self._jobs):
            link.hung_up = True  # a server looks at the socket when it has done what it is at
            return
        self.world.trace.note(self.name, f"session {link.connection.number} has ended")
        self.server.disconnect(link.connection)
        self.world.look()
        self._wake()

    # ---- disasters

    def end_by_hand(self, *, commit: bool) -> bool:
        """A stranger ends a branch of ours; whether there was one."""
        world = self.world
        xid = ended_by_hand(self.server, world.cluster, commit=commit)
        if xid is None:
            return False
        world.checker.meddled(xid, self.name)
        world.trace.note(self.name, f"a stranger has {'committed' if commit else 'rolled back'} {xid.gid}")
        world.look()
        self._wake()
        return True

    def mislaid(self) -> list[str]:
        """The branches that only a restart brings back (MariaDB)."""
        return self.server.mislaid() if isinstance(self.server, MemoryMariaDB) else []

    def crash(self, crash: CrashServer, *, backup: Tables | None = None) -> None:
        """It is down now; what is not on disk is gone. With `backup` it comes back as it was then."""
        before = self.server.tables
        self.up = False
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            job.handling.close()
        for link in self.links:
            waiting = [job.reply for job in jobs if job.link is link]
            link.broken = True
            for reply in waiting:
                reply(Outcome(None, SessionLost(f"the connection to {self.name} was lost")))
        self.links.clear()
        older = backup if backup is not None else self.world.history.older(self, crash.lose)
        if older is None:
            self.server.crash(min(crash.keep, len(self.server.log.states) - 1))
        else:
            self.server.restore(older)
        self.world.crashed(self, before, honest=older is None)
        self.world.kernel.after(crash.down_s, self._start)

    def _start(self) -> None:
        self.up = True
        self.world.trace.note(self.name, "is up again")
