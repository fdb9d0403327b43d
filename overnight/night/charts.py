"""Where the marks of the report's charts stand. Widths are 0 to 1000, which the page stretches to its own."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from overnight.night.facts import NIGHTS, Facts, Trend, clock
from overnight.night.record import Moment, StepRecord

WIDTH = 1000.0
HEIGHT = 100.0
LEAST = 2.0  # width of the shortest bar
MOST_TICKS = 6
GAP_S = 15.0  # between two reports of a card that is used
TICKS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
SPARK = (120.0, 24.0)  # px of a trend


@dataclass(frozen=True)
class Bar:
    """A step in time: it waited for the card, then ran."""

    step: StepRecord
    state: str
    waited_from: float
    ran_from: float
    to: float


@dataclass(frozen=True)
class Tick:
    percent: float
    text: str


@dataclass(frozen=True)
class Axis:
    """Time, from the start of a night to its end."""

    began: float
    ended: float

    def at(self, moment: float) -> float:
        share = (moment - self.began) / max(self.ended - self.began, 1e-9)
        return round(WIDTH * min(max(share, 0.0), 1.0), 1)

    def ticks(self) -> list[Tick]:
        """At round times of the clock."""
        span = max(self.ended - self.began, 1.0)
        every = next((s for s in TICKS_S if span / s <= MOST_TICKS), TICKS_S[-1])
        offset = time.localtime(self.began).tm_gmtoff
        first = -(-(self.began + offset) // every) * every - offset
        moments = [first + n * every for n in range(MOST_TICKS + 1) if first + n * every <= self.ended]
        form = "%H:%M" if every >= 60 else "%H:%M:%S"
        return [Tick(self.at(m) / 10, time.strftime(form, time.localtime(m))) for m in moments]


def axis_of(facts: Facts) -> Axis:
    return Axis(facts.night.started, facts.ended)


def bars(facts: Facts) -> list[Bar]:
    """Of every step that ran, in the order of its start."""
    axis = axis_of(facts)
    found = []
    for step in sorted(facts.night.steps, key=lambda one: one.began or 0.0):
        if step.began is None:
            continue
        begin = axis.at(step.began)
        end = max(axis.at(step.ended or facts.ended), min(begin + LEAST, WIDTH))
        waited = axis.at(step.began - step.wait_s)
        found.append(Bar(step, facts.state(step), waited, min(begin, WIDTH - LEAST), end))
    return found


@dataclass(frozen=True)
class CardChart:
    """Memory of the card over time, as points of polygons; `top` MiB is its upper edge."""

    top: int
    used: str
    other: str
    leased: str
    budget_y: float


def card_chart(facts: Facts) -> CardChart | None:
    """None where the card has no timeline."""
    card = facts.night.card
    timeline = facts.night.timeline
    if card is None or len(timeline) < 2:
        return None
    axis = axis_of(facts)
    top = max(card.total_mib, *(max(m.leased, m.used) for m in timeline))
    return CardChart(
        top=top,
        used=_area(axis, timeline, [m.used for m in timeline], top),
        other=_area(axis, timeline, [m.other for m in timeline], top),
        leased=_line(axis, timeline, [m.leased for m in timeline], top),
        budget_y=_y(card.budget_mib, top),
    )


def _y(amount: float, top: float) -> float:
    return round(HEIGHT * (1 - amount / max(top, 1)), 1)


def _line(axis: Axis, timeline: Sequence[Moment], amounts: Sequence[float], top: float) -> str:
    """An amount is that of the time since the moment before, and nothing where none was for long."""
    gap = max(GAP_S, 3 * (timeline[-1].at - timeline[0].begin) / len(timeline))
    points = list[tuple[float, float]]()
    last = timeline[0].begin
    for moment, amount in zip(timeline, amounts, strict=True):
        begin = last
        if moment.begin - last > gap:
            points += [(last, 0.0), (moment.begin, 0.0)]
            begin = moment.begin
        points += [(begin, amount), (moment.at, amount)]
        last = moment.at
    return " ".join(f"{axis.at(at)},{_y(amount, top)}" for at, amount in points)


def _area(axis: Axis, timeline: Sequence[Moment], amounts: Sequence[float], top: float) -> str:
    line = _line(axis, timeline, amounts, top)
    first = line.partition(",")[0]
    last = line.rpartition(" ")[2].partition(",")[0]
    return f"{first},{HEIGHT} {line} {last},{HEIGHT}"


@dataclass(frozen=True)
class MemoryBar:
    """What a step was granted, took and was predicted to take, context included, of the largest lease."""

    lease: float
    peak: float | None
    predicted: float | None


def memory_bar(step: StepRecord, facts: Facts) -> MemoryBar:
    largest = max(one.lease_mib for one in facts.leased)

    def width(amount: float | None) -> float | None:
        return None if amount is None else round(WIDTH * min(1.0, (amount + step.overhead_mib) / largest), 1)

    lease = round(WIDTH * step.lease_mib / largest, 1)
    return MemoryBar(lease=lease, peak=width(step.peak_mib), predicted=width(step.predicted_mib))


def spark(trend: Trend) -> str:
    """Points of a line through the values that there are, in px."""
    width, height = SPARK
    apart = (width - 6) / max(len(trend.values) - 1, 1)
    return " ".join(
        f"{3 + n * apart:.1f},{height - 3 - (height - 6) * _share(value, trend.low, trend.high):.1f}"
        for n, value in enumerate(trend.values)
        if value is not None
    )


def _share(value: float, low: float, high: float) -> float:
    return 0.5 if high == low else (value - low) / (high - low)


@dataclass(frozen=True)
class NightColumn:
    """A night of the last ones: its steps by state, each with a height of 0 to 100, stacked from below."""

    x: float
    text: str
    parts: list[tuple[str, float, float]]  # state, y, height


def night_columns(facts: Facts) -> list[NightColumn]:
    most = max((len(one.night.steps) for one in facts.nights), default=0) or 1
    first = NIGHTS - len(facts.nights)  # the last one is always at the right edge
    return [_column(one, most, number) for number, one in enumerate(facts.nights, first)]


def _column(facts: Facts, most: int, number: int) -> NightColumn:
    counts = [
        ("done", len(facts.of("done"))),
        ("unchanged", len(facts.unchanged)),
        ("open", len(facts.not_run) + len(facts.of("stopped", "cut off", "running", "queued", "pending"))),
        ("failed", len(facts.failed)),
    ]
    parts = []
    y = HEIGHT
    for state, count in counts:
        height = HEIGHT * count / most
        y -= height
        if count:
            parts.append((state, round(y, 1), round(height, 1)))
    moment = time.strftime("%a %d %b %Y", time.localtime(facts.night.started))
    return NightColumn(10.0 * number + 1, f"{moment}, {clock(facts.night.started)}: {facts.verdict}", parts)


@dataclass(frozen=True)
class Interval:
    """A difference with its interval, 0 to 1000, and where no difference is."""

    low: float
    at: float
    high: float
    zero: float


def interval(low: float, at: float, high: float) -> Interval:
    edge = 1.15 * max(abs(low), abs(high), abs(at), 1e-12)

    def x(value: float) -> float:
        return round(WIDTH * (value + edge) / (2 * edge), 1)

    return Interval(x(low), x(at), x(high), x(0.0))
