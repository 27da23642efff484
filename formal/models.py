"""The models, and what Spin must find in each: nothing in a sound one, a violation in each mutant, a run for a witness.

`formal/run small|large` searches them all and prints a table; it ends with 1 if a result is not the expected one.
`formal/run trace NAME` prints the run that breaks NAME, step by step. See README.md.

Must not: write into the source tree, but for the table in README.md, when asked to.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from formal.spin import ENDLESS, HERE, SEEN, Builds, Result, Run, never_executed, search, trace

JOBS = 2
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def sound(model: str, config: str = "") -> Run:
    return Run(model, config)


def sounds(model: str, config: str, *claims: str) -> list[Run]:
    return [Run(model, config, "sound", claim, (), claim) for claim in claims]


def large(*runs: Run) -> list[Run]:
    """In the large configuration only: minutes each, and optimized."""
    return [replace(run, large=True) for run in runs]


def mutant(
    model: str, config: str, macro: str, *breaks: str, kind: str = "mutant", claim: str = "", deep: bool = False
) -> Run:
    return Run(model, config, kind, macro, breaks, claim, depth_first=deep or bool(claim))


def witnesses(model: str, config: str, *claims: str) -> list[Run]:
    return [Run(model, config, "witness", claim, (SEEN,), claim) for claim in claims]


POINT = "HERE=1 POINT=1"
X = "HERE=1 MARIA=0"
EARLY = "HERE=1 N=1 MARIA=0 EARLY"

RUNS: tuple[Run, ...] = (
    # ---- at once
    sound("once"),
    sound("once", "LITE=2 MARIA=1"),
    sound("once", f"{POINT} LATE"),
    sound("once", f"{POINT} R=2"),
    sound("once", f"{POINT} LITE=3 MARIA=0"),
    sound("once", f"{POINT} FOREIGN"),
    sound("once", "N=1 MARIA=0 FOREIGN"),
    sound("once", f"{POINT} RETENTION"),
    sound("once", f"{POINT} RETENTION FOREIGN LITE=3 MARIA=0"),
    mutant("once", "", "NO_CAS", "I1", "I2", "I3", "I5"),
    mutant("once", POINT, "NO_CAS", "I1", "I2", "I3", "I5"),
    mutant("once", POINT, "NOTA_IS_DONE", "I7"),
    mutant("once", POINT, "FORGET_EARLY", "I6"),
    mutant("once", POINT, "NO_FENCE", "I1", "I2"),
    mutant("once", POINT, "INFERS_FROM_SHAPE", "I1", "I5"),
    mutant("once", POINT, "DECISION_AFTER_COMMIT", "I4"),
    mutant("once", POINT, "ACT_ON_VISIBLE", "I3", "I4", "I5"),
    mutant("once", POINT, "CONFIRM_BY_INSERT", "I3", "I4", "I5"),
    mutant("once", POINT, "BARE_COMMIT", "I1"),
    mutant("once", POINT, "TAG_UNCHECKED", "I1", "I2"),
    mutant("once", POINT, "UNCONFIRMED_RECEIPT", "I7"),
    mutant("once", POINT, "XA_OK_IS_PROOF", "I7"),
    mutant("once", f"{POINT} LITE=3 MARIA=0", "RECEIPT_APART", "I17"),
    mutant("once", f"{POINT} RETENTION", "NO_FLOOR", "I1", "I2", "I5"),
    mutant("once", f"{POINT} RETENTION", "DELETE_FIRST", "I1", "I2", "I5"),
    mutant("once", f"{POINT} RETENTION", "FLOOR_UNHELD", "I1", "I2", "I5", "I17"),
    mutant("once", "MARIA=0 RETENTION", "BELOW_IS_NO", "I2", "I5"),
    # ---- staged
    sound("staged", f"{X} LITE=1"),
    sound("staged", "HERE=1 N=1 MARIA=1"),
    sound("staged", EARLY),
    sound("staged", "HERE=1 N=1 MARIA=1 EARLY"),
    sound("staged", "HERE=1 F=0"),
    sound("staged", "N=1 MARIA=0 FOREIGN F=0"),
    sound("staged", "N=1 MARIA=0 FOREIGN R=0"),
    sound("staged", f"{X} F=0 LEAVES GRACE"),
    mutant("staged", X, "COMMITS_BEFORE_LISTED", "I2"),
    mutant("staged", X, "ACROSS_SESSIONS", "I4"),
    mutant("staged", X, "NO_BEGIN_FENCE", "I1", "I2", "I5"),
    mutant("staged", EARLY, "ACT_ON_VISIBLE", "I3", "I4", "I5"),
    mutant("staged", X, "TAG_UNCHECKED", "I1", "I2", "the begin's promise"),
    # ---- one branch alone, and names
    sound("alone", "MARIA=1"),
    sound("alone", "MARIA=0"),
    mutant("alone", "MARIA=1", "UNCONFIRMED_RECEIPT", "I5"),
    mutant("alone", "MARIA=1", "SETTLES_BY_A_LOOK", "I5"),
    mutant("alone", "MARIA=0", "AGE_IGNORED", "I5"),
    mutant("alone", "MARIA=0", "AGE_FIRST", "I5"),
    sound("names"),
    sound("names", "REUSE"),
    mutant("names", "", "NONCE_DROPPED", "I4", "I11"),
    mutant("names", "", "NAME_FREED", "I10"),
    mutant("names", "", "FREED_THOUGH_SEEN", "I10"),
    # ---- that it ends (I8), and is told (I17)
    *sounds("once", f"{POINT} LIVE=1", "no_orphan_1", "no_open_record"),
    *sounds("once", "LITE=2 MARIA=0 LIVE=1", "no_orphan_1"),
    *sounds("once", f"{POINT} FOREIGN LIVE=1", "loud_commit"),
    mutant("once", f"{POINT} FOREIGN RETENTION MARIA=0 LIVE=1", "UNLISTED_IS_ROLLED_BACK", ENDLESS, claim="loud_abort"),
    *sounds("staged", f"{X} F=0 LIVE=1", "no_orphan_0", "no_lasting_name"),
    *sounds("staged", f"{EARLY} F=0 LIVE=2", "no_lasting_name"),
    mutant("once", f"{POINT} LIVE=1", "SWEEPS_STOP", ENDLESS, claim="no_orphan_1"),
    mutant("once", f"{POINT} LIVE=1", "NEVER_FREES", ENDLESS, claim="no_orphan_1"),
    mutant("once", f"{POINT} LIVE=1", "NEVER_RESTARTS", ENDLESS, claim="no_open_record", kind="limit"),
    # ---- what these models have found in the engine: see README.md, "Findings"
    mutant("once", "N=1 MARIA=0 FOREIGN", "PROVES_LOST", "I6", deep=True),
    mutant("once", POINT, "ACCUSES_ABORTS", "I17"),
    mutant("once", f"{POINT} RETENTION", "QUARANTINES_UNSEEN", "I17"),
    mutant("staged", f"{X} F=0 LEAVES GRACE", "AGE_LATER", "left until its deadline"),
    # ---- what the contract needs from outside, shown by taking it away
    mutant("alone", "MARIA=0", "OTHER_CLOCKS", "I5", kind="limit"),
    mutant("alone", "MARIA=0", "OLD_MESSAGES", "I5", kind="limit"),
    mutant("staged", f"{X} F=0", "LEAVES", "left until its deadline", kind="limit"),
    mutant("names", "REUSE", "BY_NAME", "I10", kind="limit"),
    # ---- what can be reached
    *witnesses(
        "once", "", "never_committed", "never_aborted", "never_finished_by_recovery", "never_in_doubt_then_committed",
        "never_in_doubt_then_aborted", "never_prepared_after_the_abort", "never_prepared_again",
        "never_shown_and_forgotten", "never_held", "never_hidden", "never_rolled_back_in_vain",
    ),
    *witnesses("once", f"{POINT} RETENTION", "never_forgotten", "never_quarantined"),
    *witnesses("once", f"{POINT} FOREIGN", "never_quarantined"),
    *witnesses(
        "staged", EARLY, "never_staged", "never_committed", "never_rolled_back", "never_overdue",
        "never_found_committed", "never_prepared_after_the_fence", "never_lost_the_row", "never_lost_the_ride",
    ),
    *witnesses(
        "alone", "MARIA=1", "never_committed", "never_aborted", "never_in_doubt_and_committed", "never_fenced",
        "never_forgotten", "never_shown_and_lost",
    ),
    *witnesses("names", "", "never_lived_twice", "never_late", "never_both_told", "never_given_back"),
    # ---- the large configuration, beside all of these
    *large(
        sound("once", "MARIA=0 R=2"),
        sound("once", "N=1 MARIA=1 R=2"),
        sound("once", "N=3"),
        sound("once", f"{POINT} N=3 R=2"),
        sound("once", f"{POINT} LATE R=2"),
        sound("once", f"{POINT} FOREIGN RETENTION"),
        *sounds("once", f"{POINT} FOREIGN RETENTION MARIA=0 LIVE=1", "loud_abort"),
        sound("staged", X),
        sound("staged", "N=1 MARIA=0 FOREIGN"),
        sound("staged", f"{X} LEAVES GRACE"),
        *sounds("once", f"{POINT} LIVE=2", "no_orphan_1", "no_open_record"),
        *sounds("once", "LIVE=1", "no_orphan_0", "no_orphan_1", "no_open_record"),
        *sounds("staged", f"{X} F=0 LIVE=1", "no_orphan_1"),
        *sounds("staged", f"{X} LIVE=1", "no_orphan_0", "no_orphan_1", "no_lasting_name", "no_open_record"),
    ),
)  # fmt: skip


def table(results: Sequence[Result]) -> str:
    lines = [
        "| model | options | kind | mutant, or claim | states | depth | result |",
        "| --- | --- | --- | --- | ---: | ---: | --- |",
    ]
    for result in results:
        run = result.run
        lines.append(
            f"| {run.model} | {run.config} | {run.kind} | {run.what} | {result.states:,} | {result.depth:,} | "
            f"{result.outcome}{'' if result.as_expected else ' **UNEXPECTED**'} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="formal/run")
    parser.add_argument("size", choices=["small", "large", "trace"])
    parser.add_argument("name", nargs="?", default="", help="of the run to trace, as the table has it")
    parser.add_argument("--only", default="", help="run only those whose name holds this text")
    parser.add_argument("--jobs", type=int, default=min(JOBS, os.cpu_count() or 1))
    parser.add_argument("--readme", action="store_true", help="write the table into README.md")
    asked = parser.parse_args(arguments)
    with Builds() as builds:
        if asked.size == "trace":
            print(trace(builds, next(run for run in RUNS if run.name == asked.name)))
            return 0
        runs = [run for run in RUNS if (asked.size == "large" or not run.large) and asked.only in run.name]
        with ThreadPoolExecutor(asked.jobs) as pool:
            results = []
            for result in pool.map(lambda run: search(builds, run), runs):
                print(table([result]).splitlines()[-1], flush=True)
                results.append(result)
    for model, process, line in never_executed(results):
        print(f"never executed in a sound configuration: {model} {process}, line {line}")
    if asked.readme:
        page = HERE / "README.md"
        before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        page.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    unexpected = [result.run.name for result in results if not result.as_expected]
    print(
        f"{len(results)} searches, {len(unexpected)} not as expected: {', '.join(unexpected)}"
        if unexpected
        else f"{len(results)} searches, all as expected"
    )
    return 1 if unexpected else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
