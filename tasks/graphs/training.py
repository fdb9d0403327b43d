"""How a graph network is trained, scored and saved; nodes.py has the step."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from overnight.artifact import Artifact, DataSpec
from overnight.events import Json
from overnight.predictor import Column, Interface, class_columns
from overnight.run import Run
from overnight.training.batches import Batch
from overnight.training.evaluate import evaluate
from overnight.training.loop import train
from overnight.training.recipe import Recipe, Scores, constant
from tasks.graphs.network import Gnn
from tasks.graphs.params import GnnParams
from tasks.graphs.tensors import GraphTensors, example
from tasks.shared import figures
from tasks.shared.threads import one_thread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALL = 100_000_000  # multiplications of a product
EXAMPLES = 3  # nodes
DRAWN = 2000  # nodes in the picture of the embedding


def recipe(params: GnnParams, spec: DataSpec) -> Recipe[GraphTensors]:
    def batches(data: GraphTensors, _generator: torch.Generator) -> Iterator[Batch]:
        yield data.batch(data.nodes["train"])

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        total = F.cross_entropy(
            model(batch).float(), batch["labels"], reduction="sum", label_smoothing=params.label_smoothing
        )
        return total, torch.tensor(float(len(batch["labels"])))

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        assert isinstance(model, Gnn)
        first: dict[str, Any] = {"params": [model.first, model.bias], "weight_decay": params.weight_decay}
        return torch.optim.Adam([first, {"params": list(model.rest.parameters())}], params.lr)

    return Recipe(
        build=lambda: Gnn(params, spec),
        example_batch=lambda n: example(spec, params.conv, n),
        batches=batches,
        steps_per_epoch=lambda _data: 1,
        loss=loss,
        optimizer=optimizer,
        schedule=constant,
        evaluate=_evaluate,
        params=params,
        micro_batches=_whole,
    )


def _evaluate(model: nn.Module, data: GraphTensors, split: str) -> Scores:
    batch = data.batch(data.nodes[split])
    logits = model(batch).float()
    loss = F.cross_entropy(logits, batch["labels"])
    return {"accuracy": float((logits.argmax(1) == batch["labels"]).float().mean()), "loss": float(loss)}


def _whole(batch: Batch, _size: int) -> Iterator[Batch]:
    """A graph is not cut into micro-batches: every node needs its neighbours."""
    yield batch


def fit(run: Run, params: GnnParams, graph: Artifact) -> Artifact:
    spec, arrays = graph.expect("graph").spec, graph.arrays()
    made = recipe(params, spec)
    with one_thread(_small(spec, params)):
        alone = _without_edges(run, made, arrays, spec)
        data = GraphTensors(arrays, spec, params.conv, run.device)
        fitted = train(made, run, data)
    model = fitted.model
    assert isinstance(model, Gnn)
    nodes = data.nodes["test"]
    with torch.inference_mode():
        predicted = model(data.batch(nodes)).argmax(1).cpu().numpy()
        embedding = model.embed(data.batch(nodes))[nodes].float().cpu().numpy()
    truth = data.labels[nodes].cpu().numpy()
    scores = _scores(truth, predicted)
    run.metrics({f"test/{name}": value for name, value in {**scores, "without_edges": alone}.items()})
    run.picture("confusion", figures.confusion(truth, predicted, spec.classes))
    run.picture("embedding", _embedding(embedding, truth, spec.classes, run.seed))
    run.note(
        f"{params.conv.upper()}: {100 * scores['accuracy']:.1f} % of {len(truth):,} test nodes, best epoch "
        f"{fitted.epoch}; "
        f"{100 * alone:.1f} % without the edges, {100 * scores['majority']:.1f} % by the commonest class"
    )
    return _save(run, params, graph, model, data)


def _small(spec: DataSpec, params: GnnParams) -> bool:
    return (spec.nodes + 2 * spec.edges + spec.nonzeros) * params.hidden < SMALL


class _Silent(Run):
    """A run inside a run, for a baseline: it can be stopped, but logs nothing."""

    def _emit(self, event: Json) -> None:
        pass


def _without_edges(
    run: Run, recipe: Recipe[GraphTensors], arrays: dict[str, np.ndarray], spec: DataSpec
) -> float:
    """Test accuracy of the same network when every node stands alone."""
    silent = _Silent(run.folder, run.seed, run.device, run.budget_mib)
    silent.should_stop = run.should_stop
    assert isinstance(recipe.params, GnnParams)
    bare = {name: array for name, array in arrays.items() if name != "weights"} | {
        "edges": np.zeros((2, 0), np.int64)
    }
    data = GraphTensors(bare, spec, recipe.params.conv, run.device)
    return evaluate(recipe, train(recipe, silent, data).model, data, "test")["accuracy"]


def _scores(truth: np.ndarray, predicted: np.ndarray) -> Scores:
    """Accuracy and macro F1, beside the best that one class for every node achieves."""
    from sklearn.metrics import f1_score

    return {
        "accuracy": float((truth == predicted).mean()),
        "majority": float(np.bincount(truth).max() / len(truth)),
        "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
    }


def _embedding(values: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], seed: int) -> "Figure":
    """Hidden values of at most DRAWN nodes on their two principal axes, one colour per class."""
    from matplotlib.figure import Figure

    chosen = np.sort(np.random.default_rng(seed).permutation(len(values))[:DRAWN])
    centred = values[chosen] - values[chosen].mean(0)
    _, _, axes_2H = np.linalg.svd(centred, full_matrices=False)
    points = centred @ axes_2H[:2].T if len(axes_2H) > 1 else np.repeat(centred, 2, 1)[:, :2]
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    axes = figure.subplots()
    for index, name in enumerate(classes):
        mine = points[labels[chosen] == index]
        axes.scatter(mine[:, 0], mine[:, 1], s=7, alpha=0.6, label=name)
    if len(classes) <= 20:
        axes.legend(markerscale=2, fontsize=8, loc="best")
    axes.set_title("test nodes: hidden values on their two principal axes", fontsize=10)
    axes.set(xticks=[], yticks=[])
    return figure


def _save(run: Run, params: GnnParams, graph: Artifact, model: Gnn, data: GraphTensors) -> Artifact:
    spec = graph.spec
    weights = {**model.state_dict(), **{f"graph.{name}": tensor for name, tensor in data.shared.items()}}
    names: list[str] = graph.meta()["nodes"]
    config = {
        "params": params.model_dump(mode="json"),
        "spec": spec.model_dump(mode="json"),
        "classes": list(spec.classes),
        "nodes": names,
    }
    test = data.nodes["test"][:EXAMPLES].tolist()
    interface = Interface(
        kind="nodes",
        about=f"{params.conv.upper()}: {len(spec.classes)} classes of the {spec.nodes:,} nodes of a graph, "
        "which the model carries",
        inputs=(Column(name="node", type="string" if names else "long"),),
        outputs=(Column(name="node", type="string"), *class_columns(spec.classes)),
        example=tuple({"node": names[i] if names else i} for i in test),
    )
    return run.save_model("tasks.graphs.predictor:predictor", weights, config, spec, interface)
