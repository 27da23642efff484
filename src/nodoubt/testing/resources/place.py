"""One resource under test: how work is done on it, and what a stranger sees of it.

Must not: judge.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ...errors import NoDoubtError
from ...ports import Prepared, Reply, Session, Unclear, Work
from ...script import Script, do
from ...xid import Xid, new_attempt, new_cluster
from ..bench import Bench

PATIENCE_S = 20.0
POLL_S = 0.01


class Place(ABC):
    """A resource and its bench. Say in a subclass how work is done: each number is one effect that can be seen."""

    endings: Sequence[str] = ()  # statements that would end the transaction: what a user may not say

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.resource: Any = bench.told
        self.cluster = new_cluster()
        self.resource_id = new_attempt()

    @abstractmethod
    def writing(self, number: int, *, apart: bool = False) -> str:
        """A statement after which `number` is to be seen. `apart`: so that no lock of the others is in its way."""

    @abstractmethod
    def reading(self) -> str:
        """A statement that writes nothing."""

    @abstractmethod
    def failing(self) -> str:
        """A statement that is refused."""

    @abstractmethod
    def seen(self) -> set[int]:
        """The numbers that a stranger sees now."""

    # ---- what the claims say in a word

    def run(self, script: Script[Any]) -> Any:
        """Run a script of the resource to its end."""
        return self.bench.run(script)

    def session(self) -> Session:
        """Another session."""
        return self.bench.session()

    def end(self, session: Session) -> None:
        """Close it in good order."""
        self.run(do(session, "close"))

    def setup(self) -> None:
        """Make it a participant."""
        self.run(self.resource.setup(self.bench.main, self.resource_id, self.cluster))

    def work(self, *, attempt: str = "", branch: int = 0, epoch: int = 1, cluster: str = "") -> Work:
        """A branch that has not begun."""
        return Work(Xid(cluster or self.cluster, attempt or new_attempt(), branch), epoch)

    def begun(self, session: Session, *numbers: int, work: Work | None = None, apart: bool = False) -> Work:
        """A branch at work on that session, with these effects."""
        work = work or self.work()
        self.run(self.resource.begin(session, work))
        for number in numbers:
            self.execute(session, work, self.writing(number, apart=apart))
        return work

    def execute(self, session: Session, work: Work, statement: str) -> Reply:
        """One statement of the user's."""
        reply: Reply = self.run(self.resource.execute(session, work, statement, None))
        return reply

    def prepared(self, *numbers: int, work: Work | None = None, apart: bool = False) -> Prepared:
        """A prepared branch with these effects, which no session holds any more."""
        session = self.session()
        work = self.begun(session, *numbers, work=work, apart=apart)
        self.run(self.resource.prepare(session, work))
        self.run(self.resource.detach(session))
        self.end(session)
        return Prepared(work.xid, handle=work.handle)

    def receipt(self, xid: Xid) -> bool | None:
        """Whether there is one; None if that cannot be told now, because the branch itself is in the way."""
        try:
            found: bool = self.run(self.resource.receipt(self.bench.main, xid))
        except Unclear:
            return None
        return found

    def listed(self, cluster: str = "") -> dict[Xid, Prepared]:
        """What the resource lists as prepared."""
        found = self.run(self.resource.prepared(self.bench.main, cluster or self.cluster))
        return {one.xid: one for one in found}

    def finish(self, verb: str, prepared: Prepared, session: Session | None = None) -> None:
        """`commit_prepared` or `rollback_prepared`, again while a session that has ended has not yet let go (I7)."""
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.run(getattr(self.resource, verb)(session or self.bench.main, prepared))
                return
            except NoDoubtError:
                if prepared.xid not in self.listed(prepared.xid.cluster) or time.monotonic() > until:
                    raise
            time.sleep(POLL_S)

    @contextmanager
    def refused(self, what: str, error: type[Exception] = NoDoubtError) -> Iterator[None]:
        """What is done inside must be refused."""
        try:
            yield
        except error:
            return
        raise AssertionError(f"{what}, and it went through: {error.__name__} should have been raised")

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for something that a server does in its own time."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain: {what}"
            time.sleep(POLL_S)
