"""What the two MySQL drivers share: the URL's options, the first message of a session, how errors and results are read.

Guarantees: both drivers read one URL in one way, and take the same errors for the loss of a connection.

Must not: import a driver, connect, or send anything.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..errors import ResourceRefused, UsageError
from ..ports import Reply
from ..url import Url

CHARSET = "utf8mb4"
READ_TIMEOUT_DEFAULT_S = 300.0
READ_TIMEOUT_MAX_S = 86400.0
CLOSE_TIMEOUT_S = 2.0
PORT_DEFAULT = 3306
BATCH_STATEMENTS_MAX = 200
BATCH_CHARACTERS_MAX = 250_000  # the server takes 16 MiB in a packet by default, and may be told to take less

# The character set by statement, since a server may ignore the one in the handshake. The id by the server's own word,
# since a proxy puts its own into the handshake. The start of the server makes the id mean something (xid.XaXid): after
# a restart the same id is somebody else's. A server-wide completion_type of CHAIN would leave us in a transaction
# after each COMMIT of ours.
HELLO = (
    "SET NAMES utf8mb4; SET SESSION autocommit=1, completion_type='NO_CHAIN'; "
    "SELECT CONNECTION_ID(), UNIX_TIMESTAMP(); SHOW GLOBAL STATUS LIKE 'Uptime'"
)

# The first message on a connection of the user's making, of which nothing is changed; and the second, where it is made
# for us alone, and our own transactions run on it. XA commands heed neither setting.
INTRODUCTION = "SELECT CONNECTION_ID(), UNIX_TIMESTAMP(), @@character_set_client; SHOW GLOBAL STATUS LIKE 'Uptime'"
AUTOCOMMIT = "SET SESSION autocommit=1, completion_type='NO_CHAIN'"

# The client's own numbers (CR_…) all mean that the conversation is over. So do these of the server: shutdown, aborted
# or killed connection, network errors, and MySQL's "disconnected for inactivity".
_CLIENT_ERRORS = range(2000, 3000)
_LOSING_ERRORS = frozenset({0, 1053, 1152, 1158, 1159, 1160, 1161, 1184, 1927, 4031})

_AFTER = "\n;\n"  # the line break ends a comment that would swallow the next statement
_BEFORE = r"(?:\s|/\*.*?\*/|--\s[^\n]*\n|#[^\n]*\n)*"  # space and comments
_CALL = re.compile(rf"{_BEFORE}\(*\s*call\b", re.IGNORECASE | re.DOTALL)
_UPDATE = re.compile(rf"{_BEFORE}(?:set\s+statement\s.*?\sfor\s+)?(?:update|with)\b", re.IGNORECASE | re.DOTALL)
# "Rows matched: 3  Changed: 1  Warnings: 0", in the server's language, behind a byte for its length; it may be cut off.
_MATCHED = re.compile(rb".\D*(\d+)\D", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one URL, read and checked."""

    unix_socket: str | None
    read_timeout_s: float
    tls: ssl.SSLContext | None


def filled(escape: Callable[[Any], str], statement: str, values: Any) -> str:
    """The statement with its values, as the driver fills them in (`escape`, for one), but for bytes and lists.

    In those, asyncmy 0.2 and aiomysql 0.3 write a backslash before a quote whatever the session's sql_mode is: under
    NO_BACKSLASH_ESCAPES the quote ends the literal, and the rest of the value is SQL. With PyMySQL from 1.2 on aiomysql
    cannot write bytes at all.
    """
    if isinstance(values, Mapping):
        return statement % {name: _literal(escape, value) for name, value in values.items()}
    if isinstance(values, (tuple, list)):
        return statement % tuple(_literal(escape, value) for value in values)
    return statement % _literal(escape, values)


def _literal(escape: Callable[[Any], str], value: Any) -> str:
    match value:
        case bytes() | bytearray() | memoryview():
            return f"_binary X'{value.hex()}'"
        case tuple() | list() | set() | frozenset():
            return f"({','.join(_literal(escape, one) for one in value)})"
    return escape(value)


def options(url: Url) -> Options:
    """Read the options; anything unknown is a `UsageError` rather than a setting that silently does nothing."""
    given = dict(url.options)
    charset = given.pop("charset", CHARSET)
    if charset.lower() != CHARSET:
        raise UsageError(f"charset={charset} cannot be used: nodoubt speaks {CHARSET} with MariaDB and MySQL")
    mode = given.pop("ssl", "off").lower()
    authority = given.pop("ssl_ca", None)
    timeout = given.pop("read_timeout", str(READ_TIMEOUT_DEFAULT_S))
    unix_socket = given.pop("unix_socket", None)
    if given:
        raise UsageError(
            f"unknown option {', '.join(sorted(given))!r} in the {url.scheme} URL; known are charset, read_timeout, "
            "ssl, ssl_ca and unix_socket"
        )
    try:
        read_timeout_s = float(timeout)
    except ValueError:
        read_timeout_s = 0.0
    if not 0 < read_timeout_s <= READ_TIMEOUT_MAX_S:
        raise UsageError(f"read_timeout={timeout} is not a number of seconds up to {READ_TIMEOUT_MAX_S:g}")
    return Options(unix_socket or None, read_timeout_s, _tls(mode, authority))


