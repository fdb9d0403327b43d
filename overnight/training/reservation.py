"""Room for the optimizer's state, held from before the first step, so that memory runs out in a forward pass, which can be undone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode

from overnight.errors import DoesNotFit
from overnight.gpu.out_of_memory import is_out_of_memory
from overnight.training.acceleration import FAILURES
from overnight.training.out_of_memory import brief, free


def is_counted(device: torch.device) -> bool:
    """Whether memory of the device is bounded: a real card's, or what the counter of the virtual one counts."""
    return device.type == "cuda" or _get_current_dispatch_mode() is not None


def ballast(build: Callable[[], torch.optim.Optimizer], parameters: list[nn.Parameter]) -> list[Tensor]:
    """Tensors as large as the state that the optimizer will make in its first step; let go of them just before that.

    A second optimizer makes them, in a step without rate or gradient. Raises DoesNotFit when even that has no room. Nothing is held for
    optimizers that make their state at once, or cannot step like that.
    """
    for last in (False, True):  # the first failure may have been a stranger's
        try:
            return _made(build(), parameters)
        except (MemoryError, *FAILURES) as error:
            if not is_out_of_memory(error):
                return []
            reason = brief(error)
        finally:
            for parameter in parameters:
                parameter.grad = None
        if last:
            break
        free()
    raise DoesNotFit(
        "the weights, their gradients and the optimizer's state do not fit, before there is a single sample: "
        f"use a smaller model or an optimizer with less state, or ask for more ({reason})"
    )


def _made(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> list[Tensor]:
    """The tensors of its state, on the device."""
    if optimizer.state or not parameters:
        return []
    with _disable_current_modes():  # on the host, which no counter is to take for the card
        before = [p.detach().to("cpu", copy=True) for p in parameters]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    try:
        optimizer.step()
    finally:
        with torch.no_grad():
            for parameter, value in zip(
                parameters, before, strict=True
            ):  # one that divides by a norm of zero has spoilt them
                parameter.copy_(value)
    return _tensors([*optimizer.state.values()], parameters[0].device)


def _tensors(values: Any, device: torch.device) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values] if values.device == device else []
    inner = (
        values.values() if isinstance(values, dict) else values if isinstance(values, list | tuple) else ()
    )
    return [tensor for value in inner for tensor in _tensors(value, device)]
