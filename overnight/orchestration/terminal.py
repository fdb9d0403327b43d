"""The terminal of a run: a live table, or plain lines where there is no terminal."""

import json
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from overnight.files import atomic_write
from overnight.memory.usage import Usage

STATES = {
    "pending": "[dim]pending",
    "queued": "[yellow]queued",
    "running": "[cyan]running",
    "done": "[green]done",
    "unchanged": "[green]unchanged",
    "failed": "[red]failed",
    "stopped": "[yellow]stopped",
    "not run": "[dim]not run",
}
QUIET = ("train/lr", "train/samples_per_s", "data/")
PLAIN_EVERY_S = 10.0
EXPECTED_EVERY_S = 60.0
ROWS = "rows.json"  # in the folder of an experiment's own run: what its terminal shows


@dataclass
class StepRow:
    label: str
    state: str = "pending"
    done: float = 0.0
    text: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    began: float = 0.0
    seconds: float = 0.0
    began_at: float | None = None  # unix time, as `ended_at`
    ended_at: float | None = None
    wait_s: float = 0.0
    memory: str = ""
    printed_at: float = 0.0
    first: tuple[float, float] | None = None  # monotonic time and share of the first progress
    at_most: bool = False  # it may end earlier than its progress says

    def left(self) -> str:
        """How long it still takes, by its pace since the first progress."""
        if self.state != "running" or self.first is None or self.done <= self.first[1]:
            return ""
        at, share = self.first
        left_s = (time.monotonic() - at) / (self.done - share) * (1 - self.done)
        amount = f"{left_s / 60:.0f} min" if left_s > 90 else f"{left_s:.0f} s"
        return f"{'at most' if self.at_most else 'about'} {amount} left"


class Display:
    """Rows of steps; any thread may change them."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        if not self.console.is_terminal:
            self.console.width = max(self.console.width, 140)  # a log file has no edge
        self.rows: list[StepRow] = []
        self.expected = ""  # when the run is expected to end
        self._expected_at = 0.0  # when that was printed
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(
                console=self.console, get_renderable=self.table, refresh_per_second=4, transient=True
            )
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, line: str) -> None:
        """A line that stays; brackets in it are text."""
        with suppress(OSError):  # its terminal was closed
            self.console.print(Text(line), highlight=False, soft_wrap=True)

    def save(self, path: Path, state: str, message: str, link: str) -> None:
        """Everything that is shown, for another process. Raises OSError."""
        rows = [asdict(row) for row in self.rows]
        said = {"state": state, "message": message, "link": link, "expected": self.expected}
        atomic_write(path, json.dumps({**said, "rows": rows}))

    def expect(self, text: str) -> None:
        """Show when the run is expected to end; plain output says so when it changes, once a minute."""
        is_new = text not in ("", self.expected) and time.monotonic() - self._expected_at > EXPECTED_EVERY_S
        if not self._live and (is_new or (text and not self.expected)):
            self._expected_at = time.monotonic()
            self.say(f"{time.strftime('%H:%M:%S')}  {text}")
            self.expected = text
        elif self._live or not text:
            self.expected = text

    def show(self, saved: dict[str, Any]) -> None:
        """Show the rows that another process has saved."""
        before = {row.label: row for row in self.rows}
        self.rows = [StepRow(**row) for row in saved.get("rows", [])]
        self.expect(saved.get("expected", ""))
        for row in self.rows:
            old = before.get(row.label, StepRow(""))
            row.printed_at = old.printed_at
            is_late = row.state == "running" and time.monotonic() - row.printed_at > PLAIN_EVERY_S
            if not self._live and (is_late or row.state != old.state):
                self._plain(row)

    def add(self, label: str) -> StepRow:
        row = StepRow(label)
        self.rows.append(row)
        return row

    def change(self, row: StepRow, state: str, text: str = "") -> None:
        row.state = state
        row.text = text
        if state == "running":
            row.began = time.monotonic()
            row.began_at = time.time()
        if state not in ("pending", "queued", "running") and row.began:
            row.seconds = time.monotonic() - row.began
            row.ended_at = time.time()
        if not self._live and state != "pending":
            self._plain(row)

    def progress(self, row: StepRow, event: dict[str, Any]) -> None:
        """Show how far a step is; plain output says so every 10 s."""
        row.done = event["done"] / max(event["total"], 1e-9)
        row.text = event["text"]
        row.at_most = event.get("at_most", False)
        row.first = row.first or (time.monotonic(), row.done)
        if not self._live and time.monotonic() - row.printed_at > PLAIN_EVERY_S:
            self._plain(row)

    def _plain(self, row: StepRow) -> None:
        row.printed_at = time.monotonic()
        share = f" {row.done:4.0%}" if row.state == "running" and row.done else ""
        state = f"{time.strftime('%H:%M:%S')}  {row.label:<24} {row.state}{share}"
        self.say("  ".join(part for part in (state, row.left(), row.text, scores(row.scores, 3)) if part))

    def table(self) -> Table:
        columns = [Column(name, no_wrap=True) for name in ("step", "", "progress", "s")]
        columns[3].justify = "right"
        made = table([*columns, Column(overflow="ellipsis")], map(_running, self.rows))
        made.caption = self.expected or None
        made.caption_justify = "left"
        return made

    def summary(self) -> Table:
        figures = [Column(name, justify="right") for name in ("ran", "waited", "peak")]
        return table(["step", "state", *figures, "result"], map(_ended, self.rows))


def table(columns: Iterable[Column | str], rows: Iterable[Iterable[RenderableType]]) -> Table:
    made = Table(*columns, box=None, pad_edge=False, header_style="bold dim")
    for row in rows:
        made.add_row(*row)
    return made


def _running(row: StepRow) -> list[RenderableType]:
    bar = ProgressBar(total=1.0, completed=row.done, width=20) if row.state == "running" else ""
    seconds = row.seconds or (time.monotonic() - row.began if row.began else 0.0)
    news = "" if row.state in ("failed", "not run", "stopped") else scores(row.scores, 2)
    text = "  ".join(part for part in (row.left(), row.text, news) if part)
    return [Text(row.label), STATES[row.state], bar, f"{seconds:.0f}" if seconds else "", Text(text)]


def _ended(row: StepRow) -> list[RenderableType]:
    ran = f"{row.seconds:.1f} s" if row.seconds else ""
    waited = f"{row.wait_s:.1f} s" if row.wait_s >= 0.1 else ""
    news = scores(row.scores, 4) if row.state in ("done", "unchanged") else ""
    result = [part for part in (news, "" if row.state == "done" else row.text) if part]
    return [Text(row.label), STATES[row.state], ran, waited, row.memory, Text("  ".join(result))]


def memory(used: Usage) -> str:
    """In its part of the card, context included; of the host when it had no lease."""
    if not used.lease_mib:
        return f"{used.host_peak_mib:,.0f} MiB of the host" if used.host_peak_mib else ""
    if used.peak_mib is None:
        return f"not measured, of {used.lease_mib:,} MiB"
    return f"{used.peak_mib + used.overhead_mib:,.0f} of {used.lease_mib:,} MiB"


def scores(values: dict[str, float], most: int) -> str:
    """Test scores first, then validation, then losses."""
    shown = [k for k in values if not k.startswith(QUIET)]
    shown.sort(key=lambda k: (not k.startswith("test/"), not k.startswith("val/")))
    figures = ((k.removeprefix("test/"), values[k]) for k in shown[:most])
    return "  ".join(f"{k} {v:,.0f}" if abs(v) >= 1000 else f"{k} {v:.4g}" for k, v in figures)
