"""Sparse times dense as one opaque operator.

Gradients need no transposing at run time, and traces see its shape.
"""

import warnings
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    import scipy.sparse as sp


class Csr(NamedTuple):
    """A sparse matrix (R, C): row starts int32 (R + 1,), columns int32 (nnz,), values float32 (nnz,)."""

    starts: Tensor
    columns: Tensor
    values: Tensor


def csr(matrix: "sp.csr_matrix") -> Csr:
    """The matrix as tensors; int32 is what the fast kernels take."""
    return Csr(
        torch.from_numpy(matrix.indptr.astype("int32")),
        torch.from_numpy(matrix.indices.astype("int32")),
        torch.from_numpy(matrix.data.astype("float32")),
    )


@torch.library.custom_op("overnight::spmm", mutates_args=())
def _spmm(
    starts: Tensor,
    columns: Tensor,
    values: Tensor,
    starts_t: Tensor,
    columns_t: Tensor,
    values_t: Tensor,
    dense: Tensor,
) -> Tensor:
    return _product(starts, columns, values, dense)


@_spmm.register_fake
def _(
    starts: Tensor,
    columns: Tensor,
    values: Tensor,
    starts_t: Tensor,
    columns_t: Tensor,
    values_t: Tensor,
    dense: Tensor,
) -> Tensor:
    return dense.new_empty(len(starts) - 1, dense.shape[1])


def _product(starts: Tensor, columns: Tensor, values: Tensor, dense: Tensor) -> Tensor:
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    size = (len(starts) - 1, len(dense))
    return torch.sparse_csr_tensor(starts, columns, values, size, check_invariants=False) @ dense.contiguous()


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])


def _backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
    starts, columns, values, starts_t, columns_t, values_t = ctx.saved_tensors  # type: ignore[attr-defined]
    return (*[None] * 6, _spmm(starts_t, columns_t, values_t, starts, columns, values, gradient))


torch.library.register_autograd("overnight::spmm", _backward, setup_context=_keep)


def spmm(matrix: Csr, transposed: Csr, dense: Tensor) -> Tensor:
    """The matrix (R, C) @ dense (C, F) in float32.

    The gradient goes to `dense` alone, by the transposed matrix.
    """
    with torch.autocast(dense.device.type, enabled=False):
        return torch.ops.overnight.spmm(*matrix, *transposed, dense.float())  # type: ignore[no-any-return]
