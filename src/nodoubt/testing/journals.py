"""The conformance suite for journals: what every `ports.Journal` must do, whatever stores it.

Subclass `JournalSuite` in a test module, with two pytest fixtures: `bench`, a `bench.Bench` over a journal that is set
up and empty, and `bare`, one whose database holds nothing yet.

Each test is named after the rule that it holds. That a decision is forced to disk no client can see: cut the power.

Must not: know SQL, or a driver.
"""

from __future__ import annotations

import random
import secrets
import time

import pytest

from ..errors import InvalidName, SchemaMismatch, UsageError
from ..ports import BelowFloor, Conflict, Identity, Refused, Session, Unclear
from ..protocol.records import BranchRef, Decision, Event, Mode, Quarantined, Verdict
from ..script import Script
from ..xid import new_attempt, new_cluster
from .bench import Bench, cut_short, outcomes
from .samples import CUT, DAY_S, LONG_AGO, NAMES, NOW, abort, attempt_at, branches, decision, staging


class JournalSuite:
    """The claims. Each takes a bench whose journal is set up and empty (`bare`: not even set up)."""

    # ---- one decision (I3)

    def test_a_decision_is_read_back_as_it_was_written(self, bench: Bench) -> None:
        written = [
            decision(
                mode=Mode.STAGED,
                name=name,
                branches=tuple(BranchRef(n, f"{name} {n}", secrets.token_hex(16)) for n in range(3)),
                point=point,
                owner=f"host/'\"\\;--{name}",
                reason="line\nline\ttab",
                decided_at=NOW + 0.123456,
            )
            for name, point in ((NAMES[-1], None), (NAMES[23], 0), ("", 255))
        ]
        bench.insert(written)
        for found in (bench.look([one.attempt for one in written]), bench.confirm([one.attempt for one in written])):
            assert {attempt: standing.decision for attempt, standing in found.items()} == {
                one.attempt: one for one in written
            }
            assert not any(standing.ended for standing in found.values())

    def test_the_first_decision_stands_whatever_the_second_one_says(self, bench: Bench) -> None:
        for first in (decision(), abort()):
            bench.insert([first])
            for second in (decision(attempt=first.attempt, owner="other"), abort(first.attempt), first):
                with pytest.raises(Conflict):
                    bench.insert([second])
                assert bench.confirm([first.attempt])[first.attempt].decision == first

    def test_several_decisions_are_written_together_or_not_at_all(self, bench: Bench) -> None:
        several = [decision() for _ in range(7)]
        bench.insert(several)
        assert set(bench.confirm([one.attempt for one in several])) == {one.attempt for one in several}
        fresh = [decision(), abort()]
        with pytest.raises(Conflict):
            bench.insert([fresh[0], several[3], fresh[1]])
        assert bench.look([one.attempt for one in fresh]) == {}
        with pytest.raises(Conflict):
            bench.insert([fresh[0], fresh[1], fresh[0]])
        assert bench.look([one.attempt for one in fresh]) == {}

    def test_a_refused_write_leaves_nothing_open_in_its_session(self, bench: Bench) -> None:
        # InnoDB and SQLite leave the transaction open after a duplicate key, and whatever ends it next would
        # commit the first of these two.
        taken, fresh, next_one = decision(), decision(), decision()
        session = bench.session()
        bench.run(bench.journal.insert(session, [taken]))
        with pytest.raises(Conflict):
            bench.run(bench.journal.insert(session, [fresh, abort(taken.attempt)]))
        bench.run(bench.journal.insert(session, [next_one]))
        assert set(bench.look([fresh.attempt, next_one.attempt])) == {next_one.attempt}

    def test_of_many_who_decide_at_once_exactly_one_does(self, bench: Bench) -> None:
        sessions = [bench.session() for _ in range(6)]
        for _ in range(5):
            attempt = new_attempt()
            wanted = [
                decision(random.choice(tuple(Verdict)), attempt, owner=f"p{n}")  # noqa: S311 - any mixture will do
                for n in range(len(sessions))
            ]
            ended = outcomes(
                [
                    bench.start(bench.journal.insert(session, [one]))
                    for session, one in zip(sessions, wanted, strict=True)
                ]
            )
            winners = [one for one, error in zip(wanted, ended, strict=True) if error is None]
            # A loser may be told to try again (a deadlock), but never that it succeeded.
            assert all(error is None or isinstance(error, Refused) for error in ended)
            assert len(winners) == 1
            assert bench.confirm([attempt])[attempt].decision == winners[0]

    def test_what_nobody_decided_is_neither_looked_up_nor_confirmed(self, bench: Bench) -> None:
        one = decision()
        bench.insert([one])
        bench.insert([])
        assert bench.look([]) == {} == bench.confirm([])
        assert bench.look([new_attempt()]) == {} == bench.confirm([new_attempt()])
        assert set(bench.confirm([new_attempt(), one.attempt, new_attempt()])) == {one.attempt}

    def test_more_attempts_are_confirmed_than_fit_into_one_statement(self, bench: Bench) -> None:
        many = [decision() for _ in range(60)]
        bench.insert(many)
        asked = [*(one.attempt for one in many), *(new_attempt() for _ in range(1200))]
        random.shuffle(asked)
        assert set(bench.confirm(asked)) == set(bench.look(asked)) == {one.attempt for one in many}

    def test_recoverers_who_confirm_the_same_rows_in_any_order_do_not_block_each_other(self, bench: Bench) -> None:
        many = [decision() for _ in range(40)]
        bench.insert(many)
        sessions = [bench.session() for _ in range(4)]

        def script(session: Session) -> Script[None]:
            for _ in range(8):
                some = random.sample(many, 30)
                found = yield from bench.journal.confirm(session, [one.attempt for one in some])
                assert len(found) == 30
                yield from bench.journal.end(session, [one.attempt for one in reversed(some)])

        assert outcomes([bench.start(script(session)) for session in sessions]) == [None] * len(sessions)

    def test_an_id_that_is_not_an_attempts_is_refused_before_it_reaches_the_database(self, bench: Bench) -> None:
        for bad in ("", "0" * 31, "0" * 33, "G" * 32, f"{'0' * 31}'", f"{'0' * 32}\n"):
            with pytest.raises(UsageError):
                bench.insert([decision(), Decision(bad, Verdict.COMMIT, Mode.ONCE, "", ())])

    def test_a_session_that_is_lost_makes_a_write_unclear_and_never_refused(self, bench: Bench) -> None:
        session = bench.session()
        session.kill()
        for script in (
            bench.journal.insert(session, [decision()]),
            bench.journal.confirm(session, [new_attempt()]),
            bench.journal.end(session, [new_attempt()]),
            bench.journal.stage(session, staging("lost")),
            bench.journal.look(session, [new_attempt()]),
        ):
            with pytest.raises(Unclear):
                bench.run(script)

    # ---- the end of a record (I6)

    def test_open_commits_are_those_that_have_not_ended_page_by_page(self, bench: Bench) -> None:
        commits = sorted((decision() for _ in range(7)), key=lambda one: one.attempt)
        bench.insert([*commits, abort(), abort()])
        bench.end([commits[2].attempt])
        left = [one for one in commits if one is not commits[2]]
        assert [s.decision for s in bench.open_commits("", 100)] == left
        assert [s.decision for s in bench.open_commits("", 3)] == left[:3]
        assert [s.decision for s in bench.open_commits(left[2].attempt, 100)] == left[3:]

    def test_an_ended_record_says_so_and_ending_it_again_changes_nothing(self, bench: Bench) -> None:
        one, other = decision(), decision()
        bench.insert([one, other])
        for _ in range(2):
            bench.end([one.attempt, new_attempt()])
            assert bench.look([one.attempt])[one.attempt].ended
            assert bench.confirm([one.attempt])[one.attempt].ended
            assert not bench.confirm([other.attempt])[other.attempt].ended
        bench.end([])
        with pytest.raises(Conflict):
            bench.insert([abort(one.attempt)])

    # ---- retention

    def test_at_first_everything_may_be_decided(self, bench: Bench) -> None:
        assert bench.floor() <= attempt_at(0)
        ancient = decision(attempt=attempt_at(1.0))
        bench.insert([ancient])
        assert bench.confirm([ancient.attempt])[ancient.attempt].decision == ancient

    def raise_floor(self, bench: Bench, to: float = CUT) -> str:
        """Have the floor at about this time, with no records below it."""
        bench.insert([abort(attempt_at(to + 1))])
        bench.retire(to, 10)
        floor: str = bench.floor()
        assert attempt_at(to - 1) < floor <= attempt_at(to + 1)
        return floor

    def test_below_the_floor_nothing_is_decided_neither_commit_nor_abort(self, bench: Bench) -> None:
        self.raise_floor(bench)
        for late in (decision(attempt=attempt_at(LONG_AGO)), abort(attempt_at(LONG_AGO))):
            with pytest.raises(BelowFloor):
                bench.insert([late])
            with pytest.raises(BelowFloor):
                bench.insert([decision(), late])
            assert bench.confirm([late.attempt]) == {}
        bench.insert([decision(attempt=attempt_at(NOW))])

    def test_below_the_floor_nothing_is_staged(self, bench: Bench) -> None:
        self.raise_floor(bench)
        with pytest.raises(BelowFloor):
            bench.stage(staging("late", attempt_at(LONG_AGO)))
        assert bench.find("late") is None

    def test_the_clean_up_forgets_what_ended_before_the_cut_and_only_that(self, bench: Bench) -> None:
        # The server's own clock tells when a record ended: what ends here ends today.
        old_abort, young_abort = abort(attempt_at(LONG_AGO)), abort(attempt_at(CUT + DAY_S))
        late_abort = abort(attempt_at(LONG_AGO), decided_at=NOW)  # begun long ago, decided today
        old_commit = decision(attempt=attempt_at(LONG_AGO))  # decided long ago, ended today
        bench.insert([old_abort, young_abort, late_abort, old_commit])
        bench.end([old_commit.attempt])
        bench.stage(staging("young", young := attempt_at(NOW)))
        assert bench.retire(CUT, 100) == (old_abort.attempt,)
        assert bench.floor() <= young
        left = {young_abort.attempt, late_abort.attempt, old_commit.attempt}
        assert set(bench.look([*left, old_abort.attempt])) == left
        assert bench.find("young") is not None
        assert set(bench.retire(time.time() + DAY_S, 100)) == left
        assert bench.look(list(left)) == {}

    def test_with_a_record_go_its_name_and_its_trail(self, bench: Bench) -> None:
        old, stray, young = attempt_at(LONG_AGO), attempt_at(LONG_AGO), attempt_at(NOW)
        for name, attempt in (("old", old), ("young", young)):
            bench.stage(staging(name, attempt))
        bench.insert([abort(old), abort(young)])
        bench.record([Event(attempt, LONG_AGO, "begun") for attempt in (old, stray, young)])
        bench.record([Event(stray, NOW, "seen")])
        assert bench.retire(CUT, 100) == (old,)
        assert bench.find("old") is None and bench.find(old) is None
        assert bench.events(old) == []
        assert LONG_AGO in [event.at for event in bench.events(young)]
        # Of an attempt that was never decided nothing else would remind anybody.
        assert [event.at for event in bench.events(stray)] in ([NOW], [])
        bench.stage(staging("old"))

    def test_a_commit_that_has_not_ended_is_never_forgotten_and_holds_the_floor(self, bench: Bench) -> None:
        open_one, old_abort = decision(attempt=attempt_at(LONG_AGO)), abort(attempt_at(LONG_AGO + 1))
        bench.insert([open_one, old_abort])
        bench.retire(time.time() + DAY_S, 100)
        assert bench.floor() <= open_one.attempt
        assert set(bench.look([open_one.attempt, old_abort.attempt])) == {open_one.attempt, old_abort.attempt}
        bench.end([open_one.attempt])
        assert bench.retire(time.time() + DAY_S, 100) == (open_one.attempt, old_abort.attempt)

    def test_a_live_name_holds_the_floor_until_it_is_decided(self, bench: Bench) -> None:
        live, old_abort = staging("live", attempt_at(LONG_AGO)), abort(attempt_at(LONG_AGO + 1))
        bench.stage(live)
        bench.insert([old_abort])
        assert bench.retire(CUT, 100) == ()
        assert bench.floor() <= live.attempt
        bench.insert([decision(attempt=live.attempt)])
        assert bench.retire(CUT, 100) == ()
        bench.end([live.attempt])
        assert bench.retire(time.time() + DAY_S, 100) == (live.attempt, old_abort.attempt)

    def test_records_go_in_batches_and_none_is_left_behind(self, bench: Bench) -> None:
        old = sorted(attempt_at(LONG_AGO + n) for n in range(23))
        for n, attempt in enumerate(old[:12]):
            bench.stage(staging(f"name {n}", attempt))
        bench.insert([abort(attempt) for attempt in old])
        gone: list[str] = []
        for _ in range(len(old)):
            batch = bench.retire(CUT, 5)
            assert len(batch) <= 5
            gone += batch
            if not batch:
                break
        assert gone == old
        assert bench.list_staged("", 100) == []

    def test_a_record_whose_branch_is_quarantined_is_kept_until_it_is_cleared(self, bench: Bench) -> None:
        old = abort(attempt_at(LONG_AGO))
        bench.insert([old])
        bench.quarantine(Quarantined(old.attempt, 1, "orders", "came back prepared", since=NOW))
        assert bench.retire(CUT, 100) == ()
        bench.clear(old.attempt, 1, "ada")
        assert bench.retire(CUT, 100) == (old.attempt,)

    def test_a_record_that_stands_below_the_floor_is_a_conflict_and_can_be_confirmed(self, bench: Bench) -> None:
        kept = abort(attempt_at(LONG_AGO), decided_at=NOW)
        bench.insert([kept])
        self.raise_floor(bench)
        assert bench.floor() > kept.attempt
        with pytest.raises(Conflict):
            bench.insert([decision(attempt=kept.attempt)])
        assert bench.confirm([kept.attempt])[kept.attempt].decision == kept

    def test_a_clock_far_ahead_does_not_lock_out_the_transactions_to_come(self, bench: Bench) -> None:
        bench.insert([abort()])
        bench.retire(NOW + 100 * 365 * DAY_S, 100)
        bench.insert([decision(attempt=attempt_at(time.time() + 1))])
        bench.retire(-1.0, 100)

    def test_wherever_a_clean_up_dies_what_is_gone_lies_below_the_floor(self, bench: Bench) -> None:
        for effects in range(20):
            old = [attempt_at(LONG_AGO + effects * 60 + n) for n in range(3)]
            for n, attempt in enumerate(old):
                bench.stage(staging(f"{effects} {n}", attempt))
            bench.insert([abort(attempt) for attempt in old])
            ended = bench.run(cut_short(bench.journal.retire(bench.session(), CUT, 100), effects))
            floor, left = bench.floor(), bench.look(old)
            assert all(attempt in left or attempt < floor for attempt in old)
            for attempt in old:
                with pytest.raises((Conflict, BelowFloor)):
                    bench.insert([decision(attempt=attempt)])
            if ended:
                assert left == {}
                return
            assert bench.look(old) == left
            bench.retire(CUT, 100)
            assert bench.look(old) == {}
        raise AssertionError("the clean-up does not end")

    def test_a_commit_that_races_with_the_clean_up_is_above_the_floor_or_refused(self, bench: Bench) -> None:
        sessions = [bench.session() for _ in range(4)]
        base = NOW - 20 * DAY_S
        steps = 25
        bench.insert([abort(attempt_at(base + steps))])

        def commits(session: Session, n: int) -> Script[list[str]]:
            written = []
            for step in range(steps):
                one = decision(attempt=attempt_at(base + step + n / 10))
                try:
                    yield from bench.journal.insert(session, [one])
                except BelowFloor:
                    continue
                written.append(one.attempt)
                yield from bench.journal.end(session, [one.attempt])
            return written

        def clean_ups(session: Session) -> Script[list[str]]:
            for step in range(steps):
                yield from bench.journal.retire(session, base + step, 50)
                floor = yield from bench.journal.floor(session)
                for standing in (yield from bench.journal.open_commits(session, "", 100)):
                    # Open now, so open or unwritten when the floor was raised.
                    assert standing.decision.attempt >= floor, f"{standing.decision.attempt} is below {floor}"
            return []

        scripts = [commits(session, n) for n, session in enumerate(sessions[:3])]
        ended = outcomes([bench.start(script) for script in (*scripts, clean_ups(sessions[3]))])
        assert not [error for error in ended if isinstance(error, BaseException)], ended

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
        one = staging("order")
        bench.stage(one)
        with pytest.raises(Conflict):
            bench.stage(staging("order"))
        with pytest.raises(Conflict):
            bench.stage(staging("other", one.attempt))
        assert bench.find("order") == one
        assert bench.find("other") is None

    def test_of_many_who_stage_one_name_exactly_one_does(self, bench: Bench) -> None:
        rows = [staging("contested") for _ in range(6)]
        ended = outcomes([bench.start(bench.journal.stage(bench.session(), row)) for row in rows])
        winners = [row for row, error in zip(rows, ended, strict=True) if error is None]
        assert all(error is None or isinstance(error, Refused) for error in ended)
        assert len(winners) == 1
        assert bench.find("contested") == winners[0]

    def test_only_an_attempt_that_is_decided_makes_room_for_another(self, bench: Bench) -> None:
        old, new = staging("order"), staging("order")
        bench.stage(old)
        with pytest.raises(Conflict):
            bench.stage(new, replace=old.attempt)
        assert bench.find("order") == old
        bench.insert([abort(old.attempt)])
        with pytest.raises(Conflict):
            bench.stage(new)
        with pytest.raises(Conflict):
            bench.stage(new, replace=new_attempt())
        assert bench.find("order") == old
        bench.stage(new, replace=old.attempt)
        assert bench.find("order") == new
        assert bench.find(old.attempt) is None

    def test_what_is_replaced_comes_back_if_the_new_name_is_refused(self, bench: Bench) -> None:
        old, other = staging("order"), staging("other")
        bench.stage(old)
        bench.stage(other)
        bench.insert([decision(attempt=old.attempt)])
        with pytest.raises(Conflict):
            bench.stage(staging("order", other.attempt), replace=old.attempt)
        assert bench.find("order") == old

    def test_replacing_one_name_never_removes_another(self, bench: Bench) -> None:
        old = staging("order")
        bench.stage(old)
        bench.insert([abort(old.attempt)])
        bench.stage(staging("other"), replace=old.attempt)
        assert bench.find("order") == old

    def test_an_attempt_that_was_fenced_is_not_staged(self, bench: Bench) -> None:
        for fence in (abort(), decision()):
            bench.insert([fence])
            with pytest.raises(Conflict):
                bench.stage(staging("late", fence.attempt))
            assert bench.find("late") is None

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
        first, one = new_cluster(), decision()
        bare.setup(first)
        bare.insert([one])
        bare.raise_epoch()
        bare.setup(new_cluster())
        assert bare.cluster() == first
        assert bare.epoch() == 1
        assert set(bare.look([one.attempt])) == {one.attempt}

    def test_setups_at_the_same_time_agree_on_one_cluster_id(self, bare: Bench) -> None:
        ids = [new_cluster() for _ in range(4)]
        sessions = [bare.session() for _ in ids]
        ended = outcomes(
            [bare.start(bare.journal.setup(session, one)) for session, one in zip(sessions, ids, strict=True)]
        )
        assert ended == [None] * len(ids)
        seen = {bare.run(bare.journal.cluster(session)) for session in sessions}
        assert len(seen) == 1 and seen <= set(ids)
        assert bare.epoch() == 0

    def test_the_epoch_rises_by_one_and_tells_each_caller_a_number_of_its_own(self, bench: Bench) -> None:
        assert bench.epoch() == 0
        assert bench.raise_epoch() == 1 == bench.epoch()
        sessions = [bench.session() for _ in range(4)]
        told = outcomes([bench.start(bench.journal.raise_epoch(session)) for session in sessions])
        assert sorted(map(str, told)) == ["2", "3", "4", "5"]
        assert bench.epoch() == 5

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
        attempt = new_attempt()
        first = Quarantined(attempt, 1, "orders", "no receipt", since=NOW)
        other = Quarantined(attempt, 2, "billing", "wrong epoch 'é'", since=NOW + 1)
        bench.quarantine(other)
        bench.quarantine(first)
        assert bench.quarantined() == [first, other]
        bench.quarantine(Quarantined(attempt, 1, "orders", "still no receipt", since=NOW + 9))
        assert bench.quarantined() == [Quarantined(attempt, 1, "orders", "still no receipt", since=NOW), other]
        for nobody in ("", "  "):
            with pytest.raises(UsageError):
                bench.clear(attempt, 1, nobody)
        bench.clear(attempt, 1, "ada")
        bench.clear(attempt, 3, "ada")
        assert bench.quarantined() == [other]

    def test_what_comes_back_after_it_was_cleared_is_loud_again(self, bench: Bench) -> None:
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

    def test_the_trail_tells_what_was_done_because_it_is_written_with_it(self, bench: Bench) -> None:
        kept, refused, quiet = staging("kept"), new_attempt(), new_attempt()
        bench.stage(kept)
        with pytest.raises(Conflict):
            bench.stage(staging("kept"))
        bench.insert([decision(attempt=kept.attempt, mode=Mode.STAGED), abort(refused), decision(attempt=quiet)])
        bench.end([kept.attempt, quiet])
        bench.end([kept.attempt])
        for _ in range(2):
            bench.quarantine(Quarantined(refused, 0, "orders", "restored", NOW))
        assert [event.what for event in bench.events(kept.attempt)] == ["staged", "decided commit", "ended"]
        assert [event.what for event in bench.events(refused)] == ["decided abort", "quarantined"]
        assert bench.events(quiet) == []

    def test_what_people_and_programs_say_is_stored_whatever_it_holds(self, bench: Bench) -> None:
        one = abort(reason="x" * 100_000, owner="\0\ud800'; --")
        bench.insert([one])
        stored = bench.confirm([one.attempt])[one.attempt].decision
        assert stored.reason.startswith("x" * 1000)
        assert stored.owner.endswith("'; --")
        bench.quarantine(Quarantined(one.attempt, 0, "orders", "y" * 100_000 + "\0"))
        bench.record([Event(one.attempt, NOW, "what", "z" * 100_000 + "\ud800")])
        assert len(bench.quarantined()) == 1
        assert [event.what for event in bench.events(one.attempt)] == ["decided abort", "quarantined", "what"]
