"""The world outside does as such services do; the examples, and what is claimed of them, stand on it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from examples.outside.client import Refused, done, forget, go_on, misbehave, post, standing, undo, waiting

from kit import until
from workflows import Service

pytestmark = pytest.mark.usefixtures("outside")


def test_what_comes_under_one_key_is_done_once_and_answered_alike() -> None:
    first = post("/payments", "k", order=1, card="good", cents=99)
    assert post("/payments", "k", order=1, card="good", cents=99) == first
    assert [one["key"] for one in done("/payments")] == ["k"]
    with pytest.raises(Refused, match="something else"):
        post("/payments", "k", order=1, card="good", cents=98)


def test_without_a_key_each_request_is_one_of_its_own() -> None:
    for _ in range(2):
        post("/payments", "", order=1, card="good", cents=99)
    assert len(standing("/payments")) == 2


def test_a_refusal_stands_and_has_no_effect() -> None:
    for _ in range(2):
        with pytest.raises(Refused, match="declined"):
            post("/payments", "k", order=1, card="stolen", cents=99)
    assert done("/payments") == []


def test_of_some_things_there_is_one_for_each() -> None:
    post("/mailboxes", "k", email="a@b.c")
    with pytest.raises(Refused, match="one already"):
        post("/mailboxes", "another", email="a@b.c")
    undo("/mailboxes", "k.undo", of="k")
    post("/mailboxes", "a third", email="a@b.c")
    assert standing("/mailboxes") == [{"email": "a@b.c"}]


def test_what_is_undone_before_it_was_done_is_shut_out() -> None:
    undo("/payments", "k.undo", of="k")
    with pytest.raises(Refused, match="undone before"):
        post("/payments", "k", order=1, card="good", cents=99)
    assert done("/payments") == []


def test_undone_under_one_key_it_is_undone_once_and_under_two_twice() -> None:
    post("/payments", "k", order=1, card="good", cents=99)
    for key, undone in (("u", 1), ("u", 1), ("v", 2)):
        undo("/payments", key, of="k")
        assert [one["undone"] for one in done("/payments")] == [undone]


def test_it_fails_before_the_effect_or_loses_the_answer_after_it() -> None:
    misbehave("/letters", "fail")
    with pytest.raises(httpx2.HTTPStatusError, match="503"):
        post("/letters", "k", order=1)
    assert done("/letters") == []
    misbehave("/letters", "lose")
    with pytest.raises(httpx2.RemoteProtocolError):
        post("/letters", "k", order=1)
    assert standing("/letters") == [{"order": 1}]
    post("/letters", "k", order=1)
    assert standing("/letters") == [{"order": 1}]


def test_to_be_put_off_is_no_refusal() -> None:
    """A step that is refused is owed nothing; this one can be asked again, and is done then."""
    misbehave("/payments", "busy")
    with pytest.raises(httpx2.HTTPStatusError, match="429"):
        post("/payments", "k", order=1, card="good", cents=99)
    assert done("/payments") == []
    post("/payments", "k", order=1, card="good", cents=99)


def test_while_the_first_request_of_a_key_is_at_work_the_second_is_put_off() -> None:
    misbehave("/letters", "wait")
    with ThreadPoolExecutor() as threads:
        first = threads.submit(post, "/letters", "k", order=1)
        try:
            until(lambda: waiting() == 1)
            with pytest.raises(httpx2.HTTPStatusError, match="409"):
                post("/letters", "k", order=1)
            assert done("/letters") == []
        finally:
            go_on()
        assert first.result() == post("/letters", "k", order=1)
    assert standing("/letters") == [{"order": 1}]


def test_killed_it_has_forgotten_no_key(service: Service) -> None:
    first = post("/payments", "k", order=1, card="good", cents=99)
    service.kill()
    service.start()
    assert post("/payments", "k", order=1, card="good", cents=99) == first
    assert len(done("/payments")) == 1
    forget()
    assert done("/payments") == []
