"""Graphs to learn from, read from a data set."""

from typing import ClassVar

from pydantic import Field

from overnight.artifact import Artifact, DataSpec
from overnight.config import Params
from overnight.data.content import Graph
from overnight.data.dataset import Dataset
from overnight.data.entry import Entry
from overnight.run import Run
from overnight.step import step
from tasks.graphs import arrays


class GraphParams(Params):
    """How a graph is split and its features normalized."""

    RENAMED: ClassVar = {"scale": "normalize"}

    val: float = Field(
        0.2,
        gt=0,
        lt=0.5,
        description="share of the labelled nodes for choosing the epoch, when the set has no split",
    )
    test: float = Field(0.2, gt=0, lt=0.5, description="share only for the scores, when the set has no split")
    normalize: arrays.Scale = Field(
        "auto", description="rows: to sum 1 (auto, sparse); columns: to mean 0, deviation 1 (auto, dense)"
    )
    blank: arrays.Blank = Field(
        "identity", description="features of a graph that has none: an embedding for each node, or its degree"
    )


def graph_spec(_params: GraphParams, data: Entry) -> DataSpec | None:
    """What load_graph will hand on, as far as the entry tells.

    Features whose stored values are not counted are taken to be dense.
    """
    seen = data.expected
    return seen if seen.shape and seen.nodes and seen.edges and seen.classes else None


@step(spec=graph_spec)
def load_graph(run: Run, params: GraphParams, data: Dataset) -> Artifact:
    """Load a graph data set: an artifact "graph" of edges, normalised features, labels and masks.

    Splits are cut, seeded, when the set has none. Logs nodes, edges, features and cleaning counts. Raises
    DataError when fewer than two classes occur or a split would be empty.
    """
    content = data.load_as(Graph)
    saved = arrays.save(
        run,
        content,
        f"data set {data.name!r}",
        arrays.Shares(params.val, params.test),
        params.normalize,
        params.blank,
    )
    run.data(data.name, saved.digest, f"datasets/{data.name}.yaml", saved.spec)
    run.note(summary(saved, data.name))
    return saved


def summary(saved: Artifact, name: str) -> str:
    """The graph in a sentence."""
    spec = saved.spec
    counts = ", ".join(f"{count:,} {part}" for part, count in spec.counts.items())
    size = f"{spec.nodes:,} nodes ({counts}), {spec.edges:,} edges, {spec.shape[0]:,} features"
    return f"{name}: {size}, {len(spec.classes)} classes"
