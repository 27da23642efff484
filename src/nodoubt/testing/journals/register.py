"""Claims about the register: one decision, its end, and what may be forgotten.

Must not: know SQL, or a driver.
"""

from __future__ import annotations

import random
import secrets
import time

import pytest

from ...errors import UsageError
from ...ports import BelowFloor, Conflict, Refused, Session, Unclear
from ...protocol.records import BranchRef, Decision, Event, Mode, Quarantined, Verdict
from ...script import Script
from ...xid import new_attempt
from ..bench import Bench, cut_short, outcomes
from ..samples import CUT, DAY_S, LONG_AGO, NAMES, NOW, abort, attempt_at, decision, staging


class RegisterClaims:
    """Each takes a bench whose journal is set up and empty."""

    # ---- one decision (I3)

    def test_a_decision_is_read_back_as_it_was_written(self, bench: Bench) -> None:
        written = [
            decision(
                name=name,
                branches=tuple(BranchRef(n, f"{name} {n}", secrets.token_hex(16)) for n in (0, 1, 255)),
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
        """I3."""
        for first in (decision(), abort()):
            bench.insert([first])
            for second in (decision(attempt=first.attempt, owner="other"), abort(first.attempt), first):
                with pytest.raises(Conflict):
                    bench.insert([second])
                assert bench.confirm([first.attempt])[first.attempt].decision == first

    def test_several_decisions_are_written_together_or_not_at_all(self, bench: Bench) -> None:
        """I3."""
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
        """I3, I18."""
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
        """I3, I13."""
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
        """I5."""
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
        """I13."""
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
        """I5."""
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
        """I6."""
        commits = sorted((decision() for _ in range(7)), key=lambda one: one.attempt)
        bench.insert([*commits, abort(), abort()])
        bench.end([commits[2].attempt])
        left = [one for one in commits if one is not commits[2]]
        assert [s.decision for s in bench.open_commits("", 100)] == left
        assert [s.decision for s in bench.open_commits("", 3)] == left[:3]
        assert [s.decision for s in bench.open_commits(left[2].attempt, 100)] == left[3:]

    def test_an_ended_record_says_so_and_ending_it_again_changes_nothing(self, bench: Bench) -> None:
        """I3, I6."""
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
        """I3."""
        self.raise_floor(bench)
        for late in (decision(attempt=attempt_at(LONG_AGO)), abort(attempt_at(LONG_AGO))):
            with pytest.raises(BelowFloor):
                bench.insert([late])
            with pytest.raises(BelowFloor):
                bench.insert([decision(), late])
            assert bench.confirm([late.attempt]) == {}
        bench.insert([decision(attempt=attempt_at(NOW))])

    def test_below_the_floor_nothing_is_staged(self, bench: Bench) -> None:
        """I10."""
        self.raise_floor(bench)
        with pytest.raises(BelowFloor):
            bench.stage(staging("late", attempt_at(LONG_AGO)))
        assert bench.find("late") is None

    def test_the_clean_up_forgets_what_ended_before_the_cut_and_only_that(self, bench: Bench) -> None:
        """I6."""
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

    def test_the_aborts_that_would_be_forgotten_next_are_told_before(self, bench: Bench) -> None:
        first, second, young = (abort(attempt_at(at)) for at in (LONG_AGO, LONG_AGO + 1, CUT + DAY_S))
        late, commit = abort(attempt_at(LONG_AGO), decided_at=NOW), decision(attempt=attempt_at(LONG_AGO))
        broken = abort(attempt_at(LONG_AGO + 2))
        bench.insert([second, first, young, late, commit, broken])
        bench.quarantine(Quarantined(broken.attempt, 0, "a", "somebody committed it", NOW))
        assert [standing.decision for standing in bench.aborted(CUT, 100)] == [first, second]
        assert [standing.decision for standing in bench.aborted(CUT, 1)] == [first]
        assert [standing.decision for standing in bench.aborted(CUT, 100, first.attempt)] == [second]
        bench.end([commit.attempt])
        bench.stage(staging("young", attempt_at(NOW)))
        assert set(bench.retire(CUT, 100)) == {first.attempt, second.attempt}
        assert bench.aborted(CUT, 100) == []

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
        """I6."""
        open_one, old_abort = decision(attempt=attempt_at(LONG_AGO)), abort(attempt_at(LONG_AGO + 1))
        bench.insert([open_one, old_abort])
        bench.retire(time.time() + DAY_S, 100)
        assert bench.floor() <= open_one.attempt
        assert set(bench.look([open_one.attempt, old_abort.attempt])) == {open_one.attempt, old_abort.attempt}
        bench.end([open_one.attempt])
        assert bench.retire(time.time() + DAY_S, 100) == (open_one.attempt, old_abort.attempt)

    def test_a_live_name_holds_the_floor_until_it_is_decided(self, bench: Bench) -> None:
        """I10."""
        live, old_abort = staging("live", attempt_at(LONG_AGO)), abort(attempt_at(LONG_AGO + 1))
        bench.stage(live)
        bench.insert([old_abort])
        assert bench.retire(CUT, 100) == ()
        assert bench.floor() <= live.attempt
        bench.insert([decision(attempt=live.attempt)])
        assert bench.retire(CUT, 100) == ()
        bench.end([live.attempt])
        assert bench.retire(time.time() + DAY_S, 100) == (live.attempt, old_abort.attempt)

    def test_a_batch_begins_where_the_one_before_has_ended(self, bench: Bench) -> None:
        old = sorted(attempt_at(LONG_AGO + n) for n in range(4))
        bench.insert([abort(attempt) for attempt in old])
        assert bench.retire(CUT, 1, old[1]) == (old[2],)
        assert bench.retire(CUT, 10) == (old[0], old[1], old[3])

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
        """I17."""
        old = abort(attempt_at(LONG_AGO))
        bench.insert([old])
        bench.quarantine(Quarantined(old.attempt, 1, "orders", "came back prepared", since=NOW))
        assert bench.retire(CUT, 100) == ()
        bench.clear(old.attempt, 1, "ada")
        assert bench.retire(CUT, 100) == (old.attempt,)

    def test_a_record_that_stands_below_the_floor_is_a_conflict_and_can_be_confirmed(self, bench: Bench) -> None:
        """I3."""
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
        """I3, I6."""
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
        """I3, I6."""
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