@lru_cache(maxsize=16)
def _tls(mode: str, authority: str | None) -> ssl.SSLContext | None:
    """One context per setting: making one reads the system's certificates, some 50 ms per connect (FACTS)."""
    if mode in ("off", "false", "disabled"):
        if authority is not None:
            raise UsageError("ssl_ca is given but ssl is off: write ssl=on as well")
        return None
    if mode not in ("on", "true", "required", "unverified"):
        raise UsageError(f"ssl={mode} is not known: write ssl=off, ssl=on (certificate verified) or ssl=unverified")
    context = ssl.create_default_context(cafile=authority)
    if mode == "unverified":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def error_code(error: BaseException) -> int | None:
    """The number a driver's error carries, or None: not an answer of the server."""
    code = error.args[0] if error.args else None
    return code if isinstance(code, int) else None


def is_loss(code: int | None) -> bool:
    """Whether an error of this number means that the connection is gone, or its stream can't be trusted."""
    return code is None or code in _CLIENT_ERRORS or code in _LOSING_ERRORS


def error_text(error: BaseException) -> str:
    """The server's message, without the number in front."""
    return str(error.args[1]) if len(error.args) > 1 else str(error)


def which(each: Sequence[str], number: int, packet: str) -> str:
    """The statement that the reply of this number answers: of one that has several answers, the last."""
    return each[min(number, len(each) - 1)] if each else packet


def reply(result: Any, sql: str) -> Reply:
    """One result of either driver (their classes have the same attributes). This protocol has no command tags.

    An UPDATE counts the rows that matched, changed or not, as everywhere else. To ask the server for that (FOUND_ROWS)
    would spoil another count: an INSERT that finds its key taken, and leaves the row as it is, would count it.
    """
    if result.description is None:
        matched = _MATCHED.match(result.message or b"") if _UPDATE.match(sql) else None
        count = int(matched[1]) if matched else int(result.affected_rows or 0)
        return Reply(count=count, last_id=int(result.insert_id or 0))
    rows = tuple(result.rows or ())
    return Reply(count=len(rows), columns=tuple(column[0] for column in result.description), rows=rows)


def only_reply(statement: str, replies: Sequence[Reply]) -> Reply:
    """The one answer to the user's statement. A procedure answers with its result sets and a last OK."""
    if len(replies) > 1 and _CALL.match(statement) is None:
        raise UsageError(
            f"the text held {len(replies)} statements, and all of them were run: pass one statement at a time. What "
            "they did is rolled back with the branch"
        )
    return next((one for one in replies if one.columns), replies[-1])


def batches(texts: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Statements, their parameters filled in, by the packet: a text, and how many there are in it."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and (len(batch) == BATCH_STATEMENTS_MAX or size + len(text) > BATCH_CHARACTERS_MAX):
            yield _AFTER.join(batch), len(batch)
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield _AFTER.join(batch), len(batch)


def batch_reply(replies: Sequence[Reply], wanted: int) -> int:
    """The count of a packet made by `batches`."""
    if len(replies) != wanted:
        raise UsageError(
            "one of the texts held several statements, and all of them were run: pass one statement at a time. What "
            "they did is rolled back with the branch"
        )
    return sum(one.count for one in replies)


def started(replies: Sequence[Reply]) -> tuple[int, int]:
    """The connection's id and the second in which the server started, from the replies to `HELLO`.

    Both clocks are read as whole seconds, so the start can differ by one from session to session.
    """
    connection_id, now = replies[2].rows[0]
    return int(connection_id), _start(int(now), int(replies[3].rows[0][1]))


def _start(now: int, uptime: int) -> int:
    """When the server started. Its clock may have been set back to before that: then its uptime, which has no sign,
    has wrapped, and a start that was computed from it as it stands would be below zero.
    """
    return max(now - (uptime - (1 << 64) if uptime >= 1 << 63 else uptime), 0)


def introduced(replies: Sequence[Reply]) -> tuple[int, int]:
    """The same from the replies to `INTRODUCTION`. Raises `ResourceRefused` for a connection that garbles names."""
    connection_id, now, charset = replies[0].rows[0]
    if charset != CHARSET:
        raise ResourceRefused(
            f"the engine's connections speak {charset}, and nodoubt speaks {CHARSET} with MariaDB and MySQL: put "
            f"?charset={CHARSET} into the engine's URL"
        )
    return int(connection_id), _start(int(now), int(replies[1].rows[0][1]))
