"""What each process has heard from the servers about the ends of branches, message by message (I7).

An answer that a server knows no such xid is no success, and neither is MariaDB's OK to an XA COMMIT in another session
than the one that prepared the branch, unless its receipt was seen behind it: whoever had such an answer may go on as if
the branch was committed only if it has also had a proof: the server's own word for that very commit, a receipt that was
confirmed, or the journal's word that the record has ended, for which somebody else had one.

It listens to what is said to the servers' own statements, so it holds for whatever scripts send them.

Must not: judge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...ports import Reply, StatementFailed, UnknownXid
from ...protocol.records import Verdict
from ...script import Outcome
from ...xid import XaXid, Xid, parse_gid

Branch = tuple[str, int]  # attempt, number
UNKNOWN_CODES = frozenset({"42704", "1397"})  # PostgreSQL's, and XAER_NOTA


@dataclass(slots=True)
class Heard:
    """By one process. `proved`: branches that have committed, surely; `unknown`: those that a server did not know, or
    did not show; `ended`: attempts whose records have, confirmed.
    """

    proved: set[Branch] = field(default_factory=set)
    unknown: set[Branch] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)

    def proves(self, branch: Branch) -> bool:
        """Whether this branch has surely committed."""
        return branch in self.proved or branch[0] in self.ended

    def take(self, verb: str, args: Sequence[Any], outcome: Outcome[Any], connection: int) -> None:
        """An answer has arrived on that connection."""
        answer: Any = outcome.value
        if verb == "apply" and args[0] == "confirm" and outcome.error is None:
            self.ended.update(attempt for attempt, standing in answer.items() if standing.ended)
        if verb != "send":
            return
        if outcome.error is not None:
            if isinstance(outcome.error, UnknownXid) or _code(outcome.error) in UNKNOWN_CODES:
                self.unknown.update(branch for statement in args for branch in _ending(statement))
            return
        for statement, reply in zip(args, answer, strict=True):
            heard = self.proved if _counts(statement, connection, answer[-1]) else self.unknown
            heard.update(_ending(statement))
            if statement[0] == "confirm" and reply.rows and Verdict(reply.scalar()) is Verdict.COMMIT:
                self.proved.add((statement[1], statement[2]))


def _code(error: BaseException) -> str:
    return error.code if isinstance(error, StatementFailed) else ""


def _counts(statement: Sequence[Any], connection: int, last: Any) -> bool:
    """Whether the OK to this statement, with the last answer of its message, says that the branch has ended."""
    if statement[0] != "xa_commit" or statement[1].connection == connection:
        return True
    return isinstance(last, Reply) and bool(last.rows) and last.scalar() is Verdict.COMMIT


def _ending(statement: Sequence[Any]) -> Iterator[Branch]:
    """The branch that this statement commits, in its second phase."""
    match statement:
        case ("commit_prepared", str() as gid, *_):
            xid = parse_gid(gid)
        case ("commit_prepared", Xid() as xid, *_):
            pass
        case ("xa_commit", XaXid(xid=xid)):
            pass
        case _:
            return
    if xid is not None:
        yield xid.attempt, xid.branch
