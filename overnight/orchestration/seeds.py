"""Several seeds of one config: which ones, and how far each score varies with them."""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from overnight.config import Experiment

LEVEL = 0.95  # of both intervals
PREFIX = re.compile(r"^seed-\d+/")


class Spread(NamedTuple):
    """A score over n seeds. low, high: the interval of its mean, by Student's t."""

    n: int
    mean: float
    sd: float
    low: float
    high: float

    def one_more(self) -> tuple[float, float]:
        """The prediction interval: where the score of another seed lies."""
        half = (self.high - self.mean) * math.sqrt(self.n + 1)
        return self.mean - half, self.mean + half

    def __str__(self) -> str:
        return f"{self.mean:.4g} ({self.low:.4g} to {self.high:.4g}, {LEVEL:.0%} of {self.n} seeds)"


def seeds_of(experiment: Experiment) -> list[int]:
    return [(experiment.seed + number) % 2**32 for number in range(experiment.seeds)]


def prefix(seed: int) -> str:
    """Of the labels of steps when there are several seeds."""
    return f"seed-{seed}/"


def spread(values: Sequence[float]) -> Spread:
    """Of at least two values."""
    from scipy.stats import t

    n = len(values)
    mean = statistics.fmean(values)
    sd = statistics.stdev(values)
    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * sd / math.sqrt(n)
    return Spread(n, mean, sd, mean - half, mean + half)


def spreads(scores: Mapping[str, float]) -> dict[str, Spread]:
    """Scores called seed-N/STEP/METRIC, by STEP/METRIC; those of one seed alone are left out."""
    found = dict[str, list[float]]()
    for name, value in scores.items():
        if PREFIX.match(name) and math.isfinite(value):
            found.setdefault(PREFIX.sub("", name), []).append(value)
    return {name: spread(values) for name, values in found.items() if len(values) > 1}


def as_metrics(found: Mapping[str, Spread]) -> dict[str, float]:
    """For MLflow: the means under the names of the scores, and the rest beside them."""
    values = dict[str, float]()
    for name, one in found.items():
        more = {"sd": one.sd, "low": one.low, "high": one.high}
        values |= {name: one.mean, **{f"{name}_{kind}": value for kind, value in more.items()}}
    return values


def in_words(found: Mapping[str, Spread]) -> list[str]:
    return [f"{name}: {one}" for name, one in found.items()]
