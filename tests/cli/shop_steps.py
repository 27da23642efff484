"""An application's steps, for `--app`. It writes what it has undone to the file that the environment names."""

from __future__ import annotations

import os
from pathlib import Path

from nodoubt import compensation, step


@step("shop.mail")
def mail(to: str) -> str:
    return f"sent to {to}"


@compensation("shop.unmail", tries=1)
def unmail(to: str) -> None:
    if to == "nobody":
        raise ValueError("there is no such address")
    with Path(os.environ["UNMAILED"]).open("a") as file:
        file.write(f"{to}\n")
