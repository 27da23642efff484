"""Schedules worth keeping, written by hand or made of what a seed once drew: no change of the drawing loses them."""

from __future__ import annotations

from nodoubt.testing.world import Layout, scripted
from nodoubt.testing.world.acts import Pay, Settle
from nodoubt.testing.world.faults import Jitter, KillAt, OnNotice, Restore

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
}
