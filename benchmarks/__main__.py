"""`python -m benchmarks`: run all of it, or a part. `make bench` is the whole.

python -m benchmarks                          everything; some half an hour
python -m benchmarks races --only staged      the races whose name has this word
python -m benchmarks races --rounds 3 --seconds 0.5 --clients 64
python -m benchmarks counts | scale | profile
python -m benchmarks report                   the tables again, from the last whole run's JSON
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec

from . import counts, places, plot, report, scenarios
from .contenders import BUN
from .results import CountTable, Results, Verdict, counted, judged, machine, table_of
from .rounds import race
from .scenarios import FILE, FILES, HAND, LOCAL, MIXED, OBJECTS, OURS, PAIR, PAIR_THREADS, STAGED, UVLOOP, Scenario
from .workers import WorkerFailed, bun_program

HERE = Path(__file__).parent
RESULTS = HERE / "results"  # git ignores it
PARTS = ("races", "counts", "scale")
PLOTTED = [
    (PAIR.name, 64, (HAND, OURS, OURS + UVLOOP, OBJECTS, BUN, LOCAL)),
    (STAGED.name, 64, (BUN, OURS, OURS + UVLOOP, HAND)),
    (PAIR_THREADS.name, 8, PAIR_THREADS.contenders),
    (MIXED.name, 8, (HAND, OURS, LOCAL)),
    (FILE.name, 1, FILE.contenders),
    (FILES.name, 1, FILES.contenders),
]


def main() -> None:
    options = _options()
    RESULTS.mkdir(exist_ok=True)
    whole = options.part in ("all", "report") and not options.only and options.clients is None
    document = RESULTS / ("whole.json" if whole else "part.json")
    if options.part == "profile":
        from . import whereabouts

        _write(RESULTS / "profile.md", whereabouts.document(options.under))
        return
    if options.part == "report":
        results = msgspec.json.decode(document.read_bytes(), type=Results)
    else:
        results = Results(rounds=options.rounds, seconds=options.seconds)
        for _ in _measured(options, results):
            # As it grows, so that a run that is cut short was not in vain.
            document.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1))
    # The whole is dated and may be committed; a part is for whoever asked.
    folder = HERE if whole else RESULTS
    _write(folder / "RESULTS.md", report.markdown(results))
    _write(folder / "ratios.svg", plot.svg(results, PLOTTED))
    if results.failed:
        sys.exit(f"{len(results.failed)} races could not be run; see {document}")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    print(f"written: {path}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("part", nargs="?", default="all", choices=["all", *PARTS, "profile", "report"])
    parser.add_argument("--only", default="", help="scenarios whose name has this in it")
    parser.add_argument("--clients", type=int, help="only with so many clients")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="a contender's turn in a round")
    parser.add_argument("--under", default=places.DISK, help="the folder for all data; on a disk")
    parser.add_argument("--prepared", type=int, default=10_000, help="scale: branches for one sweep, and a tenth of it")
    parser.add_argument("--ended", type=int, default=1_000_000, help="scale: ended transactions in the journal")
    return parser.parse_args()


def _measured(options: argparse.Namespace, results: Results) -> Iterator[None]:
    """Fill the document, and stop after each table."""
    parts = PARTS if options.part == "all" else (options.part,)
    with places.Places(options.under) as folder:
        results.machine = machine(folder.folder)
        if "races" in parts:
            yield from _races(options, folder, results)
    if "counts" in parts:
        with counts.quiet_places(options.under) as quiet:
            for scenario in counts.SCENARIOS:
                if options.only in scenario.name:
                    print(f"counting: {scenario.name}", flush=True)
                    rows = counts.count(_possible(scenario), quiet)
                    results.counts.append(CountTable(scenario=scenario.name, rows=rows))
                    results.counted += counted(scenario, rows)
                    yield
    if "scale" in parts:
        from . import scale

        sizes = {"prepared": options.prepared, "ended": options.ended, "rounds": options.rounds}
        for one in scale.findings(options.under, **sizes):
            print(f"{one.scenario}: {one.what}: {one.value}", flush=True)
            results.scale.append(one)
            yield
    yield


def _races(options: argparse.Namespace, folder: places.Places, results: Results) -> Iterator[None]:
    for scenario in scenarios.SCENARIOS:
        for clients in scenario.clients:
            if options.only not in scenario.name or options.clients not in (None, clients):
                continue
            load = os.getloadavg()[0]
            tasks = _possible(scenario).tasks(folder, clients)
            try:
                found = race(tasks, rounds=options.rounds, seconds=options.seconds, servers_s=folder.cpu_s)
            except WorkerFailed as error:
                results.failed.append(f"{scenario.name}, {clients} clients: {error}")
                print(f"FAILED: {results.failed[-1]}", file=sys.stderr, flush=True)
                continue
            table = table_of(scenario, clients, found, load)
            results.tables.append(table)
            print(report.race_table(table), flush=True)
            for target in scenarios.TARGETS:
                if (target.scenario, target.clients) == (scenario, clients) and found.has(target.against):
                    results.verdicts.append(judged(target, found))
                    print(_line(results.verdicts[-1]), flush=True)
            yield


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
