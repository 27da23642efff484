"""Where a database is: one URL, parsed once, printed only with its password masked.

Guarantees: `str()`, `repr()` and errors never show a password, wherever in the URL it stands; `secret()` gives it all
to a driver.

Must not: connect, or import a driver.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from .errors import UsageError

_SECRETS = frozenset({"sslpassword"})  # options of libpq's
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
KINDS = {"postgresql": "postgres", "postgres": "postgres", "mariadb": "mariadb", "mysql": "mariadb", "sqlite": "sqlite"}
DRIVERS = {"postgres": ("psycopg", "asyncpg"), "mariadb": ("pymysql", "asyncmy"), "sqlite": ("apsw",)}


@dataclass(frozen=True, slots=True)
class Url:
    """A parsed database URL. `kind` is postgres, mariadb or sqlite; `database` is the path for sqlite."""

    kind: str
    scheme: str
    host: str = ""
    port: int | None = None
    user: str = ""
    password: str = field(default="", repr=False)
    database: str = ""
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    driver: str = field(default="", compare=False)  # what stands behind a "+" in the scheme

    def __str__(self) -> str:
        return self._text("***", "***")

    def secret(self) -> str:
        """The URL with its password: for a driver's connect, and nothing else."""
        return self._text(quote(self.password, safe=""))

    def secrets(self) -> tuple[str, ...]:
        """What must never be printed."""
        return tuple(one for one in (self.password, *(v for k, v in self.options if k in _SECRETS)) if one)

    def _text(self, password: str, key: str = "") -> str:
        """`key`: what stands for the password of a client's key; "" for itself."""
        if self.kind == "sqlite":
            return "sqlite:///" + self.database.replace("%", "%25")
        login = quote(self.user, safe="") + (f":{password}" if self.password else "")
        host = f"[{self.host}]" if ":" in self.host else quote(self.host, safe="")
        place = host + (f":{self.port}" if self.port is not None else "")
        query = "&".join(f"{quote(k)}={(key if k in _SECRETS else '') or quote(v)}" for k, v in self.options)
        return (
            f"{self.scheme}://{login}{'@' if login else ''}{place}/{quote(self.database)}{'?' if query else ''}{query}"
        )


def parse_url(text: str) -> Url:
    """Parse `postgresql://`, `mariadb://`, `mysql://` or `sqlite:///path`.

    Raises `UsageError`, which does not show the password.
    """
    scheme, separator, _ = text.partition("://")
    base, _, driver = scheme.partition("+")
    if not separator or base not in KINDS:
        shown = f" (scheme {scheme[:20]!r})" if separator and _SCHEME.fullmatch(scheme) else ""
        raise UsageError(f"not a database URL{shown}: write postgresql://, mariadb://, mysql:// or sqlite:///path")
    if "\0" in unquote(text) or any("\ud800" <= c <= "\udfff" for c in text):
        raise UsageError(f"the {base} URL holds a NUL, or bytes that are no text in UTF-8")
    kind = KINDS[base]
    if driver and driver not in DRIVERS[kind]:
        raise UsageError(
            f"{base}+{driver[:20]}:// names a driver that is not used here: leave it out, or name "
            f"{' or '.join(DRIVERS[kind])}. An engine of SQLAlchemy's with a driver of its own can be a resource itself"
        )
    if kind == "sqlite":
        path = text[len(scheme) + 3 :]
        if not path.startswith("/") or path in ("/", "/:memory:"):
            raise UsageError(
                "a SQLite URL names a file: sqlite:///relative.db or sqlite:////absolute.db; one in memory "
                "cannot survive a crash"
            )
        return Url(kind, base, database=unquote(path[1:]))
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise UsageError(
            f"the {base} URL has a port or host that cannot be read; in a user or password, / is written %2F, ? %3F, "
            "# %23 and @ %40"
        ) from None
    database = unquote(parts.path[1:])
    if not database:
        raise UsageError(f"the {base} URL names no database: {base}://user@host:port/DATABASE")
    options = parse_qsl(parts.query, keep_blank_values=True)
    passwords = [unquote(parts.password or ""), *(value for key, value in options if key == "password")]
    if sum(map(bool, passwords)) > 1:
        raise UsageError(f"the {base} URL has two passwords: one before the host and one as ?password=; leave one out")
    return Url(
        kind,
        base,
        host=unquote(parts.hostname or "localhost").lower(),
        port=port,
        user=unquote(parts.username or ""),
        password="".join(passwords),
        database=database,
        options=tuple((key, value) for key, value in options if key != "password"),
        driver=driver,
    )
