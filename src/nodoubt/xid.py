"""Names, attempts and xids: make, encode, parse, validate.

An xid is `(cluster, attempt, branch)`. PostgreSQL and SQLite know it as one text (`gid`), XA as
`(format_id, gtrid, bqual)` of at most 64 bytes each. All alphabets are `[0-9a-z.:]`: an xid can stand in a
statement without quoting rules (FACTS: a gid cannot be a parameter).

Guarantees: `parse(encode(x)) == x`, and `parse` answers None for every text that `encode` would not have
written, so that a stranger's transaction is never taken for ours (I9).

Must not: do I/O, read a clock or draw randomness (`new_attempt` is handed both by its caller's library).
"""

from __future__ import annotations

import re
import secrets
import unicodedata
from collections.abc import Collection, Sequence
from typing import Any

import msgspec
import uuid_utils

from .errors import InvalidName, UsageError, invariant

NAME_LENGTH_MAX = 200
BRANCHES_MAX = 256
_MILLISECONDS_MAX = (1 << 48) - 1  # what an attempt's id has room for
FORMAT_ID = 0x6E6462  # "ndb"; XA wants it below 2**31

_CLUSTER = r"[0-9a-f]{16}"
_ATTEMPT = r"[0-9a-f]{32}"
_BRANCH = r"0|[1-9][0-9]{0,2}"
_NUMBER = r"0|[1-9][0-9]{0,18}"
NUMBER_MAX = 10**19
_CLUSTER_ONLY, _ATTEMPT_ONLY = re.compile(_CLUSTER), re.compile(_ATTEMPT)
_GID = re.compile(rf"nd1\.({_CLUSTER})\.({_ATTEMPT})\.({_BRANCH})")
_GTRID = re.compile(rf"nd1\.({_CLUSTER})\.({_ATTEMPT})")
_BQUAL = re.compile(rf"({_BRANCH})\.({_NUMBER})\.({_NUMBER})")


class Xid(msgspec.Struct, frozen=True, order=True):
    """What a resource knows a branch by. `attempt` carries the nonce, so a reused name has other xids (I10)."""

    cluster: str
    attempt: str
    branch: int

    def __post_init__(self) -> None:
        if not _CLUSTER_ONLY.fullmatch(self.cluster) or not _ATTEMPT_ONLY.fullmatch(self.attempt):
            raise UsageError(f"not a cluster and attempt id: {self.cluster!r}, {self.attempt!r}")
        if not 0 <= self.branch < BRANCHES_MAX:
            raise UsageError(f"branch {self.branch} is not within 0 to {BRANCHES_MAX - 1}")

    @property
    def gid(self) -> str:
        """The text form: PostgreSQL's gid, SQLite's key."""
        return f"nd1.{self.cluster}.{self.attempt}.{self.branch}"

    @property
    def gtrid(self) -> str:
        """XA's global part: the same for all branches of an attempt."""
        return f"nd1.{self.cluster}.{self.attempt}"


class XaXid(msgspec.Struct, frozen=True):
    """An xid as XA knows it, with the session that prepared it: the one that may still hold it (FACTS, XAER_NOTA)."""

    xid: Xid
    connection: int
    server_started: int  # seconds since the epoch, as the server told; a connection id means nothing without it

    def __post_init__(self) -> None:
        # A branch that is prepared under an id that `parse_xa` does not know is nobody's: no sweep would ever end it.
        numbers = 0 <= self.connection < NUMBER_MAX and 0 <= self.server_started < NUMBER_MAX
        invariant(numbers, "I8", "{} and {} make no id that recovery finds", self.connection, self.server_started)

    @property
    def bqual(self) -> str:
        return f"{self.xid.branch}.{self.connection}.{self.server_started}"

    @property
    def sql(self) -> str:
        """As it stands in a statement: 'gtrid','bqual',format_id."""
        return f"'{self.xid.gtrid}','{self.bqual}',{FORMAT_ID}"


