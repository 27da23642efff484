"""What a key is, what identifies a payload, and how a result is stored.

Must not: do I/O.
"""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass
from typing import Any

import msgspec

from ..asjson import NO_JSON, encoded
from ..errors import UsageError

LENGTH_MAX = 255  # of a key, and of a scope, in characters
RESULT_BYTES_MAX = 2**20  # it is written with the commit, and read by every replay


@dataclass(frozen=True, slots=True)
class Key:
    """One effect's key. `payload`: the digest of what was asked for; the same key for something else is refused."""

    scope: str
    key: str
    payload: str

    @property
    def lock(self) -> int:
        """A number for it. Two keys that share one are only told to wait for each other."""
        both = f"nodoubt once {len(self.scope)} {self.scope} {self.key}".encode()
        return int.from_bytes(hashlib.sha256(both).digest()[:8], "big", signed=True)


def key_of(key: object, payload: Any, scope: object) -> Key:
    """Raises `UsageError` for what is no key, and for a payload that is no JSON."""
    return Key(_text("scope", scope, empty=True), _text("key", key), digest(payload))


def _text(what: str, given: object, *, empty: bool = False) -> str:
    if not isinstance(given, str):
        raise UsageError(f"an idempotency {what} is a text, not {type(given).__name__}")
    if len(given) > LENGTH_MAX or not (given or empty):
        raise UsageError(f"an idempotency {what} has 1 to {LENGTH_MAX} characters; this one has {len(given)}")
    bad = next((c for c in given if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")), None)
    if bad is not None:
        raise UsageError(f"an idempotency {what} holds no control characters; this one has U+{ord(bad):04X}")
    return given


def digest(payload: Any) -> str:
    """Equal for equal payloads, however their mappings are ordered. Bytes are taken as they are."""
    if isinstance(payload, (bytes, bytearray, memoryview)):
        return hashlib.sha256(b"bytes " + bytes(payload)).hexdigest()
    return hashlib.sha256(b"json " + _json("payload", payload)).hexdigest()


def stored(value: Any) -> bytes:
    """A result as it is kept. Raises `UsageError` if it is no JSON, or too long."""
    text = _json("result", value)
    if len(text) > RESULT_BYTES_MAX:
        raise UsageError(
            f"the result to keep has {len(text)} bytes, more than {RESULT_BYTES_MAX}: keep an id of it instead. The "
            "work is rolled back"
        )
    return text


def value_of(text: bytes, kind: Any = Any) -> Any:
    """The result again. Raises `UsageError` where what was stored is not of that type."""
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        raise UsageError(f"the result that was kept is not of the type asked for: {error}") from error


def _json(what: str, value: Any) -> bytes:
    return as_json(f"the {what} of an idempotency key", value)


def as_json(what: str, value: Any) -> bytes:
    """The same for equal values. Raises `UsageError` for what is no JSON."""
    try:
        return encoded(value, "sorted")
    except NO_JSON as error:
        raise UsageError(f"{what} must be JSON, as msgspec writes it: {error}") from error
