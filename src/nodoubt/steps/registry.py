"""The functions that may be called outside, by a name under which every process finds them: `@step`, `@compensation`.

Guarantees: a name stands for one function of each kind; a function that no other process could find or call (a lambda,
a local one without a name of its own, parameters without a type) is refused where it is declared, with what to do.

Must not: call any of them.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, ParamSpec, Protocol, TypeVar, get_type_hints, overload

import msgspec

from ..engine.context import check_seconds
from ..errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")
Raw = TypeVar("Raw")  # what calling the function gives: an R, or the promise of one
T = TypeVar("T")

NAME_LENGTH_MAX = 200
STEP_TRIES_MAX = 3  # of an action, in one call; only where its function declares that it may be repeated


class IdempotencyKey(str):
    """A parameter of this type is given the call's key: send it along, so that the outside does everything once.

    It is the same for every try of a call, and another for its compensation.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class StepContext:
    """A parameter of this type is told what is being done. `action_key`: of the action that a compensation undoes."""

    key: IdempotencyKey
    action_key: IdempotencyKey
    attempt: str
    transaction: str  # its name; "" if it has none
    number: int
    tries: int
    deadline: float = float("inf")  # on `time.monotonic`
    result_json: str = ""
    given_up: threading.Event = field(default_factory=threading.Event)

    @property
    def left_s(self) -> float:
        """Seconds until nobody waits for this any more: a request to the outside must not take longer."""
        return max(self.deadline - time.monotonic(), 0.0)

    def require_wanted(self) -> None:
        """Raise `TimeoutError` if nobody waits any more: the last thing to do before something that can't be undone."""
        if self.given_up.is_set() or self.left_s <= 0:
            raise TimeoutError("nobody waits for this any more, and its compensation may have run: it must not begin")

    @property
    def answered(self) -> bool:
        """For a compensation: whether the action is known to have ended well. If not it may have happened, or not."""
        return bool(self.result_json)

    def result(self, kind: type[T] | Any = Any) -> T | Any:
        """For a compensation: what the action returned, as this type; None if it is not known."""
        return msgspec.json.decode(self.result_json, type=kind) if self.result_json else None


GIVEN: tuple[type, ...] = (IdempotencyKey, StepContext)


@dataclass(frozen=True, slots=True)
class Options:
    """What a function declares of itself."""

    timeout_s: float | None = None
    tries_max: int | None = None
    idempotent: bool = False
    retry_on: tuple[type[Exception], ...] = ()
    refused: tuple[type[Exception], ...] = ()

    @classmethod
    def checked(
        cls,
        kind: str,
        *,
        timeout: float | None = None,
        tries: int | None = None,
        idempotent: bool = False,
        retry_on: tuple[type[Exception], ...] = (),
        refused: tuple[type[Exception], ...] = (),
    ) -> Options:
        """Raises `UsageError`."""
        if timeout is not None:
            check_seconds(f"the timeout of a {kind}", timeout)
        if tries is not None and (isinstance(tries, bool) or not isinstance(tries, int) or tries < 1):
            raise UsageError(f"a {kind} is tried a whole number of times, at least once, not {tries!r} times")
        for name, errors in (("retry_on", retry_on), ("refused", refused)):
            whole = isinstance(errors, tuple) and all(isinstance(e, type) and issubclass(e, Exception) for e in errors)
            if not whole:
                raise UsageError(f"{name} is a tuple of exception classes, not {errors!r}")
        return cls(timeout, tries, idempotent, retry_on, refused)


class Declared(Generic[P, Raw]):
    """A function under its name, with what it declares of itself. Called, it is the function."""

    kind: ClassVar[str]

    def __init__(self, name: str, function: Callable[P, Raw], options: Options) -> None:
        functools.update_wrapper(self, function)
        self.name, self.function, self.options = name, function, options

    def __call__(self, *args: P.args, **named: P.kwargs) -> Raw:
        return self.function(*args, **named)

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}>"

    @cached_property
    def signature(self) -> inspect.Signature:
        """Of what the caller passes: without the parameters that are given."""
        whole = inspect.signature(self.function)
        kept = [one for name, one in whole.parameters.items() if name not in self.given]
        return whole.replace(parameters=kept)

    @cached_property
    def given(self) -> Mapping[str, type]:
        """The parameters that want the key or the context."""
        return {name: kind for name, kind in self.types.items() if kind in GIVEN and name != "return"}

    @cached_property
    def types(self) -> Mapping[str, Any]:
        """By parameter, and "return". Looked up when first needed: a type may be defined below the function."""
        try:
            return get_type_hints(self.function)
        except Exception as error:
            raise UsageError(
                f"the types of {self.name} can't be looked up: {error}. They must be importable at run time, not only "
                "for a type checker"
            ) from error

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.function)


class Step(Declared[P, Raw], Generic[P, Raw, R]):
    """An action outside. `call` takes it, and returns its `R`."""

    kind = "step"


class Compensation(Declared[P, Raw]):
    """What undoes a step."""

    kind = "compensation"


