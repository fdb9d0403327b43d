"""A Snapshot of the card as a picture for a terminal, and as one line."""

import time
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from overnight.cli.gpu import Row, Snapshot
from overnight.gpu.device_usage import Program
from overnight.gpu.messages import strangers

COLOURS = ("cyan", "green", "blue", "yellow", "bright_cyan", "bright_green", "bright_blue", "bright_yellow")
FOREIGN = "magenta"
NARROW = 72  # columns, below which names and amounts are all there is room for


def panel(now: Snapshot, width: int, clock: bool = False) -> Group:
    """The card's bar, its sums, who holds, who waits, who else is there, and what is wrong; in a narrow terminal the least of it."""
    parts: list[RenderableType] = [_title(now, width, clock), _bar(now, width), _sums(now), Text()]
    if now.holders:
        parts += [_holders(now, width >= NARROW), Text()]
    if now.queue:
        parts += [_queue(now, width >= NARROW), Text()]
    if not (now.holders or now.queue):
        parts += [Text("nobody holds anything, nobody waits", style="dim"), Text()]
    for note in _notes(now):
        parts.append(note)
    return Group(*parts[:-1] if isinstance(parts[-1], Text) and not parts[-1].plain else parts)


def _title(now: Snapshot, width: int, clock: bool) -> Text:
    card = now.card
    name = "virtual card" if card.virtual else card.name
    about = (
        "no GPU is used, steps run on the CPU under the same rules"
        if card.virtual
        else f"card {card.index}, driver {card.driver}"
    )
    title = Text.assemble((name, "bold"), (f"   {about}", "dim"), no_wrap=True, overflow="ellipsis")
    if clock:
        right = time.strftime("  %H:%M:%S", time.localtime(now.at))
        title.truncate(width - len(right), overflow="ellipsis", pad=True)
        title.append(right, "dim")
    return title


def _bar(now: Snapshot, width: int) -> Text:
    """The whole card from left to right: leases (full where used), free, then other programs and what is kept for them."""
    card = now.card
    parts = list[tuple[float, str, str]]()
    for row, colour in zip(now.holders, _colours(now), strict=True):
        used = min(row.mib, row.use_mib or 0.0)
        parts += [(used, "█", colour), (row.mib - used, "▒", colour)]
    kept = max(0, card.total_mib - card.budget_mib - min(now.foreign_mib, card.total_mib - card.budget_mib))
    parts += [(now.free_mib, "─", "dim"), (now.foreign_mib, "█", FOREIGN), (kept, "·", "dim")]
    whole, bar, at, drawn = sum(mib for mib, _, _ in parts) or 1, Text(), 0.0, 0
    for mib, character, style in parts:
        at += mib
        cells = round(at / whole * width) - drawn  # rounded at its end, so that the cells of all add up
        bar.append(character * cells, style)
        drawn += cells
    return bar


def _colours(now: Snapshot) -> list[str]:
    return [COLOURS[place % len(COLOURS)] for place in range(len(now.holders))]


def _sums(now: Snapshot) -> Text:
    """The amounts behind the bar."""
    text = Text(no_wrap=True, overflow="ellipsis")
    for mib, what in ((now.budget_mib, "MiB may be granted"), (now.held_mib, "held"), (now.free_mib, "free")):
        text.append(f"{mib:,}", "bold").append(f" {what}   ", "dim")
    if now.foreign_mib:
        text.append(f"{now.foreign_mib:,}", FOREIGN).append(" used by other programs", "dim")
    return text


def _holders(now: Snapshot, wide: bool) -> Table:
    table = _table(
        ("", "holds", "experiment") if wide else ("", "holds"),
        ("pid", "MiB", "in use", "peak", "for") if wide else ("MiB", "for"),
    )
    for row, colour in zip(now.holders, _colours(now), strict=True):
        cells = (str(row.pid), f"{row.mib:,}", _mib(row.use_mib), _mib(row.peak_mib), _time(row.seconds))
        left = (_step(row), Text(row.experiment)) if wide else (_step(row),)
        table.add_row(Text("■", colour), *left, *map(Text, cells if wide else cells[1::3]))
    return table


