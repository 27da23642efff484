"""A database leaves for good: only when nothing of it is open, and in an order that a crash may cut anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kit import Database, Face, make_database, opened
from nodoubt import (
    Coordinator,
    JournalUnavailable,
    NoDoubtError,
    ResourceRefused,
    ResourceUnavailable,
    SchemaMismatch,
    UsageError,
)
from nodoubt.engine import ends, leaving, start
from nodoubt.engine.context import told
from nodoubt.errors import JournalRestored
from nodoubt.ports import readable
from nodoubt.script import Script
from rules.mutants import at_once, context, coordinator, staged, watch
from traps.scenes import MOVED, UNTOUCHED, balances

pytestmark = pytest.mark.anyio

KINDS = ["sqlite", "postgres", "mariadb"]


@pytest.fixture(params=["sync", "async"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=KINDS)
def pair(request: Any, tmp_path: Path) -> list[Database]:
    """The journal is in a; b is the one to go."""
    some = [make_database("sqlite", "a", request, tmp_path), make_database(request.param, "b", request, tmp_path)]
    with coordinator(some) as db:
        db.setup()
    return some


def drop(some: list[Database], name: str = "b", **options: Any) -> leaving.Dropped:
    """As an operator does, with nobody else at work."""
    db = coordinator(some)
    try:
        return db.drop(name, **options)
    finally:
        db.close()


def registered(some: list[Database]) -> set[str]:
    with coordinator(some[:1]) as db:
        ctx = context(db)
        known = db._shell.run(told(ctx, ctx.journal_pool, ctx.journal.registered))
        return {name for name, _ in map(readable, known.values())}


async def test_what_is_dropped_takes_part_no_more_and_can_begin_anew(mode: str, pair: list[Database]) -> None:
    async with opened(mode, pair) as db:
        async with db.transaction() as tx:
            await tx.move("a", "b", 30)
        before = context(db.db).participants["b"].resource_id
    face = Face(mode, pair)
    dropped = await face.drop("b")
    await face.close()
    assert (dropped.name, dropped.resource_id, dropped.looked_at) == ("b", before, True)
    assert registered(pair) == {"a"} and balances(pair) == MOVED
    with pytest.raises(SchemaMismatch, match="b has no tables of ours"), coordinator(pair) as other:
        at_once_or_raise(other)
    async with opened(mode, pair) as db:  # whose setup registers it, as another
        async with db.transaction() as tx:
            await tx.move("b", "a", 30)
        assert context(db.db).participants["b"].resource_id != before
    assert balances(pair) == UNTOUCHED


def at_once_or_raise(db: Coordinator) -> None:
    with db.transaction() as tx:
        tx["a"].execute("select 1")


@pytest.mark.parametrize("what", ["staged", "committed"])
def test_with_a_record_that_is_open_it_stays_and_is_as_it_was(pair: list[Database], what: str) -> None:
    """What is staged is prepared there, too; of a commit that has not ended only the proof may be missing."""
    with coordinator(pair) as db:
        if what == "staged":
            staged(db)
        else:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ends, "flush", lambda *_: iter(()))
                at_once(db)
                db.close()
    with pytest.raises(ResourceRefused, match="prepared" if what == "staged" else "have not ended"):
        drop(pair)
    assert registered(pair) == {"a", "b"}
    with coordinator(pair) as db:
        if what == "staged":
            db.commit_distributed("pay")
        assert db.recover(grace=0).clean
        assert db.recover(grace=0).clean
    drop(pair)
    assert registered(pair) == {"a"} and balances(pair) == MOVED


def undecided(pair: list[Database]) -> None:
    """A coordinator that died between the last prepare and the decision: the journal knows nothing of it."""
    db = coordinator(pair)
    db.open()
    watch(db, "P4", "all prepared", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        at_once(db)
    context(db).drop_idle()


def test_a_prepared_branch_that_nobody_has_decided_keeps_it(pair: list[Database]) -> None:
    undecided(pair)
    with pytest.raises(ResourceRefused, match="1 branches are prepared there"):
        drop(pair)
    with coordinator(pair) as db:
        db.recover(grace=0)
    assert pair[1].prepared() == []
    drop(pair)
    assert not pair[1].locked()


def test_who_does_not_look_leaves_a_branch_that_nobody_ends(
    pair: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant asks the journal only (I8)."""
    undecided(pair)
    monkeypatch.setattr(leaving, "_require_nothing_prepared", lambda *_: iter(()))
    drop(pair)
    with coordinator(pair[:1]) as db:
        for _ in range(2):
            assert db.recover(grace=0).clean
    assert pair[1].locked()


