"""Schedules worth keeping, written by hand or made of what a seed once drew: no change of the drawing loses them."""

from __future__ import annotations

from nodoubt.testing.world import Layout, scripted
from nodoubt.testing.world.acts import CleanUp, Finish, Pay, Recover, Settle, Stage, Sweep
from nodoubt.testing.world.calls import Use
from nodoubt.testing.world.faults import (
    ClockJump,
    CrashAt,
    CrashServer,
    EndByHand,
    Freeze,
    Jitter,
    KillAt,
    LateRequest,
    LoseReply,
    LoseRequest,
    OnNotice,
    Restore,
    SlowDisk,
    SlowEnds,
    Stop,
    When,
)
from nodoubt.testing.world.keys import Once
from nodoubt.testing.world.outside import Plan, Say

KEPT = {
    # Found with seed 1809 of the first hunt: SQLite prepared a branch whose receipt's place had been fenced.
    "a settle begins before the work and fails half-way": scripted(
        Layout((("a", "mariadb"), ("b", "sqlite"), ("c", "sqlite"))),
        {"p2": 1.31, "r1": 0.0},
        Pay(process="p2", at_s=5.524, parts=(("b", "x", -4), ("a", "x", 0), ("c", "x", 4)), decided=True),
        Settle(process="r1", at_s=5.5277),
        Jitter(salt=483447),
    ),
    "the journal is set back between a decision and its phase two": scripted(
        Layout((("a", "postgres"), ("b", "postgres")), "j"),
        {"p1": 0.0, "r1": 2.0},  # r1 begins an epoch of which the backup knows nothing
        Pay(process="p1", at_s=3.0, parts=(("a", "x", -1), ("b", "x", 1))),
        OnNotice(process="p1", point="P6", what="committed", fault=KillAt(process="p1")),
        Restore(machine="j", at_s=4.0, backup_s=1.0),
    ),
    # Found in the first hunt with steps: no answer came to a change of the record,
    # which was seen, not flushed, and believed.
    "a step's answer is recorded on a slow disk": scripted(
        Layout((("a", "postgres"), ("b", "sqlite")), "j", "mariadb"),
        {"p1": 0.0},
        Stage(
            process="p1", at_s=0.381, name="order-1", parts=(("b", "x", -8), ("a", "x", 8)), reuse=True,
            uses=(Use(plan=Plan("0", action=(Say.BROKEN,)), first=True),),
        ),
        SlowDisk(machine="j", at_s=0.54, for_s=3.394, flush_s=1.5),
    ),
    # Found in that hunt, too: each had counted the tries of the compensation before another claimed it.
    "three sweeps that spare nothing undo one step": scripted(
        Layout((("a", "sqlite"), ("b", "mariadb"), ("c", "mariadb")), "c"),
        {"p2": 0.0, "r1": 0.283, "r3": 0.0},
        Stage(
            process="p2", at_s=1.396, name="order-2", parts=(("b", "x", 0),), fails=True, deadline_s=1.0,
            uses=(
                Use(plan=Plan("0"), keyed=False),
                Use(plan=Plan("1", undo=(Say.BROKEN_AFTER,)), keyed=False),
            ),
        ),
        Sweep(process="r1", at_s=1.4706, grace_s=0.0),
        Sweep(process="r3", at_s=1.435, grace_s=0.0),
        Sweep(process="r3", at_s=1.4015, grace_s=0.0),
        Freeze(machine="a", at_s=1.27, for_s=1.912),
    ),
    # Found with seed 213 of the first hunt with strangers: who reaped looked for no receipt where XA RECOVER did not
    # list the branch, so that nobody heard of it before the retention was over, which a clock had put off by a day.
    "a stranger has committed a branch of a name that is reaped": scripted(
        Layout((("a", "mariadb"), ("b", "postgres")), "b"),
        {"p1": 0.0},
        Stage(process="p1", at_s=6.329, name="n", parts=(("a", "x", -2), ("b", "x", 2)), deadline_s=6.0),
        Recover(process="p1", at_s=0.0),
        OnNotice(process="p1", point="P4", what="staged", fault=ClockJump(process="p1", by_s=86400.0, at_s=0.0)),
        OnNotice(process="p1", point="P3", what="prepared", fault=EndByHand(machine="a", commit=True), nth=2),
    ),
    # Seed 201170: not the key is to blame, but the stranger who has rolled back the branch that had it.
    "a stranger has rolled back a branch with a key, which is asked for again": scripted(
        Layout((("a", "postgres"), ("b", "mariadb"), ("c", "sqlite")), "c"),
        {"p1": 0.0},
        Once(process="p1", at_s=3.0, key="key-1", on="a", parts=(("a", "x", -4), ("b", "x", 4), ("c", "x", 0))),
        Once(process="p1", at_s=5.0, key="key-1", on="a", parts=(("a", "x", -4), ("b", "x", 4), ("c", "x", 0))),
        OnNotice(process="p1", point="P3", what="prepared", fault=EndByHand(machine="a", at_s=0.001)),
    ),
    # Seed 300390: what hangs on a point that is reached when nothing is to go wrong any more, does not.
    "a server is to crash when a late caller has prepared": scripted(
        Layout((("a", "sqlite"), ("b", "sqlite"), ("c", "mariadb"))),
        {"p1": 0.0},
        LoseReply(process="p1", message=14, told=False, half_open_s=8.0),
        Once(
            process="p1", at_s=0.2, key="key-1", on="c", tries=4,
            parts=(("a", "x", -2), ("c", "x", 0), ("b", "x", 2)),
        ),
        OnNotice(
            process="p1", point="P3", what="prepared",
            fault=CrashServer(machine="c", message=3, when=When.DURING, down_s=5.514, writing_s=0.4, keep=1),
        ),
    ),
    # Seed 800288: he was accused, and rightly; then a crash undid what he had done, for no XA ROLLBACK is flushed.
    "a stranger has rolled back a branch, and a crash brings it back": scripted(
        Layout((("a", "postgres"), ("b", "mariadb"), ("c", "postgres")), "c"),
        {"p1": 0.0},
        Pay(process="p1", at_s=1.0, parts=(("b", "x", -3), ("a", "x", 0), ("c", "x", 3))),
        Recover(process="p1", at_s=0.0),
        OnNotice(process="p1", point="P4", what="all prepared", fault=EndByHand(machine="b")),
        CrashAt(machine="b", at_s=6.0),
    ),
    # Its session was kept, so this process has not heard that it has ended: it asks, for that was long ago.
    "a stranger has rolled back a branch that lingers": scripted(
        Layout((("a", "mariadb"), ("b", "mariadb")), linger_s=9.0),
        {"p1": 0.0},
        Stage(process="p1", at_s=1.0, name="n", parts=(("a", "x", -2), ("b", "x", 2))),
        Finish(process="p1", at_s=4.0, name="n", commit=True),
        OnNotice(process="p1", point="P4", what="staged", fault=EndByHand(machine="b")),
    ),
    "a stranger has rolled back a branch that was staged long ago": scripted(
        Layout((("a", "postgres"), ("b", "postgres"))),
        {"p1": 0.0},
        Stage(process="p1", at_s=1.0, name="n", parts=(("a", "x", -2), ("b", "x", 2))),
        Finish(process="p1", at_s=4.0, name="n", commit=True),
        OnNotice(process="p1", point="P4", what="staged", fault=EndByHand(machine="b")),
    ),
    # What seed 32 of the mutant "OK to XA COMMIT is proof" comes down to; the soak had found it, on a real server.
    "an XA COMMIT meets the end of the session that prepared": scripted(
        Layout((("a", "mariadb"), ("b", "mariadb"))),
        {"p1": 0.0, "p2": 0.0},
        Stage(process="p1", at_s=1.0, name="n", parts=(("a", "x", -2), ("b", "x", 2))),
        Finish(process="p2", at_s=1.2, name="n", commit=True),
        Recover(process="p2", at_s=0.0),
        SlowEnds(machine="b", at_s=0.0, for_s=9.0, listed_s=0.1, engine_s=1.0),
    ),
    # Found with seed 810,194 of a hunt in which all work was staged: InnoDB shows that a name is free before that is on
    # disk, and whoever asks for it then is told that it is unknown. It was never staged.
    "a name is asked for while its begin gives it back": scripted(
        Layout((("a", "mariadb"),)),
        {"p1": 0.0, "p2": 0.0},
        Stage(process="p1", at_s=2.0, name="n", parts=(("a", "x", -2),), fails=True),
        Finish(process="p2", at_s=2.3, name="n", commit=True),
        SlowDisk(machine="a", at_s=1.5, for_s=5.0, flush_s=0.2),
    ),
    # What follows is what mutants do harm in; nothing that is right does.
    "a caller stands still while recovery aborts its branches": scripted(
        Layout((("a", "mariadb"), ("b", "sqlite")), "j"),
        {"p1": 0.0, "r1": 0.0},
        Pay(process="p1", at_s=0.565, parts=(("a", "x", -5), ("b", "x", 5))),
        Recover(process="r1", at_s=0.0, every_s=2.5),
        OnNotice(process="p1", point="P3", what="prepare", fault=Stop(process="p1", for_s=5.2, at_s=0.0)),
    ),
    "the commit point answers too late": scripted(
        Layout((("a", "mariadb"), ("b", "sqlite")), "a"),
        {"p1": 0.0},
        Pay(process="p1", at_s=1.0, parts=(("a", "x", -4), ("b", "x", 4))),
        SlowDisk(machine="a", at_s=0.5, for_s=5.0, flush_s=1.5),
    ),
    # Drawn with seed 791 for a mutant, and made small.
    "a decision comes when its attempt's abort has been cleaned up": scripted(
        Layout((("a", "postgres"), ("b", "postgres")), "a"),
        {"p1": 0.0, "r1": 0.272},
        Pay(process="p1", at_s=0.738, parts=(("a", "x", -9), ("b", "x", 9)), timeout_s=0.5, settles=True),
        CleanUp(process="r1", at_s=2.695),
        OnNotice(process="p1", point="P3", what="prepared", fault=ClockJump(process="p1", by_s=-86400.0, at_s=0.0)),
        OnNotice(process="p1", point="P4", what="all prepared", fault=LateRequest(process="p1", message=1, by_s=2.0)),
    ),
    # The first life of a name fails as it begins: b never heard its PREPARE, and hears its ROLLBACK PREPARED late.
    # The second begins in another process in the same millisecond: so says the clock there, which is a second slow.
    "two lives of a name in one millisecond, and a late rollback": scripted(
        Layout((("a", "postgres"), ("b", "postgres")), "j"),
        {"p1": 0.0, "p2": 0.0, "r1": 0.0},
        Stage(process="p1", at_s=3.0, name="n", parts=(("a", "x", -4), ("b", "x", 4))),
        OnNotice(process="p1", point="P3", what="prepare", fault=LoseRequest(process="p1", message=2)),
        OnNotice(process="p1", point="P6", what="aborted", fault=LateRequest(process="p1", message=2, by_s=2.5)),
        ClockJump(process="p2", at_s=1.0, by_s=-1.0),
        Stage(process="p2", at_s=4.0, name="n", parts=(("a", "x", -4), ("b", "x", 4))),
        Finish(process="p2", at_s=5.0, name="n", commit=True),
        OnNotice(process="p2", point="P6", what="committed", fault=KillAt(process="p2")),
        Recover(process="r1", at_s=0.0, every_s=4.0),
    ),
}  # fmt: skip
