"""What happened in a world, in order: kept as it came, put into words only when somebody asks.

Guarantees: one seed gives the same text, to the byte, in any process: attempts and clusters are named by the order in
which they were first seen, and nothing else of the machine gets in.

Must not: change anything.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from ...script import Outcome

if TYPE_CHECKING:
    from .kernel import Kernel

TEXT_MAX = 100
_ATTEMPT = re.compile(r"[0-9a-f]{32}")
_MARK = re.compile(r"\b[0-9a-f]{16}\b")


class Kind(Enum):
    """What a line tells."""

    SENT = "sent"
    ANSWERED = "answered"
    NOTE = "note"
    TOLD = "told"


@dataclass(frozen=True, slots=True)
class Line:
    """`who` to `whom` ("" for a note of its own), the number of the message, and what."""

    at: float
    kind: Kind
    who: str
    whom: str
    number: int
    what: Any


class Trace:
    """The lines, and how to read them. `hidden`: whose rows are left out of the words: the strangers'."""

    def __init__(self, kernel: Kernel, hidden: Collection[object] = ()) -> None:
        self._kernel, self._hidden = kernel, hidden
        self.lines: list[Line] = []

    def sent(self, process: str, machine: str, number: int, verb: str, args: tuple[Any, ...]) -> None:
        self.lines.append(Line(self._kernel.now, Kind.SENT, process, machine, number, (verb, args)))

    def answered(self, machine: str, process: str, number: int, outcome: Outcome[Any]) -> None:
        self.lines.append(Line(self._kernel.now, Kind.ANSWERED, machine, process, number, outcome))

    def note(self, who: str, what: str) -> None:
        self.lines.append(Line(self._kernel.now, Kind.NOTE, who, "", 0, what))

    def told(self, who: str, what: str) -> None:
        """What a caller was told."""
        self.lines.append(Line(self._kernel.now, Kind.TOLD, who, "", 0, what))

    def texts(self) -> Iterator[tuple[Line, str]]:
        """Each line in words, with short names for what is long."""
        names: dict[str, str] = {}

        def name(match: re.Match[str]) -> str:
            kind = "T" if len(match[0]) == 32 else "M"
            return names.setdefault(match[0], f"{kind}{sum(n[0] == kind for n in names.values()) + 1}")

        for line in self.lines:
            text = _MARK.sub(name, _ATTEMPT.sub(name, self._words(line)))
            yield line, text.replace("nd1.M1.", "")

    def _words(self, line: Line) -> str:
        match line.kind:
            case Kind.SENT:
                verb, args = line.what
                return _message(verb, args)
            case Kind.ANSWERED:
                return _outcome(line.what, self._hidden)
            case _:
                return str(line.what)

    def text(self) -> str:
        """The whole trace."""
        return "\n".join(
            f"{line.at:10.4f} {line.who:>8} {_ARROW[line.kind]} {line.whom:<8} {_numbered(line):>5} {text}"
            for line, text in self.texts()
        )


_ARROW = {Kind.SENT: "->", Kind.ANSWERED: "=>", Kind.NOTE: "  ", Kind.TOLD: "!!"}


def _numbered(line: Line) -> str:
    return f"#{line.number}" if line.number else ""


def _message(verb: str, args: tuple[Any, ...]) -> str:
    if verb == "send":
        return "; ".join(_message(name, tuple(rest)) for name, *rest in args)
    return f"{verb.replace('_', ' ')} {' '.join(map(_value, args))}".strip()


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value[:TEXT_MAX]
    if isinstance(value, tuple | list):
        return ",".join(map(_value, value))
    if isinstance(value, dict):
        return ",".join(f"{_value(key)}:{_value(one)}" for key, one in sorted(value.items()))
    if hasattr(value, "verdict") and hasattr(value, "attempt"):
        return f"{value.verdict.value.upper()} {value.attempt}"
    if hasattr(value, "decision"):
        return _value(value.decision) + (" ended" if value.ended else "")
    if hasattr(value, "step") and hasattr(value, "state"):
        return f"{value.step} {value.attempt}.{value.number} {value.state.value}"
    if hasattr(value, "gid"):
        return str(value.gid)
    if hasattr(value, "xid"):
        return _value(value.xid)
    if isinstance(value, float):
        return f"{value:.6g}"
    if hasattr(value, "attempt") and hasattr(value, "name"):
        return f"{value.name}={value.attempt}"
    return str(value)[:TEXT_MAX]


def _outcome(outcome: Outcome[Any], hidden: Collection[object]) -> str:
    if outcome.error is not None:
        return f"{type(outcome.error).__name__}: {outcome.error}"[:TEXT_MAX]
    value = outcome.value
    replies = value if isinstance(value, tuple) else (value,)
    words = []
    for reply in replies:
        if hasattr(reply, "tag"):
            words.append(" ".join(filter(None, [reply.tag, _value(_ours(reply.rows, hidden))])) or "ok")
        elif isinstance(reply, list):
            words.append(_value(_ours(reply, hidden)) or "ok")
        else:
            words.append("ok" if reply is None else _value(reply))
    return ("; ".join(words) or "ok")[:TEXT_MAX]


def _ours(rows: Sequence[Any], hidden: Collection[object]) -> list[Any]:
    return [row for row in rows if not (isinstance(row, tuple) and row and row[0] in hidden)]
