"""Errors travel: between processes, and as copies, each stays what it was."""

from __future__ import annotations

import copy
import inspect
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from typing import Any, get_args, get_type_hints

import pytest

import nodoubt
from nodoubt import InDoubt, NoDoubtError, errors
from nodoubt.ports import Conflict, Refused, Unclear
from nodoubt.steps.running import GaveNoAnswer

OF_MODULE = [one for one in vars(errors).values() if inspect.isclass(one) and issubclass(one, NoDoubtError)]
OF_PACKAGE = [one for one in vars(nodoubt).values() if inspect.isclass(one) and issubclass(one, NoDoubtError)]
KINDS = sorted({*OF_MODULE, *OF_PACKAGE, Refused, Conflict, Unclear, GaveNoAnswer}, key=lambda kind: kind.__name__)


def value_for(hint: Any) -> Any:
    """Something of the type of a parameter."""
    if hint is str or str in get_args(hint):
        return "some words"
    if hint is bool:
        return True
    return ("a", "b") if get_args(hint)[-1:] == (...,) else get_args(hint)[0]


def samples(kind: type[NoDoubtError]) -> list[NoDoubtError]:
    """One with what must be given, and one with everything."""
    if not inspect.isfunction(kind.__init__):
        return [kind(), kind("some words")]
    hints = get_type_hints(kind.__init__)
    made = []
    for everything in (False, True):
        given, named = [], {}
        for name, one in list(inspect.signature(kind.__init__).parameters.items())[1:]:
            if one.kind is one.KEYWORD_ONLY and (everything or one.default is one.empty):
                named[name] = value_for(hints[name])
            elif one.kind is one.POSITIONAL_OR_KEYWORD and (everything or one.default is one.empty):
                given.append(value_for(hints[name]))
        made.append(kind(*given, **named))
    return made


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_that_is_copied_or_pickled_stays_what_it_was(kind: type[NoDoubtError]) -> None:
    for error in samples(kind):
        error.add_note("what else is to be said")
        for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
            assert type(again) is kind
            assert (str(again), repr(again), again.args) == (str(error), repr(error), error.args)
            assert vars(again) == vars(error) and again.__notes__ == ["what else is to be said"]
            for attribute in ("msg", "name", "extra"):  # an ImportError keeps some of them elsewhere
                assert getattr(again, attribute, None) == getattr(error, attribute, None)


def test_what_a_subclass_of_the_users_adds_is_kept() -> None:
    class Mine(InDoubt):
        def __init__(self, order: int) -> None:
            super().__init__("lost", name=None, attempt="0" * 32)
            self.order = order

    again = copy.copy(Mine(7))
    assert (type(again), again.order, str(again)) == (Mine, 7, str(Mine(7)))


def left_in_doubt(_: int) -> None:
    raise InDoubt("the reply was lost", name="order-42", attempt="0" * 32)


def test_a_worker_process_tells_its_doubt() -> None:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool, pytest.raises(InDoubt, match="order-42") as caught:
        list(pool.map(left_in_doubt, [1]))
    assert caught.value.attempt == "0" * 32 and caught.value.how_to_ask
