"""A trained network's answers for the nodes of the graph that it was trained on, by their names."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from overnight import predictor as contract
from overnight.artifact import Artifact, DataSpec
from overnight.errors import BadInput, DataError
from overnight.predictor import ItemLosses
from tasks.graphs.network import Gnn
from tasks.graphs.params import GnnParams
from tasks.graphs.tensors import GraphTensors
from tasks.shared.predictors import load_model, saved_params

if TYPE_CHECKING:
    import pandas as pd

NAMED = 3  # unknown nodes in a message


def predictor(folder: Path) -> "NodeClassifier":
    """The network in that folder, with its graph."""
    return NodeClassifier(folder)


class NodeClassifier:
    """Nodes to classes and their probabilities."""

    def __init__(self, folder: Path) -> None:
        config, tensors = load_model(folder)
        graph = [name for name in tensors if name.startswith("graph.")]
        self.interface = contract.interface(folder)
        self.graph = {name.removeprefix("graph."): tensors.pop(name) for name in graph}
        self.spec = DataSpec.model_validate(config["spec"])
        self.params = saved_params(GnnParams, config["params"])
        self.names: list[str] = config["nodes"] or list(map(str, range(self.spec.nodes)))
        self.index = {name: number for number, name in enumerate(self.names)}
        self.model = Gnn(self.params, self.spec).eval()
        self.model.load_state_dict(tensors)

    def predict(self, frame: "pd.DataFrame") -> "pd.DataFrame":
        """The class of each node of the column `node`, by its name in the training graph.

        Raises BadInput for nodes that the graph lacks.
        """
        contract.check_columns(frame, ["node"])
        names = [_text(value) for value in frame["node"]]
        unknown = [name for name in names if name not in self.index]
        if unknown:
            raise BadInput(
                f"{len(unknown)} of {len(names)} nodes are not in the graph that the model was trained on: "
                f"{', '.join(map(repr, unknown[:NAMED]))}; it has {len(self.names):,}, such as "
                f"{', '.join(map(repr, self.names[:NAMED]))}"
            )
        nodes = torch.tensor([self.index[name] for name in names], dtype=torch.int64)
        table = contract.class_table(self.spec.classes, self._probabilities(self.graph, nodes))
        table.insert(0, "node", np.asarray(names, object))
        return table

    def item_losses(self, *artifacts: Artifact) -> ItemLosses:
        """0 or 1 for each test node of a "graph" artifact, on the edges and features of that artifact.

        Raises DataError where its features are not those of the training: a graph without features has an
        embedding for each of its nodes.
        """
        (graph,) = artifacts
        spec = graph.expect("graph").spec
        if spec.shape != self.spec.shape:
            raise DataError(
                f"the graph has {spec.shape[0]} features for each node, the model was trained with "
                f"{self.spec.shape[0]}; train it again"
            )
        data = GraphTensors(graph.arrays(), spec, self.params.conv, "cpu")
        nodes = data.nodes["test"]
        found = self._probabilities(data.shared, nodes)
        truth = [spec.classes[label] for label in data.labels[nodes].tolist()]
        names: Sequence[str] = graph.meta()["nodes"]
        items = [names[number] if names else str(number) for number in nodes.tolist()]
        return contract.class_losses(self.spec.classes, truth, found, items, items)

    def draw(self, frame: "pd.DataFrame", found: "pd.DataFrame", folder: Path) -> list[Path]:  # noqa: ARG002
        """Nothing: the answers are a table."""
        return []

    @torch.inference_mode()
    def _probabilities(self, graph: dict[str, Tensor], nodes: Tensor) -> np.ndarray:
        return np.asarray(self.model({"nodes": nodes, **graph}).softmax(1))


def _text(value: object) -> str:
    """3.0 is the node 3: pandas keeps numbers with gaps as floats."""
    if isinstance(value, float | np.floating):
        return str(int(value)) if np.isfinite(value) and value == int(value) else str(value)
    return str(value).strip()
