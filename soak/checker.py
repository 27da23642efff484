"""The judge: from what clients noted and what is in the databases at the end, to what is wrong.

Held, for each cluster:

- *half*: a transaction's id is in all the databases of its plan, each time with its planned work, or in none; never
  twice, never elsewhere; and no id is there that nobody began (I1).
- *answer*: what was told committed is there; what was told aborted is not; nobody was told both (I5, I12).
- *decision*: what the journal has decided is so: COMMIT is there, ABORT is not, never both (I3). What is in several
  databases, or was staged, is there by a COMMIT; what was told *staged* and is nowhere, by an ABORT: whoever was told
  so may rely on that name until somebody ends it, so a name that a crash has swallowed is lost (I10).
- *fate*: what its client rolled back, or what broke a constraint, is not there (I16).
- *sum*: over all databases the sum of the balances is what it was (I23); and each account holds what it had and what
  its transfers have moved.
- *list*: each list's places are 1, 2, 3, … without a gap, as many as its head has counted.
- *order*: who appends holds the list's head until the branch ends, so all lists of all databases together have one
  order: that of "stands before, in some list" has no circle; and who began after another was told that it had
  committed stands behind that one in every list that both are in.
- *rest*: nothing is prepared, locked, open or undecided; nothing is in quarantine, no database is barred, recovery came
  to an end, and no process ended by itself.
- *alarm*: nobody was told that atomicity, lineage, the schema or an invariant is broken: no nemesis of ours does that.

Guarantees: pure.

Must not: forgive. What the nemesis may rightly cause is a doubt or an abort, and those are no findings.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

import msgspec

from .history import ABORTED, ALARM, BEGUN, COMMITTED, STAGED, Leg, Line, Plan

COMMIT, ABORT = "commit", "abort"  # the journal's words


class Content(msgspec.Struct, frozen=True):
    """What is in one database. A transfer: id, account, amount. An append: list, place, id."""

    accounts: Mapping[int, int]
    transfers: Sequence[tuple[str, int, int]]
    heads: Mapping[int, int]
    appends: Sequence[tuple[int, int, str]]
    prepared: tuple[str, ...] = ()
    locked: bool = False


class Final(msgspec.Struct, frozen=True):
    """One cluster at the end. `left`: what has not come to rest, in words."""

    databases: Mapping[str, Content]
    balance: int  # of each account at the beginning
    decisions: Sequence[tuple[str, str]]  # the id, COMMIT or ABORT; none is ever forgotten in a run
    left: tuple[str, ...] = ()


class Finding(msgspec.Struct, frozen=True, order=True):
    """One thing that is wrong."""

    rule: str
    what: str


class _Story(msgspec.Struct):
    """All that was noted of one transaction."""

    plan: Plan | None = None
    begun: float = 0.0
    staged: bool = False  # whether that was told
    committed: float | None = None  # when that was first told
    aborted: str | None = None  # why, as that was first told


def check(history: Iterable[Line], final: Final) -> list[Finding]:
    """Everything that is wrong in one cluster; [] if nothing is."""
    stories: dict[str, _Story] = defaultdict(_Story)
    found: list[Finding] = []
    for line in sorted(history, key=lambda line: line.at):
        story = stories[line.tx] if line.tx else _Story()
        if line.what == BEGUN:
            story.plan, story.begun = line.plan, line.at
        elif line.what == STAGED:
            story.staged = True
        elif line.what == COMMITTED and story.committed is None:
            story.committed = line.at
        elif line.what == ABORTED and story.aborted is None:
            story.aborted = line.why
        elif line.what == ALARM:
            found.append(Finding("alarm", f"{line.who} {line.tx}: {line.why}"))
    there = _there(final)
    found += _halves(stories, there)
    found += _answers(stories, there)
    found += _decisions(stories, there, final)
    found += _sums(final)
    found += _lists(final)
    found += _order(stories, final)
    found += _rest(final)
    return sorted(found)


def _there(final: Final) -> dict[str, list[tuple[str, Leg]]]:
    """By id: where it is, with what; `bank` or `list`."""
    there: dict[str, list[tuple[str, Leg]]] = defaultdict(list)
    for name, content in final.databases.items():
        for tx, account, amount in content.transfers:
            there[tx].append(("bank", Leg(name, account, amount)))
        for key, _, tx in content.appends:
            there[tx].append(("list", Leg(name, key)))
    return there


def _halves(stories: Mapping[str, _Story], there: Mapping[str, Sequence[tuple[str, Leg]]]) -> Iterator[Finding]:
    for tx, legs in there.items():
        plan = stories[tx].plan if tx in stories else None
        if plan is None:
            yield Finding("half", f"{tx} is in {_places(legs)}, and nobody has begun it")
            continue
        planned = Counter((plan.kind, leg) for leg in plan.legs)
        if Counter(legs) != planned:
            wanted = _places([(plan.kind, leg) for leg in plan.legs])
            yield Finding("half", f"{tx} was to be in {wanted}, and is in {_places(legs)}")
        if plan.fate != "commit":
            yield Finding("fate", f"{tx} was to fail ({plan.fate}), and is in {_places(legs)}")


def _places(legs: Sequence[tuple[str, Leg]]) -> str:
    return " + ".join(sorted(f"{leg.database}[{kind} {leg.key}: {leg.amount:+d}]" for kind, leg in legs))


def _answers(stories: Mapping[str, _Story], there: Mapping[str, Sequence[tuple[str, Leg]]]) -> Iterator[Finding]:
    for tx, story in stories.items():
        if story.committed is not None and tx not in there:
            yield Finding("answer", f"{tx} was told committed, and is nowhere")
        if story.aborted is not None and tx in there:
            yield Finding("answer", f"{tx} was told aborted ({story.aborted}), and is in {_places(there[tx])}")
        if story.committed is not None and story.aborted is not None:
            yield Finding("answer", f"{tx} was told committed, and aborted ({story.aborted})")


def _decisions(
    stories: Mapping[str, _Story], there: Mapping[str, Sequence[tuple[str, Leg]]], final: Final
) -> Iterator[Finding]:
    decided: dict[str, set[str]] = defaultdict(set)
    for tx, verdict in final.decisions:
        decided[tx].add(verdict)
    for tx in {**stories, **decided}:
        story, verdicts, legs = stories.get(tx, _Story()), decided.get(tx, set()), there.get(tx, ())
        if len(verdicts) > 1:
            yield Finding("decision", f"{tx} was decided both ways")
        if legs and ABORT in verdicts:
            yield Finding("decision", f"{tx} was decided abort, and is in {_places(legs)}")
        if legs and not verdicts and (story.staged or len(legs) > 1):
            yield Finding("decision", f"{tx} is in {_places(legs)}, and the journal has no decision of it")
        if not legs and COMMIT in verdicts:
            yield Finding("decision", f"{tx} was decided commit, and is nowhere")
        if not legs and not verdicts and story.staged:
            yield Finding("decision", f"{tx} was told staged, and is nowhere, though nobody has decided abort")


def _sums(final: Final) -> Iterator[Finding]:
    expected = sum(final.balance * len(content.accounts) for content in final.databases.values())
    total = sum(sum(content.accounts.values()) for content in final.databases.values())
    if total != expected:
        yield Finding("sum", f"the sum of all balances is {total}, and was {expected}")
    for name, content in final.databases.items():
        moved: Counter[int] = Counter()
        for _, account, amount in content.transfers:
            moved[account] += amount
        for account, balance in content.accounts.items():
            if balance != final.balance + moved[account]:
                yield Finding(
                    "sum",
                    f"account {account} in {name} holds {balance}; its transfers make {final.balance + moved[account]}",
                )


def _lists(final: Final) -> Iterator[Finding]:
    for name, content in final.databases.items():
        places: dict[int, list[int]] = defaultdict(list)
        for key, at, _ in content.appends:
            places[key].append(at)
        for key, head in content.heads.items():
            if sorted(places[key]) != list(range(1, head + 1)):
                yield Finding("list", f"list {key} in {name} counts {head}, and has the places {_brief(places[key])}")


def _brief(places: Sequence[int]) -> str:
    inside = set(places)
    missing = [at for at in range(1, max(inside, default=0)) if at not in inside]
    return f"1 to {max(inside, default=0)}, {len(places)} in all, without {missing[:10]}"


def _order(stories: Mapping[str, _Story], final: Final) -> Iterator[Finding]:
    behind: dict[str, set[str]] = defaultdict(set)
    before: Counter[str] = Counter()
    for name, content in final.databases.items():
        lists: dict[int, list[str]] = defaultdict(list)
        for key, _, tx in sorted(content.appends):
            lists[key].append(tx)
        for key, order in lists.items():
            yield from _real_time(stories, f"list {key} in {name}", order)
            for first, second in pairwise(order):
                if second not in behind[first]:
                    behind[first].add(second)
                    before[second] += 1
    free = deque(tx for tx in behind if not before[tx])
    while free:
        for later in behind[free.popleft()]:
            before[later] -= 1
            if not before[later]:
                free.append(later)
    circle = sorted(tx for tx, number in before.items() if number)
    if circle:
        yield Finding(
            "order", f"{len(circle)} transactions stand in or behind a circle, such as {', '.join(circle[:5])}"
        )


def _real_time(stories: Mapping[str, _Story], where: str, order: Sequence[str]) -> Iterator[Finding]:
    """From the end: the earliest answer of all that stand behind must not be earlier than this one's beginning."""
    earliest, who = float("inf"), ""
    for tx in reversed(order):
        story = stories.get(tx)
        if story is None:
            continue
        if story.begun > earliest:
            yield Finding("order", f"{tx} began when {who} had been told committed, and stands before it in {where}")
        if story.committed is not None and story.committed < earliest:
            earliest, who = story.committed, tx


def _rest(final: Final) -> Iterator[Finding]:
    for name, content in final.databases.items():
        if content.prepared:
            yield Finding("rest", f"in {name} is still prepared: {', '.join(content.prepared)}")
        if content.locked:
            yield Finding("rest", f"in {name} something is still locked")
    for what in final.left:
        yield Finding("rest", what)


def ids(final: Final) -> set[str]:
    """The ids of all transactions that are in some database."""
    return set(_there(final))
