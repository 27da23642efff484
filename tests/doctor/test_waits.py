"""Who waits for whom, drawn."""

from __future__ import annotations

from nodoubt.doctor.facts import Blocker, Waiting
from nodoubt.doctor.report import Tree, Wait
from nodoubt.doctor.waits import count, longest_s, trees

A, B = Blocker(prepared="a"), Blocker(prepared="b")


def waits(session: int, *behind: Blocker, since_s: float | None = None) -> Waiting:
    return Waiting(session=session, behind=behind, since_s=since_s)


def on(session: int) -> Blocker:
    return Blocker(session)


def shape(tree: Tree) -> object:
    def below(one: Wait) -> object:
        return (one.session, [below(under) for under in one.waiting])

    return ((*tree.prepared, *([tree.what] if tree.what else [])), [below(one) for one in tree.waiting])


def test_a_chain_is_a_chain() -> None:
    (tree,) = trees([waits(3, on(2)), waits(1, A), waits(2, on(1))])
    assert shape(tree) == (("a",), [(1, [(2, [(3, [])])])])
    assert count(tree.waiting) == 3


def test_a_session_stands_as_near_to_the_root_as_it_waits() -> None:
    (tree,) = trees([waits(1, A), waits(2, on(1), A), waits(3, on(1), on(2))])
    assert shape(tree) == (("a",), [(1, [(3, [])]), (2, [])])


def test_those_who_keep_the_same_sessions_waiting_are_drawn_once() -> None:
    both = trees([waits(1, A, B), waits(2, on(1))])
    assert [shape(tree) for tree in both] == [(("a", "b"), [(1, [(2, [])])])]
    apart = trees([waits(1, A, B), waits(2, A)])
    assert [shape(tree) for tree in apart] == [(("a",), [(1, []), (2, [])]), (("b",), [(1, [])])]


def test_what_has_no_name_is_a_root_too_and_a_plain_session_is_none() -> None:
    found = trees([waits(1, Blocker(name="InnoDB's transaction 23")), waits(2, on(9))])
    assert [shape(tree) for tree in found] == [(("InnoDB's transaction 23",), [(1, [])])]


def test_a_prepared_transaction_that_is_called_like_a_session_is_none() -> None:
    (tree,) = trees([waits(5, Blocker(prepared="session 5"))])
    assert shape(tree) == (("session 5",), [(5, [])])


def test_sessions_that_wait_in_a_circle_end() -> None:
    (tree,) = trees([waits(1, A, on(2)), waits(2, on(1)), waits(3, on(4)), waits(4, on(3))])
    assert shape(tree) == (("a",), [(1, [(2, [])])])


def test_the_longest_wait_is_found_wherever_it_is() -> None:
    (tree,) = trees([waits(1, A, since_s=2.0), waits(2, on(1), since_s=9.0), waits(3, on(2))])
    assert longest_s(tree.waiting) == 9.0
    (unknown,) = trees([waits(1, A)])
    assert longest_s(unknown.waiting) is None
