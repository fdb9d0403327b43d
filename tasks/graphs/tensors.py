"""A graph artifact as tensors, everything sparse kept sparse."""

import numpy as np
import torch
from torch import Tensor

from overnight.artifact import DataSpec
from overnight.training.batches import Batch
from tasks.graphs.arrays import adjacency
from tasks.graphs.sparse import Csr, csr


class GraphTensors:
    """A graph artifact's arrays as tensors on the device.

    What every batch shares, and the nodes of each split.
    """

    def __init__(self, arrays: dict[str, np.ndarray], spec: DataSpec, conv: str, device: str) -> None:
        if conv == "gcn":
            shared = csr_named(
                "adjacency", csr(adjacency(arrays["edges"], spec.nodes, arrays.get("weights")))
            )
        else:
            shared = {"links": torch.from_numpy(_links(arrays["edges"], spec.nodes, conv))}
        shared |= (
            {"features": torch.from_numpy(arrays["features"])}
            if "features" in arrays
            else _sparse_features(arrays, spec.shape[0])
        )
        self.shared = {name: tensor.to(device) for name, tensor in shared.items()}
        self.labels = torch.from_numpy(arrays["labels"]).to(device)
        self.nodes = {
            split: torch.from_numpy(np.flatnonzero(arrays[f"{split}_mask"])).to(device)
            for split in ("train", "val", "test")
        }

    def batch(self, nodes: Tensor) -> Batch:
        """These nodes, their labels, and the whole graph."""
        return {"nodes": nodes, "labels": self.labels[nodes], **self.shared}


def _links(edges: np.ndarray, nodes: int, conv: str) -> np.ndarray:
    """Both directions of every edge, (2, 2 E).

    For attention every node attends to itself as well, (2, 2 E + N).
    """
    loops = [np.stack([np.arange(nodes)] * 2)] if conv == "gat" else []
    return np.concatenate([edges, edges[::-1], *loops], 1).astype(np.int64)


def csr_named(name: str, matrix: Csr) -> Batch:
    return {f"{name}_{part}": tensor for part, tensor in matrix._asdict().items()}


def _sparse_features(arrays: dict[str, np.ndarray], width: int) -> Batch:
    """The features, their transpose, and where each of its values stands in the features.

    Dropout must hit both alike.
    """
    import scipy.sparse as sp

    indptr, indices = arrays["features_indptr"], arrays["features_indices"]
    order = sp.csr_matrix(
        (np.arange(1, len(indices) + 1), indices, indptr), shape=(len(indptr) - 1, width)
    ).T.tocsr()
    matrix = sp.csr_matrix((arrays["features_data"], indices, indptr), shape=(len(indptr) - 1, width))
    transposed = sp.csr_matrix((matrix.data[order.data - 1], order.indices, order.indptr), shape=order.shape)
    parts = {**csr_named("features", csr(matrix)), **csr_named("features_t", csr(transposed))}
    return {**parts, "features_order": torch.from_numpy(order.data - 1).long()}


def example(spec: DataSpec, conv: str, n: int) -> Batch:
    """A made-up graph of the real size: n nodes to classify, neighbours and features anywhere."""
    nodes, width = spec.nodes, spec.shape[0]
    batch = {"nodes": torch.arange(n) % max(1, nodes), "labels": torch.zeros(n, dtype=torch.long)}
    if conv == "gcn":
        batch |= csr_named("adjacency", _made_up(nodes, nodes, nodes + 2 * spec.edges))
    else:
        batch["links"] = torch.zeros(2, 2 * spec.edges + (nodes if conv == "gat" else 0), dtype=torch.long)
    if not spec.nonzeros:
        return {**batch, "features": torch.zeros(nodes, width)}
    parts = {
        **csr_named("features", _made_up(nodes, width, spec.nonzeros)),
        **csr_named("features_t", _made_up(width, nodes, spec.nonzeros)),
    }
    return {**batch, **parts, "features_order": torch.zeros(spec.nonzeros, dtype=torch.long)}


def _made_up(rows: int, columns: int, nonzeros: int) -> Csr:
    starts = (torch.arange(rows + 1, dtype=torch.int64) * nonzeros // max(1, rows)).int()
    return Csr(starts, (torch.arange(nonzeros) % max(1, columns)).int(), torch.ones(nonzeros))
