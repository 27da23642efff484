"""How the examples speak to the world outside, and how those who try them make it misbehave.

    post("/payments", key, order=42, cents=990)     # done once per key, whatever is repeated
    undo("/payments", key, of=action_key)           # likewise; where it was not done, it is shut out for good

`Refused`: nothing happened. Any other error of httpx2's leaves open what did.
"""

from __future__ import annotations

import os
from typing import Any

import httpx2

URL = "http://127.0.0.1:8042"  # where OUTSIDE_URL says nothing else
ANSWER_S = 30.0
# Made once: httpx2 takes longer to make a client than to use it. It connects when it is first used.
_CLIENT = httpx2.Client(timeout=ANSWER_S)
# What says no, for good. The others (408, 409, 425, 429, …) say: not now, or not like this.
_NO = frozenset({402, 404, 410, 422})


class Refused(Exception):
    """The outside has said no. It did nothing, and it will not do it later."""


def post(path: str, key: str, **what: Any) -> Any:
    """Have something done. `key`: all requests under it are one."""
    return _ask("POST", path, {"Idempotency-Key": key}, what)


def undo(path: str, key: str, *, of: str) -> None:
    """Have undone what was done, or is still to be done, under the key `of`."""
    _ask("POST", f"{path}/undo", {"Idempotency-Key": key}, {"of": of})


def done(path: str) -> list[dict[str, Any]]:
    """What was done there, in its order: `what` it was, under which `key`, and how often it was `undone` since."""
    found: list[dict[str, Any]] = _ask("GET", path)
    return found


def standing(path: str) -> list[Any]:
    """What was done there, and not undone."""
    return [one["what"] for one in done(path) if not one["undone"]]


def forget() -> None:
    """Begin a new world: nothing was done, and nothing goes wrong."""
    _ask("DELETE", "/")


def misbehave(path: str, how: str, times: int = 1) -> None:
    """The next requests there `fail`, or are told that it is `busy` (before any effect), `lose` the answer (after it),
    or `wait`, before it, until `go_on`.
    """
    _ask("POST", "/misbehave", {}, {"path": path, "how": how, "times": times})


def waiting() -> int:
    """How many requests wait."""
    number: int = _ask("GET", "/waiting")
    return number


def go_on() -> None:
    """Let them go on, and wait until they have been done, or refused."""
    _ask("POST", "/go-on")


def _ask(method: str, path: str, headers: dict[str, str] | None = None, what: Any = None) -> Any:
    url = os.environ.get("OUTSIDE_URL", URL) + path
    answer = _CLIENT.request(method, url, headers=headers, json=what)
    if answer.status_code in _NO:
        raise Refused(answer.json()["why"])
    answer.raise_for_status()
    return answer.json()
