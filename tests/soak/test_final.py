"""What the soak's last look takes for unfinished."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kit import Database
from nodoubt import Coordinator, Settings
from nodoubt.ports import Session
from nodoubt.protocol.records import Decision, Mode, Verdict
from nodoubt.script import Do, Script
from soak import final, plan


def test_a_name_is_undecided_until_there_is_a_decision_whatever_its_mark_says(tmp_path: Path) -> None:
    """An abort that was presumed before the name was staged leaves its mark: the journal asks for the decision, too."""
    pair = [Database(name, f"sqlite:///{tmp_path}/{name}.db") for name in "ab"]
    for one in pair:
        one.create()
    journal = Database("journal", f"sqlite:///{tmp_path}/journal.db")
    world: Any = SimpleNamespace(journal=lambda _: journal)
    with Coordinator({one.name: one.url for one in pair}, journal=journal.url, recovery=False) as db:
        db.setup()
        with db.begin_distributed("late") as tx:
            for one in pair:
                tx[one.name].execute("update accounts set balance = 0")
        assert final._open(world, "s") == ["undecided names in the journal: late"]
        assert final.decided(world, "s") == []

        def presumed() -> Script[None]:
            session: Session = yield Do(db._ctx.journal_pool, "acquire")
            yield from db._ctx.journal.insert(session, [Decision(tx.attempt, Verdict.ABORT, Mode.ONCE, "", ())])
            db._ctx.journal_pool.release(session)

        db._shell.run(presumed())
        assert final._open(world, "s") == []
        assert final.decided(world, "s") == [("late", "abort")], "who presumed it did not know the name"
        assert journal.query("select count(*) from nodoubt_names where undecided is not null")[0][0] == 1


def test_no_clock_is_moved_so_far_that_a_decision_is_forgotten() -> None:
    assert max(plan.JUMPS_S) < Settings().retention_s / 2
