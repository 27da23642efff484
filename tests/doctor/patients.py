"""Facts to make cases of: each says what it wants to be otherwise than sound."""

from __future__ import annotations

from typing import Any

from nodoubt.doctor import facts as f
from nodoubt.doctor.advice import Case, Place
from nodoubt.doctor.origins import Origin, of_gid
from nodoubt.protocol.records import BranchRef, Decision, Mode, Quarantined, Staging, Standing, Verdict
from nodoubt.xid import Xid

NOW = 1_800_000_000.0
CLUSTER = "00000000000000c1"
GRACE_S = 60.0


def attempt_at(seconds: float, nonce: int = 0) -> str:
    """An attempt that was begun then."""
    return f"{int(seconds * 1000):012x}{nonce:020x}"


ATTEMPT = attempt_at(NOW - 10)
OLD_ATTEMPT = attempt_at(NOW - 9999)
XID = Xid(CLUSTER, ATTEMPT, 0)

SETTINGS: dict[str, dict[str, str]] = {
    "postgres": {
        "max_prepared_transactions": "100",
        "synchronous_standby_names": "",
        "autovacuum_freeze_max_age": "200000000",
    },
    "mariadb": {
        "log_bin": "OFF",
        "binlog_format": "MIXED",
        "innodb_rollback_on_timeout": "ON",
        "rpl_semi_sync_master_enabled": "OFF",
        "wait_timeout": "600",
    },
    "sqlite": {},
}


def facts(kind: str = "postgres", *, settings: dict[str, str] | None = None, **changes: Any) -> f.Facts:
    """A sound database of that kind, but for the changes."""
    wanted = SETTINGS[kind] | (settings or {})
    return f.Facts(
        **{
            "name": "shop",
            "url": f"{kind}://shop",
            "kind": kind,
            "server": f.Server(version=kind, skew_s=0.0),
            "settings": {name: f.Setting(value) for name, value in wanted.items()},
            "vacuum": vacuum() if kind == "postgres" else None,
            **changes,
        }
    )


def vacuum(oldest: int = 1000, **others: int) -> f.Vacuum:
    return f.Vacuum(freeze_max_age=200_000_000, oldest_database="shop", oldest_database_age=oldest, others=others)


def prepared(gid: str = "order-7", *, origin: Origin | None = None, **changes: Any) -> f.Prepared:
    return f.Prepared(**{"id": gid, "origin": origin or of_gid(gid), "age_s": 5.0, **changes})


def journal(**changes: Any) -> f.Journal:
    return f.Journal(**{"cluster": CLUSTER, "version": 1, "epoch": 3, "floor": "0" * 32, **changes})


def identity(**changes: Any) -> f.Identity:
    sound: dict[str, Any] = {
        "resource_id": "r0",
        "cluster": CLUSTER,
        "epoch": 3,
        "server": "here",
        "server_now": "here",
    }
    return f.Identity(**(sound | changes))


def case(
    one: f.Facts,
    *,
    at: f.Journal | None = None,
    reached: tuple[str, ...] = ("r0", "r1"),
    listed: tuple[Xid, ...] = (),
    expected: int = 10,
    known_for_s: dict[str, float] | None = None,
) -> Case:
    held = at or one.journal
    return Case(
        facts=one,
        journals={} if held is None else {held.cluster: Place("shop", held)},
        listed=frozenset(listed),
        reached=frozenset(reached),
        now=NOW,
        grace_s=GRACE_S,
        expected=expected,
        known_for_s=known_for_s or {},
    )


BRANCHES = (BranchRef(0, "shop", "r0"), BranchRef(1, "stock", "r1"))


def standing(
    verdict: Verdict = Verdict.COMMIT, *, ago_s: float = 5.0, ended: bool = False, attempt: str = ATTEMPT,
    branches: tuple[BranchRef, ...] = BRANCHES,
) -> Standing:  # fmt: skip
    decision = Decision(attempt, verdict, Mode.ONCE, "", branches, owner="host/17", decided_at=NOW - ago_s)
    return Standing(decision, ended)


def staging(*, deadline_in_s: float = 3600.0, last: int | None = None, ago_s: float = 10.0, **changes: Any) -> Staging:
    wanted: dict[str, Any] = {
        "name": "order-7", "attempt": ATTEMPT, "branches": BRANCHES, "last": last, "deadline": NOW + deadline_in_s,
        "owner": "host/17", "created_at": NOW - ago_s,
    }  # fmt: skip
    return Staging(**(wanted | changes))


def quarantined() -> Quarantined:
    return Quarantined(ATTEMPT, 1, "stock", "somebody rolled it back", since=NOW - 99)
