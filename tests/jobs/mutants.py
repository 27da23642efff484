"""What a job would be without each of its rules: patches of the real code, by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nodoubt.engine import verbs
from nodoubt.idempotency import store
from nodoubt.jobs.blocks import _Chunk
from nodoubt.jobs.board import Board
from nodoubt.script import Script

CHUNK: Any = _Chunk


def _said(chunk: Any) -> Any:
    value, done = chunk._said
    return replace(chunk._work.link, number=chunk._work.link.number + 1, checkpoint=value, done=done)


def _written(chunk: Any) -> Script[None]:
    """The checkpoint, in a transaction of its own."""
    work = chunk._work
    _, attempt = yield from work.take(lambda: work.beginning(None))
    assert attempt is not None
    after = _said(chunk)
    work.close(attempt, after)
    yield from verbs.complete(work.ctx, (yield from verbs.finish_work(work.ctx, attempt)))
    work.link = after


def _plain(chunk: Any) -> Script[Any]:
    chunk._work.require_open()
    return (yield from chunk._work.beginning(None))


def _checkpoint_first() -> None:
    def take(chunk: Any) -> Script[Any]:
        yield from _written(chunk)
        return (yield from _plain(chunk))

    CHUNK._take = take
    CHUNK._carry = lambda *_: None
    CHUNK._committed = lambda chunk: chunk._work.tell()


def _checkpoint_after() -> None:
    def committed(chunk: Any) -> Script[None]:
        yield from _written(chunk)
        yield from chunk._work.tell()

    CHUNK._take = _plain
    CHUNK._carry = lambda *_: None
    CHUNK._committed = committed


IN_A_CHILD = {"checkpoint first": _checkpoint_first, "checkpoint after": _checkpoint_after}


def without_the_fence(patch: Any) -> None:
    """Whoever has a number writes its link, whether or not the one before was still the last."""
    for kind in (store.Store, store.SqliteStore):
        sound = kind.take_over

        def take_over(self: Any, session: Any, before: Any, sound: Any = sound) -> Script[bool]:
            yield from sound(self, session, before)
            return True

        patch.setattr(kind, "take_over", take_over)


def without_the_lease(patch: Any) -> None:
    """Whoever comes is let in."""
    patch.setattr(Board, "_until", lambda *_: "0e0")


def without_the_doubt(patch: Any) -> None:
    """A chunk whose end nobody has waited for is as one that was never entered."""
    patch.setattr(_Chunk, "_cut_off", lambda *_: None)


__all__ = ["IN_A_CHILD", "without_the_doubt", "without_the_fence", "without_the_lease"]
