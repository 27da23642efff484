"""The judge finds nothing wrong in a history that is right, and finds each thing that is planted in it."""

from __future__ import annotations

import msgspec
import pytest
from soak.checker import Content, Final, Finding, check
from soak.history import ABORTED, ALARM, BEGUN, COMMITTED, DOUBT, STAGED, Leg, Line, Plan

PAID = Plan("bank", "once", "commit", (Leg("p1", 0, -5), Leg("p2", 0, 5)))
LISTED = Plan("list", "once", "commit", (Leg("p1", 7), Leg("p2", 7)))
HISTORY = [
    Line(1, "a", BEGUN, "paid", PAID),
    Line(2, "a", COMMITTED, "paid"),
    Line(3, "a", BEGUN, "first", LISTED),
    Line(4, "a", COMMITTED, "first"),
    Line(5, "a", BEGUN, "second", LISTED),
    Line(6, "a", COMMITTED, "second"),
    Line(7, "b", BEGUN, "refused", PAID),
    Line(8, "b", ABORTED, "refused", why="a lock"),
    Line(9, "b", BEGUN, "killed", LISTED),
    Line(10, "b", BEGUN, "staged", msgspec.structs.replace(PAID, how="staged")),
    Line(11, "b", STAGED, "staged"),
    Line(12, "c", DOUBT, "staged"),
    Line(13, "b", BEGUN, "meant to fail", msgspec.structs.replace(PAID, fate="overdraft")),
]
P1 = Content(
    {0: 95, 1: 100}, [("paid", 0, -5)], {7: 2, 8: 0}, [(7, 1, "first"), (7, 2, "second")]
)  # fmt: skip
P2 = Content(
    {0: 105, 1: 100}, [("paid", 0, 5)], {7: 2, 8: 0}, [(7, 1, "first"), (7, 2, "second")]
)  # fmt: skip


DECIDED = {"paid": "commit", "first": "commit", "second": "commit", "staged": "abort"}


def final(
    p1: Content = P1, p2: Content = P2, left: tuple[str, ...] = (), *, decided: dict[str, str] = DECIDED
) -> Final:
    return Final({"p1": p1, "p2": p2}, 100, list(decided.items()), left)


def but(content: Content, **changes: object) -> Content:
    return msgspec.structs.replace(content, **changes)


def rules(found: list[Finding]) -> set[str]:
    return {one.rule for one in found}


def test_a_history_that_is_right_has_no_findings() -> None:
    assert check(HISTORY, final()) == []


def test_what_was_in_doubt_may_have_happened_as_a_whole() -> None:
    p1 = but(P1, accounts={0: 90, 1: 100}, transfers=[*P1.transfers, ("staged", 0, -5)])
    p2 = but(P2, accounts={0: 110, 1: 100}, transfers=[*P2.transfers, ("staged", 0, 5)])
    assert check(HISTORY, final(p1, p2, decided={**DECIDED, "staged": "commit"})) == []


def test_a_client_that_was_killed_may_have_committed_as_a_whole() -> None:
    longer = {"heads": {7: 3, 8: 0}, "appends": [*P1.appends, (7, 3, "killed")]}
    assert check(HISTORY, final(but(P1, **longer), but(P2, **longer), decided={**DECIDED, "killed": "commit"})) == []


EMPTY = Content({0: 100, 1: 100}, [], {7: 0, 8: 0}, [])
ONLY_STAGED = [
    Line(1, "a", BEGUN, "name", msgspec.structs.replace(PAID, how="staged")),
    Line(2, "a", STAGED, "name"),
]


def test_what_was_staged_may_be_nowhere_if_its_abort_was_decided() -> None:
    assert check(ONLY_STAGED, final(EMPTY, EMPTY, decided={"name": "abort"})) == []


def test_what_was_begun_and_never_told_staged_may_be_nowhere() -> None:
    assert check(ONLY_STAGED[:1], final(EMPTY, EMPTY, decided={})) == []


def test_what_is_in_one_database_alone_and_was_not_staged_needs_no_decision() -> None:
    plan = Plan("list", "once", "commit", (Leg("p1", 7),))
    one = but(EMPTY, heads={7: 1, 8: 0}, appends=[(7, 1, "alone")])
    history = [Line(1, "a", BEGUN, "alone", plan), Line(2, "a", COMMITTED, "alone")]
    assert check(history, final(one, EMPTY, decided={})) == []


