"""Who is at work on which job, and how far they are: a table of the journal, on sessions of its own.

What is written here is seen by everybody at once, whatever transaction the worker has open. It follows the checkpoints
and decides nothing: a lease may save work, never more (I14).

Guarantees: a job's row and its run are durable before its first chunk, so that a crash of the server does not begin it
anew; who holds a job is changed by compare-and-set alone, by the server's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from ..engine import questions
from ..engine.context import Context
from ..errors import ResourceRefused, SchemaMismatch, UsageError
from ..journals import rows
from ..journals.dialects import Dialect
from ..journals.transactions import Transactions
from ..ports import Conflict, Refused, Session, StatementFailed, Unclear, readable
from ..protocol.records import Unreadable
from ..script import Script
from .records import JobRecord, JobState, Link, Row, number_of_items

R = TypeVar("R")
LIST_MAX = 1000
FORGET_MAX = 500  # rows of one batch
PAGE_MAX = 500
COLUMNS = (
    "name", "run", "keeper", "state", "done", "total", "checkpoint", "note", "worker", "claim", "held_until",
    "begun_at", "changed_at",
)  # fmt: skip


class Board(Transactions):
    """The scripts, on any of the three."""

    def __init__(self, dialect: Dialect) -> None:
        super().__init__(dialect)
        self.table = dialect.table("jobs")

    def _refusal(self, error: StatementFailed) -> Refused | Unclear:
        """A journal of an older release has no such table, and may do without it."""
        if error.code in self.dialect.no_table and "nodoubt" in error.message and "jobs" in error.message:
            raise SchemaMismatch(
                "long jobs have a table in the journal that is not there: run nodoubt schema apply. Nothing was done, "
                "and everything but jobs works without it"
            ) from error
        return super()._refusal(error)

    def find(self, session: Session, name: str) -> Script[Row | None]:
        """A plain read."""
        found = yield from self._rows(session, self._where(name))
        return readable(found[0]) if found else None

    def listing(self, session: Session) -> Script[list[Row | Unreadable]]:
        """Those that changed last come first."""
        return self._rows(session, f"ORDER BY changed_at DESC, name LIMIT {LIST_MAX}")

    def unreadable(self, session: Session, after: str) -> Script[tuple[list[Unreadable], str | None]]:
        """Those of one page that cannot be read, and where the next one goes on; None: there is none."""
        behind = f"WHERE name > {self.dialect.raw(after)} " if after else ""  # the first may have lost its name
        which = f"{behind}ORDER BY name LIMIT {PAGE_MAX}"
        found = (yield from self._read(session, self._select(which))).rows
        apart = [one for one in job_of.each(found) if isinstance(one, Unreadable)]
        return apart, rows.raw(found[-1][0]) if len(found) == PAGE_MAX else None

    def add(self, session: Session, name: str, run: str, keeper: str, total: int | None) -> Script[bool]:
        """A job that nobody is at work on yet, forced; False where there is one of the name."""
        key, now = self.dialect.key, self.dialect.now
        values = (
            key(name), key(run), key(keeper), f"'{JobState.STOPPED.value}'", "0", rows.number(total),
            self.dialect.text("null"), self.dialect.text(""), self.dialect.text(""), key(""), "0e0", now, now,
        )  # fmt: skip
        insert = f"INSERT INTO {self.table} ({', '.join(COLUMNS)}) VALUES ({', '.join(values)})"
        try:
            yield from self._write(session, insert)
        except Conflict:
            return False
        return True

    def claim(
        self, session: Session, name: str, claim: str, worker: str, lease_s: float, *, takeover: bool
    ) -> Script[Row | None]:
        """Take it, if nobody has it (or whoever has), and it is not done; the row as it is then."""
        until, free = self._until(lease_s), f"state <> '{JobState.DONE.value}'"
        if not takeover:
            free += f" AND held_until < {self.dialect.now}"
        changes = f"claim = {self.dialect.key(claim)}, worker = {self.dialect.free_text(worker)}, held_until = {until}"
        _, reply = yield from self._write(
            session,
            f"UPDATE {self.table} SET {changes} {self._where(name)} AND {free}",
            self._select(self._where(name)),
            forced=False,
        )
        return job_of(reply.rows[0]) if reply.rows else None

    def advance(
        self, session: Session, name: str, claim: str, link: Link, total: int | None, note: str, lease_s: float
    ) -> Script[bool]:
        """How far it is, and that we are still at work; False if somebody else has it."""
        changes = {
            "state": f"'{JobState.RUNNING.value}'",
            "total": rows.number(total),
            "note": self.dialect.free_text(note),
            "held_until": self._until(lease_s),
            **self._progress(link),
        }
        return self._change(session, name, claim, changes, forced=False)

    def end(self, session: Session, name: str, claim: str, state: JobState, link: Link, note: str) -> Script[bool]:
        """Leave it, done or to be begun again; False if somebody else has it."""
        changes = {
            "state": f"'{state.value}'",
            "note": self.dialect.free_text(note),
            "held_until": "0e0",
            **self._progress(link),
        }
        return self._change(session, name, claim, changes)

    def release(self, session: Session, name: str, claim: str) -> Script[bool]:
        """Let somebody else have it, as it is."""
        return self._change(session, name, claim, {"held_until": "0e0"}, forced=False)

    def hold(self, session: Session, held: Sequence[tuple[str, str]], lease_s: float) -> Script[None]:
        """We are alive. One that has been left since it was looked up is not taken back."""
        yield from self._write(
            session,
            *(
                f"UPDATE {self.table} SET held_until = {self._until(lease_s)} "
                f"{self._where(name)} AND claim = {self.dialect.key(claim)} AND held_until > 0"
                for name, claim in sorted(held)
            ),
            forced=False,
        )

    def remove(self, session: Session, name: str, run: str) -> Script[None]:
        """Forget it."""
        yield from self._write(
            session, f"DELETE FROM {self.table} {self._where(name)} AND run = {self.dialect.key(run)}"
        )

    def forget(self, session: Session, older_than_s: float, now: float) -> Script[int]:
        """Delete a batch of those that were done longer ago; how many there were. What cannot be read stays.

        Longer ago by the server's clock and by `now`, that of whoever cleans up.
        """
        before, seconds = f"{self.dialect.now} - {self.dialect.seconds(older_than_s)}", self.dialect.seconds
        old = (
            f"state = '{JobState.DONE.value}' AND changed_at < {before} AND changed_at < {seconds(now - older_than_s)}"
        )
        names, after = list[str](), ""
        while not names:
            page = f"WHERE {old} AND name > {self.dialect.raw(after)} ORDER BY name LIMIT {FORGET_MAX}"
            found = (yield from self._read(session, self._select(page))).rows
            names = [row.record.name for row in job_of.each(found) if not isinstance(row, Unreadable)]
            if len(found) < FORGET_MAX:
                break
            after = rows.raw(found[-1][0])
        if names:
            yield from self._write(
                session, *(f"DELETE FROM {self.table} {self._where(name)} AND {old}" for name in names)
            )
        return len(names)

    # ---- statements

    def _change(
        self, session: Session, name: str, claim: str, changes: dict[str, str], *, forced: bool = True
    ) -> Script[bool]:
        mine = f"{self._where(name)} AND claim = {self.dialect.key(claim)}"
        changed = ", ".join(f"{column} = {value}" for column, value in changes.items())
        _, found = yield from self._write(
            session,
            f"UPDATE {self.table} SET {changed}, changed_at = {self.dialect.now} {mine}",
            f"SELECT 1 FROM {self.table} {mine}",
            forced=forced,
        )
        return bool(found.rows)

    def _progress(self, link: Link) -> dict[str, str]:
        text = msgspec.json.encode(link.checkpoint).decode()
        return {"done": str(int(link.done)), "checkpoint": self.dialect.text(text)}

    def _until(self, lease_s: float) -> str:
        return f"{self.dialect.now} + {self.dialect.seconds(lease_s)}"

    def _where(self, name: str) -> str:
        return f"WHERE name = {self.dialect.key(name)}"

    def _select(self, which: str) -> str:
        return f"SELECT {rows.select(self.dialect, COLUMNS)}, {self.dialect.now} FROM {self.table} {which}"

    def _rows(self, session: Session, which: str) -> Script[list[Row | Unreadable]]:
        reply = yield from self._read(session, self._select(which))
        return job_of.each(reply.rows)


@rows.read("jobs", attempt=1, name=0)
def job_of(row: rows.Row) -> Row:
    """A row of `COLUMNS`, and the server's time after it."""
    name, run, keeper, state, done, total, checkpoint, note, worker, claim, held_until, begun, changed, now = row
    held_s = rows.moment(held_until) - rows.moment(now)
    stands = JobState(rows.text(state))
    if stands is JobState.RUNNING and held_s < 0:
        stands = JobState.ABANDONED
    record = JobRecord(
        rows.text(name),
        stands,
        number_of_items(int(done)),
        None if total is None else number_of_items(int(total)),
        msgspec.json.decode(rows.text(checkpoint)),
        rows.text(note),
        rows.text(worker),
        rows.moment(begun),
        rows.moment(changed),
    )
    return Row(record, rows.attempt(run), rows.text(keeper), rows.text(claim), max(held_s, 0.0))


