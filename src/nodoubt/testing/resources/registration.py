"""Claims about taking part: the tables, the identity, and the journal's epochs (I15).

Must not: know SQL, or a driver.
"""

from __future__ import annotations

from ...ports import Identity
from ...protocol.records import Epoch
from ...xid import new_attempt, new_cluster
from ..bench import outcomes
from .place import Place


class RegistrationClaims:
    """Each takes a place that is set up and empty (`bare`: not even set up)."""

    def identity(self, place: Place) -> Identity:
        found = place.run(place.resource.identity(place.bench.main))
        assert isinstance(found, Identity)
        return found

    def test_what_has_never_seen_us_has_no_identity(self, bare: Place) -> None:
        assert bare.run(bare.resource.identity(bare.bench.main)) is None

    def test_a_place_that_can_keep_a_promise_is_admitted_with_warnings_at_most(self, bare: Place) -> None:
        assert all(isinstance(one, str) for one in bare.run(bare.resource.check(bare.bench.main)))

    def test_tables_have_the_version_that_this_release_knows_and_stay_as_they_are(self, bare: Place) -> None:
        tables, session = bare.resource.tables, bare.bench.main
        assert bare.run(tables.version(session)) is None
        bare.setup()
        first = self.identity(bare)
        for _ in range(2):
            version = bare.run(tables.version(session))
            assert version.stands == tables.known and not tables.shuts_out(version)
            bare.run(tables.migrate(session))
        assert self.identity(bare) == first

    def test_what_leaves_has_no_identity_and_keeps_its_receipts(self, place: Place) -> None:
        """I15, I7."""
        prepared = place.prepared(1)
        place.finish("commit_prepared", prepared)
        place.run(place.resource.leave(place.bench.main))
        assert place.run(place.resource.identity(place.bench.main)) is None
        assert place.receipt(prepared.xid) is True and place.seen() == {1}

    def test_the_first_identity_stays_and_so_does_everything_else(self, bare: Place) -> None:
        """I15."""
        bare.setup()
        bare.run(bare.resource.witness(bare.bench.main, Epoch(3, "m3")))
        first = self.identity(bare)
        assert (first.resource_id, first.cluster, first.epoch, first.mark) == (bare.resource_id, bare.cluster, 3, "m3")
        bare.run(bare.resource.setup(bare.bench.main, new_attempt(), new_cluster()))
        assert self.identity(bare) == first

    def test_setups_at_the_same_time_agree_on_one_identity(self, bare: Place) -> None:
        """I15."""
        ids = [new_attempt() for _ in range(3)]
        sessions = [bare.session() for _ in ids]
        scripts = [bare.resource.setup(s, one, bare.cluster) for s, one in zip(sessions, ids, strict=True)]
        assert outcomes([bare.bench.start(script) for script in scripts]) == [None] * len(ids)
        seen = {bare.run(bare.resource.identity(session)).resource_id for session in sessions}
        assert len(seen) == 1 and seen <= set(ids)

    def test_the_identity_tells_the_server_that_still_answers(self, place: Place) -> None:
        """I15."""
        server = place.run(place.resource.server(place.bench.main))
        assert self.identity(place).server == server == place.run(place.resource.server(place.session()))

    def test_an_epoch_is_witnessed_once_and_never_an_older_one(self, place: Place) -> None:
        """I15."""
        for epoch in (Epoch(2, "m2"), Epoch(7, "m7"), Epoch(5, "m5")):
            place.run(place.resource.witness(place.bench.main, epoch))
        found = self.identity(place)
        assert (found.epoch, found.mark) == (7, "m7")

    def test_a_branch_that_commits_has_witnessed_its_epoch(self, place: Place) -> None:
        """I15."""
        place.run(place.resource.witness(place.bench.main, Epoch(2, "m2")))
        place.finish("commit_prepared", place.prepared(1, work=place.work(epoch=9)))
        assert self.identity(place).epoch == 9

    def test_an_operator_may_take_it_as_it_is_now(self, place: Place) -> None:
        """I15."""
        wanted = Identity(new_attempt(), new_cluster(), self.identity(place).server, 4, "m4")
        place.run(place.resource.adopt(place.bench.main, wanted))
        assert self.identity(place) == wanted
