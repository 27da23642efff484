"""Each model of formal/ holds, each mutant is caught, each witness is found: the small configuration, by Spin.

A case is one search; its id is the name that `formal/run small --only` and `formal/run trace` take.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from formal.models import RUNS
from formal.spin import HERE, Builds, Result, Run, never_executed, search

from formal import models

pytestmark = pytest.mark.timeout(600)  # a search takes seconds; a machine that has much else to do takes longer

SMALL = [run for run in RUNS if not run.large]
SOUND = [run for run in SMALL if run.kind == "sound" and not run.claim]
# What must be caught, by the words of the issue; a mutant may be there more than once.
MUTANTS = {
    "no compare-and-set": "NO_CAS",
    "unknown is done": "NOTA_IS_DONE",
    "forgetting early": "FORGET_EARLY",
    "no fence": "NO_FENCE",
    "decision after commit": "DECISION_AFTER_COMMIT",
    "acting on what is visible but not flushed": "ACT_ON_VISIBLE",
    "confirming by a conflicting INSERT": "CONFIRM_BY_INSERT",
    "a bare COMMIT row after a lost commit-point reply": "BARE_COMMIT",
    "retention without a floor": "NO_FLOOR",
    "an unconfirmed receipt": "UNCONFIRMED_RECEIPT",
    "an OK to XA COMMIT is proof": "XA_OK_IS_PROOF",
    "a row riding across two server sessions": "ACROSS_SESSIONS",
    "staged commit before the last branch is listed": "COMMITS_BEFORE_LISTED",
    "PREPARE tag unchecked": "TAG_UNCHECKED",
    "nonce dropped": "NONCE_DROPPED",
}


@pytest.fixture(scope="module")
def searches(request: pytest.FixtureRequest) -> Iterator[dict[Run, Future[Result]]]:
    """All that were asked for, two at a time, whichever is waited for first."""
    params = [getattr(getattr(item, "callspec", None), "params", {}) for item in request.session.items]
    asked = [run for one in params for run in one.get("runs", ())]
    with Builds() as builds, ThreadPoolExecutor(models.JOBS) as pool:
        yield {run: pool.submit(search, builds, run) for run in dict.fromkeys(asked)}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("runs", [(run,) for run in SMALL], ids=[run.name for run in SMALL])
def test_spin_finds_what_it_must_and_nothing_else(searches: dict[Run, Future[Result]], runs: tuple[Run, ...]) -> None:
    result = searches[runs[0]].result()
    assert result.as_expected, f"{result.outcome}. To see it step by step: formal/run trace '{result.run.name}'"


@pytest.mark.parametrize("runs", [tuple(SOUND)], ids=["all"])
def test_every_line_of_every_model_is_executed_by_a_sound_search(
    searches: dict[Run, Future[Result]], runs: tuple[Run, ...]
) -> None:
    results = [searches[run].result() for run in runs]
    assert all(result.executed for result in results)
    assert never_executed(results) == []


@pytest.mark.parametrize("macro", MUTANTS.values(), ids=list(MUTANTS))
def test_there_is_a_mutant(macro: str) -> None:
    caught = [run for run in SMALL if run.what == macro and run.kind == "mutant"]
    assert caught and all(run.breaks for run in caught)
    sources = "".join(path.read_text(encoding="utf-8") for path in HERE.glob("*.pml"))
    assert re.search(rf"ifn?def {macro}\b", sources), "the models do not know it"


def test_a_search_that_meets_a_limit_has_no_result() -> None:
    run = next(run for run in SOUND if run.name == "names")
    with Builds() as builds:
        result = search(builds, run, depth=20)
    assert not result.as_expected and "limit" in result.trouble


def test_every_search_has_a_name_of_its_own_and_stands_in_the_table() -> None:
    names = [run.name for run in RUNS]
    assert len(set(names)) == len(names)
    page = (HERE / "README.md").read_text(encoding="utf-8")
    missing = [run.name for run in RUNS if f"| {run.model} | {run.config} | {run.kind} | {run.what} |" not in page]
    assert missing == [], "formal/run large --readme"


def test_nothing_is_written_into_the_source_tree() -> None:
    assert [path.name for path in HERE.iterdir() if re.match(r"pan|_spin|.*\.trail", path.name)] == []
