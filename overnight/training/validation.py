"""What a loss is handed and has to give, looked at once: a training must not go on for hours with something else."""

from typing import Any

from torch import Tensor

from overnight.errors import BadInput
from overnight.training.batches import Batch

WANTED = "loss(model, batch) returns (sum of the losses of all samples, their number)"


def check_batch(batch: Batch) -> None:
    """Raises BadInput where something else than tensors is in it."""
    given: dict[Any, Any] = batch
    if odd := [
        f"{name!r} is a {type(value).__name__}"
        for name, value in given.items()
        if not isinstance(value, Tensor)
    ]:
        raise BadInput(
            f"a batch is a dict of tensors with the samples in their first dimension; in this one {', '.join(odd)}"
        )
    if not given:
        raise BadInput(
            "a batch is a dict of tensors with the samples in their first dimension; this one is empty"
        )


def check_loss(found: Any) -> None:
    """Raises BadInput where that is no sum and count."""
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise BadInput(f"the loss returned {_shown(found)}: {WANTED}")
    loss, counted = found
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise BadInput(
            f"the first that the loss returned is {_shown(loss)}: {WANTED}, the sum as a tensor of one value"
        )
    if not loss.requires_grad:
        raise BadInput(
            f"the sum that the loss returned depends on no weight that is trained (detached, or all weights frozen?): {WANTED}"
        )
    if counted.numel() != 1 if isinstance(counted, Tensor) else not hasattr(counted, "__float__"):
        raise BadInput(
            f"the second that the loss returned is {_shown(counted)}: {WANTED}, the number as one value"
        )


def seems_mean(counted: float | Tensor, parts: int, samples: int) -> str:
    """What to say where every micro-batch of several samples counted as 1; else nothing."""
    if parts >= samples or float(counted) != parts:
        return ""
    return f"the loss counts each micro-batch as 1, so it depends on how a batch is split; if it is a mean: {WANTED}"


def _shown(value: Any) -> str:
    return (
        f"a tensor of shape {tuple(value.shape)}"
        if isinstance(value, Tensor)
        else f"a {type(value).__name__}"
    )
