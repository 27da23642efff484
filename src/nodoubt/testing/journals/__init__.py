"""The conformance suite for journals: what every `ports.Journal` must do, whatever stores it.

Subclass `JournalSuite` in a test module, with two pytest fixtures: `bench`, a `bench.Bench` over a journal that is set
up and empty, and `bare`, one whose database holds nothing yet.

Each test is named after what it promises. One that fails tells by which rule of the contract, what was done until then,
and what was seen (`nodoubt.testing.telling`). That a decision is forced to disk no client can see: cut the power.

A journal whose rows others can reach has a second suite, `UnreadableSuite`: what becomes of rows that were damaged. It
takes a fixture more, `damage`: how that is done (`unreadable.Damage`).

Must not: know SQL, or a driver.
"""

from ..telling import Suite
from .calls import CallClaims
from .directory import DirectoryClaims
from .register import RegisterClaims
from .unreadable import Damage, UnreadableClaims

__all__ = ["Damage", "JournalSuite", "UnreadableSuite"]


class JournalSuite(RegisterClaims, DirectoryClaims, CallClaims, Suite):
    """All claims."""


class UnreadableSuite(UnreadableClaims, Suite):
    """The claims about rows that cannot be read."""
