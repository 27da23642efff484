"""`jobs`: what is told of long jobs, to people and to programs."""

from __future__ import annotations

import json
import signal

import pytest

from cli.conftest import Shop
from kit import Database, until
from nodoubt.jobs import board


def work(shop: Shop, name: str, *, upto: int, note: str = "") -> None:
    """Four items, of which so many are done in this life."""
    with shop.coordinator() as db, db.job(name, total=4, quiet=True) as job:
        for chunk in job.chunks(range(4), 2):
            if job.done >= upto:
                job.pause(note)
                break
            with chunk as tx:
                tx["stock"].execute("insert into notes values (?)", (f"{name} {job.done}",))


def test_jobs_are_listed_and_shown_to_people_and_to_programs(shop: Shop) -> None:
    assert shop.nodoubt("jobs", "ls").stdout == "No jobs.\n"
    assert shop.json("jobs", "ls") == {"jobs": []}
    work(shop, "half", upto=2, note="for lunch \x1b[31m")
    work(shop, "whole", upto=4)
    listed = shop.nodoubt("jobs", "ls").stdout
    assert "2 of 4 (50 %)" in listed and "for lunch \\x1b[31m" in listed and "\x1b" not in listed
    assert [one["name"] for one in shop.json("jobs", "ls")["jobs"]] == ["whole", "half"]
    shown = shop.nodoubt("jobs", "show", "half").stdout
    assert "stopped" in shown and "checkpoint  2" in shown
    told = shop.json("jobs", "show", "whole")
    assert (told["state"], told["done"], told["total"], told["checkpoint"]) == ("done", 4, 4, 4)
    unknown = shop.nodoubt("jobs", "show", "other")
    assert unknown.exit_code == 1 and "there is no job 'other'" in unknown.stderr


def test_a_watch_ends_when_nobody_is_at_work_and_says_whether_it_is_done(shop: Shop) -> None:
    work(shop, "half", upto=2)
    work(shop, "whole", upto=4)
    assert shop.nodoubt("jobs", "show", "whole", "--watch").exit_code == 0
    left = shop.nodoubt("jobs", "show", "half", "--watch")
    assert left.exit_code == 1 and left.stdout.count("2 of 4 (50 %)") == 2  # a line for the change, and all of it
    assert shop.nodoubt("jobs", "show", "half", "--watch", "--every", "0").exit_code == 2


def test_a_watch_sees_each_change_of_another_process_s_job(shop: Shop) -> None:
    lines: list[str] = []
    with shop.coordinator() as db, db.job("walk", total=4, quiet=True) as job:
        job.report(0, "begins")
        watching = shop.start("jobs", "show", "walk", "--watch", "--every", "0.05", "--json")
        assert watching.stdout is not None
        lines.append(watching.stdout.readline())
        for chunk in job.chunks(range(4), 2):
            with chunk:
                pass
            lines.append(watching.stdout.readline())
    told, errors = watching.communicate(timeout=60)
    lines += told.splitlines()
    assert watching.returncode == 0, errors
    assert [(one["state"], one["done"]) for one in map(json.loads, lines)] == [
        ("running", 0),
        ("running", 2),
        ("running", 4),
        ("done", 4),
    ]


def test_ctrl_c_ends_a_watch_and_nothing_else(shop: Shop) -> None:
    with shop.coordinator() as db, db.job("walk", total=4, quiet=True) as job:
        watching = shop.start("jobs", "show", "walk", "--watch")
        assert watching.stdout is not None and "running" in watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        assert watching.wait(60) == 130
        watching.communicate()
        job.pause()
        until(lambda: db.progress("walk").done == 0)


def test_a_job_is_given_up_only_after_a_question_and_not_while_somebody_is_at_work(shop: Shop) -> None:
    work(shop, "half", upto=2)
    refused = shop.nodoubt("jobs", "forget", "half")
    assert refused.exit_code == 2 and "--yes" in refused.stderr
    with shop.coordinator() as db, db.job("half", quiet=True) as job:
        taken = shop.nodoubt("jobs", "forget", "half", "--yes")
        assert taken.exit_code == 75 and "is at work on it" in taken.stderr
        job.pause()
    assert shop.nodoubt("jobs", "forget", "half", "--yes").exit_code == 0
    assert shop.json("jobs", "ls") == {"jobs": []}
    with shop.coordinator() as db, db.job("half", quiet=True) as job:
        assert job.done == 0
        job.pause()


def test_one_job_that_cannot_be_read_stands_among_the_others_and_is_not_forgotten(shop: Shop) -> None:
    for name in ("half", "torn", "odd"):
        work(shop, name, upto=4 if name != "half" else 2)
    home = Database("shop", shop.urls["shop"])
    home.query("update nodoubt_jobs set checkpoint = '[' where name = 'torn'")
    home.query("update nodoubt_jobs set note = cast(x'ff' as text) where name = 'odd'")
    listed = shop.nodoubt("jobs", "ls")
    assert listed.exit_code == 3 and "2 of 4 (50 %)" in listed.stdout
    states = {one["name"]: one["state"] for one in shop.json("jobs", "ls", code=3)["jobs"]}
    assert states == {"half": "stopped", "torn": "unreadable", "odd": "unreadable"}
    for command in ("recover", "reap"):
        assert shop.nodoubt(command).exit_code == (3 if command == "recover" else 0), command
    told = shop.json("recover", code=3)["unreadable"]
    assert [(one["table"], one["name"]) for one in told] == [("jobs", "odd"), ("jobs", "torn")]
    with shop.coordinator() as db:
        assert [one.name for one in db.unreadable()] == ["odd", "torn"]
    for name in ("torn", "odd"):
        shown = shop.nodoubt("jobs", "show", name)
        assert shown.exit_code == 3 and "cannot be read" in shown.stderr
    home.query("update nodoubt_jobs set changed_at = 1")
    with shop.coordinator() as db:
        assert db._shell.run(board.expire(db._ctx)) == 0
        assert sorted(one.name for one in db.jobs()) == ["half", "odd", "torn"]


def test_each_job_that_cannot_be_read_is_told_however_many_there_are_and_none_where_there_is_no_table(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "PAGE_MAX", 2)
    names = [f"job-{number}" for number in range(5)]
    for name in names:
        work(shop, name, upto=2)
    home = Database("shop", shop.urls["shop"])
    home.query("update nodoubt_jobs set note = cast(x'ff' as text) where name <> 'job-2'")
    home.query("update nodoubt_jobs set name = cast(x'ff' as text) where name = 'job-1'")
    home.query("update nodoubt_jobs set name = '' where name = 'job-0'")
    with shop.coordinator() as db:
        assert [one.name for one in db.unreadable()] == ["", "job-3", "job-4", "\\xff"]
        home.query("drop table nodoubt_jobs")
        assert db.unreadable() == []
