"""Least privilege: an account with exactly the rights that `nodoubt schema sql --role` prints does all that it is for.

The bodies of `tests/integration` run here again, with such accounts. That only the role which prepared a branch may end
it, and what a branch needs that another session holds: `tests/postgres/test_postgres_answers.py`,
`tests/mariadb/test_mariadb_recovery.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest

from integration import test_transactions as whole
from kit import QUICK, make_database
from nodoubt import Coordinator, NoDoubtError
from nodoubt.schema import Grant, Part, Role, Schema, Tables, shipped, statements
from nodoubt.schema.grants import CHANGES, WORKED
from nodoubt.url import parse_url
from schema import duties
from schema.accounts import Guarded, another, dropped, guarded
from schema.duties import (
    begin,
    call_and_confirm,
    commit_at_once,
    commit_in_one_database,
    forget,
    forget_jobs,
    forget_keys,
    look,
    quarantine,
    recover,
    stage_and_decide,
    take_keys,
    undo,
    work_on_a_job,
)

pytestmark = pytest.mark.anyio

PAIRS = [("postgres", "mariadb"), ("mariadb", "postgres")]  # each once with the journal, once without
PARTS = ((Part.JOURNAL, Part.PARTICIPANT), (Part.PARTICIPANT,))

# What each right is for: the duty that fails without it.
NEEDED: dict[str, dict[str, duties.Duty]] = {
    "migrations": {"SELECT": begin},
    "journal": {"SELECT": begin, "UPDATE": begin, "UPDATE (counter)": begin, "UPDATE (value)": forget},
    "epochs": {"SELECT": begin, "INSERT": begin, "DELETE": forget},
    "decisions": {
        "SELECT": commit_in_one_database,
        "INSERT": commit_at_once,
        "UPDATE (confirms)": recover,
        "UPDATE (ended_at)": recover,
        "DELETE": forget,
    },
    "names": {
        "SELECT": commit_in_one_database,
        "INSERT": stage_and_decide,
        "UPDATE (undecided)": stage_and_decide,
        "UPDATE (calls)": call_and_confirm,
        "DELETE": stage_and_decide,
    },
    "confirmations": {
        "SELECT": recover,
        **dict.fromkeys(("INSERT", "UPDATE (answer)", "UPDATE (why)", "UPDATE (at)"), call_and_confirm),
        "DELETE": forget,
    },
    "calls": {
        "SELECT": stage_and_decide,
        "INSERT": call_and_confirm,
        **{f"UPDATE ({column})": undo for column in CHANGES},
        "DELETE": forget,
    },
    "jobs": {
        "SELECT": forget_jobs,
        "INSERT": work_on_a_job,
        **{f"UPDATE ({column})": work_on_a_job for column in WORKED},
        "DELETE": forget_jobs,
    },
    "resources": dict.fromkeys(
        ("SELECT", "INSERT", "UPDATE", "UPDATE (name)", "UPDATE (cluster)", "UPDATE (server)", "UPDATE (epoch)"), begin
    ),
    "quarantine": {
        "SELECT": stage_and_decide,
        **dict.fromkeys(
            ("INSERT", "UPDATE", "UPDATE (resource)", "UPDATE (why)", "UPDATE (since)", "UPDATE (cleared_by)"),
            quarantine,
        ),
    },
    "events": {"SELECT": stage_and_decide, "INSERT": stage_and_decide, "DELETE": forget},
    "identity": {"SELECT": begin, "UPDATE (epoch)": begin, "UPDATE (mark)": begin},
    "receipts": {
        "SELECT": begin,
        "INSERT": commit_in_one_database,
        "UPDATE (confirms)": commit_in_one_database,
        "DELETE": forget,
    },
    "keys": {"SELECT": take_keys, "INSERT": take_keys, "UPDATE (confirms)": take_keys, "DELETE": forget_keys},
    "SCHEMA nodoubt": {"USAGE": begin},
}
RECOVERY = (begin, undo, recover, quarantine, forget, forget_keys, forget_jobs)


def needed(one: Grant) -> duties.Duty:
    return NEEDED[one.on.rpartition("nodoubt_")[2].removeprefix("nodoubt.")][one.right]


@pytest.fixture
def mode() -> str:
    return "sync"  # a right is asked for by the statement, whoever sends it


@pytest.fixture(params=PAIRS, ids="+".join)
def pair(request: Any, tmp_path: Path) -> Iterator[list[Guarded]]:
    """Set up by an administrator. The journal is in the first."""
    some = [make_database(kind, name, request, tmp_path) for kind, name in zip(request.param, "ab", strict=True)]
    with Coordinator({one.name: one.url for one in some}, recovery=False) as db:
        db.setup()
    made = [guarded(one) for one in some]
    for one, parts in zip(made, PARTS, strict=True):
        one.grant(one.rights(Role.APP, *parts))
    yield made
    for one in made:
        dropped(one)


for _name, _test in vars(whole).items():
    if _name.startswith("test_") and "pair" in _test.__code__.co_varnames[: _test.__code__.co_argcount]:
        globals()[_name] = _test


def test_every_duty_is_done_with_what_is_granted(pair: list[Guarded]) -> None:
    """Where the server's own name may not be asked for, too."""
    assert duties.missed(pair) == ""
    for one in pair:
        if one.kind == "postgres":
            one.query("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM public")
    assert duties.missed(pair) == ""


def test_each_right_is_needed(pair: list[Guarded]) -> None:
    for place, parts in zip(pair, PARTS, strict=True):
        for one in place.rights(Role.APP, *parts):
            without(pair, place, one, [needed(one)])


