"""Looks at the whole world after every step that has changed something, and stops it where the contract is broken.

It sees what nobody in the world can see: the tables of all servers at the same time, as they are shown and as they are
on disk, who wrote where, and what every caller was told. What it holds to, by the contract's numbers:

- I1, I11, I13, I14: as soon as an attempt's work is to be seen on one server, it is to be seen, or prepared, on every
  server that it wrote to; nothing prepared is rolled back against a decision that stands.
- I2: a COMMIT that appears lists every branch that wrote, and each of them but the commit point is prepared; what a
  stranger has rolled back is not committed by whoever is asked to long after that.
- I3: a decision that was once on disk never changes, and is not forgotten before it has ended.
- I4: work that is on disk has its decision on disk; on another server than the journal's, work that is only seen has.
- I5, I12: whoever is told "committed" finds the decision on disk; whoever is told "aborted" sees nothing of the work,
  ever; nobody is told two things. What was told to be staged is on disk. A listed name is never unknown.
- I6: a record ends when the work of all its branches is on disk; receipts go after that.
- I7: whoever was answered that a server knows no such xid, or OK by a MariaDB that has shown no receipt, takes that
  branch for done (it says so, or writes the end of the record) only with a proof from a server: see `heard`.
- I9: a stranger's prepared transactions stay as they are. I10: a name passes on only when its attempt was decided.
- I16: an attempt of which a statement failed leaves nothing. I18: no session goes back into a pool unclean.
- I15: where epochs tell that something was set back, nothing that was committed is rolled back.
- I17: nobody is told "broken from outside", and nothing is quarantined, unless a stranger has ended something; what is
  in quarantine stays there. At the end all that a stranger has ended against its decision is there.
- I23: the sum on each server is what the attempts that are to be seen there have moved, no more and no less; what is
  decided and prepared nowhere any more has changed no sum over all of them.
- At the end (I8, I17, I23): nothing prepared, nothing locked, no record open, no sum changed, nothing missing in
  quarantine.

What was restored from a backup, lost by a disk that lies, or ended by hand is excused, attempt by attempt.
With `rules` it holds to these alone: what breaks one rule often breaks another first.

Must not: change anything in the world.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from ...journals.memory_state import State
from ...ports import Notice
from ...protocol.records import Decision, Quarantined, Staging, Verdict
from ...resources.memory.server import Tables
from ...script import Outcome
from ...xid import Xid, parse_gid
from .heard import Heard

if TYPE_CHECKING:
    from .machine import Machine
    from .network import Link
    from .process import Process
    from .world import World

TRUSTED_S = 1.0  # for so long a process may take for prepared what it has prepared itself, and not ask: `lingering`
LEDGER = "paid/"  # the user's own row for each attempt, written once on every server by its work


class Told(StrEnum):
    """What a caller learns of an attempt, when it learns anything."""

    COMMITTED = "committed"
    ABORTED = "aborted"


class Violated(Exception):
    """A rule of the contract does not hold. `number`: which."""

    def __init__(self, number: str, why: str) -> None:
        super().__init__(f"{number}: {why}")
        self.number, self.why = number, why


@dataclass(slots=True)
class Deed:
    """An attempt, as the world knows it."""

    attempt: str
    writes: set[str] = field(default_factory=set)  # machines that its work wrote to
    moves: dict[str, int] = field(default_factory=dict)  # machine -> by how much the work changes the sum there
    doomed: bool = False
    told: Told | None = None
    staged: bool = False  # somebody can have seen it listed, undecided, and prepared everywhere
    unlisted: bool = False  # its name's row was seen to go, as it may
    decided: Verdict | None = None  # the verdict that was first on disk
    ended: bool = False  # on disk
    excused: str = ""
    by_hand: dict[str, int] = field(default_factory=dict)  # machine -> branch that a stranger has ended there
    by_hand_s: float = 0.0  # when that was
    came_back: set[str] = field(default_factory=set)  # machines where a crash has undone that: no rollback is flushed


@dataclass(slots=True)
class _Seen:
    """A machine's tables, when it was last looked at."""

    shown: Tables = field(default_factory=Tables)
    durable: Tables = field(default_factory=Tables)