class Registry:
    """The steps and compensations of a process."""

    def __init__(self) -> None:
        self.steps: dict[str, Step[..., Any, Any]] = {}
        self.compensations: dict[str, Compensation[..., Any]] = {}

    def step(self, function: Callable[P, Raw], name: str | None, options: Options) -> Step[P, Raw, Any]:
        """Declare it. The same function declared again (its module was loaded anew) takes the place of the old one."""
        bare = _bare_function(Step.kind, function)
        declared: Step[P, Raw, Any] = Step(_free_name(Step.kind, self.steps, bare, name), bare, options)
        self.steps[declared.name] = declared
        return declared

    def compensation(self, function: Callable[P, Raw], name: str | None, options: Options) -> Compensation[P, Raw]:
        """As `step`."""
        bare = _bare_function(Compensation.kind, function)
        free = _free_name(Compensation.kind, self.compensations, bare, name)
        declared: Compensation[P, Raw] = Compensation(free, bare, options)
        self.compensations[free] = declared
        return declared


REGISTRY = Registry()


class _Steps(Protocol):
    """`@step(…)`: takes a function of either kind."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Step[P, Coroutine[Any, Any, R], R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Step[P, R, R]: ...


class _Compensations(Protocol):
    """`@compensation(…)`."""

    def __call__(self, function: Callable[P, Raw], /) -> Compensation[P, Raw]: ...


@overload
def step(function: Callable[P, Coroutine[Any, Any, R]], /) -> Step[P, Coroutine[Any, Any, R], R]: ...
@overload
def step(function: Callable[P, R], /) -> Step[P, R, R]: ...
@overload
def step(
    name: str | None = None,
    /,
    *,
    timeout: float | None = None,
    idempotent: bool = False,
    retry_on: tuple[type[Exception], ...] = (),
    refused: tuple[type[Exception], ...] = (),
    tries: int | None = None,
) -> _Steps: ...
def step(function: Any = None, /, **options: Any) -> Any:
    """Declare an action outside, for `call`. Called directly it is still the function that it was.

    By name, `@step("payments.charge")`, or as `module:qualname`. `timeout`: seconds. `refused`: errors which mean that
    surely nothing happened (a card that was declined): no compensation is owed, and the transaction may go on. Any
    other error leaves that open: the transaction can only be rolled back. `retry_on`: errors after which it may be
    called again. `idempotent`: it may be called again after any, for the outside honours the key. `tries`: how often at
    most. However broad those errors are, they cover no answer in time and no `InDoubt`; an error of nodoubt's own is a
    refusal only if it says itself that nothing was done.
    """
    return _declare(REGISTRY.step, function, Options.checked("step", **options))


@overload
def compensation(function: Callable[P, Raw], /) -> Compensation[P, Raw]: ...
@overload
def compensation(
    name: str | None = None, /, *, timeout: float | None = None, tries: int | None = None
) -> _Compensations: ...
def compensation(function: Any = None, /, *, timeout: float | None = None, tries: int | None = None) -> Any:
    """Declare what undoes a step. It takes those of the step's arguments that it names, by name.

    It must cope with an action that never happened, or has happened in part, and with being called again: it is, under
    the same key, until it has returned once. `timeout`: seconds. `tries`: how often before it is parked for a human.
    """
    options = Options.checked("compensation", timeout=timeout, tries=tries)
    return _declare(REGISTRY.compensation, function, options)


def _declare(add: Callable[..., Any], function: Any, options: Options) -> Any:
    if function is None or isinstance(function, str):
        return lambda of: add(of, function, options)
    return add(function, None, options)


def _bare_function(kind: str, function: Any) -> Callable[..., Any]:
    bare: Callable[..., Any] = function.function if isinstance(function, Declared) else function
    _require_function(kind, bare)
    return bare


def _free_name(
    kind: str, known: Mapping[str, Declared[..., Any]], function: Callable[..., Any], name: str | None
) -> str:
    name = _name_of(kind, function, name)
    other = known.get(name)
    if other is not None and _home(other.function) != _home(function):
        raise UsageError(
            f"two functions are the {kind} {name!r}: {'.'.join(_home(other.function))} and "
            f"{'.'.join(_home(function))}; give one of them another name"
        )
    return name


def _require_function(kind: str, function: object) -> None:
    if not inspect.isfunction(function):
        raise UsageError(f"@{kind} goes above a function, not above {function!r}: a worker must find it by its name")
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise UsageError(
                f"the {kind} {function.__qualname__} takes {parameter}: arguments are stored by name, so each needs one"
            )
        if parameter.annotation is parameter.empty:
            raise UsageError(
                f"the parameter {name!r} of the {kind} {function.__qualname__} has no type, which says how it is "
                "stored and read back"
            )


def _name_of(kind: str, function: Callable[..., Any], name: str | None) -> str:
    if name is None:
        module, qualname = _home(function)
        if "<" in qualname:
            raise UsageError(
                f"the {kind} {qualname} is inside of a function, where no other process finds it: move it out, or give "
                f'it a name, @nodoubt.{kind}("…"), and see that a worker declares it, too'
            )
        name = f"{module}:{qualname}"
    if not name or len(name) > NAME_LENGTH_MAX or not name.isprintable() or name != name.strip():
        raise UsageError(f"a {kind}'s name is printable text of 1 to {NAME_LENGTH_MAX} characters, not {name!r}")
    return name


def _home(function: Callable[..., Any]) -> tuple[str, str]:
    """Its module, as another process imports it, and its name there."""
    module = function.__module__
    if module == "__main__":
        main = sys.modules["__main__"]
        spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        module = spec.name.removesuffix(".__main__") if spec is not None else Path(file).stem if file else module
    return module, function.__qualname__
