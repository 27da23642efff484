"""One life of an example, in a process of its own: `python life.py '{"work": "examples.….matrix:sell", "urls": …}'`."""

from __future__ import annotations

import importlib
import json
import sys

from nodoubt import Coordinator

if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    module, _, function = task["work"].partition(":")
    with Coordinator(task["urls"], journal=task["journal"], recovery=False) as db:
        getattr(importlib.import_module(module), function)(db)
