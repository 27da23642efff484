"""Whose a prepared transaction is, by the shape of its id: what fits is named, what nearly fits is not."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodoubt.doctor.origins import SYSTEMS, Kind, Origin, XaId, of_gid, of_xa
from nodoubt.xid import FORMAT_ID, XaXid, Xid, new_attempt, new_cluster, parse_gid

from .conftest import GIDS, XAS, as_text, atomikos, bitronix, narayana

OURS = Xid("00000000000000c1", "01" * 16, 3)
GUID = "5b9b8a10-1f00-4000-8000-1234567890ab"


@pytest.mark.parametrize(
    ("gid", "kind", "told"),
    [
        (OURS.gid, Kind.NODOUBT, "cluster 00000000000000c1"),
        ("_sa_" + "0f" * 16, Kind.SQLALCHEMY, ""),
        ("citus_0_1234_4_0", Kind.CITUS, "the coordinator (group 0)"),
        ("citus_3_1234_4_0_16384", Kind.CITUS, "the worker of group 3"),
        ("__pgdog_2pc_17283", Kind.PGDOG, ""),
        ("__pgdog_2pc_a1b2c3d4_17283_2", Kind.PGDOG, "instance a1b2c3d4"),
        (f"{GUID}/4711", Kind.NPGSQL, ""),
        ("pg_gid_16400_731", Kind.SUBSCRIPTION, "subscription 16400"),
        (as_text(narayana(7)), Kind.NARAYANA, "node node-7"),
        (as_text(atomikos(7)), Kind.ATOMIKOS, ""),
        (as_text(bitronix(7)), Kind.BITRONIX, "server shop-1"),
        (as_text(XaId(int.from_bytes(b"GeRo", "big"), b"\x01\x02", b"\x03")), Kind.GERONIMO, ""),
        (as_text(XaId(42, b"gtrid", b"bqual")), Kind.XA_TEXT, ""),
        (as_text(XaId(0, b"gtrid", b"")), Kind.XA_TEXT, ""),
        ("order-7", Kind.NAME, ""),
        ("process_order:customer_7:8f2a", Kind.NAME, ""),
    ],
)
def test_a_gid_is_known_by_its_shape(gid: str, kind: Kind, told: str) -> None:
    origin = of_gid(gid)
    assert (origin.kind, origin.coordinator) == (kind, told)


@pytest.mark.parametrize(
    ("gid", "kind"),
    [
        (OURS.gid.upper(), Kind.NAME),
        (OURS.gid.replace("nd1", "nd2"), Kind.LIKE_OURS),
        (OURS.gid + "0000", Kind.LIKE_OURS),
        (OURS.gid.replace("c1.", "c."), Kind.LIKE_OURS),
        ("_sa_" + "0f" * 15, Kind.NAME),
        ("_sa_" + "0F" * 16, Kind.NAME),
        ("citus_0_1234_4", Kind.NAME),
        ("citus_0_1234_x_0", Kind.NAME),
        ("__pgdog_2pc_", Kind.NAME),
        (f"{GUID}", Kind.NAME),
        ("pg_gid_16400", Kind.NAME),
        ("7_jobs_done", Kind.UNKNOWN),  # base64, but of no text: an XA id of unknown format, or a name
        ("42_Z3RyaWQ_YnF1YWw=", Kind.UNKNOWN),  # no encoder leaves the padding out
        (f"{1 << 31}_Z3RyaWQ=_YnF1YWw=", Kind.UNKNOWN),
        ("42__", Kind.UNKNOWN),
        (as_text(XaId(131077, b"short", b"short")), Kind.UNKNOWN),
        (as_text(XaId(int.from_bytes(b"Btnx", "big"), b"short", b"short")), Kind.UNKNOWN),
        ("Bestellung für ü", Kind.UNKNOWN),
        ("order\n7", Kind.UNKNOWN),
        ("it's", Kind.UNKNOWN),
        ("", Kind.UNKNOWN),
    ],
)
def test_what_only_nearly_fits_is_not_taken_for_it(gid: str, kind: Kind) -> None:
    assert of_gid(gid).kind is kind


@pytest.mark.parametrize(
    ("xa", "kind", "told"),
    [
        (XaId(FORMAT_ID, OURS.gtrid.encode(), XaXid(OURS, 17, 1700000000).bqual.encode()), Kind.NODOUBT, "cluster"),
        (XaId(1, b"_sa_" + b"0f" * 16, b""), Kind.SQLALCHEMY, ""),
        (narayana(7), Kind.NARAYANA, "node node-7"),
        (XaId(131072, narayana(7).gtrid, narayana(7).bqual), Kind.NARAYANA, "node node-7"),
        (atomikos(7), Kind.ATOMIKOS, ""),
        (bitronix(7), Kind.BITRONIX, "server shop-1"),
        (XaId(int.from_bytes(b"GeRo", "big"), b"\x01", b"\x02"), Kind.GERONIMO, ""),
        (XaId(1, b"order-7", b""), Kind.NAME, ""),
        (XaId(1, b"order-7", b"branch-1"), Kind.NAME, ""),
    ],
)
def test_an_xa_id_is_known_by_its_format_and_content(xa: XaId, kind: Kind, told: str) -> None:
    origin = of_xa(xa)
    assert origin.kind is kind
    assert origin.coordinator.startswith(told)


@pytest.mark.parametrize(
    "xa",
    [
        XaId(77, b"order-7", b""),
        XaId(1, b"\xff\x00", b""),
        XaId(1, b"order-7", b"\x00"),
        XaId(131077, b"short", b"short"),
        XaId(131077, b"\x00" * 28 + b"\x00node", b"\x00" * 36),
        XaId(int.from_bytes(b"ATOM", "big"), b"\xff", b"resource"),
        XaId(int.from_bytes(b"Btnx", "big"), b"\x00" * 13, b"\x00" * 12),
    ],
)
def test_an_xa_id_that_fits_nothing_is_unknown(xa: XaId) -> None:
    assert of_xa(xa).kind is Kind.UNKNOWN


@pytest.mark.parametrize(
    "xa",
    [
        XaId(1, OURS.gtrid.encode(), b"3.17.1700000000"),  # our content under another format
        XaId(FORMAT_ID + 1, OURS.gtrid.encode().replace(b"nd1", b"nd2"), b"\xff"),
        XaId(FORMAT_ID, OURS.gtrid.encode(), b"3"),
        XaId(FORMAT_ID, b"order-7", b""),
        XaId(FORMAT_ID, b"\xff", b"\xff"),
    ],
)
def test_an_xa_id_that_is_like_ours_may_be_another_release_s(xa: XaId) -> None:
    assert of_xa(xa).kind is Kind.LIKE_OURS


def test_ours_on_mariadb_names_the_connection_that_prepared_it() -> None:
    handle = XaXid(Xid(new_cluster(), new_attempt(), 0), 17, 1_700_000_000)
    origin = of_xa(XaId(FORMAT_ID, handle.xid.gtrid.encode(), handle.bqual.encode()))
    assert (origin.xid, origin.held_by, origin.server_started) == (handle.xid, 17, 1_700_000_000)


def test_every_kind_has_an_example_and_a_name() -> None:
    shown = {of_gid(name(1)).kind for name in GIDS.values()} | {of_xa(name(1)).kind for name in XAS.values()}
    shown |= {of_gid(f"{GUID}/1").kind, of_gid("pg_gid_1_1").kind, of_gid(OURS.gid).kind, Kind.GERONIMO, Kind.UNKNOWN}
    shown |= {of_gid("nd2.").kind}
    assert shown == set(Kind) == set(SYSTEMS)
    assert {kind: of_gid(name(1)).kind for kind, name in GIDS.items()} == {kind: kind for kind in GIDS}
    assert {kind: of_xa(name(1)).kind for kind, name in XAS.items()} == {kind: kind for kind in XAS}


@given(st.text(max_size=80))
def test_any_text_is_of_some_kind_and_ours_only_if_we_would_have_written_it(gid: str) -> None:
    origin = of_gid(gid)
    assert (origin.kind is Kind.NODOUBT) == (parse_gid(gid) is not None)


@given(st.integers(0, 2**31 - 1), st.binary(max_size=64), st.binary(max_size=64))
def test_any_xa_id_is_of_some_kind_and_can_be_written_in_a_statement(
    format_id: int, gtrid: bytes, bqual: bytes
) -> None:
    xa = XaId(format_id, gtrid, bqual)
    assert isinstance(of_xa(xa), Origin)
    assert xa.text.isprintable()
    parts = [eval(part.replace("X'", "bytes.fromhex('") + ")") if part[0] == "X" else eval("b" + part)
             for part in xa.sql.split(",")[:2]]  # fmt: skip
    assert (parts, xa.sql.rpartition(",")[2]) == ([gtrid, bqual], str(format_id))


@given(st.binary(min_size=1, max_size=64))
def test_base64_as_an_encoder_writes_it_is_read_back(gtrid: bytes) -> None:
    text = f"131077_{base64.b64encode(bytes(28) + gtrid[:36]).decode()}_{base64.b64encode(bytes(36)).decode()}"
    plain = gtrid[:36].isascii() and gtrid[:36].decode("ascii").isprintable()
    assert of_gid(text).kind is (Kind.NARAYANA if plain else Kind.UNKNOWN)
