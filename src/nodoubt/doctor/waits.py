"""Who waits for a prepared transaction, and who waits for those: from a list of waiting sessions to trees.

Guarantees: a session stands once in a tree, as near to the root as it waits; one that waits for several prepared
transactions stands in the tree of each; sessions that wait in a circle end.
"""

from __future__ import annotations

from collections.abc import Sequence

from .facts import Blocker, Waiting
from .report import Tree, Wait


def trees(waiting: Sequence[Waiting]) -> tuple[Tree, ...]:
    """One for each that is waited for and is no session: a prepared transaction, whether or not it has a name.

    An ALTER TABLE waits for everybody who has ever touched the table: those who keep the same sessions waiting are one.
    """
    behind: dict[Blocker, list[Waiting]] = {}
    for one in waiting:
        for blocker in one.behind:
            behind.setdefault(blocker, []).append(one)
    alike: dict[tuple[str, tuple[Wait, ...]], list[str]] = {}
    for root in behind:
        if root.session is None:
            ids = alike.setdefault((root.name, _grown(root, behind)), [])
            ids += [root.prepared] if root.prepared is not None else []
    return tuple(Tree(prepared=tuple(ids), what=what, waiting=waits) for (what, waits), ids in alike.items())


def _grown(root: Blocker, behind: dict[Blocker, list[Waiting]]) -> tuple[Wait, ...]:
    """Breadth first, so that each session stands as near to the root as it can."""
    above: dict[int, Blocker] = {}
    level = [root]
    while level:
        following = []
        for blocker in level:
            for one in behind.get(blocker, ()):
                if one.session not in above:
                    above[one.session] = blocker
                    following.append(Blocker(one.session))
        level = following
    return _under(root, behind, above)


def _under(blocker: Blocker, behind: dict[Blocker, list[Waiting]], above: dict[int, Blocker]) -> tuple[Wait, ...]:
    return tuple(
        Wait(
            session=one.session,
            waits_for=one.waits_for,
            since_s=one.since_s,
            user=one.user,
            application=one.application,
            database=one.database,
            statement=one.statement,
            waiting=_under(Blocker(one.session), behind, above),
        )
        for one in behind.get(blocker, ())
        if above[one.session] == blocker
    )


def count(waiting: Sequence[Wait]) -> int:
    """How many stand in these."""
    return sum(1 + count(one.waiting) for one in waiting)


def longest_s(waiting: Sequence[Wait]) -> float | None:
    """How long the most patient of them has waited; None where that is not known of any."""
    known = [one.since_s for one in waiting if one.since_s is not None]
    known += [below for one in waiting if (below := longest_s(one.waiting)) is not None]
    return max(known, default=None)
