"""Each rule where it speaks, and where it must not: no server is needed, the facts say all."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nodoubt.doctor import facts as f
from nodoubt.doctor.advice import Case
from nodoubt.doctor.report import Finding, Severity
from nodoubt.doctor.rules import ACROSS, RULES
from nodoubt.protocol.records import Unreadable

from . import patients as p

HUMAN, ADVICE, NOTE = Severity.HUMAN, Severity.ADVICE, Severity.NOTE

FLAW = f.Flaw(what="fsync is off", advice="set it", refused=True, line="fsync = on", where="postgresql.conf")
MILD = f.Flaw(what="sync_binlog is 0", advice="set it to 1", refused=False, line="sync_binlog = 1", where="my.cnf")


def standby(synchronous: bool | None) -> f.Replica:
    return f.Replica(name="second", kind="standby", state="streaming", synchronous=synchronous)


LOGICAL = f.Replica(name="sub", kind="logical slot")
REPLICA = f.Replica(name="repl@10.0.0.2", kind="replica")
XA = p.prepared("7", since="begin")


def waiting(since_s: float | None) -> tuple[f.Waiting, ...]:
    return (f.Waiting(session=17, behind=(f.Blocker(prepared="order-7"),), since_s=since_s),)


def held(xids: int) -> tuple[f.Prepared, ...]:
    return (p.prepared(xids_held=xids, dead_rows=1234),)


def late(**changes: object) -> f.Journal:
    old = p.standing(ago_s=7200, attempt=p.OLD_ATTEMPT)
    return p.journal(open_commits=(old,), **changes)


def names(*strays: Unreadable, **changes: object) -> f.Journal:
    return p.journal(names=(p.staging(**changes),), strays=strays)  # type: ignore[arg-type]


Row = tuple[str, Case, Severity, str]

FIRES: list[Row] = [
    ("settings", p.case(p.facts(flaws=(FLAW,))), HUMAN, "fsync is off"),
    ("settings", p.case(p.facts("mariadb", flaws=(MILD,))), ADVICE, "sync_binlog"),
    ("slots", p.case(p.facts(prepared_count=100)), HUMAN, "100 of 100 places"),
    ("slots", p.case(p.facts(prepared_count=80)), ADVICE, "80 of 100 places"),
    ("slots", p.case(p.facts(), expected=101), ADVICE, "101 may be prepared"),
    ("standbys", p.case(p.facts(replicas=(standby(synchronous=False),))), ADVICE, "none of them is synchronous"),
    ("standbys", p.case(p.facts(replicas=(f.Replica(name="s", kind="physical slot"),))), ADVICE, "standbys follow"),
    ("standbys", p.case(p.facts(settings={"synchronous_standby_names": "b"})), HUMAN, "no such standby follows"),
    (
        "standbys",
        p.case(p.facts(settings={"synchronous_standby_names": "b"}, replicas=(standby(synchronous=False),))),
        HUMAN,
        "no such standby follows",
    ),
    ("logical-slots", p.case(p.facts(replicas=(LOGICAL,), prepared_count=1)), NOTE, "logical replication reads"),
    ("replicas", p.case(p.facts("mariadb", replicas=(REPLICA,))), ADVICE, "asynchronously"),
    (
        "binlog-format",
        p.case(p.facts("mariadb", settings={"log_bin": "ON", "binlog_format": "STATEMENT"})),
        ADVICE,
        "STATEMENT",
    ),
    (
        "rollback-on-timeout",
        p.case(p.facts("mariadb", settings={"innodb_rollback_on_timeout": "OFF"}, prepared=(XA,))),
        NOTE,
        "innodb_rollback_on_timeout",
    ),
    ("wait-timeout", p.case(p.facts("mariadb", settings={"wait_timeout": "28800"}, prepared_count=1)), NOTE, "28800 s"),
    ("blocked", p.case(p.facts(waiting=waiting(31.0))), HUMAN, "1 session waits behind order-7, the first for 31 s"),
    ("blocked", p.case(p.facts(waiting=waiting(2.0))), ADVICE, "for 2 s"),
    ("blocked", p.case(p.facts(waiting=waiting(None))), ADVICE, "1 session waits"),
    ("vacuum", p.case(p.facts(prepared=held(200_000_000))), HUMAN, "order-7 holds VACUUM back by 200 M"),
    ("vacuum", p.case(p.facts(prepared=held(100_000_000))), ADVICE, "holds VACUUM back by 100 M"),
    (
        "vacuum-elsewhere",
        p.case(p.facts(prepared=held(5), vacuum=p.vacuum(slot=9))),
        NOTE,
        "slot holds VACUUM back further",
    ),
    ("wraparound", p.case(p.facts(vacuum=p.vacuum(2_120_000_000))), HUMAN, "27.5 M transaction ids are left"),
    ("history", p.case(p.facts("mariadb", history_length=1_000_000)), ADVICE, "history list is 1 M"),
    (
        "sqlite-guards",
        p.case(p.facts("sqlite", file=f.File(journal_mode="wal", library="3.54.1", unguarded=("orders",)))),
        HUMAN,
        "orders: locked by a prepared branch",
    ),
    (
        "sqlite-writer",
        p.case(p.facts("sqlite", file=f.File(journal_mode="wal", library="3.54.1", writers="process 7 (app)"))),
        NOTE,
        "process 7 (app)",
    ),
    ("schema", p.case(p.facts(broken="version 9")), HUMAN, "cannot be used by this release"),
    ("lineage", p.case(p.facts(identity=p.identity(server_now="there"))), HUMAN, "not what it was"),
    ("lineage", p.case(p.facts(identity=p.identity(epoch=4)), at=p.journal(epoch=3)), HUMAN, "not what it was"),
    (
        "lineage",
        p.case(
            p.facts(identity=p.identity(epoch=2)), at=p.journal(registered=(f.Registered("r0", "shop", "here", 3),))
        ),
        HUMAN,
        "not what it was",
    ),
    (
        "lineage",
        p.case(p.facts(identity=p.identity(mark="m1")), at=p.journal(strange_marks=("m1",))),
        HUMAN,
        "not what it was",
    ),
    ("journal-elsewhere", p.case(p.facts(identity=p.identity(cluster="00000000000000c2"))), NOTE, "was not examined"),
    ("quarantined", p.case(p.facts(journal=p.journal(quarantined=(p.quarantined(),)))), HUMAN, "branch 1 of"),
    (
        "unreadable",
        p.case(p.facts(journal=p.journal(unreadable=(Unreadable("decisions", "a" * 32, "cannot be read (torn)"),)))),
        HUMAN,
        "cannot be read: decisions",
    ),
    ("open-commits", p.case(p.facts(journal=late())), HUMAN, "1 COMMIT decision has not ended"),
    ("failed-begins", p.case(p.facts(journal=names(ago_s=61))), HUMAN, "nothing prepared: 'order-7'"),
    ("past-deadline", p.case(p.facts(journal=names(deadline_in_s=-61))), HUMAN, "past the deadline: 'order-7'"),
]

STRAY = Unreadable("decisions", "a" * 31 + "G", "cannot be read")


@pytest.mark.parametrize(
    ("rule", "journal"),
    [("failed-begins", names(STRAY, ago_s=61)), ("past-deadline", names(STRAY, deadline_in_s=-61))],
)
def test_nobody_is_told_that_recovery_rolls_back_while_a_row_may_be_anybodys(rule: str, journal: f.Journal) -> None:
    (finding,) = RULES[rule](p.case(p.facts(journal=journal)))
    assert f"left alone until it can be read: {STRAY.which}" in finding.why and finding.changes == ()


SILENT: list[tuple[str, Case]] = [
    ("settings", p.case(p.facts())),
    ("slots", p.case(p.facts(prepared_count=79))),
    ("slots", p.case(p.facts(), expected=100)),
    ("slots", p.case(p.facts(settings={"max_prepared_transactions": "0"}))),  # "settings" says it already
    ("slots", p.case(p.facts("mariadb", prepared_count=5000))),
    ("standbys", p.case(p.facts())),
    ("standbys", p.case(p.facts(settings={"synchronous_standby_names": "b"}, replicas=(standby(synchronous=True),)))),
    # Whether it is synchronous is not shown to every role: then nothing is said, and the gap is named.
    ("standbys", p.case(p.facts(settings={"synchronous_standby_names": "b"}, replicas=(standby(synchronous=None),)))),
    ("logical-slots", p.case(p.facts(replicas=(LOGICAL,)))),
    ("logical-slots", p.case(p.facts(prepared_count=1))),
    ("replicas", p.case(p.facts("mariadb"))),
    (
        "replicas",
        p.case(p.facts("mariadb", settings={"rpl_semi_sync_master_enabled": "ON"}, replicas=(REPLICA,))),
    ),
    ("binlog-format", p.case(p.facts("mariadb", settings={"binlog_format": "STATEMENT"}))),
    ("binlog-format", p.case(p.facts("mariadb", settings={"log_bin": "ON"}))),
    ("rollback-on-timeout", p.case(p.facts("mariadb", settings={"innodb_rollback_on_timeout": "OFF"}))),
    (
        "rollback-on-timeout",
        p.case(p.facts("mariadb", settings={"innodb_rollback_on_timeout": "OFF"}, prepared=(p.prepared(p.XID.gid),))),
    ),
    ("rollback-on-timeout", p.case(p.facts("mariadb", prepared=(XA,)))),
    ("wait-timeout", p.case(p.facts("mariadb", settings={"wait_timeout": "28800"}))),
    ("wait-timeout", p.case(p.facts("mariadb", prepared_count=1))),
    ("blocked", p.case(p.facts())),
    ("blocked", p.case(p.facts(waiting=(f.Waiting(session=17, behind=(f.Blocker(18),)),)))),
    ("vacuum", p.case(p.facts(prepared=held(99_999_999)))),
    ("vacuum", p.case(p.facts())),
    ("vacuum-elsewhere", p.case(p.facts(prepared=held(9), vacuum=p.vacuum(slot=9)))),
    ("wraparound", p.case(p.facts(vacuum=p.vacuum(2_100_000_000)))),
    ("wraparound", p.case(p.facts("mariadb"))),
    ("history", p.case(p.facts("mariadb", history_length=999_999))),
    ("history", p.case(p.facts())),
    ("sqlite-guards", p.case(p.facts("sqlite", file=f.File(journal_mode="wal", library="3.54.1")))),
    ("sqlite-writer", p.case(p.facts("sqlite", file=f.File(journal_mode="wal", library="3.54.1")))),
    ("schema", p.case(p.facts())),
    ("lineage", p.case(p.facts())),
    ("lineage", p.case(p.facts(identity=p.identity(server="")))),  # set up where the server could not tell
    (
        "lineage",
        p.case(p.facts(identity=p.identity()), at=p.journal(registered=(f.Registered("r0", "shop", "here", 3),))),
    ),
    ("lineage", p.case(p.facts(identity=p.identity(mark="m1")), at=p.journal(strange_marks=("m2",)))),
    ("journal-elsewhere", p.case(p.facts(identity=p.identity()), at=p.journal())),
    ("journal-elsewhere", p.case(p.facts())),
    ("quarantined", p.case(p.facts(journal=p.journal()))),
    ("unreadable", p.case(p.facts(journal=p.journal()))),
    ("open-commits", p.case(p.facts(journal=p.journal(open_commits=(p.standing(ago_s=3599),))))),
    ("open-commits", p.case(p.facts())),
    ("failed-begins", p.case(p.facts(journal=names(ago_s=59)))),
    ("failed-begins", p.case(p.facts(journal=names(ago_s=61, begin_by=p.NOW + 1)))),
    ("failed-begins", p.case(p.facts(journal=names(ago_s=61)), listed=(p.XID,))),
    # Not all of its databases were examined: a branch may be prepared there.
    ("failed-begins", p.case(p.facts(journal=names(ago_s=61)), reached=("r0",))),
    ("past-deadline", p.case(p.facts(journal=names(deadline_in_s=-59)))),
    ("past-deadline", p.case(p.facts())),
]


def found(rule: str, case: Case) -> list[Finding]:
    return list(RULES[rule](case))


@pytest.mark.parametrize(
    ("rule", "case", "severity", "words"), FIRES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_rule_speaks_where_it_must(rule: str, case: Case, severity: Severity, words: str) -> None:
    (finding,) = found(rule, case)
    assert finding.severity is severity
    assert words in finding.what
    assert finding.why


@pytest.mark.parametrize(("rule", "case"), SILENT, ids=lambda value: value if isinstance(value, str) else "")
def test_a_rule_is_silent_where_it_must(rule: str, case: Case) -> None:
    assert found(rule, case) == []


def test_every_rule_is_shown_speaking_and_silent() -> None:
    assert {row[0] for row in FIRES} == {row[0] for row in SILENT} == set(RULES)


def test_a_sound_database_of_each_kind_is_met_with_silence() -> None:
    for kind in ("postgres", "mariadb", "sqlite"):
        assert [finding for rule in RULES.values() for finding in rule(p.case(p.facts(kind)))] == []


# ---- the lines to write ---------------------------------------------------------------------------


def test_a_change_names_the_file_and_line_that_the_setting_is_in() -> None:
    placed = p.facts(flaws=(FLAW,))
    placed.settings["fsync"] = f.Setting("off", "/etc/postgresql/15/main/conf.d/our.conf, line 7")
    (finding,) = found("settings", p.case(placed))
    (change,) = finding.changes
    assert (change.line, change.where) == ("fsync = on", "/etc/postgresql/15/main/conf.d/our.conf, line 7")
    (finding,) = found("settings", p.case(p.facts(flaws=(FLAW,))))
    assert finding.changes[0].where == "postgresql.conf"


def test_what_mariadb_lets_be_changed_while_it_runs_is_given_as_a_statement_too() -> None:
    (finding,) = found("settings", p.case(p.facts("mariadb", flaws=(MILD,))))
    assert [change.line for change in finding.changes] == ["sync_binlog = 1", "SET GLOBAL sync_binlog = 1;"]
    torn = f.Flaw(what="x", advice="y", refused=False, line="innodb_doublewrite = ON", where="my.cnf")
    (finding,) = found("settings", p.case(p.facts("mariadb", flaws=(torn,))))
    assert [change.line for change in finding.changes] == ["innodb_doublewrite = ON"]


def test_more_places_are_asked_for_than_are_needed_now() -> None:
    (finding,) = found("slots", p.case(p.facts(prepared_count=90)))
    assert finding.changes[0].line == "max_prepared_transactions = 200"
    (finding,) = found("slots", p.case(p.facts(), expected=250))
    assert finding.changes[0].line == "max_prepared_transactions = 250"
    assert finding.changes[0].where == "postgresql.conf, then restart the server"


def test_a_participant_that_is_gone_for_good_is_named_where_it_holds_the_floor_down() -> None:
    (finding,) = found("open-commits", p.case(p.facts(journal=late()), reached=("r0",)))
    assert "not examined: stock (r1). If one of them is gone for good" in finding.why
    assert finding.about == (p.OLD_ATTEMPT,)
    (finding,) = found("open-commits", p.case(p.facts(journal=late())))
    assert "all participants were examined" in finding.why


def test_those_that_wait_behind_several_are_counted_once() -> None:
    both = (f.Blocker(prepared="a"), f.Blocker(prepared="b"))
    (finding,) = found("blocked", p.case(p.facts(waiting=(f.Waiting(session=1, behind=both),))))
    assert finding.what == "1 session waits behind 2 prepared transactions"
    assert finding.about == ("a", "b")


# ---- across databases -----------------------------------------------------------------------------


def at(name: str, skew_s: float | None, within_s: float = 0.0) -> Case:
    server = f.Server(version="?", skew_s=skew_s, skew_within_s=within_s)
    return p.case(p.facts(name=name, server=server))


@pytest.mark.parametrize(
    ("cases", "words"),
    [
        ([at("a", 5.0)], "the clock of a is 5.0 s ahead of that of this machine"),
        ([at("a", -5.0)], "the clock of this machine is 5.0 s ahead of that of a"),
        ([at("a", 1.5), at("b", -1.5)], "the clock of a is 3.0 s ahead of that of b"),
    ],
)
def test_clocks_that_differ_are_told_in_pairs(cases: Sequence[Case], words: str) -> None:
    (finding,) = ACROSS["clock-skew"](cases)
    assert finding.severity is ADVICE
    assert words in finding.what


@pytest.mark.parametrize(
    "cases",
    [
        [],
        [at("a", None)],
        [at("a", 1.9)],
        [at("a", 5.0, within_s=4.0)],  # the answer took so long that it tells nothing
        [p.case(p.facts(server=None))],
    ],
)
def test_clocks_that_agree_as_far_as_can_be_told_are_not_mentioned(cases: Sequence[Case]) -> None:
    assert list(ACROSS["clock-skew"](cases)) == []
