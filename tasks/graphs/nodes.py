"""Classify the nodes of a graph with a graph convolutional network (Kipf & Welling 2017), full batch."""

from typing import TYPE_CHECKING

from overnight.artifact import Artifact, DataSpec
from overnight.run import Run
from overnight.step import step
from tasks.graphs.params import GnnParams

if TYPE_CHECKING:
    from overnight.training.recipe import Recipe
    from tasks.graphs.tensors import GraphTensors

__all__ = ["GnnParams", "gnn_recipe", "train_gnn"]


def gnn_recipe(params: GnnParams, spec: DataSpec) -> "Recipe[GraphTensors]":
    """Adam on the cross entropy of the training nodes, weight decay on the first layer.

    Accuracy on "val" picks the epoch.
    """
    from tasks.graphs import training

    return training.recipe(params, spec)


@step(gpu=True, recipe=gnn_recipe, vram_mib=1024)
def train_gnn(run: Run, params: GnnParams, graph: Artifact) -> Artifact:
    """An artifact "graph" -> a model that gives each node's class.

    Logs train/*, val/* by epoch; test/accuracy beside test/majority and test/without_edges (the same network
    on a graph without edges), test/macro_f1; pictures: confusion matrix, and the hidden values in two
    dimensions. Raises OutOfMemory, Stopped.
    """
    from tasks.graphs import training

    return training.fit(run, params, graph)
