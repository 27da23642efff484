"""Claims about rows that cannot be read: each is set apart under its own attempt, told, never guessed at, and holds up
none of the others.

For journals whose rows others can reach. One that keeps what nobody else can write has no such rows, and need not
answer here.

Must not: know SQL, or a driver.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import pytest

from ...errors import SchemaMismatch
from ...ports import START, Conflict, Identity, Spot, readable
from ...protocol.records import CallState, Mode, Quarantined, Readiness, Unreadable
from ..bench import Bench
from ..samples import CUT, LONG_AGO, NOW, abort, attempt_at, call, decision, staging

PAGES_MAX = 20


class Damage(Protocol):
    """What can happen to a row of this journal. `key`: its attempt; of a resource, its id."""

    def ways(self, table: str, *, found: bool = False) -> Sequence[str]:
        """The ways in which a row of this table can be spoilt, by name. `found`: those after which it is still known
        not to be over. Of a decision whose verdict or end is lost nobody knows that until it is asked for, or old.
        """
        ...

    def spoil(self, table: str, key: str, way: str) -> None:
        """Make it one that no release has written."""
        ...

    def disown(self, table: str, key: str) -> None:
        """Of a row that is not over, spoil the very attempt by which it is found: nobody can tell whose it is."""
        ...

    def mend(self) -> None:
        """Put back, as they were, all that were spoilt."""
        ...


def paged(page: Callable[[str, int], list[Any]], size: int) -> list[Any]:
    """All pages, each from where the one before has ended."""
    met, after = list[Any](), ""
    for _ in range(PAGES_MAX):
        some = page(after, size)
        met += some
        if len(some) < size:
            return met
        after = some[-1] if isinstance(some[-1], str) else some[-1].attempt
    raise AssertionError(f"{PAGES_MAX} pages of {size} do not end")


def unreadable(bench: Bench) -> list[Unreadable]:
    """All pages of what cannot be read, each row once."""
    found: dict[Any, Unreadable] = {}
    spot: Spot | None = START
    for _ in range(PAGES_MAX):
        some, spot = bench.unreadable(spot)
        found |= {one.key: one for one in some}
        if spot is None:
            return list(found.values())
    raise AssertionError(f"{PAGES_MAX} pages of what cannot be read do not end")


class UnreadableClaims:
    """Each takes a bench whose journal is set up and empty, and what can be done to its rows."""

    # ---- the register (I3, I4)

    def test_a_decision_that_cannot_be_read_stands_as_that_beside_the_others(
        self, bench: Bench, damage: Damage
    ) -> None:
        """I3."""
        for bad, way in self._spoilt(damage, "decisions", lambda: self._inserted(bench, decision())):
            good = decision()
            bench.insert([good])
            for ask in (bench.look, bench.confirm):
                found = ask([bad, good.attempt])
                assert set(found) == {bad, good.attempt}, way
                assert found[good.attempt].decision == good, way
                self._is_apart(found[bad], "decisions", bad, way)

    def test_what_is_decided_and_cannot_be_read_is_never_decided_again(self, bench: Bench, damage: Damage) -> None:
        """I3."""
        for bad, way in self._spoilt(damage, "decisions", lambda: self._inserted(bench, decision())):
            for other in (abort(bad), decision(attempt=bad)):
                with pytest.raises(Conflict):
                    bench.insert([other])
            with pytest.raises(Conflict):
                bench.stage(staging(f"again {way}", bad))

    def test_the_open_commits_are_all_met_page_by_page_past_one_that_cannot_be_read(
        self, bench: Bench, damage: Damage
    ) -> None:
        """I6, I8."""
        commits = [decision(attempt=attempt_at(NOW + n)) for n in range(7)]
        bench.insert(commits)
        for place, way in enumerate(damage.ways("decisions", found=True)):
            damage.spoil("decisions", commits[place % 7].attempt, way)
            bad = {commits[place % 7].attempt}
            for size in (1, 2, 3, 7):
                met = paged(bench.open_commits, size)
                self._all_but(met, [one.attempt for one in commits], bad, way)
            damage.mend()

    # ---- names (I10)

    def test_the_undecided_names_are_all_met_past_one_that_cannot_be_read(self, bench: Bench, damage: Damage) -> None:
        """I8."""
        rows = [staging(f"n{n}", attempt_at(NOW + n), deadline=NOW - 1) for n in range(7)]
        for row in rows:
            bench.stage(row)
        for place, way in enumerate(damage.ways("names")):
            damage.spoil("names", rows[place % 7].attempt, way)
            bad, every = {rows[place % 7].attempt}, [row.attempt for row in rows]
            for size in (1, 2, 3, 7):
                met = paged(bench.undecided, size)
                self._all_but(met, every, bad, way)
                met = paged(functools.partial(bench.overdue, NOW), size)
                assert {one.attempt for one in met} | bad == set(every), way
                listed = paged(functools.partial(self._names, bench), size)
                self._all_but(listed, every[::-1], bad, way)
            damage.mend()

    def _names(self, bench: Bench, after: str, size: int) -> list[Any]:
        return [one for one, _ in bench.list_staged(after, size)]

    def test_a_name_that_cannot_be_read_is_found_as_that_and_stays_taken(self, bench: Bench, damage: Damage) -> None:
        """I10."""
        for bad, way in self._spoilt(damage, "names", lambda: self._staged(bench, "taken")):
            good = staging(f"good {way}")
            bench.stage(good)
            found = bench.staged([bad, good.attempt])
            assert found[good.attempt] == good, way
            self._is_apart(found[bad], "names", bad, way)
            self._is_apart(bench.find(bad), "names", bad, way)
            name, standing, _ = bench.known(bad)
            self._is_apart(name, "names", bad, way)
            assert standing is None, way
            with pytest.raises(Conflict):
                bench.stage(staging(f"another {way}", bad))

    def test_what_was_decided_is_listed_with_its_name_though_either_cannot_be_read(
        self, bench: Bench, damage: Damage
    ) -> None:
        for table in ("decisions", "names"):
            for bad, way in self._spoilt(damage, table, lambda: self._decided(bench)):
                names = {one.attempt: (one, standing) for one, standing in bench.list_staged("", 100)}
                name, standing = names[bad]
                assert isinstance(standing if table == "decisions" else name, Unreadable), way
                assert not isinstance(name if table == "decisions" else standing, Unreadable), way
                assert {event.what for event in bench.events(bad)} >= {"unreadable"}, way

    # ---- steps and confirmations (I19)

    def test_a_step_that_cannot_be_read_is_told_and_so_are_the_others(self, bench: Bench, damage: Damage) -> None:
        """I19."""
        for bad, way in self._spoilt(damage, "calls", lambda: self._called(bench)):
            good = self._called(bench)
            found = bench.calls([bad, good])
            assert [one for one in found if one.attempt == good] == [call(good)], way
            self._is_apart(next((one for one in found if one.attempt == bad), None), "calls", bad, way)
            met = paged(bench.unfinished_calls, 1)
            assert {bad, good} <= {one.attempt if isinstance(one, Unreadable) else one for one in met}, way

    def test_a_parked_step_that_cannot_be_read_is_told_as_that(self, bench: Bench, damage: Damage) -> None:
        """I20."""
        for way in damage.ways("calls"):
            parked = [self._called(bench, state=CallState.PARKED) for _ in range(2)]
            damage.spoil("calls", parked[0], way)
            found = {one.attempt: one for one in bench.parked_calls()} | {one.attempt: one for one in unreadable(bench)}
            assert set(found) == set(parked), way
            assert isinstance(found[parked[0]], Unreadable) and found[parked[1]].state is CallState.PARKED, way
            damage.mend()
            bench.insert([abort(attempt) for attempt in parked])
            for attempt in parked:
                (before,) = bench.calls([attempt])
                assert bench.advance(before, call(attempt, state=CallState.SKIPPED, version=1))

    def test_an_answer_that_cannot_be_read_is_told_as_that(self, bench: Bench, damage: Damage) -> None:
        for bad, way in self._spoilt(damage, "confirmations", lambda: self._asked(bench)):
            assert [type(one) for one in bench.confirmations(bad)] == [Unreadable], way
            assert [one.attempt for one in unreadable(bench)] == [bad], way

    # ---- the others

    def test_what_is_quarantined_is_listed_though_one_entry_cannot_be_read(self, bench: Bench, damage: Damage) -> None:
        """I17."""
        for bad, way in self._spoilt(damage, "quarantine", lambda: self._quarantined(bench)):
            good = self._quarantined(bench)
            found = {one.attempt: one for one in bench.quarantined()}
            assert {bad, good} <= set(found), way
            assert isinstance(found[bad], Unreadable) and isinstance(found[good], Quarantined), way
            bench.clear(good, 0, "ada")

    def test_a_resource_that_cannot_be_read_is_known_as_that(self, bench: Bench, damage: Damage) -> None:
        one, other = Identity("r1", "c" * 16, "", 1), Identity("r2", "c" * 16, "", 1)
        bench.register("orders", one)
        bench.register("billing", other)
        for way in damage.ways("resources"):
            damage.spoil("resources", "r1", way)
            found = bench.registered()
            assert set(found) == {"r1", "r2"} and found["r2"] == ("billing", other), way
            with pytest.raises(SchemaMismatch):
                readable(found["r1"])
            assert [one.table for one in unreadable(bench)] == ["resources"], way
            damage.mend()
            assert bench.registered()["r1"] == ("orders", one)

    # ---- what may be forgotten (I6)

    def test_a_record_that_cannot_be_read_is_not_forgotten_and_keeps_no_other(
        self, bench: Bench, damage: Damage
    ) -> None:
        """I6, I17."""
        tables = ("decisions", "names", "calls", "confirmations")
        for place, table in enumerate(tables):
            for number, way in enumerate(damage.ways(table, found=True)):
                old = [self._old(bench, 1000 * place + 10 * number + n) for n in range(5)]
                for bad in old[:2]:
                    damage.spoil(table, bad, way)
                kept, seen = set(old[:2]), bench.aborted(CUT, 2)
                assert {one.attempt for one in seen if not isinstance(one, Unreadable)} == set(old[2:4]), (table, way)
                assert {one.attempt for one in seen if isinstance(one, Unreadable)} <= kept, (table, way)
                gone = [attempt for _ in range(4) for attempt in bench.retire(CUT, 2)]
                assert sorted(gone) == sorted(old[2:]), (table, way)
                assert {one.attempt for one in unreadable(bench) if one.table == table} == kept, (table, way)
                damage.mend()
                assert set(bench.look(old)) == set(bench.staged(old)) == kept, (table, way)
                assert {one.attempt for one in bench.calls(old)} == kept, (table, way)
                assert sorted(attempt for _ in range(2) for attempt in bench.retire(CUT, 2)) == sorted(kept)
                assert bench.look(old) == bench.staged(old) == {}

    def test_an_open_commit_that_cannot_be_read_keeps_the_floor_where_it_is(self, bench: Bench, damage: Damage) -> None:
        """I6."""
        for number, way in enumerate(damage.ways("decisions")):
            bad, *others = [decision(attempt=attempt_at(LONG_AGO + 10 * number + n)) for n in range(3)]
            bench.insert([bad, *others])
            bench.end([one.attempt for one in others])
            damage.spoil("decisions", bad.attempt, way)
            bench.retire(CUT, 10)
            assert bench.floor() <= bad.attempt, way
            assert set(bench.look([bad.attempt])) == {bad.attempt}, way
            damage.mend()
            bench.end([bad.attempt])
            bench.retire(CUT, 10)
            assert bench.floor() > bad.attempt, way

    def test_a_resource_that_a_decision_of_no_known_verdict_may_list_is_not_forgotten(
        self, bench: Bench, damage: Damage
    ) -> None:
        """I6. Nothing else finds such a row, or one of no known end, before it is asked for, or old."""
        bench.register("orders", Identity("r0", "c" * 16, "", 1))
        for way in set(damage.ways("decisions")) - set(damage.ways("decisions", found=True)):
            bad = self._inserted(bench, decision())
            bench.end([bad])
            damage.spoil("decisions", bad, way)
            with pytest.raises(Conflict, match=bad):
                bench.unregister("r0")
            assert set(bench.registered()) == {"r0"}, way
            damage.mend()
        bench.unregister("r0")
        assert bench.registered() == {}

    # ---- all of it

    def test_what_cannot_be_read_is_told_until_it_is_mended(self, bench: Bench, damage: Damage) -> None:
        made: dict[str, Callable[[], str]] = {
            "decisions": lambda: self._inserted(bench, decision()),
            "names": lambda: self._staged(bench, "told"),
            "calls": lambda: self._called(bench),
            "confirmations": lambda: self._asked(bench),
            "quarantine": lambda: self._quarantined(bench),
        }
        for table, make in made.items():
            for way in damage.ways(table, found=True):
                bad = make()
                before = self._everything(bench, bad)
                assert unreadable(bench) == [], (table, way)
                damage.spoil(table, bad, way)
                for _ in range(2):
                    told = unreadable(bench)
                    assert len(told) == 1, (table, way)
                    self._is_apart(told[0], table, bad, way)
                damage.mend()
                assert unreadable(bench) == [], (table, way)
                assert self._everything(bench, bad) == before, (table, way)

    def test_what_may_be_anybodys_is_told_as_that_until_it_is_mended(self, bench: Bench, damage: Damage) -> None:
        """I3."""
        made: dict[str, Callable[[], str]] = {
            "decisions": lambda: self._inserted(bench, decision()),
            "names": lambda: self._staged(bench, "somebody's"),
            "calls": lambda: self._called(bench),
        }
        for make in made.values():
            make()
        for table, make in made.items():
            bad = make()
            assert bench.ownerless() == [], table
            damage.disown(table, bad)
            assert {one.table for one in bench.ownerless()} == {table}
            damage.mend()
            assert bench.ownerless() == [], table

    def _everything(self, bench: Bench, attempt: str) -> list[Any]:
        held = [one for one in bench.quarantined() if one.attempt == attempt]
        return [
            bench.look([attempt]),
            bench.staged([attempt]),
            bench.calls([attempt]),
            bench.confirmations(attempt),
            held,
        ]

    # ---- rows to be spoilt

    def _spoilt(self, damage: Damage, table: str, make: Callable[[], str]) -> Iterator[tuple[str, str]]:
        """For each way a fresh row, spoilt in it."""
        for way in damage.ways(table):
            bad = make()
            damage.spoil(table, bad, way)
            yield bad, way
            damage.mend()

    def _inserted(self, bench: Bench, one: Any) -> str:
        bench.insert([one])
        return str(one.attempt)

    def _staged(self, bench: Bench, name: str) -> str:
        row = staging(f"{name} {len(bench.list_staged('', 1000))}")
        bench.stage(row)
        return row.attempt

    def _decided(self, bench: Bench) -> str:
        attempt = self._staged(bench, "decided")
        bench.insert([abort(attempt, mode=Mode.STAGED)])
        return attempt

    def _called(self, bench: Bench, **more: Any) -> str:
        attempt = self._staged(bench, "called")
        bench.intend(call(attempt, **more))
        return attempt

    def _asked(self, bench: Bench) -> str:
        row = staging(f"asked {len(bench.list_staged('', 1000))}", confirmations=("ada",))
        bench.stage(row)
        bench.answer(row.attempt, "ada", Readiness.CONFIRMED, why="", at=NOW)
        return row.attempt

    def _quarantined(self, bench: Bench) -> str:
        attempt = attempt_at(NOW)
        bench.quarantine(Quarantined(attempt, 0, "orders", "no receipt", since=NOW))
        return attempt

    def _old(self, bench: Bench, number: int) -> str:
        """An attempt of long ago with all that one can have: over, and to be forgotten."""
        row = staging(f"old {number}", attempt_at(LONG_AGO + number), confirmations=("ada",), created_at=LONG_AGO)
        bench.stage(row)
        bench.intend(call(row.attempt, state=CallState.REFUSED))
        bench.insert([abort(row.attempt, mode=Mode.STAGED)])
        return row.attempt

    # ---- what was met

    def _all_but(self, met: Sequence[Any], every: Sequence[str], bad: set[str], way: str) -> None:
        assert [one.attempt for one in met] == list(every), way
        assert {one.attempt for one in met if isinstance(one, Unreadable)} == bad, way

    def _is_apart(self, one: Any, table: str, attempt: str, way: str) -> None:
        assert isinstance(one, Unreadable), way
        assert (one.table, one.attempt) == (table, attempt), way
        assert one.why, way
