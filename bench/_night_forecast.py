"""How far the forecast of a night is off: recorded durations, with 10 % noise on every step of every night.

`python -m bench.night forecast`. The nights of recorded_nights.json are laid out step by step, as they ran;
every step of every night gets its own noise (normal, of 10 % of its duration). After 3 such nights the next
one is forecast from their records alone, by the functions that plan a night, and compared with what it then
takes. Peers: the duration of the whole night before, and the mean of the three. What a night takes is laid
out by the same rules as the forecast: how far these are from a real run is not measured here.
"""

import json
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from overnight.files import atomic_write
from overnight.night.forecast import START_S, Job, Known, Machine, expected_end, learned
from overnight.night.record import NightRecord, StepRecord

FOLDER = Path(__file__).resolve().parent
NOISE = 0.10
AFTER = 3
TIMES = 2000
BAR = 0.15  # p90 of the error of a night's duration
LEAST_S = 0.1


def laid_out(jobs: Sequence[Job], machine: Machine, seconds: dict[str, float]) -> float:
    """How long the night takes when its steps take so long."""
    known = [
        Job(
            job.label,
            job.part,
            job.after,
            Known(seconds[job.label] + START_S, job.known.mib if job.known else 0),
        )
        for job in jobs
    ]
    return expected_end(known, machine, 0.0)


def recorded(night: NightRecord, seconds: dict[str, float]) -> NightRecord:
    """The record of a night with other durations."""
    steps = [
        StepRecord(
            **{**step.model_dump(), "began": 0.0, "ended": seconds[step.label], "wait_s": 0.0, "run_s": 0.0}
        )
        for step in night.steps
    ]
    return night.model_copy(update={"steps": tuple(steps)})


def errors(
    night: NightRecord, above: dict[str, list[str]], machine: Machine, seed: int
) -> dict[str, list[float]]:
    """Of TIMES nights, each after 3 others: the relative error of the forecast and of its peers."""
    dice = random.Random(seed)
    took = {step.label: (step.ended or 0.0) - (step.began or 0.0) - step.wait_s for step in night.steps}
    mib = {step.label: step.lease_mib for step in night.steps}
    jobs = [Job(label, "", tuple(above[label]), Known(s, mib[label])) for label, s in took.items()]
    found: dict[str, list[float]] = {"forecast": [], "the night before": [], "mean of the nights": []}
    for _ in range(TIMES):
        nights = [
            {label: max(LEAST_S, s * dice.gauss(1, NOISE)) for label, s in took.items()}
            for _ in range(AFTER + 1)
        ]
        wholes = [laid_out(jobs, machine, seconds) for seconds in nights]
        known = learned(recorded(night, seconds) for seconds in nights[:AFTER])
        expected = expected_end([Job(j.label, "", j.after, known[j.label]) for j in jobs], machine, 0.0)
        guesses = (expected, wholes[AFTER - 1], statistics.fmean(wholes[:AFTER]))
        for name, guess in zip(found, guesses, strict=True):
            found[name].append(abs(guess / wholes[AFTER] - 1))
    return found


def p90(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=10)[-1]


def main() -> int:
    rows = list[dict[str, Any]]()
    print(f"{TIMES} nights each, forecast after {AFTER} with {NOISE:.0%} noise on every step\n")
    print(f"{'night':28} steps  duration  p50     p90     peers, p90: the night before, mean of the nights")
    for name, given in json.loads((FOLDER / "recorded_nights.json").read_text()).items():
        night = NightRecord.model_validate(given["night"])
        machine = Machine(given["budget_mib"], given["places"])
        found = errors(night, given["above"], machine, seed=0)
        row = {
            "night": name,
            "steps": len(night.steps),
            **{key: p90(values) for key, values in found.items()},
        }
        row["seconds"] = laid_out(
            [Job(s.label, "", tuple(given["above"][s.label]), Known(0, s.lease_mib)) for s in night.steps],
            machine,
            {s.label: (s.ended or 0.0) - (s.began or 0.0) - s.wait_s for s in night.steps},
        )
        rows.append(row)
        median = statistics.median(found["forecast"])
        peers = f"{row['the night before']:6.1%}, {row['mean of the nights']:6.1%}"
        print(
            f"{name:28} {row['steps']:5}  {row['seconds']:6.0f} s  {median:6.1%}  {row['forecast']:6.1%}"
            f"  {peers}"
        )
    worst = max(row["forecast"] for row in rows)
    held = worst <= BAR
    print(f"\nbar: p90 <= {BAR:.0%} of a night's duration: {worst:.1%}, {'held' if held else 'MISSED'}")
    out = FOLDER / "out" / "night_forecast.json"
    out.parent.mkdir(exist_ok=True)
    atomic_write(out, json.dumps({"noise": NOISE, "after": AFTER, "times": TIMES, "rows": rows}, indent=1))
    return 0 if held else 1
