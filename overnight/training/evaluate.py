"""Evaluation: in eval mode, without gradients, in batches that shrink when memory runs out."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, SupportsFloat, TypeVar

import torch
from torch import Tensor, nn

from overnight.errors import BadInput, DoesNotFit
from overnight.gpu.out_of_memory import is_out_of_memory
from overnight.run import Run
from overnight.training.acceleration import Precision
from overnight.training.out_of_memory import KINDS, brief, does_not_fit, free
from overnight.training.recipe import Recipe, Scores

Data = TypeVar("Data")
Result = TypeVar("Result")
EVAL_BATCH = 512  # samples at once, unless the method says otherwise
EXPECTED = 'expected is a dict of numbers by name, such as {"accuracy": 0.9}'


@dataclass
class EvalBatches:
    """How large the batches of an evaluation may be; a part of the checkpoint.

    limit: most samples at once, 0: no limit; used: predict_in_batches was called; faults: times memory ran
    out.
    """

    limit: int = 0
    used: bool = False
    faults: int = 0

    def halve(self, size: int) -> bool:
        """Allow half of a size that failed; False when it was one sample."""
        self.faults += 1
        self.limit = max(1, size // 2)
        return size > 1


_ACTIVE: ContextVar[EvalBatches | None] = ContextVar("eval_batches", default=None)


@contextmanager
def remembered_in(eval_batches: EvalBatches) -> Iterator[None]:
    """Let predict_in_batches, called inside, keep to this limit and lower it."""
    token = _ACTIVE.set(eval_batches)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def predict_in_batches(
    function: Callable[[Tensor], Tensor], inputs: Tensor, device: torch.device, size: int
) -> list[Tensor]:
    """Outputs of `function` on the host, at most `size` inputs at a time; out of memory halves the size."""
    eval_batches = _ACTIVE.get() or EvalBatches()
    eval_batches.used = True
    outputs = list[Tensor]()
    start = 0
    tried = False
    while start < len(inputs):
        step = min(size, eval_batches.limit or size, len(inputs) - start)
        try:
            outputs.append(function(inputs[start : start + step].to(device)).cpu())
        except KINDS as error:
            if not is_out_of_memory(error) or (step == 1 and tried):
                raise
        else:
            start += step
            tried = False
            continue
        # one sample is tried twice: another process may have caused the first failure
        tried = not eval_batches.halve(step)
        free()
    return outputs


def predict_all(
    predict: Callable[[Tensor], Tensor], inputs: Tensor, device: torch.device, size: int = EVAL_BATCH
) -> Tensor:
    """As predict_in_batches, in one float tensor."""
    return torch.cat(predict_in_batches(lambda part: predict(part).float(), inputs, device, size))


def evaluate(
    recipe: Recipe[Data],
    model: nn.Module,
    data: Data,
    split: str,
    precision: Precision | None = None,
    eval_batches: EvalBatches | None = None,
) -> Scores:
    """The recipe's scores on a split, in eval mode; out of memory makes batches smaller."""
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


def retry_smaller(score: Callable[[], Result], eval_batches: EvalBatches) -> Result:
    """Call `score` until its batches fit; raises its error when those are of one sample, or it uses none."""
    tried = False
    while True:
        try:
            with remembered_in(eval_batches):
                return score()
        except KINDS as error:
            if not is_out_of_memory(error) or tried:
                raise
        tried = not (eval_batches.used and eval_batches.halve(eval_batches.limit or EVAL_BATCH))
        eval_batches.faults += not eval_batches.used
        free()


def validate(
    recipe: Recipe[Data],
    model: nn.Module,
    data: Data,
    run: Run,
    precision: Precision,
    eval_batches: EvalBatches,
) -> Scores:
    """The scores on "val" as plain floats; notes where memory ran out. Raises DoesNotFit, BadInput."""
    before = eval_batches.faults
    try:
        return plain_scores(evaluate(recipe, model, data, "val", precision, eval_batches))
    except KINDS as error:
        if not is_out_of_memory(error):
            raise
        reason = brief(error)
    finally:
        faults = eval_batches.faults - before
        run.out_of_memory += faults
        if faults:
            run.note(_retried(faults, eval_batches.limit))
    raise DoesNotFit(
        "evaluation: " + does_not_fit(eval_batches.limit, eval_batches.used, run.budget_mib, reason)
    )


def _retried(faults: int, limit: int) -> str:
    times = "once" if faults == 1 else f"{faults} times"
    how = f" in slices of {limit}" if limit else ", with all samples at once as before"
    return f"out of memory in the evaluation, {times}: done again{how}"


def plain_scores(scores: Any) -> Scores:
    """Scores as plain floats, which a checkpoint can hold. Raises BadInput."""
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
