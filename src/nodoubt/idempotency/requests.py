"""The `Idempotency-Key` header: what it means, what is answered, and what is kept of an answer.

As draft-ietf-httpapi-idempotency-key-header has it: 400 where the key is missing and required, 409 while the first
request is in flight, 422 for another request under the same key; else the first answer again.

Must not: do I/O, or know ASGI from WSGI.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

import msgspec

from ..errors import KeyInFlight, KeyReused, NoDoubtError, UsageError
from .keys import LENGTH_MAX

HEADER = "idempotency-key"
REPLAYED = ("idempotent-replayed", "true")  # tells a repeated answer from a first one
BODY_BYTES_MAX = 2**20
RETRY_S = 1  # what a client is told to wait while another request is in flight
METHODS = frozenset({"POST", "PATCH"})

# A structured field's string; many clients send the bare key.
_QUOTED = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_BARE = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x7e]+")  # no blank, quote, comma or semicolon

Headers = tuple[tuple[str, str], ...]


class Answer(msgspec.Struct, frozen=True):
    """One response, as it is kept and sent again."""

    status: int
    headers: Headers
    body: bytes


class NotKept(Exception):
    """Leaves the block so that its work is rolled back; the answer goes out all the same."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def no_failure(status: int) -> bool:
    """A failure of the server's own is not kept: its work is rolled back, and a repetition tries again."""
    return status < HTTPStatus.INTERNAL_SERVER_ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Which requests are taken, what is asked of them, and which answers are kept, with their work."""

    methods: frozenset[str] = METHODS
    required: bool = True
    body_bytes_max: int = BODY_BYTES_MAX
    kept: Callable[[int], bool] = no_failure


def key_in(values: Sequence[str]) -> str | Answer | None:
    """The key; None: there is no header; or what to answer to one that is no key."""
    if not values:
        return None
    if len(values) > 1:
        return problem(HTTPStatus.BAD_REQUEST, "the Idempotency-Key header must be sent once")
    given = values[0].strip()
    quoted = _QUOTED.fullmatch(given)
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else given if _BARE.fullmatch(given) else ""
    if not 0 < len(key) <= LENGTH_MAX:
        return problem(
            HTTPStatus.BAD_REQUEST,
            f'the Idempotency-Key header is a quoted text of 1 to {LENGTH_MAX} characters, such as "8e03978e-40d5"',
        )
    return key


def missing() -> Answer:
    return problem(
        HTTPStatus.BAD_REQUEST,
        "this request needs an Idempotency-Key header: a new random text for each operation, and the same one each "
        "time the operation is tried again",
    )


def too_large(most: int) -> Answer:
    return problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request with an Idempotency-Key has at most {most} bytes")


def refusal(error: NoDoubtError) -> Answer:
    """What is answered to a request that does not get the key."""
    if isinstance(error, KeyInFlight):
        return problem(
            HTTPStatus.CONFLICT,
            "a request with this Idempotency-Key is being worked on: send the same request again in a moment",
            ("retry-after", str(RETRY_S)),
        )
    if isinstance(error, KeyReused):
        return problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "this Idempotency-Key was used for another request: send that one again as it was, or use a new key",
        )
    raise error


def problem(status: HTTPStatus, detail: str, *headers: tuple[str, str]) -> Answer:
    """RFC 9457."""
    body = msgspec.json.encode({"status": status.value, "title": status.phrase, "detail": detail})
    kind, length = ("content-type", "application/problem+json"), ("content-length", str(len(body)))
    return Answer(status.value, (kind, length, *headers), body)


def payload(method: str, path: str, query: str, body: bytes) -> list[str]:
    """What makes two requests the same."""
    return [method, path, query, hashlib.sha256(body).hexdigest()]


def require_who(who: object) -> str:
    """The caller's name. One caller's key must never bring another's answer, so somebody has to say who it is."""
    if not isinstance(who, str):
        raise UsageError(f"who(request) tells whose keys these are: a text, not {type(who).__name__}")
    return who


def replayed(answer: Answer) -> Answer:
    return Answer(answer.status, (*answer.headers, REPLAYED), answer.body)
