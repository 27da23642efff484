"""The format of what is promised: it does not change by accident, and damage is never taken for a record."""

from __future__ import annotations

import hashlib
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodoubt.ports import Refused
from nodoubt.resources.sqlite import record as format_
from nodoubt.resources.sqlite.record import RawText, Record, TableRedo, UnreadableRecord, decode, digest, encode, exact

GID = "nd1.00000000000000c1.00000000000000000000000000000001.0"
EXAMPLE = Record(
    gid=GID,
    tables=(
        TableRedo(
            name="t",
            shape="ab" * 32,
            before="cd" * 32,
            key=("_rowid_",),
            columns=("_rowid_", "a", "b"),
            erase=((1,), (2,)),
            insert=((1, None, 1.5), (2, "ü", b"\x00\xff"), (3, RawText(b"\xff"), -(2**63))),
        ),
    ),
    sequences=(("t", 7), ("u", None)),
)

# Version 1, as written by the first release. If this test fails, files in the field cannot be read any more:
# a new form is a new version, and the old one must still be read.
GOLDEN = (
    "6e64726401786b2e634ee9e9ebc1e2897297294fd4af04b9d258cbb4669059a29dc56302f783a3676964d9376e64312e3030"
    "30303030303030303030303063312e30303030303030303030303030303030303030303030303030303030303030312e30a6"
    "7461626c65739187a46e616d65a174a57368617065d940616261626162616261626162616261626162616261626162616261"
    "62616261626162616261626162616261626162616261626162616261626162616261626162a66265666f7265d94063646364"
    "6364636463646364636463646364636463646364636463646364636463646364636463646364636463646364636463646364"
    "63646364636463646364a36b657991a75f726f7769645fa7636f6c756d6e7393a75f726f7769645fa161a162a56572617365"
    "9291019102a6696e73657274939301c0cb3ff80000000000009302a2c3bcc40200ff9303d401ffd38000000000000000a973"
    "657175656e6365739292a1740792a175c0"
)


def test_version_1_is_read_and_written_as_it_was_first() -> None:
    assert encode(EXAMPLE).hex() == GOLDEN
    assert decode(bytes.fromhex(GOLDEN), GID) == EXAMPLE


def test_the_layout_is_the_documented_one() -> None:
    stored = encode(EXAMPLE)
    assert stored[:4] == b"ndrd"
    assert stored[4] == 1
    assert stored[5:37] == hashlib.sha256(stored[37:]).digest()
    fields = msgspec.msgpack.decode(stored[37:])
    assert list(fields) == ["gid", "tables", "sequences"]
    assert list(fields["tables"][0]) == ["name", "shape", "before", "key", "columns", "erase", "insert"]


values = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(),
    st.binary(min_size=1).map(RawText),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(values, values), max_size=5), st.lists(st.tuples(values), max_size=5))
def test_every_value_comes_back_with_its_type(rows: list[tuple[object, ...]], keys: list[tuple[object, ...]]) -> None:
    table = TableRedo("t", "", "", ("k",), ("k", "v"), tuple(keys), tuple(rows))
    found = decode(encode(Record(GID, (table,), ())), GID).tables[0]
    assert [[(type(v), v) for v in row] for row in found.insert] == [[(type(v), v) for v in row] for row in rows]
    assert [[(type(v), v) for v in row] for row in found.erase] == [[(type(v), v) for v in row] for row in keys]


def test_a_digest_tells_types_apart() -> None:
    digests = {digest(exact([(value,)])) for value in (1, 1.0, "1", b"1", RawText(b"1"), None, "", b"")}
    assert len(digests) == 8


def test_a_record_is_read_back_before_anything_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = msgspec.msgpack.Encoder(enc_hook=lambda value: value.stored)  # text becomes a blob
    monkeypatch.setattr(format_, "_encoder", wrong)
    with pytest.raises(Refused, match="cannot be recorded exactly"):
        encode(EXAMPLE)


def test_another_version_is_refused_by_its_number() -> None:
    stored = bytearray(encode(EXAMPLE))
    stored[4] = 2
    with pytest.raises(UnreadableRecord, match="version 2; this release reads version 1") as caught:
        decode(bytes(stored), GID)
    assert "stays prepared" in str(caught.value)


def test_a_record_of_another_branch_is_refused() -> None:
    with pytest.raises(UnreadableRecord, match="it is the record of"):
        decode(encode(EXAMPLE), GID[:-1] + "1")


@pytest.mark.parametrize("stored", [None, "text", 5, b"", b"ndrd", b"ndrd\x01", b"xxxx" + encode(EXAMPLE)[4:]])
def test_what_is_no_record_is_refused(stored: object) -> None:
    with pytest.raises(UnreadableRecord):
        decode(stored, GID)


def test_every_cut_is_seen() -> None:
    stored = encode(EXAMPLE)
    for length in range(len(stored)):
        with pytest.raises(UnreadableRecord):
            decode(stored[:length], GID)


def test_every_flipped_bit_is_seen() -> None:
    """Without the checksum, most of these decode to rows that nobody wrote."""
    stored = encode(EXAMPLE)
    for place in range(len(stored)):
        for bit in range(8):
            damaged = bytearray(stored)
            damaged[place] ^= 1 << bit
            with pytest.raises(UnreadableRecord):
                decode(bytes(damaged), GID)


def sealed(body: bytes) -> bytes:
    """With a right head and checksum: what a wrong writer, not a damaged disk, would leave."""
    return format_.MAGIC + bytes([format_.VERSION]) + hashlib.sha256(body).digest() + body


def test_a_sealed_body_of_any_bytes_is_refused_and_never_crashes() -> None:
    body, dice = encode(EXAMPLE)[37:], random.Random(1)
    for _ in range(3000):
        damaged = bytearray(body)
        for _ in range(dice.randint(1, 4)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        try:
            found = decode(sealed(bytes(damaged[: dice.randint(1, len(damaged))])), GID)
        except UnreadableRecord:
            continue
        assert isinstance(found, Record)
    for length in range(64):
        with pytest.raises(UnreadableRecord):
            decode(sealed(dice.randbytes(length)), GID)
    with pytest.raises(UnreadableRecord):
        decode(sealed(b"\x91" * 100_000), GID)


@pytest.mark.parametrize(
    "insert", [((1, 2),), ((1, 2, [3]),), ((1, 2, True),), ((1, 2, {"a": 1}),), ((1, 2, msgspec.msgpack.Ext(9, b"")),)]
)
def test_rows_of_the_wrong_width_or_type_are_refused(insert: tuple[tuple[object, ...], ...]) -> None:
    table = msgspec.structs.replace(EXAMPLE.tables[0], insert=insert)
    body = msgspec.msgpack.encode(msgspec.structs.replace(EXAMPLE, tables=(table,)))
    with pytest.raises(UnreadableRecord):
        decode(sealed(body), GID)


def test_unknown_fields_are_refused_rather_than_ignored() -> None:
    fields = msgspec.msgpack.decode(encode(EXAMPLE)[37:])
    with pytest.raises(UnreadableRecord):
        decode(sealed(msgspec.msgpack.encode({**fields, "also": 1})), GID)
