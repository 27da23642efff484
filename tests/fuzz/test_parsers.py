"""Parsers of ids, URLs, records, rows and statements: they end in an answer or a documented error, whatever they read.

And they accept nothing that the writer beside them would not have written. The names of points are in
tests/test_points.py, fragments and verbs of the query language in tests/query.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nodoubt.doctor import origins
from nodoubt.errors import InvalidName, SchemaMismatch, UsageError
from nodoubt.jobs.board import job_of
from nodoubt.jobs.links import key_of, link_of, value_of
from nodoubt.jobs.records import ITEMS_MAX, JobRecord, JobState, Link, Row
from nodoubt.journals import rows
from nodoubt.journals.attempts import next_attempt
from nodoubt.ports import Identity
from nodoubt.protocol.records import (
    BranchRef,
    Call,
    CallState,
    Confirmation,
    Decision,
    Event,
    Mode,
    Quarantined,
    Readiness,
    Staging,
    Verdict,
)
from nodoubt.resources import mariadb_text, postgres_statements
from nodoubt.resources.sqlite import record as format_
from nodoubt.resources.sqlite.record import Record, UnreadableRecord, decode, encode
from nodoubt.testing.nursery import Address
from nodoubt.url import KINDS, parse_url
from nodoubt.xid import (
    BRANCHES_MAX,
    FORMAT_ID,
    XaXid,
    Xid,
    check_name,
    first_attempt_of,
    is_attempt,
    parse_gid,
    parse_xa_recover,
    transaction_id,
)

bounded = settings(max_examples=150, deadline=None)
anything = st.text(st.characters(), max_size=40)
hexes = st.text("0123456789abcdef", min_size=16, max_size=16)
attempts = st.builds(str.__add__, hexes, hexes)
xids = st.builds(Xid, hexes, attempts, st.integers(0, BRANCHES_MAX - 1))
xas = st.builds(XaXid, xids, st.integers(0, 2**40), st.integers(0, 2**33))


# ---- ids ------------------------------------------------------------------------------------------


@st.composite
def recovered_lines(draw: st.DrawFn) -> tuple[Any, ...]:
    """What XA RECOVER lists, ours and anybody's, bent in one place or another."""
    xa = draw(xas)
    raw = (xa.xid.gtrid + xa.bqual).encode()
    line: list[Any] = [FORMAT_ID, len(xa.xid.gtrid), len(xa.bqual), draw(st.sampled_from([raw, raw.decode()]))]
    for at, values in (
        (0, st.integers()),
        (1, st.integers(-80, 80)),
        (2, st.integers(-80, 80)),
        (3, st.binary(max_size=128) | anything),
    ):
        if draw(st.integers(0, 3)) == 0:
            line[at] = draw(values)
    return tuple(line)


@given(recovered_lines())
@example((FORMAT_ID, -5, len("nd1.") + 16 + 1 + 32 + 10, b"nd1." + b"0" * 16 + b"." + b"0" * 32 + b"0.0.0"))
@example((FORMAT_ID, 1, 1, "\ud800x"))
@bounded
def test_a_recovered_line_is_ours_only_if_we_would_have_written_it(line: tuple[Any, ...]) -> None:
    found = parse_xa_recover(line)
    if found is not None:
        data = line[3] if isinstance(line[3], bytes) else line[3].encode()
        assert line[:3] == (FORMAT_ID, len(found.xid.gtrid), len(found.bqual))
        assert data == (found.xid.gtrid + found.bqual).encode()


@given(xids, st.text("0123456789abcdef.nd\n \u0660", max_size=4), st.integers(0, 60))
@bounded
def test_a_gid_with_something_added_is_a_stranger_s(xid: Xid, added: str, at: int) -> None:
    text = xid.gid[:at] + added + xid.gid[at:]
    found = parse_gid(text)
    assert found is None or found.gid == text
    assert is_attempt(xid.attempt + added) is (added == "")


@given(attempts)
@bounded
def test_the_attempt_after_another_is_an_attempt(attempt: str) -> None:
    following = next_attempt(attempt)
    assert is_attempt(following) and (following > attempt or attempt == "f" * 32)


@given(st.floats(allow_nan=False, allow_infinity=False))
@bounded
def test_every_time_has_a_first_attempt(seconds: float) -> None:
    assert is_attempt(first_attempt_of(seconds))


