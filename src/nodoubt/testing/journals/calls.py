"""Claims about steps that were called outside, and about those who must confirm (I19).

Must not: know SQL, or a driver.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ...ports import BelowFloor, Conflict, Refused
from ...protocol.compensation import Answered, Claimed, Edited, Undone, Unfit, step
from ...protocol.records import Call, CallState, Confirmation, Decision, Mode, Readiness, Staging, Verdict
from ...xid import new_attempt
from ..bench import Bench, outcomes
from ..samples import CUT, DAY_S, LONG_AGO, NAMES, NOW, abort, attempt_at, call, decision, staging

ODD = "x' OR 1=1; -- \\ \N{CRAB} \n %s ? $1 {b}"


def commit(staged: Staging, *, gated: bool = True) -> Decision:
    """What `commit_distributed` wants to write where steps were called or somebody was asked."""
    return decision(attempt=staged.attempt, mode=Mode.STAGED, name=staged.name, gated=gated)


def in_state(state: CallState, attempt: str, number: int = 0) -> Call:
    """A call, written as if it had come that far."""
    return call(attempt, number, state=state)


class CallClaims:
    """Each takes a bench whose journal is set up and empty."""

    # ---- an intent is written once, and only while its attempt may still end either way

    def test_a_call_is_read_back_as_it_was_written(self, bench: Bench) -> None:
        attempt, more = new_attempt(), {"begun_at": NOW + 0.25, "changed_at": NOW + 0.5, "until": NOW + 0.125}
        ones = [
            call(
                attempt, 0, key=ODD, step=ODD, undo=ODD, arguments=ODD, result=ODD, claim=ODD[:40], worker=ODD, **more
            ),
            call(attempt, 1, error=ODD, undo="", tries=7, version=2**40, state=CallState.DOUBT),
        ]
        for one in reversed(ones):
            bench.intend(one)
        assert bench.calls([attempt, new_attempt()]) == ones
        assert bench.calls([]) == []

    def test_a_number_and_a_key_are_taken_once_in_an_attempt(self, bench: Bench) -> None:
        """I19."""
        first, other = call(new_attempt()), new_attempt()
        bench.intend(first)
        for again in (call(first.attempt, 0, key="another"), call(first.attempt, 1, key=first.key)):
            with pytest.raises(Conflict):
                bench.intend(again)
        bench.intend(call(other, 0, key=first.key))
        assert bench.calls([first.attempt]) == [first]

    def test_keys_that_differ_in_one_byte_are_different_keys(self, bench: Bench) -> None:
        attempt = new_attempt()
        ones = [call(attempt, number, key=key) for number, key in enumerate(NAMES)]
        for one in ones:
            bench.intend(one)
        assert bench.calls([attempt]) == ones

    def test_of_many_who_intend_one_call_exactly_one_does(self, bench: Bench) -> None:
        """I19."""
        attempt = new_attempt()
        ones = [call(attempt, 0, worker=f"w{number}") for number in range(6)]
        ended = outcomes([bench.start(bench.journal.intend(bench.session(), one)) for one in ones])
        winners = [one for one, error in zip(ones, ended, strict=True) if error is None]
        assert all(error is None or isinstance(error, Refused) for error in ended)
        assert bench.calls([attempt]) == winners and len(winners) == 1

    def test_once_an_attempt_is_decided_no_step_of_it_is_begun(self, bench: Bench) -> None:
        """I19: the fence: an action that starts late finds it."""
        for decided in (abort(), decision(), abort(mode=Mode.STAGED)):
            bench.insert([decided])
            with pytest.raises(Conflict):
                bench.intend(call(decided.attempt))
            assert bench.calls([decided.attempt]) == []

    def test_below_the_floor_no_step_is_begun(self, bench: Bench) -> None:
        """I19."""
        bench.insert([abort(attempt_at(LONG_AGO + 10))])
        bench.retire(CUT, 10)
        with pytest.raises(BelowFloor):
            bench.intend(call(attempt_at(LONG_AGO)))

    # ---- a call changes by compare-and-set

    def test_a_call_changes_only_if_nobody_has_changed_it_since(self, bench: Bench) -> None:
        """I19."""
        first = call(new_attempt())
        bench.intend(first)
        done = step(first, Answered(ODD), at=NOW + 1)
        assert bench.advance(first, done)
        assert not bench.advance(first, step(first, Answered("another"), at=NOW + 2))
        assert bench.calls([first.attempt]) == [done]
        claimed = step(done, Claimed("claim", "worker", NOW + 9), at=NOW + 3)
        edited = step(done, Edited("ada", "a typo", ODD), at=NOW + 4)
        assert bench.advance(done, claimed) and not bench.advance(done, edited)
        assert bench.calls([first.attempt]) == [claimed]
        assert not bench.advance(call(new_attempt()), claimed)

    def test_of_many_who_claim_a_compensation_exactly_one_has_it(self, bench: Bench) -> None:
        """I19, I13."""
        first = in_state(CallState.DONE, new_attempt())
        bench.intend(first)
        wanted = [step(first, Claimed(f"claim {n}", f"worker {n}", NOW), at=NOW) for n in range(8)]
        told = outcomes([bench.start(bench.journal.advance(bench.session(), first, one)) for one in wanted])
        assert all(isinstance(one, bool | Refused) for one in told)
        (winner,) = [one for one, won in zip(wanted, told, strict=True) if won is True]
        assert bench.calls([first.attempt]) == [winner]

    def test_the_trail_tells_each_step_of_a_call_and_nothing_that_was_refused(self, bench: Bench) -> None:
        first = call(new_attempt())
        bench.intend(first)
        with pytest.raises(Conflict):
            bench.intend(first)
        done = step(first, Answered("1"), at=NOW + 1)
        bench.advance(first, done)
        bench.advance(first, step(first, Answered("2"), at=NOW + 1))
        parked = step(done, Unfit("no such function"), at=NOW + 2)
        bench.advance(done, parked)
        bench.hold([first.attempt], NOW + DAY_S)
        trail = bench.events(first.attempt)
        assert [event.what for event in trail] == ["step begun", "step done", "step parked"]
        assert trail[0].detail == "#0 shop:charge" and trail[2].detail == "#0 shop:refund: no such function"

    def test_whoever_is_alive_holds_its_calls_for_longer_and_never_for_shorter(self, bench: Bench) -> None:
        mine, other = new_attempt(), call(new_attempt())
        ones = [in_state(state, mine, n) for n, state in enumerate(CallState)]
        for one in (*ones, other):
            bench.intend(one)
        bench.hold([mine], NOW + 60)
        bench.hold([mine], NOW + 30)
        bench.hold([], NOW + 90)
        for before, after in zip(ones, bench.calls([mine]), strict=True):
            assert after == (before if before.closed else msgspec.structs.replace(before, until=NOW + 60))
        assert bench.calls([other.attempt]) == [other]

    def test_the_journal_has_one_clock_that_is_not_far_from_ours(self, bench: Bench) -> None:
        first = bench.now()
        assert abs(first - NOW) < DAY_S
        assert bench.run(bench.journal.now(bench.session())) >= first

    # ---- what is left to do, and what is not

    def test_what_is_unfinished_is_neither_closed_nor_parked_page_by_page(self, bench: Bench) -> None:
        attempts = {state: attempt_at(NOW + n) for n, state in enumerate(CallState)}
        for state, attempt in attempts.items():
            bench.intend(in_state(state, attempt))
        left = [a for s, a in attempts.items() if not in_state(s, a).closed and s is not CallState.PARKED]
        assert bench.unfinished_calls("", 100) == left
        assert bench.unfinished_calls("", 2) == left[:2]
        assert bench.unfinished_calls(left[1], 100) == left[2:]
        assert bench.parked_calls() == [in_state(CallState.PARKED, attempts[CallState.PARKED])]

    def test_an_attempt_is_listed_once_however_many_calls_it_has(self, bench: Bench) -> None:
        attempt = new_attempt()
        for number, state in enumerate((CallState.UNDONE, CallState.PARKED, CallState.DONE, CallState.DUE)):
            bench.intend(in_state(state, attempt, number))
        assert bench.unfinished_calls("", 10) == [attempt]

    def test_a_call_that_comes_to_its_end_is_listed_no_more(self, bench: Bench) -> None:
        first = in_state(CallState.UNDOING, new_attempt())
        bench.intend(first)
        assert bench.unfinished_calls("", 10) == [first.attempt]
        assert bench.advance(first, step(first, Undone(), at=NOW))
        assert bench.unfinished_calls("", 10) == []

    def test_where_a_commit_has_ended_its_steps_stand_and_nothing_is_left_to_do(self, bench: Bench) -> None:
        """I19."""
        ended, other = decision(), decision()
        for one in (ended, other):
            bench.intend(in_state(CallState.DONE, one.attempt))
        bench.insert([ended, other])
        bench.end([ended.attempt])
        assert bench.unfinished_calls("", 10) == [other.attempt]
        assert [one.state for one in bench.calls([ended.attempt])] == [CallState.DONE]

    # ---- retention

    def test_an_undecided_attempt_with_steps_holds_the_floor(self, bench: Bench) -> None:
        """I19: below it nobody could decide any more, and its steps could never be undone."""
        late = attempt_at(LONG_AGO)
        bench.intend(in_state(CallState.DONE, late))
        bench.insert([abort(attempt_at(LONG_AGO + 10))])
        bench.retire(CUT, 10)
        bench.insert([abort(late)])
        assert set(bench.confirm([late])) == {late}

    def test_an_abort_whose_steps_are_not_undone_is_kept_and_holds_up_no_other(self, bench: Bench) -> None:
        """I19, I6."""
        parked, open_, done, later = (attempt_at(LONG_AGO + n) for n in range(4))
        for attempt, state in ((parked, CallState.PARKED), (open_, CallState.DUE), (done, CallState.UNDONE)):
            bench.intend(in_state(state, attempt))
        bench.insert([abort(one) for one in (parked, open_, done, later)])
        assert set(bench.retire(CUT, 10)) == {done, later}
        assert set(bench.look([parked, open_, done, later])) == {parked, open_}
        assert [one.attempt for one in bench.calls([parked, open_, done])] == [parked, open_]

    # ---- a COMMIT of what was staged carries its conditions in its own transaction

    def test_what_was_staged_is_not_committed_while_a_step_is_not_answered(self, bench: Bench) -> None:
        """I19."""
        for state in CallState:
            staged = staging(f"order {state}")
            bench.stage(staged)
            bench.intend(in_state(CallState.DONE, staged.attempt, 0))
            bench.intend(in_state(state, staged.attempt, 1))
            if state in (CallState.DONE, CallState.REFUSED):
                bench.insert([commit(staged)])
                continue
            with pytest.raises(BelowFloor):
                bench.insert([commit(staged)])
            assert bench.look([staged.attempt]) == {}
            bench.insert([abort(staged.attempt, mode=Mode.STAGED)])

    def test_what_was_staged_is_not_committed_until_all_who_were_asked_have_confirmed(self, bench: Bench) -> None:
        staged = staging("order", confirmations=("billing", "shipping"))
        bench.stage(staged)
        for who in ("shipping", "billing"):
            with pytest.raises(BelowFloor):
                bench.insert([commit(staged)])
            self._answer(bench, staged, who, Readiness.CONFIRMED)
        bench.insert([commit(staged)])
        assert bench.look([staged.attempt])[staged.attempt].decision.verdict is Verdict.COMMIT

    def test_what_somebody_has_refused_is_never_committed(self, bench: Bench) -> None:
        staged = staging("order", confirmations=("billing", "shipping"))
        bench.stage(staged)
        self._answer(bench, staged, "shipping", Readiness.CONFIRMED)
        self._answer(bench, staged, "billing", Readiness.REFUSED, "no credit")
        with pytest.raises(BelowFloor):
            bench.insert([commit(staged)])
        bench.insert([abort(staged.attempt, mode=Mode.STAGED)])

    def test_whoever_has_not_seen_that_there_are_conditions_does_not_commit(self, bench: Bench) -> None:
        """A step may have been called since the name was read. Read again, and all is well."""
        asked, called, plain = staging("asked", confirmations=("billing",)), staging("called"), staging("plain")
        for one in (asked, called, plain):
            bench.stage(one)
        self._answer(bench, asked, "billing", Readiness.CONFIRMED)
        bench.intend(in_state(CallState.DONE, called.attempt))
        for one in (asked, called):
            with pytest.raises(BelowFloor):
                bench.insert([commit(one, gated=False)])
            bench.insert([commit(one)])
        bench.insert([commit(plain, gated=False)])

    def test_a_name_that_is_not_there_is_not_committed(self, bench: Bench) -> None:
        """Its server may have been set back, and the branches with it."""
        for gone in (staging("gone"), staging("gone")):
            with pytest.raises(BelowFloor):
                bench.insert([commit(gone, gated=False)])
            bench.insert([abort(gone.attempt, mode=Mode.STAGED)])

    def test_a_neighbour_that_is_not_ready_keeps_nobody_else_from_being_aborted(self, bench: Bench) -> None:
        waiting, other = staging("waiting", confirmations=("billing",)), staging("other")
        bench.stage(waiting)
        bench.stage(other)
        with pytest.raises(BelowFloor):
            bench.insert([commit(waiting), commit(other, gated=False)])
        assert bench.look([waiting.attempt, other.attempt]) == {}
        bench.insert([commit(other, gated=False)])

    # ---- confirmations

    def _answer(self, bench: Bench, staged: Staging, who: str, answer: Readiness, why: str = "") -> Any:
        return bench.answer(staged.attempt, who, answer, why=why, at=NOW + 5)

    def test_the_first_answer_of_each_stands(self, bench: Bench) -> None:
        staged = staging("order", confirmations=("a", "b"))
        bench.stage(staged)
        assert bench.confirmations(staged.attempt) == [Confirmation(staged.attempt, who) for who in "ab"]
        yes = Confirmation(staged.attempt, "a", Readiness.CONFIRMED, "", NOW + 5)
        no = Confirmation(staged.attempt, "b", Readiness.REFUSED, ODD, NOW + 5)
        assert self._answer(bench, staged, "a", Readiness.CONFIRMED) == yes
        assert self._answer(bench, staged, "b", Readiness.REFUSED, ODD) == no
        assert self._answer(bench, staged, "a", Readiness.REFUSED, "changed my mind") == yes
        assert self._answer(bench, staged, "b", Readiness.CONFIRMED) == no
        assert bench.confirmations(staged.attempt) == [yes, no]
        assert [event.what for event in bench.events(staged.attempt)] == ["staged", "confirmed", "refused"]

    def test_whoever_was_not_asked_has_no_say(self, bench: Bench) -> None:
        staged = staging("order", confirmations=("billing", "Billing ", "Ünsinn 🦀"))
        bench.stage(staged)
        for nobody in ("BILLING", "billing ", "shipping", ""):
            assert self._answer(bench, staged, nobody, Readiness.REFUSED) is None
        assert bench.answer(new_attempt(), "billing", Readiness.REFUSED, why="", at=NOW) is None
        assert {one.answer for one in bench.confirmations(staged.attempt)} == {Readiness.ASKED}
        assert self._answer(bench, staged, "Ünsinn 🦀", Readiness.CONFIRMED).who == "Ünsinn 🦀"

    def test_after_the_decision_no_answer_is_written_any_more(self, bench: Bench) -> None:
        staged = staging("order", confirmations=("billing", "shipping"))
        bench.stage(staged)
        self._answer(bench, staged, "billing", Readiness.CONFIRMED)
        bench.insert([abort(staged.attempt, mode=Mode.STAGED)])
        assert self._answer(bench, staged, "shipping", Readiness.CONFIRMED).answer is Readiness.ASKED

    def test_of_many_answers_at_once_one_stands_and_all_are_told_the_same(self, bench: Bench) -> None:
        staged = staging("order", confirmations=("billing",))
        bench.stage(staged)
        wanted = [Readiness.CONFIRMED, Readiness.REFUSED] * 3
        scripts = [
            bench.journal.answer(bench.session(), staged.attempt, "billing", one, why=str(number), at=NOW)
            for number, one in enumerate(wanted)
        ]
        told = [one for one in outcomes([bench.start(script) for script in scripts]) if not isinstance(one, Refused)]
        assert told and set(told) == set(bench.confirmations(staged.attempt))

    def test_a_refusal_and_a_commit_at_once_do_not_contradict_each_other(self, bench: Bench) -> None:
        for number in range(5):
            staged = staging(f"order {number}", confirmations=("billing",))
            bench.stage(staged)
            answer = (Readiness.CONFIRMED, Readiness.REFUSED)[number % 2]
            session, other = bench.session(), bench.session()
            outcomes(
                [
                    bench.start(bench.journal.answer(session, staged.attempt, "billing", answer, why="", at=NOW)),
                    bench.start(bench.journal.insert(other, [commit(staged)])),
                ]
            )
            (said,) = bench.confirmations(staged.attempt)
            assert not bench.look([staged.attempt]) or said.answer is Readiness.CONFIRMED

    # ---- the directory

    def test_a_name_tells_who_must_confirm_and_how_many_steps_were_called(self, bench: Bench) -> None:
        staged = staging("order", confirmations=("a", ODD), calls=2)
        bench.stage(staged)
        assert bench.find("order") == staged
        for number in range(3):
            bench.intend(call(staged.attempt, number))
        bench.intend(call(new_attempt()))
        found = bench.find("order")
        assert found == msgspec.structs.replace(staged, calls=5) == bench.find(staged.attempt)

    def test_whoever_replaces_a_name_asks_anew(self, bench: Bench) -> None:
        old, new = staging("order", confirmations=("a",)), staging("order", confirmations=("b",))
        bench.stage(old)
        bench.insert([abort(old.attempt, mode=Mode.STAGED)])
        bench.stage(new, replace=old)
        assert bench.confirmations(new.attempt) == [Confirmation(new.attempt, "b")]

    def test_overdue_is_what_is_past_its_deadline_or_refused_and_undecided(self, bench: Bench) -> None:
        rows = [staging(f"n{n}", attempt_at(NOW + n), deadline=NOW + n, confirmations=("a",)) for n in range(6)]
        for row in rows:
            bench.stage(row)
        self._answer(bench, rows[4], "a", Readiness.REFUSED)
        self._answer(bench, rows[5], "a", Readiness.CONFIRMED)
        bench.insert([abort(rows[1].attempt, mode=Mode.STAGED)])
        due = [rows[0].attempt, rows[2].attempt, rows[4].attempt]
        assert [one.attempt for one in bench.overdue(NOW + 2.5, "", 10)] == due
        assert [one.attempt for one in bench.overdue(NOW + 2.5, "", 1)] == due[:1]
        assert [one.attempt for one in bench.overdue(NOW + 2.5, due[0], 10)] == due[1:]
