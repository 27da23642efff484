"""The doctor: what is prepared in a database, whose it is, what it holds up, and what to do about it.

For databases that may never have seen us. `examine` is a script that looks (`postgres`, `mariadb`, `sqlite` collect
`facts` over sessions that cannot write); `diagnose` is pure and makes a `report` of them: `origins` tells whose a
prepared transaction is by the shape of its id, `advice` what to do about it, `rules` what else is wrong.

Guarantees: nothing is changed, and nothing that is advised is executed.
"""

from __future__ import annotations

from .diagnosis import diagnose
from .examination import Patient, examine
from .report import Report, Severity

__all__ = ["Patient", "Report", "Severity", "diagnose", "examine"]
