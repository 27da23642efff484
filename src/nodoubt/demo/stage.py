"""What the demo says: acts, sentences, and a table of what each database holds.

Must not: know why.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from ..protocol.records import Verdict
from .check import Check, euros
from .look import Moment
from .payments import Payment
from .world import NAMES

WIDTH = 100


class Stage:
    """The terminal."""

    def __init__(self) -> None:
        console = Console(highlight=False, markup=False, emoji=False)
        self._console = Console(
            width=min(console.width, WIDTH) if console.is_terminal else WIDTH,
            highlight=False,
            markup=False,
            emoji=False,
        )
        self.number = 0  # of the act

    def act(self, title: str) -> None:
        """A new act."""
        self.number += 1
        self._console.print()
        self._console.print(Rule(Text(f" {self.number}. {title} ", style="bold cyan"), align="left", style="dim"))

    def say(self, text: str, style: str = "") -> None:
        """A paragraph."""
        self._console.print(Text(text, style=style))

    def deed(self, text: str) -> None:
        """Something that was done."""
        self._console.print(Text(f"  > {text}", style="magenta"))

    def moment(self, when: str, order: str, attempt: str, moment: Moment, places: dict[str, str]) -> None:
        """What each database holds of one order."""
        table = Table(
            box=SIMPLE_HEAD, pad_edge=False, show_edge=False, title=when, title_style="dim italic", title_justify="left"
        )
        for column, width in (("where", 24), ("what anybody can see", 42), ("held for this order", 22)):
            # The same in every table where there is room, so that the eye finds what has changed.
            table.add_column(column, min_width=width if self._console.width >= WIDTH else None)
        for place, seen in (("shop", _shop(order, moment)), ("warehouse", _warehouse(moment))):
            table.add_row(f"{place} ({places[place]})", seen, _held(place, attempt, moment))
        table.add_row(f"journal ({places['journal']})", _journal(order, attempt, moment), "")
        table.add_row("payments (HTTP)", _payment(moment.payments.get(order)), "")
        self._console.print(table)

    def checks(self, checks: Sequence[Check]) -> None:
        """The sums."""
        for one in checks:
            mark, style = ("ok", "green") if one.holds else ("WRONG", "bold red")
            detail = f" ({one.detail})" if one.detail and not one.holds else ""
            self._console.print(Text(f"  {mark:>5}  {one.claim}{detail}", style=style if not one.holds else ""))


def _shop(order: str, moment: Moment) -> Text:
    if moment.orders is None:
        return Text("it is down", style="red")
    if order not in moment.orders:
        return Text(f"no {order}", style="dim")
    return Text(f"{order}, {euros(moment.orders[order][1])}", style="green")


def _warehouse(moment: Moment) -> Text:
    if moment.products is None:
        return Text("it is down", style="red")
    reserved = ", ".join(f"{count} {NAMES[product]}" for product, (_, count) in sorted(moment.products.items()))
    return Text(f"reserved in all: {reserved}")


def _held(place: str, attempt: str, moment: Moment) -> Text:
    if place not in moment.prepared:
        return Text("?", style="red")
    if attempt in moment.prepared[place]:
        return Text("a prepared branch", style="yellow")
    return Text("nothing", style="dim")


def _journal(order: str, attempt: str, moment: Moment) -> Text:
    if moment.names is None:
        return Text("it is down", style="red")
    standing = moment.verdicts.get(attempt)
    if standing is None and order not in moment.names:
        return Text(f"nothing of {order}", style="dim")
    if standing is None:
        standing = moment.names[order][1]
    if standing is None:
        return Text("listed as prepared, undecided", style="yellow")
    if standing.decision.verdict is Verdict.ABORT:
        return Text("decided: ABORT", style="bold")
    return Text("decided: COMMIT" + (", ended" if standing.ended else ""), style="bold green")


def _payment(payment: Payment | None) -> Text:
    if payment is None:
        return Text("not charged", style="dim")
    if payment.voided:
        return Text("cancelled before it was charged", style="dim")
    if payment.refunded:
        return Text(f"charged {euros(payment.charged)}, refunded {euros(payment.refunded)}")
    return Text(f"charged {euros(payment.charged)}", style="green")
