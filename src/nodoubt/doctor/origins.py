"""Who names a prepared transaction so: told by the shape of its id alone.

What is said here of others was read where they make their ids (repository: path), in November 2026:

    SQLAlchemy    sqlalchemy/sqlalchemy: lib/sqlalchemy/engine/default.py, create_xid: "_sa_%032x", a new one for each
                  connection, so nothing in it leads to its other half
    Citus         citusdata/citus: src/backend/distributed/transaction/remote_transaction.c: "citus_%u_%u_%lu_%u": the
                  group, backend, transaction, connection; its later tests (src/test/regress) add the database's oid.
                  It decides in pg_dist_transaction, for recover_prepared_transactions() (transaction_recovery.c)
    PgDog         pgdogdev/pgdog: pgdog/src/frontend/client/query_engine/two_pc: "__pgdog_2pc_", a number; lately the
                  instance's id before it and the shard's number behind it. It decides in the instance's own log
                  (two_pc/wal/README.md)
    Npgsql        npgsql/npgsql: src/Npgsql/VolatileResourceManager.cs: the distributed transaction's GUID, a slash, the
                  process id of its backend
    PostgreSQL    its logical replication with two_phase: "pg_gid_%u_%u" (src/backend/access/transam/twophase.c; the
                  manual, ALTER SUBSCRIPTION): the subscription's oid, the publisher's transaction
    XA as text    psycopg/psycopg: psycopg/psycopg/_tpc.py, and pgjdbc/pgjdbc: org/postgresql/xa/RecoveredXid.java:
                  "<format id>_<base64>_<base64>", the same from both. The format id tells whose transaction it is:
    Narayana      (JBoss, WildFly, Quarkus) jbosstm/narayana: com/arjuna/ats/jta/xa/XATxConverter.java: 131077, for JTS
                  131072 and 131080; gtrid: a uid of 28 bytes (ats/arjuna/common/Uid.java), then the node's name
    Atomikos      atomikos/transactions-essentials: com/atomikos/datasource/xa/XID.java: "ATOM" as a number; both parts
                  are text: the transaction's id, and what begins with the resource's name
    Bitronix      GuicedEE/BitronixTransactionManager: bitronix/tm/BitronixXid.java, utils/UidGenerator.java: "Btnx";
                  gtrid: the server's id, eight bytes of time, four of a counter
    Geronimo      (and TomEE) apache/geronimo-txmanager: org/apache/geronimo/transaction/manager/XidImpl.java: "GeRo"

Guarantees: an id of ours is taken for ours only if `xid` would have written it (I9); what fits no shape is *unknown*,
and so is what fits by its format id but not by its content.

Must not: ask anybody, or guess.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from enum import StrEnum

import msgspec

from ..xid import FORMAT_ID, XaXid, Xid, parse_gid, parse_xa

XA_PART_MAX = 64
FORMAT_ID_DEFAULT = 1  # what XA START 'name' gets on MariaDB and MySQL
FORMAT_ID_BELOW = 1 << 31
_NARAYANA_UID = 28
_BITRONIX_TAIL = 12


class Kind(StrEnum):
    """Whose transaction it is, by the shape of its id."""

    NODOUBT = "nodoubt"
    LIKE_OURS = "nodoubt-like"
    SQLALCHEMY = "sqlalchemy"
    CITUS = "citus"
    PGDOG = "pgdog"
    NPGSQL = "npgsql"
    SUBSCRIPTION = "postgresql-subscription"
    NARAYANA = "narayana"
    ATOMIKOS = "atomikos"
    BITRONIX = "bitronix"
    GERONIMO = "geronimo"
    XA_TEXT = "xa-as-text"  # psycopg or pgjdbc, for a transaction manager that is not known here
    NAME = "plain-name"
    UNKNOWN = "unknown"


SYSTEMS: dict[Kind, str] = {
    Kind.NODOUBT: "nodoubt",
    Kind.LIKE_OURS: "another release of nodoubt, or an imitation",
    Kind.SQLALCHEMY: "SQLAlchemy",
    Kind.CITUS: "Citus",
    Kind.PGDOG: "PgDog",
    Kind.NPGSQL: "Npgsql",
    Kind.SUBSCRIPTION: "a PostgreSQL subscription",
    Kind.NARAYANA: "Narayana",
    Kind.ATOMIKOS: "Atomikos",
    Kind.BITRONIX: "Bitronix",
    Kind.GERONIMO: "Geronimo or TomEE",
    Kind.XA_TEXT: "psycopg or pgjdbc",
    Kind.NAME: "a plain name",
    Kind.UNKNOWN: "unknown",
}


class Origin(msgspec.Struct, frozen=True):
    """What the id tells. `coordinator`: who to ask, as far as the id names anybody; `detail`: what else it says."""

    kind: Kind
    coordinator: str = ""
    detail: str = ""
    xid: Xid | None = None  # ours
    held_by: int = 0  # ours on MariaDB: the connection that prepared it
    server_started: int = 0  # and when that connection's server had started


class XaId(msgspec.Struct, frozen=True):
    """An xid as XA RECOVER lists it."""

    format_id: int
    gtrid: bytes
    bqual: bytes

    @property
    def sql(self) -> str:
        """As it stands in a statement: hexadecimal, unless nothing in it needs quoting rules."""
        return f"{_part(self.gtrid)},{_part(self.bqual)},{self.format_id}"

    @property
    def text(self) -> str:
        """As people read it."""
        if self.format_id == FORMAT_ID_DEFAULT and not self.bqual and _plain(self.gtrid):
            return self.gtrid.decode()
        if _plain(self.gtrid) and _plain(self.bqual):
            return f"{self.gtrid.decode()},{self.bqual.decode()},{self.format_id}"
        return self.sql


_NUMBER = r"0|[1-9][0-9]{0,19}"
_GUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_SQLALCHEMY = re.compile(r"_sa_[0-9a-f]{32}")
_CITUS = re.compile(rf"citus_({_NUMBER})_({_NUMBER})_({_NUMBER})_({_NUMBER})(?:_({_NUMBER}))?")
_PGDOG = re.compile(
    rf"__pgdog_2pc_(?:([0-9A-Za-z-]*[A-Za-z][0-9A-Za-z-]*|[0-9a-f]{{8}})_)?({_NUMBER})(?:_({_NUMBER}))?"
)
_NPGSQL = re.compile(rf"({_GUID})/({_NUMBER})")
_SUBSCRIPTION = re.compile(rf"pg_gid_({_NUMBER})_({_NUMBER})")
_XA_TEXT = re.compile(rf"({_NUMBER})_([A-Za-z0-9+/=]*)_([A-Za-z0-9+/=]*)")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.:/@ -]*[A-Za-z0-9])?|_[A-Za-z0-9_.:-]+")
_NO_QUOTING = re.compile(rb"[A-Za-z0-9_.:/@-]*")
_LIKE_OURS = re.compile(r"nd[0-9]*\.")
_LIKE = Origin(Kind.LIKE_OURS, detail="begins like an id of ours, and is none that this release would write")


def of_gid(gid: str) -> Origin:
    """Of PostgreSQL's gid, or SQLite's."""
    xid = parse_gid(gid)
    if xid is not None:
        return _ours(xid)
    for shape, origin in _GIDS:
        match = shape.fullmatch(gid)
        if match is not None:
            found = origin(match)
            if found is not None:
                return found
    return _name(gid)


def of_xa(xa: XaId) -> Origin:
    """Of a line of XA RECOVER."""
    ours = _ours_of_xa(xa)
    if ours is not None:
        return ours
    if xa.format_id == FORMAT_ID or _LIKE_OURS.match(xa.gtrid.decode("latin-1")):
        return _LIKE
    if xa.format_id != FORMAT_ID_DEFAULT:
        return _managed(xa) or Origin(Kind.UNKNOWN, detail=f"format id {xa.format_id}")
    try:
        gtrid, bqual = xa.gtrid.decode("ascii"), xa.bqual.decode("ascii")
    except UnicodeDecodeError:
        return Origin(Kind.UNKNOWN, detail="not text")
    if _SQLALCHEMY.fullmatch(gtrid) and not bqual:
        return Origin(Kind.SQLALCHEMY)
    found = _name(gtrid)
    if not bqual or found.kind is Kind.UNKNOWN:
        return found
    return Origin(Kind.NAME, detail=f"branch {bqual}") if _NAME.fullmatch(bqual) else Origin(Kind.UNKNOWN)


def _ours(xid: Xid, held_by: int = 0, server_started: int = 0) -> Origin:
    return Origin(
        Kind.NODOUBT,
        f"cluster {xid.cluster}",
        f"branch {xid.branch} of attempt {xid.attempt}",
        xid,
        held_by,
        server_started,
    )


def _ours_of_xa(xa: XaId) -> Origin | None:
    try:
        found: XaXid | None = parse_xa(xa.format_id, xa.gtrid.decode("ascii"), xa.bqual.decode("ascii"))
    except UnicodeDecodeError:
        return None
    return None if found is None else _ours(found.xid, found.connection, found.server_started)


def _name(text: str) -> Origin:
    if _LIKE_OURS.match(text):
        return _LIKE
    return Origin(Kind.NAME if _NAME.fullmatch(text) else Kind.UNKNOWN)


# ---- PostgreSQL's gids ----------------------------------------------------------------------------


def _citus(match: re.Match[str]) -> Origin:
    group, backend, transaction, connection, _ = match.groups()
    node = "the coordinator (group 0)" if group == "0" else f"the worker of group {group}"
    return Origin(
        Kind.CITUS, node, f"of backend {backend}, distributed transaction {transaction}, connection {connection}"
    )


def _pgdog(match: re.Match[str]) -> Origin:
    instance, number, shard = match.groups()
    detail = f"transaction {number}" + ("" if shard is None else f", shard {shard}")
    return Origin(Kind.PGDOG, f"instance {instance}" if instance else "", detail)


def _npgsql(match: re.Match[str]) -> Origin:
    return Origin(Kind.NPGSQL, "", f"distributed transaction {match[1]}, of backend {match[2]}")


def _subscription(match: re.Match[str]) -> Origin:
    return Origin(Kind.SUBSCRIPTION, f"subscription {match[1]}", f"the publisher's transaction {match[2]}")


def _xa_text(match: re.Match[str]) -> Origin | None:
    format_id, parts = int(match[1]), [_decoded(match[2]), _decoded(match[3])]
    gtrid, bqual = parts
    if format_id >= FORMAT_ID_BELOW or not gtrid or bqual is None:
        return None
    xa = XaId(format_id, gtrid, bqual)
    if format_id not in _MANAGERS and _plain(gtrid) and _plain(bqual):
        return Origin(Kind.XA_TEXT, "", f"XA id {xa.text}")
    # A plain name can look like one: "7_jobs_done" does. Only what fits a known manager is surely none.
    return _managed(xa) or Origin(Kind.UNKNOWN, detail=f"an XA id of format {format_id} as text, or a plain name")


def _decoded(text: str) -> bytes | None:
    """Only what an encoder would have written: else a plain name with underscores would pass."""
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error:
        return None
    return raw if len(raw) <= XA_PART_MAX and base64.b64encode(raw).decode() == text else None


_GIDS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], Origin | None]], ...] = (
    (_SQLALCHEMY, lambda _: Origin(Kind.SQLALCHEMY)),
    (_CITUS, _citus),
    (_PGDOG, _pgdog),
    (_NPGSQL, _npgsql),
    (_SUBSCRIPTION, _subscription),
    (_XA_TEXT, _xa_text),
)


# ---- transaction managers, by their format ids ----------------------------------------------------


def _narayana(xa: XaId) -> Origin | None:
    node = xa.gtrid[_NARAYANA_UID:]
    if len(xa.gtrid) < _NARAYANA_UID or len(xa.bqual) < _NARAYANA_UID or not _plain(node):
        return None
    uid = xa.gtrid[:_NARAYANA_UID].hex()
    return Origin(Kind.NARAYANA, f"node {node.decode()}" if node else "", f"transaction {uid}")


def _atomikos(xa: XaId) -> Origin | None:
    if not xa.gtrid or not xa.bqual or not _plain(xa.gtrid) or not _plain(xa.bqual):
        return None
    return Origin(Kind.ATOMIKOS, "", f"transaction {xa.gtrid.decode()}, resource {xa.bqual.decode()}")


def _bitronix(xa: XaId) -> Origin | None:
    server = xa.gtrid[:-_BITRONIX_TAIL]
    if len(xa.gtrid) < _BITRONIX_TAIL or len(xa.bqual) < _BITRONIX_TAIL or not _plain(server):
        return None
    detail = f"transaction {xa.gtrid[-_BITRONIX_TAIL:].hex()}"
    return Origin(Kind.BITRONIX, f"server {server.decode()}" if server else "", detail)


def _geronimo(xa: XaId) -> Origin | None:
    return Origin(Kind.GERONIMO, "", f"transaction {xa.gtrid.hex()}") if xa.gtrid else None


_MANAGERS: dict[int, Callable[[XaId], Origin | None]] = {
    131077: _narayana,
    131072: _narayana,
    131080: _narayana,
    int.from_bytes(b"ATOM", "big"): _atomikos,
    int.from_bytes(b"Btnx", "big"): _bitronix,
    int.from_bytes(b"GeRo", "big"): _geronimo,
}


def _managed(xa: XaId) -> Origin | None:
    """A known manager's, if its content fits, too."""
    manager = _MANAGERS.get(xa.format_id)
    return None if manager is None else manager(xa)


def _part(raw: bytes) -> str:
    return f"'{raw.decode()}'" if _NO_QUOTING.fullmatch(raw) else f"X'{raw.hex()}'"


def _plain(raw: bytes) -> bool:
    return raw.isascii() and raw.decode("ascii").isprintable()