def test_a_branch_that_is_prepared_at_the_very_moment_keeps_it_as_it_was(
    pair: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first look and the leave: the second look finds it, and the database is again who it was."""
    looks: list[str] = []
    sound = leaving._require_nothing_prepared

    def look(*given: Any) -> Script[None]:
        looks.append("look")
        if len(looks) == 2:
            raise ResourceRefused("1 branches are prepared there")
        yield from sound(*given)

    monkeypatch.setattr(leaving, "_require_nothing_prepared", look)
    with pytest.raises(ResourceRefused):
        drop(pair)
    assert len(looks) == 2
    with coordinator(pair) as db:
        assert at_once(db) == "committed"


def test_what_cannot_be_looked_at_is_dropped_only_if_it_is_said_to_be_gone(tmp_path: Path, request: Any) -> None:
    some = [make_database("sqlite", name, request, tmp_path) for name in "ab"]
    with coordinator(some) as db:
        db.setup()
    away = [some[0], Database("b", "postgresql://me@127.0.0.1:1/b")]
    with pytest.raises(ResourceUnavailable, match="say that it is gone"):
        drop(away)
    with pytest.raises(UsageError, match="not among this coordinator's databases"):
        drop(some[:1])
    assert registered(some) == {"a", "b"}
    assert drop(away, gone=True).looked_at is False
    assert registered(some) == {"a"}


def test_what_is_not_there_or_holds_the_journal_is_not_dropped(tmp_path: Path, request: Any) -> None:
    some = [make_database("sqlite", name, request, tmp_path) for name in "ab"]
    with coordinator(some) as db:
        db.setup()
    with pytest.raises(UsageError, match=r"knows no resource 'c'; there are: a \(.*b \("):
        drop(some, "c")
    with pytest.raises(ResourceRefused, match="a holds the journal"):
        drop(some, "a")
    elsewhere = [some[0], make_database("sqlite", "c", request, tmp_path)]
    with coordinator(elsewhere) as db:
        db.setup()
    with pytest.raises(UsageError, match="is another"):
        drop([some[0], Database("b", elsewhere[1].url)])


def test_of_two_that_were_called_alike_the_id_says_which(tmp_path: Path, request: Any) -> None:
    some = [make_database("sqlite", name, request, tmp_path) for name in "ab"]
    with coordinator(some) as db:
        db.setup()
        first = context(db).participants["b"].resource_id
    (tmp_path / "b.db").unlink()
    again = [some[0], make_database("sqlite", "b", request, tmp_path)]
    with coordinator(again) as db:
        db.setup()
    with pytest.raises(UsageError, match=f"name one of them by its id: .*{first}"):
        drop(again)
    assert drop(some[:1], first, gone=True).resource_id == first
    with coordinator(again) as db:
        assert at_once(db) == "committed"


# ---- cut off in between ---------------------------------------------------------------------------


def cut_off(pair: list[Database], monkeypatch: pytest.MonkeyPatch) -> None:
    """A drop whose last step has no answer, and was not done."""

    def silent(*_: Any) -> Script[None]:
        raise JournalUnavailable("no answer")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(leaving, "_forgetting", lambda *_: silent)
        with pytest.raises(JournalUnavailable):
            drop(pair)


def test_a_drop_that_was_cut_off_is_done_once_more(pair: list[Database], monkeypatch: pytest.MonkeyPatch) -> None:
    cut_off(pair, monkeypatch)
    with pytest.raises(SchemaMismatch), coordinator(pair) as db:
        at_once_or_raise(db)
    assert drop(pair).name == "b"
    assert registered(pair) == {"a"}


def seen_again(pair: list[Database]) -> str:
    """The journal goes on without it, and forgets what it need not remember; then it is named once more."""
    with coordinator(pair[:1]) as db:
        for _ in range(3):
            db._shell.run(start.renew(context(db)))
        db._shell.run(ends.retire(context(db)))
    try:
        with coordinator(pair) as db:
            at_once_or_raise(db)
    except NoDoubtError as error:
        return type(error).__name__
    return "at work"


def test_whoever_names_what_was_dropped_is_told_to_set_it_up(pair: list[Database]) -> None:
    drop(pair)
    assert seen_again(pair) == "SchemaMismatch"


def test_the_other_way_round_the_journal_would_look_as_if_it_had_been_restored(
    pair: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant lets the database keep what it knows of itself, as a crash would."""
    resource: Any = type(context(coordinator(pair)).participants["b"].resource)
    monkeypatch.setattr(resource, "leave", lambda *_: iter(()))
    drop(pair)
    assert seen_again(pair) == JournalRestored.__name__
