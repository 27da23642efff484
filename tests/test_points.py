"""The names of points: each notice of the engine has one, what is written is read, and nothing else is."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nodoubt
import nodoubt.points as points_module
from nodoubt import Notice, UsageError
from nodoubt.points import KNOWN, AtPoint, Names, Point

SOURCE = Path(nodoubt.__file__).parent
NOTICE = re.compile(r'ctx\.notice\(\s*"(P\d+)", [\w.]+, "([^"]+)"')

resources = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=12)
points = st.builds(
    lambda key, on, count: Point(key[0], key[1], on, count),
    st.sampled_from(sorted(KNOWN)),
    resources,
    st.integers(1, 10**8),
)


def test_every_notice_of_the_engine_is_a_known_point_and_the_other_way_round() -> None:
    sources = [path.read_text("utf-8") for path in (SOURCE / "engine").glob("*.py")]
    told = {match for source in sources for match in NOTICE.findall(source)}
    assert told == set(KNOWN)
    assert sum(source.count("ctx.notice(") for source in sources) == sum(len(NOTICE.findall(s)) for s in sources)


@given(points)
def test_a_point_s_name_reads_back_as_the_point(point: Point) -> None:
    assert Point.parse(str(point)) == point


@given(points, st.integers(0, 40), st.characters())
def test_a_changed_name_is_another_point_or_refused(point: Point, at: int, c: str) -> None:
    name = str(point)
    at %= len(name)
    only_what_is_written(name[:at] + c + name[at + 1 :])


@given(st.text() | st.from_regex(r"P[0-9]+\.[a-z-]+(@.*)?(#[0-9]+)?", fullmatch=True))
def test_no_text_is_a_point_but_what_we_would_write(text: str) -> None:
    only_what_is_written(text)


def only_what_is_written(text: str) -> None:
    try:
        found = Point.parse(text)
    except UsageError:
        return
    assert str(found) == text


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("P3", "write it like P3.prepare@stock"),
        ("P3.prepare@", "write it like"),
        ("P3.prepare#0", "write it like"),
        ("P3.prepare#1", "it would be written 'P3.prepare'"),
        ("P3.commit", "no point is called P3.commit; there are P1.begun"),
        ("P11.prepare", "no point is called"),
    ],
)
def test_what_is_no_point_is_told_how_to_write_one(name: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        Point.parse(name)


def notice(what: str, resource: str) -> Notice:
    return Notice("P3", "a" * 32, what, 0, {"resource": resource})


def test_notices_are_named_by_resource_and_occurrence() -> None:
    names = Names()
    told = [str(names.of(notice("prepare", on))) for on in ("a", "b", "a")] + [
        str(names.of(Notice("P9", "", "every branch proved")))
    ]
    assert told == ["P3.prepare@a", "P3.prepare@b", "P3.prepare@a#2", "P9.every-branch-proved"]


def test_an_observer_acts_once_at_its_point_and_nowhere_else() -> None:
    acted: list[str] = []
    exact = AtPoint(Point.parse("P3.prepare@b#2"), lambda: acted.append("exact"))
    anywhere = AtPoint(Point.parse("P3.prepare#3"), lambda: acted.append("anywhere"))
    for what, on in (("prepare", "b"), ("prepare", "a"), ("prepared", "b"), ("prepare", "b"), ("prepare", "b")):
        exact.notice(notice(what, on))
        anywhere.notice(notice(what, on))
    assert acted == ["exact", "anywhere"]


def test_the_other_branches_wait_at_the_step_before_and_no_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points_module, "HOLD_MAX_S", 2.0)
    caught: list[bool] = []
    observer = AtPoint(Point.parse("P3.prepared@b"), lambda: caught.append(waits.is_alive()), hold=["a"])
    waits = threading.Thread(target=observer.notice, args=[notice("prepare", "a")])
    waits.start()
    for what, on in (("prepare", "b"), ("prepare", "c"), ("work", "a"), ("prepared", "b")):
        observer.notice(notice(what, on))
    waits.join()
    assert caught == [True]
