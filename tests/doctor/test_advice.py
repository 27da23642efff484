"""What to do about one prepared transaction: never by hand for one of ours, by hand only last for any other."""

from __future__ import annotations

import itertools
import shlex
import subprocess
from typing import Any

import msgspec
import pytest

from nodoubt.doctor.advice import _GUIDES, Case, advise, age_s, decision, literal
from nodoubt.doctor.facts import Prepared, Registered
from nodoubt.doctor.origins import Kind, Origin, XaId, of_gid, of_xa
from nodoubt.doctor.report import Action, Severity
from nodoubt.protocol.records import Unreadable, Verdict
from nodoubt.xid import FORMAT_ID, Xid

from . import patients as p

HUMAN, ADVICE, NOTE = Severity.HUMAN, Severity.ADVICE, Severity.NOTE
A = p.ATTEMPT


def ours(age_s: float | None = 5.0, **changes: Any) -> Prepared:
    return p.prepared(p.XID.gid, age_s=age_s, **changes)


def said(one: Prepared, case: Case) -> tuple[Severity, str]:
    action = advise(one, case)
    return action.severity, f"{action.who}. {action.why}. {'. '.join(action.do)}"


COMMITTED = p.journal(decided={A: p.standing()}, registered=())
LATE = p.journal(decided={A: p.standing(ago_s=61)})
ABORTED = p.journal(decided={A: p.standing(Verdict.ABORT)})
ENDED = p.journal(decided={A: p.standing(ended=True)})
STAGED = p.journal(staged={A: p.staging()})
DUE = p.journal(staged={A: p.staging(deadline_in_s=-1)})
PARTLY = p.journal(staged={A: p.staging(last=1)})
FORGOTTEN = p.journal(floor=p.attempt_at(p.NOW))


@pytest.mark.parametrize(
    ("journal", "age", "severity", "words"),
    [
        (COMMITTED, 5, NOTE, "COMMIT was decided by host/17, as read"),
        (COMMITTED, 500, NOTE, "nodoubt recover"),  # decided a moment ago, however long it was prepared before
        (LATE, 61, HUMAN, "no coordinator and no recoverer seems to run"),
        (ABORTED, 5, NOTE, "ABORT was decided by host/17"),
        (ENDED, 5, HUMAN, "it proved itself committed, so it was restored"),
        (STAGED, 5000, NOTE, "waits for its decision; in 60 min recovery rolls it back"),
        (STAGED, 5, NOTE, "nodoubt commit order-7. nodoubt rollback order-7"),
        (DUE, 5, HUMAN, "recovery asks the journal for ABORT"),
        (PARTLY, 5, NOTE, "its begin may be at work"),
        (PARTLY, 61, HUMAN, "its begin died"),
        (p.journal(), 5, NOTE, "its coordinator may be about to decide"),
        (p.journal(), 61, HUMAN, "presumed abort, with the register as the fence"),
        (FORGOTTEN, 5, HUMAN, "unknown, never aborted"),
        (None, 5, NOTE, "only that cluster's journal can tell"),
        (None, 61, HUMAN, "cluster 00000000000000c1"),
    ],
)
def test_of_ours_the_journal_tells_who_should_finish_it(
    journal: object, age: float, severity: Severity, words: str
) -> None:
    one = ours(float(age))
    told = said(one, p.case(p.facts(prepared=(one,)), at=journal))  # type: ignore[arg-type]
    assert told[0] is severity
    assert words in told[1]


def test_a_branch_whose_last_sister_may_be_on_a_server_that_was_not_examined_is_left_alone() -> None:
    one = ours(61.0)
    assert said(one, p.case(p.facts(), at=PARTLY, reached=("r0",)))[0] is NOTE
    sister = Xid(p.CLUSTER, A, 1)
    assert said(one, p.case(p.facts(), at=PARTLY, listed=(p.XID, sister)))[0] is NOTE


STRAY = Unreadable("decisions", A[:-1] + "G", "cannot be read")
FLOORLESS = p.journal(floor=None, strays=(Unreadable("journal", "", "cannot be read", "floor"),))


