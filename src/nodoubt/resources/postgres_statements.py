"""What a user's PostgreSQL statement is, as far as its text tells.

Guarantees: errs to one side. A text that hides what it does (a function, a DO block, odd quoting) may pass as
harmless here; that is why every end of a branch also carries the proof that its transaction is still the one
that was begun (`resources.postgres`). But a text is called a plain read only if nothing in it hints at more.

Must not: ask a server, or change the statement.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

STATEMENTS_REMEMBERED_MAX = 1024

_TOKEN = re.compile(
    r"""
      --[^\n]*
    | (?P<comment>/\*)
    | [eE]'(?:[^'\\]|\\.|'')*'
    | '(?:[^']|'')*'
    | "(?:[^"]|"")*"
    | (?P<tag>\$(?:[A-Za-z_\u0080-\uffff][\w\u0080-\uffff]*)?\$).*?(?P=tag)
    | (?P<word>[A-Za-z_\u0080-\uffff][\w$\u0080-\uffff]*)
    | (?P<end>;)
    | .
    """,
    re.DOTALL | re.VERBOSE,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")

_CONTROL = {"BEGIN", "COMMIT", "END", "ABORT", "ROLLBACK", "SAVEPOINT", "RELEASE"}
_CONTROL_PAIRS = {("START", "TRANSACTION"), ("PREPARE", "TRANSACTION")}
_PLAIN = {
    "SELECT", "WITH", "VALUES", "TABLE", "SHOW", "EXPLAIN", "DECLARE", "FETCH", "MOVE", "CLOSE", "SET", "RESET",
    "INSERT", "UPDATE", "DELETE", "MERGE",
}  # fmt: skip
# Effects without a transaction id: a notification, a lock that would be given back too early, work done elsewhere.
_HINT = re.compile(r"notify|listen|advisory|dblink|u&\"", re.IGNORECASE)
_STAINING = {"RESET", "DISCARD", "LISTEN", "UNLISTEN", "LOAD", "PREPARE", "DEALLOCATE"}
_SET_WITHOUT_STAIN = {"LOCAL", "TRANSACTION", "CONSTRAINTS"}
_STAIN = re.compile(r"\btemp\b|\btemporary\b|pg_temp|set_config|advisory|\bwith\s+hold\b|dblink", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Shape:
    """What the text tells."""

    control: str  # the transaction control in it, or ""
    plain: bool  # nothing but reads and ordinary writes, which show by a transaction id
    stains: bool  # leaves something behind in the session


@functools.lru_cache(STATEMENTS_REMEMBERED_MAX)
def shape(text: str) -> Shape:
    """Read a text of one or more statements."""
    heads = _heads(text)
    control = ""
    for head in heads:
        if head[0] in _CONTROL or head[:2] in _CONTROL_PAIRS:
            control = " ".join(head[: 2 if head[:2] in _CONTROL_PAIRS or head[0] == "ROLLBACK" else 1])
            break
    return Shape(
        control=control,
        plain=all(head[0] in _PLAIN for head in heads) and _HINT.search(text) is None,
        stains=_STAIN.search(text) is not None or any(map(_head_stains, heads)),
    )


def _head_stains(head: tuple[str, ...]) -> bool:
    return head[0] in _STAINING or (head[0] == "SET" and head[1:2] != () and head[1] not in _SET_WITHOUT_STAIN)


def _heads(text: str) -> list[tuple[str, ...]]:
    """The first words of each statement, outside comments and quotes, in capitals."""
    heads: list[tuple[str, ...]] = []
    words: list[str] = []
    at, body = 0, False
    while at < len(text):
        match = _TOKEN.match(text, at)
        assert match is not None, "the last alternative takes any character"
        at = match.end()
        if match["comment"]:
            at = _comment_end(text, at)
        elif match["word"]:
            word = match["word"].upper()
            # The body of an SQL function (BEGIN ATOMIC … END) holds semicolons that end no statement of ours.
            body = body or (word == "ATOMIC" and words[:1] == ["CREATE"])
            words.append(word)
        elif match["end"] and not body:
            heads.append(tuple(words))
            words = []
    heads.append(tuple(words))
    return [head for head in heads if head]


def _comment_end(text: str, at: int) -> int:
    """Where the comment ends that has just begun. They nest."""
    depth = 1
    for edge in _COMMENT_EDGE.finditer(text, at):
        depth += 1 if edge[0] == "/*" else -1
        if depth == 0:
            return edge.end()
    return len(text)
