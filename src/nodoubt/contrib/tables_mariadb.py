"""Our tables on MariaDB and MySQL, as SQLAlchemy has them. What makes them: `nodoubt/schema/mariadb`."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

ZERO, NOTHING = sa.text("0"), sa.text("''")
# The virtual column as the server writes it, and so finds it equal.
OPEN_COMMIT = "if(`verdict` = 'commit' and `ended_at` is null,`attempt`,NULL)"


def participant(made: sa.MetaData) -> None:
    """What each database that takes part has: in ASCII."""
    _table(
        made,
        "ascii",
        "migrations",
        text("part", 16, primary_key=True),
        integer("number", primary_key=True),
        *(integer(name) for name in ("works_from", "steps", "steps_done")),
        of("at", mysql.TIMESTAMP(fsp=6), server_default=sa.text("current_timestamp(6)")),
        sa.CheckConstraint("`part` in ('journal','participant')", name="CONSTRAINT_1"),
    )
    _table(
        made,
        "ascii",
        "identity",
        of("id", mysql.TINYINT(display_width=4), primary_key=True),
        of("resource_id", mysql.CHAR(32, collation="ascii_bin")),
        of("cluster", mysql.CHAR(16, collation="ascii_bin")),
        of("server", mysql.VARCHAR(255, charset="utf8mb4", collation="utf8mb4_bin")),
        bigint("epoch"),
        text("mark", 16),
    )
    _table(
        made,
        "ascii",
        "receipts",
        of("attempt", mysql.CHAR(32, collation="ascii_bin"), primary_key=True),
        of("branch", mysql.SMALLINT(display_width=5, unsigned=True), primary_key=True),
        text("verdict", 6),
        of("alone", mysql.TINYINT(display_width=4)),
        bigint("epoch"),
        bigint("confirms"),
        double("at"),
        sa.Index("nodoubt_epoch", "epoch"),
    )
    _table(
        made,
        "ascii",
        "keys",
        key("scope", 1020, primary_key=True),
        key("idempotency_key", 1020, primary_key=True),
        of("payload", mysql.CHAR(64, collation="ascii_bin")),
        of("result", mysql.MEDIUMBLOB()),
        text("xid", 64),
        bigint("confirms"),
        double("kept_until"),
        sa.Index("nodoubt_keys_kept_until", "kept_until"),
    )


def journal(made: sa.MetaData) -> None:
    """What the journal's database has."""
    _register(made)
    _names(made)
    _steps(made)
    _jobs(made)
    _table(
        made,
        "utf8mb4",
        "resources",
        key("resource_id", 255, primary_key=True),
        *(free(name) for name in ("name", "cluster", "server")),
        bigint("epoch"),
    )
    _table(
        made,
        "utf8mb4",
        "quarantine",
        key("attempt", 255, primary_key=True),
        integer("branch", primary_key=True),
        free("resource"),
        free("why"),
        double("since"),
        of("cleared_by", mysql.VARCHAR(255, collation="utf8mb4_bin"), server_default=NOTHING),
    )
    _table(
        made,
        "utf8mb4",
        "events",
        bigint("id", primary_key=True, autoincrement=True),
        key("attempt", 255),
        double("at"),
        free("what"),
        free("detail", mysql.LONGTEXT),
        sa.Index("nodoubt_events_attempt", "attempt", "id"),
    )


def _register(made: sa.MetaData) -> None:
    _table(
        made,
        "utf8mb4",
        "journal",
        key("item", 32, primary_key=True),
        key("value", 64, server_default=NOTHING),
        bigint("counter", server_default=ZERO),
    )
    unique = sa.Index("nodoubt_epochs_mark", "mark", unique=True)
    _table(made, "utf8mb4", "epochs", bigint("number", primary_key=True), key("mark", 16), unique)
    _table(
        made,
        "utf8mb4",
        "decisions",
        key("attempt", 32, primary_key=True),
        of("verdict", mysql.VARCHAR(8, charset="ascii", collation="ascii_bin")),
        of("mode", mysql.VARCHAR(8, charset="ascii", collation="ascii_bin")),
        key("name", 800),
        free("branches", mysql.LONGTEXT),
        integer("point", nullable=True),
        free("owner"),
        free("reason"),
        double("decided_at"),
        double("ended_at", nullable=True),
        bigint("confirms", server_default=ZERO),
        sa.Column("open_commit", mysql.VARBINARY(32), sa.Computed(OPEN_COMMIT, persisted=False)),
        sa.Index("nodoubt_decisions_open", "open_commit"),
        sa.CheckConstraint("octet_length(`attempt`) = 32", name="CONSTRAINT_1"),
        sa.CheckConstraint("`verdict` in ('commit','abort')", name="CONSTRAINT_2"),
    )


