"""Processes of the demo's own: modules of this package, wherever it was found.

Must not: know what they do.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def start(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    """`python -m module …`, with all three streams as pipes.

    In a session of its own: Ctrl-C at the terminal ends the demo, which then ends its processes.
    """
    here = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(  # noqa: S603 - a module of ours
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )
