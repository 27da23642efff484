"""A sampling profiler: where a process's CPU time goes, at some thousand samples a second, from inside.

The kernel's timer of used CPU time (ITIMER_PROF) interrupts; the handler notes the Python stack. What a C function uses
counts for the Python line that called it. Unlike a tracing profiler it does not make small functions look large.

Must not: be used on threads: Python runs signal handlers in the main thread only, so only that one's stack is seen.
"""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

INTERVAL_S = 0.0005
DEPTH_MAX = 60


class Sampler:
    """Samples from `with` to its end."""

    def __init__(self) -> None:
        self._stacks: Counter[tuple[str, ...]] = Counter()

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, self._before)

    def _sample(self, _: int, frame: FrameType | None) -> None:
        stack: list[str] = []
        while frame is not None and len(stack) < DEPTH_MAX:
            stack.append(f"{_short(frame.f_code.co_filename)}:{frame.f_code.co_name}")
            frame = frame.f_back
        self._stacks[tuple(stack)] += 1

    def stacks(self) -> list[tuple[tuple[str, ...], int]]:
        """Each stack, innermost first, and how often it was met."""
        return self._stacks.most_common()


def _short(filename: str) -> str:
    """The last parts of a path, which say whose file it is."""
    return "/".join(Path(filename).parts[-3:])
