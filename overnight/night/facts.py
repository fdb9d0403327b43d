"""What a night's record and those before it say, in the words and figures of its report."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median
from typing import Any

from overnight.night.record import NightRecord, StepRecord

NIGHTS = 30  # of the trends
MOST_TO_DO = 5
MOST_TRENDS = 12
ENOUGH = 5  # earlier values, to say that a score is out of line
LONG_WAIT_S = 600.0
MUCH_MIB = 1024  # of other programs, to name them
NOTHING_FOUND = {"name": "", "champion": 0, "promotes": False, "reason": ""}
UNDECIDED = ("not judged", "not registered")  # how the reason begins where the gate could not decide
RAN = ("done", "failed", "stopped", "cut off")
LOWER_IS_BETTER = ("loss", "error", "rmse", "mae", "mse", "perplexity", "brier", "ece", "nll")


@dataclass(frozen=True)
class Trend:
    """A score over the nights, the oldest first; None: not measured."""

    label: str
    score: str
    values: list[float | None]

    @property
    def last(self) -> float | None:
        return self.values[-1]

    @property
    def before(self) -> list[float]:
        return [value for value in self.values[:-1] if value is not None]

    @property
    def low(self) -> float:
        return min(value for value in self.values if value is not None)

    @property
    def high(self) -> float:
        return max(value for value in self.values if value is not None)

    @property
    def lower_is_better(self) -> bool:
        return any(word in self.score.lower() for word in LOWER_IS_BETTER)

    @property
    def change(self) -> float | None:
        """Against the night before that has it."""
        return self.last - self.before[-1] if self.last is not None and self.before else None

    @property
    def is_out_of_line(self) -> bool:
        """Whether the last value is worse than all before, by more than these differ among themselves."""
        if self.last is None or len(self.before) < ENOUGH:
            return False
        sign = -1 if self.lower_is_better else 1
        before = [sign * value for value in self.before]
        spread = max(before) - min(before)
        return sign * self.last < min(before) - max(spread, 0.01 * abs(min(before)))


@dataclass
class Facts:
    """earlier: the nights before of the same experiment, the oldest first."""

    night: NightRecord
    earlier: Sequence[NightRecord] = ()
    _states: dict[str, str] = field(default_factory=dict)

    @cached_property
    def outcome(self) -> str:
        return "killed" if self.night.killed else str(self.night.outcome)

    @cached_property
    def ended(self) -> float:
        """Unix time; of a night that was killed or still runs, when it was last seen."""
        return self.night.ended or max(self.night.seen, self.night.started)

    @property
    def duration_s(self) -> float:
        return self.ended - self.night.started

    def state(self, step: StepRecord) -> str:
        is_open = step.state in ("running", "queued", "pending")
        if not is_open or self.outcome == "running":
            return step.state
        return "cut off" if step.state == "running" else "not run"

    def of(self, *states: str) -> list[StepRecord]:
        return [step for step in self.night.steps if self.state(step) in states]

    @cached_property
    def ran(self) -> list[StepRecord]:
        return self.of(*RAN)

    @cached_property
    def unchanged(self) -> list[StepRecord]:
        return self.of("unchanged")

    @cached_property
    def failed(self) -> list[StepRecord]:
        return self.of("failed")

    @cached_property
    def not_run(self) -> list[StepRecord]:
        known = {id(step) for step in [*self.ran, *self.unchanged, *self.of("running", "queued", "pending")]}
        return [step for step in self.night.steps if id(step) not in known]

    @cached_property
    def verdict(self) -> str:
        """The night in a sentence."""
        counted = [
            (len(self.of("done")), "done"),
            (len(self.unchanged), "unchanged"),
            (len(self.failed), "failed"),
            (len(self.of("stopped", "cut off")), "stopped"),
            (len(self.of("running", "queued", "pending")), "still to come"),
            (len(self.not_run), "not run"),
        ]
        found = [(count, word) for count, word in counted if count]
        noun = "step" if found and found[0][0] == 1 else "steps"
        texts = [f"{count} {word}" for count, word in found]
        texts[:1] = [f"{found[0][0]} {noun} {found[0][1]}"] if found else ["no steps"]
        parts = ", ".join(texts)
        begins = {
            "killed": f"Killed at {clock(self.ended)}: ",
            "stopped": f"Stopped at {clock(self.ended)}: ",
            "running": "Still running: ",
        }
        begin = begins.get(self.outcome, "")
        return f"{begin}{parts if begin else parts.capitalize()}."

    # ------------------------------------------------------------------------------------- what it took

    @property
    def saved_s(self) -> float:
        """Time on the card that unchanged steps took when they ran."""
        return sum(step.saved_s for step in self.unchanged if step.gpu)

    @property
    def saved_in_all_s(self) -> float:
        return sum(step.saved_s for step in self.unchanged)

    @property
    def card_s(self) -> float:
        return sum(step.run_s for step in self.ran if step.gpu)

    @property
    def cost(self) -> float | None:
        if self.night.energy_wh is None or self.night.price_per_kwh is None:
            return None
        return self.night.energy_wh / 1000 * self.night.price_per_kwh

    @cached_property
    def leased(self) -> list[StepRecord]:
        return [step for step in self.ran if step.lease_mib]

    @cached_property
    def over_lease(self) -> list[StepRecord]:
        """Steps that took more than they were granted, which only programs of the user's own can."""
        return [step for step in self.leased if (step.peak_mib or 0) + step.overhead_mib > step.lease_mib]

    @cached_property
    def survived(self) -> list[StepRecord]:
        """Steps that met out of memory and came to their end."""
        return [step for step in self.of("done") if step.out_of_memory]

    @cached_property
    def other_mib(self) -> int:
        """The most that programs without a lease had of the card."""
        measured = [step.other_processes_peak_mib or 0 for step in self.ran]
        return int(max([*measured, *(moment.other for moment in self.night.timeline)], default=0))

    @property
    def judged(self) -> list[tuple[StepRecord, dict[str, Any]]]:
        """Steps whose model the gate has looked at, with what it says."""
        return [(step, {**NOTHING_FOUND, **step.promotion}) for step in self.night.steps if step.promotion]

    @property
    def promoted(self) -> list[StepRecord]:
        """Those that beat a champion."""
        return [step for step, found in self.judged if found["promotes"] and found["champion"]]

    @property
    def has_forecast(self) -> bool:
        return any(step.forecast_s for step in self.ran)

    # ------------------------------------------------------------------------------------------- trends

    @cached_property
    def nights(self) -> list["Facts"]:
        """The last nights with this one, the oldest first."""
        return [*(Facts(night) for night in self.earlier[-(NIGHTS - 1) :]), self]

    @cached_property
    def trends(self) -> list[Trend]:
        """The main score of each step that has one in two nights at least."""
        found = []
        for step in self.night.steps:
            name = main_score(step)
            values = [_score_of(one.night, step.label, name) for one in self.nights] if name else []
            if sum(value is not None for value in values) > 1:
                found.append(Trend(step.label, name, values))
        return found[:MOST_TRENDS]

    # ------------------------------------------------------------------------------------- what to do

    @cached_property
    def to_do(self) -> list[str]:
        """At most five lines, the most urgent first."""
        lines = list(self._to_do())
        if len(lines) > MOST_TO_DO:
            rest = len(lines) - MOST_TO_DO + 1
            lines = [*lines[: MOST_TO_DO - 1], f"{rest} more, further down this page."]
        return lines

    def _to_do(self) -> Iterator[str]:
        name = self.night.config.removeprefix("configs/").removesuffix(".yaml")
        if self.outcome in ("killed", "stopped"):
            why = "was killed" if self.outcome == "killed" else "was stopped"
            yield f"The run {why}: `overnight run {name}` goes on where it was."
        for step in self.failed:
            yield _advice(step)
        for step, found in self.judged:
            if str(found["reason"]).startswith(UNDECIDED):
                yield f"{step.label}: its model is {cut(found['reason'], 300)}"
        if self.night.left_out:
            names = ", ".join(self.night.left_out[:3])
            count = len(self.night.left_out)
            yield f"There was no time for {count} steps ({names}): move done_by, or leave some out."
        waits = sum(step.wait_s for step in self.ran)
        if self.other_mib >= MUCH_MIB and waits >= LONG_WAIT_S:
            names = ", ".join(self.night.other_programs[:3]) or "other programs"
            yield (
                f"Steps waited {duration(waits)} while {names} had up to {mib(self.other_mib)} of the card: "
                "close them at night."
            )
        for trend in self.trends:
            is_new = any(step.label == trend.label for step in self.of("done"))
            if is_new and trend.is_out_of_line and trend.last is not None:
                usual = median(trend.before)
                yield (
                    f"{trend.label}: {short(trend.score)} is {figure(trend.last)}, and was about "
                    f"{figure(usual)} before: look at what changed."
                )