def without(
    pair: Sequence[Guarded], place: Guarded, one: Grant, some: Sequence[duties.Duty], **by: Sequence[Guarded]
) -> None:
    """With this right taken away one of the duties fails, and says why; if time ran out before that, once more."""
    failed = ""
    for times in duties.PATIENCES:
        place.revoke(one)
        with duties.patient(times):
            failed = duties.missed(pair, some, **by)
        place.grant([one])
        if set(some) - {begin, quarantine, look}:
            duties.tidy(pair)
        if not failed or "denied" in failed or "receipts on" in failed:
            break
    assert "denied" in failed or "receipts on" in failed, f"{one.right} ON {one.on}: {failed or 'is not needed'}"


def test_recovery_does_with_less_where_another_account_may_end_a_branch(pair: list[Guarded]) -> None:
    """On MariaDB. On PostgreSQL it has to be the role that prepared it."""
    (place,) = (one for one in pair if one.kind == "mariadb")
    parts = PARTS[pair.index(place)]
    sweeper = another(place)
    sweeper.grant(sweeper.rights(Role.RECOVERY, *parts))
    by = [sweeper if one is place else one for one in pair]
    try:
        assert duties.missed(pair, RECOVERY, by=by) == ""
        assert set(place.rights(Role.RECOVERY, *parts)) < set(place.rights(Role.APP, *parts))
        for one in sweeper.rights(Role.RECOVERY, *parts):
            duty = needed(one)
            without(pair, sweeper, one, [duty] if duty in RECOVERY else RECOVERY, by=by)
    finally:
        dropped(sweeper)
    (other,) = (one for one in pair if one is not place)
    assert other.rights(Role.RECOVERY, *PARTS[0]) == other.rights(Role.APP, *PARTS[0])


def test_whoever_only_looks_may_change_nothing_and_sees_all_of_it(pair: list[Guarded]) -> None:
    lookers = [another(one) for one in pair]
    try:
        for looker, parts in zip(lookers, PARTS, strict=True):
            looker.grant(looker.rights(Role.LOOK, *parts))
        assert duties.missed(pair, [look], by=lookers) == ""
        for looker, parts in zip(lookers, PARTS, strict=True):
            rights = looker.rights(Role.LOOK, *parts)
            assert {one.privilege for one in rights} <= {"SELECT", "USAGE", "PROCESS", "pg_monitor"}
            for one in rights:
                without(pair, looker, one, [look], by=lookers)
    finally:
        for looker in lookers:
            dropped(looker)


@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
def test_whoever_sets_up_what_an_administrator_has_made_needs_a_few_rights_more(
    kind: str, request: Any, tmp_path: Path
) -> None:
    admin = make_database(kind, "a", request, tmp_path)
    for part in Part:
        script = Tables(shipped(part, kind), whose="a", database=parse_url(admin.url).database).script()
        for statement in script.split(";\n"):
            if statement.strip():
                admin.query(statement)
    account = guarded(admin)
    app, full = (account.rights(role, *PARTS[0]) for role in (Role.APP, Role.SETUP))
    account.grant(full)

    def set_up() -> str:
        with Coordinator(account.url, recovery=False) as db:
            try:
                db.setup()
            except NoDoubtError as error:
                return str(error)
        return "done"

    try:
        for one in set(full) - set(app):
            account.revoke(one)
            for table in ("journal", "identity"):
                admin.query(f"DELETE FROM {'nodoubt.' if kind == 'postgres' else 'nodoubt_'}{table}")
            told = set_up()
            account.grant([one])
            assert "denied" in told, f"{one.right} ON {one.on}: {told}"
        assert set_up() == "done"
        for one in set(full) - set(app):
            account.revoke(one)
        account.grant(app)
        assert set_up() == "done", "and once that is done, what it needs to work is enough"
    finally:
        dropped(account)


@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
def test_where_a_table_may_be_missing_its_rights_come_last_and_say_what_to_do_first(
    kind: str, request: Any, tmp_path: Path
) -> None:
    """Jobs, on a journal of before they were there: with all the other rights everything else works."""
    admin = make_database(kind, "a", request, tmp_path)
    for part in Part:
        whole = shipped(part, kind)
        first = Schema(part, kind, whole.migrations[:1])
        script = Tables(first, whose="a", database=parse_url(admin.url).database).script()
        for statement in filter(str.strip, script.split(";\n")):
            admin.query(statement)
    with Coordinator(admin.url, recovery=False) as db:
        db.setup()
    account = guarded(admin)
    lines = statements(kind, account.rights(Role.APP, *PARTS[0]), account.account).splitlines()
    (said,) = (number for number, line in enumerate(lines) if line.startswith("-- "))
    assert lines[said] == (
        "-- Only with migration 2: run nodoubt schema apply first, or leave this out. Without it, all but jobs works."
    )
    try:
        for line in lines[:said]:
            admin.query(line)
        with Coordinator(account.url, recovery=False, settings=QUICK) as db:
            with db.begin_distributed("order-7") as tx:
                tx.execute("update accounts set balance = 0 where id = 0")
            assert db.commit_distributed("order-7").complete and db.recover(grace=0).clean
        (later,) = lines[said + 1 :]
        with pytest.raises((psycopg.errors.UndefinedTable, pymysql.err.ProgrammingError), match="jobs"):
            admin.query(later)
        with Coordinator(admin.url, recovery=False) as db:
            db.setup(migrate=True)
        admin.query(later)
        with Coordinator(account.url, recovery=False) as db:
            assert list(db.jobs()) == []
    finally:
        dropped(account)