@given(anything, anything)
@bounded
def test_a_name_is_taken_as_it_is_or_refused(operation: str, entity: str) -> None:
    for make, words in ((check_name, [operation]), (transaction_id, [operation, entity])):
        try:
            name: str = make(*words)
        except InvalidName:
            continue
        assert check_name(name) == name and 0 < len(name) <= 200
        assert name.encode()  # every database can store it


@given(anything | xids.map(lambda xid: xid.gid), st.integers(), st.binary(max_size=70), st.binary(max_size=70))
@bounded
def test_whatever_is_prepared_the_doctor_says_whose_it_may_be(
    gid: str, format_id: int, gtrid: bytes, bqual: bytes
) -> None:
    assert isinstance(origins.of_gid(gid), origins.Origin)
    assert isinstance(origins.of_xa(origins.XaId(format_id, gtrid, bqual)), origins.Origin)


# ---- URLs -----------------------------------------------------------------------------------------

PIECES = [
    "://",
    "+",
    ":",
    "@",
    "/",
    "?",
    "#",
    "[",
    "]",
    "%",
    "%41",
    "%2F",
    "%00",
    "&",
    "=",
    ";",
    "\n",
    " ",
    "é",
    "\udc80",
]
urls = st.builds(
    lambda scheme, rest: scheme + "".join(rest),
    st.sampled_from([*(f"{scheme}://" for scheme in KINDS), "postgresql+asyncpg://", "sqlite:///", ""]),
    st.lists(st.sampled_from([*PIECES, "host", "5432", "me", "s3cr3t", "::1", "db", ".."]) | anything, max_size=9),
)


@given(urls)
@example("postgresql://\udcff@host/db")
@example("postgresql://%41/db")
@example("sqlite:///a%2541.db")
@example("sqlite:///\udcff.db")
@settings(max_examples=200, deadline=None)
def test_a_url_is_read_as_it_would_be_written_or_refused(text: str) -> None:
    try:
        found = parse_url(text)
    except UsageError:
        return
    assert parse_url(found.secret()) == found
    assert parse_url(str(found)) == dataclasses.replace(found, password="***" if found.password else "")
    assert found.kind in ("postgres", "mariadb", "sqlite") and found.database


@given(
    st.sampled_from(["postgresql", "mariadb", "mysql", "oracle"]),
    st.lists(st.sampled_from(PIECES) | anything, max_size=6),
)
@bounded
def test_whatever_is_wrong_with_a_url_its_password_is_not_shown(scheme: str, rest: list[str]) -> None:
    try:
        found = parse_url(f"{scheme}://me:s3cr3t@{''.join(rest)}")
        told = f"{found} {found!r}"
    except UsageError as error:
        told = str(error)
    assert "s3cr3t" not in told


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=4, max_size=12))
@bounded
def test_a_password_of_any_characters_arrives_and_is_never_shown(password: str) -> None:
    found, other = (parse_url(f"postgresql://me:{quote(one, safe='')}@host/db") for one in (password, "another"))
    assert (found.password == password and found.secret() != str(found)) or password == "***"
    assert (str(found), repr(found)) == (str(other), repr(other))


# ---- what SQLite keeps ----------------------------------------------------------------------------

GID = "nd1.00000000000000c1.00000000000000000000000000000001.0"
loose: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
names = st.lists(st.sampled_from(["_rowid_", "a", "b"]), max_size=3)
values = (
    st.none() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=3) | st.binary(max_size=3) | loose
)
bent_tables = st.fixed_dictionaries(
    {
        "name": st.text(max_size=3),
        "shape": st.just("00" * 32),
        "before": st.just("00" * 32),
        "key": names,
        "columns": names,
        "erase": st.lists(st.lists(values, max_size=2), max_size=2),
        "insert": st.lists(st.lists(values, max_size=3), max_size=2),
    }
)
bent_records = st.fixed_dictionaries(
    {
        "gid": st.just(GID),
        "tables": st.lists(bent_tables, max_size=2) | loose,
        "sequences": st.lists(st.tuples(st.text(max_size=3), values), max_size=2) | loose,
    }
)


def sealed(body: bytes) -> bytes:
    return format_.MAGIC + bytes([format_.VERSION]) + hashlib.sha256(body).digest() + body


def accepted(stored: bytes) -> None:
    """Refused, or a record that could have been promised: it is written as it was read."""
    try:
        found = decode(stored, GID)
    except UnreadableRecord:
        return
    assert isinstance(found, Record)
    assert decode(encode(found), GID) == found
    assert all(number is None or abs(number) <= 2**63 for _, number in found.sequences)


