"""Graphs as arrays: splits, scaled features, the normalised adjacency, and the artifact that carries them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from overnight.artifact import Artifact, DataSpec
from overnight.data.content import CleaningCounts, Graph
from overnight.data.splits import stratified
from overnight.errors import DataError
from overnight.run import Run
from tasks.shared import figures

if TYPE_CHECKING:
    import scipy.sparse as sp
    from matplotlib.figure import Figure

Scale = Literal["auto", "rows", "columns", "none"]
Blank = Literal["identity", "degree"]
SPLITS = ("train", "val", "test")
DENSE = 0.25  # features with a smaller share of values other than zero are kept sparse


@dataclass(frozen=True)
class Shares:
    """Shares of the training nodes that are cut off for a split that the set lacks."""

    val: float
    test: float


def save(run: Run, graph: Graph, name: str, shares: Shares, scale: Scale, blank: Blank) -> Artifact:
    """Split, scale and hand on a graph as an artifact of kind "graph".

    Logs cleaning counts and sizes.
    """
    cleaned = CleaningCounts(graph.cleaned)
    labelled = np.unique(graph.labels[graph.labels >= 0])
    if len(labelled) < 2:
        raise DataError(
            f"{name}: {len(labelled)} of {len(graph.classes)} classes occur among {graph.nodes} nodes; "
            "telling them apart needs 2"
        )
    masks = split(graph, shares, run.seed, name, cleaned)
    features = scaled(_features(graph, blank, cleaned), scale, cleaned)
    arrays = {
        "edges": graph.edges.astype(np.int64),
        "labels": graph.labels.astype(np.int64),
        **_named(features),
    }
    arrays |= {f"{name}_mask": mask for name, mask in masks.items()}
    if graph.weights is not None:
        arrays["weights"] = graph.weights.astype(np.float32)
    cleaned["isolated node kept"] += graph.nodes - len(np.unique(graph.edges))
    run.cleaned(+cleaned)
    if +cleaned:
        run.note(f"{name}: {cleaned.sentence()}")
    run.picture("degrees", _degrees(graph))
    spec = DataSpec(
        shape=(features.shape[1],),
        dtype="float32",
        classes=graph.classes,
        counts={name: int(mask.sum()) for name, mask in masks.items()},
        nodes=graph.nodes,
        edges=graph.edges.shape[1],
        nonzeros=0 if isinstance(features, np.ndarray) else features.nnz,
    )
    run.metrics(
        {
            "nodes": spec.nodes,
            "edges": spec.edges,
            "features": spec.shape[0],
            **{f"nodes/{k}": v for k, v in spec.counts.items()},
        }
    )
    return run.save("graph", spec, arrays, {"classes": list(graph.classes), "nodes": list(graph.ids)})


def split(
    graph: Graph, shares: Shares, seed: int, name: str, cleaned: CleaningCounts
) -> dict[str, np.ndarray]:
    """Masks, bool (N,), by split.

    Splits that the set lacks are cut off the labelled rest, every class in proportion.
    """
    known = graph.labels >= 0
    masks = {part: graph.masks.get(part, np.zeros(graph.nodes, bool)).astype(bool) for part in SPLITS}
    cleaned["unlabelled node left out of a split"] += int(
        sum((mask & ~known).sum() for mask in masks.values())
    )
    masks = {part: mask & known for part, mask in masks.items()}
    for part, others in (("val", ("train",)), ("test", ("train", "val"))):
        twice = masks[part] & np.logical_or.reduce([masks[o] for o in others])
        cleaned["node of two splits kept in the first"] += int(twice.sum())
        masks[part] &= ~twice
    if not masks["train"].any():
        masks["train"] = known & ~masks["val"] & ~masks["test"]
    whole = int(masks["train"].sum())
    for part, share in (("test", shares.test), ("val", shares.val)):
        if not masks[part].any():
            chosen = stratified(
                np.where(masks["train"], graph.labels, -1).tolist(),
                share * whole / max(1, int(masks["train"].sum())),
                seed,
            )
            masks[part][chosen] = True
            masks["train"][chosen] = False
    empty = [part for part in SPLITS if not masks[part].any()]
    if empty:
        raise DataError(
            f"{name}: {int(known.sum())} labelled nodes leave none for {', '.join(empty)}; label more, or "
            "raise its share"
        )
    return masks


def _features(graph: Graph, blank: Blank, cleaned: CleaningCounts) -> "np.ndarray | sp.csr_matrix":
    """The features, sparse where most are zero.

    A graph without any gets its node ids (an embedding to learn) or its degrees.
    """
    import scipy.sparse as sp

    given = graph.features
    if isinstance(given, tuple):
        return sp.csr_matrix(given[:3], shape=given[3], dtype=np.float32)
    if given is not None and given.shape[1]:
        few = np.count_nonzero(given) < DENSE * given.size
        return sp.csr_matrix(given, dtype=np.float32) if few else given.astype(np.float32)
    cleaned[f"graph without features given the {blank} of its nodes"] += 1
    if blank == "identity":
        return sp.identity(graph.nodes, dtype=np.float32, format="csr")
    degrees = np.bincount(graph.edges.ravel(), minlength=graph.nodes).astype(np.float32)
    return np.stack([np.log1p(degrees), degrees / max(1.0, float(degrees.max(initial=0.0)))], 1)


def scaled(
    features: "np.ndarray | sp.csr_matrix", scale: Scale, cleaned: CleaningCounts
) -> "np.ndarray | sp.csr_matrix":
    """Features normalised by rows (to sum 1) or columns (to mean 0 and deviation 1).

    "auto": rows of sparse features, columns of dense ones. Values that are not finite become 0.
    """
    import scipy.sparse as sp

    values = features if isinstance(features, np.ndarray) else features.data
    odd = ~np.isfinite(values)
    cleaned["feature that is no finite number set to 0"] += int(odd.sum())
    values[odd] = 0.0
    if isinstance(features, np.ndarray):
        if scale in ("auto", "columns"):
            return _standard(features)
        sums = np.abs(features).sum(1, keepdims=True, dtype=np.float64)
        return (
            np.asarray(features / np.where(sums > 0, sums, 1.0), np.float32) if scale == "rows" else features
        )
    if scale == "columns":
        return scaled(features.toarray(), scale, cleaned)
    if scale == "none":
        return features
    sums = np.asarray(abs(features).sum(1, dtype=np.float64)).ravel()
    return sp.csr_matrix(sp.diags(1 / np.where(sums > 0, sums, 1.0)) @ features, dtype=np.float32)


def _standard(features: np.ndarray) -> np.ndarray:
    """Each column (N,) to mean 0 and deviation 1, whose squares float32 might not hold."""
    found = np.empty_like(features, np.float32)
    for i, column in enumerate(features.T):
        values = column.astype(np.float64)
        found[:, i] = (values - values.mean()) / (values.std() or 1.0)
    return found


def _named(features: "np.ndarray | sp.csr_matrix") -> dict[str, np.ndarray]:
    if isinstance(features, np.ndarray):
        return {"features": features}
    features.sort_indices()
    return {
        "features_data": features.data.astype(np.float32),
        "features_indices": features.indices.astype(np.int64),
        "features_indptr": features.indptr.astype(np.int64),
    }


def adjacency(edges: np.ndarray, nodes: int, weights: np.ndarray | None = None) -> "sp.csr_matrix":
    """The normalised adjacency (Kipf & Welling 2017): float32 (N, N).

    Both directions of every edge and a self loop, scaled by the square roots of both degrees.
    """
    import scipy.sparse as sp

    one = np.ones(edges.shape[1], np.float32) if weights is None else weights.astype(np.float32)
    both = np.concatenate([edges, edges[::-1]], 1)
    matrix = sp.csr_matrix((np.concatenate([one, one]), both), shape=(nodes, nodes)) + sp.identity(
        nodes, dtype=np.float32, format="csr"
    )
    root = sp.diags(np.asarray(matrix.sum(1)).ravel() ** -0.5)
    found = sp.csr_matrix(root @ matrix @ root, dtype=np.float32)
    found.sort_indices()
    return found


def _degrees(graph: Graph) -> "Figure":
    """How many nodes have at least so many neighbours, on logarithmic axes."""
    degrees = np.bincount(graph.edges.ravel(), minlength=graph.nodes)
    levels, counts = np.unique(degrees, return_counts=True)
    at_least = counts[::-1].cumsum()[::-1]
    linked = levels > 0
    title = (
        f"{graph.nodes:,} nodes, {graph.edges.shape[1]:,} edges: {degrees.mean():.1f} neighbours on average"
    )
    lines = {
        f"nodes ({(degrees == 0).sum():,} without any)": (levels[linked].tolist(), at_least[linked].tolist())
    }
    figure = figures.curves(lines, "neighbours", "nodes with at least so many", title)
    figure.axes[0].set(xscale="log", yscale="log", xlim=(0.8, None), ylim=(0.8, None))
    return figure
