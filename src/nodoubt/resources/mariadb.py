"""A MariaDB or MySQL database as a participant: XA branches, receipts, and what each error of the server means.

Guarantees: every branch runs within XA START, where the server refuses DDL, COMMIT and whatever else would end it
early; before PREPARE or COMMIT, XA END of our own xid proves that the session is still in it. "Refused" of a
prepare or commit is said only after the server has rolled this very branch back. XAER_NOTA is never success (I7):
the server answers it for a branch that another session still holds, too. A session that holds a prepared branch is
not `usable`.

Must not: reset a session, or run anything through a driver's own transactions: raw autocommit sessions only.

What it can't see: rows written to non-transactional tables by a procedure, or in a branch that also creates or drops
temporary tables. `check` names all such tables, and plain statements that write to them are refused.
XA RECOVER tells neither age nor database: all databases of the server are listed, in all of which a cluster may have
resources. XA ROLLBACK is not durable: a branch rolled back may be listed again after a crash (I11).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from ..errors import BranchDoomed, ResourceRefused, UsageError, invariant, text_of
from ..ports import (
    Conflict,
    Failure,
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
    UnknownXid,
    Work,
    require_none,
)
from ..protocol.records import Epoch, Verdict
from ..schema import Part, Tables, judge, meddlers, rows_of, shipped, version_of
from ..script import Pause, Script, do
from ..xid import XaXid, Xid, first_attempt_of, parse_xa_recover
from . import mariadb_beginning as beginning
from . import mariadb_finishing as finishing
from . import mariadb_text as text
from .mariadb_failures import FAILURES, refusal
from .mariadb_settings import SETTINGS, no_listing, plain_tables, shortcomings, tables_sql

LOCK_WAIT_S = 2  # how long a receipt or a fence waits for the branch itself
KILL_POLLS_MAX = 10
KILL_POLL_FIRST_S = 0.001
BATCH_MAX, BATCHES_MAX = 200, 1_000_000

# ROLLBACK TO SAVEPOINT warns (1196) if the transaction has written to a non-transactional table, by whatever way,
# triggers included; Aria, even if only read, does not take the savepoint (1178). The subquery turns the warning into
# an error (1242), which ends the message before anything is promised. The first statement is there to clear the
# warnings of the user's last.
PROBE = (
    "SELECT 1 FROM {identity} LIMIT 0",
    "SAVEPOINT nodoubt",
    "ROLLBACK TO SAVEPOINT nodoubt",
    "SELECT IF(@@warning_count = 0, 1, (SELECT 1 UNION SELECT 2))",
)
WRITES = "SHOW SESSION STATUS WHERE Variable_name IN ('Handler_write', 'Handler_update', 'Handler_delete')"


@dataclass(slots=True)
class _Notes:
    """What is known of a session's current branch and kept nowhere else."""

    ran: bool = False
    writes: int | None = None  # the session's write counters before its first reading statement
    probe: bool = True  # PROBE can be relied on
    stained: bool = False  # not to be handed to anybody else


