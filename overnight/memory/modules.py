"""Any nn.Module as a Recipe, so that its training can be predicted."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from overnight.training.batches import Batch, split_by_sample
from overnight.training.params import TrainParams
from overnight.training.recipe import Recipe, constant

Loss = Callable[[nn.Module, Batch], Tensor]
INPUT = "input"


class ModuleParams(TrainParams):
    """Of a module that a user's own loop trains, without overnight's accelerations."""


def by_own_loop(recipe: Recipe[Any]) -> bool:
    return not isinstance(recipe.params, ModuleParams)


def stays_on_device(recipe: Recipe[Any]) -> bool:
    """Whether the whole batch stays there, as a graph does."""
    return recipe.micro_batches is not split_by_sample


def as_recipe(
    module: nn.Module,
    batch: Any,
    loss: Loss | None = None,
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
    precision: str = "fp32",
    accumulate: int = 1,
) -> Recipe[Any]:
    """A recipe that trains the module on that batch.

    batch: a tensor, a tuple or a mapping of tensors, samples first. accumulate: micro-batches in a batch.
    loss(module, batch) -> scalar; default: the output's `loss`, else the sum of its first tensor.
    optimizer(parameters) -> optimizer; default: AdamW.
    """
    inputs = _named(batch)
    by_name = isinstance(batch, Mapping)
    trained = optimizer or torch.optim.AdamW
    params = ModuleParams(batch=accumulate, micro_batch=1, precision=precision)
    return Recipe(
        build=partial(_twin, module),
        example_batch=lambda _n: {name: torch.zeros(t.shape, dtype=t.dtype) for name, t in inputs.items()},
        batches=lambda data, _generator: data,
        steps_per_epoch=len,
        loss=lambda model, found: (_loss(loss, model, found, by_name=by_name), torch.tensor(1)),
        optimizer=lambda model: trained([p for p in model.parameters() if p.requires_grad]),
        schedule=constant,
        evaluate=lambda _model, _data, _split: {},
        params=params,
        micro_batches=lambda batch, _size: iter([batch] * min(2, accumulate)),  # two cost as much as many
    )


def _twin(module: nn.Module) -> nn.Module:
    tensors = [*module.parameters(), *module.buffers()]
    memo: dict[int, Any] = {id(t): _meta(t) for t in tensors}
    return copy.deepcopy(module, memo).train()


def _meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _named(batch: Any) -> dict[str, Tensor]:
    if isinstance(batch, Mapping):
        return dict(batch)
    return {
        f"{INPUT}{i}": tensor
        for i, tensor in enumerate(batch if isinstance(batch, tuple | list) else (batch,))
    }


def _loss(loss: Loss | None, model: nn.Module, batch: Batch, *, by_name: bool) -> Tensor:
    if loss is not None:
        return loss(model, batch)
    out = model(**batch) if by_name else model(*batch.values())
    own = getattr(out, "loss", None)
    if isinstance(own, Tensor):
        return own
    if isinstance(out, Tensor):
        return out.float().sum()
    first: Tensor = next(iter(out.values() if isinstance(out, Mapping) else out))
    return first.float().sum()
