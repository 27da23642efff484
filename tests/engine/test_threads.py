"""One transaction, several threads: each branch is begun once and takes one statement at a time; none is left out.

Each scene waits where a thread could be switched away from, so it is no matter of luck; and each is run again with the
rule taken out, and shows the harm.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import nodoubt
from kit import QUICK, Database, Watching, make_database
from nodoubt import ClosedTransaction, Coordinator, TransactionAborted, UsageError, transaction
from nodoubt.engine import attempt as attempts
from nodoubt.engine import start
from nodoubt.idempotency import blocks
from nodoubt.script import Script
from nodoubt.transaction import Transaction

ADD = "update accounts set balance = balance + 1 where id = {0}"
done: list[int] = []


class Base(DeclarativeBase): ...


class Account(Base):
    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    balance: Mapped[int]


@nodoubt.step
def act(number: int) -> int:
    done.append(number)
    return number


@nodoubt.compensation
def take_back(number: int) -> None: ...


@pytest.fixture(params=["postgres", "mariadb", "sqlite"])
def pair(request: Any, tmp_path: Path) -> tuple[Database, Database]:
    first, second = (make_database(request.param, name, request, tmp_path) for name in "ab")
    return first, second


@contextlib.contextmanager
def opened(pair: tuple[Database, Database], **options: Any) -> Iterator[Coordinator]:
    with Coordinator({one.name: one.url for one in pair}, settings=QUICK, recovery=False, **options) as db:
        db.setup()
        yield db


def at_once(*works: Callable[[], object]) -> list[object]:
    """All of them in threads of their own: what each returned, or raised."""
    answers: list[object] = [None] * len(works)

    def run(at: int) -> None:
        try:
            answers[at] = works[at]()
        except Exception as error:
            answers[at] = error

    threads = [threading.Thread(target=run, args=(at,)) for at in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return answers


def meeting(monkeypatch: pytest.MonkeyPatch, wait_s: float) -> None:
    """Have two threads meet between the look how many branches there are and the next one's place among them.

    Where the first is alone there it goes on after `wait_s`, and so does whoever comes later, at once.
    """
    work = attempts.Work  # type: ignore[attr-defined]
    both = threading.Barrier(2)

    def made(*args: Any, **options: Any) -> Any:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(wait_s)
        return work(*args, **options)

    monkeypatch.setattr(attempts, "Work", made)


def unlocked(tx: Transaction) -> None:
    """The rule taken out."""
    tx._open.lock = contextlib.nullcontext()  # type: ignore[assignment]


def add_on(tx: Transaction, name: str, account: int = 0) -> Callable[[], object]:
    return lambda: tx[name].execute(ADD.format(account)).count


def held(db: Coordinator) -> int:
    """Sessions that nobody has given back."""
    return sum(len(one.pool._ours) for one in db._ctx.participants.values())  # type: ignore[attr-defined, misc]


def test_branches_that_two_threads_begin_are_two_and_both_are_committed(
    pair: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting(monkeypatch, 0.3)
    with opened(pair) as db:
        with db.transaction() as tx:
            assert at_once(add_on(tx, "a"), add_on(tx, "b")) == [1, 1]
        assert [branch.number for branch in tx._open.branches.values()] == [0, 1]
        assert not held(db)
    assert [one.balance() for one in pair] == [101, 101]


def test_without_a_lock_both_are_of_one_number_and_one_is_not_committed(
    pair: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting(monkeypatch, 10)
    with opened(pair) as db:
        with contextlib.suppress(Exception), db.transaction() as tx:
            unlocked(tx)
            at_once(add_on(tx, "a"), add_on(tx, "b"))
        assert held(db)


def test_a_branch_that_two_threads_begin_is_begun_once_and_who_came_second_is_refused(
    pair: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    admit, begun, refused = start.admit, threading.Event(), threading.Event()

    def waits(*args: Any) -> Script[None]:
        begun.set()
        refused.wait(10)
        yield from admit(*args)

    monkeypatch.setattr(start, "admit", waits)
    with opened(pair) as db:
        with db.transaction() as tx:

            def second() -> object:
                begun.wait(10)
                try:
                    return add_on(tx, "a", 1)()
                finally:
                    refused.set()

            answers = at_once(add_on(tx, "a"), second)
            assert [type(answer) for answer in answers] == [int, UsageError], answers
        assert not held(db)
    assert [pair[0].balance(account) for account in (0, 1)] == [101, 100]


def test_without_a_lock_it_is_begun_twice(pair: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch) -> None:
    meeting(monkeypatch, 10)
    with opened(pair) as db:
        with contextlib.suppress(Exception), db.transaction() as tx:
            unlocked(tx)
            at_once(add_on(tx, "a"), add_on(tx, "a", 1))
        assert held(db)


def both_on_one(db: Coordinator, watching: Watching, meeting: threading.Event) -> list[object]:
    answers: list[object] = []
    with db.transaction() as tx:
        tx["a"].execute("select 1")
        meeting.clear()

        def select() -> object:
            try:
                return tx["a"].execute("select 1").scalar()
            finally:
                meeting.set()

        answers += at_once(select, select)
    return answers


def watched(meeting: threading.Event) -> Watching:
    """Whoever is about to send a statement waits until the other has been answered."""

    def stand_still(notice: Any) -> None:
        if notice.what == "work":
            meeting.wait(2)

    return Watching(stand_still)


def test_who_comes_while_another_thread_is_about_to_send_is_refused(pair: tuple[Database, Database]) -> None:
    meeting = threading.Event()
    meeting.set()
    observer = watched(meeting)
    with opened(pair, observer=observer) as db:
        answers = both_on_one(db, observer, meeting)
        assert {type(answer) for answer in answers} == {int, UsageError}, answers
        assert not held(db)


def test_a_branch_that_is_busy_only_while_it_sends_takes_two_at_a_time(
    request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = tuple(make_database("postgres", name, request, tmp_path) for name in "ab")
    taken = attempts._take

    def late(*args: Any, **options: Any) -> Script[attempts.Branch]:
        branch = yield from taken(*args, **options)
        branch.busy = False
        return branch

    monkeypatch.setattr(attempts, "_take", late)
    meeting = threading.Event()
    meeting.set()
    sending = threading.Barrier(2)
    together: list[bool] = []

    def stand_still(notice: Any) -> None:
        if notice.what == "work" and not meeting.is_set():
            with contextlib.suppress(threading.BrokenBarrierError):
                sending.wait(2)
                together.append(True)

    observer = Watching(stand_still)
    with opened(pair, observer=observer) as db, contextlib.suppress(Exception):  # type: ignore[arg-type]
        both_on_one(db, observer, meeting)
    assert together


def test_a_thread_that_comes_as_the_block_ends_is_refused_or_ends_it(pair: tuple[Database, Database]) -> None:
    with opened(pair) as db:
        told = 0
        for _ in range(30):
            late: list[object] = []
            with contextlib.suppress(TransactionAborted), db.transaction() as tx:
                tx["a"].execute(ADD.format(0))
                thread = threading.Thread(target=lambda tx=tx, late=late: late.extend(at_once(add_on(tx, "b"))))
                thread.start()
            thread.join()
            told += tx.result is not None and late == [1]
            assert not held(db)
    assert pair[1].balance() == 100 + told


class Soft(Exception):
    """What a signal's handler raises, wherever the program is at."""