def _advice(step: StepRecord) -> str:
    first = step.reason.strip().partition("\n")[0]
    if step.failure is None:
        return f"{step.label} failed: {cut(first, 160)}"
    return f"{step.label} failed ({step.failure.kind}): {step.failure.fix or cut(first, 160)}"


def _score_of(night: NightRecord, label: str, score: str) -> float | None:
    return next((step.scores.get(score) for step in night.steps if step.label == label), None)


def main_score(step: StepRecord) -> str:
    """Its first test score, else its first one of validation; empty when it has none."""
    for kind in ("test/", "val/"):
        names = [name for name in step.scores if name.startswith(kind)]
        if names:
            return names[0]
    return ""


def shown_scores(step: StepRecord, most: int = 4) -> list[tuple[str, float | None]]:
    """(name, value) of the scores that its row shows."""
    kind = main_score(step).partition("/")[0]
    names = [name for name in step.scores if kind and name.startswith(f"{kind}/")]
    return [(name if kind != "test" else short(name), step.scores[name]) for name in names[:most]]


# ---------------------------------------------------------------------------------------------- words


def short(score: str) -> str:
    return score.removeprefix("test/")


def figure(value: float | None) -> str:
    if value is None:
        return "not a number"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def clock(at: float) -> str:
    return time.strftime("%H:%M", time.localtime(at))


def day(at: float) -> str:
    """As 30 Nov."""
    moment = time.localtime(at)
    return f"{moment.tm_mday} {time.strftime('%b', moment)}"


def long_day(at: float) -> str:
    moment = time.localtime(at)
    return f"{time.strftime('%A', moment)}, {moment.tm_mday} {time.strftime('%B %Y', moment)}"


def duration(seconds: float) -> str:
    """As 12.4 s, 3 min 20 s, 1 h 42 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes < 10 and rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def hours(amount: float) -> str:
    if amount < 1:
        return f"{amount:.2f}"
    return f"{amount:.1f}" if amount < 100 else f"{amount:.0f}"


def mib(amount: float) -> str:
    return f"{amount / 1024:.1f} GiB" if amount >= 1024 else f"{amount:.0f} MiB"


def energy(watt_hours: float) -> str:
    return f"{watt_hours / 1000:.2f} kWh" if watt_hours >= 100 else f"{watt_hours:.1f} Wh"


def cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
