"""Migrations while coordinators of the release before are in the middle of their transactions.

Release 2 adds to the tables, release 3 refuses who does not know it (`releases`). The journal and the participants are
migrated apart, so that each test says which of the two it is about.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kit import QUICK, Face, Watching
from nodoubt import Coordinator, NoDoubtError, SchemaMismatch, State, SweepReport
from nodoubt.engine import questions
from nodoubt.jobs import board
from schema.releases import BROKEN, EXPANDED, SHIPPED, Releases, Scene, coordinator, make, migrate, scene_of

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("impatient")]

UNTOUCHED, MOVED = [100, 100], [70, 130]
# Where in an at-once transaction of the older coordinator somebody migrates.
MOMENTS = {"at work": ("P2", "work"), "all prepared": ("P4", "all prepared"), "decided": ("P6", "committed")}
DONE = "done"


@pytest.fixture
def scene(kind: str, request: Any, tmp_path: Path) -> Scene:
    return scene_of(kind, request, tmp_path)


def at(db: Face, moment: str, act: Callable[[], None]) -> list[str]:
    """At the first notice of that moment, `act`; what came of it."""
    came: list[str] = []

    def notice(notice: Any) -> None:
        if came or (notice.point, notice.what) != MOMENTS[moment]:
            return
        came.append("begun")
        try:
            act()
        except NoDoubtError as error:
            came.append(str(error))
        else:
            came.append(DONE)

    db.db._ctx.observer = Watching(notice)
    return came


async def opened_old(scene: Scene, mode: str) -> Face:
    old: Face = make(Face(mode, scene.pair, journal=scene.journal), Releases())
    await old.open()
    return old


async def pay(db: Face) -> str:
    """30 from a to b; what the caller is told."""
    try:
        async with db.transaction("pay") as tx:
            await tx.move("a", "b", 30)
    except NoDoubtError as error:
        return f"{type(error).__name__}: {error}"
    return "committed"


def finished_by(scene: Scene, releases: Releases) -> None:
    """A coordinator of the new release finds nothing that it could not end."""
    with coordinator(scene, releases) as new:
        new.recover(grace=0)
        assert new.recover(grace=0).clean
    assert scene.settled()


def assert_refused(report: SweepReport) -> None:
    """A sweep that says of each database why it may not touch it, and touches none."""
    assert report.committed == report.rolled_back == 0
    assert {"a", "b"} <= set(report.trouble)
    assert all("version 3" in report.trouble[name] and "this release knows 1" in report.trouble[name] for name in "ab")


# ---- a migration that older coordinators do not see -----------------------------------------------


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_journal_grows_under_coordinators_that_notice_nothing(scene: Scene, mode: str, moment: str) -> None:
    new = Releases(journal=EXPANDED)
    old = await opened_old(scene, mode)
    try:
        came = at(old, moment, lambda: migrate(scene, new))
        assert await pay(old) == "committed"
        assert came == ["begun", DONE]
        assert (await old.recover(grace=0)).clean
        async with old.staged("later") as tx:
            await tx.move("a", "b", 1)
    finally:
        await old.close()
    assert scene.balances() == MOVED
    with coordinator(scene, new) as other:
        assert other.commit_distributed("later").complete
    assert scene.balances() == [69, 131]
    finished_by(scene, Releases())  # and one of the release before may begin anew


@pytest.mark.parametrize("moment", MOMENTS)
async def test_the_table_of_jobs_comes_under_coordinators_that_do_not_know_it(
    scene: Scene, mode: str, moment: str
) -> None:
    """What is really shipped, over release 1; which works on, and of which nobody is asked for a job."""

    def shipped() -> Coordinator:
        urls = {one.name: one.url for one in scene.pair}
        return Coordinator(urls, journal=scene.journal, settings=QUICK, recovery=False)

    def grown() -> None:
        with shipped() as db:
            with pytest.raises(SchemaMismatch, match="run nodoubt schema apply"):
                db.jobs()
            db.setup(migrate=True)

    old = await opened_old(scene, mode)
    try:
        if moment == "at work" and scene.kind == "sqlite":  # where a branch at work has the file to itself
            grown()
        else:
            came = at(old, moment, grown)
            assert await pay(old) == "committed"
            assert came == ["begun", DONE]
        with shipped() as db, db.job("pay", on="b") as job:
            with job.chunk() as tx:
                tx["b"].execute("update accounts set balance = balance + 1 where id = 0")
                tx.checkpoint("paid", done=1)
            assert db.progress("pay").checkpoint == "paid"
        while scene.balances() != [40, 161]:
            assert await pay(old) == "committed"
        assert (await old.recover(grace=0)).clean
    finally:
        await old.close()
    finished_by(scene, Releases())


@pytest.mark.parametrize("moment", MOMENTS)
async def test_participants_grow_under_coordinators_that_notice_nothing(scene: Scene, moment: str) -> None:
    """Where a branch holds the table, the migration waits for it, gives up, and changes nothing."""
    new = Releases(participants=EXPANDED)
    old = await opened_old(scene, "sync")
    try:
        came = at(old, moment, lambda: migrate(scene, new))
        assert await pay(old) == "committed"
        held = moment != "at work" and scene.kind != "sqlite"  # at work, a branch begins with what follows
        assert ("hold our tables" in came[1] and "nothing was changed" in came[1]) if held else came[1] == DONE
        migrate(scene, new)
        assert await pay(old) == "committed"
        assert (await old.recover(grace=0)).clean
    finally:
        await old.close()
    assert scene.balances() == [40, 160]
    finished_by(scene, new)
    finished_by(scene, Releases())


# ---- a migration that refuses older coordinators --------------------------------------------------


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_journal_that_refuses_older_coordinators_takes_no_decision_of_theirs(
    scene: Scene, mode: str, moment: str
) -> None:
    """What was decided before is carried out; what was not is rolled back, surely."""
    new = Releases(journal=BROKEN)
    old = await opened_old(scene, mode)
    try:
        came = at(old, moment, lambda: migrate(scene, new))
        told = await pay(old)
        assert came == ["begun", DONE]
        if moment == "decided":
            assert told == "committed" and scene.balances() == MOVED
        else:
            assert "nodoubt schema status" in told and scene.balances() == UNTOUCHED
        assert_refused(await old.recover(grace=0))
        assert "nodoubt schema status" in await pay(old)
    finally:
        await old.close()
    finished_by(scene, new)
    assert scene.balances() == (MOVED if moment == "decided" else UNTOUCHED)


async def test_what_older_coordinators_have_staged_is_kept_for_the_new_ones(scene: Scene, mode: str) -> None:
    new = Releases(journal=BROKEN)
    old = await opened_old(scene, mode)
    try:
        async with old.staged("later") as tx:
            await tx.move("a", "b", 30)
        migrate(scene, new)
        for verb in (old.commit_distributed, old.rollback_distributed):
            with pytest.raises(NoDoubtError, match="nodoubt schema status"):
                await verb("later")
        assert_refused(await old.recover(grace=0))
        assert scene.balances() == UNTOUCHED
    finally:
        await old.close()
    with coordinator(scene, new) as other:
        assert other.status("later").state is State.PREPARED
        assert other.commit_distributed("later").complete
    finished_by(scene, new)
    assert scene.balances() == MOVED


async def test_participants_that_refuse_older_coordinators_take_no_commit_of_theirs(scene: Scene, mode: str) -> None:
    """In the middle of work that is in both databases, and before work that is in one."""
    new = Releases(participants=BROKEN)
    old = await opened_old(scene, mode)
    try:
        if scene.kind == "sqlite":  # where a branch at work has the file to itself
            migrate(scene, new)
            assert "nodoubt schema status" in await pay(old)
        else:
            came = at(old, "at work", lambda: migrate(scene, new))
            assert "nodoubt schema status" in await pay(old)
            assert came == ["begun", DONE]
        with pytest.raises(NoDoubtError, match="nodoubt schema status"):
            async with old.transaction() as tx:
                await tx.execute("b", "update accounts set balance = 0 where id = 0")
        assert_refused(await old.recover(grace=0))
    finally:
        await old.close()
    assert scene.balances() == UNTOUCHED
    finished_by(scene, new)
    with coordinator(scene, new) as other, other.transaction() as tx:
        for name, sign in (("a", "-"), ("b", "+")):
            tx[name].execute(f"update accounts set balance = balance {sign} 30 where id = 0")
    assert scene.balances() == MOVED


async def test_nobody_is_stranded_by_a_migration_that_refuses_him(scene: Scene, mode: str) -> None:
    """A branch that is prepared keeps its database from being migrated: then none of them is."""
    new = Releases(journal=BROKEN, participants=BROKEN)
    old = await opened_old(scene, mode)
    try:
        async with old.staged("later") as tx:
            await tx.move("a", "b", 30)
        with pytest.raises(NoDoubtError, match=r"lists \d prepared branches.*nothing was changed"):
            migrate(scene, new)
        assert (await old.commit_distributed("later")).complete
        migrate(scene, new)
    finally:
        await old.close()
    assert scene.balances() == MOVED
    finished_by(scene, new)


# ---- a migration without which the rest works ----


async def test_a_journal_without_the_table_of_jobs_is_enough_for_everything_else(scene: Scene, mode: str) -> None:
    """What is really shipped, on the tables of release 1, which nobody has migrated."""
    db = Face(mode, scene.pair, journal=scene.journal)
    await db.open()
    try:
        ctx, run = db.db._ctx, db.db._shell.run
        assert await pay(db) == "committed"
        await db.setup()
        async with db.staged("later") as tx:
            await tx.move("a", "b", 1)
        await db.commit_distributed("later")
        assert (await db.recover(grace=0)).clean
        with pytest.raises(SchemaMismatch, match="run nodoubt schema apply.*everything but jobs works without it"):
            await db.jobs()
        with pytest.raises(SchemaMismatch, match="run nodoubt schema apply"):
            entering = db.db.job("sum", on="a")
            await entering.__aenter__() if mode == "async" else entering.__enter__()
        expired = run(board.expire(ctx))
        assert (await expired if mode == "async" else expired) == 0
        asked = run(questions.ask(ctx, ctx.journal.tables.version))
        assert (await asked if mode == "async" else asked).stands == SHIPPED, "nobody has migrated it"
    finally:
        await db.close()
    assert scene.balances() == [69, 131] and scene.settled()


# ---- who may begin ---------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["journal", "participants"])
async def test_whoever_begins_is_told_what_to_do(scene: Scene, mode: str, part: str) -> None:
    """Never migrated silently: not by opening, and not by `setup`, which a program may call each time it starts."""

    async def begins(release: int) -> str:
        db: Face = make(Face(mode, scene.pair, journal=scene.journal), Releases(**{part: release}))
        await db.open()
        try:
            for _ in range(2):
                async with db.transaction() as tx:
                    await tx.execute("a", "select 1")
                await db.setup()
        except SchemaMismatch as error:
            with pytest.raises(SchemaMismatch):
                await db.setup()
            return str(error)
        finally:
            await db.close()
        return "at work"

    assert await begins(SHIPPED) == "at work"
    older = await begins(EXPANDED)
    assert "are of version 1; this release needs 2: run nodoubt schema apply" in older
    migrate(scene, Releases(**{part: EXPANDED}))
    assert [await begins(one) for one in (SHIPPED, EXPANDED)] == ["at work"] * 2
    assert "run nodoubt schema apply" in await begins(BROKEN)
    migrate(scene, Releases(**{part: BROKEN}))
    for release in (SHIPPED, EXPANDED):
        told = await begins(release)
        assert "migrated to version 3, on which only coordinators that know version 3 may work" in told
        assert f"this release knows {release}" in told
        assert "install here the release that migrated them" in told
        with pytest.raises(SchemaMismatch, match="version 3"):
            migrate(scene, Releases(**{part: release}))
    assert await begins(BROKEN) == "at work"