def once_only(patch: pytest.MonkeyPatch, of: Any, name: str) -> None:
    """The first time that it is called, the handler raises."""
    sound, left = getattr(of, name), [Soft()]

    def raises(*args: Any, **options: Any) -> Any:
        if left:
            raise left.pop()
        return sound(*args, **options)

    patch.setattr(of, name, raises)


@pytest.mark.parametrize("kind", ["transaction", "once"])
def test_an_interrupt_just_before_the_end_has_begun_leaves_nothing_open(
    kind: str, pair: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sessions were nobody's, and held their locks for as long as the process lived."""
    with opened(pair) as db:
        with pytest.raises(Soft), db.transaction() if kind == "transaction" else db.once("k", on="a") as tx:
            add_on(tx, "a")()
            add_on(tx, "b")()
            once_only(monkeypatch, transaction, "_finish")
        assert not held(db) and not any(one.locked() for one in pair)
    assert [one.balance() for one in pair] == [100, 100]


def test_an_interrupt_as_a_block_is_entered_leaves_its_key_free(
    pair: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(pair) as db:
        once_only(monkeypatch, blocks, "Transaction")
        with pytest.raises(Soft), db.once("k", on="a"):
            raise AssertionError("nobody may be let in")
        assert not held(db)
        with db.once("k", on="a") as again:
            assert not again.replayed
            again["a"].execute(ADD.format(0))
    assert pair[0].balance() == 101


def test_steps_that_two_threads_call_have_numbers_of_their_own(
    pair: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    done.clear()
    with opened(pair) as db:
        with db.transaction() as tx:
            works = [lambda n=n: tx.call(act, n, undo=take_back, key=f"k{n}") for n in range(8)]
            assert at_once(*works) == list(range(8))
            tx["b"].execute(ADD.format(0))
        assert sorted(done) == list(range(8))
        assert tx._open.calls == 8
        assert tx._open.calling == 0


def test_sessions_that_two_threads_ask_for_first_are_both_flushed(
    pair: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nodoubt.alchemy.parts import Parts

    made = Parts.__init__

    both = threading.Barrier(2)

    def slow(self: Parts, *args: Any) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.3)
        made(self, *args)

    monkeypatch.setattr(Parts, "__init__", slow)
    with opened(pair) as db:
        with db.transaction() as tx:

            def add(name: str) -> Callable[[], object]:
                return lambda: tx[name].session().add(Account(id=50, balance=1))

            assert at_once(add("a"), add("b")) == [None, None]
        assert [one.query("select count(*) from accounts where id = 50") for one in pair] == [[(1,)], [(1,)]]


def test_a_child_of_a_fork_does_not_wait_for_what_a_thread_of_its_parent_s_holds(request: Any, tmp_path: Path) -> None:
    one = make_database("sqlite", "a", request, tmp_path)
    with Coordinator(one.url, settings=QUICK, recovery=False) as db:
        db.setup()
        with db.transaction() as tx, tx._open.lock:
            child = os.fork()
            if not child:
                signal.alarm(10)
                try:
                    tx.execute(ADD.format(0))
                except ClosedTransaction:
                    os._exit(0)
                finally:
                    os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
