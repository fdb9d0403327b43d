"""Memory that runs out: what frees some, what would help, and room held in advance."""

import gc
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves

from overnight.errors import FAILURES, DoesNotFit, one_line
from overnight.gpu.out_of_memory import is_out_of_memory

KINDS = (MemoryError, RuntimeError)  # classes that is_out_of_memory may accept
FILL = 0.9  # of the lease that may be filled on purpose: at 95 % it would count as too small


def free() -> None:
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def room_bytes(budget_mib: int | None, device: torch.device) -> float:
    """What training leaves of the lease, less a reserve for steps that take more."""
    held = torch.cuda.memory_reserved(device)
    bound = budget_mib << 20 if budget_mib else torch.cuda.mem_get_info(device)[0] + held
    return FILL * bound - torch.cuda.max_memory_reserved(device)


def does_not_fit(used: int, can_split: bool, budget_mib: int | None, reason: str, least: int = 1) -> str:
    """used: samples at once; least: the fewest possible."""
    room = f"{budget_mib} MiB of the card" if budget_mib else "the memory there is"
    if least > 1 and used <= 3:
        return (
            f"{used} samples at a time do not fit {room}, and the model refuses one alone, "
            "as batch normalisation does: use a larger card, a model without batch normalisation, "
            "a smaller one or smaller inputs, "
            f"or precision bf16 ({reason})"
        )
    if can_split:
        return (
            f"one sample at a time does not fit {room}: use a smaller model or smaller inputs, "
            f"or precision bf16, or ask for more ({reason})"
        )
    what = "what this step computes at once" if used != 1 else "one sample"
    return (
        f"{what} does not fit {room}, and it cannot be split (a whole graph): "
        f"use fewer hidden values or layers, or ask for more ({reason})"
    )


def is_bounded(device: torch.device) -> bool:
    """A real card's memory is, and the virtual one's while it counts."""
    return device.type == "cuda" or _get_current_dispatch_mode() is not None


def reserve_optimizer_state(
    build: Callable[[], torch.optim.Optimizer], parameters: Iterable[nn.Parameter]
) -> list[Tensor]:
    """Tensors as large as the state that the optimizer makes in its first step, to be freed just before that.

    So memory runs out in a forward pass, which can be undone. None for optimizers that make their state at
    once, or cannot step without a gradient. Raises DoesNotFit.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    reason = ""
    for _ in range(2):  # another process may have caused the first failure
        try:
            return _state_tensors(build(), trainable)
        except (MemoryError, *FAILURES) as error:
            if not is_out_of_memory(error):
                return []
            reason = one_line(error)
        finally:
            for parameter in trainable:
                parameter.grad = None
        free()
    raise DoesNotFit(
        "the weights, their gradients and the optimizer's state do not fit, before there is a single sample: "
        f"use a smaller model or an optimizer with less state, or ask for more ({reason})"
    )


def _state_tensors(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> list[Tensor]:
    if optimizer.state or not parameters:
        return []
    with _disable_current_modes():  # on the host, which no counter is to take for the card
        before = [p.detach().to("cpu", copy=True) for p in parameters]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    try:
        optimizer.step()
    finally:
        with torch.no_grad():  # an optimizer that divides by a norm of zero has spoilt the weights
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
    made = [leaf for leaf in tree_leaves([*optimizer.state.values()]) if isinstance(leaf, Tensor)]
    return [tensor for tensor in made if tensor.device == parameters[0].device]
