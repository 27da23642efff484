"""A run's document as Markdown for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .results import Counted, CountTable, Results, Table, Verdict

RATIO = "a ratio is the median of the ratios within a round, with its quartiles"
NOISY = 0.2  # a yardstick whose own rounds differ by more says that the machine was busy with something else


def markdown(results: Results) -> str:
    """The whole report."""
    parts = [
        f"# Measured on {results.date}\n",
        "Written by `make bench`; not to be edited. README.md in this folder says what the figures mean.\n",
        *(f"- {name}: {value}" for name, value in results.machine.items()),
        f"- {results.rounds} rounds of {results.seconds:g} s for each contender, in a new order in each; {RATIO}",
        f"- {_noise(results.tables)}",
        "",
    ]
    if results.failed:
        parts += ["## Not measured\n", *(f"- {one.splitlines()[0]}" for one in results.failed), ""]
    if results.verdicts:
        parts += ["## Targets\n", _verdicts(results.verdicts)]
    if results.counts:
        parts += ["## Targets that are counted\n", _counted(results.counted)]
        parts += ["## Counted, per transaction\n", *map(_count_table, results.counts)]
    if results.tables:
        parts += ["## Raced\n", *map(race_table, results.tables)]
    if results.scale:
        rows = [(one.scenario, one.what, one.value) for one in results.scale]
        parts += ["## At scale\n", grid(("scenario", "what", "measured"), rows)]
    return "\n".join(parts)


def _noise(tables: Sequence[Table]) -> str:
    if not tables:
        return "no races"
    noisy = [table for table in tables if table.spread > NOISY]
    loads = sorted(table.load for table in tables)
    return (
        f"noise: in {len(noisy)} of {len(tables)} races the yardstick's own rounds had an interquartile range above "
        f"{NOISY:.0%} of their median; the run queue was {loads[0]:.1f} to {loads[-1]:.1f} as the races began"
    )


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    rows = [
        (one.target, f"{one.least:.2f}", str(one.measured), "met" if one.met else "**not met**") for one in verdicts
    ]
    return grid(("target", "at least", "measured", ""), rows)


def _counted(checks: Sequence[Counted]) -> str:
    rows = [(one.target, f"{one.most:g}", f"{one.counted:g}", "met" if one.met else "**not met**") for one in checks]
    return grid(("target", "at most", "counted", ""), rows)


def _count_table(table: CountTable) -> str:
    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.0f}" if value == round(value) else f"{value:.1f}"

    rows = [
        (
            name,
            *map(cell, (one.forced_writes, one.round_trips, one.statements)),
            *("-" if value is None else f"{value:.0f}" for value in (one.bytes_sent, one.bytes_received)),
        )
        for name, one in table.rows.items()
    ]
    head = ("", "forced writes", "round trips", "statements", "bytes sent", "bytes received")
    return f"### {table.scenario}\n\n{grid(head, rows)}"


def race_table(table: Table) -> str:
    """One race."""
    rows = [
        (
            one.name,
            str(one.throughput),
            str(one.p50),
            str(one.cpu),
            f"{one.per_second:.0f}",
            f"{one.p50_ms:.1f}",
            f"{one.p99_ms:.1f}",
            f"{one.client_ms:.2f}",
            f"{one.servers_ms:.2f}",
            f"{one.bytes_per_client / 1024:.0f}",
        )
        for one in table.rows
    ]
    head = (
        f"ratios to {table.rows[0].name}", "throughput", "speed in p50", "client CPU", "per s", "p50 ms", "p99 ms",
        "client CPU ms", "servers' CPU ms", "KiB per client",
    )  # fmt: skip
    clients = f"{table.clients} client{'s' if table.clients > 1 else ''}"
    return (
        f"### {table.scenario}, {clients} (own spread {table.spread:.0%}, load {table.load:.1f})\n\n{grid(head, rows)}"
    )


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, with a blank line behind."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"