class MariaDBResource:
    """See `ports.Resource`. `database`: where our tables are, as named in the URL."""

    traits = Traits(kind="mariadb", rows_at_begin=True, holds_session=True)

    def __init__(self, name: str, database: str) -> None:
        self.name = name
        self.database = database
        schema = "`" + database.replace("`", "``") + "`"
        self._receipts = f"{schema}.nodoubt_receipts"
        self._identity = f"{schema}.nodoubt_identity"
        self._new_identity = f"INSERT INTO {self._identity} (id, resource_id, cluster, server, epoch, mark)"
        self.tables = Tables(shipped(Part.PARTICIPANT, "mariadb"), whose=name, database=database)
        self._probe = tuple(statement.format(identity=self._identity) for statement in PROBE)
        self._notes: WeakKeyDictionary[Session, _Notes] = WeakKeyDictionary()
        self._plain_tables: frozenset[str] = frozenset()  # of this database, not transactional; as of the last `check`

    # -- registration

    def check(self, session: Session) -> Script[tuple[str, ...]]:
        """Refuse what can't keep a promise; warn of what may lose one at a failover, or can't be rolled back."""
        settings = yield from self._settings(session)
        warnings = require_none(shortcomings(settings), self.name)
        try:
            _, plain, meddling = yield from self._run(session, "XA RECOVER", *tables_sql(text.literal(self.database)))
        except StatementFailed as error:
            return require_none([no_listing(error)], self.name)
        tables = [str(row[0]) for row in plain.rows]
        self._plain_tables = frozenset(map(str.lower, tables))
        return (*warnings, *require_none([*plain_tables(tables), *meddlers("mariadb", meddling.rows)], self.name))

    def setup(self, session: Session, resource_id: str, cluster: str) -> Script[None]:
        """Of two at a time one stores the identity, and the other finds it."""
        yield from self.tables.create(session)
        try:
            (there,) = yield from self._run(session, f"SELECT COUNT(*) FROM {self._identity}")
            if there.scalar():
                return  # who may not write here can still use what is there
            server = yield from self.server(session)
            row = ", ".join(("1", *map(text.literal, (resource_id, cluster, server)), "0", text.literal("")))
            yield from self._change(session, f"{self._new_identity} VALUES ({row})")
        except Conflict:
            return
        except (Refused, StatementFailed) as error:
            raise ResourceRefused(
                f"{self.name} cannot be given its identity: {error}. Run nodoubt schema apply with an account that "
                "may, or grant what nodoubt schema sql --role setup prints"
            ) from error

    def identity(self, session: Session) -> Script[Identity | None]:
        """What is stored; the epoch is the highest of those the row and the receipts have witnessed."""
        try:
            record, reply = yield from self._run(
                session,
                self.tables.record_query(),
                f"SELECT resource_id, cluster, server, mark, GREATEST(epoch, (SELECT COALESCE(MAX(epoch), 0) FROM "
                f"{self._receipts})) AS epoch FROM {self._identity} WHERE id = 1",
            )
        except StatementFailed as error:
            if error.code not in ("1146", "1049"):
                raise Refused(f"the identity of {self.name} can't be read: {error}") from error
            version = yield from self.tables.version(session)
            if version is not None:
                judge(version, self.tables.schema, self.name)
            return None
        judge(version_of(rows_of(record)), self.tables.schema, self.name)
        if not reply.rows:
            return None
        row = reply[0]
        return Identity(row["resource_id"], row["cluster"], row["server"], int(row["epoch"]), row["mark"])

    def server(self, session: Session) -> Script[str]:
        """MySQL's uuid, kept with its data, or MariaDB's uid, a hash of host (MAC address) and port; "" for neither."""
        settings = yield from self._settings(session)
        uid = settings.get("server_uuid") or settings.get("server_uid") or ""
        return f"{uid}/{self.database}" if uid else ""

    def witness(self, session: Session, epoch: Epoch) -> Script[None]:
        """Never lowers what is stored. Assignments run from left to right here: the mark's still sees the old epoch."""
        yield from self._change(
            session,
            f"UPDATE {self._identity} SET mark = IF(epoch < {epoch.number}, {text.literal(epoch.mark)}, mark), "
            f"epoch = GREATEST(epoch, {epoch.number}) WHERE id = 1",
        )

    def adopt(self, session: Session, identity: Identity) -> Script[None]:
        """Overwrite; the epoch too, for after a restore of the journal it has to go back.

        A branch still prepared keeps, in its receipt, the epoch it has witnessed: end those branches first.
        """
        values = ", ".join(map(text.literal, (identity.resource_id, identity.cluster, identity.server)))
        yield from self._change(
            session,
            f"DELETE FROM {self._identity}",
            f"{self._new_identity} VALUES (1, {values}, {int(identity.epoch)}, {text.literal(identity.mark)})",
        )
        newer = f"epoch > {int(identity.epoch)} ORDER BY epoch"
        for _ in range(BATCHES_MAX):
            keys = yield from self._keys(session, newer)
            if not keys:
                break
            yield from self._each(session, f"UPDATE {self._receipts} SET epoch = {int(identity.epoch)}", keys)

    def leave(self, session: Session) -> Script[None]:
        """Forget who this database was."""
        yield from self._change(session, f"DELETE FROM {self._identity}")

    # -- one branch's work

    def begin(self, session: Session, work: Work, *, before: Sequence[str] = ()) -> Script[None]:
        """XA START, always: in a plain transaction a DDL would commit the work behind our back."""
        handle = XaXid(work.xid, session.connection_id, session.server_started)
        message = beginning.message(handle, before)
        if work.lazy and not before and hasattr(session, "execute_after"):
            work.opening = tuple(message)
        else:
            try:
                yield from self._run(session, *message)
            except StatementFailed as error:
                session.kill()  # whatever it is in, it is not clean
                raise beginning.failure(error, self.name, before) from error
        work.handle = handle
        self._notes[session] = _Notes()

    def execute(self, session: Session, work: Work, statement: str, params: Any) -> Script[Reply]:
        """The user's statement. Whatever goes wrong dooms the branch: InnoDB would keep the half that went well."""
        if work.doomed is not None:
            raise BranchDoomed(
                f"an earlier statement on {self.name} failed, so it can only be rolled back: {text_of(work.doomed)}"
            ) from work.doomed
        try:
            text.refuse_control(statement)
            self._refuse_plain_table(statement)
            notes = self._notes[session]
            notes.ran = True
            notes.stained |= text.stains(statement)
            notes.probe &= not text.may_use_temporary_tables(statement)
            if not text.only_reads(statement):
                work.wrote = True
            elif not work.wrote and notes.writes is None:
                notes.writes = yield from self._writes(session)
            reply: Reply
            if work.opening:
                reply = yield from self._execute_first(session, work, statement, params)
            else:
                reply = yield from do(session, "execute", statement, params)
            return reply
        except BaseException as error:
            work.doomed = error
            raise

    def _execute_first(self, session: Session, work: Work, statement: str, params: Any) -> Script[Reply]:
        """XA START and the statement in one packet. While `work.opening` stands, nothing has been answered."""
        try:
            *_, reply = yield from do(session, "execute_after", work.opening, statement, params)
        except StatementFailed as error:
            session.kill()  # as in `begin`
            raise refusal(error, "XA START was refused") from error
        except SessionLost:
            raise
        except BaseException:
            work.opening = ()  # the user's own error, after a start that was answered
            raise
        work.opening = ()
        return reply  # type: ignore[no-any-return]

    def savepoint(self, session: Session, work: Work, step: SavepointStep, name: str) -> Script[None]:
        """InnoDB undoes all of a deadlock's victim, its savepoints with it: going back to one is an error then (1305).

        After any other error of a statement the savepoint is there, and so is what was done before it.
        """
        statements = (*work.opening, *step.statements(name))
        work.opening = ()  # whatever becomes of it, there may be something to roll back now
        try:
            yield from self._run(session, *statements)
        except StatementFailed as error:
            raise refusal(error, f"savepoint {name} on {self.name}") from error

    def _refuse_plain_table(self, statement: str) -> None:
        if not self._plain_tables:
            return
        database, table = text.written_table(statement)
        if database in ("", self.database.lower()) and table in self._plain_tables:
            raise UsageError(
                f"{table!r} is not transactional, so a write to it can't be rolled back: "
                "ALTER TABLE … ENGINE=InnoDB, or write to it outside of the transaction"
            )

    def wrote(self, session: Session, work: Work) -> Script[bool]:
        """False if nothing was run, or only reads were and the session's own counters show no row written since."""
        notes = self._notes.get(session)
        if work.opening:
            return False
        if work.wrote or notes is None:
            return True
        if not notes.ran and not work.statements:
            return False
        writes = yield from self._writes(session)
        return writes is None or writes != notes.writes

    def _writes(self, session: Session) -> Script[int | None]:
        """Rows this session has ever written, by whatever way; what sorting and grouping write is not counted.

        On MySQL it is, by this statement too: there every branch that ran anything counts as a writer.
        """
        try:
            (reply,) = yield from self._run(session, WRITES)
        except StatementFailed:
            return None
        return sum(int(row[1]) for row in reply.rows)

    def end_reader(self, session: Session, work: Work) -> Script[None]:
        """End a branch that wrote nothing. What goes wrong is a refusal: there was nothing to commit."""
        if work.opening:
            self._finished(session, work)
            return
        handle = _handle(work)
        try:
            yield from self._run(session, f"XA END {handle.sql}", f"XA COMMIT {handle.sql} ONE PHASE")
        except StatementFailed as error:
            yield from self._undo(session, work)
            raise refusal(error, "the reading branch could not be ended") from error
        except SessionLost as error:
            raise Refused(f"the connection to {self.name} was lost before its reads had ended", retry=True) from error
        self._finished(session, work)

    def rollback(self, session: Session, work: Work) -> Script[None]:
        """Undo; a session that does not say that it did is ended, which undoes it, too."""
        if work.opening:
            self._finished(session, work)
            if work.statements:
                session.kill()  # interrupted between the server's answer and our note of it, for all we know
        elif work.handle is not None:
            yield from self._undo(session, work)

    def _undo(self, session: Session, work: Work) -> Script[bool]:
        """True if the server said that it rolled back this very branch: then nothing of it was or will be committed."""
        handle = _handle(work)
        try:
            try:
                yield from self._run(session, f"XA END {handle.sql}", f"XA ROLLBACK {handle.sql}")
            except StatementFailed:
                # Ended already, or rollback-only after a deadlock: XA END is an error then, and ends the message.
                yield from self._run(session, f"XA ROLLBACK {handle.sql}")
        except (StatementFailed, SessionLost):
            session.kill()
            return False
        self._finished(session, work)
        return True

    def _finished(self, session: Session, work: Work | None = None) -> None:
        """The branch is over and the session is out of it; it may serve others unless it was changed."""
        notes = self._notes.pop(session, None)
        session.usable = notes is None or not notes.stained
        if work is not None:
            work.handle = None

    def commit_alone(self, session: Session, work: Work, *, riders: Sequence[str] = ()) -> Script[None]:
        """[The rows | the receipt], XA END, XA COMMIT ONE PHASE in one message, which the first error ends."""
        handle = self._committable(work)
        proof = tuple(riders) or (self._receipt_row(work.xid, Verdict.COMMIT, alone=True, epoch=work.epoch),)
        yield from self._promise(
            session, work, proof, f"XA COMMIT {handle.sql} ONE PHASE", "the commit was refused and rolled back"
        )
        self._finished(session, work)

    # -- two phases

    def prepare(self, session: Session, work: Work, *, riders: Sequence[str] = ()) -> Script[None]:
        """The receipt, XA END, XA PREPARE in one message. Until the branch is finished the session is bound to it."""
        invariant(not riders, "I4", "rows that ride in a prepared branch can't be seen until it commits")
        handle = self._committable(work)
        proof = (self._receipt_row(work.xid, Verdict.COMMIT, alone=False, epoch=work.epoch),)
        yield from self._promise(
            session, work, proof, f"XA PREPARE {handle.sql}", "the branch was not prepared and is rolled back"
        )
        # Back in a pool it would refuse whatever comes next, and hold the branch: see `Pool.release`.
        session.usable = False

    def _committable(self, work: Work) -> XaXid:
        if work.doomed is not None:
            raise Refused(f"a statement on {self.name} failed, so it can only be rolled back: {text_of(work.doomed)}")
        return _handle(work)

    def _promise(self, session: Session, work: Work, proof: Sequence[str], promise: str, refused: str) -> Script[None]:
        """Write the proof and make the promise, in one message. `Refused` only if the branch was then rolled back."""
        notes = self._notes.get(session, _Notes())
        probe = self._probe if notes.probe else ()
        try:
            yield from self._run(session, *probe, *work.closing, *proof, f"XA END {_handle(work).sql}", promise)
        except StatementFailed as error:
            # The error does not tell which statement it came from. Only a branch that can still be rolled back was
            # surely neither prepared nor committed; InnoDB leaves it committable after most errors.
            if not (yield from self._undo(session, work)):
                raise Unclear(f"{self.name} failed in the commit, and its state is not known: {error}") from error
            raise refusal(error, refused) from error
        except SessionLost as error:
            raise Unclear(f"{self.name} gave no answer: {error}") from error

    def detach(self, session: Session) -> Script[None]:
        """Close the connection: as long as it lives, nobody else can finish the branch. A few ms later anybody can."""
        yield from do(session, "close")

    def commit_prepared(
        self, session: Session, prepared: Prepared, *, before: Sequence[str] = (), riders: Sequence[str] = ()
    ) -> Script[None]:
        """XA COMMIT; durable when it answers OK. In another session that is not enough: `mariadb_finishing`."""
        invariant(not before and not riders, "I4", "rows can't ride on XA COMMIT")
        yield from self._finish(session, prepared, "COMMIT")

    def rollback_prepared(self, session: Session, prepared: Prepared) -> Script[None]:
        """XA ROLLBACK. *Not* durable: after a crash the branch may be listed again, and the next sweep finds it."""
        yield from self._finish(session, prepared, "ROLLBACK")

    def _finish(self, session: Session, prepared: Prepared, verb: str) -> Script[None]:
        handle = prepared.handle
        if handle is None:
            handle = yield from self._find(session, prepared.xid)
        try:
            replies = yield from self._run(session, *finishing.message(verb, handle, session, self._receipts))
        except StatementFailed as error:
            why = f"XA {verb} of {handle.xid.gid} on {self.name} was refused"
            if finishing.is_held(error):
                raise UnknownXid(f"{why}: the session that prepared it has not ended") from error
            if error.code == "1400":
                session.kill()  # a user's procedure has left it without autocommit: it can finish no other's branch
            if FAILURES.get(error.code) in (Failure.UNKNOWN_XID, Failure.REFUSED) and not finishing.is_of_look(error):
                raise refusal(error, why) from error
            raise Unclear(f"{why}, which may come before or after it was done: {error}") from error
        except SessionLost as error:
            raise Unclear(f"{self.name} gave no answer: {error}") from error
        if finishing.is_own(handle, session):
            self._finished(session)
        finishing.require_done(verb, handle, session, replies)

    def _find(self, session: Session, xid: Xid) -> Script[XaXid]:
        """The xid with the session that prepared it, which is part of its name."""
        for one in (yield from self.prepared(session, xid.cluster, xid)):
            return one.handle  # type: ignore[no-any-return]
        raise UnknownXid(f"{self.name} lists no branch {xid.gid}")

    # -- recovery

    def prepared(self, session: Session, cluster: str, xid: Xid | None = None) -> Script[tuple[Prepared, ...]]:
        """Those of all databases of this server: only the decision's list of branches tells whose a branch is.

        XA RECOVER takes no condition: asked for one, it lists all.
        """
        try:
            (reply,) = yield from self._run(session, "XA RECOVER")
        except StatementFailed as error:
            raise Refused(f"{self.name} does not list its prepared branches: {error}") from error
        except SessionLost as error:
            raise Unclear(f"{self.name} gave no answer: {error}") from error
        ours = [one for one in map(parse_xa_recover, reply.rows) if one is not None and one.xid.cluster == cluster]
        return tuple(Prepared(one.xid, None, one) for one in ours if xid is None or one.xid == xid)

    def free(self, session: Session, prepared: Prepared) -> Script[bool]:
        """KILL the session that prepared it, if it is idle, of our account and of this run of the server.

        Its id alone says nothing after a restart: it may then be an innocent stranger's. Within one run ids are
        not used again. No privilege is needed for sessions of one's own account.
        """
        handle: XaXid = prepared.handle
        if not finishing.same_run(handle, session) or session.connection_id == handle.connection:
            return False
        who = (
            "SELECT COMMAND, USER = SUBSTRING_INDEX(USER(), '@', 1) FROM information_schema.PROCESSLIST "
            f"WHERE ID = {handle.connection}"
        )
        try:
            listed, holder = yield from self._run(session, "XA RECOVER", who)
            held = handle in map(parse_xa_recover, listed.rows)
            if not held or holder.rows != (("Sleep", 1),):
                return False
            yield from self._run(session, f"KILL CONNECTION {handle.connection}")
            for turn in range(KILL_POLLS_MAX):
                (holder,) = yield from self._run(session, who)
                if not holder.rows:
                    return True
                yield Pause(KILL_POLL_FIRST_S * 2**turn)
        except StatementFailed as error:
            if error.code == "1094":  # it ended by itself between our look and our KILL
                return True
            raise Refused(f"{self.name} does not end session {handle.connection}: {error}") from error
        except SessionLost as error:
            raise Unclear(f"{self.name} gave no answer: {error}") from error
        return False

    def receipt(self, session: Session, xid: Xid) -> Script[bool]:
        """A forced UPDATE of that row: on InnoDB a row can be seen before it is flushed, and forgotten in a crash."""
        try:
            return (yield from self._confirm(session, xid)) is Verdict.COMMIT
        except (StatementFailed, SessionLost) as error:
            yield from self._clear(session)
            raise Unclear(f"the receipt of {xid.gid} on {self.name} can't be read: {error}") from error

    def fence(self, session: Session, xid: Xid) -> Script[Verdict]:
        """Take the receipt's place. Blocked by the branch itself, it gives up after `LOCK_WAIT_S`: not known yet."""
        try:
            try:
                marker = self._receipt_row(xid, Verdict.ABORT, alone=True, epoch=0)
                yield from self._forced(session, marker)
                return Verdict.ABORT
            except StatementFailed as error:
                if FAILURES.get(error.code) is not Failure.DUPLICATE:
                    raise
                yield from self._clear(session)
            stands = yield from self._confirm(session, xid)
            if stands is not None:
                return stands
            raise Unclear(f"the receipt of {xid.gid} on {self.name} was there and is gone: ask again")
        except (StatementFailed, SessionLost) as error:
            yield from self._clear(session)
            raise Unclear(f"the outcome of {xid.gid} on {self.name} can't be settled now: {error}") from error

    def _confirm(self, session: Session, xid: Xid) -> Script[Verdict | None]:
        """The verdict of the row, flushed: what the UPDATE has seen is durable once the COMMIT has answered."""
        where = text.where(xid.attempt, xid.branch)
        updated, row = yield from self._forced(
            session,
            f"UPDATE {self._receipts} SET confirms = confirms + 1 {where}",
            f"SELECT verdict FROM {self._receipts} {where}",
        )
        return Verdict(row.scalar()) if updated.count == 1 and row.rows else None

    def forget(
        self, session: Session, xids: Sequence[Xid], *, older_than: float | None = None, below: str = ""
    ) -> Script[int]:
        """Those named, and a batch each, oldest first, of one-phase rows and fences from before `older_than`, and of
        what two phases left `below` the floor.
        """
        gone = 0
        keys: Sequence[tuple[str, int]] = [(xid.attempt, xid.branch) for xid in xids]
        for start in range(0, len(keys), BATCH_MAX):
            gone += yield from self._each(session, f"DELETE FROM {self._receipts}", keys[start : start + BATCH_MAX])
        which = [] if not below else [f"attempt < {text.literal(below)} AND alone = 0 ORDER BY attempt, branch"]
        if older_than is not None:
            # An attempt's id starts with its time, so the key is read from its beginning to there and no further.
            newest = first_attempt_of(older_than)
            which.append(f"attempt < '{newest}' AND alone = 1 AND at < {older_than!r} ORDER BY attempt, branch")
        for old in which:
            keys = yield from self._keys(session, old)
            if keys:
                gone += yield from self._each(session, f"DELETE FROM {self._receipts}", keys)
        return gone

    def _keys(self, session: Session, where: str) -> Script[Sequence[tuple[str, int]]]:
        """The keys of a batch of receipts. By a plain read, which waits for nobody."""
        try:
            (reply,) = yield from self._run(
                session, f"SELECT attempt, branch FROM {self._receipts} WHERE {where} LIMIT {BATCH_MAX}"
            )
        except StatementFailed as error:
            raise refusal(error, f"our tables in {self.database} can't be read") from error
        return [(str(attempt), int(branch)) for attempt, branch in reply.rows]

    def _each(self, session: Session, change: str, keys: Sequence[tuple[str, int]]) -> Script[int]:
        """The change to each of these rows, by a statement of its own, in one forced transaction; how many there were.

        A range, or a list (of one above all), may be carried out as a walk over the table: it would wait for every
        branch that is prepared, and could wait for days.
        """
        replies = yield from self._change(session, *(f"{change} {text.where(*key)}" for key in keys))
        return sum(reply.count for reply in replies)

    # -- the parts

    def _run(self, session: Session, *statements: str) -> Script[tuple[Reply, ...]]:
        """One message, and proof that each of its statements was answered: this protocol has no command tags (I2)."""
        replies: tuple[Reply, ...] = yield from do(session, "run", "; ".join(statements))
        invariant(len(replies) == len(statements), "I2", "{} statements, {} answers", len(statements), len(replies))
        return replies

    def _forced(self, session: Session, *statements: str) -> Script[tuple[Reply, ...]]:
        """A transaction of our own, in one message so that no stalled client sits between its statements.

        Explicit, for a user's statement may have left the session without autocommit. Its COMMIT is flushed
        (`check` requires innodb_flush_log_at_trx_commit=1). After an error call `_clear`.
        """
        _, _, *replies, _, _ = yield from self._run(
            session,
            f"SET SESSION innodb_lock_wait_timeout = {LOCK_WAIT_S}",
            "START TRANSACTION",
            *statements,
            "COMMIT",
            "SET SESSION innodb_lock_wait_timeout = DEFAULT",
        )
        return tuple(replies)

    def _change(self, session: Session, *statements: str) -> Script[tuple[Reply, ...]]:
        """`_forced`, where an error is no answer to anything but a refusal."""
        try:
            return (yield from self._forced(session, *statements))
        except StatementFailed as error:
            yield from self._clear(session)
            raise refusal(error, f"our tables in {self.database} were not changed") from error

    def _clear(self, session: Session) -> Script[None]:
        """After an error within `_forced`: InnoDB leaves the transaction open, and even committable."""
        try:
            yield from self._run(session, "ROLLBACK", "SET SESSION innodb_lock_wait_timeout = DEFAULT")
        except (StatementFailed, SessionLost):
            session.kill()

    def _receipt_row(self, xid: Xid, verdict: Verdict, *, alone: bool, epoch: int) -> str:
        return (
            f"INSERT INTO {self._receipts} (attempt, branch, verdict, alone, epoch, confirms, at) VALUES "
            f"('{xid.attempt}', {xid.branch}, '{verdict.value}', {int(alone)}, {int(epoch)}, 0, "
            "UNIX_TIMESTAMP(SYSDATE(6)))"
        )

    def _settings(self, session: Session) -> Script[dict[str, str]]:
        names = ", ".join(f"'{name}'" for name in SETTINGS)
        (reply,) = yield from self._run(session, f"SHOW GLOBAL VARIABLES WHERE Variable_name IN ({names})")
        return {str(row[0]).lower(): str(row[1]) for row in reply.rows}


def _handle(work: Work) -> XaXid:
    invariant(isinstance(work.handle, XaXid), "I2", "branch {} was not begun, or has ended", work.xid)
    return work.handle  # type: ignore[no-any-return]
