"""The table of `overnight fit`, and a few words on each step."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from overnight.gpu.card import Card

if TYPE_CHECKING:
    from overnight.cli.fit import Judged

COLUMNS = ("step", "predicted", "band", "lease", "micro-batch", "largest", "verdict")


def printed(rows: "Sequence[Judged]", card: Card) -> None:
    """To the terminal."""
    from rich.console import Console
    from rich.table import Table

    console, table = Console(), Table(box=None, pad_edge=False, header_style="bold dim")
    console.print(
        f"{card.name}: {card.budget_mib:,} of {card.total_mib:,} MiB may be granted", highlight=False
    )
    for name in COLUMNS:
        table.add_column(
            name, overflow="fold", no_wrap=name != "step"
        )  # figures stay whole in a narrow terminal
    for row in rows:
        numbers = (
            [f"{row.mib:,.0f} MiB", f"{row.low_mib:,.0f}-{row.high_mib:,.0f}", f"{row.lease_mib:,}"]
            if row.mib
            else ["none" if row.verdict == "fits" else "", "", ""]
        )
        sizes = ["" if n is None else f"{n:,}" for n in (row.micro_batch, row.largest_micro_batch)]
        table.add_row(row.step, *numbers, *sizes, row.verdict)
    console.print(table, highlight=False)
    for row in rows:
        console.print(f"{row.step}: {explained(row)}", highlight=False, markup=False)


def explained(row: "Judged") -> str:
    """What the peak is made of, when it is, how far such figures were off, and what would make it fit; or why nobody knows."""
    made = ", ".join(
        f"{kind} {mib:,.0f}" for kind, mib in sorted(row.parts.items(), key=lambda part: -part[1]) if mib >= 1
    )
    found = [f"{made} MiB{f' (in {row.peak})' if row.peak else ''}"] if made else []
    found += [row.why] if row.why else []
    found += [row.history] if row.history else []
    found += [f"{row.host_mib:,.0f} MiB of the machine's memory"] if row.host_mib else []
    ways = "; ".join(f"{what} takes {mib:,.0f} MiB" for what, mib in row.changes.items())
    found += (
        [
            f"what makes it fit: {ways}"
            if row.verdict == "does not fit"
            else f"chosen by itself to fit: {ways}"
        ]
        if ways
        else []
    )
    return ". ".join(found)
