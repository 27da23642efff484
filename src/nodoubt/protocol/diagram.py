"""The commit machine's diagram, drawn from its table, so that the picture cannot disagree with the code.

`python -m nodoubt.protocol.diagram ARCHITECTURE.md` writes it between the two marks in that file.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .commit import TABLE, Phase

BEGIN, END = "<!-- commit machine: begin -->", "<!-- commit machine: end -->"


def mermaid() -> str:
    """A Mermaid state diagram of `TABLE`: one arrow for each pair of phases, labelled with its events."""
    arrows: dict[tuple[Phase, Phase], list[str]] = {}
    for (phase, event), rule in TABLE.items():
        for following in sorted(rule.leads_to - {phase}, key=lambda p: list(Phase).index(p)):
            arrows.setdefault((phase, following), []).append(event.__name__)
    lines = ["stateDiagram-v2", "    [*] --> working"]
    for (phase, following), events in arrows.items():
        lines.append(f"    {_id(phase)} --> {_id(following)}: {', '.join(events)}")
    lines += [f"    {_id(end)} --> [*]" for end in (Phase.COMMITTED, Phase.ABORTED, Phase.DOUBT)]
    return "\n".join(lines)


def _id(phase: Phase) -> str:
    return phase.value.replace(" ", "_")


def inserted(text: str) -> str:
    """The document with the diagram between its marks."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n```mermaid\n{mermaid()}\n```\n{END}{tail}"


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(inserted(document.read_text()))