@given(bent_records)
@example({"gid": GID, "tables": [], "sequences": [("t", 2**63)]})
@settings(max_examples=150, deadline=None)
def test_a_record_is_one_that_we_would_have_written_or_unreadable(bent: dict[str, Any]) -> None:
    accepted(sealed(msgspec.msgpack.encode(bent)))


@given(st.binary(max_size=200))
@bounded
def test_no_bytes_are_a_record(body: bytes) -> None:
    accepted(body)
    accepted(sealed(body))


@pytest.mark.parametrize("value", [2**63, math.nan])
@pytest.mark.parametrize("where", ["erase", "insert"])
def test_what_sqlite_cannot_hold_is_in_no_record(value: Any, where: str) -> None:
    table = {"name": "t", "shape": "", "before": "", "key": ["k"], "columns": ["k"], "erase": [], "insert": []}
    body = {"gid": GID, "tables": [{**table, where: [[value]]}], "sequences": []}
    with pytest.raises(UnreadableRecord):
        decode(sealed(msgspec.msgpack.encode(body)), GID)


# ---- what a journal keeps -------------------------------------------------------------------------

refs = st.builds(BranchRef, st.integers(0, BRANCHES_MAX - 1), st.text(max_size=5), attempts)
times = st.floats(0, 1e11)


def with_one_of_its_branches(one: Any, column: str) -> Any:
    """That column names one of the branches, or none."""
    places = [None, *(ref.number for ref in one.branches)]
    return msgspec.structs.replace(one, **{column: places[(getattr(one, column) or 0) % len(places)]})


decisions = st.builds(
    Decision,
    attempts,
    st.sampled_from(Verdict),
    st.sampled_from(Mode),
    st.text(max_size=5),
    st.lists(refs, max_size=3, unique_by=lambda ref: ref.number).map(tuple),
    st.none() | st.integers(0, BRANCHES_MAX - 1),
    st.text(max_size=5),
    st.text(max_size=5),
    times,
).map(lambda one: with_one_of_its_branches(one, "point"))
stagings = st.builds(
    Staging,
    st.text(max_size=5),
    attempts,
    st.lists(refs, max_size=3, unique_by=lambda ref: ref.number).map(tuple),
    st.none() | st.integers(0, BRANCHES_MAX - 1),
    times,
    st.text(max_size=5),
    st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
    times,
    times,
    st.lists(st.text(max_size=5), max_size=3, unique=True).map(tuple),
    st.integers(0, 99),
).map(lambda one: with_one_of_its_branches(one, "last"))
confirmations = st.builds(
    Confirmation, attempts, st.text(max_size=5), st.sampled_from(Readiness), st.text(max_size=5), times
)
calls = st.builds(
    Call,
    attempts,
    st.integers(0, 99),
    st.text(max_size=5),
    st.text(max_size=5),
    state=st.sampled_from(CallState),
    tries=st.integers(0, 99),
    until=times,
    begun_at=times,
    changed_at=times,
    version=st.integers(0, 99),
)
junk = st.one_of(
    st.none(), anything, st.integers(), st.floats(), st.binary(max_size=8), loose.map(repr),
    st.lists(st.fixed_dictionaries({"number": loose, "resource": loose, "resource_id": loose}), max_size=2).map(
        lambda branches: msgspec.json.encode(msgspec.to_builtins(branches, str_keys=True))
    ),
)  # fmt: skip


def decision_row(one: Decision, ended: float | None = None) -> list[Any]:
    """As a driver brings it."""
    return [
        one.attempt, one.verdict.value, one.mode.value, one.name, rows.json(one.branches), one.point, one.owner,
        one.reason, one.decided_at, ended,
    ]  # fmt: skip


def staging_row(one: Staging) -> list[Any]:
    return [
        one.attempt, one.name, rows.json(one.branches), one.last, one.deadline, one.owner, rows.json(one.metadata),
        one.created_at, one.begin_by, rows.json(one.confirmations), one.calls,
    ]  # fmt: skip


def confirmation_row(one: Confirmation) -> list[Any]:
    return [one.attempt, one.who, one.answer.value, one.why, one.at]


def call_row(one: Call) -> list[Any]:
    return [
        one.attempt, one.number, one.key, one.step, one.undo, one.arguments, one.state.value, one.result, one.error,
        one.tries, one.until, one.claim, one.worker, one.begun_at, one.changed_at, one.version,
    ]  # fmt: skip


