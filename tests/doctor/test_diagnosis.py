"""From facts to the report: exit codes, the order of findings, and the shape that programs rely on."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from nodoubt.doctor import Report, diagnose
from nodoubt.doctor import facts as f
from nodoubt.doctor.diagnosis import EXIT_FAILED, EXIT_FINE, EXIT_HUMAN

from . import patients as p

OLD = p.prepared(age_s=61.0)
DOWN = p.facts(name="far", error="no connection", server=None)

REPORT = {"version", "at", "exit_code", "databases", "findings"}
EXAMINED = {
    "name", "url", "kind", "at", "took_ms", "messages", "error", "server", "settings", "prepared_count", "prepared",
    "waits", "vacuum", "history_length", "replicas", "file", "journal", "identity", "findings", "gaps", "cut",
}  # fmt: skip
PREPARED = {
    "id", "kind", "system", "coordinator", "detail", "database", "owner", "age_s", "since", "at_least", "session",
    "locks", "locks_left_out", "xids_held", "dead_rows", "blocks", "decision", "action",
}  # fmt: skip
ACTION = {"severity", "who", "why", "do", "after_asking", "where"}
FINDING = {"rule", "severity", "what", "why", "changes", "about"}
WAIT = {"session", "waits_for", "since_s", "user", "application", "database", "statement", "waiting"}


def report(*found: f.Facts, **options: Any) -> Report:
    return diagnose(found, now=p.NOW, grace_s=p.GRACE_S, expected=10, **options)


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ([p.facts()], EXIT_FINE),
        ([p.facts(prepared=(p.prepared(),))], EXIT_FINE),
        ([p.facts(prepared_count=80)], EXIT_FINE),  # worth changing is not: somebody must act
        ([DOWN], EXIT_FAILED),
        ([p.facts(), DOWN], EXIT_FAILED),
        ([p.facts(prepared=(OLD,))], EXIT_HUMAN),
        ([p.facts(prepared_count=100)], EXIT_HUMAN),
        ([DOWN, p.facts(prepared=(OLD,))], EXIT_HUMAN),
    ],
)
def test_the_exit_code_tells_whether_somebody_must_act(found: list[f.Facts], code: int) -> None:
    assert report(*found).exit_code == code


def test_nothing_is_said_of_a_database_that_could_not_be_examined() -> None:
    (one,) = report(DOWN).databases
    assert (one.error, one.findings, one.prepared) == ("no connection", (), ())


def test_what_matters_most_stands_first_and_every_finding_has_its_rule() -> None:
    broken = f.Flaw(what="fsync is off", advice="set it", refused=True)
    (one,) = report(p.facts(prepared_count=80, flaws=(broken,), identity=p.identity())).databases
    assert [(finding.severity, finding.rule) for finding in one.findings] == [
        ("human", "settings"),
        ("advice", "slots"),
        ("note", "journal-elsewhere"),
    ]


def test_what_this_process_has_seen_for_long_is_old_where_no_server_tells() -> None:
    found = p.facts("mariadb", prepared=(p.prepared(age_s=None, since="begin"),))
    assert report(found).exit_code == EXIT_FINE
    assert report(found, known_for_s={"shop": {"order-7": 59.0}}).exit_code == EXIT_FINE
    assert report(found, known_for_s={"shop": {"order-7": 60.0}}).exit_code == EXIT_HUMAN
    assert report(found, known_for_s={"other": {"order-7": 60.0}}).exit_code == EXIT_FINE


def test_a_journal_that_was_examined_speaks_for_the_branches_in_all_databases() -> None:
    decided = p.journal(decided={p.ATTEMPT: p.standing(ago_s=61)})
    branch = p.facts("mariadb", name="stock", prepared=(p.prepared(p.XID.gid),))
    here, there = report(p.facts(journal=decided), branch).databases
    assert here.journal is not None
    assert there.prepared[0].decision == "commit"
    assert "COMMIT was decided" in there.prepared[0].action.why


STANDBY = f.Server(version="?", skew_s=0.0, standby=True)


@pytest.mark.parametrize(
    "other",
    [
        {"server": STANDBY},
        {"listed": False},
        {"prepared_count": 1001, "prepared": (p.prepared("other"),)},
        {"kind": "mariadb", "settings": {"read_only": f.Setting("ON")}},
    ],
    ids=["standby", "refused", "cut", "replica"],
)
def test_who_does_not_list_all_that_is_prepared_does_not_show_that_something_is_not(other: dict[str, Any]) -> None:
    """Its begin has died where the last branch is not prepared, not where nobody has told."""
    journal = p.journal(staged={p.ATTEMPT: p.staging(last=1)}, names=(p.staging(last=1, ago_s=999.0),))
    shop = p.facts(journal=journal, identity=p.identity(), prepared=(p.prepared(p.XID.gid, age_s=61.0),))
    stock = p.facts(name="stock", identity=p.identity(resource_id="r1"))
    shop = msgspec.structs.replace(shop, prepared_count=1)
    told, _ = report(shop, stock).databases
    assert (told.prepared[0].action.severity, "its begin died" in told.prepared[0].action.why) == ("human", True)
    told, _ = report(shop, msgspec.structs.replace(stock, **other)).databases
    assert told.prepared[0].action.severity == "note"
    nothing = msgspec.structs.replace(shop, prepared=(), prepared_count=0)
    assert "failed-begins" in [finding.rule for finding in report(nothing, stock).databases[0].findings]
    there = report(nothing, msgspec.structs.replace(stock, **other)).databases[0].findings
    assert "failed-begins" not in [finding.rule for finding in there]


def test_a_standby_of_the_journal_speaks_for_what_was_decided_only() -> None:
    branch = p.facts("mariadb", name="stock", prepared=(p.prepared(p.XID.gid, age_s=61.0),))
    late = (p.staging(deadline_in_s=-999.0, ago_s=999.0),)
    behind = p.facts(name="copy", server=STANDBY, journal=p.journal(names=late))
    found, there = report(behind, branch).databases
    assert [finding.rule for finding in found.findings] == []
    assert there.prepared[0].decision is None
    assert "copy is a standby" in there.prepared[0].action.why and "ABORT" not in there.prepared[0].action.why
    decided = p.journal(decided={p.ATTEMPT: p.standing(ago_s=61)})
    _, there = report(msgspec.structs.replace(behind, journal=decided), branch).databases
    assert there.prepared[0].decision == "commit"


@pytest.mark.parametrize(("epoch", "url", "found"), [(3, "a", []), (3, "b", ["advice"]), (4, "b", ["human"])])
def test_two_that_hold_one_journal_are_one_by_two_names_or_a_clone(epoch: int, url: str, found: list[str]) -> None:
    pair = p.facts(url="a", journal=p.journal()), p.facts(name="twin", url=url, journal=p.journal(epoch=epoch))
    told = report(*pair).findings
    assert [finding.severity for finding in told if finding.rule == "journal-twice"] == found
    behind = msgspec.structs.replace(pair[1], server=STANDBY)
    assert report(pair[0], behind).findings == ()


def test_a_journal_of_the_newest_epoch_speaks_before_a_clone_of_it() -> None:
    newest = p.facts(name="new", journal=p.journal(epoch=4, decided={p.ATTEMPT: p.standing()}))
    clone = p.facts(name="clone", url="c", journal=p.journal())
    branch = p.facts("mariadb", name="stock", prepared=(p.prepared(p.XID.gid),))
    for order in ((newest, clone, branch), (clone, newest, branch)):
        assert report(*order).databases[-1].prepared[0].decision == "commit"


def test_two_clocks_are_compared_across_databases() -> None:
    fast = p.facts(name="fast", server=f.Server(version="?", skew_s=9.0))
    (finding,) = report(p.facts(), fast).findings
    assert (finding.rule, finding.severity) == ("clock-skew", "advice")


def test_how_many_wait_is_counted_to_the_end_of_the_chain() -> None:
    waiting = (
        f.Waiting(session=1, behind=(f.Blocker(prepared="order-7"),)),
        f.Waiting(session=2, behind=(f.Blocker(1),)),
    )
    (one,) = report(p.facts(prepared=(p.prepared(), p.prepared("other")), waiting=waiting)).databases
    assert [prepared.blocks for prepared in one.prepared] == [2, 0]


def full() -> Any:
    """A report in which every list has something, as programs see it."""
    waiting = (f.Waiting(session=1, behind=(f.Blocker(prepared="order-7"),), since_s=99.0),)
    locked = p.prepared(age_s=99.0, locks=(f.Lock("public.t", "RowExclusiveLock"),))
    found = p.facts(
        prepared=(locked,),
        prepared_count=1,
        waiting=waiting,
        replicas=(f.Replica(name="s", kind="standby"),),
        file=f.File(journal_mode="wal", library="3.54.1"),
        journal=p.journal(floor=p.attempt_at(p.NOW)),
        identity=p.identity(),
        gaps=(f.Gap("this", "that"),),
        cut=("locks",),
    )
    fast = p.facts(name="fast", server=f.Server(version="?", skew_s=9.0))
    return msgspec.json.decode(msgspec.json.encode(report(found, fast)))


def test_the_document_has_the_shape_that_programs_rely_on() -> None:
    document = full()
    assert set(document) == REPORT
    assert (document["version"], document["at"], document["exit_code"]) == (1, "2027-01-15T08:00:00.000Z", 3)
    one = document["databases"][0]
    assert set(one) == EXAMINED
    (prepared,) = one["prepared"]
    assert set(prepared) == PREPARED
    assert set(prepared["action"]) == ACTION
    assert prepared["locks"] == [{"what": "public.t", "mode": "RowExclusiveLock"}]
    assert {*map(frozenset, one["findings"] + document["findings"])} == {frozenset(FINDING)}
    (tree,) = one["waits"]
    assert (set(tree), tree["prepared"], set(tree["waiting"][0])) == (
        {"prepared", "what", "waiting"},
        ["order-7"],
        WAIT,
    )
    assert one["journal"] == {
        "cluster": p.CLUSTER, "version": 1, "epoch": 3, "floor": p.attempt_at(p.NOW),
        "floor_at": "2027-01-15T08:00:00.000Z", "open_commits": 0, "names_undecided": 0, "quarantined": 0,
        "unreadable": 0,
    }  # fmt: skip
    assert one["gaps"] == [{"what": "this", "advice": "that", "blind": False}]
    assert one["settings"]["max_prepared_transactions"] == {"value": "100", "place": ""}
    assert set(one["server"]) == {"version", "user", "database", "standby", "skew_s", "skew_within_s"}
    assert set(one["vacuum"]) == {"freeze_max_age", "oldest_database", "oldest_database_age", "others"}
    assert set(one["replicas"][0]) == {"name", "kind", "state", "synchronous"}
    assert set(one["file"]) == {"journal_mode", "library", "wal_bytes", "writers", "unguarded"}
    assert set(one["identity"]) == {"resource_id", "cluster", "epoch", "mark", "server", "server_now"}


def test_severities_are_the_three_words_that_are_documented() -> None:
    document = full()
    told = {finding["severity"] for one in document["databases"] for finding in one["findings"]}
    told |= {prepared["action"]["severity"] for one in document["databases"] for prepared in one["prepared"]}
    assert told <= {"human", "advice", "note"}
