"""PostgreSQL as a participant: which statements, in which order, and what an answer means.

Guarantees:

- Every end of a branch is one message that begins with the *proof*: a statement that fails unless the session is
  still in the transaction that `begin` began (a mark set with SET LOCAL ends with its transaction). A user who commits
  behind our back, by whatever means, makes the end fail instead of preparing or committing something else.
- Nothing counts as done but by the command tag. PostgreSQL answers `ROLLBACK`, without an error, to a PREPARE
  or COMMIT in a failed transaction.
- Every transaction of ours sets its own durability, at its end, whatever the user or the server chose; it keeps
  `remote_apply`. A wait for a synchronous standby that was cancelled counts as no answer.
- The receipt is written last, in the same message as the end.

Must not: import a driver or a journal; send anything that would reset a session.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .. import kept
from ..errors import BranchDoomed, ResourceRefused, ResourceUnavailable, SchemaMismatch, UsageError, invariant, text_of
from ..ports import (
    BelowFloor,
    Conflict,
    Identity,
    Prepared,
    Refused,
    Reply,
    SavepointStep,
    Session,
    SessionLost,
    StatementFailed,
    Traits,
    Unclear,
    Work,
    require_none,
)
from ..protocol.records import Epoch, Verdict
from ..schema import Part, Tables, judge, meddlers, meddlers_sql, rows_of, shipped, version_of
from ..script import Do, Script, do
from ..xid import Xid, first_attempt_of, parse_gid
from .postgres_answers import PREPARE_ADVICE, refusal, require_durable, require_rows, warnings
from .postgres_settings import SETTINGS, UNREADABLE, shortcomings
from .postgres_sql import (
    BEGIN,
    FORCED,
    IS_PREPARED,
    LISTED,
    PREPARED,
    PROOF,
    WAIT_BRIEFLY,
    WROTE,
    mark,
    receipt_row,
    some_receipts,
    those_receipts,
    unforced,
)
from .postgres_statements import shape

FENCE_TRIES_MAX = 3
RECENT_RECEIPTS = 100

_READING_TAG = re.compile(
    r"(SELECT|FETCH|MOVE|INSERT 0|UPDATE|DELETE|MERGE) \d+|SHOW|SET|RESET|EXPLAIN|DECLARE CURSOR|CLOSE CURSOR|"
    "SET CONSTRAINTS|"
)
_WRITING_TAG = re.compile(r"(INSERT 0|UPDATE|DELETE|MERGE) [1-9]\d*")


class PostgresResource:
    """One PostgreSQL database."""

    traits = Traits(kind="postgres", rows_at_begin=True, unforced_rows=True, listed_sql=LISTED)

    def __init__(self, name: str) -> None:
        self.name = name
        self.tables = Tables(shipped(Part.PARTICIPANT, "postgres"), whose=name)

    # ---- registration

    def check(self, session: Session) -> Script[tuple[str, ...]]:
        """Refuse what can't be made durable, naming the line to change; warn of what an operator should know."""
        columns = ", ".join(f"pg_catalog.current_setting('{name}')" for name in SETTINGS)
        here = "pg_catalog.pg_backend_pid(), pg_catalog.pg_is_in_recovery()"
        (reply,) = yield from self._ask(session, f"SELECT {here}, {columns}")
        pid, standby, *values = reply.rows[0]
        if isinstance(values[0], bytes):  # psycopg's way to say that it knows no encoding
            return require_none([UNREADABLE], self.name)
        again, meddling = yield from self._ask(
            session, f"SELECT pg_catalog.pg_backend_pid(); {meddlers_sql('postgres')}"
        )
        found = shortcomings(
            dict(zip(SETTINGS, map(str, values), strict=True)),
            standby=standby,
            pooled=again.scalar() != pid,
            proxied=pid != session.connection_id,
        )
        return require_none([*found, *meddlers("postgres", meddling.rows)], self.name)

    def setup(self, session: Session, resource_id: str, cluster: str) -> Script[None]:
        """Create what is missing, and store the identity if there is none. Of two at a time the first one's stands."""
        yield from self.tables.create(session)
        (there,) = yield from self._ask(session, "SELECT count(*) FROM nodoubt.identity")
        if there.scalar():
            return  # who may not write here can still use what is there
        server = yield from self.server(session)
        row = ", ".join(map(kept.literal, (resource_id, cluster, server)))
        try:
            yield from self._forced(
                session,
                f"INSERT INTO nodoubt.identity (resource_id, cluster, server) VALUES ({row}) ON CONFLICT DO NOTHING",
            )
        except Refused as error:
            raise ResourceRefused(
                f"{self.name} cannot be given its identity: {error}. Run nodoubt schema apply with a role that may, or "
                "grant what nodoubt schema sql --role setup prints"
            ) from error

    def identity(self, session: Session) -> Script[Identity | None]:
        """What is stored. The newest receipts are looked at too, for an epoch above the one that `witness` stored."""
        try:
            record, reply = yield from do(
                session,
                "run",
                f"{self.tables.record_query()}; "
                "SELECT i.resource_id, i.cluster, i.server, i.mark, greatest(i.epoch, (SELECT max(r.epoch) FROM "
                f"(SELECT epoch FROM nodoubt.receipts ORDER BY attempt DESC LIMIT {RECENT_RECEIPTS}) r)) "
                "FROM nodoubt.identity i",
            )
        except SessionLost as error:
            raise self._unavailable(error) from error
        except StatementFailed as error:
            if error.code not in ("42P01", "3F000"):
                raise self._not_possible(error) from error
            version = yield from self.tables.version(session)
            if version is not None:
                judge(version, self.tables.schema, self.name)
            return None
        judge(version_of(rows_of(record)), self.tables.schema, self.name)
        if not reply.rows:
            return None
        resource_id, cluster, server, mark, epoch = reply.rows[0]
        return Identity(resource_id, cluster, server, epoch, mark)

    def server(self, session: Session) -> Script[str]:
        """System identifier and database. A base backup has the same one: the epochs must tell that."""
        try:
            (reply,) = yield from do(
                session,
                "run",
                "SELECT (SELECT system_identifier FROM pg_catalog.pg_control_system())::text || '/' || oid::text "
                "FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()",
            )
        except SessionLost as error:
            raise self._unavailable(error) from error
        except StatementFailed as error:
            if error.code == "42501":
                return ""  # the function was taken away from this role: epochs alone must tell
            raise self._not_possible(error) from error
        return str(reply.scalar())

    def witness(self, session: Session, epoch: Epoch) -> Script[None]:
        replies = yield from self._forced(
            session,
            "UPDATE nodoubt.identity SET "
            f"mark = CASE WHEN epoch < {epoch.number} THEN {kept.literal(epoch.mark)} ELSE mark END, "
            f"epoch = greatest(epoch, {epoch.number})",
        )
        if replies[-1].tag != "UPDATE 1":
            raise SchemaMismatch(f"{self.name} has no identity of ours: call setup() or run nodoubt schema apply")

    def adopt(self, session: Session, identity: Identity) -> Script[None]:
        """Receipts above the adopted epoch are set back with it, or `identity` would show theirs for ever."""
        row = ", ".join(map(kept.literal, (identity.resource_id, identity.cluster, identity.server)))
        yield from self._forced(
            session,
            "DELETE FROM nodoubt.identity",
            "INSERT INTO nodoubt.identity (resource_id, cluster, server, epoch, mark) "
            f"VALUES ({row}, {int(identity.epoch)}, {kept.literal(identity.mark)})",
            f"UPDATE nodoubt.receipts SET epoch = {int(identity.epoch)} WHERE epoch > {int(identity.epoch)}",
        )

    def leave(self, session: Session) -> Script[None]:
        yield from self._forced(session, "DELETE FROM nodoubt.identity")

    # ---- one branch's work

    def begin(self, session: Session, work: Work, *, before: Sequence[str] = ()) -> Script[None]:
        """BEGIN, and the mark that the proof asks for. SET takes no snapshot: the user may still choose the isolation.

        `before` is committed unforced in the same message; `Conflict` and `BelowFloor` mean that it surely was not.
        After any other failure with `before` nobody knows: `Unclear`.
        """
        opening = ("BEGIN", f"SET LOCAL nodoubt.attempt = '{mark(work)}'")
        if work.lazy and not before and hasattr(session, "execute_after"):
            work.opening = opening
            return
        statements = [*(unforced(session, before) if before else ()), *opening]
        doing = f"begin on {self.name}"
        try:
            replies = yield from kept.run(session, statements)
        except SessionLost as error:
            raise Unclear(f"{doing}: {error}") from error
        except StatementFailed as error:
            yield from self._undo(session)
            refused = refusal(error, doing)
            if before and not isinstance(refused, Conflict | BelowFloor):
                raise Unclear(str(refused)) from error
            raise refused from error
        tags = [reply.tag for reply in replies]
        expected = ["COMMIT", "BEGIN", "SET"] if before else ["BEGIN", "SET"]
        # A warning says that a transaction was open already: a session that somebody left dirty (I18). Its work would
        # be committed as ours.
        if tags[-len(expected) :] != expected or warnings(session):
            session.kill()
            raise Unclear(f"{doing}: the session was not clean: {tags} {warnings(session)}")
        require_rows(session, replies)

    def execute(self, session: Session, work: Work, statement: str, params: Any) -> Script[Reply]:
        """The user's statement, as it is. Whatever goes wrong, a refusal of ours included, dooms the branch (I16)."""
        if work.doomed is not None:
            raise BranchDoomed(f"an earlier statement on {self.name} failed: {text_of(work.doomed)}") from work.doomed
        try:
            looks = shape(statement)
            if looks.control:
                raise UsageError(
                    f"{looks.control} is not for a branch of a distributed transaction: it ends as a whole, when the "
                    "block ends, and savepoints are made by connection.begin_nested(). The branch can only be rolled "
                    "back now"
                )
            if looks.stains and hasattr(session, "stained"):
                session.stained = True
            reply: Reply
            if work.opening:
                reply = yield from self._execute_first(session, work, statement, params)
            else:
                reply = yield Do(session, "execute", (statement, params))
        except BaseException as error:
            # Swallowed by the user, a refused ROLLBACK would otherwise be followed by our commit.
            work.doomed = error
            raise
        reads = looks.plain and _READING_TAG.fullmatch(reply.tag) is not None
        work.wrote = work.wrote or not reads or _WRITING_TAG.fullmatch(reply.tag) is not None
        return reply

    def _execute_first(self, session: Session, work: Work, statement: str, params: Any) -> Script[Reply]:
        """BEGIN, the mark and the statement in one message. While `work.opening` stands, nothing has been answered."""
        doing = f"begin on {self.name}"
        if getattr(session, "in_transaction", False):
            session.kill()
            raise SessionLost(f"{doing}: the session was not clean")
        try:
            *ours, reply = yield Do(session, "execute_after", (work.opening, statement, params))
        except StatementFailed as error:
            yield from self._undo(session)
            raise refusal(error, doing) from error
        except SessionLost as error:
            if error.answered:
                work.opening = ()
            raise
        except BaseException:
            work.opening = ()  # the user's own error, after a begin that was answered
            raise
        work.opening = ()
        tags = [one.tag for one in ours]
        if tags != ["BEGIN", "SET"]:
            session.kill()
            raise SessionLost(f"{doing}: the server answered {tags}")
        return reply  # type: ignore[no-any-return]

    def savepoint(self, session: Session, work: Work, step: SavepointStep, name: str) -> Script[None]:
        """Also in a failed transaction: rolling back to a savepoint is what mends one. The tags say what was done."""
        doing = f"savepoint {name} on {self.name}"
        statements = (*work.opening, *step.statements(name))
        work.opening = ()  # whatever becomes of it, there may be something to roll back now
        try:
            replies = yield from do(session, "run", "; ".join(statements))
        except StatementFailed as error:
            raise refusal(error, doing) from error
        if [reply.tag for reply in replies] != [statement.split()[0] for statement in statements]:
            session.kill()
            raise Unclear(f"{doing}: the server answered {[reply.tag for reply in replies]}")

    def wrote(self, session: Session, work: Work) -> Script[bool]:
        """False only if no statement hinted at more than a read, no transaction id was assigned, and nothing in the
        database could write or notify without one.

        PostgreSQL tells nobody of a pending NOTIFY before the commit: that is why hints count.
        What it can't see: a function in C that notifies, and statements that did not pass through `execute`.
        """
        if work.wrote or work.opening:
            return work.wrote
        try:
            (reply,) = yield from do(session, "run", WROTE)
        except (SessionLost, StatementFailed) as error:
            yield from self._undo(session)
            # Neither PREPARE nor COMMIT was ever sent, so the server rolls the work back.
            raise Refused(f"{self.name} failed before its work could end: {error}", retry=True) from error
        return reply.scalar() is not False

    def end_reader(self, session: Session, work: Work) -> Script[None]:
        if not work.opening:
            statements = [self._proof(work), "COMMIT"]
            yield from self._end(session, work, statements, "COMMIT", f"end of the reads on {self.name}")

    def rollback(self, session: Session, work: Work) -> Script[None]:
        if not work.opening:
            yield from self._undo(session)
        elif work.statements:
            session.kill()  # interrupted between the server's answer and our note of it, for all we know
        _leave(session)

    def commit_alone(self, session: Session, work: Work, *, riders: Sequence[str] = ()) -> Script[None]:
        """One phase. The riders, or the receipt, go into the very transaction, between the proof and the COMMIT."""
        rows = list(riders) or [self._receipt_row(work, alone=True)]
        statements = [self._proof(work), *work.closing, *rows, "COMMIT"]
        yield from self._end(session, work, statements, "COMMIT", f"commit on {self.name}")

    # ---- two phases

    def prepare(self, session: Session, work: Work, *, riders: Sequence[str] = ()) -> Script[None]:
        invariant(not riders, "I4", "PostgreSQL takes rows before a branch begins, not inside its prepare")
        statements = [
            self._proof(work),
            *work.closing,
            self._receipt_row(work, alone=False),
            f"PREPARE TRANSACTION '{work.xid.gid}'",
        ]
        yield from self._end(session, work, statements, "PREPARE TRANSACTION", f"prepare on {self.name}")

    def detach(self, session: Session) -> Script[None]:
        """Nothing: a prepared transaction belongs to no session here."""
        return
        yield

    def commit_prepared(
        self, session: Session, prepared: Prepared, *, before: Sequence[str] = (), riders: Sequence[str] = ()
    ) -> Script[None]:
        """COMMIT PREPARED, alone in its message as the server demands.

        `before` is committed unforced by the messages before; the flush of COMMIT PREPARED covers it, in this session
        only. If this raises, `before` may stand, visible and not flushed: nobody acts on it without confirming it.
        Where it is refused the COMMIT PREPARED is not run, whether or not all that was sent in one go.
        """
        invariant(not riders, "I4", "PostgreSQL's COMMIT PREPARED carries no rows")
        if before and hasattr(session, "run_each"):
            yield from self._commit_with(session, before, prepared.xid)
            return
        if before:
            yield from self._commit_unforced(session, before)
        yield from self._phase_two(session, "COMMIT PREPARED", prepared.xid)

    def rollback_prepared(self, session: Session, prepared: Prepared) -> Script[None]:
        yield from self._phase_two(session, "ROLLBACK PREPARED", prepared.xid)

    # ---- recovery

    def prepared(self, session: Session, cluster: str, xid: Xid | None = None) -> Script[tuple[Prepared, ...]]:
        """Ours, in this database: the server shows those of all, and a stranger's gid may look much like ours (I9)."""
        (reply,) = yield from self._ask(session, PREPARED if xid is None else IS_PREPARED(f"'{xid.gid}'"))
        parsed = ((parse_gid(gid), age_s) for gid, age_s in reply.rows)
        return tuple(Prepared(xid, age_s) for xid, age_s in parsed if xid is not None and xid.cluster == cluster)

    def free(self, session: Session, prepared: Prepared) -> Script[bool]:
        """No session holds a prepared transaction here."""
        return False
        yield

    def receipt(self, session: Session, xid: Xid) -> Script[bool]:
        return (yield from self._confirm(session, xid)) is Verdict.COMMIT

    def fence(self, session: Session, xid: Xid) -> Script[Verdict]:
        """INSERT our marker where the receipt would stand. The INSERT waits for a branch that is under way, briefly."""
        doing = f"fence of {xid.gid} on {self.name}"
        for _ in range(FENCE_TRIES_MAX):
            try:
                yield from self._forced(
                    session, WAIT_BRIEFLY, receipt_row(xid, Verdict.ABORT, epoch=0, alone=True), doing=doing
                )
                return Verdict.ABORT
            except Conflict:
                verdict = yield from self._confirm(session, xid)
                if verdict is not None:
                    return verdict
            except Refused as error:
                # The marker does not stand; whether the branch committed is as unknown as before.
                raise Unclear(str(error)) from error
            # The row that was in the way has been removed since: start over.
        raise Unclear(f"{doing}: the row in its place comes and goes")

    def forget(
        self, session: Session, xids: Sequence[Xid], *, older_than: float | None = None, below: str = ""
    ) -> Script[int]:
        """Delete these receipts, and a batch each of what one-phase commits left before `older_than`, and of what two
        phases left `below` the floor.
        """
        statements = list(those_receipts(xids))
        if older_than is not None:
            old = f"at < pg_catalog.to_timestamp({float(older_than)!r}) AND attempt < '{first_attempt_of(older_than)}'"
            statements.append(some_receipts(f"alone AND {old}"))
        if below:
            statements.append(some_receipts(f"NOT alone AND attempt < {kept.literal(below)}"))
        if not statements:
            return 0
        replies = yield from self._forced(session, *statements)
        return sum(reply.count for reply in replies if reply.tag.startswith("DELETE"))

    # ---- the parts

    def _proof(self, work: Work) -> str:
        """Fails unless the session is in the transaction that was begun; sets its durability on the way.

        The cast is of a CASE, not of a constant, so that it is tried only when the mark is missing.
        """
        return PROOF(f"'{mark(work)}'")

    def _receipt_row(self, work: Work, *, alone: bool) -> str:
        return receipt_row(work.xid, Verdict.COMMIT, epoch=work.epoch, alone=alone)

    def _accepts(self, tag: str, wanted: str) -> bool:
        """The server's own word, or nothing (I2)."""
        return tag == wanted

    def _end(self, session: Session, work: Work, statements: list[str], wanted: str, doing: str) -> Script[None]:
        """End the branch with one message. No stalled client can sit between the row and the command."""
        if work.doomed is not None:
            yield from self._undo(session)
            raise Refused(f"{doing}: an earlier statement failed, so it was rolled back: {text_of(work.doomed)}")
        try:
            replies = yield from kept.run(session, statements)
        except SessionLost as error:
            raise Unclear(f"{doing}: {error}") from error
        except StatementFailed as error:
            yield from self._undo(session)
            raise refusal(error, doing, PREPARE_ADVICE if wanted == "PREPARE TRANSACTION" else {}) from error
        tag = replies[-1].tag
        if not self._accepts(tag, wanted):
            yield from self._undo(session)
            if tag == "ROLLBACK":
                raise Refused(f"{doing}: the server answered ROLLBACK: the transaction had failed or ended before")
            raise Unclear(f"{doing}: the server answered {tag!r}, not {wanted}")
        require_rows(session, replies)
        self._settled(session, doing)

    def _commit_with(self, session: Session, rows: Sequence[str], xid: Xid) -> Script[None]:
        """The rows, and behind them the COMMIT PREPARED, in one round trip."""
        doing = f"COMMIT PREPARED {xid.gid}, and the rows before it, on {self.name}"
        opening = [] if getattr(session, "forced", False) else [FORCED]
        # Behind BEGIN: a SELECT before it would be in its transaction, and settle what BEGIN sets by what is default.
        begin, *following = unforced(session, rows)
        statements = [begin, *opening, *following, f"COMMIT PREPARED '{xid.gid}'"]
        try:
            replies = yield from kept.run_each(session, statements)
        except SessionLost as error:
            raise Unclear(f"{doing}: {error}") from error
        except StatementFailed as error:
            yield from self._undo(session)
            raise refusal(error, doing, retry=getattr(error, "after", 0) == len(statements) - 1) from error
        for reply, wanted in zip(replies[-2:], ("COMMIT", "COMMIT PREPARED"), strict=True):
            if not self._accepts(reply.tag, wanted):
                session.kill()
                raise Unclear(f"{doing}: the server answered {reply.tag!r}, not {wanted}")
        require_rows(session, replies)
        self._settled(session, doing)

    def _settled(self, session: Session, doing: str) -> None:
        """A branch has ended here."""
        require_durable(session, doing)
        if hasattr(session, "forced"):
            session.forced = True
        _leave(session)

    def _phase_two(self, session: Session, verb: str, xid: Xid) -> Script[None]:
        doing = f"{verb} {xid.gid} on {self.name}"
        try:
            if not getattr(session, "forced", False):
                # Outside a transaction there is no SET LOCAL: once for this session.
                yield from do(session, "run", FORCED)
                if hasattr(session, "forced"):
                    session.forced = True
            replies = yield Do(session, "run", (f"{verb} '{xid.gid}'",))
        except SessionLost as error:
            raise Unclear(f"{doing}: {error}") from error
        except StatementFailed as error:
            yield from self._undo(session)
            raise refusal(error, doing, retry=True) from error
        if not self._accepts(replies[-1].tag, verb):
            raise Unclear(f"{doing}: the server answered {replies[-1].tag!r}")
        self._settled(session, doing)

    def _commit_unforced(self, session: Session, rows: Sequence[str]) -> Script[None]:
        doing = f"rows before the commit on {self.name}"
        try:
            replies = yield from kept.run(session, unforced(session, rows))
        except SessionLost as error:
            raise Unclear(f"{doing}: {error}") from error
        except StatementFailed as error:
            yield from self._undo(session)
            raise refusal(error, doing) from error
        if not self._accepts(replies[-1].tag, "COMMIT"):
            yield from self._undo(session)
            raise Unclear(f"{doing}: the server answered {replies[-1].tag!r}")
        require_durable(session, doing)
        require_rows(session, replies)

    def _confirm(self, session: Session, xid: Xid) -> Script[Verdict | None]:
        """The row's verdict, made durable by an UPDATE of that very row: one seen may not be flushed yet (I5)."""
        try:
            replies = yield from self._forced(
                session,
                WAIT_BRIEFLY,
                f"UPDATE nodoubt.receipts SET confirms = confirms + 1 WHERE attempt = '{xid.attempt}' "
                f"AND branch = {xid.branch} RETURNING verdict",
            )
        except Refused as error:
            raise Unclear(f"the receipt of {xid.gid} on {self.name} cannot be confirmed: {error}") from error
        row = replies[-1]
        return Verdict(row.scalar()) if row.rows else None

    def _forced(self, session: Session, *statements: str, doing: str = "") -> Script[list[Reply]]:
        """One forced transaction of our own, in one message. The replies end with those of `statements`."""
        doing = doing or f"our own transaction on {self.name}"
        try:
            replies = yield from do(session, "run", "; ".join((BEGIN, FORCED, *statements, "COMMIT")))
        except SessionLost as error:
            raise Unclear(f"{doing}: {error}") from error
        except StatementFailed as error:
            yield from self._undo(session)
            raise refusal(error, doing) from error
        if not self._accepts(replies[-1].tag, "COMMIT"):
            yield from self._undo(session)
            raise Unclear(f"{doing}: the server answered {replies[-1].tag!r}, not COMMIT")
        require_durable(session, doing)
        if hasattr(session, "forced"):
            session.forced = True
        return list(replies[:-1])

    def _ask(self, session: Session, sql: str) -> Script[tuple[Reply, ...]]:
        """A plain question, outside a transaction."""
        try:
            return (yield from kept.run(session, (sql,)))
        except SessionLost as error:
            raise self._unavailable(error) from error
        except StatementFailed as error:
            raise self._not_possible(error) from error

    def _undo(self, session: Session) -> Script[None]:
        """ROLLBACK, whether or not a transaction is open. A session that can't do that is ended."""
        if not session.usable:
            session.kill()
            return
        try:
            replies = yield from do(session, "run", "ROLLBACK")
        except (SessionLost, StatementFailed):
            session.kill()
            return
        if replies[-1].tag != "ROLLBACK":
            session.kill()

    def _unavailable(self, error: SessionLost) -> ResourceUnavailable:
        return ResourceUnavailable(f"{self.name} was lost: {error}; nothing was decided")

    def _not_possible(self, error: StatementFailed) -> ResourceRefused:
        return ResourceRefused(f"{self.name} refuses: {error}")


def _leave(session: Session) -> None:
    """The branch is over. Settings, locks and tables that the user left in the session must not meet the next one."""
    if getattr(session, "stained", False):
        session.usable = False
