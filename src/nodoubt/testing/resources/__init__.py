"""The conformance suite for resources: what every `ports.Resource` must do, whatever it stands for.

Subclass `ResourceSuite` in a test module, with two pytest fixtures: `place`, a `Place` that is set up (`place.setup()`)
and holds nothing, and `bare`, one that has never seen us. A `Place` says how work is done there, and what comes of it.

Each test is named after what it promises. One that fails tells by which rule of the contract, what was done until then,
and what was seen (`nodoubt.testing.telling`). Three things it cannot see: that a promise is forced to disk (cut the
power), what a lost reply leads to (cut the connection: `nodoubt.testing.proxy`), and rows of the journal riding in a
commit, which only a resource that can hold a journal has to carry.

Must not: know SQL, or a driver.
"""

from ..telling import Suite
from .branches import BranchClaims
from .place import Place
from .registration import RegistrationClaims

__all__ = ["Place", "ResourceSuite"]


class ResourceSuite(RegistrationClaims, BranchClaims, Suite):
    """All claims."""
