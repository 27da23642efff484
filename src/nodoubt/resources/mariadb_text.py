"""What can be told from the text of a user's statement on MariaDB and MySQL: its verb, and what follows from it.

Guarantees: refuses every statement that *starts* as transaction control. More it can't see, and needn't: within
XA START the server itself refuses COMMIT, DDL and the like wherever they stand (1399), several statements in one text
doom the branch (drivers), and XA END of our own xid proves that the branch is still the one that was begun.

Must not: be what makes anything safe. A statement it does not understand is taken for a write.
"""

from __future__ import annotations

import re

from ..errors import UsageError

# Blanks, brackets, and comments but for those whose inside is run (/*! and /*M!).
_LEAD = r"(?:\s|\(|/\*(?!M?!).*?\*/|--\s[^\n]*(?:\n|\Z)|\#[^\n]*(?:\n|\Z))*"
_VERB = re.compile(_LEAD + r"([A-Za-z]+)", re.DOTALL)
_CONTROL = frozenset(["BEGIN", "COMMIT", "LOCK", "RELEASE", "ROLLBACK", "SAVEPOINT", "START", "UNLOCK", "USE", "XA"])
_READING = frozenset(["DESC", "DESCRIBE", "EXPLAIN", "SELECT", "SHOW", "TABLE", "VALUES", "WITH"])
_LOCKING = re.compile(r"\bFOR\s+(?:UPDATE|SHARE)\b|\bLOCK\s+IN\s+SHARE\s+MODE\b", re.IGNORECASE)
_AUTOCOMMIT = re.compile(r"\bautocommit\b", re.IGNORECASE)

# What these leave behind in the session (variables, temporary tables, prepared statements) outlives the transaction.
_STAINING = frozenset(["CREATE", "DROP", "HANDLER", "PREPARE", "SET"])
# After these the savepoint probe (see `mariadb.PROBE`) can't tell temporary tables from real ones.
_TEMPORARY = frozenset(["CALL", "CREATE", "DROP"])

_NAME = r"(`(?:[^`]|``)+`|[\w$]+)"
_TARGET = re.compile(
    _LEAD + r"(?:(?:INSERT|REPLACE)(?:\s+(?:LOW_PRIORITY|DELAYED|HIGH_PRIORITY|IGNORE))*(?:\s+INTO)?"
    r"|UPDATE(?:\s+(?:LOW_PRIORITY|IGNORE))*"
    r"|DELETE(?:\s+(?:LOW_PRIORITY|QUICK|IGNORE))*\s+FROM)\s+" + _NAME + r"(?:\s*\.\s*" + _NAME + r")?",
    re.IGNORECASE | re.DOTALL,
)


def verb(statement: str) -> str:
    """The first word, in capitals; "" where there is none."""
    match = _VERB.match(statement)
    return match[1].upper() if match else ""


def refuse_control(statement: str) -> None:
    """Raise `UsageError` for transaction control: nodoubt begins and ends the branch."""
    word = verb(statement)
    if word in _CONTROL or (word == "SET" and _AUTOCOMMIT.search(statement)):
        raise UsageError(
            f"{word} is not allowed here: nodoubt begins and ends the transaction, and a session that left it would "
            "break the commit. Do it outside of the transaction's block"
        )


def only_reads(statement: str) -> bool:
    """Whether it looks like a reading statement that takes no lock to keep until the end."""
    return verb(statement) in _READING and _LOCKING.search(statement) is None


def stains(statement: str) -> bool:
    """Whether the session may differ afterwards from one that was just opened."""
    return verb(statement) in _STAINING


def may_use_temporary_tables(statement: str) -> bool:
    """Whether it may create or drop a temporary table, itself or in a procedure."""
    return verb(statement) in _TEMPORARY


def written_table(statement: str) -> tuple[str, str]:
    """The database and table that a plain INSERT, REPLACE, UPDATE or DELETE writes, in small letters, or "" each."""
    match = _TARGET.match(statement)
    if match is None:
        return "", ""
    first, second = (_unquote(part) if part else "" for part in match.groups())
    return (first, second) if second else ("", first)


def _unquote(name: str) -> str:
    return (name[1:-1].replace("``", "`") if name.startswith("`") else name).lower()


def where(attempt: str, branch: int) -> str:
    """The one receipt of a branch."""
    return f"WHERE attempt = '{attempt}' AND branch = {branch}"


def literal(value: str) -> str:
    """Text as a hex literal that the server decodes: nothing in it can end the literal."""
    return f"CONVERT(X'{value.encode().hex()}' USING utf8mb4)"
