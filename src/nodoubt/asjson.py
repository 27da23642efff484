"""A value as JSON, where it is one.

Guarantees: a number for which JSON has no word is refused, not written as something else.

Must not: know what the value is for.
"""

from __future__ import annotations

import json
from typing import Any, Literal

import msgspec

NO_JSON = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)


def encoded(value: Any, order: Literal["sorted"] | None = None) -> bytes:
    """Raises one of `NO_JSON`. `order`: as msgspec's."""
    text = msgspec.json.encode(value, order=order)
    if b"null" in text:  # so msgspec writes NaN and the infinities, which JSON does not know: that is not the value
        plain = msgspec.to_builtins(value, str_keys=True, enc_hook=lambda _: None)  # a Raw is JSON already
        json.dumps(plain, allow_nan=False)
    return text