def _board(ctx: Context) -> Board | None:
    """None: a fake coordinator's journal, or one of a kind that is not ours, keeps no jobs."""
    dialect = getattr(ctx.journal, "dialect", None)
    return Board(dialect) if isinstance(dialect, Dialect) else None


def asked(ctx: Context, body: Callable[[Board, Session], Script[R]], *, changes: bool = True) -> Script[R]:
    """Ask the board. Raises `JournalUnavailable`, `UsageError`."""
    board = _board(ctx)
    if board is None:
        raise UsageError(
            "this journal keeps no jobs: one in PostgreSQL, MariaDB or SQLite does; a fake coordinator has none of them"
        )
    return questions.ask(ctx, lambda session: body(board, session), changes=changes)


def unreadable(ctx: Context) -> Script[list[Unreadable]]:
    """Every job whose row cannot be read, each page with its own time to answer. Raises `JournalUnavailable`.

    None where there is no table of jobs, or the account may not look at it: all but jobs works without.
    """
    found: list[Unreadable] = []
    after: str | None = "" if _board(ctx) is not None else None
    while after is not None:
        try:
            some, after = yield from asked(ctx, _page_from(after), changes=False)
        except (SchemaMismatch, ResourceRefused):
            return []
        found += some
    return found


def _page_from(after: str) -> Callable[[Board, Session], Script[tuple[list[Unreadable], str | None]]]:
    return lambda board, session: board.unreadable(session, after)


def hold_all(ctx: Context) -> Script[None]:
    """One turn of what runs behind while this process works on jobs."""
    held, lease_s = [(name, claim) for claim, name in list(ctx.jobs.items())], ctx.settings.job_lease_s
    if held:
        yield from asked(ctx, lambda board, session: board.hold(session, held, lease_s))


def expire(ctx: Context) -> Script[int]:
    """Forget the jobs that were done longer ago than the retention, a batch of them."""
    if _board(ctx) is None:
        return 0
    try:
        kept_s, now = ctx.settings.retention_s, ctx.clock.now()
        return (yield from asked(ctx, lambda board, session: board.forget(session, kept_s, now)))
    except SchemaMismatch:
        return 0  # where there is no table, there are no jobs