def _queue(now: Snapshot, wide: bool) -> Table:
    table = _table(
        ("", "waits", "experiment") if wide else ("", "waits"),
        ("pid", "MiB", "for") if wide else ("MiB", "for"),
    )
    table.add_column("", overflow="ellipsis", no_wrap=True)
    for place, row in enumerate(now.queue, 1):
        short = row.mib + now.held_mib + now.taken_mib - now.budget_mib
        why = (
            "until it is alone"
            if row.exclusive and now.holders
            else f"{short:,} MiB short"
            if short > 0
            else "behind those ahead"
        )
        cells = (str(row.pid), f"{row.mib:,}", _time(row.seconds))
        left = (_step(row), Text(row.experiment)) if wide else (_step(row),)
        table.add_row(
            Text(str(place), "dim"), *left, *map(Text, cells if wide else cells[1:]), Text(why, "dim")
        )
    return table


def _table(left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold dim")
    for name in left:
        table.add_column(name, no_wrap=True, overflow="ellipsis", min_width=1 if not name else 8)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True, min_width=7 if name != "for" else 5)
    return table


def _step(row: Row) -> Text:
    text = Text(row.step or "a script")
    return text.append(" alone", "dim") if row.exclusive else text


def _notes(now: Snapshot) -> Iterator[Text]:
    """What else there is to say, and what to do about it."""
    if now.foreign_mib:
        programs = [Program(o.name, o.pid, o.mib) for o in now.outside]
        kept = now.card.total_mib - now.card.reserved_mib - now.budget_mib
        about = f"; {kept:,} MiB are kept for such programs" if kept and not now.card.virtual else ""
        yield Text.assemble(("■ ", FOREIGN), ", ".join(strangers(programs, now.foreign_mib)), (about, "dim"))
    if now.held_mib > now.budget_mib:
        yield Text(
            f"! {now.held_mib - now.budget_mib:,} MiB more are held than may be granted here: the holders began with another budget",
            "yellow",
        )
    elif (short := now.held_mib + now.taken_mib - now.budget_mib) > 0:
        yield Text(
            f"! other programs came after a grant: with every lease in full use the card would be {short:,} MiB short",
            "yellow",
        )
    for row in (*now.holders, *now.queue):
        name = row.step or f"pid {row.pid}"
        if row.stopped:
            yield Text(f"! {name} is stopped; `kill -CONT {row.pid}` lets it go on", "yellow")
        if row.survivors:
            yield from _left_behind(row, name)
    if now.problem:
        yield Text(
            f"! the card does not say what it uses ({now.problem}); what is shown of other programs is the last known",
            "yellow",
        )


def _left_behind(row: Row, name: str) -> Iterator[Text]:
    """Who keeps a lease that its owner does not have any more."""
    pids = " ".join(str(p.pid) for p in row.survivors)
    what = (
        "has ended, and processes that it left behind keep its"
        if row.ended
        else "is done with its lease, and processes that it forked keep the"
    )
    yield Text(f"! {name} {what} {row.mib:,} MiB; `kill {pids}` frees them:", "red")
    for process in row.survivors:
        yield Text(f"    {process.pid}  {process.command}", "dim", no_wrap=True, overflow="ellipsis")


def line(now: Snapshot) -> str:
    """The same in one line, without what changes by itself."""
    parts = [f"{now.held_mib:,} of {now.budget_mib:,} MiB held, {now.free_mib:,} free"]
    parts += [f"holds: {', '.join(_short(r) for r in now.holders)}"] if now.holders else []
    parts += [f"waits: {', '.join(_short(r) for r in now.queue)}"] if now.queue else []
    programs = [Program(o.name, o.pid, o.mib) for o in now.outside]
    parts += strangers(programs, now.foreign_mib) if now.foreign_mib else []
    return "; ".join(
        [
            *parts,
            *(
                note.plain.removeprefix("! ").removesuffix(":")
                for note in _notes(now)
                if note.plain.startswith("!")
            ),
        ]
    )


def _short(row: Row) -> str:
    use = f", {row.use_mib:,.0f} in use" if row.use_mib is not None else ""
    return f"{row.step or f'pid {row.pid}'} ({row.mib:,} MiB{use})"


def _mib(mib: float | None) -> str:
    return "" if mib is None else f"{mib:,.0f}"


def _time(seconds: float) -> str:
    """`12 s`, `3:07`, `2:03:09`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
