"""What is said of a run: its figures, its findings, and a picture."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from soak.campaign import Outcome
from soak.checker import Finding
from soak.history import ABORTED, BEGUN, COMMITTED, DOUBT, Line
from soak.nemesis import Done
from soak.plan import Act
from soak.rig import WHOLE

from soak import plot, report

BEGAN = 1000.0
LINES = [
    Line(1001, "p", BEGUN, "a"),
    *(Line(1005 + number / 4, "p", COMMITTED, str(number)) for number in range(28)),  # 4 per second while it is calm
    Line(1020, "p", ABORTED, "b", why="RolledBack: as it was meant to be"),
    Line(1021, "p", ABORTED, "c", why="ResourceUnavailable: cannot connect to postgresql://…"),
    Line(1022, "p", DOUBT, "d", why="InDoubt: p1 gave no answer", clock_s=3600.0),
]
DONE = [
    Done(Act(20.0, "server 1", "kill", "pg1", 4.0), 1020.0, 1024.0),
    Done(Act(20.0, "server 2", "kill", "maria", 4.0), 1020.0, 1024.0),
    Done(Act(21.0, "process 1", "kill", "p-clerk"), 1021.0, 1022.0),
    Done(Act(30.0, "server 1", "kill a backend", "pg1"), 1030.0, 1030.1, 1),
    Done(Act(31.0, "network 1", "lose a reply", "maria", 2.0, "XA COMMIT"), 1031.0, 1033.0, 3),
]


def outcome(*findings: Finding) -> Outcome:
    return Outcome(7, 60.0, WHOLE, "2026-11-26", (), LINES, DONE, list(findings), BEGAN, {"p": 0.5}, 28)


def test_the_report_counts_kills_answers_and_hits() -> None:
    text = report.markdown(outcome())
    assert "nothing is lost, nothing is in doubt, the sums are right" in text
    assert "4 SIGKILLs: 1 of MariaDB, 1 of PostgreSQL, 1 of PostgreSQL backends, 1 of coordinators" in text
    assert "28 committed, 2 aborted, 1 in doubt" in text and "1 of these lines were written under a moved clock" in text
    assert "| network | lose a reply | 1 | 3 | 0.0 | 0.0 |" in text


def test_what_a_client_wished_is_no_failure() -> None:
    text = report.markdown(outcome())
    assert "| PostgreSQL | kill | 1 |  | 0.0 | 0.5 |" in text, "an abort without a connection, and a doubt, in 4 s"


def test_the_calm_is_what_faults_are_compared_with() -> None:
    assert "|  | (calm) | 1 |  | 3.5 | 0.0 |" in report.markdown(outcome()), "28 commits from second 4 to second 12"


def test_findings_stand_instead_of_praise() -> None:
    text = report.markdown(outcome(Finding("half", "x | y")))
    assert "**1 findings**" in text and "| half | x / y |" in text and "nothing is lost" not in text


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        ("RolledBack: as it was meant to be", report.WANTED),
        ("CheckViolation: new row for relation …", report.ON_PURPOSE),
        ('DiskFull: could not extend file "base/1": No space left on device', "a full disk"),
        ("OperationalError: terminating connection because of crash of another server process",
         "a server that recovers from a crash"),
        ("a thing nobody has seen", report.ELSE),
    ],
)  # fmt: skip
def test_reasons_are_classified(why: str, reason: str) -> None:
    assert report.reason(Line(1, "p", ABORTED, "x", why=why)) == reason


def test_the_picture_is_well_formed_and_has_a_mark_for_everything_that_broke() -> None:
    picture = plot.svg(outcome())
    ET.fromstring(picture)
    assert picture.count("<title>") == len(DONE)
    assert picture.count('stroke-opacity="0.35"') == 3, "two servers and a backend were killed"
