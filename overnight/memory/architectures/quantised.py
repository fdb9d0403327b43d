"""What 4-bit weights and 8-bit optimizers hold, in tensors that a trace can see (formats of bitsandbytes).

Two weights of 4 bits to a byte, a scale for each 64 weights, itself in 8 bits with a scale for each 256
scales; for a product the weights are made whole again. An 8-bit optimizer keeps its two states in a byte each
with a scale for each 256.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 64  # weights to a scale
SCALES = 256  # scales to a scale of scales, or optimizer states to a scale
LEAST_8BIT = 4096  # elements below which an optimizer keeps its state in float32


def packed(model: nn.Module, bits: str = "nf4", spared: Iterable[str] = ("lm_head",)) -> nn.Module:
    """The model, on the meta device, with every linear layer but the spared ones in nf4 or int8."""
    make = _nf4 if bits == "nf4" else _int8
    for name, module in list(model.named_modules()):
        parent, _, own = name.rpartition(".")
        if type(module).__name__ in ("Linear", "Conv1D") and own not in spared:
            setattr(model.get_submodule(parent), own, make(module))
    mark = "is_loaded_in_4bit" if bits == "nf4" else "is_loaded_in_8bit"  # what peft looks at
    setattr(model, mark, True)
    return model


def _sizes(linear: nn.Module) -> tuple[int, int]:
    """(outputs, inputs); GPT-2's own kind of layer has its weights the other way round."""
    real: Any = linear
    rows, columns = real.weight.shape if isinstance(linear, nn.Linear) else real.weight.T.shape
    return rows, columns


def _hold(found: Any, linear: nn.Module, held: dict[str, Tensor]) -> Any:
    """Give a layer these frozen tensors, and the bias and dtype of the one that it replaces."""
    real: Any = linear
    for name, tensor in held.items():
        setattr(found, name, nn.Parameter(tensor, requires_grad=False))
    found.made, found.bias = real.weight.dtype, real.bias
    return found


def _int8(linear: nn.Module) -> nn.Module:
    """A layer that peft takes for the real one."""
    from bitsandbytes.nn import Linear8bitLt

    class Packed(Linear8bitLt):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = _Product8.apply(x, self.weight, self.made)
            return (out if self.bias is None else out + self.bias.to(out.dtype)).to(x.dtype)

    rows, columns = _sizes(linear)
    with torch.device("meta"):
        found = Packed(columns, rows, linear.bias is not None, has_fp16_weights=False)
        held = {"weight": torch.empty(rows, columns, dtype=torch.int8), "scales": torch.empty(rows)}
    return _hold(found, linear, held)  # type: ignore[no-any-return]


class _Product8(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, held: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.held, ctx.dtype, ctx.inputs = held, dtype, x  # bitsandbytes keeps the inputs
        half = x.to(torch.float16)
        inputs = torch.empty(half.shape, dtype=torch.int8, device=x.device)
        scales = torch.empty(half.shape[:-1], device=x.device)
        product = torch.empty(*half.shape[:-1], held.shape[0], dtype=torch.int32, device=x.device)
        del inputs, scales
        return product.to(torch.float16).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        return gradient.to(ctx.dtype) @ ctx.held.to(ctx.dtype).mul_(1.0), None, None


def _nf4(linear: nn.Module) -> nn.Module:
    """A layer that peft takes for the real one."""
    from bitsandbytes.nn import Linear4bit

    class Packed(Linear4bit):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            sizes = (self.out_features, self.in_features, self.made)
            out: Tensor = _Product.apply(x.to(self.made), self.weight, sizes)
            return (out if self.bias is None else out + self.bias.to(out.dtype)).to(x.dtype)

    real: Any = linear
    rows, columns = _sizes(linear)
    count = rows * columns
    blocks = -(-count // BLOCK)
    with torch.device("meta"):
        found: Any = Packed(columns, rows, real.bias is not None, real.weight.dtype)
        held = {
            "weight": torch.empty(-(-count // 2), 1, dtype=torch.uint8),
            "code": torch.empty(16),
            "absmax": torch.empty(blocks, dtype=torch.uint8),
            "scales": torch.empty(-(-blocks // SCALES)),
            "scale_code": torch.empty(256),
            "offset": torch.empty(()),
        }
    found = _hold(found, linear, held)
    found.weight.compress_statistics, found.weight.quant_type = True, "nf4"  # what peft asks for
    return found  # type: ignore[no-any-return]


def _whole(packed: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    full = torch.empty(-(-rows * columns // BLOCK), device=packed.device)
    whole = torch.empty(rows, columns, dtype=dtype, device=packed.device)
    del full
    return whole


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, sizes: tuple[int, int, torch.dtype]) -> Tensor:
        ctx.packed, ctx.sizes = packed, sizes
        return nn.functional.linear(x, _whole(packed, *sizes))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        found = gradient @ _whole(ctx.packed, *ctx.sizes) if ctx.needs_input_grad[0] else None
        return found, None, None


class AdamW8bit(torch.optim.Optimizer):
    def __init__(self, params: Iterable[Tensor], lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})
        self.codes = list[Tensor]()  # two tables that all weights share

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for weight in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            if weight not in self.state:
                self.state[weight] = self._state(weight)
            weight.add_(weight.grad.to(weight.dtype), alpha=0.0)

    def _state(self, weight: Tensor) -> dict[str, Tensor]:
        if weight.numel() < LEAST_8BIT:
            return {f"state{i}": torch.zeros_like(weight, dtype=torch.float32) for i in (1, 2)}
        if not self.codes:
            self.codes = [torch.empty(256, device=weight.device) for _ in range(2)]
        blocks = -(-weight.numel() // SCALES)
        scales = {f"absmax{i}": torch.zeros(blocks, device=weight.device) for i in (1, 2)}
        return {f"state{i}": torch.zeros_like(weight, dtype=torch.uint8) for i in (1, 2)} | scales
