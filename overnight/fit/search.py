"""What would fit: the largest micro-batch, and the cheapest change that makes a step fit."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from overnight.fit.predict import Prediction

TRIES = 6  # traces after the first two
Peak = Callable[[int], Prediction]


@dataclass(frozen=True)
class Change:
    """Something to write into the config, and what the step takes then."""

    what: str
    prediction: Prediction


def largest(peak: Peak, budget_mib: float, most: int, start: int) -> Prediction | None:
    """The prediction of the largest micro-batch up to `most` that fits, None when not even one sample does.

    Memory grows nearly evenly with the samples, so a line through two traces says where to look, and every answer is traced itself.
    """
    looked = list[Prediction]()

    def look(n: int) -> None:
        looked.append(peak(n))

    look(min(start, most))
    if looked[0].unknown:
        return None
    look(max(1, looked[0].micro_batch // 2) if looked[0].micro_batch > 1 else min(2, most))
    for _ in range(TRIES):
        fits = [p.micro_batch for p in looked if p.verdict(budget_mib) == "fits"]
        low, high = max(fits, default=0), min((p.micro_batch for p in looked if p.micro_batch not in fits), default=most + 1)
        if high - low <= max(1, low // 64):
            break
        look(min(max(_line(looked[-2], looked[-1], budget_mib), low + 1), high - 1))
    return max((p for p in looked if p.verdict(budget_mib) == "fits"), key=lambda p: p.micro_batch, default=None)


def _line(one: Prediction, other: Prediction, budget_mib: float) -> int:
    """Where the line through two predictions meets the budget."""
    if one.micro_batch == other.micro_batch:
        return one.micro_batch
    slope = (one.needed_mib - other.needed_mib) / (one.micro_batch - other.micro_batch)
    return 2**31 if slope <= 0 else max(1, int(other.micro_batch + (budget_mib - other.needed_mib) / slope))


def changes(recipe: Any, peak: Callable[[Any, int], Prediction], budget_mib: float, micro: int) -> list[Change]:
    """What would make it fit, the cheapest first: a smaller micro-batch changes no result, a lower precision hardly any."""
    found = list[Change]()
    fitting = largest(lambda n: peak(recipe, n), budget_mib, micro, micro)
    if fitting is not None:
        best = max(n for n in range(1, fitting.micro_batch + 1) if recipe.params.batch % n == 0)
        found.append(Change(f"micro_batch={best}", fitting if best == fitting.micro_batch else peak(recipe, best)))
    if getattr(recipe.params, "precision", None) == "fp32":
        lower = replace(recipe, params=recipe.params.model_copy(update={"precision": "bf16"}))
        found.append(Change("precision=bf16", peak(lower, micro)))
    return [change for change in found if change.prediction.verdict(budget_mib) == "fits"]
