"""Arguments and results as JSON, by the types that the function itself declares.

Guarantees: what cannot be stored, or read back as the types say, is found before anything is done outside; arguments
are stored by the names of their parameters, so a compensation takes those it names, whatever their order.

Must not: call a function.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import msgspec.inspect

from ..asjson import NO_JSON, encoded
from ..errors import NoDoubtError, UsageError
from .registry import Compensation, Declared, Step

BYTES_MAX = 1 << 20  # of one call's arguments, or its result: the journal is no place for documents


class DoesNotFit(NoDoubtError):
    """Stored arguments that the function, as it is here, does not take."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A step with its arguments, ready to be written down and called."""

    step: Step[..., Any, Any]
    undo: Compensation[..., Any] | None
    values: Mapping[str, Any]
    arguments: str  # JSON


def bind(
    step: Step[..., Any, Any], undo: Compensation[..., Any] | None, args: Sequence[Any], named: Mapping[str, Any]
) -> Bound:
    """Check the arguments against the types of the step and of what undoes it. Raises `UsageError`."""
    try:
        bound = step.signature.bind(*args, **named)
    except TypeError as error:
        raise UsageError(f"{step.name} does not take these arguments: {error}") from error
    bound.apply_defaults()
    values = dict(bound.arguments)
    raw = {name: _encoded(step, name, value) for name, value in values.items()}
    if undo is not None:
        _fitted(undo, raw, UsageError, f"the compensation {undo.name} of {step.name}")
    arguments = msgspec.json.encode({name: msgspec.Raw(one) for name, one in raw.items()}).decode()
    if len(arguments) > BYTES_MAX:
        raise UsageError(
            f"the arguments of {step.name} take {len(arguments)} bytes, and at most {BYTES_MAX} are stored: keep them "
            "elsewhere, and pass what finds them"
        )
    return Bound(step, undo, values, arguments)


def _encoded(step: Step[..., Any, Any], name: str, value: Any) -> bytes:
    try:
        raw = encoded(value)
        msgspec.json.decode(raw, type=step.types[name])
    except NO_JSON as error:
        raise UsageError(
            f"the argument {name!r} of {step.name} can't be stored as JSON and read back as {step.types[name]}: {error}"
        ) from error
    return raw


def fit(function: Declared[..., Any], arguments: str) -> dict[str, Any]:
    """Stored arguments as this function takes them now. Raises `DoesNotFit`."""
    try:
        raw = msgspec.json.decode(arguments, type=dict[str, msgspec.Raw])
    except msgspec.MsgspecError as error:
        raise DoesNotFit(f"the stored arguments are no JSON object: {error}") from error
    try:
        return _fitted(function, {name: bytes(one) for name, one in raw.items()}, DoesNotFit, function.name)
    except UsageError as error:
        raise DoesNotFit(str(error)) from error


def _fitted(
    function: Declared[..., Any], raw: Mapping[str, bytes], kind: type[NoDoubtError], who: str
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, parameter in function.signature.parameters.items():
        if name not in raw:
            if parameter.default is inspect.Parameter.empty:
                have = ", ".join(raw) or "none"
                raise kind(f"{who} wants an argument {name!r}, and the step was called with others: {have}")
            continue
        try:
            values[name] = msgspec.json.decode(raw[name], type=function.types[name])
        except (TypeError, msgspec.MsgspecError) as error:
            raise kind(
                f"the argument {name!r} does not fit {who}, which takes {function.types[name]}: {error}"
            ) from error
    return values


def require_result(step: Step[..., Any, Any]) -> None:
    """Raise `UsageError` if what the step says it returns can't be read back from JSON."""
    kind = step.types.get("return", Any)
    try:
        foreign = _foreign(msgspec.inspect.type_info(kind), set())
    except TypeError as error:
        raise UsageError(f"{step.name} returns {kind}, which can't be stored as JSON: {error}") from error
    if foreign is not None:
        raise UsageError(f"{step.name} returns {kind}, and JSON knows no {foreign.__qualname__}: return what it holds")


def _foreign(info: object, seen: set[int]) -> type | None:
    """A class somewhere in this type that msgspec cannot read back. Types may hold themselves."""
    if isinstance(info, msgspec.inspect.CustomType):
        return info.cls
    if isinstance(info, tuple):
        parts: Iterable[object] = info
    elif isinstance(info, msgspec.inspect.Type | msgspec.inspect.Field) and id(info) not in seen:
        seen.add(id(info))
        parts = (getattr(info, name) for name in info.__struct_fields__)
    else:
        return None
    return next((found for found in (_foreign(part, seen) for part in parts) if found is not None), None)


def encoded_result(value: Any) -> str:
    """A step's result as it is stored. Raises `UsageError`."""
    try:
        result = encoded(value).decode()
    except NO_JSON as error:
        raise UsageError(f"what it returned can't be stored as JSON: {error}") from error
    if len(result) > BYTES_MAX:
        raise UsageError(f"what it returned takes {len(result)} bytes, and at most {BYTES_MAX} are stored")
    return result


def decoded_result(step: Step[..., Any, Any], result: str) -> Any:
    """A stored result, as the step declares it."""
    return msgspec.json.decode(result, type=step.types.get("return", Any))
