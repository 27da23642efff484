"""What `sql()` takes, and what it refuses, before any database is known."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from nodoubt import UsageError, sql
from nodoubt.query.fragments import Placeholder

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("", {}, "text of an expression"),
    ("   ", {}, "text of an expression"),
    ("stock + {n}", {}, "no value for {n}: pass n="),
    ("stock + 1", {"n": 1}, "does not use n"),
    ("{a} + {b}", {"a": 1}, "no value for {b}"),
    ("{0}", {}, "bare name"),
    ("{}", {}, "bare name"),
    ("{a.b}", {"a": 1}, "bare name"),
    ("{a[0]}", {"a": 1}, "bare name"),
    ("{a:>5}", {"a": 1}, "bare name"),
    ("{a!r}", {"a": 1}, "bare name"),
    ("{a:{b}}", {"a": 1, "b": 2}, "bare name"),
    ("{a b}", {}, "bare name"),
    ("{a", {"a": 1}, "Write {{ and }}"),
    ("a}", {}, "Write {{ and }}"),
    ("{{a}", {"a": 1}, "Write {{ and }}"),
    ("'{n}'", {"n": 1}, "within quotes"),
    ('"{n}"', {"n": 1}, "within quotes"),
    ("`{n}`", {"n": 1}, "within quotes"),
    ("'it''s {n}'", {"n": 1}, "within quotes"),
    ("stock{n}", {"n": 1}, "beside a placeholder"),
    ("{n}stock", {"n": 1}, "beside a placeholder"),
    ("x.{n}", {"n": 1}, "beside a placeholder"),
    ("@{n}", {"n": 1}, "beside a placeholder"),
    ("{a}{b}", {"a": 1, "b": 2}, "beside a placeholder"),
    ("'a'{n}", {"n": 1}, "beside a placeholder"),
    ("{n}'a'", {"n": 1}, "beside a placeholder"),
    ("1{n}", {"n": 1}, "beside a placeholder"),
    ("a %{n}", {"n": 1}, "beside a placeholder"),
    ("ä{n}", {"n": 1}, "beside a placeholder"),
    ("stock - 1 -- one less", {}, "no comments"),
    ("stock /* less */ - 1", {}, "no comments"),
    ("stock--1", {}, "no comments"),
    ("1; delete from t", {}, "no `;`"),
    ("$1", {}, "no `\\$`"),
    ("$$it's$$", {}, "no `\\$`"),
    ("'it's'", {}, "is not closed"),
    ("a + 'x", {}, "is not closed"),
    ('"a', {}, "is not closed"),
    ("`a", {}, "is not closed"),
    ("a)", {}, "has not opened"),
    (") or (1 = 1", {}, "has not opened"),
    ("(a", {}, "is not closed"),
    ("'a\\'", {}, "backslash"),
    ("a \0", {}, "NUL"),
    ("a %(param_1)s", {}, "placeholder of its own"),
    ("'%(param_1)s'", {}, "placeholder of its own"),
    ("'__[POSTCOMPILE_x]'", {}, "placeholder of its own"),
    ("'\ud800'", {}, "surrogate"),
    ("id in {ids}", {"ids": [1, 2]}, "one value, not a list"),
    ("id in {ids}", {"ids": {1}}, "one value, not a set"),
    ("a = {b}", {"b": {"x": 1}}, "one value, not a dict"),
    ("a = {b}", {"b": sql("c")}, "one value, not a Fragment"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "values", "why"), REFUSED, ids=repr)
def test_a_fragment_that_is_not_certain_is_refused(text: str, values: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        sql(text, **values)


def test_a_fragment_is_a_text() -> None:
    with pytest.raises(UsageError, match="text of an expression"):
        sql(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("stock + {n}", ("stock + ", Placeholder("n"))),
        ("{n} + {n}", (Placeholder("n"), " + ", Placeholder("n"))),
        ("({n})", ("(", Placeholder("n"), ")")),
        ("'{{' || {n} || '}}'", ("'{", "' || ", Placeholder("n"), " || '}", "'")),
        ("coalesce({n},0)", ("coalesce(", Placeholder("n"), ",0)")),
        ("{n}::text", (Placeholder("n"), "::text")),
        ("a={n}", ("a=", Placeholder("n"))),
        ("')(--;$1{{' || 'it''s'", ("')(--;$1{", "' || 'it''s'")),
    ],
)
def test_a_fragment_s_pieces_are_its_text_and_its_placeholders(text: str, pieces: tuple[Any, ...]) -> None:
    wanted = {piece.name for piece in pieces if isinstance(piece, Placeholder)}
    assert sql(text, **dict.fromkeys(wanted, 1)).pieces == pieces


def test_a_value_may_be_called_as_anything() -> None:
    fragment = sql("{self} + {text} + {values}", self=1, text=2, values=3)
    assert dict(fragment.values) == {"self": 1, "text": 2, "values": 3}


def test_a_fragment_keeps_its_values_as_they_were() -> None:
    given = {"n": date(2026, 1, 2)}
    fragment = sql("{n}", **given)
    given["n"] = date(1999, 1, 1)
    assert fragment.values["n"] == date(2026, 1, 2)