def parse_gid(text: str) -> Xid | None:
    """The xid that encodes as `text`, or None: not ours."""
    match = _GID.fullmatch(text)
    if match is None or int(match[3]) >= BRANCHES_MAX:
        return None
    return Xid(match[1], match[2], int(match[3]))


def parse_xa(format_id: int, gtrid: str, bqual: str) -> XaXid | None:
    """The xid that encodes so, or None: not ours."""
    global_part, branch_part = _GTRID.fullmatch(gtrid), _BQUAL.fullmatch(bqual)
    if format_id != FORMAT_ID or global_part is None or branch_part is None or int(branch_part[1]) >= BRANCHES_MAX:
        return None
    return XaXid(Xid(global_part[1], global_part[2], int(branch_part[1])), int(branch_part[2]), int(branch_part[3]))


def parse_xa_recover(line: Sequence[Any]) -> XaXid | None:
    """A line of XA RECOVER, if it is ours: (format id, length of gtrid, length of bqual, both in one)."""
    format_id, gtrid_length, bqual_length, data = line
    try:
        raw = data.encode() if isinstance(data, str) else bytes(data)
        if gtrid_length < 0 or len(raw) != gtrid_length + bqual_length:
            return None
        gtrid, bqual = raw[:gtrid_length].decode("ascii"), raw[gtrid_length:].decode("ascii")
    except UnicodeError:
        return None
    return parse_xa(format_id, gtrid, bqual)


def new_attempt() -> str:
    """A fresh attempt id: UUIDv7, so that ids of one clock rise with time (retention's floor), 74 random bits."""
    return uuid_utils.uuid7().hex


def first_attempt_of(seconds: float) -> str:
    """The smallest attempt id that a clock showing this time, since the epoch, can have made."""
    milliseconds = int(min(max(seconds * 1000, 0), _MILLISECONDS_MAX))
    return f"{milliseconds:012x}{'0' * 20}"


def new_cluster() -> str:
    """A fresh cluster id. Minted once, by `setup`, inside the journal."""
    return secrets.token_hex(8)


def new_mark() -> str:
    """What tells an epoch from another of the same number: 64 random bits."""
    return secrets.token_hex(8)


def is_attempt(text: str) -> bool:
    """Whether the text has the form of an attempt id."""
    return _ATTEMPT_ONLY.fullmatch(text) is not None


def check_name(name: object) -> str:
    """The name, or `InvalidName`: non-empty text, at most 200 characters, nothing that does not print."""
    if not isinstance(name, str):
        raise InvalidName(f"a transaction name is a text, not {type(name).__name__}")
    if not name or name.isspace():
        raise InvalidName("a transaction name must not be empty")
    if len(name) > NAME_LENGTH_MAX:
        raise InvalidName(f"a transaction name has at most {NAME_LENGTH_MAX} characters; this one has {len(name)}")
    if name.isprintable():
        return name
    bad = next((c for c in name if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")), None)
    if bad is not None:
        raise InvalidName(f"a transaction name holds no control characters; this one has U+{ord(bad):04X}")
    return name


def check_who(names: object) -> tuple[str, ...]:
    """Who must confirm, in order. Raises `UsageError`: it is a collection of names, each as a transaction's may be."""
    if isinstance(names, str) or not isinstance(names, Collection):
        raise UsageError(f"confirmations= is a collection of names, as {{'shipping'}}, not {names!r}")
    try:
        return tuple(sorted({check_name(name) for name in names}))
    except InvalidName as error:
        raise UsageError(f"confirmations= names those who must confirm: {error}") from error


def transaction_id(operation: str, entity: str) -> str:
    """A descriptive, unique name: `operation:entity:nonce`, cut to fit.

    >>> transaction_id("process_order", "customer_7").startswith("process_order:customer_7:")
    True
    """
    nonce = secrets.token_hex(6)
    head = f"{operation}:{entity}"[: NAME_LENGTH_MAX - len(nonce) - 1]
    return check_name(f"{head}:{nonce}")
