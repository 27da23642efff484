"""A bug to be found by a hunt, as somebody's own journal could have it: INSERT … ON CONFLICT DO NOTHING."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from nodoubt.journals.memory import MemoryJournal
from nodoubt.ports import Conflict, Session
from nodoubt.protocol.records import Decision
from nodoubt.script import Script
from nodoubt.testing.world import Variant


class _Overlooks(MemoryJournal):
    def insert(self, session: Session, decisions: Sequence[Decision]) -> Script[None]:
        with contextlib.suppress(Conflict):
            yield from super().insert(session, decisions)


ON_CONFLICT_DO_NOTHING = Variant(journal=_Overlooks())
