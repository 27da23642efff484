"""Events in simulated time. Nothing happens but here: one after the other, by time and then by the order of asking.

Guarantees: the same calls in the same order give the same run, to the byte: no clock, no thread, no randomness.

Must not: know what an event is about.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Event:
    """Something that will happen, unless it is cancelled."""

    __slots__ = ("args", "call")

    def __init__(self, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.call: Callable[..., Any] | None = call
        self.args = args

    def cancel(self) -> None:
        self.call, self.args = None, ()


class Kernel:
    """The queue of events, and the time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.happened = 0
        self._number = 0
        self._queue: list[tuple[float, int, Event]] = []

    def at(self, when: float, call: Callable[..., Any], *args: Any) -> Event:
        """Call at that time, or now if it has passed."""
        event = Event(call, args)
        self._push(when, event)
        return event

    def _push(self, when: float, event: Event) -> None:
        self._number += 1
        heapq.heappush(self._queue, (max(when, self.now), self._number, event))

    def after(self, seconds: float, call: Callable[..., Any], *args: Any) -> Event:
        return self.at(self.now + seconds, call, *args)

    def again(self, event: Event, when: float, call: Callable[..., Any], *args: Any) -> None:
        """Let an event that has just happened happen later instead: whoever has it can still cancel it."""
        event.call, event.args = call, args
        self._push(when, event)

    def step(self, until: float) -> bool:
        """Let the next event happen; False if there is none before `until`, which it is then."""
        while self._queue and self._queue[0][2].call is None:
            heapq.heappop(self._queue)
        if not self._queue or self._queue[0][0] > until:
            self.now = max(self.now, until)
            return False
        self.now, _, event = heapq.heappop(self._queue)
        self.happened += 1
        call, args = event.call, event.args
        assert call is not None
        event.cancel()
        call(*args)
        return True
