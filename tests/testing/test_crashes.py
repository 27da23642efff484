"""`crash_points`: every point is reached, killed at, recovered from and judged; what is wrong is told, and by name."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kit import Database
from nodoubt import Coordinator, State, UsageError
from nodoubt.points import Point
from nodoubt.testing import Crash, CrashPointFailed, crash_points, explore, run_sql
from nodoubt.testing.crashes import Ending, _broken
from nodoubt.testing.nursery import Address, Life, Nursery, Task
from testing import crashing
from testing.crashing import TABLES, check, check_on_a_loop, together

TWO: dict[str, str] = {"a": "sqlite", "b": "sqlite"}
ON: dict[str, Any] = {"resources": TWO, "tables": TABLES}


@pytest.fixture(autouse=True)
def _no_point_of_the_developer_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NODOUBT_POINT", raising=False)


def told(exploration: Any) -> dict[str, str]:
    return {one.name: ", ".join(one.crash.states) for one in exploration.outcomes}


@pytest.mark.parametrize(
    ("work", "judge"), [(crashing.pay, check), (crashing.pay_on_a_loop, check_on_a_loop)], ids=["sync", "async"]
)
def test_every_point_of_a_transaction_is_killed_at_and_ends_as_the_matrix_says(work: Any, judge: Any) -> None:
    assert told(crash_points(work, check=judge, **ON)) == {
        "no kill": "committed",
        "P1.begun@a": "aborted",
        "P2.work@a": "aborted",
        "P1.begun@b": "aborted",
        "P2.work@b": "aborted",
        "P3.prepare@b": "aborted",
        "P3.prepared@b": "aborted",
        "P4.all-prepared": "aborted",
        "P5.deciding@a": "aborted",
        "P6.committed": "committed",
        "P8.commit@b": "committed",
        "P7.branch-committed@b": "committed",
        "P9.every-branch-proved": "committed",
        "P10.ended": "committed",
    }


def test_with_a_journal_of_its_own_each_branch_is_caught_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    run, held = Nursery.run, []

    def noted(self: Nursery, task: Task, within_s: float) -> Life:
        held.append(task.hold)
        return run(self, task, within_s)

    monkeypatch.setattr(Nursery, "run", noted)
    points = [f"{step}@{on}" for step in ("P3.prepared", "P7.branch-committed") for on in "ab"]
    states = told(crash_points(crashing.pay, check=check, journal="sqlite", points=points, **ON))
    assert list(states.values()) == ["committed", "aborted", "aborted", "committed", "committed"]
    assert held == [(), ("b",), ("a",), ("b",), ("a",)]


def test_staged_work_stays_staged_and_the_check_may_finish_it() -> None:
    seen: dict[str, State] = {}

    def finish(db: Coordinator, crash: Crash) -> None:
        seen[str(crash.point)] = crash.state
        if crash.state is State.PREPARED:
            db.commit_distributed("order-42")
            crash = Crash(crash.point, (State.COMMITTED,))
        check(db, crash)

    points = ["P3.prepared@a", "P4.staged", "P5.deciding@a", "P6.committed"]
    crash_points(crashing.pay_staged, check=finish, args=["order-42"], points=points, **ON)
    assert list(seen.values()) == ["committed", "prepared", "prepared", "prepared", "committed"]


def test_staged_work_that_the_work_itself_rolls_back_has_broken_no_promise() -> None:
    states = told(crash_points(crashing.stage_and_roll_back, check=check, points=["P4.staged", "P6.aborted"], **ON))
    assert states == {"no kill": "aborted", "P4.staged": "prepared", "P6.aborted": "aborted"}


def test_a_step_is_undone_wherever_its_process_is_killed_before_the_decision(tmp_path: Path) -> None:
    sent = tmp_path / "sent"

    def as_one(db: Coordinator, crash: Crash) -> None:
        check(db, crash)
        assert sent.exists() is (crash.state is State.COMMITTED)
        sent.unlink(missing_ok=True)

    points = ["S1.calling", "S2.intended", "S3.answered", "S4.recorded", "P5.deciding", "P6.committed"]
    states = told(
        crash_points(crashing.pay_and_send, check=as_one, journal="sqlite", args=[str(sent)], points=points, **ON)
    )
    assert list(states.values()) == ["committed", *["aborted"] * 5, "committed"]


def test_what_only_reads_has_broken_no_promise_though_nobody_can_tell_of_it() -> None:
    def judge(db: Coordinator, crash: Crash) -> None:
        check(db, Crash(crash.point, crash.states[1:]))

    points = ["P6.committed", "P3.prepare@b", "P6.committed#2"]
    states = told(crash_points(crashing.pay_after_a_look, check=judge, points=points, **ON))
    assert list(states.values()) == ["committed, committed", "committed", "committed, aborted", "committed, committed"]


def test_a_file_of_a_package_is_loaded_as_part_of_it(tmp_path: Path) -> None:
    """Alone, it could not import its neighbours; and its steps would have other names than a worker knows."""
    package = tmp_path / "a_shop" / "orders"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package.parent / "names.py").write_text('NAME = "pay"')
    (package / "selling.py").write_text(
        "import nodoubt\nfrom ..names import NAME\n\n@nodoubt.step\ndef charge() -> None: ...\n\n"
        "def sell(db):\n    with db.transaction(NAME) as tx:\n        tx['a'].execute('select 1')\n"
    )
    address = Address.parse(f"{package}/selling.py:sell")
    module, _ = address.load()
    assert module.charge.name == "a_shop.orders.selling:charge"
    assert told(explore(address, points=["P2.work@a"], **ON)) == {"no kill": "committed", "P2.work@a": "aborted"}


def test_on_servers_each_run_has_databases_of_its_own() -> None:
    states = told(
        crash_points(
            crashing.pay,
            check=check,
            resources={"a": "postgres", "b": "mariadb"},
            tables=TABLES,
            points=["P3.prepared@b", "P5.deciding@a", "P6.committed", "P8.commit@b"],
        )
    )
    assert list(states.values()) == ["committed", "aborted", "aborted", "committed", "committed"]


def test_sql_is_run_past_any_transaction_or_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    run_sql(url, "create table t (id int); insert into t values (1)")
    with pytest.raises(UsageError, match="the SQL is refused: .*tabel"):
        run_sql(url, "create tabel u (id int)")
    assert Database("x", url).query("select id from t") == [(1,)]


# ---- what must be found, and how it is told -------------------------------------------------------


def test_work_that_is_not_atomic_is_caught_and_the_message_says_where_and_how_to_repeat_it(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = ["P1.begun@a", "P6.committed", "P2.work@b", "P6.committed#2"]
    with pytest.raises(CrashPointFailed) as caught:
        crash_points(crashing.pay_in_two_transactions, check=together, points=points, **ON)
    failed = [one.name for one in caught.value.exploration.failed]
    assert failed == ["P6.committed", "P2.work@b"]
    assert {one.ending for one in caught.value.exploration.failed} == {Ending.CHECK}
    assert isinstance(caught.value.__cause__, AssertionError)
    message = str(caught.value)
    assert "pay_in_two_transactions ended badly at 2 of 5 points" in message
    assert "P2.work@b (before a statement is sent; committed, aborted): check failed\n      AssertionError" in message
    repeat = f"NODOUBT_POINT=P2.work@b pytest {request.node.nodeid}"
    assert repeat in message
    monkeypatch.setenv("NODOUBT_POINT", "P2.work@b")
    with pytest.raises(CrashPointFailed) as caught:
        crash_points(crashing.pay_in_two_transactions, check=together, **ON)
    assert [one.name for one in caught.value.exploration.outcomes] == ["no kill", "P2.work@b"]


def test_a_check_may_fail_as_test_frameworks_do() -> None:
    exploration = explore(crashing.pay, check=lambda *_: pytest.fail("no"), points=["P1.begun@a"], **ON)
    assert [one.ending for one in exploration.outcomes] == [Ending.CHECK, Ending.CHECK]


def test_a_point_that_is_not_reached_again_is_no_success(tmp_path: Path) -> None:
    args = [str(tmp_path / "marker")]
    exploration = explore(crashing.pay_differently_each_time, args=args, points=["P2.work@b#2"], **ON)
    (one,) = exploration.failed
    assert one.ending is Ending.MISSED and "must do the same each time" in one.why


def test_what_recovery_cannot_resolve_is_no_success() -> None:
    (one,) = explore(crashing.pay_and_lose_a_database, points=[], **ON).failed
    assert one.ending is Ending.DOUBT and "b" in one.why


@pytest.mark.parametrize(
    ("reached", "state", "why"),
    [
        (["P6.committed"], State.ABORTED, "answered as committed at P6.committed, and is aborted"),
        (["P6.aborted"], State.COMMITTED, "answered as aborted at P6.aborted, and is committed"),
        (["P4.staged"], State.ABORTED, "answered as staged, and is aborted"),
        (["P4.staged"], State.PREPARED, ""),
        (["P4.staged", "P5.deciding@a"], State.ABORTED, ""),
        (["P5.deciding@a"], State.COMMITTED, ""),
    ],
)
def test_what_was_promised_before_the_death_must_be_so_after_it(reached: list[str], state: State, why: str) -> None:
    life = Life(tuple((Point.parse(name), "x") for name in reached), "", -9)
    found = _broken(life, {"x": state})
    assert found.endswith(why) and bool(found) is bool(why)


# ---- what is refused before any work --------------------------------------------------------------


def inner() -> Any:
    def work(db: Coordinator) -> None: ...

    return work


@pytest.mark.parametrize(
    ("work", "options", "why"),
    [
        (inner(), {}, "top level of a module"),
        ("pay", {}, "top level of a module"),
        (crashing.pay, {"args": [object()]}, "values that JSON can carry"),
        (crashing.pay, {"args": [(1, 2)]}, "arrives as"),
        (crashing.pay, {"points": ["P3"]}, "write it like"),
        (crashing.pay, {"points": ["P3.prepare@c"]}, "does not reach P3.prepare@c; it reaches P1.begun@a"),
        (crashing.pay, {"resources": {"a": "oracle"}}, "a kind of throw-away database"),
        (crashing.pay, {"journal": "elsewhere"}, "the journal is a kind"),
        (crashing.pay, {"tables": {"c": ""}}, "not among the resources"),
        (crashing.pay, {"tables": {"a": "create tabel"}}, "the tables of a cannot be made: .*tabel"),
        (crashing.pay, {"before": crashing.fail}, "before fails: RuntimeError: out of stock"),
        (crashing.fail, {}, "RuntimeError: out of stock"),
        (crashing.pay_elsewhere, {}, "pay_elsewhere passes no point of the protocol"),
    ],
)
def test_what_cannot_be_explored_is_refused_with_its_reason(work: Any, options: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        explore(work, **{**ON, **options})


def test_it_is_refused_on_a_running_loop() -> None:
    async def on_a_loop() -> None:
        explore(crashing.pay, **ON)

    with pytest.raises(UsageError, match="ordinary function"):
        asyncio.run(on_a_loop())
