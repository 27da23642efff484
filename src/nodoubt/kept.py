"""Statements of ours that a session keeps prepared: PostgreSQL plans each text anew, which costs more than to run it.

Guarantees: a kept statement is complete as text, and is sent as that wherever a session can't hold prepared ones
(`session.kept` is None), or may not hold them any more (`session.stained`).

Must not: take a text that is not our own, or a value that is not a literal.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

from .ports import Reply, Session, StatementFailed
from .script import Do, Script, do

_WHO = "SELECT pg_catalog.pg_backend_pid()"
_NO_SUCH_STATEMENT = "26000"
# Text that a pair of quotes makes a literal of, where no setting has a say in it (PostgreSQL, SQLite): no quote,
# backslash, semicolon or placeholder.
plain = re.compile(r'[A-Za-z0-9 _.,:/@+=<>()\[\]{}"-]*').fullmatch


class Kept:
    """A statement with places for literals; called with them it gives its text."""

    __slots__ = ("_order", "_pieces", "declared", "name", "numbered")

    def __init__(self, name: str, count: int, build: Callable[..., str]) -> None:
        """`build` makes the text from what stands in its `count` places; the server shows `nodoubt_` and `name`."""
        self.name = f"nodoubt_{name}"
        self.declared = build(*(f"${place + 1}" for place in range(count)))
        self.numbered = build(*(f"?{place + 1}" for place in range(count)))
        # No name of a database or table has a NUL in it.
        pieces = build(*(f"\0{place}\0" for place in range(count))).split("\0")
        self._pieces = pieces[::2]
        # How the values come to stand between the text's own pieces, in a row of those pieces and then the values.
        own = len(self._pieces)
        self._order = operator.itemgetter(*(own + int(p) if at % 2 else at // 2 for at, p in enumerate(pieces)))

    def __call__(self, *values: str) -> str:
        text = _Text("".join(self._order((*self._pieces, *values))))
        text.kept, text.values = self, values
        return text


class _Text(str):
    """What a `Kept` has said, and with which values."""

    __slots__ = ("kept", "values")

    kept: Kept
    values: tuple[str, ...]

    @property
    def execute(self) -> str:
        """The same, where it has been prepared."""
        return f"EXECUTE {self.kept.name}({', '.join(self.values)})"


def parts(text: str) -> tuple[str, tuple[str, ...]] | None:
    """The statement with `?1`, `?2` … in its places, and the literals for them; None: no `Kept` has said this."""
    return (text.kept.numbered, text.values) if isinstance(text, _Text) else None


def literal(text: str) -> str:
    """Any text for PostgreSQL, in a form that no setting gives another meaning.

    Plain ASCII stands as it is; all else as its hexadecimal digits, which the server decodes itself.
    """
    if plain(text):
        return f"'{text}'"
    # A lone surrogate comes from a program's broken output, and U+0000 can't be stored.
    digits = text.replace("\0", "\ufffd").encode("utf-8", "replace").hex()
    return f"pg_catalog.convert_from(pg_catalog.decode('{digits}', 'hex'), 'UTF8')"


def run(session: Session, statements: Sequence[str]) -> Script[tuple[Reply, ...]]:
    """The statements in one message, in the form that is best for this session; the replies. Raises as `session.run`.

    Those it has not prepared yet cost a message of their own.
    """
    return _sent(session, "run", statements)


def run_each(session: Session, statements: Sequence[str]) -> Script[tuple[Reply, ...]]:
    """The same as `session.run_each`."""
    return _sent(session, "run_each", statements)


def _sent(session: Session, verb: str, statements: Sequence[str]) -> Script[tuple[Reply, ...]]:
    said, new = _said(session, statements)
    if new and not (yield from _keep(session, new)):
        said = statements
    try:
        return (yield Do(session, verb, ("; ".join(said) if verb == "run" else said,)))  # type: ignore[no-any-return]
    except StatementFailed as error:
        if error.code == _NO_SUCH_STATEMENT:
            # Somebody has deallocated them behind our back: that has cost this message, and shall cost no other.
            session.usable = False
        raise


def _said(session: Session, statements: Sequence[str]) -> tuple[Sequence[str], list[Kept]]:
    """What to say, and what the session has to prepare before."""
    holds = getattr(session, "kept", None)
    if holds is None or getattr(session, "stained", False):
        return statements, []
    said: list[str] = []
    new: dict[Kept, None] = {}
    for one in statements:
        if isinstance(one, _Text):
            said.append(one.execute)
            if one.kept.name not in holds:
                new[one.kept] = None
        else:
            said.append(one)
    return said, list(new)


def _keep(session: Any, new: Sequence[Kept]) -> Script[bool]:
    """Prepare them. False where the session can't be made to hold them. Unless it is True it is not asked again."""
    before, session.kept = session.kept, None
    # What fails here would fail as text, too, and has failed the transaction if there is one: that is the caller's.
    who, *_ = yield from do(
        session, "run", "; ".join((_WHO, *(f"PREPARE {one.name} AS {one.declared}" for one in new)))
    )
    if who.scalar() != session.connection_id:
        return False  # a pooler stands between: the next message may meet another server session
    session.kept = before | {one.name for one in new}
    return True
