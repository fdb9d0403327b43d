"""The forecast of a run: when it ends, and which parts of a night are left out so that it ends in time."""

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from overnight.config import Experiment
from overnight.errors import FAILURES, OvernightError
from overnight.gpu.card import Card
from overnight.night import forecast, record
from overnight.night.forecast import Job, Known, Machine, Plan
from overnight.orchestration import seeds
from overnight.orchestration.checks import asked_fresh
from overnight.orchestration.dry_run import DryRun, PlannedStep
from overnight.orchestration.launcher import STOP_GRACE_S, places
from overnight.orchestration.terminal import StepRow
from overnight.step import Pipeline, building

UNCHANGED = Known(seconds=2.0)  # a step that is skipped: its run in MLflow, and its state in Prefect
OPEN = ("pending", "queued")


@dataclass(eq=False)
class Forecast:
    """until: when the run is to be done; expected: when it was expected to end at its start (unix times)."""

    plan: Plan = field(default_factory=Plan)
    machine: Machine = field(default_factory=lambda: Machine(0, 1))
    until: float | None = None
    expected: float | None = None
    steps: tuple[str, ...] = ()  # of the parts that are left out

    @property
    def left_out(self) -> frozenset[str]:
        return frozenset(self.plan.left_out)

    def lines(self) -> list[str]:
        """For people, at the start."""
        late = self.plan.left_out.items()
        found = [f"left out: {name}, which would end at {_clock(end)}" for name, end in late]
        if self.until is not None:
            found.insert(
                0, f"to be done by {_clock(self.until)}; what runs then is stopped at its checkpoint"
            )
        if self.expected is not None and self.plan.unknown:
            found.append(f"not counted, since they never ran here: {', '.join(self.plan.unknown)}")
        return found

    def now(self, rows: Iterable[StepRow]) -> str:
        """`expected to end at 05:40`, as the rows are now; empty where nothing is known."""
        if self.expected is None:
            return ""
        states = {row.label: (row.began_at, row.state not in OPEN and row.state != "running") for row in rows}
        jobs = forecast.updated(self.plan.jobs, states)
        now = time.time()
        end = forecast.expected_end(jobs, self.machine, now)
        return f"expected to end at {_clock(end)}" if end > now else ""

    def reason_to_stop(self) -> str:
        """Empty before its time has come; the grace of a stop is within it."""
        if self.until is None or time.time() < self.until - STOP_GRACE_S:
            return ""
        return f"stopped, to be done by {_clock(self.until)}: the next run goes on"

    def seconds(self, label: str) -> float | None:
        """How long a step is expected to run."""
        known = next((job.known for job in self.plan.jobs if job.label == label), None)
        return known.seconds if known else None

    def in_words(self) -> list[str]:
        """What was left out, for the sentence at the end."""
        return [f"left out, to be done by {_clock(self.until or 0)}: {', '.join(self.plan.left_out)}"] * bool(
            self.plan.left_out
        )


def make(pipeline: Pipeline[Any, Any], experiment: Experiment, card: Card, until: float | None) -> Forecast:
    """By the nights of this experiment that are on this machine; a flow that cannot be laid out has none."""
    machine = Machine(card.budget_mib, places())
    known = forecast.learned(night for _name, night in record.nights(str(experiment.name)))
    first = dict[str, PlannedStep]()

    def outline(left_out: frozenset[str]) -> list[Job]:
        jobs = list[Job]()
        for seed in seeds.seeds_of(experiment):
            before = seeds.prefix(seed) if experiment.seeds > 1 else ""
            steps = _steps(pipeline, experiment.model_copy(update={"seed": seed}), left_out)
            if not left_out:
                first.update({before + step.label: step for step in steps})
            jobs += [_job(experiment, step, before, known, first) for step in steps]
        return jobs

    with suppress(OvernightError, *FAILURES):
        now = time.time()
        found = forecast.plan(outline, machine, now, until)
        end = forecast.expected_end(found.jobs, machine, now)
        steps = tuple(
            label for label, step in first.items() if step.label.partition("/")[0] in found.left_out
        )
        return Forecast(found, machine, until, end if end > now else None, steps)
    return Forecast(until=until)


def _steps(
    pipeline: Pipeline[Any, Any], experiment: Experiment, left_out: frozenset[str]
) -> list[PlannedStep]:
    dry = DryRun(experiment)
    dry.left_out = left_out
    with building(dry):
        pipeline.body(experiment)
    return dry.steps


def _job(
    experiment: Experiment,
    step: PlannedStep,
    before: str,
    known: dict[str, Known],
    first: dict[str, PlannedStep],
) -> Job:
    """before: how its label begins. A step that two parts need is known by the label of the first of them."""
    same = [label for label, one in first.items() if _is_same(one, step) and label.startswith(before)]
    labels = [before + step.label, *same]
    part = step.label.partition("/")[0] if "/" in step.label else ""
    above = tuple(before + one.label for one in step.above)
    is_fresh = not step.step.reproducible or asked_fresh(experiment, step.label, step.step.name)
    is_unchanged = step.artifact is not None and not is_fresh
    found = UNCHANGED if is_unchanged else next((known[label] for label in labels if label in known), None)
    return Job(labels[0], part, above, found)


def _is_same(one: PlannedStep, other: PlannedStep) -> bool:
    known = bool(one.given) and None not in one.given
    return known and (one.step, one.params, one.given) == (other.step, other.params, other.given)


def _clock(at: float) -> str:
    today = time.localtime()[:3] == time.localtime(at)[:3]
    return time.strftime("%H:%M" if today else "%a %H:%M", time.localtime(at))
