"""kill -9 at every point of a step's life, with a real service outside; then recovery, by a worker with the code.

After it: no charge without its order, no order without its charge, at most one effect of each kind, nothing left to do.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kit import QUICK, make_database, until
from nodoubt import CallState, Coordinator, State, UnknownTransaction
from steps.conftest import Outside

PAIRS = [("postgres", "mariadb"), ("mariadb", "sqlite"), ("sqlite", "sqlite")]
# Where; at which notice, or inside of which function; and what must come of it when the work was to commit: in one
# block, staged and then called by name, by run_distributed.
POINTS: list[tuple[str, list[str] | str, str]] = [
    ("before the intent", ["S1", "calling"], "undecided"),
    ("after the intent", ["S2", "intended"], "undecided"),
    ("in the action, before its effect", "charge: before", "undecided"),
    ("in the action, after its effect", "charge: after", "undecided"),
    ("after the action, before its result", ["S3", "answered"], "undecided"),
    ("after its result", ["S4", "recorded"], "undecided"),
    ("at the decision", ["P5", "deciding"], "undecided"),
    ("after the decision", ["P6", "committed"], "committed"),
]
UNDOING: list[tuple[str, list[str] | str]] = [
    ("at the abort", ["P6", "aborted"]),
    ("before the compensation", ["S5", "undoing"]),
    ("in the compensation, before its effect", "refund: before"),
    ("in the compensation, after its effect", "refund: after"),
    ("after the compensation, before its record", ["S6", "undone"]),
    ("after its record", ["S7", "undo recorded"]),
]
WAYS = ("once", "staged", "run")
# run_distributed is made of the staged verbs: it is killed where it could do something of its own.
RUN_AT = (
    "in the action, after its effect",
    "at the decision",
    "after the decision",
    "in the compensation, after its effect",
)
MODES = ("sync", "async")


class Scene:
    """Two databases, a service, an order; and what came of it."""

    def __init__(self, kinds: tuple[str, str], outside: Outside, request: Any, tmp_path: Path) -> None:
        self.pair = [make_database(kind, name, request, tmp_path) for kind, name in zip(kinds, "ab", strict=True)]
        self.outside = outside
        self.order = f"order-{secrets.token_hex(4)}"
        self.moved = (70, 130)
        # A SQLite branch locks its file: the journal, in which the intent is written meanwhile, needs one of its own.
        self.journal = f"sqlite:///{tmp_path}/journal.db" if "sqlite" in kinds else None
        with self.coordinator() as db:
            db.setup()

    def coordinator(self, **options: Any) -> Coordinator:
        urls = {d.name: d.url for d in self.pair}
        return Coordinator(urls, journal=self.journal, settings=QUICK, recovery=False, **options)

    def run(self, way: str, mode: str, end: str, at: list[str] | str | None, **more: Any) -> list[str]:
        """The child's words, its attempt's id first if it had got so far; it has died by its own hand if `at` is
        set."""
        child = self.start(way, mode, end, at, **more)
        words, errors = child.communicate(timeout=60)
        expected = 0 if at is None else -signal.SIGKILL
        assert child.returncode == expected, f"it was to die at {at}: {words}{errors}"
        return words.split()

    def start(self, way: str, mode: str, end: str, at: list[str] | str | None, **more: Any) -> subprocess.Popen[str]:
        here = Path(__file__).parent
        task = {
            "urls": {d.name: d.url for d in self.pair},
            "journal": self.journal,
            "way": way,
            "mode": mode,
            "end": end,
            "order": self.order,
            "kill": at if isinstance(at, list) else None,
            **more,
        }
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), *sys.path])}
        environment["KILL_AT"] = at if isinstance(at, str) else ""
        return subprocess.Popen(
            [sys.executable, str(here / "child.py"), json.dumps(task)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def recover(self, db: Coordinator) -> None:
        """A server needs a moment to notice that a killed client is gone."""
        until(lambda: db.recover(grace=0).clean)
        report = db.recover(grace=0)
        assert report.clean, report
        assert db.undo_steps(grace=0).waiting == 0

    def outcome(self) -> str:
        """What databases and service agree on. Raises where they do not."""
        balances = (self.pair[0].balance(), self.pair[1].balance())
        assert balances in ((100, 100), self.moved), f"atomicity is broken: {balances}"
        account = self.outside.of(self.order)
        assert account.refunds <= account.charges <= 1, f"I19: {account}"
        paid = account.balance == 1
        assert paid == (balances == self.moved), f"the order and its money do not agree: {balances}, {account}"
        return "committed" if paid else "aborted"

    def at_rest(self) -> bool:
        return not any(d.prepared() or d.locked() for d in self.pair)


def settle(db: Coordinator, scene: Scene) -> None:
    """What is staged and undecided waits for somebody: here, for us, who roll it back."""
    scene.recover(db)
    try:
        staged = db.status("pay").state is State.PREPARED
    except UnknownTransaction:
        return
    if staged:
        db.rollback_distributed("pay")
        scene.recover(db)


def cases() -> list[Any]:
    """Each point in each way; pairs of databases and kinds of coordinator in turn."""
    made, turn = [], 0
    for way in WAYS:
        for where, at, expected in POINTS:
            if way == "run" and where not in RUN_AT:
                continue
            kinds, mode = PAIRS[turn % len(PAIRS)], MODES[turn % len(MODES)]
            turn += 1
            made.append(pytest.param(way, at, kinds, mode, expected, id=f"{way}-{where}-{'+'.join(kinds)}-{mode}"))
    return made


def undoing_cases() -> list[Any]:
    made, turn = [], 0
    for way in WAYS:
        for where, at in UNDOING:
            if way == "run" and where not in RUN_AT:
                continue
            kinds, mode = PAIRS[turn % len(PAIRS)], MODES[turn % len(MODES)]
            turn += 1
            made.append(pytest.param(way, at, kinds, mode, id=f"{way}-{where}-{'+'.join(kinds)}-{mode}"))
    return made


@pytest.mark.parametrize(("way", "at", "kinds", "mode", "expected"), cases())
def test_kill_9_in_a_step_leaves_an_order_with_its_charge_or_neither(
    way: str,
    at: list[str] | str,
    kinds: tuple[str, str],
    mode: str,
    expected: str,
    outside: Outside,
    request: Any,
    tmp_path: Path,
) -> None:
    scene = Scene(kinds, outside, request, tmp_path)
    told = scene.run(way, mode, "commit", at)
    with scene.coordinator() as db:
        settle(db, scene)
        assert scene.outcome() == ("committed" if expected == "committed" else "aborted"), told
        assert db.parked_steps() == [] and db.quarantined() == []
    assert scene.at_rest()


@pytest.mark.parametrize(("way", "at", "kinds", "mode"), undoing_cases())
def test_kill_9_in_a_compensation_does_not_undo_twice_with_effect(
    way: str,
    at: list[str] | str,
    kinds: tuple[str, str],
    mode: str,
    outside: Outside,
    request: Any,
    tmp_path: Path,
) -> None:
    scene = Scene(kinds, outside, request, tmp_path)
    scene.run(way, mode, "abort", at)
    with scene.coordinator() as db:
        settle(db, scene)
        assert scene.outcome() == "aborted"
        account = scene.outside.of(scene.order)
        assert (account.charges, account.refunds) == (1, 1)
        assert db.parked_steps() == []
    assert scene.at_rest()


@pytest.mark.parametrize(("way", "mode"), [("once", "async"), ("staged", "sync"), ("run", "async")])
def test_left_alone_it_commits_or_aborts_with_its_charge(
    way: str, mode: str, outside: Outside, request: Any, tmp_path: Path
) -> None:
    """The same programs, not killed: or the cases above would show nothing."""
    for number, end in enumerate(("commit", "abort")):
        (tmp_path / str(number)).mkdir()
        scene = Scene(("sqlite", "postgres"), outside, request, tmp_path / str(number))
        assert scene.run(way, mode, end, None)[-1] == ("committed" if end == "commit" else "aborted")
        assert scene.outcome() == ("committed" if end == "commit" else "aborted")


# ---- a process that is not dead, only slow --------------------------------------------------------


def an_action_starts_late(scene: Scene, mutant: str = "") -> str:
    """Frozen between its intent and its action, the caller is taken for dead, its step undone; then it goes on."""
    child = scene.start("once", "sync", "commit", ["S2", "intended"], freeze=True, mutant=mutant)
    assert child.stdout is not None
    try:
        attempt = child.stdout.readline().strip()
        assert child.stdout.readline() == "here\n"
        with scene.coordinator() as db:
            until(lambda: db.undo_steps(grace=0).undone == 1)
            os.kill(child.pid, signal.SIGCONT)
            words, errors = child.communicate(timeout=60)
            assert "committed" not in words, errors
            assert [call.state for call in db.steps(attempt)] == [CallState.UNDONE]
    finally:
        child.kill()
        child.wait()
    assert scene.outcome() == "aborted"
    return attempt


def test_an_action_that_starts_late_is_refused_before_it_acts(outside: Outside, request: Any, tmp_path: Path) -> None:
    attempt = an_action_starts_late(Scene(("postgres", "mariadb"), outside, request, tmp_path))
    account = outside.under(f"{attempt}.0")
    assert account.shut and account.asked == 1, "the service was asked for the refund, and for nothing else"


# ---- without the rule -----------------------------------------------------------------------------


def test_without_the_fence_it_acts_and_only_the_service_stops_it(
    outside: Outside, request: Any, tmp_path: Path
) -> None:
    attempt = an_action_starts_late(Scene(("postgres", "mariadb"), outside, request, tmp_path), "no_fence")
    assert outside.under(f"{attempt}.0").asked == 2, "it was asked for the charge as well"


def test_an_intent_that_is_written_after_the_action_leaves_a_charge_that_nobody_knows_of(
    outside: Outside, request: Any, tmp_path: Path
) -> None:
    scene = Scene(("postgres", "sqlite"), outside, request, tmp_path)
    scene.run("once", "sync", "commit", "charge: after", mutant="intent_after_the_action")
    with scene.coordinator() as db:
        settle(db, scene)
    with pytest.raises(AssertionError, match="do not agree"):
        scene.outcome()


def one_writer_is_killed_after_its_commit(scene: Scene, mutant: str) -> str:
    scene.moved = (70, 100)
    scene.run("alone", "sync", "commit", ["P6", "committed"], mutant=mutant)
    with scene.coordinator() as db:
        settle(db, scene)
        return scene.outcome()


def test_the_commit_of_one_writer_with_steps_is_known_to_whoever_comes(
    outside: Outside, request: Any, tmp_path: Path
) -> None:
    scene = Scene(("postgres", "sqlite"), outside, request, tmp_path)
    assert one_writer_is_killed_after_its_commit(scene, "") == "committed"


def test_a_short_cut_with_steps_has_them_undone_although_it_has_committed(
    outside: Outside, request: Any, tmp_path: Path
) -> None:
    """Nothing in the register tells of a one-phase commit: whoever comes takes the caller for dead, and refunds."""
    scene = Scene(("postgres", "sqlite"), outside, request, tmp_path)
    with pytest.raises(AssertionError, match="do not agree"):
        one_writer_is_killed_after_its_commit(scene, "short_cut_with_steps")