def gid_of(attempt: str, number: int, cluster: str) -> str:
    return f"nd1.{cluster}.{attempt}.{number}"


class Checker:
    """One world's."""

    def __init__(self, world: World, rules: Collection[str] | None = None) -> None:
        self.world, self.rules = world, rules
        self.deeds: dict[str, Deed] = {}
        self.steps = 0
        self._seen: dict[str, _Seen] = {}
        self._promised: dict[str, dict[str, str]] = {}  # machine -> attempt -> gid, now
        self._heard: dict[str, Heard] = {}  # by process
        self._asked_s: dict[str, float] = {}  # name -> when somebody was first asked to commit it

    def holds(self, number: str) -> bool:
        """Whether it holds to this rule: to all, unless it was told to which."""
        return self.rules is None or number in self.rules

    def broken(self, number: str, why: str) -> None:
        """Stop the world, if it holds to this rule."""
        if self.holds(number):
            raise self.violated(number, why)

    def violated(self, number: str, why: str) -> Violated:
        """To be raised; and kept, for what is raised inside a script may be taken for an answer there."""
        violated = Violated(number, why)
        self.world.alarms.append(violated)
        return violated

    # ---- what the world tells it

    def wrote(self, attempt: str, machine: str, amount: int) -> None:
        """This attempt's work is about to write to this machine, and to change the sum there by that amount."""
        deed = self.deed(attempt)
        deed.writes.add(machine)
        deed.moves[machine] = deed.moves.get(machine, 0) + amount

    def doomed(self, attempt: str) -> None:
        """One of its statements has failed."""
        self.deed(attempt).doomed = True

    def deed(self, attempt: str) -> Deed:
        return self.deeds.setdefault(attempt, Deed(attempt))

    def excuse(self, attempts: Iterable[str], why: str) -> None:
        """What was done to these breaks the contract's own conditions."""
        for attempt in attempts:
            deed = self.deed(attempt)
            deed.excused = deed.excused or why

    def meddled(self, xid: Xid, machine: str) -> None:
        """A stranger has ended this branch by hand. What comes of it is no fault of ours; to be silent would be."""
        self.excuse([xid.attempt], f"a branch on {machine} was ended by hand")
        self.deed(xid.attempt).by_hand[machine] = xid.branch
        self.deed(xid.attempt).by_hand_s = self.world.kernel.now

    def asks_commit(self, name: str) -> None:
        """Somebody is about to be asked to commit this name."""
        self._asked_s.setdefault(name, self.world.kernel.now)

    def tell(self, attempt: str, told: Told) -> None:
        """A caller was told so (I5, I12)."""
        deed = self.deed(attempt)
        if deed.excused:
            return
        if deed.told not in (None, told):
            self.broken("I12", f"{attempt} was told {deed.told}, and now {told}")
        deed.told = told
        paid = [name for name in self.world.machines if self._paid(name, attempt)]
        if told is Told.ABORTED and (paid or deed.decided is Verdict.COMMIT):
            self.broken("I5", f"{attempt} was told aborted, and is committed on {paid or 'the journal'}")
        if told is Told.COMMITTED and deed.writes:
            alone = len(deed.writes) == 1 and self._paid(next(iter(deed.writes)), attempt, durable=True)
            if not alone and deed.decided is not Verdict.COMMIT:
                self.broken("I5", f"{attempt} was told committed, and neither decision nor work is on disk")

    def tell_finished(self, name: str, *, asked: Told, stands: Told, conflict: bool) -> None:
        """A verb with a name was answered: with its own outcome, or with the contrary as a conflict (I12)."""
        if (asked is not stands) is not conflict:
            how = "a conflict" if conflict else "an outcome"
            self.broken("I12", f"{name!r} was to be {asked}, it stands {stands}, and the answer was {how}")

    def tell_staged(self, name: str, attempt: str) -> None:
        """A begin has returned: it survives every crash from now on, whoever decides it (I5)."""
        deed = self.deed(attempt)
        journal = self._journal(self.world.machines[self.world.journal_at].server.durable)
        if deed.excused or attempt in journal.decisions or deed.decided is not None:
            return
        if name not in journal.names or journal.names[name].attempt != attempt:
            self.broken("I5", f"{name!r} was told staged, and {attempt} is not listed on disk")
        for server in sorted(deed.writes):
            if attempt not in self._promised.get(server, {}):
                self.broken("I5", f"{name!r} was told staged, and {server} has not prepared {attempt}")

    def listed(self, name: str) -> str | None:
        """The attempt that is listed under this name, on disk."""
        journal = self._journal(self.world.machines[self.world.journal_at].server.durable)
        return journal.names[name].attempt if name in journal.names else None

    def tell_unknown(self, name: str, *, asked_for: str | None, listed_before: str | None) -> None:
        """Somebody was told that nobody knows this name. `listed_before`: what was listed when it was asked for."""
        if listed_before is None or self.listed(name) != listed_before or asked_for not in (None, listed_before):
            return
        # What goes is gone for who looks before it is gone on disk; should it come back, it comes back never staged.
        if not self.deed(listed_before).excused and not self.deed(listed_before).unlisted:
            self.broken("I5", f"{name!r} was told unknown, and {listed_before} is listed under it")

    def tell_heuristic(self, attempt: str) -> None:
        """Somebody was told that a branch was ended by a stranger (I17)."""
        if not self.deed(attempt).excused:
            self.broken("I17", f"{attempt} was told broken from outside, and nobody has")

    def session_returned(self, process: Process, link: Link) -> None:
        """A session goes back into a pool of this process."""
        connection = link.connection
        if link.broken or connection.number not in link.machine.server.connections:
            return  # its server has ended it, whatever it was in
        if link.busy or connection.transaction is not None or connection.bound:
            self.broken("I18", f"{process.name} puts an unclean session of {link.machine.name} back into its pool")

    # ---- what servers say, and what is made of it (I7)

    def answered(self, link: Link, verb: str, args: tuple[Any, ...], outcome: Outcome[Any]) -> None:
        """A process has an answer."""
        self._heard.setdefault(link.process.name, Heard()).take(verb, args, outcome, link.connection_id)

    def sends(self, process: Process, verb: str, args: tuple[Any, ...]) -> None:
        """A process sends a message: an end of records says that every branch of each has proved itself."""
        if verb != "apply" or args[0] != "end":
            return
        decisions = self._journal(self.world.machines[self.world.journal_at].server.tables).decisions
        for decision in (decisions[attempt].decision for attempt in args[1] if attempt in decisions):
            for ref in decision.branches if decision.verdict is Verdict.COMMIT else ():
                if ref.number != decision.point:
                    self._require_proof(process, decision.attempt, ref.number)

    def noticed(self, process: Process, notice: Notice) -> None:
        """A process has come to a point of the protocol: P7, a branch is committed."""
        if (notice.point, notice.what) == ("P7", "branch committed") and notice.branch is not None:
            self._require_proof(process, notice.attempt, notice.branch)

    def _require_proof(self, process: Process, attempt: str, number: int) -> None:
        heard = self._heard.setdefault(process.name, Heard())
        if heard.proves((attempt, number)) or self.deed(attempt).excused:
            return
        if (attempt, number) in heard.unknown:
            why = f"no server has said that branch {number} of {attempt} is done, and {process.name} takes it for that"
            self.broken("I7", why)
            return
        self.broken("I6", f"{process.name} takes branch {number} of {attempt} for done, and has no proof of it")

    # ---- after each step

    def look(self) -> None:
        """Look at every machine that has changed since it was last looked at."""
        for machine in self.world.machines.values():
            seen = self._seen.setdefault(machine.name, _Seen())
            log = machine.server.log
            if log.states[-1] is seen.shown and log.states[0] is seen.durable:
                continue
            self.steps += 1
            before = _Seen(seen.shown, seen.durable)
            seen.shown, seen.durable = log.states[-1], log.states[0]
            touched = self._look_at(machine, before, seen)
            for attempt in sorted(touched):
                self._agreement(self.deeds[attempt])
                self._conservation(self.deeds[attempt])
            self._note_staged()

    def _note_staged(self) -> None:
        """Whoever sees it so may mean it later, whatever its own caller was told (I10)."""
        journal = self._journal(self.world.machines[self.world.journal_at].server.tables)
        for row in journal.names.values():
            if row.attempt not in journal.decisions and all(
                row.attempt in self._promised.get(ref.resource, {}) for ref in row.branches
            ):
                self.deed(row.attempt).staged = True

    def _look_at(self, machine: Machine, before: _Seen, now: _Seen) -> set[str]:
        touched = {
            key[len(LEDGER) :]
            for key in _different(before.shown.rows, now.shown.rows) | _different(before.durable.rows, now.durable.rows)
            if key.startswith(LEDGER)
        }
        if before.shown.rows is not now.shown.rows:
            self._sum_of(machine)
        if before.shown.prepared is not now.shown.prepared:
            touched |= self._look_at_prepared(machine, before.shown, now.shown)
        if machine.name == self.world.journal_at:
            touched |= self._look_at_journal(before, now)
        if before.shown.receipts is not now.shown.receipts:
            self._look_at_receipts(machine, before.shown, now.shown)
        return touched & self.deeds.keys()

    def _look_at_prepared(self, machine: Machine, before: Tables, now: Tables) -> set[str]:
        promised: dict[str, str] = {}
        for gid in now.prepared:
            xid = parse_gid(gid)
            if xid is not None and xid.cluster == self.world.cluster:
                promised[xid.attempt] = gid
        self._promised[machine.name] = promised
        self._require_no_presumption(machine, before, now)
        for attempt in promised.keys() & self.deeds.keys():
            if promised[attempt] not in before.prepared and machine.name in self.deeds[attempt].by_hand:
                self.deeds[attempt].came_back.add(machine.name)
        for gid in before.prepared.keys() - now.prepared.keys():
            xid = parse_gid(gid)
            if (xid is None or xid.cluster != self.world.cluster) and machine.name not in self.world.restored:
                self.broken("I9", f"a stranger's transaction {gid!r} was ended on {machine.name}")
        changed = before.prepared.keys() ^ now.prepared.keys()
        return {xid.attempt for xid in map(parse_gid, changed) if xid is not None}

    def _require_no_presumption(self, machine: Machine, before: Tables, now: Tables) -> None:
        """Where epochs tell that something was set back, nothing is rolled back that had been committed (I15)."""
        if self.world.set_back not in (machine.name, self.world.journal_at) or not machine.up:
            return
        for gid in before.prepared.keys() - now.prepared.keys():
            xid = parse_gid(gid)
            if xid is None or now.rows.get(LEDGER + xid.attempt):
                continue
            if self.deed(xid.attempt).decided is Verdict.COMMIT:
                self.broken("I15", f"{self.world.set_back} was set back, and {gid} rolled back all the same")

    def _look_at_journal(self, before: _Seen, now: _Seen) -> set[str]:
        touched = set[str]()
        was, shown, durable = (self._journal(tables) for tables in (before.shown, now.shown, now.durable))
        for attempt in _different(was.decisions, shown.decisions):
            touched.add(attempt)
            old, new = was.decisions.get(attempt), shown.decisions.get(attempt)
            if new is not None and (old is None or old.decision.verdict is not new.decision.verdict):
                if old is not None:
                    self.broken("I3", f"the decision of {attempt} was changed from {old.decision.verdict}")
                if new.decision.verdict is Verdict.COMMIT:
                    self._may_commit(new.decision)
            if new is not None and new.ended_at is not None and (old is None or old.ended_at is None):
                self._may_end(new.decision)
        for name in _different(was.names, shown.names):
            self._may_pass(name, was.names.get(name), shown.names.get(name), shown)
        self._look_at_quarantine(self._journal(before.durable), shown, durable)
        for attempt, row in durable.decisions.items():
            self._on_disk(attempt, row.decision.verdict, ended=row.ended_at is not None)
        for attempt, deed in self.deeds.items():
            if deed.decided is None or attempt in durable.decisions or deed.excused:
                continue
            if not (deed.ended or deed.decided is Verdict.ABORT) or attempt >= durable.floor:
                self.broken("I3", f"the decision of {attempt} was forgotten")
        return touched

    def _look_at_quarantine(self, was: State, shown: State, durable: State) -> None:
        """Nobody is accused for nothing; who is accused stays so: no operator is at work in this world (I17)."""
        for entry in shown.quarantine.values():
            if not self._beyond(entry, shown):
                self.broken("I17", f"{entry.attempt} is quarantined for nothing: {entry.why}")
        if self.world.journal_at in self.world.restored:
            return
        for key, entry in was.quarantine.items():
            if key not in durable.quarantine or durable.quarantine[key].cleared_by:
                self.broken("I17", f"nobody has looked at {entry.attempt}, and its quarantine is over")

    def _beyond(self, entry: Quarantined, journal: State) -> bool:
        """Whether the attempt is excused; or below a floor that a clock has raised above what lives: loud, and safe."""
        deed = self.deed(entry.attempt)
        below = "clock jumped" in self.world.faults.came and entry.attempt < journal.floor and deed.decided is None
        return bool(deed.excused) or below

    def _may_pass(self, name: str, old: Staging | None, new: Staging | None, journal: State) -> None:
        """A name has changed (I10)."""
        if old is None or (new is not None and old.attempt == new.attempt) or self.deed(old.attempt).excused:
            return
        if not self.world.machines[self.world.journal_at].up:
            return  # a crash has taken an unflushed row, and the one that it had replaced is there again
        if new is None:
            if self.deed(old.attempt).staged and old.attempt >= journal.floor:
                self.broken("I10", f"the name {name!r} of {old.attempt}, which was staged, is not reserved any more")
            self.deed(old.attempt).unlisted = True
            return
        if old.attempt not in journal.decisions:
            self.broken("I10", f"the name {name!r} went to {new.attempt} before {old.attempt} was decided")

    def _on_disk(self, attempt: str, verdict: Verdict, *, ended: bool) -> None:
        deed = self.deed(attempt)
        if deed.decided not in (None, verdict) and not deed.excused:
            self.broken("I3", f"{attempt} was decided {deed.decided} on disk, and now {verdict}")
        if verdict is Verdict.COMMIT and deed.told is Told.ABORTED and not deed.excused:
            self.broken("I5", f"{attempt} was told aborted, and is now decided commit")
        deed.decided = deed.decided or verdict  # the first: a journal that was set back has forgotten it, we have not
        deed.ended = deed.ended or ended

    def _may_commit(self, decision: Decision) -> None:
        """A COMMIT has appeared (I2)."""
        deed = self.deed(decision.attempt)
        self._may_trust(deed, decision)
        if deed.excused:
            return
        listed = {ref.resource for ref in decision.branches}
        if listed != deed.writes:
            self.broken("I2", f"{decision.attempt} wrote to {sorted(deed.writes)}, its COMMIT lists {sorted(listed)}")
        for ref in decision.branches:
            prepared = decision.attempt in self._promised.get(ref.resource, {})
            if ref.number != decision.point and not prepared and not self._paid(ref.resource, decision.attempt):
                self.broken("I2", f"{decision.attempt} is decided COMMIT, and {ref.resource} has not prepared")

    def _may_trust(self, deed: Deed, decision: Decision) -> None:
        """A stranger is no excuse to whoever was asked so late that he would have heard of it from the server (I2)."""
        late = self._asked_s.get(decision.name, 0.0) > deed.by_hand_s + TRUSTED_S
        for name in sorted(deed.by_hand) if late and not self.world.restored else ():
            if deed.attempt not in self._promised.get(name, {}) and not self._paid(name, deed.attempt):
                self.broken("I2", f"{deed.attempt} is decided COMMIT, and was long gone on {name}: nobody has asked")

    def _may_end(self, decision: Decision) -> None:
        """A record has ended (I6)."""
        if decision.verdict is not Verdict.COMMIT or self.deed(decision.attempt).excused:
            return
        for ref in decision.branches:
            # On the journal's own server the log is flushed in order: what the end follows is on disk before it is.
            elsewhere = ref.resource != self.world.journal_at
            if not self._paid(ref.resource, decision.attempt, durable=elsewhere):
                self.broken("I6", f"the record of {decision.attempt} ended, and {ref.resource} has not committed")

    def _look_at_receipts(self, machine: Machine, before: Tables, now: Tables) -> None:
        for attempt, branch in before.receipts.keys() - now.receipts.keys():
            deed = self.deed(attempt)
            if before.receipts[attempt, branch].alone or deed.excused or machine.name in self.world.restored:
                continue
            lost = not machine.up  # in a crash, unflushed
            if not deed.ended and not lost:
                self.broken("I6", f"the receipt of {attempt} on {machine.name} went before its record had ended")

    def _agreement(self, deed: Deed) -> None:
        """The attempt's work, on all servers (I1, I4, I5, I16)."""
        if deed.excused:
            return
        attempt, machines = deed.attempt, self.world.machines
        paid = {name for name in machines if self._paid(name, attempt)}
        if not paid:
            self._nothing_gone(deed, paid)
            return
        for name in paid:
            if machines[name].server.tables.rows[LEDGER + attempt] != 1:
                self.broken("I12", f"the work of {attempt} was done twice on {name}")
        if deed.doomed:
            self.broken("I16", f"a statement of {attempt} failed, and it is committed on {sorted(paid)}")
        if deed.told is Told.ABORTED:
            self.broken("I5", f"{attempt} was told aborted, and is committed on {sorted(paid)}")
        for name in sorted(deed.writes - paid):
            if attempt not in self._promised.get(name, {}):
                self.broken("I1", f"{attempt} is committed on {sorted(paid)}, and gone on {name}")
        if len(deed.writes) > 1:
            self._decision_first(deed, paid)
            self._nothing_gone(deed, paid)

    def _nothing_gone(self, deed: Deed, paid: set[str]) -> None:
        """Nothing is rolled back anywhere that was decided COMMIT on disk, or that somebody was told is committed."""
        for name in sorted(deed.writes - paid):
            if deed.attempt in self._promised.get(name, {}):
                continue
            if deed.told is Told.COMMITTED:
                self.broken("I5", f"{deed.attempt} was told committed, and is gone on {name}")
            if deed.decided is Verdict.COMMIT:
                self.broken("I1", f"{deed.attempt} is decided COMMIT, and is gone on {name}")

    def _decision_first(self, deed: Deed, paid: set[str]) -> None:
        journal = self.world.journal_at
        for name in sorted(paid):
            if deed.decided is Verdict.COMMIT:
                return
            if name != journal or self._paid(name, deed.attempt, durable=True):
                self.broken("I4", f"{deed.attempt} is committed on {name}, and no such decision is on disk")
            if deed.attempt not in self._journal(self.world.machines[journal].server.tables).decisions:
                self.broken("I4", f"{deed.attempt} is committed on {name}, and was not decided")

    def _sum_of(self, machine: Machine) -> None:
        """The sum on a server is what the attempts that are to be seen there have moved, and nothing else (I23)."""
        rows, there, moved = machine.server.tables.rows, 0, 0
        for key, number in rows.items():
            if key.startswith(LEDGER):
                deed = self.deeds.get(key[len(LEDGER) :])  # none for a row that counts something else
                moved += 0 if deed is None else number * deed.moves.get(machine.name, 0)
            else:
                there += number
        if there != moved:
            why = f"the sum on {machine.name} is {there}, and what is to be seen there has moved {moved}"
            self.broken("I23", why)

    def _conservation(self, deed: Deed) -> None:
        """What is decided, and prepared nowhere any more, has changed no sum over all databases (I23)."""
        paid = {name for name in deed.moves if self._paid(name, deed.attempt)}
        if deed.excused or not paid or any(deed.attempt in promised for promised in self._promised.values()):
            return
        total = sum(deed.moves[name] for name in paid)
        if total:
            self.broken("I23", f"{deed.attempt} has changed the sum over all databases by {total}")

    # ---- what it sees

    def _paid(self, machine: str, attempt: str, *, durable: bool = False) -> bool:
        server = self.world.machines[machine].server
        tables = server.durable if durable else server.tables
        return tables.rows.get(LEDGER + attempt, 0) > 0

    def _journal(self, tables: Tables) -> State:
        return self.world.journal_view(tables)

    def memory(self) -> list[tuple[object, ...]]:
        """What it holds against what is still to come."""
        return sorted(
            (
                d.attempt,
                sorted(d.moves.items()),
                d.doomed,
                str(d.told),
                str(d.decided),
                d.ended,
                d.excused,
                sorted(d.by_hand.items()),
            )
            for d in self.deeds.values()
        )

    # ---- at the end

    def rest(self) -> None:
        """Everything is up, and two sweeps have passed since the last grace and deadline (I8, I17, I23)."""
        self.look()
        journal = self._journal(self.world.machines[self.world.journal_at].server.tables)
        beyond = [entry.attempt for entry in journal.quarantine.values() if self._beyond(entry, journal)]
        self.excuse(beyond, "below the floor")
        for machine in self.world.machines.values():
            self._nothing_left(machine)
        for attempt, row in journal.decisions.items():
            if row.is_open and not self.deed(attempt).excused:
                self.broken("I8", f"the record of {attempt} never ends")
        for deed in self.deeds.values():
            self._settled(deed)
        for deed in self.deeds.values():
            self._loud(deed)
        if not any(deed.excused for deed in self.deeds.values()):
            total = sum(self._total(machine) for machine in self.world.machines.values())
            if total:
                self.broken("I23", f"the sum over all databases is {total}, not 0")

    def _nothing_left(self, machine: Machine) -> None:
        left = [one for one in sorted(self._promised.get(machine.name, {})) if not self.deed(one).excused]
        if left:
            self.broken("I8", f"{machine.name} still has {left} prepared")
        held = [c.number for c in machine.server.connections.values() if c.transaction is not None]
        if held:
            self.broken("I18", f"nobody is at work, and sessions {held} of {machine.name} are in a transaction")

    def _settled(self, deed: Deed) -> None:
        if deed.excused:
            return
        paid = {name for name in self.world.machines if self._paid(name, deed.attempt, durable=True)}
        if paid and paid != deed.writes:
            self.broken("I1", f"{deed.attempt} ended on {sorted(paid)} of {sorted(deed.writes)}")
        if deed.told is Told.COMMITTED and deed.writes and not paid:
            self.broken("I5", f"{deed.attempt} was told committed, and is nowhere")

    def _loud(self, deed: Deed) -> None:
        """What a stranger has ended against the decision is in quarantine, and what he ended as it was decided is not;
        what a crash has taken back from him may have been seen before.

        Of an attempt that was never decided the journal knows nothing, so that nobody can accuse.
        """
        if deed.decided is None or self.world.restored:
            return
        journal = self._journal(self.world.machines[self.world.journal_at].server.durable)
        for machine, number in deed.by_hand.items():
            committed = self._paid(machine, deed.attempt, durable=True)
            against = committed is not (deed.decided is Verdict.COMMIT)
            accused = (deed.attempt, number) in journal.quarantine
            if against is not accused and not (accused and machine in deed.came_back):
                what = "against its decision, and nobody says so" if against else "as it was decided, and is accused"
                self.broken("I17", f"branch {number} of {deed.attempt} was ended by hand on {machine}, {what}")

    def _total(self, machine: Any) -> int:
        return sum(number for key, number in machine.server.tables.rows.items() if not key.startswith(LEDGER))


def _different(before: Any, now: Any) -> set[str]:
    """The keys whose values are not the same."""
    if before is now:
        return set()
    return {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)}
