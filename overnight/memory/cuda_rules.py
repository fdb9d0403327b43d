"""What a card does differently from a CPU, applied to a trace of fake CPU tensors.

autocast   a card runs softmax, norms, powers and sums in float32 where a CPU keeps the lower precision, and
           the reverse for cross_entropy: read off the dispatcher's own tables
dropout    a card keeps a mask of bytes, a CPU one of floats
attention  a card never holds the matrix of scores: flash for half precision without a mask, else the
           memory-efficient kernel
optimizer  a card updates all weights at once, with temporaries of the size of all weights (program.py)
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
MIB = 2**20
BLAS_WORKSPACE = 8320 * 1024  # of a cuBLAS handle, by torch's default (4096 KiB x 2 + 16 KiB x 8)
BLAS_HANDLES = 2  # one for the thread of the forward pass, one for that of the backward pass
HALVES = (torch.float16, torch.bfloat16)
FLASH_WIDTH = 256  # of a head; the memory-efficient kernel takes any

LOWERED = {"addmv", "addr", "mv", "chain_matmul", "linalg_multi_dot", "einsum"}
WITH_DTYPE = {"prod", "prod.dim_int", "cumprod", "cumsum", "linalg_vector_norm", "sum", "sum.dim_IntList"}
SOFTMAX = {"softmax.int", "log_softmax.int"}
PROMOTED = {"addcdiv", "addcmul", "atan2", "bilinear", "cat", "cross", "dot", "grid_sampler", "index_copy"}
PROMOTED |= {"index_put", "scatter_add", "stack", "tensordot", "vdot"}


def workspace(func: Any, args: tuple[Any, ...], _kwargs: dict[str, Any], out: Any) -> int:
    """Bytes that cuDNN takes to re-order the operands of a convolution that are not channels-last."""
    if func is aten.convolution.default:
        operands = (args[0], args[1], out)
    elif func is aten.convolution_backward.default:
        operands = args[:3]
    else:
        return 0
    lying = operands[0].ndim == 4 and operands[0].is_contiguous(memory_format=torch.channels_last)
    return int(operands[1].nbytes if lying else sum(t.nbytes for t in operands))


@contextlib.contextmanager
def as_on_cuda() -> Iterator[None]:
    """Operators of CPU tensors decompose as those of a card do."""
    lib: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "overriding a previously registered kernel" is intended
        for name, kernel in _casts():
            lib.impl(name, kernel, "AutocastCPU")
        lib.impl("dropout", _dropout, "AutogradCPU")
        lib.impl("scaled_dot_product_attention", _attention, "AutogradCPU")
    try:
        yield
    finally:
        lib._destroy()


def _casts() -> Iterator[tuple[str, Callable[..., Any]]]:
    for whole in torch._C._dispatch_get_all_op_names():
        if not whole.startswith("aten::"):
            continue
        card, cpu = (
            torch._C._dispatch_has_kernel_for_dispatch_key(whole, f"Autocast{key}") for key in ("CUDA", "CPU")
        )
        name = whole.removeprefix("aten::")
        if cpu and not card:
            yield name, torch.library.fallthrough_kernel
        elif card and not cpu and name.partition(".")[0] not in PROMOTED:
            yield name, _cast(name)


def _cast(name: str) -> Callable[..., Any]:
    packet, _, overload = name.partition(".")
    operator = getattr(getattr(aten, packet), overload or "default")
    here = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        half = isinstance(args[0], Tensor) and args[0].dtype in HALVES
        with torch._C._ExcludeDispatchKeyGuard(here):
            if name in SOFTMAX:
                untyped = half and kwargs.get("dtype") is None and (len(args) < 3 or args[2] is None)
                return _Softmax.apply(args[0]) if untyped else operator(*args, **kwargs)
            if name in WITH_DTYPE:
                if half and kwargs.get("dtype") is None:
                    kwargs["dtype"] = torch.float32
                return operator(*args, **kwargs)
            dtype = torch.get_autocast_dtype("cpu") if packet in LOWERED else torch.float32
            return operator(*(_to(a, dtype) for a in args), **{k: _to(v, dtype) for k, v in kwargs.items()})

    return kernel


class _Softmax(torch.autograd.Function):
    """Half precision in, float32 out, without a copy; no values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.dtype = x.dtype
        out = torch.empty_like(x, dtype=torch.float32)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, _gradient: Tensor) -> Tensor:
        return torch.empty_like(ctx.saved_tensors[0], dtype=ctx.dtype)


def _to(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor) and value.dtype in (*HALVES, torch.float32):
        return value.to(dtype)
    return [_to(v, dtype) for v in value] if isinstance(value, list) else value


def _dropout(x: Tensor, p: float, train: bool) -> Tensor:
    return aten.native_dropout.default(x, p, train)[0] if train and p and x.numel() else x


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if query.ndim != 4:
        return aten._scaled_dot_product_attention_math.default(  # type: ignore[no-any-return]
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )[0]
    if query.dtype in HALVES and attn_mask is None and query.shape[-1] <= FLASH_WIDTH:
        outputs = aten._scaled_dot_product_flash_attention.default(
            query, key, value, dropout_p, is_causal, False, scale=scale
        )
        return outputs[0]  # type: ignore[no-any-return]
    heads = query.shape[1] // key.shape[1] if enable_gqa else 1
    key, value = (t.repeat_interleave(heads, 1) if heads > 1 else t for t in (key, value))
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    bias = _bias(attn_mask, query, key)
    outputs = aten._scaled_dot_product_efficient_attention.default(
        query, key, value, bias, wanted, dropout_p, is_causal, scale=scale
    )
    return outputs[0]  # type: ignore[no-any-return]


def _bias(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    if mask is None:
        return None
    added = (
        torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
        if mask.dtype == torch.bool
        else mask.to(query.dtype)
    )
    return added.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