@given(decisions, stagings, st.none() | times)
@bounded
def test_a_row_reads_back_as_what_was_written(decision: Decision, staging: Staging, ended: float | None) -> None:
    standing = rows.standing(decision_row(decision, ended))
    assert (standing.decision, standing.ended) == (decision, ended is not None)
    as_text = [None if one is None else str(one) for one in decision_row(decision, ended)]
    assert rows.standing(as_text) == standing, "MariaDB's text protocol, SQLite's affinities"
    assert rows.staging(staging_row(staging)) == staging


@given(confirmations, calls)
@bounded
def test_what_was_said_and_called_reads_back_as_what_was_written(confirmation: Confirmation, call: Call) -> None:
    assert rows.confirmation(confirmation_row(confirmation)) == confirmation
    assert rows.confirmation([str(one) for one in confirmation_row(confirmation)]) == confirmation
    assert rows.call(call_row(call)) == call
    assert rows.call([str(one) for one in call_row(call)]) == call


def quarantined_row(one: Quarantined) -> list[Any]:
    return [one.attempt, one.branch, one.resource, one.why, one.since, one.cleared_by]


def event_row(one: Event) -> list[Any]:
    return [one.attempt, one.at, one.what, one.detail]


def resource_row(one: tuple[str, Identity]) -> list[Any]:
    name, identity = one
    return [identity.resource_id, name, identity.cluster, identity.server, identity.epoch]


def job_row(one: Row, now: float = 0.0) -> list[Any]:
    job = one.record
    return [
        job.name, one.run, one.keeper, job.state.value, job.done, job.total, rows.json(job.checkpoint), job.note,
        job.worker, one.claim, now + one.held_s, job.begun_at, job.changed_at, now,
    ]  # fmt: skip


some = st.text(max_size=5)
items = st.integers(0, ITEMS_MAX)
checkpoints = st.recursive(st.none() | st.booleans() | st.integers(0, 2**40) | some, st.lists, max_leaves=4)
jobs = st.builds(
    Row,
    # No lease is said to have run out here: whoever's has is told to be abandoned.
    st.builds(
        JobRecord, some, st.sampled_from(JobState), items, st.none() | items, checkpoints, some, some, times, times
    ),
    attempts,
    some,
    some,
    st.floats(0, 1e6),
)
# What else a journal keeps: records, how they are written, how they are read.
KEPT: dict[str, tuple[st.SearchStrategy[Any], Any, Any]] = {
    "quarantined": (
        st.builds(Quarantined, attempts, st.integers(0, BRANCHES_MAX - 1), some, some, times, some),
        quarantined_row,
        rows.quarantined,
    ),
    "event": (st.builds(Event, attempts, times, some, some), event_row, rows.event),
    "resource": (
        st.tuples(some, st.builds(Identity, some, some, some, st.integers(0, 2**40))),
        resource_row,
        rows.resource,
    ),
    "job": (jobs, job_row, job_of),
}


@pytest.mark.parametrize("what", KEPT)
@given(st.data())
@settings(max_examples=100, deadline=None)
def test_all_else_that_a_journal_keeps_reads_back_and_damaged_is_refused_or_still_one(
    what: str, data: st.DataObject
) -> None:
    records, written, read = KEPT[what]
    record = data.draw(records)
    row = written(record)
    assert read(row) == record
    assert read([None if one is None else str(one) for one in row]) == record, "MariaDB's text protocol"
    row[data.draw(st.integers(0, len(row) - 1))] = data.draw(
        junk | st.sampled_from(["[" * 4000, "nan", math.nan, b"\xff"])
    )
    with contextlib.suppress(SchemaMismatch):
        found = read(row)
        assert read(written(found)) == found
    for wrong in (row[:-1], [*row, ""]):
        with pytest.raises(SchemaMismatch):
            read(wrong)


RUN = "0" * 32
links = st.builds(Link, st.integers(1, 10**13), checkpoints, items, st.booleans())


@given(links)
@bounded
def test_a_checkpoint_reads_back_as_what_was_written(link: Link) -> None:
    assert link_of("a", RUN, key_of(RUN, link.number).key, value_of(link)) == link


