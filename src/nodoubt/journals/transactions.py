"""How the journal talks to its database: a plain read, or one transaction in one message.

Guarantees: a transaction travels as a single message, so that a client that stalls never sits on its locks; it
returns only on the server's own word for COMMIT; after an error there is an explicit ROLLBACK in the same session,
because InnoDB leaves a transaction committable after 1062 and 1205; an error is `Refused` only where it is
sure that nothing was done, and `Unclear` otherwise.

Must not: know which tables there are.
"""

from __future__ import annotations

from collections.abc import Sequence

from .. import kept
from ..ports import BelowFloor, Conflict, Failure, Refused, Reply, Session, SessionLost, StatementFailed, Unclear
from ..schema import MIGRATED
from ..script import Script, do
from .dialects import Dialect

# The routine of PostgreSQL's server that warns, whatever its language: the COMMIT was not waited for by a standby.
NOT_REPLICATED = "SyncRep"


class Transactions:
    """The scripts under the scripts. `whose`: what an error is told of."""

    whose = "the journal"

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect

    def _read(self, session: Session, sql: str) -> Script[Reply]:
        """One SELECT, outside any transaction. What it shows may not be flushed yet: advice, never grounds to act."""
        try:
            return (yield from self._ask(session, sql))[-1]
        except StatementFailed as error:
            raise self._refusal(error) from error

    def _ask(self, session: Session, *statements: str) -> Script[tuple[Reply, ...]]:
        """One message. Raises `StatementFailed` as the server put it, or `Unclear`."""
        try:
            return (yield from kept.run(session, statements))
        except SessionLost as error:
            raise Unclear(f"{self.whose} did not answer: {error}") from error

    def _write(self, session: Session, *statements: str, forced: bool = True) -> Script[Sequence[Reply]]:
        """The statements in one transaction: all of them done, durably if `forced`, or, raising, none.

        The replies are those of the statements, in their order. Raises `Conflict`, `BelowFloor` or `Refused` when
        surely nothing was done, `Unclear` when nobody knows.
        """
        begin = self.dialect.begin_forced if forced else self.dialect.begin_unforced
        try:
            replies = yield from self._ask(session, begin, *statements, "COMMIT")
        except StatementFailed as error:
            yield from self._rollback(session)
            raise self._refusal(error) from error
        self._require_commit(session, replies)
        return replies[-1 - len(statements) : -1]

    def _require_commit(self, session: Session, replies: Sequence[Reply]) -> None:
        """The absence of an error is no success: PostgreSQL answers ROLLBACK to the COMMIT of a failed transaction."""
        tag = replies[-1].tag if replies else "nothing"
        if tag == "ROLLBACK":
            raise Refused(f"the server of {self.whose} rolled the transaction back when asked to commit it", retry=True)
        if tag != self.dialect.commit_tag:
            raise Unclear(f"the server of {self.whose} answered {tag!r} to COMMIT")
        warnings: Sequence[str] = getattr(session, "warnings", ())
        if any(NOT_REPLICATED in warning for warning in warnings):
            raise Unclear(f"the server of {self.whose} has committed, but not durably: {'; '.join(warnings)}")

    def _rollback(self, session: Session) -> Script[None]:
        try:
            yield from do(session, "run", "ROLLBACK")
        except SessionLost:
            return  # the server rolls back what a lost session leaves
        except StatementFailed:
            session.kill()  # nobody knows what it is in now; no pool may hand it on

    def _refusal(self, error: StatementFailed) -> Refused | Unclear:
        """What an error code means, by the dialect's table."""
        match self.dialect.failure(error.code):
            case Failure.DUPLICATE:
                return Conflict(f"{self.whose} has such a row already: {error}")
            case Failure.NO_FLOOR:
                return BelowFloor(f"the attempt is older than what the journal remembers: {error}")
            case Failure.TRANSIENT | Failure.FULL:
                return Refused(f"{self.whose} could not do it now: {error}", retry=True)
            case Failure.REFUSED:
                gone = error.code in self.dialect.no_table and "nodoubt" in error.message
                return Refused(f"{self.whose} refused: {error}{f'. {MIGRATED}' if gone else ''}")
        return Unclear(f"the server of {self.whose} failed, and may have done it or not: {error}")
