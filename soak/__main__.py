"""`python -m soak --minutes 60`: one run, its report and plot. `make soak` is this. Exit code 1: something is wrong."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from . import campaign, plot, report
from .rig import WHOLE

HERE = Path(__file__).parent


def main() -> None:
    options = _options()
    # MariaDB in memory loses nothing in a crash, and nobody's disk is in memory.
    folder = Path(tempfile.mkdtemp(prefix="nodoubt-soak-", dir=options.under))
    print(f"seed {options.seed}; histories and logs in {folder}", flush=True)
    outcome = campaign.run(
        folder, options.minutes * 60, options.seed, WHOLE, under=Path(options.under),
        say=lambda text: print(text, flush=True),
    )  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "throughput.svg").write_text(plot.svg(outcome))
    (options.out / "RESULTS.md").write_text(report.markdown(outcome))
    print(report.markdown(outcome))
    print(f"report: {options.out}/RESULTS.md; again: make soak MINUTES={options.minutes:g} SEED={options.seed}")
    if outcome.findings:
        print(f"{len(outcome.findings)} findings; histories, logs and the nemesis' own are kept in {folder}")
        sys.exit(1)
    shutil.rmtree(folder)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--under", default="/var/tmp", help="where servers and files live: a disk")  # noqa: S108
    parser.add_argument("--out", type=Path, default=HERE / "results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