@pytest.mark.parametrize(
    "journal",
    [
        p.journal(strays=(STRAY,)),
        p.journal(strays=(STRAY,), staged={A: p.staging()}),
        p.journal(strays=(STRAY,), staged={A: p.staging(deadline_in_s=-1)}),
        FLOORLESS,
    ],
)
def test_what_has_no_decision_is_left_alone_while_a_row_may_be_anybodys(journal: object) -> None:
    for age in (5.0, 500.0):
        severity, words = said(ours(age), p.case(p.facts(), at=journal))  # type: ignore[arg-type]
        assert severity is HUMAN and "left alone" in words and journal.strays[0].which in words  # type: ignore[attr-defined]
        assert "nodoubt recover" not in words and "nodoubt rollback" not in words


def test_what_is_decided_is_carried_out_all_the_same() -> None:
    journal = msgspec.structs.replace(FLOORLESS, decided={A: p.standing(ago_s=61)})
    assert "nodoubt recover" in said(ours(), p.case(p.facts(), at=journal))[1]


def test_no_one_of_ours_is_ever_to_be_ended_by_hand() -> None:
    journals = [COMMITTED, LATE, ABORTED, ENDED, STAGED, DUE, PARTLY, FORGOTTEN, FLOORLESS, p.journal(), None]
    broken = ("", "its record is of version 9")
    for journal, age, unreadable, session in itertools.product(journals, (5.0, 500.0, None), broken, (None, 17)):
        one = ours(age, unreadable=unreadable, session=session)
        action = advise(one, p.case(p.facts(prepared=(one,)), at=journal))
        assert action.after_asking == ()
        assert "PREPARED" not in text_of(action) and "XA " not in text_of(action)


@pytest.mark.parametrize("release", ["nd2", "nd17"])
def test_what_a_newer_release_may_have_prepared_is_not_to_be_ended_by_hand_either(release: str) -> None:
    """Its journal may have decided it, and this one would not know."""
    gid = p.XID.gid.replace("nd1", release)
    xa = XaId(FORMAT_ID, gid.encode(), b"of another form")
    for one in (p.prepared(gid, age_s=500.0), p.prepared(xa.text, origin=of_xa(xa), xa=xa, age_s=500.0)):
        action = advise(one, p.case(p.facts(prepared=(one,)), at=p.journal()))
        assert (action.severity, action.after_asking) == (HUMAN, ())
        assert "PREPARED" not in text_of(action) and "XA " not in text_of(action)


@pytest.mark.parametrize("name", ["order 7", "it's $(touch /tmp/x) `id`", "-y", 'a"b', "a;b"])
def test_a_command_that_is_advised_does_nothing_else_whatever_the_name_is(name: str) -> None:
    """A name is anybody's: it may come from a form that a customer has filled in."""
    journal = p.journal(staged={A: p.staging(name=name)})
    for line in advise(ours(), p.case(p.facts(), at=journal)).do:
        script = f"nodoubt() {{ printf '%s\\n' \"$@\"; }}; {line}"
        said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
        assert said == [line.split()[1], *(["--"] if name.startswith("-") else []), name]


def test_a_command_that_is_advised_names_databases_whatever_they_are_called() -> None:
    known = (Registered("r0", "it's $(id)", "", 1),)
    journal = p.journal(decided={A: p.standing(ago_s=61)}, registered=known)
    (line,) = advise(ours(61.0), p.case(p.facts(), at=journal)).do
    assert shlex.split(line) == ["nodoubt", "recover", "-r", "it's $(id)=URL", "--journal", "shop"]


def text_of(action: Action) -> str:
    return " ".join((action.who, action.why, *action.do, *action.after_asking))


def test_the_command_names_the_databases_that_the_journal_knows() -> None:
    known = (Registered("r1", "stock", "", 1), Registered("r0", "shop", "", 1))
    journal = p.journal(decided={A: p.standing(ago_s=61)}, registered=known)
    action = advise(ours(61.0), p.case(p.facts(), at=journal))
    assert action.do == ("nodoubt recover -r shop=URL -r stock=URL --journal shop",)


def test_a_session_that_has_a_branch_still_is_named() -> None:
    assert "Session 17 has it still" in said(ours(61.0, session=17), p.case(p.facts(), at=LATE))[1]


def test_a_record_that_cannot_be_read_needs_a_human_whatever_was_decided() -> None:
    one = ours(5.0, unreadable="its record is of version 9")
    severity, words = said(one, p.case(p.facts(), at=COMMITTED))
    assert severity is HUMAN
    assert "version 9: recovery can roll it back, but not commit it" in words


