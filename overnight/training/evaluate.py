"""The evaluation of a model: in eval mode, without gradients, in slices as small as the memory asks for."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, SupportsFloat, TypeVar

import torch
from torch import nn

from overnight.errors import BadInput, DoesNotFit
from overnight.gpu.out_of_memory import is_out_of_memory
from overnight.run import Run
from overnight.training.accumulate import too_large
from overnight.training.out_of_memory import KINDS, Slices, brief, evaluated
from overnight.training.precision import Precision
from overnight.training.state import State

if TYPE_CHECKING:
    from overnight.training.recipe import Recipe, Scores

Data = TypeVar("Data")


def judge(recipe: "Recipe[Data]", state: State[Data], data: Data, run: Run) -> "Scores":
    """The scores on "val"; what out of memory changed is told. Raises DoesNotFit, BadInput."""
    slices = state.plan.slices
    before = slices.faults
    try:
        return numbers(evaluate(recipe, state.judged, data, "val", state.precision, slices))
    except KINDS as error:
        if not is_out_of_memory(error):
            raise
        reason = brief(error)
    finally:
        run.out_of_memory += slices.faults - before
        if slices.faults > before:
            run.note(
                f"out of memory in the evaluation, {_times(slices.faults - before)}: done again{_in_slices(slices.limit)}"
            )
    raise DoesNotFit("evaluation: " + too_large(slices.limit, slices.used, run.budget_mib, reason))


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _in_slices(limit: int) -> str:
    return f" in slices of {limit}" if limit else ", with all samples at once as before"


def numbers(scores: Any) -> "Scores":
    """Scores as plain floats, which a checkpoint can hold; raises BadInput."""
    expected = 'expected is a dict of numbers by name, such as {"accuracy": 0.9}'
    if not isinstance(scores, Mapping):
        raise BadInput(f"evaluate of the recipe returned {type(scores).__name__}: {expected}")
    for name, value in scores.items():
        if not isinstance(name, str):
            raise BadInput(f"evaluate of the recipe calls a score {name!r}: {expected}")
        if not isinstance(value, SupportsFloat) or getattr(value, "shape", ()) != ():
            shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
            raise BadInput(
                f"evaluate of the recipe returned {type(value).__name__}{shape} as {name}: {expected}"
            )
    return {name: float(value) for name, value in scores.items()}


def evaluate(
    recipe: "Recipe[Data]",
    model: nn.Module,
    data: Data,
    split: str,
    precision: Precision | None = None,
    slices: Slices | None = None,
) -> "Scores":
    """The recipe's scores of a split, in eval mode and without gradients, in slices as small as the memory asks for."""
    device = next(model.parameters()).device
    cast = (precision or Precision(recipe.params.precision, device)).cast

    def score() -> "Scores":
        with torch.inference_mode(), cast():
            return recipe.evaluate(model, data, split)

    was = model.training
    model.eval()
    scores = evaluated(score, slices or Slices())
    model.train(was)
    return scores
