"""The network: graph convolutions on a batch that carries its graph."""

from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from overnight.artifact import DataSpec
from overnight.training.batches import Batch
from overnight.training.recipe import TrainParams
from tasks.graphs.sparse import Csr, spmm


class GnnParams(TrainParams):
    """The network and how it learns; an epoch is one optimizer step on the whole graph."""

    RENAMED: ClassVar = {"smoothing": "label_smoothing"}
    MEANINGLESS: ClassVar = dict.fromkeys(
        ("batch", "micro_batch", "grow"), "every step sees the whole graph, which is not cut into batches"
    )

    epochs: int = Field(200, ge=1)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "fp32", description="small matrices gain nothing from less"
    )
    conv: Literal["gcn", "sage", "gat"] = Field(
        "gcn", description="gcn: own sparse product; sage and gat: PyTorch Geometric's layers"
    )
    hidden: int = Field(64, ge=1)
    layers: int = Field(2, ge=1, le=8)
    dropout: float = Field(0.5, ge=0, lt=1, description="of features and hidden values")
    lr: float = Field(0.01, gt=0)
    weight_decay: float = Field(
        0.0, ge=0, description="of the first layer; 5e-4 where few nodes are labelled (Kipf & Welling)"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    batch: ClassVar[int] = 128  # type: ignore[misc] # no key here; nodes of a made-up example
    micro_batch: ClassVar[int | None] = None  # type: ignore[misc]
    grow: ClassVar[bool] = False  # type: ignore[misc]


class Gnn(nn.Module):
    """Logits of the nodes in batch["nodes"], from the graph that the batch carries. N nodes, H hidden values.

    gcn: `layers` times spread(x W) + b. sage, gat: a linear layer on the features (never made dense), then
    `layers` of PyG's.
    """

    def __init__(self, params: GnnParams, spec: DataSpec) -> None:
        super().__init__()
        self.own, self.dropout = params.conv == "gcn", params.dropout
        widths = [spec.shape[0], *[params.hidden] * (params.layers - self.own), len(spec.classes)]
        self.first = nn.Parameter(nn.init.xavier_uniform_(torch.empty(widths[0], widths[1])))
        self.bias = nn.Parameter(torch.zeros(widths[1]))
        self.rest = nn.ModuleList(_layer(params.conv, a, b) for a, b in pairwise(widths[1:]))

    def forward(self, batch: Batch) -> Tensor:
        """(n, classes)."""
        x_NH = self.embed(batch)
        return (self._layer_on(self.rest[-1], batch, x_NH) if len(self.rest) else x_NH)[batch["nodes"]]

    def embed(self, batch: Batch) -> Tensor:
        """(N, H): the values before the last layer."""
        x_NH = self._first(batch)
        for layer in self.rest:
            x_NH = torch.relu(x_NH)
            if layer is self.rest[-1]:
                break
            x_NH = self._layer_on(layer, batch, x_NH)
        return x_NH

    def _first(self, batch: Batch) -> Tensor:
        if "features" in batch:
            x_NH = self._drop(batch["features"]) @ self.first
        else:
            matrix, transposed = _matrix(batch, "features"), _matrix(batch, "features_t")
            values = self._drop(matrix.values)
            x_NH = spmm(
                matrix._replace(values=values),
                transposed._replace(values=values[batch["features_order"]]),
                self.first,
            )
        return (_spread(batch, x_NH) if self.own else x_NH) + self.bias

    def _layer_on(self, layer: nn.Module, batch: Batch, x_NH: Tensor) -> Tensor:
        x_NH = self._drop(x_NH)
        if isinstance(layer, nn.Linear):
            return _spread(batch, F.linear(x_NH, layer.weight)) + layer.bias
        return layer(x_NH, batch["links"])  # type: ignore[no-any-return]

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def _layer(conv: str, before: int, after: int) -> nn.Module:
    if conv == "gcn":
        layer = nn.Linear(before, after)
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer
    from torch_geometric import nn as geometric

    if conv == "sage":
        return geometric.SAGEConv(before, after)  # type: ignore[no-any-return]
    # The self loops are among the links already: adding them would read values.
    return geometric.GATConv(before, after, add_self_loops=False)  # type: ignore[no-any-return]


def _matrix(batch: Batch, name: str) -> Csr:
    return Csr(batch[f"{name}_starts"], batch[f"{name}_columns"], batch[f"{name}_values"])


def _spread(batch: Batch, x_NH: Tensor) -> Tensor:
    """Every node's average over itself and its neighbours.

    The adjacency is symmetric, so it is its own transpose.
    """
    matrix = _matrix(batch, "adjacency")
    return spmm(matrix, matrix, x_NH)
