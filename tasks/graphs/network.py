"""The network: graph convolutions on a batch that carries its graph."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from overnight.artifact import DataSpec
from overnight.training.batches import Batch
from tasks.graphs.params import GnnParams
from tasks.graphs.sparse import Csr, spmm


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
