"""Raw SQL whose values are always bound: `sql("stock + {n}", n=3)`.

The text is the developer's, the values are anybody's. Guarantees: a value never becomes text, and the text never
reaches beyond its place in the statement. So whatever databases could read differently is refused, before anything is
sent: comments (one at the end of a SET would swallow the WHERE), a `;`, unbalanced brackets and quotes, a backslash
within quotes, a `{name}` within quotes or grown together with a word (some drivers fill values into the text: `x{n}`
would be the name `x5`), and what the database itself would take for a parameter, for a quote, or for none.

Must not: need SQLAlchemy, or know a driver.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, LiteralString

from ..errors import UsageError

Kind = Literal["postgres", "mariadb", "sqlite"]  # of database; MySQL counts as MariaDB

# SQLAlchemy finds its own placeholders by these signs in the finished statement, wherever they stand.
MISREAD = ("%(", "__[")

_HERE = "\0"  # stands for a placeholder while the text is looked at
_BESIDE = r"\w$@#.%\\'\"`\0\u0080-\U0010ffff"  # what a value could grow together with
_TOKEN = re.compile(
    rf"""(?P<quoted>'[^']*'|"[^"]*"|`[^`]*`)|(?P<unclosed>['"`])|(?P<end>--|/\*|[;$])|(?P<bracket>[()])"""
    rf"""|(?P<grown>(?<=[{_BESIDE}:]){_HERE}|{_HERE}(?=[{_BESIDE}]))|(?P<sign>[?:@#\[])|(?s:.)"""
)
_READ_BY: Mapping[str, Mapping[str, str]] = {  # outside quotes, these are not what the developer meant
    "sqlite": {**dict.fromkeys("?:@", "a parameter"), "[": "the beginning of a quoted name"},
    "mariadb": {"#": "the beginning of a comment"},
    "postgres": {"`": "no quote, but an operator's sign"},
}


@dataclass(frozen=True, slots=True)
class Placeholder:
    """Where a value goes."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Fragment:
    """A checked piece of SQL with its values. Made by `sql()`."""

    text: str  # as it was written, for messages
    pieces: tuple[str | Placeholder, ...]
    values: Mapping[str, Any]
    signs: frozenset[str]  # the signs outside quotes that some database reads in its own way

    def refuse_on(self, kind: Kind) -> None:
        """Raise `UsageError` if this kind of database would read a sign of it as something else."""
        for sign, meaning in _READ_BY.get(kind, {}).items():
            if sign in self.signs:
                raise UsageError(
                    f"sql({self.text!r}): outside quotes, {sign} is {meaning} to {kind}. Bind what belongs there as "
                    "{name}, or write it in a way that all your databases know"
                )


def sql(text: LiteralString, /, **values: Any) -> Fragment:
    """A raw piece of SQL: `sql("stock + {n}", n=3)`. Write `{{` and `}}` for braces, and the text into your source: a
    type checker that knows PEP 675 refuses text from anywhere else.

    It can stand for a value (in `set`, `values`, or on the right of a comparison), for a condition (`where`) and for a
    column (`columns(total=sql("sum(price)"))`, `order_by`). Values are those that a column can take; for a list of them
    write `where("id", "in", ids)`. Raises `UsageError` for anything that is not certain to mean what it says.
    """
    if not isinstance(text, str) or not text.strip():
        raise UsageError(f"sql() takes the text of an expression, not {text!r}")
    pieces = tuple(_pieces(text))
    wanted = {piece.name for piece in pieces if isinstance(piece, Placeholder)}
    if missing := sorted(wanted - set(values)):
        raise UsageError(f"sql({text!r}) has no value for {{{missing[0]}}}: pass {missing[0]}=…")
    if unused := sorted(set(values) - wanted):
        raise UsageError(f"sql({text!r}) does not use {unused[0]}: write {{{unused[0]}}} where the value belongs")
    for name, value in values.items():
        if isinstance(value, (list, tuple, set, frozenset, dict, Fragment)):
            raise UsageError(
                f"sql({text!r}): {name} is one value, not a {type(value).__name__}. For a list of values write "
                'where(column, "in", [...]); bind JSON as the text that json.dumps makes of it'
            )
    return Fragment(text, pieces, MappingProxyType(dict(values)), _scan(text, pieces))


def _pieces(text: str) -> Iterator[str | Placeholder]:
    try:
        parsed = list(string.Formatter().parse(text))
    except ValueError as error:
        raise UsageError(f"sql({text!r}): {error}. Write {{{{ and }}}} for braces of the text's own") from None
    for literal, name, form, conversion in parsed:
        if literal:
            yield literal
        if name is None:
            continue
        if not name.isidentifier() or form or conversion:
            raise UsageError(
                f"sql({text!r}): a placeholder is a bare name, {{like_this}}: no numbers, attributes or formats. Write "
                "{{ and }} for braces of the text's own"
            )
        yield Placeholder(name)


def unfit(text: str) -> str | None:
    """Why this text, as part of a statement, would not reach every database as it is; None if it would."""
    if "\0" in text:
        return "a NUL ends a statement in some drivers"
    for sign in MISREAD:
        if sign in text:
            return f"SQLAlchemy reads {sign} as a placeholder of its own"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "it holds half of a surrogate pair, which is no text"
    return None


def _scan(text: str, pieces: tuple[str | Placeholder, ...]) -> frozenset[str]:
    """Refuse what could reach beyond the fragment; the telling signs that stand outside quotes."""

    def refuse(why: str) -> UsageError:
        return UsageError(f"sql({text!r}): {why}")

    if reason := unfit(text):
        raise refuse(reason)
    signs, depth = set[str](), 0
    for token in _TOKEN.finditer("".join(_HERE if isinstance(piece, Placeholder) else piece for piece in pieces)):
        match token.lastgroup:
            case "quoted" if _HERE in token[0]:
                raise refuse("a placeholder within quotes cannot be bound: bind the whole of the text")
            case "quoted" if "\\" in token[0]:
                raise refuse("a backslash within quotes is read differently by each database: bind the text")
            case "quoted" if token[0][0] == "`":
                signs.add("`")
            case "grown":
                raise refuse("leave a space beside a placeholder, so that no value grows into a word")
            case "end":
                raise refuse(f"no comments, no `;` and no `$` outside quotes: {token[0]!r}")
            case "unclosed":
                raise refuse(f"{token[0]} is not closed")
            case "bracket":
                depth += 1 if token[0] == "(" else -1
                if depth < 0:
                    raise refuse("it closes a bracket that it has not opened")
            case "sign":
                signs.add(token[0])
    if depth:
        raise refuse("( is not closed")
    return frozenset(signs)