def _names(made: sa.MetaData) -> None:
    _table(
        made,
        "utf8mb4",
        "names",
        key("name", 800, primary_key=True),
        key("attempt", 32),
        free("branches", mysql.LONGTEXT),
        integer("last_branch", nullable=True),
        double("deadline"),
        free("owner"),
        free("metadata", mysql.LONGTEXT),
        double("created_at"),
        double("begin_by"),
        free("confirmations", mysql.LONGTEXT),
        integer("calls"),
        key("undecided", 32, nullable=True),
        sa.Index("nodoubt_names_attempt", "attempt", unique=True),
        sa.Index("nodoubt_names_undecided", "undecided"),
        sa.CheckConstraint("octet_length(`attempt`) = 32", name="CONSTRAINT_1"),
    )


def _steps(made: sa.MetaData) -> None:
    asked = of("answer", mysql.VARCHAR(16, charset="ascii", collation="ascii_bin"), server_default=sa.text("'asked'"))
    _table(
        made,
        "utf8mb4",
        "confirmations",
        key("attempt", 32, primary_key=True),
        key("who", 800, primary_key=True),
        asked,
        free("why"),
        double("at", server_default=ZERO),
    )
    _table(
        made,
        "utf8mb4",
        "calls",
        key("attempt", 32, primary_key=True),
        integer("number", primary_key=True),
        key("call_key", 800),
        free("step"),
        free("compensation"),
        free("arguments", mysql.LONGTEXT),
        of("state", mysql.VARCHAR(16, charset="ascii", collation="ascii_bin")),
        free("result", mysql.LONGTEXT),
        free("error"),
        integer("tries"),
        double("held_until"),
        key("claim", 64),
        free("worker"),
        double("begun_at"),
        double("changed_at"),
        bigint("version"),
        key("unfinished", 32, nullable=True),
        sa.Index("nodoubt_calls_key", "attempt", "call_key", unique=True),
        sa.Index("nodoubt_calls_unfinished", "unfinished", "state"),
        sa.CheckConstraint("octet_length(`attempt`) = 32", name="CONSTRAINT_1"),
    )


def _jobs(made: sa.MetaData) -> None:
    _table(
        made,
        "utf8mb4",
        "jobs",
        key("name", 800, primary_key=True),
        key("run", 32),
        key("keeper", 255),
        of("state", mysql.VARCHAR(16, charset="ascii", collation="ascii_bin")),
        bigint("done"),
        bigint("total", nullable=True),
        free("checkpoint", mysql.LONGTEXT),
        *(free(name) for name in ("note", "worker")),
        key("claim", 32),
        *(double(name) for name in ("held_until", "begun_at", "changed_at")),
        sa.CheckConstraint("octet_length(`run`) = 32", name="CONSTRAINT_1"),
    )


def _table(made: sa.MetaData, charset: str, name: str, *items: Any) -> None:
    wanted = {"engine": "InnoDB", "charset": charset, "collate": f"{charset}_bin"}
    options: dict[str, Any] = {
        f"{dialect}_{option}": value for dialect in ("mysql", "mariadb") for option, value in wanted.items()
    }
    sa.Table(f"nodoubt_{name}", made, *items, **options)


def key(name: str, length: int, **options: Any) -> sa.Column[Any]:
    """Text that is compared byte by byte."""
    return of(name, mysql.VARBINARY(length), **options)


def text(name: str, length: int, **options: Any) -> sa.Column[Any]:
    """Text of a table in ASCII."""
    return of(name, mysql.VARCHAR(length, collation="ascii_bin"), **options)


def free(name: str, type_: Any = mysql.TEXT) -> sa.Column[Any]:
    """Text for people."""
    return of(name, type_(collation="utf8mb4_bin"))


def integer(name: str, **options: Any) -> sa.Column[Any]:
    """Numbers that stay small."""
    return of(name, mysql.INTEGER(display_width=11), **options)


def bigint(name: str, **options: Any) -> sa.Column[Any]:
    """Numbers that need not."""
    return of(name, mysql.BIGINT(display_width=20), **options)


def double(name: str, **options: Any) -> sa.Column[Any]:
    """Seconds."""
    return of(name, mysql.DOUBLE(asdecimal=False), **options)


def of(name: str, type_: Any, **options: Any) -> sa.Column[Any]:
    """Any column of ours: NOT NULL, unless it is said."""
    return sa.Column(name, type_, **{"nullable": False, "autoincrement": False, **options})
