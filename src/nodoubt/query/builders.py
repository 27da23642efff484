"""The query verbs: each method returns a new builder, `statement()` is the Core statement, `execute()` runs it.

Guarantees: a builder never changes, so it can be kept and continued in two ways; a statement says all that the builder
was told, or is refused with `UsageError` before anything is sent; an UPDATE or DELETE reaches every row only if it says
so.

Must not: know transports, sessions or transactions. What runs a statement is given: see `Runner`.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, Self

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.sql.dml import UpdateBase

from ..errors import UsageError
from .expressions import BOUND_VALUES_MAX, Expression, Returns, Scope, column_of, label, raw, table_of, value_of
from .fragments import Fragment
from .verbs import Count, Row, Rows, Runner

__all__ = ["DeleteFrom", "InsertInto", "Returning", "SelectFrom", "UpdateTable", "table_of"]

_ROWS_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class _Verb(Generic[Rows, Count]):
    """A statement on one table."""

    runner: Runner[Rows, Count]
    table: sa.TableClause

    def _outputs(self, columns: tuple[str, ...], named: Mapping[str, str | Fragment]) -> list[Expression]:
        """What a result consists of: columns, and what a keyword names anew."""
        if "*" in columns:
            if len(columns) > 1 or named:
                raise UsageError('"*" is everything: it stands alone')
            return [sa.literal_column("*")]
        outputs: list[Expression] = []
        for place, column in enumerate(columns):
            if isinstance(column, Fragment):
                raise UsageError(f"give it a name, the same for every database: total=sql({column.text!r})")
            if column in columns[:place] or column in named:
                raise UsageError(f"{column!r} is asked for twice, and a row is a mapping: rename one, other={column!r}")
            outputs.append(self._output(column, column))
        outputs.extend(self._output(what, name) for name, what in named.items())
        return outputs

    def _output(self, what: str | Fragment, name: str) -> Expression:
        if isinstance(what, Fragment):
            return raw(what, self.runner.kind).label(label(name))
        column = column_of(self.table, what)
        return column if name == what else column.label(label(name))


# ---- conditions


@dataclass(frozen=True, slots=True)
class _Filtered(_Verb[Rows, Count]):
    """A verb with a `where`: all of its groups hold, of each group any."""

    groups: tuple[tuple[Expression, ...], ...] = ()

    def where(self, *condition: Any) -> Self:
        """Only rows for which this holds too: `({"id": 1})`, `("age", ">=", 18)`, `(["status", "in", [...]])`, a list
        of such triples (all of them hold), or a `sql()`.

        `None` means IS NULL, a list means IN; an empty list matches nothing, and `not in []` everything. Operators: =,
        !=, <>, <, <=, >, >=, in, not in, is, is not, between, like, ilike, and the last three with `not`. How texts
        compare (case, accents) is the column's affair: MariaDB ignores case unless told otherwise; in `like`, SQLite
        does. A number, or a bool, with a column of texts: PostgreSQL refuses it, to SQLite they differ, and MariaDB
        makes numbers of the texts: to it "ada" is 0. So what a client has sent as JSON is made a text first.
        """
        said = self._scope.condition(condition)
        return self._everything() if said is None else replace(self, groups=(*self.groups, (said,)))

    def or_where(self, *condition: Any) -> Self:
        """The condition before it, or this one: `where(a).where(b).or_where(c)` is a AND (b OR c).

        So what was said earlier never ceases to apply. For (a AND b) OR c say a and b in one call: `where([a, b])`.
        """
        said = self._scope.condition(condition)
        if said is None:
            raise UsageError("or_where({}) would match everything: leave it out, or say the condition")
        if not self.groups:
            return replace(self, groups=((said,),))
        return replace(self, groups=(*self.groups[:-1], (*self.groups[-1], said)))

    def _everything(self) -> Self:
        """What an empty condition means."""
        return replace(self, groups=(*self.groups, (sa.true(),)))

    @property
    def _scope(self) -> Scope:
        return Scope(self.table, self.runner.kind)

    def _condition(self) -> Expression:
        return sa.and_(*(sa.or_(*group) for group in self.groups))


# ---- reading


@dataclass(frozen=True, slots=True)
class SelectFrom(_Filtered[Rows, Count]):
    """`select_from(table)`: all columns, unless `columns` names some. For joins, groups and subqueries give `execute` a
    SQLAlchemy Core statement.
    """

    outputs: tuple[Expression, ...] = ()
    order: tuple[Expression, ...] = ()
    limited_to: int | None = None
    skipping: int | None = None
    is_distinct: bool = False
    locking: bool = False

    def columns(self, *columns: str, **named: str | Fragment) -> Self:
        """These columns; a keyword renames one, or names a `sql()`: `columns("id", total=sql("price * amount"))`."""
        if self.outputs:
            raise UsageError("columns was called already: name all of them in one call")
        if not columns and not named:
            raise UsageError("columns() names no column: leave it out for all of them")
        return replace(self, outputs=tuple(self._outputs(columns, named)))

    def distinct(self) -> Self:
        """No row twice."""
        return replace(self, is_distinct=True)

    def order_by(self, column: str | Fragment, direction: Literal["asc", "desc"] = "asc") -> Self:
        """By this column; called again, then by that. NULLs come last on PostgreSQL and first elsewhere (`desc`: the
        other way round).
        """
        if direction not in ("asc", "desc"):
            raise UsageError(f'the direction is "asc" or "desc", not {direction!r}; call order_by for each column')
        by = raw(column, self.runner.kind) if isinstance(column, Fragment) else column_of(self.table, column)
        return replace(self, order=(*self.order, by.asc() if direction == "asc" else by.desc()))

    def limit(self, rows: int) -> Self:
        """At most so many rows."""
        return replace(self, limited_to=_amount(rows, "limit"))

    def offset(self, rows: int) -> Self:
        """Not the first so many rows."""
        return replace(self, skipping=_amount(rows, "offset"))

    def for_update(self) -> Self:
        """Lock the rows until the transaction ends. SQLite locks no rows: a branch there has the file to itself."""
        return replace(self, locking=True)

    def statement(self) -> sa.Select[Any]:
        """The SQLAlchemy Core statement."""
        select = sa.select(*(self.outputs or (sa.literal_column("*"),))).select_from(self.table)
        if self.groups:
            select = select.where(self._condition())
        if self.is_distinct:
            select = select.distinct()
        select = select.order_by(*self.order).limit(self.limited_to).offset(self.skipping)
        return select.with_for_update() if self.locking else select

    def execute(self) -> Rows:
        """The rows, as mappings."""
        return self.runner.rows(self.statement())


def _amount(rows: object, what: str) -> int:
    if not isinstance(rows, int) or isinstance(rows, bool) or not 0 <= rows <= _ROWS_MAX:
        raise UsageError(f"{what} takes a number of rows, 0 or more, not {rows!r}")
    return rows


# ---- writing


@dataclass(frozen=True, slots=True)
class Returning(Generic[Rows]):
    """A write that gives back the rows it wrote: the end of the chain, to be executed."""

    runner: Runner[Rows, Any]
    built: UpdateBase

    def statement(self) -> UpdateBase:
        """The SQLAlchemy Core statement."""
        return self.built

    def execute(self) -> Rows:
        """Write, and give back the rows, as mappings."""
        return self.runner.rows(self.built)


class _Writing(_Verb[Rows, Count]):
    """A verb that writes."""

    __slots__ = ()

    def statement(self) -> Any:
        """The SQLAlchemy Core statement. Raises `UsageError` if something is missing."""
        raise NotImplementedError

    def execute(self) -> Count:
        """Write; how many rows that affected."""
        return self.runner.count(self.statement())

    def returning(self, *columns: str, **named: str | Fragment) -> Returning[Rows]:
        """Give back these columns of the rows written, or "*". The last call before `execute`.

        MariaDB can return what it inserts or deletes, not what it updates; MySQL returns nothing.
        """
        if not columns and not named:
            raise UsageError('returning() names no column: name some, or write "*"')
        statement = self.statement().prefix_with(Returns(f"{self.statement().__visit_name__}_returning"))
        return Returning(self.runner, statement.returning(*self._outputs(columns, named)))

    def _output(self, what: str | Fragment, name: str) -> Expression:
        if self.runner.kind == "sqlite" and not isinstance(what, Fragment):
            # SQLite takes a name in double quotes that is none for a text, unless the table's name stands before it,
            # which SQLAlchemy leaves out here. A misspelt column would be answered with its own name.
            quoted = column_of(self.table, what).name.replace("`", "``")
            return sa.literal_column(f"`{quoted}`").label(label(name))
        return super()._output(what, name)


@dataclass(frozen=True, slots=True)
class InsertInto(_Writing[Rows, Count]):
    """`insert_into(table)`, and `insert_or_ignore(table, rows)`."""

    rows: tuple[Mapping[Any, Expression], ...] = ()
    ignoring: bool = False

    def values(self, rows: Row | Iterable[Row]) -> Self:
        """One row, or several; each a mapping that names the same columns. A value may be a `sql()`."""
        if self.rows:
            raise UsageError("values was called already: pass all rows in one list")
        given = [rows] if isinstance(rows, Mapping) else list(rows) if isinstance(rows, Iterable) else []
        if not given:
            raise UsageError(f"there is no row to insert in {reprlib.repr(rows)}: pass a mapping, or a list of them")
        for number, row in enumerate(given):
            if not isinstance(row, Mapping) or not row:
                raise UsageError(
                    f"row {number} is {reprlib.repr(row)}: a row is a mapping from columns to values, and not empty"
                )
            if row.keys() != given[0].keys():
                odd = ", ".join(sorted(map(str, row.keys() ^ given[0].keys())))
                raise UsageError(
                    f"row {number} and row 0 do not name the same columns ({odd}): say each column in each row, None "
                    "where there is no value"
                )
        if len(given) * len(given[0]) > BOUND_VALUES_MAX:
            raise UsageError(
                f"{len(given)} rows of {len(given[0])} columns are too many for one statement, which takes "
                f"{BOUND_VALUES_MAX} values: insert them in batches"
            )
        columns = {name: column_of(self.table, name) for name in given[0]}
        kind = self.runner.kind
        return replace(
            self,
            rows=tuple({column: value_of(row[name], kind, name) for name, column in columns.items()} for row in given),
        )

    def returning(self, *columns: str, **named: str | Fragment) -> Returning[Rows]:
        if self.ignoring and self.runner.kind == "mariadb":
            raise UsageError(
                "MariaDB and MySQL cannot say which rows insert_or_ignore has inserted: leave returning out, and "
                "select the rows afterwards"
            )
        return _Writing.returning(self, *columns, **named)

    def statement(self) -> sa.Insert:
        if not self.rows:
            raise UsageError('there is no row to insert: call .values({"column": value}) first')
        rows: Any = list(self.rows) if len(self.rows) > 1 else dict(self.rows[0])
        if not self.ignoring:
            return sa.insert(self.table).values(rows)
        if self.runner.kind == "postgres":
            return postgresql.insert(self.table).values(rows).on_conflict_do_nothing()
        if self.runner.kind == "sqlite":
            return sqlite.insert(self.table).values(rows).on_conflict_do_nothing()
        # INSERT IGNORE would swallow more than duplicates: NULLs, texts too long, missing parents. This sets a column
        # of the row that stands to what it is, which changes nothing.
        column = next(iter(self.rows[0]))
        return mysql.insert(self.table).values(rows).on_duplicate_key_update({column.name: column})


@dataclass(frozen=True, slots=True)
class _Aimed(_Filtered[Rows, Count], _Writing[Rows, Count]):
    """A write to rows that are there already: it says which."""

    all_rows: bool = False

    def everywhere(self) -> Self:
        """Every row of the table, on purpose."""
        return replace(self, all_rows=True)

    def _everything(self) -> Self:
        raise UsageError("where({}) says nothing, and would reach every row: say the condition, or .everywhere()")

    def _aimed(self, statement: Any) -> Any:
        if bool(self.groups) == self.all_rows:
            raise UsageError(
                ".everywhere() and .where(…) contradict each other: leave one out"
                if self.all_rows
                else "which rows? Say .where(…), or .everywhere() for every row of the table"
            )
        return statement.where(self._condition()) if self.groups else statement


@dataclass(frozen=True, slots=True)
class UpdateTable(_Aimed[Rows, Count]):
    """`update_table(table)`. Counts the rows that matched, whether they changed or not."""

    assignments: tuple[tuple[Any, Expression], ...] = ()

    def set(self, values: Row) -> Self:
        """These columns to these values; a value may be a `sql()`: `set({"stock": sql("stock - {n}", n=1)})`.

        MariaDB assigns from left to right, so there a `sql()` sees what columns before it were set to; elsewhere it
        sees the row as it was.
        """
        if not isinstance(values, Mapping) or not values:
            raise UsageError(f"set takes a mapping from columns to values, not {reprlib.repr(values)}")
        added = tuple(
            (column_of(self.table, name), value_of(value, self.runner.kind, name)) for name, value in values.items()
        )
        for column, _ in added:
            if any(column is known for known, _ in self.assignments):
                raise UsageError(f"{column.name!r} is set twice")
        return replace(self, assignments=(*self.assignments, *added))

    def returning(self, *columns: str, **named: str | Fragment) -> Returning[Rows]:
        if self.runner.kind == "mariadb":
            raise UsageError(
                "MariaDB and MySQL have no UPDATE … RETURNING: select the rows with for_update() first, then update "
                "them"
            )
        return _Writing.returning(self, *columns, **named)

    def statement(self) -> sa.Update:
        if not self.assignments:
            raise UsageError('there is nothing to update: call .set({"column": value}) first')
        update: sa.Update = self._aimed(sa.update(self.table))
        return update.ordered_values(*self.assignments)


@dataclass(frozen=True, slots=True)
class DeleteFrom(_Aimed[Rows, Count]):
    """`delete_from(table)`."""

    def statement(self) -> sa.Delete:
        delete: sa.Delete = self._aimed(sa.delete(self.table))
        return delete
