"""The command line: `nodoubt …`, or `python -m nodoubt …`.

Guarantees: importing this imports neither a driver nor anything that prints. Every command has tables for people and
`--json` for programs; exit codes are a contract (`outcome`); what goes wrong is a sentence, never a traceback, never
with a password in it.

Must not: decide anything. What a verb means is the coordinator's business.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """The entry point of the installed command."""
    from .root import root

    root(prog_name="nodoubt")
