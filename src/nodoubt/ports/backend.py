"""A database of a kind that is not ours: what a coordinator is given in place of a URL.

Must not: judge what it holds: the conformance suites do (`nodoubt.testing.resources`, `nodoubt.testing.journals`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from . import Journal, Resource, Session


class Backend:
    """Subclass it, and say what yours can: take part, keep the journal, be used from threads, or on asyncio.

    `str()` of it is shown to people; so it tells which database it is, and no password.
    """

    def resource(self, name: str) -> Resource:
        """The scripts of a resource that is registered under this name."""
        raise UsageError(f"{self} can only keep the journal (journal=…): it takes part in no transaction")

    def journal(self) -> Journal:
        """The scripts of a journal."""
        raise UsageError(f"{self} can only take part: name a database that keeps the journal (journal=…)")

    def connect(self) -> Session:
        """A new session, for threads. Raises `ResourceUnavailable`."""
        raise NotImplementedError

    async def aconnect(self) -> Any:
        """A new session, on asyncio: its twin whose methods are coroutines. Raises `ResourceUnavailable`."""
        raise NotImplementedError

    def require(self, *, asynchronous: bool) -> None:
        """Raise `UsageError` where it has no sessions of that style."""
        ours = Backend.aconnect if asynchronous else Backend.connect
        if (type(self).aconnect if asynchronous else type(self).connect) is not ours:
            return
        style, other = ("asyncio", "a Coordinator") if asynchronous else ("threads", "an AsyncCoordinator")
        raise UsageError(f"{self} is not for {style}: use {other}")