@given(
    anything | st.integers(-5, 10**13).map(str) | st.integers(-5, 10**13).map("{:012}".format),
    st.binary(max_size=40)
    | st.tuples(loose, loose, loose).map(lambda three: msgspec.json.encode(msgspec.to_builtins(three, str_keys=True)))
    | links.map(value_of),
)
@example("000000000001", b"[" * 4000)
@example("1", b"[null,1,false]")
@example("000000000000", b"[null,1,false]")
@example("000000000001", b"[null,-1,false]")
@example("000000000001", b"[null,1]")
@bounded
def test_a_checkpoint_that_was_damaged_is_refused_or_still_one(number: str, value: bytes) -> None:
    found, told = None, ""
    try:
        found = link_of("a", RUN, number, value)
    except SchemaMismatch as error:
        told = str(error)
    if found is None:
        assert RUN in told and "keys of a" in told, "whoever mends it must find it"
        return
    assert key_of(RUN, found.number).key == number and 0 <= found.done <= ITEMS_MAX
    assert link_of("a", RUN, number, value_of(found)) == found


@given(calls, st.integers(0, 15), junk)
@settings(max_examples=150, deadline=None)
def test_a_call_that_was_damaged_is_refused_or_still_one(call: Call, at: int, value: Any) -> None:
    row = call_row(call)
    row[at] = value
    try:
        found = rows.call(row)
    except SchemaMismatch:
        return
    assert is_attempt(found.attempt) and all(map(math.isfinite, (found.until, found.begun_at, found.changed_at)))
    assert rows.call(call_row(found)) == found


@given(confirmations, st.integers(0, 4), junk)
@settings(max_examples=150, deadline=None)
def test_an_answer_that_was_damaged_is_refused_or_still_one(confirmation: Confirmation, at: int, value: Any) -> None:
    row = confirmation_row(confirmation)
    row[at] = value
    try:
        found = rows.confirmation(row)
    except SchemaMismatch:
        return
    assert is_attempt(found.attempt) and math.isfinite(found.at)
    assert rows.confirmation(confirmation_row(found)) == found


@given(decisions, st.integers(0, 9), junk)
@settings(max_examples=150, deadline=None)
def test_a_decision_that_was_damaged_is_refused_or_still_one(decision: Decision, at: int, value: Any) -> None:
    row = decision_row(decision)
    row[at] = value
    try:
        found = rows.standing(row).decision
    except SchemaMismatch:
        return
    assert is_attempt(found.attempt) and math.isfinite(found.decided_at)
    numbers = [ref.number for ref in found.branches]
    assert len(set(numbers)) == len(numbers) and all(0 <= number < BRANCHES_MAX for number in numbers)
    assert rows.standing(decision_row(found)).decision == found


@given(stagings, st.integers(0, 10), junk)
@settings(max_examples=150, deadline=None)
def test_a_name_that_was_damaged_is_refused_or_still_one(staging: Staging, at: int, value: Any) -> None:
    row = staging_row(staging)
    row[at] = value
    try:
        found = rows.staging(row)
    except SchemaMismatch:
        return
    assert is_attempt(found.attempt) and math.isfinite(found.deadline)
    assert rows.staging(staging_row(found)) == found


# ---- statements, and addresses --------------------------------------------------------------------

SQL = ["'", '"', "`", "$$", "$a$", "--", "/*", "*/", "#", ";", "\\", "(", "E'", "\n", " ", "COMMIT", "begin", "select",
       "PREPARE TRANSACTION", "insert into", "t", ".", "x", "xa", "é", "\0", "\ud800"]  # fmt: skip
statements = st.lists(st.sampled_from(SQL) | anything, max_size=12).map("".join)


@given(statements)
@settings(max_examples=150, deadline=None)
def test_any_text_of_a_statement_is_looked_at_without_an_accident(text: str) -> None:
    looks = postgres_statements.shape(text)
    assert isinstance(looks.control, str)
    for look in (mariadb_text.only_reads, mariadb_text.stains, mariadb_text.may_use_temporary_tables):
        assert isinstance(look(text), bool)
    mariadb_text.written_table(text)
    try:
        mariadb_text.refuse_control(text)
    except UsageError:
        assert mariadb_text.verb(text)


@given(
    st.sampled_from(["", " ", "\n", "/* */", "-- x\n", "/* a */ "]), st.sampled_from(["commit", "Rollback", "BEGIN"])
)
@bounded
def test_transaction_control_is_seen_behind_blanks_and_comments(before: str, word: str) -> None:
    assert postgres_statements.shape(before + word).control == word.upper()
    with pytest.raises(UsageError):
        mariadb_text.refuse_control(before + word)


@given(anything | st.builds(lambda a, b: f"{a}:{b}", anything, anything))
@bounded
def test_an_address_is_a_file_and_a_function_or_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Address.parse(text)