LOST = but(P2, heads={7: 1, 8: 0}, appends=[(7, 1, "first")])
SWAPPED = but(P2, appends=[(7, 1, "second"), (7, 2, "first")])
LATE = {"appends": [(7, 1, "second"), (7, 2, "first")]}
UNPLANNED = {"accounts": {0: 94, 1: 101}, "transfers": [*P1.transfers, ("paid", 0, -1), ("paid", 1, 1)]}
PLANTED: dict[str, tuple[str, list[Line], Final]] = {
    "an append that is lost in one database": ("half", HISTORY, final(P1, LOST)),
    "an append that is lost everywhere": (
        "answer",
        HISTORY,
        final(but(P1, heads={7: 1, 8: 0}, appends=[(7, 1, "first")]), LOST),
    ),
    "half a transfer": ("half", HISTORY, final(P1, but(P2, accounts={0: 100, 1: 100}, transfers=[]))),
    "half of one whose client was killed": (
        "half",
        HISTORY,
        final(but(P1, heads={7: 3, 8: 0}, appends=[*P1.appends, (7, 3, "killed")])),
    ),
    "half of one that was in doubt": (
        "half",
        HISTORY,
        final(but(P1, accounts={0: 90, 1: 100}, transfers=[*P1.transfers, ("staged", 0, -5)])),
    ),
    "an append that happened twice": (
        "half",
        HISTORY,
        final(but(P1, heads={7: 3, 8: 0}, appends=[*P1.appends, (7, 3, "second")])),
    ),
    "other work than was planned": ("half", HISTORY, final(but(P1, **UNPLANNED))),
    "work that nobody began": (
        "half",
        HISTORY,
        final(but(P1, heads={7: 3, 8: 0}, appends=[*P1.appends, (7, 3, "a stranger")])),
    ),
    "committed that was told aborted": ("answer", [*HISTORY, Line(20, "c", ABORTED, "first", why="settled")], final()),
    "aborted that was told committed": ("answer", [*HISTORY, Line(20, "c", COMMITTED, "staged")], final()),
    "both told": ("answer", [*HISTORY, Line(20, "c", COMMITTED, "refused")], final()),
    "a staged name that a crash has swallowed": ("decision", ONLY_STAGED, final(EMPTY, EMPTY, decided={})),
    # Whatever an answer says: an abort by name is in the journal before it is told.
    "a swallowed name that somebody was told is aborted": (
        "decision",
        [*ONLY_STAGED, Line(3, "c", ABORTED, "name", why="by name")],
        final(EMPTY, EMPTY, decided={}),
    ),
    "a swallowed name whose work was committed all the same": (
        "decision",
        ONLY_STAGED,
        final(
            but(EMPTY, accounts={0: 95, 1: 100}, transfers=[("name", 0, -5)]),
            but(EMPTY, accounts={0: 105, 1: 100}, transfers=[("name", 0, 5)]),
            decided={},
        ),
    ),
    "a COMMIT whose work is nowhere, though nobody was told": (
        "decision",
        HISTORY,
        final(decided={**DECIDED, "killed": "commit"}),
    ),
    "an ABORT whose work is there": ("decision", HISTORY, final(decided={**DECIDED, "paid": "abort"})),
    "work in two databases that nobody has decided": (
        "decision",
        HISTORY,
        final(decided={"first": "commit", "second": "commit", "staged": "abort"}),
    ),
    "one name decided both ways": (
        "decision",
        HISTORY,
        msgspec.structs.replace(final(), decisions=[*DECIDED.items(), ("paid", "abort")]),
    ),
    "what was meant to fail has happened": (
        "fate",
        HISTORY,
        final(
            but(P1, accounts={0: 90, 1: 100}, transfers=[*P1.transfers, ("meant to fail", 0, -5)]),
            but(P2, accounts={0: 110, 1: 100}, transfers=[*P2.transfers, ("meant to fail", 0, 5)]),
        ),
    ),
    "money that came from nowhere": ("sum", HISTORY, final(but(P1, accounts={0: 96, 1: 100}))),
    "an update that is lost, made good elsewhere": ("sum", HISTORY, final(but(P1, accounts={0: 94, 1: 101}))),
    "a gap in a list": ("list", HISTORY, final(but(P1, appends=[(7, 1, "first"), (7, 3, "second")]))),
    "an append that its list's head has not counted": ("list", HISTORY, final(but(P1, heads={7: 1, 8: 0}))),
    "two lists in contrary orders": ("order", HISTORY, final(P1, SWAPPED)),
    "two lists whose orders contradict the answers": ("order", HISTORY, final(but(P1, **LATE), but(P2, **LATE))),
    "still prepared": ("rest", HISTORY, final(but(P1, prepared=("nodoubt-1",)))),
    "still locked": ("rest", HISTORY, final(but(P1, locked=True))),
    "still in doubt": ("rest", HISTORY, final(left=("undecided names in the journal: staged",))),
    "an alarm": ("alarm", [*HISTORY, Line(20, "c", ALARM, "staged", why="Heuristic: …")], final()),
}


@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_is_found(what: str) -> None:
    rule, history, end = PLANTED[what]
    assert rule in rules(check(history, end))


def test_of_contrary_orders_the_circle_is_told_even_where_no_answers_were_given() -> None:
    silent = [line for line in HISTORY if line.what != COMMITTED]
    found = check(silent, final(P1, SWAPPED))
    assert [one.rule for one in found] == ["order"] and "circle" in found[0].what


def test_every_rule_has_something_planted_for_it() -> None:
    assert {rule for rule, _, _ in PLANTED.values()} == {
        "half", "answer", "decision", "fate", "sum", "list", "order", "rest", "alarm"
    }  # fmt: skip
