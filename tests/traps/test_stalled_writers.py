"""A writer that stalls past every grace while recovery runs, and then goes on: SIGSTOP and SIGCONT of a real process.

Recovery has no grace here at all (grace=0): clocks only choose when to try (I14). What stops the writer, once it
goes on, is the register alone. Nothing may be inferred from how many of its branches are prepared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kit import QUICK, Database, until
from nodoubt import Coordinator, State, UnknownTransaction
from nodoubt.engine import register
from nodoubt.points import Point
from nodoubt.protocol.records import Verdict
from traps.child import Child
from traps.scenes import UNTOUCHED, balances, databases, recovered

# Where it stalls: way, journal ("a": a branch is the commit point; "own": all branches prepare), notice, occurrence.
STALLS = [
    ("once", "a", "P3", "prepared", 1),
    ("once", "a", "P5", "deciding", 1),
    ("once", "own", "P3", "prepared", 1),
    ("once", "own", "P4", "all prepared", 1),
    ("staged", "a", "P3", "prepare", 2),
    ("staged", "own", "P3", "prepared", 1),
]
AFTER = ["P6.committed", "P8.commit"]


def journal_at(journal: str, tmp_path: Path) -> str | None:
    return f"sqlite:///{tmp_path}/journal.db" if journal == "own" else None


def coordinator(pair: list[Database], at: str | None, **options: Any) -> Coordinator:
    return Coordinator({d.name: d.url for d in pair}, journal=at, settings=QUICK, recovery=False, **options)


@pytest.mark.parametrize(("way", "journal", "point", "what", "count"), STALLS)
@pytest.mark.parametrize(("kinds", "mode"), [("postgres+mariadb", "sync"), ("postgres+sqlite", "async")])
def test_a_writer_that_stalls_past_every_grace_is_told_that_it_was_aborted(
    way: str, journal: str, point: str, what: str, count: int, kinds: str, mode: str, request: Any, tmp_path: Path
) -> None:
    pair, at = databases(kinds, request, tmp_path), journal_at(journal, tmp_path)
    if "sqlite" in kinds and (journal, what) == ("own", "prepared"):
        count = 2  # stopped in the middle of its other prepare, it would keep the whole file locked: nobody can help
    with coordinator(pair, at) as db:
        db.setup()
        with Child(pair, mode, way, journal=at, stop=str(Point(point, what, count=count))) as child:
            child.wait_stopped()
            prepared = sum(len(d.prepared()) for d in pair)
            assert prepared, "there is something for recovery to abort"
            until(lambda: db.recover(grace=0).clean and not any(d.prepared() for d in pair))
            assert balances(pair) == UNTOUCHED
            told = child.told()
        assert told[-1] in ("TransactionAborted", "OutcomeConflict") and "committed" not in told, told
        # A prepare that came late is rolled back by the next sweep (I11).
        assert recovered(db, pair) is False
        assert balances(pair) == UNTOUCHED


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("kinds", ["postgres+mariadb", "mariadb+sqlite"])
def test_a_commit_by_name_that_stalls_before_its_decision_loses_to_a_rollback(
    kinds: str, mode: str, request: Any, tmp_path: Path
) -> None:
    pair = databases(kinds, request, tmp_path)
    with coordinator(pair, None) as db:
        db.setup()
        with Child(pair, mode, "staged", stop="P5.deciding") as child:
            child.wait_stopped()
            assert db.rollback_distributed("pay").state is State.ABORTED
            assert child.told() == ["staged", "OutcomeConflict"]
        assert recovered(db, pair) is False


@pytest.mark.parametrize("stop", AFTER)
def test_a_commit_that_stalls_after_its_decision_is_carried_out_by_others(
    stop: str, request: Any, tmp_path: Path
) -> None:
    pair = databases("postgres+mariadb", request, tmp_path)
    with coordinator(pair, None) as db:
        db.setup()
        with Child(pair, "sync", "once", stop=stop) as child:
            child.wait_stopped()
            # The branch on MariaDB is held by the stopped process; its session is ended, and the branch committed.
            assert recovered(db, pair) is True
            assert child.told() == ["committed"]
        assert recovered(db, pair) is True


def test_a_recoverer_that_presumes_abort_without_the_fence_breaks_a_writer_that_stalled(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant: old enough and undecided, so roll back. The writer goes on, decides COMMIT, and half is gone."""
    pair = databases("postgres+sqlite", request, tmp_path)
    sound = register.decide

    def presume(ctx: Any, decision: Any) -> Any:
        if decision.verdict is Verdict.ABORT and decision.reason.startswith("recovery"):
            return decision
            yield
        return (yield from sound(ctx, decision))

    monkeypatch.setattr("nodoubt.engine.sweep.register.decide", presume)
    with coordinator(pair, None) as db:
        db.setup()
        with Child(pair, "sync", "once", stop="P5.deciding") as child:
            child.wait_stopped()
            assert db.recover(grace=0).rolled_back == 1
            assert child.told() == ["committed"]
        assert balances(pair) == [70, 100], "the mutant is not caught"
        with pytest.raises(UnknownTransaction):
            db.status("pay")
        assert db.recover(grace=0).quarantined == 1
