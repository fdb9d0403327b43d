"""Evaluation: in eval mode, without gradients, in batches that shrink when memory runs out."""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any, SupportsFloat, TypeVar

import torch
from torch import Tensor, nn

from overnight.errors import BadInput, DoesNotFit, one_line
from overnight.gpu.out_of_memory import is_out_of_memory, is_paging
from overnight.run import Run
from overnight.training.acceleration import Precision
from overnight.training.out_of_memory import KINDS, does_not_fit, free
from overnight.training.plan import EvalBatches, RollbackToCheckpoint
from overnight.training.recipe import Recipe, Scores
from overnight.training.state import TrainState

Data = TypeVar("Data")
Result = TypeVar("Result")
EVAL_BATCH = 512  # samples at once, unless the method says otherwise
EXPECTED = 'expected is a dict of numbers by name, such as {"accuracy": 0.9}'
_ACTIVE: ContextVar[EvalBatches | None] = ContextVar("eval_batches", default=None)


def predict_in_batches(
    function: Callable[[Tensor], Tensor], inputs: Tensor, device: torch.device, size: int
) -> list[Tensor]:
    """Outputs on the host, at most `size` inputs at a time; out of memory halves the size.

    Within an evaluation, all of the evaluation is then done again, and later ones keep the smaller size.
    """
    eval_batches = _ACTIVE.get()
    if eval_batches is None:
        again = partial(predict_in_batches, function, inputs, device, size)
        return retry_smaller(again, EvalBatches())
    step = eval_batches.size = min(size, eval_batches.limit or size)
    starts = range(0, len(inputs), step)
    return [function(inputs[start : start + step].to(device)).cpu() for start in starts]


def predict_all(
    predict: Callable[[Tensor], Tensor], inputs: Tensor, device: torch.device, size: int = EVAL_BATCH
) -> Tensor:
    return torch.cat(predict_in_batches(lambda part: predict(part).float(), inputs, device, size))


def retry_smaller(score: Callable[[], Result], eval_batches: EvalBatches) -> Result:
    """Until the batches fit. Raises the error when one sample, or all unsplit, fails twice."""
    tried = False
    while True:
        token = _ACTIVE.set(eval_batches)
        try:
            return score()
        except KINDS as error:
            if not is_out_of_memory(error) or tried:
                raise
        finally:
            _ACTIVE.reset(token)
        eval_batches.faults += 1
        tried = eval_batches.size <= 1
        if eval_batches.size:
            eval_batches.limit = max(1, eval_batches.size // 2)
        free()


def evaluate(
    recipe: Recipe[Data],
    model: nn.Module,
    data: Data,
    split: str,
    precision: Precision | None = None,
    eval_batches: EvalBatches | None = None,
) -> Scores:
    device = next(model.parameters()).device
    cast = (precision or Precision(recipe.params.precision, device)).cast

    def score() -> Scores:
        with torch.inference_mode(), cast():
            return recipe.evaluate(model, data, split)

    was = model.training
    model.eval()
    scores = retry_smaller(score, eval_batches or EvalBatches())
    model.train(was)
    return scores


def validate(run: Run, state: TrainState[Any]) -> Scores:
    """The scores on "val" as plain floats. Raises DoesNotFit, BadInput, RollbackToCheckpoint."""
    eval_batches = state.plan.eval_batches
    before = eval_batches.faults
    try:
        found = evaluate(state.recipe, state.model, state.data, "val", state.precision, eval_batches)
        return plain_scores(found)
    except KINDS as error:
        if is_paging(error) and eval_batches.size > 1:
            eval_batches.limit = eval_batches.size // 2
            raise RollbackToCheckpoint(one_line(error), state.plan, fresh=True) from error
        if not is_out_of_memory(error):
            raise
        reason = one_line(error)
    finally:
        faults = eval_batches.faults - before
        run.out_of_memory += faults
        if faults:
            run.note(_retried(faults, eval_batches.limit))
    size = eval_batches.size
    raise DoesNotFit("evaluation: " + does_not_fit(size, bool(size), run.budget_mib, reason))


def _retried(faults: int, limit: int) -> str:
    times = "once" if faults == 1 else f"{faults} times"
    how = f" in slices of {limit}" if limit else ", with all samples at once as before"
    return f"out of memory in the evaluation, {times}: done again{how}"


def plain_scores(scores: Any) -> Scores:
    """Raises BadInput."""
    if not isinstance(scores, Mapping):
        raise BadInput(f"evaluate of the recipe returned {type(scores).__name__}: {EXPECTED}")
    for name, value in scores.items():
        if not isinstance(name, str):
            raise BadInput(f"evaluate of the recipe calls a score {name!r}: {EXPECTED}")
        if not isinstance(value, SupportsFloat) or getattr(value, "shape", ()) != ():
            shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
            raise BadInput(
                f"evaluate of the recipe returned {type(value).__name__}{shape} as {name}: {EXPECTED}"
            )
    return {name: float(value) for name, value in scores.items()}
