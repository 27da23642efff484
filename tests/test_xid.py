"""Names and xids: what is written can be read, and nothing else is taken for ours (I9)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodoubt.errors import InvalidName, InvariantViolated, UsageError
from nodoubt.url import parse_url
from nodoubt.xid import (
    FORMAT_ID,
    XaXid,
    Xid,
    check_name,
    new_attempt,
    new_cluster,
    parse_gid,
    parse_xa,
    transaction_id,
)

hexes = st.text("0123456789abcdef", min_size=16, max_size=16)
xids = st.builds(Xid, hexes, st.builds(lambda a, b: a + b, hexes, hexes), st.integers(0, 255))
xas = st.builds(XaXid, xids, st.integers(0, 2**40), st.integers(0, 2**33))


@given(xids)
def test_a_gid_reads_back_as_the_xid_it_was_made_of(xid: Xid) -> None:
    assert parse_gid(xid.gid) == xid
    assert len(xid.gid.encode()) <= 199, "PostgreSQL's limit"


@given(xas)
def test_an_xa_xid_reads_back_and_fits_in_64_bytes_each(xa: XaXid) -> None:
    assert parse_xa(FORMAT_ID, xa.xid.gtrid, xa.bqual) == xa
    assert 0 < len(xa.xid.gtrid) <= 64 and len(xa.bqual) <= 64 and FORMAT_ID < 2**31


@given(st.text())
def test_no_text_is_ours_but_what_we_would_write(text: str) -> None:
    found = parse_gid(text)
    assert found is None or found.gid == text


@given(xids, st.integers(0, 80), st.characters())
def test_one_changed_character_is_another_xid_or_none(xid: Xid, at: int, c: str) -> None:
    at %= len(xid.gid)
    text = xid.gid[:at] + c + xid.gid[at + 1 :]
    found = parse_gid(text)
    assert found is None or found.gid == text


@given(st.integers(0, 2**31), st.text(), st.text())
def test_no_xa_triple_is_ours_but_what_we_would_write(format_id: int, gtrid: str, bqual: str) -> None:
    found = parse_xa(format_id, gtrid, bqual)
    assert found is None or (found.xid.gtrid, found.bqual, FORMAT_ID) == (gtrid, bqual, format_id)


@pytest.mark.parametrize("text", ["", "order-7", "nd1.x", "nd1." + "0" * 16 + "." + "0" * 32 + ".256", "ND1.a.b.0"])
def test_a_stranger_is_not_ours(text: str) -> None:
    assert parse_gid(text) is None


@pytest.mark.parametrize(
    ("cluster", "attempt", "branch"), [("x", "0" * 32, 0), ("0" * 16, "0", 0), ("0" * 16, "0" * 32, 256)]
)
def test_a_malformed_xid_cannot_be_made(cluster: str, attempt: str, branch: int) -> None:
    with pytest.raises(UsageError):
        Xid(cluster, attempt, branch)


@pytest.mark.parametrize(("connection", "started"), [(-1, 0), (0, -1), (10**19, 0), (0, 10**19)])
def test_an_xa_id_that_recovery_would_not_know_cannot_be_made(connection: int, started: int) -> None:
    with pytest.raises(InvariantViolated, match="I8"):
        XaXid(Xid("0" * 16, "0" * 32, 0), connection, started)


def test_attempts_rise_with_time_and_never_repeat() -> None:
    made = [new_attempt() for _ in range(1000)]
    assert made == sorted(made) and len(set(made)) == 1000
    assert new_cluster() != new_cluster()


@pytest.mark.parametrize(
    "name", ["order-7", "O'Brien", 'say "hi"', "emoji 🎉", "x" * 200, "a;drop table b", " padded "]
)
def test_a_printable_name_is_a_name(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "   ", "x" * 201, "x" * 10_000, "tab\there", "new\nline", "nul\0", "\x7f", "\u2028", "\ud800", 7, None, b"x"],
)
def test_anything_else_is_refused_before_any_work(name: object) -> None:
    with pytest.raises(InvalidName):
        check_name(name)


@given(st.text(st.characters(blacklist_categories=("Cc", "Cs", "Zl", "Zp"))), st.text("abc", min_size=1))
def test_transaction_id_makes_a_good_unique_name(operation: str, entity: str) -> None:
    one, two = transaction_id(operation, entity), transaction_id(operation, entity)
    assert one != two and check_name(one) == one


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:s3cret@host:5432/db?sslmode=require",
        "mariadb://me:s3cret@host/db",
        "mysql://me:s3cret@[::1]:3306/db",
    ],
)
def test_a_password_never_shows(url: str) -> None:
    parsed = parse_url(url)
    assert "s3cret" not in str(parsed) and "s3cret" not in repr(parsed)
    assert "s3cret" in parsed.secret()
    assert parse_url(parsed.secret()) == parsed


@pytest.mark.parametrize(
    "url",
    ["", "x", "oracle://x/y", "sqlite://", "sqlite:///", "sqlite:///:memory:", "postgresql://host", "mysql://h:x/db"],
)
def test_a_url_that_cannot_be_used_says_what_to_write(url: str) -> None:
    with pytest.raises(UsageError):
        parse_url(url)
