"""From names, values and conditions to SQLAlchemy Core expressions; nothing of it is text that anybody could influence.

Guarantees: every name is quoted, always, whatever it holds; every value is a bound parameter of a name of SQLAlchemy's
own making. What cannot be said safely raises `UsageError` before a statement exists.

Must not: run anything.
"""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ClauseElement, ColumnElement
from sqlalchemy.sql.roles import StatementOptionRole
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import NULLTYPE

from ..errors import UsageError
from . import values
from .fragments import Fragment, Kind, Placeholder, unfit

Expression = ColumnElement[Any]

BOUND_VALUES_MAX = 32_766  # in one statement: what SQLite and asyncpg can number
_TABLE_PARTS_MAX = 2  # schema.table

_COMPARING: Mapping[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq, "!=": operator.ne, "<>": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_MATCHING: Mapping[str, str] = {"like": "like", "not like": "not_like", "ilike": "ilike", "not ilike": "not_ilike"}
OPERATORS = (*_COMPARING, "in", "not in", "is", "is not", "between", "not between", *_MATCHING)


class Verbatim(ColumnElement[Any]):
    """Elements one after the other, as they are: how raw text and bound values come together.

    A bound value that is wrapped in it keeps its own name, too: bare, in a SET or VALUES, it would get its column's.
    """

    _traverse_internals = [("parts", InternalTraversal.dp_clauseelement_tuple)]  # noqa: RUF012 — as SQLAlchemy does
    type = NULLTYPE

    def __init__(self, *parts: ClauseElement) -> None:
        self.parts = parts


@compiles(Verbatim)
def _compile_verbatim(element: Verbatim, compiler: SQLCompiler, **kw: Any) -> str:
    return "".join([compiler.process(part, **kw) for part in element.parts])


class Returns(StatementOptionRole, ClauseElement):
    """Compiles to nothing, or refuses: what a server can return is known when its dialect has asked it, to compile."""

    _traverse_internals = [("ability", InternalTraversal.dp_string)]  # noqa: RUF012 — as SQLAlchemy declares it

    def __init__(self, ability: str) -> None:
        self.ability = ability  # as the dialect calls it


@compiles(Returns)
def _compile_returns(element: Returns, compiler: SQLCompiler, **_: Any) -> str:
    if not getattr(compiler.dialect, element.ability):
        raise UsageError(
            f"this server has no {element.ability.partition('_')[0].upper()} … RETURNING (MariaDB has, INSERT from "
            "10.5 on; MySQL has not): leave returning out, and select the rows. Nothing was sent"
        )
    return ""


# ---- names


def _name(text: object, what: str) -> sa.quoted_name:
    if not isinstance(text, str) or not text:
        raise UsageError(f"{what} is named by a text that is not empty, not by {text!r}")
    if reason := unfit(text):
        raise UsageError(f"{text!r} cannot name {what}: {reason}")
    return sa.quoted_name(text, quote=True)


def table_of(text: object) -> sa.TableClause:
    """`table`, or `schema.table`."""
    name = _name(text, "a table")
    *schema, last = (_name(part, "a table") for part in name.split("."))
    if len(schema) >= _TABLE_PARTS_MAX:
        raise UsageError(f"{text!r} cannot name a table: write table, or schema.table")
    return sa.table(last, schema=schema[0] if schema else None)


def column_of(table: sa.TableClause, text: object) -> sa.ColumnClause[Any]:
    """A column of the table, which goes without saying the table's name."""
    name = _name(text, "a column")
    if "." in name:
        raise UsageError(f"{text!r} cannot name a column: there is one table, so say the column's name alone")
    known = cast("Mapping[str, sa.ColumnClause[Any]]", table.c)
    if name not in known:
        table.append_column(sa.column(name))
    return known[name]


def label(text: object) -> sa.quoted_name:
    return _name(text, "a column of the result")


# ---- values


def bound(value: Any) -> Expression:
    return Verbatim(sa.bindparam(None, value, type_=NULLTYPE, unique=True))


def value_of(value: Any, kind: Kind, where: str) -> Expression:
    """What is written to a column: a value, a fragment, or an expression of SQLAlchemy's."""
    if isinstance(value, Fragment):
        return raw(value, kind)
    if isinstance(value, ColumnElement):
        return value
    return bound(values.stored(value, kind, where))


def raw(fragment: Fragment, kind: Kind) -> Expression:
    """The fragment, in brackets that it cannot leave, unless it is one word: DEFAULT takes none."""
    fragment.refuse_on(kind)
    alone = fragment.text.strip().isidentifier()
    parts: list[Expression] = []
    for piece in fragment.pieces if alone else ("(", *fragment.pieces, ")"):
        if isinstance(piece, Placeholder):
            value = values.compared(fragment.values[piece.name], kind, f"sql({fragment.text!r}), {piece.name}")
            parts.append(bound(value))
        else:
            parts.append(sa.literal_column(piece))
    return Verbatim(*parts)


# ---- conditions


@dataclass(frozen=True, slots=True)
class Scope:
    """Where a condition is written: it names columns of this table, in this kind of database."""

    table: sa.TableClause
    kind: Kind

    def condition(self, given: tuple[Any, ...]) -> Expression | None:
        """What the arguments of `where` say; None where they say nothing (`{}`, `[]`)."""
        match given:
            case (left, how, right):
                return self._comparison(left, how, right)
            case (Mapping() | list() | tuple() as empty,) if not empty:
                return None
            case (one,):
                return self._one(one)
        raise UsageError('where takes ({"id": 1}), ("age", ">=", 18), (["age", ">=", 18]), a list of those, or a sql()')

    def _one(self, one: Any) -> Expression:
        match one:
            case Fragment():
                return raw(one, self.kind)
            case ColumnElement():
                return one
            case Mapping() if one:
                return _all(self._comparison(column, "=", value) for column, value in one.items())
            case [str() | Fragment() as left, how, right] if isinstance(how, str):
                return self._comparison(left, how, right)
            case list() | tuple() if one:
                return _all(self._one(each) for each in one)
        raise UsageError(
            f'{reprlib.repr(one)} is no condition: write {{"id": 1}}, ["age", ">=", 18], a list of those, or a sql(). '
            "An empty one would say nothing"
        )

    def _comparison(self, left: Any, how: Any, right: Any) -> Expression:
        sign = " ".join(how.lower().split()) if isinstance(how, str) else None
        if sign not in OPERATORS:
            raise UsageError(f"{how!r} is no operator here: {', '.join(OPERATORS)}")
        if isinstance(left, Fragment):
            column, where = raw(left, self.kind), f"the right of {left.text!r}"
        else:
            column, where = column_of(self.table, left), str(left)
        if sign in ("=", "is") and right is None:
            return column.is_(None)
        if sign in ("!=", "<>", "is not") and right is None:
            return column.is_not(None)
        if sign in ("is", "is not"):
            raise UsageError(f'{where}: "{sign}" is for None alone; compare a value with = or !=')
        if sign in ("between", "not between"):
            return self._between(column, sign, right, where)
        if sign in ("in", "not in") or isinstance(right, (list, tuple, set, frozenset)):
            return self._membership(column, sign, right, where)
        if right is None:
            raise UsageError(f'{where}: nothing is {sign} NULL; None goes with "=" and "!="')
        if sign in _MATCHING:
            # With the escape said, a backslash in a pattern means the same to all.
            return cast(Expression, getattr(column, _MATCHING[sign])(self._right(right, where), escape="\\"))
        return cast(Expression, _COMPARING[sign](column, self._right(right, where)))

    def _right(self, value: Any, where: str) -> Expression:
        if isinstance(value, Fragment):
            return raw(value, self.kind)
        if isinstance(value, ColumnElement):
            return value
        return bound(values.compared(value, self.kind, where))

    def _between(self, column: Expression, sign: str, ends: Any, where: str) -> Expression:
        match ends:
            case [low, high] if low is not None and high is not None:
                within = column.between(self._right(low, where), self._right(high, where))
                return within if sign == "between" else sa.not_(within)
        raise UsageError(f'{where}: "{sign}" takes a list of two values, not {reprlib.repr(ends)}')

    def _membership(self, column: Expression, sign: str, members: Any, where: str) -> Expression:
        if sign not in ("in", "not in", "=", "!=", "<>") or not isinstance(members, (list, tuple, set, frozenset)):
            raise UsageError(
                f'{where}: a list goes with "in" and "not in", and "in" with a list, not with {reprlib.repr(members)}'
            )
        wanted = sign in ("in", "=")
        known = [values.compared(one, self.kind, where) for one in members if one is not None]
        if len(known) > BOUND_VALUES_MAX:
            raise UsageError(f"{where}: {len(known)} values are too many for one statement: at most {BOUND_VALUES_MAX}")
        found: Expression = sa.false()
        if known:
            found = column.in_(sa.bindparam(None, known, type_=NULLTYPE, unique=True, expanding=True))
        if len(known) < len(members):  # NULL is in no list of SQL's, and makes every NOT IN unknown
            found = sa.or_(found, column.is_(None))
            return found if wanted else sa.not_(found)
        return found if wanted else sa.not_(found)


def _all(conditions: Iterator[Expression]) -> Expression:
    return sa.and_(*conditions)
