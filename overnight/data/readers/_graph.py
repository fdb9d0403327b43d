"""Edges as each undirected edge once."""

from typing import TYPE_CHECKING

from overnight.data.content import CleaningCounts
from overnight.errors import DataError

if TYPE_CHECKING:
    import numpy as np


def cleaned_edges(edges: "np.ndarray", nodes: int, cleaned: CleaningCounts, where: str) -> "np.ndarray":
    """int64 (2, E) with the smaller node first, sorted, without loops and repeats."""
    import numpy as np

    if edges.size and (edges.min() < 0 or edges.max() >= nodes):
        raise DataError(
            f"{where}: an edge names node {edges.max()}, but there are {nodes} nodes (0 to {nodes - 1})"
        )
    low, high = np.minimum(edges[0], edges[1]), np.maximum(edges[0], edges[1])
    loops = low == high
    codes = low[~loops] * max(nodes, 1) + high[~loops]
    unique = np.unique(codes)
    cleaned["self loop dropped"] += int(loops.sum())
    cleaned["repeated edge dropped"] += len(codes) - len(unique)
    return np.stack([unique // max(nodes, 1), unique % max(nodes, 1)]).astype(np.int64)
