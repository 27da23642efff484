"""`python -m benchmarks`: run all of it, or a part. `make bench` is the whole.

python -m benchmarks                          everything; some twenty minutes
python -m benchmarks races --only staged      the races whose name has this word
python -m benchmarks races --rounds 3 --seconds 0.5 --clients 64
python -m benchmarks counts | scale | profile
python -m benchmarks report                   the tables again, from the last run's JSON
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

import msgspec

from . import counts, places, plot, report, scenarios
from .contenders import BUN
from .results import CountTable, Results, Verdict, counted, judged, machine, table_of
from .rounds import race
from .scenarios import Scenario
from .workers import bun_program

HERE = Path(__file__).parent
RESULTS = HERE / "results"  # git ignores it: figures are a machine's own
PARTS = ("races", "counts", "scale")
PLOTTED = [(scenarios.PAIR.name, 64), (scenarios.STAGED.name, 64), (scenarios.PAIR_THREADS.name, 8)]


def main() -> None:
    options = _options()
    RESULTS.mkdir(exist_ok=True)
    document = RESULTS / "results.json"
    if options.part == "report":
        results = msgspec.json.decode(document.read_bytes(), type=Results)
    elif options.part == "profile":
        from . import whereabouts

        (RESULTS / "profile.md").write_text(whereabouts.document(options.under), encoding="utf-8")
        print(f"written: {RESULTS / 'profile.md'}")
        return
    else:
        results = _measured(options)
        document.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1))
    (RESULTS / "RESULTS.md").write_text(report.markdown(results), encoding="utf-8")
    (RESULTS / "ratios.svg").write_text(plot.svg(results, PLOTTED), encoding="utf-8")
    print(f"written: {document}, RESULTS.md and ratios.svg beside it")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("part", nargs="?", default="all", choices=["all", *PARTS, "profile", "report"])
    parser.add_argument("--only", default="", help="scenarios whose name has this in it")
    parser.add_argument("--clients", type=int, help="only with so many clients")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="a contender's turn in a round")
    parser.add_argument("--under", default=places.DISK, help="the folder for all data; on a disk")
    parser.add_argument("--ended", type=int, default=1_000_000, help="scale: ended transactions in the journal")
    return parser.parse_args()


def _measured(options: argparse.Namespace) -> Results:
    parts = PARTS if options.part == "all" else (options.part,)
    results = Results(rounds=options.rounds, seconds=options.seconds)
    with places.Places(options.under) as folder:
        results.machine = machine(folder.folder)
        if "races" in parts:
            _races(options, folder, results)
    if "counts" in parts:
        with counts.quiet_places(options.under) as quiet:
            for scenario in counts.SCENARIOS:
                if options.only in scenario.name:
                    print(f"counting: {scenario.name}", flush=True)
                    rows = counts.count(_possible(scenario), quiet)
                    results.counts.append(CountTable(scenario=scenario.name, rows=rows))
                    results.counted += counted(scenario, rows)
    if "scale" in parts:
        from . import scale

        results.scale = scale.findings(options.under, ended=options.ended)
    return results


def _races(options: argparse.Namespace, folder: places.Places, results: Results) -> None:
    for scenario in scenarios.SCENARIOS:
        for clients in scenario.clients:
            if options.only not in scenario.name or options.clients not in (None, clients):
                continue
            load = os.getloadavg()[0]
            tasks = _possible(scenario).tasks(folder, clients)
            found = race(tasks, rounds=options.rounds, seconds=options.seconds, servers_s=folder.cpu_s)
            table = table_of(scenario, clients, found, load)
            results.tables.append(table)
            print(report.race_table(table), flush=True)
            for target in scenarios.TARGETS:
                if (target.scenario, target.clients) == (scenario, clients) and found.has(target.against):
                    results.verdicts.append(judged(target, found))
                    print(_line(results.verdicts[-1]), flush=True)


def _line(verdict: Verdict) -> str:
    return f"{'met' if verdict.met else 'NOT MET'}: {verdict.target}: {verdict.measured}\n"


def _possible(scenario: Scenario) -> Scenario:
    """Without Bun where it is not installed, which is said."""
    if BUN not in scenario.contenders or bun_program() is not None:
        return scenario
    print(f"{scenario.name}: without Bun, which is not installed (make benchmarks/node_modules)", file=sys.stderr)
    return replace(scenario, contenders=tuple(one for one in scenario.contenders if one != BUN))


if __name__ == "__main__":
    main()
