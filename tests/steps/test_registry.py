"""Declaring steps and compensations, and their arguments as JSON: what is wrong is found before anything is done."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodoubt import IdempotencyKey, StepContext, UsageError, compensation, step
from nodoubt.steps import REGISTRY, encoding
from nodoubt.steps.calling import use
from nodoubt.steps.encoding import BYTES_MAX, DoesNotFit, bind, decoded_result, encoded_result, fit, require_result
from nodoubt.steps.registry import Compensation, Step

if TYPE_CHECKING:
    from fractions import Fraction


@dataclass
class Item:
    name: str
    price: Decimal


class Receipt(msgspec.Struct):
    id: UUID
    on: date


@step("registry.buy")
def buy(items: list[Item], on: date, key: IdempotencyKey, context: StepContext, express: bool = False) -> Receipt:
    return Receipt(UUID(int=len(items)), on)


@compensation("registry.unbuy")
def unbuy(on: date, items: list[Item], context: StepContext) -> None: ...


class Opaque:
    """Nothing that JSON knows."""


@dataclass
class Tree:
    leaves: list[Tree]


TODAY = date(2026, 11, 26)
ITEMS = [Item("tea", Decimal("3.10"))]


def bound(*args: Any, undo: Any = unbuy, **named: Any) -> Any:
    return bind(buy, undo, args, named)


# ---- names ----------------------------------------------------------------------------------------


@step
def at_home(order: int) -> int:
    return order + 1


def test_a_declared_function_is_still_the_function() -> None:
    assert isinstance(at_home, Step) and at_home(1) == 2
    assert at_home.name == f"{__name__}:at_home" and vars(at_home)["__name__"] == "at_home"
    assert REGISTRY.steps[at_home.name] is at_home


def test_one_function_may_be_both() -> None:
    @compensation("registry.both")
    @step("registry.both")
    def both(order: int) -> None: ...

    assert isinstance(both, Compensation)
    assert REGISTRY.steps["registry.both"].function is REGISTRY.compensations["registry.both"].function


def test_a_module_that_is_loaded_again_declares_its_functions_again() -> None:
    for _ in range(2):

        @step("registry.again")
        def again(order: int) -> None: ...

        assert REGISTRY.steps["registry.again"] is again


def test_two_functions_of_one_name_are_refused() -> None:
    @step("registry.taken")
    def first(order: int) -> None: ...

    with pytest.raises(UsageError, match="two functions"):

        @step("registry.taken")
        def second(order: int) -> None: ...


def test_what_no_other_process_finds_is_refused() -> None:
    with pytest.raises(UsageError, match="inside of a function"):

        @step
        def local(order: int) -> None: ...

    with pytest.raises(UsageError, match="inside of a function"):
        compensation(lambda: None)
    with pytest.raises(UsageError, match="goes above a function"):
        step(print)
    with pytest.raises(UsageError, match="goes above a function"):
        step(7)  # type: ignore[call-overload]


@pytest.mark.parametrize("name", ["", " padded", "two\nlines", "x" * 201])
def test_a_name_that_cannot_be_one_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="name is printable text"):

        @step(name)
        def function(order: int) -> None: ...


def test_arguments_that_could_not_be_stored_by_name_are_refused() -> None:
    with pytest.raises(UsageError, match=r"takes \*orders"):

        @step("registry.x")
        def many(*orders: int) -> None: ...

    with pytest.raises(UsageError, match=r"takes \*\*more"):

        @step("registry.x")
        def more(**more: int) -> None: ...

    with pytest.raises(UsageError, match="'order' .* has no type"):

        @step("registry.x")
        def untyped(order) -> None: ...  # type: ignore[no-untyped-def]


@pytest.mark.parametrize(
    "options", [{"timeout": 0}, {"timeout": -1}, {"tries": 0}, {"retry_on": [OSError]}, {"refused": (7,)}]
)
def test_options_that_mean_nothing_are_refused(options: Any) -> None:
    with pytest.raises(UsageError):
        step("registry.y", **options)


@pytest.mark.parametrize("way", ["script", "module"])
def test_in_a_script_a_function_has_the_name_under_which_a_worker_imports_it(way: str, tmp_path: Path) -> None:
    file = tmp_path / "shop.py"
    file.write_text("import nodoubt\n@nodoubt.step\ndef pay(order: int) -> None: ...\nprint(pay.name)\n")
    how = [str(file)] if way == "script" else ["-m", "shop"]
    done = subprocess.run(
        [sys.executable, *how], capture_output=True, text=True, check=True, cwd=tmp_path,
        env={"PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert done.stdout == "shop:pay\n"


# ---- arguments ------------------------------------------------------------------------------------


def test_arguments_are_stored_by_name_and_read_back_by_the_compensations_types() -> None:
    one = bound(ITEMS, on=date(2026, 11, 26))
    assert one.arguments == '{"items":[{"name":"tea","price":"3.10"}],"on":"2026-11-26","express":false}'
    assert fit(unbuy, one.arguments) == {"on": date(2026, 11, 26), "items": ITEMS}
    assert set(one.values) == {"items", "on", "express"}, "the key and the context are given, not passed"


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ((ITEMS,), "missing a required argument: 'on'"),
        ((ITEMS, TODAY, "key"), "too many positional|'express'"),
        (("tea", TODAY), "'items' .* can't be stored"),
        ((ITEMS, object()), "'on' .* can't be stored"),
        (([Item("tea", Decimal("NaN"))] * 100_000, TODAY), "bytes"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_anything_is_done(args: Any, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        bound(*args)


@step("registry.weigh")
def weigh(grams: float | None, more: Any = None) -> float | None:
    return grams


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_does_not_know_is_refused_and_not_stored_as_none(number: float) -> None:
    """Its compensation was called with None."""
    for args in ((number,), (1.0, {"a": [number]})):
        with pytest.raises(UsageError, match="can't be stored"):
            bind(weigh, None, args, {})
    with pytest.raises(UsageError, match="can't be stored"):
        encoded_result(number)
    assert bind(weigh, None, (None, [None, 1.5]), {}).arguments == '{"grams":null,"more":[null,1.5]}'
    assert encoded_result({"a": None}) == '{"a":null}'


def test_mutant_that_stores_what_msgspec_writes_undoes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "encoded", msgspec.json.encode)
    one = bind(weigh, None, (math.nan,), {})
    assert math.isnan(one.values["grams"]) and one.arguments == '{"grams":null,"more":null}'


def test_a_compensation_that_wants_what_the_step_does_not_have_is_refused() -> None:
    @compensation("registry.greedy")
    def greedy(on: date, reason: str) -> None: ...

    @compensation("registry.strict")
    def strict(on: int) -> None: ...

    @compensation("registry.modest")
    def modest(on: date, reason: str = "none") -> None: ...

    for wrong, why in ((greedy, "'reason'"), (strict, "does not fit")):
        with pytest.raises(UsageError, match=why):
            bound(ITEMS, TODAY, undo=wrong)
    assert fit(modest, bound(ITEMS, TODAY, undo=modest).arguments) == {"on": TODAY}


def test_stored_arguments_that_no_longer_fit_say_why() -> None:
    for arguments, why in (("{}", "'on'"), ('{"on": 7, "items": []}', "does not fit"), ("[", "no JSON object")):
        with pytest.raises(DoesNotFit, match=why):
            fit(unbuy, arguments)


def test_types_that_only_a_checker_sees_are_refused_when_they_are_needed() -> None:
    @step("registry.hidden")
    def hidden(half: Fraction) -> None: ...

    with pytest.raises(UsageError, match="importable at run time"):
        bind(hidden, None, (1,), {})


def test_a_result_that_cannot_be_stored_is_found_before_the_step_is_called() -> None:
    @step("registry.opaque")
    def opaque() -> dict[str, list[Opaque | None]]:
        return {}

    @step("registry.tree")
    def tree() -> Tree:
        return Tree([])

    with pytest.raises(UsageError, match="JSON knows no Opaque"):
        require_result(opaque)
    require_result(tree)
    with pytest.raises(UsageError, match="bytes"):
        encoded_result("x" * BYTES_MAX)


def test_a_result_is_read_back_as_the_step_declares_it() -> None:
    receipt = buy(ITEMS, TODAY, IdempotencyKey("k"), None)  # type: ignore[arg-type]
    assert decoded_result(buy, encoded_result(receipt)) == receipt


@given(st.text(), st.decimals(allow_nan=False, allow_infinity=False), st.dates())
def test_whatever_is_bound_fits_its_compensation(name: str, price: Decimal, on: date) -> None:
    items = [Item(name, price)]
    assert fit(unbuy, bound(items, on).arguments) == {"items": items, "on": on}


@given(st.text())
def test_no_text_breaks_the_reading_of_arguments(text: str) -> None:
    try:
        fit(unbuy, text)
    except DoesNotFit:
        return
    raise AssertionError("nothing random fits")


# ---- calls ----------------------------------------------------------------------------------------


def test_a_call_of_what_is_not_declared_is_refused() -> None:
    def plain() -> None: ...

    for wrong in ({"step": plain, "undo": None}, {"step": buy, "undo": plain}, {"step": unbuy, "undo": None}):
        with pytest.raises(UsageError, match="is not declared: write @nodoubt"):
            use(wrong["step"], (), {}, undo=wrong["undo"], timeout_s=None, key=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"timeout_s": 0, "key": None}, {"timeout_s": None, "key": ""}])
def test_a_timeout_or_a_key_that_cannot_be_one_is_refused(options: Any) -> None:
    with pytest.raises(UsageError):
        use(at_home, (1,), {}, undo=None, **options)
