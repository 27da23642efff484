"""Claims about the journal's other tables: names, epochs, resources, quarantine, the trail.

Must not: know SQL, or a driver.
"""

from __future__ import annotations

import pytest

from ...errors import InvalidName, SchemaMismatch, UsageError
from ...ports import Conflict, Identity, Refused
from ...protocol.records import Decision, Epoch, Event, Mode, Quarantined, Staging, Verdict
from ...xid import new_attempt, new_cluster, new_mark
from ..bench import Bench, outcomes
from ..samples import NAMES, NOW, abort, attempt_at, branches, decision, staging


class DirectoryClaims:
    """Each takes a bench whose journal is set up and empty (`bare`: not even set up)."""

    # ---- names (I10)

    def test_a_name_is_read_back_by_name_and_by_attempt_as_it_was_staged(self, bench: Bench) -> None:
        one = staging(
            "order 'é' 🦀",
            last=1,
            deadline=NOW + 0.25,
            owner="host\\1",
            metadata={"tenant": "a'b\"c", "🦀": "\n", "": "{}"},
            created_at=NOW + 0.125,
        )
        bench.stage(one)
        assert bench.find(one.name) == one == bench.find(one.attempt)
        assert bench.staged([one.attempt, new_attempt()]) == {one.attempt: one}
        assert bench.staged([]) == {}

    def test_names_that_differ_in_one_byte_are_different_names(self, bench: Bench) -> None:
        """I10."""
        rows = {name: staging(name) for name in NAMES}
        for row in rows.values():
            bench.stage(row)
        for name, row in rows.items():
            assert bench.find(name) == row
            with pytest.raises(Conflict):
                bench.stage(staging(name))
        assert {row for row, _ in self._listed(bench)} == {row.attempt for row in rows.values()}

    def _listed(self, bench: Bench) -> list[tuple[str, Verdict | None]]:
        page = bench.list_staged("", 1000)
        return [(row.attempt, standing and standing.decision.verdict) for row, standing in page]

    def test_an_unknown_name_is_not_found(self, bench: Bench) -> None:
        bench.stage(staging("known"))
        for name in ("unknown", "know%", new_attempt(), "", "a\0b", "\ud800", "x" * 300):
            assert bench.find(name) is None

    def test_a_name_that_cannot_be_one_is_not_staged(self, bench: Bench) -> None:
        for name in ("", "\ud800", "a\0b", "x" * 201):
            with pytest.raises(InvalidName):
                bench.stage(staging(name))

    def test_a_name_that_looks_like_an_attempt_is_found_as_a_name_first(self, bench: Bench) -> None:
        one = staging("one")
        other = staging(one.attempt)
        bench.stage(one)
        bench.stage(other)
        assert bench.find(one.attempt) == other

    def test_a_name_has_one_live_attempt_and_an_attempt_one_name(self, bench: Bench) -> None:
        """I10."""
        one = staging("order")
        bench.stage(one)
        with pytest.raises(Conflict):
            bench.stage(staging("order"))
        with pytest.raises(Conflict):
            bench.stage(staging("other", one.attempt))
        assert bench.find("order") == one
        assert bench.find("other") is None

    def test_of_many_who_stage_one_name_exactly_one_does(self, bench: Bench) -> None:
        """I10."""
        rows = [staging("contested") for _ in range(6)]
        ended = outcomes([bench.start(bench.journal.stage(bench.session(), row)) for row in rows])
        winners = [row for row, error in zip(rows, ended, strict=True) if error is None]
        assert all(error is None or isinstance(error, Refused) for error in ended)
        assert len(winners) == 1
        assert bench.find("contested") == winners[0]

    def test_only_an_attempt_that_is_decided_makes_room_for_another(self, bench: Bench) -> None:
        """I10."""
        old, new = staging("order"), staging("order")
        bench.stage(old)
        with pytest.raises(Conflict):
            bench.stage(new, replace=old)
        assert bench.find("order") == old
        bench.insert([abort(old.attempt)])
        with pytest.raises(Conflict):
            bench.stage(new)
        with pytest.raises(Conflict):
            bench.stage(new, replace=staging("order"))
        assert bench.find("order") == old
        bench.stage(new, replace=old)
        assert bench.find("order") == new
        assert bench.find(old.attempt) is None

    def test_what_is_replaced_comes_back_if_the_new_name_is_refused(self, bench: Bench) -> None:
        """I10."""
        old, other = staging("order"), staging("other")
        bench.stage(old)
        bench.stage(other)
        bench.insert([decision(attempt=old.attempt)])
        with pytest.raises(Conflict):
            bench.stage(staging("order", other.attempt), replace=old)
        assert bench.find("order") == old

    def test_replacing_one_name_never_removes_another(self, bench: Bench) -> None:
        """I10."""
        old = staging("order")
        bench.stage(old)
        bench.insert([abort(old.attempt)])
        bench.stage(staging("other"), replace=old)
        assert bench.find("order") == old

    def test_an_attempt_that_was_fenced_is_not_staged(self, bench: Bench) -> None:
        """I3, I10."""
        for fence in (abort(), decision()):
            bench.insert([fence])
            with pytest.raises(Conflict):
                bench.stage(staging("late", fence.attempt))
            assert bench.find("late") is None

    def test_a_begin_that_never_answered_gives_its_name_back_and_comes_alive_no_more(self, bench: Bench) -> None:
        """I10."""
        one, other, next_one = staging("order"), staging("other"), staging("order")
        bench.stage(one)
        bench.stage(other)
        fence = _fence(one, frees_name=True)
        bench.insert([fence, _fence(other)])
        assert bench.find("order") is None
        assert bench.find("other") == other
        with pytest.raises(Conflict):
            bench.stage(one)
        assert bench.confirm([one.attempt])[one.attempt].decision == fence.kept
        bench.stage(next_one)
        assert bench.find("order") == next_one

    def test_a_name_is_given_back_with_the_abort_that_stands_and_with_no_other(self, bench: Bench) -> None:
        """I10."""
        one = staging("order")
        bench.stage(one)
        bench.insert([decision(attempt=one.attempt, mode=Mode.STAGED, name=one.name)])
        with pytest.raises(Conflict):
            bench.insert([_fence(one, frees_name=True)])
        assert bench.find("order") == one

    def test_the_undecided_names_are_those_without_a_decision_page_by_page(self, bench: Bench) -> None:
        rows = [staging(f"n{n}", attempt_at(NOW + n)) for n in range(5)]
        for row in rows:
            bench.stage(row)
        bench.insert([decision(attempt=rows[1].attempt, mode=Mode.STAGED), abort(rows[3].attempt)])
        assert bench.undecided("", 2) == [rows[0], rows[2]]
        assert bench.undecided(rows[2].attempt, 2) == [rows[4]]

    def test_the_directory_lists_the_newest_first_with_what_was_decided(self, bench: Bench) -> None:
        rows = [staging(f"n{n}", attempt_at(NOW + n)) for n in range(6)]
        for row in rows:
            bench.stage(row)
        bench.insert([decision(attempt=rows[1].attempt), abort(rows[4].attempt)])
        bench.end([rows[1].attempt])
        verdicts = {rows[1].attempt: Verdict.COMMIT, rows[4].attempt: Verdict.ABORT}
        expected = [(row.attempt, verdicts.get(row.attempt)) for row in reversed(rows)]
        assert self._listed(bench) == expected
        first = bench.list_staged("", 4)
        assert [row for row, _ in first] == rows[:1:-1]
        last = bench.list_staged(first[-1][0].attempt, 4)
        assert [row for row, _ in last] == [rows[1], rows[0]]
        assert last[0][1].ended

    # ---- cluster and epoch (I15)

    def test_without_tables_the_journal_says_what_to_run(self, bare: Bench) -> None:
        with pytest.raises(SchemaMismatch, match="nodoubt schema apply"):
            bare.cluster()

    def test_the_first_cluster_id_stays_and_so_does_everything_else(self, bare: Bench) -> None:
        """I15."""
        first, one = new_cluster(), decision()
        bare.setup(first)
        bare.insert([one])
        begun = bare.raise_epoch(new_mark())
        bare.setup(new_cluster())
        assert bare.cluster() == first
        assert bare.epoch() == begun and begun.number == 1
        assert set(bare.look([one.attempt])) == {one.attempt}

    def test_setups_at_the_same_time_agree_on_one_cluster_id(self, bare: Bench) -> None:
        """I15."""
        ids = [new_cluster() for _ in range(4)]
        sessions = [bare.session() for _ in ids]
        ended = outcomes(
            [bare.start(bare.journal.setup(session, one)) for session, one in zip(sessions, ids, strict=True)]
        )
        assert ended == [None] * len(ids)
        seen = {bare.run(bare.journal.cluster(session)) for session in sessions}
        assert len(seen) == 1 and seen <= set(ids)
        assert bare.epoch() == Epoch()

    def test_the_epoch_rises_by_one_and_tells_each_caller_a_number_of_its_own(self, bench: Bench) -> None:
        """I15."""
        assert bench.epoch() == Epoch()
        assert bench.raise_epoch("m1") == Epoch(1, "m1") == bench.epoch()
        sessions = [bench.session() for _ in range(4)]
        marks = [new_mark() for _ in sessions]
        told = outcomes([bench.start(bench.journal.raise_epoch(*one)) for one in zip(sessions, marks, strict=True)])
        assert [getattr(one, "mark", one) for one in told] == marks
        assert sorted(getattr(one, "number", 0) for one in told) == [2, 3, 4, 5]
        assert bench.epoch() == max(told, key=lambda one: getattr(one, "number", 0))
        assert all(bench.minted(mark) for mark in ("m1", *marks))

    def test_a_mark_that_was_never_given_out_is_not_known(self, bench: Bench) -> None:
        """I15."""
        bench.raise_epoch("m1")
        assert not bench.minted("m2") and not bench.minted("M1") and not bench.minted("")

    def test_marks_are_kept_as_long_as_a_registered_resource_may_show_them(self, bench: Bench) -> None:
        """I15."""
        for number in range(1, 5):
            bench.raise_epoch(f"m{number}")
        bench.retire(1e11, 10)
        assert bench.minted("m1"), "nobody is registered, so nobody has been seen to be further"
        bench.register("orders", Identity("r1", "c" * 16, "", 4))
        bench.register("billing", Identity("r2", "c" * 16, "", 2))
        bench.retire(1e11, 10)
        assert [bench.minted(f"m{number}") for number in range(1, 5)] == [False, True, True, True]
        assert bench.epoch() == Epoch(4, "m4")

    # ---- resources

    def test_a_resource_registered_again_is_known_by_its_new_name_server_and_epoch(self, bench: Bench) -> None:
        first, other = Identity("r1", "c" * 16, "server é", 1), Identity("R1", "c" * 16, "", 0)
        bench.register("orders", first)
        bench.register("others", other)
        assert bench.registered() == {"r1": ("orders", first), "R1": ("others", other)}
        again = Identity("r1", "d" * 16, "elsewhere", 7)
        bench.register("Bestellungen", again)
        assert bench.registered() == {"r1": ("Bestellungen", again), "R1": ("others", other)}

    def test_a_resource_with_open_records_is_not_dropped(self, bench: Bench) -> None:
        """I6."""
        for one in ("r1", "r2", "r3", "r11"):
            bench.register(one, Identity(one, "c" * 16, "", 0))
        commit, live = decision(branches=branches("r1", "r9")), staging("live", branches=branches("r9", "r2"))
        bench.insert([commit])
        bench.stage(live)
        for held in ("r1", "r2"):
            with pytest.raises(Conflict):
                bench.unregister(held)
        bench.unregister("r11")
        bench.unregister("r3")
        bench.unregister("never was")
        assert set(bench.registered()) == {"r1", "r2"}
        bench.end([commit.attempt])
        bench.unregister("r1")
        bench.insert([abort(live.attempt)])
        bench.unregister("r2")
        assert bench.registered() == {}

    # ---- quarantine (I17) and the trail

    def test_what_is_quarantined_is_listed_once_until_a_named_operator_clears_it(self, bench: Bench) -> None:
        """I17."""
        attempt = new_attempt()
        first = Quarantined(attempt, 1, "orders", "no receipt", since=NOW)
        other = Quarantined(attempt, 2, "billing", "wrong epoch 'é'", since=NOW + 1)
        bench.quarantine(other)
        bench.quarantine(first)
        assert (bench.quarantined(), bench.quarantined(1)) == ([first, other], [first])
        bench.quarantine(Quarantined(attempt, 1, "orders", "still no receipt", since=NOW + 9))
        assert bench.quarantined() == [Quarantined(attempt, 1, "orders", "still no receipt", since=NOW), other]
        for nobody in ("", "  "):
            with pytest.raises(UsageError):
                bench.clear(attempt, 1, nobody)
        bench.clear(attempt, 1, "ada")
        bench.clear(attempt, 3, "ada")
        assert bench.quarantined() == [other]

    def test_what_comes_back_after_it_was_cleared_is_loud_again(self, bench: Bench) -> None:
        """I17."""
        entry = Quarantined(new_attempt(), 0, "orders", "heuristic", since=NOW)
        bench.quarantine(entry)
        bench.clear(entry.attempt, 0, "ada")
        again = Quarantined(entry.attempt, 0, "orders", "heuristic", since=NOW + 5)
        bench.quarantine(again)
        assert bench.quarantined() == [again]

    def test_events_are_told_in_the_order_in_which_they_were_recorded(self, bench: Bench) -> None:
        attempt, other = new_attempt(), new_attempt()
        trail = [
            Event(attempt, NOW + at, what, f"détail {at} 🦀")
            for at, what in ((2, "begun"), (1, "prepared"), (1, "ended"))
        ]
        bench.record(trail[:2])
        bench.record([Event(other, NOW, "begun")])
        bench.record(trail[2:])
        bench.record([])
        assert bench.events(attempt) == trail
        assert bench.events(new_attempt()) == []

    def test_the_trail_tells_what_was_done_and_nothing_that_was_refused(self, bench: Bench) -> None:
        kept, refused, quiet = staging("kept"), new_attempt(), new_attempt()
        bench.stage(kept)
        with pytest.raises(Conflict):
            bench.stage(staging("kept"))
        bench.insert(
            [decision(attempt=kept.attempt, mode=Mode.STAGED), abort(refused, decided_at=NOW), decision(attempt=quiet)]
        )
        bench.end([kept.attempt, quiet])
        bench.end([kept.attempt])
        for _ in range(2):
            bench.quarantine(Quarantined(refused, 0, "orders", "restored", NOW))
        assert [event.what for event in bench.events(kept.attempt)] == ["staged", "decided commit", "ended"]
        assert [event.what for event in bench.events(refused)] == ["decided abort", "quarantined"]
        assert bench.events(quiet) == []

    def test_what_is_told_from_a_row_says_who_did_it_when_and_why(self, bench: Bench) -> None:
        one = staging("told", owner="ada@host", created_at=NOW - 2)
        bench.stage(one)
        bench.insert([abort(one.attempt, mode=Mode.STAGED, owner="bob", reason="no stock 🦀", decided_at=NOW - 1)])
        bench.end([one.attempt])
        *first, ended = bench.events(one.attempt)
        assert first == [
            Event(one.attempt, NOW - 2, "staged", "by ada@host, on db-r0, db-r1"),
            Event(one.attempt, NOW - 1, "decided abort", "by bob: no stock 🦀"),
        ]
        assert (ended.what, ended.detail) == ("ended", "") and ended.at > NOW - 1

    def test_a_line_whose_row_makes_room_for_another_is_kept(self, bench: Bench) -> None:
        old, new = staging("order", created_at=NOW - 9), staging("order")
        bench.stage(old)
        bench.insert([decision(attempt=old.attempt, mode=Mode.STAGED)])
        bench.end([old.attempt])
        before = bench.events(old.attempt)
        bench.stage(new, replace=old)
        assert bench.events(old.attempt) == before
        assert [event.what for event in before] == ["staged", "decided commit", "ended"]
        assert [event.what for event in bench.events(new.attempt)] == ["staged"]

    def test_a_line_that_was_stored_is_not_told_again_from_its_row(self, bench: Bench) -> None:
        """Releases before this one stored every line."""
        one = staging("order")
        bench.stage(one)
        bench.insert([decision(attempt=one.attempt, mode=Mode.STAGED)])
        bench.end([one.attempt])
        stored = [
            Event(one.attempt, NOW, what, "as it was told then") for what in ("staged", "decided commit", "ended")
        ]
        bench.record(stored[:2])
        assert [event.what for event in bench.events(one.attempt)] == ["staged", "decided commit", "ended"]
        bench.record(stored[2:])
        assert bench.events(one.attempt) == stored

    def test_a_line_that_was_stored_is_not_told_again_when_its_row_makes_room(self, bench: Bench) -> None:
        """By a release before this one; this one stores the line as the row goes."""
        old = staging("order", created_at=NOW - 9)
        bench.record([Event(old.attempt, NOW - 9, "staged", "as it was told then")])
        bench.stage(old)
        bench.insert([decision(attempt=old.attempt, mode=Mode.STAGED)])
        before = bench.events(old.attempt)
        assert (before[0].what, before[0].detail) == ("staged", "as it was told then")
        bench.stage(staging("order"), replace=old)
        assert bench.events(old.attempt) == before

    def test_what_is_told_from_rows_stands_by_its_time_among_what_was_stored(self, bench: Bench) -> None:
        """Where clocks differ it stands elsewhere; neither the stored lines nor the others change their order."""
        one = staging("order", created_at=NOW + 2)
        bench.stage(one)
        bench.insert([abort(one.attempt, mode=Mode.STAGED, decided_at=NOW)])
        bench.record([Event(one.attempt, NOW + at, what) for at, what in ((1, "first"), (3, "second"), (2.5, "third"))])
        assert [event.what for event in bench.events(one.attempt)] == [
            "first", "staged", "decided abort", "second", "third",
        ]  # fmt: skip

    def test_what_people_and_programs_say_is_stored_whatever_it_holds(self, bench: Bench) -> None:
        one = abort(reason="x" * 100_000, owner="\0\ud800'; --", decided_at=NOW)
        bench.insert([one])
        stored = bench.confirm([one.attempt])[one.attempt].decision
        assert stored.reason.startswith("x" * 1000)
        assert stored.owner.endswith("'; --")
        bench.quarantine(Quarantined(one.attempt, 0, "orders", "y" * 100_000 + "\0", NOW))
        bench.record([Event(one.attempt, NOW, "what", "z" * 100_000 + "\ud800")])
        assert len(bench.quarantined()) == 1
        assert [event.what for event in bench.events(one.attempt)] == ["decided abort", "quarantined", "what"]


def _fence(staged: Staging, *, frees_name: bool = False) -> Decision:
    return abort(staged.attempt, mode=Mode.STAGED, name=staged.name, frees_name=frees_name)
