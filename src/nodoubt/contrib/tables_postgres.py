"""Our tables on PostgreSQL, as SQLAlchemy has them. What makes them: `nodoubt/schema/postgres`."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import DOUBLE_PRECISION

ZERO, NOTHING, NOW = sa.text("0"), sa.text("''::text"), sa.text("clock_timestamp()")
VERDICT = "verdict IN ('commit', 'abort')"


def participant(made: sa.MetaData) -> None:
    """What each database that takes part has."""
    _table(
        made,
        "migrations",
        key("part", primary_key=True),
        integer("number", primary_key=True),
        integer("works_from"),
        integer("steps"),
        integer("steps_done"),
        sa.Column("at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=NOW),
        sa.CheckConstraint("part IN ('journal', 'participant')", name="migrations_part_check"),
    )
    _table(
        made,
        "identity",
        sa.Column("single", sa.Boolean(), primary_key=True, server_default=sa.text("true")),
        *(text(name) for name in ("resource_id", "cluster", "server")),
        bigint("epoch", server_default=ZERO),
        text("mark", server_default=NOTHING),
        sa.CheckConstraint("single", name="identity_single_check"),
    )
    _table(
        made,
        "receipts",
        key("attempt", primary_key=True),
        integer("branch", primary_key=True),
        text("verdict"),
        bigint("epoch"),
        sa.Column("alone", sa.Boolean(), nullable=False),
        bigint("confirms", server_default=ZERO),
        sa.Column("at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=NOW),
        sa.CheckConstraint(VERDICT, name="receipts_verdict_check"),
        sa.Index("receipts_at", "at", postgresql_using="brin", postgresql_with={"pages_per_range": 16}),
    )
    _table(
        made,
        "keys",
        key("scope", primary_key=True),
        key("idempotency_key", primary_key=True),
        text("payload"),
        sa.Column("result", sa.LargeBinary(), nullable=False),
        text("xid"),
        bigint("confirms", server_default=ZERO),
        double("kept_until"),
        sa.Index("keys_kept_until", "kept_until"),
    )


def journal(made: sa.MetaData) -> None:
    """What the journal's database has."""
    _register(made)
    _names(made)
    _steps(made)
    _jobs(made)
    _table(
        made,
        "resources",
        key("resource_id", primary_key=True),
        *(text(name) for name in ("name", "cluster", "server")),
        bigint("epoch"),
    )
    _table(
        made,
        "quarantine",
        key("attempt", primary_key=True),
        integer("branch", primary_key=True),
        text("resource"),
        text("why"),
        double("since"),
        text("cleared_by", server_default=NOTHING),
    )
    _table(
        made,
        "events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), primary_key=True),
        key("attempt"),
        double("at"),
        text("what"),
        text("detail"),
        sa.Index("events_attempt", "attempt", "id"),
    )


def _register(made: sa.MetaData) -> None:
    _table(
        made,
        "journal",
        key("item", primary_key=True),
        key("value", server_default=NOTHING),
        bigint("counter", server_default=ZERO),
    )
    _table(
        made,
        "epochs",
        bigint("number", primary_key=True),
        key("mark"),
        sa.UniqueConstraint("mark", name="epochs_mark_key"),
    )
    _table(
        made,
        "decisions",
        key("attempt", primary_key=True),
        *(text(name) for name in ("verdict", "mode", "name", "branches")),
        integer("point", nullable=True),
        text("owner"),
        text("reason"),
        double("decided_at"),
        double("ended_at", nullable=True),
        bigint("confirms", server_default=ZERO),
        sa.CheckConstraint("length(attempt) = 32", name="decisions_attempt_check"),
        sa.CheckConstraint(VERDICT, name="decisions_verdict_check"),
        sa.Index("decisions_open", "attempt", postgresql_where=sa.text("verdict = 'commit' AND ended_at IS NULL")),
        postgresql_with={"fillfactor": 80},
    )


def _names(made: sa.MetaData) -> None:
    _table(
        made,
        "names",
        key("name", primary_key=True),
        key("attempt"),
        text("branches"),
        integer("last_branch", nullable=True),
        double("deadline"),
        text("owner"),
        text("metadata"),
        double("created_at"),
        double("begin_by"),
        text("confirmations"),
        integer("calls"),
        key("undecided", nullable=True),
        sa.UniqueConstraint("attempt", name="names_attempt_key"),
        sa.CheckConstraint("length(attempt) = 32", name="names_attempt_check"),
        sa.Index("names_undecided", "undecided", postgresql_where=sa.text("undecided IS NOT NULL")),
    )


def _steps(made: sa.MetaData) -> None:
    _table(
        made,
        "confirmations",
        key("attempt", primary_key=True),
        key("who", primary_key=True),
        text("answer", server_default=sa.text("'asked'::text")),
        text("why", server_default=NOTHING),
        double("at", server_default=ZERO),
    )
    _table(
        made,
        "calls",
        key("attempt", primary_key=True),
        integer("number", primary_key=True),
        key("call_key"),
        *(text(name) for name in ("step", "compensation", "arguments", "state", "result", "error")),
        integer("tries"),
        double("held_until"),
        text("claim"),
        text("worker"),
        double("begun_at"),
        double("changed_at"),
        bigint("version"),
        key("unfinished", nullable=True),
        sa.UniqueConstraint("attempt", "call_key", name="calls_attempt_call_key_key"),
        sa.CheckConstraint("length(attempt) = 32", name="calls_attempt_check"),
        sa.Index("calls_unfinished", "unfinished", "state", postgresql_where=sa.text("unfinished IS NOT NULL")),
    )


def _jobs(made: sa.MetaData) -> None:
    _table(
        made,
        "jobs",
        key("name", primary_key=True),
        key("run"),
        key("keeper"),
        text("state"),
        bigint("done"),
        bigint("total", nullable=True),
        *(text(name) for name in ("checkpoint", "note", "worker")),
        key("claim"),
        *(double(name) for name in ("held_until", "begun_at", "changed_at")),
        sa.CheckConstraint("length(run) = 32", name="jobs_run_check"),
    )


def _table(made: sa.MetaData, name: str, *items: Any, **options: Any) -> None:
    sa.Table(name, made, *items, schema="nodoubt", **options)


def key(name: str, **options: Any) -> sa.Column[Any]:
    """Text that is compared byte by byte."""
    return _column(name, sa.Text(collation="C"), options)


def text(name: str, **options: Any) -> sa.Column[Any]:
    """Text for people."""
    return _column(name, sa.Text(), options)


def integer(name: str, **options: Any) -> sa.Column[Any]:
    """Numbers that stay small."""
    return _column(name, sa.Integer(), options)


def bigint(name: str, **options: Any) -> sa.Column[Any]:
    """Numbers that need not."""
    return _column(name, sa.BigInteger(), options)


def double(name: str, **options: Any) -> sa.Column[Any]:
    """Seconds."""
    return _column(name, DOUBLE_PRECISION(), options)


def _column(name: str, type_: Any, options: dict[str, Any]) -> sa.Column[Any]:
    return sa.Column(name, type_, **{"nullable": False, "autoincrement": False, **options})
