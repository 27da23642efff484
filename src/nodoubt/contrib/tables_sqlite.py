"""Our tables on SQLite, as SQLAlchemy has them. What makes them: `nodoubt/schema/sqlite`."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

ZERO, NOTHING = sa.text("0"), sa.text("''")
VERDICT = "verdict IN ('commit', 'abort')"
STRICT: dict[str, Any] = {"sqlite_strict": True, "sqlite_with_rowid": False}


def participant(made: sa.MetaData) -> None:
    """What each file that takes part has."""
    _table(
        made,
        "migrations",
        text("part", primary_key=True),
        integer("number", primary_key=True),
        *(integer(name) for name in ("works_from", "steps", "steps_done")),
        text("at", server_default=sa.text("CURRENT_TIMESTAMP")),
        sa.CheckConstraint("part IN ('journal', 'participant')"),
        **STRICT,
    )
    _table(
        made,
        "identity",
        integer("one", primary_key=True, nullable=True),
        *(text(name) for name in ("resource_id", "cluster", "server")),
        integer("epoch"),
        text("mark"),
        sa.CheckConstraint("one = 1"),
    )
    _table(
        made,
        "receipts",
        text("attempt", primary_key=True),
        integer("branch", primary_key=True),
        text("verdict"),
        integer("epoch"),
        integer("alone"),
        integer("confirms", server_default=ZERO),
        real("at"),
        sa.CheckConstraint(VERDICT),
        sa.CheckConstraint("alone IN (0, 1)"),
        sqlite_with_rowid=False,
    )
    record = sa.Column("record", sa.BLOB(), nullable=False)
    _table(
        made, "prepared", text("xid", primary_key=True), integer("epoch"), real("at"), record, sqlite_with_rowid=False
    )
    _table(
        made,
        "locks",
        text("tbl", primary_key=True),
        text("xid", primary_key=True),
        text("mode"),
        sa.CheckConstraint("mode IN ('X', 'S')"),
        sqlite_with_rowid=False,
    )
    _table(
        made,
        "keys",
        text("scope", primary_key=True),
        text("idempotency_key", primary_key=True),
        text("payload"),
        sa.Column("result", sa.BLOB(), nullable=False),
        text("xid"),
        integer("confirms", server_default=ZERO),
        real("kept_until"),
        sa.Index("nodoubt_keys_kept_until", "kept_until"),
        sa.Index("nodoubt_keys_xid", "xid"),
    )


def journal(made: sa.MetaData) -> None:
    """What the journal's file has."""
    _register(made)
    _names(made)
    _steps(made)
    _jobs(made)
    _table(
        made,
        "resources",
        text("resource_id", primary_key=True),
        *(text(name) for name in ("name", "cluster", "server")),
        integer("epoch"),
        **STRICT,
    )
    _table(
        made,
        "quarantine",
        text("attempt", primary_key=True),
        integer("branch", primary_key=True),
        text("resource"),
        text("why"),
        real("since"),
        text("cleared_by", server_default=NOTHING),
        **STRICT,
    )
    _table(
        made,
        "events",
        integer("id", primary_key=True, nullable=True),
        text("attempt"),
        real("at"),
        text("what"),
        text("detail"),
        sa.Index("nodoubt_events_attempt", "attempt", "id"),
        sqlite_strict=True,
    )


def _register(made: sa.MetaData) -> None:
    value, counter = text("value", server_default=NOTHING), integer("counter", server_default=ZERO)
    _table(made, "journal", text("item", primary_key=True), value, counter, **STRICT)
    number = integer("number", primary_key=True)
    _table(made, "epochs", number, text("mark"), sa.UniqueConstraint("mark"), sqlite_strict=True)
    open_commits = sa.text("verdict = 'commit' AND ended_at IS NULL")
    _table(
        made,
        "decisions",
        text("attempt", primary_key=True),
        *(text(name) for name in ("verdict", "mode", "name", "branches")),
        integer("point", nullable=True),
        text("owner"),
        text("reason"),
        real("decided_at"),
        real("ended_at", nullable=True),
        integer("confirms", server_default=ZERO),
        sa.CheckConstraint("length(attempt) = 32"),
        sa.CheckConstraint(VERDICT),
        sa.Index("nodoubt_decisions_open", "attempt", sqlite_where=open_commits),
        **STRICT,
    )


def _names(made: sa.MetaData) -> None:
    _table(
        made,
        "names",
        text("name", primary_key=True),
        text("attempt"),
        text("branches"),
        integer("last_branch", nullable=True),
        real("deadline"),
        text("owner"),
        text("metadata"),
        real("created_at"),
        real("begin_by"),
        text("confirmations"),
        integer("calls"),
        text("undecided", nullable=True),
        sa.UniqueConstraint("attempt"),
        sa.CheckConstraint("length(attempt) = 32"),
        sa.Index("nodoubt_names_undecided", "undecided", sqlite_where=sa.text("undecided IS NOT NULL")),
        **STRICT,
    )


def _steps(made: sa.MetaData) -> None:
    _table(
        made,
        "confirmations",
        text("attempt", primary_key=True),
        text("who", primary_key=True),
        text("answer", server_default=sa.text("'asked'")),
        text("why", server_default=NOTHING),
        real("at", server_default=ZERO),
        **STRICT,
    )
    _table(
        made,
        "calls",
        text("attempt", primary_key=True),
        integer("number", primary_key=True),
        *(text(name) for name in ("call_key", "step", "compensation", "arguments", "state", "result", "error")),
        integer("tries"),
        real("held_until"),
        text("claim"),
        text("worker"),
        real("begun_at"),
        real("changed_at"),
        integer("version"),
        text("unfinished", nullable=True),
        sa.UniqueConstraint("attempt", "call_key"),
        sa.CheckConstraint("length(attempt) = 32"),
        sa.Index("nodoubt_calls_unfinished", "unfinished", "state", sqlite_where=sa.text("unfinished IS NOT NULL")),
        **STRICT,
    )


def _jobs(made: sa.MetaData) -> None:
    _table(
        made,
        "jobs",
        text("name", primary_key=True),
        *(text(name) for name in ("run", "keeper", "state")),
        integer("done"),
        integer("total", nullable=True),
        *(text(name) for name in ("checkpoint", "note", "worker", "claim")),
        *(real(name) for name in ("held_until", "begun_at", "changed_at")),
        sa.CheckConstraint("length(run) = 32"),
        **STRICT,
    )


def _table(made: sa.MetaData, name: str, *items: Any, **options: Any) -> None:
    sa.Table(f"nodoubt_{name}", made, *items, **options)


def text(name: str, **options: Any) -> sa.Column[Any]:
    """Text."""
    return sa.Column(name, sa.TEXT(), **{"nullable": False, **options})


def integer(name: str, **options: Any) -> sa.Column[Any]:
    """Whole numbers."""
    return sa.Column(name, sa.INTEGER(), **{"nullable": False, "autoincrement": False, **options})


def real(name: str, **options: Any) -> sa.Column[Any]:
    """Seconds."""
    return sa.Column(name, sa.REAL(), **{"nullable": False, **options})