@pytest.mark.parametrize(
    ("journal", "told"),
    [
        (COMMITTED, "commit"),
        (ABORTED, "abort"),
        (p.journal(), "none"),
        (FORGOTTEN, "below the floor"),
        (FLOORLESS, "none"),
        (None, None),
    ],
)
def test_the_decision_is_told_as_it_was_read(journal: object, told: str | None) -> None:
    assert decision(ours(), p.case(p.facts(), at=journal)) == told  # type: ignore[arg-type]
    assert decision(p.prepared("order-7"), p.case(p.facts(), at=p.journal())) is None


# ---- ages -----------------------------------------------------------------------------------------


def test_the_oldest_that_anybody_knows_counts() -> None:
    case = p.case(p.facts(), known_for_s={"order-7": 7.0})
    assert age_s(p.prepared(age_s=None), case) == 7.0
    assert age_s(p.prepared(age_s=5.0), case) == 7.0
    assert age_s(p.prepared(age_s=9.0), case) == 9.0
    assert age_s(p.prepared("other", age_s=None), case) is None


def test_where_the_server_tells_no_age_the_id_of_ours_does() -> None:
    attempt = p.attempt_at(p.NOW - 500)
    origin = Origin(Kind.NODOUBT, xid=Xid(p.CLUSTER, attempt, 0))
    case = p.case(p.facts("mariadb"))
    assert age_s(p.prepared("x", origin=origin, age_s=None, since="begin"), case) == 500.0
    assert age_s(p.prepared("x", origin=origin, age_s=2.0, since="begin", at_least=True), case) == 500.0
    # Where it does, what was prepared a moment ago is young, however long its work took.
    assert age_s(p.prepared("x", origin=origin, age_s=2.0), case) == 2.0


# ---- foreign --------------------------------------------------------------------------------------


def test_every_foreign_kind_has_somebody_to_ask() -> None:
    assert set(_GUIDES) == set(Kind) - {Kind.NODOUBT}


@pytest.mark.parametrize("kind", sorted(_GUIDES))
def test_a_foreign_one_is_to_be_asked_for_first_and_ended_by_hand_last(kind: Kind) -> None:
    one = p.prepared("it's", origin=Origin(kind, "node 7"), age_s=61.0, owner="app")
    action = advise(one, p.case(p.facts(prepared=(one,))))
    assert action.severity is HUMAN
    assert "node 7" in action.who and "(role app)" in action.who
    assert action.why
    verbs = {Kind.SUBSCRIPTION: ["ROLLBACK"], Kind.LIKE_OURS: []}.get(kind, ["COMMIT", "ROLLBACK"])
    assert action.after_asking == tuple(f"{verb} PREPARED 'it''s';" for verb in verbs)
    assert not any("PREPARED" in step for step in action.do)


@pytest.mark.parametrize(("age", "severity"), [(5.0, NOTE), (59.9, NOTE), (60.0, HUMAN), (None, ADVICE)])
def test_a_foreign_one_needs_a_human_once_it_is_old(age: float | None, severity: Severity) -> None:
    assert advise(p.prepared(age_s=age), p.case(p.facts())).severity is severity


def test_where_a_statement_belongs_is_told_beside_it() -> None:
    action = advise(p.prepared(database="shop", owner="app"), p.case(p.facts()))
    assert action.where == "in database shop, as app or a superuser"
    assert action.after_asking == ("COMMIT PREPARED 'order-7';", "ROLLBACK PREPARED 'order-7';")
    assert advise(p.prepared(), p.case(p.facts())).where == ""


def test_on_mariadb_it_is_ended_by_the_very_id_that_is_listed() -> None:
    xa = XaId(77, b"\x00'", b"b")
    action = advise(p.prepared(xa.text, origin=of_xa(xa), xa=xa), p.case(p.facts("mariadb")))
    assert action.after_asking == ("XA COMMIT X'0027','b',77;", "XA ROLLBACK X'0027','b',77;")


@pytest.mark.parametrize(
    ("gid", "text"),
    [
        ("order-7", "'order-7'"),
        ("it's", "'it''s'"),
        ("back\\slash", "E'back\\U0000005Cslash'"),
        ("ü\n'", "E'\\U000000FC\\U0000000A\\U00000027'"),
    ],
)
def test_a_gid_is_written_so_that_nothing_in_it_ends_the_literal(gid: str, text: str) -> None:
    assert literal(gid) == text
    assert of_gid(gid).kind in (Kind.NAME, Kind.UNKNOWN)
