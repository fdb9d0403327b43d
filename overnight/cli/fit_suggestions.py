"""Changes of a step's settings that make it fit, the cheapest first, with the memory it takes then.

A smaller micro-batch changes no result; a lower precision hardly any; recomputing activations costs time;
moments of 8 bits are nearly those of 32; smaller images are another experiment, and stand last. Where none is
enough alone, they are tried together.
"""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import ValidationError

from overnight.artifact import DataSpec
from overnight.config import Params
from overnight.errors import OvernightError
from overnight.memory.prediction import MemoryEstimate, predict
from overnight.memory.search import ScaledPredictions
from overnight.orchestration.dry_run import PlannedStep

SIDES = 32  # images shrink by a multiple of it
SIDE = "size"  # setting of the step above, for the side of its images
Changes = dict[str, MemoryEstimate]  # what to write into the config -> what the step takes then


def changes(
    step: PlannedStep,
    spec: DataSpec,
    scaled: ScaledPredictions,
    budget_mib: float,
    micro: int,
    best: MemoryEstimate | None,
) -> Changes:
    """best: of the largest micro-batch that fits."""
    settings = dict(options(step.params))
    found = Changes()
    if best and best.micro_batch < micro:
        found[f"{step.section}micro_batch={best.micro_batch}"] = best
    for name, value in settings.items():
        found |= _tried(step, spec, scaled, {name: value}, micro)
    if settings and not any(made.fits(budget_mib) for made in found.values()):
        found = _tried(step, spec, scaled, settings, 1 if splittable(scaled) else micro)
    fits = {what: made for what, made in found.items() if made.fits(budget_mib)}
    return fits | _smaller_images(step, spec, scaled, budget_mib, micro)


def options(params: Any) -> Iterator[tuple[str, Any]]:
    """Settings that would take less memory, with their cheaper value."""
    fields = type(params).model_fields if isinstance(params, Params) else {}
    for name in [name for name in ("precision", "checkpointing", "optimizer") if name in fields]:
        now = getattr(params, name)
        allowed = (True, False) if fields[name].annotation is bool else get_args(fields[name].annotation)
        cheaper = {"fp32": "bf16", False: True}.get(now, f"{now}8bit")
        if cheaper in allowed and cheaper != now:
            yield name, cheaper


def _tried(
    step: PlannedStep, spec: DataSpec, scaled: ScaledPredictions, settings: dict[str, Any], micro: int
) -> Changes:
    """Empty when the step does not accept them."""
    assert step.step.recipe is not None
    if splittable(scaled) and micro != scaled.recipe.params.batch:
        settings = {**settings, "micro_batch": micro}
    try:
        params = type(step.params).model_validate({**step.params.model_dump(), **settings})
        recipe = step.step.recipe(params, spec)
    except (ValidationError, OvernightError, ValueError):
        return {}
    found = predict(recipe, micro, constants=scaled.constants)
    what = " ".join(f"{step.section}{name}={str(value).lower()}" for name, value in settings.items())
    return {} if found.unknown else {what: found}


def splittable(scaled: ScaledPredictions) -> bool:
    return bool(scaled.recipe.micro_batches.__name__ == "split_by_sample")


def _smaller_images(
    step: PlannedStep, spec: DataSpec, scaled: ScaledPredictions, budget_mib: float, micro: int
) -> Changes:
    """When the step above has a setting for the side of its images."""
    above = next((a for a in step.above if isinstance(getattr(a.params, SIDE, None), int)), None)
    if above is None or len(spec.shape) != 3 or step.step.recipe is None:
        return {}
    sides = list(range(SIDES, spec.shape[-1], SIDES))
    best = Changes()
    while sides:  # by halves: memory grows with the side
        side = sides[len(sides) // 2]
        recipe = step.step.recipe(step.params, spec.model_copy(update={"shape": (spec.shape[0], side, side)}))
        found = predict(recipe, micro, constants=scaled.constants)
        fits = found.fits(budget_mib)
        best = {f"{above.section}{SIDE}={side}": found} if fits else best
        sides = sides[len(sides) // 2 + 1 :] if fits else sides[: len(sides) // 2]
    return best
