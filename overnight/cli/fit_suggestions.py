"""Changes of a step's settings that make it fit, the cheapest first, with the memory it takes then.

A smaller micro-batch changes no result; a lower precision hardly any; recomputing activations costs time;
moments of 8 bits are nearly those of 32; smaller images are another experiment, and stand last. Where none is
enough alone, they are tried together.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from overnight.artifact import DataSpec
from overnight.config import Params
from overnight.errors import OvernightError
from overnight.memory.prediction import MemoryEstimate
from overnight.memory.search import ScaledPredictions
from overnight.orchestration.dry_run import PlannedStep

SIDES = 32  # images shrink by a multiple of it
FIELDS = ("size",)  # settings of the step above, for the side of its images


@dataclass(frozen=True)
class Change:
    """A change of the config, and what the step takes then."""

    what: str
    prediction: MemoryEstimate


def changes(
    step: PlannedStep,
    spec: DataSpec,
    scaled: ScaledPredictions,
    budget_mib: float,
    micro: int,
    fitting: MemoryEstimate | None,
) -> list[Change]:
    """Changes that make it fit. fitting: prediction of the largest micro-batch that fits."""
    found = list[Change]()
    if fitting and fitting.micro_batch < micro:
        found.append(Change(f"{step.section}micro_batch={fitting.micro_batch}", fitting))
    settings = dict[str, Any]()
    tried = list[Change]()
    for name, value in options(step.params):
        settings[name] = value
        tried += _tried(step, spec, scaled, {name: value}, micro)
    fits = [c for c in [*found, *tried] if c.prediction.fits(budget_mib)]
    if not fits and settings:
        smallest = micro if not splittable(scaled) else 1
        together = _tried(step, spec, scaled, settings, smallest)
        fits = [c for c in together if c.prediction.fits(budget_mib)]
    smaller = _smaller_images(step, spec, scaled, budget_mib, micro)
    return fits + ([smaller] if smaller else [])


def options(params: Any) -> Iterator[tuple[str, Any]]:
    """Settings of the step that would take less memory, with their cheaper value."""
    fields = type(params).model_fields if isinstance(params, Params) else {}
    for name, cheaper in (("precision", _lower), ("checkpointing", _on), ("optimizer", _eight_bits)):
        value = cheaper(getattr(params, name), fields[name].annotation) if name in fields else None
        if value is not None:
            yield name, value


def _lower(now: Any, kind: Any) -> Any:
    return "bf16" if now == "fp32" and "bf16" in get_args(kind) else None


def _on(now: Any, kind: Any) -> Any:
    return True if now is False and kind is bool else None


def _eight_bits(now: Any, kind: Any) -> Any:
    """The 8-bit variant of the optimizer."""
    allowed = get_args(kind) if get_origin(kind) is Literal else ()
    return next(
        (value for value in allowed if str(value).endswith("8bit") and str(value).startswith(str(now))), None
    )


def _tried(
    step: PlannedStep, spec: DataSpec, scaled: ScaledPredictions, settings: dict[str, Any], micro: int
) -> list[Change]:
    """The step with those settings; empty when it does not accept them."""
    assert step.step.recipe is not None
    if splittable(scaled) and micro != scaled.recipe.params.batch:
        settings = {**settings, "micro_batch": micro}
    try:
        params = type(step.params).model_validate({**step.params.model_dump(), **settings})
        recipe = step.step.recipe(params, spec)
    except (ValidationError, OvernightError, ValueError):
        return []
    found = ScaledPredictions(recipe, scaled.target, scaled.data_mib, scaled.constants).exact(micro)
    what = " ".join(f"{step.section}{name}={str(value).lower()}" for name, value in settings.items())
    return [] if found.unknown else [Change(what, found)]


def splittable(scaled: ScaledPredictions) -> bool:
    """Whether the batch can be computed in micro-batches of samples."""
    return bool(scaled.recipe.micro_batches.__name__ == "split_by_sample")


def _smaller_images(
    step: PlannedStep, spec: DataSpec, scaled: ScaledPredictions, budget_mib: float, micro: int
) -> Change | None:
    """The largest smaller side of its images that fits, when the step above has a setting for it."""
    above = next(
        (a for a in step.above if any(isinstance(getattr(a.params, name, None), int) for name in FIELDS)),
        None,
    )
    if above is None or len(spec.shape) != 3 or spec.shape[-1] <= SIDES or step.step.recipe is None:
        return None
    sides = list(range(SIDES, spec.shape[-1], SIDES))
    best = None
    while sides:  # by halves: memory grows with the side
        side = sides[len(sides) // 2]
        recipe = step.step.recipe(step.params, spec.model_copy(update={"shape": (spec.shape[0], side, side)}))
        found = ScaledPredictions(recipe, scaled.target, scaled.data_mib, scaled.constants).exact(micro)
        fits = found.fits(budget_mib)
        best = Change(f"{above.section}{FIELDS[0]}={side}", found) if fits else best
        sides = sides[len(sides) // 2 + 1 :] if fits else sides[: len(sides) // 2]
    return best
