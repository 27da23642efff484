"""SQLite as a participant in two-phase commit. See `two_phase` for the algorithm, `record` for what is stored.

A prepared branch is a record in the file, with locks that the file itself keeps (guard triggers), so it survives any
crash, and any process can finish it. One flush to prepare, one to commit.

A staged branch locks the whole table it writes, and keeps others from writing the tables it has read, until it ends: a
staging that waits for days is better kept out of a busy SQLite file.

To take nodoubt out of a file, end what is prepared, drop the triggers `nodoubt_guard_*`, then the tables `nodoubt_*`.

What this cannot see, all of it done by somebody else to the same file between prepare and commit:

- a write with triggers switched off to a row of a locked table that the branch did not touch;
- a *new* table whose foreign key references a parent row that the branch deletes.

Seen (`Hazard`): DDL on a staged table, VACUUM where it renumbers rows, any write to a row that the branch touched.
Reads of virtual tables are not locked. Other programs that write the file in WAL need SQLite 3.51.3 as much as we do.
"""

from __future__ import annotations

from .record import UnreadableRecord
from .resource import SqliteResource
from .two_phase import Hazard

__all__ = ["Hazard", "SqliteResource", "UnreadableRecord"]
