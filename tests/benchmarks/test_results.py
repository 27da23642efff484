"""What is made of the rounds: ratios within a round, verdicts, tables, and a plot."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import pytest
from benchmarks.counts import Counts
from benchmarks.results import Results, counted, judged, table_of
from benchmarks.rounds import Quartiles, Race
from benchmarks.scenarios import HAND, OURS, PAIR, Target
from benchmarks.task import Round

from benchmarks import __main__ as program
from benchmarks import plot, report

TARGET = Target(scenario=PAIR, clients=8, least=1.3, against=(HAND,))


def done(per_second: float, p50_ms: float = 1.0) -> Round:
    return Round(
        transactions=100,
        seconds=100 / per_second,
        p50_ms=p50_ms,
        p99_ms=9.0,
        user_s=0.1,
        system_s=0.0,
    )


def race(ours: list[float], hand: list[float]) -> Race:
    return Race(
        {HAND: [done(one) for one in hand], OURS: [done(one, 0.5) for one in ours]}, {HAND: 2 << 20, OURS: 2 << 20}
    )


def test_ratios_are_taken_within_a_round_so_that_a_slow_machine_changes_none() -> None:
    slowing_down = race(ours=[200, 20, 2], hand=[100, 10, 1])
    assert slowing_down.ratio(OURS, HAND, lambda one: one.per_second).median == 2.0


def test_quartiles_of_one_round_are_that_round() -> None:
    assert Quartiles.of([1.5]) == Quartiles(1.5, 1.5, 1.5)


def test_a_target_is_met_by_the_median_and_missed_below_it() -> None:
    assert judged(TARGET, race([13, 14, 1], [10, 10, 10])).met
    assert not judged(TARGET, race([13, 12.9, 1], [10, 10, 10])).met


def test_against_several_peers_the_better_one_counts_in_each_round() -> None:
    found = race([10, 10], [5, 20])
    both = Race({**found.rounds, "other": [done(20), done(5)]}, {**found.grown_bytes, "other": 0})
    target = Target(scenario=PAIR, clients=8, least=1.0, against=(HAND, "other"))
    assert judged(target, both).measured == Quartiles(0.5, 0.5, 0.5)


def test_p50_is_their_time_over_ours() -> None:
    target = Target(scenario=PAIR, clients=8, least=1.0, against=(HAND,), measure="p50")
    assert judged(target, race([1, 1], [1, 1])).measured.median == 2.0


def test_memory_is_what_was_added_to_the_connected_process_for_each_client() -> None:
    assert race([1], [1]).bytes_per_client(OURS, 2) == 1 << 20


def test_a_count_above_the_contract_is_not_met() -> None:
    rows = {
        OURS: Counts(forced_writes=4, round_trips=7, bytes_sent=1, bytes_received=1, statements=9),
        HAND: Counts(forced_writes=4, round_trips=8, bytes_sent=1, bytes_received=1, statements=8),
    }
    forced, trips = counted(PAIR, rows)
    assert (forced.most, forced.met) == (3, False)
    assert (trips.most, trips.counted, trips.met) == (8, 7, True)


def test_the_report_says_what_was_missed_and_the_plot_is_a_picture() -> None:
    found = race([5, 6, 7], [10, 10, 10])
    results = Results(rounds=3, seconds=1.0, machine={"processor": "one"})
    results.tables.append(table_of(PAIR, 8, found, load=0.5))
    results.verdicts.append(judged(TARGET, found))
    text = report.markdown(results)
    assert "| 1.30 | 0.60 (0.55 to 0.65) | **not met** |" in text
    assert "| nodoubt | 0.60 (0.55 to 0.65) | 2.00 (2.00 to 2.00) |" in text
    picture = ET.fromstring(plot.svg(results, [(PAIR.name, 8, (HAND, OURS))]))
    assert len(picture.findall("{http://www.w3.org/2000/svg}rect")) == 3  # the ground, and two bars


def test_a_part_is_run_from_the_command_line_and_written_as_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "RESULTS", tmp_path / "results")
    words = ["races", "--only", "SQLite, journal", "--clients", "1", "--rounds", "2", "--seconds", "0.1"]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *words, "--under", str(tmp_path)])
    program.main()
    results = msgspec.json.decode((tmp_path / "results" / "part.json").read_bytes(), type=Results)
    assert [table.clients for table in results.tables] == [1] and len(results.verdicts) == 1
    assert results.verdicts[0].target in (tmp_path / "results" / "RESULTS.md").read_text()
    assert "SQLite, journal in the same file, 1 client " in capsys.readouterr().out
