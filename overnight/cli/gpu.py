"""`overnight gpu`: the card as a picture for a terminal, as one line for each change, or as JSON."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import cycle

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from overnight.gpu.card import Card
from overnight.gpu.messages import describe_other_processes
from overnight.gpu.snapshot import RequestRow, Snapshot, snapshot
from overnight.orchestration.terminal import table

EVERY_S = 1.0
WIDTH = 110
NARROW = 72  # a terminal with fewer characters shows names and amounts only, without the columns of WIDE
WIDE = ("experiment", "pid", "in use", "peak")
FIGURES = {"pid": 7, "MiB": 7, "in use": 7, "peak": 7, "for": 5}  # columns of numbers, and their least width
COLOURS = ("cyan", "green", "blue", "yellow", "bright_cyan", "bright_green", "bright_blue", "bright_yellow")
OTHERS = "magenta"


def show(card: Card, as_json: bool, watching: bool, pause: Callable[[float], None] = time.sleep) -> None:
    if not watching:
        _print_once(snapshot(card), as_json)
        return
    with suppress(KeyboardInterrupt):
        if as_json or not sys.stdout.isatty():
            _print_changes(card, as_json, pause)
        else:
            _print_live(card, pause)


def _print_once(now: Snapshot, as_json: bool) -> None:
    if as_json:
        print(now.model_dump_json(indent=1))
        return
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)  # a file has no edge
    console.print(panel(now, min(console.width, WIDTH)))


def _print_changes(card: Card, as_json: bool, pause: Callable[[float], None]) -> None:
    last = ""
    while True:
        now = snapshot(card)
        if line(now) != last:
            last = line(now)
            print(now.model_dump_json() if as_json else f"{time.strftime('%H:%M:%S')}  {last}", flush=True)
        pause(EVERY_S)


def _print_live(card: Card, pause: Callable[[float], None]) -> None:
    console = Console()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(panel(snapshot(card), min(console.width, WIDTH), clock=True), refresh=True)
            pause(EVERY_S)


def panel(now: Snapshot, width: int, clock: bool = False) -> Group:
    parts: list[RenderableType] = [_title(now, width, clock), _bar(now, width), _sums(now)]
    holders = [
        {"": Text("■", colour), "holds": _name(row), **_facts(row), "in use": _mib(row.use_mib),
         "peak": _mib(row.peak_mib), "for": _time(row.seconds)}
        for row, colour in zip(now.holders, cycle(COLOURS), strict=False)
    ]  # fmt: skip
    queue = [
        {"": Text(str(place), "dim"), "waits": _name(row), **_facts(row), "for": _time(row.seconds),
         " ": Text(_why_waiting(row, now), "dim")}
        for place, row in enumerate(now.queue, 1)
    ]  # fmt: skip
    for rows in (holders, queue):
        if rows:
            parts += [Text(), _table(rows, width >= NARROW)]
    if not (holders or queue):
        parts += [Text(), Text("no lease is held, no request waits", style="dim")]
    notes = list(_notes(now))
    if notes:
        parts += [Text(), *notes]
    return Group(*parts)


def _title(now: Snapshot, width: int, clock: bool) -> Text:
    name, about = str(now.card).split(": ", 1)
    title = Text.assemble((name, "bold"), (f"   {about}", "dim"), no_wrap=True, overflow="ellipsis")
    if clock:
        right = time.strftime("  %H:%M:%S", time.localtime(now.at))
        title.truncate(width - len(right), overflow="ellipsis", pad=True)
        title.append(right, "dim")
    return title


def _bar(now: Snapshot, width: int) -> Text:
    """The whole card from left to right: leases (full where used), free, other processes, their reserve."""
    reserve = now.card.total_mib - now.card.budget_mib
    parts = list[tuple[float, str, str]]()
    for row, colour in zip(now.holders, cycle(COLOURS), strict=False):
        used = min(row.mib, row.use_mib or 0.0)
        parts += [(used, "█", colour), (row.mib - used, "▒", colour)]
    parts += [
        (now.free_mib, "─", "dim"),
        (now.other_processes_mib, "█", OTHERS),
        (max(0, reserve - min(now.other_processes_mib, reserve)), "·", "dim"),
    ]
    total = sum(mib for mib, _, _ in parts) or 1
    bar = Text()
    end = 0.0
    drawn = 0
    for mib, character, style in parts:
        end += mib
        cells = round(end / total * width) - drawn  # rounded at its end, so that the cells of all add up
        bar.append(character * cells, style)
        drawn += cells
    return bar


def _sums(now: Snapshot) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    for mib, what in ((now.budget_mib, "MiB may be granted"), (now.held_mib, "held"), (now.free_mib, "free")):
        text.append(f"{mib:,}", "bold").append(f" {what}   ", "dim")
    if now.other_processes_mib:
        text.append(f"{now.other_processes_mib:,}", OTHERS).append(" used by other programs", "dim")
    return text


def _name(row: RequestRow) -> Text:
    return Text.assemble(row.step or "a script", (" alone" if row.exclusive else "", "dim"))


def _facts(row: RequestRow) -> dict[str, Text]:
    return {"experiment": Text(row.experiment), "pid": Text(str(row.pid)), "MiB": _mib(row.mib)}


def _why_waiting(row: RequestRow, now: Snapshot) -> str:
    if row.exclusive and now.holders:
        return "until it is alone"
    short_mib = row.mib + now.held_mib + now.overuse_mib - now.budget_mib
    return f"{short_mib:,} MiB short" if short_mib > 0 else "behind those ahead"


def _table(rows: Sequence[dict[str, Text]], wide: bool) -> Table:
    names = [name for name in rows[0] if wide or name not in WIDE]
    return table(map(_column, names), ([row[name] for name in names] for row in rows))


def _column(name: str) -> Column:
    if name in FIGURES:
        return Column(name, justify="right", no_wrap=True, min_width=FIGURES[name])
    return Column(name, no_wrap=True, min_width=8 if name.strip() else 1)


def _notes(now: Snapshot) -> Iterator[Text]:
    if now.other_processes_mib:
        kept_mib = now.card.total_mib - now.card.reserved_mib - now.budget_mib
        about = f"; {kept_mib:,} MiB are kept for such programs" if kept_mib and not now.card.virtual else ""
        others = describe_other_processes(now.other_processes, now.other_processes_mib)
        yield Text.assemble(("■ ", OTHERS), ", ".join(others), (about, "dim"))
    short_mib = now.held_mib + now.overuse_mib - now.budget_mib
    if now.held_mib > now.budget_mib:
        yield _warning(
            f"{now.held_mib - now.budget_mib:,} MiB more are held than may be granted here: "
            "the holders began with another budget"
        )
    elif short_mib > 0:
        yield _warning(
            "other programs came after a grant: "
            f"with every lease in full use the card would be {short_mib:,} MiB short"
        )
    for row in (*now.holders, *now.queue):
        name = row.step or f"pid {row.pid}"
        if row.stopped:
            yield _warning(f"{name} is stopped; `kill -CONT {row.pid}` lets it go on")
        if row.orphaned_processes:
            yield from _orphan_notes(row, name)
    if now.problem:
        yield _warning(
            f"the card does not say what it uses ({now.problem}); "
            "what is shown of other programs is the last known"
        )


def _warning(text: str) -> Text:
    return Text(f"! {text}", "yellow")


def _orphan_notes(row: RequestRow, name: str) -> Iterator[Text]:
    pids = " ".join(str(p.pid) for p in row.orphaned_processes)
    what = "is done with its lease, and processes that it forked keep the"
    if row.ended:
        what = "has ended, and processes that it left behind keep its"
    yield Text(f"! {name} {what} {row.mib:,} MiB; `kill {pids}` frees them:", "red")
    for process in row.orphaned_processes:
        yield Text(f"    {process.pid}  {process.command}", "dim", no_wrap=True, overflow="ellipsis")


def line(now: Snapshot) -> str:
    """The same in one line, without what changes by itself."""
    parts = [f"{now.held_mib:,} of {now.budget_mib:,} MiB held, {now.free_mib:,} free"]
    for verb, rows in (("holds", now.holders), ("waits", now.queue)):
        if rows:
            parts.append(f"{verb}: {', '.join(_short(row) for row in rows)}")
    if now.other_processes_mib:
        parts += describe_other_processes(now.other_processes, now.other_processes_mib)
    warnings = [note.plain for note in _notes(now) if note.plain.startswith("!")]
    return "; ".join([*parts, *(text.removeprefix("! ").removesuffix(":") for text in warnings)])


def _short(row: RequestRow) -> str:
    use = "" if row.use_mib is None else f", {row.use_mib:,.0f} in use"
    return f"{row.step or f'pid {row.pid}'} ({row.mib:,} MiB{use})"


def _mib(mib: float | None) -> Text:
    return Text("" if mib is None else f"{mib:,.0f}")


def _time(seconds: float) -> Text:
    whole = int(seconds)
    return Text(f"{whole} s" if whole < 60 else str(timedelta(seconds=whole)).lstrip("0:"))
